"""An experiment: frozen 4-bit weights unpacked once for a training, where the card has room for them.

Each pass through a QLoRA model unpacks every frozen matrix twice: once forward and once backward. On an H100 that costs
the card about 20 ms, and the host some 450 launches, in every pass. Small passes are limited by the host. Where memory
is free, 2 bytes a weight (13 GiB for Mistral-7B) buy all of it: the same function unpacks each matrix once, and its
result is handed out from then on. The numbers are the same, bit for bit.

Found against unsloth 2026.10.9, whose kernels all call `unsloth.kernels.utils.fast_dequantize`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from helpers.memory.shapes import ModelShape

UNPACKED_TESTED = "2026.10.9"
"""The only version of unsloth whose kernels are known to ask `fast_dequantize` for every matrix."""

KEPT = "kept_unpacked"
"""Attribute of a quantization state that holds its matrix."""


def unpacked_bytes(shape: ModelShape) -> int:
    """Return what the unpacked matrices occupy, in bytes.

    Args:
        shape: The model's.

    Example:
        >>> from helpers.memory.shapes import MISTRAL_7B
        >>> unpacked_bytes(MISTRAL_7B) / 2**30
        13.0
    """
    return 2 * shape.linear_parameters()


@contextmanager
def unpacked_weights(model: Any, kernels: Any = None) -> Iterator[int]:
    """Keep the frozen matrices unpacked inside the block; afterwards their memory is free again.

    Args:
        model: With 4-bit layers; others are left alone.
        kernels: The module that unpacks; by default Unsloth's, if its version is the tested one.

    Yields:
        The number of matrices kept; 0 where nothing can be gained.
    """
    kernels = kernels or _kernels()
    weights = _packed_weights(model) if kernels else []
    if not weights:
        yield 0
        return
    original = kernels.fast_dequantize
    replacement = _remembering(original)
    for weight in weights:
        setattr(weight.quant_state, KEPT, original(weight, weight.quant_state))
    _replace_everywhere(original, replacement)
    try:
        yield len(weights)
    finally:
        _replace_everywhere(replacement, original)
        for weight in weights:
            delattr(weight.quant_state, KEPT)


def _kernels() -> Any:
    """Return Unsloth's module that unpacks; None for another version, or without a GPU."""
    import torch
    import unsloth

    if unsloth.__version__ != UNPACKED_TESTED or not torch.cuda.is_available():
        return None
    from unsloth.kernels import utils

    return utils


def _packed_weights(model: Any) -> list[Any]:
    """Return the weights that are packed and frozen, each once: PEFT's layers show those of the layers they wrap."""
    found = (getattr(layer, "weight", None) for layer in model.modules())
    packed = (each for each in found if getattr(each, "quant_state", None) is not None and not each.requires_grad)
    return list({id(each): each for each in packed}.values())


def _remembering(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that unpacks, with a look at what is kept before."""

    def fast_dequantize(packed: Any, quant_state: Any = None, out: Any = None, *rest: Any, **named: Any) -> Any:
        kept = getattr(quant_state, KEPT, None)
        if kept is None or out is not None:
            return original(packed, quant_state, out, *rest, **named)
        return kept.t() if packed.shape[0] == 1 else kept  # packed bytes are a column; as a row they are transposed

    return fast_dequantize


def _replace_everywhere(old: Any, new: Any) -> None:
    """Replace the function in every module that imported it by name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("fast_dequantize") is old:
            module.fast_dequantize = new  # type: ignore[attr-defined]
