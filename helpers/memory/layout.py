"""The fastest way through an optimizer step that fits into a card's memory, each choice with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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
from helpers.memory.predict import GIB, LOGIT_BYTES, loss_rows, predict_peak
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
class _Search:
    """What a layout is looked for, and where.

    Args:
        rows: Of an optimizer step.
        settings: For `predict_peak`, beside the layout.
        sizes: Micro-batches to try, in rows or packed sequences, the smallest first.
        allowed: How many layers may keep their activations, the most first.
        limit: The usable memory, in bytes.
    """

    shape: ModelShape
    lengths: tuple[int, ...]
    rows: int
    max_seq_length: int
    packing: bool
    pass_cost: int
    settings: dict[str, Any]
    sizes: list[int]
    allowed: list[int]
    limit: int

    def tokens(self, batch: int) -> int:
        """The tokens of the largest micro-batch."""
        return batch * self.max_seq_length if self.packing else largest_micro_batch(self.lengths, batch)

    def peak(self, batch: int, kept: int) -> int:
        """The predicted peak when `kept` layers keep their activations, in bytes."""
        checkpointing = kept < self.shape.layers
        return predict_peak(
            self.shape,
            batch_size=batch,
            seq_length=self.max_seq_length,
            tokens=self.tokens(batch),
            packing=self.packing,
            checkpointing=checkpointing,
            skip_layers=kept if checkpointing else 0,
            **self.settings,
        ).total()

    def fits(self, batch: int, kept: int) -> bool:
        """Whether the peak is within the limit; a lower one where layers are chosen one by one."""
        some = 0 < kept < self.shape.layers and len(self.allowed) > 1
        return self.peak(batch, kept) <= (round(self.limit * _PARTLY_USABLE) if some else self.limit)

    def mean(self) -> float:
        """The mean length of a row, in tokens."""
        return sum(self.lengths) / len(self.lengths)

    def cost(self, batch: int, kept: int) -> float:
        """The time of an optimizer step, in tokens: one pass's fixed cost and its tokens, and what is recomputed."""
        tokens = batch * (self.max_seq_length if self.packing else self.mean())
        return self.rows / batch * (self.pass_cost + tokens) * (1 + _RECOMPUTE_COST * (1 - kept / self.shape.layers))

    def fastest(self) -> tuple[int, int]:
        """The micro-batch whose steps take least time among those that fit, and how many layers are not recomputed."""
        most = {size: next((k for k in self.allowed if self.fits(size, k)), None) for size in self.sizes}
        fitting = [(size, kept) for size, kept in most.items() if kept is not None]
        if not fitting:
            least = min(self.peak(size, self.allowed[-1]) for size in self.sizes)
            raise StackError(
                "GPU memory",
                f"{format_bytes(least)} for the smallest layout",
                f"{format_bytes(self.limit)} usable",
                "Shorten max_seq_length, lower lora_rank, or take a larger card.",
            )
        return min(fitting, key=lambda pair: (self.cost(*pair), -pair[0]))


def plan_layout(
    config: RunConfig,
    gpu: Gpu | None,
    lengths: Sequence[int],
    *,
    chosen: str = "sdpa",
    attention: str | None = None,
    processes: int = 1,
    pass_cost: int | None = None,
) -> tuple[RunConfig, tuple[str, ...]]:
    """Choose the fastest layout that fits into 92 % of the free memory, or 85 % if only some layers are recomputed.

    Larger micro-batches and less recomputing are weighed by their time (`pass_cost`, `_RECOMPUTE_COST`). Packing is
    never turned on, since a step then sees more rows. What the user has set stays; with gradient_checkpointing or
    checkpoint_skip_layers among it, the number of layers left out of checkpointing stays as it is.

    Args:
        config: The run; its batch_size x gradient_accumulation rows a step are kept.
        gpu: From `find_gpu`; None leaves everything as configured.
        lengths: Of the rows, in tokens; those over max_seq_length are left out, as in training.
        chosen: What `helpers.model.patches.attention` chose; "sdpa" when nothing better is known.
        attention: A key of `helpers.memory.predict.ATTENTION`; None takes what follows from the card and `chosen`.
        processes: How many train together, each with the configuration's batch_size.
        pass_cost: What a pass costs before its first token, in tokens; None takes what is known of such cards.

    Returns:
        The run in its layout, and the reasons, those of the optimizer and of the loss's memory among them. Passes that
        may be recorded are named with what they may take; they are recorded only if that is free, so it does not count.

    Raises:
        ConfigError: The model has fewer than `checkpoint_skip_layers` layers.
        StackError: Nothing fits.
    """
    shape, train, length = shape_for(config), config.train, config.model.max_seq_length
    optimizer = choose_optimizer(train.optimizer, gpu.total_bytes if gpu else None).reason
    if gpu is None or shape is None:
        why = "No GPU" if gpu is None else f"The shape of {config.model.model_name} is not known"
        reasons = [f"{why}: all as configured."]
        if gpu is None and train.checkpoint_skip_layers:
            reasons.append("checkpoint_skip_layers has no effect: on a CPU Unsloth recomputes all layers or none.")
        return config, (*reasons, optimizer)
    attention = attention or attention_kind(gpu.capability, chosen)
    about_layers = bool({"gradient_checkpointing", "checkpoint_skip_layers"} & config.given)
    if about_layers:
        check_skip_layers(train.checkpoint_skip_layers, shape.layers)
    search = _Search(
        shape,
        tuple(n for n in lengths if n <= length) or (length,),
        train.rows_per_step(),
        length,
        train.packing,
        pass_cost or (_PASS_COST if gpu.capability >= (8, 0) else _SLOW_PASS_COST),
        {"attention": attention, "processes": processes, **peak_settings(config, gpu.total_bytes)},
        [train.batch_size] if "batch_size" in config.given else divisors(train.rows_per_step()),
        _allowed(
            shape.layers,
            train.gradient_checkpointing if "gradient_checkpointing" in config.given else None,
            train.checkpoint_skip_layers if about_layers else None,
        ),
        round(gpu.free_bytes * USABLE),
    )
    size, kept = search.fastest()
    recomputed = kept < shape.layers
    found = config.changed(
        batch_size=size,
        gradient_accumulation=search.rows // size,
        gradient_checkpointing=recomputed,
        checkpoint_skip_layers=kept if recomputed else 0,
    )
    tokens = search.tokens(size)
    reasons = [*_reasons(search, size, kept), optimizer, _why_this_loss(shape, tokens)]
    recorded = choose_graphs(found, gpu, attention=chosen).name == "graphs"
    if recorded and not (train.packing and tokens > MOST_TOKENS):
        more = _recorded_bytes(config, shape, tokens, attention)
        weights = format_bytes(2 * shape.linear_parameters())
        unpacked = f" Unpacked weights may take {weights}, if twice that is left." if config.model.load_in_4bit else ""
        reasons.append(f"CUDA graphs may take up to {format_bytes(more)} more, if that much is free.{unpacked}")
    return found, tuple(reasons)


def _allowed(layers: int, checkpointing: bool | None, skip: int | None) -> list[int]:
    """How many layers may keep their activations, the most first; None for what the user has not set."""
    if checkpointing is False:
        return [layers]
    if skip is None:
        return list(range(layers - 1 if checkpointing else layers, -1, -1))
    return [skip] if checkpointing or skip else [layers, 0]


def _recorded_bytes(config: RunConfig, shape: ModelShape, tokens: int, attention: str) -> int:
    """What the activations of the largest recorded pass take, which are kept beside those of other passes."""
    size = min(recorded_size(tokens, 1)[0], MOST_TOKENS)
    settings = peak_settings(config, None)
    return predict_peak(
        shape, batch_size=1, seq_length=size, checkpointing=False, attention=attention, **settings
    ).activations


def _reasons(search: _Search, size: int, kept: int) -> Iterator[str]:
    """Say why, a sentence for the micro-batch, for checkpointing and for packing."""
    unit = "packed sequences" if search.packing else "rows"
    passes = search.rows // size
    why = _why_this_size(search, size)
    yield f"batch_size {size} x gradient_accumulation {passes}: {search.rows} {unit} a step as asked for, {why}."
    yield _why_recompute(search, size, kept)
    rows = f"about {search.rows * search.max_seq_length / search.mean():.0f} rows"
    if search.packing:
        yield (
            f"Packing, as asked for: a step sees {rows} of {search.mean():.0f} tokens in {search.rows} sequences. The "
            "fewer steps of an epoch learn as much only if learning_rate grows with the rows a step (docs/speed.md)."
        )
    else:
        yield f"No packing, since it was not asked for: a step would see {rows} instead of {search.rows}."


def _why_recompute(search: _Search, size: int, kept: int) -> str:
    """Say why layers are recomputed, or not."""
    layers = search.shape.layers
    peak = f"predicted peak {format_bytes(search.peak(size, kept))} of {format_bytes(search.limit)}"
    if kept == layers:
        return f"No checkpointing: {peak}; recomputing would take about {_RECOMPUTE_COST:.0%} longer."
    some = f"Checkpointing for {layers - kept} of {layers} layers (checkpoint_skip_layers {kept})"
    which = some if kept else "Checkpointing"
    return f"{which}: {peak}; without checkpointing it would be {format_bytes(search.peak(size, layers))}."


def _why_this_size(search: _Search, size: int) -> str:
    """Say why a micro-batch is not larger."""
    if size == search.rows:
        return f"in one pass, since each pass costs as much time as {search.pass_cost:,} tokens"
    if len(search.sizes) == 1:
        return "batch_size as given"
    larger = next(n for n in search.sizes if n > size)
    least = search.peak(larger, search.allowed[-1])
    if least > search.limit:
        return f"since {larger} at once would need {format_bytes(least)} of {format_bytes(search.limit)}"
    return f"since {larger} at once would mean more recomputing, which costs more time than fewer passes save"


def _why_this_loss(shape: ModelShape, tokens: int) -> str:
    """Say what bounds the memory of the loss."""
    if changed := [name for name in _LOSS_VARIABLES if os.environ.get(name)]:
        return f"Loss: {' and '.join(changed)} is set, and what it makes Unsloth keep is not counted in the prediction."
    rows, logit = loss_rows(shape, tokens), LOGIT_BYTES * shape.vocab / GIB
    if rows == tokens:
        return f"Loss: the logits of all {tokens:,} tokens of a pass at once are assumed, {tokens * logit:.2f} GiB."
    return (
        f"Loss: logits in pieces of at most {rows * logit:.2f} GiB ({rows:,} tokens) are assumed, as Unsloth's loss "
        f"makes them; those of all {tokens:,} tokens of a pass would take {tokens * logit:.2f} GiB."
    )
