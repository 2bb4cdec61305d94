"""What the notebook shows of a comparison: pairs of answers side by side, and tables by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from helpers.display.tables import Shown, show_table
from helpers.evaluation.metrics.catalogue import METRICS
from helpers.evaluation.metrics.gains import tuning_gains
from helpers.evaluation.metrics.reference import reference_metrics
from helpers.evaluation.overview import Overview
from helpers.evaluation.pages import visible
from helpers.evaluation.records import Arm, Comparison, ReferenceScore
from helpers.evaluation.report.cards import prompt_cards

__all__ = ["answer_table", "pick_ids", "reference_table", "show_pairs", "show_verdicts"]

_SHOWN = ("words", "list_items", "items_met", "rep_4", "truncated", "empty", "rouge_l", "rouge_lsum", "chrf")
_SHARES = ("yes/no", "share")
_COLOURS = {"base": "#D55E00", "tuned": "#0072B2"}
_CARD = "border:1px solid #8886;border-radius:8px;padding:.7em 1em;margin:.8em 0"
_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20em),1fr));gap:1em;margin-top:.6em"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;line-height:1.5"


def show_pairs(comparison: Comparison, overview: Overview, ids: Sequence[str]) -> Shown:
    """Show pairs of answers side by side, with the words marked that only one of them has.

    Args:
        comparison: Prompts and answers.
        overview: Its table, for the badges.
        ids: Prompts to show, in this order.

    Returns:
        One card a prompt; every text is escaped.
    """
    pair = overview.base, overview.tuned
    gains = tuning_gains(comparison, overview.table, pair)
    cards = {c["id"]: c for c in prompt_cards(comparison, pair=pair, scores=overview.table, gains=gains)}
    references = {prompt.id: prompt.reference for prompt in comparison.prompts}
    chosen = [(cards[name], references[name]) for name in ids if name in cards]
    html = "".join(_card(card, reference) for card, reference in chosen)
    return Shown(html, "\n\n".join(_plain(card) for card, _ in chosen))


def _card(card: Mapping[str, Any], reference: str | None) -> str:
    head = (
        f"<b>{_safe(card['text'])}</b> <small>({_safe(card['category'] or card['id'])}; {_safe(card['note'])})</small>"
    )
    sides = "".join(_side(side) for side in card["pair"])
    foot = (
        f"<details><summary>reference</summary><div style='{_TEXT}'>{_safe(reference)}</div></details>"
        if reference
        else ""
    )
    return f'<div style="{_CARD}"><div style="{_TEXT}">{head}</div><div style="{_GRID}">{sides}</div>{foot}</div>'


def _side(side: Mapping[str, Any]) -> str:
    color = _COLOURS[side["role"]]
    line = "dotted" if side["role"] == "base" else "solid"
    mark = f"background:{color}22;text-decoration:underline {line} 2px {color};color:inherit"
    spans = (f'<span style="{mark}">{_safe(s.text)}</span>' if s.only else _safe(s.text) for s in side["spans"])
    badges = " · ".join(_safe(badge["text"]) for badge in side["badges"])
    said = "".join(spans) if not side["blank"] else f"<i>{_safe(side['blank'])}</i>"
    head = f'<b style="color:{color}">{_safe(side["label"])}</b> <small>{badges}</small>'
    body = f'<div dir="auto" style="{_TEXT}">{said}</div>'
    return f'<div style="border-top:3px solid {color};padding-top:.4em">{head}{body}</div>'


def _safe(text: str) -> str:
    return escape(visible(text))


def _plain(card: Mapping[str, Any]) -> str:
    """Lay out a card for a terminal."""
    sides = [
        f"  {side['label']} ({', '.join(badge['text'] for badge in side['badges'])}):\n    "
        + (" ".join("".join(s.text for s in side["spans"]).split())[:200] or side["blank"])
        for side in card["pair"]
    ]
    return "\n".join([f"{card['id']}: {' '.join(card['text'].split())[:110]}", *sides])


def pick_ids(comparison: Comparison, count: int) -> list[str]:
    """Choose prompts to show, spread evenly over all that were answered.

    Args:
        comparison: Prompts and answers.
        count: How many at most.
    """
    answered = {answer.prompt_id for answer in comparison.answers}
    ids = [prompt.id for prompt in comparison.prompts if prompt.id in answered]
    step = max(1, -(-len(ids) // count)) if count else 1
    return ids[::step][:count]


def reference_table(scores: Sequence[ReferenceScore], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return what the good answers cost each arm: a row an arm.

    Args:
        scores: Reference scores of all arms.
        arms: The arms, in order.

    Returns:
        NLL in nats a token with and without EOS, perplexity, and bits a byte, over all answers together.
    """
    rows = []
    for arm in arms:
        if own := [score for score in scores if score.arm == arm.name]:
            found = reference_metrics(own)
            rows.append(
                {
                    "arm": arm.label,
                    "good answers": found.prompts,
                    "NLL, nats/token": found.nll / found.tokens if found.tokens else None,
                    "NLL with EOS": (found.nll + found.eos_nll) / (found.tokens + found.prompts),
                    "perplexity": found.perplexity(),
                    "bits per byte": found.bits_per_byte(),
                }
            )
    return rows


def answer_table(overview: Overview, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return how the arms' answers are built, and how near to the references they are: a row a metric.

    Args:
        overview: Its table.
        arms: The arms, in order.

    Returns:
        Means over the prompts that have the metric; "-" where none has.
    """
    rows = []
    for name in _SHOWN:
        metric = METRICS[name]
        row: dict[str, Any] = {"metric": metric.label}
        for arm in arms:
            known = [float(r[name]) for r in overview.table if r["arm"] == arm.name and r[name] is not None]
            mean = sum(known) / len(known) if known else None
            percent = metric.unit in _SHARES and name not in ("rouge_l", "rouge_lsum")
            row[arm.label] = (
                "-" if mean is None else f"{mean:.0%}".replace("%", " %") if percent else f"{mean:#.3g}".rstrip(".")
            )
        rows.append(row)
    return rows


def show_verdicts(overview: Overview) -> Shown:
    """Show all verdicts, each in a word and in a paragraph.

    Args:
        overview: What was judged.
    """
    rows = [
        {"measure": METRICS[n].label, "verdict": v.outcome, "in words": v.text.partition(". ")[2] or v.text}
        for n, v in overview.verdicts.items()  # the first sentence says what stands in the other two columns
    ]
    return show_table(rows, limit=900)
