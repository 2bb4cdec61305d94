"""What a user waits for: the stopwatch of stages, and the rows that all sides read."""

from __future__ import annotations

import builtins
import json
import sys
import time
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import stopwatch
import whole


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved on."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(stopwatch.time, "time", lambda: clock.now)
    return clock


class TestStages:
    """Where a process's seconds go."""

    def test_what_an_inner_stage_takes_is_not_counted_outside(self, clock):
        """Seconds belong to the innermost stage, and together they are the whole."""
        stages = stopwatch.Stages(98.0)
        stages.turn("train")
        clock.now += 5
        with stages.inner("checkpoints"):
            clock.now += 2
        clock.now += 1
        assert stages.result() == {
            "total_seconds": 10.0,
            "stages": {"python": 2.0, "train": 6.0, "checkpoints": 2.0},
        }

    def test_calls_are_counted_wherever_a_function_was_imported(self, clock, monkeypatch):
        """A function that another module holds by its name is counted there, too."""

        def work():
            clock.now += 3
            return "done"

        owner, other = types.ModuleType("owner"), types.ModuleType("other")
        owner.work = other.work = work
        monkeypatch.setitem(sys.modules, "other", other)
        stages = stopwatch.Stages(100.0)
        stages.count_calls(owner, "work", "work")
        assert (owner.work(), other.work()) == ("done", "done")
        assert stages.result()["stages"]["work"] == 6.0

    def test_first_imports_are_counted(self, tmp_path, monkeypatch):
        """What a module takes to be imported the first time counts as "imports", wherever the import stands."""
        (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.2)\n", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(builtins, "__import__", builtins.__import__)
        stages = stopwatch.Stages(time.time())
        stages.turn("train")
        stages.count_imports()
        import slow_to_import  # noqa: F401

        del sys.modules["slow_to_import"]
        assert 0.2 <= stages.result()["stages"]["imports"] < 10


class TestRows:
    """The rows that all sides read."""

    def test_too_few_are_repeated_with_a_number(self, tmp_path):
        """A row that comes again asks something else, so that no copy counts as a duplicate."""
        rows = [{"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "Name it.", "output": "A"}]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        found = json.loads(Path(whole.rows_file(str(tmp_path / "rows.json"), 3)).read_text())
        assert [row["instruction"] for row in found] == ["Add.", "Name it.", "Add. (1)"]
        assert found[1]["input"] == ""


def test_what_was_extrapolated_is_said():
    """A run that was broken off counts with the seconds that were added, and the text says how many those are."""
    run = {"total_seconds": 40.0, "stages": {"train": 30.0}, "extrapolated": {"steps": 58, "seconds": 87.0}}
    assert whole.lines({"runs": {"official-944": [run]}})[0] == "official-944: 127.0 s (87 s of it extrapolated)"
