"""Which statements a run's script has, and in which order: the second half of writing it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_TABLE = ("DatasetDict", "map", "range", "select")
"""Calls that make a table and do nothing else: without a reader they are left out."""


def lay_out(cells: list[list[str]], package: Mapping[str, str]) -> str:
    """Return the statements of cells as one text: what is read, after the imports and definitions that it needs.

    Args:
        package: The modules of the names that are imported from this package; those that are called are written out.
    """
    cells = _without_unread(cells)
    definitions: dict[str, str] = {}
    for name in sorted(package.keys() & {name for cell in cells for each in cell for name in _loaded(each)}):
        _write_out(importlib.import_module(package[name]), name, definitions)
    return _joined(_with_imports(cells, list(definitions.values())))


def bound(text: str) -> Iterator[str]:
    """Return the names that a cell binds, but for those imported from this package."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def from_package(text: str) -> Iterator[tuple[str, str]]:
    """Return the names that a cell imports from this package, with their modules."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
            yield from ((alias.asname or alias.name, str(node.module)) for alias in node.names)


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """Return the calls of an expression, but for those in a function that it makes."""
    if isinstance(node, ast.Call):
        yield node
    if not isinstance(node, ast.Lambda):
        for each in ast.iter_child_nodes(node):
            yield from calls(each)


def assigned(node: ast.stmt) -> set[str]:
    """Return the names that an assignment or a function's definition binds."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    names = {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return {node.name} if isinstance(node, ast.FunctionDef) else names


def _loaded(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _write_out(module: Any, name: str, written: dict[str, str]) -> None:
    """Add a definition of a module, and before it those that it needs."""
    if name in written:
        return
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        found = isinstance(node, ast.FunctionDef) and node.name == name
        found = found or (isinstance(node, ast.Assign) and any(ast.unparse(each) == name for each in node.targets))
        if found:
            text = _plain_source(source, node)
            for needed in sorted(_loaded(text) - {name}):
                owner = sys.modules.get(getattr(getattr(module, needed, None), "__module__", ""), module)
                if inspect.ismodule(getattr(module, needed, None)):
                    written.setdefault(needed, f"import {needed}")
                elif needed in vars(module):
                    _write_out(owner if owner.__name__.startswith("helpers") else module, needed, written)
            written[name] = text
        elif isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            typing = node.module in ("typing", "collections.abc")
            line = "from __future__ import annotations" if typing else f"from {node.module} import {name}"
            written.setdefault("annotations" if typing else name, line)


def _plain_source(source: str, node: ast.stmt) -> str:
    """Return a definition's text without its docstring."""
    lines = source.split("\n")[node.lineno - 1 : node.end_lineno]
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
        start, end = node.body[0].lineno - node.lineno, node.body[1].lineno - node.lineno
        del lines[start:end]
    return "\n".join(lines)


def _without_unread(cells: list[list[str]]) -> list[list[str]]:
    """Leave out functions and tables that nothing reads."""
    while True:
        whole = "\n".join(each for cell in cells for each in cell)
        nodes = list(ast.walk(ast.parse(whole)))
        slices = [node.slice for node in nodes if isinstance(node, ast.Subscript)]
        keys = {each.value for each in slices if isinstance(each, ast.Constant)}
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        kept = [[_without_parts(each, keys) for each in cell if not _is_unread(each, used)] for cell in cells]
        if kept == cells:
            return kept
        cells = kept


def _is_unread(statement: str, used: set[str]) -> bool:
    """Say whether a statement only binds a function or a table that nothing reads."""
    node = ast.parse(statement).body[0]
    called = {ast.unparse(call.func).split(".")[-1] for call in calls(node)}
    table = isinstance(node, ast.Assign) and called and called <= set(_TABLE)
    return bool(table or isinstance(node, ast.FunctionDef)) and not assigned(node) & used


def _without_parts(statement: str, keys: set[Any]) -> str:
    """Leave the held-out rows out of a line that loads or selects rows, if they are never taken out."""
    if "load_dataset(" in statement and "train" in keys and "test" not in keys:
        statement = re.sub(r', "test": "[^"]*"', "", statement)
    if "DatasetDict(" in statement and "train" in keys and "heldout" not in keys:
        statement = re.sub(r", heldout=.*\)$", ")", statement)
    return statement


def _with_imports(cells: list[list[str]], definitions: list[str]) -> list[list[str]]:
    """Return all imports of what is used, those of Python itself first, then the definitions, then the cells."""
    found = [each for each in [*definitions, *(each for cell in cells for each in cell)] if _is_import(each)]
    rest = [[each for each in cell if not _is_import(each)] for cell in [[each] for each in definitions] + cells]
    used = {name for cell in rest for each in cell for name in _loaded(each)} | {"annotations"}
    lines = list(filter(None, (_used_import(each, used) for each in dict.fromkeys(found))))
    python = sorted(each for each in lines if each.split()[1].split(".")[0] in sys.stdlib_module_names)
    return [python, [each for each in lines if each not in python], *rest]


def _is_import(statement: str) -> bool:
    return statement.startswith(("import ", "from "))


def _used_import(statement: str, used: set[str]) -> str:
    """Return an import of the used names alone; "" if there are none."""
    node = ast.parse(statement).body[0]
    assert isinstance(node, (ast.Import, ast.ImportFrom))
    node.names = [each for each in node.names if (each.asname or each.name.split(".")[0]) in used]
    return ast.unparse(node) if node.names else ""


def _joined(cells: list[list[str]]) -> str:
    """Return statements as one text: a blank line between cells, two around functions."""
    text, after = "", False
    for cell in cells:
        for number, statement in enumerate(cell):
            function = statement.startswith("def ")
            text += "\n\n\n" if function or after else "\n" if number else "\n\n"
            text, after = text + statement, function
    return text.strip("\n")
