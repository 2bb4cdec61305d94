"""`python -m helpers eject RUN`: a run's training as a plain script without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from helpers.core.files import write_text
from helpers.core.runs import RunDirectory, runs_root
from helpers.training.script import copy_inputs, read_script

__all__ = [
    "add_command",
]


def add_command(subparsers: Any) -> None:
    """Add `eject` to the command line."""
    parser = subparsers.add_parser("eject", help="write a run's training as a plain script without this package")
    parser.add_argument("run", metavar="RUN", help="a run's name or folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="output file; by default printed")
    parser.set_defaults(command=_run_eject)


def _run_eject(options: argparse.Namespace) -> int:
    """Write the script, or print it; return the exit status, 0.

    Raises:
        RunError: The run left none.
    """
    folder = Path(options.run)
    run = RunDirectory(folder if folder.is_dir() else runs_root() / options.run)
    text = read_script(run)
    if options.output is None:
        print(text, end="")
    else:
        write_text(options.output, text)
        beside = copy_inputs(run, text, options.output.parent)
        print(
            f"{options.output}: {len(text.splitlines())} lines; python {options.output.name} in its folder trains again"
        )
        print(f"beside it: {', '.join(beside) or 'nothing is needed'}")
    return 0
