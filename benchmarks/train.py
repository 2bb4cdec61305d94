"""Training speed and memory: this project beside its peers, all in one run on one machine.

    python benchmarks/train.py --model FOLDER --data ROWS.json [--rounds 2] [--budget SECONDS] [--only NAME,NAME]

FOLDER holds an NF4 checkpoint of Mistral-7B's shape (`scripts/random_mistral` makes one without a hub), ROWS.json a
list of Alpaca rows. The peers are

- official: the setting of Unsloth's own Mistral Alpaca notebook: batch 2 x 4, checkpointing, no packing; official-8 is
  the same with its 8 rows in one pass, official-packed-large Unsloth at its best: packed, batch 8, no checkpointing,
- plain: TRL + PEFT + bitsandbytes without Unsloth as shipped; plain-packed and plain-packed-8 are packed, with batch 4
  and 8, plain-packed-kept and plain-packed-large with batch 2 and 8, without checkpointing: the fastest of them is what
  it is at its best,

and "ours" is the trainer of this project's Alpaca notebook, made by its own cells. All train the same 288 rows with
LoRA of rank 16 on all linear layers, in batches of 8 rows, or packed into about 32 sequences of 2,048 tokens. Speed is
taken over whole epochs of them after warm-up, and the median counts; with several rounds the median of these. "Useful"
tokens are those with a label, padding and repeats not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from bench import add_options, measure_all, median, say
from official import load_official, load_plain, peer_trainer
from program import drawn_rows, mode, ready_trainer, values_of
from stopwatch import time_epochs

ROWS = 288
"""That all configurations train: 36 batches of 8, or about 32 packed sequences of 2,048 tokens."""

PLANNED = 1000
"""Steps of the trainings that are stopped early."""

RECORDED = {"warmup": 2 * ROWS // 8}
"""Where passes are recorded as CUDA graphs, they are so in the first two epochs."""

AN_EPOCH = {"warmup": 16, "epochs": 3}
"""Of warm-up, for the peer at its best: its first epoch was a quarter slower than the second."""

EIGHT_BIT = {"settings": {"optimizer": "adamw_8bit", "cuda_graphs": False}}

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (whose, options of `official`)
    "official": ("official", {"batch": 2, "accumulate": 4, "epochs": 1}),
    "official-packed-large": ("official", {"batch": 8, "packing": True, "checkpointing": False}),
    "ours-8": ("ours", {"batch": 8, "checkpointing": False, **RECORDED}),
    "ours-packed-small": ("ours", {"batch": 4, "packing": True}),
    "ours-packed-large": ("ours", {"batch": 8, "packing": True, "checkpointing": False}),
    "plain-packed": ("plain", {"batch": 4, "packing": True}),
    "plain-packed-8": ("plain", {"batch": 8, "packing": True}),
    "plain-packed-kept": ("plain", {"batch": 2, "packing": True, "checkpointing": False, **AN_EPOCH}),
    "plain-packed-large": ("plain", {"batch": 8, "packing": True, "checkpointing": False}),
    "plain": ("plain", {"batch": 2, "accumulate": 4, "epochs": 1}),
    "official-8": ("official", {"batch": 8, "epochs": 1}),
    "ours-8-eager": ("ours", {"batch": 8, "checkpointing": False, "settings": {"cuda_graphs": False}}),
    "ours-8-checkpointing": ("ours", {"batch": 8}),
    "ours-8-8bit": ("ours", {"batch": 8, "checkpointing": False, **EIGHT_BIT}),
    "ours-8-separate": (
        "ours",
        {"batch": 8, "checkpointing": False, **RECORDED, "settings": {"fused_adapters": False}},
    ),
    "ours-packed-large-separate": (
        "ours",
        {"batch": 8, "packing": True, "checkpointing": False, "settings": {"fused_adapters": False}},
    ),
    "ours-8-sdpa": ("ours", {"batch": 8, "checkpointing": False, "settings": {"varlen_attention": False}}),
}


def main() -> None:
    """Measure the chosen configurations one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to train on; a multiple of 8")
    parser.add_argument("--epochs", type=int, default=2, help="epochs to time, unless a configuration sets them")
    parser.add_argument("--warmup", type=int, default=5, help="untimed first steps, unless a configuration sets them")
    add_options(parser, "train.json")
    options = parser.parse_args()
    if options.one:
        say(configuration(options.one, options))
        return
    print("\n".join(table(measure_all(__file__, list(CONFIGURATIONS), options))))


def configuration(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one configuration."""
    whose, wanted = CONFIGURATIONS[name]
    warmup, epochs = wanted.get("warmup", options.warmup), wanted.get("epochs", options.epochs)
    trainer = side(whose, options.model, options.data, options.rows, wanted, PLANNED)
    per_pass = None if wanted.get("packing") else wanted["batch"]
    found = time_epochs(trainer, warmup, epochs=epochs, rows_per_pass=per_pass, ours=whose == "ours")
    return {"whose": whose, "options": wanted, **found, "mode": mode(trainer)}


def side(whose: str, model: str, data: str, rows: int, options: dict[str, Any], steps: int) -> Any:
    """Return the trainer of ours, or of a peer over the same rows.

    Args:
        whose: "ours", "official" or "plain".
        model: Its folder.
        data: File of rows.
        rows: That are trained.
        options: See `official`.
        steps: Optimizer steps.
    """
    values = values_of(model, data, rows, options, steps)
    if whose == "ours":
        return ready_trainer(values)
    drawn = drawn_rows(values)
    loaded = load_plain(model) if whose == "plain" else load_official(model, options)
    return peer_trainer(*loaded, drawn, options, steps, plain=whose == "plain")


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


if __name__ == "__main__":
    main()
