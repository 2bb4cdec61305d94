"""Recomputed layers without their last product, on a small Mistral on the CPU.

Its MLP is one operation to autograd, as Unsloth's is, and asks one function for each product.
"""

from __future__ import annotations

import ast
import sys
import types
from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import pytest
from sources import definitions

from helpers.model.load import TARGET_MODULES
from helpers.model.patches.optimizer_step import skip_last_products

torch = pytest.importorskip("torch")

LAYERS, WIDTH = 3, 32


def product(x, weight, quant_state, a, b, scale):
    """Return a projection of x with its adapter."""
    return x @ weight.t() + scale * (x @ a.t() @ b.t())


def gate(e, g):
    """Return silu(e) * g."""
    return torch.nn.functional.silu(e) * g


class Kernels:
    """Stands for Unsloth's module of kernels: its product, which is counted, and the mark of a repeated pass."""

    def __init__(self):
        self.products, self.repeated = Counter(), False
        self.matmul_lora = self.count

    def count(self, x, weight, *rest):
        """Count, and compute."""
        self.products[id(weight)] += 1
        return product(x, weight, *rest)

    def recomputing(self):
        """Return whether a pass is repeated."""
        return self.repeated

    @contextmanager
    def mark(self):
        """Set the mark inside the block."""
        self.repeated = True
        try:
            yield
        finally:
            self.repeated = False


class FusedMlp(torch.autograd.Function):
    """The three projections as one operation, which keeps what the first two gave."""

    @staticmethod
    def forward(ctx, kernels, scale, x, *weights):
        """Compute, asking for each product; a weight, an A and a B for each projection."""
        first, second, last = weights[:3], weights[3:6], weights[6:]
        e, g = (kernels.matmul_lora(x, each[0], None, *each[1:], scale) for each in (first, second))
        ctx.scale = scale
        ctx.save_for_backward(x, e, g, *weights)
        return kernels.matmul_lora(gate(e, g), last[0], None, *last[1:], scale)

    @staticmethod
    def backward(ctx, given):
        """Compute the gradients of x and of the adapters from what was kept."""
        with torch.enable_grad():
            x, e, g, *weights = (each.detach().requires_grad_() for each in ctx.saved_tensors)
            first, second, last = weights[:3], weights[3:6], weights[6:]
            out = product(gate(e, g), last[0], None, *last[1:], ctx.scale)
            de, dg, *of_last = torch.autograd.grad(out, [e, g, *last[1:]], given)
            outs = [product(x, each[0], None, *each[1:], ctx.scale) for each in (first, second)]
            dx, *of_both = torch.autograd.grad(outs, [x, *first[1:], *second[1:]], [de, dg])
        return None, None, dx, None, *of_both[:2], None, *of_both[2:], None, *of_last


@pytest.fixture
def kernels():
    """Kernels that have computed nothing yet."""
    return Kernels()


def small_mistral(kernels, *, dropout=0.0):
    """A Mistral with an adapter that says something, the fused MLP in it, its layers recomputed."""
    from peft import LoraConfig, get_peft_model
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=96, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=None, use_cache=False,
    )  # fmt: skip
    adapter = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM"
    )
    model = get_peft_model(MistralForCausalLM(config), adapter).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)

    def forward(mlp, hidden):
        parts = [(each.base_layer.weight, each.lora_A["default"].weight, each.lora_B["default"].weight)
                 for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]  # fmt: skip
        return FusedMlp.apply(kernels, 2.0, hidden, *sum(parts, ()))

    for layer in model.base_model.model.model.layers:
        layer.mlp.forward = types.MethodType(forward, layer.mlp)
    how = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), kernels.mark())}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    return model


def gradients(model):
    """Return the loss of one batch and the gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    tokens = torch.randint(0, 96, (2, 12))
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.item(), {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}


def lean_gradients(model, kernels):
    """Return the same, with the last product of recomputed layers left out."""
    with skip_last_products(model, kernels, kernels.recomputing):
        return gradients(model)


def weight_of(model, name):
    """Return the frozen weight of a projection of the first layer's MLP."""
    return getattr(model.base_model.model.model.layers[0].mlp, name).base_layer.weight


class TestGradients:
    """What training sees."""

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_are_the_same_bit_for_bit(self, kernels, dropout):
        """Loss and gradients of every adapter matrix, also with dropout in attention."""
        model = small_mistral(kernels, dropout=dropout)
        whole_loss, whole = gradients(model)
        with skip_last_products(model, kernels, kernels.recomputing) as layers:
            loss, lean = gradients(model)
        assert layers == LAYERS
        assert loss == whole_loss
        assert whole
        assert all(torch.equal(lean[name], each) for name, each in whole.items())
        assert all(each.abs().max() > 0 for each in whole.values())

    def test_and_the_mlp_is_the_models_own(self, kernels):
        """The fused MLP gives what PEFT's gives; otherwise the tests here would say nothing of Mistral."""
        model = small_mistral(kernels)
        loss, fused = gradients(model)
        for layer in model.base_model.model.model.layers:
            del layer.mlp.forward
        plain_loss, plain = gradients(model)
        assert loss == pytest.approx(plain_loss, abs=1e-5)
        assert all(torch.allclose(fused[name], each, atol=1e-5) for name, each in plain.items())


class TestProducts:
    """What is computed."""

    def test_each_down_projection_runs_once_instead_of_twice(self, kernels):
        """Forward, and not again when the layer is recomputed."""
        model = small_mistral(kernels)
        down = id(weight_of(model, "down_proj"))
        gradients(model)
        assert kernels.products[down] == 2
        lean_gradients(model, kernels)
        assert kernels.products[down] == 3

    def test_other_projections_run_as_before(self, kernels):
        """What is saved for the gradients is computed again."""
        model = small_mistral(kernels)
        lean_gradients(model, kernels)
        assert kernels.products[id(weight_of(model, "up_proj"))] == 2

    def test_without_checkpointing_nothing_is_left_out(self, kernels):
        """A forward pass that counts is whole."""
        model = small_mistral(kernels)
        model.gradient_checkpointing_disable()
        lean_gradients(model, kernels)
        assert kernels.products[id(weight_of(model, "down_proj"))] == 1

    def test_a_layer_that_is_being_compiled_is_left_as_it_is(self, kernels, monkeypatch):
        """Zeros do not get into a compiled layer."""
        model = small_mistral(kernels)
        a, b = torch.ones(4, 64), torch.ones(WIDTH, 4)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        with skip_last_products(model, kernels, lambda: True):
            assert kernels.matmul_lora(torch.ones(2, 64), weight_of(model, "down_proj"), None, a, b, 1.0).any()

    def test_zeros_have_the_products_shape_and_type(self, kernels):
        """What takes the product's place fits where the product went."""
        model = small_mistral(kernels)
        weight = weight_of(model, "down_proj")
        with skip_last_products(model, kernels, lambda: True):
            made = kernels.matmul_lora(torch.ones(2, 3, 64, dtype=torch.bfloat16), weight, None, None, None, None)
        assert made.shape == (2, 3, WIDTH)
        assert made.dtype == torch.bfloat16
        assert not made.any()


class TestUnsloth:
    """Unsloth, as installed, still computes the product."""

    def test_its_mlp_asks_for_the_product_of_the_down_projection(self):
        """By the name that is replaced, with the weight second."""
        (found,) = definitions("unsloth/kernels/fast_lora.py LoRA_MLP.forward")
        assert "matmul_lora(h, downW, downW_quant, downA, downB, downS)" in ast.unparse(found)

    def test_its_mlp_does_not_ask_whether_it_is_recomputed(self):
        """As soon as it does, this module may have nothing left to do."""
        (found,) = definitions("unsloth/kernels/fast_lora.py LoRA_MLP")
        assert "recompute" not in ast.unparse(found)

    def test_its_checkpointing_says_when_a_layer_is_recomputed(self):
        """All three ways of recomputing set the mark."""
        for name in (
            "Unsloth_Offloaded_Gradient_Checkpointer",
            "Unsloth_Gradient_Checkpointer",
            "UnslothCheckpointFunction",
        ):
            (found,) = definitions(f"unsloth_zoo/gradient_checkpointing.py {name}.backward")
            assert "_gradient_checkpoint_recompute_marker()" in ast.unparse(found)


class TestWhere:
    """Which models and stacks are concerned, and what is left behind."""

    class Other(torch.nn.Module):
        """A model whose layers normalize what the MLP gives."""

        config: ClassVar = types.SimpleNamespace(model_type="gemma2")

    def test_everything_is_as_before_afterwards_and_after_an_error(self, kernels):
        """Unsloth's function is back."""
        before, model = kernels.matmul_lora, small_mistral(kernels)
        with pytest.raises(KeyError), skip_last_products(model, kernels, kernels.recomputing):
            raise KeyError(kernels.matmul_lora is before)
        assert kernels.matmul_lora is before

    def test_a_model_whose_layers_end_otherwise_is_left_alone(self, kernels):
        """Gemma 2 normalizes what its MLP gives, and needs it."""
        model = small_mistral(kernels)
        model.config.model_type = "gemma2"
        before = kernels.matmul_lora
        with skip_last_products(model, kernels, kernels.recomputing) as layers:
            assert layers == 0
            assert kernels.matmul_lora is before

    def test_without_a_gpu_nothing_is_changed(self, kernels, monkeypatch):
        """Unsloth's kernels run on a GPU alone."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with skip_last_products(small_mistral(kernels)) as layers:
            assert layers == 0

    def test_another_version_of_unsloth_is_left_alone(self, kernels, monkeypatch):
        """It may compute otherwise."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(__version__="2031.1.1"))
        with skip_last_products(small_mistral(kernels)) as layers:
            assert layers == 0

    def test_models_without_such_layers_are_left_alone(self, kernels):
        """No configuration, or another architecture."""
        for model in (torch.nn.Linear(2, 2), self.Other()):
            with skip_last_products(model, kernels, kernels.recomputing) as layers:
                assert layers == 0
