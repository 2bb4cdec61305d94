"""A second place for checkpoints and the adapter: a folder, such as one on Google Drive, that outlives the machine."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import empty_and_remove, replaced_folder, write_text
from helpers.core.paths import user_folder
from helpers.core.runs import CONFIG, MANIFEST, METRICS_FILE, RunDirectory
from helpers.memory.disk import KEPT
from helpers.training.checkpoints import MARKER, Checkpoint, last_complete, step_folders

__all__ = ["connect_drive", "keep_result"]

_DRIVE = Path("/content/drive")
"""Where Colab mounts Google Drive (colab.research.google.com, notebook "External data: Drive")."""


def persist_folder(persist_dir: str, name: str) -> RunDirectory:
    """Return the second place of one run, as a directory laid out like the run's own.

    Raises:
        ConfigError: It is no path.
    """
    return RunDirectory(user_folder("persist_dir", persist_dir) / name)


def connect_drive(folder: str, parameter: str = "persist_dir") -> None:
    """Mount Google Drive on Colab, if that is where a folder lies and it is not mounted yet."""
    if _on_drive(user_folder(parameter, folder)) and not (_DRIVE / "MyDrive").is_dir():
        from google.colab import drive

        drive.mount(str(_DRIVE))


def disconnect_drive(folder: str, runs: Path) -> str:
    """Make Google Drive take all that was written, and unmount it; say what was done.

    What Colab has not sent when its machine goes is lost (colabtools issue 287).

    Args:
        folder: `persist_dir`.
        runs: The run's folder; where that is on Drive too, it stays mounted.

    Returns:
        A sentence, or "" if the folder is not on a mounted Drive.
    """
    if not _on_drive(user_folder("persist_dir", folder)) or _on_drive(runs.resolve()):
        return ""
    from google.colab import drive

    drive.flush_and_unmount()
    return "Google Drive has taken all files, and is no longer mounted here."


def _on_drive(path: Path) -> bool:
    """Say whether a folder lies on Google Drive, as Colab mounts it."""
    return "google.colab" in sys.modules and path.is_relative_to(_DRIVE)


def prepare_persist(run: RunDirectory, persist_dir: str, *, resume: str) -> list[str]:
    """Make the second place ready before training: check it, clear it for a new start, or restore from it.

    Args:
        run: The run, locked by this process.
        resume: "never" removes what an earlier run of this name left there; otherwise it is restored from.

    Returns:
        Sentences on what was done.

    Raises:
        RunError: The folder does not exist, is the runs folder itself, holds another run of this name, or cannot be
            read or written.
    """
    there = persist_folder(persist_dir, run.path.name)
    try:
        return _prepare(run, there, persist_dir, resume)
    except OSError as error:
        remedy = "Check its permissions and that it is still mounted, or leave persist_dir out."
        raise RunError("persist_dir", "a folder that can be used", _reason(error), remedy) from error


def _prepare(run: RunDirectory, there: RunDirectory, persist_dir: str, resume: str) -> list[str]:
    """Check, clear or restore the second place."""
    _check_place(run, there, persist_dir)
    if resume == "never":
        for folder in (there.checkpoints, there.adapter):
            empty_and_remove(folder)
        for name in (CONFIG, METRICS_FILE, MANIFEST):
            (there.path / name).unlink(missing_ok=True)
        return []
    if run.manifest() and there.manifest() and run.run_id() != there.run_id():
        raise RunError(
            "persist_dir",
            f"a folder without another run named {run.path.name}",
            str(there.path),
            'Choose another run_name, or resume="never" to start over and replace it.',
        )
    return restore(run, there)


def restore(run: RunDirectory, there: RunDirectory) -> list[str]:
    """Copy the newest complete checkpoint back, if the run has none of its own.

    Args:
        there: Its second place.

    Returns:
        Sentences on what was done.
    """
    if not there.manifest() or (run.manifest() and last_complete(run).found):
        return []
    search = last_complete(there)
    if not run.manifest():
        write_text(run.path / MANIFEST, (there.path / MANIFEST).read_text(encoding="utf-8"))
    if search.found is None:
        return search.describe()
    _copy(search.found, run.checkpoints)
    return [*search.describe(), f"restored the checkpoint of step {search.found.step} from {there.path}"]


def keep_result(run: RunDirectory, persist_dir: str) -> str:
    """Copy a run's adapter and what is known of it to the second place; a failure is told and stops nothing.

    Returns:
        A sentence on what was done. `adapter_dir` of a comparison takes the folder that it names.
    """
    there = persist_folder(persist_dir, run.path.name)
    try:
        with replaced_folder(there.adapter, "the adapter", remove=empty_and_remove) as beside:
            shutil.copytree(run.adapter, beside, copy_function=shutil.copyfile, dirs_exist_ok=True)
        for name in (CONFIG, METRICS_FILE, MANIFEST):
            if (run.path / name).is_file():
                write_text(there.path / name, (run.path / name).read_text(encoding="utf-8"))
    except (OSError, RunError) as error:
        why = _reason(error)
        return f"persist_dir: the adapter was not copied to {there.path} ({why}). It is in {run.shown('adapter')}."
    return f"The adapter is also in {there.path}."


class Persister:
    """Copies complete checkpoints in the background, the newest first; a failure is told and stops nothing.

    Args:
        there: Its second place.

    Example:
        `persister.offer(checkpoint)` returns at once; `persister.close()` waits for the last copy.
    """

    def __init__(self, run: RunDirectory, there: RunDirectory) -> None:
        self.run = run
        self.there = there
        self.busy: Path | None = None
        self._news: list[str] = []
        self._next: Checkpoint | None = None
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def offer(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint, in place of one that still waits."""
        with self._change:
            self._next = checkpoint
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="persist", daemon=True)
                self._thread.start()

    def news(self) -> list[str]:
        """Return, once, sentences on what went wrong."""
        with self._change:
            told, self._news = self._news, []
        return told

    def close(self) -> list[str]:
        """Wait until the newest checkpoint is copied; return what went wrong."""
        if thread := self._thread:
            thread.join()
        return self.news()

    def _work(self) -> None:
        """Copy until nothing waits."""
        while True:
            with self._change:
                checkpoint, self._next = self._next, None
                self.busy = checkpoint.path if checkpoint else None
                if checkpoint is None:
                    self._thread = None
                    return
            try:
                self._persist(checkpoint)
            except (OSError, RunError) as error:
                what = f"the checkpoint of step {checkpoint.step} was not copied to {self.there.path}"
                with self._change:
                    self._news.append(f"persist_dir: {what} ({_reason(error)}). Training goes on.")

    def _persist(self, checkpoint: Checkpoint) -> None:
        """Copy one, then remove those before the newest few."""
        write_text(self.there.path / MANIFEST, (self.run.path / MANIFEST).read_text(encoding="utf-8"))
        _copy(checkpoint, self.there.checkpoints)
        for path in step_folders(self.there.checkpoints)[KEPT:]:
            empty_and_remove(path)


def _reason(error: OSError | RunError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _copy(checkpoint: Checkpoint, target: Path) -> None:
    """Copy a checkpoint's listed files, the marker last."""
    what = f"the checkpoint of step {checkpoint.step}"
    with replaced_folder(target / checkpoint.path.name, what, remove=empty_and_remove) as beside:
        for name in (*checkpoint.files, MARKER):
            shutil.copyfile(checkpoint.path / name, beside / name)


def _check_place(run: RunDirectory, there: RunDirectory, persist_dir: str) -> None:
    """Raise unless the second place can be used."""
    if there.path == run.path.resolve() or run.path.resolve() in there.path.parents:
        remedy = "A copy beside the run is lost with it: choose a folder on another disk."
        raise RunError("persist_dir", "a folder outside the run's own", persist_dir, remedy)
    place = there.path.parent
    if not place.is_dir() and (place.exists() or not place.parent.is_dir()):
        raise RunError(
            "persist_dir",
            "a folder that exists",
            persist_dir,
            "On Colab, mount Google Drive first: from google.colab import drive; drive.mount('/content/drive')",
        )
    if there.path.is_symlink() or (there.path.exists() and not there.path.is_dir()):
        remedy = "A link or a file is left alone: choose another folder or run_name."
        raise RunError("persist_dir", f"a folder where {run.path.name} is a folder or missing", persist_dir, remedy)
    left = [p.name for p in there.path.iterdir() if not p.name.startswith(".")] if there.path.is_dir() else []
    if left and MANIFEST not in left:
        raise RunError(
            "persist_dir",
            f"a folder where {run.path.name} is a run or missing",
            str(there.path),
            "It has no manifest.json, so it is left alone. Choose another folder or run_name.",
        )
