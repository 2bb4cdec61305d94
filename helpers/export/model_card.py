"""Model cards: what was trained from what, how it did, what was verified, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.core.config import HUB_ID, MODELS, RunConfig
from helpers.core.files import write_text
from helpers.core.runs import RunDirectory
from helpers.export.gain import gain_lines
from helpers.export.serve import loading_lines, serving_lines, sixteen_bit_name
from helpers.export.verdict import Verification
from helpers.runtime.lockfile import installed_versions

_DATA_LICENCES = {
    # data set: (SPDX name as the Hub writes it, what to mind)
    "yahma/alpaca-cleaned": (
        "cc-by-4.0",
        "Its answers were generated with OpenAI's text-davinci-003; Stanford's original is CC BY-NC 4.0.",
    ),
    "databricks/databricks-dolly-15k": (
        "cc-by-sa-3.0",
        "Written by employees of Databricks; contexts are from Wikipedia.",
    ),
    "sample": ("apache-2.0", "The rows bundled with the notebooks."),
}
"""As their pages on the Hub state: https://huggingface.co/datasets/<name>."""

_BASE_LICENCES = {
    "mistral-7b-instruct": "apache-2.0",
    "smollm2-135m": "apache-2.0",
    "unsloth/mistral-7b-instruct-v0.3-bnb-4bit": "apache-2.0",
    "mistralai/Mistral-7B-Instruct-v0.3": "apache-2.0",
}
"""Licences of the base models that are known here."""

_HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What the Hub calls models that come from elsewhere."""

_KINDS = {
    # kind: (what it is, what the Hub calls its library)
    "adapter": ("A LoRA adapter for", "peft"),
    "merged": ("A 16-bit model with a LoRA adapter merged into", "transformers"),
    "gguf": ("A GGUF file for llama.cpp and Ollama, made of a LoRA adapter merged into", "gguf"),
}

_READERS = "transformers 4.46 and newer, PEFT 0.14 and newer"
"""Checked file by file at each verification, and with these versions by scripts/check_readers."""


def hub_name(model_name: str) -> str | None:
    """Return what the Hub calls a base model, or None if it is a local folder."""
    name = _HUB_NAMES.get(model_name) or MODELS.get(model_name, (model_name,))[0]
    return name if re.fullmatch(HUB_ID, name) and not Path(name).exists() else None


def write_card(
    folder: Path,
    run: RunDirectory,
    config: RunConfig,
    *,
    verification: Verification | None = None,
    name: str | None = None,
) -> Path:
    """Write `README.md` beside the weights.

    Args:
        folder: An adapter, a merged model or a GGUF folder; which of them is seen from its files.
        name: The repository's name on the Hub, for the lines that load it; by default the folder itself.
    """
    kind = (
        "adapter" if (folder / "adapter_config.json").is_file() else "gguf" if any(folder.glob("*.gguf")) else "merged"
    )
    write_text(folder / "README.md", model_card(run, config, kind, verification, name))
    return folder / "README.md"


def model_card(
    run: RunDirectory,
    config: RunConfig,
    kind: str,
    verification: Verification | None = None,
    name: str | None = None,
) -> str:
    """Return the text of a model card, with YAML metadata that the Hub reads.

    Args:
        kind: "adapter", "merged" or "gguf".
    """
    parts = [
        f"# {run.path.name}",
        _opening(config, kind),
        *_use(config, kind, name),
        "## Data",
        _data(config),
        "## Training",
        _table(_parameters(config)),
        _losses(run.metrics()),
        *_kept(verification, config, kind),
        "## Verification",
        _verified(verification),
        "## Intended use and limits",
        _limits(config),
        "## Made with",
        _table(_versions(run.manifest(), config)),
    ]
    return f"---\n{_front_matter(config, kind)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(config: RunConfig, kind: str) -> str:
    """Return the metadata that the Hub reads; what it would not know is left out."""
    from huggingface_hub import ModelCardData

    data, base = config.data.dataset_name, hub_name(config.model.model_name)
    values: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": ("adapter" if kind == "adapter" else "finetune") if base else None,
        "datasets": [data] if re.fullmatch(HUB_ID, data) and not Path(data).exists() else None,
        "language": "en",
        "license": _BASE_LICENCES.get(config.model.model_name),
        "library_name": _KINDS[kind][1],
        "pipeline_tag": "text-generation",
        "tags": [
            *["lora"] * (kind == "adapter"),
            *["qlora"] * (kind == "adapter" and config.model.load_in_4bit),
            *("sft", "trl", "unsloth"),
        ],
    }
    return ModelCardData(**{k: v for k, v in values.items() if v is not None}).to_yaml().strip()


def _opening(config: RunConfig, kind: str) -> str:
    """Say what this is, and which bases it has: the one that it was trained on, and the one in 16 bit."""
    held = "in 4 bit (NF4)" if config.model.load_in_4bit else "without quantization"
    model, data = _shown(config.model.model_name), _shown(config.data.dataset_name)
    lines = [f"{_KINDS[kind][0]} `{model}`, trained on `{data}` with the base held {held}."]
    base = hub_name(config.model.model_name)
    if config.model.model_name in _HUB_NAMES:
        lines.append(
            f"The base is `{base}`, whose weights were rounded to 4 bit (Q4_1) before training, so that they come with "
            "a package of 90 MB: the model on the Hub is slightly different."
        )
    elif base and config.model.load_in_4bit and kind == "adapter":
        lines.append(
            f"In 4 bit its base is `{base}`. CPUs, Macs, llama.cpp and vLLM need it in 16 bit: "
            f"`{sixteen_bit_name(base)}`, which is not exactly the model that it was trained on."
        )
    return "\n\n".join(lines)


def _use(config: RunConfig, kind: str, name: str | None) -> list[str]:
    """Say how to load and how to serve it."""
    base, system = hub_name(config.model.model_name), config.data.system_prompt
    here = "" if name else "Run this in the folder that holds this file, or put its path in place of the dot."
    loading = (
        [] if kind == "gguf" else ["## How to load", here, _fence(loading_lines(kind, name or ".", system), "python")]
    )
    serving = serving_lines(kind, name or ".", base=base, rank=config.adapter.lora_rank)
    return [part for part in (*loading, "## How to serve", _fence(serving, "bash")) if part]


def _kept(verification: Verification | None, config: RunConfig, kind: str) -> list[str]:
    """Say how much of the held-out gain this export keeps, and what was not measured."""
    lines = gain_lines(verification.numbers) if verification else []
    base = hub_name(config.model.model_name)
    if kind == "adapter" and config.model.load_in_4bit and base and lines and len(lines) < 2:
        lines.append(f"On `{sixteen_bit_name(base)}`, which others run it on: not measured (`score_16bit_base`).")
    return ["\n\n".join(lines)] if lines else []


def _data(config: RunConfig) -> str:
    """Name the data set and its licence, and how rows became messages."""
    data = config.data
    licence, note = _DATA_LICENCES.get(
        data.dataset_name, ("not known to the notebook", "Check it before you pass the model on.")
    )
    lines = [f"`{_shown(data.dataset_name)}`, licence: {licence}. {note}"]
    style = "the model's own chat template" if data.prompt_style == "chat" else "Stanford's Alpaca text block"
    lines.append(f"Rows were written with {style}; only the answers were learned.")
    if data.system_prompt:
        lines.append("Every row began with this system prompt:\n\n" + _fence(data.system_prompt, "text"))
    return "\n\n".join(lines)


def _parameters(config: RunConfig) -> dict[str, Any]:
    """Return the parameters that others need to repeat the run."""
    names = (
        "max_seq_length",
        "load_in_4bit",
        "train_rows",
        "heldout_rows",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "learning_rate",
        "num_epochs",
        "max_steps",
        "batch_size",
        "gradient_accumulation",
        "warmup_steps",
        "weight_decay",
        "packing",
        "keep",
        "early_stopping",
        "seed",
    )
    flat = config.flat()
    return {"preset": config.preset, **{name: flat[name] for name in names if flat[name] is not None}}


def _losses(metrics: Mapping[str, Any]) -> str:
    """Say what the held-out loss did, with its interval."""
    change = metrics.get("eval_loss_change") or {}
    if "eval_loss_before" not in metrics:
        return "No held-out loss was measured."
    text = (
        f"Held-out loss (nats a token, answers only): {metrics['eval_loss_before']:.4f} before, "
        f"{metrics['eval_loss_after']:.4f} after "
        f"training on {metrics.get('supervised_tokens', 0):,} answer tokens."
    )
    if change.get("low") is not None:
        text += (
            f" Mean change per row: {change['mean']:+.4f}, 95 % interval {change['low']:+.4f} to {change['high']:+.4f} "
            f"(paired t, "
            f"{change['rows']} rows)."
        )
        text += (
            "" if change["high"] < 0 else " The interval includes zero." if change["low"] <= 0 else " The loss rose."
        )
    return text


def _verified(verification: Verification | None) -> str:
    """Say whether the export was proven to be the tuned model."""
    if verification is None:
        return "This export was not verified."
    rows = {check.name: f"{check.result}. {check.detail}" for check in verification.checks}
    meaning = {
        "PASS": "read back and compared with what it was made from."
        if verification.name == "gguf"
        else "reloaded in a fresh process, without Unsloth, it is the tuned model.",
        "FAIL": "this export is not the tuned model. Do not use it.",
        "CANNOT TELL": "not proven. The effect of training is too small to tell from rounding.",
    }
    return f"{verification.result}: {meaning[verification.result]}\n\n{_table(rows, ('check', 'result'))}"


def _limits(config: RunConfig) -> str:
    """Say what it is for and what not."""
    purpose = (
        "drafts and ideas in product development, business decisions and AI in companies"
        if config.task == "dolly"
        else "following short, general instructions"
    )
    return (
        f"Meant for study, and for {purpose}, in English, with a person who checks the answers. It knows no more facts "
        "than its base model, can state false ones with confidence, and repeats biases of its base and its data. It "
        "was not tested for safety, and is "
        "not for decisions about people, nor for medical, legal or financial advice. "
        f"Prompts and answers beyond {config.model.max_seq_length:,} tokens were not trained on."
    )


def _versions(manifest: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the versions of what trained it."""
    versions = manifest.get("versions") or {
        k: v for k, v in installed_versions().items() if k in ("peft", "torch", "transformers", "trl", "unsloth")
    }
    gpus = (manifest.get("hardware") or {}).get("gpus") or ["none"]
    commits = {
        "base model": f"{_shown(config.model.model_name)} at {manifest.get('base_commit') or 'no known commit'}",
        "data set": f"{_shown(config.data.dataset_name)} at {manifest.get('data_commit') or 'no known commit'}",
    }
    return {**versions, "GPU": ", ".join(gpus), **commits, "read by": _READERS}


def _shown(name: str) -> str:
    """Return a hub id as it is, and of a local path only its last part."""
    plain = name.replace("`", "'").replace("\n", " ")
    return plain if re.fullmatch(HUB_ID, plain) and not Path(plain).exists() else Path(plain).name


def _table(rows: Mapping[str, Any], head: tuple[str, str] = ("", "value")) -> str:
    """Return a Markdown table of two columns."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(k)} | {_cell(v)} |" for k, v in rows.items()])


def _cell(value: Any) -> str:
    """Write a value so that it stays within its table cell."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _fence(text: str, language: str) -> str:
    """Put text into a fence that is longer than any in it."""
    marks = "`" * max(3, 1 + max((len(m) for m in re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"
