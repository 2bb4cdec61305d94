"""Where the card's time of one optimizer step goes, by what its kernels do.

    python benchmarks/profile_step.py --model FOLDER --data ROWS.json [--set cuda_graphs=false] [--out FILE]
    python benchmarks/profile_step.py --model FOLDER --data ROWS.json --packing --steps 12

The trainer is this project's, 8 rows a step without checkpointing, as `ours-8` of train.py: the first 60 steps of a
training of 1,000, over 160 rows, so that passes are recorded as CUDA graphs before the last step, which is profiled.
With --packing it is 8 packed sequences, as `ours-packed-large`. A step is limited by the host when the card's kernels
together take much less than the step. What a replayed CUDA graph launches cannot be told apart by what it does.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from bench import machine, write_record
from program import HELDOUT, mode, ready_trainer, values_of
from stopwatch import fast_training

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
"""Torch's calls of matrix products."""

NARROW = 64
"""A product one of whose dimensions is no larger is the adapter's; LoRA's rank is."""

TIMED = 5
"""Steps before the profiled one whose median is the time of a step: profiling slows a step down."""


def main() -> None:
    """Train a few steps, and print what the last one's kernels do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=60, help="at least 7")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebook")
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    options = parser.parse_args()
    there = len(json.loads(Path(options.data).read_text(encoding="utf-8"))) - HELDOUT
    asked = {"batch": options.batch, "packing": options.packing}
    given = {name: literal(value) for name, _, value in (each.partition("=") for each in options.set)}
    how = {**asked, "checkpointing": False, "settings": given}
    rows = there if options.packing else min(there, 20 * options.batch)
    trainer = ready_trainer(values_of(options.model, options.data, rows, how, 1000))
    found = {"machine": machine(), "mode": mode(trainer), **asked, **profile(trainer, options.steps)}
    print(json.dumps({name: found[name] for name in found.keys() - {"machine", "mode"}}, indent=1))
    if options.out:
        write_record(options.out, found)


def literal(text: str) -> Any:
    """Return a value from the command line: a number, true, false, null, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def profile(trainer: Any, steps: int) -> dict[str, Any]:
    """Train so many steps, and profile the last.

    Args:
        trainer: Ours.
        steps: Optimizer steps.

    Returns:
        Milliseconds of a step and of a step's kernels, and of these by what they do.
    """
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from transformers import TrainerCallback

    profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True)
    marks: list[float] = []

    class Window(TrainerCallback):
        def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            if state.global_step == steps - 1:
                profiler.start()
            if state.global_step == steps:
                profiler.stop()
                control.should_training_stop = True

    trainer.add_callback(Window())
    with fast_training(trainer):
        trainer.train()
    times = [1000 * (marks[step] - marks[step - 1]) for step in range(steps - 1 - TIMED, steps - 1)]
    own = [each for each in profiler.key_averages() if each.device_type == DeviceType.CUDA]
    kernels = [(each.key, each.self_device_time_total / 1000) for each in own if not each.is_user_annotation]
    by_shape = profiler.key_averages(group_by_input_shape=True)
    calls = [
        (each.input_shapes, each.count, each.self_device_time_total / 1000)
        for each in by_shape
        if each.key in PRODUCTS and each.device_type == DeviceType.CPU
    ]
    replayed = any(each.key == "cudaGraphLaunch" for each in by_shape)
    found = {"step": round(statistics.median(times), 1), "kernels": round(sum(time for _, time in kernels), 1)}
    return found | (divide(kernels, calls) if calls and not replayed else {})


def divide(kernels: list[tuple[str, float]], products: list[tuple[list[list[int]], int, float]]) -> dict[str, Any]:
    """Divide the time of a step's kernels by what they do.

    Args:
        kernels: Name and milliseconds.
        products: The inputs' shapes, how often, and milliseconds, of torch's calls of matrix products.

    Returns:
        kinds: milliseconds by what kernels do; frozen_tera: TFLOP/s of products with frozen weights.

    Example:
        >>> calls = [([[1024, 4096], [4096, 4096]], 1000, 50.0), ([[1024, 4096], [4096, 16]], 1000, 10.0)]
        >>> divide([("gemm", 60.0), ("flash_fwd", 20.0), ("_nf4_dequant_kernel", 20.0), ("silu", 5.0)], calls)
        ... # doctest: +NORMALIZE_WHITESPACE
        {'kinds': {'products with frozen weights': 50.0, 'products with the adapter': 10.0, 'attention': 20.0,
        'unpacking of 4-bit weights': 20.0, 'everything else': 5.0}, 'frozen_tera': 687.2}
    """
    frozen = adapter = work = 0.0
    for shapes, count, milliseconds in products:
        left, right = [shape for shape in shapes if len(shape) > 1][-2:]
        if min(*left, right[-1]) <= NARROW:
            adapter += milliseconds
        else:
            frozen, work = frozen + milliseconds, work + 2 * math.prod(left) * right[-1] * count
    named = {"attention": "flash", "unpacking of 4-bit weights": "dequant"}
    found = {"products with frozen weights": frozen, "products with the adapter": adapter}
    found |= {kind: sum(time for name, time in kernels if part in name.lower()) for kind, part in named.items()}
    found["everything else"] = sum(time for _, time in kernels) - sum(found.values())
    shown = {kind: round(milliseconds, 1) for kind, milliseconds in found.items()}
    return {"kinds": shown, "frozen_tera": round(work / frozen / 1e9, 1) if frozen else 0.0}


if __name__ == "__main__":
    main()
