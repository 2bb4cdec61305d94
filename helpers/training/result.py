"""What a training did, as numbers and in words."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from helpers.core.paired import Estimate, estimate
from helpers.core.text import format_number
from helpers.model.scoring import RowScore

__all__ = ["describe_change"]


@dataclass
class TrainResult:
    """What training did.

    Args:
        train_loss: (step, mean loss a token) of each optimizer step.
        eval_loss: (step, mean held-out loss a token); the first is from before training.
        heldout_before: Score of each held-out row before training.
        heldout_sources: What each row comes from: rows of one source count once.
        train_seconds: Time in optimizer steps, measurements of the held-out loss left out.
        rows: Rows seen, repeats counted.
        tokens: Tokens seen, padding not counted.
        supervised_tokens: Tokens that the loss was taken over.
        peak_memory_bytes: Highest memory in use: on the card, or of the process on a CPU.
        mode: What the trainer did: packing, padding-free, precision, optimizer.
        heldout_seconds: Time in measurements of the held-out loss.
        forecast: How long all was expected to take; see `helpers.memory.forecast`.
        skipped_updates: Optimizer steps that changed nothing, because a gradient was too large for fp16.
        heldout_best: Score of each held-out row at the measurement whose loss was lowest.
        kept_step: The step whose adapter is kept, where that is not the last one.
        stopped_at: The step after which `early_stopping` ended the training.
    """

    train_loss: list[tuple[int, float]] = field(default_factory=list)
    eval_loss: list[tuple[int, float]] = field(default_factory=list)
    heldout_before: list[RowScore] = field(default_factory=list)
    heldout_after: list[RowScore] = field(default_factory=list)
    heldout_sources: list[int | str] = field(default_factory=list)
    train_seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    peak_memory_bytes: int = 0
    mode: dict[str, Any] = field(default_factory=dict)
    heldout_seconds: float = 0.0
    forecast: dict[str, Any] = field(default_factory=dict)
    skipped_updates: int = 0
    heldout_best: list[RowScore] = field(default_factory=list)
    kept_step: int | None = None
    stopped_at: int | None = None

    def best_step(self) -> int:
        """Return the step after which the held-out loss was lowest, the measurement before training left out."""
        return min(self.eval_loss[1:], key=lambda point: point[1])[0]

    def kept_loss(self) -> float:
        """Return the held-out loss of the adapter that is kept."""
        return self.eval_loss[-1][1] if self.kept_step is None else dict(self.eval_loss)[self.kept_step]

    def state(self) -> dict[str, Any]:
        """Return everything as JSON, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TrainResult:
        """Return the result as it was when `state` was called.

        Args:
            state: What `state` returned, also after JSON.
        """
        losses = {name: [(step, loss) for step, loss in state[name]] for name in ("train_loss", "eval_loss")}
        named = ("heldout_before", "heldout_after", "heldout_best")
        scores = {name: [RowScore(**row) for row in state.get(name, ())] for name in named}
        return cls(**{**state, **losses, **scores})

    def change(self) -> Estimate:
        """Estimate the mean change of the held-out rows' losses."""
        return compare_scores(self.heldout_before, self.heldout_after, self.heldout_sources or None)

    def metrics(self) -> dict[str, Any]:
        """Return the figures that `metrics.json` keeps."""
        seconds = max(self.train_seconds, 1e-9)
        outcome = {"outcome_train_seconds": self.train_seconds, "outcome_heldout_seconds": self.heldout_seconds}
        change = self.change()
        return {
            "train_loss": [[step, loss] for step, loss in self.train_loss],
            "eval_loss": [[step, loss] for step, loss in self.eval_loss],
            "eval_loss_before": self.eval_loss[0][1],
            "eval_loss_after": self.kept_loss(),
            "eval_loss_change": {name: getattr(change, name) for name in ("mean", "low", "high", "rows", "sources")},
            "supervised_tokens": self.supervised_tokens,
            "tokens": self.tokens,
            "rows_seen": self.rows,
            "examples_per_second": self.rows / seconds,
            "tokens_per_second": self.tokens / seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "train_seconds": self.train_seconds,
            "heldout_seconds": self.heldout_seconds,
            "forecast": {**self.forecast, **outcome} if self.forecast else {},
            "skipped_updates": self.skipped_updates,
            "kept_step": self.kept_step,
            "stopped_at": self.stopped_at,
            "mode": self.mode,
        }


def compare_scores(
    before: list[RowScore], after: list[RowScore], sources: Sequence[Hashable] | None = None
) -> Estimate:
    """Estimate the mean change of the rows' losses, in nats a token; negative is better.

    Args:
        sources: Rows that share one count once; None if no two do.
    """
    return estimate([b.mean() - a.mean() for a, b in zip(before, after, strict=True)], sources)


def describe_change(result: TrainResult) -> str:
    """Say in words whether the held-out loss fell, with its interval."""
    change = result.change()
    side = change.majority()
    count = change.below if side == "below" else change.above
    before, after = result.eval_loss[0][1], result.kept_loss()
    verdict = (
        "Held-out answers became more likely."
        if change.is_below(0)
        else "Held-out answers became less likely."
        if change.is_above(0)
        else f"Most held-out answers, {count} of {change.rows}, became {'more' if side == 'below' else 'less'} likely; "
        f"the mean is not judged: {change.why_no_verdict}."
        if side
        else f"Cannot tell whether training helped: {change.why_no_verdict or 'the interval contains zero'}."
    )
    mean = format_number(change.mean, sign=True)
    ends = [format_number(end, sign=True) for end in (change.low, change.high)]
    interval = "" if change.low is None else f" (95 % interval {ends[0]} to {ends[1]})"
    return (
        f"Held-out loss {before:.3f} before, {after:.3f} after. Mean change of {change.rows} rows: "
        f"{mean} nats a token{interval}. {verdict}"
    )
