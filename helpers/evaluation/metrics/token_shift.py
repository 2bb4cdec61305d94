"""Token shift: at which tokens of its answer the tuned model leaves the base model's way.

The tuned answer is read by the base model, which ranks each next token among all tokens. Lin et al., "The Unlocking
Spell on Base LLMs" (arXiv 2312.01552), call a token unshifted if the base model would have chosen it too, marginal at
rank 2 or 3, and shifted beyond; after alignment they find most tokens unshifted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["describe_shift"]

_SHIFTS = ("unshifted", "marginal", "shifted")
"""Rank 1, ranks 2 and 3, all others."""


@dataclass(frozen=True)
class ShiftedToken:
    """A token of the tuned answer as the base model sees it.

    Args:
        rank: Its rank among all tokens under the base model; 1 is the most likely.
    """

    text: str
    rank: int


def shift_of(rank: int) -> str:
    """Name the class of a rank.

    Example:
        >>> [shift_of(rank) for rank in (1, 2, 3, 4)]
        ['unshifted', 'marginal', 'marginal', 'shifted']
    """
    return "unshifted" if rank <= 1 else "marginal" if rank <= 3 else "shifted"


def describe_shift(tokens: Sequence[ShiftedToken]) -> str:
    """Say in words how far the tuned answers leave the base model's way.

    Example:
        >>> describe_shift([ShiftedToken("Yes", 1), ShiftedToken(".", 5)]).split(":")[0]
        'Of 2 tokens the base model would have chosen 1 too (50 %)'
    """
    counts, total = Counter(shift_of(token.rank) for token in tokens), len(tokens)
    if not total:
        return "There is no token to rank: the answers are empty."
    same, near, far = (counts[name] for name in _SHIFTS)
    were = {count: "was" if count == 1 else "were" for count in (near, far)}
    shares = (
        f"{near} more {were[near]} among its first three ({near / total:.0%}), "
        f"{far} {were[far]} not ({far / total:.0%})"
    )
    text = f"Of {total} tokens the base model would have chosen {same} too ({same / total:.0%}): {shares}."
    return text.replace("%", " %")
