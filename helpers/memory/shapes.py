"""The sizes of a Llama or Mistral model, from which its memory follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError

__all__ = ["MISTRAL_7B", "ModelShape", "shape_of"]


def whole(name: str, value: Any, *, low: int = 1) -> int:
    """Return a value that is a whole number.

    Raises:
        ConfigError: It is not a whole number, or less than `low`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(name, f"a whole number of at least {low}", value, "Correct the number.")
    return value


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a Llama or Mistral model.

    Args:
        hidden: Width of the residual stream.
        kv_heads: Key and value heads; a divisor of `heads`.
        tied: Whether embedding and output head are one matrix.
        head_size: Width of a head; 0 means hidden / heads.

    Raises:
        ConfigError: A size is not a whole number of at least 1, or the heads do not divide.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = False
    head_size: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "intermediate", "layers", "heads", "kv_heads", "vocab"):
            whole(name, getattr(self, name))
        whole("head_size", self.head_size, low=0)
        if self.heads % self.kv_heads:
            remedy = "The model's config.json contradicts itself: download it again."
            raise ConfigError("kv_heads", f"a divisor of heads ({self.heads})", self.kv_heads, remedy)
        if not self.head_size and self.hidden % self.heads:
            remedy = "The model's config.json contradicts itself: download it again."
            raise ConfigError("heads", f"a divisor of hidden ({self.hidden}), or head_size", self.heads, remedy)

    def attention_width(self) -> int:
        """Return the width of all query heads together."""
        return self.heads * (self.head_size or self.hidden // self.heads)

    def key_width(self) -> int:
        """Return the width of all key heads together; values have the same."""
        return self.attention_width() // self.heads * self.kv_heads

    def linear_layers(self) -> tuple[tuple[int, int], ...]:
        """Return (inputs, outputs) of a block's linear layers: q, k, v, o, gate, up, down."""
        h, i, a, k = self.hidden, self.intermediate, self.attention_width(), self.key_width()
        return ((h, a), (h, k), (h, k), (a, h), (h, i), (h, i), (i, h))

    def linear_parameters(self) -> int:
        """Return the parameters in the linear layers of all blocks: those that NF4 holds."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_layers())

    def other_parameters(self) -> int:
        """Return the parameters that stay in 16 bit: embedding, output head (unless tied) and norms."""
        return (1 if self.tied else 2) * self.vocab * self.hidden + (2 * self.layers + 1) * self.hidden

    def lora_tensors(self, rank: int) -> tuple[int, ...]:
        """Return the sizes of an adapter's tensors: rank x inputs and outputs x rank for each linear layer."""
        return tuple(rank * size for pair in self.linear_layers() for size in pair) * self.layers


MISTRAL_7B = ModelShape(4096, 14336, 32, 32, 8, 32768)
"""Mistral-7B-v0.3 (its config.json)."""

SMOLLM2_135M = ModelShape(576, 1536, 30, 9, 3, 49152, tied=True)
"""SmolLM2-135M (its config.json)."""


def shape_of(path: Path | str) -> ModelShape:
    """Read a model's shape from its config.json.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        ConfigError: There is no such file, or it is not a Llama or Mistral model's.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        values = values.get("text_config", values)
        return ModelShape(
            values["hidden_size"],
            values["intermediate_size"],
            values["num_hidden_layers"],
            values["num_attention_heads"],
            values.get("num_key_value_heads") or values["num_attention_heads"],
            values["vocab_size"],
            bool(values.get("tie_word_embeddings", False)),
            values.get("head_dim") or 0,
        )
    except OSError as error:
        remedy = "Check the path, or name the model by its hub id."
        raise ConfigError("model_name", "a folder with config.json", str(path), remedy) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = f"{type(error).__name__}: {error}. Copy or download the model again."
        raise ConfigError("model_name", "a config.json of a Llama or Mistral model", str(file), remedy) from error
