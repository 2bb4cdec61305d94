"""One run, one writer: a lock on a run directory that ends with the process that took it, and a file that names it.

`filelock` takes the lock: flock(2), which the kernel gives back however a process ends; on file systems without it a
marker that names process, start and host, and that only the same host takes over, once that process is gone.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["find_holder", "hold_lock", "holding", "refuse_held"]

LOCK, MARKER, HOLDER = ".lock", ".lock.soft", ".lock.json"
"""In a run directory: what is locked, the marker where nothing can be, and who holds it."""

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
"""What a file system without flock answers."""

_PATIENCE = 0.2
"""Seconds: `find_holder` of another process holds the lock for an instant."""

_held: dict[tuple[int, Path], BaseFileLock] = {}
"""Locks of this process, by its id, which a forked child does not have, and folder."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        pid: Process id, 0 if unknown.
        since: When it took the lock, in UTC.
    """

    pid: int = 0
    host: str = ""
    since: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}" if self.pid else "another process"


def hold_lock(folder: Path) -> None:
    """Take the lock of a run directory, made if need be, until this process ends. Taking it twice is allowed.

    Raises:
        RunError: Another process holds it, or the folder cannot be written.
    """
    from filelock import Timeout

    folder = folder.resolve()
    if (os.getpid(), folder) in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _held[os.getpid(), folder] = _acquire(folder)
    except Timeout:
        raise _refusal(folder, _read(folder)) from None
    except OSError as error:
        remedy = "Check its permissions, or set HELPERS_RUNS_DIR to another folder."
        raise RunError(str(folder), "a folder that can be written", error.strerror or str(error), remedy) from error
    with contextlib.suppress(OSError, RunError):  # on a full disk the lock holds, unsigned
        (folder / HOLDER).unlink(missing_ok=True)
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(folder / HOLDER, asdict(Holder(os.getpid(), platform.node(), since)))


def release_lock(folder: Path) -> None:
    """Give a lock back before the process ends."""
    folder = folder.resolve()
    if lock := _held.pop((os.getpid(), folder), None):
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, made if need be, for a while.

    Raises:
        RunError: Another process holds it, or the folder cannot be written.
    """
    hold_lock(folder)
    try:
        yield
    finally:
        release_lock(folder)


def refuse_held(folder: Path) -> None:
    """Raise if any process holds a run directory's lock.

    Raises:
        RunError: Somebody is writing the run; the message says who.
    """
    if holder := find_holder(folder):
        raise _refusal(folder, holder)


def find_holder(folder: Path) -> Holder | None:
    """Return who holds a run directory's lock, which may be this process; None if nobody does."""
    from filelock import Timeout

    if (os.getpid(), folder.resolve()) in _held:
        return _read(folder)
    if not any((folder / name).is_file() for name in (LOCK, MARKER)):
        return None
    try:
        _acquire(folder).release()
    except Timeout:
        return _read(folder)
    except OSError:  # a run of somebody else's, in which nothing can be written
        return _read(folder) if _is_locked(folder) else None
    return None


def _acquire(folder: Path) -> BaseFileLock:
    """Return the lock, taken, or the marker where the file system has no locks."""
    from filelock import FileLock, SoftFileLock, Timeout

    lock: BaseFileLock = FileLock(folder / LOCK, timeout=_PATIENCE, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        lock = SoftFileLock(folder / MARKER, timeout=_PATIENCE, thread_local=False)
        lock.acquire()
    return lock


def _refusal(folder: Path, holder: Holder) -> RunError:
    """Return the error that names the holder."""
    remedy = "Wait for it to end, end it, or choose another run_name."
    if holder.pid and holder.host != platform.node() and (folder / MARKER).exists():
        remedy += f" If that machine is gone, delete {folder / MARKER}."
    return RunError("run_name", "a run that no other process is writing", f"held by {holder}", remedy)


def _read(folder: Path) -> Holder:
    """Return whom the file beside the lock names; nobody in particular when it cannot be read."""
    try:
        value = read_json(folder / HOLDER)
        return Holder(int(value["pid"]), str(value["host"]), str(value["since"]))
    except (RunError, ValueError, TypeError, KeyError, OverflowError):
        return Holder()


def _is_locked(folder: Path) -> bool:
    """Ask the kernel through a file opened for reading; where it cannot say, the marker is believed."""
    try:
        import fcntl

        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except PermissionError:  # then the file beside it is all there is to go by
        return (folder / HOLDER).is_file() or (folder / MARKER).is_file()
    except (ImportError, OSError):
        return (folder / MARKER).is_file()
    return False
