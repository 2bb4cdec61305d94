"""Everything that is computed for one metric, over all prompts or for each category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.evaluation.stats.resampling import bootstrap_interval, permutation_p_value
from helpers.evaluation.stats.tests import count_clusters, t_interval, t_p_value

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from helpers.evaluation.stats.intervals import Interval

__all__ = ["FEWEST_IN_SLICE", "PairedSummary", "slices", "summarise"]

FEWEST_IN_SLICE = 6  # prompts; below, an interval would be too wide to mean anything and only counts are shown


@dataclass(frozen=True)
class PairedSummary:
    """One metric's paired comparison.

    Args:
        metric: Its name, as reports show it.
        a: The arm that the difference is counted for, such as "tuned".
        b: The arm subtracted, such as "base".
        higher_is_better: True, False, or None for a metric that is neither good nor bad, such as words.
        n: Prompts compared.
        clusters: Independent sources among them; equal to `n` when no two share one.
        higher: Prompts on which `a` is above `b`.
        lower: Prompts on which `a` is below `b`.
        ties: Prompts with the same value.
        mean: Mean of a - b, in the metric's unit; None for counts only, like the following.
        interval: Paired t interval, the primary one, clustered where sources are shared.
        bootstrap: Percentile bootstrap interval, the second opinion.
        p_value: Two-sided paired t test, a probability; None also when the data have no spread.
        permutation_p: Two-sided sign-flip test, a probability.
    """

    metric: str
    a: str
    b: str
    higher_is_better: bool | None
    n: int
    clusters: int
    higher: int
    lower: int
    ties: int
    mean: float | None = None
    interval: Interval | None = None
    bootstrap: Interval | None = None
    p_value: float | None = None
    permutation_p: float | None = None

    def deciding_p(self) -> float | None:
        """The p-value that the verdict rests on: the t test's, the permutation test's without spread, or None."""
        if self.p_value is None and self.clusters > 1:
            return self.permutation_p
        return self.p_value


def summarise(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    metric: str = "difference",
    a: str = "tuned",
    b: str = "base",
    higher_is_better: bool | None = True,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    counts_only: bool = False,
) -> PairedSummary:
    """Compute everything that is said about one metric.

    Args:
        differences: One number per prompt, a minus b, in the metric's unit.
        clusters: The source of each prompt, in the same order; None when no two share one.
        metric: The metric's name, as reports show it.
        a: The arm that the difference is counted for.
        b: The arm subtracted.
        higher_is_better: Which direction is good; None for neither.
        level: The confidence level, a share.
        resamples: Draws of the bootstrap and of the permutation test.
        seed: Seed of both.
        counts_only: Count prompts up, down and equal, and compute nothing else.

    Returns:
        The summary, also for one prompt or for differences without spread.

    Raises:
        EvaluationError: `differences` is empty or not numeric, the lengths differ, or `level` is not a share.

    Example:
        >>> summarise([0.1, 0.2, 0.0]).higher
        2
    """
    groups = count_clusters(differences, clusters)
    higher, lower = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    counts = (len(differences), groups, int(higher), int(lower), len(differences) - int(higher) - int(lower))
    if counts_only:
        return PairedSummary(metric, a, b, higher_is_better, *counts)
    return PairedSummary(
        *(metric, a, b, higher_is_better, *counts),
        mean=float(sum(differences) / len(differences)),
        interval=t_interval(differences, clusters, level=level),
        bootstrap=bootstrap_interval(differences, clusters, level=level, resamples=resamples, seed=seed),
        p_value=t_p_value(differences, clusters),
        permutation_p=permutation_p_value(differences, clusters, resamples=resamples, seed=seed),
    )


def slices(
    differences: Sequence[float],
    categories: Sequence[str],
    clusters: Sequence[Hashable] | None = None,
    *,
    fewest: int = FEWEST_IN_SLICE,
    **options: object,
) -> dict[str, PairedSummary]:
    """Summarise each category by itself; one with fewer than 6 prompts gets counts only.

    Args:
        differences: One number per prompt, in the metric's unit.
        categories: The category of each prompt, in the same order; "" is left out.
        clusters: The source of each prompt, in the same order, or None.
        fewest: Prompts from which on an interval is shown.
        **options: Passed on to `summarise`.

    Returns:
        A summary for each category, in order of appearance.

    Raises:
        EvaluationError: As for `summarise`.

    Example:
        >>> slices([0.1, 0.2], ["sales", "sales"])["sales"].interval is None
        True
    """
    for field, values in (("categories", categories), ("clusters", clusters)):
        if values is not None and len(values) != len(differences):
            raise EvaluationError(
                field,
                f"one for each of the {len(differences)} differences",
                len(values),
                "Pass them in the order of the differences.",
            )
    found = {}
    for category in dict.fromkeys(name for name in categories if name):
        rows = [row for row, name in enumerate(categories) if name == category]
        of_rows = None if clusters is None else [clusters[row] for row in rows]
        few = len(rows) < fewest
        found[category] = summarise([differences[row] for row in rows], of_rows, counts_only=few, **options)
    return found
