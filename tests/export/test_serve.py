"""Serving: Ollama gets the tokens of the training, vLLM what it asks for, and llama.cpp computes the same."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace

import gotpl
import pytest
from tuned import tuned_mistral

from helpers.core.errors import ExportError
from helpers.data.chat_templates import ALPACA, CHATML, MISTRAL_V3, render
from helpers.data.prompts import alpaca_block
from helpers.export.gain import HeldOut, share_of_gain_kept
from helpers.export.gguf import export_gguf
from helpers.export.loadable import save_adapter
from helpers.export.merge import merge_16bit
from helpers.export.reference import answer_greedily
from helpers.export.serve import VLLM_RANKS, modelfile, serving_lines
from helpers.export.verify import measure_gain
from helpers.model.scoring import RowScore, score_rows
from helpers.model.smollm2 import smollm2_folder

WORDS = ("risk", "supplier", " two", "\n- item", "Größe", "😀", '"quoted"', "[x]", "{{ y }}", "<b>", "  ", "1,234.5")


def conversations(count, *, turns=3, seed=0):
    """Generated conversations that end with the user's message: (system prompt or "", messages)."""
    draw = random.Random(seed)
    text = lambda: " ".join(draw.choices(WORDS, k=draw.randint(1, 6))).strip() or "x"  # noqa: E731
    for _ in range(count):
        pairs = [("user", "assistant")[i % 2] for i in range(2 * draw.randint(0, turns - 1) + 1)]
        yield draw.choice(["", text()]), [{"role": role, "content": text()} for role in pairs]


def asked_of_ollama(template, system, messages, *, space=False):
    """What Ollama makes of a conversation: its template in Go's language, rendered."""
    file = modelfile("model.gguf", template, system=system, eos="</s>")
    go = re.search(r'TEMPLATE """(.*?)"""', file, re.DOTALL).group(1)
    system_message = [{"role": "system", "content": system}] if system else []
    shown = [
        {"Role": m["role"], "Content": " " * (space and m["role"] == "assistant") + m["content"]}
        for m in system_message + messages
    ]
    return gotpl.render(go, {"System": system, "Messages": shown})


def test_mistral_as_trained(mistral_tokenizer):
    """For generated conversations Ollama's text, behind llama.cpp's BOS, has the token ids of the training."""
    for system, messages in conversations(100):
        whole = [{"role": "system", "content": system}, *messages] if system else messages
        trained = mistral_tokenizer(render(mistral_tokenizer, whole, answer_next=True), add_special_tokens=False)
        ollama = mistral_tokenizer(
            "<s>" + asked_of_ollama(MISTRAL_V3, system, messages, space=True), add_special_tokens=False
        )
        assert ollama["input_ids"] == trained["input_ids"]


def test_chatml_as_trained():
    """ChatML's text is the training's, character for character."""
    import jinja2

    jinja = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHATML)
    for system, messages in conversations(100, seed=1):
        whole = [{"role": "system", "content": system}, *messages] if system else messages
        expected = jinja.render(messages=whole, add_generation_prompt=True)
        assert asked_of_ollama(CHATML, system, messages) == expected


def test_alpaca_text_as_trained():
    """An instruction becomes Stanford's block; an answer in the history ends with EOS."""
    asked = [{"role": "user", "content": "Name a prime."}]
    assert asked_of_ollama(ALPACA, "", asked) == alpaca_block("Name a prime.")
    more = [*asked, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Another."}]
    expected = alpaca_block("Name a prime.") + "Two.</s>" + alpaca_block("Another.")
    assert asked_of_ollama(ALPACA, "", more) == expected


def test_modelfile_says_what_ollama_would_guess_wrong():
    """File, template, system prompt, stops, and greedy decoding instead of Ollama's temperature of 0.8."""
    lines = modelfile("model-q8_0.gguf", CHATML, system="Be brief.", max_seq_length=1024).splitlines()
    assert lines[0] == "FROM ./model-q8_0.gguf"
    assert lines[-6:] == [
        'SYSTEM """Be brief."""',
        'PARAMETER stop "<|im_start|>"',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER num_ctx 1024",
    ]


@pytest.mark.parametrize(("template", "system"), [("{{ messages }}", None), (CHATML, 'a """ b'), (ALPACA, "Be brief.")])
def test_what_a_modelfile_cannot_say_is_refused(template, system):
    """A template of somebody else, a prompt that would end its own quotes, a prompt that the style has no place for."""
    with pytest.raises(ExportError):
        modelfile("model.gguf", template, system=system)


@pytest.mark.parametrize(("rank", "limit"), [(4, 8), (16, 16), (24, 32), (300, 320)])
def test_vllm_is_told_a_rank_that_it_takes(rank, limit):
    """`--max-lora-rank` is the smallest of its values that holds the adapter's rank."""
    line = serving_lines("adapter", "ada/tuned", base="unsloth/mistral-7b-instruct-v0.3-bnb-4bit", rank=rank)
    vllm, loras = line.split(" --lora-modules ")
    assert vllm == f"vllm serve unsloth/mistral-7b-instruct-v0.3 --enable-lora --max-lora-rank {limit}"
    assert loras == "tuned=ada/tuned"
    assert limit in VLLM_RANKS


def test_adapter_is_what_vllm_takes(tiny_mistral, tmp_path):
    """VLLM's PEFTHelper wants r, lora_alpha and target_modules, no bias, DoRA or modules_to_save, and known names."""
    from safetensors import safe_open

    save_adapter(*tuned_mistral(tiny_mistral), tmp_path / "adapter", base="ada/base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert (config["bias"], config["use_dora"], config["modules_to_save"]) == ("none", False, None)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    pattern = r"base_model\.model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.lora_[AB]\.weight"
    assert [name for name in names if not re.fullmatch(pattern, name)] == []


def chatml_model(folder):
    """Write a tiny Llama with random weights and SmolLM2's tokenizer, which is trained in ChatML."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["Mistral, f16", "Mistral, q8_0", "ChatML, q8_0"])
def served(request, tiny_mistral, tmp_path_factory):
    """A tuned tiny model: model and tokenizer in memory, llama.cpp with its file, how near that is, and the folder."""
    import xllamacpp

    folder = tmp_path_factory.mktemp("served")
    style, quantization = request.param.split(", ")
    model, tokenizer = tuned_mistral(tiny_mistral if style == "Mistral" else chatml_model(folder / "source"))
    merge_16bit(model, tokenizer, folder / "merged")
    written = export_gguf(folder / "merged", folder / "gguf", quantization=quantization, system="Be brief.")
    assert sorted(p.name for p in (folder / "gguf").iterdir()) == [
        "Modelfile",
        "export.json",
        f"model-{quantization}.gguf",
    ]
    options = xllamacpp.CommonParams()
    options.model.path = written.file
    options.n_ctx, options.n_parallel, options.warmup, options.cpuparams.n_threads = 1024, 1, False, 1
    options.n_predict, options.verbosity = 4, -1
    near = {"f16": 5e-3, "q8_0": 0.05}[quantization]
    return model, tokenizer, xllamacpp.Server(options), near, folder


def whole(system, messages):
    """A conversation with its system prompt."""
    return [{"role": "system", "content": system}, *messages] if system else messages


def next_tokens(server, ids):
    """The ten likeliest next tokens by llama.cpp: id -> log-probability."""
    found = server.handle_completions({"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 10})
    shown = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert len(shown) == 10
    return {each["id"]: each["logprob"] for each in shown}


@pytest.mark.slow
class TestLlamaCpp:
    """A real llama.cpp, from the wheel xllamacpp."""

    def test_it_counts_the_tokens_of_the_training(self, served):
        """Its own chat template, read from the file, and its tokenizer give as many prompt tokens as ours."""
        _, tokenizer, server, _, _ = served
        for system, messages in conversations(20, seed=2):
            text = render(tokenizer, whole(system, messages), answer_next=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            asked = {"messages": whole(system, messages), "max_tokens": 1, "temperature": 0}
            assert server.handle_chat_completions(asked)["usage"]["prompt_tokens"] == len(ids)

    def test_it_answers_a_question(self, served):
        """A chat request gets as many tokens as it asked for."""
        asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}
        assert served[2].handle_chat_completions(asked)["usage"]["completion_tokens"] == 3

    def test_it_computes_the_same_probabilities(self, served):
        """The log-probabilities of the likeliest next tokens are those in memory, within the quantization's error."""
        import torch

        model, tokenizer, server, near, _ = served
        text = render(tokenizer, [{"role": "user", "content": "Name three risks."}], answer_next=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        for token, logprob in next_tokens(server, ids).items():
            assert math.isclose(logprob, wanted[token].item(), abs_tol=near)

    def test_it_keeps_as_much_of_the_gain_as_is_said(self, served):
        """The losses from the file's weights, run by transformers, are llama.cpp's: its own rounding adds little."""
        model, _, server, _, folder = served
        prompts = [[1, 5 + i, 7, 900 + i, 40] for i in range(12)]
        rows = [
            {"input_ids": [*prompt, *answer], "completion_mask": [0] * len(prompt) + [1] * len(answer)}
            for prompt, answer in zip(prompts, answer_greedily(model, prompts, 4), strict=True)
        ]
        after = score_rows(model, rows)
        heldout = HeldOut(rows, [replace(s, nll=s.nll + 2 + i / 10) for i, s in enumerate(after)], after)
        said = measure_gain(folder / "gguf", heldout, merged=folder / "merged")
        losses = [
            [-next_tokens(server, ids[:at])[ids[at]] for at in range(5, len(ids))]
            for ids in (row["input_ids"] for row in rows)
        ]
        found = share_of_gain_kept(
            heldout.base, after, [RowScore(sum(each[:-1]), each[-1], len(each) - 1) for each in losses]
        )
        assert said.share == pytest.approx(1.0, abs=0.02)
        assert found.share == pytest.approx(said.share, abs=0.01)
