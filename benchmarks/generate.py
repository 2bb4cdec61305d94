#!/usr/bin/env python3
"""How fast base and tuned answers are generated, beside Unsloth and plain transformers, in one run on one machine.

    python benchmarks/generate.py --model NF4_FOLDER --data ROWS.json [--prompts 32 --new 64 --steady 512]
                                  [--rounds 3] [--budget SECONDS] [--only unsloth,transformers,ours]

Each engine runs in a process of its own; a record keeps what it gave, and tables of ratios follow.
NF4_FOLDER is what scripts/random_mistral writes, or any 4-bit Mistral; ROWS.json holds rows with Alpaca's columns. The
adapter is LoRA r=16 on all linear layers with a random B (standard deviation 0.02). Every answer has the full number of
tokens.

Loading is not counted. For the peers a short answer before the clock starts is not counted either; for ours everything
is: unpacking and copying the weights, adding the adapter, prefill, captures. Unsloth one by one is measured on few
prompts and extrapolated by tokens per second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import bench
import tables
from official import load_official
from tables import ARMS


def main() -> None:
    """Measure the engines, each in a process of its own, one of which this may be."""
    options = _options()
    if options.one:
        bench.say({"results": WORKERS[options.one](options)})
        return
    about = {"prompts": options.prompts, "new": options.new, "steady": options.steady}
    record = bench.measure_all(__file__, list(WORKERS), options, expected=60, about=about)
    if record["runs"]:
        print(f"{tables.answers(record)}\n\n{tables.lasting(record)}")


def _options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model, NF4 on a GPU")
    parser.add_argument("--data", required=True, help="rows with Alpaca's columns: .json, .jsonl, .csv or .parquet")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=64, help="tokens an answer")
    parser.add_argument("--steady", type=int, default=512, help="prompts of the steady state, tuned arm; 0 for none")
    parser.add_argument("--peer-prompts", type=int, default=4, help="prompts that Unsloth answers one by one")
    parser.add_argument("--peer-batch", type=int, default=32, help="batch of transformers + PEFT")
    parser.add_argument("--style", default="chat", choices=("chat", "alpaca"))
    bench.add_options(parser, "generate.json")
    return parser.parse_args()


def unsloth_worker(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer one by one with Unsloth, as its notebooks do."""
    model, tokenizer = _load_ours(options)
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(model)
    ids = _ids(tokenizer, options, options.peer_prompts)
    return _peer("unsloth, one by one", model, tokenizer, ids, options.new, 1)


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


def _peer(name: str, model: Any, tokenizer: Any, ids: list[list[int]], new: int, batch: int) -> list[dict[str, Any]]:
    """Time a peer on both arms, after a short answer that is not counted."""

    def run() -> tuple[float, int]:
        answer(model, tokenizer.pad_token_id, ids[:batch], 8)
        began, tokens = _now(), 0
        for start in range(0, len(ids), batch):
            tokens += sum(map(len, answer(model, tokenizer.pad_token_id, ids[start : start + batch], new)))
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
        for arm, (seconds, tokens) in both_arms(model, run).items()
    ]


def _ours(
    name: str, loaded: tuple[Any, Any], options: argparse.Namespace, count: int, arms: Sequence[str]
) -> dict[str, Any]:
    """Time one call of `fast_generate`, warm-up included."""
    import torch

    from helpers.model.decoding import DecodePlan, fast_generate

    questions = list(islice(cycle(_questions(options)), count))
    plan = None if torch.cuda.is_available() else DecodePlan("graphs", "steps that are not captured", 32)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = _now()
    how: dict[str, Any] = {"max_new_tokens": options.new, "arms": arms, "plan": plan, "ignore_eos": True}
    answers = fast_generate(*loaded, questions, **how)
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


def answer(model: Any, pad: int, ids: list[list[int]], new: int) -> list[list[int]]:
    """Answer one left-padded batch with the model's own greedy loop, all answers of the same length."""
    import torch

    width = max(map(len, ids))
    rows = torch.tensor([[pad] * (width - len(each)) + each for each in ids], device=device())
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in ids], device=device())
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


def both_arms(model: Any, run: Callable[[], Any]) -> dict[str, Any]:
    """Run something with the adapter on, then off."""
    tuned = run()
    with model.disable_adapter():
        return {"tuned": tuned, "base": run()}


def _load_ours(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model through Unsloth, as the notebooks do, with a random adapter."""
    from helpers.data.chat_templates import install_template
    from helpers.model.load import import_unsloth

    import_unsloth()
    model, tokenizer = load_official(options.model, {"checkpointing": False, "seed": 0})
    model.generation_config.max_length = None
    install_template(tokenizer, options.style)
    _randomize(model)
    return model, tokenizer


def _load_plain(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model with transformers and PEFT alone, with a random adapter."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from helpers.data.chat_templates import install_template

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    install_template(tokenizer, options.style)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=_dtype(), device_map={"": str(device())}, trust_remote_code=False
    )
    model.generation_config.eos_token_id = None
    return adapt(model), tokenizer


def adapt(model: Any) -> Any:
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


def _now() -> float:
    """Return the time in seconds once the GPU has nothing left to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def device() -> Any:
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
}


if __name__ == "__main__":
    main()
