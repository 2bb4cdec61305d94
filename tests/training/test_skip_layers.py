"""Layers that keep their activations in spite of checkpointing: what Unsloth is told, and what it does with that."""

from __future__ import annotations

import ast

import pytest
from sources import definitions, module_tree

from helpers.core.config import build_config
from helpers.core.errors import ConfigError
from helpers.core.runs import RunDirectory
from helpers.runtime.hardware import Gpu
from helpers.training.machine import fit_layout

CARD = Gpu("GPU", (8, 0), 40 * 2**30, 40 * 2**30)


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
        assert handed_on(CARD, 6) == {"checkpoint_skip_layers": 6}
        assert handed_on(CARD, 0) == {}

    def test_a_cpu_gets_none(self, handed_on):
        """Unsloth's loader for CPUs would refuse it."""
        assert handed_on(None, 3) == {}

    def test_more_than_there_are(self, handed_on):
        """Mistral-7B has 32 layers."""
        with pytest.raises(ConfigError, match="at most the model's 32 layers, got 33"):
            handed_on(CARD, 33)


class TestUnsloth:
    """Unsloth, as installed."""

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

    def test_the_losss_pieces_have_the_limits_that_are_predicted_with(self):
        """`loss_rows` follows fused_linear_rows, with its constants."""
        text = {
            node.targets[0].id: ast.unparse(node.value)
            for node in module_tree("unsloth_zoo/fused_losses/fused_linear.py").body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        assert text["_MIN_LOGITS"] == "512 * 151936"
        assert text["_CHUNK_GB"] == "_env_float('UNSLOTH_LOGPROB_CHUNK_GB', 2.0)"
        assert "'UNSLOTH_FUSED_LINEAR_MIN_ROWS', 0" in text["_MIN_ROWS"]
        assert "'UNSLOTH_FUSED_LINEAR_MAX_ROWS', 4096" in text["_MAX_ROWS"]
