"""Reads what other packages offer from their source, without importing them.

Nothing of them runs, so a check takes a second, needs neither their dependencies nor a GPU, and can be made of versions
that are unpacked in a folder and not installed: set STACK_SOURCES to it.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from functools import cache
from pathlib import Path


@cache
def package_root(package):
    """Return the folder that a package's folder lies in: that of STACK_SOURCES, else where it is installed."""
    unpacked = os.environ.get("STACK_SOURCES")
    if unpacked and (Path(unpacked) / package).is_dir():
        return Path(unpacked)
    spec = importlib.util.find_spec(package)
    return Path(next(iter(spec.submodule_search_locations))).parent if spec else Path(package)


def module_tree(file):
    """Return the syntax tree of a file, such as "trl/trainer/sft_config.py", or None if it is not there."""
    return _parse(package_root(file.split("/")[0]) / file)


@cache
def _parse(path):
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def definitions(place):
    """Return the syntax trees of "file.py Name" or "file.py Class.method": one, several overloads, or none."""
    file, _, dotted = place.partition(" ")
    found = [module_tree(file)] if module_tree(file) else []
    for name in filter(None, dotted.split(".")):
        found = [node for parent in found for node in _within(parent) if name in _names(node)]
    return found


def _within(node):
    """Yield the statements of a module, a class or a function, those in its branches and its __init__ included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
            open_to_all = (
                not isinstance(child, (ast.FunctionDef, ast.ClassDef)) or getattr(child, "name", "") == "__init__"
            )
            yield from _within(child) if open_to_all else ()


def _names(node):
    """Return what a statement defines: a function, a class, imports, variables or attributes of self."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {getattr(target, "id", getattr(target, "attr", None)) for target in targets}


def takes(node, keyword):
    """Whether a definition takes a keyword: as an argument, a field, or by its name from **kwargs."""
    if isinstance(node, ast.ClassDef):
        starts = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
        fields = [child.target.id for child in node.body if isinstance(child, ast.AnnAssign)]
        return keyword in fields or any(takes(start, keyword) for start in starts)
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    named = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return keyword in named or any(_reads(call, keyword) for call in ast.walk(node))


def _reads(node, keyword):
    """Whether a node is `kwargs.pop("keyword", ...)` or another look into a dictionary of keywords."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "get"):
        first = node.args[0] if node.args else None
        return isinstance(first, ast.Constant) and first.value == keyword
    return False


def calls_into(folder, libraries):
    """Find what a package imports from libraries, and the keywords that it passes to each.

    Returns:
        (dotted name as it is called, keyword or None, file) for each use; a name that is imported and not called has
        None.
    """
    found = set()
    for path in sorted(Path(folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in libraries
            for alias in node.names
        }
        where = path.relative_to(Path(folder).parent).as_posix()
        called = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (whole := _called(node.func, imported)):
                called |= {each.id for each in ast.walk(node.func) if isinstance(each, ast.Name)}
                found |= {(whole, keyword.arg, where) for keyword in node.keywords if keyword.arg}
                found.add((whole, None, where))
        found |= {(imported[name], None, where) for name in imported if name not in called}
    return found


def _called(function, imported):
    """Return the dotted name of a call whose first part was imported, or None."""
    rest = []
    while isinstance(function, ast.Attribute):
        rest.insert(0, function.attr)
        function = function.value
    if not isinstance(function, ast.Name) or function.id not in imported:
        return None
    return ".".join([imported[function.id], *rest])


def keys_of(file, function, variable=None):
    """Return the literal keys of the dictionaries that a function returns, or puts into one of its variables."""
    (node,) = (n for n in ast.walk(ast.parse(Path(file).read_text())) if getattr(n, "name", None) == function)
    kinds = (ast.AnnAssign, ast.AugAssign) if variable else ast.Return
    found = [n for n in ast.walk(node) if isinstance(n, kinds) and isinstance(n.value, ast.Dict)]
    tables = [n.value for n in found if not variable or getattr(n.target, "id", None) == variable]
    return {key.value for table in tables for key in table.keys if isinstance(key, ast.Constant)}
