"""What is said of a notebook that did not run to its end."""

from __future__ import annotations

import re
import signal
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import helpers.core.errors
from helpers.core.errors import RunError

__all__ = ["CellError", "endless", "kernel_died", "kernel_missing", "not_run", "stopped", "where"]

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
LONGEST_FRAME = 15
LONGEST_SOURCE = 40


class CellError(RunError):
    """A notebook was started and did not run to its end.

    Args:
        place: Which cell, in words.
        expected: What it should have done.
        got: What it did.
        remedy: What to do next.
        details: Several lines to show above the message: the cell's source and its error.
    """

    def __init__(self, place: str, expected: str, got: object, remedy: str = "", details: str = "") -> None:
        super().__init__(place, expected, got, remedy)
        self.details = details


def stopped(cells: Sequence[Mapping[str, Any]], index: int, raised: Any = None) -> CellError:
    """Describe a cell that raised.

    Args:
        cells: All cells of the executed notebook.
        index: Which one raised, from 0.
        raised: nbclient's CellExecutionError, all that is known if the cell shows no error.
    """
    outputs = [output for output in cells[index].get("outputs", []) if output["output_type"] == "error"]
    error = outputs[-1] if outputs else {"ename": "", "evalue": "", "traceback": []}
    name, message = str(error["ename"]), str(error["evalue"])
    if not outputs:
        name = getattr(raised, "ename", "") or "an error that IPython could not show"
        message = getattr(raised, "evalue", "") or "most often, memory ran out"
    if name == "SystemExit":
        said = f"SystemExit({message}): the cells below were not run"
    elif name in helpers.core.errors.__all__ and re.match(r".+: expected .+, got ", message, re.DOTALL):
        said = textwrap.fill(f"{name}: {message}", 110, break_long_words=False, break_on_hyphens=False)
    else:
        said = _shorten(error["traceback"]) or f"{name}: {message}"
    return CellError(where(cells, index), "a cell that runs", name, details=_details(cells, index, said))


def not_run(cells: Sequence[Mapping[str, Any]], index: int) -> CellError:
    """Describe a cell that was not run, though no cell before it says why."""
    said = "It was not run, and no cell above shows an error: the kernel stopped answering."
    return CellError(where(cells, index), "a cell that is run", "no run", details=_details(cells, index, said))


def endless(cells: Sequence[Mapping[str, Any]], index: int, seconds: int) -> CellError:
    """Describe a cell that took longer than `cell_timeout`."""
    remedy = "Raise --cell-timeout (0 for no limit) if it does need longer."
    said = f"It did not end within {seconds:,} s. {remedy}"
    place = where(cells, index)
    return CellError(place, f"a cell that ends within {seconds:,} s", "none", remedy, _details(cells, index, said))


def kernel_died(cells: Sequence[Mapping[str, Any]], index: int, exit_code: int | None) -> CellError:
    """Describe a cell during which the kernel's process ended.

    Args:
        cells: All cells of the executed notebook.
        index: Which one was running, from 0.
        exit_code: As `subprocess` gives it: negative for a signal. None if unknown.

    Returns:
        The error to raise.
    """
    got, remedy = f"exit status {exit_code}", ""
    if exit_code is None:
        got = "no exit status"
    elif exit_code < 0:
        got = _signal_name(-exit_code)
        if got == "SIGKILL":
            remedy = "Most often memory ran out: try a smaller batch_size, max_seq_length or model."
    said = f"The kernel died: {got}. {remedy}".rstrip()
    return CellError(where(cells, index), "a kernel that lives", got, remedy, _details(cells, index, said))


def kernel_missing(message: str) -> CellError:
    """Describe a kernel that did not start.

    Args:
        message: What jupyter_client says.
    """
    return CellError("kernel", "a kernel that starts", message, "Run python -m helpers doctor.")


def where(cells: Sequence[Mapping[str, Any]], index: int) -> str:
    """Say which cell, as 'cell 12 of 40, In [7], under "3. Train"'.

    Args:
        cells: All cells of the notebook.
        index: Which one, from 0.
    """
    texts = (cell["source"] for cell in cells[:index] if cell["cell_type"] == "markdown")
    headings = [title for text in texts for title in re.findall(r"^#{1,6}\s+(.*\S)", text, re.MULTILINE)]
    count = cells[index].get("execution_count")
    parts = [f"cell {index + 1} of {len(cells)}"]
    parts += [f"In [{count}]"] if count else []
    parts += [f'under "{headings[-1]}"'] if headings else []
    return ", ".join(parts)


def _details(cells: Sequence[Mapping[str, Any]], index: int, said: str) -> str:
    """Return the lines shown for a failing cell."""
    lines = cells[index]["source"].rstrip().splitlines()
    cut = [f"... {len(lines) - LONGEST_SOURCE} more lines"] if len(lines) > LONGEST_SOURCE else []
    source = textwrap.indent("\n".join([*lines[:LONGEST_SOURCE], *cut]), "    ")
    place = where(cells, index)
    return f"\n{place[0].upper()}{place[1:]}, failed:\n\n{source}\n\n{said}\n"


def _signal_name(number: int) -> str:
    """Return a signal's name, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shorten(traceback: Sequence[str]) -> str:
    """Return the first and the last frame of IPython's traceback, and the message."""
    entries = [ANSI.sub("", entry).strip("\n") for entry in traceback]
    starts = [i for i, entry in enumerate(entries) if any(words in entry for words in CHAINED)]
    entries = entries[starts[-1] + 1 :] if starts else entries
    frames = [entry for entry in entries if entry.startswith(("Cell In", "File "))]
    if len(frames) > 2:
        frames = [frames[0], f"... {len(frames) - 2} more frames", frames[-1]]
    message = [entries[-1]] if entries and entries[-1] not in frames else []
    return "\n".join(_head(entry) for entry in [*frames, *message])


def _head(entry: str) -> str:
    """Return the first lines of a frame or a message."""
    lines = entry.splitlines()
    return "\n".join([*lines[:LONGEST_FRAME], "..."] if len(lines) > LONGEST_FRAME else lines)
