"""The tensors of a merged Llama or Mistral model under GGUF's names and in GGUF's order of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core.errors import ExportError
from helpers.export.folders import open_weights, tensor_files

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GgufTensor", "gguf_tensors", "read_tensor"]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Args:
        name: Its name in the file.
        source: Its name in the merged model.
        shape: Its shape, rows first.
        kind: How it is stored: "F32", "F16", "BF16" or "Q8_0".
    """

    name: str
    source: str
    shape: tuple[int, ...]
    kind: str

    def stored_bytes(self) -> int:
        """Return its size in the file."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return math.prod(self.shape) // block * size


def gguf_tensors(merged: Path, config: dict[str, Any], quantization: str) -> Iterator[GgufTensor]:
    """Yield the tensors of a merged model as GGUF names them.

    Norms stay in float32, as llama.cpp's converter leaves them; rows that Q8_0's blocks of 32 do not fit become F16.

    Args:
        merged: The merged model.
        config: Its configuration.
        quantization: "f16", "bf16" or "q8_0".

    Raises:
        ExportError: A tensor has no name in GGUF.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for source, file_name in tensor_files(merged).items():
        name = names.get_name(source, try_suffixes=(".weight",))
        if name is None:
            raise ExportError(
                "merged",
                "tensors of a Llama or Mistral model",
                source,
                "Use llama.cpp's convert_hf_to_gguf.py for other models.",
            )
        with open_weights(merged / file_name) as file:
            shape = tuple(file.get_slice(source).get_shape())
        kind = "F32" if len(shape) == 1 else quantization.upper()
        yield GgufTensor(name, source, shape, "F16" if kind == "Q8_0" and shape[-1] % 32 else kind)


def read_tensor(merged: Path, source: str, config: dict[str, Any]) -> np.ndarray:
    """Read one tensor of the merged model in float32, with GGUF's order of rows.

    llama.cpp rotates neighbouring dimensions where transformers rotates the two halves of a head, so the rows of query
    and key are interleaved (`permute` in llama.cpp's convert_hf_to_gguf.py).

    Args:
        merged: The merged model.
        source: The tensor's name in it.
        config: Its configuration.

    Returns:
        The values.
    """
    with open_weights(merged / tensor_files(merged)[source]) as file:
        values = file.get_tensor(source).float().numpy()
    heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}
    count = next((n for suffix, n in heads.items() if source.endswith(suffix)), None)
    if count is None:
        return values
    return values.reshape(count, 2, values.shape[0] // count // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
