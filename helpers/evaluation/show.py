"""What the notebook shows of a comparison: pairs of answers side by side, pictures, and tables by arm."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from helpers.core.text import visible
from helpers.display.style import BASE, TUNED, Drawing
from helpers.display.tables import Shown
from helpers.evaluation.overview import Overview
from helpers.evaluation.records import Arm, Comparison, ReferenceScore
from helpers.evaluation.report.cards import prompt_cards
from helpers.evaluation.report.page import measure_rows

__all__ = ["measure_table", "pick_ids", "reference_table", "show_pairs", "show_picture"]

_COLOURS = {"base": BASE, "tuned": TUNED}
_CARD = "border:1px solid #8886;border-radius:8px;padding:.7em 1em;margin:.8em 0"
_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20em),1fr));gap:1em;margin-top:.6em"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;line-height:1.5"
_MISSING = {
    "differences": "Nothing was scored in both arms, so there are no differences to draw.",
    "categories": "The questions have fewer than two categories, so there is nothing to tell apart.",
    "ladder": "A ladder needs three arms or more, and references. Set arms to all four.",
    "lengths": "Length can be held against votes or ROUGE-L only, and there are neither: raise answered_rows.",
    "token_shift": "No answer was ranked.",
}


def show_pairs(comparison: Comparison, overview: Overview, ids: Sequence[str]) -> Shown:
    """Show pairs of answers side by side, with the words marked that only one of them has."""
    cards = {card["id"]: card for card in prompt_cards(comparison, overview)}
    chosen = [cards[name] for name in ids if name in cards]
    return Shown("".join(map(_card, chosen)), "\n\n".join(map(_plain, chosen)))


def _card(card: Mapping[str, Any]) -> str:
    head = (
        f"<b>{_safe(card['text'])}</b> <small>({_safe(card['category'] or card['id'])}; {_safe(card['note'])})</small>"
    )
    sides = "".join(_side(side) for side in card["pair"])
    foot = ""
    if card["reference"]:
        foot = f"<details><summary>reference</summary><div style='{_TEXT}'>{_safe(card['reference'])}</div></details>"
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
    return visible("\n".join([f"{card['id']}: {' '.join(card['text'].split())[:110]}", *sides]))


def pick_ids(comparison: Comparison, count: int) -> list[str]:
    """Choose at most `count` prompts to show, evenly over all that were answered."""
    answered = {answer.prompt_id for answer in comparison.answers}
    ids = [prompt.id for prompt in comparison.prompts if prompt.id in answered]
    step = max(1, -(-len(ids) // count)) if count else 1
    return ids[::step][:count]


def show_picture(pictures: Mapping[str, Drawing], name: str, folder: Path) -> Shown:
    """Save a picture as PNG in a folder and show it with its caption, or say why there is none."""
    if name not in pictures:
        return Shown(f"<p>{_MISSING[name]}</p>", _MISSING[name])
    drawing = pictures[name]
    encoded = base64.b64encode(drawing.save(folder).read_bytes()).decode("ascii")
    title, caption = visible(drawing.title), visible(drawing.caption)
    image = f'<img alt="{escape(title)}" style="max-width:min(100%,34em)" src="data:image/png;base64,{encoded}">'
    stop = "" if title.endswith(("?", "…")) else "."
    html = f'<p><b>{escape(title)}</b></p>{image}<p style="max-width:44em">{escape(caption)}</p>'
    return Shown(html, f"{title}{stop} {caption}")


def reference_table(scores: Sequence[ReferenceScore], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return how likely the good answers are under each arm, over all their tokens together: a row an arm.

    Perplexity is exp(NLL with EOS a token); bits per byte leave the EOS out, so that tokenizers can be compared.
    """
    rows = []
    for arm in arms:
        own = [score for score in scores if score.arm == arm.name]
        if not own:
            continue
        nll, tokens = math.fsum(score.nll for score in own), sum(score.tokens for score in own)
        with_eos = (nll + math.fsum(score.eos_nll for score in own)) / (tokens + len(own))
        size = sum(score.utf8_bytes for score in own)
        rows.append(
            {
                "arm": arm.label,
                "good answers": len(own),
                "NLL with EOS, nats/token": with_eos,
                "NLL of the words": nll / tokens if tokens else None,
                "perplexity": math.exp(min(with_eos, 700)),
                "bits per byte": nll / math.log(2) / size if size else None,
            }
        )
    return rows


def measure_table(overview: Overview, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return the mean of each measure in every arm, and the paired difference of the two headline arms: a row each."""
    return [
        {"measure": row["label"], "what it is": row["definition"]}
        | dict(zip((arm.label for arm in arms), row["cells"], strict=True))
        | {"difference": row["difference"], "95 % interval": row["interval"], "rows": row["n"]}
        for row in measure_rows(overview, arms)
    ]
