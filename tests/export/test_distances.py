"""Distances between models, and the measurement of rounding."""

from __future__ import annotations

import math

import pytest

from helpers.model.distance import _move_steps, jitter_activations, jitter_weights, measure_distance


def test_distance_of_known_logits():
    """By hand: differences 3, 0, 4, 0 over two positions of two tokens."""
    import torch

    found = measure_distance([torch.tensor([[3.0, 0.0], [4.0, 0.0]])], [torch.zeros(2, 2)])
    assert (found.rms, found.mean, found.largest) == (2.5, 1.75, 4.0)
    assert found.same_choice == 1.0
    assert round(found.kl, 4) == 0.5527


def test_logits_that_are_no_numbers_are_infinitely_far():
    """NaN never counts as close, nor do other shapes."""
    import torch

    assert measure_distance([torch.tensor([[math.nan, 0.0]])], [torch.zeros(1, 2)]).rms == math.inf
    assert measure_distance([torch.zeros(1, 3)], [torch.zeros(1, 2)]).kl == math.inf


@pytest.mark.parametrize(
    ("name", "stored", "step"),
    [
        ("float16", 0, 2**-10),
        ("bfloat16", 0, 2**-7),
        ("float32", 0, 2**-23),
        ("float32", 7, 2**-7),
        ("float32", 10, 2**-10),
    ],
)
def test_one_number_in_twelve_moves_by_one_step(name, stored, step):
    """Numbers just above 1 move by one step of their own type, or of the type they were stored in."""
    import torch

    values = torch.full((300, 400), 1.25, dtype=getattr(torch, name))
    moved = _move_steps(values, torch.Generator().manual_seed(0), stored).float() - 1.25
    assert set(moved.unique().tolist()) == {-step, 0.0, step}
    assert 0.078 < (moved != 0).float().mean() < 0.089
    assert torch.equal(values, torch.full_like(values, 1.25))


def test_zero_does_not_move():
    """A step below zero would be NaN."""
    import torch

    assert _move_steps(torch.zeros(1000, dtype=torch.float16), torch.Generator().manual_seed(0), 0).abs().max() == 0


def test_jitter_ends_with_its_block():
    """Afterwards the model computes as before; the output layer was never touched."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 8)
            self.head = torch.nn.Linear(8, 50)

        def get_input_embeddings(self):
            return self.embed

        def forward(self, ids):
            return self.inner(self.embed(ids))

    model, ids = Model(), torch.arange(50)
    with torch.no_grad():
        before, head = model(ids), model.head(torch.ones(1, 8))
        with jitter_weights("bf16", 50):
            assert not torch.equal(model(ids), before)
            assert torch.equal(model.head(torch.ones(1, 8)), head)
        with jitter_activations(model):
            assert not torch.equal(model(ids), before)
        assert torch.equal(model(ids), before)
