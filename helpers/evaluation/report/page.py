"""The report: one HTML file that says what came of a comparison and shows every pair of answers.

It needs no network and no script to be read; a script adds filters, order, folding and dark mode.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from helpers.core.paired import Estimate
from helpers.core.text import format_number
from helpers.display.style import Drawing
from helpers.evaluation.metrics.contamination import Neighbour
from helpers.evaluation.metrics.table import METRICS, means_by_arm
from helpers.evaluation.overview import DESCRIBED, JUDGED, Overview
from helpers.evaluation.pages import write_page
from helpers.evaluation.records import Arm, Comparison
from helpers.evaluation.report.cards import prompt_cards

FEWEST_FOR_INTERVAL = 6
"""Rows below which no interval is shown: it would be too wide to mean anything."""

_MARKS = {
    "better": "▲",
    "mostly better": "▲",
    "mostly worse": "▼",
    "preferred": "▲",
    "not worse": "●",
    "worse": "▼",
    "not preferred": "▼",
    "cannot tell": "○",
}
_STEPS = {"bare": 0, "template": 1, "few_shot": 2}


def write_report(
    path: Path,
    comparison: Comparison,
    overview: Overview,
    *,
    figures: Sequence[Drawing] = (),
    neighbours: Sequence[Neighbour] = (),
    votes: str = "",
) -> Path:
    """Write the report.

    Args:
        votes: What the votes say besides the verdict, a line a statement; "" without votes.
    """
    cards = prompt_cards(comparison, overview, neighbours)
    arms = ordered_arms(comparison)
    roles = {overview.base.name: "base", overview.tuned.name: "tuned"}
    context = {
        "info": comparison.info,
        "created": _day(comparison.info.created),
        "pair": (overview.base, overview.tuned),
        "headline": overview.headline(),
        "counts": _counts(comparison, cards),
        "verdicts": [
            {"question": v.question, "outcome": v.outcome, "mark": _MARKS[v.outcome], "basis": v.basis}
            for v in overview.verdicts
        ],
        "votes": votes.splitlines(),
        "arms": [{"label": arm.label, "role": roles.get(arm.name, "")} for arm in arms],
        "measures": measure_rows(overview, arms),
        "figures": [_figure(each) for each in figures],
        "gain": overview.gains()[0],
        "hurt": _hurt(comparison, overview, cards),
        "categories": sorted({card["category"] for card in cards if card["category"]}),
        "cards": cards,
        "details": _details(comparison),
    }
    return write_page(path, "report", context)


def ordered_arms(comparison: Comparison) -> list[Arm]:
    """Return the arms, the least prompted first and those with the adapter last."""
    return sorted(comparison.arms, key=lambda arm: (arm.adapter, _STEPS.get(arm.prompting, 3)))


def measure_rows(overview: Overview, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Lay out each measure: its mean in every arm, and the paired difference of the two headline arms.

    Returns:
        Rows with `label`, `definition`, `cells` (text by arm), `difference`, `interval`, `n` and `plot`: where a
        picture 100 wide, with zero in the middle, has the interval.
    """
    means = means_by_arm(overview.table)
    rows = []
    for name in (JUDGED, *DESCRIBED):
        if name not in overview.estimates:
            continue
        metric, found = METRICS[name], overview.estimates[name]
        share = metric.unit in ("yes/no", "share")
        cells = [format_number(means.loc[name].get(arm.name), share=share) for arm in arms]
        rows.append(
            {
                "label": metric.label + (f", {metric.unit}" if "/" in metric.unit and not share else ""),
                "definition": metric.definition,
                "cells": cells,
                "difference": format_number(found.mean, sign=True, share=share),
                "interval": _interval(found, share),
                "n": str(found.rows),
                "plot": _plot(found),
            }
        )
    return rows


def _interval(found: Estimate, share: bool) -> str:
    if found.low is None or found.rows < FEWEST_FOR_INTERVAL:
        return format_number(None)
    return found.interval(share=share)


def _plot(found: Estimate) -> dict[str, float] | None:
    """Place a difference and its interval on a line from 0 to 100 whose middle is zero."""
    if found.low is None or found.high is None or found.rows < FEWEST_FOR_INTERVAL:
        return None
    widest = max(abs(found.low), abs(found.high)) or 1.0
    ends = {"middle": found.mean, "low": found.low, "high": found.high}
    return {name: round(50 + 44 * value / widest, 2) for name, value in ends.items()}


def _day(created: str) -> str:
    """Write an ISO time as "12 May 2026, 14:03 UTC"; anything else stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _counts(comparison: Comparison, cards: Sequence[Mapping[str, Any]]) -> str:
    scored = len({row.prompt_id for row in comparison.references})
    return f"{len(cards)} answered" + (f", {scored} scored against a reference" if scored else "")


def _figure(drawing: Drawing) -> dict[str, str]:
    """Embed a picture as a data URL: inside `img` neither its scripts run nor do its ids clash with another's."""
    encoded = base64.b64encode(drawing.svg().encode("utf-8")).decode("ascii")
    return {"title": drawing.title, "caption": drawing.caption, "source": f"data:image/svg+xml;base64,{encoded}"}


def _hurt(comparison: Comparison, overview: Overview, cards: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    anchors = {card["id"]: card["anchor"] for card in cards}
    texts = {prompt.id: " ".join(prompt.text.split()) for prompt in comparison.prompts}
    gains = overview.gains()[1]
    return [
        {
            "anchor": anchors.get(name, ""),
            "title": texts[name] if len(texts[name]) <= 100 else texts[name][:97] + "…",
            "change": format_number(gains[name], sign=True),
        }
        for name in overview.worst()
    ]


def _details(comparison: Comparison) -> list[tuple[str, str]]:
    info = comparison.info
    named = [
        ("Arms", "\n".join(f"{arm.label} ({arm.name})" for arm in comparison.arms)),
        ("System prompt", info.system_prompt or "none"),
        ("Length limit", f"{info.max_new_tokens} tokens"),
        ("Seed", str(info.seed)),
    ]
    return named + [(name, str(value)) for name, value in info.details.items()]
