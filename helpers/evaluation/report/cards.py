"""The cards of the report: one prompt, its two answers side by side, and what can be said of each at a glance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from operator import itemgetter
from typing import Any

from helpers.core.text import format_number
from helpers.evaluation.metrics.contamination import Neighbour
from helpers.evaluation.metrics.table import scores_by_answer
from helpers.evaluation.overview import Overview
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt

_REPEATS = 0.2  # share of repeated 4-grams from which an answer is called repetitive
_SIMILAR = 0.2  # largest difference in words, over the words of the longer answer, of a length-matched pair
_MOST_PAIRS = 60_000  # equal words, one in each answer; difflib is slow on answers that repeat themselves
_LEAST_SHARED = 0.2  # below this share of common words the marks would cover nearly everything


def badges(answer: Answer, row: Mapping[str, float]) -> list[dict[str, str]]:
    """Say in a few words how an answer is built.

    Returns:
        Badges, each with a `text` and a `kind`: "good", "plain" or "warn".
    """
    found = [("plain", _count(row.get("words", len(answer.text.split())), "word"))]
    if row.get("list_items"):
        found.append(("plain", _count(row["list_items"], "list item")))
    if "asked_items" in row and "items_met" in row:
        met = bool(row["items_met"])
        found.append(("good" if met else "warn", f"asked for {int(row['asked_items'])}: {'met' if met else 'not met'}"))
    if "rouge_l" in row:
        found.append(("plain", f"ROUGE-L {format_number(row['rouge_l'])}"))
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
    comparison: Comparison, overview: Overview, neighbours: Sequence[Neighbour] = ()
) -> list[dict[str, Any]]:
    """Lay out each prompt that both arms of the headline answered.

    Args:
        overview: Names the two arms and has the scores.
        neighbours: The nearest training example of each prompt.

    Returns:
        What the template shows, in the order of the prompts.
    """
    pair = overview.base, overview.tuned
    answers = {(answer.prompt_id, answer.arm): answer for answer in comparison.answers}
    rows, gains, worst = scores_by_answer(overview.table), overview.gains()[1], overview.worst()
    leaks = {each.prompt_id: each for each in neighbours if each.place >= 0}
    cards: list[dict[str, Any]] = []
    for prompt in comparison.prompts:
        given = {arm.name: answers.get((prompt.id, arm.name)) for arm in comparison.arms}
        if given[pair[0].name] is None or given[pair[1].name] is None:
            continue
        gain, leak = gains.get(prompt.id), leaks.get(prompt.id)
        card = {**_ask(prompt, len(cards) + 1), **_pair(prompt, pair, given, rows)}
        card |= {"gain": "" if gain is None else f"{gain:.6g}", "hurt": f"{gain:.6g}" if prompt.id in worst else ""}
        card |= {"leak": leak and {"text": leak.text, "score": f"{leak.score:.2f}"}}
        cards.append(card | _further(comparison, pair, given, rows))
    return cards


def _ask(prompt: Prompt, place: int) -> dict[str, Any]:
    return {"anchor": f"prompt-{place}", "id": prompt.id, "text": prompt.text, "category": prompt.category} | {
        "reference": prompt.reference
    }


def _pair(
    prompt: Prompt, pair: tuple[Arm, Arm], given: Mapping[str, Any], rows: Mapping[tuple[str, str], Mapping[str, float]]
) -> dict[str, Any]:
    """Lay the two answers side by side and note what the filters ask for; flags are "1" or "0"."""
    first, second = given[pair[0].name], given[pair[1].name]
    diff = word_diff(first.text, second.text)
    lengths = [len(answer.text.split()) for answer in (first, second)]
    longer = max(lengths)
    cut = [
        rows.get((prompt.id, answer.arm), {}).get("truncated", answer.finish_reason == "length")
        for answer in (first, second)
    ]
    same = first.text == second.text
    sides = [_side(first, pair[0], "base", diff.left, rows), _side(second, pair[1], "tuned", diff.right, rows)]
    if same and first.text.strip():
        sides[1]["blank"] = "The same answer."
    return {
        "pair": sides,
        "note": _note(diff.shared, diff.marked, same=same),
        "differs": str(int(not same)),
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


def _side(
    answer: Answer, arm: Arm, role: str, spans: Sequence[Span], rows: Mapping[tuple[str, str], Mapping[str, float]]
) -> dict[str, Any]:
    blank = "" if answer.text.strip() else "This answer is empty." if not answer.text else "Only white space."
    row = rows.get((answer.prompt_id, answer.arm), {})
    return {"role": role, "label": arm.label, "spans": spans, "blank": blank, "badges": badges(answer, row)}


def _further(
    comparison: Comparison,
    pair: tuple[Arm, Arm],
    given: Mapping[str, Any],
    rows: Mapping[tuple[str, str], Mapping[str, float]],
) -> dict[str, Any]:
    more = [arm for arm in comparison.arms if arm not in pair and given[arm.name] is not None]
    sides = [_side(given[arm.name], arm, "", (Span(given[arm.name].text, only=False),), rows) for arm in more]
    title = f"{_count(len(more), 'further arm')}: {', '.join(arm.label for arm in more)}"
    return {"further": sides, "further_title": title}


@dataclass(frozen=True)
class Span:
    """A piece of an answer.

    Args:
        text: The piece, white space included.
        only: Whether only this answer says it.
    """

    text: str
    only: bool


@dataclass(frozen=True)
class WordDiff:
    """Two answers in pieces.

    Args:
        left: The pieces of the first answer; joined, they are the answer.
        right: The pieces of the second.
        shared: Words in common, in the same order, over the words of the longer answer: 0 to 1, or
            None if they were not compared.
        marked: Whether the pieces say what differs. False when too little is shared, or the answers are too long or too
            repetitive to compare; then each answer is one unmarked piece.
    """

    left: tuple[Span, ...]
    right: tuple[Span, ...]
    shared: float | None
    marked: bool


def word_diff(left: str, right: str) -> WordDiff:
    """Compare two answers word by word with `difflib`.

    Returns:
        Both in pieces. White space never counts as a difference.

    Example:
        >>> word_diff("plan the route", "plan a route").left
        (Span(text='plan ', only=False), Span(text='the', only=True), Span(text=' route', only=False))
    """
    if left == right:
        return WordDiff((Span(left, only=False),), (Span(right, only=False),), 1.0, marked=True)
    first, second = left.split(), right.split()
    longer = max(len(first), len(second))
    counts = Counter(second)
    if sum(counts[word] for word in first) > _MOST_PAIRS:
        return _plain(left, right, None)
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    shared = sum(block.size for block in blocks) / longer if longer else 1.0
    if shared < _LEAST_SHARED:
        return _plain(left, right, shared)
    ours = {block.a + step for block in blocks for step in range(block.size)}
    theirs = {block.b + step for block in blocks for step in range(block.size)}
    return WordDiff(_spans(left, ours), _spans(right, theirs), shared, marked=True)


def _plain(left: str, right: str, shared: float | None) -> WordDiff:
    return WordDiff((Span(left, only=False),), (Span(right, only=False),), shared, marked=False)


def _spans(text: str, common: set[int]) -> tuple[Span, ...]:
    """Cut a text where its words begin or cease to be common; white space is marked only between two marked words."""
    pieces = re.findall(r"\s+|\S+", text)
    only, place = [], 0
    for piece in pieces:
        only.append(not piece.isspace() and place not in common)
        place += not piece.isspace()
    for at, piece in enumerate(pieces):
        only[at] |= piece.isspace() and 0 < at < len(pieces) - 1 and only[at - 1] and only[at + 1]
    runs = groupby(zip(pieces, only, strict=True), key=itemgetter(1))
    return tuple(Span("".join(piece for piece, _ in run), mark) for mark, run in runs)
