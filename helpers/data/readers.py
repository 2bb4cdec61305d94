"""Local files as rows: JSON, JSON lines, CSV and Parquet, unchecked but whole."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers.core.errors import DataError
from helpers.core.paths import is_file

__all__ = ["READERS", "read_file"]


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
    if path.suffix.lower() not in READERS:
        remedy = "Save it in one of these formats; the ending says how it is read."
        raise DataError("dataset_name", f"a file that ends in {', '.join(READERS)}", str(path), remedy)
    if not is_file(path):
        remedy = "Check the path; it starts from the working directory."
        raise DataError("dataset_name", "an existing file", str(path), remedy)
    try:
        rows = READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        found = f"{path} with byte 0x{error.object[error.start]:02x} at {error.start}"
        raise DataError("dataset_name", "a file in UTF-8", found, "Save the file again with encoding UTF-8.") from None
    except OSError as error:
        found = f"{path} ({error.strerror or error})"
        raise DataError("dataset_name", "a readable file", found, "Check its permissions, or copy it again.") from None
    if not rows:
        raise DataError("dataset_name", "a file with at least one row", str(path), "Fill it, or name another file.")
    return rows


def _text(path: Path) -> str:
    """Read a file in UTF-8, without its byte order mark, line breaks as they are."""
    content = path.read_bytes()
    if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        found = f"{path} with a null byte at {content.index(0)}"
        remedy = "It may be UTF-16 without its mark: save the file again with encoding UTF-8."
        raise DataError("dataset_name", "a file in UTF-8", found, remedy)
    return content.decode("utf-8").removeprefix("\ufeff")


def _read_json(path: Path) -> list[Any]:
    """Read a JSON file that holds a list."""
    text = _text(path)
    try:
        content = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise DataError("dataset_name", "valid JSON", str(path), f"{error}.") from None
    if not isinstance(content, list):
        raise DataError(
            "dataset_name",
            "a JSON list of rows",
            f"{path} with one {type(content).__name__}",
            "Wrap the rows in [ ], or save one a line as .jsonl.",
        )
    return content


def _read_jsonl(path: Path) -> list[Any]:
    """Read a file with one JSON value a line; empty lines do not count."""
    return [_parse_line(line, f"{path}, line {n}") for n, line in enumerate(_text(path).split("\n"), 1) if line.strip()]


def _parse_line(line: str, where: str) -> Any:
    """Return the value that one line spells."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("dataset_name", "one JSON object a line", where, f"{error}.") from None


def _read_csv(path: Path) -> list[Any]:
    """Read a CSV file with a header line."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
        _check_names(reader.fieldnames or [], path)
        rows = list(reader)
    except csv.Error as error:
        raise DataError("dataset_name", "valid CSV with a header line", str(path), f"{error}.") from None
    ragged = next((i for i, row in enumerate(rows) if None in row or None in row.values()), None)
    if ragged is not None:
        raise DataError(
            "dataset_name",
            "as many fields in each row as in the header",
            f"{path}, row {ragged}",
            "Quote fields that contain commas or line breaks; the number counts from 0.",
        )
    return rows


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raise if a column's name comes twice: one of the two would be lost."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        found = f"{path} with {twice[0]!r} {names.count(twice[0])} times"
        raise DataError("dataset_name", "each column once", found, "Rename or remove one of them.")


def _read_parquet(path: Path) -> list[Any]:
    """Read a Parquet file."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        _check_names(table.column_names, path)
        return table.to_pylist()
    except DataError:
        raise
    except Exception as error:  # damaged files make pyarrow 26 raise its own types, OverflowError, KeyError and others
        reason = "".join(str(error).splitlines()[:1]) or type(error).__name__
        remedy = f"pyarrow says: {reason} Write the file again."
        raise DataError("dataset_name", "a Parquet file", str(path), remedy) from None


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""What reads a file, by the end of its name in small letters."""
