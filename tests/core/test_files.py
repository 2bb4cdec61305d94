"""Files and folders that are whole or not there, and one error for a disk that takes no more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from helpers.core.errors import RunError
from helpers.core.files import (
    disk_error,
    move_into_place,
    remove_folder,
    replaced_folder,
    require_space,
    write_text,
    writing,
)

REMEDY = "Free space or check permissions, and run again: what was there before is untouched."


def put(folder, text):
    """Replace a folder by one with a single file."""
    with replaced_folder(folder, "the adapter") as beside:
        (beside / "a").write_text(text)


class TestRefusals:
    """Full, over quota, read-only: one error text."""

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (OSError(errno.ENOSPC, "x"), "No space left on device"),
            (OSError(errno.EDQUOT, "x"), "Disk quota exceeded"),
            (OSError(errno.EROFS, "x"), "Read-only file system"),
            (OSError(errno.EACCES, "x"), "Permission denied"),
            (RuntimeError("PytorchStreamWriter failed writing file data/2"), "a file was cut short"),
            (
                RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64"),
                "a file was cut short",
            ),
            (RuntimeError("basic_ios::clear: iostream error"), "a file was cut short"),
            (RuntimeError("ios_base::clear: unspecified iostream_category error"), "a file was cut short"),
            (ValueError("I/O error: Read-only file system (os error 30)"), "Read-only file system"),
            (ValueError("I/O error: No space left on device (os error 28)"), "No space left on device"),
            (ValueError("I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        ],
    )
    def test_each_is_recognized_and_named(self, error, reason, tmp_path):
        """Also in the words of torch and safetensors, and behind another error; the reason is never another one."""
        outer = RuntimeError("saving failed")
        outer.__cause__ = error
        for caught in (error, outer):
            said = disk_error("the checkpoint of step 40", tmp_path, caught)
            assert (said.field, said.expected, said.remedy) == ("disk", "room for the checkpoint of step 40", REMEDY)
            assert said.got.startswith(f"{reason} (")
            assert said.got.endswith(f"GiB free at {tmp_path})")

    def test_other_errors_are_not(self, tmp_path):
        """A missing file is no full disk, and passes as it is."""
        missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
        assert disk_error("x", tmp_path, missing) is None
        with pytest.raises(FileNotFoundError), writing("x", tmp_path):
            raise missing

    def test_a_refusal_at_close_is_the_same_error(self, tmp_path, monkeypatch):
        """A network file system says only when a file is closed that the quota is used up."""
        close = os.close

        class Stream:
            def __init__(self, handle, mode):
                self.handle = handle

            def write(self, content):
                return len(content)

            def flush(self):
                pass

            def fileno(self):
                return self.handle

            def __enter__(self):
                return self

            def __exit__(self, *_):
                close(self.handle)
                raise OSError(errno.EDQUOT, "x")

        (tmp_path / "a.txt").write_text("as it was")
        monkeypatch.setattr(os, "fdopen", Stream)
        with pytest.raises(RunError, match=r"^disk: expected room for a\.txt, got 'Disk quota exceeded \("):
            write_text(tmp_path / "a.txt", "new")
        assert os.listdir(tmp_path) == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "as it was"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    @pytest.mark.parametrize("write", [write_text, put])
    def test_each_writer_says_it_alike_and_leaves_what_was_there(self, write, number, tmp_path, monkeypatch):
        """A file and a folder."""
        write(tmp_path / "a", "as it was")

        def fail(*_):
            raise OSError(number, "x")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match=rf"^disk: expected room for .*, got '{os.strerror(number)} \(") as caught:
            write(tmp_path / "a", "new")
        assert caught.value.remedy == REMEDY
        assert os.listdir(tmp_path) == ["a"]
        file = tmp_path / "a" if write is write_text else tmp_path / "a" / "a"
        assert file.read_text() == "as it was"

    def test_too_little_room_is_said_before(self, tmp_path):
        """The error has what is needed, for what, and what is there."""
        expected = r"disk: expected at least 1,048,576\.0 GiB free at .* for a test, got '.*GiB free'"
        with pytest.raises(RunError, match=expected):
            require_space(tmp_path / "not" / "there", 2**50, "a test")


class TestFolders:
    """Written beside and renamed."""

    def test_a_folder_takes_the_place_of_the_earlier_one(self, tmp_path):
        """Nothing stays beside it, and all can read what is in it."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").touch()
        with replaced_folder(tmp_path / "out", "x") as beside:
            (beside / "deep").mkdir()
            (beside / "deep" / "a").touch(mode=0o600)
            assert os.listdir(tmp_path / "out") == ["old"]
        assert os.listdir(tmp_path) == ["out"]
        assert os.listdir(tmp_path / "out") == ["deep"]
        assert (tmp_path / "out" / "deep" / "a").stat().st_mode & 0o777 == 0o644

    def test_what_a_killed_process_moved_aside_comes_back(self, tmp_path):
        """Killed between two renames, the whole folder is the one beside; an error later does not lose it."""
        (tmp_path / ".out-old").mkdir()
        (tmp_path / ".out-old" / "a").write_text("whole")
        (tmp_path / ".out-writing").mkdir()
        with pytest.raises(KeyboardInterrupt), replaced_folder(tmp_path / "out", "x"):
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == ["out"]
        assert (tmp_path / "out" / "a").read_text() == "whole"

    def test_a_written_folder_is_moved(self, tmp_path):
        """What was in its place is gone."""
        for name in ("new", "out"):
            (tmp_path / name).mkdir()
            (tmp_path / name / name).touch()
        move_into_place(tmp_path / "new", tmp_path / "out")
        assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("out"), Path("out/new")]

    def test_removing_takes_folders_files_and_links(self, tmp_path):
        """What a link leads to stays; what is not there is no error."""
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        (tmp_path / "kept").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "kept")
        for name in ("folder", "file", "link", "none"):
            remove_folder(tmp_path / name)
        assert os.listdir(tmp_path) == ["kept"]
