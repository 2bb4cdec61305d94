"""The comparison on a machine where nothing was trained yet: what it does about it, and when it leaves that alone."""

from __future__ import annotations

import pytest
from evaluation.test_config import build, make_run

from helpers.core.errors import ConfigError
from helpers.evaluation import adapter as first
from helpers.evaluation.adapter import (
    FIRST_RUN,
    FIRST_STEPS,
    first_training,
    known_adapter,
    provide_adapter,
    source_name,
)


@pytest.fixture
def runs_folder(tmp_path, monkeypatch):
    """An empty folder of runs."""
    monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def trained(runs_folder, monkeypatch):
    """Configurations that were trained; each leaves a complete run."""
    found = []

    def run_program(path, parameters):
        """Leave a run."""
        found.append((path.stem, parameters))
        make_run(runs_folder, parameters["run_name"])

    monkeypatch.setattr("helpers.training.program.run_program", run_program)
    monkeypatch.setattr("helpers.model.load.free_memory", lambda: None)
    return found


def test_without_any_run_a_short_one_is_trained_once(trained):
    """The second time it is there."""
    lines = []
    for _ in range(2):
        assert provide_adapter(build(), report=lines.append).shown() == f"runs/{FIRST_RUN}"
    values = {"preset": "smoke", "run_name": FIRST_RUN, "max_steps": FIRST_STEPS, "resume": "auto"}
    assert trained == [("alpaca_instruction", values)]
    assert lines == [f"There is no adapter yet: first 30 training steps are run, in runs/{FIRST_RUN}."]


def test_where_there_is_a_run_it_is_taken(trained, runs_folder):
    """Named or not."""
    make_run(runs_folder, "mine")
    assert provide_adapter(build()).shown() == provide_adapter(build(adapter_dir="mine")).shown() == "runs/mine"
    assert trained == []


def test_a_name_that_is_wrong_is_no_reason_to_train(trained):
    """It is an error, as before."""
    with pytest.raises(ConfigError, match="adapter_dir"):
        provide_adapter(build(adapter_dir="nope"))
    with pytest.raises(ConfigError, match="adapter_dir"):
        known_adapter(build(adapter_dir="nope"))
    assert trained == []


def test_what_is_asked_for_the_comparison_holds_for_the_training(tiny_mistral):
    """Model, task and the way in which prompts are written."""
    asked = {"model_name": str(tiny_mistral), "system_prompt": "Be brief.", "task": "dolly", "prompt_style": "chat"}
    config = first_training(build(**asked))
    assert (config.task, config.model.model_name) == ("dolly", str(tiny_mistral))
    assert (config.data.system_prompt, config.data.prompt_style, config.preset) == ("Be brief.", "chat", "smoke")


def test_the_run_can_be_named_before_anything_is_trained(trained, runs_folder):
    """`python -m helpers run` must know which run it would go on with."""
    assert source_name(build(), known_adapter(build())) == f"runs/{FIRST_RUN}"
    assert trained == []
    make_run(runs_folder, "mine")
    assert source_name(build(), known_adapter(build())) == "runs/mine"


def test_an_adapter_on_google_drive_is_looked_for_there(trained, runs_folder, monkeypatch):
    """The drive is mounted first."""
    asked = []
    monkeypatch.setattr(first, "connect_drive", lambda *given: asked.append(given))
    run = make_run(runs_folder / "drive", "kept")
    assert provide_adapter(build(adapter_dir=str(run))).folder == run / "adapter"
    assert asked == [(str(run), "adapter_dir")]
