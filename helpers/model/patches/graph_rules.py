"""When training passes are recorded as CUDA graphs, and to which sizes batches are filled up for it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from helpers.core.choice import Choice
from helpers.model.patches import UNSLOTH_TESTED

__all__ = ["RECORDING", "STEP", "choose_graphs", "expected_passes", "host_lengths", "recorded_size", "sizes_to_record"]

VARLEN = ("varlen (torch kernel)", "varlen (torch)", "flash-attn")
"""Kinds of attention that take the rows' borders as a tensor, and so can be recorded."""

STEP = 256
"""Batches are filled up to a multiple of this many tokens: 7 % more on average, where a pass has 1,800."""

RECORDING = 25
"""What recording a size costs, in times of what a replay saves: 1.0 s and 0.04 s (H200)."""

FILLING = 0.3
"""What STEP tokens more cost in a replay, as a share of what it saves: 0.012 s of 0.04 s (H200)."""

SEGMENTS = 16
"""Rows of a batch are filled up with empty ones to a multiple of this."""

SHUFFLED_PASSES = 2000
"""Passes that are drawn to find how often each size comes."""

RUNS = 16
"""Rows of the even batch that Unsloth is told of while a size is recorded; sizes are multiples of it."""


def choose_graphs(
    *,
    capability: tuple[int, int] | None,
    unsloth_version: str,
    attention: str,
    checkpointing: bool,
    dropout: float,
    padding_free: bool,
    cards: int = 1,
    wanted: bool = True,
) -> Choice:
    """Decide whether training passes are to be recorded as CUDA graphs.

    Args:
        capability: The GPU's compute capability, or None without a GPU.
        unsloth_version: Such as "2026.10.9".
        attention: The kind in use; see `helpers.model.patches.attention.choose_attention`.
        checkpointing: Whether layers are recomputed.
        dropout: Of the adapter.
        padding_free: Whether a batch is one row of rows.
        cards: On which the layers of one model lie.
        wanted: False turns them off.

    Returns:
        "graphs" or "none", with the reason.

    Example:
        >>> choose_graphs(capability=(7, 5), unsloth_version="2026.10.9", attention="sdpa", checkpointing=False,
        ...               dropout=0.0, padding_free=True).reason
        'below compute capability 8.0 the card is slower than the host'
    """
    reasons = (
        (capability is None, "there is no GPU"),
        (not wanted, "cuda_graphs is off"),
        ((capability or (8, 0)) < (8, 0), "below compute capability 8.0 the card is slower than the host"),
        (unsloth_version != UNSLOTH_TESTED, f"tried with unsloth {UNSLOTH_TESTED} only, not with {unsloth_version}"),
        (attention not in VARLEN, f"{attention} attention needs the rows' lengths on the host"),
        (not padding_free, "batches are padded"),
        (cards > 1, f"the layers lie on {cards} cards"),
        (checkpointing, "layers are recomputed, and what they need moves between the card and the host"),
        (dropout > 0, "dropout draws other numbers in each pass"),
    )
    against = next((why for holds, why in reasons if holds), None)
    if against:
        return Choice("none", against)
    return Choice(
        "graphs", "in passes over few tokens the card waits for the host; recorded, they are launched at once"
    )


def expected_passes(lengths: Sequence[int], batch_size: int, passes: int) -> dict[int, float]:
    """Return how many passes of each size a training will have, by shuffling its rows.

    Args:
        lengths: Of the rows, in tokens.
        batch_size: Rows of a pass.
        passes: How many there will be.

    Returns:
        Passes by tokens, rounded up to a multiple of STEP.

    Example:
        >>> expected_passes([100] * 64, 8, 40)
        {1024: 40.0}
    """
    draw, order, found = random.Random(0), list(lengths), Counter[int]()  # noqa: S311 - no secret depends on it
    while found.total() < SHUFFLED_PASSES:
        draw.shuffle(order)
        whole = range(0, max(len(order) - batch_size, 0) + 1, batch_size)
        found.update(recorded_size(sum(order[i : i + batch_size]), batch_size)[0] for i in whole)
    return {size: count * passes / found.total() for size, count in sorted(found.items())}


def sizes_to_record(expected: Mapping[int, float], most: int) -> dict[int, int]:
    """Choose the sizes whose recording the training's own passes repay, smaller passes being filled up to them.

    Each pass that is replayed saves 1, less FILLING for each STEP that it is filled up; each size that is recorded
    costs RECORDING. The best choice is found by going through the sizes in rising order.

    Args:
        expected: Passes by tokens, from `expected_passes`.
        most: Largest size that can be recorded, in tokens.

    Returns:
        For each size that is to be replayed, the recorded one; empty where nothing repays it.

    Example:
        >>> sizes_to_record({1536: 20, 1792: 20, 2048: 20, 4096: 2}, 4096)
        {1536: 2048, 1792: 2048, 2048: 2048}
    """
    sizes = sorted(size for size in expected if size <= most)
    best: list[tuple[float, dict[int, int]]] = [(0.0, {})]
    for end, top in enumerate(sizes, 1):
        options = [best[end - 1]]
        saved, filled = -float(RECORDING), dict[int, int]()
        for start in range(end - 1, -1, -1):
            each = expected[sizes[start]] * (1 - FILLING * (top - sizes[start]) / STEP)
            if each > 0:
                saved, filled = saved + each, {sizes[start]: top, **filled}
            options.append((best[start][0] + saved, {**best[start][1], **filled}))
        best.append(max(options, key=lambda option: option[0]))
    return dict(sorted(best[-1][1].items()))


def recorded_size(tokens: int, rows: int) -> tuple[int, int]:
    """Return the size that a batch is filled up to.

    Args:
        tokens: Of all rows together.
        rows: Of the batch.

    Returns:
        Tokens, and segments: the rows, one for what is filled up, and empty ones.

    Example:
        >>> recorded_size(1700, 8)
        (1792, 16)
    """
    return -(-tokens // STEP) * STEP, -(-(rows + 1) // SEGMENTS) * SEGMENTS


def host_lengths(tokens: int, segments: int) -> tuple[int, ...]:
    """Return lengths of rows that stand for any batch of a size: short ones, not all alike.

    Args:
        tokens: Of all rows together, a multiple of 256.
        segments: How many rows, a multiple of 16; beyond that many they are empty.

    Example:
        >>> host_lengths(1792, 16)[:4]
        (113, 111, 112, 112)
    """
    each = tokens // RUNS
    return (each + 1, each - 1, *[each] * (RUNS - 2), *[0] * (segments - RUNS))
