"""Was this adapter made for this base model? Told from names and tensor shapes, before any weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.core.errors import EvaluationError
from helpers.evaluation.sources import WEIGHTS, AdapterSource

__all__ = ["adapter_shape", "check_base", "same_base_name"]

_QUANTIZED = re.compile(r"(-unsloth)?-(bnb-4bit|4bit|gguf|awq|gptq)$")
_LAYER = re.compile(r"\.layers\.(\d+)\..*?\.(\w+_proj)\.lora_A\.")
_WIDTHS = {"q_proj": "hidden_size", "gate_proj": "hidden_size", "down_proj": "intermediate_size"}


def same_base_name(first: str, second: str) -> bool:
    """Say whether two hub ids name the same model, quantized or not; a folder's name says nothing.

    Args:
        first: A hub id or a folder.
        second: Another.

    Example:
        >>> same_base_name("unsloth/mistral-7b-instruct-v0.3-bnb-4bit", "mistralai/Mistral-7B-Instruct-v0.3")
        True
        >>> same_base_name("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.3")
        False
    """
    if any(not name or Path(name).is_absolute() or Path(name).is_dir() for name in (first, second)):
        return True
    plain = [_QUANTIZED.sub("", name.lower().rpartition("/")[2]) for name in (first, second)]
    return plain[0] == plain[1]


def adapter_shape(path: Path) -> dict[str, int]:
    """Read the size of the model that an adapter's tensors fit.

    Args:
        path: The adapter's safetensors file; only its head is read.

    Returns:
        `num_hidden_layers`, `hidden_size` and `intermediate_size`, as far as the tensors tell.

    Raises:
        EvaluationError: The file is damaged, or a matrix in it is none.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, int] = {}
    try:
        with safe_open(str(path), framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                if match := _LAYER.search(name):
                    layers = int(match[1]) + 1
                    found["num_hidden_layers"] = max(found.get("num_hidden_layers", 0), layers)
                    if match[2] in _WIDTHS:
                        _, found[_WIDTHS[match[2]]] = tensors.get_slice(name).get_shape()
    except (SafetensorError, OSError, ValueError) as error:
        remedy = "Copy or download it again."
        raise EvaluationError("adapter_dir", f"readable {WEIGHTS[1]}", str(error), remedy) from error
    return found


def check_base(source: AdapterSource, base: str, config: Mapping[str, Any]) -> None:
    """Refuse an adapter that was made for another base model.

    Args:
        source: The adapter.
        base: Hub id or folder of the base model that is about to be loaded.
        config: That model's configuration.

    Raises:
        EvaluationError: The names or the sizes differ; the message says which base the adapter was made for.
    """
    shape = adapter_shape(source.folder / WEIGHTS[1])
    fits = shape and all(config.get(name) == size for name, size in shape.items())
    if fits and same_base_name(source.base, base):
        return
    sizes = {name: config.get(name) for name in shape}
    made_for = f"one made for {source.base or 'an unnamed model'} {_words(shape)}"
    remedy = "Set model_name to the base that it was made for, or choose another adapter_dir."
    raise EvaluationError("adapter_dir", f"an adapter for {base} {_words(sizes)}".strip(), made_for.strip(), remedy)


def _words(shape: Mapping[str, int | None]) -> str:
    """Write a model's size in a few words."""
    names = {"num_hidden_layers": "layers", "hidden_size": "wide", "intermediate_size": "wide inside"}
    parts = [f"{shape[name]} {word}" for name, word in names.items() if shape.get(name)]
    return f"({', '.join(parts)})" if parts else ""
