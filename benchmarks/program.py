"""The Alpaca notebook as a program (`helpers.training.program`), up to the cell that a benchmark needs.

What is measured as "ours" is what its cells do, one after the other; the order of its steps stands nowhere else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from official import LENGTH, SEED

HELDOUT = 8
"""Rows that the notebook keeps apart where no held-out loss is asked for."""


def values_of(model: str, data: str, rows: int, options: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the notebook's parameters for a benchmark; what the options leave open is the preset's.

    Args:
        model: Its folder.
        data: File of rows.
        rows: That are trained; `HELDOUT` more are read.
        options: As in `official`, and "settings" with parameters by name.
        steps: Optimizer steps.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "preset": "large-gpu" if cuda else "smoke",
        "run_name": "benchmark",
        "resume": "never",
        "model_name": model,
        "load_in_4bit": options.get("four_bit", cuda),
        "dataset_name": first_rows(data, rows + HELDOUT),
        "train_rows": rows,
        "heldout_rows": HELDOUT,
        "batch_size": options.get("batch", 8),
        "gradient_accumulation": options.get("accumulate", 1),
        "packing": options.get("packing", False),
        "max_seq_length": options.get("length", LENGTH),
        "gradient_checkpointing": options.get("checkpointing", True),
        "max_steps": steps,
        "save_steps": 10 * steps,
        "eval_steps": 10 * steps,
        "prompt_style": "alpaca",
        "seed": options.get("seed", SEED),
        **options.get("settings", {}),
    }


def run_until(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Run the notebook's cells until one has bound a name, and return their variables."""
    from helpers.training.program import TRAINING, find_program, run_cells

    for _, found in run_cells(find_program(TRAINING["alpaca"]), values):
        if name in found:
            return found
    raise KeyError(name)


def ready_trainer(values: Mapping[str, Any]) -> Any:
    """Return the notebook's trainer, checked and ready to train; it will measure no held-out rows, and save nothing."""
    os.environ["HELPERS_RUNS_DIR"] = tempfile.mkdtemp()
    found = run_until("steps", values)
    trainer = found["trainer"]
    trainer.args.save_strategy = "no"
    trainer.remove_callback(found["record"])
    return trainer


def drawn_rows(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows that the notebook draws to train on, in its order, so that a peer can have the same.

    They are drawn in another process: what the notebook imports would change the peer.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_draw, (dict(values),))


def _draw(values: dict[str, Any]) -> list[dict[str, str]]:
    os.environ["HELPERS_RUNS_DIR"] = tempfile.mkdtemp()
    rows = run_until("rows", values)["rows"]["train"]
    return [{name: row.get(name) or "" for name in ("instruction", "input", "output")} for row in rows]


def first_rows(data: str, count: int) -> str:
    """Write the first rows of a file into one of their own, and return its path."""
    rows = json.loads(Path(data).read_text(encoding="utf-8"))
    if len(rows) < count:
        raise ValueError(f"{data} has {len(rows)} rows, and {count} are needed")
    path = Path(tempfile.mkdtemp()) / "rows.json"
    path.write_text(json.dumps(rows[:count]), encoding="utf-8")
    return str(path)


def mode(trainer: Any) -> dict[str, Any]:
    """Return what a trainer does, or did; of ours, with attention, graphs and the adapter's products."""
    from helpers.training.callbacks import Checkpoints
    from helpers.training.speed import training_mode

    for each in trainer.callback_handler.callbacks:
        if isinstance(each, Checkpoints):
            return training_mode(trainer, each.config) | each.record.result.mode
    args = trainer.args
    found = {"packing": bool(args.packing), "optimizer": str(getattr(args.optim, "value", args.optim))}
    found["padding_free"] = bool(getattr(trainer, "padding_free", False) or args.padding_free)
    return found
