"""`python -m helpers data FILE`: a look at rows before training, without a model."""

from __future__ import annotations

import argparse

from helpers.core.text import visible
from helpers.data.look import Look
from helpers.data.rows import open_source

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add the command `data`."""
    parser = commands.add_parser("data", help="say what a data set holds, and what of it can be trained on")
    parser.add_argument("name", metavar="FILE", help="a file of rows, or the name of a data set on the hub")
    parser.add_argument("--columns", help="which column is what, such as instruction=Question,output=Answer")
    parser.set_defaults(command=_data)


def describe_data(name: str, columns: str | None = None) -> str:
    """Say what a data set holds.

    Args:
        name: A file of rows, or the name of a data set on the hub.

    Returns:
        Lines: the number of rows, the format with its columns, lengths, what is left out and why, and warnings.

    Raises:
        DataError: It cannot be read, or no format is recognised.
    """
    source = open_source(name, columns=columns)
    look = Look(source.format)
    for index in range(source.total):
        look.add(index, source.row_at(index))
    lines = [source.name + (f", {source.read_as}" if source.read_as else ""), source.format.describe()]
    lines.append(f"{len(look.rows):,} different usable rows")
    lines += [f"left out: {count:,} ({reason})" for reason, count in look.left_out().items()]
    return "\n".join([*lines, *look.lengths(), *look.remarks()])


def _data(options: argparse.Namespace) -> int:
    print(visible(describe_data(options.name, options.columns)))
    return 0
