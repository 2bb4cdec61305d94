"""Intervals and tests for paired differences: one number per prompt, tuned minus base.

Works on numbers alone. The paired t interval comes first; the bootstrap and the permutation test that second it are in
`helpers.evaluation.stats.resampling`. All take `clusters`: prompts drawn from one source are not independent, and are
then treated as one observation. `helpers.evaluation.stats.verdicts` says in words what the numbers allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.evaluation.stats.intervals import Interval, check_level, observe

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

__all__ = [
    "count_clusters",
    "holm",
    "standard_error",
    "t_interval",
    "t_p_value",
]


def count_clusters(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> int:
    """Count the independent observations: clusters, or prompts where none share one.

    Args:
        differences: One number per prompt.
        clusters: The source of each prompt, in the same order, or None.

    Returns:
        A count of at least 1.

    Raises:
        EvaluationError: `differences` is empty or not numeric, or the lengths differ.

    Example:
        >>> count_clusters([0.1, 0.2, 0.3], ["manual", "manual", "faq"])
        2
    """
    return len(observe(differences, clusters).sums)


def standard_error(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float | None:
    """Standard error of the mean difference, clustered where prompts share a source.

    With e = d - mean(d), n prompts and G clusters: sqrt(G / (G - 1) * sum over clusters of (sum of e)^2) / n. This is
    the clustered standard error of Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), with the small-sample
    factor G / (G - 1) that Cameron and Miller, "A Practitioner's Guide to Cluster-Robust Inference" (2015), call CR1;
    without it few clusters give intervals that are too short. When each prompt is its own cluster it is the textbook
    s / sqrt(n); for clusters of one size it is the textbook formula on the cluster means.

    Args:
        differences: One number per prompt, in the metric's unit.
        clusters: The source of each prompt, in the same order; None when no two share one.

    Returns:
        The standard error in the metric's unit, or None when there is only one prompt or one cluster.

    Raises:
        EvaluationError: `differences` is empty or not numeric, or the lengths differ.

    Example:
        >>> standard_error([1, 2, 3, 6], ["a", "a", "b", "b"])
        1.5
    """
    return observe(differences, clusters).standard_error()


def t_interval(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> Interval:
    """Paired t interval of the mean difference: the primary one.

    mean +- t * standard error, with clusters - 1 degrees of freedom (prompts - 1 where no two share a source).

    Args:
        differences: One number per prompt, tuned minus base, in the metric's unit.
        clusters: The source of each prompt, in the same order; None when no two share one.
        level: The confidence level, a share.

    Returns:
        The interval, or one without ends and with a note when there is one prompt, one source or no spread.

    Raises:
        EvaluationError: `differences` is empty or not numeric, the lengths differ, or `level` is not a share.

    Example:
        >>> str(t_interval([1, 2, 3]))
        '-0.484 to +4.48 (95 %, t)'
    """
    from scipy import stats

    check_level(level)
    seen = observe(differences, clusters)
    method = "clustered t" if seen.clustered() else "t"
    if note := seen.no_spread():
        return Interval(None, None, level, method, note)
    mean, error = seen.mean(), seen.standard_error() or 0.0
    half = float(stats.t.ppf((1 + level) / 2, len(seen.sums) - 1)) * error
    return Interval(mean - half, mean + half, level, method)


def t_p_value(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float | None:
    """Two-sided p-value of the paired t test that belongs to `t_interval`.

    Args:
        differences: One number per prompt, in any unit.
        clusters: The source of each prompt, in the same order; None when no two share one.

    Returns:
        A probability, or None when there is one prompt, one source or no spread.

    Raises:
        EvaluationError: `differences` is empty or not numeric, or the lengths differ.

    Example:
        >>> round(t_p_value([1, 2, 3]), 4)
        0.0742
    """
    from scipy import stats

    seen = observe(differences, clusters)
    error = seen.standard_error()
    if seen.no_spread() or error is None:
        return None
    return float(2 * stats.t.sf(abs(seen.mean()) / error, len(seen.sums) - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values for having tested several metrics (Holm, 1979).

    With m metrics sorted by p, the k-th smallest (from 0) is multiplied by m - k; none may fall below the one before,
    and none exceeds 1. Comparing the results with 0.05 keeps the chance of any false finding at 5 %.

    Args:
        p_values: A probability for each metric.

    Returns:
        The adjusted probabilities under the same names, in the same order.

    Raises:
        EvaluationError: There are none, or one is not a probability.

    Example:
        >>> holm({"rouge_l": 0.01, "words": 0.04})
        {'rouge_l': 0.02, 'words': 0.04}
    """
    if not p_values:
        raise EvaluationError("p_values", "at least one p-value", dict(p_values), "Test at least one metric.")
    for name, p in p_values.items():
        if not isinstance(p, int | float) or not 0 <= p <= 1:
            raise EvaluationError(f"p_values[{name!r}]", "a number from 0 to 1", p, "Leave out untested metrics.")
    adjusted, floor = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        floor = max(floor, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p_values}
