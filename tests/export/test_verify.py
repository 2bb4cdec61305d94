"""Verification: a correct export passes, every planted fault fails."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny import build_mistral
from tuned import Stranger, quantize_nf4, rewrite, tuned_mistral

from helpers.core.errors import ExportError
from helpers.export import loadable
from helpers.export.gain import HeldOut, share_of_gain_kept
from helpers.export.merge import merge_16bit
from helpers.export.reference import answer_greedily, answer_logits, measure_reference
from helpers.export.tensors import base_tensors
from helpers.export.verify import verify_adapter, verify_merged
from helpers.model.distance import logits_of
from helpers.model.scoring import score_rows

PROMPTS = (
    ({"role": "user", "content": "Hello"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three risks."}),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models are slowed down by threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stranger():
    """A process without Unsloth, shared by these tests."""
    process = Stranger()
    yield process
    process.close()


@pytest.fixture
def shared_process(stranger, monkeypatch):
    """Let verification ask the shared process instead of starting one each time."""
    monkeypatch.setattr(subprocess, "run", stranger)


@pytest.fixture(scope="module")
def tuned(tiny_mistral):
    """A tiny Mistral with an adapter."""
    return tuned_mistral(tiny_mistral)


@pytest.fixture(scope="module")
def reference(tuned):
    """What it says."""
    return measure_reference(*tuned, PROMPTS, max_new_tokens=8)


@pytest.fixture(scope="module")
def merged(tuned, tmp_path_factory):
    """Its merged model in fp16. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("exports") / "merged"
    merge_16bit(*tuned, folder)
    return folder


@pytest.fixture(scope="module")
def tuned_nf4(tiny_mistral, tmp_path_factory):
    """The same adapter on the NF4 form of the tiny Mistral."""
    return tuned_mistral(quantize_nf4(tiny_mistral, tmp_path_factory.mktemp("models") / "nf4"))


@pytest.fixture(scope="module")
def deltas(tuned):
    """What the adapter adds, by tensor name."""
    return {t.name: t.delta("default") for t in base_tensors(tuned[0]) if t.layer is not None}


def save_adapter(model, tokenizer, folder):
    """Save the adapter; returns the folder."""
    loadable.save_adapter(model, tokenizer, folder)
    return folder


def failed(verification):
    """The names of the checks that failed."""
    return {check.name for check in verification.checks if check.passed is False}


def test_logits_of_sequences_side_by_side_are_those_of_each_alone(tuned, reference, monkeypatch):
    """In float32, eight in a pass; in 16 bit each has a pass of its own."""
    model = copy.deepcopy(tuned[0])
    sequences = [*reference.sequences, (1,), *reference.sequences * 3]
    starts = [1] * len(sequences)
    shapes, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda **named: shapes.append(named["input_ids"].shape[0]) or forward(**named)
    )
    together = answer_logits(model, sequences, starts)
    alone = [logits_of(model, ids)[:-1] for ids in sequences]
    assert shapes == [8, 1, *[1] * 9]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape
        assert one.allclose(other, atol=1e-4)
    shapes.clear()
    answer_logits(model.bfloat16(), sequences[:3], starts[:3])
    assert shapes == [1, 1, 1]


def test_side_by_side_prompts_get_the_answers_that_each_gets_alone(tuned, reference):
    """In float32; one that ends early keeps its EOS and nothing after it."""
    model, tokenizer = tuned
    prompts = [*reference.prompt_ids, reference.prompt_ids[0] + reference.sequences[0]]
    alone = [answer for prompt in prompts for answer in answer_greedily(model, [prompt], 8, tokenizer)]
    assert answer_greedily(model, prompts, 8, tokenizer) == alone
    third = alone[0][2]
    ends = SimpleNamespace(eos_token_id=third, pad_token_id=None)
    cut = [answer[: answer.index(third) + 1] if third in answer else answer for answer in alone]
    assert answer_greedily(model, prompts, 8, ends) == cut
    assert answer_greedily(model, [], 8, tokenizer) == []


def test_in_16_bit_each_prompt_is_alone(tuned, reference, monkeypatch):
    """Logits depend on the batch there."""
    model, tokenizer = copy.deepcopy(tuned[0]).bfloat16(), tuned[1]
    batches, generate = [], type(model).generate

    def counted(self, **named):
        batches.append(len(named["input_ids"]))
        return generate(self, **named)

    monkeypatch.setattr(type(model), "generate", counted)
    answer_greedily(model, reference.prompt_ids, 2, tokenizer)
    assert batches == [1] * len(reference.prompt_ids)


def test_adapter_passes(tuned, reference, tmp_path, shared_process):
    """A saved adapter is the tuned model to the last bit in float32."""
    verification = verify_adapter(*tuned, save_adapter(*tuned, tmp_path / "adapter"), reference=reference)
    assert failed(verification) == set()
    assert verification.passed
    assert verification.require() is verification
    assert verification.numbers["ratio"] < 1e-4
    assert verification.numbers["tuned_to_base_rms"] > 0.05


def test_merged_passes(tuned, reference, merged, shared_process):
    """A merged model in fp16 is within rounding of the tuned one, and its verdict is kept beside it."""
    verification = verify_merged(*tuned, merged, reference=reference)
    assert failed(verification) == set()
    assert verification.numbers["weights_worst_steps"] == 0
    assert verification.numbers["ratio"] < verification.thresholds["largest_ratio"]
    assert json.loads((merged / "export.json").read_text())["verification"]["passed"] is True


def test_a_merge_with_40_percent_of_the_adapter_is_seen(tuned, reference, merged, deltas, tmp_path, shared_process):
    """The process that loads the export scores the held-out rows: the share is that of the adapter scaled here."""
    rows = [{"input_ids": list(range(5 + i, 25 + i)), "completion_mask": [0] * 8 + [1] * 12} for i in range(40)]
    layers = [each for each in tuned[0].modules() if isinstance(getattr(each, "scaling", None), dict)]
    after = score_rows(tuned[0], rows)
    for layer in layers:
        layer.scaling["default"] *= 0.4
    scaled = score_rows(tuned[0], rows)
    for layer in layers:
        layer.scaling["default"] /= 0.4
    base = [replace(score, nll=score.nll + 0.6 + 0.1 * (i % 5)) for i, score in enumerate(after)]
    heldout = HeldOut(rows, base, after)
    wanted = share_of_gain_kept(base, after, scaled).share
    whole = verify_merged(*tuned, merged, reference=reference, heldout=heldout)
    assert whole.numbers["gain_kept"]["share"] == pytest.approx(1.0, abs=0.01)
    assert "Held-out gain kept: 100.0%" in whole.lines()
    part = rewrite(merged, tmp_path / "part", lambda n, t: (t.float() - 0.6 * deltas[n]).half() if n in deltas else t)
    kept = verify_merged(*tuned, part, reference=reference, heldout=heldout).numbers["gain_kept"]
    assert kept["share"] == pytest.approx(wanted, abs=0.02)
    assert abs(wanted - 1.0) > 0.05


def test_the_adapter_is_also_scored_on_the_base_in_16_bit(tuned, reference, tiny_mistral, tmp_path, shared_process):
    """What others run it on is another model than the 4-bit base: its share of the gain is a line of its own."""
    model, tokenizer = tuned
    loadable.save_adapter(model, tokenizer, tmp_path / "adapter", base="ada/base-bnb-4bit")
    other = str(shutil.copytree(tiny_mistral, tmp_path / "16bit"))
    rows = [{"input_ids": list(range(5 + i, 25 + i)), "completion_mask": [0] * 8 + [1] * 12} for i in range(40)]
    after = score_rows(model, rows)
    heldout = HeldOut(rows, [replace(s, nll=s.nll + 6 + i % 5) for i, s in enumerate(after)], after)
    asked = {"reference": reference, "base": str(tiny_mistral), "heldout": heldout, "base_16bit": other}
    proof = verify_adapter(model, tokenizer, tmp_path / "adapter", **asked)
    assert proof.passed
    assert proof.numbers["gain_kept_16bit"]["share"] == pytest.approx(1.0, abs=1e-3)
    assert [line.partition(" Held-out gain kept: ")[0].strip() for line in proof.lines().splitlines()[-2:]] == [
        "",
        f"On {other}:",
    ]


@pytest.mark.parametrize("share", [1.0, -1.0, -0.5, 1.0 / 8])
def test_wrong_share_of_the_adapter_fails(tuned, reference, merged, deltas, share, tmp_path, shared_process):
    """Merged twice, not at all, at half its alpha, or an eighth too strong: fails by logits and by weights."""
    broken = rewrite(
        merged, tmp_path / "broken", lambda n, t: (t.float() + share * deltas[n]).half() if n in deltas else t
    )
    verification = verify_merged(*tuned, broken, reference=reference)
    assert {"close to the tuned model", "weights in the files"} <= failed(verification)
    assert f"{1 + share:.2f} times the adapter's change" in verification.explanation
    with pytest.raises(ExportError, match="times the adapter's change"):
        verification.require()


def test_one_layer_left_out_fails(tuned, reference, merged, deltas, tmp_path, shared_process):
    """A single layer without its adapter is found, and named."""
    broken = rewrite(
        merged,
        tmp_path / "broken",
        lambda n, t: (t.float() - deltas[n]).half() if ".layers.1." in n and n in deltas else t,
    )
    verification = verify_merged(*tuned, broken, reference=reference)
    assert {"close to the tuned model", "weights in the files"} <= failed(verification)
    assert verification.numbers["weights_wrong"] == 7
    assert "layers.1." in verification.explanation


def test_swapped_embeddings_fail(tuned, reference, merged, tmp_path, shared_process):
    """Two swapped rows of the embedding are found in the file, also when no prompt uses them."""

    def swap(name, tensor):
        if name == "model.embed_tokens.weight":
            tensor[[30001, 30002]] = tensor[[30002, 30001]]
        return tensor

    verification = verify_merged(*tuned, rewrite(merged, tmp_path / "broken", swap), reference=reference)
    assert failed(verification) == {"weights in the files"}
    assert "model.embed_tokens.weight is not the base model's" in verification.explanation


def test_missing_template_fails(tuned, reference, merged, tmp_path, shared_process):
    """A tokenizer without its chat template fails, though all weights are right."""
    broken = tmp_path / "broken"
    shutil.copytree(merged, broken)
    (broken / "chat_template.jinja").unlink()
    settings = json.loads((broken / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (broken / "tokenizer_config.json").write_text(json.dumps(settings))
    verification = verify_merged(*tuned, broken, reference=reference)
    assert failed(verification) == {"tokenizer", "files for other readers"}
    assert "no chat template" in verification.explanation


def test_other_template_fails(tuned, reference, merged, tmp_path, shared_process):
    """A template that renders other tokens fails."""
    broken = tmp_path / "broken"
    shutil.copytree(merged, broken)
    template = (broken / "chat_template.jinja").read_text()
    (broken / "chat_template.jinja").write_text(template.replace("'[INST] '", "'[INST]'"))
    assert failed(verify_merged(*tuned, broken, reference=reference)) == {"tokenizer", "files for other readers"}


def test_adapter_with_wrong_alpha_fails(tuned, reference, tmp_path, shared_process):
    """An adapter whose configuration names another alpha is not the tuned model."""
    folder = save_adapter(*tuned, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))
    assert "close to the tuned model" in failed(verify_adapter(*tuned, folder, reference=reference))


def test_an_adapter_of_another_training_fails(tuned, reference, tiny_mistral, tmp_path, shared_process):
    """Another adapter's file in the folder, of the same shapes, is not the tuned model."""
    import torch

    other, tokenizer = tuned_mistral(tiny_mistral)
    for name, parameter in other.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    verification = verify_adapter(*tuned, save_adapter(other, tokenizer, tmp_path / "adapter"), reference=reference)
    assert failed(verification) >= {"weights in the files", "close to the tuned model"}


def test_an_adapter_on_another_base_fails(tuned, reference, tmp_path, shared_process):
    """The right file on a base with other weights is not the tuned model, and not merely hard to tell from it."""
    other = build_mistral(tmp_path / "other", seed=1)
    folder = save_adapter(*tuned, tmp_path / "adapter")
    verification = verify_adapter(*tuned, folder, reference=reference, base=str(other))
    assert failed(verification) >= {"base model", "close to the tuned model"}
    assert "another base" in verification.explanation


def test_an_adapter_on_a_smaller_base_fails(tuned, reference, tmp_path, shared_process):
    """PEFT only warns of matrices for blocks that the base lacks; the verdict does not."""
    other = build_mistral(tmp_path / "other", layers=1)
    folder = save_adapter(*tuned, tmp_path / "adapter")
    assert "base model" in failed(verify_adapter(*tuned, folder, reference=reference, base=str(other)))


def test_invisible_adapter_cannot_be_told(tiny_mistral, tmp_path, shared_process):
    """An adapter without effect is not proven: nothing shows that it is there. The notebook may go on."""
    loaded = tuned_mistral(tiny_mistral, std=0.0)
    reference = measure_reference(*loaded, PROMPTS, max_new_tokens=4)
    verification = verify_adapter(*loaded, save_adapter(*loaded, tmp_path / "adapter"), reference=reference)
    assert (verification.result, verification.passed, failed(verification)) == ("CANNOT TELL", None, set())
    assert "adapter and base cannot be told apart" in verification.explanation
    assert verification.require() is verification
    assert verification.as_dict()["passed"] is False


def test_faint_adapter_cannot_be_told_after_rounding(tiny_mistral, tmp_path, shared_process):
    """An effect below the rounding of bf16 is not proven: a merge without the adapter would look the same."""
    loaded = tuned_mistral(tiny_mistral, std=2e-5)
    reference = measure_reference(*loaded, PROMPTS, max_new_tokens=4)
    merge_16bit(*loaded, tmp_path / "merged", dtype="bf16")
    verification = verify_merged(*loaded, tmp_path / "merged", reference=reference)
    assert verification.result == "CANNOT TELL"
    assert "? " in verification.lines()


def test_rounding_drops_more_of_a_faint_adapter_in_bf16(tiny_mistral, tmp_path, shared_process):
    """On a base whose weights lie on bf16's grid, bf16 drops much of a faint adapter; fp16 hardly any, and passes."""
    loaded = tuned_mistral(tiny_mistral, std=1e-4)
    for tensor in base_tensors(loaded[0]):
        tensor.parameter.data = tensor.parameter.data.bfloat16().float()
    assert merge_16bit(*loaded, tmp_path / "bf16", dtype="bf16").kept < 0.85
    assert merge_16bit(*loaded, tmp_path / "fp16").kept > 0.99
    reference = measure_reference(*loaded, PROMPTS, max_new_tokens=4)
    assert failed(verify_merged(*loaded, tmp_path / "fp16", reference=reference)) == set()


@pytest.mark.slow
def test_nf4_base_in_really_fresh_processes(tuned_nf4, tmp_path):
    """Adapter and merged model of an NF4 base pass: dequantized weights are the same numbers."""
    loaded = tuned_nf4
    reference = measure_reference(*loaded, PROMPTS, max_new_tokens=8)
    adapter = verify_adapter(*loaded, save_adapter(*loaded, tmp_path / "adapter"), reference=reference)
    assert failed(adapter) == set()
    result = merge_16bit(*loaded, tmp_path / "merged")
    assert result.kept > 0.99
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    merged = verify_merged(*loaded, tmp_path / "merged", reference=reference)
    assert failed(merged) == set()
    assert merged.numbers["ratio"] < 0.01


def test_merged_onto_the_unquantized_base_fails(tuned_nf4, merged, tmp_path, shared_process):
    """The adapter of an NF4 base merged onto the 16-bit original is another model, and is told so."""
    shutil.copytree(merged, tmp_path / "merged")
    reference = measure_reference(*tuned_nf4, PROMPTS, max_new_tokens=4)
    verification = verify_merged(*tuned_nf4, tmp_path / "merged", reference=reference)
    assert {"close to the tuned model", "weights in the files"} <= failed(verification)


def test_damaged_file_is_an_export_error(tuned, reference, merged, tmp_path, shared_process):
    """Weights cut short are reported, not crashed on."""
    broken = tmp_path / "broken"
    shutil.copytree(merged, broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportError, match="a whole file model"):
        verify_merged(*tuned, broken, reference=reference)


def test_dead_worker_is_an_export_error(tuned, reference, merged, monkeypatch):
    """A process that ends without an answer gives an error with its last line."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ExportError, match="exit status 1"):
        verify_merged(*tuned, merged, reference=reference)


def test_folders_without_an_export_are_refused(tuned, reference, tmp_path):
    """Verification of an empty folder says what is missing."""
    with pytest.raises(ExportError, match=r"adapter_config\.json"):
        verify_adapter(*tuned, tmp_path, reference=reference)
    with pytest.raises(ExportError, match=r"config\.json"):
        verify_merged(*tuned, tmp_path, reference=reference)


def test_reference_needs_an_adapter(tuned):
    """A model without adapter has no effect to verify."""
    with pytest.raises(ExportError, match="LoRA adapter"):
        measure_reference(tuned[0].get_base_model(), tuned[1], PROMPTS)
