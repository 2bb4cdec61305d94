"""The computation of a Llama or Mistral block, on the fused matrices of `helpers.model.decoding.weights`.

Own code rather than transformers' classes, because Unsloth replaces their methods in the same process. The computation
is theirs: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023, arXiv 2302.13971; Ainslie et
al. 2023, arXiv 2305.13245). Attention itself is in `helpers.model.decoding.engine`, which knows the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from helpers.model.decoding.support import DecoderShape
from helpers.model.decoding.weights import DecoderWeights, LayerWeights

__all__ = ["decoder_math"]


@contextmanager
def decoder_math(device: Any) -> Iterator[None]:
    """Set what a session needs around it: no gradients, the model's GPU, and attention kernels that need no plan.

    cuDNN's attention is left out: it prepares a plan for each shape, which costs more than these few steps gain.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        yield


def embed(tokens: Any, weights: DecoderWeights) -> Any:
    """Return the embeddings of token ids: (...) to (..., hidden)."""
    from torch.nn import functional

    return functional.embedding(tokens, weights.embed)


def project(hidden: Any, layer: LayerWeights, shape: DecoderShape, cos: Any, sin: Any) -> tuple[Any, Any, Any]:
    """Return rotated queries, rotated keys, and values of a block: (..., hidden) to (..., heads, head_dim)."""
    import torch
    from torch.nn import functional

    normed = functional.rms_norm(hidden, hidden.shape[-1:], layer.input_norm, shape.norm_eps)
    qkv = multiply(normed, layer.qkv).unflatten(-1, (-1, shape.head_dim))
    turned, v = qkv.split((shape.heads + shape.kv_heads, shape.kv_heads), dim=-2)
    turned = torch.addcmul(turned * cos, turned.roll(shape.head_dim // 2, -1), sin)
    q, k = turned.split((shape.heads, shape.kv_heads), dim=-2)
    return q, k, v


def finish(hidden: Any, seen: Any, layer: LayerWeights, shape: DecoderShape) -> Any:
    """Add a block's attention and its MLP to the residual stream."""
    from torch.nn import functional

    hidden = hidden + multiply(seen, layer.out)
    normed = functional.rms_norm(hidden, hidden.shape[-1:], layer.post_norm, shape.norm_eps)
    gate, up = multiply(normed, layer.gate_up).chunk(2, dim=-1)
    return hidden + multiply(functional.silu(gate) * up, layer.down)


def multiply(x: Any, matrix: Any) -> Any:
    """Return `x` times a matrix of (outputs, inputs), packed by oneDNN or not: (..., inputs) to (..., outputs)."""
    import torch

    if matrix.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], "")
    return torch.nn.functional.linear(x, matrix)


def next_tokens(hidden: Any, weights: DecoderWeights) -> Any:
    """Return the likeliest token after each hidden state: (rows, hidden) to (rows,)."""
    from torch.nn import functional

    hidden = functional.rms_norm(hidden, hidden.shape[-1:], weights.norm, weights.shape.norm_eps)
    return multiply(hidden, weights.head).argmax(-1)


def repeat_heads(heads: Any, times: int) -> Any:
    """Return each key or value head `times` times in a row: (batch, kv_heads, width, head_dim) to (batch, heads, …)."""
    batch, count, width, size = heads.shape
    return heads[:, :, None].expand(batch, count, times, width, size).reshape(batch, count * times, width, size)


def rope_tables(shape: DecoderShape, positions: Any, dtype: Any) -> tuple[Any, Any]:
    """Return cosines and sines, each (positions, head_dim), computed in float32; the sines' first half is negated.

    So that rotation is `x * cos + swap(x) * sin`, where `swap` exchanges a head's halves.
    """
    import torch

    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32).to(positions.device)
    angles = positions.float()[:, None] * (1.0 / shape.rope_theta ** (steps / shape.head_dim))
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)
