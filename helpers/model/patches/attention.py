"""Variable-length attention on torch 2.11, where the stack lacks it.

Unsloth trains on batches without padding: the rows stand one after the other, and attention must not look across their
borders. From torch 2.12 on Unsloth uses torch's own `varlen_attn` for that. On torch 2.11 (Colab's version in August
2026), without flash-attn and without an xformers that loads, it launches one attention call for each row, layer and
pass, and the host becomes the limit. torch 2.11 carries the kernel all the same: `aten::_flash_attention_forward`
takes the rows' borders (`cu_seqlens`), does all rows in one launch, and is differentiable. Below compute capability 8.0
(T4: 7.5) flash attention does not run; there `aten::_efficient_attention_forward`, the kernel that SDPA takes for each
row, does the same for all.

References: Dao 2023, FlashAttention-2, arXiv 2307.08691; Rabe and Staats 2021, arXiv 2112.05682. Found against unsloth
2026.10.9, whose dispatcher notes that xformers' kernel of this kind is 8 to 21 % faster on a T4 than calls row by row.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from helpers.core.choice import Choice
from helpers.model.patches import UNSLOTH_TESTED
from helpers.runtime.hardware import find_gpu, xformers_torch
from helpers.runtime.lockfile import installed_version

__all__ = [
    "MEMORY_EFFICIENT",
    "efficient_varlen",
    "enable_varlen",
    "flash_varlen",
    "installed_attention",
    "loaded_attention",
]

DISPATCH = "unsloth.utils.attention_dispatch"
"""The module in which Unsloth chooses a kernel for each batch."""

FLASH, MEMORY_EFFICIENT = "varlen (torch kernel)", "varlen (memory-efficient kernel)"
"""This module's two kernels, as a run's record names them."""


def choose_attention(
    *,
    torch_version: str,
    unsloth_version: str,
    capability: tuple[int, int] | None,
    flash_attn: bool,
    xformers: bool,
    flash: bool = True,
    wanted: bool = True,
) -> Choice:
    """Decide whether a kernel of torch 2.11 is to be used, and which.

    Args:
        capability: The GPU's compute capability, or None without a GPU.
        flash_attn: Whether flash-attn can be used.
        flash: Whether torch may use its flash kernel (`torch.backends.cuda.flash_sdp_enabled`).
        wanted: False leaves everything as it is.

    Returns:
        `FLASH` or `MEMORY_EFFICIENT` for this module's, else what Unsloth picks by itself, with the reason.

    Example:
        >>> choose_attention(torch_version="2.11.0", unsloth_version="2026.10.9", capability=(7, 5),
        ...                  flash_attn=False, xformers=False).name
        'varlen (memory-efficient kernel)'
    """
    minor = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2])
    if capability is None:
        return Choice("sdpa", "there is no GPU")
    if flash_attn:
        return Choice("flash-attn", "flash-attn is installed, and Unsloth prefers it")
    if xformers:
        return Choice("xformers", "xformers loads, and Unsloth uses it")
    flash = flash and capability >= (8, 0)
    if flash and minor >= (2, 12):
        return Choice("varlen (torch)", "Unsloth uses torch's own varlen_attn from torch 2.12 on")
    if not wanted:
        return Choice("sdpa", "varlen_attention is off")
    if minor != (2, 11) or unsloth_version != UNSLOTH_TESTED:
        return Choice(
            "sdpa",
            f"tried with torch 2.11 and unsloth {UNSLOTH_TESTED} only, "
            f"not with torch {torch_version} and unsloth {unsloth_version}",
        )
    if flash:
        return Choice(FLASH, "torch 2.11 carries the kernel, and Unsloth does not use it there")
    why = "flash attention needs compute capability 8.0, or is off; this kernel also takes all rows at once"
    return Choice(MEMORY_EFFICIENT, why)


def loaded_attention(capability: tuple[int, int], *, wanted: bool = True) -> Choice:
    """Return what `enable_varlen` will choose, and change nothing."""
    dispatch = sys.modules.get(DISPATCH)
    if dispatch is None:
        return Choice("sdpa", "unsloth is not imported yet")
    import torch
    import unsloth

    return choose_attention(
        torch_version=torch.__version__,
        unsloth_version=unsloth.__version__,
        capability=capability,
        flash_attn=bool(dispatch.HAS_FLASH_ATTENTION),
        xformers=bool(dispatch.HAS_XFORMERS),
        flash=torch.backends.cuda.flash_sdp_enabled(),
        wanted=wanted,
    )


def installed_attention(
    capability: tuple[int, int],
    *,
    wanted: bool = True,
    versions: Mapping[str, str] | None = None,
    xformers_built_for: str | None = None,
) -> Choice:
    """Return what `enable_varlen` is likely to choose with what is installed here, and import none of it.

    Args:
        versions: By normalized name; None asks the running interpreter, also for the torch of xformers.
        xformers_built_for: The torch version that its extensions need, such as "2.10.0+cu128".

    Returns:
        The choice; "sdpa" where torch or unsloth is not installed.
    """
    if versions is None:
        found = {name: installed_version(name) for name in ("torch", "unsloth", "flash-attn")}
        versions, xformers_built_for = {name: version for name, version in found.items() if version}, xformers_torch()
    if missing := [name for name in ("torch", "unsloth") if name not in versions]:
        return Choice("sdpa", f"{missing[0]} is not installed")
    torch_version, built = versions["torch"], xformers_built_for or ""
    return choose_attention(
        torch_version=torch_version,
        unsloth_version=versions["unsloth"],
        capability=capability,
        flash_attn="flash-attn" in versions,
        xformers=built.split("+")[0] == torch_version.split("+")[0],
        wanted=wanted,
    )


def enable_varlen(*, wanted: bool = True) -> Choice:
    """Give Unsloth a kernel of torch 2.11 if this machine is one that gains by it.

    Call it after unsloth is imported and before training. Calling it again changes nothing.

    Args:
        wanted: False leaves everything as it is, and undoes an earlier call.

    Returns:
        What training will use, with the reason.
    """
    gpu = find_gpu()
    if gpu is None:  # Unsloth's CPU path cannot import its dispatcher: a circle
        return Choice("sdpa", "there is no GPU")
    from unsloth.utils import attention_dispatch

    original = getattr(attention_dispatch.select_attention_backend, "wrapped", None)
    choice = loaded_attention(gpu.capability, wanted=wanted)
    kernel = {FLASH: flash_varlen, MEMORY_EFFICIENT: efficient_varlen}.get(choice.name)
    if kernel:
        attention_dispatch.flash_attn_varlen_func = kernel
        if original is None:
            _install(attention_dispatch)
    elif original is not None:
        _replace_everywhere(attention_dispatch.select_attention_backend, original)
    return choice


def flash_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **unused: Any,
) -> Any:
    """Attend within each of several rows that stand one after the other, in one kernel launch.

    The signature is flash-attn's `flash_attn_varlen_func`, which Unsloth's dispatcher calls.

    Args:
        q: Queries, (tokens, heads, head size), fp16 or bf16 on a card of compute capability 8.0 or more.
        k: Keys, (tokens, key heads, head size); key heads divide heads.
        cu_seqlens_q: Borders of the rows, int32, (rows + 1,), beginning with 0.
        dropout_p: Share of attention weights dropped.
        softmax_scale: Factor on q·k; None takes 1 / sqrt(head size).
        causal: Whether a token sees only those before it.
        **unused: Window and other options that Mistral v0.3 does not use.

    Returns:
        (tokens, heads, head size), differentiable.

    Raises:
        NotImplementedError: An attention window is asked for.
    """
    import torch

    _refuse_window(unused)
    output = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        int(max_seqlen_q),
        int(max_seqlen_k),
        dropout_p,
        causal,
        False,
        scale=softmax_scale,
    )
    return output[0]


def efficient_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **unused: Any,
) -> Any:
    """Do as `flash_varlen`, by the kernel that cards below compute capability 8.0 have too, in fp16 and float32.

    It needs a key head for each query head, so keys and values are repeated.
    """
    import torch

    _refuse_window(unused)
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    output = torch.ops.aten._efficient_attention_forward(
        q[None],
        k[None],
        v[None],
        None,
        cu_seqlens_q,
        cu_seqlens_k,
        int(max_seqlen_q),
        int(max_seqlen_k),
        dropout_p,
        int(causal),  # 1: each row's own triangle
        True,  # what the backward pass needs
        scale=softmax_scale,
    )
    return output[0].squeeze(0)  # an index would cost a whole gradient


def _refuse_window(options: Mapping[str, Any]) -> None:
    if tuple(options.get("window_size") or (-1, -1)) not in ((-1, -1), (None, None)):
        raise NotImplementedError("this attention has no window")


def _install(dispatch: Any) -> None:
    """Make the dispatcher choose its flash-attn path, now with a kernel of torch behind it, for unpadded rows."""
    original = dispatch.select_attention_backend

    def select(use_varlen: bool = False, dropout_p: float = 0.0) -> Any:
        return dispatch.FLASH_VARLEN if use_varlen else original(use_varlen, dropout_p)

    select.wrapped = original  # type: ignore[attr-defined]
    _replace_everywhere(original, select)


def _replace_everywhere(old: Any, new: Any) -> None:
    """Replace the dispatcher in every module that imported it by name."""
    for module in list(sys.modules.values()):
        # getattr would load what is loaded lazily; a module that may not be imported is None
        if module is not None and vars(module).get("select_attention_backend") is old:
            module.select_attention_backend = new  # type: ignore[attr-defined]
