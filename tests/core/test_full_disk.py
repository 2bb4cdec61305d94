"""A disk that really is full or read-only, or whose quota is used up, at each write that is no checkpoint.

The error says so, and the older file is whole.

Checkpoints, manifests and metrics are in test_checkpoints, the trainer's own writes in test_resume, merged models in
export/test_merge.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess

import nbformat
import pytest
import torch
from hostile import plain_comparison
from safetensors.torch import save_file
from training.test_checkpoints import PARAMETERS, write_checkpoint

from helpers.cli.execution import _Manager
from helpers.core.config import build_config
from helpers.core.errors import HelpersError, RunError
from helpers.core.files import write_json, writing
from helpers.core.runs import RunDirectory, open_run
from helpers.display.style import Drawing, new_figure
from helpers.display.tables import plot_categories, plot_lengths, plot_losses
from helpers.evaluation.cache import AnswerCache, CachedAnswer
from helpers.evaluation.files import write_alpaca_eval, write_comparison, write_llm_comparator, write_scores
from helpers.evaluation.overview import look_over
from helpers.evaluation.report.page import write_report
from helpers.evaluation.votes.ballot import blind_items, write_key, write_vote_page
from helpers.export.folders import record_export, staged_folder
from helpers.export.model_card import write_card
from helpers.model.smollm2 import smollm2_folder
from helpers.training.checkpoints import last_complete
from helpers.training.persist import Persister, persist_folder, prepare_persist

CURVE = {"train_loss": [[1, 2.0], [2, 1.9]], "eval_loss": [[0, 2.0], [2, 1.8]]}
COMPARISON, MANY = plain_comparison(), plain_comparison(200)
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
    "scores.csv": lambda path: write_scores(path, look_over(MANY).table),
    "llm_comparator.json": lambda path: write_llm_comparator(path, MANY, look_over(MANY)),
    "model_outputs.json": lambda path: write_alpaca_eval(path.parent, MANY, look_over(MANY)),
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


class TestFiles:
    """One file at a time."""

    @pytest.fixture(params=["No space left on device", "Read-only file system", "Disk quota exceeded"])
    def refuse(self, request, monkeypatch):
        """Makes a disk refuse; the first two ways are real, and the third is what the system answers to a quota."""
        if request.param == "Disk quota exceeded":

            def exceeded(number):
                raise OSError(errno.EDQUOT, request.param)

            return request.param, lambda disk: monkeypatch.setattr(os, "fsync", exceeded)
        return request.param, fill if request.param.startswith("No space") else close

    @pytest.mark.parametrize("name", WRITES)
    def test_the_error_is_clear_and_the_older_file_is_whole(self, small_disk, refuse, name):
        """The system's own words are shown with the file's name; nothing half-written is left beside."""
        folder, (reason, strike) = small_disk / "run", refuse
        folder.mkdir()
        (folder / name).write_text("as it was")
        (folder / "adapter_config.json").touch()
        kept = sorted(os.listdir(folder))
        strike(small_disk)
        expected = rf"^disk: expected room for \S+, got '{reason} \(.* MiB free at "
        with pytest.raises(HelpersError, match=expected) as caught:
            WRITES[name](folder / name)
        assert (
            caught.value.remedy == "Free space or check permissions, and run again: what was there before is untouched."
        )
        assert (folder / name).read_text() == "as it was"
        assert sorted(os.listdir(folder)) == kept

    def test_with_room_each_is_written(self, tmp_path):
        """The same calls on a disk with room write their files."""
        for name, write in WRITES.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "adapter_config.json").touch()
            write(folder / name)
            assert (folder / name).stat().st_size > 0


class TestLibraries:
    """What torch and safetensors say themselves of a disk that is full, in words of their own."""

    @pytest.mark.parametrize("numbers", [1, 1000, 300_000])
    @pytest.mark.parametrize("write", [torch.save, save_file])
    def test_their_errors_are_recognised(self, small_disk, write, numbers):
        """Of small files, which are written as they are closed, and of large ones."""
        fill(small_disk)
        expected = pytest.raises(
            RunError, match=r"^disk: expected room for x, got '(No space left|a file was cut short)"
        )
        with expected, writing("x", small_disk):
            write({"a": torch.zeros(numbers)}, small_disk / "file")


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
        monkeypatch.setattr("helpers.model.smollm2._gguf_folder", lambda: small_disk)
        monkeypatch.setattr(
            "helpers.model.smollm2._unpack", lambda source, folder: (folder / "w").write_bytes(bytes(2**23))
        )
        with pytest.raises(RunError, match=r"^disk: .* the smoke model, 269 MB; HELPERS_CACHE_DIR .*No space left"):
            smollm2_folder()
        assert os.listdir(small_disk) == []
