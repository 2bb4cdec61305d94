"""Builds what a class works with: student copies, solutions, and copies of the notebooks without their prose.

A source in `workshop/sources/` is in jupytext's percent format. A cell tagged "solution" stands in the solutions as it
is; students get a line to fill in instead. The results depend on the sources alone, like those of `tools.pairs`,
which writes them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import write_text
from tools.pairs import notebook_text

__all__ = ["STUB", "build_workshop", "clean_text", "solution_text", "student_text"]

STUB = "answer = ...  # your code"
"""What students find in place of a solution."""

_CELL = re.compile(r"^(?=# %%)", re.MULTILINE)
_SOLUTION = re.compile(r'# %% tags=\[.*"solution".*\]')
_HEADING = re.compile(r"# (#+ .+)")


def student_text(source: str) -> str:
    r"""Replace each solution by a stub.

    Args:
        source: A notebook in the percent format.

    Returns:
        The same, with `STUB` in the cells tagged "solution", and without that tag.

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
    """Say in the title that these are solutions, and let the badge open them.

    Args:
        source: A notebook in the percent format, with a title that begins with "Exercises".

    Returns:
        The same with "Solutions" in the title and "solutions" in the badge.
    """
    return source.replace("# # Exercises", "# # Solutions", 1).replace(
        "/workshop/exercises_", "/workshop/solutions_", 1
    )


def clean_text(source: str) -> str:
    r"""Leave a notebook's headings and code, and drop its prose.

    Args:
        source: A notebook in the percent format.

    Returns:
        The same; a Markdown cell keeps its headings, and goes if it has none.

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
    there = [*(root / "workshop").glob("*.ipynb"), *(root / "clean").glob("*.ipynb")]
    changed = [path for path in there if path not in wanted] if check else []
    for path, content in wanted.items():
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        changed.append(path)
        if not check:
            write_text(path, content)
    return sorted(path.relative_to(root).as_posix() for path in changed)


def _targets(root: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield each notebook to write, its source, and its text in the percent format."""
    for source in sorted((root / "workshop" / "sources").glob("*.py")):
        text = _read(source)
        yield root / "workshop" / f"exercises_{source.stem}.ipynb", source, student_text(text)
        yield root / "workshop" / f"solutions_{source.stem}.ipynb", source, solution_text(text)
    for source in sorted((root / "notebooks").glob("*.py")):
        if source.with_suffix(".ipynb").is_file():
            yield root / "clean" / f"{source.stem}.ipynb", source, clean_text(_read(source))


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(
            str(source),
            "a notebook in jupytext's percent format",
            type(error).__name__,
            "Compare it with the other lessons in workshop/sources.",
        ) from error


def _notebook(source: Path, text: str) -> str:
    """Return the .ipynb file's text, as `tools.pairs` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.name
        write_text(copy, text)
        return notebook_text(copy)


def _clean_cells(cells: list[str]) -> Iterator[str]:
    """Yield code cells as they are, and of Markdown cells the headings."""
    for cell in cells:
        first, *lines = cell.splitlines()
        if "[markdown]" not in first:
            yield cell
        elif headings := [line for line in lines if _HEADING.fullmatch(line)]:
            yield "\n".join([first, *headings]) + "\n\n"
