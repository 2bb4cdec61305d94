"""What every arm is asked: prompts from a file, and rows with good answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from helpers.core.errors import DataError, EvaluationError
from helpers.data.prompts import COLUMNS, user_text
from helpers.data.readers import read_file
from helpers.evaluation.records import Prompt

__all__ = ["SAMPLE", "Question", "read_questions", "reference_questions"]

SAMPLE = "business_prompts.jsonl"
"""The prompts that come with the package: sixteen, from eight topics of business."""

_TEXT = ("prompt", "instruction", "question", "text")
_REFERENCE = ("reference", "output", "response", "answer")
_CATEGORY = ("category", "topic")
_CONTEXT = ("context", "input")


@dataclass(frozen=True)
class Question:
    """A prompt in the two parts that training rows have.

    Args:
        prompt: What reports show.
        instruction: The task.
        context: The text that it refers to, or "".
    """

    prompt: Prompt
    instruction: str
    context: str = ""


def read_questions(path: str | None, count: int = 0) -> tuple[Question, ...]:
    """Read the prompts.

    Args:
        path: A file of rows (`helpers.core.config.ROW_FILES`) with a column `prompt` and perhaps `id`, `category` or
            `topic`, `context`, `reference`, `source` and `expected_items`; or a .txt file with one prompt a line. None
            takes the bundled prompts.
        count: How many to take, spread over the file; 0 takes all.

    Returns:
        The prompts, in the order of the file.

    Raises:
        EvaluationError: The file is empty or unreadable, a prompt is blank or not text, or two are the same.
    """
    rows = _bundled() if path is None else _read(Path(path))
    questions = [_question(row, place, path or SAMPLE) for place, row in enumerate(rows, 1)]
    _check_twice("id", [each.prompt.id for each in questions], path or SAMPLE)
    _check_twice("prompt", [each.prompt.text for each in questions], path or SAMPLE)
    if count > len(questions):
        expected = f"at most {len(questions)}, the prompts there are"
        raise EvaluationError("prompt_count", expected, count, "Use 0 for all.")
    return tuple(questions[place * len(questions) // count] for place in range(count)) if count else tuple(questions)


def _bundled() -> list[Any]:
    import json

    text = resources.files("helpers.data").joinpath("samples", SAMPLE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _read(path: Path) -> list[Any]:
    """Read the rows of a file."""
    try:
        if path.suffix.lower() != ".txt":
            return read_file(path).rows
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        got = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise EvaluationError("prompts_file", "a file in UTF-8", f"{path} with {got}", "Save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise EvaluationError("prompts_file", "a readable file", str(path), f"{error}. Check the path.") from error
    except DataError as error:
        raise EvaluationError("prompts_file", error.expected, error.got, error.remedy) from error
    rows = [{"prompt": line.strip()} for line in lines if line.strip()]
    if not rows:
        raise EvaluationError("prompts_file", "a file with at least one prompt", str(path), "Write one prompt a line.")
    return rows


def _question(row: Any, place: int, file: str) -> Question:
    """Turn a row of a prompts file into a question."""
    where = f"{Path(file).name}, prompt {place}"
    if not isinstance(row, Mapping):
        raise EvaluationError(where, "an object with a `prompt`", row, 'Write it as {"prompt": "..."}.')
    instruction = _text(row, _TEXT, where)
    if not instruction and any(name in row for name in _TEXT):
        raise EvaluationError(Path(file).name, "a text in each row", f"prompt {place} is blank", "Write or remove it.")
    if not instruction:
        got = sorted(map(str, row))
        raise EvaluationError(
            where, f"text under {', '.join(_TEXT)}", got, "Name the column with the prompts `prompt`."
        )
    context = _text(row, _CONTEXT, where)
    prompt = Prompt(
        id=_text(row, ("id",), where) or f"p{place:03d}",
        text=user_text(instruction, context),
        category=_text(row, _CATEGORY, where),
        source=_text(row, ("source",), where),
        reference=_text(row, _REFERENCE, where) or None,
        expected_items=_count(row.get("expected_items"), where),
    )
    return Question(prompt, instruction, context)


def _text(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """Return the first of some columns that is there, without white space around it; "" for none."""
    for name in names:
        value = row.get(name)
        if name == "id" and type(value) is int:
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise EvaluationError(f"{where}, {name}", "text", value, "Put it in quotation marks, or leave it out.")
        if value is not None and re.search("[\0\ud800-\udfff]", value):
            remedy = "It holds a null byte or half of a character: save the file as UTF-8 again."
            raise EvaluationError(f"{where}, {name}", "valid Unicode", value, remedy)
        if value and value.strip():
            return value.strip()
    return ""


def _count(value: Any, where: str) -> int | None:
    """Return a number of items, also from the text of a CSV file."""
    if value is None or value == "":
        return None
    if type(value) not in (int, str) or not re.fullmatch("[1-9][0-9]?", str(value)):
        remedy = "It is how many items the prompt asks for; leave it out where it asks for none."
        raise EvaluationError(f"{where}, expected_items", "a whole number from 1 to 99, or nothing", value, remedy)
    return int(value)


def _check_twice(what: str, values: Sequence[str], file: str) -> None:
    """Raise if a value stands in a file twice."""
    places: dict[str, int] = {}
    for place, value in enumerate(values, 1):
        if value in places:
            expected = f"each {what} once"
            got = f"{value!r} as number {places[value]} and {place}"
            raise EvaluationError(Path(file).name, expected, got, "Leave one out: it would count twice.")
        places[value] = place


def reference_questions(rows: Sequence[Mapping[str, str]], task: str, name: str = "row") -> tuple[Question, ...]:
    """Turn rows of a data set into questions with a reference.

    Rows of Dolly keep their category; those of Alpaca are told apart by whether they have an input. Rows that share a
    context, or ask the same but for case and white space, share a source, so that statistics count them as one.

    Args:
        rows: With the columns of the task.
        task: "alpaca" or "dolly".
        name: What the prompts' ids begin with.

    Returns:
        One question a row, in their order.
    """
    names = COLUMNS[task]
    contexts = [(row.get(names.context) or "").strip() for row in rows]
    asked = [user_text(row[names.instruction], context) for row, context in zip(rows, contexts, strict=True)]
    plain = [" ".join(text.casefold().split()) for text in asked]
    found = []
    for place, (row, context) in enumerate(zip(rows, contexts, strict=True), 1):
        prompt = Prompt(
            id=f"{name}-{place:03d}",
            text=asked[place - 1],
            category=row.get("category") or ("with input" if context else "without input"),
            source=_shared("context", contexts, place - 1) or _shared("question", plain, place - 1),
            reference=row[names.answer].strip(),
        )
        found.append(Question(prompt, row[names.instruction].strip(), context))
    return tuple(found)


def _shared(what: str, texts: Sequence[str], place: int) -> str:
    """Name the first row that has the same text; "" if no other row has it."""
    text = texts[place]
    return f"{what} of row {texts.index(text) + 1}" if text and texts.count(text) > 1 else ""
