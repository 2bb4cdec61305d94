"""The machine: whose it is, GPU, driver, precision, and the description that goes into a run's manifest.

A model too big for one card has its layers on all cards of the machine, in one process. Unsloth lays them out by the
memory of the cards (`device_map="unsloth"`); a batch passes through the cards one after the other. So memory adds up
and speed does not. It is switched on by an environment variable, which notebooks and `python -m helpers train --split`
share.

What shards a model over several processes cannot load one in 4 bit that is too big for a card (unsloth 2026.10.9): its
FSDP2 loads the whole model on each card first (`models/fsdp2_load.py`), and refuses 4-bit weights that wait in the
machine's memory (`models/fsdp2_native.py`, `_shard_device`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from helpers.core.distributed import place
from helpers.core.errors import ConfigError, StackError
from helpers.runtime.lockfile import installed_version

__all__ = [
    "CPU_PRESETS",
    "LARGE_GPU_BYTES",
    "SPLIT",
    "TORCH_NAMES",
    "Gpu",
    "available_memory",
    "choose_precision",
    "describe_hardware",
    "find_gpu",
    "loader_options",
    "own_cards",
    "precision_of",
    "require_gpu",
    "split_share",
    "suitable_preset",
    "torch_dtype",
    "xformers_torch",
]


CPU_PRESETS = ("smoke",)

TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What torch calls the number formats that a model computes in."""

LARGE_GPU_BYTES = 20 * 2**30
"""From this much memory on a GPU counts as large: 20 GiB in bytes."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that this process trains on.

    Args:
        capability: CUDA compute capability, major and minor: (7, 5) for a T4.
        count: How many GPUs torch sees.
    """

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Driver:
    """What the NVIDIA driver says, whatever torch can use of it.

    Args:
        version: The driver's version, such as "550.54.15".
        cuda: The newest CUDA that it runs, such as "12.4"; None when it does not say.
    """

    version: str
    cuda: str | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """The machine and what is installed on it, as far as can be told without importing torch.

    Args:
        system: As `platform.system` names it, such as "Linux".
        service: "colab", "kaggle", or "local" for a machine of one's own.
    """

    python: str
    system: str = "Linux"
    service: Literal["colab", "kaggle", "local"] = "local"
    driver: Driver | None = None
    torch_cuda: str | None = None
    xformers_torch: str | None = None


def read_host() -> Host:
    """Look at this machine."""
    python, system = platform.python_version(), platform.system()
    return Host(python, system, where(), read_driver(), torch_cuda(), xformers_torch())


def where() -> Literal["colab", "kaggle", "local"]:
    """Which service this process runs on, from its environment variables.

    Kaggle is asked first: its image is built on Colab's and keeps some of its marks.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules else "local"


def find_gpu(*, held_is_free: bool = False) -> Gpu | None:
    """The GPU that training would use; None without one. Imports torch and opens a CUDA context.

    Where a model is split over all cards (`split_share`), they count as one with the memory of all.

    Args:
        held_is_free: Whether what this process holds already counts as free; a card never has more than its share.

    Raises:
        StackError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise StackError("torch", "torch to be installed", None, "Install it first, as pytorch.org says.") from error
    if not torch.cuda.is_available():
        return None
    first = torch.cuda.current_device()  # the first one, or what `helpers.core.distributed.join` chose
    share, cards = split_share() or 1.0, own_cards()
    memory = [torch.cuda.mem_get_info(card) for card in cards]
    held = [torch.cuda.memory_reserved(card) if held_is_free else 0 for card in cards]
    usable = [int(share * total) for _, total in memory]
    free = sum(min(free + own, most) for (free, _), own, most in zip(memory, held, usable, strict=True))
    name, (major, minor) = torch.cuda.get_device_name(first), torch.cuda.get_device_capability(first)
    return Gpu(name, (major, minor), sum(usable), free, torch.cuda.device_count())


def choose_precision(capability: tuple[int, int] | None) -> Literal["bf16", "fp16", "fp32"]:
    """The number format to train in, by compute capability.

    `torch.cuda.is_bf16_supported()` is not asked: since torch 2.3 it is true on a T4, which only emulates bf16.

    Args:
        capability: (major, minor), or None for a CPU.

    Returns:
        "bf16" from Ampere (8.0) on, "fp16" on older GPUs, "fp32" on a CPU.

    Example:
        >>> choose_precision((7, 5))
        'fp16'
    """
    if capability is None:
        return "fp32"
    return "bf16" if tuple(capability) >= (8, 0) else "fp16"


def torch_dtype(precision: str) -> Any:
    """Return torch's type for "bf16", "fp16" or "fp32"."""
    import torch

    return getattr(torch, TORCH_NAMES[precision])


def precision_of(dtype: Any) -> str:
    """Return "bf16", "fp16" or "fp32" for torch's type or its name.

    Example:
        >>> precision_of("bfloat16")
        'bf16'
    """
    return {name: precision for precision, name in TORCH_NAMES.items()}[str(dtype).removeprefix("torch.")]


def require_gpu(preset: str, gpu: Gpu | None) -> None:
    """Stop a run that needs a GPU and has none.

    Since 2026.10 Unsloth trains on the CPU without a word, at a pace that no one would wait for.

    Raises:
        StackError: With what to click on Colab and on Kaggle.
    """
    if gpu is not None or preset in CPU_PRESETS:
        return
    raise StackError(
        "preset",
        f"a GPU for {preset!r}",
        "no GPU",
        "On Colab: Runtime, Change runtime type, T4 GPU, Save, then Run all. On Kaggle: Settings, Accelerator, "
        "GPU T4 x2. Without a GPU, use preset 'smoke'.",
    )


def suitable_preset(gpu: Gpu) -> str:
    """Return what preset "auto" stands for on a GPU.

    Returns:
        "colab-t4" below 20 GiB of memory or without native bf16, else "large-gpu".

    Example:
        >>> suitable_preset(Gpu("Tesla V100", (7, 0), 32 * 2**30, 30 * 2**30))
        'colab-t4'
    """
    return "large-gpu" if gpu.total_bytes >= LARGE_GPU_BYTES and gpu.capability >= (8, 0) else "colab-t4"


@lru_cache(maxsize=1)
def read_driver() -> Driver | None:
    """The NVIDIA driver and its GPUs, from nvidia-smi; None without one. Imports no torch."""
    rows = _nvidia_smi("--query-gpu=driver_version,name", "--format=csv,noheader").strip().splitlines()
    pairs = [tuple(part.strip() for part in row.split(",", 1)) for row in rows if "," in row]
    if not pairs:
        return None
    cuda = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", _nvidia_smi())
    return Driver(pairs[0][0], cuda and cuda[1], tuple(name for _, name in pairs))


def _nvidia_smi(*arguments: str) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built for, such as "12.8"; None for a CPU build or no torch.

    Read from torch/version.py, since importing torch takes seconds.
    """
    found = re.search(r"^cuda\b[^=\n]*=\s*'([\d.]+)'", _installed_text("torch", "torch/version.py"), re.MULTILINE)
    return found[1] if found else None


def xformers_torch() -> str | None:
    """The torch version that the installed xformers' extensions are built for; None without such extensions."""
    try:
        built = json.loads(_installed_text("xformers", "xformers/cpp_lib.json"))["version"]["torch"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(built)


def _installed_text(distribution: str, file: str) -> str:
    """A file of an installed distribution; "" when it is not there."""
    try:
        return Path(str(importlib.metadata.distribution(distribution).locate_file(file))).read_text(encoding="utf-8")
    except (importlib.metadata.PackageNotFoundError, OSError):
        return ""


def describe_hardware(driver: Driver | None = None) -> dict[str, Any]:
    """The machine in plain values, for a run's manifest: None where something is not known or not there.

    Args:
        driver: None asks nvidia-smi.

    Returns:
        cpu (model), cores (that this process may use), ram_bytes, gpus (names), driver, driver_cuda, torch,
        torch_cuda and platform.
    """
    import psutil

    driver = driver or read_driver()
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "ram_bytes": psutil.virtual_memory().total,
        "gpus": list(driver.names) if driver else [],
        "driver": driver.version if driver else None,
        "driver_cuda": driver.cuda if driver else None,
        "torch": installed_version("torch") or None,
        "torch_cuda": torch_cuda(),
    }


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


def _cpu_model() -> str | None:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or None


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


SPLIT = "HELPERS_SPLIT"
"""The environment variable: the share of each card's memory to use, such as 1 or 0.5; unset or 0 leaves it off."""


def split_share() -> float | None:
    """Return the share of each card's memory to use, above 0 and up to 1; None if models are not split.

    Raises:
        ConfigError: The variable is something else.
        StackError: Several processes were launched.
    """
    text = os.environ.get(SPLIT, "").strip()
    try:
        share = float(text or 0)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(SPLIT, "a share of each card's memory, above 0 and up to 1", text, "Use 1 for all of it.")
    if share and place().count > 1:
        remedy = "Start it without torchrun or accelerate launch: one process uses all cards."
        raise StackError("processes", f"one process with {SPLIT}", place().count, remedy)
    return share or None


def own_cards() -> list[int]:
    """Return the numbers of the cards that this process uses: all for a model that is split, else its own."""
    import torch

    return list(range(torch.cuda.device_count())) if split_share() else [torch.cuda.current_device()]


def loader_options() -> dict[str, Any]:
    """Return what Unsloth's loader must be told for a model that is split; {} for any other.

    Raises:
        ConfigError: The variable is wrong.
        StackError: There are fewer than two cards, or several processes.
    """
    share = split_share()
    if share is None:
        return {}
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards < 2:
        raise StackError("GPUs", f"two or more with {SPLIT}", cards, "Unset it, or use a machine with more cards.")
    if share < 1:  # large cards act as small ones
        for index in range(cards):
            torch.cuda.set_per_process_memory_fraction(share, index)
    budgets = {index: int(share * torch.cuda.mem_get_info(index)[1]) for index in range(cards)}
    return {"device_map": "unsloth", "device_map_planner_kwargs": {"max_memory": budgets}}
