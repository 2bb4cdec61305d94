"""Trainings in two processes on the CPU, with gloo: what comes out is what one process gives.

The model is a Mistral of two layers in fp32. One optimizer step sees eight rows, and each epoch of 27 rows ends with a
step of three.
"""

from __future__ import annotations

import pytest
import together
from nursery import Nursery

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs of this file."""
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def launched(folder):
    """A nursery that imported the stack as a process of a launch does."""
    nursery = Nursery(folder / "nursery", together.LAUNCHED)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def train(launched, folder, tiny_mistral):
    """A function that does one launch and returns what each process answered."""

    def train(count, name, **parameters):
        return together.run_all(
            launched, count, "train", runs=str(folder), model=str(tiny_mistral), name=name, **parameters
        )

    return train


def largest_difference(folder, one, other):
    """Return the largest difference of two runs' adapter weights, and the largest weight."""
    first, second = together.adapter(folder, one), together.adapter(folder, other)
    assert first.keys() == second.keys()
    return max((first[k] - second[k]).abs().max().item() for k in first), max(
        each.abs().max().item() for each in first.values()
    )


@pytest.mark.parametrize(("packed", "rows"), [(False, 70), (True, 135)])
def test_two_processes_train_the_same_adapter_as_one(train, folder, packed, rows):
    """After ten steps over more than two epochs the weights agree to 1e-6, and so do losses and counts."""
    names = f"one-{packed}", f"two-{packed}"
    one, two = train(1, names[0], packed=packed)[0], train(2, names[1], packed=packed)[0]
    difference, size = largest_difference(folder, *names)
    assert difference < 1e-6 < 0.01 < size
    assert two["mode"]["processes"] == 2
    assert two["mode"]["packing"] is packed
    for name in ("train_loss", "eval_loss"):
        assert [s for s, _ in two[name]] == [s for s, _ in one[name]]
        assert [x for _, x in two[name]] == pytest.approx([x for _, x in one[name]], abs=1e-5)
    for name in ("tokens", "supervised_tokens", "rows_seen"):
        assert two[name] == one[name]
    assert two["rows_seen"] == rows
