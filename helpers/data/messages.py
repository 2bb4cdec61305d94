"""Conversations: the messages of any format with the roles that templates know, and what of them is learned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from helpers.data.readers import plain_value

__all__ = ["UNUSABLE", "RowError", "list_of", "read_messages"]

Message = dict[str, Any]
"""`role` ("system", "user" or "assistant") and `content`; and `given`, true, of an answer that is not learned."""

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"), "assistant"),
}
_TOOLS = ("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")

_NOT_LEARNED = {"weight": ("0", "0.0"), "train": ("false",), "training": ("false",)}
"""What OpenAI's format, and axolotl's, say beside an answer that is given, not learned."""

MESSAGE_KEYS = (*_ROLE_KEYS, *_CONTENT_KEYS, *_NOT_LEARNED, "tool_calls", "function_call")
"""What is read of a message."""

UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""A null byte, the mark of a file in another encoding than it says; and half of a character, which JSON can spell as an
escape and nothing can tokenize."""


class RowError(Exception):
    """A row cannot be trained on.

    Args:
        reason: Why, such as "empty output".
        turn: Which message of a conversation, counted from 1; None if it is none's fault alone.
        damaged: Whether the row is not what the format says, rather than a conversation of a kind that is not trained.
    """

    def __init__(self, reason: str, turn: int | None = None, *, damaged: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.turn = turn
        self.damaged = damaged


def read_messages(turns: Sequence[Any], before: int = 0) -> list[Message]:
    """Return messages of any of the formats with the roles that templates know.

    Args:
        before: How many messages of the conversation come before.

    Returns:
        Dictionaries of `role`, `content` and, of an answer that is marked as not learned, `given`; a system message
        without text is left out.

    Raises:
        RowError: One is no message, or has what is not trained, such as tool calls.
    """
    messages = [_message(turn, place) for place, turn in enumerate(turns, before + 1)]
    return messages if messages[:1] != [{"role": "system", "content": ""}] else messages[1:]


def read_conversation(turns: Sequence[Any], system: list[Message]) -> dict[str, Any]:
    """Return a whole conversation as `prompt` and `completion`; each answer is learned that is not marked as given.

    Args:
        system: The system message of a column of its own, if there is one.

    Raises:
        RowError: It cannot be trained on.
    """
    messages = read_messages(turns)
    if messages and messages[0]["role"] != "system":
        messages = [*system, *messages]
    _check_turns(messages, before=len(messages) - len(turns))
    return _from_first_learned(messages)


def read_answer(asked: Any, answer: Any, system: list[Message]) -> dict[str, Any]:
    """Return a prompt, of which nothing is learned, and its completion.

    Args:
        asked: Messages, or what the user says.
        answer: Messages, or what the assistant says.
        system: The system message of a column of its own, if there is one.

    Raises:
        RowError: It cannot be trained on.
    """
    given = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    learned = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    prompt, completion = read_messages(given), read_messages(learned, len(given))
    if not prompt:
        raise RowError("an empty prompt")
    prompt = prompt if prompt[0]["role"] == "system" else [*system, *prompt]
    _check_turns([*prompt, *completion], before=len(prompt) - len(given))
    if not completion or completion[0]["role"] != "assistant":
        raise RowError("a completion that does not begin with the assistant", len(given) + 1, damaged=False)
    prompt = [_unmarked(message) for message in prompt]
    later = _from_first_learned(completion)
    return {"prompt": prompt + later["prompt"], "completion": later["completion"]}


def _from_first_learned(messages: Sequence[Message]) -> dict[str, Any]:
    """Return messages, divided before the first answer that is learned."""
    learned = (i for i, m in enumerate(messages) if m["role"] == "assistant" and "given" not in m)
    first = next(learned, None)
    if first is None:
        raise RowError("no answer that is learned (weight 0)", damaged=False)
    return {"prompt": list(messages[:first]), "completion": list(messages[first:])}


def _unmarked(message: Message) -> Message:
    """Return a message without the mark of one that is given."""
    return {"role": message["role"], "content": message["content"]}


def learned_rows(
    prompt: Sequence[Message], completion: Sequence[Message], *, single: bool
) -> list[tuple[list[Message], list[Message]]]:
    """Make rows of a conversation, so that each answer of a completion is learned.

    An answer that is given, between two that are learned, divides a conversation: what comes after it has it in its
    prompt. A template that writes the system text before the *last* user message, as Mistral's does, shows each answer
    something else than it will see in use, unless it is a row of its own.

    Args:
        completion: The rest, from the first answer that is learned on.
        single: Whether each answer becomes a row.

    Returns:
        (messages before, messages from the first answer that is learned) of each.
    """
    messages = [*prompt, *completion]
    rows: list[tuple[list[Message], list[Message]]] = []
    whole = False
    for place in range(len(prompt), len(messages)):
        if messages[place]["role"] != "assistant":
            continue
        if "given" in messages[place]:
            whole = False
        elif whole and not single:
            rows[-1][1].extend(_unmarked(m) for m in messages[place - 1 : place + 1])
        else:
            rows.append(([_unmarked(m) for m in messages[:place]], [_unmarked(messages[place])]))
            whole = True
    return rows


def read_history(value: Any) -> list[Message]:
    """Return earlier turns, given as pairs of question and answer or as messages; raise `RowError` for others."""
    if not value:
        return []
    turns = list_of(value)
    if isinstance(turns[0], Mapping):
        return read_messages(turns)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in turns):
        raise RowError("history is not pairs of question and answer")
    roles = ("user", "assistant")
    return [{"role": r, "content": text_of(t, "history")} for pair in turns for r, t in zip(roles, pair, strict=True)]


def list_of(value: Any) -> list[Any]:
    """Return a list, also from its text in JSON, as CSV files have it; raise `RowError` if there is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError("messages that are not valid JSON") from None
    if isinstance(value, (list, tuple)) and value:
        return list(value)
    raise RowError("no messages")


def text_of(value: Any, name: str) -> str:
    """Return a cell as text; raise `RowError` if it is none, or `name` holds what cannot be tokenized."""
    value = plain_value(value)
    if not isinstance(value, str):
        raise RowError(f"{name.strip()} is not text")
    if found := UNUSABLE.search(value):
        raise RowError(
            f"{name.strip()} holds a null byte" if found[0] == "\0" else f"{name.strip()} is not valid Unicode"
        )
    return value


def _message(turn: Any, place: int) -> dict[str, Any]:
    """Return one message; `place` counts from 1."""
    if not isinstance(turn, Mapping):
        raise RowError("a message without role and content", place)
    role = next((turn[key] for key in _ROLE_KEYS if turn.get(key)), None)
    content = next((turn[key] for key in _CONTENT_KEYS if turn.get(key) is not None), None)
    if not isinstance(role, str):
        raise RowError("a message without a role", place)
    plain = role.strip().casefold()
    if turn.get("tool_calls") or turn.get("function_call") or plain in _TOOLS:
        raise RowError("tool calls", place, damaged=False)
    if plain not in _ROLES:
        raise RowError(f"unknown role {role.strip()!r}", place, damaged=False)
    if isinstance(content, (list, tuple)):
        parts = [part if isinstance(part, Mapping) else {"type": "text", "text": part} for part in content]
        if other := next((part["type"] for part in parts if part.get("type", "text") != "text"), None):
            raise RowError(f"content of type {other!r}", place, damaged=False)
        content = "".join(text_of(part.get("text", part.get("value")), "a message") for part in parts)
    text = text_of(content, "a message")
    if not text.strip() and (_ROLES[plain] != "system" or place > 1):
        raise RowError("an empty message", place, damaged=False)
    message: dict[str, Any] = {"role": _ROLES[plain], "content": text.strip()}
    if message["role"] == "assistant" and _is_given(turn):
        message["given"] = True
    return message


def _is_given(turn: Mapping[str, Any]) -> bool:
    """Say whether a message is marked as one that is not learned."""
    return any(str(turn[key]).strip().casefold() in off for key, off in _NOT_LEARNED.items() if key in turn)


def _check_turns(messages: Sequence[Mapping[str, str]], *, before: int) -> None:
    """Raise unless user and assistant take turns, from the user's first message to the assistant's last."""
    turns = [message["role"] for message in messages]
    first = turns[:1] == ["system"]
    for place, role in enumerate(turns[first:], 1 + first - before):
        expected = ("user", "assistant")[(place + before - first - 1) % 2]
        if role == expected:
            continue
        if role == "system":
            raise RowError("a system message that is not the first", place, damaged=False)
        if place + before == 1 + first:
            raise RowError("starts with the assistant", place, damaged=False)
        raise RowError(f"two messages of the {role} in a row", place, damaged=False)
    if not turns[first:] or turns[-1] != "assistant":
        raise RowError("no answer at its end", len(turns) - before, damaged=False)
