"""Choosing rows by their category, and cleaning what encyclopaedia text leaves in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from helpers.core.errors import DataError
from helpers.core.settings import nearest
from helpers.data.prompts import clean_references

__all__ = ["clean_row"]


def choose_categories(indices: Sequence[int], category_of: Callable[[int], Any], wanted: str | None) -> list[int]:
    """Keep the rows of some categories.

    Args:
        wanted: Categories separated by commas; None or "" keeps all rows.

    Raises:
        DataError: A category does not occur; the message names those that do.

    Example:
        >>> choose_categories([2, 0, 1], ["a", "b", "a"].__getitem__, "a")
        [2, 0]
    """
    if not wanted:
        return list(indices)
    found = {i: category_of(i) for i in indices}
    known = sorted({c for c in found.values() if isinstance(c, str) and c})
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names or [wanted]:
        if name not in known:
            expected = "categories that occur in the data" if known else "data with a column category"
            raise DataError("category", expected, name, nearest(name, known) if known else "Leave category out.")
    return [i for i in indices if found[i] in names]


def in_proportion(indices: Sequence[int], category_of: Callable[[int], Any]) -> list[int]:
    """Reorder rows so that any first part of them has each category in proportion to its share of all.

    The k-th of a category's n rows goes to the place (k + 1/2) / n of the whole; within a category the order stays.

    Example:
        >>> in_proportion([0, 1, 2, 3, 4, 5], ["a", "a", "a", "a", "b", "b"].__getitem__)
        [0, 4, 1, 2, 5, 3]
    """
    found = {i: category_of(i) for i in indices}
    categories = {i: value if isinstance(value, str) else type(value).__name__ for i, value in found.items()}
    sizes, seen = Counter(categories.values()), Counter[str]()
    place: dict[int, float] = {}
    for i in indices:
        name = categories[i]
        place[i] = (seen[name] + 0.5) / sizes[name]
        seen[name] += 1
    return sorted(indices, key=place.__getitem__)


def clean_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without reference marks such as "[1]" in any of its texts."""
    return {name: clean_references(text) if isinstance(text, str) else text for name, text in row.items()}
