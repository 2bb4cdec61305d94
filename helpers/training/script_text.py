"""A cell's statements as text: what changes is cut in, and the rest keeps its layout and comments.

The syntax tree decides. A text that does not parse to the changed tree, such as one with a value inside an f-string of
Python 3.11, is given up for `ast.unparse` of that tree, which has no comments.
"""

from __future__ import annotations

import ast
import re
import symtable
from typing import Any, NamedTuple

_LINTERS = re.compile(rb"^# *(isort|noqa|fmt|ruff|type|pylint|mypy)\b")


class Names(NamedTuple):
    """The names of a statement.

    Args:
        bound: Global names that it binds or deletes, in functions too.
        read: Global names that it reads, in functions too.
        inner: Names of its own functions and comprehensions, such as their arguments.
    """

    bound: set[str]
    read: set[str]
    inner: set[str]


def find_names(text: str) -> Names:
    """Return the names of statements, as Python's own compiler resolves them.

    Raises:
        SyntaxError: They are not Python.
    """
    compile(text, "", "exec")  # finds a `return` or an `await` outside of functions
    top, found = symtable.symtable(text, "", "exec"), Names(set(), set(), set())
    tables = [top]
    for table in tables:
        tables += table.get_children()
        for each in table.get_symbols():
            name = each.get_name()
            if table is not top and not each.is_global():
                found.inner.add(name)
                if table.get_type() == "class" and each.is_referenced():
                    found.read.add(name)  # perhaps a global one, before the class binds its own
                continue
            if each.is_assigned() or each.is_imported():
                found.bound.add(name)
            if each.is_referenced():
                found.read.add(name)
    return found


class CellText:
    """A cell's text with its tree, and with the changes to it that are collected.

    Raises:
        SyntaxError: It is not Python.
    """

    def __init__(self, text: str) -> None:
        text = re.sub(r"\r\n?", "\n", text)
        tree = ast.parse(text)
        self.body, self.raw = tree.body, text.encode()
        self.starts = [0, *(found.end() for found in re.finditer(b"\n", self.raw)), len(self.raw) + 1]
        texts = [node for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr))]
        self.inside = {line for node in texts for line in range(node.lineno, node.end_lineno or 0)}
        """Lines, from 0, that begin inside a string."""
        self.edits: list[tuple[int, int, bytes]] = []

    def span(self, node: Any) -> tuple[int, int]:
        """Return where a node begins, a function with its decorators, and where it ends [bytes]."""
        start = self.starts[node.lineno - 1] + node.col_offset
        for first in getattr(node, "decorator_list", [])[:1]:
            start = self.raw.rindex(b"@", 0, self.span(first)[0])
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def replace(self, node: Any, text: str) -> None:
        """Put a text in the place of a node."""
        self.edits.append((*self.span(node), text.encode()))

    def cut(self, start: int, end: int) -> None:
        """Leave out what is between two places."""
        self.edits.append((start, end, b""))

    def drop(self, node: ast.keyword) -> None:
        """Leave an argument out, with its line if it stands alone there."""
        start, end = self.span(node)
        if self.is_alone(node) and (line := re.compile(rb"[ \t]*,?[ \t]*(#.*)?\n").match(self.raw, end)):
            self.cut(self._margin(start).start(), line.end())
        elif after := re.compile(rb"\s*,\s*(?!\))").match(self.raw, end):
            self.cut(start, after.end())
        else:
            self.cut(len(self.raw[:start].rstrip().rstrip(b",")), end)

    def is_alone(self, node: Any) -> bool:
        """Say whether a node is the first on its line."""
        start, _ = self.span(node)
        return self._margin(start).end() == start

    def above(self, node: ast.stmt) -> list[str]:
        """Return the comments and blank lines right above a statement."""
        start, _ = self.span(node)
        found: list[str] = []
        for line in reversed(range(self.raw.count(b"\n", 0, start) if self.is_alone(node) else 0)):
            text = self.raw[self.starts[line] : self.starts[line + 1]].decode().strip()
            if line in self.inside or not re.match("#|$", text):
                break
            found.insert(0, text)
        return found

    def statement(self, node: ast.stmt, new: ast.stmt) -> str:
        """Return a statement's text with the changes, and with the comment behind it.

        Args:
            new: Its tree with the changes.
        """
        start, end = self.span(node)
        indent = self._margin(start)[0]
        lines = [each for line, each in enumerate(self.starts) if start < each < end and line not in self.inside]
        margins = [(each, each + len(indent), b"") for each in lines if self.raw.startswith(indent, each)]
        text, done = b"", start
        for first, last, put in sorted([*self.edits, *margins], key=lambda edit: (edit[0], -edit[1])):
            if done <= first and last <= end:
                text, done = text + self.raw[done:first] + put, last
        text += self.raw[done:end]
        behind = re.compile(rb"[ \t]*(#.*)").match(self.raw, end)
        plain = (text + b"  " + behind[1] if behind and not _LINTERS.match(behind[1]) else text).decode()
        return plain if _is_same(plain, new) else ast.unparse(new)

    def _margin(self, place: int) -> re.Match[bytes]:
        """Return the white space that the line of a place begins with."""
        found = re.compile(rb"[ \t]*").match(self.raw, self.raw.rfind(b"\n", 0, place) + 1)
        assert found
        return found


def _is_same(text: str, node: ast.stmt) -> bool:
    """Say whether a text is one statement, with this tree."""
    try:
        found = ast.parse(text).body
    except SyntaxError:
        return False
    return len(found) == 1 and ast.dump(found[0]) == ast.dump(node)
