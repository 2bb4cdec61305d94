"""Rows as tokens with a mask of what is learned, and as flat arrays, which are many times faster than lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.core.errors import ContractError
from helpers.data.chat_templates import masked_template

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from pyarrow import ChunkedArray

__all__ = ["IGNORED", "row_labels", "tokenize_chats"]

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
        roles: Of each, shape (messages of all rows,).
        rows: The number of the row that each is in, the same shape.
    """

    texts: list[str]
    roles: np.ndarray
    rows: np.ndarray
    total: int

    def count(self, role: str) -> np.ndarray:
        """Return how many messages of a role each row has."""
        import numpy as np

        return np.bincount(self.rows[self.roles == role], minlength=self.total)


def tokenize_chats(
    batch: Mapping[str, Sequence[Sequence[Mapping[str, str]]]], tokenizer: Any
) -> dict[str, list[list[int]]]:
    """Return conversations as tokens, and which of them are learned: each answer of a completion, and its EOS.

    What the training notebooks do in a cell of their own, for `Dataset.map(..., batched=True)`.

    Args:
        batch: `prompt` and `completion`, lists of messages for each row.
        tokenizer: With a template of `helpers.data.chat_templates`.

    Returns:
        `input_ids` and `completion_mask`, 0 or 1 a token, for each row.

    Raises:
        ContractError: A prompt's tokens are not the first of the whole row's, so that no mask could be right.
    """
    both = zip(batch["prompt"], batch["completion"], strict=True)
    chats = [[*({**message, "given": True} for message in prompt), *answers] for prompt, answers in both]
    alone = tokenizer.apply_chat_template(batch["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(
        chats, chat_template=masked_template(tokenizer), return_dict=True, return_assistant_tokens_mask=True
    )
    for given, ids in zip(alone, whole["input_ids"], strict=True):
        if ids[: len(given)] != given:
            raise ContractError(
                "template",
                "the prompt's tokens at the start of the whole row's",
                tokenizer.convert_ids_to_tokens(ids[max(0, len(given) - 3) : len(given) + 3]),
                "The tokenizer merges characters across the border between prompt and answer.",
            )
    return {"input_ids": whole["input_ids"], "completion_mask": whole["assistant_masks"]}


def row_labels(row: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the label of each token of a row with `input_ids` and `completion_mask`."""
    both = zip(row["input_ids"], row["completion_mask"], strict=True)
    return [token if learned else IGNORED for token, learned in both]


def trainer_columns(rows: Dataset) -> TokenColumns:
    """Return the rows that a trainer holds as columns.

    Args:
        rows: Its data set, with `input_ids` and `labels` or `completion_mask`.

    Raises:
        ContractError: A row has neither, or not as many of them as tokens.
    """
    import numpy as np

    table = rows.with_format("arrow")[:]
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
