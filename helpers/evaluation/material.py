"""What a comparison works on: prompts to ask, rows whose good answers are scored, and the rows that were trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from helpers.core.config import RunConfig
from helpers.core.errors import DataError, EvaluationError
from helpers.data.formats import RowError, recognise
from helpers.data.prompts import COLUMNS, clean_references, user_text
from helpers.data.readers import read_file
from helpers.data.rows import Row, Rows, data_fingerprint, load_rows, read_sample, rename_columns
from helpers.evaluation.config import EvaluationConfig
from helpers.evaluation.questions import Question, read_questions, reference_questions
from helpers.evaluation.sources import AdapterSource

__all__ = ["Material", "gather"]


@dataclass(frozen=True)
class Material:
    """All rows of a comparison.

    Args:
        prompts: Prompts to ask; they need no reference.
        references: Rows whose good answers are scored; none was trained on, as far as is known.
        answered: How many of the references, counted from the first, are answered too.
        train: The rows that the adapter was trained on, or bundled ones where those are not at hand.
        task: The columns of `train`: "alpaca" or "dolly".
        train_known: Whether `train` are the adapter's own rows.
        notes: What a reader must know about where the rows come from.
        other_task: The task that was not trained, "alpaca" or "dolly".
        other: Bundled rows of that task, whose good answers show what training cost elsewhere.
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

    def asked(self) -> tuple[Question, ...]:
        """Return everything that is answered: the prompts, then the first references."""
        return (*self.prompts, *self.references[: self.answered])

    def train_texts(self) -> list[str]:
        """Return what each training row asks."""
        return [_asks(row, self.task) for row in self.train]


def gather(config: EvaluationConfig, source: AdapterSource, training: RunConfig) -> Material:
    """Read prompts, references and training rows.

    Args:
        config: The comparison.
        source: The adapter.
        training: Its run's configuration, from `training_config`.

    Returns:
        The rows; no reference is asked among the prompts or the training rows.

    Raises:
        EvaluationError: A file is empty, a prompt comes twice, or too few references are left.
        DataError: A data set cannot be read.
    """
    prompts = read_questions(config.prompts_file, config.prompt_count)
    own, notes = _own_rows(source, training, needed=config.reference_data is None)
    train, task = (own.train, training.task) if own else (read_sample(training.task, "train"), training.task)
    if config.reference_data is None:
        heldout, task_of = (own.heldout if own else read_sample(training.task, "heldout")), training.task
        notes.append(f"references: held-out rows of {own.source if own else 'the bundled sample'}")
    else:
        task_of = config.task or training.task
        heldout = _file_rows(config.reference_data, task_of, config.seed)
        notes.append(f"references: rows of {config.reference_data}")
    kept, dropped = _unseen(
        heldout, task_of, {each.prompt.text for each in prompts}, {_asks(row, task) for row in train}
    )
    notes += dropped
    kept = kept[: config.reference_rows]
    if len(kept) < 2:
        expected = "at least two rows that were not trained on"
        raise EvaluationError("reference_data", expected, len(kept), "Use a larger file.")
    other_task = "dolly" if task == "alpaca" else "alpaca"
    other = _unseen(read_sample(other_task, "heldout"), other_task, set(), {_asks(row, task) for row in train})[0]
    return Material(
        prompts,
        reference_questions(kept, task_of),
        min(config.answered_rows, len(kept)),
        tuple(train),
        task,
        own is not None,
        tuple(notes),
        other_task,
        reference_questions(other[: config.reference_rows], other_task, "other"),
    )


def _own_rows(source: AdapterSource, training: RunConfig, *, needed: bool) -> tuple[Rows | None, list[str]]:
    """Draw the adapter's own rows again, and prove that they are the ones its run recorded."""
    if source.run is None:
        return None, ["the adapter's own training rows are not known; the bundled sample's stand in for them"]
    try:
        given = source.settings.get("given") or ()
        rows = load_rows(training.data, training.task, training.train.seed, given=given)
    except DataError as error:
        if needed:
            raise
        return None, [f"the training rows cannot be read ({error.expected}); the bundled sample's stand in for them"]
    recorded = source.run.manifest().get("data_fingerprint")
    for version in (rows, _without_marks(rows)):
        if recorded in (None, data_fingerprint(version.train, version.heldout, training.task)):
            return version, []
    remedy = "The data set changed since. Give a file of other rows as reference_data."
    if needed:
        raise EvaluationError("reference_data", f"the rows that {source.shown()} recorded", "other rows", remedy)
    return None, ["the training rows have changed since the run; the bundled sample's stand in for them"]


def _without_marks(rows: Rows) -> Rows:
    """Remove reference marks, as dolly_business does before it trains."""

    def clean(row: Row) -> Row:
        return {name: clean_references(value)[0] if isinstance(value, str) else value for name, value in row.items()}

    return replace(rows, train=[clean(row) for row in rows.train], heldout=[clean(row) for row in rows.heldout])


def _file_rows(path: str, task: str, seed: int) -> list[Row]:
    """Read a file of references in any format, in random order, each row checked.

    Of a conversation the first question and its answer are taken.
    """
    try:
        table = read_file(path)
        found = recognise(table.rows, path)
    except DataError as error:
        raise EvaluationError("reference_data", error.expected, error.got, error.remedy) from error
    rows = []
    for place, row in enumerate(table.rows):
        try:
            rows.append(_first_exchange(found.convert(row)))
        except RowError as error:
            expected = f"a row of the format {found.name}"
            raise EvaluationError(f"reference_data, row {place}", expected, error.reason, "Mend the row.") from None
    random.Random(seed).shuffle(rows)  # noqa: S311 - a shuffle, not a secret
    return rename_columns(rows, task)


def _first_exchange(row: Row) -> Row:
    """Return the first question of a conversation, and its answer, as a row of instructions; other rows as they are."""
    if "prompt" not in row:
        return row
    asked = [message["content"] for message in row["prompt"] if message["role"] == "user"]
    if len(asked) > 1:
        raise RowError("a question after earlier turns")
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
