"""The stopwatch of all benchmarks: a process's stages, and a trainer's steps.

Warm-up steps are left out; then whole epochs of the same batches are timed, and their median counts.
"""

from __future__ import annotations

import builtins
import functools
import math
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from helpers.model.patches.cuda_graphs import card_peak


class Stages:
    """The seconds that a process spends in each of its stages; what an inner one takes is not counted in the outer.

    Args:
        began: When the process was started, in seconds of `time.time`.
    """

    def __init__(self, began: float) -> None:
        self.began = self._last = began
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = ["python"]

    def turn(self, name: str) -> None:
        """End the outermost stage, and begin the next one."""
        self._count()
        self._open = [name]

    @contextmanager
    def inner(self, name: str) -> Iterator[None]:
        """Count what the block takes under another name; what it launched on the card must be done."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def count_calls(self, owner: Any, function: str, name: str) -> None:
        """Count all calls of a class's or module's function as an inner stage."""
        original = getattr(owner, function)

        @functools.wraps(original)
        def counted(*args: Any, **named: Any) -> Any:
            with self.inner(name):
                return original(*args, **named)

        for place in [owner, *sys.modules.values()]:
            if getattr(place, "__dict__", {}).get(function) is original:
                setattr(place, function, counted)

    def count_imports(self) -> None:
        """Count the import of what was not imported before as "imports", wherever it happens in this thread."""
        original, thread, depth = builtins.__import__, threading.get_ident(), [0]

        def counted(name: str, *rest: Any, **named: Any) -> Any:
            if depth[0] or name in sys.modules or threading.get_ident() != thread:
                return original(name, *rest, **named)
            depth[0] = 1
            try:
                with self.inner("imports"):
                    return original(name, *rest, **named)
            finally:
                depth[0] = 0

        builtins.__import__ = counted

    def result(self) -> dict[str, Any]:
        """Return the seconds of all and of each stage."""
        self._count()
        stages = {name: round(seconds, 2) for name, seconds in self.seconds.items()}
        return {"total_seconds": round(self._last - self.began, 2), "stages": stages}

    def _count(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.time()
        self.seconds[self._open[-1]] += now - self._last
        self._last = now


def same_batches(trainer: Any) -> None:
    """Let every epoch consist of the same batches in the same order: the data set's own.

    Args:
        trainer: Not yet training.
    """
    trainer.args.train_sampling_strategy = "sequential"


def steps_an_epoch(rows: int, batch: int, accumulate: int) -> int:
    """Return the optimizer steps of an epoch.

    Args:
        rows: Of the trainer's data set: rows, or packed sequences.
        batch: Of these in a pass.
        accumulate: Passes in a step.

    Raises:
        ValueError: The epoch's last step would have fewer passes, so that passes could not be told apart by their
            number.

    Example:
        >>> steps_an_epoch(55, 8, 1), steps_an_epoch(120, 2, 4)
        (7, 15)
    """
    passes = math.ceil(rows / batch)
    if passes % accumulate:
        raise ValueError(f"{passes} passes are not a multiple of {accumulate}")
    return passes // accumulate


def time_epochs(trainer: Any, warmup: int, *, epochs: int, rows_per_pass: int | None, ours: bool) -> dict[str, Any]:
    """Train, and take speed, memory and losses over whole epochs of the same batches.

    Rows differ in length by a factor of twenty, packed sequences in their number of rows by more. So each timed part
    has all of them, which makes sides comparable that see them in another order. Warm-up takes the first batches, the
    timed parts begin after it, wherever in an epoch that is.

    Args:
        trainer: Ready to train.
        warmup: Steps that are not timed, at least one.
        epochs: Timed parts.
        rows_per_pass: Rows in a batch; None if sequences are packed, whose rows are then counted.
        ours: Whether it is this project's trainer, which trains with all that makes it fast.

    Returns:
        See `time_parts`.
    """
    same_batches(trainer)
    passes = trainer.args.gradient_accumulation_steps
    each = steps_an_epoch(len(trainer.train_dataset), trainer.args.per_device_train_batch_size, passes)
    parts = [(warmup + epoch * each, warmup + (epoch + 1) * each) for epoch in range(epochs)]
    return time_parts(trainer, parts, rows_per_pass=rows_per_pass, ours=ours) | {"steps_an_epoch": each}


def time_parts(
    trainer: Any,
    parts: Sequence[tuple[int, int]],
    *,
    rows_per_pass: int | None,
    ours: bool,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> dict[str, Any]:
    """Train, and take speed, memory and losses over parts of the steps.

    Steps in which a pass is recorded as CUDA graphs are not timed. Training ends when all parts are timed, although the
    trainer may plan for more steps.

    Args:
        trainer: Ready to train.
        parts: First step, from 0, and the step before which a part ends; the steps before the first are warm-up.
        rows_per_pass: Rows in a batch of one process; None if they are to be counted.
        ours: Whether it is this project's trainer, which trains with all that makes it fast.
        gather: Collects a value from all processes.

    Returns:
        Examples and tokens with a label a second (median of the parts), seconds a step, peak memory, losses of all
        steps.
    """
    import torch

    warmup, last = parts[0][0], parts[-1][1]
    held: list[Any] = []
    marks, passes, sizes = watch(trainer, rows_per_pass, last, lambda: held[0].sizes if held and held[0] else 0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ready = time.perf_counter()
    with fast_training(trainer, ours=ours) as graphs:
        held.append(graphs)
        trainer.train()
    recording = set().union(*gather(changes(sizes)))  # other processes wait for the one that records
    mine = by_step([(int(rows), int(tokens)) for rows, tokens in passes], trainer.args.gradient_accumulation_steps)
    everyones = zip(*gather(mine), strict=True)
    steps = [(sum(rows for rows, _ in each), sum(tokens for _, tokens in each)) for each in everyones]
    speeds = [speed(marks, steps, *part, recording) for part in parts]
    peak = max(gather(card_peak(graphs) if torch.cuda.is_available() else 0))
    return {
        "examples_per_second": statistics.median(part["examples"] for part in speeds),
        "useful_tokens_per_second": statistics.median(part["tokens"] for part in speeds),
        "parts_examples_per_second": [part["examples"] for part in speeds],
        "step_seconds": statistics.mean(durations(marks, warmup, last, recording)),
        "first_step_seconds": marks[0] - ready,
        "steps": len(marks),
        "warmup_steps": warmup,
        "examples_per_step": sum(rows for rows, _ in steps[warmup:last]) / (last - warmup),
        "peak_gib": peak / 2**30 or None,
        **({"graphs": graphs.describe(), "steps_recording": len(recording)} if graphs else {}),
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
    }


@contextmanager
def fast_training(trainer: Any, *, ours: bool = True) -> Iterator[Any]:
    """Let this project's trainer train as its notebook lets it, a peer's as it is; yield CUDA graphs, or None."""
    if not ours:
        yield None
        return
    from helpers.training import speed
    from helpers.training.callbacks import Checkpoints

    (checkpoints,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, Checkpoints))
    with speed.fast_training(trainer, checkpoints):
        yield checkpoints.record.graphs


def by_step(passes: Sequence[tuple[int, int]], each: int) -> list[tuple[int, int]]:
    """Return (rows, tokens) of each optimizer step from those of its passes.

    Args:
        passes: (rows, tokens with a label) of each pass.
        each: Passes in a step.

    Example:
        >>> by_step([(2, 10), (2, 30), (2, 5), (1, 5)], 2)
        [(4, 40), (3, 10)]
    """
    groups = [passes[at : at + each] for at in range(0, len(passes), each)]
    return [(sum(rows for rows, _ in group), sum(tokens for _, tokens in group)) for group in groups]


def watch(
    trainer: Any, rows_per_pass: int | None, steps: int, recorded: Callable[[], int]
) -> tuple[list[float], list[tuple[Any, Any]], list[int]]:
    """Take the time after each step, the card idle; (rows, tokens with a label) of each pass; what is recorded by then.

    Training ends after `steps`.
    """
    import torch
    from transformers import TrainerCallback

    marks: list[float] = []
    passes: list[tuple[Any, Any]] = []
    sizes: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            sizes.append(recorded())
            if state.global_step == steps:
                control.should_training_stop = True

    original = trainer.training_step

    def counting(model: object, inputs: dict, *rest: object, **named: object) -> object:
        rows = rows_per_pass if rows_per_pass is not None else rows_in(inputs)
        passes.append((rows, (inputs["labels"] != -100).sum()))  # read when all is over, so that nothing waits
        return original(model, inputs, *rest, **named)

    trainer.training_step = counting
    trainer.add_callback(Clock())
    return marks, passes, sizes


def rows_in(inputs: dict[str, Any]) -> Any:
    """Return how many rows a batch holds; in one without padding, positions begin with 0 in each."""
    packed = inputs.get("packed_seq_lengths")
    if packed is not None:
        return packed.numel()
    positions = inputs.get("position_ids")
    return (positions == 0).sum() if positions is not None else len(inputs["input_ids"])


def borders(first: int, last: int, parts: int) -> list[tuple[int, int]]:
    """Cut the steps from `first` to `last` (not included) into parts of nearly equal length.

    Example:
        >>> borders(5, 20, 3)
        [(5, 10), (10, 15), (15, 20)]
    """
    cuts = [first + (last - first) * part // parts for part in range(parts + 1)]
    return [(a, b) for a, b in pairwise(cuts) if b > a]


def changes(counts: list[int]) -> set[int]:
    """Return the steps, from 0, after which a count is not what it was before.

    Example:
        >>> sorted(changes([0, 1, 1, 3]))
        [1, 3]
    """
    return {step for step, (before, after) in enumerate(pairwise([0, *counts])) if after != before}


def durations(marks: list[float], first: int, last: int, left_out: Set[int] = frozenset()) -> list[float]:
    """Return the seconds of steps `first` to `last` (not included), from the marks at the steps' ends.

    Example:
        >>> durations([1.0, 3.0, 4.0, 9.0], 1, 4, {3})
        [2.0, 1.0]
    """
    return [marks[step] - marks[step - 1] for step in range(first, last) if step not in left_out]


def speed(
    marks: list[float], steps: Sequence[tuple[int, int]], first: int, last: int, left_out: Set[int] = frozenset()
) -> dict[str, float]:
    """Return examples and tokens with a label a second, over steps `first` to `last` (not included) but for some.

    Args:
        marks: When each step ended.
        steps: (rows, tokens with a label) of each.
        first: Step with which they begin, from 0.
        last: Step before which they end.
        left_out: Steps that are not timed.
    """
    seconds = sum(durations(marks, first, last, left_out))
    timed = [steps[at] for at in range(first, last) if at not in left_out]
    return {"examples": sum(rows for rows, _ in timed) / seconds, "tokens": sum(n for _, n in timed) / seconds}
