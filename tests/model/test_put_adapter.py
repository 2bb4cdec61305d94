"""A saved adapter on its base: all of its weights, and a base that stays the base."""

from __future__ import annotations

import json

import pytest

from helpers.core.errors import ExportError
from helpers.model.load import put_adapter

LINEAR = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def base(tiny_mistral):
    """A tiny Mistral of one's own."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_mistral)


def saved(base, folder, **settings):
    """Save an adapter with visible weights for a base."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def fresh(folder, dtype="float32"):
    """Load the base anew."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def test_a_plain_adapter_leaves_the_base_as_it_is(base, tiny_mistral, tmp_path):
    """With LoRA switched off the model is the base; with it, another; it is in the mode that the base was in."""
    tuned = put_adapter(fresh(tiny_mistral).train(), saved(base, tmp_path / "adapter"))
    assert tuned.training
    assert tuned.peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        *(({"init_lora_weights": "pissa"}, dtype) for dtype in ("float32", "bfloat16", "float16")),
        ({"init_lora_weights": "olora"}, "bfloat16"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}, "bfloat16"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "bfloat16"),
    ],
    ids=["pissa-float32", "pissa-bfloat16", "pissa-float16", "olora", "loftq", "replication"],
)
def test_an_adapter_that_changes_the_base_is_refused(base, tiny_mistral, tmp_path, monkeypatch, settings, dtype):
    """Each takes a part out of the base weights, or adds layers, which shows in each type, the coarsest too.

    PEFT computes LoftQ on a GPU alone, so that here its result is stood in for: a base rounded to 16 levels.
    """

    def rounded(weight, reduced_rank, **_):
        import torch

        step = weight.abs().max() / 8
        return (
            (weight / step).round() * step,
            torch.zeros(reduced_rank, weight.shape[1]),
            torch.zeros(weight.shape[0], reduced_rank),
        )

    monkeypatch.setattr("peft.tuners.lora.layer.loftq_init", rounded)
    folder = saved(base, tmp_path / "adapter", **settings)
    with pytest.raises(ExportError, match="leaves the base model as it is"):
        put_adapter(fresh(tiny_mistral, dtype), folder)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_modules_that_were_trained_whole_go_with_the_adapter(base, tiny_mistral, tmp_path, module):
    """`modules_to_save` keeps a copy: off, the base's own is used, to the last bit; on, the trained one."""
    import torch
    from peft import PeftModel

    folder = saved(base, tmp_path / "adapter", modules_to_save=[module])
    ids = torch.arange(100, 120).unsqueeze(0)
    plain = fresh(tiny_mistral).eval()
    with torch.no_grad():
        wanted = plain(ids).logits
        tuned = put_adapter(plain, folder)
        on = tuned(ids).logits
        with tuned.disable_adapter():
            assert torch.equal(tuned(ids).logits, wanted)
        assert torch.equal(PeftModel.from_pretrained(fresh(tiny_mistral).eval(), folder)(ids).logits, on)
    assert not torch.equal(on, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels_that_round_otherwise_do_not_refuse_an_adapter(base, tiny_mistral, tmp_path, dtype):
    """In 16 bit, logits that a whole step of their type separates everywhere are rounding, also if none was seen."""
    import torch

    folder, model, found = saved(base, tmp_path / "adapter"), fresh(tiny_mistral, dtype), []

    def off_by_a_step(head, given, logits):
        found.append(logits.float())
        return found[0] * (1 + torch.finfo(logits.dtype).eps * (len(found) == 3))

    model.lm_head.register_forward_hook(off_by_a_step)
    assert put_adapter(model, folder).peft_config["default"].r == 4
    assert len(found) == 3  # the base, the base with other roundings, the base beside its adapter


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_missing_or_too_many_are_refused(base, tiny_mistral, tmp_path, change):
    """PEFT only warns of a matrix that the file lacks, and drops one too many."""
    from safetensors.torch import load_file, save_file

    folder = saved(base, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    tensors |= {name.replace("layers.1", "layers.7"): tensors[name].clone()} if change == "unexpected" else {}
    if change == "missing":
        del tensors[name]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="1 missing or unexpected, such as base_model"):
        put_adapter(fresh(tiny_mistral), folder)


@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_an_adapter_of_the_embeddings_is_put_on(tiny_mistral, tmp_path, layer):
    """PEFT copies the base's own embeddings into the adapter's file; they are no weights of the adapter."""
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open

    targets = LoraConfig(target_modules=["q_proj", layer], task_type="CAUSAL_LM")
    get_peft_model(fresh(tiny_mistral), targets).save_pretrained(tmp_path, save_embedding_layers=True)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert any(f"{layer}.base_layer" in key for key in file.keys())  # noqa: SIM118 - no mapping
    assert layer in put_adapter(fresh(tiny_mistral), tmp_path).peft_config["default"].target_modules


def test_an_adapter_of_another_base_is_refused(base, tiny_mistral, tmp_path):
    """Matrices of other shapes do not fit."""
    folder = saved(base, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(ExportError, match="an adapter of this base model"):
        put_adapter(fresh(tiny_mistral), folder)
