"""The table of scores: one row for each prompt, arm and measure, as a pandas frame.

Columns: `prompt_id`, `category`, `source`, `arm`, `metric`, `value`. A measure that does not apply to an answer has no
row. The same frame is written as scores.csv.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.core.paired import Estimate, estimate
from helpers.core.text import visible
from helpers.evaluation.metrics.reference import chrf, rouge_l
from helpers.evaluation.metrics.text import (
    asked_items,
    count_words,
    echoes_prompt,
    is_empty,
    list_items,
    looks_like_refusal,
    repetition,
    template_leaks,
)
from helpers.evaluation.records import Answer, Comparison, Prompt, ReferenceScore

if TYPE_CHECKING:
    import pandas as pd

_Score = tuple[str, str, str, str, str, float]

_COLUMNS = ["prompt_id", "category", "source", "arm", "metric", "value"]


@dataclass(frozen=True)
class Metric:
    """What a measure means.

    Args:
        higher_is_better: True, False, or None for what is neither good nor bad in itself.
        unit: Of the value; "yes/no" is 1 or 0, and "share" a share of 1.
    """

    label: str
    definition: str
    higher_is_better: bool | None = None
    unit: str = ""


METRICS: dict[str, Metric] = {
    "nll_with_eos": Metric(
        "NLL with EOS", "Mean -log p of the reference's tokens and its closing token.", False, "nats/token"
    ),
    "nll": Metric("NLL of the words", "The same without the closing token.", False, "nats/token"),
    "bits_per_byte": Metric("Bits per byte", "-log2 p of the reference over its UTF-8 bytes.", False, "bits/byte"),
    "other_task_nll": Metric(
        "NLL on the other task", "NLL with EOS of bundled rows of the task that was not trained.", False, "nats/token"
    ),
    "rouge_l": Metric("ROUGE-L", "F1 of the longest sequence of words shared with the reference.", True),
    "chrf": Metric("chrF++", "F2 of runs of 1 to 6 characters and of words and word pairs.", True),
    "items_met": Metric("Asked-for items met", "Gives as many items as the prompt asks for.", True, "yes/no"),
    "list_items": Metric("List items", "Numbered and bulleted lines.", None, "items"),
    "words": Metric("Words", "Runs between white space with a letter or digit.", None, "words"),
    "tokens": Metric("Tokens", "Tokens generated, the closing token included.", None, "tokens"),
    "rep_4": Metric("Repetition", "Share of four-word sequences that occurred before.", False, "share"),
    "truncated": Metric("Cut at the limit", "Stopped by the length limit, not by the model.", None, "yes/no"),
    "empty": Metric("Empty", "Shows nothing.", False, "yes/no"),
    "prompt_echo": Metric("Prompt echo", "Repeats the prompt, or begins with its first 12 words.", False, "yes/no"),
    "template_leak": Metric("Template marks", "Holds control tokens or headers of a template.", False, "yes/no"),
    "refusal": Metric("Refusal", "Opens with a phrase that refusals use; a heuristic.", None, "yes/no"),
}


def score_table(comparison: Comparison) -> pd.DataFrame:
    """Score every answer and every reference.

    Returns:
        The frame described at the top of this module, in the order of prompts and arms. Measures are those of
        `METRICS`, `asked_items`, and of each reference the sums in nats `reference_nll` and `reference_eos_nll` with
        `reference_tokens` and `reference_bytes`.
    """
    import pandas as pd

    answers = {(each.prompt_id, each.arm): each for each in comparison.answers}
    references = {(each.prompt_id, each.arm): each for each in comparison.references}
    rows: list[_Score] = []
    for prompt in comparison.prompts:
        for arm in comparison.arms:
            place = (prompt.id, arm.name)
            scores = _answer_scores(prompt, answers.get(place)) | _reference_scores(references.get(place))
            rows += _rows(prompt.id, visible(prompt.category), visible(prompt.source), arm.name, scores)
    for score in comparison.other_task:
        _check_score(score)
        rows += _rows(score.prompt_id, "", "", score.arm, {"other_task_nll": score.mean()})
    return pd.DataFrame(rows, columns=_COLUMNS)


def _rows(prompt_id: str, category: str, source: str, arm: str, scores: dict[str, float | None]) -> Iterator[_Score]:
    return ((prompt_id, category, source, arm, n, float(v)) for n, v in scores.items() if v is not None)


def _answer_scores(prompt: Prompt, answer: Answer | None) -> dict[str, float | None]:
    if answer is None:
        return {}
    asked = asked_items(prompt.text) if prompt.expected_items is None else prompt.expected_items
    text, items = answer.text, list_items(answer.text)
    return {
        "asked_items": asked,
        "tokens": answer.tokens,
        "truncated": answer.finish_reason == "length",
        "empty": is_empty(text),
        "words": count_words(text),
        "list_items": items.total,
        "items_met": None if asked is None else items.main == asked,
        "rep_4": repetition(text),
        "prompt_echo": echoes_prompt(text, prompt.text),
        "template_leak": bool(template_leaks(text)),
        "refusal": looks_like_refusal(text),
        "rouge_l": None if prompt.reference is None else rouge_l(prompt.reference, text),
        "chrf": None if prompt.reference is None else chrf(prompt.reference, text),
    }


def _reference_scores(score: ReferenceScore | None) -> dict[str, float | None]:
    if score is None:
        return {}
    _check_score(score)
    return {
        "nll": score.nll / score.tokens if score.tokens else None,
        "nll_with_eos": score.mean(),
        "bits_per_byte": score.nll / math.log(2) / score.utf8_bytes if score.utf8_bytes else None,
        "reference_nll": score.nll,
        "reference_eos_nll": score.eos_nll,
        "reference_tokens": score.tokens,
        "reference_bytes": score.utf8_bytes,
    }


def _check_score(score: ReferenceScore) -> None:
    """Refuse a reference score that no model can have given."""
    for field in ("nll", "eos_nll", "tokens", "utf8_bytes"):
        value = getattr(score, field)
        if not (math.isfinite(value) and value >= 0):
            where = f"references[{score.prompt_id!r}, {score.arm!r}].{field}"
            raise EvaluationError(where, "a finite number of at least 0", value, "Score it again.")


def means_by_arm(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each measure (index) in each arm (columns), over the prompts that have it."""
    return table.groupby(["metric", "arm"])["value"].mean().unstack("arm")


def scores_by_answer(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """Return the scores of each prompt and arm by measure."""
    groups = table.groupby(["prompt_id", "arm"])
    return {place: dict(zip(rows["metric"], rows["value"], strict=True)) for place, rows in groups}


def paired_differences(table: pd.DataFrame, metric: str, a: str, b: str) -> pd.DataFrame:
    """Subtract one arm from another, prompt by prompt.

    Args:
        a: The arm that the difference is counted for.

    Returns:
        A row for each prompt on which both arms have the measure, in the order of the table: index `prompt_id`, columns
        `category`, `cluster` (the prompt's source, or the prompt itself), `difference` (in the measure's unit), `cut`
        (whether either answer was cut at the length limit) and `words_a`, `words_b` (NaN without answers).
    """
    own = table[table["metric"] == metric]
    pairs = own[own["arm"] == a].set_index("prompt_id")[["category", "source", "value"]]
    others = own[own["arm"] == b].set_index("prompt_id")["value"]
    pairs = pairs[pairs.index.isin(others.index)]
    pairs["difference"] = pairs.pop("value") - others
    source = pairs.pop("source")
    pairs["cluster"] = ("source: " + source).where(source != "", "prompt: " + pairs.index.to_series())
    more = table[table["metric"].isin(["truncated", "words"]) & table["arm"].isin([a, b])]
    more = more.pivot_table(index="prompt_id", columns=["metric", "arm"], values="value")
    more = more.reindex(index=pairs.index, columns=[(m, arm) for m in ("truncated", "words") for arm in (a, b)])
    pairs["cut"] = more["truncated"].max(axis=1) > 0
    pairs["words_a"], pairs["words_b"] = more["words", a], more["words", b]
    return pairs


def estimate_difference(pairs: pd.DataFrame) -> Estimate | None:
    """Estimate the mean of paired differences, clustered by source; None without any."""
    return estimate(pairs["difference"].tolist(), pairs["cluster"].tolist()) if len(pairs) else None
