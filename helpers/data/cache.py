"""Rows that were tokenized and checked before, kept on disk under a key of all that their tokens depend on.

20,000 rows of Alpaca took 12 s to tokenize and check, in each process and at each resume, and 1 s to read back (one
core of a CPU). Small data sets are not worth a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.core.paths import cache_root
from helpers.data.tokens import joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from helpers.data.prompts import Example

__all__ = ["WORTH_KEEPING", "KeptRows", "read_rows", "rows_key", "write_rows"]

WORTH_KEEPING = 5_000
"""Rows from which on they are kept: so many take four seconds to tokenize and check."""

MOST_FILES = 8
"""Files that stay; the oldest are removed."""

SUFFIX = ".safetensors"

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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_folder() / f"{key}{SUFFIX}", framework="numpy") as file:
            found = {name: file.get_tensor(name).tolist() for name in ("places", "lengths", "prompts", "ids")}
            left_out = json.loads((file.metadata() or {})["left_out"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    ends = list(itertools.accumulate(found["lengths"], initial=0))
    if not len(found["places"]) == len(found["prompts"]) == len(found["lengths"]) or ends[-1] != len(found["ids"]):
        return None
    ids = [tuple(found["ids"][begin:end]) for begin, end in itertools.pairwise(ends)]
    return KeptRows(found["places"], ids, found["prompts"], left_out)


def write_rows(key: str, rows: KeptRows) -> None:
    """Keep rows under a key, where the disk lets us; the oldest files make room.

    Args:
        key: From `rows_key`.
    """
    import numpy
    from safetensors.numpy import save

    values = {
        "places": rows.places,
        "lengths": [len(each) for each in rows.input_ids],
        "prompts": rows.prompts,
        "ids": joined(rows.input_ids),
    }
    arrays = {name: numpy.array(each, dtype=numpy.int32) for name, each in values.items()}
    content = save(arrays, metadata={"left_out": json.dumps(rows.left_out)})
    with contextlib.suppress(OSError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=folder, prefix=".writing-", suffix=SUFFIX)
        try:
            with os.fdopen(number, "wb") as stream:
                stream.write(content)
            os.replace(name, folder / f"{key}{SUFFIX}")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        kept = sorted(folder.glob(f"[!.]*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[MOST_FILES:]:
            path.unlink(missing_ok=True)


def _folder() -> Path:
    """Return where the files are."""
    return cache_root() / "tokens"
