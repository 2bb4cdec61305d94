"""Layers that keep their activations in spite of checkpointing: Unsloth's own code, on a small Mistral on the CPU.

unsloth.models cannot be imported without triton, so its functions are taken out of the file and run by themselves.
"""

from __future__ import annotations

import ast
import os

import pytest
from sources import definitions, module_tree

from helpers.core.config import build_config
from helpers.core.errors import ConfigError
from helpers.core.runs import RunDirectory
from helpers.memory.predict import LOSS_BYTES, loss_rows
from helpers.memory.shapes import MISTRAL_7B, SMOLLM2_135M, ModelShape
from helpers.model.load import TARGET_MODULES
from helpers.runtime.hardware import Gpu
from helpers.training.machine import fit_layout

torch = pytest.importorskip("torch")

UTILS = "unsloth/models/_utils.py"
LINEAR = "unsloth_zoo/fused_losses/fused_linear.py"
LAYERS = 6


def upstream(file, names, **known):
    """Return top-level functions of a file of another package, with what they need besides each other."""
    found = [node for node in module_tree(file).body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert [node.name for node in found] == names
    scope = dict(known)
    exec(compile(ast.Module(found, []), file, "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def skip_checkpointing():
    """Unsloth's function, as installed."""
    finder = upstream("unsloth_zoo/block_swap.py", ["find_decoder_layers"], torch=torch)
    names = ["_skip_aware_flag", "_gc_keep_layers_env", "skip_checkpointing"]
    return upstream(UTILS, names, os=os, find_decoder_layers=finder["find_decoder_layers"])["skip_checkpointing"]


def small_mistral():
    """A Mistral of six layers with an adapter that says something, checkpointing on, as Unsloth turns it on."""
    from peft import LoraConfig, get_peft_model
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=None, use_cache=False,
    )  # fmt: skip
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
    model = get_peft_model(MistralForCausalLM(config), adapter)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    return model.train()


def count_passes(model):
    """Return a list of how often each layer's MLP runs from now on."""
    passes = [0] * LAYERS

    def count(number):
        def hook(*_):
            passes[number] += 1

        return hook

    for number, layer in enumerate(model.base_model.model.model.layers):
        layer.mlp.register_forward_pre_hook(count(number))
    return passes


def train(model, steps=3):
    """Take AdamW steps, and return the losses and the adapter."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        rows = torch.randint(0, 96, (2, 12))
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: weight.detach() for name, weight in model.named_parameters() if "lora_" in name}


class TestUpstream:
    """What `checkpoint_skip_layers` does in the installed Unsloth."""

    @pytest.mark.parametrize(
        ("number", "expected"),
        [(0, []), (1, [5]), (2, [2, 5]), (3, [1, 3, 5]), (4, [0, 2, 3, 5]), (6, [0, 1, 2, 3, 4, 5])],
    )
    def test_layers_are_left_out_evenly(self, skip_checkpointing, number, expected):
        """As many as asked for, the last one among them; each runs once a step, and the others twice."""
        model = small_mistral()
        passes = count_passes(model)
        assert skip_checkpointing(model, number) == expected
        train(model, steps=1)
        assert passes == [1 if layer in expected else 2 for layer in range(LAYERS)]

    def test_too_many_are_taken_without_a_word(self, skip_checkpointing):
        """Which is why `check_skip_layers` asks before."""
        assert len(skip_checkpointing(small_mistral(), 99)) == LAYERS

    def test_the_adapter_is_the_same(self, skip_checkpointing):
        """Losses and weights of three steps agree bit for bit."""
        plain, some = small_mistral(), small_mistral()
        skip_checkpointing(some, 3)
        (losses, adapter), (again, skipped) = train(plain), train(some)
        assert losses == again
        assert adapter.keys() == skipped.keys()
        assert all(torch.equal(weight, skipped[name]) for name, weight in adapter.items())

    def test_a_trainer_that_turns_checkpointing_on_again_changes_nothing(self, skip_checkpointing):
        """TRL and for_training set the flag of every layer; a layer that is left out stays so."""
        model = small_mistral()
        passes = count_passes(model)
        skip_checkpointing(model, 2)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        train(model, steps=1)
        assert passes == [2, 2, 1, 2, 2, 1]

    def test_it_comes_last_in_attaching_an_adapter(self):
        """After checkpointing was turned on, whichever kind it is; block_swap has had its turn."""
        source = ast.unparse(definitions("unsloth/models/llama.py FastLlamaModel.get_peft_model")[0])
        turned_on = source.index("patch_peft_model(model, use_gradient_checkpointing)")
        assert source.rindex("skip_checkpointing(model, checkpoint_skip_layers)") > turned_on

    def test_the_cpu_does_not_know_it(self):
        """Unsloth's CPU loader hands names that it does not know to LoraConfig, so `fit_layout` keeps it back."""
        loader = ast.unparse(definitions("unsloth_zoo/cpu/loader.py FastCPUModel.get_peft_model")[0])
        assert "checkpoint_skip_layers" not in loader
        assert "**kwargs)" in loader

    @pytest.mark.parametrize("shape", [MISTRAL_7B, SMOLLM2_135M, ModelShape(5120, 14336, 40, 32, 8, 131072)])
    @pytest.mark.parametrize("tokens", [1, 700, 2048, 5000, 16_384, 40_000, 200_000])
    def test_the_losss_pieces_are_unsloths(self, shape, tokens):
        """`loss_rows` is the rule of fused_linear_rows, where memory is free."""
        scope = upstream(LINEAR, ["_pow2", "fused_linear_rows"], **self.constants())
        assert loss_rows(shape, tokens) == scope["fused_linear_rows"](tokens, shape.hidden, shape.vocab)

    def constants(self):
        """What the rule reads, with Unsloth's values."""
        import math

        text = {node.targets[0].id: ast.unparse(node.value) for node in module_tree(LINEAR).body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}  # fmt: skip
        assert text["_MIN_LOGITS"] == "512 * 151936"
        assert text["_CHUNK_GB"] == "_env_float('UNSLOTH_LOGPROB_CHUNK_GB', 2.0)"
        assert "'UNSLOTH_FUSED_LINEAR_MIN_ROWS', 0" in text["_MIN_ROWS"]
        assert "'UNSLOTH_FUSED_LINEAR_MAX_ROWS', 4096" in text["_MAX_ROWS"]
        known = {"_MIN_LOGITS": 512 * 151936, "_MIN_ROWS": 0, "_MAX_ROWS": 4096}
        return known | {"math": math, "_budget_bytes": lambda device: LOSS_BYTES}


class TestLayout:
    """What `fit_layout` hands on to Unsloth's `get_peft_model`."""

    @pytest.fixture
    def handed_on(self, tmp_path):
        """A function that returns the arguments for a number of layers, with a card or without."""

        def handed_on(gpu, layers):
            config = build_config("alpaca", preset="colab-t4", checkpoint_skip_layers=layers)
            return fit_layout(config, [300] * 80, RunDirectory(tmp_path), find=lambda: gpu).lora

        return handed_on

    def test_a_gpu_gets_the_number(self, handed_on):
        """Unsloth is told how many layers, unless there are none."""
        card = Gpu("GPU", (8, 0), 40 * 2**30, 40 * 2**30)
        assert handed_on(card, 6) == {"checkpoint_skip_layers": 6}
        assert handed_on(card, 0) == {}

    def test_a_cpu_gets_none(self, handed_on):
        """Unsloth's loader for CPUs would refuse it."""
        assert handed_on(None, 3) == {}

    def test_more_than_there_are(self, handed_on):
        """Mistral-7B has 32 layers."""
        with pytest.raises(ConfigError, match="at most the model's 32 layers, got 33"):
            handed_on(Gpu("GPU", (8, 0), 40 * 2**30, 40 * 2**30), 33)
