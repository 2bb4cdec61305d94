"""The nearest training example to each prompt: does a good answer show learning, or memory?

Two texts are as near as the words and neighbouring pairs of words that they share: the Jaccard index of their 1- and
2-grams, 1 for the same words in the same order and 0 for nothing in common.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from helpers.evaluation.records import Prompt

__all__ = ["describe_leakage", "nearest_examples"]

_NEAR = 0.5
"""From this share on, a prompt counts as nearly the same as a training example."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Neighbour:
    """The training example that is nearest to a prompt.

    Args:
        place: The example's place among the training rows, from 0; -1 if there are none.
        score: How near it is, from 0 to 1.
    """

    prompt_id: str
    place: int
    text: str
    score: float


def nearest_examples(prompts: Sequence[Prompt], examples: Sequence[str]) -> tuple[Neighbour, ...]:
    """Find the training example that is nearest to each prompt; of equally near ones, the first."""
    grams = [_grams(text) for text in examples]
    having: dict[str, list[int]] = defaultdict(list)
    for place, found in enumerate(grams):
        for gram in found:
            having[gram].append(place)
    return tuple(_nearest(prompt, examples, grams, having) for prompt in prompts)


def _nearest(
    prompt: Prompt, examples: Sequence[str], grams: Sequence[set[str]], having: dict[str, list[int]]
) -> Neighbour:
    """Look only at the examples that share a word with the prompt."""
    own = _grams(prompt.text)
    shared = Counter(place for gram in own for place in having.get(gram, ()))
    if not shared:
        return Neighbour(prompt.id, 0 if examples else -1, examples[0] if examples else "", 0.0)
    share = {place: count / (len(own) + len(grams[place]) - count) for place, count in shared.items()}
    best = min(share, key=lambda place: (-share[place], place))
    return Neighbour(prompt.id, best, examples[best], share[best])


def _grams(text: str) -> set[str]:
    """Return a text's words and pairs of neighbouring words, in small letters."""
    words = _WORD.findall(text.casefold())
    return {*words, *(f"{one} {two}" for one, two in pairwise(words))}


def describe_leakage(neighbours: Sequence[Neighbour]) -> str:
    """Say in words whether prompts stand among the training rows."""
    known = [each for each in neighbours if each.place >= 0]
    if not known:
        return "There are no training rows to compare with."
    near = [each for each in known if each.score >= _NEAR]
    most = max(known, key=lambda each: each.score)
    text = f"The nearest pair ({most.prompt_id}) shares {most.score:.0%} of its words and pairs of words".replace(
        "%", " %"
    )
    if not near:
        return f"No prompt is nearly the same as a training example. {text}."
    names = ", ".join(each.prompt_id for each in near)
    return f"{len(near)} of {len(known)} prompts are nearly the same as a training example: {names}. {text}."
