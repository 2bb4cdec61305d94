"""The comparison on a machine where nothing was trained yet: what it does about it, and when it leaves that alone."""

from __future__ import annotations

import sys
import types

import pytest
from evaluation.test_config import build, make_run

from helpers.core.errors import ConfigError
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


def no_training(path, parameters):
    """Nothing may be trained."""
    pytest.fail(f"{path.stem} was run")


def test_without_any_run_a_short_one_is_trained_once(runs_folder):
    """The second time it is there."""
    trained, lines = [], []

    def train(path, parameters):
        trained.append((path.stem, parameters))
        make_run(runs_folder, parameters["run_name"])

    for _ in range(2):
        assert provide_adapter(build(), train=train, report=lines.append).shown() == f"runs/{FIRST_RUN}"
    values = {"preset": "smoke", "run_name": FIRST_RUN, "max_steps": FIRST_STEPS, "resume": "auto"}
    assert trained == [("alpaca_instruction", values)]
    assert lines == [f"There is no adapter yet: first 30 training steps are run, in runs/{FIRST_RUN}."]


def test_where_there_is_a_run_it_is_taken(runs_folder):
    """Named or not."""
    make_run(runs_folder, "mine")
    for given in (build(), build(adapter_dir="mine")):
        assert provide_adapter(given, train=no_training).shown() == "runs/mine"


@pytest.mark.usefixtures("runs_folder")
def test_a_name_that_is_wrong_is_no_reason_to_train():
    """It is an error, as before."""
    with pytest.raises(ConfigError, match="adapter_dir"):
        provide_adapter(build(adapter_dir="nope"), train=no_training)
    with pytest.raises(ConfigError, match="adapter_dir"):
        known_adapter(build(adapter_dir="nope"))


def test_what_is_asked_for_the_comparison_holds_for_the_training(tiny_mistral):
    """Model, task and the way in which prompts are written."""
    asked = {"model_name": str(tiny_mistral), "system_prompt": "Be brief.", "task": "dolly", "prompt_style": "chat"}
    config = first_training(build(**asked))
    assert (config.task, config.model.model_name) == ("dolly", str(tiny_mistral))
    assert (config.data.system_prompt, config.data.prompt_style, config.preset) == ("Be brief.", "chat", "smoke")


def test_the_run_can_be_named_before_anything_is_trained(runs_folder):
    """`python -m helpers run` must know which run it would go on with."""
    assert source_name(build(), known_adapter(build())) == f"runs/{FIRST_RUN}"
    make_run(runs_folder, "mine")
    assert source_name(build(), known_adapter(build())) == "runs/mine"


@pytest.mark.usefixtures("runs_folder")
def test_an_adapter_on_google_drive_is_looked_for_there(monkeypatch):
    """The drive is mounted first."""
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    with pytest.raises(ConfigError, match="got '/content/drive/MyDrive/kept'"):
        provide_adapter(build(adapter_dir="/content/drive/MyDrive/kept"), train=no_training)
    assert mounted == ["/content/drive"]
