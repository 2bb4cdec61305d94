"""The two things all statistics here share: an interval, and the independent observations behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np

__all__ = ["Interval", "Observations", "check_level", "observe"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval, or the reason why there is none.

    Args:
        low: Lower end, in the unit of the data; None when the data cannot give one.
        high: Upper end, likewise.
        level: The share of such intervals that hold the true value, such as 0.95.
        method: How it was made, such as "t", "clustered t", "percentile bootstrap" or "Wilson".
        note: Why `low` and `high` are None, as a sentence; "" otherwise.

    Example:
        >>> str(Interval(-0.06, 0.102, 0.95, "t"))
        '-0.06 to +0.102 (95 %, t)'
    """

    low: float | None
    high: float | None
    level: float
    method: str
    note: str = ""

    def known(self) -> bool:
        """Whether there is an interval at all."""
        return self.low is not None and self.high is not None

    def excludes(self, value: float) -> bool:
        """Whether there is an interval and `value` (in the unit of the data) lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    def __str__(self) -> str:
        if not self.known():
            return f"no interval: {self.note}"
        return f"{self.low:+.3g} to {self.high:+.3g} ({100 * self.level:g} %, {self.method})"


@dataclass(frozen=True)
class Observations:
    """Paired differences, summed up by the source they share.

    Args:
        sums: Sum of the differences of each source, in the metric's unit, shape (sources,).
        sizes: Prompts of each source, shape (sources,).
        values: The differences themselves, in the metric's unit, shape (prompts,).
    """

    sums: np.ndarray
    sizes: np.ndarray
    values: np.ndarray

    def clustered(self) -> bool:
        """Whether any two prompts share a source."""
        return len(self.sums) < len(self.values)

    def mean(self) -> float:
        """Mean difference per prompt, in the metric's unit."""
        return float(self.values.mean())

    def standard_error(self) -> float | None:
        """Standard error of the mean, as `helpers.evaluation.stats.tests.standard_error` defines it."""
        import numpy as np

        groups = len(self.sums)
        if groups < 2:
            return None
        residuals = self.sums - self.sizes * self.mean()
        return float(np.sqrt(groups / (groups - 1) * np.sum(residuals**2)) / len(self.values))

    def no_spread(self) -> str:
        """Say why these data have no measurable spread; "" when they have."""
        error = self.standard_error()
        if len(self.values) == 1:
            return "one prompt does not show how much prompts differ."
        if error is None:
            return f"all {len(self.values)} prompts come from one source, which does not show how much sources differ."
        if error > 1e-9 * float(abs(self.values).max()):
            return ""
        what = "sources have the same mean difference" if self.clustered() else "prompts have the same difference"
        return f"all {what}, so there is no spread to build one from."


def check_level(level: float) -> None:
    """Refuse a confidence level that is not a share.

    Args:
        level: Such as 0.95.

    Raises:
        EvaluationError: `level` is not between 0 and 1.

    Example:
        >>> check_level(95)
        Traceback (most recent call last):
        helpers.core.errors.EvaluationError: level: expected a share between 0 and 1, such as 0.95, got 95. Use 0.95.
    """
    if not 0 < level < 1:
        raise EvaluationError("level", "a share between 0 and 1, such as 0.95", level, "Use 0.95.")


def observe(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Observations:
    """Check paired differences and sum them up by source.

    Args:
        differences: One number per prompt, in the metric's unit.
        clusters: The source of each prompt, in the same order; None when no two share one.

    Returns:
        The observations, sources in order of appearance.

    Raises:
        EvaluationError: `differences` is empty, nested, or holds something that is no finite number; or the lengths
            differ.

    Example:
        >>> observe([0.5, 0.25, 1.0], ["manual", "manual", "faq"]).sums.tolist()
        [0.75, 1.0]
    """
    import numpy as np

    values = _vector(differences)
    if clusters is None:
        return Observations(values, np.ones_like(values), values)
    if len(clusters) != len(values):
        expected = f"one source for each of the {len(values)} differences"
        raise EvaluationError("clusters", expected, len(clusters), "Pass the sources in the prompts' order.")
    number = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    codes = np.array([number[name] for name in clusters])
    return Observations(np.bincount(codes, weights=values), np.bincount(codes).astype(float), values)


def _vector(differences: Sequence[float]) -> np.ndarray:
    import numpy as np

    remedy = "Leave out prompts without a value."
    try:
        values = np.asarray(differences, dtype=float)
    except (TypeError, ValueError):
        raise EvaluationError("differences", "a list of numbers", differences, remedy) from None
    if values.ndim != 1 or values.size == 0:
        raise EvaluationError("differences", "a flat list of at least one number", differences, "Compare a prompt.")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise EvaluationError(f"differences[{bad}]", "a finite number", float(values[bad]), remedy)
    return values
