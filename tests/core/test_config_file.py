"""A run's configuration, written and read back."""

from __future__ import annotations

import json

import pytest

from helpers.core.config import build_config
from helpers.core.config_file import read_config, record_layout, write_config
from helpers.core.distributed import Share
from helpers.core.errors import ConfigError, RunError
from helpers.core.runs import RunDirectory


@pytest.fixture
def written(tmp_path):
    """A run directory with the configuration of a Dolly run."""
    config = build_config("dolly", preset="smoke", run_name="mine", max_steps=4, category="open_qa", merge_16bit=False)
    run = RunDirectory(tmp_path / "mine")
    write_config(run, config)
    return run, config


def change(run, **values):
    """Change what stands in the file."""
    path = run.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_read_is_what_was_written(written):
    """Every parameter, the preset, the name, and which parameters the user gave."""
    run, config = written
    again = read_config(run.path / "config.json")
    assert again == config
    assert again.given == {"category", "max_steps", "merge_16bit"}
    assert read_config(run.path) == config


def test_a_value_changed_in_the_file_is_one_that_was_given(written):
    """A training from the file passes it on; what stands as it was written stays as it was."""
    run, _ = written
    change(run, lora_rank=8, save_steps=8)
    again = read_config(run.path)
    assert again.adapter.lora_rank == 8
    assert again.given == {"category", "lora_rank", "max_steps", "merge_16bit"}


def test_a_hub_data_sets_revision_is_written(tmp_path):
    """The pinned revision of a known data set stands in the file, and no path."""
    run = RunDirectory(tmp_path)
    write_config(run, build_config("alpaca", preset="colab-t4"))
    data = json.loads((tmp_path / "config.json").read_text())["data"]
    assert data == {"path": None, "revision": "12567cabf869d7c92e573c7c783905fc160e9639"}


def test_a_local_files_whole_path_is_written(tmp_path, monkeypatch):
    """A relative path stays as typed; beside it stand the whole one and the folder that it begins at."""
    monkeypatch.chdir(tmp_path)
    write_config(RunDirectory(tmp_path), build_config("alpaca", preset="smoke", dataset_name="rows.jsonl"))
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["dataset_name"] == "rows.jsonl"
    assert values["data"] == {"path": str(tmp_path / "rows.jsonl"), "revision": None}
    assert values["folder"] == str(tmp_path)


def test_the_layout_is_added(written):
    """How the rows of a step are laid out stands in the file, which reads as before."""
    run, config = written
    record_layout(run, config, Share(2, 4, 1))
    assert json.loads((run.path / "config.json").read_text())["layout"] == {
        "processes": 2, "batch_size": 4, "gradient_accumulation": 1, "gradient_checkpointing": False,
        "checkpoint_skip_layers": 0,
    }  # fmt: skip
    assert read_config(run.path) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": 2}, "expected format 1, got 2"),
        ({"task": None}, "expected a run's configuration with a task"),
        ({"given": "max_steps"}, "expected a list of the parameters that were given"),
        ({"learning_rate": "fast"}, "learning_rate: expected a number"),
        ({"learning_rat": 1.0}, "Did you mean learning_rate?"),
    ],
)
def test_a_changed_file_is_refused(written, values, said):
    """The message names what is wrong."""
    run, _ = written
    change(run, **values)
    with pytest.raises(ConfigError, match=None) as caught:
        read_config(run.path)
    assert said in str(caught.value)


def test_a_missing_parameter_is_named(written):
    """A file without one of the parameters is not complete."""
    run, _ = written
    path = run.path / "config.json"
    values = json.loads(path.read_text())
    del values["seed"]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="the parameter seed"):
        read_config(path)


def test_a_missing_file_is_an_error(tmp_path):
    """It says which, and does not call it damaged."""
    with pytest.raises(RunError, match=r"config.json: expected a file that exists, got 'none'\. Check the path"):
        read_config(tmp_path / "config.json")
