"""The data contract: what tokens and labels must look like before training may start.

Each row is tokenized with the template that inference will use, and checked: the system prompt is inside, exactly one
BOS (for models that have one), the supervised part is the answer with its EOS and nothing else, the prompt's tokens
are a prefix of the whole row's. Rows that control tokens or length make unusable are left out, counted and limited.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from helpers.core.errors import ContractError
from helpers.data.cache import KeptRows, read_rows, rows_key, write_rows
from helpers.data.chat_templates import find_control_text, masked_template, render
from helpers.data.messages import learned_rows
from helpers.data.prompts import COLUMNS, Example, build_example, build_prompt
from helpers.data.tokens import IGNORED, MessageColumns, TokenColumns, columns_of, message_columns, trainer_columns

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "MAX_LOST_SHARE",
    "CheckedRows",
    "Contract",
    "TokenizedExample",
    "apply_contract",
    "as_examples",
    "check_tokens",
    "check_trainer_dataset",
    "check_trainer_rows",
    "prove_same_prompt",
    "tokenize_example",
]

MANY_TEXTS = 2_000
"""Texts from which on the tokenizer's threads are worth their start."""

MAX_LOST_SHARE = 0.1
"""Share of rows that may be left out for control tokens or length before the run is stopped."""


@dataclass(frozen=True)
class TokenizedExample:
    """One row as the model sees it.

    Args:
        input_ids: Token ids of prompt and answer, BOS and EOS included.
        labels: The same ids where the loss is taken, -100 elsewhere.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    def supervised(self) -> int:
        """Return the number of tokens that the loss is taken over."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True)
class Contract:
    """What the check found.

    Args:
        tokenized: Their tokens and labels, in the same order.
        left_out: Rows left out, by reason.
    """

    examples: tuple[Example, ...]
    tokenized: tuple[TokenizedExample, ...]
    left_out: dict[str, int]
    max_seq_length: int

    @cached_property
    def columns(self) -> TokenColumns:
        """Tokens and labels as arrays: what the trainer gets, and what its rows are compared with."""
        return columns_of(self.tokenized)

    def supervised_tokens(self) -> int:
        """Return the number of tokens that one epoch's loss is taken over."""
        return sum(each.supervised() for each in self.tokenized)

    def tokens(self) -> int:
        """Return the number of tokens in all rows."""
        return sum(len(each.input_ids) for each in self.tokenized)

    def summary(self) -> dict[str, Any]:
        """Return the figures worth showing, by name."""
        lengths = sorted(len(each.input_ids) for each in self.tokenized)
        return {
            "rows": len(lengths),
            "tokens": self.tokens(),
            "supervised tokens": self.supervised_tokens(),
            "median row, tokens": lengths[len(lengths) // 2],
            "longest row, tokens": lengths[-1],
            "left out": ", ".join(f"{n} ({reason})" for reason, n in self.left_out.items()) or 0,
        }


def tokenize_example(example: Example, tokenizer: PreTrainedTokenizerBase) -> TokenizedExample:
    """Tokenize one row and label its answer.

    Returns:
        Ids and labels of equal length.

    Raises:
        ContractError: The prompt's tokens are not a prefix of the whole row's, so that no label could be right.
    """
    return _tokenize_all([example], tokenizer)[0]


def apply_contract(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_seq_length: int) -> Contract:
    """Tokenize all rows, leave out the unusable, and check the rest.

    Returns:
        The rows that passed, with the number left out by reason.

    Raises:
        ContractError: A row breaks the contract, or more than a tenth of the rows had to be left out.
    """
    _check_tokenizer(tokenizer)
    several = any(len(each.completion) > 1 for each in examples)
    key = None if several else rows_key(examples, tokenizer, max_seq_length)
    if key and (kept := read_rows(key)):
        return _restored(kept, examples, max_seq_length)
    contract, places = _tokenize_and_check(examples, tokenizer, max_seq_length)
    if key:
        prompts = [row.labels.count(IGNORED) for row in contract.tokenized]
        ids = [row.input_ids for row in contract.tokenized]
        write_rows(key, KeptRows(places, ids, prompts, contract.left_out))
    return contract


def _restored(kept: KeptRows, examples: Sequence[Example], max_seq_length: int) -> Contract:
    """Return what was checked before, of the same rows."""
    pairs = zip(kept.input_ids, kept.prompts, strict=True)
    rows = tuple(TokenizedExample(ids, (IGNORED,) * prompt + ids[prompt:]) for ids, prompt in pairs)
    return Contract(tuple(examples[place] for place in kept.places), rows, kept.left_out, max_seq_length)


def _tokenize_and_check(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> tuple[Contract, list[int]]:
    """Do the contract's work; return it with the places of the rows that passed."""
    texts = ["\n".join(m["content"] for m in each.messages()) for each in examples]
    control = dict(find_control_text(texts, tokenizer))
    left_out: Counter[str] = Counter(f"contains {string}" for string in control.values())
    usable = [index for index in range(len(examples)) if index not in control]
    kept: list[tuple[int, TokenizedExample]] = []
    for index, tokenized in zip(usable, _tokenize_all([examples[i] for i in usable], tokenizer), strict=True):
        if len(tokenized.input_ids) > max_seq_length:
            left_out[f"longer than {max_seq_length} tokens"] += 1
            continue
        _check_row(index, examples[index], tokenized, tokenizer)
        kept.append((index, tokenized))
    _check_lost(left_out, len(examples))
    rows = tuple(examples[index] for index, _ in kept)
    contract = Contract(rows, tuple(row for _, row in kept), dict(left_out), max_seq_length)
    return contract, [index for index, _ in kept]


RETOKENIZED = 256
"""Rows whose prompts are tokenized once more, apart from their answers; so few cost no time."""


@dataclass(frozen=True)
class CheckedRows:
    """What the check of a table found.

    Args:
        kept: Numbers of the rows that passed.
        left_out: Rows left out, by reason.
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
    figures = _row_figures(columns, tokenizer, answers=said[1].count("assistant"))
    kept: list[int] = []
    for index, (length, row) in enumerate(zip(columns.lengths.tolist(), figures, strict=True)):
        if index in control:
            continue
        if length > max_seq_length:
            left_out[f"longer than {max_seq_length} tokens"] += 1
            continue
        _check_figures(f"row {index}", tokenizer, row)
        kept.append(index)
    _check_lost(left_out, len(tokens))
    _check_prompts(kept, tokens, chats, tokenizer)
    _check_system(kept, columns, said[0], tokenizer)
    supervised = sum(figures[index].supervised for index in kept)
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
    _compare(trainer_columns(rows), trainer_columns(checked))


def as_examples(tokens: Dataset) -> list[TokenizedExample]:
    """Return a table's rows with a label for each token, as scoring and displays take them."""
    both = zip(tokens["input_ids"], tokens["completion_mask"], strict=True)
    return [
        TokenizedExample(tuple(ids), tuple(i if kept else IGNORED for i, kept in zip(ids, mask, strict=True)))
        for ids, mask in both
    ]


class _Figures(NamedTuple):
    """What a row's tokens and labels say.

    Args:
        supervised: Tokens that the loss is taken over.
        last: The last label.
        bos: How often BOS comes; 1 for models that have none.
        starts: Whether BOS, if there is one, is the first token.
        answers: Answers that there are.
        learned: Runs of tokens that are learned.
        ended: Those of them that end in EOS.
    """

    supervised: int
    last: int
    bos: int
    starts: bool
    answers: int
    learned: int
    ended: int


def _row_figures(columns: TokenColumns, tokenizer: PreTrainedTokenizerBase, *, answers: np.ndarray) -> list[_Figures]:
    """Return the figures of all rows; `answers` is how many answers each has."""
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
    bos = tokenizer.bos_token_id
    figures = (
        count(learned),
        labels[lasts],
        np.ones_like(ends) if bos is None else count(ids == bos),
        np.ones_like(ends, bool) if bos is None else ids[np.minimum(starts, lasts)] == bos,
        answers,
        count(closes),
        count(closes & (ids == tokenizer.eos_token_id)),
    )
    return [_Figures(*row) for row in zip(*(each.tolist() for each in figures), strict=True)]


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
                    "what is said before an answer, and that alone, before what is learned",
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


def check_trainer_rows(rows: Dataset | Sequence[Mapping[str, Any]], contract: Contract) -> None:
    """Compare what the trainer will feed the model with what the contract allowed.

    Packed rows are compared as a whole: the same supervised tokens, no more and no fewer. Other rows are compared
    one by one, in any order.

    Args:
        rows: The trainer's data set, with `input_ids` and `labels` or `completion_mask`.

    Raises:
        ContractError: The trainer changed tokens or labels.
    """
    _compare(trainer_columns(rows), contract.columns)


def _compare(seen: TokenColumns, checked: TokenColumns) -> None:
    """Raise unless both have the same tokens and labels."""
    if seen.supervised() != checked.supervised():
        raise ContractError(
            "trainer",
            f"{checked.supervised()} supervised tokens",
            seen.supervised(),
            "The trainer labels other tokens than the answers.",
        )
    if len(seen.lengths) == len(checked.lengths):
        theirs, ours = seen.rows(), checked.rows()
        if Counter(ids for ids, _ in theirs) != Counter(ids for ids, _ in ours):
            raise ContractError(
                "trainer",
                "the token ids that the contract checked",
                "other ids",
                "The trainer tokenizes with another template.",
            )
        same = Counter(theirs) == Counter(ours)
    else:
        same = (seen.learned() == checked.learned()).all()
    if not same:
        raise ContractError(
            "trainer",
            "the labels that the contract checked",
            "other labels",
            "The trainer labels other tokens than the answers.",
        )


def prove_same_prompt(
    row: Mapping[str, str], task: str, tokenizer: PreTrainedTokenizerBase, *, style: str, system_prompt: str
) -> str:
    """Compare a row's prompt in training with the same question asked later, token by token.

    Args:
        system_prompt: What the assistant is told; "" for none.

    Raises:
        ContractError: They differ.
    """
    names = COLUMNS[task]
    trained = tokenize_example(build_example(row, task, style=style, system_prompt=system_prompt), tokenizer)
    given = [i for i, label in zip(trained.input_ids, trained.labels, strict=True) if label == IGNORED]
    question = build_prompt(
        row[names.instruction], row.get(names.context) or "", style=style, system_prompt=system_prompt
    )
    asked = _ids(tokenizer, render(tokenizer, question, answer_next=True))
    if given != asked:
        raise ContractError(
            "template", "the same tokens in training and in use", asked, "The template treats them differently."
        )
    inside = " The system prompt is among them." if system_prompt else ""
    return f"{len(asked)} tokens of the prompt are the same in training and in use.{inside}"


def _tokenize_all(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedExample]:
    """Tokenize rows in one call of the tokenizer, which is faster than one for each, and label their answers."""
    texts = [render(tokenizer, each.prompt, answer_next=True) for each in examples]
    texts += [render(tokenizer, each.messages(), answer_next=False) for each in examples]
    with _threads(len(texts)):
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    pairs = zip(ids[: len(examples)], ids[len(examples) :], strict=True)
    labelled = [_label(prompt, whole, tokenizer) for prompt, whole in pairs]
    for place, each in enumerate(examples):
        if len(each.completion) > 1:
            labelled[place] = _label_answers(labelled[place], each, tokenizer)
    return labelled


def _label_answers(row: TokenizedExample, example: Example, tokenizer: Any) -> TokenizedExample:
    """Take the labels from what the user says between the answers of a conversation."""
    mask = tokenizer.apply_chat_template(
        example.messages(),
        chat_template=masked_template(tokenizer),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )["assistant_masks"]
    labels = tuple(label if kept else IGNORED for label, kept in zip(row.labels, mask, strict=True))
    return TokenizedExample(row.input_ids, labels)


@contextmanager
def _threads(texts: int) -> Iterator[None]:
    """Let the tokenizer work in several threads on many texts.

    `setup_notebook` forbids it with TOKENIZERS_PARALLELISM, since a process that is forked while they work hangs. Here
    none is, and afterwards it is forbidden again.
    """
    if texts < MANY_TEXTS:
        yield
        return
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _label(prompt: list[int], whole: list[int], tokenizer: PreTrainedTokenizerBase) -> TokenizedExample:
    """Label what comes after the prompt."""
    if whole[: len(prompt)] != prompt:
        raise ContractError(
            "template",
            "the prompt's tokens at the start of the whole row's",
            tokenizer.convert_ids_to_tokens(whole[max(0, len(prompt) - 3) : len(prompt) + 3]),
            "The tokenizer merges characters across the border between prompt and answer.",
        )
    return TokenizedExample(tuple(whole), (IGNORED,) * len(prompt) + tuple(whole[len(prompt) :]))


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


def _check_row(index: int, example: Example, row: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if one row would teach something else than its answer."""
    bos = tokenizer.bos_token_id
    where, count = f"row {index}", 1 if bos is None else row.input_ids.count(bos)
    figures = _Figures(
        row.supervised(), row.labels[-1], count, starts=bos is None or row.input_ids[0] == bos,
        answers=1, learned=1, ended=1,
    )  # fmt: skip
    _check_figures(where, tokenizer, figures)
    system = next((m["content"] for m in example.prompt if m["role"] == "system"), "")
    if not system:
        return
    prompt = [i for i, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORED]
    # Both sides go through the tokenizer, because decoding changes text such as spaces at the start or before a dot.
    words = str(tokenizer.decode(_ids(tokenizer, system), skip_special_tokens=True)).strip()
    if words not in tokenizer.decode(prompt, skip_special_tokens=True):
        raise ContractError(where, "the system prompt in the training text", system, "The chat template dropped it.")


def _check_figures(where: str, tokenizer: PreTrainedTokenizerBase, row: _Figures) -> None:
    """Raise if a row does not learn its answers, each with its EOS, or has another number of BOS than one."""
    if row.supervised < 2:
        raise ContractError(
            where,
            "an answer of at least one token and its EOS",
            row.supervised,
            "Give the row an answer, or leave it out.",
        )
    if row.last != tokenizer.eos_token_id:
        raise ContractError(
            where,
            f"the EOS token {tokenizer.eos_token} as its last label",
            row.last,
            "The chat template does not end an answer with EOS: use helpers.data.chat_templates.install_template.",
        )
    if row.bos != 1 or not row.starts:
        raise ContractError(
            where,
            "exactly one BOS, at its start",
            row.bos,
            "Tokenize with add_special_tokens=False: the template writes BOS.",
        )
    if not row.answers == row.learned == row.ended:
        raise ContractError(
            where,
            f"{row.answers} answers that are learned, each ended by {tokenizer.eos_token}",
            f"{row.learned} with {row.ended} of these",
            "completion_mask is 1 for each answer and its EOS, and 0 for what the user says between them.",
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
