"""Frozen matrices that are unpacked once: the same numbers, less work, and everything as before afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from helpers.memory.shapes import MISTRAL_7B

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from unpacked import unpacked_bytes, unpacked_weights

torch = pytest.importorskip("torch")


class Packed(torch.nn.Module):
    """A layer whose weight is packed bytes, a column of them, with the state that unpacks it."""

    def __init__(self, rows, columns):
        super().__init__()
        size = rows * columns
        self.weight = torch.nn.Parameter(torch.arange(size, dtype=torch.uint8).view(size, 1), requires_grad=False)
        self.weight.quant_state = SimpleNamespace(shape=(rows, columns))


@pytest.fixture
def kernels(monkeypatch):
    """Two modules: one that unpacks, counting how often, and one that imported it by name."""
    first, second = ModuleType("kernels_first"), ModuleType("kernels_second")
    first.calls = 0

    def fast_dequantize(packed, quant_state=None, out=None, use_global_buffer=False, dtype=None):
        first.calls += 1
        if quant_state is None:
            return packed
        found = packed.flatten().view(quant_state.shape).float()
        return found.t() if packed.shape[0] == 1 else found

    first.fast_dequantize = second.fast_dequantize = fast_dequantize
    monkeypatch.setitem(sys.modules, "kernels_first", first)
    monkeypatch.setitem(sys.modules, "kernels_second", second)
    return first, second


@pytest.fixture
def model():
    """Two packed layers and a plain one."""
    return torch.nn.Sequential(Packed(2, 3), torch.nn.Linear(3, 2), Packed(3, 2))


def test_each_matrix_is_unpacked_once(kernels, model):
    """However often a matrix is asked for, in either module, it is unpacked at the beginning and never again."""
    first, second = kernels
    with unpacked_weights(model, first) as count:
        for _ in range(5):
            for layer in (model[0], model[2]):
                second.fast_dequantize(layer.weight, layer.weight.quant_state, use_global_buffer=True)
    assert (count, first.calls) == (2, 2)


def test_the_numbers_are_the_same(kernels, model):
    """A matrix and its transpose, which the backward pass asks for, are what unpacking gives."""
    first, _ = kernels
    weight = model[0].weight
    plain = [first.fast_dequantize(each, weight.quant_state) for each in (weight, weight.t())]
    with unpacked_weights(model, first):
        kept = [first.fast_dequantize(each, weight.quant_state) for each in (weight, weight.t())]
    assert plain[0].tolist() == kept[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert plain[1].tolist() == kept[1].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_others_are_unpacked_as_ever(kernels, model):
    """What has no state, or another model's, is given to the ordinary function; so is a result's own place."""
    first, _ = kernels
    other = Packed(2, 2).weight
    with unpacked_weights(model, first):
        before = first.calls
        assert first.fast_dequantize(other, other.quant_state).tolist() == [[0, 1], [2, 3]]
        assert first.fast_dequantize(other) is other
        first.fast_dequantize(model[0].weight, model[0].weight.quant_state, torch.empty(2, 3))
    assert first.calls - before == 3


def test_afterwards_everything_is_as_before(kernels, model):
    """After an error too the modules have their function again, and the matrices are gone."""
    first, second = kernels
    original = first.fast_dequantize
    with pytest.raises(RuntimeError, match="interrupted"), unpacked_weights(model, first):
        raise RuntimeError("interrupted")
    assert first.fast_dequantize is second.fast_dequantize is original
    assert vars(model[0].weight.quant_state) == {"shape": (2, 3)}


def test_a_model_without_packed_weights_is_left_alone(kernels):
    """There is nothing to keep in a 16-bit model."""
    with unpacked_weights(torch.nn.Linear(2, 2), kernels[0]) as count:
        assert count == 0


def test_trained_weights_are_not_kept(kernels):
    """A weight that changes cannot be unpacked once."""
    layer = torch.nn.Linear(2, 2)
    layer.weight.quant_state = SimpleNamespace(shape=(2, 2))
    with unpacked_weights(layer, kernels[0]) as count:
        assert count == 0


def test_the_memory_is_known():
    """Mistral-7B's matrices have 6,979,321,856 weights of two bytes."""
    assert unpacked_bytes(MISTRAL_7B) == 13_958_643_712
