"""The pictures of a comparison; each comes with a caption that says how to read it and what it says here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.core.text import format_number
from helpers.display.style import BASE, BETTER, INK, SOFT, WORSE, Drawing, new_figure, plain_text
from helpers.evaluation.metrics.catalogue import METRICS
from helpers.evaluation.metrics.table import PairedDifferences
from helpers.evaluation.stats.summaries import PairedSummary
from helpers.evaluation.stats.tests import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_categories", "draw_differences", "draw_ladder", "draw_lengths"]


def draw_differences(differences: PairedDifferences, summary: PairedSummary) -> Drawing:
    """Draw the difference of every prompt, in order of size, over their mean with its interval.

    Args:
        differences: One metric's paired differences.
        summary: Their summary.

    Returns:
        The picture.
    """
    values = sorted(differences.differences)
    figure, axes = new_figure(min(1.7 + 0.13 * len(values), 6.5))
    for better, color, marker in ((True, BETTER, "o"), (False, WORSE, "v"), (None, BASE, "s")):
        places = [i for i, value in enumerate(values) if _is_better(value, summary) is better]
        axes.hlines(places, 0, [values[i] for i in places], color=color, linewidth=1.3, alpha=0.55)
        axes.plot([values[i] for i in places], places, marker, color=color, markersize=4.5, linestyle="")
    mean_at = -max(1.6, 0.09 * len(values))
    _interval(axes, mean_at, summary)
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set_yticks([mean_at, (len(values) - 1) / 2], ["mean", f"{len(values)} prompts"])
    axes.set_xlabel(_axis(differences))
    return Drawing("differences", f"{summary.metric}, prompt by prompt", _differences_caption(summary), figure)


def _is_better(value: float, summary: PairedSummary) -> bool | None:
    if value == 0 or summary.higher_is_better is None:
        return None
    return (value > 0) == summary.higher_is_better


def _interval(axes: Axes, place: float, summary: PairedSummary, *, color: str = INK) -> None:
    """Draw a mean with its interval, if it has one."""
    interval = summary.interval
    if interval is not None and interval.known():
        axes.hlines(place, interval.low, interval.high, color=color, linewidth=3.5)
    if summary.mean is not None:
        axes.plot([summary.mean], [place], "D", color=color, markersize=7)


def _axis(differences: PairedDifferences) -> str:
    """Name an axis of differences."""
    metric = METRICS[differences.metric]
    unit = f" ({metric.unit})" if metric.unit and metric.unit != "yes/no" else ""
    side = {True: "right is better", False: "left is better", None: "neither side is better"}[metric.higher_is_better]
    return f"{metric.label}{unit}\n{differences.a} minus {differences.b}: {side}"


def _differences_caption(summary: PairedSummary) -> str:
    better, worse = (summary.higher, summary.lower) if summary.higher_is_better else (summary.lower, summary.higher)
    words = ("above", "below") if summary.higher_is_better is None else ("better (circles)", "worse (triangles)")
    better, worse = (summary.higher, summary.lower) if summary.higher_is_better is None else (better, worse)
    counts = f"Each line is one prompt: {better} {words[0]}, {worse} {words[1]}"
    counts += f", {summary.ties} equal." if summary.ties else "."
    return f"{counts} {_interval_words(summary)}"


def _interval_words(summary: PairedSummary) -> str:
    """Say what a mean and its interval mean."""
    interval = summary.interval
    mean = f"The diamond is the mean, {format_number(summary.mean, sign=True)}"
    if interval is None or not interval.known():
        return f"{mean}; there is no interval: {interval.note if interval else 'too few prompts.'}"
    ends = f"{format_number(interval.low, sign=True)} to {format_number(interval.high, sign=True)}"
    says = (
        "does not touch zero, so chance alone is an unlikely cause"
        if interval.excludes(0)
        else "holds zero: no verdict"
    )
    return f"{mean}, and the bar its 95 % interval, {ends}. It {says}."


def draw_categories(summaries: Mapping[str, PairedSummary], differences: PairedDifferences) -> Drawing:
    """Draw one metric for each category: an interval where there are six prompts or more, else counts.

    Args:
        summaries: By category, from `helpers.evaluation.overview.category_summaries`.
        differences: The metric's differences, which name its axis.

    Returns:
        The picture.

    Raises:
        EvaluationError: There is no category.
    """
    if not summaries:
        raise EvaluationError("categories", "at least one category", [], "Give the prompts categories.")
    figure, axes = new_figure(1.1 + 0.5 * len(summaries))
    for place, summary in enumerate(summaries.values()):
        decided = summary.interval is not None and summary.interval.excludes(0)
        better = _is_better(summary.mean or 0.0, summary)
        _interval(axes, place, summary, color=(BETTER if better else WORSE) if decided else BASE)
        if summary.mean is None:
            axes.text(0, place, f"  {_counts(summary)}", va="center", color=SOFT, fontsize=10)
    axes.axvline(0, color=SOFT, linewidth=1)
    names = [f"{plain_text(name, 24)} ({each.n})" for name, each in summaries.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(_axis(differences))
    return Drawing("categories", "By category", _categories_caption(summaries), figure)


def _counts(summary: PairedSummary) -> str:
    better, worse = (summary.higher, summary.lower) if summary.higher_is_better else (summary.lower, summary.higher)
    return f"better {better}, worse {worse}" + (f", equal {summary.ties}" if summary.ties else "")


def _categories_caption(summaries: Mapping[str, PairedSummary]) -> str:
    decided = [name for name, each in summaries.items() if each.interval is not None and each.interval.excludes(0)]
    few = sum(each.interval is None for each in summaries.values())
    text = "The number of prompts stands behind each name; diamond and bar are the mean and its 95 % interval. "
    text += f"Clear of zero: {', '.join(decided)}." if decided else "No category is clear of zero."
    text += f" {few} with fewer than six prompts show counts only." if few else ""
    return f"{text} Looking at many categories finds differences by chance: take them as questions, not as answers."


def draw_ladder(
    means: Mapping[str, float], differences: Mapping[str, PairedDifferences], labels: Mapping[str, str]
) -> Drawing:
    """Draw how far each way of asking gets: every arm against the base with its template.

    Args:
        means: Mean NLL of the good answers by arm, in nats a token, in the order of drawing; "base" is among them.
        differences: For each other arm, its paired differences to "base".
        labels: What reports call the arms.

    Returns:
        The picture.

    Raises:
        EvaluationError: "base" is missing, or is alone.
    """
    if "base" not in means or len(means) < 2:
        raise EvaluationError("arms", "base and at least one other arm", list(means), "Score more arms.")
    figure, axes = new_figure(1.2 + 0.5 * len(means))
    for place, name in enumerate(means):
        color = BETTER if name == "tuned" else BASE
        if name in differences:
            interval = t_interval(differences[name].differences, differences[name].clusters)
            low, high = (interval.low, interval.high) if interval.known() else (None, None)
            if low is not None and high is not None:
                axes.hlines(place, means["base"] + low, means["base"] + high, color=color, linewidth=3.5)
        axes.plot([means[name]], [place], "D" if name == "tuned" else "o", color=color, markersize=8)
        axes.annotate(
            f"{means[name]:.2f}",
            (means[name], place),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # the base's number stands on its line
        )
    axes.axvline(means["base"], color=SOFT, linewidth=1)
    axes.set_yticks(range(len(means)), [labels.get(name, name) for name in means])
    axes.set_ylim(len(means) - 0.5, -0.75)
    axes.margins(x=0.12)
    axes.set_xlabel("NLL of good answers\n(nats/token; left is better)")
    return Drawing("ladder", "How much is the prompt's doing?", _ladder_caption(means), figure)


def _ladder_caption(means: Mapping[str, float]) -> str:
    text = (
        "The vertical line is the base model with its template; each bar is the 95 % interval of the difference to it."
    )
    if "base_few_shot" not in means or "tuned" not in means:
        return text
    prompted, tuned = means["base"] - means["base_few_shot"], means["base"] - means["tuned"]
    if tuned <= 0:
        return f"{text} Here tuning gains nothing, so there is nothing for examples in the prompt to explain."
    if prompted <= 0:
        return f"{text} Examples in the prompt gain nothing here; what the tuned arm gains is the adapter's doing."
    if prompted >= tuned:
        return f"{text} Here examples in the prompt gain as much as tuning or more, and need no training."
    share = f"{prompted / tuned:.0%}".replace("%", " %")
    return f"{text} Examples in the prompt alone reach {share} of what tuning gains."


def draw_lengths(
    pairs: Mapping[str, tuple[int, int]],
    gains: Mapping[str, float],
    *,
    gain_label: str,
    are_votes: bool = False,
    name: str = "tuned",
) -> Drawing:
    """Draw each prompt's gain over the difference in length: are answers only better for being longer?

    Args:
        pairs: Words of the base and the tuned answer by prompt.
        gains: How much better the tuned answer is by prompt, such as its ROUGE-L minus the base's, or votes.
        gain_label: What the gain is.
        are_votes: Whether gains are votes: 1 win, 0 tie, -1 loss.
        name: What the arm is called whose gains these are.

    Returns:
        The picture.

    Raises:
        EvaluationError: No prompt has both.
    """
    names = [name for name in pairs if name in gains]
    if not names:
        raise EvaluationError("gains", "a prompt with both answers and a gain", [], "Score references, or vote.")
    figure, axes = new_figure(3.1, grid="both")
    longer = [pairs[name][1] - pairs[name][0] for name in names]
    for sign, color, marker in ((1, BETTER, "o"), (-1, WORSE, "v"), (0, BASE, "s")):
        chosen = [i for i, name in enumerate(names) if _sign(gains[name]) == sign]
        x, y = [longer[i] for i in chosen], [gains[names[i]] for i in chosen]
        axes.plot(x, y, marker, color=color, markersize=6, alpha=0.8, linestyle="")
    axes.axhline(0, color=SOFT, linewidth=1)
    axes.axvline(0, color=SOFT, linewidth=1)
    if are_votes:
        axes.set_yticks([-1, 0, 1], ["lost", "tie", "won"])
        axes.set_ylim(-1.4, 1.4)
    axes.set_xlabel(f"words: {name} minus base")
    axes.set_ylabel(gain_label)
    return Drawing(
        "lengths", "Is longer better?", _lengths_caption(longer, [gains[each] for each in names], name), figure
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _lengths_caption(longer: Sequence[int], gains: Sequence[float], name: str) -> str:
    """Count gains among longer and among shorter answers."""
    counts = []
    for word, sign in (("longer", 1), ("shorter", -1)):
        found = [gain for words, gain in zip(longer, gains, strict=True) if _sign(words) == sign]
        better = sum(gain > 0 for gain in found)
        counts.append(f"of {len(found)} {word} {name} answers {better} {'is' if better == 1 else 'are'} better")
    text = f"Each mark is one prompt; right of the line the {name} answer is longer."
    text += f" {counts[0].capitalize()}, {counts[1]}."
    return f"{text} If gains stood only on one side, length could be the cause: compare answers of like length."
