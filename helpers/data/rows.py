"""Rows: read, checked, selected. Only the rows that will be used are ever formatted or tokenized."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from helpers.core.config import DATASETS, DataConfig
from helpers.core.errors import DataError
from helpers.core.paths import is_there
from helpers.data.prompts import COLUMNS
from helpers.data.readers import READERS, read_file
from helpers.data.selection import choose_categories, in_proportion

__all__ = [
    "MAX_BAD_SHARE",
    "Row",
    "Rows",
    "data_fingerprint",
    "load_rows",
    "read_prompts",
    "read_sample",
    "row_problem",
]

Row = dict[str, str]

MAX_BAD_SHARE = 0.01
"""Share of unusable rows above which a data set is refused rather than cleaned. Alpaca-cleaned has a few rows without
an answer among its 51,760; a hand-made file with one bad row in fifty should be looked at."""

_CHANCE = 3
"""Unusable rows that a draw from a large data set may meet by chance, however small the draw."""

_UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""A null byte, the mark of a file in another encoding than it says; and half of a character, which JSON can spell as an
escape and nothing can tokenize."""

_REPEATED = "asks the same as a held-out row"


@dataclass(frozen=True)
class Rows:
    """The rows of one run.

    Args:
        train: Rows to train on.
        heldout: Rows kept apart; nothing is asked in both.
        source: Where they come from, with the revision of a hub data set.
        total: How many rows the source has.
        left_out: How many rows were unusable, by reason.
    """

    train: list[Row]
    heldout: list[Row]
    source: str
    total: int
    left_out: dict[str, int] = field(default_factory=dict)


def load_rows(config: DataConfig, task: str, seed: int) -> Rows:
    """Read a data set and draw the training and held-out rows from it.

    The bundled sample has fixed training and held-out parts; from anything else rows are drawn at random.

    Args:
        config: Which data set, and how many rows.
        task: "alpaca" or "dolly": which columns to expect.
        seed: Seed of the draw.

    Returns:
        The rows, with the number left out and why.

    Raises:
        DataError: The data set cannot be read, or has too few good rows.

    Example:
        >>> len(load_rows(DataConfig(dataset_name="sample", train_rows=5, heldout_rows=8), "alpaca", seed=1).train)
        5
    """
    if config.dataset_name == "sample":
        train = _choose(read_sample(task, "train"), config, seed)
        heldout = _choose(read_sample(task, "heldout"), config, None)
        _check_count(config, len(train), len(heldout))
        total = len(train) + len(heldout)
        return Rows(train[: config.train_rows or None], heldout[: config.heldout_rows], "bundled sample rows", total)
    total, row_at, source = _open_source(config, task)
    return _draw(config, task, total, row_at, source, seed)


def read_sample(task: str, part: str) -> list[Row]:
    """Read the bundled rows.

    Args:
        task: "alpaca" or "dolly".
        part: "train" or "heldout".

    Returns:
        The rows, in the order of the file.
    """
    text = resources.files("helpers.data").joinpath("samples", f"{task}_{part}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def read_prompts() -> list[dict[str, Any]]:
    """Read the bundled business prompts.

    Returns:
        One dictionary a prompt: `id`, `topic`, `prompt`, and `expected_items`, a number or None.
    """
    text = resources.files("helpers.data").joinpath("samples", "business_prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def row_problem(row: Any, task: str) -> str | None:
    """Say what is wrong with a row, or None.

    Args:
        row: What stands in the file.
        task: "alpaca" or "dolly".

    Returns:
        A reason, such as "empty output".
    """
    names = COLUMNS[task]
    if not isinstance(row, Mapping):
        return "not an object with columns"
    for name in names.required():
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            return f"{name} is not text"
        if name != names.context and not (value or "").strip():
            return f"empty {name}"
    for name in (*names.required(), *names.optional):
        if isinstance(row.get(name), str) and (found := _UNUSABLE.search(row[name])):
            return f"{name} holds a null byte" if found[0] == "\0" else f"{name} is not valid Unicode"
    return None


def data_fingerprint(rows: Rows) -> str:
    """Return the SHA-256 over all training and held-out rows in order, in hexadecimal."""
    digest = hashlib.sha256()
    for part in (rows.train, rows.heldout):
        for row in part:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n--\n")
    return digest.hexdigest()


def _open_source(config: DataConfig, task: str) -> tuple[int, Callable[[int], Any], str]:
    """Return the number of rows, a function that reads one, and a description of the source."""
    name = config.dataset_name
    if Path(name).suffix.lower() in READERS or is_there(name):
        rows = read_file(name)
        _check_columns(rows[0], task, name)
        return len(rows), rows.__getitem__, f"{Path(name).name} ({len(rows)} rows)"
    revision = config.dataset_revision or DATASETS.get(name)
    table = _load_hub(name, revision)
    _check_columns(dict.fromkeys(table.column_names, ""), task, name)
    return len(table), table.__getitem__, f"{name} at {revision or 'its newest revision'}"


def _load_hub(name: str, revision: str | None) -> Any:
    """Load the train split of a hub data set, or say why not."""
    from datasets import load_dataset

    try:
        return load_dataset(name, revision=revision, split="train")
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = "".join(str(error).splitlines()[:1])
        raise DataError(
            "dataset_name",
            "a data set on the Hugging Face hub with a train split",
            name,
            f'{type(error).__name__}: {reason} Check the name and the connection, or use a local file or "sample".',
        ) from error


def _check_columns(row: Any, task: str, source: str) -> None:
    """Raise if the first row lacks a column."""
    names = COLUMNS[task]
    if not isinstance(row, Mapping):
        expected = f"rows with the columns {', '.join(names.required())}"
        raise DataError("dataset_name", expected, row, f"See the first row of {source}.")
    missing = [n for n in (names.instruction, names.answer) if n not in row]
    if missing:
        raise DataError(
            "dataset_name",
            f"the columns {', '.join(names.required())}",
            sorted(map(str, row)),
            f"{source} lacks {', '.join(missing)}. Rename its columns.",
        )


def _draw(config: DataConfig, task: str, total: int, row_at: Callable[[int], Any], source: str, seed: int) -> Rows:
    """Draw held-out, then training rows in random order, leaving out the unusable ones and repeated instructions."""
    wanted = total if not config.train_rows else config.heldout_rows + config.train_rows
    good: list[Row] = []
    heldout_keys: set[tuple[str, str]] = set()
    left_out: Counter[str] = Counter()
    first_bad: tuple[int, str] | None = None
    order = random.Random(seed).sample(range(total), total)  # noqa: S311 - a draw, not a secret
    for index in _ordered(order, row_at, config):
        if len(good) >= wanted:
            break
        row = row_at(index)
        problem = row_problem(row, task)
        if problem is None and len(good) >= config.heldout_rows and _key(row, task) in heldout_keys:
            problem = _REPEATED
        if problem is None:
            good.append(_plain(row, task))
            if len(good) <= config.heldout_rows:
                heldout_keys.add(_key(row, task))
            continue
        left_out[problem] += 1
        if problem != _REPEATED:
            first_bad = first_bad or (index, problem)
    _check_bad(left_out, first_bad, len(good), total, source)
    _check_count(config, len(good) - config.heldout_rows, config.heldout_rows)
    return Rows(good[config.heldout_rows :], good[: config.heldout_rows], source, total, dict(left_out))


def _choose(rows: list[Row], config: DataConfig, seed: int | None) -> list[Row]:
    """Shuffle bundled rows, unless the seed is None, and keep the categories asked for."""
    order = list(range(len(rows)))
    if seed is not None:
        random.Random(seed).shuffle(order)  # noqa: S311 - a shuffle, not a secret
    return [rows[i] for i in _ordered(order, rows.__getitem__, config)]


def _ordered(order: list[int], row_at: Callable[[int], Any], config: DataConfig) -> list[int]:
    """Apply the category filter and the stratified order, reading categories only if one is asked for."""

    def category_of(index: int) -> Any:
        row = row_at(index)
        return row.get("category") if isinstance(row, Mapping) else None

    if config.category:
        order = choose_categories(order, category_of, config.category)
    return in_proportion(order, category_of) if config.stratified else order


def _key(row: Mapping[str, Any], task: str) -> tuple[str, str]:
    """Return what a row asks."""
    names = COLUMNS[task]
    return row[names.instruction].strip(), (row.get(names.context) or "").strip()


def _plain(row: Mapping[str, Any], task: str) -> Row:
    """Return the columns that are used, as text."""
    names = COLUMNS[task]
    optional = {n: row[n] for n in names.optional if isinstance(row.get(n), str)}
    return {**{n: row.get(n) or "" for n in names.required()}, **optional}


def _check_bad(left_out: Counter[str], first: tuple[int, str] | None, good: int, total: int, source: str) -> None:
    """Raise when too large a share of the rows is unusable: of the whole data set, or of the rows looked at."""
    bad = left_out.total() - left_out[_REPEATED]
    seen = good + bad
    if first and bad > min(MAX_BAD_SHARE * total, max(MAX_BAD_SHARE * seen, _CHANCE)):
        raise DataError(
            f"row {first[0]}",
            f"at most {MAX_BAD_SHARE:.0%} unusable rows",
            f"{bad} of {seen}: {first[1]}",
            f"Mend or remove the rows in {source}; the number counts from 0.",
        )


def _check_count(config: DataConfig, train: int, heldout: int) -> None:
    """Raise when there are fewer rows than asked for."""
    if heldout < config.heldout_rows:
        expected = f"at most {heldout}, the held-out rows there are"
        raise DataError("heldout_rows", expected, config.heldout_rows, "Lower heldout_rows, or name another data set.")
    if train < 1:
        raise DataError(
            "heldout_rows",
            f"fewer than the {train + heldout} usable rows there are",
            config.heldout_rows,
            "Lower heldout_rows, or use a larger data set.",
        )
    if train < config.train_rows:
        raise DataError(
            "train_rows",
            f"at most {train}, what is left beside {config.heldout_rows} held-out rows",
            config.train_rows,
            "Lower train_rows or heldout_rows, use 0 for all rows, or use a larger data set.",
        )
