"""Which words of an answer the other answer does not have."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from operator import itemgetter

__all__ = ["Span", "WordDiff", "word_diff"]

_MOST_PAIRS = 60_000  # equal words, one in each answer; difflib is slow on answers that repeat themselves
_LEAST_SHARED = 0.2  # below this share of common words the marks would cover nearly everything


@dataclass(frozen=True)
class Span:
    """A piece of an answer.

    Args:
        text: The piece, white space included.
        only: Whether only this answer says it.
    """

    text: str
    only: bool


@dataclass(frozen=True)
class WordDiff:
    """Two answers in pieces.

    Args:
        left: The pieces of the first answer; joined, they are the answer.
        right: The pieces of the second.
        shared: Words in common, in the same order, over the words of the longer answer: 0 to 1, or
            None if they were not compared.
        marked: Whether the pieces say what differs. False when too little is shared, or the answers are too long or too
            repetitive to compare; then each answer is one unmarked piece.
    """

    left: tuple[Span, ...]
    right: tuple[Span, ...]
    shared: float | None
    marked: bool


def word_diff(left: str, right: str) -> WordDiff:
    """Compare two answers word by word with `difflib`.

    Args:
        left: One answer.
        right: The other.

    Returns:
        Both in pieces. White space never counts as a difference.

    Example:
        >>> word_diff("plan the route", "plan a route").left
        (Span(text='plan ', only=False), Span(text='the', only=True), Span(text=' route', only=False))
    """
    if left == right:
        return WordDiff((Span(left, only=False),), (Span(right, only=False),), 1.0, marked=True)
    first, second = left.split(), right.split()
    longer = max(len(first), len(second))
    counts = Counter(second)
    if sum(counts[word] for word in first) > _MOST_PAIRS:
        return _plain(left, right, None)
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    shared = sum(block.size for block in blocks) / longer if longer else 1.0
    if shared < _LEAST_SHARED:
        return _plain(left, right, shared)
    ours = {block.a + step for block in blocks for step in range(block.size)}
    theirs = {block.b + step for block in blocks for step in range(block.size)}
    return WordDiff(_spans(left, ours), _spans(right, theirs), shared, marked=True)


def _plain(left: str, right: str, shared: float | None) -> WordDiff:
    return WordDiff((Span(left, only=False),), (Span(right, only=False),), shared, marked=False)


def _spans(text: str, common: set[int]) -> tuple[Span, ...]:
    """Cut a text where its words begin or cease to be common; white space is marked only between two marked words."""
    pieces = re.findall(r"\s+|\S+", text)
    only, place = [], 0
    for piece in pieces:
        only.append(not piece.isspace() and place not in common)
        place += not piece.isspace()
    for at, piece in enumerate(pieces):
        only[at] |= piece.isspace() and 0 < at < len(pieces) - 1 and only[at - 1] and only[at + 1]
    runs = groupby(zip(pieces, only, strict=True), key=itemgetter(1))
    return tuple(Span("".join(piece for piece, _ in run), mark) for mark, run in runs)
