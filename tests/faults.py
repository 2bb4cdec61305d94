"""What children of the nursery do: a whole training run of a tiny Mistral, and the faults that hit it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import random
import signal
from pathlib import Path

from refusing import refuse_writes

SMALL = {
    "max_steps": 8, "num_epochs": 10.0, "train_rows": 14, "heldout_rows": 4, "batch_size": 2, "eval_steps": 4,
    "gradient_accumulation": 2, "save_steps": 3, "lora_rank": 4, "lora_dropout": 0.1, "max_seq_length": 256,
    "learning_rate": 5e-3,
}  # fmt: skip
"""Eight steps over two epochs of fourteen rows, the last of each with fewer passes: checkpoints of steps 3 and 6 lie
within an epoch, that of step 8 at its end, and dropout uses random numbers."""

TIMES = (
    "examples_per_second",
    "forecast",
    "heldout_seconds",
    "peak_memory_bytes",
    "tokens_per_second",
    "train_seconds",
)


def whole_run(*, runs, model, name="run", resume="auto", fault=None, environment=None, **parameters):
    """Do what a training notebook does, and return what came out.

    Args:
        runs: Folder of all runs.
        model: Folder of the tiny model.
        name: The run's name.
        resume: As for `start_run`.
        fault: Which function of this module strikes, and its arguments: {"do": name, ...}.
        environment: Variables to set.
        **parameters: Over `SMALL`.

    Returns:
        The adapter's SHA-256, the metrics but for times, what was reported, and the error if there was one.
    """
    from helpers.core.errors import HelpersError
    from helpers.training.program import find_program, run_program

    os.environ.update({"HELPERS_RUNS_DIR": str(runs), **(environment or {})})
    said = io.StringIO()
    given = {"preset": "smoke", "run_name": name, "resume": resume, "model_name": str(model), **SMALL, **parameters}
    try:
        with strike(fault), contextlib.redirect_stdout(said):
            cells = run_program(find_program("alpaca_instruction"), given)
    except HelpersError as error:
        return {"error": str(error), "kind": type(error).__name__, "lines": said.getvalue().splitlines()}
    run, result = cells["run"], cells["record"].result
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    metrics = {k: v for k, v in result.metrics().items() if k not in TIMES}
    return {"adapter": hashlib.sha256(weights).hexdigest(), "metrics": metrics, "lines": said.getvalue().splitlines(),
            "error": None, "seconds": result.train_seconds}  # fmt: skip


def warm():
    """In the nursery itself: do once what is the same in every run, so that children need not."""
    from helpers.model.load import prepare_unsloth
    from helpers.training import session

    prepare_unsloth()
    for module in ("unsloth", "trl", "matplotlib.pyplot"):
        importlib.import_module(module)
    session.shown_versions = functools.cache(session.shown_versions)
    session.describe_hardware = functools.cache(session.describe_hardware)
    session.shown_versions(), session.describe_hardware()


@contextlib.contextmanager
def strike(fault):
    """Arrange for a fault."""
    if fault is None:
        yield
        return
    arguments = {k: v for k, v in fault.items() if k != "do"}
    faults = (kill_at_file, kill_at_step, count_files, fill_at_file, refuse_at_file, break_loss, fail_step)
    with next(each for each in faults if each.__name__ == fault["do"])(**arguments):
        yield


@contextlib.contextmanager
def kill_at_file(*, number, seed=0):
    """Kill this process at the n-th write, sync, rename or removal of a file; writes are cut at a random length."""
    with _touching(lambda count, path: _die(path, seed) if count == number else None):
        yield


@contextlib.contextmanager
def count_files(*, to):
    """Write down the order of writes, syncs, renames and removals: one path a line."""
    seen = []
    with _touching(lambda count, path: seen.append(str(path))):
        yield
    Path(to).write_text("\n".join(seen))


@contextlib.contextmanager
def fill_at_file(*, name, filler):
    """Fill the disk once a file was written whose path ends so."""
    with _touching(lambda count, path: _fill(filler) if str(path).endswith(name) else None):
        yield


@contextlib.contextmanager
def refuse_at_file(*, name, number):
    """Let the kernel refuse all writes with an error once a file was written whose path ends so."""
    fillers = []
    with _touching(lambda count, path: fillers.extend(refuse_writes(number)) if str(path).endswith(name) else None):
        try:
            yield
        finally:
            for each in fillers:  # what the process then writes of its end has a lower number
                os.close(each)


def _fill(filler):
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


@contextlib.contextmanager
def kill_at_step(*, step, seconds):
    """Kill this process some seconds after a step has begun."""
    import threading

    from transformers import Trainer

    original = Trainer.training_step

    def timed(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(self, *args, **kwargs)

    Trainer.training_step = timed
    try:
        yield
    finally:
        Trainer.training_step = original


def _die(path, seed):
    if path is not None and Path(path).is_file():
        os.truncate(path, random.Random(seed).randrange(Path(path).stat().st_size + 1))
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _touching(call):
    """Call a function with (count, path or None) at each touch of a file by a checkpoint or an adapter."""
    import shutil

    import safetensors.torch
    import torch

    count = 0

    def wrap(function, path_of):
        def wrapped(*args, **kwargs):
            nonlocal count
            value = function(*args, **kwargs) if path_of else None
            count += 1
            call(count, path_of(*args) if path_of else None)
            return value if path_of else function(*args, **kwargs)

        return wrapped

    import peft.peft_model
    import peft.utils.save_and_load

    patches = [(torch, "save", wrap(torch.save, lambda value, path, *_: path))]
    for module in (safetensors.torch, peft.peft_model):
        saver = getattr(module, "save_file" if module is safetensors.torch else "safe_save_file", None)
        name = "save_file" if module is safetensors.torch else "safe_save_file"
        if saver:
            patches.append((module, name, wrap(saver, lambda tensors, path, *_: path)))
    patches += [(os, name, wrap(getattr(os, name), None)) for name in ("fsync", "rename", "replace", "unlink")]
    patches.append((shutil, "rmtree", wrap(shutil.rmtree, None)))
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    for module, name, new in patches:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)


@contextlib.contextmanager
def break_loss(*, step, value="nan", where="loss"):
    """Make the loss NaN or infinite from a step on, or the weights."""
    import torch
    from transformers import Trainer

    original = Trainer.training_step

    def broken(self, model, inputs, *args, **kwargs):
        loss = original(self, model, inputs, *args, **kwargs)
        if self.state.global_step + 1 >= step:
            if where == "loss":
                return loss * float(value)
            if self.accelerator.gradient_state.sync_gradients:  # the step's last pass: its own loss is still a number
                with torch.no_grad():
                    next(p for p in model.parameters() if p.requires_grad).fill_(float(value))
        return loss

    Trainer.training_step = broken
    try:
        yield
    finally:
        Trainer.training_step = original


@contextlib.contextmanager
def fail_step(*, step, kind):
    """Raise an error in a step: out of memory, a full disk, an interruption, or a mistake."""
    import errno

    import torch
    from transformers import Trainer

    errors = {
        "oom": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "disk": OSError(errno.ENOSPC, "No space left on device"),
        "interrupt": KeyboardInterrupt(),
        "bug": ZeroDivisionError("a mistake"),
    }
    original = Trainer.training_step

    def failing(self, *args, **kwargs):
        if self.state.global_step + 1 >= step:
            raise errors[kind]
        return original(self, *args, **kwargs)

    Trainer.training_step = failing
    try:
        yield
    finally:
        Trainer.training_step = original
