"""Live tracking: off unless asked for, refused when it is not installed, and never in need of an account."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import SimpleNamespace

import pytest

from helpers.core.config import FREE_TO_CHANGE, build_config
from helpers.core.errors import ConfigError, StackError
from helpers.core.runs import RunDirectory
from helpers.training.tracking import require_tracker, track_configuration, tracking_arguments

TRACKERS = ("trackio", "tensorboard", "tensorboardX", "wandb")
VARIABLES = (
    "NETRC",
    "TENSORBOARD_LOGGING_DIR",
    "WANDB_API_KEY",
    "WANDB_DIR",
    "WANDB_MODE",
    "WANDB_PROJECT",
)


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No tracker is set up, and what a test sets is taken back."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def installed(monkeypatch):
    """Every tracker counts as installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name in TRACKERS or find(name, *rest))


def config(report_to):
    """Return a run's configuration."""
    return build_config("alpaca", preset="smoke", run_name="mine", report_to=report_to)


class Trainer:
    """What `track_configuration` needs of a trainer."""

    def __init__(self, *callbacks):
        self.callback_handler = SimpleNamespace(callbacks=list(callbacks))

    def add_callback(self, callback):
        """Keep a callback."""
        self.callback_handler.callbacks.append(callback)

    def begin(self, *, main=True):
        """Begin training."""
        self.callback_handler.callbacks[-1].on_train_begin(None, SimpleNamespace(is_world_process_zero=main), None)


class TestSetting:
    """The parameter report_to."""

    def test_none_is_the_default(self):
        """Nobody is tracked who did not ask for it."""
        assert build_config("alpaca", preset="colab-t4").train.report_to == "none"

    def test_a_misspelled_tracker_is_refused(self):
        """The nearest name is suggested."""
        with pytest.raises(ConfigError, match=r"report_to: .*Did you mean tensorboard"):
            config("tensorbord")

    def test_a_run_may_be_resumed_with_another_tracker(self):
        """Where losses are shown does not change what is computed."""
        assert "report_to" in FREE_TO_CHANGE


class TestRequire:
    """Whether the package is there."""

    def test_none_needs_nothing(self):
        """No tracker, no package."""
        assert require_tracker("none") is None

    @pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
    def test_a_missing_package_is_an_error_that_says_what_to_install(self, monkeypatch, name):
        """The message names the parameter, the package and the way out."""
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda each, *rest: each not in TRACKERS and find(each, *rest))
        with pytest.raises(StackError) as caught:
            require_tracker(name)
        assert caught.value.field == "report_to"
        assert f"pip install {name}" in caught.value.remedy

    def test_either_package_of_tensorboard_will_do(self, monkeypatch):
        """The package tensorboardX alone is enough, as it is for transformers."""
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: package == "tensorboardX" or None)
        assert require_tracker("tensorboard") is None


class TestArguments:
    """What SFTConfig gets."""

    def test_none_turns_everything_off(self, tmp_path):
        """Without a tracker nothing is set."""
        assert tracking_arguments(config("none"), RunDirectory(tmp_path)) == {"report_to": "none"}
        assert [name for name in VARIABLES if name in os.environ] == []

    @pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
    def test_the_run_keeps_its_name(self, installed, tmp_path, name):
        """Tracker, name and project are passed through."""
        assert tracking_arguments(config(name), RunDirectory(tmp_path)) == {
            "report_to": [name],
            "run_name": "mine",
            "project": "mistral-qlora-notebooks",
        }

    def test_transformers_knows_the_arguments(self, installed, tmp_path):
        """They are fields of TrainingArguments, which SFTConfig extends."""
        import dataclasses

        from transformers import TrainingArguments

        fields = {each.name for each in dataclasses.fields(TrainingArguments)}
        assert set(tracking_arguments(config("trackio"), RunDirectory(tmp_path))) <= fields

    def test_tensorboard_writes_into_the_run(self, installed, tmp_path):
        """Its files lie in the run's folder, and a second run's in its own."""
        for name in ("one", "two"):
            tracking_arguments(config("tensorboard"), RunDirectory(tmp_path / name))
            assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / name / "tracking")

    def test_wandb_without_a_key_stays_offline(self, installed, tmp_path):
        """Nobody is asked for an account; the files lie in the run's folder, which is there."""
        tracking_arguments(config("wandb"), RunDirectory(tmp_path / "run"))
        assert os.environ["WANDB_MODE"] == "offline"
        assert os.environ["WANDB_PROJECT"] == "mistral-qlora-notebooks"
        assert os.environ["WANDB_DIR"] == str(tmp_path / "run" / "tracking")
        assert (tmp_path / "run" / "tracking").is_dir()

    def test_wandb_with_a_key_is_online(self, installed, tmp_path, monkeypatch):
        """A key in the environment is used."""
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        tracking_arguments(config("wandb"), RunDirectory(tmp_path))
        assert "WANDB_MODE" not in os.environ

    def test_wandb_finds_the_key_of_an_earlier_login(self, installed, tmp_path):
        """`wandb login` writes it into ~/.netrc."""
        (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + "x" * 40 + "\n")
        (tmp_path / ".netrc").chmod(0o600)
        tracking_arguments(config("wandb"), RunDirectory(tmp_path))
        assert "WANDB_MODE" not in os.environ

    def test_what_the_user_set_for_wandb_is_kept(self, installed, tmp_path, monkeypatch):
        """Project and mode are the user's if set."""
        monkeypatch.setenv("WANDB_PROJECT", "theirs")
        monkeypatch.setenv("WANDB_MODE", "disabled")
        tracking_arguments(config("wandb"), RunDirectory(tmp_path))
        assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_MODE"]) == ("theirs", "disabled")


class TestConfiguration:
    """The notebook's parameters reach the tracker."""

    def test_without_a_tracker_nothing_is_added(self):
        """The trainer keeps its callbacks as they were."""
        trainer = Trainer()
        track_configuration(trainer, config("none"))
        assert trainer.callback_handler.callbacks == []

    @pytest.mark.parametrize("name", ["trackio", "wandb"])
    def test_they_go_into_the_runs_configuration(self, monkeypatch, name):
        """Two trackers keep them under one name, beside what transformers sends; the main process alone starts them."""
        got = []
        tracker = SimpleNamespace(config=SimpleNamespace(update=lambda values, **options: got.append(values)))
        monkeypatch.setitem(sys.modules, name, tracker)
        trainer = Trainer()
        track_configuration(trainer, config(name))
        trainer.begin(main=False)
        assert got == []
        trainer.begin()
        (values,) = got
        assert values["notebook"]["dataset_name"] == "sample"
        assert values["notebook"]["task"] == "alpaca"
        assert values["notebook"]["report_to"] == name

    def test_tensorboard_shows_them_as_text(self):
        """The writer that transformers opened gets them."""
        got = {}
        trainer = Trainer(SimpleNamespace(tb_writer=SimpleNamespace(add_text=got.__setitem__)))
        track_configuration(trainer, config("tensorboard"))
        trainer.begin()
        assert '"prompt_style": "chat"' in got["notebook"]
