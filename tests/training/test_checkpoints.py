"""Checkpoints as files: completed, searched, pruned, copied, and what happens when they or the disk are damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest

from helpers.core import files
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json
from helpers.core.runs import open_run
from helpers.evaluation.adapter import find_adapter
from helpers.training import persist
from helpers.training.checkpoints import REQUIRED, complete, last_complete, prune, step_folders, sweep
from helpers.training.persist import Persister, connect_drive, disconnect_drive, persist_folder, prepare_persist
from helpers.training.session import finish_run

PARAMETERS = {"learning_rate": 2e-4, "save_steps": 20, "persist_dir": None}


@pytest.fixture
def run(runs_folder):
    """An open run."""
    return open_run("run", PARAMETERS)


def write_checkpoint(run, step, *, size=100):
    """Seal a checkpoint as the trainer would have written it, with files of random bytes."""
    written = run.checkpoints / ".writing" / f"checkpoint-{step}"
    written.mkdir(parents=True)
    for name in (*REQUIRED, "training_args.bin", "README.md"):
        (written / name).write_bytes(os.urandom(size))
    return complete(written, run, step, {"result": {"step": step}})


@pytest.fixture
def two(run):
    """A run with checkpoints of steps 20 and 40; returns the newer one's folder."""
    write_checkpoint(run, 20)
    return write_checkpoint(run, 40).path


class TestSeal:
    """From the trainer's files to a checkpoint."""

    def test_a_sealed_checkpoint_is_found(self, run):
        """Its step, its files and its state come back."""
        write_checkpoint(run, 20)
        found = last_complete(run).found
        assert (found.step, found.path.name, found.files) == (20, "step-000020", REQUIRED)
        assert found.state() == {"result": {"step": 20}}

    def test_a_pickle_of_arguments_is_not_kept(self, run):
        """Nobody reads training_args.bin; it goes, as does the trainer's model card."""
        names = {path.name for path in write_checkpoint(run, 20).path.iterdir()}
        assert names == {*REQUIRED, "checkpoint.json"}

    def test_all_is_on_the_disk_before_it_gets_its_name(self, run, monkeypatch):
        """Every file and the folder itself are forced to disk, then the folder is renamed."""
        order, rename, fsync = [], os.rename, os.fsync

        def forced(handle):
            order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
            fsync(handle)

        monkeypatch.setattr(os, "fsync", forced)
        monkeypatch.setattr(os, "rename", lambda old, new: (order.append(f"named {new.name}"), rename(old, new)))
        write_checkpoint(run, 20)
        before = order[: order.index("named step-000020")]
        assert {*REQUIRED, "run_state.json", "checkpoint.json", "checkpoint-20"} <= set(before)

    def test_what_the_trainer_is_still_writing_is_not_found(self, run):
        """A folder under .writing is no checkpoint, whatever it holds."""
        folder = write_checkpoint(run, 20).path
        (run.checkpoints / ".writing").mkdir(exist_ok=True)
        folder.rename(run.checkpoints / ".writing" / "checkpoint-20")
        assert last_complete(run).found is None
        sweep(run)
        assert list(run.checkpoints.iterdir()) == []


DAMAGES = {
    "truncated weights": "adapter_model.safetensors has 50 bytes instead of 100",
    "missing file": "optimizer.pt is missing",
    "empty JSON": "trainer_state.json has 0 bytes instead of 100",
    "flipped bytes": "adapter_model.safetensors has other bytes than were written",
    "wrong configuration": "it was written under another configuration",
    "marker missing": "its marker checkpoint.json is missing",
    "marker of another run": "its marker is of another run (0123)",
    "directory in place of a file": "rng_state.pth is not a file",
    "empty marker": "its marker checkpoint.json is damaged",
    "marker without files": "its marker checkpoint.json is damaged",
    "marker of another step": "its marker is of step 20",
    "marker that lists too little": "its marker does not list optimizer.pt",
    "marker that leads out": "its marker checkpoint.json is damaged",
    "file that nobody listed": "it holds pytorch_model.bin, which its marker does not list",
    "link in place of a file": "optimizer.pt is not a file",
    "file in place of the folder": "it is not a folder",
}
"""Sixteen ways to damage a checkpoint, and what is said of each. The first eight are the ones of the README."""


def damage(folder, way):
    """Damage a checkpoint."""
    marker = folder / "checkpoint.json"
    weights = folder / "adapter_model.safetensors"
    content = json.loads(marker.read_text())
    changes = {
        "wrong configuration": {"fingerprint": "0" * 64},
        "marker of another run": {"run_id": "0123"},
        "marker of another step": {"step": 20},
        "marker that lists too little": {"files": {k: v for k, v in content["files"].items() if k != "optimizer.pt"}},
        "marker that leads out": {"files": {**content["files"], "../manifest.json": {"bytes": 1, "sha256": ""}}},
        "marker without files": {"files": None},
    }
    if way in changes:
        marker.write_text(json.dumps({**content, **changes[way]}))
    elif way == "truncated weights":
        os.truncate(weights, 50)
    elif way == "flipped bytes":
        weights.write_bytes(bytes(b ^ 255 for b in weights.read_bytes()))
    elif way == "empty JSON":
        (folder / "trainer_state.json").write_text("")
    elif way == "empty marker":
        marker.write_text("")
    elif way == "missing file":
        (folder / "optimizer.pt").unlink()
    elif way == "marker missing":
        marker.unlink()
    elif way == "directory in place of a file":
        (folder / "rng_state.pth").unlink()
        (folder / "rng_state.pth").mkdir()
    elif way == "file that nobody listed":
        (folder / "pytorch_model.bin").write_bytes(b"")
    elif way == "link in place of a file":
        (folder / "optimizer.pt").rename(folder.parent / "elsewhere")
        (folder / "optimizer.pt").symlink_to(folder.parent / "elsewhere")
    elif way == "file in place of the folder":
        shutil.rmtree(folder)
        folder.write_text("")


class TestDamage:
    """The newest checkpoint is not what was completed."""

    @pytest.mark.parametrize("way", DAMAGES)
    def test_the_previous_one_is_used_and_said_so(self, run, two, way):
        """Whatever is wrong with the newest, the one before it is found, and the reason is told."""
        damage(two, way)
        search = last_complete(run)
        assert search.found.step == 20
        assert search.describe() == [f"checkpoint step-000040 is not used: {DAMAGES[way]}"]

    def test_if_all_are_damaged_none_is_used(self, run, two):
        """Each is named with its reason."""
        for folder in step_folders(run.checkpoints):
            damage(folder, "flipped bytes")
        search = last_complete(run)
        assert search.found is None
        assert [name for name, _ in search.rejected] == ["step-000040", "step-000020"]

    def test_a_damaged_one_is_replaced_by_a_new_one_of_its_step(self, run, two):
        """Training goes on from step 20 and reaches 40 again."""
        damage(two, "file in place of the folder")
        write_checkpoint(run, 40)
        assert last_complete(run).found.step == 40

    def test_other_folders_are_not_looked_at(self, run, two):
        """Only names such as step-000040 are checkpoints."""
        (run.checkpoints / "step-latest").mkdir()
        (run.checkpoints / "checkpoint-99").mkdir()
        assert last_complete(run).rejected == ()


class TestPrune:
    """The number kept is bounded."""

    def test_the_newest_two_are_kept(self, run):
        """Older ones go, also damaged ones that were not resumed from."""
        good = [write_checkpoint(run, step).path for step in (20, 40, 60)]
        (run.checkpoints / "step-000099").mkdir()
        kept = prune(run, good)
        assert [path.name for path in kept] == ["step-000040", "step-000060"]
        assert sorted(path.name for path in run.checkpoints.glob("step-*")) == ["step-000040", "step-000060"]

    def test_one_that_is_being_copied_is_kept(self, run):
        """The second place gets a whole checkpoint."""
        good = [write_checkpoint(run, step).path for step in (20, 40, 60)]
        prune(run, good, busy=good[0])
        assert len(step_folders(run.checkpoints)) == 3


class TestPersist:
    """A second folder for complete checkpoints."""

    @pytest.fixture
    def drive(self, tmp_path):
        """The second folder."""
        (tmp_path / "drive").mkdir()
        return tmp_path / "drive"

    def persist(self, run, drive, step):
        """Copy a checkpoint of the run."""
        persister = Persister(run, persist_folder(str(drive), "run"))
        persister.offer(write_checkpoint(run, step))
        return persister.close()

    def test_a_finished_run_leaves_its_adapter_there(self, run, drive):
        """With what is known of it, so that a comparison elsewhere takes the folder; a newer one replaces it."""
        run.adapter.mkdir()
        run.update_metrics(steps=3)
        write_json(run.path / "config.json", {"task": "alpaca", "persist_dir": str(drive)})
        for weights in (b"old", b"new"):
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                (run.adapter / name).write_bytes(weights if name.endswith("s") else b"{}")
            finish_run(run)
        there = drive / "run"
        assert (there / "adapter" / "adapter_model.safetensors").read_bytes() == b"new"
        assert sorted(p.name for p in there.iterdir()) == ["adapter", "config.json", "manifest.json", "metrics.json"]
        assert read_json(there / "manifest.json")["state"] == "complete"
        assert find_adapter(str(there)).settings["task"] == "alpaca"

    def test_an_adapter_that_cannot_be_copied_is_told_and_stops_nothing(self, run, drive, capsys, monkeypatch):
        """The run is complete all the same."""
        run.adapter.mkdir()
        write_json(run.path / "config.json", {"persist_dir": str(drive)})

        def full(*_, **__):
            """There is no room."""
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(persist.shutil, "copytree", full)
        finish_run(run)
        assert "the adapter was not copied" in capsys.readouterr().out
        assert run.manifest()["state"] == "complete"

    def test_a_new_start_removes_the_old_adapter_too(self, run, drive):
        """What is there belongs to one run."""
        self.persist(run, drive, 20)
        (drive / "run" / "adapter").mkdir()
        (drive / "run" / "metrics.json").write_text("{}")
        prepare_persist(run, str(drive), resume="never")
        assert not (drive / "run" / "adapter").exists()
        assert not (drive / "run" / "metrics.json").exists()

    def test_a_run_is_restored_when_its_folder_is_gone(self, run, drive):
        """On another machine the same cell goes on: manifest and newest checkpoint come back."""
        assert self.persist(run, drive, 20) == []
        run_id = run.run_id()
        shutil.rmtree(run.path)
        told = prepare_persist(run, str(drive), resume="auto")
        assert told == [f"restored the checkpoint of step 20 from {drive / 'run'}"]
        assert (last_complete(run).found.step, run.run_id()) == (20, run_id)

    def test_a_run_that_is_gone_counts_as_an_earlier_one(self, run, drive):
        """resume="must" is content, and changed parameters are refused by name."""
        self.persist(run, drive, 20)
        shutil.rmtree(run.path)
        with pytest.raises(RunError, match=r"learning_rate: 0\.0002 -> 0\.1"):
            open_run("run", {**PARAMETERS, "learning_rate": 0.1, "persist_dir": str(drive)}, resume="must")

    def test_only_two_are_kept_there(self, run, drive):
        """The second place is bounded too."""
        for step in (20, 40, 60):
            self.persist(run, drive, step)
        there = persist_folder(str(drive), "run")
        assert [path.name for path in step_folders(there.checkpoints)] == ["step-000060", "step-000040"]

    def test_what_is_deleted_there_takes_no_room_in_drives_trash(self, run, drive, monkeypatch):
        """Files are emptied before they are deleted, because Drive keeps what is deleted for 30 days."""
        left = []
        remove = files.shutil.rmtree

        def watched(folder, **named):
            if Path(folder).is_relative_to(drive):
                left.append(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
            remove(folder, **named)

        monkeypatch.setattr(files.shutil, "rmtree", watched)
        for step in (20, 40, 60):
            self.persist(run, drive, step)
        prepare_persist(run, str(drive), resume="never")
        assert len(left) > 3
        assert set(left) == {0}
        assert not (drive / "run" / "checkpoints").exists()

    def test_a_half_copied_checkpoint_is_not_restored(self, run, drive):
        """A damaged copy is rejected with its reason, and the one before is used."""
        for step in (20, 40):
            self.persist(run, drive, step)
        damage(drive / "run" / "checkpoints" / "step-000040", "truncated weights")
        shutil.rmtree(run.path)
        told = prepare_persist(run, str(drive), resume="auto")
        assert told[0] == "checkpoint step-000040 is not used: adapter_model.safetensors has 50 bytes instead of 100"
        assert last_complete(run).found.step == 20

    def test_a_failed_copy_stops_nothing_and_is_told(self, run, drive, monkeypatch):
        """Drive is full; the run's own checkpoints are whole."""

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(persist.shutil, "copyfile", full)
        (told,) = self.persist(run, drive, 20)
        assert told.startswith(f"persist_dir: the checkpoint of step 20 was not copied to {drive / 'run'} (disk: ")
        assert "got 'No space left on device (" in told
        assert told.endswith("Training goes on.")
        assert step_folders(drive / "run" / "checkpoints") == []
        assert last_complete(run).found.step == 20

    def test_never_removes_the_earlier_run_there(self, run, drive):
        """Starting over means that nothing is restored afterwards."""
        self.persist(run, drive, 20)
        prepare_persist(run, str(drive), resume="never")
        shutil.rmtree(run.path)
        assert prepare_persist(run, str(drive), resume="auto") == []

    def test_another_run_of_the_same_name_is_refused(self, run, drive):
        """Two runs do not share a second place."""
        self.persist(run, drive, 20)
        run.update_manifest(run_id="other")
        with pytest.raises(RunError, match="persist_dir: expected a folder without another run named run"):
            prepare_persist(run, str(drive), resume="auto")

    def test_a_folder_that_does_not_exist_is_refused(self, run, tmp_path):
        """On Colab that is a Drive that was not mounted; a local folder in its place would be lost."""
        with pytest.raises(RunError, match=r"persist_dir: expected a folder that exists.*drive\.mount"):
            prepare_persist(run, str(tmp_path / "content" / "drive" / "MyDrive"), resume="auto")

    def test_drive_is_flushed_at_the_end(self, run, monkeypatch):
        """On Colab, Google Drive takes all files and is unmounted; where the runs lie there, too, it stays mounted."""
        flushed = []
        drive_module = types.SimpleNamespace(flush_and_unmount=lambda: flushed.append(True))
        monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive_module))
        assert disconnect_drive("/content/drive/MyDrive/runs", Path("/content/drive/MyDrive/work")) == ""
        assert disconnect_drive(str(run.path.parent / "elsewhere"), run.path) == ""
        assert flushed == []
        assert "has taken all files" in disconnect_drive("/content/drive/MyDrive/runs", run.path)
        assert flushed == [True]

    def test_a_strangers_folder_is_refused(self, run, drive):
        """Files that no run wrote are left alone."""
        (drive / "run").mkdir()
        (drive / "run" / "thesis.doc").write_text("")
        with pytest.raises(RunError, match=r"It has no manifest\.json, so it is left alone"):
            prepare_persist(run, str(drive), resume="never")

    def test_the_runs_folder_itself_is_refused(self, run):
        """A second place is another place."""
        with pytest.raises(RunError, match="persist_dir: expected a folder outside the run's own"):
            prepare_persist(run, str(run.path.parent), resume="auto")

    def test_drive_is_mounted_on_colab_only(self, monkeypatch):
        """With google.colab there and Drive not mounted, its own function is called; elsewhere nothing happens."""
        mounted = []
        connect_drive("/content/drive/MyDrive/runs")
        drive = types.SimpleNamespace(mount=mounted.append)
        monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
        connect_drive("/elsewhere")
        connect_drive("/content/drive/MyDrive/runs")
        assert mounted == ["/content/drive"]


class TestFullDisk:
    """A disk that really is full, at each write of this package. test_resume has the trainer's own."""

    @pytest.fixture
    def full(self, small_disk):
        """A run with one checkpoint, another that the trainer has written, and then no room at all."""
        run = open_run("run", PARAMETERS)
        write_checkpoint(run, 20)
        run.update_metrics(eval_loss_before=2.0)
        written = run.checkpoints / ".writing" / "checkpoint-40"
        written.mkdir(parents=True)
        for name in REQUIRED:
            (written / name).write_bytes(os.urandom(5000))
        with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**12))
        return run, written

    @pytest.mark.parametrize("what", ["seal", "manifest", "metrics", "text"])
    def test_each_write_is_a_clear_error_and_what_was_there_is_whole(self, full, what):
        """The message says that the disk is full; the old checkpoint, manifest and metrics are as they were."""
        run, written = full
        before = (run.manifest(), run.metrics())
        writes = {
            "seal": lambda: complete(written, run, 40, {"result": "x" * 10_000}),
            "manifest": lambda: run.update_manifest(note="x" * 10_000),
            "metrics": lambda: run.update_metrics(note="x" * 10_000),
            "text": lambda: write_json(run.path / "answers.json", {"note": "x" * 10_000}),
        }
        with pytest.raises(RunError, match=r"^disk: expected room for .*No space left on device"):
            writes[what]()
        assert (run.manifest(), run.metrics()) == before
        assert last_complete(run).found.step == 20
        assert not list(Path(run.path).glob(".m*"))
        assert not (run.path / "answers.json").exists()

    def test_a_failure_can_not_be_written_down_and_that_is_no_error(self, full):
        """Marking a run as failed never hides why it failed."""
        run, _ = full
        run.mark_failed(RuntimeError("x"))
