"""How close answers are to a person's, and how likely that person's answer is: ROUGE, chrF++, perplexity.

ROUGE is Google's `rouge-score`, chrF++ is `sacrebleu`'s; this module only feeds them.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    from helpers.evaluation.records import ReferenceScore

__all__ = [
    "ReferenceMetrics",
    "check_reference_score",
    "chrf",
    "chrf_signature",
    "reference_metrics",
    "rouge",
    "sentence_lines",
]

# The end of a sentence: . ! ? and their CJK and Arabic forms, but no "1." of a list; closing quotes stay with it.
_SENTENCE_END = re.compile(r"(?:(?<=[!?\u061f\u06d4])|(?<=[^\d\s][.])|(?<=[.!?][\"')\]]))\s+|(?<=[\u3002\uff01\uff1f])")


@functools.cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL", "rougeLsum"], use_stemmer=True)


@functools.cache
def _chrf() -> CHRF:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def sentence_lines(text: str) -> str:
    r"""Put each sentence on a line of its own, as ROUGE-Lsum expects, without downloading a sentence splitter.

    Splits at line ends and after . ! ? (also Chinese, Japanese and Arabic ones); after a number's dot it does not.

    Args:
        text: An answer or a reference.

    Returns:
        The same sentences, one a line, none empty.

    Example:
        >>> sentence_lines("1. Sell it. Why not?")
        '1. Sell it.\nWhy not?'
    """
    pieces = (piece.strip() for line in text.splitlines() for piece in _SENTENCE_END.split(line))
    return "\n".join(piece for piece in pieces if piece)


def rouge(reference: str, text: str) -> tuple[float, float] | None:
    """ROUGE-L and ROUGE-Lsum F1 of an answer (Lin, 2004; `rouge-score`, Porter-stemmed).

    ROUGE-L is the F1 of the longest common subsequence of words; ROUGE-Lsum takes it sentence by sentence. Only a-z and
    0-9 make words for `rouge-score`: a reference in another script has none, and cannot be scored.

    Args:
        reference: A person's answer.
        text: The model's answer; an empty one scores 0.

    Returns:
        Two shares from 0 to 1, ROUGE-L first, or None when the reference has no a-z or 0-9.

    Example:
        >>> rouge("Sell the machines.", "Sell a machine.")
        (0.6666666666666666, 0.6666666666666666)
    """
    if not re.search(r"[a-z0-9]", reference.lower()):
        return None
    scores = _rouge_scorer().score(sentence_lines(reference), sentence_lines(text))
    return float(scores["rougeL"].fmeasure), float(scores["rougeLsum"].fmeasure)


def chrf(reference: str, text: str) -> float | None:
    """chrF++ of an answer: F2 of character 1- to 6-grams and word 1- and 2-grams (Popovic, 2017; `sacrebleu`).

    Works for every script. The settings are in `chrf_signature`.

    Args:
        reference: A person's answer.
        text: The model's answer; an empty one scores 0.

    Returns:
        A score from 0 to 100, or None when the reference is blank.

    Example:
        >>> chrf("Sell it", "Sell it")
        100.0
    """
    if not reference.strip():
        return None
    return float(_chrf().sentence_score(text, [reference]).score)


def chrf_signature() -> str:
    """Return sacrebleu's signature of the chrF++ used here, to be printed beside the scores.

    Returns:
        Such as "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0".

    Example:
        >>> chrf_signature().split("|version")[0]
        'nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no'
    """
    _chrf().sentence_score("a", ["a"])  # the signature takes its number of references from the last score
    return str(_chrf().get_signature())


@dataclass(frozen=True)
class ReferenceMetrics:
    """How likely one arm finds a set of reference answers.

    Args:
        arm: The arm's name.
        prompts: Reference answers scored.
        tokens: Their tokens, without EOS.
        utf8_bytes: Their length in UTF-8 bytes.
        nll: Sum of -log p without EOS, in nats.
        eos_nll: Sum of -log p of the closing EOS, in nats.
    """

    arm: str
    prompts: int
    tokens: int
    utf8_bytes: int
    nll: float
    eos_nll: float

    def perplexity(self) -> float | None:
        """exp(sum NLL / tokens), EOS left out; None without tokens, infinite beyond what a float holds."""
        return _exp(self.nll, self.tokens)

    def perplexity_with_eos(self) -> float | None:
        """exp(sum NLL / tokens), each answer's EOS counted as one more token."""
        return _exp(self.nll + self.eos_nll, self.tokens + self.prompts)

    def bits_per_byte(self) -> float | None:
        """Sum NLL in bits / UTF-8 bytes, EOS left out: comparable between tokenizers. None without bytes."""
        return self.nll / math.log(2) / self.utf8_bytes if self.utf8_bytes else None


def _exp(nll: float, tokens: int) -> float | None:
    if not tokens:
        return None
    return math.exp(nll / tokens) if nll / tokens < 709 else math.inf


def reference_metrics(scores: Sequence[ReferenceScore]) -> ReferenceMetrics:
    """Add up one arm's reference scores: the corpus figures weigh every token alike, not every prompt.

    Args:
        scores: One for each reference answer, all of one arm.

    Returns:
        Sums, from which perplexity and bits per byte follow.

    Raises:
        EvaluationError: There are none, they are of several arms, a prompt comes twice, or a number is not finite or
            is negative.

    Example:
        >>> from helpers.evaluation.records import ReferenceScore
        >>> reference_metrics([ReferenceScore("p1", "tuned", 2 * math.log(8), 0.0, 2, 6)]).bits_per_byte()
        1.0
    """
    if not scores:
        raise EvaluationError("references", "at least one reference score", [], "Score a prompt with a reference.")
    arms = sorted({score.arm for score in scores})
    if len(arms) > 1:
        raise EvaluationError("references", "the scores of one arm", arms, "Add up each arm by itself.")
    seen: set[str] = set()
    for score in scores:
        if score.prompt_id in seen:
            where = f"references[{score.prompt_id!r}]"
            raise EvaluationError(where, "one score per prompt and arm", "two", "Give every prompt its own id.")
        seen.add(score.prompt_id)
        check_reference_score(score)
    return ReferenceMetrics(
        arm=arms[0],
        prompts=len(scores),
        tokens=sum(score.tokens for score in scores),
        utf8_bytes=sum(score.utf8_bytes for score in scores),
        nll=math.fsum(score.nll for score in scores),
        eos_nll=math.fsum(score.eos_nll for score in scores),
    )


def check_reference_score(score: ReferenceScore) -> None:
    """Refuse a reference score that no model can have given.

    Args:
        score: One reference score.

    Raises:
        EvaluationError: A number is not finite, or is negative.

    Example:
        >>> from helpers.evaluation.records import ReferenceScore
        >>> check_reference_score(ReferenceScore("p1", "base", 1.5, 0.1, 2, 6))
    """
    for field in ("nll", "eos_nll", "tokens", "utf8_bytes"):
        value = getattr(score, field)
        if not (math.isfinite(value) and value >= 0):
            where = f"references[{score.prompt_id!r}, {score.arm!r}].{field}"
            raise EvaluationError(where, "a finite number of at least 0", value, "Score it again.")
