"""A model too big for one card: its layers on all cards of this machine, in one process.

Unsloth lays the layers out by the memory of the cards (`device_map="unsloth"`); a batch passes through the cards one
after the other. So memory adds up and speed does not. It is switched on by an environment variable, which notebooks
and `python -m helpers train --split` share.

What shards a model over several processes cannot load one in 4 bit that is too big for a card (unsloth 2026.10.9): its
FSDP2 loads the whole model on each card first (`models/fsdp2_load.py`), and refuses 4-bit weights that wait in the
machine's memory (`models/fsdp2_native.py`, `_shard_device`).
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from helpers.core.distributed import place
from helpers.core.errors import ConfigError, StackError

__all__ = [
    "SPLIT",
    "add_options",
    "held_bytes",
    "limit_cards",
    "loader_options",
    "own_cards",
    "pool",
    "split_share",
    "take_options",
]

SPLIT = "HELPERS_SPLIT"
"""The environment variable: the share of each card's memory to use, such as 1 or 0.5; unset or 0 leaves it off."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--split` and `--card-share` to a command.

    Args:
        parser: The command's.
    """
    parser.add_argument("--split", action="store_true", help="lay the model's layers out on all GPUs of this machine")
    parser.add_argument("--card-share", metavar="SHARE", default="1", help="with --split: how much of each GPU, 0 to 1")


def take_options(options: argparse.Namespace) -> None:
    """Switch splitting on if the command line asks for it.

    Args:
        options: Of a parser with `add_options`.

    Raises:
        ConfigError: The share is not a number from 0 to 1.
        StackError: Several processes were launched.
    """
    if options.split:
        os.environ[SPLIT] = options.card_share
    split_share()


def split_share() -> float | None:
    """Return the share of each card's memory to use, above 0 and up to 1; None if models are not split.

    Raises:
        ConfigError: The variable is something else.
        StackError: Several processes were launched.
    """
    text = os.environ.get(SPLIT, "").strip()
    try:
        share = float(text or 0)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(SPLIT, "a share of each card's memory, above 0 and up to 1", text, "Use 1 for all of it.")
    if share and place().count > 1:
        remedy = "Start it without torchrun or accelerate launch: one process uses all cards."
        raise StackError("processes", f"one process with {SPLIT}", place().count, remedy)
    return share or None


def pool(memory: list[tuple[int, int]], share: float) -> tuple[int, int]:
    """Return what the cards have together.

    Args:
        memory: (free, total) of each card, in bytes.
        share: Of each card's total, how much is used at most.

    Returns:
        (free, total), in bytes.

    Example:
        >>> pool([(70, 80), (30, 80)], 0.5)
        (70, 80)
    """
    return sum(min(free, int(share * total)) for free, total in memory), sum(int(share * each) for _, each in memory)


def own_cards() -> list[int]:
    """Return the numbers of the cards that this process uses: all for a model that is split, else its own."""
    import torch

    return list(range(torch.cuda.device_count())) if split_share() else [torch.cuda.current_device()]


def held_bytes() -> int:
    """Return what this process could use beyond the free memory of its cards because it holds it already, in bytes.

    With what it holds and what is free, a card counts up to its share.
    """
    import torch

    if not torch.cuda.is_initialized():
        return 0
    share, cards = split_share() or 1.0, own_cards()
    memory = [torch.cuda.mem_get_info(card) for card in cards]
    own = [torch.cuda.memory_reserved(card) for card in cards]
    with_own = [(free + held, total) for (free, total), held in zip(memory, own, strict=True)]
    return pool(with_own, share)[0] - pool(memory, share)[0]


def limit_cards(share: float) -> None:
    """Let this process allocate no more than a share of each card, so that large cards act as small ones.

    Args:
        share: Above 0, up to 1.
    """
    import torch

    for index in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(share, index)


def loader_options() -> dict[str, Any]:
    """Return what Unsloth's loader must be told for a model that is split; {} for any other.

    Raises:
        ConfigError: The variable is wrong.
        StackError: There are fewer than two cards, or several processes.
    """
    share = split_share()
    if share is None:
        return {}
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards < 2:
        raise StackError("GPUs", f"two or more with {SPLIT}", cards, "Unset it, or use a machine with more cards.")
    if share < 1:
        limit_cards(share)
    budgets = {index: int(share * torch.cuda.mem_get_info(index)[1]) for index in range(cards)}
    return {"device_map": "unsloth", "device_map_planner_kwargs": {"max_memory": budgets}}
