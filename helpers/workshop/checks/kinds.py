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
        kind: What the answer has to be.
        compare: Returns a hint, or "" when the answer is right.
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
        mistakes: What each mistake gives, with its hint.
        tolerance: Largest difference that is taken for rounding, as a share of the number.
        decimals: What the exercise asks for: the right answer rounded to so many is right.

    Example:
        >>> near(8, "Count again.", [(4, "Two hands?")])(4)
        'Two hands?'
    """

    def compare(answer: float) -> str:
        if _close(answer, right, tolerance) or (decimals is not None and answer == round(right, decimals)):
            return ""
        known = (hint for value, hint in mistakes if _close(answer, value, tolerance))
        return next(known, f"{otherwise} Your number is too {'large' if answer > right else 'small'}.")

    return compare


def same(right: Any, otherwise: str, mistakes: Sequence[tuple[Any, str]] = ()) -> _Compare:
    """Compare a text, or numbers in lists, with the right ones and with what common mistakes give.

    Args:
        right: The right answer, in plain Python.
        otherwise: The hint when no known mistake explains the answer.
        mistakes: What each mistake gives, with its hint.

    Returns:
        The comparison; numbers may differ by rounding.

    Example:
        >>> same([1, 2], "Look again.")([1, 2.0])
        ''
    """

    def compare(answer: Any) -> str:
        if _equal(answer, right):
            return ""
        return next((hint for value, hint in mistakes if _equal(answer, value)), otherwise)

    return compare


def matching(right: Mapping[str, Any], hints: Mapping[str, str]) -> _Compare:
    """Compare a dict that gives each key one of a few values, and hint at the first that is wrong.

    Args:
        right: The right value of each key.
        hints: What to look at, by key.

    Example:
        >>> matching({"A": "up"}, {"A": "Which way does it point?"})({"A": "down"})
        "There is no 'down' among the choices."
    """

    def compare(answer: Mapping[str, Any]) -> str:
        if missing := [name for name in right if name not in answer]:
            return f"There is no entry yet for {', '.join(missing)}."
        if odd := [answer[name] for name in right if answer[name] not in right.values()]:
            return f"There is no {odd[0]!r} among the choices."
        return next((hints[name] for name in right if answer[name] != right[name]), "")

    return compare


def _close(answer: float, right: float, tolerance: float) -> bool:
    return abs(answer - right) <= tolerance * abs(right)


def _equal(answer: Any, right: Any) -> bool:
    """Compare lists of any depth, numbers by their value."""
    if isinstance(right, list):
        fits = isinstance(answer, list) and len(answer) == len(right)
        return fits and all(_equal(a, r) for a, r in zip(answer, right, strict=True))
    if isinstance(right, float):
        return isinstance(answer, int | float) and abs(answer - right) <= max(1e-3 * abs(right), 6e-4)
    return answer == right


def _plain(value: Any) -> Any:
    """Turn tuples, arrays and tensors into lists, and numpy's numbers into Python's."""
    value = value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _number(value: Any) -> float | None:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _LARGEST else None  # not a number is not less than anything


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _list(value: Any, read: Callable[[Any], Any]) -> list[Any] | None:
    """Read a list, or a thing like one, whose items are all of one kind."""
    value = _plain(value)
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
    plain = {name: _plain(each) for name, each in value.items()}
    return plain if all(isinstance(each, str | int | float) for each in plain.values()) else None


TEXT = Kind("text", lambda value: value if isinstance(value, str) else None)
WHOLE = Kind("a whole number", _whole)
NUMBER = Kind("a number", _number)
COUNTS = Kind("a list of whole numbers", _whole_list)
NUMBERS = Kind("a list of numbers", _number_list)
GROUPS = Kind("a list of lists of whole numbers", lambda value: _list(value, _whole_list))
MATRIX = Kind("a matrix of numbers: an array, or a list of rows", lambda value: _list(value, _number_list))
MATCHES = Kind("a dict with a text or a number for each letter", _matches)
