"""Builds the .ipynb files that Colab opens from the .py:percent files that are reviewed.

The result depends on the .py file alone: cell ids, which jupytext draws at random, are taken from each cell's text,
so that an edit changes the id of the cell it edits and no other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from helpers.core.errors import RunError, StackError
from helpers.core.files import write_text

__all__ = ["build_all", "cell_ids", "notebook_text"]

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}


def notebook_text(source: Path) -> str:
    """Return the text of the .ipynb file that belongs to a .py:percent file.

    Args:
        source: The .py file, whose header holds the notebook's metadata.

    Raises:
        RunError: The file cannot be read as a notebook.
        StackError: jupytext is not installed.
    """
    try:
        import jupytext
        import nbformat
    except ImportError as error:
        raise StackError("jupytext", "jupytext to be installed", None, "Install the lock, requirements.txt.") from error
    try:
        notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    except (OSError, ValueError) as error:
        raise RunError(
            str(source),
            "a notebook in jupytext's percent format",
            type(error).__name__,
            "Begin from templates/notebook.py.",
        ) from error
    metadata = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE, **notebook.metadata}
    metadata.pop("jupytext", None)  # holds jupytext's version
    notebook.metadata = nbformat.from_dict(metadata)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell, name in zip(
        notebook.cells, cell_ids([(cell.cell_type, cell.source) for cell in notebook.cells]), strict=True
    ):
        cell.id = name
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def cell_ids(cells: Sequence[tuple[str, str]]) -> list[str]:
    """Return an id for each cell, from its text alone; equal cells are numbered.

    Args:
        cells: (type, source) of each.
    """
    seen: Counter[str] = Counter()
    ids = []
    for kind, source in cells:
        digest = hashlib.sha256(f"{kind}\n{source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def build_all(folder: Path, *, check: bool = False) -> list[str]:
    """Build every notebook of a folder.

    Args:
        folder: Holds the .py files and gets the .ipynb files.
        check: Write nothing.

    Returns:
        Names of the .ipynb files that were written; with `check`, of those that would be, and of those that have no
        .py file.

    Raises:
        RunError: A file cannot be read or written.
        StackError: jupytext is not installed.
    """
    sources = sorted(folder.glob("*.py"))
    alone = [path.name for path in sorted(folder.glob("*.ipynb")) if not path.with_suffix(".py").exists()]
    changed = alone if check else []
    for source in sources:
        target, text = source.with_suffix(".ipynb"), notebook_text(source)
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            continue
        changed.append(target.name)
        if not check:
            write_text(target, text)
    return changed
