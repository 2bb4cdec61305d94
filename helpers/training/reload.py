"""Proof that a saved adapter, loaded again, is the model that was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helpers.core.errors import ExportError
from helpers.model.distance import Check, jitter_activations
from helpers.model.scoring import RowScore, score_rows

if TYPE_CHECKING:
    from helpers.training.callbacks import TrainingRecord

__all__ = ["prove_adapter"]

_TIMES_ROUNDING = 3.0
"""How many times the effect of rounding the reloaded model may be from the trained one, in 16 bit."""

_TIMES_VISIBLE = 4.0
"""How many times the effect of rounding training must have moved the losses for an adapter to be seen in them."""

_EXACT = 1e-4
"""Nats a token that a row's loss may differ in float32."""


def prove_adapter(model: Any, record: TrainingRecord) -> str:
    """Compare the held-out losses of a reloaded model with those of the trained one, row by row.

    Args:
        model: Base model and saved adapter, freshly loaded.
        record: The training's, with each held-out row's loss before and after it.

    Returns:
        PASS or CANNOT TELL, and how far the two are apart.

    Raises:
        ExportError: The reloaded model is another one.
    """
    rows, result = record.heldout, record.result
    reloaded, rounded = score_rows(model, rows), None
    if result.mode["precision"] != "fp32":
        with jitter_activations(model):
            rounded = score_rows(model, rows)
    check = judge_reload(reloaded, result.heldout_after, result.heldout_before, rounded)
    if check.passed is False:
        remedy = "The saved adapter does not reproduce the training. Do not use it."
        raise ExportError("adapter", "the trained model's held-out losses", check.detail, remedy)
    return f"{check.result}: {check.detail}"


def judge_reload(
    reloaded: Sequence[RowScore],
    trained: Sequence[RowScore],
    untrained: Sequence[RowScore],
    rounded: Sequence[RowScore] | None = None,
) -> Check:
    """Decide from the rows' losses whether a reloaded model is the trained one.

    It must be no farther from the trained model than rounding explains, *and* less than half as far as the untrained
    model is. In fp32 rounding explains 1e-4 nats a token of any row. In 16 bit the trained model ran through Unsloth's
    fused kernels and the reloaded one may not, so that sums are rounded in another order: what that does is measured,
    by rounding the reloaded model's own numbers otherwise, and the distance may be three times as large. Where training
    moved the losses by less than four times what rounding does, an adapter that was not applied would look the same,
    and it cannot be told.

    Args:
        reloaded: The losses of the held-out rows under the reloaded model.
        trained: Under the model in memory after training.
        rounded: Under the reloaded model with its activations rounded otherwise; None for fp32.

    Example:
        >>> before, after = [RowScore(9.0, 0.5, 4)], [RowScore(2.0, 0.5, 4)]
        >>> judge_reload(after, after, before).passed
        True
        >>> judge_reload(after, after, after).result
        'CANNOT TELL'
    """
    measure = largest_difference if rounded is None else loss_distance
    off, learned = measure(reloaded, trained), measure(untrained, trained)
    rounding = _EXACT / _TIMES_ROUNDING if rounded is None else loss_distance(reloaded, rounded)
    limit, visible = _TIMES_ROUNDING * rounding, learned > _TIMES_VISIBLE * rounding
    passed: bool | None = None
    if visible and off <= min(limit, learned / 2):
        passed = True
    elif not off <= limit + (0.0 if visible else learned):
        passed = False
    said = (
        f"{len(reloaded)} held-out rows, {off:.2g} nats a token from the trained model (limit {limit:.2g}; training "
        f"moved them by {learned:.2g}"
    )
    said += ")." if rounded is None else f", rounding alone by {rounding:.2g})."
    if passed is None:
        said += " Not proven: the effect of training is too small to tell from rounding. Train longer."
    return Check("reloaded adapter", passed, said)


def largest_difference(first: Sequence[RowScore], second: Sequence[RowScore]) -> float:
    """Return the largest difference of a row's mean loss, in nats a token; NaN counts as infinite."""
    differences = [abs(a.mean() - b.mean()) for a, b in zip(first, second, strict=True)]
    return max(math.inf if math.isnan(each) else each for each in differences)


def loss_distance(first: Sequence[RowScore], second: Sequence[RowScore]) -> float:
    """Return how far apart two models' losses of the same rows are, in nats a token.

    Rounding moves each token's loss a little, up or down, so that the mean of a short row moves more than that of a
    long one. Weighting each row's squared difference by its tokens makes them comparable: the root of the mean over
    rows of tokens times the squared difference of the row's mean loss.
    """
    squares = [(a.tokens + 1) * (a.mean() - b.mean()) ** 2 for a, b in zip(first, second, strict=True)]
    return math.sqrt(sum(squares) / len(squares))
