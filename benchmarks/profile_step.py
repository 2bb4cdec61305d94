"""Where the time of one optimizer step goes: host and device, part by part.

    python benchmarks/profile_step.py --model FOLDER --data ROWS.json [--set cuda_graphs=false] [--functions]

    python benchmarks/profile_step.py --model FOLDER --data ROWS.json --packing --steps 12 --warmup 5 --functions

The trainer is this project's, 8 rows a step without checkpointing, as `ours-8` of train.py: the first 60 steps of a
training of 1,000, over 160 rows, so that passes are recorded as CUDA graphs before the timed steps begin. With
--packing it is 8 packed sequences, as `ours-packed-large`, whose passes are not recorded. Each part
is timed twice: by the host's clock as it runs, and, on a GPU, by the card's from the first of its kernels to the
last. A step is limited by the host when the card's kernels together take much less than the step. --functions adds
Python's own profile of the last step, and the kernels, by what they do.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import math
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bench import machine, write_record
from train import Side, read_rows
from unpacked import unpacked_weights

from helpers.model.patches.cuda_graphs import graphed_passes
from helpers.model.patches.optimizer_step import quick_steps


def main() -> None:
    """Train a few steps and print the parts of the median one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--planned", type=int, default=1000, help="steps of the training that is broken off")
    parser.add_argument("--rows", type=int, help="that are trained: 160, or all if they are packed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebook")
    parser.add_argument("--plain", action="store_true", help="without helpers.model.patches.optimizer_step")
    parser.add_argument("--unpacked", action="store_true", help="with benchmarks/unpacked.py")
    parser.add_argument("--functions", action="store_true", help="also print functions and kernels")
    parser.add_argument("--out", type=Path, help="JSON file for the parts")
    options = parser.parse_args()
    wanted = {
        "batch": options.batch,
        "packing": options.packing,
        "checkpointing": options.checkpointing,
        "settings": {name: literal(value) for name, _, value in (each.partition("=") for each in options.set)},
    }
    rows = read_rows(options.data)[: options.rows or (None if options.packing else 160)]
    trainer = Side("ours", options.model, wanted, options.planned).trainer(rows)
    parts = Parts(options.steps)
    parts.follow(trainer)
    profile = Profile(options.steps - 1) if options.functions else None
    if profile:
        profile.follow(trainer)
    kept = unpacked_weights(trainer.model) if options.unpacked else nullcontext()
    with kept, nullcontext() if options.plain else quick_steps(trainer), graphed_passes(trainer):
        trainer.train()
    found = parts.medians(options.warmup)
    print("\n".join(parts.table(found)))
    if options.out:
        kernels = {"kernels": round(profile.kernels(), 1), **profile.kinds()} if profile else {}
        asked = {"batch": options.batch, "packing": options.packing}
        write_record(
            options.out, {"machine": machine(), "mode": trainer.mode, **asked, "milliseconds": found, **kernels}
        )
    if profile:
        profile.show()


def literal(text: str) -> Any:
    """Return a value from the command line: a number, true, false, null, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class Parts:
    """Times parts of each step, on the host and on the card.

    Args:
        last: The step after which training ends.
    """

    def __init__(self, last: int) -> None:
        import torch

        self.last, self.cuda = last, torch.cuda.is_available()
        self.steps: list[dict[str, list[float]]] = []
        self.now: dict[str, list[Any]] = defaultdict(list)
        self.began = self.collecting = 0.0

    def follow(self, trainer: Any) -> None:
        """Wrap what a step calls."""
        from transformers import TrainerCallback

        parts = self

        class Borders(TrainerCallback):
            def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
                parts.step_ends()
                control.should_training_stop = state.global_step >= parts.last

            def on_train_begin(self, *_: object, **__: object) -> None:
                parts.wrap(trainer.optimizer, "step", "optimizer")
                parts.wrap(trainer, "floating_point_ops", "count operations")
                parts.wrap(trainer, "_clip_grad_norm", "clip")
                parts.wrap(trainer.model, "zero_grad", "zero gradients")
                parts.began = time.perf_counter()

        trainer.add_callback(Borders())
        self.wrap(trainer, "get_batch_samples", "next batch")
        self.wrap(trainer, "_prepare_inputs", "inputs to the card")
        self.wrap(trainer, "compute_loss", "forward")
        self.wrap(trainer.accelerator, "backward", "backward")
        self.wrap(trainer, "_maybe_log_save_evaluate", "log")
        gc.callbacks.append(self.garbage)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Time a method; the card by two events around it."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **named: Any) -> Any:
            first, last, began = self.event(), None, time.perf_counter()
            try:
                return original(*args, **named)
            finally:
                last = self.event()
                self.now[part].append((time.perf_counter() - began, first, last))

        setattr(owner, name, timed)

    def event(self) -> Any:
        """Return an event that the card has been told to record; None on a CPU."""
        if not self.cuda:
            return None
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def garbage(self, phase: str, _: dict[str, int]) -> None:
        """Time the garbage collector."""
        if phase == "start":
            self.collecting = time.perf_counter()
        else:
            self.now["garbage collection (within others)"].append((time.perf_counter() - self.collecting, None, None))

    def step_ends(self) -> None:
        """Wait for the card, and add the step up. What logging took belongs to the step before."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        done = time.perf_counter()
        found = {part: [sum(each[0] for each in calls), sum(map(elapsed, calls))] for part, calls in self.now.items()}
        self.steps.append({"whole step": [done - self.began, 0.0], **found})
        self.now.clear()
        self.began = done

    def medians(self, warmup: int) -> dict[str, dict[str, float]]:
        """Return milliseconds of each part, host and card, in the median timed step."""
        timed = self.steps[warmup:]
        names = list(dict.fromkeys(name for step in timed for name in step))
        table = {}
        for name in names:
            pairs = [step.get(name, [0.0, 0.0]) for step in timed]
            host, card = (1000 * statistics.median(pair[side] for pair in pairs) for side in (0, 1))
            table[name] = {"host": round(host, 2), "card": round(card, 2)}
        return table

    def table(self, found: dict[str, dict[str, float]]) -> list[str]:
        """Return the parts as lines."""
        lines = [f"{'part':38}{'host ms':>10}{'card ms':>10}"]
        for name, each in found.items():
            card = f"{each['card']:>10.1f}" if self.cuda and each["card"] else f"{'-':>10}"
            lines.append(f"{name:38}{each['host']:>10.1f}{card}")
        return lines


def elapsed(call: tuple[float, Any, Any]) -> float:
    """Return the seconds between a call's two events."""
    _, first, last = call
    return first.elapsed_time(last) / 1000 if first is not None else 0.0


PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
"""torch's names of matrix products."""

NARROW = 64
"""A product with a dimension of at most this is the adapter's, whose rank it is."""


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


class Profile:
    """Python's and torch's profile of one step."""

    def __init__(self, step: int) -> None:
        self.step, self.python, self.torch = step, cProfile.Profile(), None

    def follow(self, trainer: Any) -> None:
        """Profile the step chosen."""
        from torch.profiler import ProfilerActivity, profile
        from transformers import TrainerCallback

        mine = self

        class Window(TrainerCallback):
            def on_step_begin(self, args: object, state: Any, control: object, **_: object) -> None:
                if state.global_step == mine.step - 1:  # the one before, by torch alone
                    mine.torch = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True)
                    mine.torch.start()
                if state.global_step == mine.step:
                    mine.torch.stop()
                    mine.python.enable()

            def on_train_end(self, *_: object, **__: object) -> None:
                mine.python.disable()

        trainer.add_callback(Window())

    def kernels(self) -> float:
        """Return how long the card's kernels ran in the step that torch profiled, in milliseconds."""
        return sum(time for _, time in self.launched())

    def launched(self) -> list[tuple[str, float]]:
        """Return each kernel's name and milliseconds."""
        from torch.autograd import DeviceType

        events = self.torch.key_averages() if self.torch else []
        own = [each for each in events if each.device_type == DeviceType.CUDA and not each.is_user_annotation]
        return [(each.key, each.self_device_time_total / 1000) for each in own]  # what launched them has it, too

    def kinds(self) -> dict[str, Any]:
        """Return the kernels' milliseconds by what they do, and the speed of the products with frozen weights.

        What a replayed CUDA graph launches is not told apart: then nothing is returned.
        """
        from torch.autograd import DeviceType

        events = self.torch.key_averages(group_by_input_shape=True) if self.torch else []
        calls = [
            (each.input_shapes, each.count, each.self_device_time_total / 1000)
            for each in events
            if each.key in PRODUCTS and each.device_type == DeviceType.CPU
        ]
        kernels = self.launched()
        if not calls or any(each.key == "cudaGraphLaunch" for each in events):
            return {}
        return divide(kernels, calls)

    def show(self) -> None:
        """Print both."""
        import torch

        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        if self.torch:
            print(self.torch.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60))
        pstats.Stats(self.python).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
