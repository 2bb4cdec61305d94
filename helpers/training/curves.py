"""Says in plain words whether a loss curve looks healthy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["judge_curve"]

_Kind = Literal["healthy", "flat", "diverging", "overfitting", "nan", "too short"]

_SHORTEST = 8
"""Fewer optimizer steps say nothing."""

_FLAT = 0.005
"""A held-out loss that ends within this share of where it began has not moved."""

_OVERFIT = 0.02
"""A held-out loss that ends this share above its lowest has turned around."""

_DIVERGED = 0.05
"""A training loss whose last third lies this share above its first has got away."""

_CLEAR = 3.0
"""A difference between two parts of the noisy training curve counts from this many standard errors on."""


@dataclass(frozen=True)
class CurveVerdict:
    """What a loss curve looks like.

    Args:
        kind: "healthy", "flat", "diverging", "overfitting", "nan" or "too short".
        text: The same in one to three sentences, with the numbers and what to try.
    """

    kind: _Kind
    text: str


def judge_curve(metrics: Mapping[str, Any]) -> CurveVerdict:
    """Judge a run by its losses.

    The held-out loss decides, since it is measured on the same rows each time. The training loss, of other rows at each
    step, is compared between the first and the last third, and only differences of three standard errors count.

    Args:
        metrics: With `train_loss` and `eval_loss`, lists of [step, loss in nats a token]; the first of `eval_loss` is
            from before training.

    Example:
        >>> train = [[step, 2.0 - 0.05 * step] for step in range(1, 13)]
        >>> judge_curve({"train_loss": train, "eval_loss": [[0, 2.0], [6, 1.7], [12, 1.5]]}).kind
        'healthy'
    """
    train = [loss for _, loss in metrics.get("train_loss") or []]
    held = [loss for _, loss in metrics.get("eval_loss") or []]
    if any(loss is None or not math.isfinite(loss) for loss in (*train, *held)):
        return CurveVerdict(
            "nan",
            "A loss is not a number: training broke. Do not use the adapter. Lower learning_rate "
            "to a fifth, or use a card that computes in bf16.",
        )
    if len(train) < _SHORTEST or len(held) < 2:
        verdict = CurveVerdict(
            "too short",
            f"{len(train)} optimizer steps are too few to judge a curve by; it takes "
            f"{_SHORTEST} and a held-out loss before and after.",
        )
    else:
        verdict = _judge(_trend(train), held, metrics["eval_loss"])
    return CurveVerdict(verdict.kind, " ".join([verdict.text, *_chosen(metrics)]))


def _chosen(metrics: Mapping[str, Any]) -> list[str]:
    """Say where `early_stopping` ended the training, and which adapter `keep` chose."""
    stopped, kept = metrics.get("stopped_at"), metrics.get("kept_step")
    lines = [f"early_stopping ended it after step {stopped}."] if stopped is not None else []
    if kept is not None:
        loss = next(loss for step, loss in metrics["eval_loss"] if step == kept)
        lines.append(f"The adapter of step {kept} is kept, whose held-out loss was lowest ({loss:.3f}).")
        lines.append("It was chosen by the rows that also judge it, so the change shown is a little too good.")
    return lines


def _judge(trend: float, held: Sequence[float], points: Sequence[Sequence[float]]) -> CurveVerdict:
    """Judge finite curves that are long enough.

    Args:
        trend: Of the training loss: its relative change where that is clear of the noise, else 0.
        points: The same with their steps.
    """
    first, last, best = held[0], held[-1], min(held)
    moved = f"The held-out loss went from {first:.3f} to {last:.3f}"
    still = abs(last - first) <= _FLAT * first
    worse = last > first * (1 + _FLAT) or last > best * (1 + _OVERFIT)
    if trend < 0 and (worse or (still and trend < -_OVERFIT)):
        return _overfitting(best, last, points)
    if worse or trend > _DIVERGED:
        return CurveVerdict(
            "diverging",
            f"{moved}, and the training loss {_words(trend)}. The steps are too large: lower learning_rate to a fifth.",
        )
    if still:
        return CurveVerdict(
            "flat",
            f"{moved}: it did not move. Raise learning_rate, or train for more steps; if the rows "
            "are what the model already says, there is nothing to learn.",
        )
    return CurveVerdict(
        "healthy",
        f"{moved}, its lowest was {best:.3f}, and the training loss {_words(trend)}. The curve looks healthy.",
    )


def _overfitting(best: float, last: float, points: Sequence[Sequence[float]]) -> CurveVerdict:
    """Return the verdict for a held-out loss that does not follow the training loss."""
    step = next(step for step, loss in points if loss == best)
    return CurveVerdict(
        "overfitting",
        f"The held-out loss was lowest at step {step} ({best:.3f}) and ended at {last:.3f}: "
        "the model learns its rows by heart. Train for fewer steps, or on more rows.",
    )


def _trend(losses: Sequence[float]) -> float:
    """Return the relative change from the first third to the last; 0 when it drowns in the noise."""
    size = max(len(losses) // 3, 2)
    start, end = losses[:size], losses[-size:]
    before, after = sum(start) / size, sum(end) / size
    error = math.sqrt(_variance(start) / size + _variance(end) / size)
    return (after - before) / before if before > 0 and abs(after - before) > _CLEAR * error else 0.0


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)


def _words(trend: float) -> str:
    if trend == 0:
        return "did not change beyond its noise"
    return f"{'rose' if trend > 0 else 'fell'} by {abs(trend):.0%}"
