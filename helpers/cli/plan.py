"""The command `python -m helpers plan`: does a run fit into a card's memory, and what to change if not."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from helpers.cli.parameters import typed_values
from helpers.core.config import PRESETS, RunConfig, build_config
from helpers.core.errors import ConfigError, StackError
from helpers.core.runs import runs_root
from helpers.core.text import format_bytes
from helpers.memory.forecast import forecast_training, format_minutes, past_metrics, seconds_before, session_note
from helpers.memory.layout import plan_layout
from helpers.memory.plan import USABLE, advise, attention_kind, predict_config, shape_for, smallest_config
from helpers.memory.predict import ATTENTION, GIB, Prediction
from helpers.model.patches.attention import installed_attention
from helpers.model.patches.cuda_graphs import choose_graphs
from helpers.runtime.calibration import Calibration, calibrate_apart
from helpers.runtime.hardware import Gpu, choose_precision, find_gpu, suitable_preset

__all__ = ["add_command"]

CARDS = {
    # name: memory in GiB, compute capability, 10^12 operations a second
    "t4": (14.7, (7, 5), 25.0),
    "l4": (22.1, (8, 9), 55.0),
    "24gb": (23.5, (8, 6), 60.0),
    "a100-40": (39.5, (8, 0), 250.0),
    "a100-80": (79.1, (8, 0), 250.0),
    "h100": (79.1, (9, 0), 800.0),
}
"""Cards by name: the memory that torch reports, rounded down, and what they reach in products of large 16-bit matrices.
That was measured on an H100 (802); for the others two to four fifths of the maker's figure are assumed, since they
lower their clock under load."""

_FREE_COLAB = (7, 5)
"""Compute capability of the card that a free Colab lends: a T4."""

_MEAN_LENGTH = 233
"""Tokens of a row on average where no length is given, as in the measurements behind `helpers.memory.layout`."""

_SHORTEST = 0.35
"""The shortest row where no length is given, as a share of the mean. The rest is spread exponentially, so that the
largest 8 rows that meet have about twice the tokens of 8 mean ones."""

_TYPICAL_ROWS = 1000
"""Rows that are planned with where no length is given."""

_UNITS = {"": 1, "gb": 10**9, "gib": GIB}

_LABELS = {
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
    """Add `plan` to the command line."""
    parser = subparsers.add_parser(
        "plan", help="predict a run's peak memory and its minutes, and say what to change if it does not fit"
    )
    parser.add_argument("--task", choices=("alpaca", "dolly"), default="alpaca", help="which notebook (default alpaca)")
    parser.add_argument("--preset", choices=("auto", *PRESETS), default="auto", help="which preset (default auto)")
    parser.add_argument(
        "--gpu", metavar="CARD", help=f"{', '.join(CARDS)}, or bytes, or such as 16GB; default: this machine's"
    )
    parser.add_argument(
        "--row-length",
        type=int,
        metavar="TOKENS",
        help=f"length of every row (default: about {_MEAN_LENGTH} on average, some five times as long)",
    )
    parser.add_argument("--attention", choices=ATTENTION, help="how attention treats a batch (default: by card)")
    parser.add_argument(
        "-p", dest="pairs", action="append", default=[], metavar="PARAMETER=VALUE", help="set a parameter"
    )
    parser.set_defaults(command=_run_plan)


def _run_plan(options: argparse.Namespace) -> int:
    """Print the report that the command line asks for.

    Returns:
        The exit status: 0 if the run fits or no card is known, 1 if it does not fit.

    Raises:
        ConfigError: A parameter is wrong, or the card is not known.
    """
    gpu = find_gpu() if options.gpu is None else parse_gpu(options.gpu)
    preset = options.preset
    if preset == "auto":
        preset = suitable_preset(gpu) if gpu else "colab-t4"
    config = build_config(options.task, preset=preset, **typed_values(options.pairs))
    lengths, rows = _rows(options.row_length, config)
    chosen, attention = _attention(options.attention, config, gpu)
    try:
        config, reasons = plan_layout(config, gpu, lengths, chosen=chosen, attention=attention)
    except StackError:  # nothing fits: shown is the layout that needs least
        config, reasons = smallest_config(config), ()
    known: dict[str, Any] = {
        "lengths": lengths,
        "attention": attention,
        "total_bytes": gpu.total_bytes if gpu else None,
    }
    peak = predict_config(config, **known)
    print("\n".join([_headline(config, peak), "", *_table(peak), "", rows, *reasons, ""]))
    if gpu is None:
        print("No GPU here: name a card with --gpu to see whether it fits.")
        return 0
    changes = advise(config, gpu.free_bytes, **known)
    usable = f"{format_bytes(gpu.free_bytes * USABLE)} usable of {format_bytes(gpu.free_bytes)} ({gpu.name})."
    print("\n".join([f"Does not fit: {usable}" if changes else f"Fits: {usable}", *(f"  {each}" for each in changes)]))
    print("\n".join(["", *_minutes(config, options.gpu, gpu, lengths)]))
    return int(bool(changes))


def parse_gpu(text: str) -> Gpu:
    """Return the card that the command line names, with nothing on it.

    Args:
        text: A key of `CARDS`, a number of bytes, or a number with GB or GiB: a card of compute capability 8.0.

    Raises:
        ConfigError: It is none of these.

    Example:
        >>> parse_gpu("16GB").total_bytes
        16000000000
    """
    name = text.strip().lower()
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(gb|gib|)", name)
    size, capability = round(float(found[1]) * _UNITS[found[2]]) if found else 0, (8, 0)
    if name in CARDS:
        gib, capability, _ = CARDS[name]
        size = round(gib * GIB)
    if size < 1:
        remedy = "Leave it out for this machine's card."
        raise ConfigError("--gpu", f"one of {', '.join(CARDS)}, or bytes, or such as 16GB", text, remedy)
    return Gpu(text, capability, size, size)


def _minutes(config: RunConfig, named: str | None, gpu: Gpu, lengths: Sequence[int]) -> list[str]:
    """Say how long the run will take on the card, and whether a free Colab session holds it."""
    if named is None:
        calibration, basis = calibrate_apart(), "by what this card just did"
    elif (name := named.strip().lower()) in CARDS:
        tflops = CARDS[name][2]
        calibration = Calibration(tflops, choose_precision(gpu.capability), 0, gpu.name)
        basis = f"{tflops:g} TFLOP/s assumed"
    else:
        return ["No duration: it is forecast only for a card given by name, or for this machine's."]
    rows = config.data.train_rows or len(lengths)
    trained = list(itertools.islice(itertools.cycle(lengths), rows))
    heldout = [round(sum(lengths) / len(lengths))] * config.data.heldout_rows
    past = past_metrics(runs_root())
    attention = installed_attention(gpu.capability, wanted=config.train.varlen_attention).name
    graphs = choose_graphs(config, gpu, attention=attention).name == "graphs"
    forecast = forecast_training(config, trained, calibration, heldout=heldout, graphs=graphs, past=past)
    shape = shape_for(config)
    if forecast is None or shape is None:
        return [f"The shape of {config.model.model_name} is not known, so its minutes are not forecast."]
    whole = forecast.seconds() + seconds_before(shape, four_bit=config.model.load_in_4bit)
    said = (
        f"About {format_minutes(whole)} from installation to adapter, {format_minutes(forecast.seconds())} of it "
        f"training over {rows:,} rows ({basis}, the {forecast.limited_by} being the limit). A forecast: expect a third "
        "more or less."
    )
    return [said, session_note(whole)] if gpu.capability == _FREE_COLAB else [said]


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
    for name, label in _LABELS.items():
        value = f"{getattr(peak, name) / GIB:.2f}"
        lines.append(f"  {label:<32}{f'({value})' if name == smaller else value + ' ':>10} GiB")
    return [*lines, f"  {'predicted peak':<32}{peak.total() / GIB:>9.2f}  GiB"]


def _attention(wanted: str | None, config: RunConfig, gpu: Gpu | None) -> tuple[str, str]:
    """The name of training's attention on a card, as far as it is known, and how batches go through it."""
    if gpu is None or wanted:
        return "sdpa", wanted or "rows"
    chosen = installed_attention(gpu.capability, wanted=config.train.varlen_attention).name
    return chosen, attention_kind(gpu.capability, chosen)


def _rows(length: int | None, config: RunConfig) -> tuple[tuple[int, ...], str]:
    """The lengths of the rows, and a sentence on them: of one length, or of many."""
    limit, count = config.model.max_seq_length, config.train.rows_per_step()
    if length is None:
        quantiles = [(i + 0.5) / _TYPICAL_ROWS for i in range(_TYPICAL_ROWS)]
        shortest = _SHORTEST * _MEAN_LENGTH
        spread = [round(shortest - (_MEAN_LENGTH - shortest) * math.log(1 - q)) for q in quantiles]
        lengths = tuple(min(n, limit) for n in spread)
        mean = sum(lengths) / _TYPICAL_ROWS
        said = f"Rows of {mean:.0f} tokens on average and {max(lengths):,} at most are assumed"
        return lengths, f"{said}; --row-length plans for rows of one length."
    if not 1 <= length <= limit:
        remedy = "Raise max_seq_length, or leave it out."
        raise ConfigError("--row-length", f"1 to max_seq_length ({limit}) tokens", length, remedy)
    return (length,) * count, f"All rows have {length:,} tokens."
