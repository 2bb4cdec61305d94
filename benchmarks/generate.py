#!/usr/bin/env python3
"""How fast base and tuned answers are generated, beside Unsloth and plain transformers, in one run on one machine.

    python benchmarks/generate.py --model NF4_FOLDER --data ROWS.json [--prompts 32 --new 64 --steady 512]
                                  [--rounds 3] [--budget SECONDS] [--only unsloth,transformers,ours]
    python benchmarks/generate.py --check [--model NF4_FOLDER --data ROWS.json]
    python benchmarks/generate.py --phases --model NF4_FOLDER --data ROWS.json

Each engine runs in a process of its own; a record keeps what it gave, and tables of ratios follow.
NF4_FOLDER is what scripts/random_mistral writes, or any 4-bit Mistral; ROWS.json holds rows with Alpaca's columns. The
adapter is LoRA r=16 on all linear layers with a random B (standard deviation 0.02). Every answer has the full number of
tokens.

Loading is not counted. For the peers a short answer before the clock starts is not counted either; for ours everything
is: unpacking and copying the weights, adding the adapter, prefill, captures. Unsloth one by one is measured on few
prompts and extrapolated by tokens per second.

--check compares the tokens: on small float32 models they must equal transformers' greedy loop exactly; for the large
model in 16 bit the share of the first 16 tokens that agree is given, beside the share by which transformers agrees with
itself at another batch size. --phases times the parts and profiles a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import bench
import tables
from tables import ARMS

ENGINES = ("unsloth", "transformers", "ours")
"""What is compared: names for --only."""


def main() -> int:
    """Measure the engines, or check or time the parts; each in a process of its own, one of which this may be."""
    options = _options()
    if options.one:
        bench.say({"results": WORKERS[options.one](options)})
        return 0
    if options.check or options.phases:
        names = ["phases"] if options.phases else ["check-small", *(["check-large"] if options.model else [])]
        results = [each for name in names for each in _start(name)]
        return 0 if all(each.get("ok", True) for each in results) else 1
    about = {"prompts": options.prompts, "new": options.new, "steady": options.steady}
    record = bench.measure_all(__file__, ENGINES, options, expected=60, about=about)
    if record["runs"]:
        print(tables.joined([*tables.answers(record), "", *tables.lasting(record)]))
    return 0


def _options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the model, NF4 on a GPU")
    parser.add_argument("--data", help="rows with Alpaca's columns: .json, .jsonl, .csv or .parquet")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=64, help="tokens an answer")
    parser.add_argument("--steady", type=int, default=512, help="prompts of the steady state, tuned arm; 0 for none")
    parser.add_argument("--peer-prompts", type=int, default=4, help="prompts that Unsloth answers one by one")
    parser.add_argument("--peer-batch", type=int, default=32, help="batch of transformers + PEFT")
    parser.add_argument("--style", default="chat", choices=("chat", "alpaca"))
    parser.add_argument("--check", action="store_true", help="compare tokens instead of times")
    parser.add_argument("--phases", action="store_true", help="time the parts of ours, and profile a step")
    bench.add_options(parser, "generate.json")
    options = parser.parse_args()
    if not options.check and not (options.model and options.data):
        parser.error("--model and --data are needed")
    return options


def _start(name: str) -> list[dict[str, Any]]:
    """Run one worker in a fresh process, show what it prints, and return its results."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=bench.environment())
    results = []
    for line in process.stdout or ():
        if line.startswith(bench.MARK):
            results += json.loads(line.removeprefix(bench.MARK))["results"]
        else:
            print(f"[{name}] {line}", end="", flush=True)
    if process.wait():
        results.append({"name": name, "ok": False, "error": f"exit status {process.returncode}"})
    for each in results:
        print(json.dumps(each), flush=True)
    return results


def unsloth_worker(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer one by one with Unsloth, as its notebooks do."""
    loaded = _load_ours(options)
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(loaded.model)
    ids = _ids(loaded.tokenizer, options, options.peer_prompts)
    return _peer("unsloth, one by one", loaded.model, loaded.tokenizer, ids, options.new, 1)


def transformers_worker(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer in batches with transformers and PEFT, unpatched."""
    model, tokenizer = _load_plain(options)
    batch = options.peer_batch
    ids = _ids(tokenizer, options, batch)
    return _peer(f"transformers + PEFT, batch {batch}", model, tokenizer, ids, options.new, batch)


def ours_worker(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer both arms with `fast_generate`, everything counted; then the steady state."""
    loaded = _load_ours(options)
    results = [_ours("ours, warm-up counted", loaded, options, options.prompts, ARMS)]
    if options.steady:
        results.append(_ours("ours, steady state", loaded, options, options.steady, ("tuned",)))
    return results


def phases_worker(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the parts: weights of both arms, prefill, capture, and a step, captured or not, for several batches."""
    import torch

    from helpers.model.decoding.engine import DecoderSession
    from helpers.model.decoding.forward import decoder_math
    from helpers.model.decoding.weights import DecoderWeights

    loaded = _load_ours(options)
    ids = _ids(loaded.tokenizer, options, 128)
    device, times = _device(), {}
    with decoder_math(device):
        weights = _timed(times, "allocate_s", lambda: DecoderWeights(loaded.model, _dtype()))
        for arm in ("base", "tuned", "base"):
            _timed(times, f"{arm}_weights_s", lambda arm=arm: weights.use(arm))
        results = [{"name": "weights"} | times]
        for rows in (1, 8, 32, 128):
            for graphs in (True, False) if rows == 32 else (True,):
                session = DecoderSession(weights, rows, 512, graphs=graphs)
                results.append(_phases(session, ids[:rows], torch))
    return results


def _phases(session: Any, ids: list[list[int]], torch: Any) -> dict[str, Any]:
    """Time prefill, the first step with its capture, and 16 more steps of one session; profile 32 captured rows."""
    ids, times = [each[:192] for each in ids], {}
    for turn in ("first", "second"):
        _timed(times, f"prefill_{turn}_s", lambda: session.prefill(range(len(ids)), ids))
    _timed(times, "first_step_s", lambda: session.advance(1, 256))
    _timed(times, "16_steps_s", lambda: session.advance(16, 256))
    if session.rows == 32 and session.graphs:
        _profile(session, torch)
    step = times["16_steps_s"] / 16
    return {
        "name": "step",
        "rows": session.rows,
        "graphs": session.graphs,
        "step_ms": round(step * 1e3, 3),
        "tokens_per_s": round(session.rows / step),
    } | times


def _profile(session: Any, torch: Any) -> None:
    """Print where the GPU's time goes in eight steps, or why that cannot be seen here."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            session.advance(8, 256)
            torch.cuda.synchronize()
        print(profiled.key_averages().table(sort_by="self_device_time_total", row_limit=18, max_name_column_width=60))
    except RuntimeError as error:
        print(f"no profile: {error}")


def check_small_worker(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare tokens with transformers' loop on small float32 models: they must be equal."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = False
    common = {"vocab_size": 4096, "pad_token_id": 0}
    mistral = MistralConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=None,
        **common,
    )
    llama = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        **common,
    )
    models = (MistralForCausalLM(mistral), LlamaForCausalLM(llama))
    return [each for model in models for each in _compare_small(model)]


def _compare_small(model: Any) -> list[dict[str, Any]]:
    """Spread a model's logits, put a random adapter on it, and compare both arms, with and without EOS."""
    import torch

    torch.manual_seed(0)
    for key, weight in model.named_parameters():
        torch.nn.init.uniform_(weight, 0.5, 1.5) if "norm" in key else torch.nn.init.normal_(weight, std=0.05)
    model.generation_config.eos_token_id = None
    model = _adapt(model.to(_device()))
    numbers = torch.Generator().manual_seed(7)
    ids = [torch.randint(3, 4096, (n,), generator=numbers).tolist() for n in (5, 130, 1, 17, 300, 3, 127, 60)]
    simple = _both_arms(model, lambda: [_answer(model, 0, [each], 40)[0] for each in ids])
    eos = simple["base"][0][12]
    ended = {arm: [a[: a.index(eos) + 1] if eos in a else a for a in simple[arm]] for arm in simple}
    return [_compare_rows(model, ids, rows, simple, ended, eos) for rows in (3, 8)]


def _compare_rows(
    model: Any, ids: list[list[int]], rows: int, simple: dict[str, Any], ended: dict[str, Any], eos: int
) -> dict[str, Any]:
    """Compare ours with the expected tokens, for one number of rows; all must be equal, and the steps captured."""
    found, captured = _decode(model, ids, 40, rows, None)
    short, _ = _decode(model, ids, 40, rows, eos)
    equal = {arm: sum(a == b for a, b in zip(found[arm], simple[arm], strict=True)) for arm in ARMS}
    return {
        "name": f"{model.config.model_type}, float32, {rows} rows",
        "prompts": len(ids),
        "equal": equal,
        "ok": found == simple and short == ended and bool(captured or _device().type == "cpu"),
        "equal_with_eos": short == ended,
        "captured_lengths": captured,
        "distinct_tokens": len({token for answer in simple["base"] for token in answer}),
    }


def check_large_worker(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Give the share of the first 16 tokens that agree with transformers one by one, in 16 bit."""
    model, tokenizer = _load_plain(options)
    ids, pad = _ids(tokenizer, options, 8), tokenizer.pad_token_id
    alone = _both_arms(model, lambda: [_answer(model, pad, [each], 16)[0] for each in ids])
    together = _both_arms(model, lambda: _answer(model, pad, ids, 16))
    found, captured = _decode(model, ids, 16, 8, None)
    return [
        {
            "name": f"agreement of the first 16 tokens, {arm}",
            "prompts": len(ids),
            "captured_lengths": captured,
            "ours_with_transformers_one_by_one": _agreement(found[arm], alone[arm]),
            "ours_with_transformers_batch_8": _agreement(found[arm], together[arm]),
            "transformers_batch_8_with_one_by_one": _agreement(together[arm], alone[arm]),
        }
        for arm in ARMS
    ]


def _agreement(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> float:
    """Return the share of tokens before the first that differs."""
    total = sum(map(len, right))
    same = 0
    for a, b in zip(left, right, strict=True):
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(b))
    return round(same / total, 4)


def _decode(
    model: Any, ids: list[list[int]], new: int, rows: int, eos: int | None
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Answer with ours, both arms in one session; returns the tokens and the cache lengths that were captured."""
    from helpers.model.decoding.engine import DecoderSession, Schedule, row_length
    from helpers.model.decoding.forward import decoder_math
    from helpers.model.decoding.weights import DecoderWeights

    with decoder_math(_device()):
        weights, found = DecoderWeights(model, model.get_base_model().lm_head.weight.dtype), {}
        session = DecoderSession(weights, rows, row_length(ids, new))
        for arm in ARMS:
            weights.use(arm)
            found[arm] = Schedule(session, ids, new, eos).run()
        return found, session.captured_lengths()


def _peer(name: str, model: Any, tokenizer: Any, ids: list[list[int]], new: int, batch: int) -> list[dict[str, Any]]:
    """Time a peer on both arms, after a short answer that is not counted."""

    def run() -> tuple[float, int]:
        _answer(model, tokenizer.pad_token_id, ids[:batch], 8)
        began, tokens = _now(), 0
        for start in range(0, len(ids), batch):
            tokens += sum(map(len, _answer(model, tokenizer.pad_token_id, ids[start : start + batch], new)))
        return _now() - began, tokens

    return [
        {
            "name": name,
            "arm": arm,
            "prompts": len(ids),
            "new": new,
            "seconds": round(seconds, 3),
            "tokens": tokens,
            "tokens_per_s": round(tokens / seconds, 2),
        }
        for arm, (seconds, tokens) in _both_arms(model, run).items()
    ]


def _ours(name: str, loaded: Any, options: argparse.Namespace, count: int, arms: Sequence[str]) -> dict[str, Any]:
    """Time one call of `fast_generate`, warm-up included."""
    import torch

    from helpers.model.decoding import DecodePlan, fast_generate

    questions = list(islice(cycle(_questions(options)), count))
    plan = None if torch.cuda.is_available() else DecodePlan("graphs", "steps that are not captured", 32)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = _now()
    how: dict[str, Any] = {"max_new_tokens": options.new, "arms": arms, "plan": plan, "ignore_eos": True}
    answers = fast_generate(loaded.model, loaded.tokenizer, questions, **how)
    seconds = _now() - began
    tokens = sum(answer.tokens for arm in answers.values() for answer in arm)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "name": name,
        "arm": "+".join(arms),
        "prompts": count,
        "new": options.new,
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_gib": round(peak, 2),
    }


def _answer(model: Any, pad: int, ids: list[list[int]], new: int) -> list[list[int]]:
    """Answer one left-padded batch with the model's own greedy loop, all answers of the same length."""
    import torch

    width = max(map(len, ids))
    rows = torch.tensor([[pad] * (width - len(each)) + each for each in ids], device=_device())
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in ids], device=_device())
    with torch.no_grad():
        whole = model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=pad,
        )
    return whole[:, width:].tolist()


def _both_arms(model: Any, run: Callable[[], Any]) -> dict[str, Any]:
    """Run something with the adapter on, then off."""
    tuned = run()
    with model.disable_adapter():
        return {"tuned": tuned, "base": run()}


def _load_ours(options: argparse.Namespace) -> Any:
    """Load the model through Unsloth, as the notebooks do, with a random adapter."""
    from helpers.core.config import AdapterConfig, ModelConfig
    from helpers.model.load import attach_adapter, load_model

    config = ModelConfig(model_name=options.model, load_in_4bit=_device().type == "cuda")
    loaded = load_model(config, style=options.style)
    attach_adapter(loaded, AdapterConfig(lora_rank=16, lora_alpha=16), seed=0, gradient_checkpointing=False)
    _randomize(loaded.model)
    return loaded


def _load_plain(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model with transformers and PEFT alone, with a random adapter."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from helpers.data.chat_templates import install_template

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    install_template(tokenizer, options.style)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=_dtype(), device_map={"": str(_device())})
    model.generation_config.eos_token_id = None
    return _adapt(model), tokenizer


def _adapt(model: Any) -> Any:
    """Put LoRA r=16 on all linear layers, with a random B."""
    from peft import LoraConfig, get_peft_model

    from helpers.model.load import TARGET_MODULES

    wrapped = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=list(TARGET_MODULES)))
    _randomize(wrapped)
    return wrapped.eval()


def _randomize(model: Any) -> None:
    """Give the adapter's B, which begins at zero, random values, so that the arms differ."""
    import torch

    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)


def _questions(options: argparse.Namespace) -> list[Any]:
    """Return the rows' prompts as messages."""
    from helpers.data.prompts import build_prompt
    from helpers.data.readers import read_file

    rows = read_file(options.data).rows[: max(options.prompts, options.steady, 128)]
    return [build_prompt(row["instruction"], row.get("input") or "", style=options.style) for row in rows]


def _ids(tokenizer: Any, options: argparse.Namespace, count: int) -> list[list[int]]:
    """Return the first prompts' token ids."""
    from helpers.data.chat_templates import render

    texts = [render(tokenizer, each, answer_next=True) for each in islice(cycle(_questions(options)), count)]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _timed(times: dict[str, float], name: str, run: Callable[[], Any]) -> Any:
    """Run something, and note the seconds until the GPU has done it."""
    began = _now()
    result = run()
    times[name] = round(_now() - began, 4)
    return result


def _now() -> float:
    """Return the time in seconds once the GPU has nothing left to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _device() -> Any:
    """Return the first GPU, or the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _dtype() -> Any:
    """Return bf16 on a GPU, float32 on a CPU."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


WORKERS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "unsloth": unsloth_worker,
    "transformers": transformers_worker,
    "ours": ours_worker,
    "phases": phases_worker,
    "check-small": check_small_worker,
    "check-large": check_large_worker,
}


if __name__ == "__main__":
    sys.exit(main())
