"""Run directories: where a run keeps what it made, written whole or not at all."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.config import DEFAULT_DATASET, FREE_TO_CHANGE, changed_parameters, parameters
from helpers.core.errors import ConfigError, RunError
from helpers.core.files import read_json, write_json
from helpers.core.paths import user_folder
from helpers.core.secrets import redact
from helpers.core.settings import nearest

__all__ = [
    "CONFIG",
    "MANIFEST",
    "METRICS_FILE",
    "RESUME",
    "RunDirectory",
    "check_run",
    "finite",
    "git_commit",
    "now",
    "open_run",
    "runs_root",
]

CONFIG, MANIFEST, METRICS_FILE = "config.json", "manifest.json", "metrics.json"
"""What a run directory's JSON files are called."""

RESUME = ("auto", "never", "must")
"""What to do about an earlier run of the same name: continue it if it is equal, replace it, or insist on it."""


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run.

    Args:
        path: `runs/<name>`, absolute.
    """

    path: Path

    @property
    def adapter(self) -> Path:
        """Where the LoRA weights, the tokenizer and the model card are saved."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Where training checkpoints are kept."""
        return self.path / "checkpoints"

    def shown(self, name: str = "") -> str:
        """Return a path in it as people type it: relative to the working directory where that is shorter."""
        path = self.path / name
        relative = os.path.relpath(path)
        return relative if len(relative) < len(str(path)) else str(path)

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, or {} before it is written; one that a crash damaged is rebuilt from `config.json`.

        Raises:
            RunError: It is damaged, and so is the run's configuration.
        """
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        try:
            return read_json(path)
        except RunError as error:
            if rebuilt := _rebuilt_manifest(self.path / CONFIG):
                return rebuilt
            remedy = 'Restore it from a copy, such as the one in persist_dir, or start over with resume="never".'
            raise RunError(error.field, error.expected, error.got, remedy) from error

    def update_manifest(self, **values: Any) -> None:
        """Add to the manifest, replacing entries of the same name."""
        write_json(self.path / MANIFEST, {**self.manifest(), **values})

    def finish(self, **values: Any) -> None:
        """Write down that everything asked for was done, and which run that is, counted over all runs.

        The count tells which run is the newest where a clock was wrong.
        """
        numbers = [0]
        for path in self.path.parent.glob(f"*/{MANIFEST}"):
            with contextlib.suppress(RunError):
                number = RunDirectory(path.parent).manifest().get("number")
                numbers.append(number if type(number) is int else 0)
        self.update_manifest(state="complete", finished=now(), number=1 + max(numbers), **values)

    def run_id(self) -> str:
        """Return what tells this run from every other, also from one of the same name; "" before it is opened."""
        return str(self.manifest().get("run_id") or "")

    def fingerprint(self) -> str:
        """Return the SHA-256 of the parameters that decide what the run computes."""
        parameters = _parameters(self)
        chosen = {k: v for k, v in parameters.items() if k not in FREE_TO_CHANGE}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()

    def mark_failed(self, error: BaseException) -> None:
        """Write down that the run stopped, and why, if it was running and the disk lets us.

        An interruption by the user is not a failure: the run can go on.
        """
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(RunError):
            if self.manifest().get("state") == "running":
                self.update_manifest(state=state, failure=redact(f"{type(error).__name__}: {error}")[:1000])

    def metrics(self) -> dict[str, Any]:
        """Return the metrics, or {} before they are written."""
        path = self.path / METRICS_FILE
        return read_json(path) if path.exists() else {}

    def update_metrics(self, **values: Any) -> None:
        """Add to the metrics, replacing entries of the same name."""
        write_json(self.path / METRICS_FILE, {**self.metrics(), **values})


def runs_root() -> Path:
    """Return the folder that holds all runs.

    It is HELPERS_RUNS_DIR if set; else `runs/` beside the package in a checkout, whatever the working directory; else
    `runs/` in the working directory.

    Raises:
        ConfigError: HELPERS_RUNS_DIR names a file, or is no path.
    """
    if chosen := os.environ.get("HELPERS_RUNS_DIR", "").strip():
        folder = user_folder("HELPERS_RUNS_DIR", chosen)
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ConfigError("HELPERS_RUNS_DIR", "a folder", chosen, "A file is in its place: name another folder.")
        return folder
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "runs"


def open_run(name: str, parameters: Mapping[str, Any], *, resume: str = "auto", **facts: Any) -> RunDirectory:
    """Create a run directory, or return to the one of an earlier, equal run, and write down that it runs.

    Args:
        parameters: All parameters of the run; an earlier run must have had the same.
        resume: "auto" continues an earlier run if there is one, "never" replaces it, "must" insists on one.
        **facts: What else its manifest shall hold; JSON values.

    Raises:
        RunError: The folder is not a run, its parameters differ, or `resume="must"` finds nothing.
    """
    run = RunDirectory(runs_root() / name)
    continued = check_run(name, parameters, resume=resume)
    try:
        if resume == "never" and run.path.is_dir():
            _clear(run)
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "Check its permissions, or set HELPERS_RUNS_DIR to another folder."
        raise RunError(str(run.path), "a folder that can be written", error.strerror or str(error), remedy) from error
    earlier = run.manifest() if continued else {}
    resumed = earlier.get("resumed")
    run.update_manifest(
        parameters=dict(parameters),
        run_id=earlier.get("run_id") or uuid.uuid4().hex,
        git_commit=git_commit(),
        started=earlier.get("started") or now(),
        resumed=[*(resumed if isinstance(resumed, list) else []), now()] if continued else [],
        resume=resume,
        state="running",
        failure=None,
        **facts,
    )
    return run


def check_run(name: str, parameters: Mapping[str, Any], *, resume: str = "auto") -> bool:
    """Say whether `open_run` would continue an earlier run. Reads only.

    A run whose directory is gone counts as an earlier one if it left checkpoints in `persist_dir`.

    Returns:
        True if an equal run is continued, False if a new one begins.

    Raises:
        RunError: `open_run` would refuse.
    """
    new = resume == "never"
    earlier = _earlier_parameters(RunDirectory(runs_root() / name), new)
    if earlier is None and parameters.get("persist_dir"):
        earlier = _earlier_parameters(RunDirectory(user_folder("persist_dir", parameters["persist_dir"]) / name), new)
    if resume not in RESUME:
        raise RunError("resume", f"one of {', '.join(RESUME)}", resume, nearest(resume, RESUME))
    if resume == "must" and earlier is None:
        remedy = 'Check the name, or use resume = "auto".'
        raise RunError("run_name", "the name of an earlier run, because resume is must", name, remedy)
    if new or earlier is None:
        return False
    if changed := changed_parameters(earlier, dict(parameters)):
        raise RunError(
            "run_name",
            f"the parameters of the earlier run {name}",
            "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items()),
            'Choose another run_name, or resume="never" to start over.',
        )
    return True


def git_commit() -> str | None:
    """Return the checkout's commit, with "+changes" if files differ from it, or None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "") if commit.returncode == 0 else None


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def finite(value: float | None) -> float | None:
    """Return the number, or None for NaN and infinity, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def _earlier_parameters(run: RunDirectory, replaced: bool) -> dict[str, Any] | None:
    """Return the parameters of the run in a folder, unread if it is to be replaced; None if there is no run yet."""
    if run.path.is_symlink() or (run.path.exists() and not run.path.is_dir()):
        raise RunError("run_name", "the name of a folder", str(run.path), "A link or a file is left alone.")
    try:
        left = [path.name for path in _contents(run)]
    except OSError as error:
        got = error.strerror or str(error)
        raise RunError(str(run.path), "a folder that can be read", got, "Check its permissions.") from error
    if not left:
        return None
    if MANIFEST not in left:
        raise RunError(
            "run_name",
            "a new folder or one of an earlier run",
            f"{run.path} with {', '.join(sorted(left)[:5])}",
            "It has no manifest.json, so it is left alone. Choose another run_name.",
        )
    return {} if replaced else _parameters(run)


def _rebuilt_manifest(path: Path) -> dict[str, Any]:
    """Return what a training run's configuration tells of its manifest; {} if it cannot be read either."""
    with contextlib.suppress(RunError):
        values = read_json(path)
        named = values.get("task")
        known = {"preset", "run_name", *parameters(named)} if named in [*DEFAULT_DATASET] else set()
        chosen = {name: value for name, value in values.items() if name in known}
        if known and known <= set(chosen):
            return {"parameters": chosen, "run_id": values.get("run_id"), "task": named, "rebuilt": now()}
    return {}


def _parameters(run: RunDirectory) -> dict[str, Any]:
    """Return the parameters in a run's manifest; {} if it has none."""
    parameters = run.manifest().get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RunError(str(run.path / MANIFEST), "an object of parameters", parameters, "Choose another run_name.")
    return parameters


def _contents(run: RunDirectory) -> list[Path]:
    """Return what a run left in its folder, but for hidden files and the notebook being executed into it."""
    found = sorted(run.path.iterdir()) if run.path.is_dir() else []
    return [path for path in found if path.name != "notebook.ipynb" and not path.name.startswith(".")]


def _clear(run: RunDirectory) -> None:
    """Remove what an earlier run left, the manifest last: without it, what is left would be a stranger's folder."""
    for path in sorted(_contents(run), key=lambda path: path.name == MANIFEST):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
