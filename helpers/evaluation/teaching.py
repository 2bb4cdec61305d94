"""For teachers: how many votes or rows would decide, where tuning hurt, and answers of like length alone."""

from __future__ import annotations

import math
from typing import Any

from helpers.core.errors import EvaluationError
from helpers.core.paired import Estimate
from helpers.core.text import format_number
from helpers.evaluation.metrics.table import METRICS, estimate_difference
from helpers.evaluation.overview import Overview
from helpers.evaluation.records import Comparison
from helpers.evaluation.report.page import FEWEST_FOR_INTERVAL
from helpers.evaluation.stats.votes import wins_needed

__all__ = ["robustness", "rows_needed", "wins_table", "worst_rows"]

_MATCHED = 0.2  # largest difference in words, over the words of the longer answer
_POWER = 0.8
_QUANTILES = (1.959964, 0.841621)  # of the normal distribution: 95 % confidence, 80 % power


def wins_table() -> list[dict[str, Any]]:
    """Show how many wins among decided votes coin tosses rarely give.

    Example:
        >>> wins_table()[2]
        {'decided votes': 10, 'wins needed': 9, 'that is': '90 %'}
    """
    rows = []
    for count in (5, 6, 10, 20, 30, 50, 100):
        needed = wins_needed(count)
        share = "not even all" if needed is None else format_number(needed / count, share=True)
        rows.append({"decided votes": count, "wins needed": "-" if needed is None else needed, "that is": share})
    return rows


def rows_needed(found: Estimate, effect: float) -> int | None:
    """Estimate how many rows would show an effect of a given size in 80 of 100 such experiments.

    The smallest n at which the paired t interval excludes zero with a power of 80 %, if other rows spread and share
    sources as these do: about ((1.96 + 0.84) s / effect)^2 rows, with s the standard error times the root of the rows.

    Returns:
        A number of rows, at least 2; None when these differences have no spread to learn from.

    Raises:
        EvaluationError: The effect is zero or not a number.

    Example:
        >>> from helpers.core.paired import estimate
        >>> rows_needed(estimate([0.1, -0.1, 0.3, 0.1]), effect=0.1)
        23
    """
    if not (math.isfinite(effect) and effect):
        raise EvaluationError("effect", "a number other than 0", effect, "Give the smallest difference that matters.")
    if found.standard_error is None:
        return None
    spread = found.standard_error * math.sqrt(found.rows)
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
    """Return the prompts that lost most by tuning, at most five: the prompt, and how much it lost in what."""
    label, gains = overview.gains()
    texts = {prompt.id: prompt.text for prompt in comparison.prompts}
    return [
        {"prompt": texts[name], f"gain ({label})": format_number(gains[name], sign=True)} for name in overview.worst()
    ]


def robustness(overview: Overview, name: str) -> list[dict[str, Any]]:
    """Show a measure's difference over all pairs, without pairs that were cut, and over pairs of like length.

    Returns:
        A row each: the number of pairs, and the mean difference with its interval. None if no prompt has the measure.
    """
    pairs = overview.pairs.get(name)
    if pairs is None:
        return []
    longer = pairs[["words_a", "words_b"]].max(axis=1)
    alike = (pairs["words_a"] - pairs["words_b"]).abs() <= _MATCHED * longer
    views = {
        "all pairs": pairs,
        "without pairs cut at the length limit": pairs[~pairs["cut"]],
        "answers of like length (a fifth apart at most)": pairs[alike],
    }
    return [_view_row(view, METRICS[name].label, estimate_difference(rows)) for view, rows in views.items()]


def _view_row(view: str, label: str, found: Estimate | None) -> dict[str, Any]:
    row: dict[str, Any] = {"pairs taken": view, "pairs": found.rows if found else 0}
    difference = f"{label}: mean difference"
    if found is None:
        return row | {difference: "-", "95 % interval": "no pair is left"}
    ends = "too few pairs" if found.rows < FEWEST_FOR_INTERVAL else found.interval()
    return row | {difference: format_number(found.mean, sign=True), "95 % interval": found.why_no_interval or ends}
