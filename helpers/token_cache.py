"""Rows that were tokenized and checked before, kept on disk under a key of all that their tokens depend on.

20,000 rows of Alpaca took 16 s to tokenize and check, in each process and at each resume, and 0.7 s to read back (one
core of a CPU). Small data sets are not worth a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.paths import cache_root

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from helpers.prompts import Example

__all__ = ["WORTH_KEEPING", "KeptRows", "read_rows", "rows_key", "write_rows"]

WORTH_KEEPING = 5_000
"""Rows from which on they are kept: so many take four seconds to tokenize and check."""

MOST_FILES = 8
"""Files that stay; the oldest are removed."""

FORMAT = 1
"""Goes up when a row's tokens or its checks change."""


@dataclass(frozen=True)
class KeptRows:
    """What became of a data set's rows.

    Args:
        places: Of the rows that passed, among all rows.
        input_ids: Their tokens.
        prompts: How many tokens of each are the prompt's.
        left_out: Rows left out, by reason.
    """

    places: list[int]
    input_ids: list[tuple[int, ...]]
    prompts: list[int]
    left_out: dict[str, int]


def rows_key(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> str | None:
    """Return the key of rows, a tokenizer with its template, and a length.

    Args:
        examples: The rows as messages.
        tokenizer: With a template of `helpers.templates`.
        max_seq_length: Longest row allowed, in tokens.

    Returns:
        A SHA-256 in hexadecimal; None if rows of these are not kept.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(examples) < WORTH_KEEPING:
        return None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    digest = hashlib.sha256(json.dumps([FORMAT, max_seq_length, special, tokenizer.chat_template]).encode())
    digest.update(backend.to_str().encode())
    for example in examples:
        digest.update(json.dumps([example.prompt, example.completion]).encode())
    return digest.hexdigest()


def read_rows(key: str) -> KeptRows | None:
    """Return what was kept under a key; None if there is nothing, or nothing whole.

    Args:
        key: From `rows_key`.
    """
    import numpy

    try:
        with (_folder() / f"{key}.npz").open("rb") as stream, numpy.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in ("places", "lengths", "prompts", "ids", "left_out")}
        borders = found["lengths"].cumsum()[:-1]
        ids = [tuple(part.tolist()) for part in numpy.split(found["ids"], borders)] if len(found["lengths"]) else []
        return KeptRows(found["places"].tolist(), ids, found["prompts"].tolist(), json.loads(str(found["left_out"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_rows(key: str, rows: KeptRows) -> None:
    """Keep rows under a key, where the disk lets us; the oldest files make room.

    Args:
        key: From `rows_key`.
        rows: What became of them.
    """
    import numpy

    values: dict[str, Any] = {
        "places": numpy.array(rows.places, dtype=numpy.int32),
        "lengths": numpy.array([len(each) for each in rows.input_ids], dtype=numpy.int64),
        "prompts": numpy.array(rows.prompts, dtype=numpy.int32),
        "ids": numpy.array([token for each in rows.input_ids for token in each], dtype=numpy.int32),
        "left_out": numpy.array(json.dumps(rows.left_out)),
    }
    with contextlib.suppress(OSError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=folder, prefix=".writing-", suffix=".npz")
        try:
            with os.fdopen(number, "wb") as stream:
                numpy.savez(stream, **values)
            os.replace(name, folder / f"{key}.npz")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        kept = sorted(folder.glob("[!.]*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[MOST_FILES:]:
            path.unlink(missing_ok=True)


def _folder() -> Path:
    """Return where the files are."""
    return cache_root() / "tokens"
