"""What a comparison works on: prompts to ask, rows whose good answers are scored, and the rows that were trained on."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.distributed import on_main
from helpers.core.errors import DataError, EvaluationError
from helpers.data.formats import (
    ANSWERS,
    CONTEXTS,
    INSTRUCTIONS,
    MESSAGES,
    is_chat,
    named_columns,
    plain_name,
    recognise,
)
from helpers.data.messages import UNUSABLE, RowError, list_of, read_messages
from helpers.data.prompts import COLUMNS, row_sources, user_text
from helpers.data.readers import read_file
from helpers.data.rows import (
    Row,
    Rows,
    as_messages,
    data_fingerprint,
    load_rows,
    read_prompts,
    read_sample,
    rename_columns,
)
from helpers.data.selection import clean_row
from helpers.evaluation.adapter import AdapterSource
from helpers.evaluation.config import EvaluationConfig
from helpers.evaluation.records import Prompt

__all__ = ["gather", "read_questions"]

_TEXT = ("prompt", *INSTRUCTIONS, "text")
_REFERENCE = ("reference", *ANSWERS)
_CATEGORY = ("category", "topic")


@dataclass(frozen=True)
class Question:
    """A prompt in the two parts that training rows have.

    Args:
        context: The text that it refers to, or "".
    """

    prompt: Prompt
    instruction: str
    context: str = ""


def read_questions(
    path: str | None, count: int = 0, task: str = "dolly", columns: str | None = None
) -> tuple[Question, ...]:
    """Read the prompts.

    Args:
        path: A file of rows (`helpers.core.config.ROW_FILES`) in any format of `helpers.data.formats`, with or without
            answers, or with a column `prompt` and perhaps `id`, `category` or
            `topic`, `context`, `reference`, `source` and `expected_items`; or a .txt file with one prompt a line. None
            takes the sixteen bundled prompts.
        count: How many to take, spread over the file; 0 takes all.
        columns: Which column is what, if that cannot be guessed; a file that has none of them is read without.

    Raises:
        EvaluationError: The file is empty or unreadable, a prompt is blank or not text, or two are the same.
        ConfigError: `columns` names a part that does not exist, or only some of its columns do.
    """
    rows, file = (read_prompts(task), "the bundled prompts") if path is None else (_read(Path(path)), path)
    there = [str(name) for name in dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row)]
    meant = columns and any(plain_name(pair.partition("=")[2]) in map(plain_name, there) for pair in columns.split(","))
    named = named_columns(columns, there) if columns and meant else {}
    questions = [_question(row, place, file, named) for place, row in enumerate(rows, 1)]
    _check_twice("id", [each.prompt.id for each in questions], file)
    _check_twice("prompt", [each.prompt.text for each in questions], file)
    if count > len(questions):
        expected = f"at most {len(questions)}, the prompts there are"
        raise EvaluationError("prompt_count", expected, count, "Use 0 for all.")
    return tuple(questions[place * len(questions) // count] for place in range(count)) if count else tuple(questions)


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


def _question(row: Any, place: int, file: str, named: Mapping[str, str]) -> Question:
    """Turn a row of a prompts file into a question."""
    where = f"{Path(file).name}, prompt {place}"
    row = _without_turns(row, named)
    if not isinstance(row, Mapping):
        raise EvaluationError(where, "an object with a `prompt`", row, 'Write it as {"prompt": "..."}.')
    instruction = _text(row, _TEXT, where)
    if not instruction and any(name in row for name in _TEXT):
        raise EvaluationError(Path(file).name, "a text in each row", f"prompt {place} is blank", "Write or remove it.")
    if not instruction:
        got = sorted(map(str, row))
        raise EvaluationError(
            where, "text under prompt, instruction or question", got, "Name the column with the prompts `prompt`."
        )
    context = _text(row, CONTEXTS, where)
    context = "" if context == instruction else context  # `input` and `output` are a pair, too
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
        if value is not None and UNUSABLE.search(value):
            remedy = "It contains a null byte or an incomplete character: save the file as UTF-8 again."
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
        name: What the prompts' ids begin with.
    """
    names, found = COLUMNS[task], []
    for place, (row, source) in enumerate(zip(rows, row_sources(rows, task), strict=True), 1):
        context = (row.get(names.context) or "").strip()
        prompt = Prompt(
            id=f"{name}-{place:03d}",
            text=user_text(row[names.instruction], context),
            category=row.get("category") or ("with input" if context else "without input"),
            source=source,
            reference=row[names.answer].strip(),
        )
        found.append(Question(prompt, row[names.instruction].strip(), context))
    return tuple(found)


@dataclass(frozen=True)
class Material:
    """All rows of a comparison.

    Args:
        references: Rows whose good answers are scored; none was trained on, as far as is known.
        answered: How many of the references, counted from the first, are answered too.
        train: The rows that the adapter was trained on, or bundled ones where those are not at hand.
        task: The columns of `train`: "alpaca" or "dolly".
        other_task: The task that was not trained, "alpaca" or "dolly".
        other: Bundled rows of that task, whose good answers show what training cost elsewhere.
        as_trained: Whether the adapter's own rows are scored as training scored them.
    """

    prompts: tuple[Question, ...]
    references: tuple[Question, ...]
    answered: int
    train: tuple[Row, ...]
    task: str
    train_known: bool
    notes: tuple[str, ...]
    other_task: str = ""
    other: tuple[Question, ...] = ()
    as_trained: bool = True

    def asked(self) -> tuple[Question, ...]:
        """Return everything that is answered: the prompts, then the first references."""
        return (*self.prompts, *self.references[: self.answered])

    def train_texts(self) -> list[str]:
        """Return what each training row asks."""
        return [_asks(row, self.task) for row in self.train]


def gather(config: EvaluationConfig, source: AdapterSource, training: RunConfig) -> Material:
    """Read prompts, references and training rows; no reference is among the other two.

    Raises:
        EvaluationError: A file is empty, a prompt comes twice or is named as a reference is, or too few references are
            left.
        DataError: A data set cannot be read.
    """
    return on_main(lambda: _gather(config, source, training))


def _gather(config: EvaluationConfig, source: AdapterSource, training: RunConfig) -> Material:
    """Read them in the main process."""
    prompts = read_questions(config.prompts_file, config.prompt_count, training.task, config.columns)
    own, notes, as_trained = _own_rows(source, training, needed=config.reference_data is None)
    train, task = (own.train, training.task) if own else (read_sample(training.task, "train"), training.task)
    if config.reference_data is None:
        heldout, task_of = (own.heldout if own else read_sample(training.task, "heldout")), training.task
        notes.append(f"references: held-out rows of {own.source if own else 'the bundled sample'}")
    else:
        task_of = config.task or training.task
        heldout, left_out = _file_rows(config.reference_data, task_of, config.seed, config.columns)
        notes += [f"references: rows of {config.reference_data}", *left_out]
    trained = {_asks(row, task) for row in train}
    kept, dropped = _unseen(heldout, task_of, {each.prompt.text for each in prompts}, trained)
    notes += dropped
    kept = kept[: config.reference_rows]
    if len(kept) < 2:
        expected = "at least two rows that were not trained on"
        got = "; ".join([str(len(kept)), *(note for note in notes if "left out" in note)])
        raise EvaluationError("reference_data", expected, got, "Use other rows, or a larger file.")
    other_task = "dolly" if task == "alpaca" else "alpaca"
    other = _unseen(read_sample(other_task, "heldout"), other_task, set(), trained)[0]
    references = reference_questions(kept, task_of)
    if twice := sorted({each.prompt.id for each in prompts} & {each.prompt.id for each in references}):
        raise EvaluationError("prompts", "names that are used once", twice, "Give each its own.")
    return Material(
        prompts,
        references,
        min(config.answered_rows, len(kept)),
        tuple(train),
        task,
        own is not None,
        tuple(notes),
        other_task,
        reference_questions(other, other_task, "other"),
        as_trained,
    )


def _own_rows(source: AdapterSource, training: RunConfig, *, needed: bool) -> tuple[Rows | None, list[str], bool]:
    """Draw the adapter's own rows again, and prove that they are the ones its run recorded.

    Of a conversation the first question and its answer are taken.

    Returns:
        The rows, notes on them, and whether held-out rows are still all that training scored.
    """
    if source.run is None:
        return None, ["the adapter's own training rows are not known; the bundled sample's stand in for them"], True
    try:
        given = source.settings.get("given") or ()
        rows = load_rows(training.data, training.task, training.train.seed, given=given)
    except DataError as error:
        if needed:
            raise
        note = f"the training rows cannot be read ({error.expected}); the bundled sample's stand in for them"
        return None, [note], True
    recorded = source.run.manifest().get("data_fingerprint")
    for clean in (False, True):  # dolly_business removes reference marks before it trains
        version = rows.changed(clean_row) if clean else rows
        told = as_messages(version, training.data)
        if recorded in (None, data_fingerprint(told.train, told.heldout, training.task)):
            train, shown = _exchanges(version.train, training.task, "training rows")
            heldout, asked = _exchanges(version.heldout, training.task, "held-out rows")
            whole = all("prompt" not in row or _is_exchange(row) for row in told.heldout)
            return dataclasses.replace(version, train=train, heldout=heldout), [*shown, *asked], whole
    remedy = "The data set changed since. Give a file of other rows as reference_data."
    if needed:
        raise EvaluationError("reference_data", f"the rows that {source.shown()} recorded", "other rows", remedy)
    return None, ["the training rows have changed since the run; the bundled sample's stand in for them"], True


def _file_rows(path: str, task: str, seed: int, columns: str | None = None) -> tuple[list[Row], list[str]]:
    """Read a file of references in any format, each row checked, in random order; and note what was left out."""
    try:
        table = read_file(path)
        found = recognise(table.rows, path, columns=columns)
    except DataError as error:
        raise EvaluationError("reference_data", error.expected, error.got, error.remedy) from error
    rows, left_out = [], Counter[str]()
    for place, row in enumerate(table.rows):
        try:
            rows.append(found.convert(row))
        except RowError as error:
            if error.damaged:
                expected = f"a row of the format {found.name}"
                raise EvaluationError(f"reference_data, row {place}", expected, error.reason, "Fix the row.") from None
            left_out[error.reason] += 1
    kept, notes = _exchanges(rows, task, "rows", left_out)
    random.Random(seed).shuffle(kept)  # noqa: S311 - a shuffle, not a secret
    return kept, notes


def _without_turns(row: Any, named: Mapping[str, str]) -> Any:
    """Return a row of prompts under plain names; of a conversation the first question, and its answer as reference."""
    if not isinstance(row, Mapping):
        return row
    names = {"instruction": "prompt", "input": "context", "output": "reference"}
    plain = {plain_name(str(name)): value for name, value in row.items()}
    plain |= {names.get(part, part): row.get(column) for part, column in named.items()}
    turns = next((plain[name] for name in (*MESSAGES, "prompt") if is_chat(plain.get(name))), None)
    try:
        said = read_messages(list_of(turns)) if turns else []
        answers = plain.get("completion")
        said += read_messages(answers) if turns and isinstance(answers, list) else []
    except RowError:
        return plain
    found = {message["role"]: message["content"] for message in reversed(said)}
    asked = {"prompt": found.get("user", ""), "completion": None} if turns else {}
    return plain | asked | ({"reference": found["assistant"]} if "assistant" in found else {})


def _exchanges(
    rows: Sequence[Row], task: str, what: str, left_out: Mapping[str, int] | None = None
) -> tuple[list[Row], list[str]]:
    """Return the first exchange of each conversation, under the task's columns as other rows are, and notes."""
    kept, reasons, told, later = [], Counter(left_out or {}), 0, 0
    for row in rows:
        later += "prompt" in row and len(row["completion"]) > 1
        told += "prompt" in row and row["prompt"][0]["role"] == "system"
        try:
            kept.append(_first_exchange(row))
        except RowError as error:
            reasons[error.reason] += 1
    notes = [f"{count} {what} left out: {reason}" for reason, count in reasons.items()]
    if told:
        notes.append(
            f"{told} {what} have a system prompt of their own, which is not used: the comparison has one for all"
        )
    if later:
        notes.append(f"{later} {what} have later answers, too, which are not used")
    return rename_columns(kept, task), notes


def _is_exchange(row: Row) -> bool:
    """Say whether a conversation is one question and one answer."""
    return [each["role"] for each in (*row["prompt"], *row["completion"])] == ["user", "assistant"]


def _first_exchange(row: Row) -> Row:
    """Return the first question of a conversation, and its answer, as a row of instructions; other rows as they are."""
    if "prompt" not in row:
        return row
    asked = [message["content"] for message in row["prompt"] if message["role"] == "user"]
    if len(asked) > 1:
        raise RowError("a question after earlier turns", damaged=False)
    return {"instruction": asked[0], "input": "", "output": row["completion"][0]["content"]}


def _unseen(rows: Sequence[Row], task: str, asked: set[str], trained: set[str]) -> tuple[list[Row], list[str]]:
    """Leave out rows that are asked already, or that the adapter was trained on, and say how many."""
    kept: dict[str, Row] = {}
    left = {"asked twice": 0, "trained on": 0}
    for row in rows:
        text = _asks(row, task)
        if text in trained:
            left["trained on"] += 1
        elif text in asked or text in kept:
            left["asked twice"] += 1
        else:
            kept[text] = row
    return list(kept.values()), [f"{count} rows left out: {why}" for why, count in left.items() if count]


def _asks(row: Row, task: str) -> str:
    """Return what a row asks."""
    names = COLUMNS[task]
    return user_text(row[names.instruction], row.get(names.context) or "")
