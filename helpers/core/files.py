"""Files and folders that are written whole or not at all, and one error for a disk that takes no more."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError
from helpers.core.secrets import redact
from helpers.core.text import format_bytes

__all__ = [
    "disk_error",
    "empty_and_remove",
    "error_chain",
    "file_sha256",
    "folder_bytes",
    "move_into_place",
    "read_json",
    "remove_folder",
    "replaced_folder",
    "require_space",
    "write_bytes",
    "write_json",
    "write_text",
    "writing",
]

_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
"""What a disk answers that is full, cannot be written, or has a file where a folder should be."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Those that no reading meets."""

_WRAPPED = {
    "No space left on device": "No space left on device",  # safetensors and tokenizers keep only the system's words
    "os error 28": "No space left on device",
    "Disk quota exceeded": "Disk quota exceeded",
    "os error 122": "Disk quota exceeded",
    "Read-only file system": "Read-only file system",
    "os error 30": "Read-only file system",
    "PytorchStreamWriter failed writing file": "a file was cut short",  # torch 2.11, caffe2/serialize
    "unexpected pos": "a file was cut short",  # the same, while it closes the file
    "basic_ios::clear": "a file was cut short",  # the same of a file so small that nothing was written before
    "ios_base::clear": "a file was cut short",  # on macOS
    r"\d requested and \d+ written": "a file was cut short",  # numpy's tofile, which writes GGUF files
}
"""Patterns of errors that hide the system's own -> what it was."""


def _remove_tree(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def disk_error(what: str, folder: Path, error: BaseException | str, *, reading: bool = False) -> RunError | None:
    """Return the error to show if the disk refused a write: it is full, read-only, or its quota is used up.

    Args:
        what: What was being written, such as "the checkpoint of step 40".
        error: As it was caught; the errors that it came from are looked at, too. Or what another process said of it.
        reading: Whether files were read as well, which may lack permissions of their own.

    Returns:
        None if the error is about something else.
    """
    links: Iterable[BaseException | str] = [error] if isinstance(error, str) else error_chain(error)
    for current in links:
        if isinstance(current, OSError) and current.errno in (_FULL if reading else _REFUSALS):
            blocked = current.errno in (errno.ENOTDIR, errno.EEXIST)
            return _refused(what, folder, "a file stands in the way" if blocked else os.strerror(current.errno))
        for pattern, reason in _WRAPPED.items():
            if re.search(pattern, str(current)):
                return _refused(what, folder, reason)
    return None


@contextmanager
def writing(what: str, folder: Path, *, only: bool = False) -> Iterator[None]:
    """Turn a disk's refusal inside the block into the one error that says so; other errors pass.

    Args:
        only: The block does nothing but write, so that whatever the system refuses is the disk's refusal.

    Raises:
        RunError: The disk is full, read-only, or its quota is used up.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        said = disk_error(what, folder, error)
        if said is None and only and isinstance(error, OSError):
            said = _refused(what, folder, error.strerror or str(error))
        if said is None:
            raise
        raise said from error


def require_space(folder: Path, needed: int, what: str) -> None:
    """Stop before a disk would run full.

    Args:
        folder: Where will be written; it, or a folder above it, exists.
        needed: In bytes.

    Raises:
        RunError: Less is free.
    """
    free = _free(folder)
    if free < needed:
        raise RunError(
            "disk",
            f"at least {format_bytes(needed)} free at {folder} for {what}",
            f"{format_bytes(free)} free",
            "Free space, or set HELPERS_RUNS_DIR to a folder on a larger disk.",
        )


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        RunError: The disk refuses.
        ValueError: The value holds NaN or infinity, which JSON cannot.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all, line breaks as they are, secrets taken out.

    Half of a character, which UTF-8 cannot hold, becomes an escape that JSON reads back.

    Raises:
        RunError: The disk refuses.
    """
    write_bytes(path, redact(text).encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, force it to disk and rename it.

    Raises:
        RunError: The disk refuses, or the path cannot be one of a file.
    """
    temporary = ""
    try:
        with writing(path.name, path.parent, only=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                _sync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            temporary = ""
    finally:
        if temporary:
            with contextlib.suppress(OSError):  # a disk that has become read-only keeps it, and the error says so
                Path(temporary).unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: The file is missing, damaged, or not an object.
    """
    remedy = "The file is damaged; delete the run directory, or restore the file."
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(str(path), "a file that exists", "none", "Check the path, or restore the file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(str(path), "a readable JSON file", type(error).__name__, remedy) from error
    if not isinstance(value, dict):
        raise RunError(str(path), "a JSON object", type(value).__name__, remedy)
    return value


@contextmanager
def replaced_folder(folder: Path, what: str, *, remove: Callable[[Path], object] = _remove_tree) -> Iterator[Path]:
    """Fill a new folder beside one, whose place it then takes; after an error the old one is still there.

    What a killed process left beside it is removed, or moved back if it was the only whole one.

    Args:
        folder: What is replaced; it need not be there yet.
        what: What is written, such as "the adapter".
        remove: How what stood there goes: `empty_and_remove` on Google Drive.

    Yields:
        An empty folder.

    Raises:
        RunError: The disk refuses.
    """
    beside, old = _beside(folder, "writing"), _beside(folder, "old")
    with writing(what, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            yield beside
            move_into_place(beside, folder, remove=remove)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def move_into_place(written: Path, folder: Path, *, remove: Callable[[Path], object] = _remove_tree) -> None:
    """Force a folder to disk, readable to all, and rename it; what stood in its place is removed last.

    Args:
        written: On the same file system as its place.
        remove: As for `replaced_folder`.
    """
    for path in sorted(written.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb+") as file:
                _sync(file.fileno())
    written.chmod(0o755)
    _sync_folder(written)
    old = _beside(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(written, folder)
    _sync_folder(folder.parent)
    remove(old)


def empty_and_remove(folder: Path) -> None:
    """Remove a folder whose files are emptied first: Google Drive keeps what is deleted, and counts it.

    A deleted file lies in Drive's trash for 30 days (transformers issue 14922). Emptied before, it takes no room there.
    """
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                os.truncate(path, 0)
    _remove_tree(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder, a file or a link so that no half of it keeps its name."""
    if not folder.exists() and not folder.is_symlink():
        return
    old = _beside(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def _refused(what: str, folder: Path, reason: str) -> RunError:
    """Return the one error for a write that the disk refused."""
    return RunError(
        "disk",
        f"room for {what}",
        f"{reason} ({format_bytes(_free(folder))} free at {folder})",
        "Free space or check permissions, and run again: what was there before is untouched.",
    )


def _beside(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}-{state}")


def _sync(handle: int) -> None:
    """Force a file's content to disk, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _sync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders; some network file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _free(folder: Path) -> int:
    """Return the bytes free for this user on a folder's disk."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
