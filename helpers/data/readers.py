"""Local files as rows: JSON, JSON lines, CSV and Parquet, each also gzipped; whole, and all values as text.

`datasets` and `pandas` guess types ("007" becomes 7, "N/A" nothing) and do not guess delimiters; here it is the other
way round. Only Parquet is read with a library, pyarrow.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.config import ROW_FILES, file_kind
from helpers.core.errors import DataError

__all__ = ["read_file"]

_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_SAVE_AS = "Open it in the spreadsheet program and save it as CSV in UTF-8 (Excel: Save As, CSV UTF-8)."
_OTHER_FILES = (
    (b"PK\x03\x04", "a spreadsheet or another ZIP archive", f"If it is a spreadsheet: {_SAVE_AS}"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an old Excel file or another Office document",
        f"If it is a spreadsheet: {_SAVE_AS}",
    ),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "Fetch it with `git lfs pull`."),
    (b"<!doctype html", "a web page", "Download the file itself, not the page that shows it."),
    (b"<html", "a web page", "Download the file itself, not the page that shows it."),
)
"""How files begin that are something else than their name says."""

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_COMPRESSED = b"\x1f\x8b"
_NOT_CP1252 = re.compile(
    rb"[A-Za-z][\x80\x82-\x84\x86-\x89\x8b\x95\x98\x99\x9b\xa1-\xa9\xab\xac\xae-\xb4\xb6\xb8\xb9\xbb-\xbf\xd7\xf7][A-Za-z]"
    rb"|[\x80-\xff]{4}"
)
"""Bytes of another encoding: they would be symbols inside words in cp1252, or are whole words of another alphabet."""


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Args:
        rows: One dictionary a row, if the file is sound: strings, and lists and dictionaries of strings.
        read_as: How the file was read, such as "CSV, separated by semicolons, cp1252".
        as_text: Whether the file itself has text everywhere, or null: no numbers that became text.
    """

    rows: list[Any]
    read_as: str
    as_text: bool = True


def read_file(path: Path | str) -> Table:
    """Read a local file of rows, unchecked.

    Args:
        path: The file, in one of the formats of `helpers.core.config.ROW_FILES`. Text is UTF-8, UTF-16 or, where
            nothing speaks against it, cp1252.

    Returns:
        Its rows. Numbers and truth values are text, as the file spells them; null and NaN are "".

    Raises:
        DataError: The file is missing, empty, in another encoding, or not what its name says.
    """
    path = Path(path)
    kind = file_kind(path.name)
    if kind is None:
        remedy = "Save it in one of these formats; the ending says how it is read."
        remedy = _SAVE_AS if path.suffix.lower() in _SPREADSHEETS else remedy
        raise DataError("dataset_name", f"a file that ends in {', '.join(ROW_FILES)} or .gz", str(path), remedy)
    if not os.path.isfile(path):
        remedy = "Check the path; it starts from the working directory."
        raise DataError("dataset_name", "an existing file", str(path), remedy)
    try:
        content = path.read_bytes()
        packed = content.startswith(_COMPRESSED)
        content = gzip.decompress(content) if packed else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        found = f"{path} ({error})"
        raise DataError("dataset_name", "a whole gzip file", found, "Download or compress it again.") from None
    except OSError as error:
        found = f"{path} ({error.strerror or error})"
        raise DataError("dataset_name", "a readable file", found, "Check its permissions, or copy it again.") from None
    for beginning, what, remedy in _OTHER_FILES:
        if content[:64].lstrip().lower().startswith(beginning.lower()):
            raise DataError("dataset_name", "a file of rows", f"{path}, {what}", remedy)
    if kind == ".parquet":
        rows, read_as, values = _parse_parquet(content, path), "Parquet", _Values(others=True)
    else:
        text, encoding = _decode(content, path)
        del content
        values = _Values(others=encoding != "UTF-8")
        rows, read_as = _parse_csv(text, path) if kind in (".csv", ".tsv") else _parse_json(text, path, values)
        read_as += "" if encoding == "UTF-8" else f", {encoding}"
    while rows and _is_blank(rows[-1]):
        rows.pop()
    if not rows:
        raise DataError("dataset_name", "a file with at least one row", str(path), "Fill it, or name another file.")
    return Table(rows, read_as + (", gzip" if packed else ""), as_text=not values.others)


def plain_value(value: Any) -> Any:
    """Return a value with everything in it as text: numbers as they are written, null and NaN as ""; but bytes."""
    if isinstance(value, (str, bytes)):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return {str(name): plain_value(each) for name, each in value.items()}
    return [plain_value(each) for each in value] if isinstance(value, (list, tuple)) else str(value)


def _is_blank(row: Any) -> bool:
    """Say whether a row holds nothing but white space."""
    values = row.values() if isinstance(row, dict) else [row]
    return not any(value.strip() if isinstance(value, str) else value for value in values)


def _decode(content: bytes, path: Path) -> tuple[str, str]:
    """Return a file's text without its byte order mark, line breaks as they are, and the name of its encoding."""
    encoding = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "UTF-8"
    even, odd = (content[start:2000:2].count(0) for start in (0, 1))
    if encoding == "UTF-8" and max(even, odd) > 9 * min(even, odd) and 4 * max(even, odd) > len(content[:2000]):
        encoding = "UTF-16-LE" if odd > even else "UTF-16-BE"
    if encoding == "UTF-8" and b"\0" in content:
        found = f"{path} with a null byte at {content.index(0)}"
        raise DataError("dataset_name", "a text file", found, "It is damaged, or no text: save it again as UTF-8.")
    try:
        return content.decode(encoding).removeprefix("\ufeff"), encoding
    except UnicodeDecodeError as error:
        found = f"{path} with byte 0x{content[error.start]:02x} at {error.start}"
        if encoding == "UTF-8":
            with suppress(UnicodeDecodeError):
                if not _NOT_CP1252.search(content):
                    return content.decode("cp1252"), "cp1252"
    remedy = "Save the file again with encoding UTF-8."
    raise DataError("dataset_name", f"a file in {encoding}", found, remedy) from None


def _parse_json(text: str, path: Path, values: _Values) -> tuple[list[Any], str]:
    """Read a list of rows, one row a line, or rows under a key, whichever the file holds."""
    beginning = text.lstrip()[:1]
    lines = path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    if not beginning:
        return [], "JSON"
    try:
        content = values.load(text)
    except (ValueError, RecursionError) as error:
        if lines or (beginning == "{" and "Extra data" in str(error)):
            numbered = enumerate(text.split("\n"), 1)
            return [
                _parse_line(line, f"{path}, line {n}", values) for n, line in numbered if line.strip()
            ], "JSON lines"
        raise DataError("dataset_name", "valid JSON", str(path), f"{error}.") from None
    if isinstance(content, list):
        return content, "JSON"
    if lines:
        return [content], "JSON lines"
    under = dict(_lists_of_rows(content))
    known = (key for name in ("train", "data") for key in under if key.rpartition(".")[2] == name)
    key = next(iter(under)) if len(under) == 1 else next(known, None)
    if key is None:
        some = ", ".join(list(under)[:8]) + (", …" if len(under) > 8 else "")
        found = f"{path} with one {type(content).__name__}" + (f" of the lists {some}" if under else "")
        remedy = "Wrap the rows in [ ], or save one a line as .jsonl"
        by_column = isinstance(content, dict) and content and all(isinstance(v, (dict, list)) for v in content.values())
        remedy += " (with pandas: to_json(path, orient='records', lines=True))." if by_column and not under else "."
        raise DataError("dataset_name", "a JSON list of rows, or an object with one", found, remedy)
    others = [name for name in under if name != key]
    return under[key], f"JSON, rows under {key!r}" + (f" (not read: {', '.join(others)})" if others else "")


def _lists_of_rows(content: Any, path: str = "", depth: int = 3) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists of objects in an object, and in objects in it, each with its keys joined by dots."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if value and _is_rows(value):
            yield path + key, value
        elif depth > 1:
            yield from _lists_of_rows(value, f"{path}{key}.", depth - 1)


def _is_rows(value: Any) -> bool:
    """Say whether a value is a list of objects."""
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


class _Values:
    """Reads JSON with all values as text, and says whether there were others.

    Args:
        others: Whether there are, from the beginning.
    """

    def __init__(self, *, others: bool) -> None:
        self.others = others

    def load(self, text: str) -> Any:
        """Return the value that a text spells: numbers as they are written, null and NaN as ""."""
        return self._cleaned(
            json.loads(text, parse_int=self._number, parse_float=self._number, parse_constant=self._number)
        )

    def _number(self, text: str) -> str:
        self.others = True
        return "" if text == "NaN" else text

    def _cleaned(self, value: Any) -> Any:
        """Replace null and truth values by text, in place where rows are large."""
        places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if places is None:
            self.others = self.others or isinstance(value, bool)
            return plain_value(value)
        for place, each in places:
            if not isinstance(each, str):
                value[place] = self._cleaned(each)
        return value


def _parse_line(line: str, where: str, values: _Values) -> Any:
    """Return the value that one line spells."""
    try:
        return values.load(line)
    except (ValueError, RecursionError) as error:
        raise DataError("dataset_name", "one JSON object a line", where, f"{error}.") from None


def _parse_csv(text: str, path: Path) -> tuple[list[Any], str]:
    """Read a table with a header line; its delimiter is the commonest one in that line."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    said = re.match(r"sep=(.)\r?\n", text)  # Excel's own line, which no other program writes
    header = re.sub(r'"[^"]*"', "", text[said.end() if said else 0 :].lstrip("\r\n").partition("\n")[0])
    usual = "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","
    delimiter = said[1] if said else max((usual, *_DELIMITERS), key=header.count)
    stream = io.StringIO(text, newline="")
    skipped = len(stream.readline()) > 0 if said else False
    reader = csv.reader(stream, strict=True, delimiter=delimiter)
    rows: list[dict[str, str]] = []
    names: list[str] = []
    began = 1 + skipped
    try:
        for cells in reader:
            if not cells:
                pass
            elif not names:
                names = cells
            elif len(cells) == len(names):
                rows.append(dict(zip(names, cells, strict=True)))
            elif any(cells):
                found = f"{path}, line {began}, with {len(cells)} of {len(names)}"
                remedy = "Quote fields that contain the delimiter or line breaks."
                raise DataError("dataset_name", "as many fields in each row as in the header", found, remedy)
            began = reader.line_num + 1 + skipped
    except csv.Error as error:
        line = began if "end of data" in str(error) else reader.line_num + skipped
        remedy = f'{error}. Inside a quoted field write a quotation mark twice: "".'
        raise DataError("dataset_name", "valid CSV with a header line", f"{path}, line {line}", remedy) from None
    if "" in names and not any(row[""] for row in rows):
        names = [name for name in names if name]
        rows = [{name: row[name] for name in names} for row in rows]
    _check_names(names, path)
    return rows, f"CSV, separated by {_DELIMITERS.get(delimiter, delimiter)}"


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raise if a column's name comes twice: one of the two would be lost."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        found = f"{path} with {twice[0]!r} {names.count(twice[0])} times"
        raise DataError("dataset_name", "each column once", found, "Rename or remove one of them.")


def _parse_parquet(content: bytes, path: Path) -> list[Any]:
    """Read a Parquet file."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read()
        _check_names(table.column_names, path)
        return [plain_value(row) for row in table.to_pylist()]
    except DataError:
        raise
    except Exception as error:  # damaged files make pyarrow 26 raise its own types, OverflowError, KeyError and others
        reason = "".join(str(error).splitlines()[:1]) or type(error).__name__
        remedy = f"pyarrow says: {reason} Write the file again."
        raise DataError("dataset_name", "a Parquet file", str(path), remedy) from None
