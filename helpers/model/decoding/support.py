"""Which models the own forward pass can compute, and whether a copy of their weights and captured steps pay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from helpers.core.choice import Choice
from helpers.core.errors import StackError
from helpers.core.text import format_bytes

_BATCH = 128
"""Prompts side by side, where memory allows: a step reads all weights once, for however many rows."""

SIMPLE_BATCH = 8
"""Prompts side by side in the ordinary loop, and at most on a CPU, where twice the rows take twice as long."""

_RESERVE_BYTES = 2 * 2**30
"""Left for prefill's activations, one matrix in float32 while the adapter is added, and the libraries' workspaces."""

_WARM_UP_STEPS = 48
"""Steps of the ordinary loop, 70 ms each, that take as long as unpacking the weights and capturing the steps."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")

_KNOWN = (
    ("model_type", ("llama", "mistral")),
    ("hidden_act", ("silu",)),
    ("attention_bias", (False, None)),
    ("mlp_bias", (False, None)),
    ("sliding_window", (None,)),
    ("pretraining_tp", (1, None)),
)
"""What a configuration may say, so that the forward pass of `helpers.model.decoding` is its computation."""


@dataclass(frozen=True)
class DecodePlan(Choice):
    """How answers are generated, and why.

    "graphs": copy of the weights in 16 bit, static cache, captured steps; on a CPU the same in float32, not captured.
    "simple": transformers' own loop, the adapter switched on and off.
    """

    batch_size: int

    def __post_init__(self) -> None:
        if self.name not in ("graphs", "simple"):
            raise StackError("plan", "graphs or simple", self.name, "Correct the name.")
        if self.batch_size < 1:
            raise StackError("plan", "a batch_size of at least 1", self.batch_size, "Use 1 or more.")


def plan_decoding(
    parameters: int,
    free_bytes: int | None,
    prompts: int,
    max_new_tokens: int,
    *,
    row_bytes: int = 0,
    weight_bytes: int = 2,
    arms: int = 1,
    gpu: bool = True,
) -> DecodePlan:
    """Choose between steps on a copy of the weights, captured on a GPU, and the ordinary loop.

    Args:
        free_bytes: Free memory of the GPU, or of a machine without one, beside the loaded model; None if unknown.
        row_bytes: Cache of one prompt and its answer.
        weight_bytes: Bytes of a copied weight.
        arms: How often all prompts are answered.

    Returns:
        The plan; its batch is halved until the cache fits.

    Example:
        >>> plan_decoding(6_979_321_856, 70 * 2**30, 32, 64).name
        'graphs'
    """
    if free_bytes is None:
        return DecodePlan("simple", "the ordinary loop, because it is not known how much memory is free", SIMPLE_BATCH)
    steps = -(-prompts // SIMPLE_BATCH) * max_new_tokens * arms
    if steps < _WARM_UP_STEPS:
        made = "unpacked and the steps captured" if gpu else "copied"
        reason = f"its {steps} steps are done sooner than the weights are {made}"
        return DecodePlan("simple", f"the ordinary loop, because {reason}", SIMPLE_BATCH)
    room = free_bytes - parameters * weight_bytes - _RESERVE_BYTES
    rows = max(1, min(_BATCH if gpu else SIMPLE_BATCH, prompts))
    while rows > 1 and rows * row_bytes > room:
        rows //= 2
    weights, cache = parameters * weight_bytes, rows * row_bytes
    needed = f"{format_bytes(weights)} of copied weights, {format_bytes(cache)} of cache and "
    needed += f"{format_bytes(_RESERVE_BYTES)} of reserve"
    if rows * row_bytes > room:
        reason = f"{needed} do not fit into the {format_bytes(free_bytes)} that are free"
        return DecodePlan("simple", f"the ordinary loop, because {reason}", SIMPLE_BATCH)
    reason = f"{rows} prompts side by side: {needed} fit into the {format_bytes(free_bytes)} that are free"
    return DecodePlan("graphs", f"{'CUDA graphs' if gpu else 'a copy of the weights'}, {reason}", rows)


@dataclass(frozen=True)
class DecoderShape:
    """The numbers that fix a Llama block.

    Args:
        hidden: Width of the residual stream.
        kv_heads: Key and value heads; they divide the query heads.
        inner: Width between gate/up and down.
        norm_eps: Added to the mean square in RMSNorm.
        rope_theta: Base of the rotary frequencies.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    norm_eps: float
    rope_theta: float


def read_shape(config: Any) -> DecoderShape:
    """Return the numbers of a Llama or Mistral configuration."""
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        inner=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_parameters["rope_theta"],
    )


def copied_parameters(shape: DecoderShape) -> int:
    """Return how many weights the buffers hold: all linear layers of all blocks, not the embedding or the head.

    Example:
        >>> copied_parameters(DecoderShape(32, 4096, 32, 8, 128, 14336, 1e-5, 1e6))
        6979321856
    """
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.layers * shape.hidden * (attention + 3 * shape.inner)


def cache_bytes(shape: DecoderShape, length: int, itemsize: int) -> int:
    """Return the bytes that one row of the cache takes.

    Args:
        length: Slots, in tokens.
        itemsize: Bytes a number.

    Example:
        >>> cache_bytes(DecoderShape(32, 4096, 32, 8, 128, 14336, 1e-5, 1e6), 256, 2)
        33554432
    """
    return 2 * shape.layers * shape.kv_heads * length * shape.head_dim * itemsize


def has_adapter(model: Any) -> bool:
    """Return whether a LoRA adapter is attached."""
    return any(True for _ in _adapted(model))


def unsupported(model: Any) -> str:
    """Say why a model cannot be decoded with `helpers.model.decoding`.

    Args:
        model: A causal language model of transformers, or PEFT's wrapper of one.

    Returns:
        What is in the way, such as "model_type is 'qwen3'", or "" when nothing is.
    """
    try:
        causal = causal_model(model)
        if len(set((getattr(causal, "hf_device_map", None) or {}).values())) > 1:
            return "its layers lie on several cards"
        return _config_problem(causal.config) or _weights_problem(causal) or _adapter_problem(model)
    except AttributeError as error:
        return f"the model is built otherwise: {error}"


def causal_model(model: Any) -> Any:
    """Return the transformers model under PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _linears(causal: Any) -> Iterator[Any]:
    """Return all linear layers of all blocks, adapters' wrappers included."""
    for block in causal.model.layers:
        yield from (getattr(block.self_attn, name) for name in _ATTENTION)
        yield from (getattr(block.mlp, name) for name in _MLP)


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """Return (name, layer) of each layer that PEFT put a LoRA adapter on."""
    return ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "lora_A"))


def active_adapters(linear: Any) -> list[str]:
    """Return the names of the adapters in force on a layer."""
    return [name for name in getattr(linear, "active_adapters", ()) if name in linear.lora_A]


def _config_problem(config: Any) -> str:
    """Name the first setting that the forward pass of `helpers.model.decoding` does not know."""
    for name, allowed in _KNOWN:
        value = getattr(config, name, None)
        if value not in allowed:
            return f"{name} is {value!r}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"rope_parameters are {dict(rope)!r}"
    return ""


def _weights_problem(causal: Any) -> str:
    """Name what is unusual about the weights: devices, biases, or a quantization other than bitsandbytes' 4 bit."""
    devices = {str(weight.device) for weight in causal.parameters()}
    if len(devices) != 1 or "meta" in devices:
        return f"its weights are on {', '.join(sorted(devices))}"
    for linear in (getattr(each, "base_layer", each) for each in _linears(causal)):
        if linear.bias is not None:
            return "a linear layer has a bias"
        if getattr(linear.weight, "quant_state", None) is None and not linear.weight.is_floating_point():
            return f"a weight is {linear.weight.dtype} without bitsandbytes' quant_state"
    return ""


def _adapter_problem(model: Any) -> str:
    """Name what is unusual about the adapter: anything but unmerged plain LoRA on the blocks' linear layers."""
    for config in getattr(model, "peft_config", {}).values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            return f"the adapter is {kind}"
    if any(getattr(layer, "modules_to_save", None) for layer in model.modules()):
        return "whole layers were trained beside the adapter"
    for name, layer in _adapted(model):
        if name.rpartition(".")[2] not in (*_ATTENTION, *_MLP):
            return f"there is an adapter on {name}"
        if layer.merged:
            return "the adapter is merged into the base"
        if any(each in layer.lora_variant or layer.lora_bias.get(each) for each in active_adapters(layer)):
            return "the adapter is a variant of LoRA, or has biases"
    return ""
