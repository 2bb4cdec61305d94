"""Local files as rows: JSON, JSON lines, CSV and Parquet, unchecked but whole."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.errors import DataError

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
        raise DataError("dataset_name", f"a file that ends in {', '.join(READERS)}", str(path))
    if not path.is_file():
        remedy = "Check the path; it starts from the working directory."
        raise DataError("dataset_name", "an existing file", str(path), remedy)
    try:
        rows = READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        found = f"{path} with byte 0x{error.object[error.start]:02x} at {error.start}"
        raise DataError("dataset_name", "a file in UTF-8", found, "Save the file again with encoding UTF-8.") from None
    except OSError as error:
        raise DataError("dataset_name", "a readable file", f"{path} ({error.strerror or error})") from None
    if not rows:
        raise DataError("dataset_name", "a file with at least one row", str(path))
    return rows


def _text(path: Path) -> str:
    """Read a file in UTF-8, without its byte order mark, line breaks as they are."""
    return path.read_bytes().decode("utf-8").removeprefix("\ufeff")


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
        rows = list(csv.DictReader(io.StringIO(_text(path), newline=""), strict=True))
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


def _read_parquet(path: Path) -> list[Any]:
    """Read a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError, ValueError) as error:
        reason = "".join(str(error).splitlines()[:1])
        raise DataError("dataset_name", "a Parquet file", str(path), reason) from None


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""What reads a file, by the end of its name in small letters."""
