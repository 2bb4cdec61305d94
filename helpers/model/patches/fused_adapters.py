"""Adapter products taken together: the same mathematics in fewer passes over the activations.

A LoRA layer adds s·(x A) B to x W. On a fast card these thin products are limited by memory: each reads a whole
activation to make, or change, little of it. Unsloth takes them one by one. Here the A of q, k and v, or of gate and up,
are one product, forward and backward; x A is kept from the forward pass, lora_rank numbers a token; and the frozen
product adds onto s·(x A) B as it is stored (beta = 1), instead of a further pass over its output. What is saved of
activations, what is overwritten, and the kernels of the gate are Unsloth's.

To keep x A is the idea of LoRAFusion (Zhu et al. 2025, arXiv 2510.00206), here without its kernels. Found against
unsloth 2026.10.9, whose layers look up `LoRA_QKV`, `LoRA_W` and `LoRA_MLP` in `unsloth.kernels.fast_lora` at each call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from helpers.core.choice import Choice, choose_unless
from helpers.core.config import RunConfig
from helpers.model.patches import UNSLOTH_TESTED, replaced_method
from helpers.runtime.hardware import Gpu
from helpers.runtime.lockfile import installed_version

__all__ = ["choose_adapters", "fused_adapters"]


class _Projection(NamedTuple):
    """A frozen weight, (out, in), and its adapter, in the order in which Unsloth passes them on."""

    weight: Any
    quant_state: Any
    a: Any
    b: Any
    scale: float


_FORMS = {"LoRA_QKV": (3, 0, 1), "LoRA_W": (1, 0, 0), "LoRA_MLP": (3, 2, 1)}
"""What Unsloth's functions are given after x: projections, kernels of the gate, and whether x may be overwritten."""


def choose_adapters(config: RunConfig, gpu: Gpu | None, *, unsloth_version: str | None = None) -> Choice:
    """Decide whether the adapter's products are taken together in training.

    Args:
        unsloth_version: None asks what is installed.

    Returns:
        "fused" or "separate", with the reason.
    """
    unsloth_version = installed_version("unsloth") if unsloth_version is None else unsloth_version
    if gpu is None:
        return Choice("separate", "there is no GPU")
    reasons = (
        (not config.train.fused_adapters, "fused_adapters is off"),
        (gpu.capability < (8, 0), "not tried below compute capability 8.0"),
        (unsloth_version != UNSLOTH_TESTED, f"tried with unsloth {UNSLOTH_TESTED} only, not with {unsloth_version}"),
        (config.adapter.lora_dropout > 0, "with dropout each product has an input of its own"),
    )
    fused = Choice("fused", "adapter products that read the same activations are taken together")
    return choose_unless(reasons, fused, "separate")


@contextmanager
def fused_adapters(model: Any, kernels: Any = None) -> Iterator[set[str]]:
    """Take the adapter's products together inside the block while the model trains; afterwards all is as before.

    Yields the names of Unsloth's functions whose products were taken together so far. Evaluation, compiled layers, and
    projections without adapter, with bias or dropout, or of other weights than NF4 or x's own type take Unsloth's way.

    Args:
        kernels: The module with Unsloth's three functions; by default `unsloth.kernels.fast_lora`.
    """
    if kernels is None:
        from unsloth.kernels import fast_lora

        kernels = fast_lora
    taken: set[str] = set()
    with ExitStack() as stack:
        for name in _FORMS:
            apply = _replacement(name, getattr(kernels, name), model, kernels, taken)
            stack.enter_context(replaced_method(kernels, name, SimpleNamespace(apply=apply)))
        yield taken


def _replacement(name: str, original: Any, model: Any, kernels: Any, taken: set[str]) -> Callable[..., Any]:
    """Return an `apply` that takes the fused way where it holds, and Unsloth's elsewhere."""
    import torch

    projections, gates, inplace = _FORMS[name]
    function = _functions()[bool(gates)]

    def apply(x: Any, *args: Any) -> Any:
        flat, kernel = args[: 5 * projections], args[5 * projections : 5 * projections + gates]
        more = args[5 * projections + gates :]  # whether in place, chances of dropout, biases
        may, more = more[:inplace], more[inplace:]
        if torch.compiler.is_compiling() or not model.training or not _plain(x, flat, more):
            return original.apply(x, *args)
        taken.add(name)
        overwrite = any(may) and not kernels._rms_layernorm._SAVE_OUTPUT  # a norm may have kept x for itself
        return function.apply(x, kernels, overwrite, *kernel, *flat)

    return apply


def _plain(x: Any, flat: Sequence[Any], more: Sequence[Any]) -> bool:
    """Return whether all have an adapter, neither dropout nor bias, and weights that can be unpacked."""
    group = _projections(flat)
    known = (s is None or getattr(s, "quant_type", None) == "nf4" for _, s, *_ in group)
    whole = (s is not None or weight.dtype == x.dtype for weight, s, *_ in group)
    return all(each is None for each in more) and all(e.a is not None for e in group) and all(known) and all(whole)


def _projections(flat: Sequence[Any]) -> list[_Projection]:
    return [_Projection(*flat[at : at + 5]) for at in range(0, len(flat), 5)]


@functools.cache
def _functions() -> tuple[Any, Any]:
    """Return the functions of a group and of the MLP, wrapped for mixed precision as Unsloth's."""
    import torch

    def made(name: str, forward: Any, backward: Any) -> Any:
        forward = staticmethod(torch.amp.custom_fwd(forward, device_type="cuda"))
        backward = staticmethod(torch.amp.custom_bwd(backward, device_type="cuda"))
        return type(name, (torch.autograd.Function,), {"forward": forward, "backward": backward})

    return made("FusedGroup", _group_forward, _group_backward), made("FusedMLP", _mlp_forward, _mlp_backward)


def _group_forward(ctx: Any, x: Any, kernels: Any, overwrite: bool, *flat: Any) -> Any:
    """Return the projections of x, (batch, tokens, in)."""
    group = _projections(flat)
    outs, inner = _outputs(kernels, _rows(x), group)
    _save(ctx, kernels, overwrite, group, x, inner)
    made = tuple(out.view(*x.shape[:-1], -1) for out in outs)
    return made if len(made) > 1 else made[0]


def _group_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    """Return the gradients of x and of each adapter."""
    group, (x, inner) = _restore(ctx)
    dx, found = _gradients(ctx, _rows(x), inner, [_rows(grad) for grad in grads], group)
    return dx.view(x.shape), None, None, *found


def _mlp_forward(ctx: Any, x: Any, kernels: Any, overwrite: bool, gate: Any, gate_backward: Any, *flat: Any) -> Any:
    """Return down(gate(x)), (batch, tokens, in), by Unsloth's kernel of the gate."""
    group = _projections(flat)
    (e, g), inner = _outputs(kernels, _rows(x), group[:2])
    h = _rows(gate(e.view(*x.shape[:-1], -1), g.view(*x.shape[:-1], -1)))
    down, dtype = group[2], x.dtype
    inner_down = h @ _joint_a([down], dtype).t()
    # asked of Unsloth, so that a recomputed layer can leave it out; see helpers.model.patches.optimizer_step
    out = kernels.matmul_lora(h, down.weight, down.quant_state, None, None, None)
    _save(ctx, kernels, overwrite, group, x, e, g, inner, inner_down)
    ctx.gate_backward = gate_backward
    return out.addmm_(inner_down, down.b.to(dtype).t()).view(x.shape)


def _mlp_backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
    """Return the gradients of x and of each adapter; Unsloth's kernel overwrites what it is given."""
    group, (x, e, g, inner, inner_down) = _restore(ctx)
    grads, down = [_rows(grad)], group[2:]
    given = _through_b(grads, down)
    h, df, de = ctx.gate_backward(_input_gradient(ctx.kernels, grads, given, down), e, g)
    found = _adapter_gradients(h, inner_down, grads, given, down)
    dx, of_both = _gradients(ctx, _rows(x), inner, [de, df], group[:2])
    return dx.view(x.shape), None, None, None, None, *of_both, *found


def _save(ctx: Any, kernels: Any, overwrite: bool, group: list[_Projection], *kept: Any) -> None:
    """Save for the backward pass what was kept, and the adapters."""
    ctx.kernels, ctx.overwrite = kernels, overwrite
    ctx.frozen = [(each.weight, each.quant_state, each.scale) for each in group]
    ctx.save_for_backward(*kept, *(each.a for each in group), *(each.b for each in group))


def _restore(ctx: Any) -> tuple[list[_Projection], tuple[Any, ...]]:
    """Return the projections and what was kept."""
    count, saved = len(ctx.frozen), ctx.saved_tensors
    each = zip(ctx.frozen, saved[-2 * count : -count], saved[-count:], strict=True)
    return [_Projection(weight, state, a, b, scale) for (weight, state, scale), a, b in each], saved[: -2 * count]


def _outputs(kernels: Any, rows: Any, group: list[_Projection]) -> tuple[list[Any], Any]:
    """Return each projection of rows, (tokens, in), and x A of all side by side, scaled."""
    inner = rows @ _joint_a(group, rows.dtype).t()
    parts = zip(inner.split([len(each.a) for each in group], dim=1), group, strict=True)
    outs = [part @ each.b.to(rows.dtype).t() for part, each in parts]
    for out, each in zip(outs, group, strict=True):
        out.addmm_(rows, _unpacked(kernels, each, rows.dtype).t())
    return outs, inner


def _gradients(ctx: Any, rows: Any, inner: Any, grads: list[Any], group: list[_Projection]) -> tuple[Any, list[Any]]:
    """Return the gradient of rows, in their place if it may, and what `_adapter_gradients` returns."""
    given = _through_b(grads, group)
    found = _adapter_gradients(rows, inner, grads, given, group)
    return _input_gradient(ctx.kernels, grads, given, group, out=rows if ctx.overwrite else None), found


def _through_b(grads: list[Any], group: list[_Projection]) -> Any:
    """Return the gradients of x A of all, side by side, without the scale."""
    import torch

    return torch.cat([grad @ each.b.to(grad.dtype) for grad, each in zip(grads, group, strict=True)], dim=1)


def _adapter_gradients(rows: Any, inner: Any, grads: list[Any], given: Any, group: list[_Projection]) -> list[Any]:
    """Return for each projection what `apply` was given: None, None, the gradients of A and of B, None."""
    ranks = [len(each.a) for each in group]
    of_a, parts = (given.t() @ rows).split(ranks), inner.split(ranks, dim=1)
    of_b = [grad.t() @ part for grad, part in zip(grads, parts, strict=True)]
    each = zip(group, of_a, of_b, strict=True)
    return [value for one, da, db in each for value in (None, None, _scaled(da, one.scale), db, None)]


def _input_gradient(kernels: Any, grads: list[Any], given: Any, group: list[_Projection], out: Any = None) -> Any:
    """Return the gradient of x, the frozen products adding onto the adapter's."""
    import torch

    found = torch.mm(given, _joint_a(group, given.dtype), out=out)
    for grad, each in zip(grads, group, strict=True):
        found.addmm_(grad, _unpacked(kernels, each, grad.dtype))
    return found


def _joint_a(group: list[_Projection], dtype: Any) -> Any:
    """Return the scaled A of all, one below the other, (ranks, in)."""
    import torch

    return torch.cat([_scaled(each.a, each.scale).to(dtype) for each in group])


def _scaled(tensor: Any, scale: float) -> Any:
    return tensor if scale == 1 else tensor * scale


def _unpacked(kernels: Any, each: _Projection, dtype: Any) -> Any:
    """Return a frozen weight, (out, in), until the next one is unpacked into the same memory."""
    return kernels.fast_dequantize(each.weight, each.quant_state, use_global_buffer=True, dtype=dtype).to(dtype)


def _rows(x: Any) -> Any:
    return x.reshape(-1, x.shape[-1])
