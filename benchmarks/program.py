"""The notebook as a program: its code cells, one after the other, in a plain Python process.

What is measured as "ours" is what `notebooks/alpaca_instruction.py` does, cell by cell; the order of its steps stands
nowhere else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import ROOT

NOTEBOOK = "alpaca_instruction"


def run_program(
    values: Mapping[str, Any],
    *,
    until: Callable[[dict[str, Any]], bool] = lambda found: False,
    between: Callable[[str], None] = lambda section: None,
) -> dict[str, Any]:
    """Run the notebook's cells, and return their variables.

    Args:
        values: Of parameters.
        until: Looks at the variables after each cell; true ends the program.
        between: Is called before each cell with the title of its section, in lower case.
    """
    found: dict[str, Any] = {"__name__": "__main__"}
    notebook = ROOT / "notebooks" / f"{NOTEBOOK}.ipynb"
    section = "setup"
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            titles = [line.lstrip("# 0123456789.") for line in source.splitlines() if line.startswith("## ")]
            section = titles[-1].lower() if titles else section
            continue
        between(section)
        exec(compile(source, f"{NOTEBOOK}: {section}", "exec"), found)  # noqa: S102 - the project's own notebook
        if "parameters" in cell["metadata"].get("tags", []):
            if unknown := values.keys() - found.keys():
                raise KeyError(f"the notebook has no parameter {', '.join(sorted(unknown))}")
            found |= values
        if until(found):
            break
    return found


def ready_trainer(values: Mapping[str, Any]) -> Any:
    """Return the notebook's trainer, ready to train."""
    return run_program(values, until=lambda found: "trainer" in found)["trainer"]


def drawn_rows(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows that the notebook draws to train on, in its order, so that a peer can have the same."""
    return run_program(values, until=lambda found: "rows" in found)["rows"].train


def first_rows(data: str, count: int) -> str:
    """Write the first rows of a file into one of their own, and return its path."""
    rows = json.loads(Path(data).read_text(encoding="utf-8"))
    if len(rows) < count:
        raise ValueError(f"{data} has {len(rows)} rows, and {count} are needed")
    path = Path(tempfile.mkdtemp()) / "rows.json"
    path.write_text(json.dumps(rows[:count]), encoding="utf-8")
    return str(path)
