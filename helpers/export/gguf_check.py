"""A GGUF file, read back and compared with the merged model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.core.errors import ExportError
from helpers.export.gguf_tensors import gguf_tensors, read_tensor
from helpers.export.gguf_vocab import read_vocabulary

__all__ = ["ERROR_LIMITS", "check_gguf"]

ERROR_LIMITS = {"f16": 5e-4, "bf16": 4e-3, "q8_0": 0.01, "q6_k": 0.04, "q5_k_m": 0.07, "q4_k_m": 0.13}
"""Largest relative error of a tensor (root mean square). f16 and bf16: half a step of their mantissa (2^-11, 2^-8); the
others: for normally distributed weights Q8_0 measures 0.005, and each bit less doubles it."""


def check_gguf(file: Path, merged: Path, config: dict[str, Any], quantization: str) -> tuple[int, float, float]:
    """Compare names, shapes, values and tokenizer of a GGUF file with the merged model.

    Args:
        file: The GGUF file.
        merged: The merged model.
        config: Its configuration.
        quantization: The file's type.

    Returns:
        Number of tensors, largest relative error, and the limit.

    Raises:
        ExportError: Something differs.
    """
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    wanted = {t.name: t for t in gguf_tensors(merged, config, "f16")}
    if set(stored) != set(wanted):
        raise ExportError("gguf", "the merged model's tensors", sorted(set(stored) ^ set(wanted))[:5], "Export again.")
    worst = 0.0
    for name, tensor in wanted.items():
        values = dequantize(stored[name].data, stored[name].tensor_type)
        expected = read_tensor(merged, tensor.source, config)
        if values.shape != expected.shape:
            raise ExportError(f"gguf, {name}", f"the shape {expected.shape}", values.shape, "Export again.")
        error = np.sqrt(np.square(values - expected).mean()) / max(np.sqrt(np.square(expected).mean()), 1e-12)
        worst = max(worst, float(error) if np.isfinite(error) else np.inf)
        if not error <= ERROR_LIMITS[quantization]:
            raise ExportError(
                f"gguf, {name}", f"an error of at most {ERROR_LIMITS[quantization]:g}", float(error), "Export again."
            )
    _check_tokenizer(reader, merged, config)
    return len(wanted), worst, ERROR_LIMITS[quantization]


def _check_tokenizer(reader: Any, merged: Path, config: dict[str, Any]) -> None:
    """Raise unless the file's tokenizer is the one beside the merged weights."""
    vocabulary = read_vocabulary(merged, config["vocab_size"])
    wanted = {
        "tokens": list(vocabulary.tokens),
        "token_type": list(vocabulary.types),
        "model": vocabulary.model,
        **{
            f"{'padding' if k == 'pad' else 'unknown' if k == 'unk' else k}_token_id": v
            for k, v in vocabulary.special.items()
        },
    }
    fields = {f"tokenizer.ggml.{key}": value for key, value in wanted.items()}
    fields["tokenizer.chat_template"] = vocabulary.chat_template
    for key, value in fields.items():
        field = reader.get_field(key)
        found = field.contents() if field is not None else None
        if found != value:
            raise ExportError(
                f"gguf, {key}", "the merged model's tokenizer", "another value" if found else found, "Export again."
            )
