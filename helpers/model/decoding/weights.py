"""The weights of a Llama or Mistral model as a few large matrices at fixed addresses.

A QLoRA model holds its base in NF4 and its adapter beside it: each step of the ordinary loop unpacks every matrix and
adds the adapter's product. Here the matrices are unpacked once, into 16-bit buffers (float32 where the model computes
in float32), q, k and v in one, gate and up in one. The tuned arm is the same buffers with `scale * B @ A` added; going
back to the base unpacks it again, so the base comes back bit for bit. On a card the buffers never move, so CUDA graphs
that read them stay valid.

On a CPU oneDNN packs each matrix as its products read it: with eight tokens a product of SmolLM2-135M's then takes half
as long on a server's two cores, and that with its vocabulary a third.

LoRA: Hu et al. 2021, arXiv 2106.09685; NF4: Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from helpers.core.errors import StackError
from helpers.model.decoding.support import (
    SIMPLE_BATCH,
    active_adapters,
    causal_model,
    has_adapter,
    read_shape,
    unsupported,
)

__all__ = ["DecoderWeights"]


@dataclass(frozen=True)
class LayerWeights:
    """One block's matrices, (outputs, inputs) as in `torch.nn.Linear`.

    Args:
        input_norm: (hidden,).
        qkv: (heads + 2 * kv_heads) * head_dim outputs, hidden inputs.
        out: hidden outputs, heads * head_dim inputs.
        post_norm: (hidden,).
        gate_up: 2 * inner outputs, hidden inputs.
    """

    input_norm: Any
    qkv: Any
    out: Any
    post_norm: Any
    gate_up: Any
    down: Any


class DecoderWeights:
    """Both arms of a loaded model, one at a time, in the same buffers.

    Args:
        model: A transformers Llama or Mistral for which `unsupported` finds nothing, or PEFT's wrapper of one.
        dtype: Type of the buffers, such as `torch.bfloat16`.
        dequantize: Takes a packed weight and its `quant_state`; by default bitsandbytes' `dequantize_4bit`.

    Raises:
        StackError: The model is not supported.
    """

    def __init__(self, model: Any, dtype: Any, dequantize: Callable[[Any, Any], Any] | None = None) -> None:
        problem = unsupported(model)
        if problem:
            remedy = "Answer with helpers.model.decoding.generate instead."
            raise StackError("model", "a Llama or Mistral model with a plain LoRA adapter", problem, remedy)
        causal = causal_model(model)
        self.shape = read_shape(causal.config)
        self.arm = ""
        self.adapted = has_adapter(model)
        self._dequantize = dequantize or _bitsandbytes
        self.embed = causal.model.embed_tokens.weight.detach().to(dtype)
        self._packs = self.embed.device.type == "cpu" and packs_matrices(dtype)
        self.head = self._pack(causal.lm_head.weight.detach().to(dtype))
        self.norm = causal.model.norm.weight.detach().to(dtype)
        self._blocks = list(causal.model.layers)
        self.layers = [] if self._packs else [self._allocate(block, dtype) for block in self._blocks]

    def use(self, arm: str) -> None:
        """Fill the buffers with one arm's weights; does nothing when they are there already.

        Args:
            arm: "base" or "tuned".

        Raises:
            StackError: "tuned" is asked of a model without an adapter, or the arm is unknown.
        """
        if arm not in ("base", "tuned"):
            raise StackError("arms", "tuned or base", arm, "Correct the name.")
        if arm == "tuned" and not self.adapted:
            remedy = "Put the adapter on it with PeftModel.from_pretrained."
            raise StackError("arms", "a model with an adapter for the tuned arm", "a model without one", remedy)
        if arm == self.arm:
            return
        self.arm = ""  # a failure half-way must not leave a name on a mixture
        if self._packs:
            self.layers = []  # or both arms' would be in memory at once
            self.layers = [self._packed(block, arm == "tuned") for block in self._blocks]
        else:
            for layer, block in zip(self.layers, self._blocks, strict=True):
                self._fill(layer, block, arm == "tuned")
        self.arm = arm

    def _packed(self, block: Any, tuned: bool) -> LayerWeights:
        """Return one block's matrices as oneDNN's products read them."""
        layer = self._allocate(block, self.embed.dtype)
        self._fill(layer, block, tuned)
        names = ("qkv", "out", "gate_up", "down")
        return replace(layer, **{name: self._pack(getattr(layer, name)) for name in names})

    def _pack(self, matrix: Any) -> Any:
        """Return a matrix as oneDNN's products read it, or as it is."""
        import torch

        return torch.ops.mkldnn._reorder_linear_weight(matrix, SIMPLE_BATCH) if self._packs else matrix

    def _allocate(self, block: Any, dtype: Any) -> LayerWeights:
        """Return one block's buffers, the matrices not filled yet."""
        shape, width = self.shape, self.shape.heads * self.shape.head_dim
        device = self.embed.device

        def empty(outputs: int, inputs: int) -> Any:
            import torch

            return torch.empty(outputs, inputs, dtype=dtype, device=device)

        return LayerWeights(
            input_norm=block.input_layernorm.weight.detach().to(dtype),
            qkv=empty(width + 2 * shape.kv_heads * shape.head_dim, shape.hidden),
            out=empty(shape.hidden, width),
            post_norm=block.post_attention_layernorm.weight.detach().to(dtype),
            gate_up=empty(2 * shape.inner, shape.hidden),
            down=empty(shape.hidden, shape.inner),
        )

    def _fill(self, layer: LayerWeights, block: Any, tuned: bool) -> None:
        """Write one block's matrices into its buffers."""
        attention, mlp = block.self_attn, block.mlp
        parts = (
            (layer.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.out, (attention.o_proj,)),
            (layer.gate_up, (mlp.gate_proj, mlp.up_proj)),
            (layer.down, (mlp.down_proj,)),
        )
        for buffer, linears in parts:
            start = 0
            for linear in linears:
                weight = self._matrix(linear, tuned)
                buffer[start : start + weight.shape[0]].copy_(weight)
                start += weight.shape[0]

    def _matrix(self, linear: Any, tuned: bool) -> Any:
        """Return a layer's matrix, (outputs, inputs), unpacked; if tuned, the adapters are added in float32."""
        import torch

        weight = getattr(linear, "base_layer", linear).weight
        state = getattr(weight, "quant_state", None)
        matrix = weight.detach() if state is None else self._dequantize(weight.detach(), state)
        for name in active_adapters(linear) if tuned else ():
            second, first = linear.lora_B[name].weight.detach().float(), linear.lora_A[name].weight.detach().float()
            matrix = torch.addmm(matrix.float(), second, first, alpha=linear.scaling[name])
        return matrix


def packs_matrices(dtype: Any) -> bool:
    """Say whether this torch has oneDNN's packed products, and whether they are for a type: for float32 alone."""
    import torch

    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return dtype == torch.float32 and torch.backends.mkldnn.is_available() and known


def _bitsandbytes(weight: Any, state: Any) -> Any:
    """Unpack an NF4 matrix, as bitsandbytes does in each of its forward passes."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight, state)
