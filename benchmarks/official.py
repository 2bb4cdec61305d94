"""The peers: what Unsloth's own Mistral v0.3 Alpaca notebook does, and plain TRL + PEFT + bitsandbytes.

Options that change from the official notebook's setting:

- batch, accumulate: rows, or packed sequences, in a pass (2), and passes in an optimizer step (4),
- packing, length: whether sequences are filled with rows, and how long one is (2,048 tokens),
- checkpointing: whether layers are recomputed (they are),
- processes: that tokenize rows (1),
- precision: "bf16" or, as on cards that lack it, "fp16",
- four_bit: whether the model is loaded in 4 bit (it is, on a GPU),
- seed: of the adapter's first weights and of the rows' order,
- same_labels: train on the answers alone, as ours does, so that losses can be compared.

Loading is apart from the trainer, so that both can be timed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTH = 2048
"""Tokens of a row at most, and of a packed sequence, unless the options say otherwise."""

SEED = 3407
"""The official notebook's, and this project's default."""


def load_official(model: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model and attach the adapter, as the official notebook does."""
    from unsloth import FastLanguageModel  # isort: skip
    import torch

    loaded, tokenizer = FastLanguageModel.from_pretrained(
        model,
        max_seq_length=options.get("length", LENGTH),
        load_in_4bit=options.get("four_bit", torch.cuda.is_available()),
        dtype=_dtype(options),
        trust_remote_code=False,
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


def load_plain(model: str) -> tuple[Any, Any]:
    """Load a model for plain TRL; PEFT attaches the adapter in the trainer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"": 0 if torch.cuda.is_available() else "cpu"}
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=_dtype({}), device_map=place, trust_remote_code=False)
    return loaded, AutoTokenizer.from_pretrained(model, trust_remote_code=False)


def peer_trainer(
    model: Any, tokenizer: Any, rows: list[dict[str, str]], options: dict[str, Any], steps: int, *, plain: bool = False
) -> Any:
    """Build TRL's trainer, which Unsloth replaces by its own where it was imported.

    Args:
        model: From `load_official`, with its adapter, or from `load_plain`.
        tokenizer: The same.
        rows: With Alpaca's columns.
        options: See above.
        steps: Optimizer steps; -1 for one epoch.
        plain: Whether the trainer attaches the adapter and recomputes layers; with Unsloth the model does.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    more: dict[str, Any] = {}
    settings = sft_settings(options, steps)
    if plain:
        from peft import LoraConfig

        settings["gradient_checkpointing"] = options.get("checkpointing", True)
        more["peft_config"] = LoraConfig(
            r=16, lora_alpha=16, lora_dropout=0, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM"
        )
    table = Dataset.from_list(texts(rows, tokenizer.eos_token, split=options.get("same_labels", False)))
    return SFTTrainer(model=model, processing_class=tokenizer, train_dataset=table, args=SFTConfig(**settings), **more)


def texts(rows: list[dict[str, str]], end: str, *, split: bool = False) -> list[dict[str, str]]:
    """Return the rows as text, as the official notebook writes them; split, the answer stands apart."""
    from helpers.data.prompts import alpaca_block

    pairs = [(alpaca_block(row["instruction"], row["input"]), row["output"] + end) for row in rows]
    return [{"prompt": a, "completion": b} if split else {"text": a + b} for a, b in pairs]


def tokens_and_labels(rows: list[dict[str, str]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each row and its labels: -100 for the prompt's, as ours and the peers both see them."""
    found = []
    for row in texts(rows, tokenizer.eos_token, split=True):
        prompt, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        found.append((whole, [-100] * len(prompt) + whole[len(prompt) :]))
    return found


def sft_settings(options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the arguments of SFTConfig: the official notebook's numbers, and options."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(Path(tempfile.gettempdir()) / "benchmark-peer"),
        "max_length": options.get("length", LENGTH),
        "packing": options.get("packing", False),
        "per_device_train_batch_size": options.get("batch", 2),
        "gradient_accumulation_steps": options.get("accumulate", 1 if "batch" in options else 4),
        "max_steps": steps,
        "num_train_epochs": 1,
        "learning_rate": 2e-4,
        "warmup_steps": 5,
        **options.get("settings", {}),
        "logging_steps": 1,
        "optim": "adamw_8bit" if cuda else "adamw_torch",
        "weight_decay": 0.001,
        "lr_scheduler_type": "linear",
        "seed": options.get("seed", SEED),
        "data_seed": options.get("seed", SEED),
        "report_to": "none",
        "bf16": cuda and options.get("precision") != "fp16",
        "fp16": cuda and options.get("precision") == "fp16",
        "use_cpu": not cuda,
        "save_strategy": options.get("save", "no"),
        "dataset_num_proc": options.get("processes", 1),
        **({} if options.get("same_labels") else {"dataset_text_field": "text"}),
    }


def _dtype(options: dict[str, Any]) -> Any:
    """bfloat16 or float16 on a GPU; float32 on a CPU, to try a benchmark out."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    return torch.float16 if options.get("precision") == "fp16" else torch.bfloat16
