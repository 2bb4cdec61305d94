"""The cheap cells of the training notebooks print the same again in a fresh kernel.

nbval runs a notebook and compares what its cells print with what is stored in it. The project's notebooks store
nothing, so there is nothing to compare them with; and nbval 0.11.0 gives up on a cell whose output comes more than 5
seconds late, which no option changes (`IPyNbCell.output_timeout`; its issues 136 and 151), so cells that load or train
a model are not for it. The runner executes those. What is left for nbval is repetition: the cells before the model,
which choose and show the configuration, the rows and the messages, are executed once by the runner, and nbval must
find every output again. A row that is drawn by chance, or a set printed in another order, would fail here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from small_notebooks import write_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("alpaca_instruction", "dolly_business")
COSTLY = ("helpers.model", "helpers.training", "helpers.export")
ELSEWHERE = ("helpers.environment", "import importlib.util")
"""Cells that install or look at the machine are not about the course."""


def cheap_part(name, target):
    """Write the cells of a notebook that come before the model, with preset smoke."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    kept = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and any(each in cell.source for each in COSTLY):
            break
        if cell.cell_type == "code" and not any(each in cell.source for each in ELSEWHERE):
            kept.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            kept.append(nbformat.v4.new_code_cell(f'preset = "smoke"\nrun_name = "{name}"'))
    notebook.cells = kept
    nbformat.write(notebook, target)
    return len(kept)


def nbval(path):
    """Have nbval compare a notebook's outputs; return the finished process."""
    (path.parent / "pytest.ini").write_text("[pytest]\n")
    options = ("--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", "--rootdir", str(path.parent))
    command = [sys.executable, "-m", "pytest", *options, str(path)]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_cheap_cells_print_the_same_again(tmp_path, runs_folder, monkeypatch, name):
    """Configuration, rows and messages do not depend on the kernel that shows them."""
    from helpers.execution import execute

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    count = cheap_part(name, tmp_path / "cheap.ipynb")
    assert count >= 8
    executed = tmp_path / "executed.ipynb"
    execute(tmp_path / "cheap.ipynb", {}, executed, lambda line: None)
    done = nbval(executed)
    assert f"{count} passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.slow
def test_another_output_is_found(tmp_path):
    """A stored output that the cell does not print fails the comparison."""
    path = write_notebook(tmp_path / "small.ipynb", "print(1)", parameters=None)
    notebook = nbformat.read(path, 4)
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="2\n")]
    nbformat.write(notebook, path)
    assert "1 failed" in nbval(path).stdout
