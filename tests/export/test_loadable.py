"""Files that every loader reads: what is written, and faults that are found without older versions at hand."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from tuned import rewrite, tuned_mistral

from helpers.core.errors import ExportError
from helpers.export.loadable import find_faults, save_adapter
from helpers.export.merge import merge_16bit


@pytest.fixture(scope="module")
def tuned(tiny_mistral):
    """A tiny Mistral with an adapter."""
    return tuned_mistral(tiny_mistral)


@pytest.fixture(scope="module")
def written(tuned, tmp_path_factory):
    """An adapter and a merged model. Shared: do not change them."""
    folder = tmp_path_factory.mktemp("written")
    save_adapter(*tuned, folder / "adapter", base="ada/base")
    merge_16bit(*tuned, folder / "merged")
    return folder


@pytest.fixture
def folders(written, tmp_path):
    """An adapter and a merged model of one's own."""
    return {name: shutil.copytree(written / name, tmp_path / name) for name in ("adapter", "merged")}


def change(path, **values):
    """Change keys of a JSON file; ... removes one."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_adapter_names_its_base_and_can_be_read_by_all(folders):
    """The hub id instead of a path of this machine, the keys that PEFT 0.14 knows, mode 0644, and no blank card."""
    config = json.loads((folders["adapter"] / "adapter_config.json").read_text())
    assert config == {
        "base_model_name_or_path": "ada/base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 8,
        "revision": None,
        "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    assert sorted(p.name for p in folders["adapter"].iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    modes = {p.stat().st_mode & 0o777 for folder in folders.values() for p in folder.iterdir()}
    assert modes == {0o644}


def test_older_readers_find_what_they_look_for(folders):
    """rope_theta and torch_dtype stand at the top, the tokenizer's class is one that 4.x knows."""
    config = json.loads((folders["merged"] / "config.json").read_text())
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (1e6, 1e6)
    assert (config["torch_dtype"], config["dtype"]) == ("float16", "float16")
    for folder in folders.values():
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert settings["chat_template"] == (folder / "chat_template.jinja").read_text()
        assert find_faults(folder) == []


@pytest.mark.parametrize(
    ("kind", "plant", "found"),
    [
        ("merged", lambda f: change(f / "config.json", rope_theta=...), "no top-level rope_theta"),
        ("merged", lambda f: change(f / "config.json", rope_theta=10000.0), "no top-level rope_theta"),
        ("merged", lambda f: change(f / "config.json", torch_dtype=...), "the weights are in"),
        ("merged", lambda f: change(f / "config.json", quantization_config={}), "quantization_config"),
        (
            "merged",
            lambda f: change(f / "tokenizer_config.json", tokenizer_class="TokenizersBackend"),
            "class Token",
        ),
        ("merged", lambda f: change(f / "tokenizer_config.json", extra_special_tokens=["<a>"]), "extra_special_tokens"),
        ("merged", lambda f: change(f / "tokenizer_config.json", chat_template=...), "template does not stand in both"),
        ("adapter", lambda f: (f / "chat_template.jinja").unlink(), "template does not stand in both"),
        ("adapter", lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        ("adapter", lambda f: change(f / "tokenizer_config.json", eos_token=...), "no eos_token"),
        ("merged", lambda f: change(f / "tokenizer_config.json", model_input_names=...), "token_type_ids"),
        ("adapter", lambda f: change(f / "adapter_config.json", base_model_name_or_path=None), "no base_model_name"),
        ("adapter", lambda f: change(f / "adapter_config.json", r=16), "rank 16, the weights have"),
        ("adapter", lambda f: (f / "adapter_model.safetensors").chmod(0o600), "cannot be read by others"),
    ],
)
def test_planted_fault_is_found(folders, kind, plant, found):
    """Each fault that a reader of another version would stumble over has a sentence of its own."""
    plant(folders[kind])
    assert [fault for fault in find_faults(folders[kind]) if re.search(found, fault)]


def test_weights_of_another_type_are_found(folders, tmp_path):
    """A model said to be in fp16 whose weights are in fp32 is twice as large, and found."""
    wrong = rewrite(folders["merged"], tmp_path / "wrong", lambda name, tensor: tensor.float())
    assert "config.json says ['float16'], the weights are in ['float32']" in find_faults(wrong)


def test_an_adapter_that_nobody_could_read_is_not_saved(tuned, tmp_path):
    """A tokenizer without a template is refused, and the earlier adapter stays."""
    model, tokenizer = tuned
    save_adapter(model, tokenizer, tmp_path / "adapter")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ExportError, match="chat template"):
            save_adapter(model, tokenizer, tmp_path / "adapter")
    finally:
        tokenizer.chat_template = template
    assert find_faults(tmp_path / "adapter") == []
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
