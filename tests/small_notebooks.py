"""Small notebooks for the tests of the runner and of the structure checks."""

from __future__ import annotations

import json
from pathlib import Path

PARAMETERS = """\
count = 2  # type: int  how often [lines]
rate = 0.5  # type: float  how fast, in a unit of its own
loud = False  # type: bool  print in capitals
name = "Ann"  # type: str  whom to greet
limit = None  # type: int  end after this many [steps]"""

METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def cell(source: str, number: int, **metadata) -> dict:
    """Return a cell: Markdown if its source begins with "#" and a space, else code."""
    common = {"id": f"cell-{number}", "metadata": metadata, "source": source.splitlines(keepends=True)}
    if source.startswith(("# ", "## ")):
        return {"cell_type": "markdown", **common}
    return {"cell_type": "code", "execution_count": None, "outputs": [], **common}


def write_notebook(path: Path, *sources: str, parameters: str | None = PARAMETERS, **metadata) -> Path:
    """Write a notebook whose first cell, if there are parameters, is tagged."""
    cells = [cell(source, number) for number, source in enumerate(sources, 1)]
    if parameters is not None:
        cells.insert(0, {**cell("x", 0, tags=["parameters"]), "source": parameters.splitlines(keepends=True)})
    content = {"cells": cells, "metadata": {**METADATA, **metadata}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
