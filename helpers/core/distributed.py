"""One training in several processes: which of them this is, its part of a step, and what they tell each other.

`torchrun` and `accelerate launch` start one process a GPU and tell each, in the environment variables RANK, WORLD_SIZE
and LOCAL_RANK, which of how many it is (docs.pytorch.org, "torchrun: Environment Variables"). The first one writes,
logs and shows progress. An optimizer step has as many rows as asked for, however many GPUs share them. A process that
is alone, as a notebook is, imports and waits for nothing here.

A killed process closes its connections. With gloo the others learn that in their next exchange, from a RuntimeError;
with NCCL from an error of torch's own, or not at all: then the launcher ends them, as torchrun and accelerate launch do
within seconds of the first process that ends with a status other than 0.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from helpers.core.config import RunConfig, TrainConfig
from helpers.core.errors import ConfigError, HelpersError, RunError, StackError

__all__ = [
    "ElsewhereError",
    "Place",
    "Share",
    "explain_peer_exit",
    "gather",
    "join",
    "leave",
    "local_config",
    "on_main",
    "peer_exits_explained",
    "place",
    "same_everywhere",
    "share_out",
    "take_card",
]


_TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others: as long as transformers lets it (`ddp_timeout`)."""

_T = TypeVar("_T")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
"""Whether this is the main process doing what `on_main` was given, while the others wait."""


class ElsewhereError(RunError):
    """Another process failed. It says why; this one ends without a word."""


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Args:
        rank: Its number among all processes, from 0; number 0 is the main one.
        count: How many there are, on all machines together.
        local: Its number among the processes of this machine, which is its GPU's number too.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes, logs and shows progress."""
        return self.rank == 0


def place() -> Place:
    """Return which process this is, from the launcher's environment variables; alone without them.

    Raises:
        StackError: A variable is not a number.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Place()
    numbers = [os.environ[name] for name in ("RANK", "WORLD_SIZE")]
    numbers.append(os.environ.get("LOCAL_RANK", "0"))
    if not all(number.isdecimal() for number in numbers):
        expected = "whole numbers, as torchrun and accelerate launch set them"
        remedy = "Start it with python -m helpers train, or unset them."
        raise StackError("RANK, WORLD_SIZE, LOCAL_RANK", expected, ", ".join(numbers), remedy)
    return Place(*map(int, numbers))


def take_card() -> Place:
    """Choose this process's own GPU, if there are GPUs and several processes.

    Raises:
        StackError: There are more processes on this machine than GPUs.
    """
    here = place()
    if here.count == 1:
        return here
    import torch

    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if here.local >= gpus:
            remedy = f"Launch at most {gpus} processes on this machine."
            raise StackError("processes", f"at most {gpus}, one for each GPU", here.local + 1, remedy)
        torch.cuda.set_device(here.local)
    return here


def join() -> Place:
    """Meet the other processes, on this process's own GPU; alone do nothing.

    Raises:
        StackError: There are more processes on this machine than GPUs.
    """
    here = take_card()
    if here.count == 1:
        return here
    import torch
    from torch import distributed

    options: dict[str, Any] = {"backend": "gloo"}
    if torch.cuda.is_available():
        options = {"backend": "nccl", "device_id": torch.device("cuda", here.local)}
    else:
        torch.serialization.register_package(1, lambda storage: None, _load_on_cpu)
    if not distributed.is_initialized():
        distributed.init_process_group(timeout=_TIMEOUT, **options)
    return here


def _load_on_cpu(storage: Any, location: str) -> Any:
    """Load a tensor for "cpu:1", as accelerate 1.15 calls the device of a second process on CPUs; torch knows "cpu"."""
    return storage if location.startswith("cpu:") else None


def leave() -> None:
    """Part from the other processes, when all is done."""
    if place().count > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def on_main(work: Callable[[], _T]) -> _T:
    """Do something in the main process alone, and give its value to all.

    Inside `work` only the main process is there, so that another `on_main` is a plain call.

    Args:
        work: What to do. Its value must be one that pickle can write.

    Returns:
        What `work` returned, in every process.

    Raises:
        ElsewhereError: In the other processes, if `work` raised an exception in the main one, which raises that.
    """
    here = place()
    if here.count == 1 or _ALONE.get():
        return work()
    from torch import distributed

    told: list[Any] = [None, None]
    problem: Exception | None = None
    if here.main:
        token = _ALONE.set(True)
        try:
            told[0] = work()
        except Exception as error:
            problem, told[1] = error, f"{type(error).__name__}: {error}"
        finally:
            _ALONE.reset(token)
    distributed.broadcast_object_list(told, src=0)
    if problem is not None:
        raise problem
    if told[1] is not None:
        raise ElsewhereError("process 0", "to do its part", told[1], "Its own message says more.")
    return told[0]


def gather(value: _T) -> list[_T]:
    """Return every process's value, in the order of their ranks, in every process, once all have come here.

    Args:
        value: This process's; one that pickle can write.
    """
    here = place()
    if here.count == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * here.count
    distributed.all_gather_object(values, value)
    return values


def same_everywhere(what: str, value: Any) -> None:
    """Raise, in every process, unless all have the same.

    Args:
        what: Its name in the message, such as "number format".
        value: This process's; one that pickle can write.

    Raises:
        StackError: They differ, as with GPUs of several kinds.
    """
    found = gather(value)
    if any(each != found[0] for each in found):
        shown = "; ".join(f"process {rank}: {each}" for rank, each in enumerate(found))
        raise StackError("processes", f"the same {what} in each", shown, "Launch on GPUs of one kind.")


@dataclass(frozen=True)
class Share:
    """One process's part of an optimizer step.

    Args:
        batch_size: Rows in one forward pass of one process.
        gradient_accumulation: Forward passes of one process in one optimizer step.
    """

    processes: int
    batch_size: int
    gradient_accumulation: int

    def rows_per_step(self) -> int:
        """Rows that one optimizer step sees, in all processes together."""
        return self.processes * self.batch_size * self.gradient_accumulation

    def describe(self) -> str:
        """Return the numbers as a sentence."""
        several = "processes" if self.processes > 1 else "process"
        return (
            f"{self.rows_per_step()} rows an optimizer step = {self.processes} {several} x batch_size "
            f"{self.batch_size} x gradient_accumulation {self.gradient_accumulation}."
        )


def share_out(train: TrainConfig, processes: int) -> Share:
    """Share out an optimizer step's rows evenly, with passes of at most `batch_size` rows, as many as possible.

    Args:
        train: Its batch_size x gradient_accumulation rows a step are those of all processes together.

    Raises:
        ConfigError: The rows cannot be shared out evenly.

    Example:
        >>> share_out(TrainConfig(batch_size=2, gradient_accumulation=4), 2)
        Share(processes=2, batch_size=2, gradient_accumulation=2)
    """
    rows = train.rows_per_step()
    if rows % processes:
        counts = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        more = -(-rows // processes) * processes
        raise ConfigError(
            "batch_size x gradient_accumulation",
            f"rows that {processes} processes can share evenly",
            f"{train.batch_size} x {train.gradient_accumulation} = {rows}",
            f"Launch {counts} processes, or choose {more} rows a step under another run_name.",
        )
    own = rows // processes
    size = max(n for n in range(1, min(train.batch_size, own) + 1) if own % n == 0)
    return Share(processes, size, own // size)


def local_config(config: RunConfig, processes: int) -> RunConfig:
    """Return a run as one process sees it: its own batch_size and gradient_accumulation.

    Args:
        processes: How many share its optimizer steps; 1 changes nothing.

    Raises:
        ConfigError: The rows of a step cannot be shared out evenly.
    """
    share = share_out(config.train, processes)
    return config.changed(batch_size=share.batch_size, gradient_accumulation=share.gradient_accumulation)


_SIGNS = (
    "Application timeout caused pair closure",
    "Broken pipe",
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL communicator was aborted",
    "Read error",
    "Timed out waiting",
    "Write error",
    "remote process exited",
)
"""What gloo, NCCL and torch's store say when the other side is gone."""


class PeerExitError(RunError):
    """Another process of this job ended before its work was done."""


def explain_peer_exit(error: BaseException, last_step: int | None = None) -> PeerExitError | None:
    """Return what an error means if another process is gone.

    Args:
        last_step: Step of the last complete checkpoint, if there is one.

    Returns:
        The error to show, or None for any other error and in a process that is alone.
    """
    count = place().count
    if count == 1 or isinstance(error, HelpersError) or not isinstance(error, RuntimeError):
        return None
    if not any(sign in str(error) for sign in _SIGNS):
        return None
    onward = f"goes on from the checkpoint of step {last_step}" if last_step else "goes on"
    return PeerExitError(
        "processes",
        f"all {count} to work to the end",
        "one that ended early",
        f"Its own message, or the launcher's, says why. The same command, with as many processes or fewer, {onward}.",
    )


@contextmanager
def peer_exits_explained() -> Iterator[None]:
    """Say in plain words that another process is gone.

    Raises:
        PeerExitError: In place of what torch raised.
    """
    try:
        yield
    except RuntimeError as error:
        said = explain_peer_exit(error)
        if said is None:
            raise
        raise said from error
