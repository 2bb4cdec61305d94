"""A cell's text with values in the place of expressions: the first half of writing a run's script."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from typing import Any

from helpers.training.script_layout import assigned, calls, from_package

_PURE = ("max", "min")
"""Functions whose value may stand in the place of a call."""


class _NoLiteralError(Exception):
    """A value that cannot be written down."""


class ValueWriter:
    """Writes cells with values in the place of expressions.

    Args:
        values: What other cells made, by name.
        namespace: All of the notebook's variables, which decide its branches.
        package: The modules of the names that are imported from this package.
    """

    def __init__(
        self, values: dict[str, Any], namespace: Mapping[str, Any], package: dict[str, str], folder: str
    ) -> None:
        self.values, self.namespace, self.package, self.folder = values, namespace, package, folder
        self.lines: list[str] = []
        self.texts: list[tuple[str, str]] = []

    def fold(self, text: str) -> list[str]:
        """Return one cell's statements."""
        nodes, lines = ast.parse(text).body, text.split("\n")
        parts = [part for node in nodes for part in self._statement(lines, node)]
        comments = [line for line in lines[: nodes[0].lineno - 1] if line.startswith("#")] if nodes else []
        return ["\n".join([*comments, parts[0]]), *parts[1:]] if parts else []

    def _statement(self, lines: list[str], node: ast.stmt) -> list[str]:
        """Return one statement, after the lines that draw its rows; none if it is left out."""
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
            return []
        if isinstance(node, ast.With) and all(self._watches(item.context_expr) for item in node.items):
            for item in node.items:
                if isinstance(item.optional_vars, ast.Name):
                    self.values[item.optional_vars.id] = item.optional_vars.id
            return self._inside(lines, node.body)
        if isinstance(node, ast.If) and (taken := self._branch(node)) is not None:
            return self._inside(lines, taken) if taken else []
        if isinstance(node, (ast.Assign, ast.Expr)) and self._by_package(node):
            self.values |= {name: self.namespace[name] for name in assigned(node)}
            return []
        before = len(self.lines)
        folded = self._folded("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if isinstance(node, ast.Assign):
            self._remember(node)
        for line in self.lines[before:]:
            self.package |= dict(from_package(line))
        return [*(line for line in self.lines[before:] if not line.startswith("from helpers")), folded]

    def _inside(self, lines: list[str], body: list[ast.stmt]) -> list[str]:
        """Return the statements of a block without the line above it."""
        return self.fold(textwrap.dedent("\n".join(lines[body[0].lineno - 1 : body[-1].end_lineno])))

    def _by_package(self, node: ast.Assign | ast.Expr) -> bool:
        """Say whether a statement prints, or binds what this package or values alone give."""
        if not self.namespace.keys() >= assigned(node):
            return False
        called = {ast.unparse(call.func) for call in calls(node.value)}
        if called & {*self.package, "print"}:
            return True
        try:
            self._value(node.value)
        except _NoLiteralError:
            pass  # such as a configuration
        except KeyError:
            return False
        return isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets)

    def _remember(self, node: ast.Assign) -> None:
        """Keep a long text under the name that it has in the script."""
        try:
            value = self._value(node.value)
        except (KeyError, _NoLiteralError):
            return
        if _is_long(value):
            self.texts.append((ast.unparse(node.targets[0]), value))

    def _branch(self, node: ast.If) -> list[ast.stmt] | None:
        """Return the statements that run, if a value decides it."""
        try:
            return node.body if self._value(node.test, {**self.namespace, **self.values}) else node.orelse
        except (KeyError, _NoLiteralError):
            return None

    def _folded(self, text: str) -> str:
        """Return a statement's text with values in the place of expressions."""
        raw, starts = text.encode(), [0]
        for line in text.split("\n"):
            starts.append(starts[-1] + len(line.encode()) + 1)
        edits: list[tuple[int, int, str]] = []

        def span(node: Any) -> tuple[int, int]:
            return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

        def visit(node: ast.AST) -> None:
            if isinstance(node, ast.keyword):
                keyword(node)
            elif isinstance(node, ast.IfExp) and (chosen := self._chosen(node)) is not None:
                start, end = span(chosen)
                inner = self._folded(raw[start:end].decode())
                edits.append((*span(node), inner))
            elif not (isinstance(node, ast.expr) and written(node)):
                for each in ast.iter_child_nodes(node):
                    visit(each)

        def written(node: ast.expr) -> bool:
            try:
                edits.append((*span(node), self._attribute(node) or self._shown(self._value(node), node)))
            except (KeyError, _NoLiteralError):
                return False
            return True

        def keyword(node: ast.keyword) -> None:
            start, end = span(node)
            try:
                value = self._value(node.value)
            except _NoLiteralError:
                drop(start, end)
                return
            except KeyError:
                if self._watches(node.value):
                    drop(start, end)
                else:
                    visit(node.value)
                return
            if value is None:
                drop(start, end)
            elif node.arg is not None:
                edits.append((*span(node.value), self._shown(value, node.value)))
            elif value:
                alone = not raw[raw.rfind(b"\n", 0, start) + 1 : start].strip()
                gap = ",\n" + " " * node.col_offset if alone else ", "
                edits.append((start, end, gap.join(f"{k}={self._shown(v)}" for k, v in value.items())))
            else:
                drop(start, end)

        def drop(start: int, end: int) -> None:
            """Leave a keyword out, with its line if it stands alone there."""
            line, stop = raw.rfind(b"\n", 0, start) + 1, end + raw[end : end + 1].count(b",")
            alone = not raw[line:start].strip() and raw[stop : stop + 1] == b"\n"
            edits.append((line, stop + 1, "") if alone else (start, stop + raw[stop : stop + 1].count(b" "), ""))

        visit(ast.parse(text))
        for start, end, new in sorted(edits, reverse=True):
            raw = raw[:start] + new.encode() + raw[end:]
        return raw.decode()

    def _chosen(self, node: ast.IfExp) -> ast.expr | None:
        try:
            return node.body if self._value(node.test) else node.orelse
        except (KeyError, _NoLiteralError):
            return None

    def _value(self, node: ast.expr, known: Mapping[str, Any] | None = None) -> Any:
        """Return the value of an expression over the other cells' names alone.

        Args:
            known: The names that it may have, instead of those.

        Raises:
            KeyError: It has other names, or none.
            _NoLiteralError: Its value cannot be written down.
        """
        values = self.values if known is None else known
        names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        if any(ast.unparse(call.func) not in _PURE for call in ast.walk(node) if isinstance(call, ast.Call)):
            raise KeyError("a call")
        if not names - set(_PURE) or not names <= {*values, *_PURE}:
            raise KeyError("other names")
        value = eval(compile(ast.Expression(node), "", "eval"), dict(values))  # noqa: S307 - the notebook's text
        if isinstance(value, str) and value.startswith(f"{self.folder}/checkpoints"):
            return "checkpoints"
        try:
            same = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise _NoLiteralError
        return value

    def _attribute(self, node: ast.expr) -> str | None:
        """Return `getattr(torch, NAME)` with the name's value as it is usually written; None for anything else."""
        match node:
            case ast.Call(func=ast.Name("getattr"), args=[ast.Name(owner), name]):
                return f"{owner}.{self._value(name)}"
        return None

    def _watches(self, node: ast.expr) -> bool:
        """Say whether an expression is something that other cells made and that only watches."""
        if isinstance(node, ast.Call):
            root = node.func
            while isinstance(root, ast.Attribute):
                root = root.value
            return isinstance(root, ast.Name) and root.id in {*self.values, *self.package}
        return isinstance(node, ast.List) and any(isinstance(e, ast.Name) and e.id in self.values for e in node.elts)

    def _shown(self, value: Any, node: ast.expr | None = None) -> str:
        """Return a value as source: rows by their draw, numbers in a row as a range, long text over several lines.

        Args:
            node: What it stands for; the last part of a dotted name may become a name of the script.
        """
        if getattr(value, "lines", ()):
            self.lines += [line for line in value.lines if line not in self.lines]
            return value.source
        if isinstance(value, list) and len(value) > 3 and all(type(each) is int for each in value):
            whole = range(value[0], value[-1] + 1)
            if value == list(whole):
                return f"range({value[0]}, {value[-1] + 1})" if value[0] else f"range({value[-1] + 1})"
            lacking = sorted(set(range(value[-1] + 1)) - set(value))
            if value == sorted(value) and len(lacking) < len(value) / 4:
                return f"[i for i in range({value[-1] + 1}) if i not in {set(lacking)}]"
        if not _is_long(value) or '"""' in value:
            return _literal(value)
        for name, known in self.texts:
            if isinstance(node, ast.Attribute) and (change := _change(known, value)):
                self.lines.append(f"{node.attr} = {name}.replace(\n    {change[0]},\n    {change[1]},\n)")
                return node.attr
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"""\\\n{text}"""'


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and value.count("\n") > 2


def _literal(value: Any) -> str:
    """Return a value as source, text in double quotes where that needs no escapes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and '"' not in text else text


def _change(old: str, new: str) -> tuple[str, str] | None:
    """Return the one line of a text, and what takes its place in another, as source; None if they differ in more."""
    pairs = [(a.strip(), b.strip()) for a, b in zip(old.split("\n"), new.split("\n"), strict=False) if a != b]
    return (_literal(pairs[0][0]), _literal(pairs[0][1])) if len(pairs) == 1 and old.replace(*pairs[0]) == new else None
