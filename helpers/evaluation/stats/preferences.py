"""What votes can say: the exact sign test, the Wilson interval, the win rate, and how many wins are needed.

A vote is a win (the tuned answer is preferred), a loss or a tie; "both bad" is a tie. The numbers assume independent
votes, so several people's votes on one prompt are first reduced to one, for instance by majority.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.core.errors import EvaluationError
from helpers.evaluation.stats.intervals import Interval, check_level

__all__ = ["PreferenceSummary", "sign_test", "summarise_votes", "wilson_interval", "win_rate", "wins_needed"]


def _check_counts(**counts: int) -> None:
    import numpy as np

    for field, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise EvaluationError(field, "a whole number of at least 0", count, "Count votes, not shares of them.")


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test (`scipy.stats.binomtest` at one half); ties are dropped beforehand.

    Args:
        wins: Votes for the tuned answer.
        losses: Votes for the base answer.

    Returns:
        The probability of a split at least as uneven if both were equally liked; 1.0 when nothing was decided.

    Raises:
        EvaluationError: A count is negative or not whole.

    Example:
        >>> round(sign_test(9, 1), 4)
        0.0215
    """
    from scipy import stats

    _check_counts(wins=wins, losses=losses)
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share (`scipy.stats.binomtest`), sound for few trials and shares near 0 or 1.

    Args:
        successes: How often it happened.
        trials: How often it could have.
        level: The confidence level, a share.

    Returns:
        The interval, as shares from 0 to 1; without ends, and with a note, when there were no trials.

    Raises:
        EvaluationError: A count is negative or not whole, there are more successes than trials, or `level` is no share.

    Example:
        >>> str(wilson_interval(9, 10))
        '+0.596 to +0.982 (95 %, Wilson)'
    """
    from scipy import stats

    _check_counts(successes=successes, trials=trials)
    if successes > trials:
        raise EvaluationError("successes", f"at most the {trials} trials", successes, "Count the trials again.")
    check_level(level)
    if trials == 0:
        return Interval(None, None, level, "Wilson", "there is nothing to take a share of.")
    ends = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(float(ends.low), float(ends.high), level, "Wilson")


def win_rate(wins: int, losses: int, ties: int = 0) -> float | None:
    """Share of votes won, a tie counting half: (wins + ties / 2) / all votes.

    Args:
        wins: Votes for the tuned answer.
        losses: Votes for the base answer.
        ties: Votes for neither.

    Returns:
        A share from 0 to 1, or None when there are no votes.

    Raises:
        EvaluationError: A count is negative or not whole.

    Example:
        >>> win_rate(5, 2, 1)
        0.6875
    """
    _check_counts(wins=wins, losses=losses, ties=ties)
    votes = wins + losses + ties
    return (wins + ties / 2) / votes if votes else None


def wins_needed(votes: int, alpha: float = 0.05) -> int | None:
    """Fewest wins among decided votes that the two-sided exact sign test does not put down to chance.

    Args:
        votes: Decided votes, ties not counted.
        alpha: The p-value must be below this share.

    Returns:
        A number of wins, or None when even a clean sweep is not enough, as with 5 votes.

    Raises:
        EvaluationError: `votes` is negative or not whole, or `alpha` is not between 0 and 1.

    Example:
        >>> [wins_needed(votes) for votes in (5, 6, 10, 20, 30, 50, 100)]
        [None, 6, 9, 15, 21, 33, 61]
    """
    import numpy as np
    from scipy import stats

    _check_counts(votes=votes)
    if not 0 < alpha < 1:
        raise EvaluationError("alpha", "a share between 0 and 1, such as 0.05", alpha, "Use 0.05 if in doubt.")
    wins = np.arange(votes // 2 + 1, votes + 1)
    enough = wins[2 * stats.binom.sf(wins - 1, votes, 0.5) < alpha]
    return int(enough[0]) if enough.size else None


@dataclass(frozen=True)
class PreferenceSummary:
    """What a vote came to.

    Args:
        a: The arm that wins are counted for, such as "tuned".
        b: The other arm.
        wins: Votes for `a`.
        losses: Votes for `b`.
        ties: Votes for neither, "both bad" included.
        rate: (wins + ties / 2) / votes, a share; None without votes.
        interval: Wilson interval of wins among decided votes, as shares.
        p_value: Two-sided exact sign test, ties dropped; a probability.
        needed: Wins that the decided votes would have needed for p < 1 - level; None when no number is enough.
        outcome: "better", "worse", "inconclusive" or "cannot say".
    """

    a: str
    b: str
    wins: int
    losses: int
    ties: int
    rate: float | None
    interval: Interval
    p_value: float
    needed: int | None
    outcome: str

    def text(self) -> str:
        """State the result in plain English, what it cannot say included."""
        decided = self.wins + self.losses
        tally = f"{self.a} {self.wins}, {self.b} {self.losses}, ties {self.ties}"
        if not decided:
            return f"Votes: {tally}. Cannot say: no vote preferred either, so there is nothing to test."
        winner = self.a[:1].upper() + self.a[1:]
        share = f"{winner} won {100 * self.wins / decided:.0f} % of the {_plural(decided, 'decided vote')}"
        low, high = 100 * (self.interval.low or 0), 100 * (self.interval.high or 0)
        numbers = f"{share} ({100 * self.interval.level:g} % interval {low:.0f} % to {high:.0f} %, Wilson)"
        return f"Votes: {tally}. {numbers}; sign test p = {self.p_value:.2g}. {self._conclusion(decided)}"

    def _conclusion(self, decided: int) -> str:
        if self.outcome in ("better", "worse"):
            liked = self.a if self.outcome == "better" else self.b
            return f"{liked[:1].upper()}{liked[1:]} is preferred: chance alone rarely gives so uneven a split."
        if self.outcome == "cannot say":
            return f"Cannot say: with {_plural(decided, 'decided vote')} even a clean sweep could be chance."
        return f"Inconclusive: with {decided} decided votes, {self.needed} for one side are needed."


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summarise_votes(
    wins: int, losses: int, ties: int = 0, *, a: str = "tuned", b: str = "base", level: float = 0.95
) -> PreferenceSummary:
    """Summarise blind votes, one per prompt.

    Args:
        wins: Votes for `a`.
        losses: Votes for `b`.
        ties: Votes for neither, "both bad" included.
        a: The arm that wins are counted for.
        b: The other arm.
        level: The confidence level, a share; the sign test is held against 1 - level.

    Returns:
        The summary; its `text()` states it.

    Raises:
        EvaluationError: A count is negative or not whole, or `level` is not a share.

    Example:
        >>> summarise_votes(6, 2).outcome
        'inconclusive'
    """
    rate, interval = win_rate(wins, losses, ties), wilson_interval(wins, wins + losses, level=level)
    p_value = sign_test(wins, losses)
    alpha = round(1 - level, 10)
    needed = wins_needed(wins + losses, alpha)
    outcome = "better" if wins > losses else "worse"
    if p_value >= alpha:
        outcome = "cannot say" if needed is None else "inconclusive"
    return PreferenceSummary(a, b, wins, losses, ties, rate, interval, p_value, needed, outcome)
