"""Recomputed layers without their last product: Unsloth's own MLP and checkpointing, on a small Mistral on the CPU.

Those that recompute layers are taken out of Unsloth's files, too.
"""

from __future__ import annotations

import ast
import sys
import types
from typing import ClassVar

import pytest
from sources import definitions
from unsloth_kernels import gate, gate_backward, load_kernels, parameters_of

from helpers.model.load import TARGET_MODULES
from helpers.model.patches.optimizer_step import skip_last_products

torch = pytest.importorskip("torch")

LAYERS, WIDTH = 3, 32


@pytest.fixture(scope="module")
def kernels():
    """Unsloth's fused MLP and the product that it asks for, as a module of their own."""
    return load_kernels()


def small_mistral(kernels, *, dropout=0.0):
    """A Mistral with an adapter that says something, Unsloth's MLP in it, its layers recomputed by Unsloth."""
    from peft import LoraConfig, get_peft_model
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=96, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=None, use_cache=False,
    )  # fmt: skip
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
    model = get_peft_model(MistralForCausalLM(config), adapter).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)

    def forward(mlp, hidden):
        each = [parameters_of(projection) for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
        chances = (dropout,) * 3 if dropout else None
        return kernels.LoRA_MLP.apply(hidden, *sum(each, ()), gate, gate_backward, True, chances)

    for layer in model.base_model.model.model.layers:
        layer.mlp.forward = types.MethodType(forward, layer.mlp)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    for layer in model.base_model.model.model.layers:
        layer._gradient_checkpointing_func = kernels.Unsloth_Gradient_Checkpointer.apply
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
    with skip_last_products(model, kernels, kernels.in_gradient_checkpoint_recompute):
        return gradients(model)


def first_mlp(model):
    """Return the MLP of the first layer."""
    return model.base_model.model.model.layers[0].mlp


class Counted:
    """Counts the products of one projection that are computed."""

    def __init__(self, kernels, projection, monkeypatch):
        self.count, self.weight, self.original = 0, projection.base_layer.weight, kernels.matmul_lora
        monkeypatch.setattr(kernels, "matmul_lora", self)

    def __call__(self, x, weight, *rest, **named):
        """Count, and compute."""
        self.count += weight is self.weight
        return self.original(x, weight, *rest, **named)


class TestGradients:
    """What training sees."""

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_are_the_same_bit_for_bit(self, kernels, dropout):
        """Loss and gradients of every adapter matrix, with dropout, too."""
        model = small_mistral(kernels, dropout=dropout)
        whole_loss, whole = gradients(model)
        with skip_last_products(model, kernels, kernels.in_gradient_checkpoint_recompute) as layers:
            loss, lean = gradients(model)
        assert layers == LAYERS
        assert loss == whole_loss
        assert whole
        assert all(torch.equal(lean[name], each) for name, each in whole.items())
        assert all(each.abs().max() > 0 for each in whole.values())

    def test_and_the_mlp_is_the_models_own(self, kernels):
        """Unsloth's MLP gives what PEFT's gives; otherwise the tests here would say nothing of Mistral."""
        model = small_mistral(kernels)
        loss, fused = gradients(model)
        for layer in model.base_model.model.model.layers:
            del layer.mlp.forward
        plain_loss, plain = gradients(model)
        assert loss == pytest.approx(plain_loss, abs=1e-5)
        assert all(torch.allclose(fused[name], each, atol=1e-5) for name, each in plain.items())


class TestProducts:
    """What is computed."""

    def test_each_down_projection_runs_once_instead_of_twice(self, kernels, monkeypatch):
        """Forward, and not again when the layer is recomputed."""
        model = small_mistral(kernels)
        down = Counted(kernels, first_mlp(model).down_proj, monkeypatch)
        gradients(model)
        assert down.count == 2
        lean_gradients(model, kernels)
        assert down.count == 3

    def test_other_projections_run_as_before(self, kernels, monkeypatch):
        """What is saved for the gradients is computed again."""
        model = small_mistral(kernels)
        up = Counted(kernels, first_mlp(model).up_proj, monkeypatch)
        lean_gradients(model, kernels)
        assert up.count == 2

    def test_without_checkpointing_nothing_is_left_out(self, kernels, monkeypatch):
        """A forward pass that counts is whole."""
        model = small_mistral(kernels)
        model.gradient_checkpointing_disable()
        down = Counted(kernels, first_mlp(model).down_proj, monkeypatch)
        lean_gradients(model, kernels)
        assert down.count == 1

    def test_a_layer_that_is_being_compiled_is_left_as_it_is(self, kernels, monkeypatch):
        """Zeros do not get into a compiled layer."""
        model = small_mistral(kernels)
        down = Counted(kernels, first_mlp(model).down_proj, monkeypatch)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        with skip_last_products(model, kernels, lambda: True):
            kernels.matmul_lora(torch.ones(2, 64), down.weight, None, None, None, None)
        assert down.count == 1

    def test_zeros_have_the_products_shape_and_type(self, kernels):
        """What takes the product's place fits where the product went."""
        model = small_mistral(kernels)
        weight = first_mlp(model).down_proj.base_layer.weight
        with skip_last_products(model, kernels, lambda: True):
            made = kernels.matmul_lora(torch.ones(2, 3, 64, dtype=torch.bfloat16), weight, None, None, None, None)
        assert made.shape == (2, 3, WIDTH)
        assert made.dtype == torch.bfloat16
        assert not made.any()


class TestUnsloth:
    """Unsloth, as installed, still computes the product."""

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
        with pytest.raises(KeyError), skip_last_products(model, kernels, kernels.in_gradient_checkpoint_recompute):
            raise KeyError(kernels.matmul_lora is before)
        assert kernels.matmul_lora is before

    def test_a_model_whose_layers_end_otherwise_is_left_alone(self, kernels):
        """Gemma 2 normalizes what its MLP gives, and needs it."""
        model = small_mistral(kernels)
        model.config.model_type = "gemma2"
        before = kernels.matmul_lora
        with skip_last_products(model, kernels, kernels.in_gradient_checkpoint_recompute) as layers:
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
            with skip_last_products(model, kernels, kernels.in_gradient_checkpoint_recompute) as layers:
                assert layers == 0
