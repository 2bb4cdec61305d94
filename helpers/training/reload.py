"""Proof that a saved adapter, loaded again, is the model that was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from helpers.core.errors import ExportError
from helpers.model.scoring import RowScore, score_rows

if TYPE_CHECKING:
    from helpers.data.contract import Contract
    from helpers.model.load import LoadedModel
    from helpers.training.result import TrainResult

__all__ = ["TIMES_ROUNDING", "judge_reload", "loss_distance", "prove_reload"]

TIMES_ROUNDING = 3.0
"""How many times the effect of rounding the reloaded model may be from the trained one, in 16 bit."""


def prove_reload(loaded: LoadedModel, heldout: Contract, result: TrainResult) -> str:
    """Compare the held-out losses of a reloaded model with those of the trained one, row by row.

    Args:
        loaded: Base model and saved adapter, freshly loaded.
        heldout: The held-out rows.
        result: The training, with each row's loss before and after it.

    Returns:
        A sentence with how far they are apart, and how far they may be.

    Raises:
        ExportError: The reloaded model is another one.
    """
    from helpers.model.distance import jitter_activations

    reloaded, rounded = score_rows(loaded.model, heldout.tokenized), None
    if loaded.precision != "fp32":
        with jitter_activations(loaded.model):
            rounded = score_rows(loaded.model, heldout.tokenized)
    return judge_reload(reloaded, result.heldout_after, result.heldout_before, rounded)


def judge_reload(
    reloaded: Sequence[RowScore],
    trained: Sequence[RowScore],
    untrained: Sequence[RowScore],
    rounded: Sequence[RowScore] | None = None,
) -> str:
    """Decide from the rows' losses whether a reloaded model is the trained one.

    In fp32 each row must agree to 1e-4 nats a token. In 16 bit the trained model ran through Unsloth's fused kernels
    and the reloaded one does not, so that sums are rounded in another order. What that does to the losses is measured,
    by rounding the reloaded model's own numbers otherwise, and the distance may be three times as large. Where training
    changed more than rounding does, the reloaded model must besides be less than half as far from the trained model as
    the untrained one is.

    Args:
        reloaded: The losses of the held-out rows under the reloaded model.
        trained: Under the model in memory after training.
        untrained: Before training.
        rounded: Under the reloaded model with its activations rounded otherwise; None for fp32.

    Returns:
        A sentence with the distance and the limit.

    Raises:
        ExportError: They are different models.

    Example:
        >>> same = [RowScore(2.0, 0.5, 4)]
        >>> print(judge_reload(same, same, [RowScore(9.0, 0.5, 4)]))
        Reloaded: 1 held-out rows, largest difference of a row's loss 0 (limit 0.0001).
    """
    if rounded is None:
        differences = [abs(a.mean() - b.mean()) for a, b in zip(reloaded, trained, strict=True)]
        off = max(differences, key=lambda each: math.inf if math.isnan(each) else each)
        _require(off, 1e-4)
        return f"Reloaded: {len(reloaded)} held-out rows, largest difference of a row's loss {off:.2g} (limit 0.0001)."
    off, rounding = loss_distance(reloaded, trained), loss_distance(reloaded, rounded)
    learned, limit = loss_distance(untrained, trained), TIMES_ROUNDING * rounding
    if learned > 2 * limit:
        _require(off, learned / 2)
    _require(off, limit)
    return (
        f"Reloaded: {len(reloaded)} held-out rows, {off:.2g} nats a token from the trained model (limit {limit:.2g}; "
        f"rounding alone moves them by {rounding:.2g}, training moved them by {learned:.2g})."
    )


def loss_distance(first: Sequence[RowScore], second: Sequence[RowScore]) -> float:
    """Return how far apart two models' losses of the same rows are.

    Rounding moves each token's loss a little, up or down, so that the mean of a short row moves more than that of a
    long one. Weighting each row's squared difference by its tokens makes them comparable.

    Args:
        first: One score a row.
        second: The same rows.

    Returns:
        Root of the mean over rows of tokens times the squared difference of the row's mean loss, in nats a token.
    """
    squares = [(a.tokens + 1) * (a.mean() - b.mean()) ** 2 for a, b in zip(first, second, strict=True)]
    return math.sqrt(sum(squares) / len(squares))


def _require(off: float, limit: float) -> None:
    if not off <= limit:
        raise ExportError(
            "adapter",
            f"the trained model's held-out losses, within {limit:.2g} nats a token",
            float(f"{off:.2g}"),
            "The saved adapter does not reproduce the training. Do not use it.",
        )
