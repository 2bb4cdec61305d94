"""The table of scores: every metric for each prompt and arm, and their paired differences."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.evaluation.metrics.asked import asked_items, gives_items
from helpers.evaluation.metrics.catalogue import COLUMNS, FINISH_REASONS, METRICS
from helpers.evaluation.metrics.reference import check_reference_score, chrf, rouge
from helpers.evaluation.metrics.structure import (
    count_bold,
    count_headings,
    count_words,
    echoes_prompt,
    is_empty,
    list_items,
    looks_like_refusal,
    repetition,
    template_leaks,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from helpers.evaluation.records import Answer, Comparison, Prompt, ReferenceScore

__all__ = ["PairedDifferences", "paired", "score_table"]


def score_table(comparison: Comparison) -> list[dict[str, object]]:
    """Score every answer and every reference: one flat row for each prompt and arm.

    Args:
        comparison: Prompts, arms, answers and reference scores.

    Returns:
        Rows in the order of prompts and arms, each with the keys `COLUMNS` in that order. Yes/no is 1 or 0. None means
        that a metric does not apply: no reference, nothing asked for, no answer generated.

    Raises:
        EvaluationError: There are no prompts or arms, an id is used twice, an answer or score belongs to no prompt or
            arm or comes twice, a prompt lacks some arms, or a finish reason or a score is impossible.

    Example:
        >>> from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, RunInfo
        >>> answer = Answer("ai", "base", "- Sell it", tokens=4, finish_reason="eos")
        >>> info = RunInfo("Demo", "base", "adapter", "", 64, 0, "2025-01-01T00:00:00Z")
        >>> arm = Arm("base", "Base", adapter=False)
        >>> score_table(Comparison(info, (Prompt("ai", "What next?"),), (arm,), (answer,)))[0]["list_items"]
        1
    """
    _check_names(comparison)
    answers = _by_place(comparison, "answers", comparison.answers)
    references = _by_place(comparison, "references", comparison.references)
    rows = []
    for prompt in comparison.prompts:
        for arm in comparison.arms:
            place = (prompt.id, arm.name)
            row = dict.fromkeys(COLUMNS) | {"prompt_id": prompt.id, "category": prompt.category}
            row |= {"source": prompt.source, "arm": arm.name} | _answer_row(prompt, answers.get(place))
            rows.append(row | _reference_row(references.get(place)))
    return rows


def _check_names(comparison: Comparison) -> None:
    for field, names in (
        ("prompts", [prompt.id for prompt in comparison.prompts]),
        ("arms", [arm.name for arm in comparison.arms]),
    ):
        if not names:
            raise EvaluationError(field, "at least one", names, "An empty comparison has nothing to score.")
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise EvaluationError(field, "names that are used once", twice, "Give each its own.")


def _by_place(
    comparison: Comparison, field: str, records: Iterable[Answer | ReferenceScore]
) -> dict[tuple[str, str], Answer | ReferenceScore]:
    """Index records by prompt and arm, and check that each prompt has one for every arm or for none."""
    prompts, arms = {prompt.id for prompt in comparison.prompts}, {arm.name for arm in comparison.arms}
    found: dict[tuple[str, str], Answer | ReferenceScore] = {}
    for record in records:
        place = (record.prompt_id, record.arm)
        if record.prompt_id not in prompts or record.arm not in arms:
            raise EvaluationError(field, "records of the comparison's prompts and arms", place, "Check both names.")
        if place in found:
            raise EvaluationError(field, "one record for each prompt and arm", place, "Drop the second one.")
        found[place] = record
    for prompt in dict.fromkeys(prompt for prompt, _ in found):
        if lacking := sorted(arm for arm in arms if (prompt, arm) not in found):
            raise EvaluationError(f"{field}[{prompt!r}]", "one for every arm", {"missing": lacking}, "Run them too.")
    return found


def _answer_row(prompt: Prompt, answer: Answer | None) -> dict[str, object]:
    """Score one answer; only what was asked for when there is none."""
    asked = asked_items(prompt.text) if prompt.expected_items is None else prompt.expected_items
    if answer is None:
        return {"asked_items": asked}
    if answer.finish_reason not in FINISH_REASONS:
        field = f"answers[{answer.prompt_id!r}, {answer.arm!r}].finish_reason"
        raise EvaluationError(
            field, f"one of {', '.join(FINISH_REASONS)}", answer.finish_reason, "Correct the answer's finish_reason."
        )
    met = gives_items(answer.text, asked)
    return {
        "finish_reason": answer.finish_reason,
        "asked_items": asked,
        "tokens": answer.tokens,
        "truncated": int(answer.finish_reason == "length"),
        "items_met": None if met is None else int(met),
        "prompt_echo": int(echoes_prompt(answer.text, prompt.text)),
        **_text_row(answer.text),
        **_likeness_row(prompt.reference, answer.text),
    }


def _text_row(text: str) -> dict[str, object]:
    items = list_items(text)
    return {
        "empty": int(is_empty(text)),
        "words": count_words(text),
        "headings": count_headings(text),
        "bold": count_bold(text),
        "list_items": items.total(),
        "numbered_items": items.numbered,
        "bulleted_items": items.bulleted,
        "nested_items": items.nested,
        "rep_4": repetition(text),
        "template_leak": int(bool(template_leaks(text))),
        "refusal": int(looks_like_refusal(text)),
    }


def _likeness_row(reference: str | None, text: str) -> dict[str, object]:
    if reference is None:
        return {}
    rouge_l, rouge_lsum = rouge(reference, text) or (None, None)
    return {"rouge_l": rouge_l, "rouge_lsum": rouge_lsum, "chrf": chrf(reference, text)}


def _reference_row(score: ReferenceScore | None) -> dict[str, object]:
    if score is None:
        return {}
    check_reference_score(score)
    return {
        "nll": score.nll / score.tokens if score.tokens else None,
        "nll_with_eos": (score.nll + score.eos_nll) / (score.tokens + 1),
        "bits_per_byte": score.nll / math.log(2) / score.utf8_bytes if score.utf8_bytes else None,
    }


@dataclass(frozen=True)
class PairedDifferences:
    """One metric, a minus b, for each prompt on which both arms have it.

    Args:
        metric: The column of the table.
        a: The arm that the difference is counted for.
        b: The arm subtracted.
        prompt_ids: The prompts, in the order of the comparison.
        differences: One number per prompt, in the metric's unit.
        categories: The slice of each prompt, "" for none.
        clusters: The source of each prompt; a prompt without one is its own.
        truncated: Whether either answer was cut at the length limit.
    """

    metric: str
    a: str
    b: str
    prompt_ids: tuple[str, ...]
    differences: tuple[float, ...]
    categories: tuple[str, ...]
    clusters: tuple[str, ...]
    truncated: tuple[bool, ...]

    def keep(self, wanted: Sequence[bool]) -> PairedDifferences:
        """Return those prompts for which `wanted`, one flag per prompt, is true; possibly none."""
        if len(wanted) != len(self.prompt_ids):
            raise EvaluationError(
                "wanted",
                f"{len(self.prompt_ids)} flags, one per prompt",
                len(wanted),
                "Pass the flags of all prompts, in their order.",
            )
        fields = ("prompt_ids", "differences", "categories", "clusters", "truncated")
        pick = {name: tuple(v for v, keep in zip(getattr(self, name), wanted, strict=True) if keep) for name in fields}
        return replace(self, **pick)

    def without_truncated(self) -> PairedDifferences:
        """Return the prompts that both arms answered to the end: a truncated answer is not a worse answer."""
        return self.keep([not cut for cut in self.truncated])


def paired(
    comparison: Comparison,
    metric: str,
    a: str = "tuned",
    b: str = "base",
    *,
    table: Sequence[Mapping[str, object]] | None = None,
) -> PairedDifferences:
    """Subtract one arm from another, prompt by prompt.

    Args:
        comparison: Prompts, arms, answers and reference scores.
        metric: A key of `METRICS`.
        a: The arm that the difference is counted for.
        b: The arm subtracted.
        table: What `score_table(comparison)` returned, to spare computing it once more for every metric.

    Returns:
        The differences of those prompts on which both arms have the metric.

    Raises:
        EvaluationError: The metric or an arm is unknown, or no prompt has the metric in both arms; also as for
            `score_table`.

    Example:
        Typically `d = paired(comparison, "words")`, then `summarise(d.differences, d.clusters, metric="Words")`.
    """
    if metric not in METRICS:
        raise EvaluationError("metric", f"one of {', '.join(METRICS)}", metric, "Correct the name.")
    names = [arm.name for arm in comparison.arms]
    for field, arm in (("a", a), ("b", b)):
        if arm not in names:
            raise EvaluationError(field, f"one of the arms {', '.join(names)}", arm, "Correct the name.")
    rows = {(row["prompt_id"], row["arm"]): row for row in (score_table(comparison) if table is None else table)}
    pairs = [(rows[prompt.id, a], rows[prompt.id, b]) for prompt in comparison.prompts]
    pairs = [pair for pair in pairs if pair[0][metric] is not None and pair[1][metric] is not None]
    if not pairs:
        remedy = f"{METRICS[metric].label} needs a reference or a count asked for." if rows else ""
        raise EvaluationError("metric", "one that some prompt has in both arms", metric, remedy)
    return PairedDifferences(
        metric=metric,
        a=a,
        b=b,
        prompt_ids=tuple(one["prompt_id"] for one, _ in pairs),
        differences=tuple(float(one[metric]) - float(two[metric]) for one, two in pairs),
        categories=tuple(one["category"] for one, _ in pairs),
        clusters=tuple(_cluster(one) for one, _ in pairs),
        truncated=tuple(bool(one["truncated"] or two["truncated"]) for one, two in pairs),
    )


def _cluster(row: Mapping[str, object]) -> str:
    """Name the source of a prompt; one without a source gets a name that no source can have."""
    return f"source:{row['source']}" if row["source"] else f"prompt:{row['prompt_id']}"
