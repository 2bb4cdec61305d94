"""How far apart two models are: their logits on the same tokens, and their greedy answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from helpers.model.patches import replaced_method

__all__ = [
    "Check",
    "Distance",
    "input_device",
    "jitter_activations",
    "jitter_weights",
    "logits_of",
    "logits_of_batch",
    "measure_distance",
    "word",
]

_MANTISSA_BITS = {"bf16": 7, "fp16": 10, "fp32": 23}


@dataclass(frozen=True)
class Check:
    """One part of a comparison of two models.

    Args:
        name: What was checked.
        passed: Whether it is as it should be; None if that cannot be told, such as of an adapter without effect.
        detail: The numbers, in plain words.
    """

    name: str
    passed: bool | None
    detail: str

    @property
    def result(self) -> str:
        """PASS, FAIL or CANNOT TELL."""
        return word(self.passed)


def word(passed: bool | None) -> str:
    """Return what True, False and None mean as a result: PASS, FAIL, CANNOT TELL."""
    return {True: "PASS", False: "FAIL", None: "CANNOT TELL"}[passed]


@dataclass(frozen=True)
class Distance:
    """How much two sets of logits differ, over all answer positions and the whole vocabulary.

    Args:
        rms: Root of the mean squared difference, in logits.
        mean: Mean absolute difference, in logits.
        largest: Largest absolute difference, in logits.
        kl: Mean Kullback-Leibler divergence from the first to the second, in nats a token.
        same_choice: Share of positions where both find the same token likeliest.
    """

    rms: float
    mean: float
    largest: float
    kl: float
    same_choice: float


def input_device(model: Any) -> Any:
    """Return where a model takes its tokens: the card, if its weights wait elsewhere."""
    import torch

    device = model.get_input_embeddings().weight.device
    return torch.device("cuda") if device.type == "meta" and torch.cuda.is_available() else device


def logits_of(model: Any, tokens: Sequence[int]) -> Any:
    """Run one sequence in evaluation mode; return its logits, tokens x vocabulary, in float32 on the CPU."""
    return logits_of_batch(model, [tokens])[0]


def logits_of_batch(model: Any, sequences: Sequence[Sequence[int]]) -> list[Any]:
    """Run sequences in one pass, filled up on the right; return for each what `logits_of` does."""
    import torch

    device, width, training = input_device(model), max(map(len, sequences)), model.training
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in sequences], device=device)
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in sequences], device=device)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
    finally:
        model.train(training)
    return [each[: len(tokens)] for each, tokens in zip(logits, sequences, strict=True)]


def measure_distance(first: Sequence[Any], second: Sequence[Any]) -> Distance:
    """Compare two sets of logits.

    Args:
        first: One tensor a sequence, positions x vocabulary.
        second: The same positions of another model.

    Returns:
        The distances. NaN or infinite logits give infinite distances.
    """
    import torch

    a, b = torch.cat([t.float() for t in first]), torch.cat([t.float() for t in second])
    if a.shape != b.shape or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return Distance(math.inf, math.inf, math.inf, math.inf, 0.0)
    apart = (a - b).abs()
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    kl = (log_a.exp() * (log_a - log_b)).sum(-1).mean().clamp_min(0)
    same = (a.argmax(-1) == b.argmax(-1)).float().mean()
    return Distance(
        apart.square().mean().sqrt().item(), apart.mean().item(), apart.max().item(), kl.item(), same.item()
    )


@contextmanager
def jitter_activations(model: Any) -> Iterator[None]:
    """Move one in twelve of the embedded tokens' numbers by one step of their type.

    Everything after it is then rounded anew, so that the change of the logits shows what the arithmetic's precision
    alone does to them.

    Args:
        model: The model; it is as before after the block.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    generator = torch.Generator("cpu" if device.type == "meta" else device).manual_seed(0)

    def move(module: Any, inputs: Any, output: Any) -> Any:
        return _move_steps(output, generator, 0)

    handle = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def jitter_weights(stored: str, vocabulary: int) -> Iterator[None]:
    """Move one in twelve of all linear layers' weights by one step of the type they are stored in.

    Done while the layer computes, so that it also works for weights that wait on the disk or in main memory.

    Args:
        stored: "fp16", "bf16" or "fp32": the type on the disk.
        vocabulary: Rows of the output layer, which a merge does not touch and which is left alone.
    """
    import torch
    from torch.nn import functional

    generators: dict[Any, Any] = {}
    original = functional.linear

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(0)
        skip = weight.shape[0] == vocabulary or not weight.is_floating_point()
        return original(
            x, weight if skip else _move_steps(weight, generators[weight.device], _MANTISSA_BITS[stored]), bias
        )

    with replaced_method(functional, "linear", linear):
        yield


def _move_steps(values: Any, generator: Any, stored_bits: int) -> Any:
    """Return a copy with one number in twelve one step away, of its own type or of one with fewer mantissa bits.

    Rounding to nearest leaves an error with the variance of 1/12 of a squared step. Moving one number in twelve by one
    step, up or down, has the same variance, so that the effect of rounding can be measured by doing it.
    """
    import torch

    bits = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}[values.dtype]
    whole = torch.int32 if values.dtype == torch.float32 else torch.int16
    draw = torch.randint(0, 24, values.shape, generator=generator, dtype=torch.uint8, device=generator.device)
    draw = draw.to(values.device)
    steps = (draw == 0).to(whole) - (draw == 1).to(whole)  # one in 24 up, one in 24 down
    steps = torch.where(values == 0, 0, steps) << max(bits - (stored_bits or bits), 0)
    return (values.detach().contiguous().view(whole) + steps).view(values.dtype)
