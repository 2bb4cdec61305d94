"""Training speed and memory: this project beside its peers, all in one run on one machine.

    python benchmarks/train.py --model FOLDER --data ROWS.json [--only NAME,NAME] [--out results.json]

FOLDER holds an NF4 checkpoint of Mistral-7B's shape (`scripts/random_mistral` makes one without a hub), ROWS.json a
list of Alpaca rows. Each configuration runs in a process of its own. The peers are

- official: the setting of Unsloth's own Mistral Alpaca notebook: batch 2 x 4, checkpointing, no packing,
- plain: TRL + PEFT + bitsandbytes without Unsloth, packed, the best setting found for it,

and "ours" is what `helpers.training.build_trainer` builds. All train the same rows with LoRA of rank 16 on all linear
layers, adamw in 8 bit unless named otherwise. Speed is taken over the steps after warm-up; "useful" tokens are those
with a label, padding and repeats not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

SCRATCH = Path(tempfile.gettempdir()) / "benchmark-run"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CONFIGURATIONS = {
    # name: (kind, options); batch x accumulation, packing to 2048 tokens, checkpointing
    "official": ("official", {"batch": 2, "accumulate": 4}),
    "plain-packed": ("plain", {"batch": 4, "accumulate": 1, "packing": True}),
    "ours-8": ("ours", {"batch": 8, "checkpointing": False}),
    "ours-8-checkpointing": ("ours", {"batch": 8}),
    "ours-8-novarlen": ("ours", {"batch": 8, "checkpointing": False, "varlen": False}),
    "ours-8-fused": ("ours", {"batch": 8, "checkpointing": False, "optimizer": "adamw_torch_fused"}),
    "ours-packed-small": ("ours", {"batch": 4, "packing": True}),
    "ours-packed-large": ("ours", {"batch": 8, "packing": True, "checkpointing": False}),
}


def main() -> None:
    """Run the chosen configurations one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", help="names of configurations, separated by commas; all by default")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not timed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, options = CONFIGURATIONS[arguments.one]
        print("RESULT " + json.dumps({"name": arguments.one, **measure(kind, options, arguments)}), flush=True)
        return
    names = arguments.only.split(",") if arguments.only else list(CONFIGURATIONS)
    results = [run_one(name, arguments) for name in names]
    print_table(results)
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")


def run_one(name: str, arguments: argparse.Namespace) -> dict:
    """Run one configuration in its own process."""
    command = [
        sys.executable,
        __file__,
        "--model",
        arguments.model,
        "--data",
        arguments.data,
        "--one",
        name,
        "--steps",
        str(arguments.steps),
        "--warmup",
        str(arguments.warmup),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(f"{name} failed:\n{(done.stdout + done.stderr)[-2500:]}", flush=True)
        return {"name": name, "failed": True}
    result = {**json.loads(lines[-1][7:]), "process_seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(result), flush=True)
    return result


def print_table(results: list[dict]) -> None:
    """Print the figures, with examples/s relative to the official setting."""
    base = next((r["examples_per_second"] for r in results if r["name"] == "official" and "failed" not in r), None)
    print(f"{'configuration':24}{'examples/s':>11}{'useful tok/s':>13}{'peak GiB':>10}{'x official':>11}")
    for r in results:
        if "failed" not in r:
            ratio = f"{r['examples_per_second'] / base:.2f}" if base else "-"
            print(
                f"{r['name']:24}{r['examples_per_second']:>11.2f}{r['useful_tokens_per_second']:>13.0f}"
                f"{r['peak_gib']:>10.2f}{ratio:>11}"
            )


def machine() -> dict:
    """Describe what the figures were measured on."""
    from helpers.hardware import describe_hardware
    from helpers.lock import installed_versions

    versions = installed_versions()
    names = ("unsloth", "trl", "peft", "transformers", "bitsandbytes")
    return {**describe_hardware(), **{n: versions.get(n) for n in names}}


def measure(kind: str, options: dict, arguments: argparse.Namespace) -> dict:
    """Build one trainer, train, and take the figures.

    Args:
        kind: "official", "plain" or "ours".
        options: Of `CONFIGURATIONS`.
        arguments: The command line's.

    Returns:
        Examples and useful tokens a second after warm-up, peak memory, losses.
    """
    started = time.perf_counter()
    rows = json.loads(Path(arguments.data).read_text(encoding="utf-8"))
    trainer, mean_useful, mode = {"official": official, "plain": plain, "ours": ours}[kind](rows, options, arguments)

    import torch
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())

    useful: list = []
    original = trainer.training_step

    def counting(model: object, inputs: dict, *rest: object, **named: object) -> object:
        useful.append((inputs["labels"] != -100).sum())
        return original(model, inputs, *rest, **named)

    trainer.training_step = counting
    trainer.add_callback(Clock())
    torch.cuda.reset_peak_memory_stats()
    ready = time.perf_counter()
    if os.environ.get("SYNC"):
        watch_syncs(trainer)
    profiler = start_profiler() if os.environ.get("PROFILE") else None
    trainer.train()
    if profiler:
        profiler.stop()
        print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=60))
    warm, per_step = arguments.warmup, options.get("accumulate", 1)
    seconds = marks[-1] - marks[warm - 1]
    tokens = int(sum(useful[warm * per_step :]))
    losses = [float(h["loss"]) for h in trainer.state.log_history if "loss" in h]
    return {
        "examples_per_second": tokens / mean_useful / seconds,
        "useful_tokens_per_second": tokens / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "step_seconds": seconds / (len(marks) - warm),
        "first_step_seconds": marks[0] - ready,
        "start_to_first_step_seconds": marks[0] - started,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "mode": mode,
    }


def watch_syncs(trainer: object) -> None:
    """Print, per place in the code, how often the host waits for the card in the last step, and what the host does."""
    import collections
    import cProfile
    import traceback
    import warnings

    import torch
    from transformers import TrainerCallback

    places: collections.Counter = collections.Counter()
    profile = cProfile.Profile()

    def record(*_: object, **__: object) -> None:
        frames = [f for f in traceback.extract_stack()[:-2] if "warnings" not in f.filename]
        places[" < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-5:]))] += 1

    class Watch(TrainerCallback):
        def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
            if state.global_step == state.max_steps - 2:
                warnings.simplefilter("always")
                warnings.showwarning = record
                torch.cuda.set_sync_debug_mode("warn")
            if state.global_step == state.max_steps - 1:
                torch.cuda.set_sync_debug_mode("default")
                profile.enable()

        def on_train_end(self, *_: object, **__: object) -> None:
            import pstats

            profile.disable()
            for place, count in places.most_common(25):
                print(count, place)
            pstats.Stats(profile).sort_stats("tottime").print_stats(35)

    trainer.add_callback(Watch())


def start_profiler() -> object:
    """Profile everything from now on; only for a few steps."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    profiler.start()
    return profiler


def ours(rows: list[dict], options: dict, arguments: argparse.Namespace) -> tuple:
    """Build the project's own trainer, as a notebook does."""
    from helpers.config import build_config
    from helpers.contract import apply_contract
    from helpers.model import attach_adapter, load_model
    from helpers.prompts import build_example
    from helpers.runs import RunDirectory
    from helpers.training import build_trainer

    config = build_config(
        "alpaca",
        preset="large-gpu",
        model_name=arguments.model,
        dataset_name="sample",
        batch_size=options["batch"],
        gradient_accumulation=options.get("accumulate", 1),
        packing=options.get("packing", False),
        gradient_checkpointing=options.get("checkpointing", True),
        max_steps=arguments.steps,
        prompt_style="alpaca",
        varlen_attention=options.get("varlen"),
        optimizer=options.get("optimizer"),
    )
    loaded = load_model(config.model, style="alpaca")
    attach_adapter(
        loaded, config.adapter, seed=config.train.seed, gradient_checkpointing=config.train.gradient_checkpointing
    )
    examples = [build_example(row, "alpaca", style="alpaca") for row in rows]
    checked = apply_contract(examples, loaded.tokenizer, max_seq_length=config.model.max_seq_length)
    trainer = build_trainer(config, loaded, checked, RunDirectory(SCRATCH))
    return trainer, checked.supervised_tokens() / len(checked.tokenized), getattr(trainer, "mode", {})


def official(rows: list[dict], options: dict, arguments: argparse.Namespace) -> tuple:
    """Build the trainer of Unsloth's own Mistral Alpaca notebook."""
    from unsloth import FastLanguageModel  # isort: skip
    import torch
    from trl import SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        arguments.model, max_seq_length=2048, load_in_4bit=True, dtype=torch.bfloat16
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
    table, mean = text_rows(rows, tokenizer)
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=table, args=settings(options, arguments)
    )
    return trainer, mean, {}


def plain(rows: list[dict], options: dict, arguments: argparse.Namespace) -> tuple:
    """Build TRL's trainer without Unsloth."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16, device_map={"": 0})
    table, mean = text_rows(rows, tokenizer)
    adapter = LoraConfig(
        r=16, lora_alpha=16, lora_dropout=0, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=table,
        peft_config=adapter,
        args=settings(options, arguments, gradient_checkpointing=True),
    )
    return trainer, mean, {}


def text_rows(rows: list[dict], tokenizer: object) -> tuple:
    """Return the rows as text, as the peers train them (on every token), and the mean number of tokens with a label."""
    from datasets import Dataset

    from helpers.prompts import alpaca_block

    texts = [alpaca_block(r["instruction"], r["input"]) + r["output"] + tokenizer.eos_token for r in rows]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    return Dataset.from_dict({"text": texts}), sum(lengths) / len(lengths)


def settings(options: dict, arguments: argparse.Namespace, **more: object) -> object:
    """Return the SFTConfig of a peer."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(SCRATCH),
        dataset_text_field="text",
        max_length=2048,
        packing=options.get("packing", False),
        per_device_train_batch_size=options["batch"],
        gradient_accumulation_steps=options.get("accumulate", 1),
        warmup_steps=2,
        max_steps=arguments.steps,
        learning_rate=2e-4,
        logging_steps=1,
        optim="adamw_8bit",
        weight_decay=0.001,
        lr_scheduler_type="linear",
        seed=3407,
        report_to="none",
        bf16=True,
        save_strategy="no",
        dataset_num_proc=1,
        **more,
    )


if __name__ == "__main__":
    main()
