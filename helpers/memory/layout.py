"""The fastest way through an optimizer step that fits into a card's memory, each choice with its reason."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.core.config import RunConfig, check_skip_layers
from helpers.core.errors import StackError
from helpers.core.text import format_bytes
from helpers.memory.plan import (
    USABLE,
    attention_kind,
    choose_optimizer,
    divisors,
    largest_micro_batch,
    peak_settings,
    shape_for,
)
from helpers.memory.predict import CALIBRATION, GIB, loss_rows, predict_peak
from helpers.memory.shapes import ModelShape
from helpers.model.patches.cuda_graphs import MOST_TOKENS, choose_graphs, recorded_size
from helpers.runtime.hardware import Gpu

__all__ = ["plan_layout"]

_PASS_COST = 2000
"""What a pass through the model costs before its first token, in tokens: on an H100 a pass over 2 rows of 233 tokens
took 0.43 s, over 8 rows 0.63 s. That share is the host's, and larger micro-batches save it."""

_SLOW_PASS_COST = 200
"""The same below compute capability 8.0: not measured, but a T4 needs about ten times as long for a token."""

_RECOMPUTE_COST = 0.27
"""Time that checkpointing all layers adds: 16.0 rows/s without it, 12.6 with it (H100, 8 rows of 233 tokens)."""

_PARTLY_USABLE = 0.85 / USABLE
"""Share of the usable memory that layers without checkpointing may fill when others keep it. Each such layer saves less
than 1 % of the time, and rows of many lengths leave holes in the memory that no prediction counts."""

_LOSS_VARIABLES = ("UNSLOTH_CE_LOSS_TARGET_GB", "UNSLOTH_CE_LOSS_N_CHUNKS")
"""Environment variables that send Unsloth's loss down another path than the one that is planned with."""


@dataclass(frozen=True)
class Layout:
    """How an optimizer step is divided, and what is recomputed.

    Args:
        batch_size: Rows, or packed sequences, in one forward pass.
        gradient_accumulation: Forward passes in one optimizer step.
        packing: Whether sequences are filled with several rows.
        skip_layers: Layers that keep their activations in spite of checkpointing.
        reasons: Why, a sentence for each choice.
    """

    batch_size: int
    gradient_accumulation: int
    packing: bool
    gradient_checkpointing: bool
    skip_layers: int = 0
    reasons: tuple[str, ...] = ()

    def rows_per_step(self) -> int:
        """Rows, or packed sequences, that one optimizer step sees."""
        return self.batch_size * self.gradient_accumulation


@dataclass(frozen=True)
class _Task:
    """What a layout is looked for."""

    shape: ModelShape
    lengths: tuple[int, ...]
    rows: int
    max_seq_length: int
    packing: bool
    pass_cost: int
    settings: dict[str, Any]

    def peak(self, batch: int, kept: int) -> int:
        """The predicted peak when `kept` layers keep their activations, in bytes."""
        checkpointing = kept < self.shape.layers
        skip = kept if checkpointing else 0
        return predict_peak(
            self.shape,
            batch_size=batch,
            seq_length=self.max_seq_length,
            tokens=_largest(self.lengths, batch, self.max_seq_length, packing=self.packing),
            packing=self.packing,
            checkpointing=checkpointing,
            skip_layers=skip,
            **self.settings,
        ).total()

    def mean(self) -> float:
        """The mean length of a row, in tokens."""
        return sum(self.lengths) / len(self.lengths)

    def cost(self, batch: int, kept: int) -> float:
        """The time of an optimizer step, in tokens: one pass's fixed cost and its tokens, and what is recomputed."""
        tokens = batch * (self.max_seq_length if self.packing else self.mean())
        return self.rows / batch * (self.pass_cost + tokens) * (1 + _RECOMPUTE_COST * (1 - kept / self.shape.layers))


def plan_layout(
    config: RunConfig,
    gpu: Gpu | None,
    lengths: Sequence[int],
    *,
    keep: Collection[str] = (),
    chosen: str = "sdpa",
    attention: str | None = None,
    processes: int = 1,
    pass_cost: int | None = None,
) -> Layout:
    """Choose the fastest layout that fits into 92 % of the free memory, or 85 % if only some layers are recomputed.

    Larger micro-batches and less recomputing are weighed by their time (`pass_cost`, `_RECOMPUTE_COST`). Packing is
    never turned on, since a step then sees more rows.

    Args:
        config: The run; its batch_size x gradient_accumulation rows a step are kept.
        gpu: From `find_gpu`; None leaves everything as configured.
        lengths: Of the rows, in tokens; those over max_seq_length are left out, as in training.
        keep: Of "batch_size", "gradient_checkpointing" and "checkpoint_skip_layers", what the user has set and wants
            to stay. With either of the last two set, the number of layers left out of checkpointing stays as it is.
        chosen: What `helpers.model.patches.attention` chose; "sdpa" when nothing better is known.
        attention: A key of `helpers.memory.predict.ATTENTION`; None takes what follows from the card and `chosen`.
        processes: How many train together, each with the configuration's batch_size.
        pass_cost: What a pass costs before its first token, in tokens; None takes what is known of such cards.

    Returns:
        The layout with its reasons, those of the optimizer and of the loss's memory among them. Passes that may be
        recorded are named with what they may take; they are recorded only if that is free, so it does not count.

    Raises:
        ConfigError: The model has fewer than `checkpoint_skip_layers` layers.
        StackError: Nothing fits.
    """
    shape, train, length = shape_for(config), config.train, config.model.max_seq_length
    optimizer = choose_optimizer(train.optimizer, gpu).reason
    if gpu is None or shape is None:
        return _as_configured(config, gpu, optimizer)
    attention = attention or attention_kind(gpu.capability, chosen)
    pass_cost = pass_cost or (_PASS_COST if gpu.capability >= (8, 0) else _SLOW_PASS_COST)
    settings = {"attention": attention, "processes": processes, **peak_settings(config, gpu.total_bytes)}
    rows = _fitting_rows(lengths, length)
    task = _Task(shape, rows, train.rows_per_step(), length, train.packing, pass_cost, settings)
    about_layers = bool({"gradient_checkpointing", "checkpoint_skip_layers"} & set(keep))
    if about_layers:
        check_skip_layers(train.checkpoint_skip_layers, shape.layers)
    layout = _fastest(
        task,
        [train.batch_size] if "batch_size" in keep else divisors(task.rows),
        _allowed(
            shape.layers,
            train.gradient_checkpointing if "gradient_checkpointing" in keep else None,
            train.checkpoint_skip_layers if about_layers else None,
        ),
        round(gpu.free_bytes * USABLE),
    )
    tokens = _largest(rows, layout.batch_size, length, packing=layout.packing)
    reasons = [*layout.reasons, optimizer, _why_this_loss(shape, tokens)]
    train = dataclasses.replace(train, gradient_checkpointing=layout.gradient_checkpointing)
    recorded = choose_graphs(dataclasses.replace(config, train=train), gpu, attention=chosen).name == "graphs"
    if recorded and not (layout.packing and tokens > MOST_TOKENS):
        more = _recorded_bytes(config, shape, tokens, attention)
        reasons.append(f"CUDA graphs may take up to {format_bytes(more)} more, if that much is free.")
    return dataclasses.replace(layout, reasons=tuple(reasons))


def _fastest(task: _Task, sizes: Sequence[int], allowed: Sequence[int], limit: int) -> Layout:
    """Return the layout whose steps take least time, among those whose peak is within `limit` bytes."""
    found = list(_fitting(task, sizes, allowed, limit))
    if not found:
        least = min(task.peak(size, allowed[-1]) for size in sizes)
        raise StackError(
            "GPU memory",
            f"{format_bytes(least)} for the smallest layout",
            f"{format_bytes(limit)} usable",
            "Shorten max_seq_length, lower lora_rank, or take a larger card.",
        )
    size, kept = min(found, key=lambda pair: (task.cost(*pair), -pair[0]))
    recomputed = kept < task.shape.layers
    reasons = tuple(_reasons(task, size, kept, sizes, allowed, limit))
    return Layout(size, task.rows // size, task.packing, recomputed, kept if recomputed else 0, reasons)


def _as_configured(config: RunConfig, gpu: Gpu | None, optimizer: str) -> Layout:
    """Return the layout that is configured, where no card or no shape is known."""
    train = config.train
    why = "No GPU" if gpu is None else f"The shape of {config.model.model_name} is not known"
    reasons = [f"{why}: all as configured."]
    if gpu is None and train.checkpoint_skip_layers:
        reasons.append("checkpoint_skip_layers has no effect: on a CPU Unsloth recomputes all layers or none.")
    return Layout(
        train.batch_size,
        train.gradient_accumulation,
        train.packing,
        train.gradient_checkpointing,
        train.checkpoint_skip_layers,
        (*reasons, optimizer),
    )


def _recorded_bytes(config: RunConfig, shape: ModelShape, tokens: int, attention: str) -> int:
    """What the activations of the largest recorded pass take, which are kept beside those of other passes."""
    size = min(recorded_size(tokens, 1)[0], MOST_TOKENS)
    return predict_peak(
        shape,
        batch_size=1,
        seq_length=size,
        checkpointing=False,
        attention=attention,
        **peak_settings(config, None),
    ).activations


def _fitting_rows(lengths: Sequence[int], max_seq_length: int) -> tuple[int, ...]:
    """The lengths of the rows that training takes; without any, one that is as long as allowed."""
    return tuple(n for n in lengths if n <= max_seq_length) or (max_seq_length,)


def _largest(lengths: tuple[int, ...], batch: int, max_seq_length: int, *, packing: bool) -> int:
    """The tokens of the largest micro-batch."""
    return batch * max_seq_length if packing else largest_micro_batch(lengths, batch)


def _allowed(layers: int, checkpointing: bool | None, skip: int | None) -> list[int]:
    """How many layers may keep their activations, the most first."""
    if checkpointing is False:
        return [layers]
    if skip is None:
        return list(range(layers - 1 if checkpointing else layers, -1, -1))
    return [skip] if checkpointing or skip else [layers, 0]


def _fitting(task: _Task, sizes: Sequence[int], allowed: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Each micro-batch that fits, with the most layers that can keep their activations."""
    for size in sizes:
        kept = next((k for k in allowed if task.peak(size, k) <= _limit(task, k, allowed, limit)), None)
        if kept is not None:
            yield size, kept


def _limit(task: _Task, kept: int, allowed: Sequence[int], limit: int) -> int:
    """The usable memory when this many layers keep their activations: less where that is a choice, layer by layer."""
    return round(limit * _PARTLY_USABLE) if 0 < kept < task.shape.layers and len(allowed) > 1 else limit


def _reasons(
    task: _Task, size: int, kept: int, sizes: Sequence[int], allowed: Sequence[int], limit: int
) -> Iterator[str]:
    """Say why, a sentence for the micro-batch, for checkpointing and for packing."""
    unit = "packed sequences" if task.packing else "rows"
    why = _why_this_size(task, size, sizes, allowed, limit)
    passes = task.rows // size
    yield f"batch_size {size} x gradient_accumulation {passes}: {task.rows} {unit} a step as asked for, {why}."
    yield _why_recompute(task, size, kept, limit)
    rows = f"about {task.rows * task.max_seq_length / task.mean():.0f} rows"
    if task.packing:
        yield (
            f"Packing, as asked for: a step sees {rows} of {task.mean():.0f} tokens in {task.rows} sequences. The "
            "fewer steps of an epoch learn as much only if learning_rate grows with the rows a step (docs/speed.md)."
        )
    else:
        yield f"No packing, since it was not asked for: a step would see {rows} instead of {task.rows}."


def _why_recompute(task: _Task, size: int, kept: int, limit: int) -> str:
    """Say why layers are recomputed, or not."""
    layers, peak = task.shape.layers, f"predicted peak {format_bytes(task.peak(size, kept))} of {format_bytes(limit)}"
    if kept == layers:
        return f"No checkpointing: {peak}; recomputing would take about {_RECOMPUTE_COST:.0%} longer."
    some = f"Checkpointing for {layers - kept} of {layers} layers (checkpoint_skip_layers {kept})"
    which = some if kept else "Checkpointing"
    return f"{which}: {peak}; without checkpointing it would be {format_bytes(task.peak(size, layers))}."


def _why_this_size(task: _Task, size: int, sizes: Sequence[int], allowed: Sequence[int], limit: int) -> str:
    """Say why a micro-batch is not larger."""
    if size == task.rows:
        return f"in one pass, since each pass costs as much time as {task.pass_cost:,} tokens"
    if len(sizes) == 1:
        return "batch_size as given"
    larger = next(n for n in sizes if n > size)
    least = task.peak(larger, allowed[-1])
    if least > limit:
        return f"since {larger} at once would need {format_bytes(least)} of {format_bytes(limit)}"
    return f"since {larger} at once would mean more recomputing, which costs more time than fewer passes save"


def _why_this_loss(shape: ModelShape, tokens: int) -> str:
    """Say what bounds the memory of the loss."""
    if changed := [name for name in _LOSS_VARIABLES if os.environ.get(name)]:
        return f"Loss: {' and '.join(changed)} is set, and what it makes Unsloth keep is not counted in the prediction."
    rows, logit = loss_rows(shape, tokens), CALIBRATION.logit_bytes * shape.vocab / GIB
    if rows == tokens:
        return f"Loss: the logits of all {tokens:,} tokens of a pass at once are assumed, {tokens * logit:.2f} GiB."
    return (
        f"Loss: logits in pieces of at most {rows * logit:.2f} GiB ({rows:,} tokens) are assumed, as Unsloth's loss "
        f"makes them; those of all {tokens:,} tokens of a pass would take {tokens * logit:.2f} GiB."
    )
