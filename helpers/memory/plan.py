"""Whether a run fits into a card's memory, with which optimizer, and what to change if it does not.

The peaks come from `helpers.memory.predict`; nothing here needs a GPU.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from helpers.core.choice import Choice
from helpers.core.config import RunConfig, check_skip_layers
from helpers.core.distributed import place
from helpers.core.errors import ConfigError, StackError
from helpers.core.text import format_bytes
from helpers.memory.predict import GIB, OPTIMIZERS, Prediction, predict_peak
from helpers.memory.shapes import MISTRAL_7B, SMOLLM2_135M, ModelShape, shape_of
from helpers.model.patches.attention import MEMORY_EFFICIENT
from helpers.runtime.hardware import LARGE_GPU_BYTES, Gpu

__all__ = [
    "USABLE",
    "advise",
    "attention_kind",
    "check_layers",
    "choose_optimizer",
    "largest_micro_batch",
    "predict_config",
    "preflight_memory",
    "shape_for",
    "smallest_config",
]


USABLE = 0.92
"""Share of the free memory that is planned with; the rest is for the CUDA context and an allocator in pieces."""

_SHUFFLED_ROWS = 200_000
"""Rows that are shuffled, in whole epochs, to look for the largest micro-batch."""


@lru_cache(maxsize=64)
def largest_micro_batch(lengths: tuple[int, ...], size: int) -> int:
    """Return the tokens in the largest micro-batch that training is likely to meet.

    The rows are shuffled often, with a fixed seed: 4 to 64 epochs, 200,000 rows if that is in between.

    Args:
        lengths: Of the rows, in tokens; at least one.

    Example:
        >>> largest_micro_batch((100, 100, 300), 2)
        400
    """
    if size == 1 or size >= len(lengths):
        return max(lengths) if size == 1 else sum(lengths)
    order, largest, shuffle = list(lengths), 0, random.Random(0).shuffle  # noqa: S311 - no secret depends on it
    for _ in range(min(max(_SHUFFLED_ROWS // len(order), 4), 64)):
        shuffle(order)
        largest = max(largest, *(sum(order[i : i + size]) for i in range(0, len(order), size)))
    return largest


def shape_for(config: RunConfig) -> ModelShape | None:
    """Return the shape of a configuration's model; None for a hub id whose config.json is not on this machine.

    Raises:
        ConfigError: The model's folder has no usable config.json.
    """
    name = config.model.model_name
    known = {"mistral-7b-instruct": MISTRAL_7B, "smollm2-135m": SMOLLM2_135M}
    if name in known:
        return known[name]
    if os.path.isdir(name):
        return shape_of(name)
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(name, "config.json", revision=config.model.model_revision)
    return shape_of(found) if isinstance(found, str) else None


def check_layers(config: RunConfig) -> None:
    """Raise when more layers are to keep their activations than the model has, where its shape is known.

    Raises:
        ConfigError: It has fewer than `checkpoint_skip_layers` layers.
    """
    skip = config.train.checkpoint_skip_layers
    shape = shape_for(config) if skip else None
    if shape is not None:
        check_skip_layers(skip, shape.layers)


def predict_config(
    config: RunConfig,
    *,
    shape: ModelShape | None = None,
    lengths: Sequence[int] | None = None,
    attention: str = "rows",
    total_bytes: int | None = None,
    processes: int = 1,
) -> Prediction:
    """Predict the peak of a run.

    Args:
        shape: Of its model; by default found by `shape_for`.
        lengths: Of its rows, in tokens. Without them every row is taken to be max_seq_length long.
        attention: One of `helpers.memory.predict.ATTENTION`.
        total_bytes: Memory of the card, in bytes, which decides the optimizer; None for a CPU.
        processes: How many train together, each with the configuration's batch_size.

    Raises:
        ConfigError: The model's shape is not known, or it has fewer than `checkpoint_skip_layers` layers.
    """
    shape = shape or shape_for(config)
    if shape is None:
        raise ConfigError(
            "model_name",
            "a model whose config.json is on this machine",
            config.model.model_name,
            "Name a local folder, or load the model once.",
        )
    train, model = config.train, config.model
    check_skip_layers(train.checkpoint_skip_layers, shape.layers)
    fitting = tuple(n for n in lengths or () if n <= model.max_seq_length)
    tokens = largest_micro_batch(fitting, train.batch_size) if fitting and not train.packing else None
    return predict_peak(
        shape,
        batch_size=train.batch_size,
        seq_length=model.max_seq_length,
        tokens=tokens,
        checkpointing=train.gradient_checkpointing,
        packing=train.packing,
        skip_layers=train.checkpoint_skip_layers,
        attention=attention,
        processes=processes,
        **peak_settings(config, total_bytes),
    )


def peak_settings(config: RunConfig, total_bytes: int | None) -> dict[str, Any]:
    """Return what `predict_peak` must know of a configuration beside its layout.

    Args:
        total_bytes: Memory of the card, in bytes, which decides the optimizer; None for a CPU.
    """
    return {
        "rank": config.adapter.lora_rank,
        "four_bit": config.model.load_in_4bit,
        "dropout": config.adapter.lora_dropout,
        "dtype_bytes": 4 if config.model.precision == "fp32" else 2,
        "optimizer": choose_optimizer(config.train.optimizer, total_bytes).name,
    }


def advise(
    config: RunConfig,
    gpu_bytes: int,
    *,
    lengths: Sequence[int] | None = None,
    attention: str = "rows",
    total_bytes: int | None = None,
    processes: int = 1,
) -> list[str]:
    """Say what to change, step by step, until a run fits.

    Args:
        gpu_bytes: Free memory of the card, in bytes.
        lengths: See `predict_config`, as for attention and processes.
        total_bytes: Memory of the card, in bytes; None takes `gpu_bytes`.

    Returns:
        One sentence a change, each with the peak after it and all before it; empty when the run fits as it is. The
        last sentence says so if nothing helps.
    """
    total, limit = total_bytes or gpu_bytes, round(gpu_bytes * USABLE)

    def predicted(wanted: RunConfig) -> int:
        return predict_config(
            wanted, lengths=lengths, attention=attention, total_bytes=total, processes=processes
        ).total()

    peak = predicted(config)
    steps: dict[tuple[str, ...], str] = {}
    for change, note in _changes(config, total):
        if peak <= limit:
            break
        changed = config.changed(**change)
        after = predicted(changed)
        if after < peak:
            config, peak = changed, after
            named = " and ".join(f"{name} = {value}" for name, value in change.items())
            steps[tuple(change)] = f"set {named}{note}: predicted peak {format_bytes(peak)}."
    said = [("Then " if place else "") + text for place, text in enumerate(steps.values())]
    said = [text[0].upper() + text[1:] for text in said]
    if peak > limit:
        said.append(f"That is still more than {format_bytes(limit)}: take a larger card or a smaller model.")
    return said


def _changes(config: RunConfig, total_bytes: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield what can be changed, in the order to try it, with a remark on what it costs."""
    train, model = config.train, config.model
    if not train.gradient_checkpointing:
        yield {"gradient_checkpointing": True}, " (about 27 % slower)"
    if train.checkpoint_skip_layers:
        yield {"checkpoint_skip_layers": 0}, " (up to 27 % slower)"
    rows = train.rows_per_step()
    for size in reversed(divisors(rows)):
        if size < train.batch_size:
            yield {"batch_size": size, "gradient_accumulation": rows // size}, f" (still {rows} rows a step)"
    if choose_optimizer(train.optimizer, total_bytes).name == "adamw_torch_fused":
        yield {"optimizer": "adamw_8bit"}, ""
    if not model.load_in_4bit:
        yield {"load_in_4bit": True}, ""
    for length in (8192, 4096, 2048, 1024, 512, 256):
        if length < model.max_seq_length and config.generation.max_new_tokens < length:
            yield {"max_seq_length": length}, "" if train.packing else " (longer rows are left out)"
    for rank in (64, 32, 16, 8, 4):
        if rank < config.adapter.lora_rank:
            yield {"lora_rank": rank}, ""


def attention_kind(capability: tuple[int, int], chosen: str = "sdpa") -> str:
    """Return how batches go through attention, as `predict_peak` wants it.

    Args:
        chosen: What `helpers.model.patches.attention` chose; "sdpa" when nothing better is known.

    Example:
        >>> attention_kind((7, 5))
        'expanded'
    """
    if chosen in ("xformers", MEMORY_EFFICIENT) or capability < (8, 0):
        return "expanded"
    return "varlen" if chosen.startswith("varlen") or chosen == "flash-attn" else "rows"


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, in rising order.

    Example:
        >>> divisors(8)
        [1, 2, 4, 8]
    """
    return [n for n in range(1, number + 1) if number % n == 0]


def preflight_memory(config: RunConfig, gpu: Gpu | None) -> str:
    """Stop a run that the card has no room for whatever its rows are, before anything is downloaded.

    What `helpers.memory.layout.plan_layout` is free to choose is taken as it needs least memory: short rows, unless
    sequences are packed, the attention that needs least on the card, and, unless the user has set them, one row a pass
    and checkpointing. What fits so far is judged again by the layout, which knows the rows.

    Args:
        gpu: From `find_gpu`; None skips the check.

    Returns:
        A sentence with the least memory and the usable one, or why nothing was predicted.

    Raises:
        StackError: Even that exceeds the usable share of the free memory. The message says what to change.
    """
    if gpu is None:
        return "No GPU, so no GPU memory to plan."
    if shape_for(config) is None:
        return f"The shape of {config.model.model_name} is not known yet, so its memory is not predicted."
    least = smallest_config(config)
    known: dict[str, Any] = {
        "attention": attention_kind(gpu.capability, "varlen" if gpu.capability >= (8, 0) else "sdpa"),
        "lengths": (1,) * least.train.batch_size,
        "total_bytes": gpu.total_bytes,
        "processes": place().count,
    }
    peak, limit = predict_config(least, **known).total(), round(gpu.free_bytes * USABLE)
    there = f"{format_bytes(limit)} usable of {format_bytes(gpu.free_bytes)} free on the {gpu.name}"
    if peak <= limit:
        return f"Predicted peak {format_bytes(peak)} at least, {there}."
    held = gpu.total_bytes - gpu.free_bytes
    steps = advise(least, gpu.free_bytes, **known)
    if held > GIB:
        steps = [f"{format_bytes(held)} are in use by something else: restart the runtime.", *steps]
    rows = "" if config.train.packing else " with the shortest rows"
    raise StackError("GPU memory", f"{format_bytes(peak)} for this run's peak{rows}", there, " ".join(steps))


def smallest_config(config: RunConfig) -> RunConfig:
    """Return a run in the layout that needs least memory, among those that what the user has set leaves open."""
    change: dict[str, Any] = {}
    if "batch_size" not in config.given:
        change |= {"batch_size": 1, "gradient_accumulation": config.train.rows_per_step()}
    if "gradient_checkpointing" not in config.given:
        change["gradient_checkpointing"] = True
        if "checkpoint_skip_layers" not in config.given:
            change["checkpoint_skip_layers"] = 0
    return config.changed(**change)


def choose_optimizer(wanted: str, total_bytes: int | None) -> Choice:
    """Choose the optimizer.

    bitsandbytes' 8-bit states save 6 bytes a trained parameter, a quarter of a GiB at rank 16, and launch one kernel
    for each matrix; the fused one launches a few for all, and is taken where that quarter does not matter.

    Args:
        wanted: "auto", or the name of one, which is taken on any GPU.
        total_bytes: Memory of the card, in bytes; None for a CPU, where it is always torch's.

    Returns:
        Its name, as transformers calls it, and the reason.

    Example:
        >>> choose_optimizer("auto", 16 * 2**30).name
        'adamw_8bit'
    """
    if total_bytes is None:
        return Choice("adamw_torch", "Optimizer: on a CPU it is always torch's own AdamW.")
    if wanted != "auto":
        return Choice(wanted, f"Optimizer {wanted}, as asked for.")
    large, small = "adamw_torch_fused", "adamw_8bit"
    limit, here = format_bytes(LARGE_GPU_BYTES), format_bytes(total_bytes)
    if total_bytes >= LARGE_GPU_BYTES:
        why = (
            f"few launches for all weights; the memory that {small} saves matters little from {limit} on ({here} here)"
        )
        return Choice(large, f"Optimizer {large}: {why}.")
    sizes = f"{OPTIMIZERS[small]:.0f} bytes a trained parameter instead of {OPTIMIZERS[large]:.0f}"
    return Choice(small, f"Optimizer {small}: {sizes}, which matters below {limit} ({here} here).")
