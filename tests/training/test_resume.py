"""Whole training runs that are killed, broken and resumed: what comes out is what an undisturbed run gives.

The model is a Mistral of two layers in fp32 on the CPU, with dropout, so that data order, optimizer, schedule and
random numbers all must be restored for the adapters to agree bit for bit. `scripts/fault_drill` does it
twenty times.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
from refusing import can_refuse

from helpers.core.files import file_sha256, read_json, write_json
from helpers.core.runs import RunDirectory
from helpers.training.checkpoints import last_complete, step_folders

pytestmark = pytest.mark.slow

CANARY = "hf_" + "Canary0123456789Canary0123456789XY"[:34]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs of this file."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def train(nursery, folder, tiny_mistral):
    """A function that does a whole run in a process of its own and returns what came out."""
    nursery.warm()

    def train(name, **arguments):
        return nursery.run("whole_run", **{"runs": str(folder), "model": str(tiny_mistral), "name": name, **arguments})

    return train


@pytest.fixture(scope="module")
def undisturbed(train, folder):
    """An undisturbed run, with HF_TOKEN set, and the order in which it touched files."""
    outcome = train(
        "undisturbed",
        fault={"do": "count_files", "to": str(folder / "files.txt")},
        environment={"HF_TOKEN": CANARY},
    )
    touched = (folder / "files.txt").read_text().splitlines()
    return {**outcome, "touched": touched}


TURNING = {"learning_rate": 0.3, "eval_steps": 1, "keep": "best", "early_stopping": 3}
"""Steps so large that the held-out loss rises after the second."""


@pytest.fixture(scope="module")
def best(train):
    """An undisturbed run that keeps its best adapter."""
    return train("best", **TURNING)


@pytest.fixture
def interrupted(nursery, folder, tiny_mistral):
    """A function that kills a run and returns its directory."""

    def interrupted(name, fault):
        child = nursery.start("whole_run", runs=str(folder), model=str(tiny_mistral), name=name, fault=fault)
        assert child.wait() == -signal.SIGKILL, child.output()
        return RunDirectory(folder / name)

    return interrupted


def place(undisturbed, name):
    """Return at which touch of a file the undisturbed run wrote one whose path ends so."""
    return next(i for i, path in enumerate(undisturbed["touched"], 1) if path.endswith(name))


def check_order(lines, *said):
    """These lines are there, in this order; the notebook's own stand between them."""
    places = [lines.index(each) for each in said]
    assert places == sorted(places)


def check_equal(outcome, undisturbed):
    """The adapter's bytes and every figure but times are those of the undisturbed run."""
    assert outcome["error"] is None
    assert outcome["adapter"] == undisturbed["adapter"]
    assert outcome["metrics"] == undisturbed["metrics"]


class TestKill:
    """kill -9, and the same notebook again."""

    def test_in_a_step(self, interrupted, train, undisturbed):
        """The steps since the last checkpoint are done again, the same way."""
        run = interrupted("step", {"do": "kill_at_step", "step": 8, "seconds": 0.01})
        assert last_complete(run).found.step == 6
        outcome = train("step")
        assert "going on from the checkpoint of step 6" in outcome["lines"]
        check_equal(outcome, undisturbed)

    def test_in_a_checkpoint_write(self, interrupted, train, undisturbed):
        """A checkpoint that was half written is not there; the one before is used, and two are kept in the end."""
        number = place(undisturbed, "checkpoint-6/optimizer.pt")
        run = interrupted("write", {"do": "kill_at_file", "number": number})
        assert last_complete(run).found.step == 3
        check_equal(train("write"), undisturbed)
        assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-000006", "step-000008"]

    def test_in_the_adapter_save(self, interrupted, train, undisturbed):
        """Nothing is trained again, and no half adapter is ever called adapter."""
        number = place(undisturbed, ".adapter-writing/adapter_model.safetensors")
        run = interrupted("adapter", {"do": "kill_at_file", "number": number})
        assert not run.adapter.exists()
        assert run.manifest()["state"] == "running"
        outcome = train("adapter")
        assert "step 8/8  already trained; restored from step-000008" in outcome["lines"]
        check_equal(outcome, undisturbed)


class TestAgain:
    """The same run once more."""

    def test_a_complete_run_is_not_trained_again(self, train, undisturbed):
        """Its result comes from the last checkpoint, times included."""
        outcome = train("undisturbed")
        check_order(
            outcome["lines"],
            "going on from the checkpoint of step 8",
            "step 8/8  already trained; restored from step-000008",
        )
        assert outcome["seconds"] == undisturbed["seconds"]
        check_equal(outcome, undisturbed)

    def test_a_changed_parameter_is_refused_by_name(self, train, undisturbed):
        """Old and new value are in the message."""
        outcome = train("undisturbed", learning_rate=0.1)
        assert outcome["kind"] == "RunError"
        assert "learning_rate: 0.005 -> 0.1" in outcome["error"]

    def test_changed_rows_are_refused(self, train, undisturbed, folder):
        """Rows that changed under the same name are not mixed into the training."""
        folder_of_run = RunDirectory(shutil.copytree(folder / "undisturbed", folder / "rows"))
        folder_of_run.update_manifest(parameters={**folder_of_run.manifest()["parameters"], "run_name": "rows"})
        folder_of_run.update_manifest(data_fingerprint="0" * 64)
        outcome = train("rows")
        assert "data_fingerprint: '0000" in outcome["error"]


class TestDamage:
    """The newest checkpoint is damaged, in a real run."""

    def test_the_previous_one_is_used_and_said_so(self, train, undisturbed, folder):
        """Flipped bytes in the weights of step 8: training goes on from step 6 and ends the same."""
        run = self.copy(folder, "flipped")
        weights = step_folders(run.checkpoints)[0] / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
        outcome = train("flipped")
        check_order(
            outcome["lines"],
            "checkpoint step-000008 is not used: adapter_model.safetensors has other bytes than were written",
            "going on from the checkpoint of step 6",
        )
        check_equal(outcome, undisturbed)

    def test_a_pickle_that_runs_code_is_not_loaded(self, train, undisturbed, folder):
        """Even with a marker to match, optimizer.pt is read as numbers and containers only."""
        run = self.copy(folder, "pickle")
        newest, older = step_folders(run.checkpoints)
        shutil.rmtree(newest)
        (older / "optimizer.pt").write_bytes(pickle.dumps(Bomb(folder / "bang")))
        marker = read_json(older / "checkpoint.json")
        size = (older / "optimizer.pt").stat().st_size
        marker["files"]["optimizer.pt"] = {"bytes": size, "sha256": file_sha256(older / "optimizer.pt")}
        write_json(older / "checkpoint.json", marker)
        outcome = train("pickle")
        assert not (folder / "bang").exists()
        assert outcome["error"].startswith("checkpoint: expected numbers and containers only, got 'UnpicklingError'.")

    def copy(self, folder, name):
        """Copy the undisturbed run under another name."""
        run = RunDirectory(folder / name)
        shutil.copytree(folder / "undisturbed", run.path)
        changed = {**run.manifest()["parameters"], "run_name": name}
        run.update_manifest(parameters=changed)
        for path in step_folders(run.checkpoints):
            marker = read_json(path / "checkpoint.json")
            write_json(path / "checkpoint.json", {**marker, "fingerprint": run.fingerprint()})
        return run


class Bomb:
    """What unpickles to a call."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        """Touch a file."""
        return os.system, (f"touch {self.path}",)


class TestTrouble:
    """What stops a training, and what is said."""

    def test_a_loss_that_is_not_a_number_stops(self, train, folder):
        """The last good checkpoint is kept, and the remedy has this run's learning rate."""
        outcome = train("nan", fault={"do": "break_loss", "step": 5})
        assert outcome["error"] == (
            "training loss: expected a number, got nan. It broke at step 5. The checkpoint of step 3 is from before "
            "that and is kept. A learning rate that is too high is the usual cause: it is 0.005, try 0.001 under a new "
            "run_name."
        )
        run = RunDirectory(folder / "nan")
        assert last_complete(run).found.step == 3
        assert run.manifest()["state"] == "failed"

    def test_an_infinite_loss_stops(self, train, folder):
        """Infinity is no number either; the run says where it broke."""
        outcome = train("inf", fault={"do": "break_loss", "step": 2, "value": "inf"})
        assert outcome["error"].startswith(
            "training loss: expected a number, got inf. It broke at step 2. There is no earlier checkpoint."
        )
        assert RunDirectory(folder / "inf").manifest()["state"] == "failed"

    def test_broken_weights_are_never_saved(self, train, folder):
        """A checkpoint whose weights are NaN would be complete and useless."""
        outcome = train("weights", fault={"do": "break_loss", "step": 6, "where": "weights"}, eval_steps=100)
        assert outcome["error"].startswith("adapter weights: expected a number, got nan. It broke at step 6.")
        assert last_complete(RunDirectory(folder / "weights")).found.step == 3

    def test_out_of_memory_has_advice(self, train, folder):
        """The error names parameters of this run."""
        outcome = train("memory", fault={"do": "fail_step", "step": 1, "kind": "oom"})
        assert outcome["error"].startswith("memory: expected enough for one optimizer step, got 'CUDA out of memory.")
        assert "batch_size" in outcome["error"]

    def test_a_mistake_in_the_code_marks_the_run_as_failed(self, nursery, folder, tiny_mistral):
        """An error that is not ours passes as it is."""
        fault = {"do": "fail_step", "step": 1, "kind": "bug"}
        child = nursery.start("whole_run", runs=str(folder), model=str(tiny_mistral), name="bug", fault=fault)
        assert child.wait() == 1
        assert "ZeroDivisionError: a mistake" in child.output()
        manifest = RunDirectory(folder / "bug").manifest()
        assert (manifest["state"], manifest["failure"]) == ("failed", "ZeroDivisionError: a mistake")

    def test_a_loss_that_never_moves_is_said_at_the_end(self, train):
        """A learning rate that is far too small stops nothing, but the curve's verdict says what to change."""
        outcome = train("flat", learning_rate=1e-9)
        assert outcome["error"] is None
        assert [line for line in outcome["lines"] if "it did not move. Raise learning_rate" in line]


class TestBest:
    """keep = "best" and early_stopping."""

    def test_training_ends_and_the_adapter_of_the_lowest_loss_is_kept(self, best, folder):
        """Three measurements after the lowest it stops, with a checkpoint; what is saved is the lowest's adapter."""
        assert best["error"] is None
        metrics, losses = best["metrics"], dict(best["metrics"]["eval_loss"])
        lowest = min(losses, key=losses.get)
        assert (
            (metrics["kept_step"], metrics["stopped_at"], max(losses)) == (lowest, lowest + 3, lowest + 3) == (2, 5, 5)
        )
        assert metrics["eval_loss_after"] == losses[lowest]
        assert last_complete(RunDirectory(folder / "best")).found.step == 5
        told = "early_stopping ended it after step 5. The adapter of step 2 is kept"
        assert [line for line in best["lines"] if told in line]

    def test_they_survive_a_kill(self, nursery, train, best, folder, tiny_mistral):
        """The best adapter so far is in each checkpoint: a run that goes on from step 3 keeps that of step 2."""
        fault = {"do": "kill_at_step", "step": 5, "seconds": 0.01}
        options = {"runs": str(folder), "model": str(tiny_mistral), "name": "killed", **TURNING}
        assert nursery.start("whole_run", fault=fault, **options).wait() == -signal.SIGKILL
        assert last_complete(RunDirectory(folder / "killed")).found.step == 3
        check_equal(train("killed", **TURNING), best)

    def test_a_run_that_was_ended_stays_ended(self, train, best):
        """Nothing is trained when it is run again, and the best adapter is put back."""
        again = train("best", **TURNING)
        assert "step 5/8  already trained; restored from step-000005" in again["lines"]
        check_equal(again, best)


class TestPersist:
    """The machine is gone, and the second folder is not."""

    def test_training_goes_on_on_another_machine(
        self, interrupted, train, undisturbed, folder, tmp_path, nursery, tiny_mistral
    ):
        """What was copied in the background is enough for the same adapter."""
        (tmp_path / "drive").mkdir()
        fault = {"do": "kill_at_step", "step": 8, "seconds": 0.01}
        options = {"persist_dir": str(tmp_path / "drive"), "model": str(tiny_mistral)}
        child = nursery.start("whole_run", runs=str(folder / "first"), fault=fault, **options)
        assert child.wait() == -signal.SIGKILL
        outcome = train("run", runs=str(folder / "second"), **options)
        assert [line for line in outcome["lines"] if line.startswith("going on from the checkpoint of step ")]
        check_equal(outcome, undisturbed)


class TestFullDisk:
    """The disk runs full in the middle."""

    @pytest.fixture
    def disk(self, mount_disk):
        """A disk of 220 MiB."""
        return mount_disk("220m")

    @pytest.mark.parametrize(
        ("before", "step", "what"),
        [
            ("checkpoint-6/adapter_model.safetensors", 3, "room for the next checkpoint"),
            (".adapter-writing/adapter_model.safetensors", 8, "room for the adapter"),
        ],
    )
    def test_the_error_is_clear_and_the_rest_is_whole(self, train, undisturbed, disk, before, step, what):
        """The last complete checkpoint is still complete; with room again the run ends as if nothing had been."""
        fault = {"do": "fill_at_file", "name": before, "filler": str(disk / "filler")}
        outcome = train("run", runs=str(disk), fault=fault)
        assert outcome["error"].startswith(f"disk: expected {what}, got ")
        run = RunDirectory(disk / "run")
        assert last_complete(run).found.step == step
        assert run.manifest()["parameters"]["max_steps"] == 8
        (disk / "filler").unlink()
        check_equal(train("run", runs=str(disk)), undisturbed)

    @pytest.mark.parametrize(
        ("before", "step", "said"),
        [
            ("checkpoint-6/adapter_model.safetensors", 3, "the next checkpoint, got 'Disk quota exceeded ("),
            ("checkpoint-6/optimizer.pt", 3, "the next checkpoint, got 'a file was cut short ("),
            ("checkpoint-8/rng_state.pth", 6, "the next checkpoint, got 'Disk quota exceeded ("),
            (".adapter-writing/adapter_model.safetensors", 8, "the adapter, got 'Disk quota exceeded ("),
        ],
    )
    def test_a_quota_that_is_used_up_is_no_different(self, train, undisturbed, tmp_path, before, step, said):
        """Among the trainer's own files, at the seal, and in the adapter; with room again the run ends the same."""
        if not can_refuse():
            pytest.skip("the kernel's refusals are asked for as on Linux for x86-64 or ARM")
        outcome = train(
            "run", runs=str(tmp_path), fault={"do": "refuse_at_file", "name": before, "number": errno.EDQUOT}
        )
        assert outcome["error"].startswith(f"disk: expected room for {said}")
        assert last_complete(RunDirectory(tmp_path / "run")).found.step == step
        check_equal(train("run", runs=str(tmp_path)), undisturbed)

    def test_too_little_room_is_said_before_the_first_step(self, train, disk):
        """The disk is asked before the training and not after an hour."""
        (disk / "filler").write_bytes(bytes(180 * 2**20))
        outcome = train("run", runs=str(disk))
        assert outcome["error"].startswith("disk: expected at least ")
        assert [line for line in outcome["lines"] if line.startswith("step ")] == []


class TestSecrets:
    """What a run leaves behind."""

    def test_the_token_is_in_no_file(self, undisturbed, folder):
        """With HF_TOKEN set, no byte of it is in any file of the run."""
        files = [path for path in (folder / "undisturbed").rglob("*") if path.is_file()]
        assert len(files) > 20
        assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []

    def test_the_token_is_not_in_a_failure(self, tmp_path, monkeypatch):
        """An error that quotes the token is written down without it."""
        monkeypatch.setenv("HF_TOKEN", CANARY)
        run = RunDirectory(tmp_path)
        run.update_manifest(state="running")
        run.mark_failed(RuntimeError(f"401 for {CANARY}"))
        assert CANARY not in (tmp_path / "manifest.json").read_text()
        assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "failed"


class TestUpstream:
    """What the checkpoints rely on in transformers; a new version must be looked at again."""

    def test_every_state_file_is_read_as_numbers_and_containers(self):
        """Each torch.load in the trainer is called with weights_only=True."""
        import importlib.util

        source = Path(importlib.util.find_spec("transformers").origin).with_name("trainer.py").read_text()
        calls = source.split("torch.load(")[1:]
        assert len(calls) >= 10
        assert [call[:200] for call in calls if "weights_only=True" not in call[:400]] == []
