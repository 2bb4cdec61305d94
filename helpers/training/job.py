"""The frame of a command that is started alone, or launched in several processes: check, meet, work, part.

Launched processes import Unsloth before they meet. It talks to the others while it is imported once they have met
(unsloth_zoo 2026.10.9, `compiler.get_compile_folder`), and they would have to import it all at the same moment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from helpers.core.distributed import Place, join, leave, on_main, peer_exits_explained, take_card
from helpers.core.files import read_json
from helpers.core.runs import CONFIG, RunDirectory

__all__ = ["run_job"]

_T = TypeVar("_T")


def run_job(path: Path, check: Callable[[Path], _T], work: Callable[[_T], RunDirectory]) -> int:
    """Do a job in this process and in those that were launched with it.

    Args:
        path: `config.json`, or the run directory that holds it.
        check: Reads the file in the main process, before anything else. Its value must be one that pickle can write. An
            error ends that process, and the launcher the others.
        work: Gets what `check` returned, in every process, and returns the run that it made.

    Returns:
        The exit status: 0.

    Raises:
        HelpersError: What is asked for cannot be done; in the main process, or where it went wrong.
    """
    here, path, found = take_card(), path.resolve(), None
    if here.main:
        _settle(path)
        found = check(path)
    if here.count > 1:
        _prepare(here)
        join()
    with peer_exits_explained():
        checked: Any = on_main(lambda: found)
        if not here.main:
            _settle(path)
        run = work(checked)
        if here.main:
            from helpers.core.summary import summarize

            print("\n" + summarize(run))
        leave()
    return 0


def _prepare(here: Place) -> None:
    """Import Unsloth; leave logs and progress to the main process: print nothing in any other, until it ends."""
    if not here.main:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until this process ends
    from helpers.model.load import import_unsloth

    import_unsloth()
    if here.main:
        return
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _settle(path: Path) -> None:
    """Let relative paths and the run's name mean what they meant where the file was written."""
    file = (path / CONFIG if path.is_dir() else path).resolve()
    values = read_json(file)
    if file.parent.name == values["run_name"]:
        os.environ["HELPERS_RUNS_DIR"] = str(file.parent.parent)
    folder = Path(str(values.get("folder")))
    if folder.is_dir():
        os.chdir(folder)
