"""`python -m helpers compare`: the comparison without its notebook, in one process or, launched, in several."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from helpers.core.distributed import on_main
from helpers.core.errors import ConfigError
from helpers.core.files import read_json
from helpers.core.runs import RESUME, RunDirectory
from helpers.evaluation.config import EvaluationConfig, build_evaluation_config, evaluation_parameters
from helpers.training.job import run_job
from helpers.training.program import find_program, run_program

__all__ = ["add_command"]


def add_command(subparsers: Any) -> None:
    """Add `compare` to the command line."""
    said = "compare base and tuned from a comparison's config.json, on one GPU or, launched, on several"
    parser = subparsers.add_parser("compare", help=said)
    parser.add_argument("config", metavar="RUN_DIR/config.json", type=Path, help="what side_by_side_eval wrote")
    parser.add_argument("--resume", choices=RESUME, default="auto", help="resume, start over, or insist on resuming")
    parser.set_defaults(command=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Compare as the command line asks; return the exit status, 0.

    Raises:
        HelpersError: What is asked for cannot be done; in the main process, or where it went wrong.
    """
    path = options.config.resolve()  # `run_job` goes to the folder that the file's own paths begin at

    def work(_: object) -> RunDirectory:
        return compare_run(on_main(partial(read_evaluation, path)), resume=options.resume)

    return run_job(options.config, _check, work)


def compare_run(config: EvaluationConfig, *, resume: str = "auto") -> RunDirectory:
    """Run the comparison notebook's cells, but for those of notebooks only; return the run, complete."""
    values = config.flat()
    if config.mode == "aa":
        del values["arms"]  # which mode aa has of its own
    return run_program(find_program("side_by_side_eval"), {**values, "resume": resume})["run"]


def read_evaluation(path: Path) -> EvaluationConfig:
    """Read a comparison's configuration back, checked again.

    Args:
        path: `config.json`, or the run directory that holds it.

    Raises:
        ConfigError: It is no comparison's, or a parameter is unknown or wrong.
        RunError: The file cannot be read.
    """
    values = _check(path)
    given = {name: values.get(name) for name in evaluation_parameters()}
    if given["mode"] == "aa":
        del given["arms"]
    return build_evaluation_config(preset=values["preset"], run_name=values["run_name"], **given)


def _check(path: Path) -> dict[str, Any]:
    """Return what stands in a comparison's file."""
    values = read_json(path / "config.json" if path.is_dir() else path)
    names = ("preset", "run_name")
    if values.get("kind") != "side_by_side" or not all(isinstance(values.get(name), str) for name in names):
        remedy = "Run side_by_side_eval up to open_evaluation: it writes one. For a training, use train."
        raise ConfigError(str(path), "a comparison's config.json", values.get("kind"), remedy)
    return values
