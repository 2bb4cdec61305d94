"""The frame of a launched command: what happens before the processes meet, and in which of them."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from helpers.core.errors import ConfigError
from helpers.core.files import write_json
from helpers.core.runs import RunDirectory
from helpers.training import job


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Let each step only note its name; `launch(rank)` runs a job as one of two processes and returns the names."""
    noted: list[str] = []
    monkeypatch.setattr("torch.distributed.init_process_group", lambda **_: noted.append("meet"))
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda *_, **__: noted.append("tell"))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    monkeypatch.setattr("torch.serialization.register_package", lambda *_: None)
    monkeypatch.setattr("helpers.model.load.import_unsloth", lambda: noted.append("import"))
    for name in ("datasets.disable_progress_bars", "transformers.utils.logging.disable_progress_bar",
                 "transformers.utils.logging.set_verbosity_error"):  # fmt: skip
        monkeypatch.setattr(name, lambda: None)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"run_name": "x", "folder": os.getcwd()}))
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    write_json(run.path / "metrics.json", {"eval_loss_before": 2.0, "eval_loss_after": 1.5})

    def launch(rank, check=None):
        """Run the job."""
        noted.clear()
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        before = sys.stdout
        try:
            job.run_job(path, check or (lambda _: noted.append("check")), lambda _: noted.append("work") or run)
        finally:
            if sys.stdout is not before:  # as in a process that is not the main one
                sys.stdout.close()
                sys.stdout = before
        return list(noted)

    launch.noted = noted
    return launch


def test_unsloth_is_imported_before_the_processes_meet(steps, capsys):
    """Afterwards its import waits for the others, which may be doing something else; the main one shows the summary."""
    assert steps(0) == ["check", "import", "meet", "tell", "work"]
    assert "held-out loss  2.000 -> 1.500" in capsys.readouterr().out
    assert steps(1) == ["import", "meet", "tell", "work"]
    assert capsys.readouterr().out == ""


def test_a_configuration_that_is_wrong_ends_the_main_process_at_once(steps):
    """Before anything is imported; the launcher ends the others."""

    def wrong(_):
        """Refuse."""
        raise ConfigError("train_rows", "fewer", 5, "Lower it.")

    with pytest.raises(ConfigError, match="train_rows"):
        steps(0, wrong)
    assert steps.noted == []


def test_an_import_after_the_meeting_still_talks_to_the_others():
    """Unsloth asks all processes for the folder of its compiled code; if it stops doing so, the order is free."""
    (folder,) = importlib.util.find_spec("unsloth_zoo").submodule_search_locations
    source = (Path(folder) / "compiler.py").read_text(encoding="utf-8").partition("def get_compile_folder")[2][:1500]
    assert "distributed_any(" in source
    assert "distributed_function(" in source


def test_relative_paths_begin_at_the_folder_where_the_file_was_written(steps, tmp_path, monkeypatch):
    """Already when it is checked, and wherever the command is typed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "config.json").write_text(json.dumps({"run_name": "x", "folder": str(tmp_path)}))
    seen = []
    steps(0, lambda path: seen.append((path, Path.cwd())))
    assert seen == [(tmp_path / "config.json", tmp_path)]
