"""What checks are made of: kinds of answers, and comparisons that hint at a mistake instead of naming the answer.

Answers come from notebooks, so numpy's and torch's numbers and arrays are taken for plain ones, without importing
either. A comparison is a function of the answer that returns a hint, or "" when the answer is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LARGEST = 1e300
"""Numbers from here on cannot be calculated with."""

_Compare = Callable[[Any], str]
"""Takes an answer of the right kind and returns a hint, or "" when it is right."""


@dataclass(frozen=True)
class Kind:
    """What an answer has to be before it can be right or wrong.

    Args:
        words: The same as a noun phrase, for hints.
        read: Returns the answer in plain Python, or None when it is of another kind.
    """

    words: str
    read: Callable[[Any], Any]


@dataclass(frozen=True)
class Check:
    """One exercise's check.

    Args:
        why: One sentence on why it matters, shown with a right answer.
    """

    kind: Kind
    compare: _Compare
    why: str


def near(
    right: float,
    otherwise: str,
    mistakes: Sequence[tuple[float, str]] = (),
    *,
    tolerance: float = 0.004,
    decimals: int | None = None,
) -> _Compare:
    """Compare a number with the right one and with what common mistakes give.

    Args:
        otherwise: The hint when no known mistake explains the answer.
        tolerance: Largest difference that is taken for rounding, as a share of the number.
        decimals: What the exercise asks for: the right answer rounded to so many is right.

    Example:
        >>> near(8, "Count again.", [(4, "Two hands?")])(4)
        'Two hands?'
    """

    def fits(answer: float, value: float) -> bool:
        close = abs(answer - value) <= tolerance * abs(value)
        return close or (decimals is not None and answer == round(value, decimals))

    def compare(answer: float) -> str:
        if fits(answer, right):
            return ""
        known = next((hint for value, hint in mistakes if fits(answer, value)), "")
        if rounding := _rounding([answer], [right], decimals):
            return f"if you rounded: {rounding} If you did not: {known}" if known else rounding
        return known or f"{otherwise} Your number is too {'large' if answer > right else 'small'}."

    return compare


def same(
    right: Any, otherwise: str, mistakes: Sequence[tuple[Any, str]] = (), *, decimals: int | None = None
) -> _Compare:
    """Compare a text, or numbers in lists, with the right ones and with what common mistakes give.

    Args:
        decimals: What the exercise asks for, where the answer is a list of numbers.

    Returns:
        The comparison; numbers may differ by rounding.

    Example:
        >>> same([1, 2], "Look again.")([1, 2.0])
        ''
    """

    def compare(answer: Any) -> str:
        if _equal(answer, right):
            return ""
        known = (hint for value, hint in mistakes if _equal(answer, value, decimals))
        return next(known, "") or _rounding(answer, right, decimals) or otherwise

    return compare


def matching(right: Mapping[str, Any], hints: Mapping[str, str]) -> _Compare:
    """Compare a dict that gives each key one of a few values, and hint at the first that is wrong.

    Example:
        >>> matching({"A": "up"}, {"A": "Which way does it point?"})({"A": "down"})
        "There is no 'down' among the choices."
    """

    def compare(answer: Mapping[str, Any]) -> str:
        if missing := [name for name in right if name not in answer]:
            return f"There is no entry yet for {', '.join(missing)}."
        if odd := [answer[name] for name in right if answer[name] not in right.values()]:
            quoted = isinstance(odd[0], str) and not any(isinstance(value, str) for value in right.values())
            return f"There is no {odd[0]!r} among the choices{'; write numbers without quotes' if quoted else ''}."
        return next((hints[name] for name in right if answer[name] != right[name]), "")

    return compare


def _equal(answer: Any, right: Any, decimals: int | None = None) -> bool:
    """Compare lists of any depth, numbers by their value or as far as so many decimals tell."""
    if isinstance(right, list):
        fits = isinstance(answer, list) and len(answer) == len(right)
        return fits and all(_equal(a, r, decimals) for a, r in zip(answer, right, strict=True))
    if isinstance(right, float):
        allowed = max(1e-3 * abs(right), 6e-4 if decimals is None else 0.51 * 10**-decimals)
        return isinstance(answer, int | float) and abs(answer - right) <= allowed
    return answer == right


def _rounding(answer: list[float], right: list[float], decimals: int | None) -> str:
    """Name right numbers that were rounded too far, or cut off instead of rounded; "" if they are neither."""
    if not decimals or len(answer) != len(right) or not any(answer):
        return ""
    pairs = list(zip(answer, right, strict=True))
    if any(all(a == round(r, places) for a, r in pairs) for places in range(1, decimals)):
        return f"give {decimals} decimals, as the task asks."
    if all(a in (round(r, decimals), int(r * 10**decimals) / 10**decimals) for a, r in pairs):
        return "nearly: round the last decimal instead of cutting off the rest."
    return ""


def plain(value: Any) -> Any:
    """Turn tuples, arrays and tensors into lists, and numpy's numbers into Python's. A set has no order, and stays."""
    value = value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def _number(value: Any) -> float | None:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _LARGEST else None  # not a number is not less than anything


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _list(value: Any, read: Callable[[Any], Any]) -> list[Any] | None:
    """Read a list, or a thing like one, whose items are all of one kind."""
    value = plain(value)
    if not isinstance(value, list):
        return None
    items = [read(each) for each in value]
    return None if any(item is None for item in items) else items


def _whole_list(value: Any) -> list[int] | None:
    return _list(value, _whole)


def _number_list(value: Any) -> list[float] | None:
    return _list(value, _number)


def _matches(value: Any) -> dict[Any, Any] | None:
    """Read a dict of texts and numbers."""
    if not isinstance(value, Mapping):
        return None
    found = {name: plain(each) for name, each in value.items()}
    return found if all(isinstance(each, str | int | float) for each in found.values()) else None


TEXT = Kind("text", lambda value: value if isinstance(value, str) else None)
WHOLE = Kind("a whole number", _whole)
NUMBER = Kind("a number", _number)
COUNTS = Kind("a list of whole numbers", _whole_list)
PLACES = Kind("a list of whole numbers", lambda value: _whole_list(list(value) if isinstance(value, set) else value))
NUMBERS = Kind("a list of numbers", _number_list)
GROUPS = Kind("a list of lists of whole numbers", lambda value: _list(value, _whole_list))
MATRIX = Kind("a matrix of numbers: an array, or a list of rows", lambda value: _list(value, _number_list))
MATCHES = Kind("a dict with a text or a number for each letter", _matches)
