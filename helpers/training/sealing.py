"""Checkpoints that are whole or not there: completed with a marker, moved into place, and pruned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.core.files import file_sha256, sync_file, sync_folder, writing
from helpers.core.runs import RunDirectory, write_json
from helpers.memory.disk import KEPT
from helpers.training.checkpoints import MARKER, STATE, Checkpoint, step_folders

__all__ = ["prune", "seal", "sweep"]

LEFT_OUT = ("README.md", "training_args.bin")
"""What the trainer writes and nobody reads: a model card, and a pickle of its arguments."""


def seal(written: Path, run: RunDirectory, step: int, state: dict[str, Any]) -> Checkpoint:
    """Complete a checkpoint that the trainer has written, and move it into place.

    Args:
        written: The trainer's folder, on the run's disk.
        run: The run.
        step: Optimizer steps done.
        state: What the run knows at that step, as JSON.

    Returns:
        The checkpoint, under its final name.

    Raises:
        RunError: The disk is full; nothing that was complete before is lost.
    """
    final = run.checkpoints / f"step-{step:06d}"
    with writing(f"the checkpoint of step {step}", run.path):
        for name in LEFT_OUT:
            (written / name).unlink(missing_ok=True)
        write_json(written / STATE, state)
        files = sorted(path for path in written.iterdir() if path.name != MARKER)
        listed = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files}
        for path in files:
            sync_file(path)
        marker = {"format": 1, "run_id": run.run_id(), "fingerprint": run.fingerprint(), "step": step, "files": listed}
        write_json(written / MARKER, marker)
        sync_folder(written)
        _remove(final)  # damaged, or it would have been resumed from
        os.rename(written, final)
        sync_folder(final.parent)
    return Checkpoint(final, step, tuple(sorted(listed)))


def prune(run: RunDirectory, good: Sequence[Path], *, busy: Path | None = None) -> list[Path]:
    """Remove all but the newest complete checkpoints.

    Args:
        run: The run.
        good: Complete checkpoints, oldest first: those sealed by this process, and the one it resumed from.
        busy: One that is being copied, kept in any case.

    Returns:
        Of `good`, what was kept.
    """
    kept = list(good[-KEPT:])
    for path in step_folders(run.checkpoints):
        if path not in kept and path != busy:
            _remove(path)
    return kept


def sweep(run: RunDirectory) -> None:
    """Remove what a killed process left half written or half removed."""
    for path in run.checkpoints.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no half of it keeps its name."""
    if not path.exists() and not path.is_symlink():
        return
    trash = path.with_name(f".removed-{path.name}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    if trash.is_dir() and not trash.is_symlink():
        shutil.rmtree(trash, ignore_errors=True)
    else:
        trash.unlink(missing_ok=True)
