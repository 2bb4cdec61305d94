"""Builds the .ipynb files: of the notebooks that Colab opens, and of what a class works with.

All come from .py files in jupytext's percent format, which are reviewed. The result depends on the .py file alone:
cell ids, which jupytext draws at random, are taken from each cell's text, so that an edit changes the id of the cell
it edits and no other. In `workshop/sources/` a cell tagged "solution" stands in the solutions as it is; students get a
line to fill in instead. `clean/` has the notebooks without their prose.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from helpers.core.errors import RunError, StackError
from tools.generated import update

__all__ = [
    "STUB",
    "build_all",
    "build_workshop",
    "cell_ids",
    "clean_text",
    "notebook_text",
    "solution_text",
    "student_text",
]

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}

STUB = "answer = ...  # your code"
"""What students find in place of a solution."""

_CELL = re.compile(r"^(?=# %%)", re.MULTILINE)
_SOLUTION = re.compile(r'# %% tags=\[.*"solution".*\]')
_HEADING = re.compile(r"# (#+ .+)")


def notebook_text(source: Path) -> str:
    """Return the text of the .ipynb file that belongs to a .py:percent file, whose header holds the metadata.

    Raises:
        RunError: The file cannot be read as a notebook.
        StackError: jupytext is not installed.
    """
    return _notebook(source, _read(source))


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _no_notebook(source, error) from error


def _no_notebook(source: Path, error: Exception) -> RunError:
    expected = "a notebook in jupytext's percent format"
    return RunError(str(source), expected, type(error).__name__, "Begin from templates/notebook.py.")


def _notebook(source: Path, text: str) -> str:
    """Return the .ipynb file's text of a text in the percent format, which was read from a source."""
    try:
        import jupytext
        import nbformat
    except ImportError as error:
        raise StackError("jupytext", "jupytext to be installed", None, "Install the lock, requirements.txt.") from error
    try:
        notebook = jupytext.reads(text, fmt="py:percent")
    except ValueError as error:
        raise _no_notebook(source, error) from error
    metadata = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE, **notebook.metadata}
    metadata.pop("jupytext", None)  # holds jupytext's version
    notebook.metadata = nbformat.from_dict(metadata)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    names = cell_ids([(cell.cell_type, cell.source) for cell in notebook.cells])
    for cell, name in zip(notebook.cells, names, strict=True):
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
    wanted = {source.with_suffix(".ipynb"): notebook_text(source) for source in folder.glob("*.py")}
    return update(wanted, folder, check=check, present=folder.glob("*.ipynb"))


def student_text(source: str) -> str:
    r"""Put `STUB` into the cells tagged "solution" of a notebook in the percent format, and take the tag off.

    Example:
        >>> print(student_text('# %% tags=["solution"]\nanswer = 6 * 7\n'))
        # %%
        answer = ...  # your code
        <BLANKLINE>
    """
    return (
        "".join(f"# %%\n{STUB}\n\n" if _SOLUTION.match(cell) else cell for cell in _CELL.split(source)).rstrip() + "\n"
    )


def solution_text(source: str) -> str:
    """Say in the title, which begins with "Exercises", that these are solutions, and let the badge open them."""
    return source.replace("# # Exercises", "# # Solutions", 1).replace(
        "/workshop/exercises_", "/workshop/solutions_", 1
    )


def clean_text(source: str) -> str:
    r"""Drop a notebook's prose: a Markdown cell keeps its headings, and goes if it has none.

    Example:
        >>> print(clean_text("# %% [markdown]\n# # Title\n# Why.\n\n# %%\nx = 1\n"))
        # %% [markdown]
        # # Title
        <BLANKLINE>
        # %%
        x = 1
        <BLANKLINE>
    """
    header, *cells = _CELL.split(source)
    return (header + "".join(_clean_cells(cells))).rstrip() + "\n"


def build_workshop(root: Path, *, check: bool = False) -> list[str]:
    """Build every notebook that a class works with.

    Args:
        root: The checkout. Reads `workshop/sources/*.py`, and those `notebooks/*.py` that have a notebook; writes
            `workshop/*.ipynb` and `clean/*.ipynb`.
        check: Write nothing.

    Returns:
        Paths below `root` of the notebooks that were written; with `check`, of those that would be, and of those that
        have no source.

    Raises:
        RunError: A file cannot be read or written.
        StackError: jupytext is not installed.
    """
    wanted = {path: _notebook(source, text) for path, source, text in _targets(root)}
    present = [*(root / "workshop").glob("*.ipynb"), *(root / "clean").glob("*.ipynb")]
    return update(wanted, root, check=check, present=present)


def _targets(root: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield each notebook to write, its source, and its text in the percent format."""
    for source in sorted((root / "workshop" / "sources").glob("*.py")):
        text = _read(source)
        yield root / "workshop" / f"exercises_{source.stem}.ipynb", source, student_text(text)
        yield root / "workshop" / f"solutions_{source.stem}.ipynb", source, solution_text(text)
    for source in sorted((root / "notebooks").glob("*.py")):
        if source.with_suffix(".ipynb").is_file():
            yield root / "clean" / f"{source.stem}.ipynb", source, clean_text(_read(source))


def _clean_cells(cells: list[str]) -> Iterator[str]:
    """Yield code cells as they are, and of Markdown cells the headings."""
    for cell in cells:
        first, *lines = cell.splitlines()
        if "[markdown]" not in first:
            yield cell
        elif headings := [line for line in lines if _HEADING.fullmatch(line)]:
            yield "\n".join([first, *headings]) + "\n\n"
