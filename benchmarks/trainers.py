"""The trainers that the benchmarks compare: this project's, the official Unsloth notebook's, and plain TRL.

Each function takes the rows of ROWS.json and options, and returns a trainer that is ready to train:

- batch, accumulate: rows, or packed sequences, in a pass, and passes in an optimizer step,
- packing, length: whether sequences are filled with rows, and how long one is (2048 tokens),
- checkpointing: whether layers are recomputed (they are, by default),
- processes: that tokenize a peer's rows (one),
- four_bit: whether the model is loaded in 4 bit (it is, on a GPU),
- seed: of the adapter's first weights and of the rows' order (the official notebook's),
- same_labels: train the peers on the answers alone, as ours does, so that losses can be compared.

Loading is apart, so that one model can serve several trainers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

SCRATCH = Path(tempfile.gettempdir()) / "benchmark-run"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTH = 2048
"""Tokens of a row at most, and of a packed sequence, unless the options say otherwise."""

SEED = 3407
"""The official notebook's, and this project's default."""


def config_of(model: str, options: dict[str, Any], steps: int) -> Any:
    """Return this project's configuration for a model folder; what the options leave open is the preset's."""
    import torch

    from helpers.core.config import build_config

    return build_config(
        "alpaca",
        preset="large-gpu",
        model_name=model,
        load_in_4bit=options.get("four_bit", torch.cuda.is_available()),
        dataset_name="sample",
        batch_size=options["batch"],
        gradient_accumulation=options.get("accumulate", 1),
        packing=options.get("packing", False),
        max_seq_length=options.get("length", LENGTH),
        gradient_checkpointing=options.get("checkpointing", True),
        max_steps=steps,
        save_steps=10 * steps,
        prompt_style="alpaca",
        seed=options.get("seed", SEED),
        **options.get("settings", {}),
    )


def load_ours(config: Any) -> Any:
    """Load a model and attach the adapter, as a notebook of this project does."""
    from helpers.model.load import attach_adapter, load_model

    loaded = load_model(config.model, style="alpaca")
    attach_adapter(
        loaded,
        config.adapter,
        seed=config.train.seed,
        gradient_checkpointing=config.train.gradient_checkpointing,
        checkpoint_skip_layers=config.train.checkpoint_skip_layers,
    )
    return loaded


def ours(config: Any, loaded: Any, rows: list[dict]) -> Any:
    """Build this project's trainer: rows to messages, the contract, the trainer."""
    from helpers.core.runs import RunDirectory
    from helpers.data.contract import apply_contract
    from helpers.data.prompts import build_example
    from helpers.training.trainer import build_trainer

    examples = [build_example(row, "alpaca", style="alpaca") for row in rows]
    checked = apply_contract(examples, loaded.tokenizer, max_seq_length=config.model.max_seq_length)
    trainer = build_trainer(config, loaded, checked, RunDirectory(SCRATCH))
    trainer.args.save_strategy = "no"
    return trainer


def load_unsloth(model: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model and attach the adapter, as the official notebook does."""
    from unsloth import FastLanguageModel  # isort: skip
    import torch

    loaded, tokenizer = FastLanguageModel.from_pretrained(
        model,
        max_seq_length=options.get("length", LENGTH),
        load_in_4bit=options.get("four_bit", torch.cuda.is_available()),
        dtype=_dtype(),
    )
    loaded = FastLanguageModel.get_peft_model(
        loaded,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing="unsloth" if options.get("checkpointing", True) else False,
        random_state=options.get("seed", SEED),
    )
    return loaded, tokenizer


def load_plain(model: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model for plain TRL; PEFT attaches the adapter in the trainer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = 0 if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=_dtype(), device_map={"": device}
    ), AutoTokenizer.from_pretrained(model)


def peer(model: Any, tokenizer: Any, rows: list[dict], options: dict[str, Any], steps: int, *, lora: bool) -> Any:
    """Build a peer's trainer: TRL's, which Unsloth replaces by its own where it was imported.

    Args:
        model: From `load_unsloth`, with its adapter, or from `load_plain`.
        tokenizer: The same.
        rows: With Alpaca's columns.
        options: See above.
        steps: Optimizer steps.
        lora: Whether the trainer attaches the adapter.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    more: dict[str, Any] = {"args": SFTConfig(**settings(options, steps, checkpointing=lora))}
    if lora:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(
            r=16, lora_alpha=16, lora_dropout=0, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM"
        )
    table = Dataset.from_list(texts(rows, tokenizer.eos_token, split=options.get("same_labels", False)))
    return SFTTrainer(model=model, processing_class=tokenizer, train_dataset=table, **more)


def texts(rows: list[dict], end: str, *, split: bool) -> list[dict[str, str]]:
    """Return the rows as text, as the official notebook writes them; split, the answer stands apart."""
    from helpers.data.prompts import alpaca_block

    pairs = [(alpaca_block(row["instruction"], row["input"]), row["output"] + end) for row in rows]
    return [{"prompt": a, "completion": b} if split else {"text": a + b} for a, b in pairs]


def settings(options: dict[str, Any], steps: int, *, checkpointing: bool) -> dict[str, Any]:
    """Return a peer's SFTConfig: the official notebook's numbers.

    Args:
        options: See above.
        steps: Optimizer steps.
        checkpointing: Whether the trainer turns it on; Unsloth's is part of the model.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(SCRATCH),
        "max_length": options.get("length", LENGTH),
        "packing": options.get("packing", False),
        "per_device_train_batch_size": options["batch"],
        "gradient_accumulation_steps": options.get("accumulate", 1),
        "warmup_steps": 5,
        "max_steps": steps,
        "learning_rate": 2e-4,
        "logging_steps": 1,
        "optim": "adamw_8bit" if cuda else "adamw_torch",
        "weight_decay": 0.001,
        "lr_scheduler_type": "linear",
        "seed": options.get("seed", SEED),
        "data_seed": options.get("seed", SEED),
        "report_to": "none",
        "bf16": cuda,
        "use_cpu": not cuda,
        "save_strategy": "no",
        "dataset_num_proc": options.get("processes", 1),
        **({} if options.get("same_labels") else {"dataset_text_field": "text"}),
        **({"gradient_checkpointing": options.get("checkpointing", True)} if checkpointing else {}),
    }


def _dtype() -> Any:
    """bfloat16 on a GPU; float32 on a CPU, to try a benchmark out."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
