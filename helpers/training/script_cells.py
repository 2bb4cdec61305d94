"""A notebook's executed cells as a plain script: the rules, and a refusal where none of them fits.

1. The training's cells are written statement by statement, as they stand where no rule changes them.
2. What the other cells bind is a value: an expression of values alone is replaced by what it gives.
3. A choice that a value decides is replaced by the branch that is taken.
4. An assignment of what this package returns, or of a value that Python cannot write, is left out: it binds values too.
   Functions of `helpers.data` are written out instead.
5. `with fast_training(...)` and `with saving_adapter(...) as folder` are replaced by their bodies.
6. Callbacks of this package, and the checkpoint to go on from, are left out of a call.
7. What only shows something is left out, and so is a function that nothing reads.
8. A script is refused if it would read a name that it does not bind, or a value that changed after it was read,
   as far as bindings, assignments and methods of lists and dictionaries show.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from types import NoneType
from typing import Any, NamedTuple

from helpers.core.errors import RunError
from helpers.training.program import Cell
from helpers.training.script_text import CellText, Names, find_names
from helpers.training.script_values import (
    ACTING,
    COMPUTED,
    as_source,
    changed_names,
    changed_value,
    decide,
    evaluate,
    is_changeable,
    is_literal,
    stored_owners,
    substitute,
)

_AROUND = ("fast_training", "saving_adapter")
"""Context managers of this package: around the training, and around what is saved into a folder."""

_KNOWN = {*dir(builtins)} - {"__file__", "display", "eval", "exec", "get_ipython", "globals", "locals", "vars"}
"""Names that a script need not bind."""


class _Statement(NamedTuple):
    """A statement of the script, with the comments and blank lines above it."""

    text: str
    names: Names
    above: Sequence[str] = ()
    plain: bool = False
    """Whether it only defines a function."""


def write_cells(cells: Sequence[Cell], namespace: Mapping[str, Any]) -> str:
    """Return the script of cells that ran in this order; those tagged "core" are the training.

    Args:
        namespace: The notebook's variables, after all of these cells.

    Raises:
        RunError: A cell cannot be written so that it does what it did.
    """
    return _Writer(cells, namespace).write()


class _Writer:
    """Goes through the statements of all cells in their order.

    `origin` says what each name is bound to so far: "script", "value", or the module of this package that it is from.
    """

    def __init__(self, cells: Sequence[Cell], namespace: Mapping[str, Any]) -> None:
        self.cells = [(CellText(cell.text), "core" in cell.tags) for cell in cells]
        self.namespace, self.origin = dict(namespace), dict[str, str]()
        self.unbound, self.imports, self.made = dict[str, ast.stmt](), defaultdict[str, set[str]](set), list[str]()
        self.bindings = Counter(name for text, _ in self.cells for node in text.body for name in _names(node).bound)
        for node in [node for text, core in self.cells if not core for node in text.body]:
            self.bindings.update(changed_names(node, self.namespace))

    def write(self) -> str:
        """Return the script."""
        parts = []
        for text, core in self.cells:
            parts.append(self._block(text, text.body) if core else [])
            for node in [] if core else text.body:
                self._note(node)
        used = {name for part in parts for each in part for name in each.names.read}
        parts = [[each for each in part if each.names.bound & used or not each.plain] for part in parts]
        used = {name for part in parts for each in part for name in each.names.read}
        for name in sorted(self.unbound.keys() & used):
            if not self._is(name, "script"):
                raise _refusal(name, "a name that the training's cells bind", self.unbound[name])
        written: dict[str, str] = {}
        for name in sorted(used & {name for name, origin in self.origin.items() if origin.startswith("helpers")}):
            found = getattr(sys.modules[self.origin[name]], name, None)
            self._write_out(name, found, written, ast.parse(name).body[0])
        imports = [begin + ", ".join(sorted(names)) for begin, names in self.imports.items()]
        imports.sort(key=lambda line: (line.startswith("from "), line))
        return _joined(imports, list(written.values()), [part for part in parts if part])

    def _note(self, node: ast.stmt) -> None:
        """Take note of what a statement binds that is not written."""
        package = _package(node)
        for name in stored_owners(node) if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) else ():
            if self._is(name, "script"):
                raise _refusal(name, "what only the training's cells change", node)
        for name in _names(node).bound:
            if self._is(name, "script") or name in self.unbound:
                raise _refusal(name, "a name that only the training's cells bind", node)
            self.origin[name] = package or "value"

    def _is(self, name: str, origin: str) -> bool:
        return self.origin.get(name, "").startswith(origin)

    def _block(self, text: CellText, body: Sequence[ast.stmt]) -> list[_Statement]:
        """Return what is written of the training's statements."""
        return [each for node in body for each in self._written(text, node)]

    def _written(self, text: CellText, node: ast.stmt) -> list[_Statement]:
        names = _names(node)
        fixed = {name for name in names.read - names.inner if self.bindings[name] == 1 and self._is(name, "value")}
        values = {name: self.namespace[name] for name in fixed & self.namespace.keys()}
        values |= {name: function for name, function in COMPUTED.items() if name not in self.origin}
        match node:
            case ast.With([ast.withitem(ast.Call(ast.Name(name)), target)], body) if name in _AROUND:
                if isinstance(target, ast.Name) and self._is(name, "helpers."):
                    self.origin[target.id], self.namespace[target.id] = "value", target.id
                if self._is(name, "helpers.") and isinstance(target, (ast.Name, NoneType)):
                    return self._block(text, body)
            case ast.If(test, body, orelse) if (decided := decide(test, values)) is not None:
                return self._block(text, body if decided else orelse)
            case ast.Expr(value) if self._shows(value):
                return []
            case ast.Import() | ast.ImportFrom() if _package(node):
                self._note(node)
                return []
            case ast.Assign() if self._is_made(node, values):
                self._note(node)
                return []
        return self._kept(text, node, values)

    def _shows(self, node: ast.expr) -> bool:
        """Say whether an expression is for the eye alone: `print(x)`, or `x` at a cell's end."""
        shown = [node]
        match node:
            case ast.Call(ast.Name("print" | "display" as name), arguments, []) if name not in self.origin:
                shown = arguments
        return not any(map(_acts, shown))

    def _is_made(self, node: ast.Assign, values: Mapping[str, Any]) -> bool:
        """Say whether names alone are bound, to what this package returns or to a value that cannot be a literal."""
        targets = [each for target in node.targets for each in getattr(target, "elts", [target])]
        match node.value:
            case _ if not all(isinstance(each, ast.Name) for each in targets):
                return False
            case ast.Call(ast.Name(name)) if self._is(name, "helpers."):
                return not self._is(name, "helpers.data.")
        found = evaluate(node.value, values)
        return found is not None and (is_changeable(found[0]) or not is_literal(found[0]))

    def _kept(self, text: CellText, node: ast.stmt, values: Mapping[str, Any]) -> list[_Statement]:
        """Return a statement with values in the place of expressions, after the lines that make its values."""
        if changed := changed_value(node, values):
            raise _refusal(changed, "a value that no cell of the training changes", node)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            raise _refusal("cell", "imports of names", node)
        new, lines = substitute(text, node, values, self._works)
        names = _names(new)
        for name in sorted(names.read):
            if self._is(name, "value"):
                raise _refusal(name, "a value that is bound once and that Python can write", node)
            if self._is(name, "helpers") and not self._is(name, "helpers.data."):
                raise _refusal(name, "a function of helpers.data, or an assignment of what it returns", node)
            if name not in self.origin.keys() | _KNOWN:
                self.unbound.setdefault(name, node)
        for name in sorted(names.bound):
            if name in self.origin and not self._is(name, "script") and not _binds_surely(new, name):
                raise _refusal(name, "a name that no other cell binds", node)
            self.origin[name] = "script"
        plain = isinstance(node, ast.FunctionDef) and not node.decorator_list and not _acts(node.args)
        return [*self._making(lines), _Statement(text.statement(node, new), names, text.above(node), plain)]

    def _making(self, lines: Sequence[str]) -> Iterator[_Statement]:
        """Yield the lines that make values, each once and the imports apart."""
        for line in lines:
            (node,) = ast.parse(line).body
            if _package(node):
                self._note(node)
            elif isinstance(node, ast.Import):
                self.imports[f"import {node.names[0].name}"] = set()
            elif line not in self.made:
                self.made.append(line)
                self.origin |= dict.fromkeys(_names(node).bound, "script")
                yield _Statement(line, _names(node))

    def _works(self, value: Any) -> bool:
        """Say whether a value has lines that make it, and they do so here and in the script."""
        lines = "\n".join(getattr(value, "lines", ()))
        names, found = find_names(lines), dict(self.namespace)
        if not lines or names.bound & self.bindings.keys() or any(self.bindings[name] > 1 for name in names.read):
            return False
        try:
            exec(lines, found)  # noqa: S102 - of this package's own
            return bool(eval(value.source, found) == value)  # noqa: S307 - likewise
        except Exception:
            return False

    def _write_out(self, name: str, value: Any, written: dict[str, str], node: ast.stmt) -> None:
        """Write a function or text of `helpers.data`, without its docstring, after those that it needs.

        Args:
            node: What needs it.
        """
        module = str(getattr(value, "__module__", ""))
        if self._is(name, "script") and self.namespace.get(name) is not value:
            raise _refusal(name, "no such name but this package's", node)
        if isinstance(value, str):
            written[name] = f"{name} = {as_source(value)}"
        elif getattr(value, "__name__", "") != name or module.startswith("helpers.") > inspect.isfunction(value):
            raise _refusal(name, "a function that needs no more than texts and other functions", node)
        elif inspect.ismodule(value) or not module.startswith("helpers."):
            self.imports[f"from {module} import " if module else f"import {name}"] |= {name} if module else set()
        elif name not in written:
            text = CellText(inspect.getsource(value))
            (whole,) = text.body
            assert isinstance(whole, ast.FunctionDef)
            plain = copy.deepcopy(whole)
            for needed in sorted(_names(whole).read & value.__globals__.keys() - {name}):
                self._write_out(needed, value.__globals__[needed], written, node)
            if ast.get_docstring(whole):
                del plain.body[0]
                text.cut(*(text.span(each)[0] for each in whole.body[:2]))
            written[name] = text.statement(whole, plain)


def _acts(node: ast.AST) -> bool:
    """Say whether a node may do more than give a value."""
    return any(isinstance(each, ACTING) for each in ast.walk(node))


def _binds_surely(node: ast.stmt, name: str) -> bool:
    """Say whether a statement binds a name in any case, without a look at what it was."""
    if isinstance(node, (ast.Assign, ast.Import, ast.ImportFrom)):
        return not any(isinstance(each, ast.NamedExpr) for each in ast.walk(node))
    return getattr(node, "name", "") == name


def _package(node: ast.stmt) -> str:
    """Return the module of this package that a statement imports, or imports names from; "" for any other."""
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    modules = [each.name for each in node.names] if isinstance(node, ast.Import) else modules
    return next((module for module in modules if module.split(".")[0] == "helpers"), "")


def _names(node: ast.stmt) -> Names:
    try:
        return find_names(ast.unparse(node))
    except SyntaxError as error:
        raise _refusal("cell", f"Python that runs outside of notebooks too ({error.msg})", node) from None


def _refusal(field: str, expected: str, node: ast.stmt) -> RunError:
    remedy = "Bind it in the cell that reads it, or write its value there; then restart the kernel and run all cells."
    return RunError(field, expected, ast.unparse(node).split("\n")[0], remedy)


def _joined(imports: Sequence[str], definitions: Sequence[str], parts: Sequence[Sequence[_Statement]]) -> str:
    """Return a script: imports, those that cells begin with, definitions, and each cell after a blank line."""
    nothing = Names(set(), set(), set())
    first = list(takewhile(lambda each: each.text.startswith(("import ", "from ")), parts[0] if parts else []))
    groups = [
        [_Statement(each, nothing) for each in imports],
        first,
        *([_Statement(each, nothing)] for each in definitions),
    ]
    groups += [list(part)[len(first) * (not number) :] for number, part in enumerate(parts)]
    text, apart = "", False
    for group in groups:
        for number, each in enumerate(group):
            definition = each.text.startswith(("@", "async def ", "class ", "def "))
            gap = "\n\n\n" if apart or definition else "\n\n" if not number or "" in each.above else "\n"
            text += gap + "\n".join([*filter(None, each.above), each.text])
            apart = definition
    return text.strip("\n")
