"""Frozen weights unpacked once: which, when, and that the products get the same numbers."""

from __future__ import annotations

import ast
import gc
import sys
import weakref
from types import SimpleNamespace

import pytest
from sources import definitions

from helpers.model.patches.unpacked import weights_unpacked_once

torch = pytest.importorskip("torch")

WHOLE = 2 * (8 * 4 + 4 * 8)
"""Bytes of both weights in 16 bit."""


class State:
    """What unpacks a weight."""

    def __init__(self, quant_type, shape):
        self.quant_type, self.shape, self.dtype = quant_type, shape, torch.bfloat16


def packed_linear(inputs, outputs, kind="nf4"):
    """Return a layer whose weight is a column of bytes, as bitsandbytes packs it, two numbers in each."""
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    column = torch.randint(0, 256, (inputs * outputs // 2, 1), dtype=torch.uint8)
    linear.weight = torch.nn.Parameter(column, requires_grad=False)
    linear.weight.quant_state = State(kind, torch.Size((outputs, inputs)))
    return linear


class Kernels:
    """Stands for Unsloth's modules: counts what it unpacks, which is each byte's two halves."""

    def __init__(self):
        self.calls = 0

        def fast_dequantize(W, quant_state=None, out=None, use_global_buffer=False, dtype=None):  # noqa: N803
            self.calls += 1
            if quant_state is None:
                return W
            halves = torch.stack((W.flatten() // 16, W.flatten() % 16), dim=1).to(quant_state.dtype)
            found = halves.view(quant_state.shape)
            return found.t() if W.shape[0] == 1 else found

        self.fast_dequantize = fast_dequantize


@pytest.fixture
def model():
    """Two packed weights, one of another format, and one that is not packed."""
    return torch.nn.Sequential(
        packed_linear(4, 8), packed_linear(8, 4), packed_linear(4, 4, "fp4"), torch.nn.Linear(4, 4)
    )


@pytest.fixture
def modules():
    """Both modules that products look it up in."""
    return Kernels(), Kernels()


def test_products_get_the_same_numbers_and_nothing_is_unpacked_again(model, modules):
    """As a column and as a row, in both modules; each weight is unpacked once."""
    weights = [(layer.weight, layer.weight.quant_state) for layer in list(model)[:2]]
    plain = [Kernels().fast_dequantize(each, state) for each, state in weights]
    with weights_unpacked_once(model, modules) as keep:
        assert keep(2 * WHOLE) == WHOLE
        for owner in modules:
            for (each, state), wanted in zip(weights, plain, strict=True):
                found = owner.fast_dequantize(each, state, use_global_buffer=True, dtype=torch.bfloat16)
                assert torch.equal(found, wanted)
                assert torch.equal(owner.fast_dequantize(each.t(), state), wanted.t())
        assert [each.calls for each in modules] == [2, 0]


def test_what_is_not_kept_is_unpacked_as_before(model, modules):
    """Another format, no format, and whoever brings the memory for it."""
    other, plain, own = model[2].weight, model[3].weight, model[0].weight
    with weights_unpacked_once(model, modules) as keep:
        keep(2 * WHOLE)
        before = modules[1].calls
        modules[1].fast_dequantize(other, other.quant_state)
        assert modules[1].fast_dequantize(plain) is plain
        modules[1].fast_dequantize(own, own.quant_state, out=torch.empty(8, 4))
        assert modules[1].calls == before + 3


@pytest.mark.parametrize("room", [-1, 0, 2 * WHOLE - 1])
def test_where_memory_is_short_nothing_is_changed(model, modules, room):
    """They may take half of it."""
    before = [vars(each)["fast_dequantize"] for each in modules]
    with weights_unpacked_once(model, modules) as keep:
        assert keep(room) == 0
        assert [vars(each)["fast_dequantize"] for each in modules] == before
    assert modules[0].calls == 0


def test_a_model_without_packed_weights_is_left_alone(modules):
    """Such as one that was loaded in 16 bit."""
    before = modules[0].fast_dequantize
    with weights_unpacked_once(torch.nn.Linear(4, 4), modules) as keep:
        assert keep(1 << 40) == 0
        assert modules[0].fast_dequantize is before


def test_who_asks_again_gets_them_anew_or_none(model, modules):
    """Layers that are recorded anew may have other weights, and less may be free."""
    weight = model[0].weight
    with weights_unpacked_once(model, modules) as keep:
        keep(2 * WHOLE)
        weight.zero_()
        assert keep(2 * WHOLE) == WHOLE
        assert not modules[1].fast_dequantize(weight, weight.quant_state).any()
        assert keep(0) == 0
        before = modules[1].calls
        modules[1].fast_dequantize(weight, weight.quant_state)
        assert modules[1].calls == before + 1


def test_where_memory_runs_out_on_the_way_nothing_is_kept(model, modules, monkeypatch):
    """What is free can lie in pieces; nobody needs these weights."""
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))

    def full(weight, state):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(modules[0], "fast_dequantize", full)
    with weights_unpacked_once(model, modules) as keep:
        assert keep(2 * WHOLE) == 0
        assert (modules[0].fast_dequantize, emptied) == (full, [1])


def test_afterwards_all_is_as_before(model, modules):
    """Their own functions are back, and the memory is free, though the function is still held."""
    before = [each.fast_dequantize for each in modules]
    with weights_unpacked_once(model, modules) as keep:
        keep(2 * WHOLE)
        assert [each.fast_dequantize for each in modules] != before
        kept = weakref.ref(modules[1].fast_dequantize(model[0].weight, model[0].weight.quant_state))
        assert kept() is not None
    assert [each.fast_dequantize for each in modules] == before
    assert kept() is None
    assert keep is not None


def test_a_state_lives_as_long_as_what_is_kept_for_it(model, modules):
    """Else another weight's state could get its id."""
    state = weakref.ref(model[0].weight.quant_state)
    with weights_unpacked_once(model, modules) as keep:
        keep(2 * WHOLE)
        model[0] = torch.nn.Identity()
        gc.collect()
        assert state() is not None


def test_unsloths_modules_are_the_default(model, modules, monkeypatch):
    """Both in which its products look the function up."""
    found = dict(zip(("utils", "fast_lora"), modules, strict=True))
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "unsloth.kernels", SimpleNamespace(**found))
    with weights_unpacked_once(model) as keep:
        assert keep(2 * WHOLE) == WHOLE
        for owner in modules:
            owner.fast_dequantize(model[0].weight, model[0].weight.quant_state)
        assert [each.calls for each in modules] == [2, 0]


@pytest.mark.parametrize(
    "place", ["utils.py matmul_lora", "fast_lora.py LoRA_MLP.backward", "fast_lora.py LoRA_QKV.backward"]
)
def test_unsloths_products_look_it_up_at_each_call(place):
    """By its name in their module, where another can stand."""
    (found,) = definitions(f"unsloth/kernels/{place}")
    called = {
        each.func.id for each in ast.walk(found) if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
    }
    assert "fast_dequantize" in called
