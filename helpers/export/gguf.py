"""GGUF files, written from the merged model and read back.

The file is written here with the `gguf` package rather than by Unsloth: Unsloth's `save_pretrained_gguf` merges once
more, onto a base that it downloads, and builds llama.cpp on the way (unsloth 2026.10.9); this starts from the very
files that were verified. Types that only llama.cpp's `llama-quantize` can make are left to it, if it is there.
"""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError, ExportError, StackError
from helpers.core.files import disk_error, require_space, write_text
from helpers.export.folders import read_settings, record_export, staged_folder, weight_bytes
from helpers.export.gain import GainKept, HeldOut
from helpers.export.gguf_format import check_gguf, gguf_tensors, read_tensor, read_tokenizer, write_tokenizer
from helpers.export.serve import modelfile
from helpers.export.verdict import Verification
from helpers.export.verify import measure_gain
from helpers.memory.disk import GGUF_BITS, find_llama_quantize, gguf_bytes
from helpers.model.distance import Check


@dataclass(frozen=True)
class GgufResult:
    """What was written and read back.

    Args:
        worst_error: Largest relative error of a tensor (root mean square) against the merged model.
    """

    file: str
    quantization: str
    tensors: int
    worst_error: float
    limit: float
    bytes: int
    gain: GainKept | None = None

    def verification(self) -> Verification:
        """Return what was compared, for a model card."""
        values = f"{self.tensors} tensors compared; worst relative error {self.worst_error:.2g} (limit {self.limit:g})."
        same = "Tokens, their types, special ids and chat template are the merged model's."
        numbers = {"gain_kept": self.gain.as_dict()} if self.gain else {}
        return Verification(
            "gguf", (Check("weights in the file", True, values), Check("tokenizer", True, same)), numbers
        )


def export_gguf(
    merged: Path | str,
    folder: Path | str,
    *,
    quantization: str = "q8_0",
    name: str | None = None,
    system: str | None = None,
    max_seq_length: int = 2048,
    heldout: HeldOut | None = None,
) -> GgufResult:
    """Write a merged Mistral or Llama model as one GGUF file, with Ollama's Modelfile beside it, and compare the two.

    Args:
        merged: What `merge_16bit` wrote and `verify_merged` passed.
        folder: Where to: missing, empty, or an earlier export.
        quantization: "f16", "bf16" or "q8_0"; "q6_k", "q5_k_m" and "q4_k_m" where llama.cpp's llama-quantize is found.
        max_seq_length: Longest conversation, in tokens, for the Modelfile.

    Raises:
        ConfigError: The type is unknown.
        ExportError: The folder holds something else, there is no room, or the file is not what it was made from.
        StackError: The model cannot be written here, or llama-quantize is missing.
    """
    merged, folder = Path(merged), Path(folder)
    if quantization not in GGUF_BITS:
        remedy = "Use q8_0 if in doubt."
        raise ConfigError("gguf_quantization", f"one of {', '.join(GGUF_BITS)}", quantization, remedy)
    tool = find_llama_quantize(quantization)
    config = _read_config(merged)
    tokenizer = read_tokenizer(merged, config["vocab_size"])
    weights = weight_bytes(merged) // 2
    require_space(folder, gguf_bytes(weights, quantization), f"GGUF, {quantization}")
    with staged_folder(folder) as staged:
        file = staged / f"model-{quantization}.gguf"
        name = name or f"{config['model_type'].capitalize()} fine-tuned"
        if tool is None:
            _write(merged, config, tokenizer, file, quantization, name)
        else:
            _write(merged, config, tokenizer, staged / "f16.gguf", "f16", name)
            _quantize(tool, staged / "f16.gguf", file, quantization)
        tensors, worst, limit = check_gguf(file, merged, config, quantization)
        ask = modelfile(
            file.name,
            tokenizer.get("tokenizer.chat_template", ""),
            eos=tokenizer["tokenizer.ggml.tokens"][tokenizer["tokenizer.ggml.eos_token_id"]],
            system=system,
            max_seq_length=max_seq_length,
        )
        write_text(staged / "Modelfile", ask)
        size = file.stat().st_size
        record_export(staged, kind="gguf", quantization=quantization)
    gain = measure_gain(folder, heldout, merged=merged) if heldout else None
    return GgufResult(str(folder / file.name), quantization, tensors, worst, limit, size, gain)


def _read_config(merged: Path) -> dict[str, Any]:
    """Return the model's configuration if it can be written as llama.cpp's llama architecture."""
    if not (merged / "config.json").is_file():
        raise ExportError("merged", "a merged model", str(merged), "Set merge_16bit: the GGUF file is made from it.")
    config = read_settings(merged, "config.json")
    if config.get("model_type") not in ("mistral", "llama"):
        raise StackError(
            "model_name", "a Mistral or Llama model", config.get("model_type"), "Use llama.cpp's convert_hf_to_gguf.py."
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default" or config.get("attention_bias"):
        raise StackError(
            "model_name",
            "a model with plain rotary positions and no biases",
            rope,
            "Use llama.cpp's convert_hf_to_gguf.py.",
        )
    return config


def _write(
    merged: Path, config: dict[str, Any], tokenizer: dict[str, Any], file: Path, quantization: str, name: str
) -> None:
    """Write header and tensors, one tensor in memory at a time."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(file, "llama")
    _write_settings(writer, config, quantization, name)
    write_tokenizer(writer, tokenizer)
    plan = list(gguf_tensors(merged, config, quantization))
    for each in plan:
        writer.add_tensor_info(
            each.name, each.shape, np.dtype(np.float32), each.stored_bytes(), GGMLQuantizationType[each.kind]
        )
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in plan:
            tensor = read_tensor(merged, each.source, config)
            writer.write_tensor_data(quantize(tensor, GGMLQuantizationType[each.kind]))
    needed, size = sum(each.stored_bytes() for each in plan), file.stat().st_size
    if size < needed:  # numpy's tofile does not say so of what fits into a buffer
        raise OSError(f"{needed} requested and {size} written")


def _write_settings(writer: Any, config: dict[str, Any], quantization: str, name: str) -> None:
    """Write the model's sizes."""
    from gguf import LlamaFileType

    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(name)
    writer.add_type("model")
    writer.add_file_type(
        {"f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16, "q8_0": LlamaFileType.MOSTLY_Q8_0}[
            quantization
        ]
    )
    writer.add_quantization_version(2)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _quantize(tool: Path, source: Path, target: Path, quantization: str) -> None:
    """Let llama.cpp quantize, and remove the 16-bit file."""
    done = subprocess.run([str(tool), str(source), str(target), quantization.upper()], capture_output=True, text=True)
    if done.returncode or not target.is_file():
        said = (done.stderr or done.stdout).strip()[-200:]
        if full := disk_error("the GGUF file", target.parent, said):
            raise full
        raise ExportError(
            "gguf_quantization",
            "a file from llama-quantize",
            said,
            "Nothing half-written was left.",
        )
    source.unlink()
