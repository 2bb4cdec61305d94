"""Model cards: valid metadata, every section, nothing private."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import yaml
from tuned import tuned_mistral

from helpers.core.config import build_config
from helpers.core.runs import RunDirectory
from helpers.export.folders import zip_run
from helpers.export.gguf import GgufResult
from helpers.export.loadable import save_adapter
from helpers.export.merge import merge_16bit
from helpers.export.model_card import model_card, write_card
from helpers.export.verdict import Verification
from helpers.model.distance import Check

METRICS = {
    "eval_loss_before": 2.5,
    "eval_loss_after": 1.75,
    "supervised_tokens": 12345,
    "eval_loss_change": {"mean": -0.75, "low": -0.9, "high": -0.6, "rows": 24},
}
PASSED = Verification("adapter", (Check("greedy answers", True, "6 of 6 | equal."),))
FAILED = Verification("adapter", (Check("greedy answers", False, "0 of 6."),))


@pytest.fixture
def run(tmp_path):
    """A run with metrics and a manifest."""
    directory = RunDirectory(tmp_path / "dolly-test")
    directory.update_metrics(**METRICS)
    directory.update_manifest(versions={"trl": "1.15.0"}, hardware={"gpus": ["Tesla T4"]})
    return directory


def parts(card):
    """The metadata and the text."""
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def test_adapter_card_has_valid_metadata(run):
    """The keys that the Hub reads, with the names it knows."""
    meta, _ = parts(model_card(run, build_config("dolly", preset="colab-t4"), kind="adapter", verification=PASSED))
    assert meta == {
        "base_model": "unsloth/mistral-7b-instruct-v0.3-bnb-4bit",
        "base_model_relation": "adapter",
        "datasets": ["databricks/databricks-dolly-15k"],
        "language": "en",
        "license": "apache-2.0",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "qlora", "sft", "trl", "unsloth"],
    }


def test_merged_card_belongs_to_transformers(run):
    """A merged model is a fine-tune, loaded by transformers."""
    meta, text = parts(model_card(run, build_config("dolly", preset="colab-t4"), kind="merged", name="ada/tuned"))
    assert (meta["library_name"], meta["base_model_relation"]) == ("transformers", "finetune")
    assert 'name = "ada/tuned"' in text
    assert "AutoModelForCausalLM.from_pretrained(name" in text
    assert "vllm serve ada/tuned" in text
    assert "This export was not verified." in text


def test_card_states_losses_licence_and_verdict(run):
    """Losses with their interval, the data's licence, parameters, hardware, verdict."""
    _, text = parts(model_card(run, build_config("dolly", preset="colab-t4"), kind="adapter", verification=PASSED))
    assert "2.5000 before, 1.7500 after" in text
    assert "-0.7500, 95 % interval -0.9000 to -0.6000 (paired t, 24 rows)" in text
    assert "cc-by-sa-3.0" in text
    assert "| lora_rank | 16 |" in text
    assert "| GPU | Tesla T4 |" in text
    assert "PASS: reloaded in a fresh process" in text
    assert "6 of 6 \\| equal." in text


def test_failed_verification_is_written_in_large_letters(run):
    """A card never hides a failure."""
    assert "FAIL: this export is not the tuned model" in model_card(
        run, build_config("dolly", preset="colab-t4"), kind="adapter", verification=FAILED
    )


def test_loss_that_did_not_fall_is_said(run):
    """An interval that reaches zero is not sold as an improvement."""
    run.update_metrics(eval_loss_change={"mean": -0.1, "low": -0.3, "high": 0.1, "rows": 24})
    assert "The interval includes zero." in model_card(run, build_config("dolly", preset="colab-t4"), kind="adapter")
    run.update_metrics(eval_loss_change={"mean": 0.2, "low": 0.1, "high": 0.3, "rows": 24})
    assert "The loss rose." in model_card(run, build_config("dolly", preset="colab-t4"), kind="adapter")


def test_adapter_card_names_both_bases_and_their_commits(run):
    """The 4-bit model that was trained on, and the 16-bit one that CPUs, llama.cpp and vLLM need."""
    run.update_manifest(base_commit="a" * 40, data_commit="b" * 40)
    _, text = parts(model_card(run, build_config("dolly", preset="colab-t4"), kind="adapter"))
    assert "`unsloth/mistral-7b-instruct-v0.3-bnb-4bit`" in text
    assert "`unsloth/mistral-7b-instruct-v0.3`, which is not exactly the model" in text
    assert "vllm serve unsloth/mistral-7b-instruct-v0.3 --enable-lora --max-lora-rank 16" in text
    assert "| base model | mistral-7b-instruct at " + "a" * 40 in text
    assert "at " + "b" * 40 in text
    assert "transformers 4.46 and newer" in text


def test_smoke_card_says_that_the_base_was_rounded(run):
    """The bundled model is not exactly the one on the Hub."""
    meta, text = parts(model_card(run, build_config("alpaca", preset="smoke"), kind="adapter"))
    assert meta["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "rounded to 4 bit (Q4_1) before training" in text


def test_gguf_card_ends_in_ollama(run, tmp_path):
    """A GGUF folder gets a card of its own, with what was compared and three lines for Ollama."""
    (tmp_path / "model-q8_0.gguf").write_bytes(b"GGUF")
    result = GgufResult("model-q8_0.gguf", "q8_0", 21, 0.005, 0.01, 4)
    options = {"verification": result.verification(), "name": "ada/tuned"}
    meta, text = parts(write_card(tmp_path, run, build_config("dolly", preset="colab-t4"), **options).read_text())
    assert meta["library_name"] == "gguf"
    fetch = "hf download ada/tuned --local-dir tuned && cd tuned"
    assert f"```bash\n{fetch}\nollama create tuned -f Modelfile\nollama run tuned\n```" in text
    assert "PASS: read back and compared" in text
    assert "21 tensors compared; worst relative error 0.005 (limit 0.01)." in text


def test_what_cannot_be_told_is_said(run):
    """The third result is neither a pass nor a failure."""
    unclear = Verification("adapter", (Check("effect of the adapter", None, "Too faint."),))
    text = model_card(run, build_config("dolly", preset="colab-t4"), kind="adapter", verification=unclear)
    assert "CANNOT TELL: not proven." in text
    assert "| effect of the adapter | CANNOT TELL. Too faint. |" in text


STRANGER = """
import contextlib, io, re, sys, warnings
warnings.simplefilter("ignore")
code = re.search("```python\\n(.*?)```", open(sys.argv[1] + "/README.md").read(), re.DOTALL).group(1)
code = code.replace('name = "."', f"name = {sys.argv[2]!r}").replace("=200", "=4")
exec(code)
print("ANSWERED", answer.shape[1] - inputs["input_ids"].shape[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_loading_lines_work(run, kind, tiny_mistral, tmp_path):
    """Run as a stranger would: copied elsewhere, from that folder as they stand, and from another one with its path."""
    save = {"adapter": save_adapter, "merged": merge_16bit}[kind]
    save(*tuned_mistral(tiny_mistral), tmp_path / kind)
    write_card(tmp_path / kind, run, build_config("dolly", preset="colab-t4", system_prompt="Be brief."))
    copy = shutil.copytree(tmp_path / kind, tmp_path / "elsewhere" / "downloaded")
    for place, name in ((copy, "."), (tmp_path, str(copy))):
        command = [sys.executable, "-c", STRANGER, str(copy), name]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert "ANSWERED 4" in done.stdout, done.stderr[-1000:]


def test_system_prompt_cannot_break_out_of_its_fence(run):
    """A prompt with code fences, tags and YAML in it stays text."""
    prompt = "```\n---\nlicense: mit\n---\n<script>alert(1)</script>\n````"
    meta, text = parts(model_card(run, build_config("dolly", preset="colab-t4", system_prompt=prompt), kind="adapter"))
    assert meta["license"] == "apache-2.0"
    assert f"`````text\n{prompt}\n`````" in text


def test_local_names_are_not_given_away(run, tmp_path):
    """Of a local model and a local file only the last part is shown, and the metadata names neither."""
    model, data = tmp_path / "secret" / "base", tmp_path / "secret" / "rows.jsonl"
    model.mkdir(parents=True)
    data.write_text("{}")
    config = build_config("dolly", preset="colab-t4", model_name=str(model), dataset_name=str(data))
    meta, text = parts(model_card(run, config, kind="adapter"))
    assert not {"base_model", "datasets", "license"} & meta.keys()
    assert "secret" not in text
    assert "`rows.jsonl`, licence: not known" in text


def test_write_card_sees_what_it_describes(run, tmp_path):
    """A folder with adapter_config.json gets an adapter's card, another a merged model's."""
    for name, library in (("adapter", "peft"), ("merged", "transformers")):
        folder = tmp_path / name
        folder.mkdir()
        if name == "adapter":
            (folder / "adapter_config.json").write_text(json.dumps({}))
        path = write_card(folder, run, build_config("dolly", preset="smoke"))
        assert parts(path.read_text())[0]["library_name"] == library


def test_the_card_says_how_much_of_the_gain_is_kept(run):
    """Of this export; and of the base that others run it on, that it was not measured, or what was."""
    config = build_config("dolly", preset="colab-t4")
    kept = {"gain_kept": {"text": "Held-out gain kept: 99.0% of 0.750 nats a token, 24 rows."}}
    card = model_card(run, config, kind="adapter", verification=replace(PASSED, numbers=kept))
    assert "Held-out gain kept: 99.0%" in card
    assert "On `unsloth/mistral-7b-instruct-v0.3`, which others run it on: not measured (`score_16bit_base`)." in card
    both = {**kept, "gain_kept_16bit": {"text": "On a/b: Held-out gain kept: 80.0%."}}
    card = model_card(run, config, kind="adapter", verification=replace(PASSED, numbers=both))
    assert "On a/b: Held-out gain kept: 80.0%." in card
    assert "not measured" not in card


def test_the_zip_holds_what_one_takes_along(run):
    """Adapter with card, script and figures, read back; merged model, checkpoints and hidden files stay."""
    for name in ("adapter/README.md", "adapter/w.safetensors", "merged/model.safetensors", "checkpoints/x", ".lock"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)
    (run.path / "train.py").write_text("pass")
    names = ["adapter/README.md", "adapter/w.safetensors", "manifest.json", "metrics.json", "train.py"]
    for _ in range(2):  # a second one takes the place of the first
        archive = zip_run(run)
        assert archive == run.path / "dolly-test.zip"
        with zipfile.ZipFile(archive) as file:
            assert sorted(file.namelist()) == [f"dolly-test/{name}" for name in names]
            assert file.read("dolly-test/adapter/w.safetensors") == b"adapter/w.safetensors"
    assert not (run.path / ".dolly-test.zip").exists()
