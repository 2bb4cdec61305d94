"""Models: load, attach LoRA, toggle the adapter."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers.core.config import MODELS, AdapterConfig, ModelConfig, RunConfig, check_skip_layers
from helpers.core.distributed import place
from helpers.core.errors import ExportError, HelpersError, StackError
from helpers.core.time_limit import time_limit
from helpers.data.chat_templates import install_template
from helpers.model.patches.imports import long_lived, sft_alone
from helpers.runtime.hardware import choose_precision, find_gpu, loader_options

__all__ = [
    "TARGET_MODULES",
    "LoadedModel",
    "attach_adapter",
    "free_memory",
    "import_unsloth",
    "load_adapter",
    "load_model",
    "model_source",
    "prepare_unsloth",
    "put_adapter",
    "trainable_parameters",
    "without_adapter",
]

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of a Mistral or Llama block."""

_CPU_NOTES = re.compile(r"Unsloth [\w.]+: no GPU found|Unsloth \(CPU\): \w+ on \d+ CPU threads")


@dataclass
class LoadedModel:
    """A model with its tokenizer and template.

    Args:
        model: The transformers model, or PEFT's wrapper once an adapter is attached.
        tokenizer: With the template installed and a PAD that is not EOS.
        template: "mistral-v3", "chatml" or "alpaca".
        source: Where the base weights came from.
        precision: "bf16", "fp16" or "fp32": the type of activations and adapter gradients.
    """

    model: Any
    tokenizer: Any
    template: str
    source: str
    precision: str
    max_seq_length: int


def model_source(config: ModelConfig) -> tuple[str, str | None]:
    """Return the hub id or folder behind a model name, and the revision to load."""
    if config.model_name == "smollm2-135m":
        from helpers.model.smollm2 import smollm2_folder

        return str(smollm2_folder()), None
    name, revision = MODELS.get(config.model_name, (config.model_name, None))
    return name, config.model_revision or revision


def prepare_unsloth() -> None:
    """Make `import unsloth`, wherever it stands, quick and quiet; without this it does the same, with more to read.

    torchao 0.18, which it imports, warns about each of its CUDA extensions on a machine that cannot load them, and
    about an older way to register types with torch 2.13; neither is used here, nor are bars of `datasets`. Unsloth
    2026.10.9 warns through a logger of transformers each time it saves a tokenizer as it should be saved.
    """
    with nullcontext() if "torch" in sys.modules else long_lived():
        import torch  # noqa: F401 - sets up its own logging, which would undo the next lines

    for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("transformers.models.llama.modeling_llama").addFilter(_is_news)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "unsloth" not in sys.modules and not any(isinstance(each, _QuietImport) for each in sys.meta_path):
        sys.meta_path.insert(0, _QuietImport())


def import_unsloth() -> None:
    """Import unsloth, which patches transformers, peft and trl and so must come before them."""
    prepare_unsloth()
    import unsloth  # noqa: F401


class _QuietImport(MetaPathFinder):
    """Finds unsloth as it is found anyway, and imports it without its notes and without trainers that nobody uses."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "unsloth":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                with long_lived(), redirect_stdout(_WithoutNotes(sys.stdout)), sft_alone():
                    execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _WithoutNotes:
    """Standard output without what Unsloth says of itself on a machine that has no GPU, which the setup has said.

    Args:
        stream: Where all else goes, at once.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.dropped = False

    def write(self, text: str) -> int:
        # print() writes its text and its line's end one after the other.
        end = self.dropped and text == "\n"
        self.dropped = bool(_CPU_NOTES.match(text))
        if not (self.dropped or end):
            self.stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of the log tells a user anything; the same function again is not added to a logger."""
    return "Restored added_tokens_decoder metadata" not in str(record.msg)


def load_model(config: ModelConfig, *, style: str = "chat", precision: str | None = None) -> LoadedModel:
    """Load a base model through Unsloth and install its chat template.

    Args:
        config: Which model, its length limit, and whether in 4 bit.
        style: "chat" or "alpaca": the template to install.
        precision: "bf16", "fp16" or "fp32"; by default the configuration's.

    Returns:
        The model and its tokenizer.

    Raises:
        StackError: The model cannot be loaded.
        TemplateError: The tokenizer is not what the template was made for.
    """
    import_unsloth()
    source, revision = model_source(config)
    model, tokenizer, precision = _from_pretrained(source, revision, config, precision)
    template = install_template(tokenizer, style)
    _set_padding(tokenizer)
    model.generation_config.max_length = (
        None  # saved with the checkpoint; beside max_new_tokens it only causes warnings
    )
    return LoadedModel(model, tokenizer, template, source, precision, config.max_seq_length)


def attach_adapter(
    loaded: LoadedModel,
    config: AdapterConfig,
    *,
    seed: int,
    gradient_checkpointing: bool,
    checkpoint_skip_layers: int = 0,
) -> None:
    """Attach a fresh LoRA adapter to all linear layers, in place.

    Args:
        seed: Seed of the adapter's random half; the other half starts at zero.
        gradient_checkpointing: Recompute activations in the backward pass (Unsloth's variant).
        checkpoint_skip_layers: Layers that keep their activations all the same, spread evenly over the model, the last
            one among them. On a CPU it has no effect: Unsloth recomputes all layers there, or none.

    Raises:
        ConfigError: There are fewer layers.
    """
    from unsloth import FastLanguageModel

    if checkpoint_skip_layers:
        check_skip_layers(checkpoint_skip_layers, loaded.model.config.num_hidden_layers)
    skip = {"checkpoint_skip_layers": checkpoint_skip_layers} if checkpoint_skip_layers and find_gpu() else {}
    loaded.model = FastLanguageModel.get_peft_model(
        loaded.model,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias="none",  # a trained bias would stay on when the adapter is switched off (peft issue 741)
        target_modules=list(TARGET_MODULES),
        use_gradient_checkpointing="unsloth" if gradient_checkpointing else False,
        random_state=seed,
        **skip,  # unsloth_zoo 2026.10.9 hands names that it does not know to PEFT on a CPU, which refuses them
    )


def load_adapter(folder: Path | str, config: RunConfig) -> LoadedModel:
    """Load a base model afresh and put a saved adapter on it.

    Args:
        folder: What `helpers.export.save_adapter` wrote.

    Returns:
        The tuned model, with the tokenizer and template saved beside the adapter.

    Raises:
        ExportError: The folder holds no adapter, or one that does not fit this model.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            remedy = "Save or copy the adapter again; weights in a .bin file are a pickle and are not loaded."
            raise ExportError("adapter_dir", f"a folder with {name}", str(folder), remedy)
    loaded = load_model(config.model, style=config.data.prompt_style)
    loaded.tokenizer = _load_tokenizer(folder)
    loaded.model = put_adapter(loaded.model, folder)
    return loaded


def put_adapter(model: Any, folder: Path | str) -> Any:
    """Put a saved adapter on a base model, which must stay what it is when the adapter is switched off.

    Some adapters change the base weights themselves, so that the model without them is not the base: those initialised
    with PiSSA or OLoRA, or with `layer_replication`. They are found by comparing logits from before and after: these
    may be four times as far apart as rounding takes them, which is what was measured or one step of the model's type.

    Args:
        folder: What `helpers.export.save_adapter` wrote.

    Raises:
        ExportError: The adapter belongs to another model, lacks weights or has too many, or changes the base.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    from helpers.model.distance import jitter_activations, measure_distance

    remedy = "Train again, or name the base model that the adapter was made for."
    pattern = "Its adapter_config.json has a pattern that does not end: name the modules instead."
    endless = ExportError("adapter_dir", "an adapter that is attached within ten minutes", str(folder), pattern)
    training = model.training
    model.eval()
    before = _probe(model)
    with jitter_activations(model):
        rounding = measure_distance(before, _probe(model)).rms
    rounding = max(rounding, _step_of_logits(model, before), 1e-6)
    try:
        with time_limit(600, endless), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error below
            tuned = PeftModel.from_pretrained(model, str(folder))
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            stored = set(file.keys())
    except HelpersError:
        raise
    except Exception as error:  # PEFT, safetensors and torch each raise their own types
        raise ExportError("adapter_dir", "an adapter of this base model", _said(error), remedy) from error
    if wrong := sorted(stored ^ set(get_peft_model_state_dict(tuned))):
        said = f"{len(wrong)} missing or unexpected, such as {wrong[0]}"
        raise ExportError("adapter_dir", "the adapter's weights, all of them and no others", said, remedy)
    with tuned.disable_adapter():
        moved = measure_distance(before, _probe(tuned)).rms
    if not moved <= 4 * rounding:
        said = f"logits that are {moved:.2g} off with the adapter switched off; rounding explains {rounding:.2g}"
        remedy = "It changes the base weights, as PiSSA, OLoRA and layer_replication do; merge it, or train plain LoRA."
        raise ExportError("adapter_dir", "an adapter that leaves the base model as it is", said, remedy)
    tuned.train(training)
    return tuned


def _probe(model: Any) -> list[Any]:
    """Return the logits of a few fixed tokens."""
    import torch

    device = model.get_input_embeddings().weight.device
    device = torch.device("cuda") if device.type == "meta" and torch.cuda.is_available() else device
    ids = torch.arange(100, 132, device=device).unsqueeze(0)
    with torch.no_grad():
        return [model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().cpu()]


def _step_of_logits(model: Any, logits: list[Any]) -> float:
    """Return one step of the type that a model computes in, at the size of its logits (root mean square)."""
    import torch

    size = torch.cat(logits).square().mean().sqrt().item()
    return torch.finfo(model.get_input_embeddings().weight.dtype).eps * size


def trainable_parameters(model: Any) -> tuple[int, int]:
    """Return (trainable, all) parameters; 4-bit weights count as the parameters they stand for."""
    return model.get_nb_trainable_parameters()


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Switch the adapter off: inside the block the model answers as its base.

    Inputs must not mix rows with and without adapter; Unsloth's decoding bypasses PEFT's per-row adapters.
    """
    with model.disable_adapter():
        yield


def free_memory() -> None:
    """Return the memory of deleted models to the system and the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _from_pretrained(
    source: str, revision: str | None, config: ModelConfig, precision: str | None
) -> tuple[Any, Any, str]:
    """Call Unsloth's loader with the type that the hardware computes in."""
    import torch
    from unsloth import FastLanguageModel

    gpu = find_gpu()
    if precision is None:
        native = choose_precision(gpu.capability if gpu else None)
        precision = native if config.precision == "auto" else config.precision
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    options: dict[str, Any] = {"revision": revision} if revision and not Path(source).is_dir() else {}
    options["use_safetensors"] = True  # pytorch_model.bin is a pickle
    if place().count > 1:  # a whole model for each process, on its own GPU
        options["device_map"] = {"": f"cuda:{place().local}" if gpu else "cpu"}
    options |= loader_options()
    try:
        with redirect_stdout(_WithoutNotes(sys.stdout)):
            model, tokenizer = FastLanguageModel.from_pretrained(
                source,
                max_seq_length=config.max_seq_length,
                dtype=dtype,
                load_in_4bit=config.load_in_4bit,
                trust_remote_code=False,  # left out, transformers asks, and a "y" runs a stranger's code
                **options,
            )
    except HelpersError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise StackError("model_name", "a model that can be loaded", source, _said(error)) from error
    return model, tokenizer, precision


def _said(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}"


def _load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer that was saved with an adapter."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise a dozen unrelated types
        raise ExportError("adapter_dir", "a tokenizer beside the adapter", _said(error), "Save it again.") from error
    if not tokenizer.chat_template:
        raise ExportError("adapter_dir", "a tokenizer with its chat template", str(folder), "Save the adapter again.")
    return tokenizer


def _set_padding(tokenizer: Any) -> None:
    """Make sure that PAD is a token of its own."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "right"
