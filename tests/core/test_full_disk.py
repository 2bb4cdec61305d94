"""A disk that is full or read-only, or whose quota is used up, at each kind of write.

The error says so, and the older file is whole.

What is left of a run then is in test_checkpoints, and the trainer's own writes are in test_resume.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import subprocess

import datasets
import nbformat
import pytest
import torch
from hostile import plain_comparison
from refusing import can_refuse, refused
from safetensors.torch import save_file
from training.test_checkpoints import PARAMETERS, write_checkpoint
from tuned import tuned_mistral

from helpers.cli.execution import _Manager
from helpers.core.config import build_config
from helpers.core.errors import DataError, HelpersError, RunError
from helpers.core.files import file_sha256, write_json, writing
from helpers.core.runs import RunDirectory, open_run
from helpers.data.rows import _load_hub
from helpers.display.style import Drawing, new_figure
from helpers.display.tables import plot_categories, plot_lengths, plot_losses
from helpers.evaluation.cache import AnswerCache, CachedAnswer
from helpers.evaluation.files import write_alpaca_eval, write_comparison, write_llm_comparator, write_scores
from helpers.evaluation.overview import look_over
from helpers.evaluation.report.page import write_report
from helpers.evaluation.votes.ballot import blind_items, write_key, write_vote_page
from helpers.export import gguf, verify
from helpers.export.folders import record_export, staged_folder, zip_run
from helpers.export.gguf import export_gguf
from helpers.export.loadable import save_adapter
from helpers.export.merge import merge_16bit
from helpers.export.model_card import write_card
from helpers.model.load import _explained
from helpers.model.smollm2 import smollm2_folder
from helpers.training.checkpoints import REQUIRED, complete, last_complete
from helpers.training.persist import Persister, keep_result, persist_folder, prepare_persist
from helpers.training.script import copy_inputs

CURVE = {"train_loss": [[1, 2.0], [2, 1.9]], "eval_loss": [[0, 2.0], [2, 1.8]]}
COMPARISON, MANY = plain_comparison(), plain_comparison(200)


@functools.cache
def overview():
    """Return what there is to say of the many."""
    return look_over(MANY)


ROWS = [{"instruction": "x", "response": "y", "category": "a"}]


def save_drawing(path):
    """Write one of the evaluation's pictures."""
    figure, axes = new_figure(2.0)
    axes.plot([0, 1])
    Drawing(path.stem, "t", "c", figure).save(path.parent)


def save_notebook(path):
    """Write an executed notebook, as after each cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x" * 20_000)])
    _Manager(notebook, path, print).save()


def save_card(path):
    """Write a model card beside an adapter."""
    run = RunDirectory(path.parent)
    config = build_config("alpaca", preset="smoke")
    write_card(path.parent, run, config)


WRITES = {
    "loss.png": lambda path: plot_losses(CURVE, path),
    "lengths.png": lambda path: plot_lengths([3, 4], 9, path),
    "categories.png": lambda path: plot_categories(ROWS, path),
    "differences.png": save_drawing,
    "report.html": lambda path: write_report(path, COMPARISON, look_over(COMPARISON)),
    "vote.html": lambda path: write_vote_page(path, blind_items(COMPARISON, 1)[0], "x"),
    "vote_key.json": lambda path: write_key(path, blind_items(plain_comparison(200), 1)[1]),
    "comparison.json": lambda path: write_comparison(path, MANY),
    "scores.csv": lambda path: write_scores(path, overview().table),
    "llm_comparator.json": lambda path: write_llm_comparator(path, MANY, overview()),
    "model_outputs.json": lambda path: write_alpaca_eval(path.parent, MANY, overview()),
    "answers_cache.json": lambda path: AnswerCache(path, {}).add({"k": CachedAnswer("x" * 20_000, 1, "eos")}),
    "notebook.ipynb": save_notebook,
    "config.json": lambda path: write_json(path, {"x": "x" * 20_000}),
    "README.md": save_card,
}
"""What writes each file that a run or a comparison leaves, with more content than the last block on the disk takes."""


def fill(disk):
    """Leave no room at all."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**12))


def close(disk):
    """Mount the disk read-only."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


@pytest.fixture(params=["No space left on device", "Read-only file system", "Disk quota exceeded"])
def refusing(request, monkeypatch):
    """A folder, why it will take no more, and what makes a call while it does not.

    The disk is really full, or really read-only; where there is no quota to be had, the kernel answers as if there was.
    """
    reason = request.param
    if reason == "Disk quota exceeded":
        if not can_refuse():
            pytest.skip("the kernel's refusals are asked for as on Linux for x86-64 or ARM")
        folder = request.getfixturevalue("tmp_path") / "disk"
        folder.mkdir()
        return folder, reason, lambda call: refused(errno.EDQUOT, call)
    folder = request.getfixturevalue("mount_disk")("48m")

    def strike(call):
        (fill if reason.startswith("No space") else close)(folder)
        return call()

    return folder, reason, strike


def contents(folder):
    """Return the sum of each file under a folder, but for what fills the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "filler")
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}


REMEDY = "Free space or check permissions, and run again: what was there before is untouched."


class TestFiles:
    """One file at a time."""

    @pytest.mark.parametrize("name", WRITES)
    def test_the_error_is_clear_and_the_older_file_is_whole(self, refusing, name):
        """The system's own words are shown with the file's name; nothing half-written is left beside."""
        disk, reason, strike = refusing
        folder = disk / "run"
        folder.mkdir()
        (folder / name).write_text("as it was")
        (folder / "adapter_config.json").touch()
        kept = contents(disk)
        expected = rf"^disk: expected room for \S+, got '{reason} \(.* [GM]iB free at "
        with pytest.raises(HelpersError, match=expected) as caught:
            strike(lambda: WRITES[name](folder / name))
        assert caught.value.remedy == REMEDY
        assert contents(disk) == kept

    def test_with_room_each_is_written(self, tmp_path):
        """The same calls on a disk with room write their files."""
        for name, write in WRITES.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "adapter_config.json").touch()
            write(folder / name)
            assert (folder / name).stat().st_size > 0


def to_file(tensors, path):
    """Write as GGUF files are written."""
    tensors["a"].numpy().tofile(path)


class TestLibraries:
    """What torch, safetensors and numpy say themselves of a disk that refuses, in words of their own."""

    @pytest.mark.parametrize(
        ("write", "numbers"), [*itertools.product((torch.save, save_file), (1, 1000, 300_000)), (to_file, 300_000)]
    )
    def test_their_errors_are_recognised(self, refusing, write, numbers):
        """Of small files, which are written as they are closed, and of large ones."""
        disk, reason, strike = refusing

        def call():
            with writing("x", disk):
                write({"a": torch.zeros(numbers)}, disk / "file")

        with pytest.raises(RunError, match=rf"^disk: expected room for x, got '({reason}|a file was cut short) \("):
            strike(call)

    def test_numpy_says_nothing_of_a_small_file(self, refusing):
        """So that a GGUF file's size is looked at; where it does say so, that look can go."""
        disk, reason, strike = refusing
        write = lambda: to_file({"a": torch.zeros(1000)}, disk / "file")  # noqa: E731
        if reason == "Read-only file system":
            with pytest.raises(OSError, match=reason):
                strike(write)
        else:
            strike(write)
            assert (disk / "file").stat().st_size == 0

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    def test_a_download_without_room_blames_no_name(self, monkeypatch, number):
        """Neither a data set's nor a model's; a file that may not be read is no full disk."""
        refusal = OSError(number, os.strerror(number))

        def download(*_, **__):
            raise ValueError("An error occurred while generating the dataset") from refusal

        monkeypatch.setattr(datasets, "load_dataset", download)
        for what, load in (("rows", lambda: _load_hub("a/b", None)), ("files", lambda: _explained(download)("a/b"))):
            with pytest.raises(RunError, match=rf"^disk: expected room for the {what} of a/b, got '{refusal.strerror}"):
                load()
        refusal = PermissionError(errno.EACCES, "Permission denied")
        with pytest.raises(DataError, match=r"^dataset_name: "):
            _load_hub("a/b", None)

    def test_the_verification_names_the_disk_too(self, tuned, tmp_path, monkeypatch):
        """Where a fresh process could not write down what it found."""
        said = "SafetensorError: Error while serializing: I/O error: Disk quota exceeded (os error 122)"
        done = subprocess.CompletedProcess([], 1, "", f"Traceback\n{said}\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        with pytest.raises(RunError, match=r"^disk: expected room for the logits of the verification, got 'Disk quota"):
            verify._run_worker(tmp_path / "request.json", tmp_path)

    def test_llama_quantize_names_the_disk_too(self, tmp_path, monkeypatch):
        """It is a program of its own, and says it as the system does."""
        done = subprocess.CompletedProcess([], 1, "", "main: failed to write: No space left on device\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        with pytest.raises(RunError, match=r"^disk: expected room for the GGUF file, got 'No space left on device"):
            gguf._quantize(tmp_path / "tool", tmp_path / "f16.gguf", tmp_path / "q4.gguf", "q4_k_m")


@pytest.fixture(scope="module")
def tuned(tiny_mistral):
    """A tiny Mistral with an adapter."""
    return tuned_mistral(tiny_mistral)


@pytest.fixture(scope="module")
def merged(tuned, tmp_path_factory):
    """The same merged."""
    folder = tmp_path_factory.mktemp("exports") / "merged"
    merge_16bit(*tuned, folder)
    return folder


def put_checkpoint(folder):
    """Write a checkpoint of step 20 with what the trainer writes, in place of another."""
    written = folder / "checkpoints" / ".writing" / "checkpoint-20"
    with writing("the checkpoint of step 20", folder):
        written.mkdir(parents=True, exist_ok=True)
        for name in REQUIRED:
            (written / name).write_bytes(bytes(100))
        torch.save({"a": torch.zeros(100_000)}, written / "optimizer.pt")
    complete(written, RunDirectory(folder), 20, {})


FOLDERS = {
    "the adapter": lambda folder, tuned, merged: save_adapter(*tuned, folder / "adapter"),
    "the export, merged": lambda folder, tuned, merged: merge_16bit(*tuned, folder / "merged"),
    "the export, gguf": lambda folder, tuned, merged: export_gguf(merged, folder / "gguf", quantization="q8_0"),
    "the checkpoint of step 20": lambda folder, tuned, merged: put_checkpoint(folder),
    "run.zip": lambda folder, tuned, merged: zip_run(RunDirectory(folder)),
    "rows_train.jsonl": lambda folder, tuned, merged: copy_inputs(
        RunDirectory(folder), '"rows_train.jsonl"', folder / "script"
    ),
}
"""What writes each folder, archive or copy, and what the error calls it."""


@pytest.mark.slow
@pytest.mark.parametrize("what", FOLDERS)
def test_each_folder_that_cannot_be_written_is_the_earlier_one(refusing, tuned, merged, leave_free, what):
    """The same error for all, in the system's words where the writer passes them on; every file keeps its sum."""
    disk, reason, strike = refusing
    folder = disk / "run"
    (folder / "script").mkdir(parents=True)
    (folder / "rows_train.jsonl").write_text("{}\n" * 10_000)
    leave_free(10**12)
    FOLDERS[what](folder, tuned, merged)
    kept = contents(disk)
    assert len(kept) > 1
    expected = rf"^disk: expected room for {what.split(',')[0]}, got '({reason}|a file was cut short) \(.* free at "
    with pytest.raises(RunError, match=expected) as caught:
        strike(lambda: FOLDERS[what](folder, tuned, merged))
    assert caught.value.remedy == REMEDY
    left = contents(disk)
    assert {name: left[name] for name in left if ".writing/" not in name} == kept


class TestFolders:
    """Exports, the second place of checkpoints, and the small model's cache."""

    def test_an_export_leaves_the_earlier_one(self, small_disk):
        """What was exported before stays whole, and the stage is gone."""
        with staged_folder(small_disk / "out") as staged:
            (staged / "weights").write_bytes(b"first")
            record_export(staged, kind="adapter")
        fill(small_disk)
        expected = pytest.raises(HelpersError, match=r"^disk: expected room for the export")
        with expected, staged_folder(small_disk / "out") as staged:
            (staged / "weights").write_bytes(bytes(2**20))
        assert sorted(os.listdir(small_disk)) == ["filler", "out"]
        assert (small_disk / "out" / "weights").read_bytes() == b"first"

    def test_a_second_place_without_room_stops_nothing(self, small_disk, tmp_path, monkeypatch):
        """Training goes on, and says which checkpoint was not copied."""
        monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path / "runs"))
        run = open_run("run", PARAMETERS)
        write_checkpoint(run, 20, size=5000)
        persister = Persister(run, persist_folder(str(small_disk), "run"))
        fill(small_disk)
        persister.offer(last_complete(run).found)
        (said,) = persister.close()
        assert said.startswith("persist_dir: the checkpoint of step 20 was not copied to ")
        assert "No space left on device" in said
        assert said.endswith("Training goes on.")
        assert not list(small_disk.rglob("step-*"))

    def test_an_adapter_that_cannot_be_kept_twice_stops_nothing(self, refusing, tmp_path):
        """The sentence says why, and where the adapter is."""
        disk, reason, strike = refusing
        run = RunDirectory(tmp_path / "run")
        run.update_manifest(state="complete")
        run.adapter.mkdir()
        (run.adapter / "adapter_model.safetensors").write_bytes(bytes(100))
        said = strike(lambda: keep_result(run, str(disk)))
        assert said.startswith(f"persist_dir: the adapter was not copied to {disk / 'run'} (disk: ")
        assert reason in said
        assert said.endswith(f"It is in {run.shown('adapter')}.")

    def test_a_restore_without_room_is_a_clear_error(self, small_disk, tmp_path):
        """The run's own disk is full when its checkpoint should come back; the second place stays whole."""
        run = open_run("run", PARAMETERS)
        write_checkpoint(run, 20, size=5000)
        there = persist_folder(str(tmp_path), "run")
        persister = Persister(run, there)
        persister.offer(last_complete(run).found)
        assert persister.close() == []
        for path in sorted(run.checkpoints.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        fill(small_disk)
        with pytest.raises(RunError, match=r"^disk: expected room for the checkpoint of step 20, got 'No space left"):
            prepare_persist(run, str(tmp_path), resume="auto")
        assert last_complete(there).found.step == 20
        assert json.loads((run.path / "manifest.json").read_text())["parameters"] == PARAMETERS

    def test_the_small_model_s_cache_names_its_variable(self, small_disk, monkeypatch):
        """The weights take 269 MB; the error says which variable moves them, and nothing half-written is left."""
        monkeypatch.setenv("HELPERS_CACHE_DIR", str(small_disk))
        with pytest.raises(RunError, match=r"^disk: .* the smoke model, 269 MB; HELPERS_CACHE_DIR .*No space left"):
            smollm2_folder(lambda folder: (folder / "w").write_bytes(bytes(2**23)))
        assert os.listdir(small_disk) == []
