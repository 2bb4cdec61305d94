"""The workshop's checks: `check("name", answer)` says whether an answer is right, and hints if it is not.

A hint says what to think about, never what the answer is. The exercises are in the folder `workshop/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from helpers.core.errors import ConfigError
from helpers.workshop.checks.judging import JUDGING
from helpers.workshop.checks.kinds import Check
from helpers.workshop.checks.learning import LEARNING
from helpers.workshop.checks.memory import SIZES
from helpers.workshop.checks.tokens import TOKENS
from helpers.core.settings import nearest

__all__ = ["check"]

CHECKS: dict[str, Check] = {**TOKENS, **SIZES, **LEARNING, **JUDGING}
"""Every check by its exercise's name, in the order of the workshop."""

BLUE, ORANGE = "#0072B2", "#D55E00"


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says; a notebook shows it.

    Args:
        text: "Right: …" with why it matters, or "Not yet: …" with what to think about.
    """

    right: bool
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        style = f"border-left:4px solid {BLUE if self.right else ORANGE};padding:.2em .8em"
        head, _, rest = self.text.partition(":")
        return f'<div style="{style}"><b>{escape(head)}:</b>{escape(rest)}</div>'


def check(name: str, answer: Any) -> Verdict:
    """Say whether an exercise's answer is right.

    Args:
        name: The exercise, as its check cell spells it.
        answer: What the exercise asks for.

    Returns:
        The verdict, with a hint if the answer is not right.

    Raises:
        ConfigError: There is no such exercise.

    Example:
        >>> check("wins-needed", 16)
        Not yet: Chance alone gives so uneven a result, to one side or the other, nearly always. Try larger numbers.
    """
    if not isinstance(name, str) or name not in CHECKS:
        raise ConfigError("check", "the name of an exercise", name, nearest(name, list(CHECKS)))
    rule = CHECKS[name]
    if answer is ...:
        return _not_yet(f"put your answer in place of the three dots. It should be {rule.kind.words}.")
    value = rule.kind.read(answer)
    if value is None:
        return _not_yet(f"the answer should be {rule.kind.words}, and yours is {_described(answer)}.")
    hint = rule.compare(value)
    return _not_yet(hint) if hint else Verdict(True, f"Right: {_sentence(rule.why)}")


def _not_yet(hint: str) -> Verdict:
    return Verdict(False, f"Not yet: {_sentence(hint)}")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _described(answer: Any) -> str:
    """Name a thing's type in words that a beginner knows."""
    words = {str: "text", bool: "True or False", int: "a whole number", float: "a number", type(None): "None"}
    words |= {list: "a list of something else", tuple: "a tuple of something else", dict: "a dict of something else"}
    return words.get(type(answer), f"of the type {type(answer).__name__}")
