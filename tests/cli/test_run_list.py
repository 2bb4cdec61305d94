"""What `python -m helpers runs` says."""

from __future__ import annotations

import argparse
import json

import pytest

from helpers.cli.runs import add_commands, compare_runs, list_runs, read_run, read_runs, show_run
from helpers.core.errors import RunError
from helpers.core.lock import hold_lock, release_lock

TRAINED = {"train_loss": [[s, 2.0 - s / 50] for s in range(1, 13)], "eval_loss": [[0, 2.0], [12, 1.7]],
           "train_seconds": 30.0, "tokens_per_second": 100.0, "peak_memory_bytes": 2048}  # fmt: skip


@pytest.fixture
def write(runs_folder):
    """A function that writes a run."""

    def write(name, *, state="complete", metrics=None, saved=None, **parameters):
        folder = runs_folder / name
        folder.mkdir(parents=True)
        shared = {"run_name": name, "learning_rate": 2e-4, "lora_rank": 16}
        manifest = {
            "parameters": {**shared, **parameters},
            "state": state,
            "run_id": name,
            "data_fingerprint": "f" * 64,
            "started": "2026-11-01T10:00:00+00:00",
            "failure": "RunError: the disk",
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if metrics:
            (folder / "metrics.json").write_text(json.dumps(metrics))
        if saved:
            step = folder / "checkpoints" / "step-000004"
            step.mkdir(parents=True)
            (step / "run_state.json").write_text(json.dumps({"result": saved}))
        return folder

    return write


class TestList:
    """The table of all runs."""

    def test_no_runs(self, runs_folder):
        """An empty folder is said to be empty."""
        assert list_runs(read_runs()) == f"no runs in {runs_folder}"

    def test_a_row_has_state_steps_losses_and_what_is_its_own(self, write):
        """Parameters are shown where a run stands out from the others."""
        for name in ("a", "b"):
            write(name, metrics=TRAINED)
        write("c", metrics=TRAINED, learning_rate=1e-3)
        assert list_runs(read_runs()).splitlines() == [
            "run  state     steps  held-out loss   curve    differs from most in",
            "a    complete  12     2.000 -> 1.700  healthy  -",
            "b    complete  12     2.000 -> 1.700  healthy  -",
            "c    complete  12     2.000 -> 1.700  healthy  learning_rate=0.001",
        ]

    def test_a_folder_without_manifest_is_no_run(self, runs_folder):
        """Other folders are left out."""
        (runs_folder / "notes").mkdir(parents=True)
        assert read_runs() == []


class TestState:
    """How a run's state is told."""

    def test_running_means_that_somebody_holds_the_lock(self, write):
        """The note names the process."""
        folder = write("a", state="running")
        hold_lock(folder)
        run = read_run("a")
        release_lock(folder)
        assert run.state == "running"
        assert run.note.startswith("by process ")

    def test_a_run_that_says_running_without_a_writer_was_interrupted(self, write):
        """A killed process could not write that it ended."""
        write("a", state="running")
        assert read_run("a").state == "interrupted"

    def test_a_failed_run_says_why(self, write):
        """The error's text is the note."""
        write("a", state="failed")
        assert (read_run("a").state, read_run("a").note) == ("failed", "RunError: the disk")

    def test_an_interrupted_run_shows_the_losses_of_its_checkpoint(self, write):
        """Before metrics.json there is, the newest checkpoint knows the losses so far."""
        write("a", state="running", saved={"train_loss": [[4, 1.9]], "eval_loss": [[0, 2.0], [4, 1.95]]})
        assert (read_run("a").step, read_run("a").losses()) == (4, (2.0, 1.95))

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"parameters": 5}', "\ud800"])
    def test_a_damaged_manifest_is_said_to_be_damaged(self, write, text):
        """The list goes on; no other run is hidden by it."""
        folder = write("a")
        (folder / "manifest.json").write_text(text, errors="surrogatepass")
        write("b", metrics=TRAINED)
        assert [run.name for run in read_runs()] == ["a", "b"]
        assert list_runs(read_runs())
        assert read_run("a").state == "damaged"

    @pytest.mark.parametrize("metrics", [{"train_loss": 5}, {"train_loss": [[1]]}, {"eval_loss": "x"}])
    def test_damaged_metrics_are_said_to_be_damaged(self, write, metrics):
        """Losses of another shape are not shown as losses."""
        write("a", metrics=metrics)
        assert read_run("a").state == "damaged"
        assert list_runs(read_runs())


class TestShow:
    """One run, and two."""

    def test_show_has_losses_verdict_and_parameters(self, write):
        """What one would look up in three files."""
        write("a", metrics=TRAINED)
        text = show_run(read_run("a"))
        assert "  held-out loss  2.0000 -> 1.7000 nats a token" in text
        assert "The curve looks healthy." in text
        assert "  lora_rank                16" in text

    def test_compare_shows_only_differences(self, write):
        """Equal parameters are left out, results are always shown."""
        write("a", metrics=TRAINED)
        write("b", metrics=TRAINED, lora_rank=8)
        text = compare_runs(read_run("a"), read_run("b"))
        assert "\nlora_rank             16        8\n" in text
        assert "learning_rate" not in text

    def test_compare_says_when_losses_are_of_other_rows(self, write):
        """Held-out losses of other rows mean nothing beside each other."""
        write("a", metrics=TRAINED)
        folder = write("b", metrics=TRAINED)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "data_fingerprint": "e" * 64}))
        assert compare_runs(read_run("a"), read_run("b")).endswith(
            "The rows differ, so the held-out losses cannot be compared."
        )

    @pytest.mark.parametrize("name", ["b", "../a", "", ".", "a/.."])
    def test_an_unknown_name_is_refused(self, write, name):
        """Only names of runs are read; a path leads nowhere."""
        write("a")
        with pytest.raises(RunError, match=r"expected a run in .*Did you mean a\?|Known are: a\."):
            read_run(name)


class TestCommands:
    """The command line."""

    @pytest.mark.parametrize(
        ("words", "shown"), [([], "held-out loss"), (["show", "a"], "parameters"), (["compare", "a", "b"], "steps")]
    )
    def test_each_command_prints(self, write, capsys, words, shown):
        """`runs`, `runs show` and `runs compare` end with 0."""
        write("a", metrics=TRAINED)
        write("b", metrics=TRAINED)
        parser = argparse.ArgumentParser()
        add_commands(parser.add_subparsers())
        options = parser.parse_args(["runs", *words])
        assert options.command(options) == 0
        assert shown in capsys.readouterr().out
