"""A notebook's parameters: those that its one cell declares, and those that its `task` has, with their checks.

Each line of the cell is `name = literal  # type: int  help, with its unit`. papermill drops a line with a second "="
from its inspection without an error, and cuts a default at "#" (papermill/translators.py, PythonTranslator.inspect);
here both are errors.

The runner checks a notebook's parameters before it starts a kernel, in the same way as the notebook's first cell does.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.config import build_config, parameters
from helpers.core.errors import ConfigError, RunError
from helpers.core.settings import nearest

__all__ = ["TASKS", "find_task", "read_notebook", "read_parameters", "typed_values"]


TYPES = {"int": int, "float": float, "bool": bool, "str": str}
"""What may stand after `type:`."""

_EXPECTED = "lines such as `max_steps = None  # type: int  end after this many steps [steps]`"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook.

    Args:
        type: "int", "float", "bool" or "str". One whose default is None takes None as well.
    """

    name: str
    default: Any
    type: str
    help: str


def read_notebook(path: Path) -> dict[str, Any]:
    """Return a notebook's JSON, each source as one text.

    Raises:
        RunError: The file is not a notebook.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["metadata"].get("kernelspec")
        for cell in content["cells"]:
            cell["source"] = "".join(cell["source"])
            "parameters" in cell["metadata"].get("tags", [])  # noqa: B015 - must not raise later
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = "Download it again, or build it with scripts/build_notebooks."
        raise RunError(str(path), "a readable notebook", type(error).__name__, remedy) from error
    return content


def read_parameters(path: Path) -> dict[str, Parameter]:
    """Read what the cell tagged `parameters` declares, through papermill's own inspection.

    Returns:
        Parameters by name, in their order; none if no cell has the tag.

    Raises:
        RunError: There are several such cells, or papermill cannot read one of their lines as a parameter.
    """
    cells = [cell for cell in read_notebook(path)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) > 1:
        raise RunError(path.name, "one cell tagged parameters", len(cells), "Take the tag off the others.")
    source = cells[0]["source"] if cells else ""
    lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, Parameter] = {}
    for line in lines:
        parameter = _read_line(path, line)
        if parameter.name in found:
            remedy = "Remove one of the two lines."
            raise RunError(f"{path.name}, parameters", "each name once", parameter.name, remedy)
        found[parameter.name] = parameter
    return found


def _read_line(path: Path, line: str) -> Parameter:
    """Read one line, and make sure that papermill reads it alike."""
    declared, read = _by_python(line), _by_papermill(line)
    if declared is None or read is None or declared != (read.name, read.default) or not _fits(read):
        remedy = "One parameter a line, with one '=', a plain value and no '#' in it, a type and a help text."
        raise RunError(f"{path.name}, parameters", _EXPECTED, line, remedy)
    return read


def _fits(parameter: Parameter) -> bool:
    """Whether type and default belong together, and there is a help text."""
    kind, default = TYPES.get(parameter.type), parameter.default
    whole_for_float = kind is float and type(default) is int
    return kind is not None and bool(parameter.help) and (default is None or type(default) is kind or whole_for_float)


def _by_python(line: str) -> tuple[str, Any] | None:
    """Return name and value that Python sees in a line, or None."""
    try:
        (statement,) = ast.parse(line).body
        (target,) = statement.targets  # type: ignore[attr-defined]
        return target.id, ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return None  # the last two: ast on brackets that are nested too deeply


def _by_papermill(line: str) -> Parameter | None:
    """Return what papermill sees in a line, or None."""
    from papermill.translators import PythonTranslator

    if line.count("=") != 1:
        return None
    try:
        (read,) = PythonTranslator.inspect({"source": line})
        return Parameter(read.name, ast.literal_eval(read.default), read.inferred_type_name, read.help)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


@dataclass(frozen=True)
class Task:
    """A kind of notebook.

    Args:
        run_name: What the parameter `run_name` does if nobody gives it.
        parameters: Returns each parameter but `preset`, `run_name` and `resume`, with help, unit and limits.
        plan: Takes a resolved preset, a run name or None, and values by name; checks them together, and returns the
            run's name and what decides whether an earlier run of that name is the same one.
    """

    run_name: str
    parameters: Callable[[], dict[str, dataclasses.Field]]
    plan: Callable[[str, str | None, Mapping[str, Any]], tuple[str, dict[str, Any]]]


def typed_values(pairs: Sequence[str]) -> dict[str, str]:
    """Return the parameters that were typed as `-p PARAMETER=VALUE`.

    Raises:
        ConfigError: One is not of this form, or has two values.
    """
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError("-p", "PARAMETER=VALUE, such as max_steps=60", pair, "Write no spaces around the =.")
        if given.get(name, value) != value:
            raise ConfigError(name, "one value", f"{given[name]} and {value}", "Leave one of the two out.")
        given[name] = value
    return given


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ConfigError: There is no such task.

    Example:
        >>> "adapter_dir" in find_task("side_by_side").parameters()
        True
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError("task", f"one of {', '.join(TASKS)}", name, nearest(name, list(TASKS)))
    return TASKS[name]


def _training(task: str) -> Task:
    """Return a training notebook's task."""

    def plan(preset: str, run_name: str | None, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        config = build_config(task, preset=preset, run_name=run_name, **values)
        return config.run_name, config.flat()

    return Task("folder under runs/; None takes the task and the preset", lambda: parameters(task), plan)


def _evaluation_parameters() -> dict[str, dataclasses.Field]:
    from helpers.evaluation.config import evaluation_parameters

    return evaluation_parameters()


def _plan_evaluation(preset: str, run_name: str | None, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Check a comparison's parameters, and that its adapter and prompts are there."""
    from helpers.evaluation.adapter import known_adapter, source_name, training_config
    from helpers.evaluation.config import build_evaluation_config
    from helpers.evaluation.prompts import read_questions

    config = build_evaluation_config(preset=preset, run_name=run_name, **values)
    source = known_adapter(config)
    named = source_name(config, source)
    task = training_config(source, config).task if source else config.task or "alpaca"
    read_questions(config.prompts_file, config.prompt_count, task, config.columns)
    return config.run_name, {**config.identity(), "adapter_dir": named}


TASKS = {
    "alpaca": _training("alpaca"),
    "dolly": _training("dolly"),
    "side_by_side": Task("folder under runs/; None takes side-by-side", _evaluation_parameters, _plan_evaluation),
}
"""All tasks by name."""
