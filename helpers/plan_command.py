"""The command `python -m helpers plan`: does a run fit into a card's memory, and what to change if not."""

from __future__ import annotations

import argparse
import re
from typing import Any

from helpers.config import PRESETS, RunConfig, build_config
from helpers.errors import ConfigError
from helpers.hardware import Gpu, find_gpu
from helpers.memory import ATTENTION, GIB, Prediction, format_bytes
from helpers.planner import USABLE, advise, attention_kind, predict_config

__all__ = ["GPUS", "add_command", "parse_gpu", "plan_report", "run_plan"]

GPUS = {
    "t4": round(14.7 * GIB),
    "l4": round(22.1 * GIB),
    "24gb": round(23.5 * GIB),
    "a100-40": round(39.5 * GIB),
    "a100-80": round(79.1 * GIB),
    "h100": round(79.1 * GIB),
}
"""What torch reports as the memory of these cards, rounded down, in bytes."""

LARGE_BYTES = 20 * GIB
"""From this much memory, preset auto is large-gpu here."""

UNITS = {"": 1, "gb": 10**9, "gib": GIB}

LABELS = {
    "weights": "weights of the blocks",
    "embeddings": "embeddings, output head, norms",
    "adapter": "LoRA weights (float32)",
    "gradients": "their gradients (float32)",
    "optimizer": "optimizer states",
    "workspace": "workspace",
    "activations": "activations kept",
    "temporary": "backward pass of one layer",
    "cross_entropy": "cross-entropy",
}


def add_command(subparsers: Any) -> None:
    """Add `plan` to the command line.

    Args:
        subparsers: What `ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "plan", help="predict a run's peak memory, and say what to change if it does not fit"
    )
    parser.add_argument("--task", choices=("alpaca", "dolly"), default="alpaca", help="which notebook (default alpaca)")
    parser.add_argument("--preset", choices=("auto", *PRESETS), default="auto", help="which preset (default auto)")
    parser.add_argument(
        "--gpu", metavar="CARD", help=f"{', '.join(GPUS)}, or bytes, or such as 16GB; default: this machine's"
    )
    parser.add_argument("--row-length", type=int, metavar="TOKENS", help="of every row (default max_seq_length)")
    parser.add_argument("--attention", choices=ATTENTION, help="how batches go through it (default by the card)")
    parser.add_argument(
        "-p", dest="pairs", action="append", default=[], metavar="PARAMETER=VALUE", help="set a parameter"
    )
    parser.set_defaults(command=run_plan)


def run_plan(options: argparse.Namespace) -> int:
    """Print the report that the command line asks for.

    Args:
        options: Parsed by the parser that `add_command` made.

    Returns:
        The exit status: 0 if the run fits or no card is known, 1 if it does not fit.

    Raises:
        ConfigError: A parameter is wrong, or the card is not known.
    """
    gpu = find_gpu() if options.gpu is None else None
    size = gpu.free_bytes if gpu else parse_gpu(options.gpu) if options.gpu else None
    total = gpu.total_bytes if gpu else size
    preset = options.preset
    if preset == "auto":
        preset = "large-gpu" if size and size >= LARGE_BYTES else "colab-t4"
    config = build_config(options.task, preset=preset, **_pairs(options.pairs))
    known: dict[str, Any] = {"attention": options.attention or _attention(options.gpu, gpu), "total_bytes": total}
    if options.row_length is not None:
        known["lengths"] = _equal_rows(options.row_length, config)
    print(plan_report(config, size, card=options.gpu or (gpu.name if gpu else ""), **known))
    return int(bool(size and advise(config, size, **known)))


def parse_gpu(text: str) -> int:
    """Return a card's memory in bytes.

    Args:
        text: A name of GPUS, a number of bytes, or a number with GB or GiB.

    Returns:
        Bytes.

    Raises:
        ConfigError: It is none of these.

    Example:
        >>> parse_gpu("16GB")
        16000000000
    """
    name = text.strip().lower()
    if name in GPUS:
        return GPUS[name]
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(gb|gib|)", name)
    size = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        remedy = "Leave it out for this machine's card."
        raise ConfigError("--gpu", f"one of {', '.join(GPUS)}, or bytes, or such as 16GB", text, remedy)
    return size


def plan_report(config: RunConfig, gpu_bytes: int | None, *, card: str = "", **known: Any) -> str:
    """Return a table of the parts, the peak, and what to change if it does not fit.

    Args:
        config: The run.
        gpu_bytes: Free memory of the card, in bytes; None leaves the verdict out.
        card: Its name.
        **known: `shape`, `lengths`, `attention`, `total_bytes`: see `helpers.planner.predict_config`. `total_bytes` is
            `gpu_bytes` when left out.

    Returns:
        Lines of text.
    """
    known.setdefault("total_bytes", gpu_bytes)
    peak = predict_config(config, **known)
    lines = [_headline(config, peak), "", *_table(peak)]
    if gpu_bytes is None:
        return "\n".join([*lines, "", "No GPU here: name a card with --gpu to see whether it fits."])
    usable = f"{format_bytes(gpu_bytes * USABLE)} usable of {format_bytes(gpu_bytes)} ({card or 'this card'})"
    changes = advise(config, gpu_bytes, **known)
    if not changes:
        return "\n".join([*lines, "", f"Fits: {usable}."])
    return "\n".join([*lines, "", f"Does not fit: {usable}.", *(f"  {change}" for change in changes)])


def _headline(config: RunConfig, peak: Prediction) -> str:
    """What is predicted, in a line or two."""
    train = config.train
    on = {True: "on", False: "off"}
    return (
        f"{config.task}, {config.preset}: {config.model.model_name}, lora_rank {config.adapter.lora_rank}, "
        f"batch_size {train.batch_size} x gradient_accumulation {train.gradient_accumulation},\n"
        f"packing {on[train.packing]}, gradient_checkpointing {on[train.gradient_checkpointing]}, "
        f"{peak.tokens:,} tokens in the largest micro-batch"
    )


def _table(peak: Prediction) -> list[str]:
    """The parts; of the last two only the larger counts, and the other stands in brackets."""
    lines = []
    smaller = "temporary" if peak.temporary < peak.cross_entropy else "cross_entropy"
    for name, label in LABELS.items():
        value = f"{getattr(peak, name) / GIB:.2f}"
        lines.append(f"  {label:<32}{f'({value})' if name == smaller else value + ' ':>10} GiB")
    return [*lines, f"  {'predicted peak':<32}{peak.total() / GIB:>9.2f}  GiB"]


def _attention(name: str | None, gpu: Gpu | None) -> str:
    """How attention goes on a card; a T4 is the only one in GPUS without a flash kernel."""
    if gpu:
        return attention_kind(gpu.capability)
    return "expanded" if name and name.strip().lower() == "t4" else "rows"


def _equal_rows(length: int, config: RunConfig) -> tuple[int, ...]:
    """As many rows of one length as a micro-batch takes."""
    if not 1 <= length <= config.model.max_seq_length:
        expected = f"1 to max_seq_length ({config.model.max_seq_length}) tokens"
        raise ConfigError("--row-length", expected, length, "Raise max_seq_length, or leave it out.")
    return (length,) * config.train.batch_size


def _pairs(pairs: list[str]) -> dict[str, str]:
    """The parameters that were typed."""
    given = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError("-p", "PARAMETER=VALUE, such as batch_size=4", pair, "Write no spaces around the =.")
        given[name] = value
    return given
