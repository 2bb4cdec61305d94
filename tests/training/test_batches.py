"""Which rows each of several processes sees, and when."""

from __future__ import annotations

import random

import pytest

from helpers.core.distributed import Place, Share
from helpers.training.sampler import StepBatches, deal, epoch_order

LENGTHS = [random.Random(n).randrange(5, 400) for n in range(27)]


def epoch(share, number=0):
    """Return, for each optimizer step of an epoch, the batches of all processes."""
    samplers = [StepBatches(LENGTHS, share, Place(r, share.processes, r), seed=3407) for r in range(share.processes)]
    for each in samplers:
        each.set_epoch(number)
    lists = [list(each) for each in samplers]
    assert {len(each) for each in lists} == {len(samplers[0])}
    passes = list(zip(*lists, strict=True))
    size = share.gradient_accumulation
    return [[b for group in passes[i : i + size] for b in group] for i in range(0, len(passes), size)]


def test_the_order_is_the_trainers():
    """A single process of transformers' trainer, with accelerate's sampler, sees the rows in this order."""
    from accelerate.data_loader import SeedableRandomSampler

    sampler = SeedableRandomSampler(range(27), data_seed=3407)
    assert [list(sampler), list(sampler)] == [epoch_order(27, 3407, 0), epoch_order(27, 3407, 1)]


@pytest.mark.parametrize("share", [Share(1, 2, 4), Share(2, 2, 2), Share(2, 4, 1), Share(4, 2, 1), Share(8, 1, 1)])
@pytest.mark.parametrize("number", [0, 1])
def test_each_step_has_a_single_processes_rows(share, number):
    """However many processes: the same eight rows in each step, the last three in the fourth, each once."""
    order = epoch_order(27, 3407, number)
    steps = epoch(share, number)
    seen = [sorted(row for batch in step for row in batch if row >= 0) for step in steps]
    assert seen == [sorted(order[i : i + 8]) for i in (0, 8, 16, 24)]


def test_a_process_without_rows_repeats_the_shortest_without_labels():
    """In the last step of three rows four processes take one each, and the fourth a negative number."""
    blank = -1 - LENGTHS.index(min(LENGTHS))
    last = epoch(Share(4, 2, 1))[-1]
    assert sorted(map(len, last)) == [1, 1, 1, 1]
    assert [batch for batch in last if batch[0] < 0] == [[blank]]


def test_no_pass_is_larger_than_asked_for():
    """A batch has at most batch_size rows."""
    assert max(len(batch) for step in epoch(Share(2, 2, 2)) for batch in step) == 2


def test_long_rows_are_dealt_to_different_hands():
    """Two hands of rows of 100, 90, 20 and 10 tokens have 110 each."""
    assert deal([5, 6, 7, 8], [0] * 5 + [100, 90, 20, 10], hands=2, size=2) == [[5, 8], [6, 7]]
