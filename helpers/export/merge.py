"""The merged 16-bit model: base weights plus adapter, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError, ExportError
from helpers.core.files import require_space, write_json
from helpers.core.text import format_bytes
from helpers.export.folders import check_weight_files, record_export, staged_folder
from helpers.export.loadable import write_config, write_tokenizer
from helpers.export.tensors import BaseTensor, base_tensors, refuse_unmergeable
from helpers.memory.disk import ALLOWANCE
from helpers.runtime.hardware import TORCH_NAMES, available_memory, torch_dtype

_SHARD_BYTES = 2 * 2**30
"""Largest weight file: 2 GiB, which also bounds the memory that merging takes."""

_REASON = (
    "Each base weight as it is in memory (NF4 weights as the numbers they stand for) plus scaling * B @ A, "
    "added in float32, written in 16 bit. Nothing is downloaded."
)


@dataclass(frozen=True)
class MergeResult:
    """What was merged.

    Args:
        dtype: "fp16" or "bf16".
        merged: Matrices that the adapter was added to.
        kept: Share of the adapter's change that survives the rounding to 16 bit, by projection; 1 is all.
    """

    reason: str
    dtype: str
    tensors: int
    merged: int
    kept: float
    bytes: int


def merge_16bit(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    *,
    dtype: str = "fp16",
    shard_bytes: int = _SHARD_BYTES,
) -> MergeResult:
    """Write base and adapter as one 16-bit model that plain transformers loads.

    This is not Unsloth's merge. For a 4-bit base that one adds the adapter to the 16-bit original, downloaded anew:
    other numbers than the adapter was trained on. On a CPU it refuses 4-bit bases, and the type that it writes depends
    on the processor (unsloth 2026.10.9, `merge_and_overwrite_lora` in unsloth_zoo/saving_utils.py).

    fp16 is the default because it has 10 bits of mantissa to bf16's 7: base weights lie on a bf16 grid, and what the
    adapter adds is often less than half a step of that grid, so that rounding to bf16 drops it.

    Args:
        folder: Where to: missing, empty, or an earlier export.
        shard_bytes: Largest weight file, in bytes.

    Raises:
        ConfigError: `dtype` is unknown.
        ExportError: The folder holds something else, there is no room, or the adapter cannot be merged.
    """
    if dtype not in ("fp16", "bf16"):
        raise ConfigError("dtype", "fp16 or bf16", dtype, "Use fp16 if in doubt.")
    folder = Path(folder)
    adapter = refuse_unmergeable(model)
    tensors = list(base_tensors(model))
    _check_room(tensors, folder, shard_bytes)
    with staged_folder(folder) as staged:
        kept = _write_weights(tensors, adapter, staged, dtype, shard_bytes)
        _write_companions(model.get_base_model(), tokenizer, staged, dtype)
        check_weight_files(staged, {t.name: t.shape for t in tensors})
        size = sum(p.stat().st_size for p in staged.iterdir())
        merged = sum(t.layer is not None for t in tensors)
        result = MergeResult(_REASON, dtype, len(tensors), merged, kept, size)
        record_export(staged, kind="merged", **asdict(result))
    return result


def _check_room(tensors: Sequence[BaseTensor], folder: Path, shard_bytes: int) -> None:
    """Raise before anything is written if the disk or the main memory is too small."""
    weights, largest = sum(t.numel() for t in tensors), max(t.numel() for t in tensors)
    require_space(folder, 2 * weights + ALLOWANCE, "the merged model")
    needed, available = min(shard_bytes, 2 * weights) + 14 * largest, available_memory()
    if available is not None and needed > available:
        raise ExportError(
            "memory",
            f"{format_bytes(needed)} of main memory free to merge",
            format_bytes(available),
            "Nothing was written. Close other notebooks, or use smaller shard_bytes.",
        )


def _write_weights(tensors: Sequence[BaseTensor], adapter: str, folder: Path, dtype: str, shard_bytes: int) -> float:
    """Write all shards and their index; returns the share of the adapter that rounding kept."""
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    named = {tensor.name: tensor for tensor in tensors}
    plan = split_state_dict_into_shards_factory(
        named,
        get_storage_size=lambda tensor: 2 * tensor.numel(),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    kept = changed = 0.0
    for file, names in plan.filename_to_tensors.items():
        content = {}
        for name in names:
            content[name], along, whole = _merge_tensor(named[name], adapter, dtype)
            kept, changed = kept + along, changed + whole
        save_file(content, folder / file, metadata={"format": "pt"})
        del content
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    return kept / changed if changed else 0.0


def _merge_tensor(tensor: BaseTensor, adapter: str, dtype: str) -> tuple[Any, float, float]:
    """Return one merged tensor on the CPU, <stored - base, delta>, and <delta, delta>."""
    import torch

    kind = torch_dtype(dtype)
    weight = tensor.weight()
    delta = tensor.delta(adapter) if tensor.layer is not None else None
    stored = (weight + delta if delta is not None else weight).to(kind)
    if not torch.isfinite(stored).all():
        raise ExportError(
            "dtype",
            f"weights that {dtype} can hold",
            f"{tensor.name} beyond its range",
            'Use dtype="bf16"; if it is that already, the weights are not finite.',
        )
    if delta is None:
        return stored.cpu().contiguous(), 0.0, 0.0
    along = ((stored.float() - weight) * delta).sum().item()
    return stored.cpu().contiguous(), along, delta.square().sum().item()


def _write_companions(base: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Write tokenizer with template, configuration without quantization, and how to generate."""
    from transformers import GenerationConfig

    write_tokenizer(tokenizer, folder)
    write_config(base, folder, TORCH_NAMES[dtype])
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
