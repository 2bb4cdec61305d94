"""The data contract: what tokens and labels must look like before training may start.

Of each row of a table is checked: the system prompt is inside, exactly one BOS (for models that have one), the
supervised part is the answer with its EOS and nothing else, and what is given is the prompt as inference will write it.
Rows that control tokens or length make unusable are left out, counted and limited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.core.errors import ContractError
from helpers.data.chat_templates import find_control_text, render
from helpers.data.messages import learned_rows
from helpers.data.tokens import IGNORED, MessageColumns, TokenColumns, message_columns, trainer_columns

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_tokens", "check_trainer_dataset"]

MAX_LOST_SHARE = 0.1
"""Share of rows that may be left out for control tokens or length before the run is stopped."""


RETOKENIZED = 256
"""Rows whose prompts are tokenized once more, apart from their answers; so few cost no time."""


@dataclass(frozen=True)
class CheckedRows:
    """What the check of a table found.

    Args:
        kept: Numbers of the rows that passed.
        lengths: Of the rows that passed, in tokens.
        supervised_tokens: Tokens of these rows that the loss is taken over.
    """

    kept: list[int]
    left_out: dict[str, int]
    lengths: list[int]
    supervised_tokens: int

    def summary(self) -> dict[str, Any]:
        """Return the figures worth showing, by name."""
        lengths = sorted(self.lengths)
        return {
            "rows": len(lengths),
            "tokens": sum(lengths),
            "supervised tokens": self.supervised_tokens,
            "median row, tokens": lengths[len(lengths) // 2],
            "longest row, tokens": lengths[-1],
            "left out": ", ".join(f"{n} ({reason})" for reason, n in self.left_out.items()) or 0,
        }


def check_tokens(
    tokens: Dataset, chats: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_seq_length: int
) -> CheckedRows:
    """Check what each row would teach, and leave out those that control tokens or length make unusable.

    In each row that is kept, the answer and its EOS are learned, there is one BOS at the start (for models that have
    one), and the system prompt is in what is given. In up to `RETOKENIZED` rows, spread over the table, what is given
    are exactly the tokens of the prompt alone.

    Args:
        tokens: With `input_ids` and `completion_mask`.
        chats: The same rows with `prompt` and `completion`.

    Raises:
        ContractError: A row breaks the contract, or more than a tenth of the rows had to be left out.
    """
    _check_tokenizer(tokenizer)
    said = [message_columns(chats, name) for name in ("prompt", "completion")]
    control: dict[int, str] = {}
    for messages in said:
        for place, string in find_control_text(messages.texts, tokenizer):
            control.setdefault(int(messages.rows[place]), string)
    left_out: Counter[str] = Counter(f"contains {string}" for string in control.values())
    columns = trainer_columns(tokens)
    usable = [index for index in range(len(tokens)) if index not in control]
    kept = [index for index in usable if columns.lengths[index] <= max_seq_length]
    if longer := len(usable) - len(kept):
        left_out[f"longer than {max_seq_length} tokens"] = longer
    supervised = _check_learned(columns, kept, tokenizer, answers=said[1].count("assistant"))
    _check_lost(left_out, len(tokens))
    _check_prompts(kept, tokens, chats, tokenizer)
    _check_system(kept, columns, said[0], tokenizer)
    return CheckedRows(kept, dict(left_out), columns.lengths[kept].tolist(), supervised)


def check_trainer_dataset(rows: Dataset, checked: Dataset) -> None:
    """Compare what the trainer will feed the model with the rows that were checked.

    Packed rows are compared as a whole: the same supervised tokens, no more and no fewer. Other rows are compared
    one by one, in any order.

    Args:
        rows: The trainer's data set, with `input_ids` and `labels` or `completion_mask`.

    Raises:
        ContractError: The trainer changed tokens or labels.
    """
    seen, wanted = trainer_columns(rows), trainer_columns(checked)
    if seen.supervised() != wanted.supervised():
        raise ContractError(
            "trainer",
            f"{wanted.supervised()} supervised tokens",
            seen.supervised(),
            "The trainer labels other tokens than the answers.",
        )
    if len(seen.lengths) == len(wanted.lengths):
        theirs, ours = seen.rows(), wanted.rows()
        if Counter(ids for ids, _ in theirs) != Counter(ids for ids, _ in ours):
            raise ContractError(
                "trainer",
                "the token ids that the contract checked",
                "other ids",
                "The trainer tokenizes with another template.",
            )
        same = Counter(theirs) == Counter(ours)
    else:
        same = (seen.learned() == wanted.learned()).all()
    if not same:
        raise ContractError(
            "trainer",
            "the labels that the contract checked",
            "other labels",
            "The trainer labels other tokens than the answers.",
        )


def _check_learned(
    columns: TokenColumns, kept: list[int], tokenizer: PreTrainedTokenizerBase, *, answers: np.ndarray
) -> int:
    """Raise if a row does not learn its answers, each with its EOS, or has another number of BOS than one.

    Args:
        kept: Numbers of the rows to check.
        answers: How many answers each row of the table has.

    Returns:
        Tokens of these rows that the loss is taken over.
    """
    import numpy as np

    ids, labels = columns.input_ids, columns.labels
    ends = columns.lengths.cumsum()
    starts, lasts = ends - columns.lengths, np.maximum(ends - 1, 0)

    def count(found: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0], found.cumsum()])
        return sums[ends] - sums[starts]

    learned = labels != IGNORED
    closes = learned & ~np.append(learned[1:], False)
    closes[lasts] = learned[lasts]
    supervised, last, runs = count(learned), labels[lasts], count(closes)
    ended = count(closes & (ids == tokenizer.eos_token_id))
    bos, begins = np.ones_like(ends), np.ones_like(ends, bool)
    if tokenizer.bos_token_id is not None:
        bos, begins = count(ids == tokenizer.bos_token_id), ids[np.minimum(starts, lasts)] == tokenizer.bos_token_id
    checks = (supervised < 2, last != tokenizer.eos_token_id, (bos != 1) | ~begins, (answers != runs) | (runs != ended))
    wrong = np.stack(checks)[:, kept]
    if wrong.any():
        place = int(wrong.any(axis=0).argmax())
        row = kept[place]
        faults = (
            (
                "an answer of at least one token and its EOS",
                int(supervised[row]),
                "Give the row an answer, or leave it out.",
            ),
            (
                f"the EOS token {tokenizer.eos_token} as its last label",
                int(last[row]),
                "The chat template does not end an answer with EOS: use helpers.data.chat_templates.install_template.",
            ),
            (
                "exactly one BOS, at its start",
                int(bos[row]),
                "Tokenize with add_special_tokens=False: the template writes BOS.",
            ),
            (
                f"{answers[row]} answers that are learned, each ended by {tokenizer.eos_token}",
                f"{runs[row]} with {ended[row]} of these",
                "completion_mask is 1 for each answer and its EOS, and 0 for what the user says between them.",
            ),
        )
        raise ContractError(f"row {row}", *faults[int(wrong[:, place].argmax())])
    return int(supervised[kept].sum())


def _check_prompts(kept: Sequence[int], tokens: Dataset, chats: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless what is given in a sample of rows is the prompt alone."""
    step = max(1, len(kept) // RETOKENIZED)
    sample = kept[::step]
    for index, chat, row in zip(sample, chats.select(sample), tokens.select(sample), strict=True):
        turns = learned_rows(chat["prompt"], chat["completion"], single=True)
        alone = tokenizer([render(tokenizer, each, answer_next=True) for each, _ in turns], add_special_tokens=False)
        ids, mask = row["input_ids"], row["completion_mask"]
        starts = [i for i, learned in enumerate(mask) if learned and not (i and mask[i - 1])]
        for given, expected in zip(starts, alone["input_ids"], strict=True):
            if ids[:given] != expected:
                raise ContractError(
                    f"row {index}",
                    "exactly the prompt's tokens before the learned ones",
                    tokenizer.convert_ids_to_tokens(ids[max(0, given - 3) : given + 3]),
                    "Mask what the prompt is: completion_mask is 0 there, and 1 for the answer.",
                )


def _check_system(
    kept: Sequence[int], columns: TokenColumns, prompts: MessageColumns, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise unless each system prompt is in the tokens before what is learned."""
    import numpy as np

    asked = {int(prompts.rows[i]): prompts.texts[i] for i in np.flatnonzero(prompts.roles == "system")}
    # Both sides go through the tokenizer, because decoding changes text such as spaces at the start.
    words = {
        system: str(tokenizer.decode(_ids(tokenizer, system), skip_special_tokens=True)).strip()
        for system in set(asked.values())
    }
    ends = columns.lengths.cumsum().tolist()
    for index in kept:
        if not (system := asked.get(index)):
            continue
        start = ends[index] - int(columns.lengths[index])
        first = start + int((columns.labels[start : ends[index]] != IGNORED).argmax())
        if words[system] not in tokenizer.decode(columns.input_ids[start:first], skip_special_tokens=True):
            raise ContractError(
                f"row {index}", "the system prompt in the training text", system, "The chat template dropped it."
            )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize text whose control tokens are already spelled out."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless padding can be told from the end of an answer."""
    if tokenizer.eos_token_id is None:
        raise ContractError("tokenizer", "an EOS token", None, "Load the tokenizer of an instruct model.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ContractError(
            "tokenizer",
            "a PAD token other than EOS",
            tokenizer.pad_token,
            "Otherwise the EOS of each row is masked as padding and answers never end.",
        )


def _check_lost(left_out: Counter[str], total: int) -> None:
    """Raise when too many rows, or all, were left out."""
    lost = sum(left_out.values())
    if lost == total or lost > MAX_LOST_SHARE * total:
        ends = [end for end in ("</s>", "<|im_end|>") if 2 * left_out[f"contains {end}"] > lost]
        remedy = f"Remove the trailing {ends[0]} from the answers: the template writes it." if ends else ""
        raise ContractError(
            "dataset_name",
            f"at most {MAX_LOST_SHARE:.0%} of {total} rows left out",
            dict(left_out),
            remedy or "Raise max_seq_length, or use other rows.",
        )
