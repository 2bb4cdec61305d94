"""Training speed and memory: this project beside its peers, all in one run on one machine.

    python benchmarks/train.py --model FOLDER --data ROWS.json [--rounds 2] [--budget SECONDS] [--only NAME,NAME]
    python benchmarks/train.py --model FOLDER --data ROWS.json --curves

FOLDER holds an NF4 checkpoint of Mistral-7B's shape (`scripts/random_mistral` makes one without a hub), ROWS.json a
list of Alpaca rows. The peers are

- official: the setting of Unsloth's own Mistral Alpaca notebook: batch 2 x 4, checkpointing, no packing; official-8 is
  the same with its 8 rows in one pass,
- plain: TRL + PEFT + bitsandbytes without Unsloth as shipped; plain-packed and plain-packed-8 are packed, with batch 4
  and 8, plain-packed-kept and plain-packed-large with batch 2 and 8, without checkpointing: the fastest of them is what
  it is at its best,

and "ours" is what `helpers.training.trainer.build_trainer` builds. All train the first 288 rows with LoRA of rank 16
on all linear layers, in the same batches of 8 rows in the same order, or packed into 32 sequences of 2,048 tokens.
Speed is taken over whole epochs of them after warm-up, and the median counts; with several rounds the median of these.
"Useful" tokens are those with a label, padding and repeats not counted.

--curves measures how speed grows: with the batch, with the length of packed sequences, and with the number of rows
(what comes before the first step). There one process measures a whole curve.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import trainers
from bench import add_options, measure_all, median, say
from stopwatch import time_epochs
from unpacked import unpacked_weights

EIGHT_BIT = {"settings": {"optimizer": "adamw_8bit", "cuda_graphs": False}}
ROWS = 288
"""That all configurations train: 36 batches of 8, or 32 packed sequences, 99 % full, of 2,048 tokens."""

PLANNED = 1000
"""Steps of the trainings that are broken off."""

RECORDED = {"warmup": 2 * ROWS // 8}
"""Where passes are recorded as CUDA graphs, they are so in the first two epochs."""

AN_EPOCH = {"warmup": 16, "epochs": 3}
"""Of warm-up, for the peer at its best: its first epoch was a quarter slower than the second."""

EAGER = {"settings": {"cuda_graphs": False}}

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (whose, options of `trainers`)
    "official": ("official", {"batch": 2, "accumulate": 4, "epochs": 1}),
    "ours-8": ("ours", {"batch": 8, "checkpointing": False, **RECORDED}),
    "ours-packed-small": ("ours", {"batch": 4, "packing": True}),
    "ours-packed-large": ("ours", {"batch": 8, "packing": True, "checkpointing": False}),
    "plain-packed": ("plain", {"batch": 4, "packing": True}),
    "plain-packed-8": ("plain", {"batch": 8, "packing": True}),
    "plain-packed-kept": ("plain", {"batch": 2, "packing": True, "checkpointing": False, **AN_EPOCH}),
    "plain-packed-large": ("plain", {"batch": 8, "packing": True, "checkpointing": False}),
    "plain": ("plain", {"batch": 2, "accumulate": 4, "epochs": 1}),
    "official-8": ("official", {"batch": 8, "epochs": 1}),
    "ours-8-eager": ("ours", {"batch": 8, "checkpointing": False, **EAGER}),
    "ours-8-checkpointing": ("ours", {"batch": 8}),
    "ours-8-8bit": ("ours", {"batch": 8, "checkpointing": False, **EIGHT_BIT}),
    "ours-8-unpacked": ("ours", {"batch": 8, "checkpointing": False, "unpacked": True, **RECORDED}),
    "ours-8-sdpa": ("ours", {"batch": 8, "checkpointing": False, "settings": {"varlen_attention": False}}),
}

BATCHES, LENGTHS, NUMBERS = (1, 2, 4, 8, 16, 32), (512, 1024, 2048, 4096), (1_000, 10_000, 51_760)
TOKENS = 8192
"""In a packed step of the curve over lengths."""

STEPS = 10
"""Batches that are timed for a point of the curves over batches and over numbers of rows."""

CURVES: dict[str, tuple[str, str]] = {
    f"{curve}-{whose}": (curve, whose) for curve in ("batch", "length", "rows") for whose in ("ours", "official")
}


def main() -> None:
    """Measure the chosen configurations one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=ROWS, help="that are trained; a multiple of 8")
    parser.add_argument("--epochs", type=int, default=2, help="that are timed, where a configuration does not say so")
    parser.add_argument("--warmup", type=int, default=5, help="steps that are not timed, where it does not say so")
    parser.add_argument("--curves", action="store_true")
    add_options(parser, "train.json")
    options = parser.parse_args()
    if options.curves and options.out.name == "train.json":
        options.out = options.out.with_name("curves.json")
    names = CURVES if options.curves else CONFIGURATIONS
    if options.one:
        say(curve(*CURVES[options.one], options) if options.curves else configuration(options.one, options))
        return
    record = measure_all(__file__, list(names), options)
    print("\n".join(curve_lines(record) if options.curves else table(record)))


def configuration(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one configuration."""
    whose, wanted = CONFIGURATIONS[name]
    started, rows = time.perf_counter(), read_rows(options.data)[: options.rows]
    warmup, epochs = wanted.get("warmup", options.warmup), wanted.get("epochs", options.epochs)
    trainer = Side(whose, options.model, wanted, PLANNED).trainer(rows)
    ready, per_pass = time.perf_counter(), None if wanted.get("packing") else wanted["batch"]
    with unpacked_weights(trainer.model) if wanted.get("unpacked") else nullcontext():
        found = time_epochs(trainer, warmup, epochs=epochs, rows_per_pass=per_pass)
    return {"whose": whose, "options": wanted, "seconds_to_trainer": ready - started, **found, "mode": mode(trainer)}


class Side:
    """A loaded model of ours or of a peer, and the trainers over it.

    Args:
        whose: "ours", "official" or "plain".
        model: Its folder.
        options: Of `trainers`; what changes from trainer to trainer may be given later.
        steps: Optimizer steps.
    """

    def __init__(self, whose: str, model: str, options: dict[str, Any], steps: int) -> None:
        self.whose, self.name, self.options, self.steps = whose, model, options, steps
        if whose == "ours":
            self.loaded = trainers.load_ours(trainers.config_of(model, options, steps))
        else:
            load = trainers.load_plain if whose == "plain" else trainers.load_unsloth
            self.loaded = load(model, options)

    def trainer(self, rows: list[dict], **changes: Any) -> Any:
        """Return a trainer over rows, with some options changed."""
        options = {**self.options, **changes}
        if self.whose == "ours":
            return trainers.ours(trainers.config_of(self.name, options, self.steps), self.loaded, rows)
        return trainers.peer(*self.loaded, rows, options, self.steps, lora=self.whose == "plain")


def curve(name: str, whose: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a curve with one loaded model."""
    rows = read_rows(options.data)
    checkpointing = whose != "ours" or name == "length"  # the peer's setting; packed sequences up to 4096 with it
    base = {"batch": 8, "checkpointing": checkpointing, "length": max(LENGTHS) if name == "length" else trainers.LENGTH}
    if name == "rows":
        base |= {"processes": 2}  # for the peer's tokenizer, as its notebook has it
    side = Side(whose, options.model, base, PLANNED)
    time_epochs(side.trainer(rows[:64]), 1, epochs=1, rows_per_pass=8, steps=3)  # compiles kernels: no point does
    return {"whose": whose, "curve": name, "points": list(points(name, side, rows))}


def points(name: str, side: Side, rows: list[dict]) -> Iterator[dict[str, Any]]:
    """Measure each point of a curve: over the same ten batches, or over an epoch of packed sequences."""
    cases: dict[str, list[tuple[int, list[dict], dict[str, Any]]]] = {
        "batch": [(size, rows[: STEPS * size], {"batch": size}) for size in BATCHES],
        "length": [(size, rows[:ROWS], {"length": size, "batch": TOKENS // size, "packing": True}) for size in LENGTHS],
        "rows": [(number, list(islice(cycle(rows), number)), {}) for number in NUMBERS],
    }
    warmup = 2 * STEPS if name == "batch" and side.whose == "ours" else 2  # graphs are recorded in two epochs
    for value, used, changes in cases[name]:
        began = time.perf_counter()
        trainer = side.trainer(used, **changes)
        prepared = time.perf_counter() - began
        per_pass = None if changes.get("packing") else changes.get("batch", 8)
        steps = STEPS if name == "rows" else None  # of the many rows the first ten batches are the same
        found = time_epochs(trainer, warmup, epochs=1, rows_per_pass=per_pass, steps=steps)
        kept = ("examples_per_second", "useful_tokens_per_second", "step_seconds", "first_step_seconds", "peak_gib")
        yield {"at": value, "seconds_to_trainer": prepared, **{figure: found[figure] for figure in kept}}


def mode(trainer: Any) -> dict[str, Any]:
    """Return what the trainer really does: ours says so itself."""
    args = trainer.args
    found = {"packing": bool(args.packing), "optimizer": str(getattr(args.optim, "value", args.optim))}
    found["padding_free"] = bool(getattr(trainer, "padding_free", False) or args.padding_free)
    return getattr(trainer, "mode", found)


def read_rows(path: str) -> list[dict]:
    """Return the rows of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def table(record: dict[str, Any]) -> Iterator[str]:
    """Yield the figures line by line, with examples a second relative to the official setting."""
    runs = record["runs"]
    base = median(runs["official"], "examples_per_second") if "official" in runs else None
    yield f"{'configuration':24}{'examples/s':>11}{'useful tok/s':>13}{'peak GiB':>10}{'x official':>11}{'runs':>6}"
    for name, each in runs.items():
        examples = median(each, "examples_per_second")
        ratio = f"{examples / base:.2f}" if base else "-"
        useful, peak = median(each, "useful_tokens_per_second"), each[0]["peak_gib"] or 0
        yield f"{name:24}{examples:>11.2f}{useful:>13.0f}{peak:>10.2f}{ratio:>11}{len(each):>6}"


def curve_lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the points of each curve."""
    for name, each in record["runs"].items():
        for point in each[-1]["points"]:
            yield f"{name:18}{point['at']:>8}{point['examples_per_second']:>10.2f} examples/s"


if __name__ == "__main__":
    main()
