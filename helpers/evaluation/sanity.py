"""Are the arms what they claim to be? Judged before any answer is shown, from what `generate` read off the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from helpers.core.errors import EvaluationError
from helpers.evaluation.records import ReferenceScore

__all__ = ["reproduces_training"]

_TOLERANCE = 0.02  # nats a token; between cards and precisions the last digits move


def judge(
    change: float,
    identical: bool,
    bos: Mapping[str, tuple[int, ...]] | None,
    template_sha256: str,
    recorded_sha256: str | None,
) -> list[dict[str, str]]:
    """Judge the arms by what was read off the model.

    Args:
        change: Largest difference of a logit between adapter on and off.
        identical: Whether switching off and on again gives the same logits to the last bit.
        bos: For each arm, at which places of its prompt a BOS token stands; None for a model without one.
        template_sha256: Hash of the chat template in use.
        recorded_sha256: The hash that the training run wrote down, or None if no run is known.
    """
    untrained = "The adapter is untrained, or was not applied. Train it, or choose another adapter_dir."
    _require(change > 0, "an adapter that changes the logits", "the same logits on and off", untrained)
    _require(identical, "the same logits on, off and on again", "others", "Start a fresh kernel.")
    for arm, places in (bos or {}).items():
        _require(places == (0,), f"one BOS, at the start, for {arm}", f"BOS at {places}", "Look at the chat template.")
    known = recorded_sha256 is not None
    same = recorded_sha256 in (None, template_sha256)
    resave = "The tokenizer in the adapter folder is not the run's. Save the adapter again."
    _require(same, "the template that the adapter was trained with", template_sha256[:12], resave)
    one = "this model has none, and none is added" if bos is None else f"yes, in all {len(bos)} arms"
    return [
        {"test": "adapter on and off differ", "result": f"yes, a logit by up to {change:.3g}"},
        {"test": "on, off, on again is identical", "result": "yes, to the last bit"},
        {"test": "exactly one BOS token", "result": one},
        {
            "test": "the template is the adapter's own",
            "result": "yes" if known else "its training run is not known",
        },
    ]


def _require(holds: bool, expected: str, got: str, remedy: str) -> None:
    if not holds:
        raise EvaluationError("self-test", expected, got, remedy)


def reproduces_training(scores: Sequence[ReferenceScore], recorded: float | None, rows: int | None) -> str:
    """Compare the tuned arm's loss on the held-out rows with the one that training ended with, if they can be compared.

    Args:
        recorded: The run's last held-out loss, in nats a token, EOS included; None if it is not known.
        rows: How many rows it was measured on.

    Raises:
        EvaluationError: The losses differ: this base and this adapter are not what was trained.
    """
    tuned = [score for score in scores if score.arm == "tuned"]
    if recorded is None or len(tuned) != rows:
        return "The held-out loss of the training run cannot be compared: other rows were scored, or none is known."
    loss = sum(each.nll + each.eos_nll for each in tuned) / sum(each.tokens + 1 for each in tuned)
    if abs(loss - recorded) > _TOLERANCE:
        expected = f"the held-out loss that training ended with, {recorded:.3f} nats a token"
        remedy = "The base model, the adapter or the prompts are not those of the run."
        raise EvaluationError("self-test", expected, round(loss, 3), remedy)
    return f"Held-out loss of the tuned model: {loss:.3f} here, {recorded:.3f} at the end of training, as it should be."
