"""Runs one notebook through papermill in a kernel of this interpreter.

papermill lets other engines replace its own (papermill.readthedocs.io, "Extending papermill"); this one differs in
that

- the kernel runs under `sys.executable`, whatever kernels are installed under the name python3,
- lines that cells print, and numbered headings, are reported as they come; progress bars are not,
- the executed copy is written whole or not at all, after each cell, without widget state, local paths and secrets.

Importing this module imports papermill, which takes a second or more; `helpers.cli.notebooks` does so when it must.
"""

from __future__ import annotations

import copy
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from traitlets import default

from helpers.core import errors
from helpers.core.errors import CellError
from helpers.core.files import disk_error, write_text
from helpers.core.secrets import redact
from helpers.core.text import visible

_KERNEL = (
    "import logging, runpy; logging.getLogger('tornado').setLevel('CRITICAL'); "
    "runpy.run_module('ipykernel_launcher', run_name='__main__')"
)
"""What starts a kernel. One that is shut down while it answers logs a traceback through tornado, which is no error."""


_ENGINE = "mistral-qlora"
_KEPT_METADATA = ("start_time", "end_time", "duration", "exception", "parameters")
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_WIDGET = "(to be used in a running notebook)"
_HEADING = re.compile(r"^(#{1,6})\s+(\d+(?:\.\d+)*\.?\s.*\S)\s*$", re.MULTILINE)

_Report = Callable[[str], object]


class _OwnKernelManager(AsyncKernelManager):
    """A kernel of the running interpreter, with this package importable in it.

    jupyter_client looks kernels up by name, in the user's folder before the environment's own, and starts whatever
    interpreter is written there.
    """

    exit_code: int | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        """What to start."""
        checkout = str(Path(__file__).resolve().parents[2])
        paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
        return KernelSpec(
            argv=[sys.executable, "-c", _KERNEL, "--log-level=CRITICAL", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
            metadata=get_kernel_dict().get("metadata", {}),  # says whether this ipykernel can encrypt
            env={"PYTHONPATH": os.pathsep.join(paths)},
        )

    @default("transport_encryption")
    def _encrypt_if_possible(self) -> str:
        """Encrypt what runs between this process and the kernel; ipykernel 7.4 warns of every kernel that does not."""
        return "auto" if zmq.has("curve") else "disabled"

    async def _async_is_alive(self) -> bool:
        """Note the exit code, which is gone once the manager has cleaned up."""
        if self.has_kernel and self.provisioner is not None:
            self.exit_code = await self.provisioner.poll()
        return await super()._async_is_alive()

    is_alive = _async_is_alive


class _Lines:
    """A stream that reports whole lines; of a line overwritten with carriage returns, what stood there last."""

    def __init__(self, report: _Report) -> None:
        self.report = report
        self.rest = ""

    def write(self, text: str) -> None:
        *lines, rest = (self.rest + text).split("\n")
        for line in lines:
            self.report(visible(redact(line.rstrip("\r").rpartition("\r")[2])))
        self.rest = rest if rest.endswith("\r") else rest.rpartition("\r")[2]

    def flush(self) -> None:
        """Wait for the line's end; papermill flushes after every message."""

    def end(self) -> None:
        """Report a last line that has no end."""
        if self.rest:
            self.write("\n")


class _Manager(NotebookExecutionManager):
    """Writes the executed copy, and reports headings."""

    def __init__(self, nb: nbformat.NotebookNode, executed_copy: Path, report: _Report) -> None:
        super().__init__(nb, progress_bar=False)
        self.executed_copy = executed_copy
        self.report = report
        self.lines = _Lines(report)
        self.current = 0
        self.raised: dict[int, CellExecutionError] = {}

    def save(self, **kwargs: Any) -> None:
        if "nb" in kwargs:
            self.nb = kwargs["nb"]
        write_text(self.executed_copy, executed_text(self.nb))
        self.last_save_time = self.now()

    def cell_start(self, cell: nbformat.NotebookNode, cell_index: int | None = None, **kwargs: Any) -> None:
        self.current = cell_index or 0
        super().cell_start(cell, cell_index, **kwargs)
        if cell.cell_type == "markdown":
            for marks, title in _HEADING.findall(cell.source):
                self.report(f"\n{marks} {title}")

    def cell_exception(
        self,
        cell: nbformat.NotebookNode,
        cell_index: int | None = None,
        exception: CellExecutionError | None = None,
        **kwargs: Any,
    ) -> None:
        if exception is not None:
            self.raised[cell_index or 0] = exception
        super().cell_exception(cell, cell_index, **kwargs)

    def cell_complete(self, cell: nbformat.NotebookNode, cell_index: int | None = None, **kwargs: Any) -> None:
        self.lines.end()
        super().cell_complete(cell, cell_index, **kwargs)


class _Client(PapermillNotebookClient):
    """Remembers its kernel manager, which nbclient forgets when the kernel is gone."""

    started: _OwnKernelManager | None = None

    def create_kernel_manager(self) -> _OwnKernelManager:
        self.started = super().create_kernel_manager()
        return self.started


class _StrictEngine(Engine):
    """papermill's nbclient engine with the manager and the kernel above."""

    @classmethod
    def execute_notebook(
        cls,
        nb: nbformat.NotebookNode,
        kernel_name: str,
        *,
        executed_copy: Path,
        cell_timeout: int | None,
        report: _Report,
        **_: Any,
    ) -> nbformat.NotebookNode:
        manager = _Manager(nb, executed_copy, report)
        options = {"kernel_name": kernel_name, "kernel_manager_class": _OwnKernelManager, "startup_timeout": 120}
        client = _Client(manager, timeout=cell_timeout, stdout_file=manager.lines, **options)
        client.log.setLevel("CRITICAL")  # it prints "Kernel died" and "Timeout waiting", which is said below
        manager.notebook_start()
        try:
            client.execute()
        except DeadKernelError as error:
            manager.cell_exception(manager.nb.cells[manager.current], manager.current)
            raise _kernel_died(manager.nb.cells, manager.current, getattr(client.started, "exit_code", None)) from error
        except CellTimeoutError:
            manager.cell_exception(manager.nb.cells[manager.current], manager.current)
            limit = f"within {cell_timeout:,} s"
            said, remedy = f"It did not end {limit}.", "Raise --cell-timeout (0 for no limit) if it does need longer."
            place = manager.nb.cells, manager.current
            raise _failed(*place, f"a cell that ends {limit}", "none", said, remedy) from None
        except RuntimeError as error:  # what jupyter_client raises when a kernel does not come up
            raise CellError("kernel", "a kernel that starts", str(error), "Run python -m helpers doctor.") from error
        finally:
            manager.notebook_complete()
        _check_all_ran(manager.nb.cells, manager.raised)
        return manager.nb


def _check_all_ran(cells: list[nbformat.NotebookNode], raised: Mapping[int, CellExecutionError]) -> None:
    """Raise unless every code cell ran and none failed.

    papermill takes `sys.exit(0)` for success, and a cell whose error IPython could not show, as when memory ran out
    while it formatted one, leaves no output of the kind "error".
    """
    for index, cell in enumerate(cells):
        failed = any(output["output_type"] == "error" for output in cell.get("outputs", []))
        if failed or index in raised:
            raise _stopped(cells, index, raised.get(index))
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            said = "It was not run, and no cell above shows an error: the kernel stopped answering."
            raise _failed(cells, index, "a cell that is run", "no run", said)


def execute(
    notebook: Path,
    parameters: Mapping[str, Any],
    executed_copy: Path,
    report: _Report,
    *,
    cell_timeout: int | None = None,
) -> None:
    """Execute a notebook from its first cell to its last.

    The kernel's working directory is this process's, as with plain papermill: relative paths mean the same here and
    in the notebook.

    Args:
        notebook: The .ipynb file; it is not changed.
        executed_copy: Where the executed notebook is written, after each cell.
        cell_timeout: Seconds that a cell may take; None for as many as it likes.

    Raises:
        CellError: A cell failed or did not end, the kernel died, or the notebook ended before its last cell.
        RunError: The executed copy cannot be written.
    """
    papermill_engines.register(_ENGINE, _StrictEngine)
    papermill.execute_notebook(
        str(notebook).replace("{", "{{").replace("}", "}}"),  # papermill formats paths with the parameters
        None,  # papermill's own copy, which holds local paths and is not written whole
        dict(parameters),
        engine_name=_ENGINE,
        kernel_name="python3",
        language="python",
        executed_copy=executed_copy,
        cell_timeout=cell_timeout,
        report=report,
    )


def executed_text(notebook: nbformat.NotebookNode) -> str:
    """Return an executed notebook as the text of an .ipynb file fit to be shown to others.

    Widget state is left out (it bloats the file, and GitHub shows "Invalid Notebook": colabtools issue 5255), as are
    papermill's local paths. Progress bars go, and what a cell printed piece by piece becomes one text:
    nbconvert would put each word of a streamed answer on a line of its own.
    """
    clean = copy.deepcopy(notebook)
    clean.metadata.pop("widgets", None)
    papermill_facts = clean.metadata.get("papermill", {})
    clean.metadata["papermill"] = {key: papermill_facts[key] for key in _KEPT_METADATA if key in papermill_facts}
    for cell in clean.cells:
        facts = cell.metadata.pop("papermill", {})
        cell.metadata.pop("execution", None)
        if facts.get("duration") is not None and cell.cell_type == "code":
            cell.metadata["papermill"] = {"duration": facts["duration"]}
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if "outputs" in cell:
            cell.outputs = _readable(cell.outputs)
    return nbformat.writes(clean) + "\n"


def _readable(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return a cell's outputs without progress bars, widgets replaced by a word, and printed pieces joined."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.get("data", {}).pop(_WIDGET_VIEW, None) is not None:
            if output.output_type == "display_data":  # a bar, which stands at nothing without its widget
                continue
            output.data["text/plain"] = _WIDGET
        if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
_LONGEST_FRAME = 15
_LONGEST_SOURCE = 40


def _stopped(cells: Sequence[Mapping[str, Any]], index: int, raised: Any = None) -> CellError:
    """Describe a cell that raised.

    Args:
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
    elif name in errors.__all__ and re.match(r".+: expected .+, got ", message, re.DOTALL):
        said = textwrap.fill(f"{name}: {message}", 110, break_long_words=False, break_on_hyphens=False)
    else:
        said = _shorten(error["traceback"]) or f"{name}: {message}"
        if refused := disk_error("what this cell writes", Path.cwd(), message):
            said += "\n\n" + textwrap.fill(str(refused), 110, break_long_words=False, break_on_hyphens=False)
    return _failed(cells, index, "a cell that runs", name, said)


def _kernel_died(cells: Sequence[Mapping[str, Any]], index: int, exit_code: int | None) -> CellError:
    """Describe a cell during which the kernel's process ended.

    Args:
        exit_code: As `subprocess` gives it: negative for a signal. None if unknown.
    """
    got, remedy = f"exit status {exit_code}", ""
    if exit_code is None:
        got = "no exit status"
    elif exit_code < 0:
        got = _signal_name(-exit_code)
        if got == "SIGKILL":
            remedy = "Most often memory ran out: try a smaller batch_size, max_seq_length or model."
    return _failed(cells, index, "a kernel that lives", got, f"The kernel died: {got}.", remedy)


def _failed(
    cells: Sequence[Mapping[str, Any]], index: int, expected: str, got: str, said: str, remedy: str = ""
) -> CellError:
    """Return the error of a cell; its details name the place, as 'cell 12 of 40, In [7], under "3. Train"'.

    Args:
        said: What is shown below the cell's source, with the remedy.
    """
    texts = (cell["source"] for cell in cells[:index] if cell["cell_type"] == "markdown")
    headings = [title for text in texts for title in re.findall(r"^#{1,6}\s+(.*\S)", text, re.MULTILINE)]
    count = cells[index].get("execution_count")
    parts = [f"cell {index + 1} of {len(cells)}"]
    parts += [f"In [{count}]"] if count else []
    parts += [f'under "{headings[-1]}"'] if headings else []
    place = ", ".join(parts)
    lines = cells[index]["source"].rstrip().splitlines()
    cut = [f"... {len(lines) - _LONGEST_SOURCE} more lines"] if len(lines) > _LONGEST_SOURCE else []
    source = textwrap.indent("\n".join([*lines[:_LONGEST_SOURCE], *cut]), "    ")
    said = f"{said} {remedy}" if remedy else said
    details = f"\n{place[0].upper()}{place[1:]}, failed:\n\n{source}\n\n{said}\n"
    return CellError(place, expected, got, remedy, details)


def _signal_name(number: int) -> str:
    """Return a signal's name, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shorten(traceback: Sequence[str]) -> str:
    """Return the first and the last frame of IPython's traceback, and the message."""
    entries = [_ANSI.sub("", entry).strip("\n") for entry in traceback]
    starts = [i for i, entry in enumerate(entries) if any(words in entry for words in _CHAINED)]
    entries = entries[starts[-1] + 1 :] if starts else entries
    frames = [entry for entry in entries if entry.startswith(("Cell In", "File "))]
    if len(frames) > 2:
        frames = [frames[0], f"... {len(frames) - 2} more frames", frames[-1]]
    message = [entries[-1]] if entries and entries[-1] not in frames else []
    return "\n".join(_head(entry) for entry in [*frames, *message])


def _head(entry: str) -> str:
    """Return the first lines of a frame or a message."""
    lines = entry.splitlines()
    return "\n".join([*lines[:_LONGEST_FRAME], "..."] if len(lines) > _LONGEST_FRAME else lines)
