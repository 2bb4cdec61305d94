"""A notebook's training without the notebook, in one process or in several: `python -m helpers train`.

It calls what the notebook's cells call, in their order. What writes is done by the main process.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core.config import RunConfig
from helpers.core.config_file import read_config
from helpers.core.errors import RunError
from helpers.core.processes import on_main, place
from helpers.core.runs import RESUME, RunDirectory
from helpers.core.shares import local_config, share_out
from helpers.data.contract import Contract, apply_contract
from helpers.data.rows import Rows, load_rows
from helpers.memory.plan import preflight_memory
from helpers.runtime.device_map import add_options, take_options
from helpers.runtime.hardware import find_gpu
from helpers.training.job import failure_noted, run_job
from helpers.training.session import finish_run, fit_layout, record_inputs, resolve_preset, start_run

if TYPE_CHECKING:
    from helpers.model.load import LoadedModel
    from helpers.training.result import TrainResult

__all__ = ["add_command", "build_contracts", "run_train", "task_rows", "train_run"]


def add_command(subparsers: Any) -> None:
    """Add `train` to the command line.

    Args:
        subparsers: What `ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser("train", help="train from a run's config.json, on one GPU or, launched, on several")
    parser.add_argument("config", metavar="RUN_DIR/config.json", type=Path, help="what a training notebook wrote")
    parser.add_argument("--resume", choices=RESUME, default="auto", help="go on, start over, or insist on going on")
    add_options(parser)
    parser.set_defaults(command=run_train)


def run_train(options: argparse.Namespace) -> int:
    """Train as the command line asks.

    Args:
        options: Parsed by the parser that `add_command` made.

    Returns:
        The exit status: 0.

    Raises:
        HelpersError: What is asked for cannot be done; in the main process, or where it went wrong.
    """
    take_options(options)
    return run_job(options.config, _read, lambda config: train_run(config, resume=options.resume))


def _read(path: Path) -> RunConfig:
    """Return a run's configuration if this machine can train it."""
    config, processes = read_config(path), place().count
    print(share_out(config.train, processes).describe(), flush=True)
    resolve_preset(config.preset)
    preflight_memory(local_config(config, processes), find_gpu())
    return config


def train_run(config: RunConfig, *, resume: str = "auto") -> RunDirectory:
    """Train from rows to a saved, reloaded adapter, as the training notebooks do.

    Args:
        config: The checked configuration.
        resume: "auto", "never" or "must"; see `helpers.core.runs.open_run`.

    Returns:
        The run directory, complete.

    Raises:
        HelpersError: See the functions that are called here.
    """
    from helpers.model.load import free_memory, load_adapter
    from helpers.training.reload import prove_reload

    run = on_main(partial(start_run, config, resume=resume))
    with failure_noted(run):
        _check_shared(run)
        config, result, heldout = _train(config, run)
        free_memory()
        print(prove_reload(load_adapter(run.adapter, config), heldout, result))
        on_main(partial(finish_run, run))
    return run


def _train(config: RunConfig, run: RunDirectory) -> tuple[RunConfig, TrainResult, Contract]:
    """Train and save the adapter; return the configuration with its layout, what training did, the held-out rows."""
    from helpers.model.load import attach_adapter, load_model
    from helpers.training.trainer import build_trainer, train

    rows = on_main(partial(task_rows, config))
    loaded = load_model(config.model, style=config.data.prompt_style)
    kept, heldout = build_contracts(config, rows, loaded.tokenizer)
    on_main(lambda: record_inputs(run, rows, loaded))
    config = fit_layout(config, kept)
    settings = config.train
    attach_adapter(
        loaded,
        config.adapter,
        seed=settings.seed,
        gradient_checkpointing=settings.gradient_checkpointing,
        checkpoint_skip_layers=settings.checkpoint_skip_layers,
    )
    trainer = build_trainer(config, loaded, kept, run)
    result = train(trainer, config, loaded, kept, heldout)
    on_main(lambda: _keep(run, loaded, result))
    return config, result, heldout


def _keep(run: RunDirectory, loaded: LoadedModel, result: TrainResult) -> None:
    """Write what training gave: figures, their picture, the adapter."""
    from helpers.display.tables import plot_losses
    from helpers.training.trainer import describe_change, save_adapter

    run.update_metrics(**result.metrics())
    plot_losses(run.metrics(), run.path / "loss.png")
    print(describe_change(result))
    print(run.shown("adapter") + ":", ", ".join(save_adapter(loaded, run)))


def task_rows(config: RunConfig) -> Rows:
    """Return a run's rows, cleaned as its notebook cleans them.

    Args:
        config: The run.
    """
    from helpers.data.selection import clean_rows

    rows = load_rows(config.data, config.task, config.train.seed)
    return clean_rows(rows)[0] if config.task == "dolly" else rows


def build_contracts(config: RunConfig, rows: Rows, tokenizer: Any) -> tuple[Contract, Contract]:
    """Return the training and the held-out rows, tokenized and checked.

    Args:
        config: The run.
        rows: Its rows.
        tokenizer: With the template installed.
    """
    from helpers.data.prompts import build_example

    how = {"style": config.data.prompt_style, "system_prompt": config.data.system_prompt}
    limit = config.model.max_seq_length
    parts = ([build_example(row, config.task, **how) for row in part] for part in (rows.train, rows.heldout))
    kept, heldout = (apply_contract(part, tokenizer, max_seq_length=limit) for part in parts)
    return kept, heldout


def _check_shared(run: RunDirectory) -> None:
    """Raise unless this process sees the run directory that the main one opened."""
    name = on_main(run.run_id)
    if run.run_id() != name:
        remedy = "Let all hosts share the folder that holds the runs: HELPERS_RUNS_DIR on a shared disk."
        raise RunError("run directory", "the main process's, seen from each host", str(run.path), remedy)
