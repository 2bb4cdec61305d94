"""The workshop's checks: `check("name", answer)` says whether an answer is right, and hints if it is not.

A hint says what to think about, never what the answer is. The exercises are in the folder `workshop/`.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from html import escape
from typing import Any

from helpers.core.errors import ConfigError
from helpers.core.settings import nearest
from helpers.workshop.checks.judging import JUDGING
from helpers.workshop.checks.kinds import NUMBER, WHOLE, Check, plain
from helpers.workshop.checks.learning import LEARNING
from helpers.workshop.checks.memory import SIZES
from helpers.workshop.checks.tokens import TOKENS

__all__ = ["check"]

CHECKS: dict[str, Check] = {**TOKENS, **SIZES, **LEARNING, **JUDGING}
"""Every check by its exercise's name, in the order of the workshop."""

BLUE, ORANGE = "#0072B2", "#D55E00"


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says; a notebook shows it.

    Args:
        text: "Right: …" with why it matters, or "Not yet: …" with what to think about.
        checked: The answer that was looked at, in short. It is not the one in sight when a cell was not run again.
    """

    right: bool
    text: str
    checked: str = ""

    def __repr__(self) -> str:
        return "\n".join(filter(None, (self.text, self.checked and f"Checked: {self.checked}")))

    def _repr_html_(self) -> str:
        style = f"border-left:4px solid {BLUE if self.right else ORANGE};padding:.2em .8em"
        head, _, rest = self.text.partition(":")
        checked = self.checked and f"<br><small>Checked: <code>{escape(self.checked)}</code></small>"
        return f'<div style="{style}"><b>{escape(head)}:</b>{escape(rest)}{checked}</div>'


def check(name: str, answer: Any) -> Verdict:
    """Say whether an exercise's answer is right.

    Returns:
        The verdict, with a hint if the answer is not right.

    Raises:
        ConfigError: There is no such exercise.

    Example:
        >>> check("wins-needed", 16)
        Not yet: Chance alone gives so uneven a result, to one side or the other, nearly always. Try larger numbers.
        Checked: 16
    """
    if not isinstance(name, str) or name not in CHECKS:
        raise ConfigError("check", "the name of an exercise", name, nearest(name, list(CHECKS)))
    rule = CHECKS[name]
    if answer is ...:
        return _not_yet(f"put your answer in place of the three dots. It should be {rule.kind.words}.")
    checked = _shortened(answer)
    value = rule.kind.read(answer)
    if value is None:
        commas = rule.kind in (NUMBER, WHOLE) and isinstance(answer, tuple)
        hint = f"the answer should be {rule.kind.words}, and yours is {_described(answer, rule.kind.words)}."
        return _not_yet(_COMMAS if commas else hint, checked)
    hint = rule.compare(value)
    return _not_yet(hint, checked) if hint else Verdict(True, f"Right: {_sentence(rule.why)}", checked)


_COMMAS = "to Python a comma begins the next number. Write 0.5 for a half, and 1000 or 1_000 for a thousand."


def _not_yet(hint: str, checked: str = "") -> Verdict:
    return Verdict(False, f"Not yet: {_sentence(hint)}", checked)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shortened(answer: Any) -> str:
    """Write an answer in a line, its numbers with six digits."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 24
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return " ".join(short.repr(_tidy(plain(answer))).split())
    except ValueError:  # a whole number of thousands of digits
        return _described(answer)


def _tidy(value: Any) -> Any:
    if isinstance(value, list):
        return [_tidy(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _described(answer: Any, wanted: str = "") -> str:
    """Name a thing's type in words that a beginner knows, and that differ from what is wanted."""
    answer = answer if isinstance(answer, set) else plain(answer)
    words = {str: "text", bool: "True or False", int: "a whole number", float: "a number", type(None): "None"}
    words |= {list: "a list", dict: "a dict", set: "a set"}
    name = words.get(type(answer), f"of the type {type(answer).__name__}")
    return name.replace("a ", "another kind of ", 1) if wanted.startswith(name) else name
