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
from helpers.evaluation.records import Arm, Comparison, Prompt

_REPEATS = 0.2  # share of repeated 4-grams from which an answer is called repetitive
_SIMILAR = 0.2  # largest difference in words, over the words of the longer answer, of a length-matched pair
_MOST_PAIRS = 60_000  # equal words, one in each answer; difflib is slow on answers that repeat themselves
_LEAST_SHARED = 0.2  # below this share of common words the marks would cover nearly everything


def badges(row: Mapping[str, float]) -> list[dict[str, str]]:
    """Say in a few words how an answer is built.

    Returns:
        Badges, each with a `text` and a `kind`: "good", "plain" or "warn".
    """
    found = [("plain", _count(row["words"], "word"))]
    if row["list_items"]:
        found.append(("plain", _count(row["list_items"], "list item")))
    if "items_met" in row:
        met = bool(row["items_met"])
        found.append(("good" if met else "warn", f"asked for {int(row['asked_items'])}: {'met' if met else 'not met'}"))
    if "rouge_l" in row:
        found.append(("plain", f"ROUGE-L {format_number(row['rouge_l'])}"))
    warnings = {
        "empty answer": row["empty"],
        "cut at the length limit": row["truncated"],
        f"repeats itself ({100 * row['rep_4']:.0f} % of 4-grams)": row["rep_4"] >= _REPEATS,
        "template marks in the answer": row["template_leak"],
        "echoes the prompt": row["prompt_echo"],
        "looks like a refusal": row["refusal"],
    }
    found += [("warn", text) for text, holds in warnings.items() if holds]
    return [{"kind": kind, "text": text} for kind, text in found]


def _count(number: float, thing: str) -> str:
    return f"{int(number)} {thing}" if int(number) == 1 else f"{int(number)} {thing}s"


def prompt_cards(
    comparison: Comparison, overview: Overview, neighbours: Sequence[Neighbour] = ()
) -> list[dict[str, Any]]:
    """Lay out each prompt that was answered: the two answers of the headline, those of further arms, and flags.

    Returns:
        What the template shows, in the order of the prompts; flags are "1" or "0".
    """
    base, tuned = overview.base, overview.tuned
    further = [arm for arm in comparison.arms if arm not in (base, tuned)]
    answers = {(answer.prompt_id, answer.arm): answer for answer in comparison.answers}
    rows, gains, worst = scores_by_answer(overview.table), overview.gains()[1], overview.worst()
    leaks = {each.prompt_id: each for each in neighbours if each.place >= 0}

    def side(prompt: Prompt, arm: Arm, role: str, spans: Sequence[Span]) -> dict[str, Any]:
        text = answers[prompt.id, arm.name].text
        blank = "" if text.strip() else "This answer is empty." if not text else "Only white space."
        found = badges(rows[prompt.id, arm.name])
        return {"role": role, "label": arm.label, "spans": spans, "blank": blank, "badges": found}

    cards: list[dict[str, Any]] = []
    for prompt in comparison.prompts:
        if (prompt.id, base.name) not in answers:
            continue
        first, second = answers[prompt.id, base.name].text, answers[prompt.id, tuned.name].text
        diff, same = word_diff(first, second), first == second
        pair = [side(prompt, base, "base", diff.left), side(prompt, tuned, "tuned", diff.right)]
        if same and first.strip():
            pair[1]["blank"] = "The same answer."
        lengths = len(first.split()), len(second.split())
        apart = abs(lengths[0] - lengths[1])
        cut = any(rows[prompt.id, arm.name]["truncated"] for arm in (base, tuned))
        gain, leak = gains.get(prompt.id), leaks.get(prompt.id)
        card = {
            "anchor": f"prompt-{len(cards) + 1}",
            "id": prompt.id,
            "text": prompt.text,
            "category": prompt.category,
            "reference": prompt.reference,
            "pair": pair,
            "note": _note(diff, same=same),
            "differs": str(int(not same)),
            "truncated": str(int(cut)),
            "matched": str(int(apart <= _SIMILAR * max(lengths))),
            "length": str(apart),
            "gain": "" if gain is None else f"{gain:.6g}",
            "hurt": f"{gain:.6g}" if prompt.id in worst else "",
            "leak": leak and {"text": leak.text, "score": f"{leak.score:.2f}"},
            "further": [
                side(prompt, arm, "", (Span(answers[prompt.id, arm.name].text, only=False),)) for arm in further
            ],
            "further_title": f"{_count(len(further), 'further arm')}: {', '.join(arm.label for arm in further)}",
        }
        cards.append(card)
    return cards


def _note(diff: WordDiff, *, same: bool) -> str:
    if same:
        return "identical answers"
    if diff.shared is None:
        return "too long or repetitive to mark differences"
    return f"{100 * diff.shared:.0f} % of words shared" + ("" if diff.marked else ", so differences are not marked")


@dataclass(frozen=True)
class Span:
    """A piece of an answer.

    Args:
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
