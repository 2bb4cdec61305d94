"""Files that every loader of the field reads: one writer for tokenizer and configurations, and a list to check.

transformers 5 writes files that 4.x misreads without a word: `rope_theta` inside `rope_parameters` alone is taken as
10000 (vllm pull request 44158, unsloth issue 8444), the class `TokenizersBackend` is unknown, and so is a template in a
file of its own. What older readers need is written besides; newer ones do not mind (`scripts/check_readers`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.core.errors import ExportError
from helpers.core.files import replaced_folder, write_json
from helpers.export.folders import open_weights, read_settings, tensor_files

__all__ = ["write_config", "write_tokenizer"]

_ADAPTER_KEYS = (
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
"""Keys of a LoRA configuration that PEFT 0.14 and vLLM read. Others are kept only where they are not PEFT's default."""

_STORED = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""torch's names for the types in a safetensors header."""


@contextmanager
def saving_adapter(model: Any, tokenizer: Any, folder: Path | str, *, base: str | None = None) -> Iterator[str]:
    """Save an adapter and its tokenizer inside the block, in place of an earlier adapter; afterwards all can read it.

    Args:
        base: The base model's name for whoever loads the adapter, best its hub id; by default the name PEFT knows.

    Yields:
        The folder to save into, which then takes the place of `folder`.

    Raises:
        ExportError: A reader could not use what was written.
        RunError: The disk is full; an adapter that was there before is still there.
    """
    with replaced_folder(Path(folder), "the adapter") as beside:
        yield str(beside)
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"):
            if not (beside / name).is_file():
                raise ExportError("adapter", f"{name} among the saved files", sorted(os.listdir(beside)), "Save both.")
        (beside / "README.md").unlink(missing_ok=True)  # PEFT's blank form; `write_card` writes one
        _write_tokenizer_config(tokenizer, beside)
        _write_adapter_config(model, beside, base)
        if faults := [*_adapter_faults(beside), *_tokenizer_faults(beside)]:
            raise ExportError("adapter", "files that every loader reads", faults[:3], "Save the adapter again.")


def save_adapter(model: Any, tokenizer: Any, folder: Path | str, *, base: str | None = None) -> list[str]:
    """Save the LoRA weights with the tokenizer and its template; return the names of the files."""
    with saving_adapter(model, tokenizer, folder, base=base) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    return sorted(path.name for path in Path(folder).iterdir())


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer so that transformers 4.46 and newer read it: class, special tokens, template in both places."""
    tokenizer.save_pretrained(str(folder))
    _write_tokenizer_config(tokenizer, folder)


def _write_tokenizer_config(tokenizer: Any, folder: Path) -> None:
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    extra = [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or []]
    settings = {
        **{name: getattr(tokenizer, name) for name in names},
        **({"additional_special_tokens": extra} if extra else {}),
        "chat_template": tokenizer.chat_template,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_config(base: Any, folder: Path, dtype: str) -> None:
    """Write an unquantized model's `config.json` so that transformers 4.46 and newer read it alike.

    Args:
        base: The transformers model, without PEFT around it.
        dtype: Of the weights beside it, such as "float16".
    """
    config = json.loads(base.config.to_json_string())
    for key in [k for k in config if k in ("quantization_config", "unk_token_id") or k.startswith("unsloth")]:
        del config[key]
    for key in ("_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    config |= {"architectures": [type(base).__name__], "dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    write_json(folder / "config.json", config)


def find_faults(folder: Path) -> list[str]:
    """Return what a reader from transformers 4.46 and PEFT 0.14 on would misread in an adapter or merged folder."""
    return [*_adapter_faults(folder), *_model_faults(folder), *_tokenizer_faults(folder), *_closed_files(folder)]


def _adapter_faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with an adapter's configuration, if it is one."""
    if not (folder / "adapter_config.json").is_file():
        return
    config = read_settings(folder, "adapter_config.json")
    for key in ("base_model_name_or_path", "r", "lora_alpha", "target_modules", "peft_type", "task_type"):
        if not config.get(key):
            yield f"adapter_config.json has no {key}"
    with open_weights(folder / "adapter_model.safetensors") as file:
        ranks = {next(iter(file.get_slice(key).get_shape())) for key in file.keys() if ".lora_A." in key}  # noqa: SIM118
    if not config.get("rank_pattern") and ranks != {config.get("r")}:
        yield f"adapter_config.json says rank {config.get('r')}, the weights have {sorted(ranks)}"


def _model_faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with a whole model's configuration, if it is one."""
    if not (folder / "config.json").is_file():
        return
    config = read_settings(folder, "config.json")
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if config.get("rope_theta") is None or theta not in (None, config["rope_theta"]):
        yield "config.json has no top-level rope_theta, so transformers 4 assumes 10000"
    if "quantization_config" in config:
        yield "config.json has a quantization_config, though the weights are in 16 bit"
    said = {config.get("dtype"), config.get("torch_dtype")}
    found = set()
    for name in sorted(set(tensor_files(folder).values())):
        with open_weights(folder / name) as file:
            found |= {_STORED.get(file.get_slice(key).get_dtype(), "another type") for key in file.keys()}  # noqa: SIM118
    if len(said | found) != 1:
        yield f"config.json says {sorted(map(str, said))}, the weights are in {sorted(found)}"


def _tokenizer_faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the tokenizer's files."""
    if not (folder / "tokenizer.json").is_file():
        yield "tokenizer.json is missing"
        return
    settings = read_settings(folder, "tokenizer_config.json")
    if settings.get("tokenizer_class") != "PreTrainedTokenizerFast":
        yield f"tokenizer_config.json names the class {settings.get('tokenizer_class')}, which transformers 4 lacks"
    if isinstance(settings.get("extra_special_tokens"), list):
        yield "tokenizer_config.json has a list of extra_special_tokens, which transformers 4 cannot read"
    if settings.get("model_input_names") != ["input_ids", "attention_mask"]:
        yield "tokenizer_config.json lets transformers 4 add token_type_ids, which generate refuses"
    if not settings.get("eos_token"):
        yield "tokenizer_config.json names no eos_token"
    beside = folder / "chat_template.jinja"
    templates = {settings.get("chat_template"), beside.read_text(encoding="utf-8") if beside.is_file() else None}
    if None in templates or len(templates) != 1:
        yield "the chat template does not stand in both tokenizer_config.json and chat_template.jinja"


def _closed_files(folder: Path) -> Iterator[str]:
    """Yield files that only their owner may read: safetensors makes such (safetensors issue 782)."""
    if os.name == "posix":
        yield from (
            f"{p.name} cannot be read by others" for p in sorted(folder.iterdir()) if not p.stat().st_mode & 0o004
        )


def _write_adapter_config(model: Any, folder: Path, base: str | None) -> None:
    """Rewrite PEFT's configuration with the keys that readers of other versions know."""
    from peft import LoraConfig

    config, usual = read_settings(folder, "adapter_config.json"), LoraConfig().to_dict()
    kept = {k: v for k, v in config.items() if k in _ADAPTER_KEYS or v not in (None, usual.get(k))}
    kept.pop("auto_mapping", None)  # names classes of this machine's stack, and stands in for task_type
    kept |= {"target_modules": sorted(kept["target_modules"]), "task_type": "CAUSAL_LM"}
    if base:
        kept |= {"base_model_name_or_path": base}
    write_json(folder / "adapter_config.json", kept)
