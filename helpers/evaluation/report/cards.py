"""The cards of the report: one prompt, its two answers side by side, and what can be said of each at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from helpers.core.errors import EvaluationError
from helpers.evaluation.metrics.gains import Gains, clean_rows
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt
from helpers.evaluation.report.diffs import Span, word_diff

__all__ = ["badges", "headline_arms", "prompt_cards"]

_REPEATS = 0.2  # share of repeated 4-grams from which an answer is called repetitive
_SIMILAR = 0.2  # largest difference in words, over the words of the longer answer, of a length-matched pair


def headline_arms(comparison: Comparison) -> tuple[Arm, Arm]:
    """Choose the two arms that are shown side by side.

    Args:
        comparison: What was compared.

    Returns:
        The arms "base" and "tuned" if there are such; else the first arm without and the first with the adapter; else
        the first two.

    Raises:
        EvaluationError: There are fewer than two arms.
    """
    arms = comparison.arms
    if len(arms) < 2:
        raise EvaluationError("arms", "at least two arms", [arm.name for arm in arms], "Generate answers for two arms.")
    named = {arm.name: arm for arm in arms}
    if "base" in named and "tuned" in named:
        return named["base"], named["tuned"]
    without = [arm for arm in arms if not arm.adapter]
    with_it = [arm for arm in arms if arm.adapter]
    return (without[0], with_it[0]) if without and with_it else (arms[0], arms[1])


def badges(answer: Answer, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Say in a few words how an answer is built.

    Args:
        answer: The answer.
        row: Its scores, as `clean_rows` gives them: `words`, `list_items`, `asked_items`, `items_met`, `rep_4`,
            `truncated`, `empty`, `template_leak`, `prompt_echo`, `refusal` and `rouge_l` are used where they are given.

    Returns:
        Badges, each with a `text` and a `kind`: "good", "plain" or "warn".
    """
    found = [("plain", _count(row.get("words", len(answer.text.split())), "word"))]
    if row.get("list_items"):
        found.append(("plain", _count(row["list_items"], "list item")))
    if "asked_items" in row and "items_met" in row:
        met = bool(row["items_met"])
        found.append(("good" if met else "warn", f"asked for {row['asked_items']}: {'met' if met else 'not met'}"))
    if "rouge_l" in row:
        found.append(("plain", f"ROUGE-L {row['rouge_l']:.2f}"))
    warnings = {
        "empty answer": row.get("empty", not answer.text.strip()),
        "cut at the length limit": row.get("truncated", answer.finish_reason == "length"),
        f"repeats itself ({100 * row.get('rep_4', 0):.0f} % of 4-grams)": row.get("rep_4", 0) >= _REPEATS,
        "template marks in the answer": row.get("template_leak"),
        "echoes the prompt": row.get("prompt_echo"),
        "looks like a refusal": row.get("refusal"),
    }
    found += [("warn", text) for text, holds in warnings.items() if holds]
    return [{"kind": kind, "text": text} for kind, text in found]


def _count(number: float, thing: str) -> str:
    return f"{int(number)} {thing}" if int(number) == 1 else f"{int(number)} {thing}s"


def prompt_cards(
    comparison: Comparison,
    *,
    pair: tuple[Arm, Arm],
    scores: Sequence[Mapping[str, Any]],
    gains: Gains | None,
    leakage: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Lay out each prompt that both arms of the pair answered.

    Args:
        comparison: What was compared.
        pair: The two arms shown side by side.
        scores: Flat rows, one a prompt and arm.
        gains: What the order "biggest gain" goes by.
        leakage: Rows with `prompt_id`, `text` (the nearest training example) and perhaps `score` (0 to 1).

    Returns:
        What the template shows, in the order of the prompts.
    """
    answers = {(answer.prompt_id, answer.arm): answer for answer in comparison.answers}
    rows = {(row["prompt_id"], row["arm"]): row for row in clean_rows(scores)}
    leaks = {row["prompt_id"]: row for row in leakage}
    cards = []
    for prompt in comparison.prompts:
        given = {arm.name: answers.get((prompt.id, arm.name)) for arm in comparison.arms}
        if given[pair[0].name] is None or given[pair[1].name] is None:
            continue
        card = {**_ask(prompt, len(cards) + 1), **_pair(prompt, pair, given, rows), **_gain(prompt, gains)}
        card |= _further(comparison, pair, given, rows) | {"leak": _leak(leaks.get(prompt.id))}
        cards.append(card)
    return cards


def _ask(prompt: Prompt, place: int) -> dict[str, Any]:
    return {"anchor": f"prompt-{place}", "id": prompt.id, "text": prompt.text, "category": prompt.category} | {
        "reference": prompt.reference
    }


def _pair(prompt: Prompt, pair: tuple[Arm, Arm], given: Mapping[str, Any], rows: Mapping[Any, Any]) -> dict[str, Any]:
    """Lay the two answers side by side and note what the filters ask for; flags are "1" or "0"."""
    first, second = given[pair[0].name], given[pair[1].name]
    diff = word_diff(first.text, second.text)
    lengths = [len(answer.text.split()) for answer in (first, second)]
    longer = max(lengths)
    cut = [
        rows.get((prompt.id, answer.arm), {}).get("truncated", answer.finish_reason == "length")
        for answer in (first, second)
    ]
    sides = [_side(first, pair[0], "base", diff.left, rows), _side(second, pair[1], "tuned", diff.right, rows)]
    return {
        "pair": sides,
        "note": _note(diff.shared, diff.marked, same=first.text == second.text),
        "differs": str(int(first.text != second.text)),
        "truncated": str(int(any(cut))),
        "matched": str(int(abs(lengths[0] - lengths[1]) <= _SIMILAR * longer)),
        "length": str(abs(lengths[0] - lengths[1])),
    }


def _note(shared: float | None, marked: bool, *, same: bool) -> str:
    if same:
        return "identical answers"
    if shared is None:
        return "too long or repetitive to mark differences"
    return f"{100 * shared:.0f} % of words shared" + ("" if marked else ", so differences are not marked")


def _side(answer: Answer, arm: Arm, role: str, spans: Sequence[Span], rows: Mapping[Any, Any]) -> dict[str, Any]:
    blank = "" if answer.text.strip() else "This answer is empty." if not answer.text else "Only white space."
    row = rows.get((answer.prompt_id, answer.arm), {})
    return {"role": role, "label": arm.label, "spans": spans, "blank": blank, "badges": badges(answer, row)}


def _further(
    comparison: Comparison, pair: tuple[Arm, Arm], given: Mapping[str, Any], rows: Mapping[Any, Any]
) -> dict[str, Any]:
    more = [arm for arm in comparison.arms if arm not in pair and given[arm.name] is not None]
    sides = [_side(given[arm.name], arm, "", (Span(given[arm.name].text, only=False),), rows) for arm in more]
    title = f"{_count(len(more), 'further arm')}: {', '.join(arm.label for arm in more)}"
    return {"further": sides, "further_title": title}


def _gain(prompt: Prompt, gains: Gains | None) -> dict[str, str]:
    value = gains.values.get(prompt.id) if gains else None
    hurt = value is not None and prompt.id in gains.worst()
    return {"gain": "" if value is None else f"{value:.6g}", "hurt": f"{value:.6g}" if hurt else ""}


def _leak(row: Mapping[str, Any] | None) -> dict[str, str] | None:
    if row is None:
        return None
    score = row.get("score")
    return {"text": str(row.get("text", "")), "score": "" if score is None else f"{score:.2f}"}
