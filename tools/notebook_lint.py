"""What every notebook of this project looks like, as checks that contributors and tests run.

Each check takes a notebook's JSON and yields problems in words. Lines are non-blank source lines.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from helpers.cli.parameters import TASKS, find_task, read_notebook, read_parameters
from helpers.core.errors import HelpersError
from tools.build_notebooks import notebook_text

__all__ = ["MEDIAN_LINES", "MOST_LINES", "MOST_WORDS", "PROSE_SHARE", "check_notebook", "expected_parameters"]

MEDIAN_LINES = 4
"""A code cell's median length, in lines, at most; the parameters, one a line, are not counted."""

MOST_LINES = 15
"""A code cell's length, in lines, at most, unless it holds one of `LONG_CALLS`."""

LONG_CALLS = ("SFTTrainer(", "from_pretrained(", "apply_chat_template(", "get_peft_model(")
"""Calls whose arguments are worth a line each."""

DEF_LINES = 10
"""A function's length in a notebook, in lines, at most; longer ones belong into the package."""

SHOWN_CALLS = (
    "load_dataset",
    "map",
    "FastLanguageModel.from_pretrained",
    "apply_chat_template",
    "FastLanguageModel.get_peft_model",
    "print_trainable_parameters",
    "SFTConfig",
    "SFTTrainer",
    "trainer.train",
    "model.save_pretrained",
    "tokenizer.save_pretrained",
    "PeftModel.from_pretrained",
    "FastLanguageModel.for_inference",
    "generate",
    "TextStreamer",
)
"""What a training notebook calls itself, rather than by way of this package."""

PROVING_CALLS = ("merge_16bit", "verify_adapter", "verify_merged", "write_card")
"""What this package adds after a training, which each of its notebooks shows too."""

WRITING_CALLS = (
    "export_gguf",
    "merge_16bit",
    "plot_categories",
    "plot_lengths",
    "plot_losses",
    "publish",
    "save_pretrained",
    "update_manifest",
    "update_metrics",
    "write_card",
    "write_json",
    "write_script",
)
"""What one process does for all: in a training notebook's cells tagged "main" or "notebook" alone."""

AFTER_UNSLOTH = ("transformers", "trl", "peft", "helpers.training.callbacks")
"""What is imported after unsloth, which changes it."""

PROSE_SHARE = 0.8
"""Share of code cells that follow a Markdown cell, at least."""

MOST_WORDS = 1800
"""Words of a training notebook's Markdown at most, without the line of badges."""

RUN_PARAMETERS = {
    "preset": ("str", "auto, colab-t4, large-gpu or smoke"),
    "run_name": ("str", ""),  # the task says what None takes
    "resume": ("str", "auto (go on with an earlier run), never (start over) or must"),
}
"""Type and help of the parameters that are not a run's settings."""

CODE = (ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.Delete, ast.For, ast.With, ast.If)


def check_notebook(path: Path, badges: str | None = None) -> list[str]:
    """Return what is wrong with a notebook's structure, in words.

    Args:
        path: An .ipynb file with its .py pair beside it.
        badges: The line of badges that its first Markdown cell must have, from `tools.badges.notebook_badges`.

    Raises:
        RunError: The file is not a notebook.
        StackError: jupytext is not installed.
    """
    content = read_notebook(path)
    checks = [_outputs, _ids, _metadata, _lengths, _definitions, _dead_code, _prose, _unseen]
    if any("core" in cell["metadata"].get("tags", []) for cell in content["cells"]):
        checks += [_words, _shown_calls, _import_order, _one_process]
    problems = [problem for check in checks for problem in check(content)]
    problems += _parameters(path, content)
    problems += _badges(content, badges) if badges else []
    return problems + list(_pair(path))


def expected_parameters(task: str = "alpaca") -> dict[str, tuple[str, str]]:
    """Return type and help text of each parameter of a notebook, in order.

    Args:
        task: One of `helpers.cli.parameters.TASKS`.

    Example:
        >>> expected_parameters()["max_steps"]
        ('int', 'end after this many optimizer steps [steps]')
    """
    kind = find_task(task)
    expected = RUN_PARAMETERS | {"run_name": ("str", kind.run_name)}
    for name, each in kind.parameters().items():
        unit = f" [{each.metadata['unit']}]" if each.metadata["unit"] else ""
        expected[name] = (str(each.type).split(" ")[0], each.metadata["help"] + unit)
    return expected


def _code(content: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and source of each code cell."""
    for number, cell in enumerate(content["cells"], 1):
        if cell["cell_type"] == "code":
            yield number, cell["source"]


def _lines(source: str) -> int:
    return sum(1 for line in source.splitlines() if line.strip())


def _tree(source: str) -> ast.Module | None:
    """Parse a cell; lines for IPython (%magic, !command) count as nothing."""
    plain = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
    try:
        return ast.parse(plain)
    except SyntaxError:
        return None


def _outputs(content: dict[str, Any]) -> Iterator[str]:
    for number, cell in enumerate(content["cells"], 1):
        if cell.get("outputs") or cell.get("execution_count") is not None:
            yield f"cell {number} has outputs or an execution count; build it with scripts/build_notebooks"
    if "widgets" in content["metadata"]:
        yield "widget state is kept, which bloats the file and breaks its display on GitHub"


def _ids(content: dict[str, Any]) -> Iterator[str]:
    ids = [cell.get("id") for cell in content["cells"]]
    if None in ids or (content.get("nbformat"), content.get("nbformat_minor")) < (4, 5):
        yield "cells have no ids, which nbformat 4.5 asks for"
    elif len(set(ids)) < len(ids):
        yield "two cells have the same id"


def _metadata(content: dict[str, Any]) -> Iterator[str]:
    metadata = content["metadata"]
    wanted = {
        "accelerator": (metadata.get("accelerator"), "GPU"),
        "colab.gpuType": (metadata.get("colab", {}).get("gpuType"), "T4"),
        "kernelspec.name": (metadata.get("kernelspec", {}).get("name"), "python3"),
    }
    for name, (got, expected) in wanted.items():
        if got != expected:
            yield f"metadata {name} is {got!r}, not {expected!r}"


def _lengths(content: dict[str, Any]) -> Iterator[str]:
    lengths = {}
    for number, source in _code(content):
        if "parameters" not in content["cells"][number - 1]["metadata"].get("tags", []):
            lengths[number] = _lines(source)
    if lengths and statistics.median(lengths.values()) > MEDIAN_LINES:
        yield f"the median code cell has {statistics.median(lengths.values())} lines, more than {MEDIAN_LINES}"
    for number, length in lengths.items():
        long = any(call in content["cells"][number - 1]["source"] for call in LONG_CALLS)
        if length > MOST_LINES and not long:
            yield f"cell {number} has {length} lines, more than {MOST_LINES}"
        if length == 0:
            yield f"cell {number} is empty"


def _definitions(content: dict[str, Any]) -> Iterator[str]:
    for number, source in _code(content):
        tree = _tree(source)
        if tree is None:
            yield f"cell {number} is not Python"
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                length = _lines(ast.get_source_segment(source, node) or "")
                if length > DEF_LINES:
                    yield f"cell {number} defines {node.name} in {length} lines; put it into the package"


def _dead_code(content: dict[str, Any]) -> Iterator[str]:
    for number, source in _code(content):
        for node in ast.walk(_tree(source) or ast.Module([], [])):
            if isinstance(node, (ast.If, ast.While)) and isinstance(node.test, ast.Constant) and not node.test.value:
                yield f"cell {number} has code that never runs; make it a parameter"
        for line in source.splitlines():
            if re.match(r"\s*#", line) and _is_code(line.strip().lstrip("# ")):
                yield f"cell {number} has code in a comment: {line.strip()}"


def _is_code(text: str) -> bool:
    """Whether a comment's text is a statement, and not a word or two of prose that happen to parse."""
    if text.startswith("@param") or not text:
        return False
    tree = _tree(text + ("\n    pass" if text.endswith(":") else ""))
    return any(_is_statement(node) for node in tree.body) if tree else False


def _is_statement(node: ast.stmt) -> bool:
    """Whether a parsed line does something; `note: this` parses too, as an annotation without a value."""
    if isinstance(node, ast.AnnAssign):
        return node.value is not None
    return isinstance(node, CODE) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


def _prose(content: dict[str, Any]) -> Iterator[str]:
    kinds = [cell["cell_type"] for cell in content["cells"]]
    code = kinds.count("code")
    introduced = sum(pair == ("markdown", "code") for pair in pairwise(kinds))
    if code and introduced < PROSE_SHARE * code:
        yield f"{introduced} of {code} code cells follow a Markdown cell, less than {PROSE_SHARE:.0%}"


def _unseen(content: dict[str, Any]) -> Iterator[str]:
    for number, source in _code(content):
        for node in (_tree(source) or ast.Module([], [])).body[:-1]:
            call = (
                ast.unparse(node.value.func) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else ""
            )
            if call.startswith(("show_", "plot_")):
                yield f"cell {number} calls {call} before its last line; a notebook shows the last value alone"


def _tags(content: dict[str, Any], number: int) -> set[str]:
    return set(content["cells"][number - 1]["metadata"].get("tags", []))


def _calls(source: str) -> Iterator[str]:
    """Yield the name of each function that a cell calls, as it is written."""
    for node in ast.walk(_tree(source) or ast.Module([], [])):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def _words(content: dict[str, Any]) -> Iterator[str]:
    texts = [cell["source"] for cell in content["cells"] if cell["cell_type"] == "markdown"]
    lines = [line.lstrip("# ") for text in texts for line in text.splitlines() if "badge" not in line]
    if (count := sum(len(line.split()) for line in lines)) > MOST_WORDS:
        yield f"the Markdown cells have {count} words, more than {MOST_WORDS}"


def _shown_calls(content: dict[str, Any]) -> Iterator[str]:
    called = {call for _, source in _code(content) for call in _calls(source)}
    for name in (*SHOWN_CALLS, *PROVING_CALLS):
        if not any(call == name or call.endswith(f".{name}") for call in called):
            yield f"no cell calls {name}"


def _import_order(content: dict[str, Any]) -> Iterator[str]:
    imported: list[str] = []
    for number, source in _code(content):
        for node in ast.walk(_tree(source) or ast.Module([], [])):
            if isinstance(node, ast.ImportFrom):
                imported.append(node.module or "")
                if node.module in AFTER_UNSLOTH and "unsloth" not in imported:
                    yield f"cell {number} imports {node.module} before unsloth"


def _one_process(content: dict[str, Any]) -> Iterator[str]:
    """A launched training runs untagged cells in all processes, those tagged "main" in one, "notebook" in none."""
    bound: dict[str, set[str]] = {}
    for number, source in _code(content):
        tags = _tags(content, number)
        alone = tags & {"main", "notebook"}
        names = [node for node in ast.walk(_tree(source) or ast.Module([], [])) if isinstance(node, ast.Name)]
        for call in set(_calls(source)) if not alone else ():
            if call.split(".")[-1] in WRITING_CALLS:
                yield f"cell {number} calls {call} in each process; tag it main"
        own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        for name in sorted({node.id for node in names} - own):
            if "notebook" not in tags and not bound.get(name, set()) <= alone:
                yield f"cell {number} reads {name}, which is bound in a cell tagged {', '.join(bound[name])} alone"
        bound |= dict.fromkeys(own, alone)


def _parameters(path: Path, content: dict[str, Any]) -> Iterator[str]:
    try:
        declared = read_parameters(path)
    except HelpersError as error:
        yield str(error)
        return
    if not declared:
        yield "no cell is tagged parameters, or it is empty"
    task = content["metadata"].get("mistral_qlora", {}).get("task")
    if task not in TASKS:  # a notebook of another kind
        return
    expected = expected_parameters(task)
    for name in [*declared, *expected]:
        got = (declared[name].type, declared[name].help) if name in declared else None
        if name not in expected:
            yield f"parameter {name} is none of the configuration's"
        elif got != expected[name]:
            yield "parameter {0} should be `{0} = ...  # type: {1}  {2}`".format(name, *expected[name])


def _badges(content: dict[str, Any], line: str) -> Iterator[str]:
    first = next((cell["source"] for cell in content["cells"] if cell["cell_type"] == "markdown"), "")
    if line not in first.splitlines():
        yield f"the first Markdown cell lacks the line of badges: {line}"


def _pair(path: Path) -> Iterator[str]:
    source = path.with_suffix(".py")
    if not source.is_file():
        yield f"{source.name}, from which it should be built, is not there"
    elif notebook_text(source) != path.read_text(encoding="utf-8"):
        yield f"it differs from {source.name}; run scripts/build_notebooks"
