"""The report: one HTML file that says what came of a comparison and shows every pair of answers.

It needs no network and no script to be read; a script adds filters, order, folding and dark mode.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from helpers.core.errors import EvaluationError
from helpers.core.text import format_number
from helpers.evaluation.metrics.gains import Gains, tuning_gains
from helpers.evaluation.pages import render_page, write_page
from helpers.evaluation.records import Comparison
from helpers.evaluation.report.cards import headline_arms, prompt_cards
from helpers.evaluation.report.tables import ladder, slice_row, verdict_row

__all__ = ["write_report"]


def write_report(
    path: str | Path,
    comparison: Comparison,
    *,
    headline: str,
    scores: Sequence[Mapping[str, Any]] = (),
    verdicts: Sequence[Mapping[str, Any]] = (),
    slices: Sequence[Mapping[str, Any]] = (),
    figures: Sequence[Mapping[str, Any]] = (),
    leakage: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the report.

    Args:
        path: The HTML file to write.
        comparison: Prompts, arms and answers.
        headline: The verdict in plain words; a sentence or two.
        scores: One row a prompt and arm: `prompt_id`, `arm`, and any of the metrics that `cards.badges` names. None
            and NaN mean that a metric is not known.
        verdicts: One row a metric: `metric`, `label`, `base`, `tuned`, `difference`, `low`, `high`, `p`, `p_holm`, `n`,
            `text`, and `direction`: the outcome in a word, as `verdicts.Verdict.outcome` has it. Numbers may be None.
        slices: One row a category and metric: `category`, `metric`, `n`, `difference`, `low`, `high`, `text`.
        figures: Pictures with a `title`, a `caption` that says what they mean, and `svg` (text) or `png` (bytes).
        leakage: The nearest training example of a prompt: `prompt_id`, `text`, and perhaps `score` (0 to 1).

    Returns:
        The path written.

    Raises:
        EvaluationError: There are fewer than two arms, a row lacks what names it, or a figure has no picture.

    Example:
        >>> write_report("report.html", comparison, headline="Inconclusive: 8 prompts cannot tell.")  # doctest: +SKIP
        PosixPath('report.html')
    """
    _check_rows("scores", scores, ("prompt_id", "arm"))
    _check_rows("verdicts", verdicts, ("label",))
    _check_rows("slices", slices, ("category", "metric"))
    _check_rows("leakage", leakage, ("prompt_id",))
    pair = headline_arms(comparison)
    gains = tuning_gains(comparison, scores, pair)
    cards = prompt_cards(comparison, pair=pair, scores=scores, gains=gains, leakage=leakage)
    context = {
        "info": comparison.info,
        "created": _day(comparison.info.created),
        "pair": pair,
        "headline": headline,
        "counts": _counts(comparison, cards),
        "verdicts": [verdict_row(row) for row in verdicts],
        "ladder": ladder(comparison, scores, pair),
        "slices": [slice_row(row) for row in slices],
        "figures": [_figure(row) for row in figures],
        "gains": gains,
        "hurt": _hurt(comparison, cards, gains),
        "categories": sorted({card["category"] for card in cards if card["category"]}),
        "cards": cards,
        "details": _details(comparison),
    }
    page = render_page("report.html", styles=("theme.css", "report.css"), script="report.js", context=context)
    return write_page(path, page)


def _check_rows(name: str, rows: Sequence[Mapping[str, Any]], needed: tuple[str, ...]) -> None:
    for place, row in enumerate(rows):
        for key in needed:
            if key not in row:
                raise EvaluationError(f"{name}[{place}]", f"the keys {', '.join(needed)}", sorted(row), f"Add `{key}`.")


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


def _figure(row: Mapping[str, Any]) -> dict[str, str]:
    """Embed a picture as a data URL: inside `img` neither its scripts run nor do its ids clash with another's."""
    picture, kind = (row["svg"], "svg+xml") if row.get("svg") else (row.get("png"), "png")
    if not picture:
        raise EvaluationError("figures", "`svg` text or `png` bytes", sorted(row), "Pass the picture with its title.")
    raw = picture.encode("utf-8") if isinstance(picture, str) else picture
    source = f"data:image/{kind};base64,{base64.b64encode(raw).decode('ascii')}"
    return {"title": row.get("title", ""), "caption": row.get("caption", ""), "source": source}


def _hurt(comparison: Comparison, cards: Sequence[Mapping[str, Any]], gains: Gains | None) -> list[dict[str, str]]:
    if gains is None:
        return []
    anchors = {card["id"]: card["anchor"] for card in cards}
    texts = {prompt.id: prompt.text for prompt in comparison.prompts}
    return [
        {
            "anchor": anchors.get(name, ""),
            "title": _short(texts.get(name, name)),
            "change": format_number(gains.values[name], sign=True),
        }
        for name in gains.worst()
    ]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "…"


def _details(comparison: Comparison) -> list[tuple[str, str]]:
    info = comparison.info
    named = [
        ("Arms", "\n".join(f"{arm.label} ({arm.name})" for arm in comparison.arms)),
        ("System prompt", info.system_prompt or "none"),
        ("Length limit", f"{info.max_new_tokens} tokens"),
        ("Seed", str(info.seed)),
    ]
    return named + [(name, str(value)) for name, value in info.details.items()]
