"""Rows: read, checked, selected. Only the rows that will be used are ever formatted or tokenized."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from helpers.config import DATASETS, DataConfig
from helpers.errors import DataError
from helpers.prompts import COLUMNS

__all__ = ["Rows", "data_fingerprint", "load_rows", "read_file", "read_sample", "row_problem"]

Row = dict[str, str]

MAX_BAD_SHARE = 0.01
"""Share of unusable rows above which a data set is refused rather than cleaned. Alpaca-cleaned has a few rows without
an answer among its 51,760; a hand-made file with one bad row in fifty should be looked at."""


@dataclass(frozen=True)
class Rows:
    """The rows of one run.

    Args:
        train: Rows to train on.
        heldout: Rows kept apart; no instruction stands in both.
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
        >>> len(load_rows(DataConfig(dataset_name="sample", train_rows=5), "alpaca", seed=1).train)
        5
    """
    if config.dataset_name == "sample":
        train, heldout = read_sample(task, "train"), read_sample(task, "heldout")
        random.Random(seed).shuffle(train)  # noqa: S311 - a shuffle, not a secret
        _check_count(config, len(train), len(heldout))
        return Rows(train[: config.train_rows or None], heldout[: config.heldout_rows], "bundled sample rows",
                    len(train) + len(heldout))
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
    text = resources.files("helpers").joinpath("samples", f"{task}_{part}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read_file(path: Path | str) -> list[dict[str, Any]]:
    """Read a local .json, .jsonl, .csv or .parquet file as a list of rows, unchecked.

    Args:
        path: The file. Text files are UTF-8, with or without a byte order mark.

    Returns:
        One dictionary a row.

    Raises:
        DataError: The file is missing, empty, in another encoding, or not what its name says.
    """
    path = Path(path)
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError("dataset_name", f"a file that ends in {', '.join(readers)}", str(path))
    if not path.is_file():
        raise DataError("dataset_name", "an existing file", str(path), "Check the path; it is relative to the working directory.")
    try:
        rows = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError("dataset_name", "a file in UTF-8", f"{path} with byte 0x{error.object[error.start]:02x} at {error.start}",
                        "Save the file again with encoding UTF-8.") from None
    except OSError as error:
        raise DataError("dataset_name", "a readable file", f"{path} ({error.strerror})") from None
    if not rows:
        raise DataError("dataset_name", "a file with at least one row", str(path))
    return rows


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
    if Path(name).suffix.lower() in (".json", ".jsonl", ".csv", ".parquet") or Path(name).exists():
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
        raise DataError("dataset_name", "a data set on the Hugging Face hub with a train split", name,
                        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} "
                        'Check the name and the connection, or use a local file or "sample".') from error


def _check_columns(row: Any, task: str, source: str) -> None:
    """Raise if the first row lacks a column."""
    names = COLUMNS[task]
    if not isinstance(row, Mapping):
        raise DataError("dataset_name", f"rows with the columns {', '.join(names.required())}", row, f"See the first row of {source}.")
    missing = [n for n in (names.instruction, names.answer) if n not in row]
    if missing:
        raise DataError("dataset_name", f"the columns {', '.join(names.required())}", sorted(map(str, row)),
                        f"{source} lacks {', '.join(missing)}. Rename its columns.")


def _draw(config: DataConfig, task: str, total: int, row_at: Callable[[int], Any], source: str, seed: int) -> Rows:
    """Draw held-out, then training rows in random order, leaving out the unusable ones and repeated instructions."""
    wanted = total if not config.train_rows else config.heldout_rows + config.train_rows
    good: list[Row] = []
    heldout_keys: set[tuple[str, str]] = set()
    left_out: Counter[str] = Counter()
    first_bad: tuple[int, str] | None = None
    for index in random.Random(seed).sample(range(total), total):  # noqa: S311 - a draw, not a secret
        if len(good) >= wanted:
            break
        row = row_at(index)
        problem = row_problem(row, task)
        if problem is None and len(good) >= config.heldout_rows and _key(row, task) in heldout_keys:
            problem = "asks the same as a held-out row"
        if problem is None:
            good.append(_plain(row, task))
            if len(good) <= config.heldout_rows:
                heldout_keys.add(_key(row, task))
            continue
        left_out[problem] += 1
        if problem != "asks the same as a held-out row":
            first_bad = first_bad or (index, problem)
    _check_bad(left_out, first_bad, len(good), source)
    _check_count(config, len(good) - config.heldout_rows, config.heldout_rows)
    return Rows(good[config.heldout_rows :], good[: config.heldout_rows], source, total, dict(left_out))


def _key(row: Mapping[str, Any], task: str) -> tuple[str, str]:
    """Return what a row asks."""
    names = COLUMNS[task]
    return row[names.instruction].strip(), (row.get(names.context) or "").strip()


def _plain(row: Mapping[str, Any], task: str) -> Row:
    """Return the columns that are used, as text."""
    names = COLUMNS[task]
    optional = {n: row[n] for n in names.optional if isinstance(row.get(n), str)}
    return {**{n: row.get(n) or "" for n in names.required()}, **optional}


def _check_bad(left_out: Counter[str], first: tuple[int, str] | None, good: int, source: str) -> None:
    """Raise when too large a share of the rows is unusable."""
    bad = sum(n for reason, n in left_out.items() if reason != "asks the same as a held-out row")
    if first and bad > MAX_BAD_SHARE * (good + bad):
        raise DataError(f"row {first[0]}", f"at most {MAX_BAD_SHARE:.0%} unusable rows", f"{bad} of {good + bad}: {first[1]}",
                        f"Mend or remove the rows in {source}; the number counts from 0.")


def _check_count(config: DataConfig, train: int, heldout: int) -> None:
    """Raise when there are fewer rows than asked for."""
    if heldout < config.heldout_rows:
        raise DataError("heldout_rows", f"at most {heldout}, the held-out rows there are", config.heldout_rows)
    if train < max(config.train_rows, 1):
        raise DataError("train_rows", f"at most {max(train, 0)}, what is left beside {config.heldout_rows} held-out rows",
                        config.train_rows, "Lower train_rows or heldout_rows, or use a larger data set.")


def _read_json(path: Path) -> list[Any]:
    """Read a JSON file that holds a list."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig") or "[]")
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError("dataset_name", "valid JSON", str(path), f"{error}") from None
    if not isinstance(content, list):
        raise DataError("dataset_name", "a JSON list of rows", f"{path} with one {type(content).__name__}",
                        "Wrap the rows in [ ], or save one a line as .jsonl.")
    return content


def _read_jsonl(path: Path) -> list[Any]:
    """Read a file with one JSON value a line; empty lines do not count."""
    return list(_parse_lines(path.read_text(encoding="utf-8-sig").split("\n"), path))


def _parse_lines(lines: Iterable[str], path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError("dataset_name", "one JSON object a line", f"{path}, line {number}", str(error)) from None


def _read_csv(path: Path) -> list[Any]:
    """Read a CSV file with a header line."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
    except csv.Error as error:
        raise DataError("dataset_name", "valid CSV with a header line", str(path), str(error)) from None
    ragged = next((i for i, row in enumerate(rows) if None in row or None in row.values()), None)
    if ragged is not None:
        raise DataError("dataset_name", "as many fields in each row as in the header", f"{path}, row {ragged}",
                        "Quote fields that contain commas or line breaks.")
    return rows


def _read_parquet(path: Path) -> list[Any]:
    """Read a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError, ValueError) as error:
        raise DataError("dataset_name", "a Parquet file", str(path), str(error).splitlines()[0]) from None


def select_texts(rows: Sequence[Row], task: str) -> list[str]:
    """Return everything a row says, joined, in row order: what control tokens are searched in."""
    names = COLUMNS[task]
    return ["\n".join((row[names.instruction], row[names.context], row[names.answer])) for row in rows]
