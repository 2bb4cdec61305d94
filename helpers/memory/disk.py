"""Does the disk hold what a run will write, and can it be written? Told before anything is downloaded.

`helpers.training.failures.preflight_disk` and `helpers.export.merge_16bit` look again, at the model in memory, before
they write.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from helpers.core.config import RunConfig
from helpers.core.errors import StackError
from helpers.core.files import folder_bytes, require_space
from helpers.core.runs import RunDirectory
from helpers.core.text import format_bytes
from helpers.memory.plan import shape_for
from helpers.memory.shapes import ModelShape

__all__ = ["ALLOWANCE", "GGUF_BITS", "KEPT", "SMALL_FILES", "find_llama_quantize", "gguf_bytes", "preflight_room"]

KEPT = 2
"""How many complete checkpoints a run keeps."""

SMALL_FILES = 24 * 2**20
"""Bytes allowed for what a checkpoint holds beside weights and optimizer: mostly the tokenizer, 4 MiB for Mistral's and
17 MiB for the largest in use."""

ALLOWANCE = 32 * 2**20
"""For tokenizer, configuration and card of a merged model: 32 MiB. Mistral's tokenizer.json is 4 MB."""

GGUF_BITS = {"f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9}
"""Bits a weight takes, scales included: https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md."""

_COLAB_QUANTIZE = (
    "!apt-get -qq install cmake && git clone --depth 1 https://github.com/ggml-org/llama.cpp ~/.unsloth/llama.cpp && "
    "cd ~/.unsloth/llama.cpp && cmake -B build -DLLAMA_CURL=OFF && cmake --build build --target llama-quantize -j"
)
"""Builds the quantizer on Colab, in a few minutes."""

_GGUF_WRITTEN = ("f16", "bf16", "q8_0")
"""Types that are written here; the others are left to llama.cpp's `llama-quantize`."""

_TRAINED_BYTES = 12
"""Of a trained number in a checkpoint, at most: itself and AdamW's two moments in float32."""


def disk_needs(config: RunConfig, shape: ModelShape) -> dict[str, int]:
    """Return what a run writes, at most, in bytes by name.

    Returns:
        Checkpoints and adapter, and what is made of the adapter.

    Example:
        >>> from helpers.core.config import build_config
        >>> from helpers.memory.shapes import MISTRAL_7B
        >>> needs = disk_needs(build_config("dolly", preset="colab-t4"), MISTRAL_7B)
        >>> {name: round(size / 2**30, 1) for name, size in needs.items()}
        {'3 checkpoints': 1.5, 'the adapter': 0.5, 'the merged model': 13.5}
    """
    trained, weights = sum(shape.lora_tensors(config.adapter.lora_rank)), _weights(shape)
    each = _TRAINED_BYTES + (4 if config.train.keep == "best" else 0)  # a second adapter beside the one that is trained
    needs = {
        f"{KEPT + 1} checkpoints": (KEPT + 1) * (each * trained + SMALL_FILES),
        "the adapter": 3 * (4 * trained + SMALL_FILES),
    }
    if not config.export.merge_16bit:
        return needs
    needs["the merged model"] = 2 * weights + ALLOWANCE
    if kind := config.export.gguf_quantization:
        needs[f"GGUF, {kind}"] = gguf_bytes(weights, kind)
    return needs


def gguf_bytes(weights: int, kind: str) -> int:
    """Return what writing a GGUF file takes, in bytes.

    Args:
        kind: A key of `GGUF_BITS`.
    """
    between = 0 if kind in _GGUF_WRITTEN else 2 * weights  # llama-quantize reads a 16-bit file
    return int(weights * GGUF_BITS[kind] / 8) + between + ALLOWANCE


def find_llama_quantize(kind: str) -> Path | None:
    """Return llama.cpp's quantizer, on the path or where Unsloth puts it; None for a type that needs none.

    Args:
        kind: A key of `GGUF_BITS`.

    Raises:
        StackError: It is needed and not there; how to get it, and what works without.
    """
    if kind in _GGUF_WRITTEN:
        return None
    unsloth = os.environ.get("UNSLOTH_LLAMA_CPP_PATH") or str(Path.home() / ".unsloth" / "llama.cpp")
    found = shutil.which("llama-quantize") or shutil.which(
        "llama-quantize", path=f"{unsloth}{os.pathsep}{unsloth}/build/bin"
    )
    if found:
        return Path(found)
    raise StackError(
        "gguf_quantization",
        f"one of {', '.join(_GGUF_WRITTEN)}, or llama.cpp's program llama-quantize for {kind}",
        "no llama-quantize",
        'Set gguf_quantization = "q8_0", which needs no tool, or install llama.cpp '
        "(https://github.com/ggml-org/llama.cpp/releases, or brew install llama.cpp) and put llama-quantize on the "
        f"PATH. On Colab: {_COLAB_QUANTIZE}",
    )


def preflight_room(run: RunDirectory, config: RunConfig) -> str:
    """Stop before the first download if the run's disk cannot hold what the run will write.

    Args:
        run: Its directory, which need not exist; what is in it will be replaced, and counts as free.

    Returns:
        A sentence on what is needed, or why nothing was predicted.

    Raises:
        RunError: Too little is free.
        StackError: A GGUF type is asked for that only llama-quantize makes, and it is not there.
    """
    if config.export.gguf_quantization:
        find_llama_quantize(config.export.gguf_quantization)
    shape = shape_for(config)
    if shape is None:
        return f"The shape of {config.model.model_name} is not known yet, so its files are not predicted."
    needs = disk_needs(config, shape)
    names = [*needs][:-1]
    what = f"{', '.join(names)} and {[*needs][-1]}"
    total = sum(needs.values())
    require_space(run.path, total - folder_bytes(run.path), what)
    return f"The run's disk has room for {what}: {format_bytes(total)} at most."


def _weights(shape: ModelShape) -> int:
    """Return the number of the model's weights, each counted once."""
    return shape.linear_parameters() + shape.other_parameters()
