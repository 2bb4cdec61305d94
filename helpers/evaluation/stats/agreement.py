"""How far voters agree with each other, and each with themselves.

The coefficients are NLTK's (`nltk.metrics.agreement`, installed with rouge-score). Both are 1 for full agreement and 0
for what chance would give, and both are undefined when everybody always gave the same vote: then they are None here,
where NLTK says 1 or divides by zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.evaluation.stats.preferences import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nltk.metrics.agreement import AnnotationTask

    from helpers.evaluation.stats.intervals import Interval

__all__ = ["Agreement", "SelfConsistency", "agreement", "cohen_kappa", "krippendorff_alpha", "self_consistency"]


@dataclass(frozen=True)
class Agreement:
    """How far voters agree.

    Args:
        method: "Cohen's kappa" or "Krippendorff's alpha".
        value: The coefficient, at most 1; None when it is undefined.
        share: Share of pairs of votes on one item that are the same, chance not deducted; None without pairs.
        voters: How many people voted.
        items: Items that at least two of them voted on.
        note: Why `value` is None, as a sentence; "" otherwise.
    """

    method: str
    value: float | None
    share: float | None
    voters: int
    items: int
    note: str = ""


@dataclass(frozen=True)
class SelfConsistency:
    """How often a repeated item got the same vote.

    Args:
        same: Repeated items with the same vote both times.
        repeats: Repeated items.
        share: same / repeats; None without repeats.
        interval: Wilson interval of the share.
    """

    same: int
    repeats: int
    share: float | None
    interval: Interval


def _task(votes: Mapping[str, Mapping[str, str]]) -> AnnotationTask:
    from nltk.metrics.agreement import AnnotationTask

    return AnnotationTask([(who, item, vote) for who, given in votes.items() for item, vote in given.items()])


def _numbered(given: Sequence[str]) -> dict[str, str]:
    return {str(place): vote for place, vote in enumerate(given)}


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa of two voters (Cohen, 1960, Educational and Psychological Measurement 20).

    (observed - expected) / (1 - expected agreement); expected is what both voters' habits alone would give.

    Args:
        first: One voter's votes.
        second: The other's, on the same items in the same order.

    Returns:
        The coefficient, or None when both always gave the same single vote.

    Raises:
        EvaluationError: The lists are empty or differ in length.

    Example:
        >>> cohen_kappa(["tuned", "tuned", "base", "tie"], ["tuned", "base", "base", "tie"])
        0.6363636363636364
    """
    if not first or len(first) != len(second):
        got = (len(first), len(second))
        raise EvaluationError("votes", "two lists of one length, at least 1", got, "Keep items that both voted on.")
    if len({*first, *second}) == 1:
        return None
    pair = {"a": _numbered(first), "b": _numbered(second)}
    return float(_task(pair).kappa_pairwise("a", "b"))


def krippendorff_alpha(votes: Mapping[str, Mapping[str, str]]) -> float | None:
    """Krippendorff's alpha for votes without an order, any number of voters, gaps allowed.

    1 - observed / expected disagreement (Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011). Items with
    a single vote do not count.

    Args:
        votes: For each voter the vote given to each item; an item that someone skipped is left out.

    Returns:
        The coefficient, or None when no item has two votes or all votes that count are the same.

    Raises:
        EvaluationError: There are no votes.

    Example:
        >>> krippendorff_alpha({"ann": {"1": "tuned", "2": "base"}, "bob": {"1": "tuned", "2": "base"}})
        1.0
    """
    if not any(votes.values()):
        raise EvaluationError("votes", "at least one vote", dict(votes), "Read a votes file that has rows.")
    paired = [given for given in _by_item(votes).values() if len(given) > 1]
    if len({vote for given in paired for vote in given}) < 2:
        return None
    return float(_task(votes).alpha())


def _by_item(votes: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    items: dict[str, list[str]] = {}
    for given in votes.values():
        for item, vote in given.items():
            items.setdefault(item, []).append(vote)
    return items


def _same_share(paired: list[list[str]]) -> float | None:
    """Share of same votes among all pairs of votes on one item."""
    pairs = sum(len(given) * (len(given) - 1) for given in paired)
    same = sum(given.count(vote) - 1 for given in paired for vote in given)
    return same / pairs if pairs else None


def agreement(votes: Mapping[str, Mapping[str, str]]) -> Agreement:
    """Agreement between voters: Cohen's kappa for two, Krippendorff's alpha for more.

    Args:
        votes: For each voter the vote given to each item ("tuned", "base", "tie"), after the key was applied:
            left and right are no votes.

    Returns:
        The coefficient with its counts; without a value, and with a note, when it is undefined.

    Raises:
        EvaluationError: There are no votes.

    Example:
        >>> agreement({"ann": {"1": "tuned", "2": "base"}, "bob": {"1": "tuned", "2": "base"}}).value
        1.0
    """
    alpha = krippendorff_alpha(votes)
    paired = [given for given in _by_item(votes).values() if len(given) > 1]
    method, value = "Krippendorff's alpha", alpha
    if len(votes) == 2 and paired:
        first, second = votes.values()
        both = [item for item in first if item in second]
        method, value = "Cohen's kappa", cohen_kappa([first[i] for i in both], [second[i] for i in both])
    return Agreement(method, value, _same_share(paired), len(votes), len(paired), _why_undefined(value, paired))


def _why_undefined(value: float | None, paired: list[list[str]]) -> str:
    if value is not None:
        return ""
    if not paired:
        return "No two people voted on the same item."
    return "Everybody gave the same vote throughout, so agreement by chance cannot be told from agreement."


def self_consistency(repeats: Sequence[tuple[str, str]], *, level: float = 0.95) -> SelfConsistency:
    """Share of repeated items that one voter judged the same way both times.

    Args:
        repeats: The first and the second vote on each repeated item, after the key was applied (sides may be swapped).
        level: Level of the interval, a share.

    Returns:
        Counts, share and Wilson interval; share None when nothing was repeated.

    Raises:
        EvaluationError: `level` is not a share.

    Example:
        >>> self_consistency([("tuned", "tuned"), ("base", "tuned")]).share
        0.5
    """
    same = sum(first == second for first, second in repeats)
    share = same / len(repeats) if repeats else None
    return SelfConsistency(same, len(repeats), share, wilson_interval(same, len(repeats), level=level))
