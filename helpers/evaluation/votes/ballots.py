"""Votes as files: reading what the voting page exported, and checking every cell of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from helpers.core.errors import EvaluationError
from helpers.core.files import write_text
from helpers.evaluation.votes.votes import VoteKey

__all__ = ["CHOICES", "CRITERIA", "TICKS", "Vote", "read_votes", "write_votes"]

CHOICES = ("left", "right", "tie", "both_bad")
CRITERIA = {
    "concrete": "Which names concrete and plausible applications?",
    "on_topic": "Which is on topic?",
    "structure": "Which has a useful structure?",
}
TICKS = ("", "left", "right", "both", "neither")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_EXPORT = "Export the CSV from the voting page again, and do not edit it in a spreadsheet."


@dataclass(frozen=True)
class Vote:
    """What one person said about one item.

    Args:
        item_id: The `BlindItem.id`.
        choice: One of `CHOICES`: the better answer's side.
        concrete: Which answers name concrete and plausible applications, one of `TICKS`; "" if not said.
        on_topic: Which answers are on topic.
        structure: Which answers have a useful structure.
        voter: A name for the person.
        seconds: Time spent on the item, or None.
    """

    item_id: str
    choice: str
    concrete: str = ""
    on_topic: str = ""
    structure: str = ""
    voter: str = ""
    seconds: float | None = None


_COLUMNS = [field.name for field in fields(Vote)]


def read_votes(paths: str | Path | Iterable[str | Path], key: VoteKey) -> tuple[Vote, ...]:
    """Read the CSV files of one or several voters.

    Args:
        paths: One file, or several that are merged.
        key: The key of the page the votes were cast on.

    Returns:
        All votes, in the order of the files.

    Raises:
        EvaluationError: A file is missing, damaged or not UTF-8, lacks a column, votes for an item that is not in the
            key, holds an unknown choice or tick, or the same voter votes for an item twice.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    votes: dict[tuple[str, str], Vote] = {}
    for path in map(Path, paths):
        for line, row in _rows(path):
            vote = _vote(f"{path.name} line {line}", row, key)
            if (vote.voter, vote.item_id) in votes:
                raise EvaluationError(
                    f"{path.name} line {line}, voter and item_id",
                    "one vote of each voter for each item",
                    f"a second vote of {vote.voter} for {vote.item_id}",
                    "Pass each file once; if two people chose the same name, change it in one file.",
                )
            votes[vote.voter, vote.item_id] = vote
    if not votes:
        raise EvaluationError("votes", "at least one vote", [str(path) for path in paths], "Vote first, then export.")
    return tuple(votes.values())


def _rows(path: Path) -> list[tuple[int, Mapping[str, str]]]:
    """Read a file into rows with their line numbers; spreadsheets in many countries write semicolons."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise EvaluationError("votes_file", "a file that exists", str(path), "Check the path.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(path.name, "UTF-8 text", f"byte {error.object[error.start]:#04x}", _EXPORT) from error
    except (OSError, ValueError) as error:
        raise EvaluationError("votes_file", "a readable file", str(path), f"{error}. Check the path.") from error
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    try:
        return _table(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter), path.name)
    except csv.Error as error:
        raise EvaluationError(path.name, "valid CSV", str(error), _EXPORT) from error


def _table(reader: csv.DictReader, file: str) -> list[tuple[int, Mapping[str, str]]]:
    """Read the rows that are not blank, each column named once."""
    names = [name.strip() for name in reader.fieldnames or []]
    if missing := [name for name in _COLUMNS if name not in names]:
        raise EvaluationError(file, f"the columns {', '.join(_COLUMNS)}", names, f"Add {missing[0]}. {_EXPORT}")
    if twice := [name for name in _COLUMNS if names.count(name) > 1]:
        raise EvaluationError(file, "each column once", f"{twice[0]} {names.count(twice[0])} times", _EXPORT)
    reader.fieldnames = names
    return [(reader.line_num, row) for row in reader if any((row[name] or "").strip() for name in _COLUMNS)]


def _vote(place: str, row: Mapping[str, str | None], key: VoteKey) -> Vote:
    cells = {name: (row[name] or "").strip() for name in _COLUMNS}
    if cells["item_id"] not in key.items:
        remedy = "The votes belong to another page, or the answers have changed since; pass the key of that page."
        raise EvaluationError(f"{place}, item_id", "an item of the key", cells["item_id"], remedy)
    _one_of(f"{place}, choice", cells["choice"], CHOICES)
    for criterion in CRITERIA:
        _one_of(f"{place}, {criterion}", cells[criterion], TICKS)
    if not cells["voter"]:
        raise EvaluationError(f"{place}, voter", "a name", "", "Give each file its own name, such as voter-1.")
    return Vote(**(cells | {"voter": _unguard(cells["voter"]), "seconds": _seconds(place, cells["seconds"])}))


def _one_of(place: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        shown = ", ".join(name or '""' for name in allowed)
        raise EvaluationError(place, f"one of {shown}", value, _EXPORT)


def _seconds(place: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise EvaluationError(f"{place}, seconds", "a time of at least 0", text, _EXPORT)
    return value


def _unguard(name: str) -> str:
    """Take off the apostrophe that keeps a spreadsheet from reading a name as a formula."""
    return name[1:] if name[:1] == "'" and name[1:2] in _FORMULA else name


def write_votes(path: str | Path, votes: Iterable[Vote]) -> Path:
    """Write votes in the voting page's own format, such as those of the notebook's widget.

    Args:
        path: The CSV file to write.
        votes: The votes.

    Returns:
        The path written.

    Raises:
        RunError: The disk refuses.
    """
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _COLUMNS)
    writer.writeheader()
    for vote in votes:
        name = f"'{vote.voter}" if vote.voter.startswith(_FORMULA) else vote.voter
        writer.writerow(asdict(vote) | {"voter": name, "seconds": "" if vote.seconds is None else vote.seconds})
    write_text(Path(path), file.getvalue())
    return Path(path)
