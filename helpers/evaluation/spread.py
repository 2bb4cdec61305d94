"""A comparison's work shared out among processes; the results are those of one process, in its order.

Each process has the whole model. Batches are cut as one process cuts them, so that in float32 each gives the same
numbers whoever computes it, and are dealt out in rounds: after each round every process knows all answers, and the main
one has written them down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from helpers.core.processes import gather, place

__all__ = ["do_each", "exchange", "own_batch"]

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K")


def own_batch(items: Sequence[T], size: int) -> list[T]:
    """Return this process's batch of the next round.

    Args:
        items: What is to be done, the same in every process.
        size: Items in a batch, at most.

    Returns:
        The first batch alone, the second in the second process and so on; empty where there are fewer batches.

    Example:
        >>> own_batch(["a", "b", "c"], 2)
        ['a', 'b']
    """
    rank = place().rank
    return list(items[rank * size : (rank + 1) * size])


def exchange(found: Mapping[K, R]) -> dict[K, R]:
    """Return what all processes found, in every process.

    Args:
        found: What this one found; pickle must be able to write it.
    """
    return {key: value for part in gather(dict(found)) for key, value in part.items()}


def do_each(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """Do one piece of work for each item, every process its part.

    Args:
        items: The same in every process.
        work: What to do. Its value must be one that pickle can write.

    Returns:
        All values in the items' order, in every process.

    Example:
        >>> do_each([1, 2, 3], lambda number: number * number)
        [1, 4, 9]
    """
    here = place()
    own = {at: work(items[at]) for at in range(here.rank, len(items), here.count)}
    done = exchange(own)
    return [done[at] for at in range(len(items))]
