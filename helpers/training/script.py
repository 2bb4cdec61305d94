"""The training of a run as a plain script without this package: what `python -m helpers eject` gives.

A notebook's cells tagged "core" are the training. Their text is kept as it stands; what other cells computed
(`cfg.learning_rate`, `**machine.sft`) is replaced by its value, and a choice that a value decides by the branch taken.
What has no value to write down, a callback or a context manager, is left out: it watches the training and does not
change it. Functions of this package that a core cell imports are written out.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from helpers.core.distributed import place
from helpers.core.errors import RunError
from helpers.core.files import write_bytes, write_text
from helpers.core.runs import RunDirectory
from helpers.model.smollm2 import smollm2_folder
from helpers.training.program import TRAINING, find_program, read_cells

__all__ = ["copy_inputs", "read_script", "write_script"]

_SCRIPT = "train.py"
"""The script's name in a run directory."""

_SMALL_MODEL = "smollm2-135m"
"""What a script calls the folder of the bundled model."""

_PURE = ("max", "min")
"""Functions whose value may stand in the place of a call."""

_ALONE = ("ddp_find_unused_parameters", "device_map", "use_cpu")
"""Arguments that only several processes need."""


def write_script(run: RunDirectory, namespace: Mapping[str, Any]) -> str:
    """Write a notebook's training, with this run's values, into the run's folder; return the text.

    In Jupyter the cells are those that were executed, also where they were edited.

    Args:
        namespace: The notebook's `globals()`, once the trainer is built.
    """
    cells = read_cells(find_program(TRAINING[namespace["config"].task]))
    others = [cell.text for cell in cells if "core" not in cell.tags]
    core = [_executed(cell.text, [c.text for c in cells], namespace) for cell in cells if "core" in cell.tags]
    values = _for_one_process(namespace)
    if namespace["config"].model.model_name == _SMALL_MODEL:
        values["base"] = _SMALL_MODEL
    train = namespace["config"].train
    chosen = train.keep == "best" or train.early_stopping is not None
    left_out = "`keep` and `early_stopping` are not in it: it trains to the end, and keeps the last adapter."
    text = make_script(
        core, others, values, title=run.path.name, folder=str(run.path), notes=[left_out] if chosen else []
    )
    write_text(run.path / _SCRIPT, text)
    return text


def read_script(run: RunDirectory) -> str:
    """Return the script that a run left.

    Raises:
        RunError: It left none.
    """
    path = run.path / _SCRIPT
    if not path.is_file():
        remedy = "Run its notebook again: with the same parameters nothing is trained twice."
        raise RunError("run", f"a run whose training wrote {_SCRIPT}", run.shown(), remedy)
    return path.read_text(encoding="utf-8")


def copy_inputs(run: RunDirectory, script: str, folder: Path) -> list[str]:
    """Put beside a script what it reads there, and return the names: the run's rows, and a link to the small model."""
    names = _inputs(script)
    for name in names:
        target = folder / name
        if name == _SMALL_MODEL:
            if not target.exists():
                target.symlink_to(smollm2_folder(), target_is_directory=True)
        elif target.resolve() != (run.path / name).resolve():
            write_bytes(target, (run.path / name).read_bytes())
    return names


def _inputs(script: str) -> list[str]:
    """Return the files and folders that a script reads in the folder where it runs."""
    return sorted(set(re.findall(rf"'(rows_\w+\.jsonl|{_SMALL_MODEL})'", script)))


def make_script(
    core: Sequence[str],
    others: Sequence[str],
    namespace: Mapping[str, Any],
    *,
    title: str,
    folder: str,
    notes: Sequence[str] = (),
) -> str:
    """Return cells as one script.

    Args:
        core: The text of each cell that is the training.
        others: Of all other cells; what they bind is replaced by its value.
        title: What the script's first line names.
        folder: The run's, which the script does not write into.
        notes: Sentences on what the script leaves out.
    """
    made = {name for text in others for name in _bound(text)} - {name for text in core for name in _bound(text)}
    values = {name: namespace[name] for name in made if name in namespace}
    watching = {name for text in others for name in _from_package(text)}
    writer = _Writer(values, watching, folder)
    body = "\n\n".join(filter(None, (writer.fold(text) for text in core)))
    body = _without_unused(body, writer.inlined(body)).replace(f"'{folder}/", "'")
    body = re.sub(r"\n{4,}", "\n\n\n", body.strip())
    lines = [f"{title}: the training alone, with this run's values, for one process."]
    lines += ["", *notes] if notes else []
    if names := _inputs(body):
        lines += [
            "",
            f"It reads {' and '.join(names)} in the folder where it is run;",
            f"`python -m helpers eject {title} -o FILE` puts them beside FILE.",
            "",
        ]
    words = "\n".join(lines)
    return f'"""{words}"""\n\n{body}\n'


def _executed(text: str, known: Sequence[str], namespace: Mapping[str, Any]) -> str:
    """Return a cell's text as it was executed: another text only where somebody edited the cell."""
    entries = [each.strip("\n") for each in namespace.get("In", ())]
    if not entries or text in entries:
        return text
    edited = [entry for entry in entries if entry and entry not in known]
    return next(iter(get_close_matches(text, edited, n=1, cutoff=0.7)), text)


def _for_one_process(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for a training in one process, with the same rows a step."""
    layout, machine, count = namespace["layout"], namespace["machine"], place().count
    if count == 1:
        return dict(namespace)
    parts = {name: {k: v for k, v in getattr(machine, name).items() if k not in _ALONE} for name in ("loading", "sft")}
    layout = dataclasses.replace(layout, gradient_accumulation=layout.gradient_accumulation * count)
    return {**namespace, "layout": layout, "machine": dataclasses.replace(machine, **parts)}


def _bound(text: str) -> Iterator[str]:
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


def _from_package(text: str) -> Iterator[str]:
    """Return the names that a cell imports from this package."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
            yield from (alias.asname or alias.name for alias in node.names)


class _NoLiteralError(Exception):
    """A value that cannot be written down."""


class _Writer:
    """Writes cells with values in the place of expressions.

    Args:
        watching: What they import from this package.
    """

    def __init__(self, values: dict[str, Any], watching: set[str], folder: str) -> None:
        self.values, self.watching, self.folder = values, watching, folder
        self.lines: list[str] = []
        self.imported: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """Return one cell's text."""
        parts = [self._statement(text, node) for node in ast.parse(text).body]
        comments = [line for line in text.split("\n")[: self._first_line(text)] if line.startswith("#")]
        return "\n".join(filter(None, [*comments, *parts]))

    def inlined(self, body: str) -> str:
        """Return the definitions of this package's functions that the script calls."""
        wanted = {name: module for name, module in self.imported.items() if name in _loaded(body)}
        written: dict[str, str] = {}
        for name, module in wanted.items():
            _write_out(importlib.import_module(module), name, written)
        return "\n\n".join(written.values())

    @staticmethod
    def _first_line(text: str) -> int:
        body = ast.parse(text).body
        return body[0].lineno - 1 if body else 0

    def _statement(self, text: str, node: ast.stmt) -> str:
        """Return one statement, with the lines that draw its rows before it."""
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
            self.imported |= {alias.asname or alias.name: str(node.module) for alias in node.names}
            return ""
        lines = text.split("\n")
        if isinstance(node, ast.With) and all(self._watches(item.context_expr) for item in node.items):
            for item in node.items:
                if isinstance(item.optional_vars, ast.Name):
                    self.values[item.optional_vars.id] = item.optional_vars.id
            inside = textwrap.dedent("\n".join(lines[node.body[0].lineno - 1 : node.end_lineno]))
            return self.fold(inside)
        if isinstance(node, ast.If) and (taken := self._branch(node)) is not None:
            if not taken:
                return ""
            return self.fold(textwrap.dedent("\n".join(lines[taken[0].lineno - 1 : taken[-1].end_lineno])))
        before = len(self.lines)
        folded = self._folded("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        drawn = self.lines[before:]
        for line in [each for each in drawn if each.startswith("from helpers")]:
            alias = ast.parse(line).body[0]
            assert isinstance(alias, ast.ImportFrom)
            self.imported |= {each.name: str(alias.module) for each in alias.names}
        gap = "\n\n" if isinstance(node, ast.FunctionDef) else ""
        return gap + "\n".join([*(each for each in drawn if not each.startswith("from helpers")), folded]) + gap

    def _branch(self, node: ast.If) -> list[ast.stmt] | None:
        """Return the statements that run, if a value decides it."""
        try:
            return node.body if self._value(node.test) else node.orelse
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
                edits.append((*span(node), self._shown(self._value(node))))
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
            if node.arg is not None:
                edits.append((*span(node.value), self._shown(value)))
            elif value:
                indent = " " * node.col_offset
                edits.append((start, end, f",\n{indent}".join(f"{k}={self._shown(v)}" for k, v in value.items())))
            else:
                drop(start, end)

        def drop(start: int, end: int) -> None:
            """Leave a keyword out, with its line if it stands alone there."""
            line, stop = raw.rfind(b"\n", 0, start) + 1, end + raw[end : end + 1].count(b",")
            alone = not raw[line:start].strip() and raw[stop : stop + 1] == b"\n"
            edits.append((line, stop + 1, "") if alone else (start, stop, ""))

        visit(ast.parse(text))
        for start, end, new in sorted(edits, reverse=True):
            raw = raw[:start] + new.encode() + raw[end:]
        return raw.decode()

    def _chosen(self, node: ast.IfExp) -> ast.expr | None:
        try:
            return node.body if self._value(node.test) else node.orelse
        except (KeyError, _NoLiteralError):
            return None

    def _value(self, node: ast.expr) -> Any:
        """Return the value of an expression over the other cells' names alone.

        Raises:
            KeyError: It has other names, or none.
            _NoLiteralError: Its value cannot be written down.
        """
        names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
        if any(not (isinstance(func, ast.Name) and func.id in _PURE) for func in calls):
            raise KeyError("a call")
        if not names - set(_PURE) or not names <= {*self.values, *_PURE}:
            raise KeyError("other names")
        value = eval(compile(ast.Expression(node), "", "eval"), dict(self.values))  # noqa: S307 - the notebook's text
        if isinstance(value, str) and value.startswith(f"{self.folder}/checkpoints"):
            return "checkpoints"
        try:
            same = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise _NoLiteralError
        return value

    def _watches(self, node: ast.expr) -> bool:
        """Say whether an expression is something that other cells made and that only watches."""
        if isinstance(node, ast.Call):
            root = node.func
            while isinstance(root, ast.Attribute):
                root = root.value
            return isinstance(root, ast.Name) and root.id in {*self.values, *self.watching, *self.imported}
        return isinstance(node, ast.List) and any(isinstance(e, ast.Name) and e.id in self.values for e in node.elts)

    def _shown(self, value: Any) -> str:
        """Return a value as source: rows by their draw, numbers in a row as a range, long text over several lines."""
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
        if isinstance(value, str) and value.count("\n") > 2 and '"""' not in value:
            text = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"""\\\n{text}"""'
        return repr(value)


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
            if node.module in ("__future__", "typing", "collections.abc"):
                continue
            written.setdefault(name, f"from {node.module} import {name}")


def _plain_source(source: str, node: ast.stmt) -> str:
    """Return a definition's text without its docstring."""
    lines = source.split("\n")[node.lineno - 1 : node.end_lineno]
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
        words = node.body[0]
        del lines[words.lineno - node.lineno : (words.end_lineno or 0) - node.lineno + 1]
    gap = "\n" if isinstance(node, ast.FunctionDef) else ""
    return gap + "\n".join(lines) + gap


def _without_unused(body: str, definitions: str) -> str:
    """Put definitions after the imports, and leave out imported names that are not used."""
    lines, last = body.split("\n"), 0
    used = _loaded(body) | _loaded(definitions)
    for node in ast.parse(body).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            kept = [each for each in node.names if (each.asname or each.name).split(".")[0] in used]
            line = lines[node.lineno - 1]
            if len(kept) < len(node.names):
                names = ", ".join(each.name for each in kept)
                if isinstance(node, ast.ImportFrom):
                    line = f"from {node.module} import {names}" if kept else ""
                else:
                    line = f"import {names}" if kept else ""
            lines[node.lineno - 1] = line
            last = node.lineno
    head = [line for line in lines[:last] if line]
    if not definitions:
        return "\n".join([*head, *lines[last:]])
    return "\n".join(["from __future__ import annotations", "", *head, "", definitions, "", *lines[last:]])
