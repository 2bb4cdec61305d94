"""What votes can say: how many wins are needed, the share that was won, and how far voters agree.

A vote is a win (the tuned answer is preferred), a loss or a tie; "both bad" is a tie. Several people's votes on one
prompt are first reduced to one: prompts are the sample.
"""

from __future__ import annotations

from collections.abc import Mapping


def wins_needed(votes: int) -> int | None:
    """Return the fewest wins that coin tosses give in fewer than 5 of 100 (two-sided exact sign test).

    None when even a clean sweep of the decided votes is not enough.

    Example:
        >>> [wins_needed(votes) for votes in (5, 6, 10, 20, 30, 50, 100)]
        [None, 6, 9, 15, 21, 33, 61]
    """
    from scipy import stats

    enough = (wins for wins in range(votes // 2 + 1, votes + 1) if 2 * stats.binom.sf(wins - 1, votes, 0.5) < 0.05)
    return next(enough, None)


def wilson_interval(successes: int, trials: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share, sound for few trials too; None without trials.

    Example:
        >>> [round(end, 3) for end in wilson_interval(9, 10)]
        [0.596, 0.982]
    """
    from scipy import stats

    if not trials:
        return None
    ends = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def krippendorff_alpha(votes: Mapping[str, Mapping[str, str]]) -> float | None:
    """Return how far voters agree beyond chance: 1 is full agreement, 0 is what chance would give.

    1 - observed / expected disagreement for votes without an order, any number of voters, gaps allowed (Krippendorff,
    "Computing Krippendorff's Alpha-Reliability", 2011; computed by NLTK). Items with a single vote do not count.

    Args:
        votes: For each voter the vote ("win", "tie", "loss") on each item.

    Returns:
        The coefficient, or None when no item has two votes or all votes that count are the same.

    Example:
        >>> krippendorff_alpha({"ann": {"1": "win", "2": "loss"}, "bob": {"1": "win", "2": "loss"}})
        1.0
    """
    from nltk.metrics.agreement import AnnotationTask

    shared = [given for given in _by_item(votes).values() if len(given) > 1]
    if len({vote for given in shared for vote in given}) < 2:
        return None
    rows = [(who, item, vote) for who, given in votes.items() for item, vote in given.items()]
    return float(AnnotationTask(rows).alpha())


def same_vote_share(votes: Mapping[str, Mapping[str, str]]) -> float | None:
    """Return the share of same votes among all pairs of votes on one item; None without such pairs."""
    shared = _by_item(votes).values()
    pairs = sum(len(given) * (len(given) - 1) for given in shared)
    same = sum(given.count(vote) - 1 for given in shared for vote in given)
    return same / pairs if pairs else None


def _by_item(votes: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    items: dict[str, list[str]] = {}
    for given in votes.values():
        for item, vote in given.items():
            items.setdefault(item, []).append(vote)
    return items
