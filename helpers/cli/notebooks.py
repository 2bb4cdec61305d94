"""Runs notebooks by name, strictly: what papermill only warns about is an error here.

papermill injects a parameter that no cell declares and goes on (papermill/execute.py; its issue 667), takes any text
for any type, and `sys.exit(0)` in a cell for success.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import helpers.core.errors
from helpers.cli.parameters import TYPES, find_task, read_notebook, read_parameters
from helpers.core.errors import CellError, ConfigError, RunError
from helpers.core.lock import holding, refuse_held
from helpers.core.paths import folder_name
from helpers.core.runs import RunDirectory, check_run, runs_root
from helpers.core.secrets import redact, removed_in, secrets_in
from helpers.core.settings import coerce, nearest
from helpers.runtime import hardware

__all__ = ["METADATA", "find_notebook", "first_heading", "list_notebooks", "run_notebook"]

METADATA = "mistral_qlora"
"""The key of a notebook's metadata under which its task and its facts stand."""

_CHECKOUT = Path(__file__).resolve().parents[2]
_EXECUTED = "notebook.ipynb"
_EXECUTING = ".executing"
"""A folder in a run's, whose lock the process holds that executes the notebook."""

_RESOLVE = """
import json, sys
from helpers.core.errors import HelpersError
from helpers.training.session import resolve_preset
try:
    print(json.dumps({"preset": resolve_preset(sys.argv[1])}))
except HelpersError as error:
    said = [error.field, error.expected, error.got, error.remedy]
    print(json.dumps({"kind": type(error).__name__, "said": said}, default=str))
"""


def list_notebooks() -> list[Path]:
    """Return the checkout's notebooks, by name."""
    return sorted((_CHECKOUT / "notebooks").glob("*.ipynb"))


def first_heading(cells: Sequence[Any]) -> str | None:
    """Return the first heading of the first level in a notebook's Markdown cells, given as in its JSON."""
    texts = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = (re.search(r"^# (.+)$", text, re.MULTILINE) for text in texts)
    return next((match[1].strip() for match in found if match), None)


def find_notebook(name: str) -> Path:
    """Return a notebook's path.

    Args:
        name: One of `list_notebooks` without its ending, or the path of any .ipynb file.

    Raises:
        RunError: There is no such notebook.
    """
    known = {path.stem: path for path in list_notebooks()}
    path: Path | None
    if name.endswith(".ipynb"):
        path, remedy = Path(name), "There is no such file."
    else:
        path = known.get(name)
        remedy = nearest(name, list(known)) if known else "Run scripts/build_notebooks."
    if path is None or not os.path.isfile(path):
        raise RunError("notebook", "the name of a notebook, or the path of an .ipynb file", name, remedy)
    return path.resolve()


def check_parameters(path: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, dict[str, Any]] | None]:
    """Check a notebook's parameters by name, by type, and together with the GPU, as the notebook will.

    Args:
        given: Values by name. Text that spells a number, true or false is taken for a parameter of that type, and
            "none" for None where that is the default.

    Returns:
        The given parameters, in their types, and what `Task.plan` returns; None for a notebook without a task.

    Raises:
        ConfigError: A name is unknown, a value does not fit or holds a secret, or two contradict each other.
        StackError: The preset needs a GPU and there is none.
    """
    facts = read_notebook(path)["metadata"].get(METADATA)
    named = facts.get("task") if isinstance(facts, dict) else None
    known, task = read_parameters(path), None if named is None else find_task(named)
    limits = task.parameters() if task else {}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(name, f"the name of a parameter of {path.stem}", value, nearest(name, list(known)))
        if secrets_in(str(value)):
            remedy = "Executed notebooks keep their parameters. Set the environment variable HF_TOKEN instead."
            raise ConfigError(name, "no secret", redact(str(value)), remedy)
        if known[name].default is None and (value is None or str(value).lower() == "none"):
            values[name] = None
        else:
            values[name] = coerce(name, value, TYPES[known[name].type], limits[name].metadata if name in limits else {})
    if task is None:
        return values, None
    everything = {name: parameter.default for name, parameter in known.items()} | values
    preset: Any = everything.get("preset")
    run_name: Any = everything.get("run_name")
    settings = {name: value for name, value in everything.items() if name in limits}
    task.plan("colab-t4" if preset == "auto" else preset, run_name, settings)
    return values, task.plan(_resolve(preset), run_name, settings)


def run_notebook(
    name: str,
    given: Mapping[str, Any],
    *,
    run_name: str | None = None,
    resume: str | None = None,
    cell_timeout: int | None = None,
    report: Callable[[str], object] = print,
) -> Path:
    """Execute a notebook into its run directory.

    Args:
        given: Parameters, as for `check_parameters`.
        run_name: Folder under `runs/`, and the parameter of that name if the notebook has one. By default the task
            and the preset, or the notebook's name.
        resume: "auto", "never" or "must", for notebooks with that parameter; see `helpers.core.runs.open_run`.
        cell_timeout: Seconds that a cell may take; None for as many as it likes.
        report: Called with each line worth showing: what cells print, numbered headings, a failing cell.

    Returns:
        The executed copy, `runs/<run_name>/notebook.ipynb`.

    Raises:
        HelpersError: Something is wrong with the parameters, the machine or the run directory, or another process is
            writing the run; no kernel was started.
        CellError: A cell failed or did not end, the kernel died, or a cell printed a secret. The executed copy is kept.
    """
    path = find_notebook(name)
    values, plan = check_parameters(path, _with_run(path, given, run_name, resume))
    if plan is None:
        folder = _open_folder(run_name or values.get("run_name") or path.stem)
    else:
        defaults = {name: parameter.default for name, parameter in read_parameters(path).items()}
        check_run(*plan, resume={"resume": "auto", **defaults, **values}["resume"])
        folder = RunDirectory(runs_root() / plan[0])
    refuse_held(folder.path)
    with holding(folder.path / _EXECUTING):  # the run's own lock is for the kernel to take
        _execute(path, values, folder, cell_timeout, report)
    return folder.path / _EXECUTED


def _with_run(path: Path, given: Mapping[str, Any], run_name: str | None, resume: str | None) -> dict[str, Any]:
    """Add the run's name and `resume` to the parameters."""
    added: dict[str, Any] = {} if resume is None else {"resume": resume}
    if run_name is not None and "run_name" in read_parameters(path):
        added["run_name"] = run_name
    for key, value in added.items():
        if given.get(key, value) != value:
            raise ConfigError(key, "one value", f"{value} and {given[key]}", "Leave one of the two out.")
    return {**given, **added}


def _resolve(preset: str) -> str:
    """Resolve a preset in a process of its own: one that asks CUDA for its memory keeps some of it until it ends."""
    if preset in hardware.CPU_PRESETS:
        return preset
    command = [sys.executable, "-c", _RESOLVE, preset]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_CHECKOUT, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError("preset", "a torch that can look for a GPU", said, "Run python -m helpers doctor.")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "said" in answer:
        raise getattr(helpers.core.errors, answer["kind"])(*answer["said"])
    return answer["preset"]


def _open_folder(run_name: str) -> RunDirectory:
    """Return the folder of a notebook without a task, unless it holds something that no notebook left there."""
    folder = RunDirectory(runs_root() / folder_name(run_name))
    if folder.path.is_symlink() or (folder.path.exists() and not folder.path.is_dir()):
        raise RunError("run_name", "the name of a folder", folder.shown(), "A link or a file is left alone.")
    left = (
        [path.name for path in folder.path.iterdir() if not path.name.startswith(".")] if folder.path.is_dir() else []
    )
    if left and _EXECUTED not in left:
        raise RunError("run_name", "a new folder or one of an earlier run", folder.shown(), "Choose another run_name.")
    return folder


def _execute(
    path: Path,
    values: Mapping[str, Any],
    folder: RunDirectory,
    cell_timeout: int | None,
    report: Callable[[str], object],
) -> None:
    """Run the checked notebook, and show what went wrong."""
    from helpers.cli.execution import execute

    copy = folder.path / _EXECUTED
    report(f"{path.stem} -> {folder.shown(_EXECUTED)}")
    try:
        execute(path, values, copy, report, cell_timeout=cell_timeout)
    except CellError as error:
        report(redact(error.details) + f"\nThe executed copy is kept: {folder.shown(_EXECUTED)}")
        raise
    if removed := removed_in(copy.read_text(encoding="utf-8")):
        remedy = "It was taken out of what is kept and shown. Find the cell that prints it."
        raise CellError(path.name, "no cell that prints a secret", ", ".join(removed), remedy)
