"""How a notebook opens its run: locked, continued or refused, and marked when a cell fails."""

from __future__ import annotations

import sys
import types

import pytest

from helpers.core.config import build_config
from helpers.core.config_file import read_config
from helpers.core.errors import ConfigError, RunError
from helpers.core.lock import find_holder, release_lock
from helpers.core.runs import RunDirectory
from helpers.runtime.hardware import Gpu
from helpers.training.machine import fit_layout
from helpers.training.session import configure, finish_run, record_data, start_run


@pytest.fixture
def config(runs_folder):
    """A checked configuration."""
    yield build_config("alpaca", preset="smoke", run_name="run")
    release_lock(runs_folder / "run")


class TestStart:
    """The cell that opens the run directory."""

    def test_the_run_is_locked(self, config, runs_folder):
        """From now on no other process may write it."""
        start_run(config)
        assert find_holder(runs_folder / "run") is not None

    def test_an_equal_run_is_continued(self, config):
        """It keeps its id and its start, and notes that it was resumed."""
        first = start_run(config).manifest()
        second = start_run(config).manifest()
        assert (second["run_id"], second["started"]) == (first["run_id"], first["started"])
        assert (first["resumed"], len(second["resumed"])) == ([], 1)

    def test_never_begins_another_run(self, config):
        """A run that starts over has another id: checkpoints of the old one are not its own."""
        first = start_run(config).run_id()
        assert start_run(config, resume="never").run_id() != first

    def test_how_checkpoints_are_kept_may_change(self, config, tmp_path):
        """save_steps and persist_dir do not decide what is computed."""
        first = start_run(config)
        before = first.fingerprint()
        other = build_config("alpaca", preset="smoke", run_name="run", save_steps=3, persist_dir=str(tmp_path))
        assert start_run(other).fingerprint() == before

    def test_what_is_computed_may_not_change(self, config):
        """The field is named with both values."""
        start_run(config)
        other = build_config("alpaca", preset="smoke", run_name="run", learning_rate=0.1)
        with pytest.raises(RunError, match=r"learning_rate: 0\.001 -> 0\.1"):
            start_run(other)


class TestLayout:
    """The cell that lays the rows of a step out."""

    def fit(self, run, gib, **given):
        """Return the configuration for a card of this size; rows have 600 tokens."""
        card = Gpu("GPU", (8, 0), gib * 2**30, gib * 2**30)
        wanted = build_config("alpaca", preset="colab-t4", **given)
        return fit_layout(wanted, [600] * 80, run, find=lambda: card).config

    def test_layers_are_skipped_as_memory_allows(self, tmp_path):
        """What the user has set stays; what the card decides differs from card to card."""
        run = RunDirectory(tmp_path)
        chosen = [self.fit(run, gib).train for gib in (12, 14, 40)]
        assert [(t.gradient_checkpointing, t.checkpoint_skip_layers) for t in chosen] == [
            (True, 8),
            (True, 11),
            (False, 0),
        ]
        kept = self.fit(run, 12, checkpoint_skip_layers=2).train
        assert (kept.gradient_checkpointing, kept.checkpoint_skip_layers) == (True, 2)

    def test_optimizer_and_loss_are_reported(self, tmp_path, capsys):
        """Five sentences: micro-batch, checkpointing, packing, optimizer, loss."""
        self.fit(RunDirectory(tmp_path), 12)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["batch_size", "Checkpointing", "No", "Optimizer", "Loss:"]

    def test_another_card_goes_on_with_the_run(self, config, leave_free):
        """The run's record has the parameters, not what a card made of them."""
        leave_free(10**12)
        wanted = build_config("alpaca", preset="colab-t4", run_name="run")
        first = start_run(wanted)
        for gib in (12, 14):
            self.fit(first, gib, run_name="run")
            again = start_run(read_config(first.path))
            assert (again.run_id(), again.fingerprint()) == (first.run_id(), first.fingerprint())

    def test_more_layers_than_there_are(self):
        """The first cell says so, without a GPU too."""
        with pytest.raises(ConfigError, match="at most the model's 30 layers, got 31"):
            configure("alpaca", preset="smoke", gradient_checkpointing=True, checkpoint_skip_layers=31)


@pytest.fixture
def cells(monkeypatch):
    """What IPython calls after a cell: a list that start_run adds to."""
    called = []
    events = types.SimpleNamespace(
        callbacks={"post_run_cell": called},
        register=lambda event, call: called.append(call),
        unregister=lambda event, call: called.remove(call),
    )
    shell = types.SimpleNamespace(events=events)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    return called


def cell_result(error=None):
    """What IPython says of a cell."""
    return types.SimpleNamespace(error_in_exec=error, error_before_exec=None)


class TestCells:
    """In a notebook."""

    def test_a_cell_that_fails_marks_the_run(self, config, cells):
        """The manifest says that it failed, and how."""
        run = start_run(config)
        cells[0](cell_result(ValueError("a mistake")))
        assert (run.manifest()["state"], run.manifest()["failure"]) == ("failed", "ValueError: a mistake")

    def test_an_interrupted_cell_is_no_failure(self, config, cells):
        """The run can go on."""
        run = start_run(config)
        cells[0](cell_result(KeyboardInterrupt()))
        assert run.manifest()["state"] == "interrupted"

    def test_a_cell_that_works_changes_nothing(self, config, cells):
        """The run is running until it is finished."""
        run = start_run(config)
        cells[0](cell_result())
        assert run.manifest()["state"] == "running"

    def test_a_finished_run_stays_finished(self, config, cells):
        """Trying something out in the cells below does not spoil the run."""
        run = start_run(config)
        finish_run(run)
        cells[0](cell_result(ValueError("a typing mistake")))
        assert run.manifest()["state"] == "complete"

    def test_a_second_start_leaves_one_watch(self, config, cells):
        """Only the run that was opened last is marked."""
        start_run(config)
        start_run(config)
        assert len(cells) == 1


class TestComparison:
    """A comparison's run directory has one writer too."""

    @pytest.fixture
    def comparison(self, runs_folder):
        """A checked comparison and its adapter."""
        from evaluation.test_config import build, make_run

        from helpers.evaluation.adapter import find_adapter

        make_run(runs_folder, "trained")
        yield build(run_name="side"), find_adapter("trained")
        release_lock(runs_folder / "side")

    def test_it_is_locked(self, comparison, runs_folder):
        """From now on no other process may write it."""
        from helpers.evaluation.session import open_evaluation

        open_evaluation(*comparison)
        assert find_holder(runs_folder / "side") is not None

    def test_a_cell_that_fails_marks_it(self, comparison, cells):
        """Its manifest says that it failed and why, instead of running for ever."""
        from helpers.evaluation.session import open_evaluation

        run = open_evaluation(*comparison)
        cells[0](cell_result(RuntimeError("no answers")))
        assert (run.manifest()["state"], run.manifest()["failure"]) == ("failed", "RuntimeError: no answers")

    def test_starting_again_forgets_the_failure(self, comparison):
        """A second start of the same comparison runs again."""
        from helpers.evaluation.session import open_evaluation

        open_evaluation(*comparison).mark_failed(RuntimeError("no answers"))
        manifest = open_evaluation(*comparison).manifest()
        assert (manifest["state"], manifest["failure"]) == ("running", None)


def test_a_resumed_run_keeps_the_commits_it_began_with(tmp_path):
    """The manifest names the commits of base model and data; with checkpoints there, another one is refused."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    rows = [{"instruction": "a", "input": "", "output": "b"}]
    known = {"task": "alpaca", "left_out": {}, "template": "chatml", "base": "ada/base"}
    tokenizer = types.SimpleNamespace(chat_template="{{ messages }}")

    def record(base, data):
        source = f"ada/rows at {data * 40}"
        both = {"train": rows, "heldout": rows}
        record_data(run, both, source=source, tokenizer=tokenizer, base_commit=base * 40, **known)

    record("a", "b")
    assert (run.manifest()["base_commit"], run.manifest()["data_commit"]) == ("a" * 40, "b" * 40)
    record("c", "b")  # nothing was trained yet
    (run.checkpoints / "step-000004").mkdir(parents=True)
    record("c", "b")
    for base, data in (("a", "b"), ("c", "d")):
        with pytest.raises(RunError, match="What a name stands for has changed"):
            record(base, data)
