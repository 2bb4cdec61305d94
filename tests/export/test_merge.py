"""Merging and export folders: whole or not at all, and never over something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tuned import tuned_mistral

from helpers.core.errors import ConfigError, ExportError, RunError
from helpers.export.folders import check_weight_files, record_export, refuse_foreign, staged_folder
from helpers.export.merge import merge_16bit
from helpers.export.tensors import base_tensors


@pytest.fixture(scope="module")
def tuned(tiny_mistral):
    """A tiny Mistral with an adapter: 4,268,352 base weights."""
    return tuned_mistral(tiny_mistral)


def names(folder):
    """All names in a folder, hidden ones too."""
    return sorted(p.name for p in folder.iterdir())


def test_merged_folder_has_all_that_a_loader_needs(tuned, tmp_path):
    """Weights, configuration, generation settings, tokenizer and template; no trace of local paths."""
    result = merge_16bit(*tuned, tmp_path / "merged")
    assert names(tmp_path / "merged") == [
        "chat_template.jinja",
        "config.json",
        "export.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["use_cache"] is True
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert not any(str(tmp_path) in p.read_text() for p in (tmp_path / "merged").glob("*.json"))
    assert (result.dtype, result.tensors, result.merged) == ("fp16", 21, 14)


def test_merge_is_base_plus_scaled_product(tuned, tmp_path):
    """One matrix, computed by hand: W + alpha / r * B @ A, with alpha 16 and r 8."""
    from safetensors.torch import load_file

    merge_16bit(*tuned, tmp_path / "merged")
    layer = tuned[0].get_base_model().model.layers[1].mlp.down_proj
    by_hand = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    found = load_file(tmp_path / "merged" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert (found.float() - by_hand).abs().max() < 1e-4


def test_shards_and_index_agree(tuned, tmp_path):
    """Small shards give several files, an index with every tensor once, and a model that loads."""
    from transformers import AutoModelForCausalLM

    merge_16bit(*tuned, tmp_path / "merged", shard_bytes=2**20)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 21
    assert set(index["weight_map"].values()) == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert index["metadata"]["total_size"] == 2 * 4_268_352
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert sum(p.numel() for p in model.parameters()) == 4_268_352


def test_missing_shard_is_found(tuned, tmp_path):
    """The check after saving notices a shard that the index names and nobody wrote."""
    merge_16bit(*tuned, tmp_path / "merged", shard_bytes=2**20)
    shapes = {t.name: t.shape for t in base_tensors(tuned[0])}
    check_weight_files(tmp_path / "merged", shapes)
    (tmp_path / "merged" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ExportError, match="model-00002-of-00003"):
        check_weight_files(tmp_path / "merged", shapes)


def test_folder_with_something_else_is_refused(tuned, tmp_path):
    """A folder with a user's file is left exactly as it was."""
    place = tmp_path / "merged"
    place.mkdir()
    (place / "thesis.docx").write_text("years of work")
    with pytest.raises(ExportError, match=r"thesis\.docx"):
        merge_16bit(*tuned, place)
    assert names(tmp_path) == ["merged"]
    assert (place / "thesis.docx").read_text() == "years of work"


def test_foreign_file_in_an_earlier_export_is_refused(tuned, tmp_path):
    """An earlier export is replaced, but not once a user has put something into it."""
    merge_16bit(*tuned, tmp_path / "merged")
    assert merge_16bit(*tuned, tmp_path / "merged", dtype="bf16").dtype == "bf16"
    (tmp_path / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"notes\.txt"):
        merge_16bit(*tuned, tmp_path / "merged")
    assert names(tmp_path) == ["merged"]


def test_a_model_of_somebody_else_is_refused(tmp_path):
    """Files of a model without our record are not ours to replace; links and files are no folders."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "file").write_text("")
    for name in ("model", "link", "file"):
        with pytest.raises(ExportError):
            refuse_foreign(tmp_path / name)


@pytest.mark.parametrize("content", ["", "[]", '{"files": ["a"]}', "\ufffd{"])
def test_damaged_record_counts_as_none(tmp_path, content):
    """With a damaged export.json nothing is known to be ours."""
    (tmp_path / "export.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"model\.safetensors"):
        refuse_foreign(tmp_path)


def write_and_fail(folder, error):
    """Begin an export and be interrupted."""
    with staged_folder(folder) as staged:
        (staged / "a").write_text("second")
        raise error


def test_interrupted_export_leaves_nothing(tmp_path):
    """Neither an error nor Ctrl-C leaves a half-written folder; an earlier export stays."""
    with staged_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("first")
        record_export(staged)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            write_and_fail(tmp_path / "out", error)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_too_little_room_is_refused_with_numbers(tuned, tmp_path, monkeypatch, leave_free):
    """Too little disk or memory is refused before anything is written: 2 bytes a weight, and 32 MiB beside them."""
    leave_free(10_000_000)
    with pytest.raises(RunError, match=r"at least 40\.1 MiB free at .* for the merged model") as caught:
        merge_16bit(*tuned, tmp_path / "deep" / "merged")
    assert caught.value.field == "disk"
    leave_free(10**12)
    read = Path.read_text
    said = {Path("/proc/meminfo"): "MemTotal: 99999999 kB\nMemAvailable: 1 kB\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, **how: said.get(path) or read(path, **how))
    with pytest.raises(ExportError, match=r"memory: expected .* of main memory free to merge, got '0\.0 MiB'"):
        merge_16bit(*tuned, tmp_path / "merged")
    assert names(tmp_path) == []


def test_models_that_cannot_be_merged_are_refused(tuned, tiny_mistral, tmp_path):
    """No adapter, an adapter merged in already, and unknown arguments each say what is wrong."""
    with pytest.raises(ExportError, match="LoRA adapter"):
        merge_16bit(tuned[0].get_base_model(), tuned[1], tmp_path / "merged")
    other = tuned_mistral(tiny_mistral)
    other[0].merge_adapter()
    with pytest.raises(ExportError, match="not merged yet"):
        merge_16bit(*other, tmp_path / "merged")
    with pytest.raises(ConfigError, match="fp16 or bf16"):
        merge_16bit(*tuned, tmp_path / "merged", dtype="int8")
    assert names(tmp_path) == []


def test_overflow_in_fp16_is_refused(tiny_mistral, tmp_path):
    """Weights beyond fp16's range stop the merge and point to bf16, which takes them."""
    loaded = tuned_mistral(tiny_mistral)
    loaded[0].get_base_model().model.norm.weight.data[0] = 1e5
    with pytest.raises(ExportError, match="bf16"):
        merge_16bit(*loaded, tmp_path / "merged")
    assert names(tmp_path) == []
    assert merge_16bit(*loaded, tmp_path / "merged", dtype="bf16").dtype == "bf16"


UNSLOTH = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from helpers.model.load import TARGET_MODULES, import_unsloth
import_unsloth()
import torch
from unsloth import FastLanguageModel
from helpers.data.chat_templates import install_template
from helpers.export import measure_reference, merge_16bit, verify_merged
base, out = sys.argv[1], Path(sys.argv[2])
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=base, max_seq_length=512, load_in_4bit=False, dtype=torch.float32, trust_remote_code=False
)
install_template(tokenizer, "chat")
model = FastLanguageModel.get_peft_model(
    model, r=16, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=list(TARGET_MODULES),
    use_gradient_checkpointing=False, random_state=1,
)
torch.manual_seed(0)
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.05)
reference = measure_reference(model, tokenizer, [[{"role": "user", "content": "Hello"}]], max_new_tokens=6)
plain = merge_16bit(model, tokenizer, out / "plain")
verification = verify_merged(model, tokenizer, out / "plain", reference=reference)
print("RESULT " + json.dumps({"lines": verification.lines(), "passed": verification.passed, "dtype": plain.dtype}))
"""


@pytest.mark.slow
def test_a_model_patched_by_unsloth_is_merged_as_any_other(tiny_mistral, tmp_path):
    """With Unsloth's patched model in memory the merge passes its verification, in fp16 on every processor."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", UNSLOTH, str(tiny_mistral), str(tmp_path)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.split("RESULT ")[1])
    assert (result["passed"], result["dtype"]) == (True, "fp16"), result["lines"]


def test_stage_that_cannot_be_made_is_the_disk_s_error(tmp_path):
    """A parent that is a file is reported as such."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="room for the export, got 'a file stands in the way"),
        staged_folder(tmp_path / "file" / "out"),
    ):
        pass
