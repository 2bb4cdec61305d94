"""From a comparison to what is said of it: three verdicts, and a description of everything else."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.core.paired import Estimate
from helpers.evaluation.metrics.table import METRICS, estimate_difference, paired_differences, score_table
from helpers.evaluation.records import Arm, Comparison
from helpers.evaluation.stats.verdicts import Verdict, judge_likelihood, judge_other_task, judge_votes
from helpers.evaluation.votes.tally import Reveal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["look_over", "verdict_rows"]

JUDGED, OTHER_TASK = "nll_with_eos", "other_task_nll"
"""The measures of the first and the third verdict; the second is the votes'."""

DESCRIBED = ("nll", "rouge_l", "chrf", "items_met", "list_items", "words", "rep_4", "truncated", "empty")
"""What is shown with intervals and never judged: among so many measures some differ by chance."""


@dataclass(frozen=True)
class Overview:
    """A comparison, scored and judged.

    Args:
        pairs: By measure, from `paired_differences`, tuned minus base.
        verdicts: On likelihood, on votes and on the other task, in this order; none if both arms are the base model.
        cut: Answered pairs in which an answer was cut at the length limit.
        answered: Pairs that both arms answered.
    """

    base: Arm
    tuned: Arm
    table: pd.DataFrame
    pairs: dict[str, pd.DataFrame]
    estimates: dict[str, Estimate]
    verdicts: tuple[Verdict, ...]
    cut: int
    answered: int

    def headline(self) -> str:
        """Return the verdicts in a sentence each."""
        if not self.verdicts:
            return "Both answers come from the base model: whatever differs here is noise."
        return " ".join(verdict.sentence for verdict in self.verdicts)

    def gains(self) -> tuple[str, dict[str, float]]:
        """Return the measure by which prompts are ordered, and how much each prompt gained by tuning."""
        name = next((name for name in (JUDGED, "rouge_l") if name in self.pairs), None)
        if name is None:
            return "", {}
        sign = 1 if METRICS[name].higher_is_better else -1
        return METRICS[name].label, (sign * self.pairs[name]["difference"]).to_dict()

    def worst(self) -> list[str]:
        """Return the ids of at most five prompts that lost, the largest loss first."""
        gains = self.gains()[1]
        return sorted((name for name, gain in gains.items() if gain < 0), key=gains.__getitem__)[:5]


def look_over(comparison: Comparison, votes: Reveal | None = None) -> Overview:
    """Score and judge a comparison."""
    arms = {arm.name: arm for arm in comparison.arms}
    base, tuned = arms["base"], arms["tuned" if "tuned" in arms else "again"]
    table = score_table(comparison)
    same = (base.adapter, base.prompting) == (tuned.adapter, tuned.prompting)  # mode aa
    pairs = {}
    for name in (JUDGED, *DESCRIBED, OTHER_TASK):
        found = paired_differences(table, name, tuned.name, base.name)
        if len(found) and not (same and name.startswith("nll")):
            pairs[name] = found
    estimates = {name: found for name, rows in pairs.items() if (found := estimate_difference(rows)) is not None}
    answered = pairs.get("words")
    cut, count = (0, 0) if answered is None else (int(answered["cut"].sum()), len(answered))
    verdicts = () if same else _verdicts(comparison, estimates, votes, cut, count)
    return Overview(base, tuned, table, pairs, estimates, verdicts, cut, count)


def _verdicts(
    comparison: Comparison, estimates: dict[str, Estimate], votes: Reveal | None, cut: int, count: int
) -> tuple[Verdict, ...]:
    info, outcomes = comparison.info, votes.merged_outcomes if votes else {}
    sources = {prompt.id: prompt.source or prompt.id for prompt in comparison.prompts}
    sums: Counter[str] = Counter()
    for name, outcome in outcomes.items():  # prompts that share a source have one vote together
        sums[sources.get(name, name)] += (outcome == "win") - (outcome == "loss")
    wins, losses = (sum(side * total > 0 for total in sums.values()) for side in (1, -1))
    found = [
        judge_likelihood(estimates.get(JUDGED), held_out=info.held_out),
        judge_votes(wins, len(sums) - wins - losses, losses, pairs=count, cut=cut, shared=len(sums) < len(outcomes)),
    ]
    if info.other_task:
        found.append(judge_other_task(estimates.get(OTHER_TASK), info.other_task, held_out=info.held_out))
    return tuple(found)


def verdict_rows(overview: Overview) -> list[dict[str, Any]]:
    """Return the verdicts as `metrics.json` and the notebook's table have them."""
    return [{"question": v.question, "verdict": v.outcome, "because": v.basis} for v in overview.verdicts]
