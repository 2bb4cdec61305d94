"""Which optimizer trains the adapter on which hardware, and why."""

from __future__ import annotations

from helpers.core.choice import Choice
from helpers.core.text import format_bytes
from helpers.memory.predict import OPTIMIZERS
from helpers.runtime.hardware import LARGE_GPU_BYTES, Gpu

__all__ = ["choose_optimizer", "resolve_optimizer"]


def resolve_optimizer(wanted: str, total_bytes: int | None) -> str:
    """Return the name of the optimizer that trains on a card of this size.

    Args:
        wanted: "auto", or the name of one, which is taken on any GPU.
        total_bytes: Memory of the card, in bytes; None for a CPU, where it is always torch's.

    Returns:
        The name, as transformers calls it.

    Example:
        >>> resolve_optimizer("auto", 16 * 2**30)
        'adamw_8bit'
    """
    if total_bytes is None:
        return "adamw_torch"
    if wanted != "auto":
        return wanted
    return "adamw_torch_fused" if total_bytes >= LARGE_GPU_BYTES else "adamw_8bit"


def choose_optimizer(wanted: str, gpu: Gpu | None) -> Choice:
    """Choose the optimizer.

    bitsandbytes' 8-bit states save 6 bytes a trained parameter, a quarter of a GiB at rank 16, and launch one kernel
    for each matrix; the fused one launches a few for all, and is taken where that quarter does not matter.

    Args:
        wanted: "auto", or the name of one, which is taken on any GPU.
        gpu: From `find_gpu`; None for a CPU, where it is always torch's.

    Returns:
        Its name, as transformers calls it, and the reason.

    Example:
        >>> choose_optimizer("auto", None).name
        'adamw_torch'
    """
    name = resolve_optimizer(wanted, gpu.total_bytes if gpu else None)
    if gpu is None:
        return Choice(name, "Optimizer: on a CPU it is always torch's own AdamW.")
    if wanted != "auto":
        return Choice(name, f"Optimizer {name}, as asked for.")
    large, small = "adamw_torch_fused", "adamw_8bit"
    limit, here = format_bytes(LARGE_GPU_BYTES), format_bytes(gpu.total_bytes)
    if name == large:
        why = (
            f"few launches for all weights; the memory that {small} saves matters little from {limit} on ({here} here)"
        )
        return Choice(large, f"Optimizer {large}: {why}.")
    sizes = f"{OPTIMIZERS[small]:.0f} bytes a trained parameter instead of {OPTIMIZERS[large]:.0f}"
    return Choice(small, f"Optimizer {small}: {sizes}, which matters below {limit} ({here} here).")
