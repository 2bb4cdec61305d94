"""For teachers: how many votes or rows would decide, where tuning hurt, and answers of like length alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from helpers.core.errors import EvaluationError
from helpers.evaluation.metrics.catalogue import METRICS
from helpers.evaluation.metrics.gains import tuning_gains
from helpers.evaluation.metrics.table import PairedDifferences
from helpers.evaluation.overview import Overview
from helpers.evaluation.records import Comparison
from helpers.evaluation.stats.preferences import wins_needed
from helpers.evaluation.stats.tests import t_interval

__all__ = ["length_matched", "length_pairs", "robustness", "rows_needed", "wins_table", "worst_rows"]

_MATCHED = 0.2  # largest difference in words, over the words of the longer answer
_POWER = 0.8
_QUANTILES = (1.959964, 0.841621)  # of the normal distribution: 95 % confidence, 80 % power


def wins_table(votes: Sequence[int] = (5, 6, 10, 20, 30, 50, 100)) -> list[dict[str, Any]]:
    """Show how many wins among decided votes chance alone rarely gives (exact sign test, p < 0.05).

    Args:
        votes: Numbers of decided votes.

    Example:
        >>> wins_table((5, 10))[1]
        {'decided votes': 10, 'wins needed': 9, 'that is': '90 %'}
    """
    rows = []
    for count in votes:
        needed = wins_needed(count)
        share = "not even all" if needed is None else f"{needed / count:.0%}".replace("%", " %")
        rows.append({"decided votes": count, "wins needed": "-" if needed is None else needed, "that is": share})
    return rows


def rows_needed(differences: Sequence[float], effect: float) -> int | None:
    """Estimate how many rows would show an effect of a given size in 80 of 100 such experiments.

    The smallest n at which the paired t test at 5 % has a power of 80 %, if other rows spread as these do: about
    ((1.96 + 0.84) s / effect)^2 rows, with s the standard deviation, and a few more when that is small.

    Args:
        differences: Paired differences that were measured, in the metric's unit.
        effect: The mean difference to be found, in the same unit.

    Returns:
        A number of rows, at least 2; None when these differences have no spread to learn from.

    Raises:
        EvaluationError: The effect is zero or not a number.

    Example:
        >>> rows_needed([0.1, -0.1, 0.3, 0.1], effect=0.1)
        23
    """
    if not (math.isfinite(effect) and effect):
        raise EvaluationError("effect", "a number other than 0", effect, "Give the smallest difference that matters.")
    if len(differences) < 2:
        return None
    mean = math.fsum(differences) / len(differences)
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in differences) / (len(differences) - 1))
    if spread <= 1e-12 * abs(mean):
        return None
    rows = max(2, math.floor((sum(_QUANTILES) * spread / effect) ** 2))  # too few, by the normal approximation
    while _power(rows, abs(effect) / spread) < _POWER:
        rows += 1
    return rows


def _power(rows: int, size: float) -> float:
    """Return the chance that a paired t test at 5 % finds an effect of a size, in standard deviations."""
    from scipy import stats

    critical, centre = stats.t.ppf(0.975, rows - 1), size * math.sqrt(rows)
    return float(stats.nct.sf(critical, rows - 1, centre) + stats.nct.cdf(-critical, rows - 1, centre))


def worst_rows(comparison: Comparison, overview: Overview) -> list[dict[str, str]]:
    """Return the prompts that lost most by tuning, at most five.

    Args:
        comparison: What was compared.
        overview: Its table.

    Returns:
        Rows with the prompt, how much it lost and in what; none if nothing lost.
    """
    gains = tuning_gains(comparison, overview.table, (overview.base, overview.tuned))
    if gains is None:
        return []
    texts = {prompt.id: prompt.text for prompt in comparison.prompts}
    return [{"prompt": texts[name], f"gain ({gains.label})": f"{gains.values[name]:+.3f}"} for name in gains.worst()]


def length_pairs(overview: Overview) -> dict[str, tuple[int, int]]:
    """Return the words of both answers to each prompt that has both.

    Args:
        overview: With its table.

    Returns:
        (base, tuned) by prompt.
    """
    words: dict[str, dict[str, int]] = {}
    for row in overview.table:
        if row["words"] is not None:
            words.setdefault(row["prompt_id"], {})[row["arm"]] = int(row["words"])
    names = overview.base.name, overview.tuned.name
    return {name: (found[names[0]], found[names[1]]) for name, found in words.items() if set(names) <= set(found)}


def length_matched(overview: Overview, metric: str) -> PairedDifferences | None:
    """Keep the prompts whose two answers are about equally long: at most a fifth apart, counted in words.

    A judge, a metric or a person may like an answer just for its length. What is left here is not due to it.

    Args:
        overview: What was judged.
        metric: Which metric.

    Returns:
        Its differences on those prompts; None if there are none, or the metric is not known.
    """
    pairs: Mapping[str, tuple[int, int]] = length_pairs(overview)
    each = overview.differences.get(metric)
    if each is None:
        return None
    wanted = [
        abs(pairs[p][0] - pairs[p][1]) <= _MATCHED * max(pairs[p]) if p in pairs else False for p in each.prompt_ids
    ]
    return each.keep(wanted) if any(wanted) else None


def robustness(overview: Overview, metric: str) -> list[dict[str, Any]]:
    """Show a metric's verdict over all pairs, without pairs that were cut, and over pairs of like length.

    Args:
        overview: What was judged.
        metric: Which metric.

    Returns:
        A row each: the number of pairs, and the mean difference with its interval. None if no prompt has the metric.
    """
    each = overview.differences.get(metric)
    if each is None:
        return []
    views = {
        "all pairs": each,
        "without pairs cut at the length limit": each.without_truncated(),
        "answers of like length (a fifth apart at most)": length_matched(overview, metric),
    }
    return [_view_row(name, metric, view) for name, view in views.items()]


def _view_row(name: str, metric: str, view: PairedDifferences | None) -> dict[str, Any]:
    row: dict[str, Any] = {"pairs taken": name, "pairs": len(view.differences) if view else 0}
    difference = f"{METRICS[metric].label}: mean difference"
    if view is None or not view.differences:
        return row | {difference: "-", "95 % interval": "no pair is left"}
    interval = t_interval(view.differences, view.clusters)
    mean = math.fsum(view.differences) / len(view.differences)
    ends = f"{interval.low:+.3f} to {interval.high:+.3f}" if interval.known() else interval.note.rstrip(".")
    return row | {difference: f"{mean:+.3f}", "95 % interval": ends}
