"""One run, one writer: who gets the lock, who is refused, and when it ends."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from helpers.core import lock as run_lock
from helpers.core.errors import RunError
from helpers.core.lock import LOCK, find_holder, hold_lock, release_lock

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

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)


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
        """The message says which process holds the lock, where and since when."""
        with pytest.raises(RunError, match=rf"held by process {other.pid} on {platform.node()}, since 20\d\d-"):
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
        (folder / LOCK).write_bytes(b"\xff{")
        hold_lock(folder)

    def test_a_file_in_place_of_the_folder_is_refused(self, folder):
        """A folder that cannot be made is an error that names it."""
        folder.write_text("")
        with pytest.raises(RunError, match="a folder that can be written"):
            hold_lock(folder)


@pytest.mark.usefixtures("no_flock")
class TestWithoutFlock:
    """On file systems that have no flock, the lock names its owner."""

    def sign(self, folder, **changes):
        """Write a lock file as another process would have."""
        folder.mkdir(exist_ok=True)
        holder = {"pid": os.getppid(), "host": platform.node(), "started": 0.0, "since": "2026-01-01T00:00:00+00:00"}
        (folder / LOCK).write_text(json.dumps({**holder, **changes}))

    def test_a_free_folder_can_be_locked(self, folder):
        """The lock file names this process."""
        hold_lock(folder)
        assert find_holder(folder).pid == os.getpid()

    def test_a_living_owner_is_respected(self, folder):
        """A process that runs keeps its lock."""
        self.sign(folder)
        with pytest.raises(RunError, match=f"held by process {os.getppid()}"):
            hold_lock(folder)

    def test_a_dead_owner_is_replaced(self, folder):
        """A lock whose process has ended is taken over."""
        self.sign(folder, pid=2**22 - 1)
        hold_lock(folder)
        assert find_holder(folder).pid == os.getpid()

    def test_a_reused_process_id_is_no_owner(self, folder):
        """A process of the same id that started at another time is another process."""
        self.sign(folder, started=1.0)
        hold_lock(folder)

    def test_an_owner_on_another_machine_is_respected(self, folder):
        """Whether it lives cannot be known from here; the remedy says which file to delete."""
        self.sign(folder, host="elsewhere")
        with pytest.raises(RunError, match=r"on elsewhere.*If that machine is gone, delete .*\.lock"):
            hold_lock(folder)

    def test_a_released_lock_is_free(self, folder):
        """A lock that is given back has no holder."""
        hold_lock(folder)
        release_lock(folder)
        assert find_holder(folder) is None
