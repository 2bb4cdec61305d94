"""What the paired statistics allow one to say, in plain English.

"inconclusive" is a normal verdict: with 8 to 50 prompts most differences are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.evaluation.stats.tests import holm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helpers.evaluation.stats.summaries import PairedSummary

__all__ = ["Verdict", "state", "state_all"]


@dataclass(frozen=True)
class Verdict:
    """A comparison in words.

    Args:
        metric: The metric's name.
        outcome: "better", "worse", "higher", "lower", "inconclusive", "no difference", "cannot say" or "counts only".
        text: One short paragraph.
        p_value: The probability it rests on, adjusted where there were several metrics; None without a test.
    """

    metric: str
    outcome: str
    text: str
    p_value: float | None = None


def _outcome(summary: PairedSummary, p_value: float | None) -> str:
    """One word for the comparison; `p_value` is adjusted where there were several metrics."""
    if summary.interval is None or summary.mean is None:
        return "counts only"
    if summary.clusters == 1:
        return "cannot say"
    if summary.ties == summary.n:
        return "no difference"
    if p_value is None or p_value >= round(1 - summary.interval.level, 10):
        return "inconclusive"
    if summary.higher_is_better is None:
        return "higher" if summary.mean > 0 else "lower"
    return "better" if (summary.mean > 0) == summary.higher_is_better else "worse"


def _number(value: float) -> str:
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+#.3g}".rstrip(".")


def _size(summary: PairedSummary) -> str:
    """State the mean difference and its interval, or why there is none."""
    prompts = f"{summary.n} prompt" + "s" * (summary.n != 1)
    if summary.clusters != summary.n:
        prompts += f" from {summary.clusters} source" + "s" * (summary.clusters != 1)
    mean = f"{_upper(summary.a)} minus {summary.b} is {_number(summary.mean or 0.0)} on average over {prompts}"
    interval = summary.interval
    if interval is None or interval.low is None or interval.high is None:
        return f"{mean}; no interval: {interval.note if interval else ''}"
    ends = f"{_number(interval.low)} to {_number(interval.high)}"
    return f"{mean} ({100 * interval.level:g} % interval {ends}, {interval.method}{_second(summary)})."


def _second(summary: PairedSummary) -> str:
    """Add the bootstrap interval, where there is one."""
    second = summary.bootstrap
    if second is None or second.low is None or second.high is None:
        return ""
    return f"; {_number(second.low)} to {_number(second.high)}, {second.method}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _counts(summary: PairedSummary) -> str:
    return f"{_upper(summary.a)} is higher on {summary.higher}, lower on {summary.lower}, equal on {summary.ties}."


def _conclusion(summary: PairedSummary, outcome: str) -> str:
    """The first words of a verdict."""
    if outcome in ("better", "worse", "higher", "lower"):
        return f"{summary.a} is {outcome} than {summary.b}"
    return outcome


def _disagreement(summary: PairedSummary, plain: float, alpha: float) -> str:
    """Say so when the t test and the permutation test fall on different sides of `alpha`."""
    if summary.permutation_p is None or (plain < alpha) == (summary.permutation_p < alpha):
        return ""
    least = 2 / 2**summary.clusters
    if least >= alpha:
        return (
            f"; {summary.clusters} observations cannot bring that test below {least:.2g}, so treat this as borderline"
        )
    return "; the two tests disagree, so treat this as borderline"


def _tests(summary: PairedSummary, p_value: float | None, adjusted: bool) -> str:
    """State the p-values, and whether the second opinions differ from the verdict."""
    if p_value is None or summary.permutation_p is None or summary.interval is None:
        return ""
    alpha = round(1 - summary.interval.level, 10)
    kind = "t test" if summary.p_value is not None else "permutation test"
    text = f"p = {p_value:.2g} ({kind}{', Holm-adjusted' if adjusted else ''})"
    plain = summary.deciding_p() or 0.0
    if summary.p_value is not None:
        text += f", permutation test p = {summary.permutation_p:.2g}{' unadjusted' if adjusted else ''}"
        text += _disagreement(summary, plain, alpha)
    if adjusted and plain < alpha <= p_value:
        text += "; the difference stands alone but not among this many metrics"
    return f"{text}."


def state(summary: PairedSummary, *, adjusted_p: float | None = None) -> Verdict:
    """State one comparison in plain English, "inconclusive" and what it cannot say included.

    Args:
        summary: What `summarise` returned.
        adjusted_p: The p-value after `holm`, when several metrics were tested.

    Returns:
        The verdict.

    Raises:
        EvaluationError: `adjusted_p` is not a probability.

    Example:
        >>> from helpers.evaluation.stats.summaries import summarise
        >>> state(summarise([0.1], metric="ROUGE-L")).outcome
        'cannot say'
    """
    if adjusted_p is not None and not 0 <= adjusted_p <= 1:
        raise EvaluationError(
            "adjusted_p", "a probability from 0 to 1", adjusted_p, "Pass the p value after Holm's correction."
        )
    p_value = summary.deciding_p() if adjusted_p is None else adjusted_p
    outcome = _outcome(summary, p_value)
    head = f"{summary.metric}: {_conclusion(summary, outcome)}."
    if outcome == "counts only":
        why = f"{summary.n} prompts are" if summary.n > 1 else "One prompt is"
        text = f"{head} {why} too few for an interval: {_counts(summary)}"
        return Verdict(summary.metric, outcome, text)
    if outcome == "no difference":
        text = f"{head} All {summary.n} prompts have the same value in both arms, so there is nothing to test; "
        return Verdict(summary.metric, outcome, f"{text}other prompts may still differ.", p_value)
    sentences = [head, _size(summary), _counts(summary), _meaning(summary, outcome)]
    if outcome != "cannot say":
        sentences.append(_tests(summary, p_value, adjusted_p is not None))
    return Verdict(summary.metric, outcome, " ".join(part for part in sentences if part), p_value)


def _meaning(summary: PairedSummary, outcome: str) -> str:
    """Say what an undecided comparison leaves open."""
    if outcome == "cannot say":
        return "How far other prompts would differ from this cannot be told; compare at least two sources."
    if outcome != "inconclusive" or summary.interval is None:
        return ""
    low, high = summary.interval.low, summary.interval.high
    if low is None or high is None:
        return f"So few observations ({summary.clusters}) cannot rule out chance."
    if low <= 0 <= high:
        return "Zero lies inside the interval: these prompts do not tell a gain from a loss."
    return ""


def state_all(summaries: Mapping[str, PairedSummary]) -> dict[str, Verdict]:
    """State several metrics, their p-values adjusted together by Holm's method.

    Args:
        summaries: A summary for each metric.

    Returns:
        A verdict under each name. Metrics without a test (one prompt, counts only) do not count towards the adjustment.

    Raises:
        EvaluationError: There are no summaries.

    Example:
        >>> from helpers.evaluation.stats.summaries import summarise
        >>> state_all({"words": summarise([5, 9, 7], higher_is_better=None)})["words"].outcome
        'higher'
    """
    if not summaries:
        raise EvaluationError("summaries", "at least one metric", dict(summaries), "Summarise a metric first.")
    plain = {name: p for name, summary in summaries.items() if (p := summary.deciding_p()) is not None}
    adjusted = holm(plain) if len(plain) > 1 else {}
    return {name: state(summary, adjusted_p=adjusted.get(name)) for name, summary in summaries.items()}
