"""Timing a trainer's optimizer steps: warm-up left out, the timed ones in blocks, whose median counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Set
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

from helpers.graphs import card_peak, graphed_passes
from helpers.lean import lean_steps

BLOCKS = 3
"""Parts of the timed steps; the median of their speeds is what is reported."""


def time_steps(trainer: Any, warmup: int, *, rows_per_pass: int | None, steps: int | None = None) -> dict[str, Any]:
    """Train, and take speed, memory and losses. Steps in which a pass is recorded as CUDA graphs are not timed.

    Args:
        trainer: Ready to train.
        warmup: Steps that are not timed.
        steps: End after so many, although the trainer would take more; by default its own number.
        rows_per_pass: Rows in a batch; None if sequences are packed, whose rows are then counted.

    Returns:
        Examples and tokens with a label a second (median of blocks), seconds a step, peak memory, losses of all steps.
    """
    import torch

    held: list[Any] = []
    marks, passes, sizes = watch(trainer, rows_per_pass, steps, lambda: held[0].sizes if held and held[0] else 0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ready = time.perf_counter()
    ours = hasattr(trainer, "mode")  # trains as `helpers.training.train` does
    with lean_steps(trainer) if ours else nullcontext(), graphed_passes(trainer) if ours else nullcontext() as graphs:
        held.append(graphs)
        trainer.train()
    recording = changes(sizes)
    per_step = trainer.args.gradient_accumulation_steps
    groups = [passes[at : at + per_step] for at in range(0, len(passes), per_step)]
    blocks = [
        speed(marks, groups, first, last, recording)
        for first, last in borders(warmup, len(marks), BLOCKS)  # a step's own time ends at its mark
    ]
    return {
        "examples_per_second": statistics.median(block["examples"] for block in blocks),
        "useful_tokens_per_second": statistics.median(block["tokens"] for block in blocks),
        "blocks_examples_per_second": [block["examples"] for block in blocks],
        "step_seconds": statistics.mean(durations(marks, warmup, len(marks), recording)),
        "first_step_seconds": marks[0] - ready,
        "steps": len(marks),
        "warmup_steps": warmup,
        "examples_per_step": sum(int(rows) for each in groups for rows, _ in each) / len(groups),
        "peak_gib": card_peak(graphs) / 2**30 if torch.cuda.is_available() else None,
        **(
            {"graphs": graphs.describe(), "graphs_shifts": graphs.shifts, "steps_recording": len(recording)}
            if graphs
            else {}
        ),
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
    }


def watch(
    trainer: Any, rows_per_pass: int | None, steps: int | None, recorded: Callable[[], int]
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
    """Return how many rows a packed batch holds: positions begin with 0 in each."""
    packed = inputs.get("packed_seq_lengths")
    return packed.numel() if packed is not None else (inputs["position_ids"] == 0).sum()


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
    marks: list[float],
    steps: list[list[tuple[Any, Any]]],
    first: int,
    last: int,
    left_out: Set[int] = frozenset(),
) -> dict[str, float]:
    """Return examples and tokens with a label a second, over steps `first` to `last` (not included) but for some."""
    seconds = sum(durations(marks, first, last, left_out))
    timed = [each for at in range(first, last) if at not in left_out for each in steps[at]]
    return {
        "examples": sum(int(rows) for rows, _ in timed) / seconds,
        "tokens": sum(int(tokens) for _, tokens in timed) / seconds,
    }
