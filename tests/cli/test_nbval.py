"""The cheap cells of the notebooks print the same again in a fresh kernel.

nbval runs a notebook and compares what its cells print with what is stored in it. The project's notebooks store
nothing, so there is nothing to compare them with; and nbval 0.11.0 gives up on a cell whose output comes more than 5
seconds late, which no option changes (`IPyNbCell.output_timeout`; its issues 136 and 151), so cells that load or train
a model are not for it. The runner executes those. What is left for nbval is repetition: the cells that need no model,
which choose and show the configuration, the rows, the messages, the drawings and the examples by hand, are executed
once by the runner, and nbval must find every output again. A row that is drawn by chance, or a set printed in another
order, would fail here. A cell needs a model if it uses a library's name, or one that such a cell binds.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from small_notebooks import write_notebook

ROOT = Path(__file__).resolve().parents[2]
CHEAP = {"alpaca_instruction": 11, "dolly_business": 10, "side_by_side_eval": 7}
"""How many cells of a notebook are cheap, at least."""

LIBRARIES = ("unsloth", "peft", "transformers", "trl")
"""What a cheap cell needs none of: their imports are left out, and what is made with them."""

COSTLY = ("helpers.export", "helpers.evaluation.adapter", "helpers.training.script")
"""What saves and loads a model, asks for an adapter that was trained, or for a trainer that was built."""

ELSEWHERE = ("helpers.runtime.setup", "import importlib.util")
"""Cells that install or look at the machine are not about the course."""


def cheap_part(name, target):
    """Write the cells of a notebook that need no model, with preset smoke; return their number."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    kept, lost = [], set()
    for cell in notebook.cells:
        if cell.cell_type != "code" or any(each in cell.source for each in ELSEWHERE):
            continue
        cell.source, unknown = without_libraries(cell.source)
        lost |= unknown
        used, changed = names(cell.source)
        if any(each in cell.source for each in COSTLY) or used & lost:
            lost |= changed
            continue
        kept.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            kept.append(nbformat.v4.new_code_cell(f'preset = "smoke"\nrun_name = "{name}"'))
    notebook.cells = kept
    nbformat.write(notebook, target)
    return len(kept)


def without_libraries(source):
    """Return a cell without the imports of the libraries, and the names that it does not bind then."""
    lines, lost = source.splitlines(), set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            lines[node.lineno - 1] = ""
            lost |= {alias.asname or alias.name for alias in node.names}
    return "\n".join(lines).strip("\n"), lost


def names(source):
    """Return the names that a cell takes from others, and those that it binds, imports or calls a method of."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    imported = {alias.asname or alias.name for alias in imports}
    inner = {each.id for n in nodes if isinstance(n, ast.comprehension) for each in ast.walk(n.target) if is_name(each)}
    used = {node.id for node in nodes if is_name(node) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if is_name(node) and isinstance(node.ctx, ast.Store)}
    owners = [node.func.value for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return used - imported - inner, (bound | imported | {node.id for node in owners if is_name(node)}) - inner


def is_name(node):
    """Whether a node of the syntax tree is a name."""
    return isinstance(node, ast.Name)


def nbval(path):
    """Have nbval compare a notebook's outputs; return the finished process."""
    (path.parent / "pytest.ini").write_text("[pytest]\n")
    options = ("--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", "--rootdir", str(path.parent))
    command = [sys.executable, "-m", "pytest", *options, str(path)]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_the_cheap_cells_print_the_same_again(tmp_path, runs_folder, monkeypatch, name):
    """Configuration, rows, messages and drawings do not depend on the kernel that shows them."""
    from helpers.cli.execution import execute

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    count = cheap_part(name, tmp_path / "cheap.ipynb")
    assert count >= CHEAP[name]
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
