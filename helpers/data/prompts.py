"""Rows of the two data sets as messages: plain data in, plain data out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.core.errors import ConfigError

__all__ = [
    "ALPACA_PREAMBLE",
    "COLUMNS",
    "Example",
    "Message",
    "alpaca_block",
    "build_example",
    "build_prompt",
    "clean_references",
    "row_sources",
    "user_text",
]

Message = dict[str, str]
"""One message: {"role": "system" | "user" | "assistant", "content": text}."""

Example = dict[str, list[Message]]
"""TRL's columns: `prompt`, what the model is given, and `completion`, what it learns to say."""

ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA_PREAMBLE_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
"""Stanford's two preambles: https://github.com/tatsu-lab/stanford_alpaca#data-release. The first stands alone, the
second goes with an input; using one for both is a common mistake."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a data set are called.

    Args:
        instruction: The column with the task.
        context: The column with the text that the task is about; it may be empty or missing.
        answer: The column with the answer to learn.
    """

    instruction: str
    context: str
    answer: str
    optional: tuple[str, ...] = ()

    def required(self) -> tuple[str, ...]:
        """Return the columns that make a prompt and its answer."""
        return (self.instruction, self.context, self.answer)


COLUMNS = {
    "alpaca": Columns("instruction", "input", "output"),
    "dolly": Columns("instruction", "context", "response", optional=("category",)),
}


def row_sources(rows: Iterable[Mapping[str, Any]], task: str) -> list[str]:
    """Name what each row shares with another: a context, or else what it asks but for case and white space.

    Of a conversation the first question counts, with its answer. Statistics count rows of one name as one.

    Args:
        rows: With the columns of the task, or with lists of messages, `prompt` and `completion`.

    Returns:
        Such as "context of row 1"; "" for a row that shares neither.

    Example:
        >>> row_sources([{"instruction": text} for text in ("Sum up.", "Say it.", "sum  up.")], "alpaca")
        ['question of row 1', '', 'question of row 1']
    """
    names = COLUMNS[task]
    contexts, questions = [], []
    for row in rows:
        context = (row.get(names.context) or "").strip()
        asked = user_text(row.get(names.instruction) or "", context)
        if row.get("prompt") is not None and row.get("completion") is not None:
            said = [each["content"] for each in (*row["prompt"], *row["completion"]) if each["role"] != "system"]
            context, asked = "", "\n\n".join(said[:2])  # many conversations begin with "Hello"
        contexts.append(context)
        questions.append(" ".join(asked.casefold().split()))
    pairs = zip(_shared("context", contexts), _shared("question", questions), strict=True)
    return [context or question for context, question in pairs]


def _shared(what: str, texts: Sequence[str]) -> list[str]:
    """Name the first row that has each text; "" if no other row has it."""
    counts, first = Counter(texts), {text: place for place, text in reversed(list(enumerate(texts, 1)))}
    return [f"{what} of row {first[text]}" if text and counts[text] > 1 else "" for text in texts]


def user_text(instruction: str, context: str = "") -> str:
    """Join an instruction and its optional context with a blank line, as a person would type them."""
    return f"{instruction.strip()}\n\n{context.strip()}".strip()


def alpaca_block(instruction: str, context: str = "") -> str:
    """Write the classic Alpaca prompt, up to and including the line break after `### Response:`.

    Returns:
        Stanford's text with the preamble that fits.

    Example:
        >>> alpaca_block("Name a prime.").splitlines()[-1]
        '### Response:'
    """
    if context.strip():
        middle = f"### Instruction:\n{instruction.strip()}\n\n### Input:\n{context.strip()}"
        return f"{ALPACA_PREAMBLE_INPUT}\n\n{middle}\n\n### Response:\n"
    return f"{ALPACA_PREAMBLE}\n\n### Instruction:\n{instruction.strip()}\n\n### Response:\n"


def build_prompt(instruction: str, context: str = "", *, style: str = "chat", system_prompt: str = "") -> list[Message]:
    """Return the messages that ask for an answer, exactly as training rows have them.

    Args:
        system_prompt: Put before the user's message; "" for none, as the Alpaca block has no place for one.

    Raises:
        ConfigError: The style is unknown, or has no place for the system prompt.
    """
    if style not in ("chat", "alpaca"):
        raise ConfigError(
            "prompt_style",
            "one of chat, alpaca",
            style,
            "Use chat unless the model was trained on Alpaca's text block.",
        )
    if system_prompt and style == "alpaca":
        raise ConfigError("system_prompt", 'none with prompt_style "alpaca"', system_prompt, 'Use prompt_style "chat".')
    content = alpaca_block(instruction, context) if style == "alpaca" else user_text(instruction, context)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": content}]


def build_example(row: Mapping[str, Any], task: str, *, style: str = "chat", system_prompt: str = "") -> Example:
    r"""Turn one row into the messages that the model is trained on.

    Args:
        row: With the columns of `COLUMNS[task]`, or with lists of messages, `prompt` and `completion`.
        system_prompt: Put before the user's message; "" for none, as the Alpaca block has no place for one.

    Returns:
        The example; surrounding white space of each text is dropped.

    Raises:
        ConfigError: The Alpaca style was asked for, and the row is more than a question and its answer.

    Example:
        >>> build_example({"instruction": "Add.", "input": "1 + 1", "output": "2"}, "alpaca")["prompt"]
        [{'role': 'user', 'content': 'Add.\n\n1 + 1'}]
    """
    if "prompt" in row:
        given = row["prompt"]
        if style == "alpaca":
            if len(given) > 1 or len(row["completion"]) > 1:
                got = [message["role"] for message in (*given, *row["completion"])]
                remedy = 'The Alpaca block has no place for more. Use prompt_style "chat".'
                raise ConfigError("prompt_style", "rows of one question and its answer", got, remedy)
            given = build_prompt(given[0]["content"], style=style)
        elif system_prompt and given[0]["role"] != "system":
            given = [{"role": "system", "content": system_prompt}, *given]
        return {"prompt": list(given), "completion": list(row["completion"])}
    names = COLUMNS[task]
    context = row.get(names.context) or ""
    prompt = build_prompt(row[names.instruction], context, style=style, system_prompt=system_prompt)
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row[names.answer].strip()}]}


def clean_references(text: str) -> str:
    """Remove the reference marks that encyclopaedia text leaves behind, such as the "[1]" after a sentence.

    Only a number from 1 in square brackets counts, directly after a word or its punctuation, or one space after the
    end of a sentence. List items such as "[1] Anna" at the start of a line, code such as `x = [1]` or `items[1]` in
    backticks, and links such as "[1](url)" stay.

    Example:
        >>> clean_references("Founded in 1901.[2]")
        'Founded in 1901.'
    """

    def cited(mark: re.Match[str]) -> str:
        before, after = text[: mark.start()], text[mark.end() :]
        word = re.search(r"[A-Za-z_]\w*$", before)
        line = before.rpartition("\n")[2] + after.partition("\n")[0]
        code = after[:2].lstrip()[:1] in tuple("=([+-*/") or re.search(r"[={}]|\(\)|;$", line)
        index = before.count("`") % 2 or (word and ("_" in word[0] or code))  # as in items[1]
        return mark[0] if index else ""

    return re.sub(r"""((?<=[\w.,;:!?)"'”’])|(?<=[.!?"”’])[ ])(\[[1-9]\d{0,2}\])+(?!\()""", cited, text)
