"""One training in several processes: which of them this is, and what they tell each other.

`torchrun` and `accelerate launch` start one process a GPU and tell each, in the environment variables RANK, WORLD_SIZE
and LOCAL_RANK, which of how many it is (docs.pytorch.org, "torchrun: Environment Variables"). The first one writes,
logs and shows progress. Everything here returns at once, and imports nothing, in a process that is alone: a notebook.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from helpers.core.errors import RunError, StackError

__all__ = [
    "TIMEOUT",
    "ElsewhereError",
    "Place",
    "gather",
    "join",
    "largest",
    "leave",
    "on_main",
    "place",
    "same_everywhere",
    "take_card",
    "total",
    "wait_for_all",
]

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others: as long as transformers lets it (`ddp_timeout`)."""

T = TypeVar("T")

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

    Returns:
        Which process this is.

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
            raise StackError("processes", f"a GPU for each, of the {gpus} that there are", here.local + 1, remedy)
        torch.cuda.set_device(here.local)
    return here


def join() -> Place:
    """Meet the other processes, on this process's own GPU; alone do nothing.

    Returns:
        Which process this is.

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
        distributed.init_process_group(timeout=TIMEOUT, **options)
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


def on_main(work: Callable[[], T]) -> T:
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


def gather(value: T) -> list[T]:
    """Return every process's value, in the order of their ranks, in every process.

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


def total(number: int) -> int:
    """Return the sum of every process's number."""
    return sum(gather(number))


def largest(number: int) -> int:
    """Return the largest of every process's numbers."""
    return max(gather(number))


def wait_for_all() -> None:
    """Return when every process has come here."""
    gather(None)
