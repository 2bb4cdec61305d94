"""Frozen 4-bit weights unpacked once, where the card has room for all of them in 16 bit.

QLoRA multiplies in 16 bit: every frozen weight is unpacked from NF4 in the forward pass and again in the backward pass.
On a large card that spends time to save memory that nobody needs: 10 of the 130 ms that the kernels of a pass over 8
short rows take (7B, H200). With weights that are unpacked once and kept, what is multiplied is the same, bit for bit.

Found against unsloth 2026.10.9, whose products look up `fast_dequantize` in the modules below at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from helpers.model.patches import replaced_method

__all__ = ["weights_unpacked_once"]


@contextmanager
def weights_unpacked_once(model: Any, kernels: Sequence[Any] = ()) -> Iterator[Callable[[int], int]]:
    """Let a model's NF4 weights be unpacked once, and kept until the block ends.

    Args:
        kernels: The modules with `fast_dequantize`; by default Unsloth's.

    Yields:
        A function of the bytes that are free. It drops what it kept before; if the weights take at most half of these
        bytes, it unpacks and keeps them. It returns the bytes that they take: 0 where nothing is kept.
    """
    kept: dict[int, tuple[Any, Any]] = {}
    with ExitStack() as held:

        def keep(free: int) -> int:
            import torch

            held.close()
            packed = list(_packed_weights(model))
            needed = sum(state.shape.numel() * state.dtype.itemsize for _, state in packed)
            if not 0 < 2 * needed <= free:
                return 0
            owners = kernels or _unsloths()
            held.callback(kept.clear)
            try:
                # a state is kept with its weight, so that no other gets its id
                kept.update({id(state): (state, owners[0].fast_dequantize(weight, state)) for weight, state in packed})
            except torch.OutOfMemoryError:  # what is free can lie in pieces
                torch.cuda.empty_cache()
                return 0
            for owner in owners:
                held.enter_context(replaced_method(owner, "fast_dequantize", _reading(kept, owner.fast_dequantize)))
            return needed

        yield keep


def _packed_weights(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each NF4 weight, as bitsandbytes packs it, with what unpacks it."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        if getattr(state, "quant_type", None) == "nf4":
            yield weight, state


def _reading(kept: dict[int, tuple[Any, Any]], unpack: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `fast_dequantize` that returns what is kept."""

    def fast_dequantize(
        W: Any,  # noqa: N803 - as Unsloth names it
        quant_state: Any = None,
        out: Any = None,
        use_global_buffer: bool = False,
        dtype: Any = None,
    ) -> Any:
        if id(quant_state) not in kept or out is not None:
            return unpack(W, quant_state, out=out, use_global_buffer=use_global_buffer, dtype=dtype)
        weight = kept[id(quant_state)][1]
        return weight.t() if W.shape[0] == 1 else weight  # a packed weight is a column; as a row it is transposed

    return fast_dequantize


def _unsloths() -> tuple[Any, ...]:
    from unsloth.kernels import fast_lora, utils

    return utils, fast_lora
