"""How many items a prompt asks for, and whether an answer gives as many."""

from __future__ import annotations

import re

from helpers.evaluation.metrics.structure import list_items

__all__ = ["asked_items", "gives_items"]

_WORDS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_VALUES = {word: number for number, word in enumerate(_WORDS, start=2)}
# Words in ASCII alone: without regard to case, "\u0131" is an "i" and "\u017f" an "s" to Python's re.
_NUMBER = r"(?P<number>\d{1,3}|(?a:" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r"))"
_NOUNS = (
    "actions|advantages|alternatives|answers|applications|approaches|areas|arguments|aspects|benefits|bullets?|"
    "categories|causes|challenges|changes|components|concepts|considerations|criteria|differences|disadvantages|"
    "drawbacks|elements|examples|facts|factors|features|functions|goals|habits|headlines|hints|ideas|initiatives|"
    "innovations|insights|issues|items|keywords|KPIs|lessons|limitations|measures|methods|metrics|mistakes|names|"
    "objectives|opportunities|options|points|possibilities|practices|principles|problems|pros|cons|qualities|questions|"
    "reasons|recommendations|risks|roles|rules|scenarios|skills|slogans|solutions|stages|steps|strategies|strengths|"
    "subjects|suggestions|tactics|tasks|techniques|things|tips|titles|tools|topics|trends|types|use[ -]?cases|uses|"
    "ways|weaknesses"
)
_UNITS = (
    r"(?:bullet )?(?:sentence|word|paragraph|line|character|letter|page|token|second|minute|hour|day|week|month|"
    r"quarter|year|decade|percent|per|time|dollar|euro|pound|people|person|employee|million|billion|thousand|hundred|"
    r"star|kilo|mile|degree)s?\b"
)
_NOT_ADJECTIVE = rf"(?!(?:and|or|to|of|in|for|with|on|from|that|who|which|{_UNITS}|{'|'.join(_WORDS)}|\d)\b)"
_BEFORE = re.compile(
    r"(?:[\d.,:/$\u20ac\u00a3-]|\b(?:at least|at most|up to|no more than|more than|fewer than|less than|over|under|"
    r"about|around|roughly|approximately|between|to|or)\s)\Z",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    rf"\b{_NUMBER}(?:\s+of\s+(?:the|our|your|its))?[-\s]+"
    rf"(?:{_NOT_ADJECTIVE}[^\W\d][\w'-]*,?\s+){{0,3}}?(?P<noun>{_NOUNS}|(?<=-)(?:step|item|point|part))\b",
    re.IGNORECASE,
)
_LED = re.compile(
    rf"\b(?:top|list(?:s? of)?|name|suggest|recommend|propose|identify|brainstorm|give(?: me| us)?|provide)\s+{_NUMBER}"
    rf"(?!\s*(?:%|-\s*\d|\u2013\s*\d|[.,]\d|(?:to|or)\b|\d))(?![-\s]+{_UNITS})(?:\s+(?P<noun>[^\W\d][\w'-]*))?",
    re.IGNORECASE,
)


def _value(number: str) -> int:
    return int(number) if number.isdigit() else _VALUES[number.lower()]


def asked_items(prompt: str) -> int | None:
    """Find how many items a prompt asks for.

    Counts are digits or words from two to twenty, before a noun that names items ("three ways", "5 innovative ideas",
    "a five-step plan") or after a word that asks for them ("list of four companies", "top 10"). Units are not items
    ("in two sentences", "5 years"), nor are years, shares, one, or more than 100. Cautious on purpose: with a range,
    "at least", or two different counts ("three benefits and two risks") there is no single right number; give
    `Prompt.expected_items` then.

    Args:
        prompt: What is asked, in English.

    Returns:
        A count from 2 to 100, or None when the prompt names none or more than one.

    Example:
        >>> asked_items("In two sentences, suggest three ways to cut costs."), asked_items("What is AI?")
        (3, None)
    """
    found: dict[int, tuple[int, str]] = {}
    for pattern in (_COUNTED, _LED):
        for match in pattern.finditer(prompt):
            start = match.start("number")
            value = _value(match["number"])
            if 2 <= value <= 100 and not _BEFORE.search(prompt[max(0, start - 20) : start]):
                found.setdefault(start, (value, (match["noun"] or "").lower()))
    counts = set(found.values())
    return counts.pop()[0] if len(counts) == 1 else None


def gives_items(text: str, asked: int | None) -> bool | None:
    r"""Whether an answer has exactly as many main list items as were asked for (see `ListItems.main`).

    Args:
        text: An answer.
        asked: Items asked for, or None.

    Returns:
        Whether it does; None when nothing was asked for.

    Example:
        >>> gives_items("1. Sell\n2. Rent", 2)
        True
    """
    return None if asked is None else list_items(text).main == asked
