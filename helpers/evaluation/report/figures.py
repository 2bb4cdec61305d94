"""The pictures of a comparison; each comes with a caption that says how to read it and what it says here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helpers.core.paired import Estimate
from helpers.core.text import format_number
from helpers.display.style import (
    BASE,
    BETTER,
    INK,
    NEITHER,
    SHIFTED,
    SOFT,
    TUNED,
    WORSE,
    Drawing,
    new_figure,
    plain_text,
)
from helpers.evaluation.metrics.table import METRICS, estimate_difference, means_by_arm, paired_differences
from helpers.evaluation.metrics.token_shift import ShiftedToken, describe_shift, shift_of
from helpers.evaluation.overview import JUDGED, Overview
from helpers.evaluation.records import Comparison
from helpers.evaluation.report.page import FEWEST_FOR_INTERVAL, ordered_arms
from helpers.evaluation.votes.tally import Reveal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_all", "draw_shift"]

_COLUMNS, _LINES = 40, 18  # characters in a line of the token picture, and lines, that a phone can show
_VOTES = {"win": 1.0, "tie": 0.0, "loss": -1.0}


def draw_all(comparison: Comparison, overview: Overview, votes: Reveal | None = None) -> dict[str, Drawing]:
    """Draw everything for which there are data: "differences", "categories", "ladder" and "lengths", by name.

    Args:
        votes: Blind votes, which then take the place of ROUGE-L beside length.
    """
    found: list[Drawing | None] = []
    if name := next((name for name in (JUDGED, "rouge_l") if name in overview.pairs), None):
        found += [draw_differences(overview, name), _draw_categories(overview, name)]
    found += [draw_ladder(comparison, overview), draw_lengths(overview, votes)]
    return {picture.name: picture for picture in found if picture}


def draw_differences(overview: Overview, name: str) -> Drawing:
    """Draw a measure's difference for every prompt, in order of size, over their mean with its interval."""
    found = overview.estimates[name]
    values = sorted(overview.pairs[name]["difference"])
    figure, axes = new_figure(min(1.7 + 0.13 * len(values), 6.5))
    for side, color, marker in ((True, BETTER, "o"), (False, WORSE, "v"), (None, NEITHER, "s")):
        places = [i for i, value in enumerate(values) if _is_better(value, name) is side]
        axes.hlines(places, 0, [values[i] for i in places], color=color, linewidth=1.3, alpha=0.55)
        axes.plot([values[i] for i in places], places, marker, color=color, markersize=4.5, linestyle="")
    mean_at = -max(1.6, 0.09 * len(values))
    _interval(axes, mean_at, found)
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set_yticks([mean_at, (len(values) - 1) / 2], ["mean", f"{len(values)} rows"])
    axes.set_xlabel(_axis(overview, name))
    better, worse = _sides(found, name)
    equal = f", {found.equal()} equal" * bool(found.equal())
    caption = f"Each line is one row: {better} better (circles), {worse} worse (triangles){equal}. "
    caption += f"The diamond is the mean, {format_number(found.mean, sign=True)}"
    if found.low is None:
        caption += f"; there is no interval: {found.why_no_interval}."
    else:
        caption += f", and the bar its 95 % interval, {found.interval()}. Look for single rows that carry the mean."
    return Drawing("differences", f"{METRICS[name].label}, row by row", caption, figure)


def _is_better(value: float, name: str) -> bool | None:
    direction = METRICS[name].higher_is_better
    return None if value == 0 or direction is None else (value > 0) == direction


def _interval(axes: Axes, place: float, found: Estimate) -> None:
    """Draw a mean with its interval, if it has one."""
    if found.low is not None and found.high is not None:
        axes.hlines(place, found.low, found.high, color=INK, linewidth=3.5)
    axes.plot([found.mean], [place], "D", color=INK, markersize=7)


def _axis(overview: Overview, name: str) -> str:
    """Name an axis of differences."""
    metric = METRICS[name]
    unit = f" ({metric.unit})" if metric.unit and metric.unit != "yes/no" else ""
    side = {True: "right is better", False: "left is better", None: "neither side is better"}[metric.higher_is_better]
    return f"{metric.label}{unit}\n{overview.tuned.name} minus {overview.base.name}: {side}"


def _sides(found: Estimate, name: str) -> tuple[int, int]:
    """Return how many rows are better and how many worse."""
    return (found.above, found.below) if METRICS[name].higher_is_better else (found.below, found.above)


def _draw_categories(overview: Overview, name: str) -> Drawing | None:
    """Draw one measure for each category, if there are two: an interval for six prompts or more, else counts."""
    pairs = overview.pairs[name]
    groups = {label: rows for label, rows in pairs.groupby("category", sort=False) if label}
    if len(groups) < 2:
        return None
    figure, axes = new_figure(1.1 + 0.5 * len(groups))
    for place, rows in enumerate(groups.values()):
        found = estimate_difference(rows)
        if found is not None and len(rows) >= FEWEST_FOR_INTERVAL:
            _interval(axes, place, found)
        elif found is not None:
            better, worse = _sides(found, name)
            equal = f", equal {found.equal()}" * bool(found.equal())
            axes.text(0, place, f"  better {better}, worse {worse}{equal}", va="center", color=SOFT, fontsize=10)
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set_yticks(range(len(groups)), [f"{plain_text(label, 24)} ({len(rows)})" for label, rows in groups.items()])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel(_axis(overview, name))
    few = sum(len(rows) < FEWEST_FOR_INTERVAL for rows in groups.values())
    caption = "The number of rows is after each name; diamond and bar are the mean and its 95 % interval."
    caption += f" {few} with fewer than six rows show counts only." if few else ""
    caption += " Among many categories some differ by chance: take them as questions, not as answers."
    return Drawing("categories", "By category", caption, figure)


def draw_ladder(comparison: Comparison, overview: Overview) -> Drawing | None:
    """Draw how far each way of asking gets, every arm against the base; None for two arms or without references."""
    arms = ordered_arms(comparison)
    if len(arms) < 3 or JUDGED not in overview.pairs:
        return None
    means = means_by_arm(overview.table).loc[JUDGED]
    figure, axes = new_figure(1.2 + 0.5 * len(arms))
    for place, arm in enumerate(arms):
        color = {overview.base.name: BASE, overview.tuned.name: TUNED}.get(arm.name, NEITHER)
        found = None if arm == overview.base else _against(overview, arm.name, overview.base.name)
        if found is not None and found.low is not None and found.high is not None:
            base = means[overview.base.name]
            axes.hlines(place, base + found.low, base + found.high, color=color, linewidth=3.5)
        axes.plot([means[arm.name]], [place], "D" if arm.adapter else "o", color=color, markersize=8)
        axes.annotate(
            f"{means[arm.name]:.2f}",
            (means[arm.name], place),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # the base's number stands on its line
        )
    axes.axvline(means[overview.base.name], color=SOFT, linewidth=1)
    axes.set_yticks(range(len(arms)), [plain_text(arm.label, 24) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.75)
    axes.margins(x=0.12)
    axes.set_xlabel("NLL of the references with EOS\n(nats/token; left is better)")
    caption = "The vertical line is the base model with its template; each bar is the 95 % interval of the difference."
    return Drawing(
        "ladder", "How much does prompting alone give?", f"{caption} {_examples_words(overview)}".strip(), figure
    )


def _against(overview: Overview, a: str, b: str) -> Estimate | None:
    return estimate_difference(paired_differences(overview.table, JUDGED, a, b))


def _examples_words(overview: Overview) -> str:
    """Compare the adapter with examples in the prompt, by their own paired interval."""
    found = _against(overview, overview.tuned.name, "base_few_shot")
    if found is None:
        return ""
    against = f"tuned minus examples {format_number(found.mean, sign=True)}"
    if found.low is not None:
        against += f", {found.interval()}"
    if found.is_below(0):
        return f"The adapter gives more than examples in the prompt ({against})."
    if found.is_above(0):
        return f"Examples in the prompt give more than the adapter, and need no training ({against})."
    why = found.why_no_verdict or "the interval contains zero"
    return f"These rows cannot tell which gives more, the adapter or examples in the prompt: {why} ({against})."


def draw_lengths(overview: Overview, votes: Reveal | None = None) -> Drawing | None:
    """Draw each prompt's gain over the difference in length: are answers only better for being longer?

    The gain is who won the votes, or without votes ROUGE-L; None where no answer has either.
    """
    pairs = overview.pairs.get("words")
    if votes is not None:
        gains = {name: _VOTES[outcome] for name, outcome in votes.merged_outcomes.items()}
    else:
        gains = overview.pairs["rouge_l"]["difference"].to_dict() if "rouge_l" in overview.pairs else {}
    names = [] if pairs is None else [name for name in pairs.index if name in gains]
    if pairs is None or not names:
        return None
    longer = pairs.loc[names, "difference"].tolist()
    values = [gains[name] for name in names]
    figure, axes = new_figure(3.1, grid="both")
    for sign, color, marker in ((1, BETTER, "o"), (-1, WORSE, "v"), (0, NEITHER, "s")):
        chosen = [i for i, value in enumerate(values) if _sign(value) == sign]
        x, y = [longer[i] for i in chosen], [values[i] for i in chosen]
        axes.plot(x, y, marker, color=color, markersize=6, alpha=0.8, linestyle="")
    axes.axhline(0, color=SOFT, linewidth=1)
    axes.axvline(0, color=SOFT, linewidth=1)
    if votes is not None:
        axes.set_yticks([-1, 0, 1], ["lost", "tie", "won"])
        axes.set_ylim(-1.4, 1.4)
    axes.set_xlabel(f"words: {overview.tuned.name} minus {overview.base.name}")
    axes.set_ylabel("blind vote" if votes is not None else f"ROUGE-L: {overview.tuned.name} minus {overview.base.name}")
    gained = "were preferred" if votes is not None else "have a higher ROUGE-L than the base's"
    caption = _lengths_caption(longer, values, overview.tuned.name, gained)
    return Drawing("lengths", "Is longer better?", caption, figure)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _lengths_caption(longer: Sequence[float], gains: Sequence[float], name: str, gained: str) -> str:
    """Count gains among longer and among shorter answers."""
    counts = []
    for word, sign in (("longer", 1), ("shorter", -1)):
        found = [gain for words, gain in zip(longer, gains, strict=True) if _sign(words) == sign]
        better = sum(gain > 0 for gain in found)
        counts.append(f"{better} of {len(found)} {word} ones")
    text = f"Each mark is one prompt; right of the line the {name} answer is longer."
    text += f" Of the {name} answers, {counts[0]} and {counts[1]} {gained}."
    return f"{text} If gains are only on one side, length may be the cause: compare answers of similar length."


def lay_out(tokens: Sequence[ShiftedToken], columns: int = _COLUMNS) -> list[tuple[int, int, str, str]]:
    """Place tokens on a grid of characters, breaking lines between tokens.

    Returns:
        (line, column, text, class) of each piece that shows; white space at a line's start is dropped.
    """
    placed, line, column = [], 0, 0
    for token in tokens:
        breaks = token.text.count("\n")
        text = plain_text(token.text).replace(r"\$", "$")
        space = bool(token.text) and token.text[0].isspace() and column > 0 and not breaks
        if breaks and column:
            line, column = line + min(breaks, 2), 0
        text = text[:columns]
        hangs = 2 if not any(c.isalnum() for c in text) else 0  # a full stop may stick out
        if column + space + len(text) > columns + hangs:
            line, column, space = line + 1, 0, False
        if text:
            placed.append((line, column + space, text, shift_of(token.rank)))
        column += space + len(text)
    return placed


def draw_shift(tokens: Sequence[ShiftedToken], title: str) -> Drawing:
    """Draw an answer, or its beginning, with the tokens marked that the base model would not have chosen.

    Args:
        title: The prompt, in a few words.
    """
    placed = [each for each in lay_out(tokens) if each[0] < _LINES]
    lines = max((line for line, *_ in placed), default=0) + 1
    figure, axes = new_figure(0.3 + 0.27 * (lines + 2), width=4.4, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, _COLUMNS + 2)
    axes.set_ylim(lines + 1.6, -0.6)
    for line, column, text, shift in placed:
        _mark(axes, line, column, text, shift)
    for place, (shift, words) in enumerate((("marginal", "rank 2-3"), ("shifted", "rank 4 and beyond"))):
        _mark(axes, lines + 0.9, 13 * place, words, shift)
    if not placed:
        axes.text(0, 0, "(the answer is empty)", va="center", family="DejaVu Sans Mono", fontsize=11.8)
    text = "The base model reads the answer. What it would not have written itself is marked."
    cut = " The picture shows the beginning." if lines >= _LINES else ""
    caption = f"{text} {describe_shift(tokens)}{cut}"
    return Drawing("token_shift", f"Token shift: {plain_text(title, 60)}", caption, figure)


def _mark(axes: Axes, line: float, column: int, text: str, shift: str) -> None:
    """Write one token on its background; shifted ones are underlined too."""
    from matplotlib.patches import Rectangle

    if shift in SHIFTED:
        box = Rectangle((column, line - 0.42), len(text), 0.84, facecolor=SHIFTED[shift], linewidth=0)
        axes.add_patch(box)
    if shift == "shifted":
        axes.plot([column, column + len(text)], [line + 0.42] * 2, color=INK, linewidth=1.6, solid_capstyle="butt")
    style: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": 11.8, "color": INK, "parse_math": False}
    for offset, character in enumerate(text):
        axes.text(column + offset + 0.5, line, character, va="center", ha="center", **style)
