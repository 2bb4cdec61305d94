"""The training of a run as a plain script without this package: what `python -m helpers eject` gives.

A notebook's cells tagged "core" are the training. They are written as they were executed, edited or not, with this
run's values, by the rules of `helpers.training.script_cells`. A run whose cells do not fit these rules has no script,
and its manifest says why.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from helpers.core.distributed import place
from helpers.core.errors import RunError
from helpers.core.files import write_bytes, write_text, writing
from helpers.core.runs import RunDirectory
from helpers.data.chat_templates import ChatTemplate
from helpers.data.rows import DrawnRows
from helpers.model.smollm2 import smollm2_folder
from helpers.training.machine import Machine, StepLayout
from helpers.training.program import TRAINING, Cell, find_program, read_cells
from helpers.training.script_cells import write_cells
from helpers.training.script_text import Names, find_names
from helpers.training.script_values import Recipe, as_source, stored_owners

__all__ = ["copy_inputs", "read_script", "write_script"]

_SCRIPT = "train.py"
"""The script's name in a run directory."""

_SMALL_MODEL = "smollm2-135m"
"""What a script calls the folder of the bundled model."""

_ALONE = ("ddp_find_unused_parameters", "device_map", "use_cpu")
"""Arguments that only several processes need."""

_SHOWN = ("dataloader_pin_memory", "disable_tqdm", "logging_nan_inf_filter", "project", "report_to", "run_name")
"""Arguments that change what is shown, logged or warned of, and nothing else."""

_AGAIN = "Restart the kernel and run all cells."


def write_script(run: RunDirectory, namespace: Mapping[str, Any]) -> str:
    """Write a notebook's training, with this run's values, into the run's folder; return it, or why there is none.

    Args:
        namespace: The notebook's `globals()`, after the training's last cell.
    """
    config = namespace["config"]
    notes = ["The notebook measured losses on `heldout_dataset`; this script does not use it."]
    if config.train.keep == "best" or config.train.early_stopping is not None:
        notes.append("`keep` and `early_stopping` are not in it: it trains to the end, and keeps the last adapter.")
    refused, text = None, ""
    try:
        cells = executed_cells(read_cells(find_program(TRAINING[config.task])), namespace.get("In", ()))
        text = make_script(cells, script_values(namespace, run.path), title=run.path.name, notes=notes)
    except RunError as error:
        refused = [error.field, error.expected, str(error.got), error.remedy]
        text = f"No script: {error}\n"
        with writing(_SCRIPT, run.path, only=True):
            (run.path / _SCRIPT).unlink(missing_ok=True)
    else:
        write_text(run.path / _SCRIPT, text)
    run.update_manifest(script_refused=refused)
    return text


def read_script(run: RunDirectory) -> str:
    """Return the script that a run left.

    Raises:
        RunError: It left none, or could not.
    """
    path = run.path / _SCRIPT
    if refused := run.manifest().get("script_refused"):
        raise RunError(*refused)
    if not path.is_file():
        remedy = "It is written once the adapter is saved. Run its notebook again: training goes on where it stopped."
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


def make_script(cells: Sequence[Cell], namespace: Mapping[str, Any], *, title: str, notes: Sequence[str] = ()) -> str:
    """Return cells as one script.

    Args:
        title: What the script's first line names.
        notes: Sentences on what the script does not do.

    Raises:
        RunError: They cannot be written as a script that does the same.
    """
    body = write_cells(cells, namespace)
    words = f"{title}: the training alone, with this run's values, for one process."
    if names := _inputs(body):
        read = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        notes = [f"It reads {read}, which `python -m helpers eject {title} -o FILE` puts beside it.", *notes]
    if notes:
        words += f"\n\n{textwrap.fill(' '.join(notes), 112, break_on_hyphens=False)}\n"
    return f'"""{words}"""\n\n{body}\n'


def executed_cells(cells: Sequence[Cell], history: Sequence[str]) -> list[Cell]:
    """Return a notebook's cells, and those that were added to it, in the order of their last execution.

    What ran after the training's last cell is left out.

    Args:
        cells: All of the notebook's.
        history: IPython's `In`; empty outside of Jupyter, where the cells ran in their order.

    Raises:
        RunError: The cells of the training did not run once each, in their order.
    """
    texts = [cell.text for cell in cells]
    runs: dict[int, list[int]] = {}
    ran: dict[int, Cell] = {}
    for at, text in enumerate(each.strip("\n") for each in history):
        if text and _is_python(text):  # else it did not run
            known = [text] if text in texts else get_close_matches(text, texts, n=1, cutoff=0.7)
            ran[at] = dataclasses.replace(cells[texts.index(known[0])], text=text) if known else Cell(0, (), text)
            runs.setdefault(texts.index(known[0]) if known else -1 - at, []).append(at)
    if not history:
        ran = {at: cell for at, cell in enumerate(cells) if "notebook" not in cell.tags}
        runs = {at: [at] for at in ran}
    before = -1
    for number in [number for number, cell in enumerate(cells) if "core" in cell.tags]:
        here = [at for at in runs.get(number, []) if at > before]
        if not here or (len(here) > 1 and _rebinds(ran[here[-1]].text)):
            shown = texts[number].split("\n")[0]
            raise RunError("cell", "the training's cells to have run once, in their order", shown, _AGAIN)
        before = here[-1]
    last = sorted({each[-1] for each in runs.values()})
    kept = [ran[at] for at in last if at <= before]
    _check_later(kept, [ran[at] for at in last if at > before])
    return kept


def _check_later(kept: Sequence[Cell], later: Sequence[Cell]) -> None:
    """Raise if a cell after the training binds or changes a value that the training read: the values are today's."""
    read = _all_names([cell for cell in kept if "core" in cell.tags]).read
    given = _all_names([cell for cell in kept if "core" not in cell.tags]).bound & read
    parts = {name for each in later for node in ast.parse(each.text).body for name in stored_owners(node)}
    if changed := given & (_all_names(later).bound | parts):
        raise RunError(min(changed), "a value that no cell changes after the training", "another one", _AGAIN)


def _all_names(cells: Sequence[Cell]) -> Names:
    try:
        return find_names("\n".join(cell.text for cell in cells))
    except SyntaxError as error:
        raise RunError("cell", "Python that runs outside of notebooks too", str(error.msg), _AGAIN) from None


def _rebinds(text: str) -> bool:
    """Say whether a cell gives another result when it runs again: if it binds a name to what is made of the same."""
    nodes = [node for node in ast.parse(text).body if not isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    try:
        names = [find_names(ast.unparse(node)) for node in nodes]
    except SyntaxError:  # an `await` outside of functions
        return True
    return any(
        isinstance(node, ast.AugAssign) or each.bound & each.read for node, each in zip(nodes, names, strict=True)
    )


def _is_python(text: str) -> bool:
    try:
        compile(text, "", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError:
        return False
    return True


@dataclass(frozen=True)
class _Checkpoints:
    """What stands for the notebook's: a folder of the script's own."""

    folder: str = "checkpoints"


def script_values(namespace: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the values for a training in one process, with the same rows a step, beside the files that it reads.

    Args:
        namespace: The notebook's variables.
        folder: The run's, which the script does not read.
    """
    values, count = {**namespace, "checkpoints": _Checkpoints()}, place().count
    unneeded = (*_SHOWN, *_ALONE) if count > 1 else _SHOWN
    for name, value in namespace.items():
        match value:
            case Machine():
                parts = (value.loading, value.sft)
                loading, sft = ({k: v for k, v in part.items() if k not in unneeded} for part in parts)
                values[name] = dataclasses.replace(value, loading=loading, sft=sft)
            case StepLayout():
                accumulation = value.gradient_accumulation * count
                values[name] = dataclasses.replace(value, gradient_accumulation=accumulation)
            case DrawnRows(source={"data_files": dict(files)}):
                files = {part: file.removeprefix(f"{folder}/") for part, file in files.items()}
                values[name] = dataclasses.replace(value, source={**value.source, "data_files": files})
            case ChatTemplate():
                values[name] = template_recipes(value)
    if namespace["config"].model.model_name == _SMALL_MODEL:
        values["base"] = _SMALL_MODEL
    return values


def template_recipes(template: ChatTemplate) -> ChatTemplate:
    """Return a template as a text of several lines, and the one with marks as a change of one of them."""
    text, masked = template.text, template.masked
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    lines = [f'chat_template = """\\\n{escaped}"""']
    pairs = zip(text.split("\n"), masked.split("\n"), strict=False)
    changed = [(as_source(old.strip()), as_source(new.strip())) for old, new in pairs if old != new]
    if len(changed) == 1:
        change = "# The same with marks around the answers, which are what is learned.\n"
        change += "masked_template = chat_template.replace(\n    {},\n    {},\n)".format(*changed[0])
        masked = Recipe(masked, [*lines, change], "masked_template")
    return dataclasses.replace(template, text=Recipe(text, lines, "chat_template"), masked=masked)
