"""Rows of tokens as flat arrays: where there are tens of thousands of rows, many times faster than lists of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from helpers.core.errors import ContractError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from pyarrow import ChunkedArray

    from helpers.data.contract import TokenizedExample

__all__ = [
    "IGNORED",
    "MessageColumns",
    "TokenColumns",
    "columns_of",
    "joined",
    "message_columns",
    "trainer_columns",
    "trainer_table",
]

IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""


@dataclass(frozen=True)
class TokenColumns:
    """All rows' tokens and labels, one after the other.

    Args:
        input_ids: int32, shape (tokens of all rows,).
        labels: The same, IGNORED where no loss is taken.
        lengths: Tokens of each row, shape (rows,).
    """

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray

    def rows(self) -> list[tuple[bytes, bytes]]:
        """Return each row's token ids and labels, as bytes that can be compared and counted."""
        ends = self.lengths.cumsum()
        borders = list(zip((ends - self.lengths).tolist(), ends.tolist(), strict=True))
        return [(self.input_ids[a:b].tobytes(), self.labels[a:b].tobytes()) for a, b in borders]

    def supervised(self) -> int:
        """Return the number of tokens that the loss is taken over."""
        return int((self.labels != IGNORED).sum())

    def learned(self) -> np.ndarray:
        """Return the labels that the loss is taken over, sorted."""
        import numpy as np

        return np.sort(self.labels[self.labels != IGNORED])


@dataclass(frozen=True)
class MessageColumns:
    """All rows' messages, one after the other.

    Args:
        texts: What they say.
        roles: Of each, shape (messages of all rows,).
        rows: The number of the row that each is in, the same shape.
        total: How many rows there are.
    """

    texts: list[str]
    roles: np.ndarray
    rows: np.ndarray
    total: int

    def count(self, role: str) -> np.ndarray:
        """Return how many messages of a role each row has."""
        import numpy as np

        return np.bincount(self.rows[self.roles == role], minlength=self.total)


def columns_of(rows: Sequence[TokenizedExample]) -> TokenColumns:
    """Return tokenized rows as columns."""
    import numpy as np

    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    return TokenColumns(joined(row.input_ids for row in rows), joined(row.labels for row in rows), lengths)


def joined(lists: Iterable[Sequence[int]]) -> np.ndarray:
    """Return lists of numbers as one array, int32, shape (all numbers,)."""
    import numpy as np

    return np.fromiter(chain.from_iterable(lists), dtype=np.int32)


def trainer_table(columns: TokenColumns) -> Dataset:
    """Return a data set as the trainer would have it after tokenizing prompt and answer: it need not do so again.

    Args:
        columns: Tokens and labels.

    Returns:
        `input_ids`, lists of int32, and `completion_mask`, of int64: the types that datasets gives them, too.
    """
    import numpy as np
    import pyarrow
    from datasets import Dataset

    borders = pyarrow.array(np.concatenate([[0], columns.lengths.cumsum()]).astype(np.int32))
    values = {"input_ids": columns.input_ids, "completion_mask": (columns.labels != IGNORED).astype(np.int64)}
    return Dataset.from_dict(
        {name: pyarrow.ListArray.from_arrays(borders, pyarrow.array(each)) for name, each in values.items()}
    )


def trainer_columns(rows: Dataset | Iterable[Mapping[str, Any]]) -> TokenColumns:
    """Return the rows that a trainer holds as columns.

    Args:
        rows: Its data set, or rows, with `input_ids` and `labels` or `completion_mask`.

    Raises:
        ContractError: A row has neither, or not as many of them as tokens.
    """
    import numpy as np
    from datasets import Dataset

    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows))
    table = dataset.with_format("arrow")[:]
    whole = [name for name in table.column_names if not table.column(name).null_count]
    source = next((name for name in ("labels", "completion_mask") if name in whole), None)
    if "input_ids" not in whole or source is None:
        raise ContractError(
            "trainer",
            "rows with labels or a completion mask",
            sorted(whole),
            "Give the trainer prompts and completions.",
        )
    ids, lengths = _flat(table.column("input_ids"))
    values, others = _flat(table.column(source))
    if not np.array_equal(lengths, others):
        raise ContractError("trainer", f"as many {source} as tokens in each row", "other numbers", "Pass whole rows.")
    labels = values if source == "labels" else np.where(values != 0, ids, np.int32(IGNORED))
    return TokenColumns(ids, labels, lengths)


def message_columns(chats: Dataset, name: str) -> MessageColumns:
    """Return a column of lists of messages as flat columns.

    Args:
        chats: The table.
        name: "prompt" or "completion".
    """
    import numpy as np

    lists = chats.with_format("arrow")[:].column(name).combine_chunks()
    messages = lists.flatten()
    rows = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy(zero_copy_only=False))
    roles = messages.field("role").to_numpy(zero_copy_only=False)
    return MessageColumns(messages.field("content").to_pylist(), roles, rows, len(lists))


def _flat(column: ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of lists as its values, and the length of each list."""
    import numpy as np

    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32), lengths
