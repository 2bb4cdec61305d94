"""The disk: room asked for before training, a clear error when it runs out, and files forced to it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.core.errors import RunError

__all__ = [
    "disk_full_error",
    "file_sha256",
    "folder_bytes",
    "is_disk_full",
    "replaced_folder",
    "require_space",
    "show_bytes",
    "sync_file",
    "sync_folder",
    "writing",
]

FULL = (
    "No space left on device",  # safetensors wraps the system's error as text
    "os error 28",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing file",  # what torch.save makes of it (torch 2.11, caffe2/serialize)
    "unexpected pos",  # the same, while it closes the file
)
"""Texts of errors that hide the system's own."""


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error, or one that it came from, means that the disk is full.

    Args:
        error: As it was caught.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(current) for text in FULL):
            return True
        current = current.__cause__ or current.__context__
    return False


def disk_full_error(what: str, folder: Path) -> RunError:
    """Return the error for a write that found no room.

    Args:
        what: What was being written, such as "the checkpoint of step 40".
        folder: Where to.
    """
    return RunError(
        "disk",
        f"room for {what}",
        f"{show_bytes(_free(folder))} free at {folder}",
        "Free space and run again: everything written before is whole, and training goes on from the "
        "last complete checkpoint.",
    )


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turn a full disk inside the block into a `RunError`; other errors pass.

    Args:
        what: What is being written.
        folder: Where to.

    Raises:
        RunError: The disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RunError) or not is_disk_full(error):
            raise
        raise disk_full_error(what, folder) from error


def require_space(folder: Path, needed: int, what: str) -> None:
    """Stop before a disk would run full.

    Args:
        folder: Where will be written; it, or a folder above it, exists.
        needed: In bytes.
        what: What for, in words.

    Raises:
        RunError: Less is free.
    """
    free = _free(folder)
    if free < needed:
        raise RunError(
            "disk",
            f"at least {show_bytes(needed)} free at {folder} for {what}",
            f"{show_bytes(free)} free",
            "Free space, or set HELPERS_RUNS_DIR to a folder on a larger disk.",
        )


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Force a file's content to disk, where the file system can."""
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders; some network file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a new folder beside one, which it then replaces; after an error the old one is still there.

    Args:
        folder: What is replaced; it need not be there yet.

    Yields:
        Where to write: a path that is free.
    """
    beside, old = (folder.with_name(f".{folder.name}-{what}") for what in ("writing", "old"))
    for each in (beside, old):
        shutil.rmtree(each, ignore_errors=True)
    try:
        yield beside
        for path in beside.iterdir():
            sync_file(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(beside, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def show_bytes(count: int) -> str:
    """Return a number of bytes for reading.

    Example:
        >>> show_bytes(3 * 2**29)
        '1.5 GiB'
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _free(folder: Path) -> int:
    """Return the bytes free for this user on a folder's disk."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
