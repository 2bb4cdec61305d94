"""One run, one writer: who gets the lock, who is refused, and when it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys

import pytest
from filelock._identity import host_name, process_start_token

from helpers.core.errors import RunError
from helpers.core.lock import HOLDER, LOCK, MARKER, Holder, find_holder, hold_lock, release_lock

GONE = 2**22 - 1
"""An id that no process has."""

HOLD = "import sys; from pathlib import Path; from helpers.core.lock import hold_lock; hold_lock(Path(sys.argv[1])); print(1, flush=True); sys.stdin.read()"  # noqa: E501


@pytest.fixture
def folder(tmp_path):
    """A folder whose lock is given back after the test."""
    yield tmp_path / "run"
    release_lock(tmp_path / "run")


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of the same folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        yield process
        process.kill()


@pytest.fixture
def no_flock(monkeypatch):
    """A file system that answers flock with 'not supported'."""

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)


class TestLock:
    """With flock, as on Linux and macOS."""

    def test_a_free_folder_can_be_locked(self, folder):
        """The first process gets the lock, and the folder is made for it."""
        hold_lock(folder)
        assert find_holder(folder).pid == os.getpid()

    def test_the_same_process_may_lock_again(self, folder):
        """A notebook cell that is run twice is not refused."""
        hold_lock(folder)
        hold_lock(folder)

    def test_a_second_process_is_refused(self, folder, other):
        """The message says which process holds the lock, where and since when, and what to do."""
        with pytest.raises(RunError) as caught:
            hold_lock(folder)
        assert re.fullmatch(
            "run_name: expected a run that no other process is writing, got "
            rf"'held by process {other.pid} on {re.escape(platform.node())}, since 20\d\d-\d\d-\d\dT[\d:]+\+00:00'\. "
            r"Wait for it to end, end it, or choose another run_name\.",
            str(caught.value),
        )

    def test_a_holder_that_left_no_name_is_another_process(self, folder, other):
        """A full disk takes no name, and a crash may empty the file."""
        (folder / HOLDER).write_text("")
        with pytest.raises(RunError, match=r"got 'held by another process'\. Wait for it"):
            hold_lock(folder)

    def test_no_file_is_advised_to_be_deleted_where_the_kernel_decides(self, folder, other):
        """A run directory on a shared disk: the name of another machine alone frees nothing."""
        holder = {"pid": other.pid, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}
        (folder / HOLDER).write_text(json.dumps(holder))
        with pytest.raises(RunError, match=r"on elsewhere.*choose another run_name\.$"):
            hold_lock(folder)

    def test_a_killed_owner_leaves_no_lock(self, folder, other):
        """After kill -9 the lock is free at once, though the file is still there."""
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (folder / LOCK).is_file()
        assert find_holder(folder) is None
        hold_lock(folder)

    def test_a_released_lock_is_free(self, folder):
        """A lock that is given back has no holder."""
        hold_lock(folder)
        release_lock(folder)
        assert find_holder(folder) is None

    def test_a_folder_without_lock_file_has_no_holder(self, folder):
        """Runs of before are simply free."""
        assert find_holder(folder) is None

    def test_a_damaged_lock_file_does_not_matter(self, folder):
        """What counts is the kernel's lock, not the file's text."""
        folder.mkdir()
        for name in (LOCK, HOLDER):
            (folder / name).write_bytes(b"\xff{")
        assert find_holder(folder) is None
        hold_lock(folder)

    def test_a_full_disk_does_not_hinder_the_lock(self, small_disk):
        """It holds all the same, names nobody who held it before, and giving it back is no error."""
        folder = small_disk / "run"
        folder.mkdir()
        (folder / LOCK).touch()
        (folder / HOLDER).write_text('{"pid": 1, "host": "before"}')
        with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**12))
        hold_lock(folder)
        assert find_holder(folder).pid in (0, os.getpid())
        release_lock(folder)

    def test_a_file_in_place_of_the_folder_is_refused(self, folder):
        """A folder that cannot be made is an error that names it."""
        folder.write_text("")
        with pytest.raises(RunError) as caught:
            hold_lock(folder)
        assert str(caught.value) == (
            f"{folder}: expected a folder that can be written, got 'File exists'. Check its permissions, or set "
            "HELPERS_RUNS_DIR to another folder."
        )

    def test_an_error_without_words_of_the_system_is_shown(self, folder, monkeypatch):
        """Folders above it are made as well, if they can be."""
        hold_lock(folder / "deep" / "down")
        release_lock(folder / "deep" / "down")

        def odd(*_):
            raise OSError("odd")

        monkeypatch.setattr(fcntl, "flock", odd)
        with pytest.raises(RunError, match="got 'odd'"):
            hold_lock(folder)

    def test_a_name_that_is_gone_hinders_no_release(self, folder):
        """Somebody tidied up."""
        hold_lock(folder)
        (folder / HOLDER).unlink()
        release_lock(folder)
        hold_lock(folder)
        (folder / HOLDER).unlink()
        (folder / HOLDER).mkdir()
        release_lock(folder)
        assert find_holder(folder) is None


@pytest.mark.usefixtures("no_flock")
class TestWithoutFlock:
    """On file systems that have no flock, a marker names its owner."""

    def sign(self, folder, pid, host=None, start=None):
        """Write marker and holder as another process would have, in filelock's form."""
        folder.mkdir(exist_ok=True)
        named = host or platform.node()
        lines = [str(pid), host or host_name(), *([] if start is None else [str(start)])]
        (folder / MARKER).write_text("".join(f"{line}\n" for line in lines))
        holder = {"pid": pid, "host": named, "since": "2026-01-01T00:00:00+00:00"}
        (folder / HOLDER).write_text(json.dumps(holder))

    def test_a_free_folder_can_be_locked(self, folder):
        """The lock names this process."""
        hold_lock(folder)
        assert find_holder(folder).pid == os.getpid()

    def test_a_living_owner_is_respected(self, folder):
        """A process that runs keeps its lock."""
        self.sign(folder, os.getppid(), start=process_start_token(os.getppid()))
        assert find_holder(folder).pid == os.getppid()
        with pytest.raises(RunError, match=rf"held by process {os.getppid()} .*choose another run_name\.$"):
            hold_lock(folder)

    def test_a_dead_owner_is_replaced(self, folder):
        """A lock whose process has ended is taken over."""
        self.sign(folder, GONE)
        assert find_holder(folder) is None
        self.sign(folder, GONE)
        hold_lock(folder)
        assert find_holder(folder).pid == os.getpid()

    def test_a_reused_process_id_is_no_owner(self, folder):
        """A process of the same id that started at another time is another process."""
        self.sign(folder, os.getppid(), start=process_start_token(os.getppid()) - 10**9)
        hold_lock(folder)
        assert find_holder(folder).pid == os.getpid()

    @pytest.mark.parametrize("alive", [False, True])
    def test_an_owner_on_another_machine_is_respected(self, folder, alive):
        """Whether it lives cannot be known here, whatever runs here under its number; the remedy names the file."""
        pid = os.getppid() if alive else GONE
        self.sign(folder, pid, host="elsewhere")
        assert find_holder(folder) == Holder(pid, "elsewhere", "2026-01-01T00:00:00+00:00")
        with pytest.raises(RunError) as caught:
            hold_lock(folder)
        assert caught.value.got == f"held by process {pid} on elsewhere, since 2026-01-01T00:00:00+00:00"
        assert caught.value.remedy == (
            "Wait for it to end, end it, or choose another run_name. If that machine is gone, delete "
            f"{folder / MARKER}."
        )
        assert (folder / MARKER).read_text().startswith(f"{pid}\nelsewhere\n")

    def test_a_released_lock_is_free(self, folder):
        """A lock that is given back has no holder."""
        hold_lock(folder)
        release_lock(folder)
        assert find_holder(folder) is None


class TestReadOnly:
    """A run of somebody else's, in which nothing can be written."""

    @pytest.fixture(autouse=True)
    def closed(self, folder, monkeypatch):
        """A lock that can be opened for reading alone."""
        folder.mkdir(exist_ok=True)
        (folder / LOCK).touch()
        opened = os.open

        def refuse(path, *arguments, **named):
            if str(path).endswith(LOCK):
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, *arguments, **named)

        monkeypatch.setattr(os, "open", refuse)

    def test_the_kernel_knows_the_holder(self, folder, other):
        """It is asked through a file opened for reading, and its answer ends with the process."""
        assert find_holder(folder).pid == other.pid
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (folder / HOLDER).is_file()
        assert find_holder(folder) is None

    def test_without_flock_the_marker_is_believed(self, folder, no_flock):
        """Nobody holds the lock where none is."""
        (folder / HOLDER).write_text('{"pid": 1, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}')
        assert find_holder(folder) is None
        (folder / MARKER).touch()
        assert find_holder(folder) == Holder(1, "elsewhere", "2026-01-01T00:00:00+00:00")
