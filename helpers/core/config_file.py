"""A run's checked configuration as a file, `config.json`: written by each training run, read by `helpers train`.

It holds every parameter with its value, which of them the user gave (`given`), the folder that relative paths begin at,
the revision of a hub data set, and, once the rows are known, how they are laid out.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from helpers.core.config import DATASETS, RunConfig, build_config, file_kind, parameters
from helpers.core.distributed import Share
from helpers.core.errors import ConfigError
from helpers.core.files import read_json, write_json
from helpers.core.runs import CONFIG, RunDirectory

__all__ = ["read_config", "record_layout", "write_config"]

_FORMAT = 1
"""Goes up when a reader must know more."""

_NOTES = ("data", "folder", "format", "given", "layout", "run_id", "task")
"""What stands in the file beside the parameters."""


def write_config(run: RunDirectory, config: RunConfig) -> None:
    """Write a run's configuration into its directory."""
    name = config.data.dataset_name
    local = bool(file_kind(name)) or Path(name).exists()
    data = {
        "path": str(Path(name).resolve()) if local else None,
        "revision": None if local else config.data.dataset_revision or DATASETS.get(name),
    }
    notes = {"data": data, "folder": os.getcwd(), "format": _FORMAT, "given": sorted(config.given)}
    notes["run_id"] = run.run_id()
    write_json(run.path / CONFIG, {"task": config.task, **config.flat(), **notes})


def record_layout(run: RunDirectory, config: RunConfig, share: Share) -> None:
    """Add to a run's configuration how its rows are laid out on the hardware; not where none was written."""
    if (run.path / CONFIG).is_file():
        chosen = ("gradient_checkpointing", "checkpoint_skip_layers")
        layout = {**dataclasses.asdict(share), **{name: getattr(config.train, name) for name in chosen}}
        write_json(run.path / CONFIG, {**read_json(run.path / CONFIG), "layout": layout})


def read_config(path: Path | str) -> RunConfig:
    """Read a run's configuration back, checked again. A value that was changed in the file is one that the user gave.

    Args:
        path: `config.json`, or the run directory that holds it.

    Raises:
        ConfigError: A parameter is missing, unknown or wrong, or the file is of a later version of the package.
        RunError: The file cannot be read.
    """
    path = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    values = read_json(path)
    _check_format(values, path)
    task = values["task"]
    chosen = {name: value for name, value in values.items() if name not in (*_NOTES, "preset", "run_name")}
    config = build_config(task, preset=values["preset"], run_name=values["run_name"], **chosen)
    if missing := [name for name in parameters(task) if name not in chosen]:
        raise ConfigError(str(path), f"the parameter {missing[0]}", sorted(chosen), "Run the notebook's cells again.")
    preset = build_config(task, preset=values["preset"], run_name=values["run_name"]).flat()
    changed = {name for name, value in config.flat().items() if value != preset[name]}
    return dataclasses.replace(config, given=frozenset(values["given"]) | changed)


def _check_format(values: dict[str, Any], path: Path) -> None:
    """Raise unless the file says what it is."""
    remedy = "Run the notebook's cells up to start_run again: they write it."
    for name in ("task", "preset", "run_name"):
        if not isinstance(values.get(name), str):
            raise ConfigError(str(path), f"a run's configuration with a {name}", values.get(name), remedy)
    if values.get("format") != _FORMAT:
        raise ConfigError(str(path), f"format {_FORMAT}", values.get("format"), remedy)
    given = values.get("given")
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ConfigError(str(path), "a list of the parameters that were given", given, remedy)
