"""Values in the place of expressions: how a script gets what its run's other cells computed."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any

from helpers.training.script_text import CellText

_WATCHING = ("callbacks", "resume_from_checkpoint")
"""Arguments of the libraries for which this package has objects that a script does without."""

COMPUTED = {"max": max, "min": min}
"""Functions of values whose result is a value."""

ACTING = (
    ast.Await, ast.Call, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.ListComp, ast.NamedExpr, ast.SetComp,
    ast.Starred, ast.Yield, ast.YieldFrom,
)  # fmt: skip
"""Expressions that may do more than give a value."""


_CHANGING = {
    "add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault",
    "sort", "update",
}  # fmt: skip
"""Methods that change a list, a dictionary or a set."""


class Recipe(str):
    """A text that knows the lines of Python that make it.

    Args:
        lines: They need no names but each other's.
        source: An expression that gives the text.
    """

    lines: tuple[str, ...]
    source: str

    def __new__(cls, text: str, lines: Sequence[str], source: str) -> Recipe:
        """Return the text, which is one like any other."""
        made = super().__new__(cls, text)
        made.lines, made.source = tuple(lines), source
        return made


def substitute(
    text: CellText, node: ast.stmt, values: Mapping[str, Any], works: Callable[[Any], bool]
) -> tuple[ast.stmt, list[str]]:
    """Put values in the place of expressions, in a statement's text and in a copy of it.

    Args:
        works: Says whether a value's own lines and source, if it has them, give it in the script.

    Returns:
        The copy, and the lines that it needs above it.
    """
    change = _Substitution(text, values, works)
    return change.visit(copy.deepcopy(node)), change.lines


class _Substitution(ast.NodeTransformer):
    def __init__(self, text: CellText, values: Mapping[str, Any], works: Callable[[Any], bool]) -> None:
        self.text, self.values, self.works = text, values, works
        self.lines: list[str] = []

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and not isinstance(node, ast.FormattedValue) and (found := self._literal(node)):
            return self._replaced(node, self._source(found[0]))
        return super().visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        if (decided := decide(node.test, self.values)) is None:
            return self.generic_visit(node)
        chosen = node.body if decided else node.orelse
        (start, end), (first, last) = self.text.span(node), self.text.span(chosen)
        self.text.cut(start, first)
        self.text.cut(last, end)
        return self.visit(chosen)

    def visit_Call(self, node: ast.Call) -> Any:
        match node:
            case ast.Call(ast.Name("getattr"), [ast.Name(owner), name]):
                found = self._literal(name)
                if found and _is_name(found[0]):
                    return self._replaced(node, f"{owner}.{found[0]}")
            case ast.Call(ast.Attribute(attr="select"), [numbers], []) if found := self._literal(numbers):
                source = self._source(found[0])
                numbers = self._replaced(numbers, re.sub(r"^list\((range\(\d+\))\)$", r"\1", source))
                return ast.Call(self.visit(node.func), [numbers], [])
        node.func, node.args = self.visit(node.func), [self.visit(each) for each in node.args]
        node.keywords = [new for each in node.keywords for new in self._argument(each)]
        return node

    def _argument(self, node: ast.keyword) -> list[ast.keyword]:
        """Return an argument: none if it watches, several for a dictionary of them."""
        parts = node.value.elts if isinstance(node.value, ast.List) else [node.value]
        kept = [each for each in parts if node.arg not in _WATCHING or not self._is_ours(each)]
        found = self._literal(node.value) if node.arg is None else None
        if (parts and not kept) or found == ({},):
            self.text.drop(node)
            return []
        if found and isinstance(found[0], dict) and all(map(_is_name, found[0])):
            new = [f"{name}={self._source(value)}" for name, value in found[0].items()]
            self.text.replace(node, (",\n" + " " * node.col_offset if self.text.is_alone(node) else ", ").join(new))
            return list(_expression(f"f({', '.join(new)})").keywords)
        if len(kept) < len(parts):
            node.value = self._replaced(node.value, ast.unparse(ast.List(kept, ast.Load())))
        node.value = self.visit(node.value)
        return [node]

    def _is_ours(self, node: ast.expr) -> bool:
        """Say whether an expression is an object of this package, or what a method of one returns."""
        root = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else node
        found = evaluate(root, self.values)
        return found is not None and type(found[0]).__module__.startswith("helpers.")

    def _literal(self, node: ast.expr) -> tuple[Any] | None:
        """Return the value of an expression of values alone, if Python can write it."""
        found = evaluate(node, self.values)
        return found if found and is_literal(found[0]) else None

    def _replaced(self, node: ast.expr, source: str) -> Any:
        self.text.replace(node, source)
        return _expression(source)

    def _source(self, value: Any) -> str:
        if not self.works(value):
            return as_source(value)
        self.lines += value.lines
        return str(value.source)


def as_source(value: Any) -> str:
    """Return a value as Python: rising numbers as a range, text in double quotes where that needs no escapes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_source(name)}: {as_source(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        if len(value) > 3 and all(type(each) is int and each >= 0 for each in value) and value == sorted({*value}):
            whole, lacking = f"range({value[-1] + 1})", {*range(value[-1])} - {*value}
            if len(lacking) < len(value) / 4:
                return f"[i for i in {whole} if i not in {lacking}]" if lacking else f"list({whole})"
        return "[" + ", ".join(map(as_source, value)) + "]"
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and '"' not in text else text


def evaluate(node: ast.expr, values: Mapping[str, Any]) -> tuple[Any] | None:
    """Return the value of an expression of values alone; None for any other."""
    parts = list(ast.walk(node))
    names = {each.id for each in parts if isinstance(each, ast.Name)}
    acting = [each for each in parts if isinstance(each, ACTING)]
    computed = [each for each in acting if isinstance(each, ast.Call) and ast.unparse(each.func) in COMPUTED]
    if len(acting) > len(computed) or not names <= values.keys() or names <= COMPUTED.keys() or not _is_read(node):
        return None
    try:
        code = compile(ast.fix_missing_locations(ast.Expression(node)), "", "eval")
        return (eval(code, {"__builtins__": {}}, dict(values)),)  # noqa: S307 - the notebook's own expression
    except Exception:
        return None


def decide(node: ast.expr, values: Mapping[str, Any]) -> bool | None:
    """Return whether a test holds; None if values alone cannot say."""
    found = evaluate(ast.UnaryOp(ast.Not(), node), values)
    return None if found is None else not found[0]


def is_literal(value: Any) -> bool:
    """Say whether Python reads the same value from what it writes of it."""
    try:
        return bool(repr(ast.literal_eval(repr(value))) == repr(value))
    except Exception:
        return False


def is_changeable(value: Any) -> bool:
    """Say whether a value may be another one later."""
    return isinstance(value, (dict, list, set))


def stored_owners(node: ast.stmt) -> Iterator[str]:
    """Yield the names of what a statement assigns an attribute or an item of, or deletes one of."""
    for each in ast.walk(node):
        if isinstance(each, (ast.Attribute, ast.Subscript)) and not _is_read(each):
            while isinstance(each, (ast.Attribute, ast.Subscript)):
                each = each.value
            if isinstance(each, ast.Name):
                yield each.id


def changed_value(node: ast.stmt, values: Mapping[str, Any]) -> str | None:
    """Return a value that a statement may change: by an assignment to a part, a method, or a call for its effect."""
    calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    suspects = [call.func.value for call in calls if isinstance(call.func, ast.Attribute)]
    suspects += node.value.args if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else []
    changed = [each for each in suspects if (found := evaluate(each, values)) and is_changeable(found[0])]
    return next(iter([*(name for name in stored_owners(node) if name in values), *map(ast.unparse, changed)]), None)


def changed_names(node: ast.stmt, values: Mapping[str, Any]) -> set[str]:
    """Return the names of values of which a statement changes a part: by assignment, or a method of a list or such."""
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    owners = [func.value for func in calls if isinstance(func, ast.Attribute) and func.attr in _CHANGING]
    changed = [each for each in owners if (found := evaluate(each, values)) and is_changeable(found[0])]
    return {
        *stored_owners(node),
        *(name.id for each in changed for name in ast.walk(each) if isinstance(name, ast.Name)),
    }


def _is_read(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", ast.Load()), ast.Load)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and not iskeyword(value)


def _expression(source: str) -> Any:
    return ast.parse(source, mode="eval").body
