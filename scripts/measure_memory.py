#!/usr/bin/env python3
"""Measure the peak GPU memory of training beside its prediction, to check and refit the
numbers in `helpers.memory.predict`.

    python scripts/measure_memory.py MODEL_DIR [--configurations FILE.json] [--only 0,3] [--steps 4] > measured.jsonl

MODEL_DIR holds a model with its tokenizer (`scripts/random_mistral` makes one of Mistral-7B's shape without a hub).
Each configuration trains in a process of its own, with the calls that the notebooks make, on rows that all have the
same length, and gives one JSON line: the configuration, the predicted parts,
predicted and measured peak in bytes, and what was allocated before the first step. FILE.json is a list of objects with
the keys of DEFAULTS; what is left out has its value there. Without a GPU `measured_bytes` is null, which is enough to
try a list out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.core.config import RunConfig, build_config
from helpers.memory.plan import attention_kind
from helpers.memory.predict import GIB, predict_peak
from helpers.memory.shapes import ModelShape, shape_of
from helpers.runtime.hardware import find_gpu

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULTS: dict[str, Any] = {
    "lora_rank": 16,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "row_length": 256,  # in tokens, the same for every row
    "max_seq_length": 2048,
    "packing": False,
    "gradient_checkpointing": True,
    "skip_layers": 0,
    "load_in_4bit": True,
    "lora_dropout": 0.0,
    "optimizer": "adamw_8bit",
    "varlen_attention": True,
}

CONFIGURATIONS: list[dict[str, Any]] = [
    {"batch_size": 2, "row_length": 512},
    {"batch_size": 8, "row_length": 256},
    {"batch_size": 8, "row_length": 256, "gradient_checkpointing": False},
    {"batch_size": 8, "row_length": 256, "gradient_checkpointing": False, "varlen_attention": False},
    {"batch_size": 8, "row_length": 256, "skip_layers": 16},
    {"batch_size": 1, "row_length": 4096, "max_seq_length": 4096},
    {"batch_size": 4, "packing": True},
    {"batch_size": 4, "packing": True, "gradient_checkpointing": False},
    {"batch_size": 2, "packing": True, "lora_rank": 128, "optimizer": "adamw_torch_fused"},
    {"batch_size": 8, "row_length": 256, "gradient_checkpointing": False, "lora_dropout": 0.05},
]


def main() -> None:
    """Run each configuration in its own process and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--configurations", type=Path, metavar="FILE.json")
    parser.add_argument("--only", help="places in the list, from 0, separated by commas")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each (default 4)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps(measure(options.model, json.loads(options.one), options.steps)), flush=True)
        return
    chosen = json.loads(options.configurations.read_text()) if options.configurations else CONFIGURATIONS
    places = [int(place) for place in options.only.split(",")] if options.only else range(len(chosen))
    for place in places:
        configuration = complete(chosen[place])
        print(json.dumps(measure_apart(options.model, configuration, options.steps)), flush=True)


def complete(configuration: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults; refuse keys that mean nothing."""
    unknown = set(configuration) - set(DEFAULTS)
    if unknown:
        sys.exit(f"unknown in a configuration: {', '.join(sorted(unknown))}; known are {', '.join(DEFAULTS)}")
    return {**DEFAULTS, **configuration}


def measure_apart(model: Path, configuration: dict[str, Any], steps: int) -> dict[str, Any]:
    """Measure in a fresh process, so that nothing of an earlier one is in memory."""
    command = [sys.executable, __file__, str(model), "--steps", str(steps), "--one", json.dumps(configuration)]
    kept = {"UNSLOTH_GC_KEEP_LAYERS": str(configuration["skip_layers"]), "UNSLOTH_DISABLE_STATISTICS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **kept}, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return json.loads(lines[-1].removeprefix("RESULT "))
    return {"configuration": configuration, "failed": (done.stdout + done.stderr)[-2000:]}


def measure(model: Path, configuration: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train a few steps and compare the peak with its prediction."""
    from helpers.core.runs import RunDirectory
    from helpers.model.load import TARGET_MODULES, import_unsloth
    from helpers.model.patches.attention import enable_varlen
    from helpers.training.machine import base_model, fit_machine
    from helpers.training.speed import training_mode

    import_unsloth()
    import torch
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    config = run_config(model, configuration, steps)
    train, length = config.train, configuration["row_length"]
    with tempfile.TemporaryDirectory() as folder:
        machine = fit_machine(config, RunDirectory(Path(folder)))
        base, tokenizer = FastLanguageModel.from_pretrained(
            model_name=base_model(config)[0],
            max_seq_length=config.model.max_seq_length,
            load_in_4bit=config.model.load_in_4bit,
            dtype=getattr(torch, machine.dtype),
            trust_remote_code=False,
            **machine.loading,
        )
        tuned = FastLanguageModel.get_peft_model(
            base,
            r=config.adapter.lora_rank,
            lora_alpha=config.adapter.lora_alpha,
            lora_dropout=config.adapter.lora_dropout,
            target_modules=list(TARGET_MODULES),
            use_gradient_checkpointing="unsloth" if train.gradient_checkpointing else False,
            random_state=0,
        )
        trainer = SFTTrainer(
            model=tuned,
            processing_class=tokenizer,
            train_dataset=equal_rows(tokenizer, config, length, steps),
            args=SFTConfig(
                output_dir=folder,
                max_length=config.model.max_seq_length,
                completion_only_loss=True,
                packing=train.packing,
                per_device_train_batch_size=train.batch_size,
                gradient_accumulation_steps=train.gradient_accumulation,
                max_steps=steps,
                learning_rate=train.learning_rate,
                logging_steps=1,
                save_strategy="no",
                **machine.sft,
            ),
        )
        enable_varlen(wanted=train.varlen_attention)
        before = allocated(reset=True)
        trainer.train()
        peak = allocated()
        mode = training_mode(trainer, config)
    gpu = find_gpu()
    capability = gpu.capability if gpu else (9, 0)  # an H100's
    predicted = predict(shape_of(model), configuration, mode["attention"], capability)
    total = predicted.total()
    return {
        "configuration": configuration,
        "mode": mode,
        "gpu": gpu.name if gpu else None,
        "tokens": predicted.tokens,
        "parts": dataclasses.asdict(predicted),
        "before_bytes": before,
        "predicted_bytes": total,
        "measured_bytes": peak,
        "predicted_gib": round(total / GIB, 2),
        "measured_gib": round(peak / GIB, 2) if peak else None,
        "error": round(total / peak - 1, 4) if peak else None,
    }


def run_config(model: Path, configuration: dict[str, Any], steps: int) -> RunConfig:
    """The package's configuration of a run."""
    given = {k: v for k, v in configuration.items() if k not in ("row_length", "skip_layers")}
    return build_config(
        "alpaca",
        preset="large-gpu",
        model_name=str(model),
        max_steps=steps,
        train_rows=0,
        max_new_tokens=16,
        warmup_steps=0,
        learning_rate=1e-6,
        **given,
    )


def predict(shape: ModelShape, configuration: dict[str, Any], attention: str, capability: tuple[int, int]) -> Any:
    """Predict the peak of a configuration."""
    c = configuration
    return predict_peak(
        shape,
        rank=c["lora_rank"],
        batch_size=c["batch_size"],
        seq_length=c["max_seq_length"],
        tokens=None if c["packing"] else c["batch_size"] * c["row_length"],
        four_bit=c["load_in_4bit"],
        checkpointing=c["gradient_checkpointing"],
        packing=c["packing"],
        skip_layers=c["skip_layers"],
        attention=attention_kind(capability, attention),
        dropout=c["lora_dropout"],
        optimizer="adamw_8bit" if c["optimizer"] == "auto" else c["optimizer"],
    )


def equal_rows(tokenizer: Any, config: RunConfig, length: int, steps: int) -> Dataset:
    """As many rows as the steps need, each of exactly `length` tokens, all but a short prompt of them answer."""
    from datasets import Dataset

    train, word = config.train, tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    row = {
        "input_ids": [word] * (length - 1) + [tokenizer.eos_token_id],
        "completion_mask": [0] * 8 + [1] * (length - 8),
    }
    share = config.model.max_seq_length // length if train.packing else 1
    return Dataset.from_list([row] * (steps * train.rows_per_step() * share))


def allocated(*, reset: bool = False) -> int | None:
    """The peak of allocated memory since the last reset, in bytes; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.memory_allocated() if reset else torch.cuda.max_memory_allocated()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return peak


if __name__ == "__main__":
    main()
