"""Formats of instruction data, recognised by their columns, and each row as instruction and answer, or as messages.

Known are Alpaca's and Dolly's columns, OpenAI's and TRL's `messages`, ShareGPT's `conversations`, TRL's `prompt` and
`completion` (text or messages), and pairs such as question and answer. Names may be written in any case. Where that is
not enough, the parameter `columns` says which column is what.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from helpers.core.errors import ConfigError, DataError
from helpers.data.messages import (
    MESSAGE_KEYS,
    Message,
    RowError,
    list_of,
    read_answer,
    read_conversation,
    read_history,
    text_of,
)
from helpers.data.prompts import user_text

__all__ = ["ANSWERS", "CONTEXTS", "INSTRUCTIONS", "MESSAGES", "is_chat", "named_columns", "plain_name", "recognise"]

MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
INSTRUCTIONS = (
    "instruction",
    "prompt",
    "question",
    "query",
    "problem",
    "user_input",
    "input",
    "user",
    "human",
    "questions",
    "input_text",
)
ANSWERS = (
    "output", "response", "completion", "answer", "solution", "target", "assistant_response", "assistant", "gpt",
    "reply", "expected_output", "answers", "output_text", "target_text",
)  # fmt: skip
"""What columns with conversations, instructions and answers are called, in small letters."""

_FILES = ("image", "images", "audio", "audios", "video", "videos")
"""Columns whose content no text model sees."""
CONTEXTS = ("input", "context")
"""What a column is called that holds the text an instruction is about."""

_OPTIONAL = {
    "input": CONTEXTS,
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "category": ("category",),
}
"""Columns that rows may have besides instruction and answer."""

_EXACT = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("q", "a"),
)
"""Pairs that win over any other columns, in this order."""

_NAMES = {
    ("instruction", "output"): "Alpaca",
    ("instruction", "response"): "Dolly",
    ("prompt", "completion"): "TRL's prompt and completion",
}

_PARTS = ("instruction", "input", "output", "system", "history", "category", "messages", "prompt", "completion")
"""What the parameter `columns` can name. `prompt` is another word for instruction, `completion` for output."""


@dataclass(frozen=True)
class Format:
    """How the rows of one source are read.

    Args:
        used: The source's column for each part, such as {"instruction": "Question", "output": "Answer"}.
        chat: Whether rows become messages; otherwise an instruction, an input and an output.
    """

    name: str
    used: dict[str, str]
    unused: tuple[str, ...]
    chat: bool

    def describe(self) -> str:
        """Say in one line what was recognised, which columns are used, and which are not."""
        used = ", ".join(part if part == column else f"{part} = {column}" for part, column in self.used.items())
        unused = (
            f"; columns not used: {', '.join(n if n.strip() else repr(n) for n in self.unused)}" if self.unused else ""
        )
        given = "; history is given, not learned" if "history" in self.used else ""
        return f"format: {self.name} ({used}){given}{unused}"

    def convert(self, row: Any) -> dict[str, Any]:
        """Return a row in the form that all formats come to.

        Returns:
            `instruction`, `input`, `output` and perhaps `category`, as text; or, of chats, `prompt` and `completion`,
            lists of messages: what is given, and what follows from the first answer that is learned.

        Raises:
            RowError: The row is damaged, or no chat that can be trained on.
        """
        if not isinstance(row, Mapping):
            raise RowError("not an object with columns")
        if any(_holds(row, name) for name in self.unused if name in _FILES):
            raise RowError("images or other files", damaged=False)
        if "messages" in self.used:
            return read_conversation(list_of(row.get(self.used["messages"])), _system(row, self.used))
        asked, answer = row.get(self.used["instruction"]), row.get(self.used["output"])
        if self.chat and (isinstance(asked, list) or isinstance(answer, list)):
            return read_answer(asked, answer, _system(row, self.used))
        texts = {part: text_of(row.get(self.used[part]), self.used[part]) for part in _TEXTS if part in self.used}
        if texts.setdefault("input", "").strip().casefold() in ("nan", "null"):
            texts["input"] = ""
        for part in ("instruction", "output"):
            if not texts[part].strip():
                raise RowError(f"empty {self.used[part].strip()}")
        if not self.chat:
            return {part: texts[part] for part in _TEXTS if part in texts}
        prompt = user_text(texts["instruction"], texts["input"])
        earlier = read_history(row.get(self.used.get("history", ""), ""))
        asked = [*_system(row, self.used), *earlier, {"role": "user", "content": prompt}]
        return read_answer(asked, texts["output"], [])


_TEXTS = ("instruction", "input", "output", "category")


def recognise(rows: Sequence[Any], source: str, *, names: Iterable[str] = (), columns: str | None = None) -> Format:
    """Tell the format of rows by their columns.

    Args:
        rows: All rows, or as many as are needed to see whether a column holds text.
        source: What to call the data in messages.
        names: The columns, where they are known beyond the rows.
        columns: The parameter of that name, such as "instruction=Question, output=Answer"; None guesses.

    Raises:
        DataError: No format fits, or more than one does; the message lists the columns that there are.
        ConfigError: `columns` names a part or a column that does not exist.
    """
    known = {str(name): None for row in rows if isinstance(row, Mapping) for name in row}
    known.update(dict.fromkeys(names))
    if not known:
        got = rows[0] if rows else "no rows"
        raise DataError("dataset_name", "rows with named columns", got, f"See the first row of {source}.")
    there = list(known)
    used = named_columns(columns, there) if columns else {}
    free = _normalised([name for name in there if name not in used.values()])
    filled = {name for name, column in free.items() if any(_holds(row, column) for row in rows)}
    if not used.keys() & {"messages", "instruction", "output"}:
        found = next((name for name in MESSAGES if name in free and _is_chat(rows, free[name])), None)
        if found:
            used["messages"] = free.pop(found)
    if "messages" not in used:
        _find_pair(used, free, filled, there, source)
    for part, words in _OPTIONAL.items():
        if part in used or (part != "system" and "messages" in used):
            continue
        present = [word for word in words if word in free and word in filled] or [w for w in words if w in free]
        if len(present) > 1 and all(word in filled for word in present):
            _refuse(there, source, f"both {' and '.join(free[word] for word in present)} hold text", part)
        if present:
            used[part] = free.pop(present[0])
    if not columns:
        _refuse_near_misses(used, free, filled, there, source)
    chat = bool(used.keys() & {"messages", "system", "history"}) or any(
        isinstance(row, Mapping) and _is_messages(row.get(used[part]))
        for row in rows
        for part in ("instruction", "output")
    )
    used = {part: used[part] for part in _PARTS if part in used}
    unused = [name for name in there if name not in used.values()]
    if "messages" in used:
        unused += [f"{used['messages']}.{key}" for key in _unused_keys(rows, used["messages"])]
    return Format(_name(used, chat), used, tuple(unused), chat)


def question_key(row: Mapping[str, Any]) -> bytes:
    """Return a hash of what a converted row asks, without regard to case and spacing."""
    if "prompt" in row:
        asked = [m["content"] for m in row["prompt"]]
        asked += [m["content"] for m in row["completion"] if m["role"] == "user"]
    else:
        asked = [row["instruction"], row["input"]]
    plain = "\0".join(" ".join(text.casefold().split()) for text in asked)
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def named_columns(columns: str, there: Sequence[str]) -> dict[str, str]:
    """Return the columns that the user named, by part.

    Args:
        columns: The parameter of that name.

    Raises:
        ConfigError: It names a part or a column that does not exist; the message lists those that do.
    """
    form = 'pairs such as "instruction=Question, output=Answer"'
    listed = f"The columns are: {', '.join(there)}."
    used: dict[str, str] = {}
    for pair in columns.split(","):
        part, equals, name = (word.strip() for word in pair.partition("="))
        if not equals or part.casefold() not in _PARTS:
            raise ConfigError("columns", form, pair.strip(), f"Known parts are: {', '.join(_PARTS)}. {listed}")
        found = [c for c in there if c == name] or [c for c in there if plain_name(c) == plain_name(name)]
        if len(found) != 1:
            close = get_close_matches(name, there, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise ConfigError("columns", "the name of a column", name, f"{hint}{listed}")
        part = {"prompt": "instruction", "completion": "output"}.get(part.casefold(), part.casefold())
        if part in used or found[0] in used.values():
            raise ConfigError("columns", "each part and each column once", pair.strip(), listed)
        used[part] = found[0]
    return used


def plain_name(name: str) -> str:
    """Return a column's name in small letters, words joined by underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _normalised(names: Sequence[str]) -> dict[str, str]:
    """Return the columns by their plain names; of two that differ in case only, the exact one."""
    return {plain_name(name): name for name in sorted(names, key=lambda name: name == plain_name(name))}


def _find_pair(used: dict[str, str], free: dict[str, str], filled: set[str], there: list[str], source: str) -> None:
    """Add the columns of instruction and answer to those in use."""
    exact = next((pair for pair in _EXACT if set(pair) <= free.keys()), None)
    if (
        exact
        and not used.keys() & {"instruction", "output"}
        and not (exact[0] == "question" and "instruction" in filled)
    ):
        used["instruction"], used["output"] = (free.pop(name) for name in exact)
        return
    for part, words in (("instruction", INSTRUCTIONS), ("output", ANSWERS)):
        if part in used:
            continue
        present = [w for w in words if w in free and w in filled] or [w for w in words if w in free]
        if len(present) > 1 and "input" in present:
            present.remove("input")  # it goes with an instruction
        if len(present) > 1:
            _refuse(there, source, f"{' and '.join(free[w] for w in present)} could each be the {part}", part)
        if not present:
            also = (
                " `chosen` and `rejected` are preference data: name one, as output or messages."
                if {"chosen", "rejected"} & set(free)
                else ""
            )
            near = [name for name in free.values() if _near(name, words)]
            why = f"no column is known as the {part}" + (f" ({near[0]} comes near)" if near else "") + f".{also}"
            _refuse(there, source, why.removesuffix("."), part)
        used[part] = free.pop(present[0])


def _refuse(there: Sequence[str], source: str, why: str, part: str) -> None:
    """Raise, asking for the parameter `columns`."""
    example = "messages=…" if part == "messages" else f"{part}=…" if part != "output" else "instruction=…, output=…"
    raise DataError(
        "dataset_name",
        "columns of a known format (instruction and output, question and answer, messages, …)",
        there,
        f'In {source} {why}. Say which column is what: columns = "{example}", or rename it.',
    )


def _near(name: str, words: Sequence[str]) -> list[str]:
    """Return which of some words a column's name is nearly."""
    return get_close_matches(plain_name(name), words, n=1, cutoff=0.8)


def _refuse_near_misses(
    used: dict[str, str], free: dict[str, str], filled: set[str], there: Sequence[str], source: str
) -> None:
    """Raise if a column with text is not used, and nearly has the name of one that would be."""
    for part, words in _OPTIONAL.items():
        for name, column in free.items():
            if part in used or name not in filled or part == "category" or "messages" in used:
                continue
            if word := _near(name, words):
                _refuse(there, source, f"the column {column!r} is nearly {word[0]!r} and would not be used", part)


def _holds(row: Any, column: str) -> bool:
    """Say whether a row has something in a column."""
    value = row.get(column) if isinstance(row, Mapping) else None
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {}) and value == value


def is_chat(value: Any) -> bool:
    """Say whether a value is a list, or the text of one in JSON."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith(("[{", "[ {")))


def _is_chat(rows: Sequence[Any], column: str) -> bool:
    """Say whether the first value in a column is a list, or the text of one in JSON."""
    return is_chat(next((row[column] for row in rows if _holds(row, column)), ""))


def _is_messages(value: Any) -> bool:
    """Say whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _unused_keys(rows: Sequence[Any], column: str) -> list[str]:
    """Return what messages have beside what is read of them, unless it is empty."""
    turns = [
        turn
        for row in rows
        if isinstance(row, Mapping) and isinstance(row.get(column), list)
        for turn in row[column]
        if isinstance(turn, Mapping)
    ]
    others = dict.fromkeys(key for turn in turns if turn.keys() - MESSAGE_KEYS for key in turn)
    return [key for key in others if key not in MESSAGE_KEYS and any(_holds(turn, key) for turn in turns)]


def _name(used: Mapping[str, str], chat: bool) -> str:
    """Return what a format is called."""
    plain = {part: plain_name(column) for part, column in used.items()}
    if "messages" in used:
        name = {"messages": "messages", "conversations": "ShareGPT conversations"}.get(plain["messages"])
        return name or f"messages in {used['messages']}"
    pair = plain["instruction"], plain["output"]
    return _NAMES.get(pair, f"{pair[0]} and {pair[1]}") + (" with messages" if chat and pair[0] == "prompt" else "")


def _system(row: Mapping[str, Any], used: Mapping[str, str]) -> list[Message]:
    """Return the message of a row's own column with the system prompt, if there is one."""
    text = text_of(row.get(used["system"]), used["system"]).strip() if "system" in used else ""
    return [{"role": "system", "content": text}] if text else []
