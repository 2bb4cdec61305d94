"""The tensors of a model in memory: base weights, dequantized where they are NF4, and what LoRA adds to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from helpers.core.errors import ExportError


@dataclass(frozen=True)
class BaseTensor:
    """One tensor of the base model.

    Args:
        name: Its name in a saved checkpoint.
        parameter: The parameter itself, perhaps packed in 4 bit.
        layer: PEFT's wrapper around the linear layer it belongs to, or None if it has no adapter.
    """

    name: str
    parameter: Any
    layer: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the unpacked tensor."""
        state = getattr(self.parameter, "quant_state", None)
        return tuple(state.shape if state is not None else self.parameter.shape)

    def numel(self) -> int:
        """Return the number of weights it stands for."""
        return math.prod(self.shape)

    def weight(self) -> Any:
        """Return the base weight in float32 on its device: NF4 weights as the numbers that they stand for."""
        state = getattr(self.parameter, "quant_state", None)
        if state is None:
            return self.parameter.detach().float()
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.parameter.data, state).float().reshape(self.shape)

    def delta(self, adapter: str) -> Any:
        """Return what the adapter adds, `scaling * B @ A` (Hu et al. 2021), in float32."""
        down, up = self.layer.lora_A[adapter].weight.detach(), self.layer.lora_B[adapter].weight.detach()
        return (up.float() @ down.float()) * self.layer.scaling[adapter]


def base_tensors(model: Any) -> Iterator[BaseTensor]:
    """Yield every tensor of the base model under a PEFT model, tied ones once."""
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        owner = name.removesuffix(".base_layer.weight")
        yield BaseTensor(name.replace(".base_layer.", "."), parameter, layers.get(owner) if owner != name else None)


def refuse_unmergeable(model: Any) -> str:
    """Raise unless a model carries exactly one plain LoRA adapter on linear layers."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ExportError(
            "model", "a model with a LoRA adapter", type(model).__name__, "Attach or load an adapter first."
        )
    names = list(model.active_adapters)
    config = model.peft_config[names[0]]
    unusual = {
        "several adapters": len(names) != 1,
        "another kind than LoRA": str(config.peft_type).split(".")[-1] != "LORA",
        "DoRA": getattr(config, "use_dora", False),
        "trained biases": getattr(config, "bias", "none") != "none",
        "modules_to_save": bool(getattr(config, "modules_to_save", None)),
    }
    for what, found in unusual.items():
        if found:
            raise ExportError(
                "adapter", "one plain LoRA adapter on linear layers", what, "Save the adapter; it is not merged here."
            )
    _refuse_layers(model, names[0])
    return names[0]


def _refuse_layers(model: Any, adapter: str) -> None:
    """Raise for layers whose weights cannot be read as base and LoRA."""
    for tensor in base_tensors(model):
        if tensor.layer is None:
            continue
        if tensor.layer.merged:
            raise ExportError(
                "adapter",
                "an adapter that is not merged yet",
                f"{tensor.name} has it merged in",
                "Load base and adapter again.",
            )
        if len(tensor.shape) != 2 or adapter not in tensor.layer.lora_A:
            raise ExportError(
                "adapter", "LoRA on linear layers", tensor.name, "Save the adapter; it is not merged here."
            )
        if not tensor.parameter.is_floating_point() and getattr(tensor.parameter, "quant_state", None) is None:
            raise ExportError(
                "model",
                "a base in 4 bit (NF4) or 16 or 32 bit",
                f"{tensor.name} in {tensor.parameter.dtype}",
                "Load the base model in 4 bit or without quantization.",
            )
