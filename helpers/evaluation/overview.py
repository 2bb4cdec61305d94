"""From a table of scores to what is said: one verdict a metric, one a category, and a headline in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.core.text import format_number
from helpers.evaluation.metrics.catalogue import METRICS
from helpers.evaluation.metrics.table import PairedDifferences, paired, score_table
from helpers.evaluation.records import Arm, Comparison
from helpers.evaluation.report.cards import headline_arms
from helpers.evaluation.stats.summaries import PairedSummary, slices, summarise
from helpers.evaluation.stats.verdicts import Verdict, state_all

__all__ = ["JUDGED", "Overview", "category_summaries", "look_over", "slice_rows", "verdict_rows"]

JUDGED = ("nll", "nll_with_eos", "rouge_l", "chrf", "items_met", "rep_4", "words")
"""What is judged, the first one that is known being the headline's. Chosen before any answer was seen: their p-values
are adjusted together, so that trying many metrics does not make one of them look good by chance."""

_NAMES = {"base": "base", "tuned": "tuned", "again": "the second draw"}
_SLICED = ("nll", "rouge_l")
_LIKELY = ("nll", "nll_with_eos")


@dataclass(frozen=True)
class Overview:
    """A comparison, judged.

    Args:
        base: The arm that is compared against.
        tuned: The arm that is judged.
        table: One row a prompt and arm, from `score_table`.
        differences: By metric, tuned minus base for each prompt.
        summaries: By metric.
        verdicts: By metric, adjusted together.
        headline: The verdict in plain words.
    """

    base: Arm
    tuned: Arm
    table: list[dict[str, Any]]
    differences: dict[str, PairedDifferences]
    summaries: dict[str, PairedSummary]
    verdicts: dict[str, Verdict]
    headline: str


def look_over(comparison: Comparison) -> Overview:
    """Score and judge a comparison.

    Args:
        comparison: Prompts, arms, answers and reference scores.

    Returns:
        Everything that is said about it.

    Raises:
        EvaluationError: There is nothing to compare.
    """
    base, tuned = headline_arms(comparison)
    table = score_table(comparison)
    same_weights = (base.adapter, base.prompting) == (tuned.adapter, tuned.prompting)  # mode aa
    judged = [name for name in JUDGED if not (same_weights and name in _LIKELY)]
    known = [name for name in judged if _comparable(table, name, base, tuned)]
    differences = {name: paired(comparison, name, tuned.name, base.name, table=table) for name in known}
    summaries = {name: _summary(each, comparison.info.seed) for name, each in differences.items()}
    verdicts = state_all(summaries) if summaries else {}
    headline = _headline(summaries, verdicts, table, base, tuned)
    return Overview(base, tuned, table, differences, summaries, verdicts, headline)


def _comparable(table: Sequence[Mapping[str, Any]], metric: str, base: Arm, tuned: Arm) -> bool:
    """Whether some prompt has the metric in both arms."""
    having = [
        {row["prompt_id"] for row in table if row["arm"] == arm.name and row[metric] is not None}
        for arm in (base, tuned)
    ]
    return bool(having[0] & having[1])


def _summary(differences: PairedDifferences, seed: int) -> PairedSummary:
    metric = METRICS[differences.metric]
    return summarise(
        differences.differences,
        differences.clusters,
        metric=metric.label,
        a=_NAMES.get(differences.a, differences.a),
        b=_NAMES.get(differences.b, differences.b),
        higher_is_better=metric.higher_is_better,
        seed=seed,
    )


def verdict_rows(overview: Overview) -> list[dict[str, Any]]:
    """Return one row a metric, as `helpers.evaluation.report.page.write_report` takes them.

    Args:
        overview: From `look_over`.
    """
    rows = []
    for name, summary in overview.summaries.items():
        interval, verdict = summary.interval, overview.verdicts[name]
        means = _means(overview, name)
        rows.append(
            {
                "metric": name,
                "label": METRICS[name].label,
                "base": means[0],
                "tuned": means[1],
                "difference": summary.mean,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "p": summary.deciding_p(),
                "p_holm": verdict.p_value,
                "n": summary.n,
                "text": verdict.text,
                "direction": verdict.outcome,
            }
        )
    return rows


def _means(overview: Overview, metric: str) -> tuple[float, float]:
    """Return the mean of a metric in both arms, over the prompts that both have."""
    prompts = set(overview.differences[metric].prompt_ids)
    rows = [row for row in overview.table if row["prompt_id"] in prompts]
    found = [[float(row[metric]) for row in rows if row["arm"] == arm.name] for arm in (overview.base, overview.tuned)]
    return sum(found[0]) / len(prompts), sum(found[1]) / len(prompts)


def slice_rows(overview: Overview) -> list[dict[str, Any]]:
    """Return one row a category, for likelihood and for likeness, as `write_report` takes them.

    Args:
        overview: From `look_over`.

    Returns:
        Rows; a category with fewer than six prompts has counts in words and no interval.
    """
    rows = []
    for name in _SLICED:
        if name in overview.differences:
            found = category_summaries(overview, name)
            rows += [_slice_row(category, METRICS[name].label, each) for category, each in found.items()]
    return rows


def category_summaries(overview: Overview, metric: str) -> dict[str, PairedSummary]:
    """Summarise a metric for each category."""
    each = overview.differences[metric]
    direction = METRICS[metric].higher_is_better
    return slices(
        each.differences, each.categories, each.clusters, metric=METRICS[metric].label, higher_is_better=direction
    )


def _slice_row(category: str, label: str, summary: PairedSummary) -> dict[str, Any]:
    interval = summary.interval
    better, worse = (summary.higher, summary.lower) if summary.higher_is_better else (summary.lower, summary.higher)
    counts = f"better on {better}, worse on {worse}" + (f", equal on {summary.ties}" if summary.ties else "")
    return {
        "category": category,
        "metric": label,
        "n": summary.n,
        "difference": summary.mean,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "text": counts if interval else f"too few for an interval: {counts}",
    }


def _headline(
    summaries: Mapping[str, PairedSummary],
    verdicts: Mapping[str, Verdict],
    table: Sequence[Mapping[str, Any]],
    base: Arm,
    tuned: Arm,
) -> str:
    """Say what came out: the first metric in full, the others in a count, and what to beware of."""
    if not summaries:
        return "Nothing was scored, so nothing can be said about better or worse. Read the answers, or vote on them."
    first = next(iter(summaries))
    sentences = [_first(summaries[first], verdicts[first].outcome, first), _others(verdicts, first)]
    cut = {row["prompt_id"] for row in table if row["arm"] in (base.name, tuned.name) and row["truncated"]}
    answered = {row["prompt_id"] for row in table if row["arm"] == tuned.name and row["truncated"] is not None}
    if cut and len(cut) >= len(answered) / 4:
        sentences.append(
            f"In {len(cut)} of {len(answered)} pairs an answer was cut at the length limit, "
            "which says nothing about how it would have gone on."
        )
    return " ".join(sentence for sentence in sentences if sentence)


def _first(summary: PairedSummary, outcome: str, metric: str) -> str:
    """Say what the first metric says."""
    likely = metric in _LIKELY
    what = "good answers that it never saw" if likely else "the reference answers"
    more = {
        "better": f"{'more likely' if likely else 'closer to'}",
        "worse": f"{'less likely' if likely else 'further from'}",
    }
    if summary.a != "tuned":
        lead = {
            "no difference": "The two draws do not differ.",
            "inconclusive": "The two draws do not differ beyond chance.",
        }
        return f"{lead.get(outcome, 'The two draws differ, though both come from the base model.')} {_size(summary)}"
    if outcome in more:
        verb = "helped" if outcome == "better" else "hurt"
        told = f"it made {what} {more[outcome]}" if likely else f"its answers are {more[outcome]} {what}"
        return f"Tuning {verb}: {told}. {_size(summary)}"
    if outcome == "no difference":
        return f"Tuning changed nothing that {summary.metric} could see in {summary.n} rows."
    if outcome == "cannot say":
        rows = "one row does" if summary.n == 1 else f"{summary.n} rows from one source do"
        return f"One cannot say whether tuning helped: {rows} not show how much rows differ."
    return f"Inconclusive: these {summary.n} rows cannot tell whether tuning helped. {_size(summary)}"


def _size(summary: PairedSummary) -> str:
    """Give the difference with its interval."""
    units = {
        metric.label: f" {metric.unit}" for metric in METRICS.values() if metric.unit not in ("", "share", "yes/no")
    }
    text = f"{summary.metric}: {format_number(summary.mean, sign=True)}{units.get(summary.metric, '')}"
    interval = summary.interval
    if interval is None or not interval.known():
        return f"{text}."
    ends = f"{format_number(interval.low, sign=True)} to {format_number(interval.high, sign=True)}"
    return f"{text} (95 % interval {ends}, {summary.n} rows)."


def _others(verdicts: Mapping[str, Verdict], first: str) -> str:
    """Count what the other metrics say."""
    others = {METRICS[name].label: each.outcome for name, each in verdicts.items() if name != first}
    if not others:
        return ""
    decided = [
        f"{label} ({outcome})" for label, outcome in others.items() if outcome in ("better", "worse", "higher", "lower")
    ]
    rest = len(others) - len(decided)
    if not decided:
        return f"None of the {len(others)} other measures differs beyond chance."
    left = "The other measure is" if rest == 1 else f"The other {rest} measures are"
    return f"Also beyond chance: {', '.join(decided)}." + (f" {left} undecided." if rest else "")
