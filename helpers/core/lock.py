"""One run, one writer: a lock on a run directory that ends with the process that took it.

Where the system has flock(2), the kernel releases the lock when its owner ends, however it ends. Elsewhere, and on
file systems without flock, the lock file names its owner by process id and start time, and a lock whose owner is gone
is taken over.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Holder", "find_holder", "hold_lock", "holding", "refuse_held", "release_lock"]

LOCK = ".lock"
"""The lock file's name in a run directory."""

UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
"""What a file system without flock answers."""

ATTEMPTS, PAUSE = 5, 0.05
"""Tries, and seconds between them: `find_holder` of another process holds the lock for an instant."""

CLOCK_TOLERANCE = 5.0
"""Start times of one process may be read this many seconds apart, because the system's clock is corrected."""

_held: dict[Path, tuple[int, Any]] = {}
"""Locks of this process: folder -> (process id, open file or None)."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        pid: Process id, 0 if unknown.
        host: Name of its machine.
        started: Its start, in seconds since 1970, 0 if unknown.
        since: When it took the lock, in UTC.
    """

    pid: int = 0
    host: str = ""
    started: float = 0.0
    since: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}" if self.pid else "another process"


def hold_lock(folder: Path) -> None:
    """Take the lock of a run directory until this process ends. Taking it twice is allowed.

    Args:
        folder: The run's directory; made if need be.

    Raises:
        RunError: Another process holds it, or the folder cannot be written.
    """
    folder = folder.resolve()
    if _held.get(folder, (0, None))[0] == os.getpid():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _flock(folder / LOCK)
    except OSError as error:
        remedy = "Check its permissions, or set HELPERS_RUNS_DIR to another folder."
        raise RunError(str(folder), "a folder that can be written", error.strerror or str(error), remedy) from error
    _held[folder] = (os.getpid(), file)


def release_lock(folder: Path) -> None:
    """Give a lock back before the process ends.

    Args:
        folder: The run's directory.
    """
    pid, file = _held.pop(folder.resolve(), (0, None))
    if file is not None:
        file.close()
    elif pid == os.getpid():
        (folder / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for a while.

    The lock's file stays: another process may wait for it, and would else hold a lock that nobody sees.

    Args:
        folder: Made if need be.

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

    Args:
        folder: The run's directory.

    Raises:
        RunError: Somebody is writing the run; the message says who.
    """
    holder = find_holder(folder)
    if holder is not None:
        raise _refusal(folder / LOCK, holder)


def find_holder(folder: Path) -> Holder | None:
    """Say who holds a run directory's lock.

    Args:
        folder: The run's directory.

    Returns:
        The holder, which may be this process; None if nobody does.
    """
    path = folder / LOCK
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            if fcntl is None:
                return _living(_read(path))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return _read(path)
    except OSError:
        return _living(_read(path))


def _flock(path: Path) -> Any:
    """Lock and sign the file; return it open, or None where the file system has no flock."""
    if fcntl is None:
        return _claim(path)
    file = path.open("a+b")
    for attempt in range(ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if attempt == ATTEMPTS - 1:
                file.close()
                raise _refusal(path, _read(path)) from error
            time.sleep(PAUSE)
        except OSError as error:
            file.close()
            if error.errno in UNSUPPORTED:
                return _claim(path)
            raise
    with contextlib.suppress(OSError):  # on a full disk the lock holds, unsigned
        file.truncate(0)
        file.write(_signature())
        file.flush()
    return file


def _claim(path: Path) -> None:
    """Sign a lock file that no living process has signed."""
    temporary = path.with_name(f"{LOCK}.{os.getpid()}")
    temporary.write_bytes(_signature())
    try:
        os.link(temporary, path)
    except OSError as error:
        holder = _read(path)
        if _living(holder) is not None or not path.exists():
            raise _refusal(path, holder) from error
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refusal(path: Path, holder: Holder) -> RunError:
    """Return the error that names the holder."""
    remedy = "Wait for it to end, end it, or choose another run_name."
    if holder.pid and holder.host != platform.node():
        remedy += f" If that machine is gone, delete {path}."
    return RunError("run_name", "a run that no other process is writing", f"held by {holder}", remedy)


def _signature() -> bytes:
    """Return what this process writes into a lock file."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return json.dumps(asdict(Holder(os.getpid(), platform.node(), _start_of(os.getpid()) or 0.0, since))).encode()


def _read(path: Path) -> Holder:
    """Return whom a lock file names; nobody in particular when it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Holder(int(value["pid"]), str(value["host"]), float(value["started"]), str(value["since"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Holder()


def _living(holder: Holder) -> Holder | None:
    """Return the holder unless it is known to have ended. On another machine that cannot be known."""
    if holder.pid and holder.host != platform.node():
        return holder
    start = _start_of(holder.pid) if holder.pid else None
    same = start is not None and (not holder.started or abs(start - holder.started) <= CLOCK_TOLERANCE)
    return holder if same else None


def _start_of(pid: int) -> float | None:
    """Return when a process started, in seconds since 1970; None if there is none of that id."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # also a number that no process has
        return None
    except psutil.Error:
        return 0.0
