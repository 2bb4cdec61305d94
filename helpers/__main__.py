"""The command line: `python -m helpers run | train | eject | compare | chat | data | plan | runs | doctor | list`."""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Sequence
from functools import partial

from helpers.core.errors import HelpersError
from helpers.core.text import PLAIN

_CELL_TIMEOUT = 12 * 3600
"""Seconds, as long as a session on Colab; in Jupyter a cell may take as long as it likes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As typed after `python -m helpers`; by default those of this process.

    Returns:
        The exit status: 0 done; 1 a cell failed, the doctor found a problem, or badges differ; 2 what was asked for
        cannot be done, as argparse has it too; 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)  # a terminal in ASCII or Latin-1 gets "-" for a true minus sign
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except HelpersError as error:
        from helpers.core.distributed import ElsewhereError
        from helpers.core.errors import CellError
        from helpers.core.secrets import redact
        from helpers.core.text import visible

        if isinstance(error, ElsewhereError):
            return 2
        print(f"error: {visible(redact(' '.join(str(error).split())))}", file=sys.stderr)
        return 1 if isinstance(error, CellError) else 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "helpers":
            raise
        remedy = "Run make doctor, which installs what is missing and says what is wrong."
        print(f"error: the package {error.name} is not installed. {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_output()  # what is written to files has an error of its own; this was printed
        remedy = "Free space, or send what is printed elsewhere."
        print(f"error: stdout: expected room for what is printed, got {error.strerror!r}. {remedy}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    from helpers.cli import chat, eject, train
    from helpers.cli import data as data_command
    from helpers.cli import plan as plan_command
    from helpers.cli.compare import add_command as add_compare
    from helpers.cli.runs import add_commands

    parser = argparse.ArgumentParser(prog="python -m helpers", description="Fine-tuning notebooks by name.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a notebook into runs/NAME, and fail when a cell fails", add_help=False)
    run.add_argument("notebook", nargs="?", metavar="NOTEBOOK", help="a name that `list` shows, or a path")
    run.add_argument("--preset", help="auto, colab-t4, large-gpu or smoke")
    run.add_argument("--name", help="folder under runs/; by default the task and the preset")
    run.add_argument("--resume", choices=("auto", "never", "must"), help="resume, start over, or insist on resuming")
    run.add_argument("-p", dest="pairs", action="append", default=[], metavar="PARAMETER=VALUE", help="set a parameter")
    limit = f"a cell may take this many seconds, {_CELL_TIMEOUT} by default; 0 for no limit"
    run.add_argument("--cell-timeout", type=int, default=_CELL_TIMEOUT, metavar="SECONDS", help=limit)
    run.add_argument("-h", "--help", action="store_true", help="show this, and the notebook's parameters")
    run.set_defaults(command=_run, parser=run)

    train.add_command(commands)
    eject.add_command(commands)
    add_compare(commands)
    chat.add_command(commands)
    data_command.add_command(commands)
    plan_command.add_command(commands)
    add_commands(commands)

    doctor = commands.add_parser("doctor", help="say whether this environment is right")
    doctor.set_defaults(command=_doctor)

    commands.add_parser("list", help="list the notebooks").set_defaults(command=_list)
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.notebook is None or options.help:
        return _help(options)
    from helpers.cli.notebooks import run_notebook
    from helpers.cli.parameters import typed_values
    from helpers.core.runs import RunDirectory
    from helpers.core.summary import summarize

    pairs = options.pairs if options.preset is None else [f"preset={options.preset}", *options.pairs]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel is ended too
    _end_with_reader()
    executed = run_notebook(
        options.notebook,
        typed_values(pairs),
        run_name=options.name,
        resume=options.resume,
        cell_timeout=options.cell_timeout or None,
        report=partial(print, flush=True),
    )
    print("\n" + summarize(RunDirectory(executed.parent)))
    return 0


def _end_with_reader() -> None:
    """End this process, and the kernel with it, as soon as nobody reads what it prints: `... | head` closes a pipe.

    A write would notice only after the next line, which a long training may not print for an hour.
    """
    try:
        number = sys.stdout.fileno()
    except OSError:  # no file, as in a test
        return
    if not hasattr(select, "poll") or not stat.S_ISFIFO(os.fstat(number).st_mode):
        return
    watch = select.poll()
    watch.register(number, 0)  # errors only: the other end was closed

    def wait() -> None:
        watch.poll()
        _drop_output()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _drop_output() -> None:
    """Send what would still be printed nowhere, so that Python's own end does not fail at a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help(options: argparse.Namespace) -> int:
    """Show how `run` is used, with the notebook's parameters if one is named."""
    from helpers.cli.notebooks import find_notebook
    from helpers.cli.parameters import read_parameters
    from helpers.core.text import visible

    options.parser.print_help()
    if options.notebook is None:
        if not options.help:
            print("\nerror: name a notebook; `python -m helpers list` shows them", file=sys.stderr)
        return 0 if options.help else 2
    path = find_notebook(options.notebook)
    print(f"\nparameters of {path.stem} (type, default, help [unit]):")
    for each in read_parameters(path).values():
        print(visible(f"  {each.name:<24} {each.type:<6} {each.default!r:<8} {each.help}"))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from helpers.runtime.doctor import doctor

    report = doctor()
    print(report)
    return 0 if report.ok else 1


def _list(options: argparse.Namespace) -> int:
    from helpers.cli.notebooks import first_heading, list_notebooks

    for path in list_notebooks():
        print(f"{path.stem:<24} {first_heading(json.loads(path.read_text(encoding='utf-8'))['cells']) or ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
