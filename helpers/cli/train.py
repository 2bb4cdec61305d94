"""`python -m helpers train`: a notebook's training without the notebook, in one process or, launched, in several."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.config_file import read_config
from helpers.core.distributed import local_config, place, share_out
from helpers.core.runs import RESUME, RunDirectory
from helpers.memory.plan import preflight_memory
from helpers.runtime.hardware import SPLIT, find_gpu, split_share
from helpers.training.job import run_job
from helpers.training.program import TRAINING, find_program, run_program
from helpers.training.session import resolve_preset

__all__ = ["add_command"]


def add_command(subparsers: Any) -> None:
    """Add `train` to the command line."""
    parser = subparsers.add_parser("train", help="train from a run's config.json, on one GPU or, launched, on several")
    parser.add_argument("config", metavar="RUN_DIR/config.json", type=Path, help="what a training notebook wrote")
    parser.add_argument("--resume", choices=RESUME, default="auto", help="resume, start over, or insist on resuming")
    parser.add_argument("--split", action="store_true", help="spread the model's layers over all GPUs of this machine")
    parser.add_argument("--card-share", metavar="SHARE", default="1", help="with --split: how much of each GPU, 0 to 1")
    parser.set_defaults(command=run_train)


def run_train(options: argparse.Namespace) -> int:
    """Train as the command line asks; return the exit status, 0.

    Raises:
        HelpersError: What is asked for cannot be done; in the main process, or where it went wrong.
    """
    if options.split:
        os.environ[SPLIT] = options.card_share
    split_share()
    return run_job(options.config, _read, lambda config: train_run(config, resume=options.resume))


def train_run(config: RunConfig, *, resume: str = "auto") -> RunDirectory:
    """Run the cells of a training notebook, but for those of notebooks only; return the run, complete.

    Args:
        config: The checked configuration; only what the user gave is passed on.
    """
    values = config.flat()
    given = {name: values[name] for name in ("preset", "run_name", *sorted(config.given))}
    return run_program(find_program(TRAINING[config.task]), {**given, "resume": resume})["run"]


def _read(path: Path) -> RunConfig:
    """Return a run's configuration if this machine can train it."""
    config, processes = read_config(path), place().count
    print(share_out(config.train, processes).describe(), flush=True)
    resolve_preset(config.preset)
    preflight_memory(local_config(config, processes), find_gpu())
    return config
