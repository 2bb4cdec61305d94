"""Which pictures a comparison allows, in the order of the report."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from helpers.display.style import Drawing
from helpers.display.tables import Shown
from helpers.evaluation.metrics.table import PairedDifferences, paired
from helpers.evaluation.overview import Overview, category_summaries
from helpers.evaluation.records import Arm, Comparison
from helpers.evaluation.report.figures import draw_categories, draw_differences, draw_ladder, draw_lengths
from helpers.evaluation.teaching import length_pairs
from helpers.evaluation.votes.tally import Reveal

__all__ = ["draw_all", "ladder", "show_picture"]

_MISSING = {
    "differences": "Nothing was scored in both arms, so there are no differences to draw.",
    "categories": "The questions have fewer than two categories, so there is nothing to tell apart.",
    "ladder": "A ladder needs three arms or more, and references. Set arms to all four.",
    "lengths": "Length can be held against votes or ROUGE-L only, and there are neither: answer some references.",
    "token_shift": "No answer was ranked.",
}
_ORDER = ("base_bare", "base", "base_few_shot", "tuned")
_VOTES = {"win": 1.0, "tie": 0.0, "loss": -1.0}


def draw_all(
    comparison: Comparison,
    overview: Overview,
    *,
    votes: Reveal | None = None,
) -> dict[str, Drawing]:
    """Draw everything that can be drawn.

    Args:
        comparison: What was compared.
        overview: What came of it.
        votes: Blind votes, which then take the place of ROUGE-L beside length.

    Returns:
        Pictures by name: "differences", "categories", "ladder", "lengths"; without data, there is none.
    """
    found: list[Drawing] = []
    if first := next(iter(overview.differences), None):
        each = overview.differences[first]
        found.append(draw_differences(each, overview.summaries[first]))
        if len(categories := category_summaries(overview, first)) > 1:
            found.append(draw_categories(categories, each))
    found += [picture for picture in (ladder(comparison, overview), _lengths(overview, votes)) if picture]
    return {picture.name: picture for picture in found}


def show_picture(pictures: Mapping[str, Drawing], name: str, folder: Path) -> Shown:
    """Save a picture as PNG and show it with its caption, or say why there is none.

    Args:
        pictures: From `draw_all`.
        name: Which.
        folder: Where the PNG goes.

    Returns:
        The picture over its caption; in a log, the caption alone.
    """
    if name not in pictures:
        return Shown(f"<p>{_MISSING[name]}</p>", _MISSING[name])
    drawing = pictures[name]
    picture = base64.b64encode(drawing.save(folder).path.read_bytes()).decode("ascii")
    image = (
        f'<img alt="{escape(drawing.title)}" style="max-width:min(100%,34em)" src="data:image/png;base64,{picture}">'
    )
    caption = f'<p style="max-width:44em">{escape(drawing.caption)}</p>'
    stop = "" if drawing.title.endswith(("?", "…")) else "."
    return Shown(f"<p><b>{escape(drawing.title)}</b></p>{image}{caption}", f"{drawing.title}{stop} {drawing.caption}")


def ladder(comparison: Comparison, overview: Overview) -> Drawing | None:
    """Draw the ladder of arms, or nothing with fewer than three arms or without references.

    Args:
        comparison: Its arms.
        overview: Its table of scores.
    """
    names = [name for name in _ORDER if any(arm.name == name for arm in comparison.arms)]
    if len(names) < 3 or "nll" not in overview.differences:
        return None
    others = [name for name in names if name != "base"]
    differences = {name: paired(comparison, "nll", name, "base", table=overview.table) for name in others}
    means = {name: _mean(overview, name, differences["tuned"].prompt_ids) for name in names}
    return draw_ladder(means, differences, _labels(comparison.arms))


def _mean(overview: Overview, arm: str, prompts: Sequence[str]) -> float:
    """Return an arm's mean NLL over some prompts."""
    wanted = set(prompts)
    found = [float(row["nll"]) for row in overview.table if row["arm"] == arm and row["prompt_id"] in wanted]
    return sum(found) / len(found)


def _labels(arms: Sequence[Arm]) -> dict[str, str]:
    return {arm.name: arm.label for arm in arms}


def _lengths(overview: Overview, votes: Reveal | None) -> Drawing | None:
    """Draw length against votes if there are any, else against ROUGE-L."""
    pairs = length_pairs(overview)
    name = "tuned" if overview.tuned.adapter else overview.tuned.name
    if votes is not None:
        gains = {name: _VOTES[outcome] for name, outcome in votes.merged_outcomes.items()}
        return draw_lengths(pairs, gains, gain_label="blind vote", are_votes=True, name=name)
    each: PairedDifferences | None = overview.differences.get("rouge_l")
    if each is None:
        return None
    gains = dict(zip(each.prompt_ids, each.differences, strict=True))
    return draw_lengths(pairs, gains, gain_label=f"ROUGE-L: {name} minus base", name=name)
