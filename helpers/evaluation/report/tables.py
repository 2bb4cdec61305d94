"""The tables of the report: numbers as people read them, intervals as pictures, and the ladder of arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from helpers.core.text import format_number
from helpers.evaluation.metrics.gains import clean_rows
from helpers.evaluation.records import Arm, Comparison

__all__ = ["ladder", "slice_row", "verdict_row"]

_DASH = "\N{EM DASH}"
_STATES = {"better": "▲", "worse": "▼", "higher": "↑", "lower": "↓", "inconclusive": "○"}
_OTHER_STATES = ("no difference", "cannot say", "counts only")
_LADDER = {
    "nll": "NLL of the reference, nats/token",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF++",
    "items_met": "Asked-for items met",
    "list_items": "List items",
    "words": "Words",
    "rep_4": "Repeated 4-grams",
    "truncated": "Cut at the limit",
    "empty": "Empty answers",
}
_SHARES = {"items_met", "rep_4", "truncated", "empty"}


def _known(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _p(value: object) -> str:
    if not _known(value):
        return _DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def slice_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write a difference, its interval and its picture as the tables show them.

    Args:
        row: `difference`, `low`, `high`, `n` and `text`; any may be None or missing.

    Returns:
        The row with these as text, and `plot`: where a picture 100 wide, with zero in the middle, has them.
    """
    low, high = row.get("low"), row.get("high")
    interval = (
        f"{format_number(low, sign=True)} to {format_number(high, sign=True)}"
        if _known(low) and _known(high)
        else _DASH
    )
    return dict(row) | {
        "difference": format_number(row.get("difference"), sign=True),
        "interval": interval,
        "n": format_number(row.get("n")),
        "text": row.get("text") or "",
        "plot": _plot(row.get("difference"), low, high),
    }


def _plot(middle: object, low: object, high: object) -> dict[str, float | None] | None:
    """Place a difference and its interval on a line from 0 to 100 whose middle is zero."""
    if not _known(middle):
        return None
    bounded = _known(low) and _known(high)
    widest = max(abs(value) for value in ((middle, low, high) if bounded else (middle,))) or 1.0
    place = lambda value: round(50 + 44 * value / widest, 2)  # noqa: E731
    return {"middle": place(middle), "low": place(low) if bounded else None, "high": place(high) if bounded else None}


def verdict_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write a verdict as the summary table shows it.

    Args:
        row: A verdict as `write_report` takes it.

    Returns:
        The row with its numbers as text and a `mark` for its `state`; both are "" for a direction that is not known.
    """
    state = row.get("direction")
    state = state if state in _STATES or state in _OTHER_STATES else ""
    return slice_row(row) | {
        "base": format_number(row.get("base")),
        "tuned": format_number(row.get("tuned")),
        "p": _p(row.get("p_holm", row.get("p"))),
        "state": state,
        "mark": _STATES.get(state, "") and f"{_STATES[state]} ",
    }


def ladder(comparison: Comparison, scores: Sequence[Mapping[str, Any]], pair: tuple[Arm, Arm]) -> dict[str, Any] | None:
    """Put the means of all arms in a table, the least prompted arm first and the tuned one last.

    Args:
        comparison: Its arms and reference scores.
        scores: Flat rows, one a prompt and arm.
        pair: The two arms that are compared.

    Returns:
        The `columns` and `rows`, or None for fewer than three arms or without scores.
    """
    if len(comparison.arms) < 3:
        return None
    means = {arm.name: _means(comparison, scores, arm.name) for arm in comparison.arms}
    columns = [name for name in _LADDER if any(name in found for found in means.values())]
    steps = {"bare": 0, "template": 1, "few_shot": 2}
    arms = sorted(comparison.arms, key=lambda arm: (arm.adapter, steps.get(arm.prompting, 3)))
    roles = {pair[0].name: "base", pair[1].name: "tuned"}
    rows = [
        {
            "label": arm.label,
            "role": roles.get(arm.name, ""),
            "cells": [_cell(name, means[arm.name], means) for name in columns],
        }
        for arm in arms
    ]
    return {"columns": [_LADDER[name] for name in columns], "rows": rows} if columns else None


def _means(comparison: Comparison, scores: Sequence[Mapping[str, Any]], arm: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    own = [row for row in clean_rows(scores) if row["arm"] == arm]
    if not any("nll" in row for row in own):
        scored = [row for row in comparison.references if row.arm == arm and row.tokens]
        own += [{"nll": row.nll / row.tokens} for row in scored]
    for row in own:
        for name in _LADDER:
            if _known(row.get(name)):
                found.setdefault(name, []).append(float(row[name]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _cell(name: str, own: Mapping[str, float], means: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    value = own.get(name)
    most = max((abs(found[name]) for found in means.values() if name in found), default=0.0)
    width = round(100 * abs(value) / most, 1) if value is not None and most else None
    return {"text": format_number(value, share=name in _SHARES), "width": width}
