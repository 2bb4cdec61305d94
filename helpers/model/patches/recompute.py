"""Recomputed layers without their last product, whose result nothing reads.

With checkpointing a layer is run again when the backward pass reaches it, to have what its gradients need. The hidden
states that it hands to the next layer are not among that, and in a Llama-like layer the down projection, 27 % of
Mistral-7B's products, makes nothing else. Where autograd sees single operations, PyTorch stops such a pass early (see
`torch.utils.checkpoint.set_checkpoint_early_stop`); Unsloth runs the whole MLP as one operation and so multiplies all
the same. Here zeros take the product's place. Gradients are the same, bit for bit.

Found against unsloth 2026.10.9: `LoRA_MLP` asks `unsloth.kernels.fast_lora.matmul_lora` for each product, and
`unsloth_zoo.gradient_checkpointing` tells when a layer is recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["lean_recompute"]

RECOMPUTE_TESTED = "2026.10.9"
"""The only version of unsloth whose MLP is known to compute so."""

MODEL_TYPES = ("llama", "mistral")
"""Models whose layers end with "residual + MLP". Others, such as Gemma 2, normalize what the MLP gives, and need it."""


@contextmanager
def lean_recompute(model: Any, kernels: Any = None, recomputing: Callable[[], bool] | None = None) -> Iterator[int]:
    """Leave out the last product of recomputed layers inside the block; afterwards everything is as before.

    Args:
        model: With an adapter or without.
        kernels: The module with `matmul_lora`; by default Unsloth's, if its version is the tested one.
        recomputing: Says whether a layer is being recomputed; by default Unsloth's.

    Yields:
        The number of layers concerned; 0 where nothing is changed.
    """
    last = _last_products(model)
    if kernels is None and last:
        kernels, recomputing = _unsloth()
    if kernels is None or recomputing is None or not last:
        yield 0
        return
    original = kernels.matmul_lora
    kernels.matmul_lora = _leaving_out(original, last, recomputing)
    try:
        yield len(last)
    finally:
        kernels.matmul_lora = original


def _last_products(model: Any) -> dict[int, Any]:
    """Return the linear layer behind each down projection, by the identity of its weight."""
    if getattr(getattr(model, "config", None), "model_type", None) not in MODEL_TYPES:
        return {}
    projections = (getattr(getattr(module, "mlp", None), "down_proj", None) for module in model.modules())
    linear = (getattr(each, "base_layer", each) for each in projections if each is not None)
    return {id(each.weight): each for each in linear}


def _unsloth() -> tuple[Any, Any]:
    """Return Unsloth's kernels, and what tells a recomputed pass; None for another version or without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    import unsloth

    if unsloth.__version__ != RECOMPUTE_TESTED:
        return None, None
    from unsloth.kernels import fast_lora
    from unsloth_zoo.gradient_checkpointing import in_gradient_checkpoint_recompute

    return fast_lora, in_gradient_checkpoint_recompute


def _leaving_out(
    original: Callable[..., Any], last: dict[int, Any], recomputing: Callable[[], bool]
) -> Callable[..., Any]:
    """Return a `matmul_lora` that gives zeros where nothing reads the product. A compiled layer is left as it is."""
    import torch

    def matmul_lora(x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling() or id(weight) not in last or not recomputing():
            return original(x, weight, *rest, **named)
        return x.new_zeros(*x.shape[:-1], last[id(weight)].out_features)

    return matmul_lora
