"""Checkpoints that are whole or not there: completed with a marker, moved into place, and pruned."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.core.files import file_sha256, move_into_place, remove_folder, write_json, writing
from helpers.core.runs import RunDirectory
from helpers.memory.disk import KEPT
from helpers.training.checkpoints import MARKER, STATE, Checkpoint, step_folders

__all__ = ["prune", "seal", "sweep"]

_LEFT_OUT = ("README.md", "training_args.bin")
"""What the trainer writes and nobody reads: a model card, and a pickle of its arguments."""


def seal(written: Path, run: RunDirectory, step: int, state: dict[str, Any]) -> Checkpoint:
    """Complete a checkpoint that the trainer has written, and move it into place.

    Args:
        written: The trainer's folder, on the run's disk.
        state: What the run knows at that step, as JSON.

    Returns:
        The checkpoint, under its final name.

    Raises:
        RunError: The disk is full; nothing that was complete before is lost.
    """
    final = run.checkpoints / f"step-{step:06d}"
    with writing(f"the checkpoint of step {step}", run.path):
        for name in _LEFT_OUT:
            (written / name).unlink(missing_ok=True)
        write_json(written / STATE, state)
        files = sorted(path for path in written.iterdir() if path.name != MARKER)
        listed = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files}
        marker = {"format": 1, "run_id": run.run_id(), "fingerprint": run.fingerprint(), "step": step, "files": listed}
        write_json(written / MARKER, marker)
        move_into_place(written, final)  # what is there is damaged, or it would have been resumed from
    return Checkpoint(final, step, tuple(sorted(listed)))


def prune(run: RunDirectory, good: Sequence[Path], *, busy: Path | None = None) -> list[Path]:
    """Remove all but the newest complete checkpoints.

    Args:
        good: Complete checkpoints, oldest first: those sealed by this process, and the one it resumed from.
        busy: One that is being copied, kept in any case.

    Returns:
        Of `good`, what was kept.
    """
    kept = list(good[-KEPT:])
    for path in step_folders(run.checkpoints):
        if path not in kept and path != busy:
            remove_folder(path)
    return kept


def sweep(run: RunDirectory) -> None:
    """Remove what a killed process left half written or half removed."""
    for path in run.checkpoints.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
