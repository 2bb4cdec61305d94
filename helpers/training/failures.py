"""Before training: is there room? During it: what does an error mean, and what can be done?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.distributed import ElsewhereError, explain_peer_exit, place
from helpers.core.errors import HelpersError, RunError
from helpers.core.files import disk_error, folder_bytes, require_space
from helpers.core.runs import RunDirectory
from helpers.memory.disk import KEPT, SMALL_FILES
from helpers.model.load import ran_out_of_memory


@contextmanager
def explained(run: RunDirectory, config: RunConfig, last_step: Callable[[], int | None]) -> Iterator[None]:
    """Turn what stops a training into an error that says what to do, and mark the run as failed.

    Args:
        last_step: Returns the step of the last complete checkpoint, if there is one.

    Raises:
        RunError: The disk or the memory is full, a checkpoint cannot be read, or another process is gone.
    """
    try:
        yield
    except BaseException as error:
        said = _explanation(error, run, config, last_step)
        if not isinstance(error, ElsewhereError):  # the process that it came from writes it down
            run.mark_failed(said or error)
        if said is None:
            raise
        raise said from error


def preflight_disk(run: RunDirectory, model: Any, optimizer: str, *, best: bool = False) -> None:
    """Stop before training if the run's disk cannot hold its checkpoints and its adapter.

    At most `KEPT` checkpoints and the one being written are there at a time, and the adapter three times: twice while
    it is replaced, and in its zip.

    Args:
        model: With its adapter; the trainable parameters are what is saved.
        optimizer: Its name for transformers: AdamW keeps two numbers a parameter, of 1 byte each in 8 bit.
        best: Whether each checkpoint holds a second adapter, the best so far.

    Raises:
        RunError: Too little is free.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in trained)
    # adamw_8bit keeps tensors of under 4096 numbers in 32 bit (bitsandbytes, min_8bit_size); a tenth covers its scales
    states = sum(p.numel() * (2.2 if "8bit" in optimizer and p.numel() >= 4096 else 8) for p in trained)
    one = int(weights * (1 + best) + states) + SMALL_FILES
    present = folder_bytes(run.checkpoints) + folder_bytes(run.adapter)
    adapters = 3 * (weights + SMALL_FILES)
    what = f"{KEPT + 1} checkpoints of at most {one / 2**20:.0f} MiB and the adapter"
    require_space(run.path, (KEPT + 1) * one + adapters - present, what)


def weights_are_finite(model: Any) -> bool:
    """Say whether no trained weight is NaN or infinite."""
    import torch

    with torch.no_grad():
        sums = [p.detach().abs().amax().float().cpu() for p in model.parameters() if p.requires_grad and p.numel()]
    return all(math.isfinite(float(each)) for each in sums)


def nan_error(what: str, value: float, config: RunConfig, precision: str, step: int, last_step: int | None) -> RunError:
    """Return the error for a training that has broken down.

    Args:
        what: What is not a number: "training loss", "held-out loss" or "adapter weights".
        precision: "bf16", "fp16" or "fp32".
        last_step: Step of the last complete checkpoint, from before that.
    """
    rate = config.train.learning_rate
    advice = [f"It broke at step {step}."]
    advice.append(
        f"The checkpoint of step {last_step} is from before that and is kept."
        if last_step
        else "There is no earlier checkpoint."
    )
    if precision == "fp16":
        advice.append("Numbers above 65504 overflow in fp16: use a card with bf16 (an L4 or A100) if you can.")
    advice.append(
        f"A learning rate that is too high is the usual cause: it is {rate:g}, try {rate / 5:g} under a new run_name."
    )
    return RunError(what, "a number", value, " ".join(advice))


_NEW_NAME = "Choose a new run_name: another configuration cannot go on from this run's checkpoints."


def _explanation(
    error: BaseException, run: RunDirectory, config: RunConfig, last_step: Callable[[], int | None]
) -> RunError | None:
    """Return what an error means for a run, or None where it says so itself."""
    import pickle

    if isinstance(error, HelpersError) or not isinstance(error, Exception):
        return None
    if said := disk_error("the next checkpoint", run.path, error):
        return said
    if ran_out_of_memory(error):
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return RunError("memory", "enough for one optimizer step", lines[0], " ".join(_memory_advice(config)))
    if isinstance(error, pickle.UnpicklingError):
        return RunError(
            "checkpoint",
            "numbers and containers only",
            type(error).__name__,
            f"Step {last_step()} holds something else and was not loaded. "
            'Delete it, or start over with resume="never".',
        )
    return explain_peer_exit(error, last_step()) if place().count > 1 else None


def _memory_advice(config: RunConfig) -> list[str]:
    """Return what to change: from the memory planner for a card, else the usual remedies with this run's numbers."""
    from helpers.memory.plan import advise
    from helpers.runtime.hardware import find_gpu

    gpu = find_gpu()
    if gpu is None:
        return _generic_advice(config)
    try:
        advice = advise(config, gpu.total_bytes, processes=place().count)
    except HelpersError:  # a model whose shape the planner cannot learn
        advice = []
    return [*advice, _NEW_NAME] if advice else _generic_advice(config)


def _generic_advice(config: RunConfig) -> list[str]:
    """Return the usual remedies, with this run's numbers."""
    train, tips = config.train, []
    if train.batch_size > 1:
        half = train.batch_size // 2
        tips.append(
            f"Halve batch_size to {half} and set gradient_accumulation to "
            f"{math.ceil(train.rows_per_step() / half)}: the same rows a step."
        )
    if not train.gradient_checkpointing:
        tips.append("Set gradient_checkpointing to true.")
    if train.checkpoint_skip_layers:
        tips.append(f"Set checkpoint_skip_layers to 0, now {train.checkpoint_skip_layers}.")
    tips.append(f"Lower max_seq_length, now {config.model.max_seq_length}.")
    if config.adapter.lora_rank > 8:
        tips.append(f"Lower lora_rank, now {config.adapter.lora_rank}.")
    return [*tips, _NEW_NAME]
