"""Files and folders that are whole or not there, and one error for a disk that takes no more."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest

from helpers.core.errors import RunError
from helpers.core.files import (
    disk_error,
    empty_and_remove,
    error_chain,
    file_sha256,
    folder_bytes,
    move_into_place,
    read_json,
    remove_folder,
    replaced_folder,
    require_space,
    write_json,
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
            (OSError(errno.ENOTDIR, "x"), "a file stands in the way"),
            (OSError(errno.EEXIST, "x"), "a file stands in the way"),
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

    def test_errors_that_name_each_other_are_looked_at_once(self):
        """A chain that comes back to its beginning has an end."""
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        assert list(itertools.islice(error_chain(one), 5)) == [one, two]

    def test_whatever_stops_a_single_file_is_the_disk_s_refusal(self, tmp_path):
        """Such as a folder of the file's name."""
        (tmp_path / "a.txt").mkdir()
        with pytest.raises(RunError, match=r"^disk: expected room for a\.txt, got 'Is a directory \(.* free at "):
            write_text(tmp_path / "a.txt", "new")
        assert os.listdir(tmp_path) == ["a.txt"]

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
    @pytest.mark.parametrize("write", [write_text, put])
    def test_a_file_system_that_cannot_force_to_disk_is_no_refusal(self, write, number, tmp_path, monkeypatch):
        """As some that are mounted over a network; files and folders are written all the same."""

        def fail(*_):
            raise OSError(number, "x")

        monkeypatch.setattr(os, "fsync", fail)
        write(tmp_path / "a", "new")
        assert os.listdir(tmp_path) == ["a"]

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
        """The error has what is needed, for what, what is there and which variable helps."""
        expected = r"^disk: expected at least 1,048,576\.0 GiB free at .* for a test, got '.*GiB free'"
        with pytest.raises(RunError, match=expected) as caught:
            require_space(tmp_path / "not" / "there", 2**50, "a test")
        assert caught.value.remedy == "Free space, or set HELPERS_RUNS_DIR to a folder on a larger disk."

    def test_the_disk_asked_is_that_of_the_nearest_folder_there_is(self, tmp_path, monkeypatch):
        """To the byte; the run's own folder may not be made yet."""
        asked = []

        def usage(folder):
            asked.append(folder)
            return shutil._ntuple_diskusage(100, 90, 10)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        require_space(tmp_path / "not" / "there", 10, "a test")
        with pytest.raises(RunError):
            require_space(tmp_path, 11, "a test")
        assert asked == [tmp_path, tmp_path]


class TestWriting:
    """Files that are whole or the old ones."""

    def test_json_is_readable_text(self, tmp_path):
        """Two spaces of indent, letters as they are, a line break at the end."""
        write_json(tmp_path / "a.json", {"a": "ü", "b": [1, None]})
        assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "a": "ü",\n  "b": [\n    1,\n    null\n  ]\n}\n'
        assert read_json(tmp_path / "a.json") == {"a": "ü", "b": [1, None]}

    def test_folders_are_made(self, tmp_path):
        """The folder of a file need not exist."""
        write_text(tmp_path / "x" / "y" / "a.txt", "a")
        assert (tmp_path / "x" / "y" / "a.txt").read_text() == "a"

    def test_it_is_written_beside_its_place(self, tmp_path, monkeypatch):
        """Under a hidden name on the same disk, so that the rename cannot fail halfway."""
        moved, replace = [], os.replace
        monkeypatch.setattr(os, "replace", lambda *paths: (moved.append(paths), replace(*paths)))
        write_text(tmp_path / "a.txt", "a")
        (((source, target),),) = (moved,)
        assert (Path(source).parent, Path(source).name[:7], target) == (tmp_path, ".a.txt.", tmp_path / "a.txt")

    def test_others_may_read_it(self, tmp_path):
        """A file is readable by all, as if it had been written directly."""
        write_text(tmp_path / "a.txt", "a")
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
    @pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, step, failure):
        """When the disk is full or the user interrupts before the rename, the old file stays and no other is left."""
        path = tmp_path / "a.json"
        write_json(path, {"old": 1})

        def fail(*_):
            raise failure

        monkeypatch.setattr(os, step, fail)
        with pytest.raises((RunError, KeyboardInterrupt)):
            write_json(path, {"new": 2})
        assert read_json(path) == {"old": 1}
        assert os.listdir(tmp_path) == ["a.json"]

    def test_half_a_character_is_written_as_an_escape(self, tmp_path):
        """UTF-8 cannot hold it; JSON reads the escape back, so that a strange answer stops no run."""
        write_json(tmp_path / "a.json", {"said": "a \ud800"})
        assert (tmp_path / "a.json").read_bytes() == b'{\n  "said": "a \\ud800"\n}\n'
        assert read_json(tmp_path / "a.json") == {"said": "a \ud800"}

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"a": float("-inf")}]])
    def test_nan_and_infinity_are_refused(self, tmp_path, value):
        """JSON has neither, and nothing is written in their place."""
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"loss": value})
        assert os.listdir(tmp_path) == []


class TestReading:
    """Files that something happened to."""

    @pytest.mark.parametrize(
        ("content", "got"),
        [
            (b"", "JSONDecodeError"),
            (b'{"a": 1', "JSONDecodeError"),
            (b"\xff\xfe{", "UnicodeDecodeError"),
            (b"[" * 100_000, "RecursionError"),
            (b"9" * 5000, "ValueError"),
        ],
    )
    def test_a_damaged_file_is_an_error(self, tmp_path, content, got):
        """The error names the file and says what to do."""
        (tmp_path / "a.json").write_bytes(content)
        assert self.error(tmp_path / "a.json") == (
            *(str(tmp_path / "a.json"), "a readable JSON file", got),
            "The file is damaged; delete the run directory, or restore the file.",
        )

    def test_a_missing_file_is_an_error(self, tmp_path):
        """So does the error about a file that is not there."""
        assert self.error(tmp_path / "a.json") == (
            *(str(tmp_path / "a.json"), "a file that exists", "none"),
            "Check the path, or restore the file.",
        )

    def test_what_is_no_object_is_an_error(self, tmp_path):
        """A list is no manifest."""
        (tmp_path / "a.json").write_text("[]")
        assert self.error(tmp_path / "a.json") == (
            *(str(tmp_path / "a.json"), "a JSON object", "list"),
            "The file is damaged; delete the run directory, or restore the file.",
        )

    @staticmethod
    def error(path):
        """Return the four parts of the error of reading a file."""
        with pytest.raises(RunError) as caught:
            read_json(path)
        return caught.value.args

    def test_sums_are_sha256(self, tmp_path):
        """Of the file's bytes, in hexadecimal."""
        (tmp_path / "a").write_bytes(b"abc")
        assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_a_folder_s_size_is_that_of_its_files(self, tmp_path):
        """Those in folders below it too; links take no room, and a folder that is not there has no bytes."""
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "one").write_bytes(bytes(5))
        (tmp_path / "a" / "b" / "two").write_bytes(bytes(7))
        (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "one")
        assert (folder_bytes(tmp_path / "a"), folder_bytes(tmp_path / "none")) == (12, 0)


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
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
        assert modes == {"out": 0o755, "deep": 0o755, "a": 0o644}

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
        """What was in its place is gone, and what a killed process left beside it."""
        for name in ("new", "out", ".out-old"):
            (tmp_path / name).mkdir()
            (tmp_path / name / name).touch()
        move_into_place(tmp_path / "new", tmp_path / "out")
        assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("out"), Path("out/new")]

    def test_removing_takes_folders_files_and_links(self, tmp_path):
        """What a link leads to stays; what is not there is no error; what a killed process left beside goes too."""
        for name in ("folder", ".folder-old", ".link-old"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a").touch()
        (tmp_path / "file").touch()
        (tmp_path / "kept").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "kept")
        for name in ("folder", "file", "link", "none"):
            remove_folder(tmp_path / name)
        assert os.listdir(tmp_path) == ["kept"]

    def test_removing_may_empty_the_files_first(self, tmp_path):
        """Where a trash keeps what is deleted, it keeps no content; what a link leads to stays."""
        (tmp_path / "folder" / "deep").mkdir(parents=True)
        for name in ("a", "deep/b"):
            (tmp_path / "folder" / name).write_text("content")
        os.link(tmp_path / "folder" / "deep" / "b", tmp_path / "trash")
        (tmp_path / "kept").write_text("content")
        (tmp_path / "folder" / "link").symlink_to(tmp_path / "kept")
        empty_and_remove(tmp_path / "folder")
        empty_and_remove(tmp_path / "folder")
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"trash": "", "kept": "content"}
