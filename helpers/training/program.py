"""A notebook's source as a program, in one process or in several: what `python -m helpers train` runs.

`notebooks/NAME.py` is a percent script (jupytext's "# %%" marks its cells). Its cells run one after the other in one
namespace; after the cell tagged "parameters" the given values are put in, as papermill does. Other tags say where a
cell runs: "main" in the main process only (it shows or writes something), "notebook" in notebooks only; "core" marks
the training itself, which `helpers.training.script` writes as a script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from helpers.core.distributed import ElsewhereError, on_main
from helpers.core.errors import ConfigError, RunError
from helpers.core.settings import nearest

__all__ = ["TRAINING", "find_program", "read_cells", "run_cells", "run_program"]

TRAINING = {"alpaca": "alpaca_instruction", "dolly": "dolly_business"}
"""The notebook of each training task."""

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cell:
    """A code cell.

    Args:
        line: Of the file, from 1, at which its text begins.
        section: The last "## " title above it, without its number, in lower case.
    """

    line: int
    tags: tuple[str, ...]
    text: str
    section: str = ""


def find_program(name: str) -> Path:
    """Return a notebook's source: in a checkout from `notebooks/`, else from the installed package.

    Raises:
        RunError: There is none of that name.
    """
    folders = (PACKAGE.parent / "notebooks", PACKAGE / "notebooks")
    for path in (folder / f"{name}.py" for folder in folders):
        if path.is_file():
            return path
    known = sorted(path.stem for folder in folders for path in folder.glob("[a-z]*.py"))
    raise RunError("notebook", "the name of a notebook", name, nearest(name, known))


def read_cells(path: Path) -> list[Cell]:
    """Return the code cells of a percent script, in order."""
    lines = path.read_text(encoding="utf-8").split("\n")
    starts = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    cells, section = [], ""
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        text = "\n".join(lines[start + 1 : end]).strip("\n")
        if "[markdown]" not in lines[start]:
            tags = re.search(r"tags=(\[.*?\])", lines[start])
            cells.append(Cell(start + 2, tuple(json.loads(tags[1])) if tags else (), text, section))
        elif titles := re.findall(r"(?m)^# ## (?:\d+\. )?(.+)$", text):
            section = titles[-1].lower()
    return cells


def run_program(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Run all of a notebook's cells as `run_cells` does, and return their variables."""
    found: dict[str, Any] = {}
    for _, found in run_cells(path, parameters):  # noqa: B007 - the last cell's are returned
        pass
    return found


def run_cells(path: Path, parameters: Mapping[str, Any]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run a notebook's cells in this process, but for those of notebooks only, one at a time.

    An error is written into the manifest of the run that the cells opened, as `run`.

    Args:
        parameters: Take the place of the values in the cell tagged "parameters".

    Yields:
        Each cell before it is run, with the variables of those before it.

    Raises:
        ConfigError: The notebook has no parameter of such a name.
    """
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    for cell in read_cells(path):
        if "notebook" in cell.tags:
            continue
        yield cell, namespace
        # Padded, so that a traceback names the line of the notebook's own source.
        code = compile("\n" * (cell.line - 1) + cell.text, str(path), "exec")
        try:
            if "main" in cell.tags:
                on_main(partial(exec, code, namespace))
            else:
                exec(code, namespace)  # noqa: S102 - the project's own notebook
            if "parameters" in cell.tags:
                _check_names(path, parameters, namespace)
                namespace |= parameters
        except BaseException as error:
            if "run" in namespace and not isinstance(error, ElsewhereError):  # where it came from, it is written down
                namespace["run"].mark_failed(error)
            raise


def _check_names(path: Path, parameters: Mapping[str, Any], namespace: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if name not in namespace:
            known = [each for each in namespace if not each.startswith("_")]
            raise ConfigError(name, f"the name of a parameter of {path.stem}", value, nearest(name, known))
