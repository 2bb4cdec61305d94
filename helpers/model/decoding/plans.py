"""Whether a copy of the weights and captured steps pay for themselves, decided from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from helpers.core.errors import StackError
from helpers.core.text import format_bytes

__all__ = ["BATCH", "RESERVE_BYTES", "SIMPLE_BATCH", "WARM_UP_STEPS", "DecodePlan", "plan_decoding"]

BATCH = 128
"""Prompts side by side, where memory allows: a step reads all weights once, for however many rows."""

SIMPLE_BATCH = 8
"""Prompts side by side in the ordinary loop."""

RESERVE_BYTES = 2 * 2**30
"""Left for prefill's activations, one matrix in float32 while the adapter is added, and the libraries' workspaces."""

WARM_UP_STEPS = 48
"""Steps of the ordinary loop, 70 ms each, that take as long as unpacking the weights and capturing the steps."""


@dataclass(frozen=True)
class DecodePlan:
    """How answers are generated.

    Args:
        kind: "graphs": 16-bit copy of the weights, static cache, captured steps (on a CPU the same, not captured);
            "simple": `helpers.model.decoding.generate`, the adapter switched on and off.
        batch_size: Prompts side by side.
        reason: Why, in a sentence that is printed.
    """

    kind: str
    batch_size: int
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in ("graphs", "simple"):
            raise StackError("plan", "kind graphs or simple", self.kind, "Correct the name.")
        if self.batch_size < 1:
            raise StackError("plan", "a batch_size of at least 1", self.batch_size, "Use 1 or more.")


def plan_decoding(
    parameters: int,
    free_bytes: int | None,
    prompts: int,
    max_new_tokens: int,
    batch: int = BATCH,
    *,
    row_bytes: int = 0,
    weight_bytes: int = 2,
    arms: int = 1,
) -> DecodePlan:
    """Choose between captured steps on a copy of the weights, and the ordinary loop.

    Args:
        parameters: Weights to be copied.
        free_bytes: Free memory of the GPU, beside the loaded model; None without a GPU.
        prompts: How many.
        max_new_tokens: Longest answer, in tokens.
        batch: Most prompts side by side.
        row_bytes: Cache of one prompt and its answer.
        weight_bytes: Bytes of a copied weight.
        arms: How often all prompts are answered.

    Returns:
        The plan; its batch is halved until the cache fits.

    Example:
        >>> plan_decoding(6_979_321_856, 70 * 2**30, 32, 64).kind
        'graphs'
    """
    if free_bytes is None:
        return DecodePlan("simple", SIMPLE_BATCH, "the ordinary loop, because there is no GPU")
    steps = -(-prompts // SIMPLE_BATCH) * max_new_tokens * arms
    if steps < WARM_UP_STEPS:
        reason = f"its {steps} steps are done sooner than the weights are unpacked and the steps captured"
        return DecodePlan("simple", SIMPLE_BATCH, f"the ordinary loop, because {reason}")
    room = free_bytes - parameters * weight_bytes - RESERVE_BYTES
    rows = max(1, min(batch, prompts))
    while rows > 1 and rows * row_bytes > room:
        rows //= 2
    weights, cache = parameters * weight_bytes, rows * row_bytes
    needed = f"{format_bytes(weights)} of copied weights, {format_bytes(cache)} of cache and "
    needed += f"{format_bytes(RESERVE_BYTES)} of reserve"
    if rows * row_bytes > room:
        reason = f"{needed} do not fit into the {format_bytes(free_bytes)} that are free"
        return DecodePlan("simple", SIMPLE_BATCH, f"the ordinary loop, because {reason}")
    reason = f"{rows} prompts side by side: {needed} fit into the {format_bytes(free_bytes)} that are free"
    return DecodePlan("graphs", rows, f"CUDA graphs, {reason}")
