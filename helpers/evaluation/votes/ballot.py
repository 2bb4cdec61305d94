"""Blind votes: which pairs people see, the key that says who wrote what, the page they vote on, and what it exports."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from helpers.core.errors import EvaluationError
from helpers.core.files import write_text
from helpers.core.text import visible
from helpers.evaluation.pages import embed_json, write_page
from helpers.evaluation.records import Comparison, Prompt

_CHOICES = ("a", "b", "tie", "both_bad")
CRITERIA = {
    "concrete": "Which names concrete and plausible applications?",
    "on_topic": "Which is on topic?",
    "structure": "Which has a useful structure?",
}
"""What the page asks of each pair besides the better answer: the criteria that the adapter was trained for."""

_TICKS = ("", "a", "b", "both", "neither")
_FORMER = {"left": "a", "right": "b"}  # what pages exported before answers were called A and B
_FORMAT = "side-by-side vote key 1"
_EXPORT = "Export the CSV from the voting page again, and do not edit it in a spreadsheet."


@dataclass(frozen=True)
class BlindItem:
    """One pair of answers as a voter sees it.

    Args:
        id: Says nothing of the arms; changes when an answer changes, so that old votes cannot count for new answers.
    """

    id: str
    prompt: str
    a: str
    b: str


@dataclass(frozen=True)
class KeyItem:
    """An item's prompt, and which arms wrote its answers A and B."""

    prompt_id: str
    a: str
    b: str


@dataclass(frozen=True)
class VoteKey:
    """What turns votes for A or B into votes for arms.

    Args:
        baseline: The arm that is compared against.
        contender: The arm whose wins are counted.
        items: By `BlindItem.id`, in the order of the page.
    """

    baseline: str
    contender: str
    items: dict[str, KeyItem]


@dataclass(frozen=True)
class Vote:
    """What one person said about one item.

    Args:
        choice: One of `_CHOICES`: the better answer.
        concrete: Which answers name concrete and plausible applications: "a", "b", "both", "neither", "" if not said.
        on_topic: Which answers are on topic.
        structure: Which answers have a useful structure.
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


def blind_items(
    comparison: Comparison, seed: int, repeats: int = 2, *, arms: tuple[str, str] = ("base", "tuned")
) -> tuple[tuple[BlindItem, ...], VoteKey]:
    """Shuffle the pairs, each arm in half of them as A, hide who wrote what, and show a few pairs twice.

    Args:
        seed: The same seed and answers give the same items, so a page and its key can be made again.
        repeats: Pairs that come again with the answers exchanged, in the second half; at most one for each prompt.
        arms: Names of the baseline and the contender.

    Raises:
        EvaluationError: No prompt has answers of both arms.
    """
    said = {(answer.prompt_id, answer.arm): answer.text for answer in comparison.answers}
    prompts = [prompt for prompt in comparison.prompts if all((prompt.id, arm) in said for arm in arms)]
    if not prompts:
        raise EvaluationError("answers", f"answers of {arms[0]} and {arms[1]} to a prompt", "none", "Generate both.")
    items, key = [], {}
    for prompt, again, swapped in _shows(prompts, random.Random(f"sides {seed}"), repeats):  # noqa: S311 - no secret
        first, second = arms[::-1] if swapped else arms
        texts = said[prompt.id, first], said[prompt.id, second]
        name = _opaque(str(seed), prompt.id, str(again), *sorted(texts))
        items.append(BlindItem(name, prompt.text, *texts))
        key[name] = KeyItem(prompt.id, first, second)
    return tuple(items), VoteKey(*arms, key)


def _shows(prompts: Sequence[Prompt], rng: random.Random, repeats: int) -> list[tuple[Prompt, bool, bool]]:
    """Draw order and sides: the prompt, whether it comes again, whether its answers are exchanged."""
    order = list(prompts)
    rng.shuffle(order)
    sides = [place % 2 == 0 for place in range(len(order))]
    rng.shuffle(sides)
    shows = [(prompt, False, swapped) for prompt, swapped in zip(order, sides, strict=True)]
    middle = (len(shows) + 1) // 2
    again = (rng.sample(shows[:middle], middle) + shows[middle:])[: min(repeats, len(shows))]
    for prompt, _, swapped in again:
        shows.insert(rng.randint(middle + 1, len(shows)) if len(order) > 1 else 1, (prompt, True, not swapped))
    return shows


def _opaque(*parts: str) -> str:
    raw = json.dumps(parts).encode("ascii")
    return f"i{hashlib.sha256(raw).hexdigest()[:11]}"  # a letter first, or spreadsheets read it as a number


def write_vote_page(path: Path, items: Sequence[BlindItem], title: str) -> Path:
    """Write the voting page: one file that needs neither a kernel nor a network and exports a CSV.

    Args:
        title: What voters read above the first pair.
    """
    from markupsafe import Markup

    rows = [{name: visible(text) for name, text in asdict(item).items()} for item in items]
    data = embed_json({"page": _opaque(*(item.id for item in items)), "items": rows})
    context = {"title": title, "count": len(items), "criteria": CRITERIA, "data": Markup(data)}  # noqa: S704 - escaped
    return write_page(path, "vote", context)


def write_key(path: Path, key: VoteKey) -> Path:
    """Write the key as JSON. Keep it from the voters until they have voted."""
    write_text(path, json.dumps({"format": _FORMAT} | asdict(key), indent=1) + "\n")
    return path


def read_key(path: Path) -> VoteKey:
    """Read what `write_key` wrote, now or when answers were still called left and right."""
    remedy = "Pass the key that was written together with the voting page."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise EvaluationError("format", repr(_FORMAT), data["format"], remedy)
        rows = {
            name: {_FORMER.get(side, side): value for side, value in row.items()} for name, row in data["items"].items()
        }
        key = VoteKey(data["baseline"], data["contender"], {name: KeyItem(**row) for name, row in rows.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EvaluationError(str(path), "a readable vote key", f"{type(error).__name__}: {error}", remedy) from error
    names = [key.baseline, key.contender, *(value for item in key.items.values() for value in asdict(item).values())]
    if not all(isinstance(name, str) for name in names):
        raise EvaluationError(str(path), "a readable vote key", "a name that is no text", remedy)
    return key


def read_votes(paths: Sequence[str | Path], key: VoteKey | None = None) -> tuple[Vote, ...]:
    """Read the CSV files of one or several voters.

    Voters of one name in several files are told apart by the file's name.

    Args:
        key: The key of the page the votes were cast on; None takes votes on any item.

    Raises:
        EvaluationError: A file is missing, damaged or not UTF-8, lacks a column, votes for an item that is not in the
            key, holds an unknown choice or tick, comes twice, or the same voter votes for an item twice.
    """
    files = {Path(path): _read_file(Path(path), key) for path in paths}
    if len(files) < len(paths):
        raise EvaluationError(
            "votes_file", "each file once", [str(path) for path in paths], "Leave the second one out."
        )
    names = [name for votes in files.values() for name in {vote.voter for vote in votes}]
    found: list[Vote] = []
    for path, votes in files.items():
        if any(votes == others for other, others in files.items() if other != path):
            raise EvaluationError(
                "votes_file", "each person's votes once", f"{path.name} twice", "Pass each file once."
            )
        for vote in votes:
            shared = names.count(vote.voter) > 1
            found.append(replace(vote, voter=f"{vote.voter} ({path.stem})") if shared else vote)
    if not found:
        raise EvaluationError("votes", "at least one vote", [str(path) for path in paths], "Vote first, then export.")
    return tuple(found)


def _read_file(path: Path, key: VoteKey | None) -> list[Vote]:
    votes: dict[tuple[str, str], Vote] = {}
    for line, row in _rows(path):
        vote = _vote(f"{path.name} line {line}", row, key)
        if (vote.voter, vote.item_id) in votes:
            raise EvaluationError(
                f"{path.name} line {line}, voter and item_id",
                "one vote of each voter for each item",
                f"a second vote of {vote.voter} for {vote.item_id}",
                "If two people's votes stand in one file, give them different names.",
            )
        votes[vote.voter, vote.item_id] = vote
    return list(votes.values())


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


def _vote(place: str, row: Mapping[str, str | None], key: VoteKey | None) -> Vote:
    cells = {name: (row[name] or "").strip() for name in _COLUMNS}
    if key is not None and cells["item_id"] not in key.items:
        remedy = "The votes belong to another page, or the answers have changed since: vote on this run's vote.html."
        raise EvaluationError(f"{place}, item_id", "an item of the key", cells["item_id"], remedy)
    said = {"choice": _CHOICES} | dict.fromkeys(CRITERIA, _TICKS)
    for name, allowed in said.items():
        cells[name] = _FORMER.get(cells[name], cells[name])
        if cells[name] not in allowed:
            shown = ", ".join(each or '""' for each in allowed)
            raise EvaluationError(f"{place}, {name}", f"one of {shown}", cells[name], _EXPORT)
    if not cells["voter"]:
        raise EvaluationError(f"{place}, voter", "a name", "", "Give each file its own name, such as voter-1.")
    seconds = _seconds(place, cells.pop("seconds"))
    return Vote(**cells | {"voter": _unguard(cells["voter"])}, seconds=seconds)


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
    """Take off the apostrophes that keep a spreadsheet from reading a name as a formula."""
    return re.sub(r"(^|;)'(?=[\s\"]*[=+\-@\t])", r"\1", name)
