"""Everything in the evaluation that needs a model: load, self-test, answer, score, rank tokens.

One model in memory plays all arms. The rest of `helpers.evaluation` gets answers and numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from helpers.config import RunConfig
from helpers.contract import IGNORED, TokenizedExample, tokenize_example
from helpers.errors import EvaluationError, HelpersError
from helpers.evaluation.arms import AA_TEMPERATURE, Asking, messages_for
from helpers.evaluation.cache import AnswerCache, CachedAnswer
from helpers.evaluation.questions import Question
from helpers.evaluation.records import Answer, Arm, ReferenceScore
from helpers.evaluation.shift import ShiftedToken
from helpers.evaluation.sources import WEIGHTS, AdapterSource, file_sha256
from helpers.model import LoadedModel, free_memory, generate, load_adapter, model_source, without_adapter
from helpers.prompts import Example
from helpers.scoring import score_rows
from helpers.templates import ALPACA, find_control_text, render, template_sha256

if TYPE_CHECKING:
    from helpers.prompts import Message

__all__ = ["Bench", "answer_all", "load_bench", "score_references", "self_tests", "token_shift"]


@dataclass(frozen=True)
class Bench:
    """A loaded base model with its adapter, ready to play every arm.

    Args:
        loaded: The model, with the tokenizer and template saved beside the adapter.
        asking: How the arms are asked.
        source: The adapter.
        max_new_tokens: Longest answer, in tokens.
        seed: Of the draws of mode aa.
        temperature: 0 for the likeliest answer, above 0 for a draw.
    """

    loaded: LoadedModel
    asking: Asking
    source: AdapterSource
    max_new_tokens: int
    seed: int = 0
    temperature: float = 0.0

    def configuration(self) -> dict[str, Any]:
        """Return what all answers depend on, for the cache."""
        return {
            "base": self.loaded.source,
            "adapter": file_sha256(self.source.folder / WEIGHTS[1]),
            "template": template_sha256(self.loaded.tokenizer),
            "precision": self.loaded.precision,
            "max_new_tokens": self.max_new_tokens,
            "decoding": [self.temperature, self.seed] if self.temperature else "greedy",
        }


def load_bench(training: RunConfig, source: AdapterSource, asking: Asking, *, aa: bool = False, seed: int = 0) -> Bench:
    """Load the base model once and put the adapter on it.

    Args:
        training: From `helpers.evaluation.sources.training_config`.
        source: The adapter.
        asking: How the arms are asked.
        aa: Whether answers are drawn at random, for mode aa.
        seed: Of these draws.

    Returns:
        The model, ready to answer.

    Raises:
        EvaluationError: The adapter was made for another base model, or changes the base when it is switched off.
        StackError: The base model cannot be loaded.
    """
    base = model_source(training.model)[0]
    if source.bias != "none":
        remedy = "A trained bias stays on when the adapter is switched off (peft issue 741)."
        raise EvaluationError("adapter_dir", 'an adapter with bias "none"', source.bias, remedy)
    _check_base(source, base)
    try:
        loaded = load_adapter(source.folder, training)
    except RuntimeError as error:
        if isinstance(error, HelpersError) or "size mismatch" not in str(error):
            raise
        raise _other_base(source, base) from error
    temperature = AA_TEMPERATURE if aa else 0.0
    return Bench(loaded, asking, source, training.generation.max_new_tokens, seed, temperature)
