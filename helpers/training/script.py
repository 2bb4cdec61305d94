"""The training of a run as a plain script without this package: what `python -m helpers eject` gives.

A notebook's cells tagged "core" are the training. Their text is kept as it stands; what this package and the other
cells computed (`cfg.learning_rate`, `**machine.sft`) is replaced by its value, and a choice that a value decides by the
branch taken. What has no value to write down, a callback or a context manager, is left out: it watches the training
and does not change it. So is what prints, and what the training does not read, such as the held-out rows. Functions of
this package that stay are written out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from helpers.core.distributed import place
from helpers.core.errors import RunError
from helpers.core.files import write_bytes, write_text
from helpers.core.runs import RunDirectory
from helpers.model.smollm2 import smollm2_folder
from helpers.training.program import TRAINING, find_program, read_cells
from helpers.training.script_layout import bound, from_package, lay_out
from helpers.training.script_values import ValueWriter

__all__ = ["copy_inputs", "read_script", "write_script"]

_SCRIPT = "train.py"
"""The script's name in a run directory."""

_SMALL_MODEL = "smollm2-135m"
"""What a script calls the folder of the bundled model."""

_ALONE = ("ddp_find_unused_parameters", "device_map", "use_cpu")
"""Arguments that only several processes need."""

_SHOWN = ("dataloader_pin_memory", "disable_tqdm", "logging_nan_inf_filter", "project", "report_to", "run_name")
"""Arguments that change what is shown, logged or warned of, and nothing else."""


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
    return sorted(set(re.findall(rf"[\"'](rows_\w+\.jsonl|{_SMALL_MODEL})[\"']", script)))


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
    package = {name: module for text in [*others, *core] for name, module in from_package(text)}
    made = {name for text in others for name in bound(text)} - {name for text in core for name in bound(text)}
    writer = ValueWriter({name: namespace[name] for name in made if name in namespace}, namespace, package, folder)
    body = lay_out([writer.fold(text) for text in core], package).replace(f'"{folder}/', '"')
    lines = [f"{title}: the training alone, with this run's values, for one process."]
    lines += ["", *notes] if notes else []
    if names := _inputs(body):
        lines += [
            "",
            f"It reads {' and '.join(names)}, which `python -m helpers eject {title} -o FILE` puts beside it.",
        ]
    words = "\n".join([*lines, ""] if len(lines) > 1 else lines)
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
    unneeded = (*_SHOWN, *_ALONE) if count > 1 else _SHOWN
    parts = ("loading", "sft")
    given = {part: {k: v for k, v in getattr(machine, part).items() if k not in unneeded} for part in parts}
    layout = dataclasses.replace(layout, gradient_accumulation=layout.gradient_accumulation * count)
    return {**namespace, "layout": layout, "machine": dataclasses.replace(machine, **given)}
