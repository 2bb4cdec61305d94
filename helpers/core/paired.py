"""Paired differences: their mean, its 95 % interval, and whether the rows can bear a verdict.

The interval is the t interval of the mean, clustered where rows share a source (Miller, "Adding Error Bars to Evals",
arXiv 2411.00640), with the small-sample factor G / (G - 1). It holds what it promises only for enough rows that are not
too lopsided. Cochran ("Sampling Techniques", 1977, section 2.15) asks for n > 25 * skewness^2; together with a minimum
of independent rows, and n > 50 * skewness^2, simulated experiments without any effect are called an effect in at most 6
of 100, and the interval misses the true mean in at most 8 of 100 (tests/core/test_paired.py has the distributions).
Rows that fall short get their interval and no verdict on the mean; if they are only too lopsided, the sign test says on
which side most of them lie.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.core.text import format_number

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Estimate", "estimate"]

_FEWEST_ROWS = 12
"""Independent rows below which nothing is judged."""

_SKEWNESS_FACTOR = 50


@dataclass(frozen=True)
class Estimate:
    """The mean of paired differences, with what can be said about it.

    Args:
        mean: In the measure's unit, like the ends and the standard error.
        low: Lower end of the 95 % interval; None without one.
        standard_error: Of the mean; None without an interval.
        rows: How many differences there are.
        sources: How many of them are independent: rows that share a source count once.
        above: Rows with a difference above zero.
        below: Rows with a difference below zero.
        why_no_interval: A clause, or "".
        why_no_verdict: A clause that says why these rows cannot bear a verdict, or "".
    """

    mean: float
    low: float | None
    high: float | None
    standard_error: float | None
    rows: int
    sources: int
    above: int
    below: int
    why_no_interval: str = ""
    why_no_verdict: str = ""

    def interval(self, *, share: bool = False) -> str:
        """Return the interval's ends as text, "" without one; `share` writes them in percent."""
        ends = [] if self.low is None else [self.low, self.high]
        return " to ".join(format_number(end, sign=True, share=share) for end in ends)

    def equal(self) -> int:
        """Rows without a difference."""
        return self.rows - self.above - self.below

    def is_above(self, limit: float) -> bool:
        """Whether the rows bear a verdict and the whole interval lies above a limit."""
        return not self.why_no_verdict and self.low is not None and self.low > limit

    def is_below(self, limit: float) -> bool:
        """Whether the rows bear a verdict and the whole interval lies below a limit."""
        return not self.why_no_verdict and self.high is not None and self.high < limit

    def majority(self) -> str:
        """Return "above" or "below", where most rows lie by the sign test (two-sided, 5 %), or "".

        It speaks where the rows are too lopsided for a verdict on their mean, and each has a source of its own.
        """
        from scipy import special

        enough = self.sources == self.rows >= _FEWEST_ROWS and self.low is not None
        decided = self.above + self.below
        if not (self.why_no_verdict and enough) or 2 * special.bdtr(min(self.above, self.below), decided, 0.5) >= 0.05:
            return ""
        return "below" if self.below > self.above else "above"


def estimate(differences: Sequence[float], sources: Sequence[Hashable] | None = None) -> Estimate:
    """Estimate the mean of paired differences.

    With e = d - mean(d), n rows and G sources the standard error is sqrt(G / (G - 1) * sum over sources of the squared
    sums of e) / n, and the interval has G - 1 degrees of freedom.

    Args:
        differences: One number a row, in any unit.
        sources: What each row comes from, in the same order; None when no two rows share a source.

    Raises:
        EvaluationError: There are no differences, one is not a finite number, or the lengths differ.

    Example:
        >>> estimate([1, 2, 3, 6], ["a", "a", "b", "b"]).standard_error
        1.5
    """
    import numpy as np
    from scipy import special

    values = _finite(differences)
    counts = (int((values > 0).sum()), int((values < 0).sum()))
    names = list(range(len(values)) if sources is None else sources)
    if len(names) != len(values):
        expected = f"one source for each of the {len(values)} differences"
        raise EvaluationError("sources", expected, len(names), "Pass the sources in the rows' order.")
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    codes = np.array([number[name] for name in names])
    sizes, groups, mean = np.bincount(codes), len(number), float(values.mean())
    residuals = np.bincount(codes, weights=values - mean)
    error = float(np.sqrt(groups / max(groups - 1, 1) * np.sum(residuals**2)) / len(values))
    if why := _no_interval(groups, len(values), error <= 1e-9 * float(abs(values).max())):
        return Estimate(mean, None, None, None, len(values), groups, *counts, why, why)
    half = float(special.stdtrit(groups - 1, 0.975)) * error
    doubt = _no_verdict(sizes, residuals)
    return Estimate(mean, mean - half, mean + half, error, len(values), groups, *counts, "", doubt)


def _finite(differences: Sequence[float]) -> np.ndarray:
    import numpy as np

    remedy = "Leave out rows without a value."
    try:
        values = np.asarray(differences, dtype=float)
    except (TypeError, ValueError):
        raise EvaluationError("differences", "a list of numbers", differences, remedy) from None
    if values.ndim != 1 or values.size == 0:
        raise EvaluationError("differences", "a flat list of at least one number", differences, "Compare a row.")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise EvaluationError(f"differences[{bad}]", "a finite number", float(values[bad]), remedy)
    return values


def _no_interval(groups: int, rows: int, same: bool) -> str:
    if rows == 1:
        return "one row does not show how much rows differ"
    if groups == 1:
        return f"all {rows} rows come from one source"
    return f"all {rows} rows differ by the same amount, which leaves nothing to estimate chance from" if same else ""


def _no_verdict(sizes: np.ndarray, residuals: np.ndarray) -> str:
    """Say why rows cannot bear a verdict: too few independent ones, or too lopsided."""
    groups, rows = len(sizes), int(sizes.sum())
    independent = rows**2 / float((sizes**2).sum())  # Kish: what sources of unlike size are worth
    if groups >= _FEWEST_ROWS > independent:
        return f"{sizes.max()} of the {rows} rows come from one source"
    if independent < _FEWEST_ROWS:
        return f"{groups} independent rows are too few, {_FEWEST_ROWS} are needed"
    centred = residuals - residuals.mean()
    skewness = float((centred**3).mean() / (centred**2).mean() ** 1.5)
    if independent > _SKEWNESS_FACTOR * skewness**2:
        return ""
    return f"a few rows carry the difference (skewness {abs(skewness):.1f}), which takes more than {groups} rows"
