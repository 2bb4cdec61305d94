"""What a GGUF file holds: tensors by GGUF's names and in its order of rows, and the tokenizer; and a check of both."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core.errors import ExportError, StackError
from helpers.core.files import write_json
from helpers.export.folders import open_weights, read_settings, tensor_files

if TYPE_CHECKING:
    import numpy as np

_ERROR_LIMITS = {"f16": 5e-4, "bf16": 4e-3, "q8_0": 0.01, "q6_k": 0.04, "q5_k_m": 0.07, "q4_k_m": 0.13}
"""Largest relative error of a tensor (root mean square). f16 and bf16: half a step of their mantissa (2^-11, 2^-8); the
others: for normally distributed weights Q8_0 measures 0.005, and each bit less doubles it."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer."""


def check_gguf(file: Path, merged: Path, config: dict[str, Any], quantization: str) -> tuple[int, float, float]:
    """Compare a GGUF file with the merged model; return the number of tensors, their largest error, and its limit."""
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
        if not error <= _ERROR_LIMITS[quantization]:
            raise ExportError(
                f"gguf, {name}", f"an error of at most {_ERROR_LIMITS[quantization]:g}", float(error), "Export again."
            )
    _check_tokenizer(reader, merged, config)
    return len(wanted), worst, _ERROR_LIMITS[quantization]


def _check_tokenizer(reader: Any, merged: Path, config: dict[str, Any]) -> None:
    """Raise unless the file's tokenizer is the one beside the merged weights."""
    for key, value in read_tokenizer(merged, config["vocab_size"]).items():
        field = reader.get_field(key)
        found = field.contents() if field is not None else None
        if found != value:
            raise ExportError(
                f"gguf, {key}", "the merged model's tokenizer", "another value" if found else found, "Export again."
            )


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Args:
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
        quantization: "f16", "bf16" or "q8_0".
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
    """
    with open_weights(merged / tensor_files(merged)[source]) as file:
        values = file.get_tensor(source).float().numpy()
    if (heads := _rotated_heads(source, config)) is None:
        return values
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _rotated_heads(source: str, config: dict[str, Any]) -> int | None:
    """Return the number of heads of a query or key matrix, None for others."""
    heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}
    return next((count for suffix, count in heads.items() if source.endswith(suffix)), None)


def unpack_gguf(file: Path, merged: Path, folder: Path) -> None:
    """Write a GGUF file's weights in fp16, with the merged model's names, order of rows and configuration."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    config = read_settings(merged, "config.json")
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    names = {tensor.source: stored[tensor.name] for tensor in gguf_tensors(merged, config, "f16")}
    folder.mkdir()
    for name in ("generation_config.json", "model.safetensors.index.json"):
        if (merged / name).is_file():
            shutil.copyfile(merged / name, folder / name)
    write_json(folder / "config.json", {**config, "dtype": "float16", "torch_dtype": "float16"})
    index = tensor_files(merged)
    for shard in sorted(set(index.values())):
        content = {}
        for source in (name for name, where in index.items() if where == shard):
            values = dequantize(names[source].data, names[source].tensor_type)
            if (heads := _rotated_heads(source, config)) is not None:
                values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            content[source] = torch.from_numpy(values).half().contiguous()
        save_file(content, folder / shard, metadata={"format": "pt"})


def read_tokenizer(folder: Path, size: int) -> dict[str, Any]:
    """Return what llama.cpp needs to tokenize, from the tokenizer beside a model's weights, under GGUF's keys.

    Args:
        size: Rows of its embedding; ids that the tokenizer lacks become unused tokens.

    Raises:
        StackError: The tokenizer is neither SentencePiece's BPE nor byte-level BPE with a split that is known here.
    """
    from gguf import Keys
    from transformers import AutoTokenizer

    names = Keys.Tokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, pre = _kind(content)
    tokens, types = _tokens(content, size, model)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    scheme = (content.get("pre_tokenizer") or {}).get("prepend_scheme")
    found = {
        names.MODEL: model,
        names.PRE: pre,
        names.LIST: tokens,
        names.TOKEN_TYPE: types,
        names.SCORES: _scores(content, tokens) if model == "llama" else None,
        names.MERGES: merges if model == "gpt2" else None,
        names.BOS_ID: tokenizer.bos_token_id,
        names.EOS_ID: tokenizer.eos_token_id,
        names.PAD_ID: tokenizer.pad_token_id,
        names.UNK_ID: tokenizer.unk_token_id,
        names.ADD_BOS: tokenizer.bos_token_id is not None and model == "llama",
        names.ADD_PREFIX: scheme == "always",
        names.CHAT_TEMPLATE: tokenizer.chat_template,
    }
    return {key: value for key, value in found.items() if value is not None}


def write_tokenizer(writer: Any, tokenizer: dict[str, Any]) -> None:
    """Write what `read_tokenizer` found with a `gguf.GGUFWriter`."""
    add = {str: writer.add_string, list: writer.add_array, bool: writer.add_bool, int: writer.add_uint32}
    for key, value in tokenizer.items():
        add[type(value)](key, value)


def _kind(content: dict[str, Any]) -> tuple[str, str]:
    """Return llama.cpp's names for the tokenizer and its split.

    A text that follows BOS gets no space before it from `prepend_scheme: first`, and every rendered conversation
    begins with BOS, so only `always` becomes `add_space_prefix`.
    """
    split, merge = content.get("pre_tokenizer") or {}, content["model"]
    if merge["type"] == "BPE" and merge.get("byte_fallback") and split.get("type") in (None, "Metaspace"):
        return "llama", "default"
    parts = split.get("pretokenizers", [split])
    kinds = [part.get("type") for part in parts]
    if merge["type"] == "BPE" and kinds == ["ByteLevel"]:
        return "gpt2", "gpt-2"
    if merge["type"] == "BPE" and kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "gpt2", "smollm"
    raise StackError(
        "tokenizer",
        "SentencePiece BPE, or byte-level BPE as GPT-2's or SmolLM's",
        f"{merge['type']} with {kinds}",
        "Convert this model with llama.cpp's convert_hf_to_gguf.py.",
    )


def _tokens(content: dict[str, Any], size: int, model: str) -> tuple[list[str], list[int]]:
    """Return all tokens' texts and types, by id."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for text, number in content["model"]["vocab"].items():
        byte = model == "llama" and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        tokens[number], types[number] = text, BYTE if byte else NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    unknown = content["model"].get("unk_token") or "<unk>"
    if model == "llama" and unknown in tokens:
        types[tokens.index(unknown)] = UNKNOWN
    return tokens, types


def _scores(content: dict[str, Any], tokens: list[str]) -> list[float]:
    """Return SentencePiece's scores: minus the order in which tokens are merged; others come last."""
    order: dict[str, int] = {}
    for pair in content["model"]["merges"]:
        first, second = pair if isinstance(pair, list) else pair.split(" ")
        order.setdefault(first + second, len(order))
    return [-float(order.get(token, len(order))) for token in tokens]
