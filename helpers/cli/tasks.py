"""What a notebook can be about, by the `task` in its metadata: which parameters it has, and how they are checked.

The runner checks a notebook's parameters before it starts a kernel, in the same way as the notebook's first cell does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from helpers.core.config import build_config, parameters
from helpers.core.errors import ConfigError
from helpers.core.settings import nearest

__all__ = ["TASKS", "Plan", "Task", "find_task"]


@dataclass(frozen=True)
class Plan:
    """A run that may begin.

    Args:
        run_name: Folder under `runs/`.
        parameters: What decides whether an earlier run of that name is the same one.
    """

    run_name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A kind of notebook.

    Args:
        run_name: What the parameter `run_name` does if nobody gives it.
        parameters: Returns each parameter but `preset`, `run_name` and `resume`, with help, unit and limits.
        plan: Takes a resolved preset, a run name or None, and values by name; checks them together.
    """

    run_name: str
    parameters: Callable[[], dict[str, dataclasses.Field]]
    plan: Callable[[str, str | None, Mapping[str, Any]], Plan]


def find_task(name: str) -> Task:
    """Return the task of a name.

    Args:
        name: As in a notebook's metadata.

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

    def plan(preset: str, run_name: str | None, values: Mapping[str, Any]) -> Plan:
        config = build_config(task, preset=preset, run_name=run_name, **values)
        return Plan(config.run_name, config.flat())

    return Task("folder under runs/; None takes the task and the preset", lambda: parameters(task), plan)


def _evaluation_parameters() -> dict[str, dataclasses.Field]:
    from helpers.evaluation.config import evaluation_parameters

    return evaluation_parameters()


def _plan_evaluation(preset: str, run_name: str | None, values: Mapping[str, Any]) -> Plan:
    """Check a comparison's parameters, and that its adapter and prompts are there."""
    from helpers.evaluation.adapter import known_adapter, source_name, training_config
    from helpers.evaluation.config import build_evaluation_config
    from helpers.evaluation.prompts import read_questions

    config = build_evaluation_config(preset=preset, run_name=run_name, **values)
    source = known_adapter(config)
    named = source_name(config, source)
    if source:
        training_config(source, config)
    read_questions(config.prompts_file, config.prompt_count)
    return Plan(config.run_name, {**config.identity(), "adapter_dir": named})


TASKS = {
    "alpaca": _training("alpaca"),
    "dolly": _training("dolly"),
    "side_by_side": Task("folder under runs/; None takes side-by-side", _evaluation_parameters, _plan_evaluation),
}
"""All tasks by name."""
