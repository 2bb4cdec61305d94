"""What a run took, kept as one line, and the badge table's minutes from it."""

from __future__ import annotations

import csv
import json

import pytest

from helpers.core.errors import RunError
from tools.timings import COLUMNS, FILE, main, minutes_on, read_timings, timing

MANIFEST = {
    "task": "alpaca",
    "state": "complete",
    "started": "2026-11-27T10:00:00+00:00",
    "finished": "2026-11-27T10:31:30+00:00",
    "resumed": [],
    "parameters": {"preset": "colab-t4"},
    "versions": {"torch": "2.11.0+cu128", "unsloth": "2026.10.9"},
    "hardware": {"gpus": ["Tesla T4"]},
    "git_commit": "0123456789abcdef",
}
METRICS = {
    "rows_seen": 1000,
    "train_loss": [[1, 2.0], [2, 1.7], [3, 1.5]],
    "skipped_updates": 1,
    "train_seconds": 1200.0,
    "heldout_seconds": 60.0,
    "peak_memory_bytes": 10 * 2**30,
    "forecast": {"train_seconds": 1000.0, "heldout_seconds": 50.0},
}
LINE = {
    "task": "alpaca",
    "preset": "colab-t4",
    "card": "Tesla T4",
    "image": "2026.08",
    "torch": "2.11.0+cu128",
    "unsloth": "2026.10.9",
    "commit": "0123456789ab",
    "rows": 1000,
    "updates": 2,
    "minutes": 31.5,
    "train_minutes": 21.0,
    "forecast_minutes": 17.5,
    "peak_gib": 10.0,
    "date": "2026-11-27",
}


@pytest.fixture
def run(tmp_path):
    """A complete run's folder, and a repository beside it."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(METRICS), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    return folder


class TestLine:
    """A run's line."""

    def test_it_has_times_versions_and_memory(self):
        """Minutes from start to end, of training, and of the forecast; the columns are the file's."""
        found = timing(MANIFEST, METRICS, "2026.08")
        assert found == LINE
        assert tuple(found) == COLUMNS

    @pytest.mark.parametrize("change", [{"state": "running"}, {"resumed": ["2026-11-27T10:10:00+00:00"]}])
    def test_only_a_run_from_start_to_end_says_how_long_it_takes(self, change):
        """One that is not complete, or was interrupted in between, is refused."""
        with pytest.raises(RunError, match="a complete run that was never resumed"):
            timing(MANIFEST | change, METRICS)

    def test_a_run_without_forecast_has_an_empty_field(self):
        """Runs of earlier versions have none."""
        assert timing(MANIFEST, {**METRICS, "forecast": {}})["forecast_minutes"] == ""


class TestFile:
    """docs/timings.csv."""

    def test_a_run_is_added_once(self, run, tmp_path, capsys):
        """The second time the file stays as it is."""
        for _ in range(2):
            assert main([str(run), "--image", "2026.08"], root=tmp_path) == 0
        assert read_timings(tmp_path) == [{name: str(value) for name, value in LINE.items()}]
        assert capsys.readouterr().out.startswith("docs/timings.csv: alpaca on Tesla T4, 31.5 minutes.")

    def test_without_a_file_there_are_no_lines(self, tmp_path):
        """A checkout without it has no measurements."""
        assert read_timings(tmp_path) == []

    def test_the_repository_s_own_has_these_columns(self):
        """The file can be read, and each line's minutes are a number."""
        from tools.timings import ROOT

        with (ROOT / FILE).open(encoding="utf-8", newline="") as file:
            assert tuple(next(csv.reader(file))) == COLUMNS
        assert all(float(line["minutes"]) > 0 for line in read_timings())


class TestMinutes:
    """What the badge table says."""

    def test_the_median_of_the_runs_on_that_card(self):
        """Three runs on a T4; those on other cards, of other presets and tasks do not count."""
        lines = [
            {"task": task, "preset": preset, "card": card, "minutes": minutes}
            for task, preset, card, minutes in (
                ("alpaca", "colab-t4", "Tesla T4", "30"),
                ("alpaca", "colab-t4", "Tesla T4", "34"),
                ("alpaca", "colab-t4", "Tesla T4", "90"),
                ("alpaca", "colab-t4", "NVIDIA L4", "5"),
                ("alpaca", "smoke", "Tesla T4", "1"),
                ("dolly", "colab-t4", "Tesla T4", "2"),
            )
        ]
        assert minutes_on(lines, "alpaca", "T4", "colab-t4") == (34.0, 3)

    def test_none_is_known(self):
        """Without a run there is nothing to say."""
        assert minutes_on([], "alpaca", "T4", "colab-t4") is None
