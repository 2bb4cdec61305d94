"""GGUF files: written from a merged model, read back by our check and by transformers' own loader."""

from __future__ import annotations

import json
import shutil
import stat

import pytest
from tuned import tuned_mistral

from helpers.core.errors import ConfigError, ExportError, StackError
from helpers.export.folders import RECORD
from helpers.export.gguf import export_gguf
from helpers.export.gguf_format import BYTE, CONTROL, NORMAL, check_gguf, read_tokenizer
from helpers.export.merge import merge_16bit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def merged(tiny_mistral, tmp_path_factory):
    """A merged tiny Mistral in fp16. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("exports") / "merged"
    merge_16bit(*tuned_mistral(tiny_mistral), folder)
    return folder


@pytest.fixture(scope="module")
def written(merged, tmp_path_factory):
    """Its GGUF folder in f16. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("exports") / "gguf"
    return folder, export_gguf(merged, folder, quantization="f16")


def test_f16_keeps_every_weight(written):
    """21 tensors without any error, in one file, with a Modelfile and a record."""
    folder, result = written
    assert (result.tensors, result.quantization) == (21, "f16")
    assert result.worst_error < 1e-6
    assert sorted(p.name for p in folder.iterdir()) == ["Modelfile", RECORD, "model-f16.gguf"]
    assert result.bytes == (folder / "model-f16.gguf").stat().st_size


def test_transformers_reads_the_same_model(written, merged):
    """A loader that knows nothing of this package gets the same logits: names, shapes and row order are right."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[1, 3, 23325, 4, 1763, 1228, 11633]])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(written[0], gguf_file="model-f16.gguf", dtype=torch.float32)(
            ids
        ).logits
        ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
    assert (theirs - ours).abs().max() < 1e-5
    assert ours.std() > 0.1


def test_q8_0_is_half_the_size_and_within_its_error(merged, tmp_path):
    """8.5 bits a weight, half a per cent of error."""
    result = export_gguf(merged, tmp_path / "gguf", quantization="q8_0")
    assert 0.004 < result.worst_error < 0.007
    weights = 4_268_352 * 34 / 32
    assert weights < result.bytes < weights + 2_000_000


def test_vocabulary_is_sentencepieces(merged):
    """Types and merge order are those of Mistral's own SentencePiece model."""
    import mistral_common
    from sentencepiece import SentencePieceProcessor

    source = mistral_common.__path__[0] + "/data/mistral_instruct_tokenizer_240323.model.v3"
    pieces = SentencePieceProcessor(model_file=source)
    found = read_tokenizer(merged, 32768)
    tokens, types, scores = (found.pop(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "scores"))
    assert found.pop("tokenizer.chat_template").startswith("{")
    assert found == {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert [types[i] for i in (1, 3, 771, 20000)] == [CONTROL, CONTROL, BYTE, NORMAL]
    learned = [i for i in range(1100, 32000) if not pieces.is_unused(i) and pieces.get_score(i) < 0][:20000]
    by_score = sorted(learned, key=lambda i: -pieces.get_score(i))
    assert sorted(learned, key=lambda i: -scores[i]) == by_score
    assert all(tokens[i] == pieces.id_to_piece(i) for i in learned)


def test_metadata_names_the_model_and_its_ends(written):
    """EOS, template and sizes stand in the file as llama.cpp names them."""
    from gguf import GGUFReader

    reader = GGUFReader(written[0] / "model-f16.gguf")
    value = lambda key: reader.get_field(key).contents()  # noqa: E731
    assert value("general.architecture") == "llama"
    assert value("tokenizer.ggml.eos_token_id") == 2
    assert "[INST]" in value("tokenizer.chat_template")
    assert (value("llama.block_count"), value("llama.attention.head_count_kv"), value("llama.rope.freq_base")) == (
        2,
        2,
        1e6,
    )


def test_a_file_of_another_model_is_found(written, merged, tmp_path):
    """Reading back compares values, not only names: one changed matrix is an error."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(merged, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"] *= 1.01
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((merged / "config.json").read_text())
    with pytest.raises(ExportError, match=r"blk\.1\.attn_q\.weight"):
        check_gguf(written[0] / "model-f16.gguf", other, config, "f16")


def test_a_lost_template_is_found(written, merged, tmp_path):
    """Reading back compares the tokenizer too."""
    other = tmp_path / "other"
    shutil.copytree(merged, other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    config = json.loads((merged / "config.json").read_text())
    with pytest.raises(ExportError, match=r"chat_template"):
        check_gguf(written[0] / "model-f16.gguf", other, config, "f16")


def test_missing_llama_quantize_is_explained(merged, tmp_path, monkeypatch):
    """A type that only llama.cpp makes names what is missing, where to get it, and what works without."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"github\.com/ggml-org/llama\.cpp/releases") as caught:
        export_gguf(merged, tmp_path / "gguf", quantization="q4_k_m")
    assert "q8_0" in str(caught.value)
    assert not (tmp_path / "gguf").exists()


def test_failing_llama_quantize_leaves_nothing(merged, tmp_path, monkeypatch):
    """The tool's own message is passed on, and no half-written file stays."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "llama-quantize").write_text("#!/bin/sh\necho half > \"$2\"\necho 'out of cheese' >&2\nexit 3\n")
    (tools / "llama-quantize").chmod(stat.S_IRWXU)
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(tools))
    with pytest.raises(ExportError, match="out of cheese"):
        export_gguf(merged, tmp_path / "gguf", quantization="q4_k_m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tools"]


def test_quantized_file_that_lost_too_much_is_refused(merged, tmp_path, monkeypatch):
    """What llama-quantize wrote is read back as well: a stand-in that writes rubbish does not pass."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "llama-quantize").write_text(
        '#!/bin/sh\nhead -c 5000000 "$1" > "$2"; tail -c +5000001 "$1" | tr "\\001-\\100" "\\002-\\101" >> "$2"\n'
    )
    (tools / "llama-quantize").chmod(stat.S_IRWXU)
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(tools))
    with pytest.raises(ExportError, match="an error of at most"):
        export_gguf(merged, tmp_path / "gguf", quantization="q6_k")
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    "change", [{"model_type": "qwen3"}, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}]
)
def test_other_architectures_are_refused(merged, tmp_path, change):
    """A model that would be written wrongly is not written."""
    other = tmp_path / "other"
    shutil.copytree(merged, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(StackError, match="convert_hf_to_gguf"):
        export_gguf(other, tmp_path / "gguf")


def test_bad_arguments_are_refused(merged, tmp_path):
    """Unknown types, missing models and folders with other things in them."""
    with pytest.raises(ConfigError, match="gguf_quantization"):
        export_gguf(merged, tmp_path / "gguf", quantization="q1")
    with pytest.raises(ExportError, match="merge_16bit"):
        export_gguf(tmp_path / "nothing", tmp_path / "gguf")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"mine\.txt"):
        export_gguf(merged, tmp_path)
