"""How near an answer comes to a person's wording: ROUGE-L (`rouge-score`) and chrF++ (`sacrebleu`).

Both see wording and not truth: a right answer in other words scores low.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

__all__ = ["chrf_signature"]


@functools.cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


@functools.cache
def _chrf() -> CHRF:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def rouge_l(reference: str, text: str) -> float | None:
    """ROUGE-L F1 of an answer (Lin, 2004; Porter-stemmed): the longest sequence of words in common, gaps allowed.

    Only a-z and 0-9 make words for `rouge-score`. Of a reference that consists mainly of other letters it would see
    a year or a name and nothing else, so there is no value.

    Returns:
        A share from 0 to 1, or None when fewer than half of the reference's letters and digits are a-z or 0-9.

    Example:
        >>> rouge_l("Sell the machines.", "Sell a machine.")
        0.6666666666666666
    """
    letters = [letter for letter in reference.lower() if letter.isalnum()]
    read = len(re.findall("[a-z0-9]", reference.lower()))
    if not read or 2 * read < len(letters):
        return None
    return float(_rouge_scorer().score(reference, text)["rougeL"].fmeasure)


def chrf(reference: str, text: str) -> float | None:
    """chrF++ of an answer: F2 of character 1- to 6-grams and word 1- and 2-grams (Popovic, 2017), in any script.

    Returns:
        A score from 0 to 100, or None when the reference is blank.

    Example:
        >>> chrf("Sell it", "Sell it")
        100.0
    """
    return float(_chrf().sentence_score(text, [reference]).score) if reference.strip() else None


def chrf_signature() -> str:
    """Return sacrebleu's signature of the chrF++ used here; scores of other settings cannot be compared with these.

    Example:
        >>> chrf_signature().split("|version")[0]
        'nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no'
    """
    _chrf().sentence_score("a", ["a"])  # the signature takes its number of references from the last score
    return str(_chrf().get_signature())
