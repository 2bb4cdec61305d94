"""Checkpoints that are whole or not there: written, pruned, and the newest of a run found again.

transformers' trainer writes a checkpoint file by file, under its final name. A disconnect in between leaves a folder
that looks like a checkpoint. Here the trainer writes into a folder beside (`WRITING`). A marker is added last, with
each file's size and SHA-256, the run, its configuration and the step; everything is forced to disk, and only then is
the folder renamed to `step-000040`. What is resumed from has passed the marker's check.

Of the files, `optimizer.pt`, `scheduler.pt`, `scaler.pt` and `rng_state.pth` are pickles inside a zip. transformers
5.17 reads each of them with `torch.load(weights_only=True)` (trainer.py: `_load_optimizer_and_scheduler`,
`_load_scaler`, `_load_rng_state`), which builds tensors, numbers and containers and runs no code; the last one allows
numpy's array constructor besides. `training_args.bin`, which nobody reads back, is not kept. A file that the marker
does not list makes a checkpoint unusable, so that the trainer never finds one that was not completed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError
from helpers.core.files import file_sha256, move_into_place, read_json, remove_folder, write_json, writing
from helpers.core.runs import RunDirectory
from helpers.memory.disk import KEPT

__all__ = ["STATE", "last_complete", "step_folders"]

MARKER, STATE, WRITING = "checkpoint.json", "run_state.json", ".writing"
"""Names in a checkpoint, and of the folder in which one is being written."""

BEST = "best_adapter.safetensors"
"""The trained weights as they were when the held-out loss was lowest: in a checkpoint where `keep` is "best"."""

REQUIRED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "run_state.json",
    "scheduler.pt",
    "trainer_state.json",
)
"""What training cannot be continued without. Several processes write rng_state_0.pth and so on for rng_state.pth."""

_LEFT_OUT = ("README.md", "training_args.bin")
"""What the trainer writes and nobody reads: a model card, and a pickle of its arguments."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint of one run.

    Args:
        files: Names of its files, without the marker.
    """

    path: Path
    step: int
    files: tuple[str, ...]

    def state(self) -> dict[str, Any]:
        """Return what the run knew at that step: losses, counts, times."""
        return read_json(self.path / STATE)


@dataclass(frozen=True)
class Search:
    """What was found in a run's checkpoint folder.

    Args:
        found: The newest complete checkpoint of this run, or None.
        rejected: (folder name, why it is not used) of each newer one, newest first.
    """

    found: Checkpoint | None
    rejected: tuple[tuple[str, str], ...] = ()

    def describe(self) -> list[str]:
        """Return one sentence a rejected checkpoint."""
        return [f"checkpoint {name} is not used: {why}" for name, why in self.rejected]


def last_complete(run: RunDirectory) -> Search:
    """Find the newest complete checkpoint of a run.

    Args:
        run: The run; a checkpoint must carry its id and the fingerprint of its configuration.

    Returns:
        What was found, and which newer ones were rejected and why.
    """
    rejected: list[tuple[str, str]] = []
    for path in step_folders(run.checkpoints):
        try:
            return Search(_read_checkpoint(path, run), tuple(rejected))
        except _UnusableError as reason:
            rejected.append((path.name, str(reason)))
    return Search(None, tuple(rejected))


def _read_checkpoint(path: Path, run: RunDirectory) -> Checkpoint:
    """Check a checkpoint against its marker, byte for byte.

    Args:
        run: The run that it should belong to.

    Raises:
        RunError: It is damaged, incomplete, or another run's; the message is the reason alone.
    """
    marker = _read_marker(path)
    step = _step(path)
    if marker["run_id"] != run.run_id():
        raise _UnusableError(f"its marker is of another run ({marker['run_id'] or 'unnamed'})")
    if marker["fingerprint"] != run.fingerprint():
        raise _UnusableError("it was written under another configuration")
    if marker["step"] != step:
        raise _UnusableError(f"its marker is of step {marker['step']}")
    files = marker["files"]
    alone = "rng_state_0.pth" not in files
    if missing := [name for name in REQUIRED if name not in files and (alone or name != "rng_state.pth")]:
        raise _UnusableError(f"its marker does not list {', '.join(missing)}")
    for name, expected in files.items():
        _check_file(path / name, expected)
    if extra := sorted({each.name for each in path.iterdir()} - {MARKER, *files}):
        raise _UnusableError(f"it holds {', '.join(extra[:3])}, which its marker does not list")
    return Checkpoint(path, step, tuple(sorted(files)))


def step_folders(folder: Path) -> list[Path]:
    """Return what is named like a checkpoint, newest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((each for each in found if re.fullmatch(r"step-\d{6,}", each.name)), key=_step, reverse=True)


class _UnusableError(RunError):
    """A checkpoint that is not resumed from; its text is the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__("checkpoint", "a complete one of this run", reason)

    def __str__(self) -> str:
        return str(self.got)


def _read_marker(path: Path) -> dict[str, Any]:
    """Return a marker whose entries have the right types."""
    marker = path / MARKER
    if path.is_symlink() or not path.is_dir():
        raise _UnusableError("it is not a folder")
    if marker.is_symlink() or not marker.is_file():
        raise _UnusableError(f"its marker {MARKER} is {'not a file' if marker.exists() else 'missing'}")
    try:
        value = json.loads(marker.read_text(encoding="utf-8"))
        run_id, fingerprint, step, files = (value[name] for name in ("run_id", "fingerprint", "step", "files"))
        sizes = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _UnusableError(f"its marker {MARKER} is damaged") from error
    texts = [run_id, fingerprint, *(sha for _, _, sha in sizes)]
    numbers = [step, *(size for _, size, _ in sizes)]
    plain = all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) for name in files)
    if not plain or any(type(t) is not str for t in texts) or any(type(n) is not int for n in numbers):
        raise _UnusableError(f"its marker {MARKER} is damaged")
    return value


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    """Compare one file with its entry in the marker."""
    if path.is_symlink() or not path.is_file():
        raise _UnusableError(f"{path.name} is {'not a file' if path.exists() else 'missing'}")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise _UnusableError(f"{path.name} has {size} bytes instead of {expected['bytes']}")
    try:
        same = file_sha256(path) == expected["sha256"]
    except OSError as error:
        raise _UnusableError(f"{path.name} cannot be read ({error.strerror})") from error
    if not same:
        raise _UnusableError(f"{path.name} has other bytes than were written")


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def complete(written: Path, run: RunDirectory, step: int, state: dict[str, Any]) -> Checkpoint:
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
        good: Complete checkpoints, oldest first: those completed by this process, and the one it resumed from.
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
