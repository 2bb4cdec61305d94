"""Disk and memory that an export takes, stated before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError, ExportError
from helpers.export.tensors import count_parameters
from helpers.memory.disk import ALLOWANCE, GGUF_BITS, gguf_bytes

__all__ = ["SpaceNeed", "available_memory", "describe_needs", "estimate_needs", "preflight"]


@dataclass(frozen=True)
class SpaceNeed:
    """What one part of an export takes.

    Args:
        name: Such as "merged model, 16 bit".
        disk_bytes: Of the file system that holds the folder.
        memory_bytes: Of main memory, while it is made.
    """

    name: str
    disk_bytes: int
    memory_bytes: int


def estimate_needs(
    model: Any, *, merged: bool = False, gguf: str | None = None, shard_bytes: int = 2 * 2**30
) -> tuple[SpaceNeed, ...]:
    """Estimate what an export takes, from the model in memory.

    Args:
        merged: Whether the merged 16-bit model is written.
        gguf: The GGUF type that is written, or None.
        shard_bytes: Largest weight file of the merged model, in bytes.

    Returns:
        One entry a part; the adapter is always among them.

    Raises:
        ConfigError: The GGUF type is unknown.
    """
    weights, largest = count_parameters(model)
    lora = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".lora_" in n)
    needs = [SpaceNeed("adapter", lora + ALLOWANCE, lora)]
    if merged or gguf:
        needs.append(
            SpaceNeed("merged model, 16 bit", 2 * weights + ALLOWANCE, min(shard_bytes, 2 * weights) + 14 * largest)
        )
    if gguf:
        if gguf not in GGUF_BITS:
            expected = f"one of {', '.join(GGUF_BITS)}"
            raise ConfigError("gguf_quantization", expected, gguf, "Use q8_0 if in doubt.")
        needs.append(SpaceNeed(f"GGUF, {gguf}", gguf_bytes(weights, gguf), 14 * largest))
    return tuple(needs)


def preflight(
    model: Any,
    folder: Path | str,
    *,
    merged: bool = False,
    gguf: str | None = None,
    shard_bytes: int = 2 * 2**30,
) -> tuple[SpaceNeed, ...]:
    """Refuse an export that does not fit, before anything is written.

    The parts stay beside each other, so their disk space adds up; they are made one after the other, so the largest
    memory counts.

    Args:
        folder: Where the largest part goes; it need not exist yet.
        merged: Whether the merged 16-bit model is written.
        gguf: The GGUF type that is written, or None.
        shard_bytes: Largest weight file of the merged model, in bytes.

    Raises:
        ConfigError: The GGUF type is unknown.
        ExportError: Disk or memory is too small: how much is needed, how much is free, and where.
    """
    needs = estimate_needs(model, merged=merged, gguf=gguf, shard_bytes=shard_bytes)
    place = _existing(Path(folder))
    disk, free = sum(n.disk_bytes for n in needs), shutil.disk_usage(place).free
    if disk > free:
        raise ExportError(
            "disk",
            f"{_size(disk)} free at {place} for {', '.join(n.name for n in needs)}",
            _size(free),
            "Nothing was written. Free disk space, or export to another disk.",
        )
    memory, available = max(n.memory_bytes for n in needs), available_memory()
    if available is not None and memory > available:
        raise ExportError(
            "memory",
            f"{_size(memory)} of main memory free to merge",
            _size(available),
            "Nothing was written. Close other notebooks, or use smaller shard_bytes.",
        )
    return needs


def describe_needs(needs: Sequence[SpaceNeed], folder: Path | str) -> str:
    """Say in plain words what an export takes and what there is.

    Args:
        needs: From `estimate_needs` or `preflight`.

    Returns:
        One line a part, and one for what is free.
    """
    place, available = _existing(Path(folder)), available_memory()
    lines = [f"{n.name}: {_size(n.disk_bytes)} on disk, {_size(n.memory_bytes)} of memory" for n in needs]
    free = f"free: {_size(shutil.disk_usage(place).free)} on the disk of {Path(folder).name}/"
    return "\n".join([*lines, free + (f", {_size(available)} of memory" if available is not None else "")])


def available_memory() -> int | None:
    """Return the main memory that is available, in bytes, or None where the system does not say.

    Linux only: `MemAvailable` of /proc/meminfo, and the limit of the container if that is lower; files that the
    system holds in memory can be dropped and count as free.
    """
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        stat = dict(
            line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
        )
        files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    except (OSError, ValueError):
        return available
    return min(available, max(limit - used + files, 0))


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _size(number: int) -> str:
    """Write bytes as people read them."""
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
