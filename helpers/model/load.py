"""What the versions in use ask of whoever loads models: a quiet import of Unsloth, errors that say what to do, and a
saved adapter put on its base with proof that the base stays what it is.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers.core.config import MODELS, ModelConfig
from helpers.core.errors import ExportError, HelpersError, StackError
from helpers.core.files import disk_error, error_chain
from helpers.core.time_limit import time_limit
from helpers.model.patches.imports import long_lived, packages_listed_once, sft_alone

__all__ = [
    "TARGET_MODULES",
    "free_memory",
    "import_unsloth",
    "model_source",
    "prepare_unsloth",
    "put_adapter",
    "ran_out_of_memory",
]

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of a Mistral or Llama block."""

NAMES = "Name an alias, a model's id on huggingface.co, or a folder with config.json and .safetensors files."
OFFLINE = "It is not in this machine's cache, and the hub cannot be reached: connect, or name a folder that holds it."

_PROBE = range(100, 132)
"""Tokens by which a base model is compared with itself."""

_CPU_NOTES = re.compile(r"Unsloth [\w.]+: no GPU found|Unsloth \(CPU\): \w+ on \d+ CPU threads")


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
    2026.10.9 warns through a logger of transformers each time it saves a tokenizer as it should be saved. A model that
    cannot be loaded is told as a StackError of the parameter `model_name`.
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
    """Finds unsloth as it is found anyway, and imports it without its notes and without trainers that nobody uses.

    Its loader then says what to do where a model cannot be loaded.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "unsloth":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                with long_lived(), redirect_stdout(_WithoutNotes(sys.stdout)), sft_alone(), packages_listed_once():
                    execute(module)
                loader = module.FastLanguageModel
                loader.from_pretrained = staticmethod(_explained(loader.from_pretrained))

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _explained(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return Unsloth's loader with errors that name the parameter, without its notes."""

    @wraps(load)
    def from_pretrained(model_name: str, *arguments: Any, **named: Any) -> Any:
        try:
            with redirect_stdout(_WithoutNotes(sys.stdout)):
                return load(model_name, *arguments, **named)
        except HelpersError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            if full := disk_error(f"the files of {model_name}", _hub_cache(), error, reading=True):
                raise full from error
            raise StackError("model_name", "a model that can be loaded", model_name, _remedy(error)) from error

    return from_pretrained


def _hub_cache() -> Path:
    """Return the folder that models are downloaded into."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _remedy(error: BaseException) -> str:
    """Return what the loader's error says, and what to do about it."""
    import huggingface_hub.errors as hub

    chain = list(error_chain(error))
    advice = (
        (hub.GatedRepoError, "Accept its terms on huggingface.co, and set the environment variable HF_TOKEN."),
        (hub.RevisionNotFoundError, "Correct model_revision."),
        (hub.RepositoryNotFoundError, "Look its name up on huggingface.co; a private model needs HF_TOKEN."),
        ((hub.OfflineModeIsEnabled, ConnectionError, hub.LocalEntryNotFoundError), OFFLINE),
    )
    found = (said for kinds, said in advice if any(isinstance(each, kinds) for each in chain))
    return f"{_said(error)} {next(found, NAMES)}"


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


def put_adapter(model: Any, folder: Path | str) -> Any:
    """Put a saved adapter on a base model, which must stay what it is when the adapter is switched off.

    Some adapters change the base weights themselves, so that the model without them is not the base: those initialised
    with PiSSA or OLoRA, or with `layer_replication`. They are found by comparing logits from before and after: these
    may be four times as far apart as rounding takes them, which is what was measured or one step of the model's type.

    Args:
        folder: What `helpers.export.save_adapter` wrote.

    Raises:
        ExportError: The folder holds no adapter, or one that belongs to another model, lacks weights or has too many,
            or changes the base.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    from helpers.model.distance import jitter_activations, logits_of, measure_distance

    remedy = "Train again, or name the base model that the adapter was made for."
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).is_file():
            again = "Save or copy the adapter again; weights in a .bin file are a pickle and are not loaded."
            raise ExportError("adapter_dir", f"a folder with {name}", str(folder), again)
    pattern = "Its adapter_config.json has a pattern that does not end: name the modules instead."
    endless = ExportError("adapter_dir", "an adapter that is attached within ten minutes", str(folder), pattern)
    training = model.training
    model.eval()
    before = [logits_of(model, _PROBE)]
    with jitter_activations(model):
        rounding = measure_distance(before, [logits_of(model, _PROBE)]).rms
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
    loaded = get_peft_model_state_dict(tuned, save_embedding_layers=False)  # "auto" would ask the Hub for the base
    copied = {
        key for key in stored - set(loaded) if re.search(r"\.(embed_tokens|lm_head)\.", key) and "lora_" not in key
    }
    if wrong := sorted((stored - copied) ^ set(loaded)):  # PEFT copies the base's embeddings beside their adapter
        said = f"{len(wrong)} missing or unexpected, such as {wrong[0]}"
        raise ExportError("adapter_dir", "the adapter's weights, all of them and no others", said, remedy)
    with tuned.disable_adapter():
        moved = measure_distance(before, [logits_of(tuned, _PROBE)]).rms
    if not moved <= 4 * rounding:
        said = f"logits that are {moved:.2g} off with the adapter switched off; rounding explains {rounding:.2g}"
        remedy = "It changes the base weights, as PiSSA, OLoRA and layer_replication do; merge it, or train plain LoRA."
        raise ExportError("adapter_dir", "an adapter that leaves the base model as it is", said, remedy)
    tuned.train(training)
    return tuned


def _step_of_logits(model: Any, logits: list[Any]) -> float:
    """Return one step of the type that a model computes in, at the size of its logits (root mean square)."""
    import torch

    size = torch.cat(logits).square().mean().sqrt().item()
    return torch.finfo(model.get_input_embeddings().weight.dtype).eps * size


def free_memory() -> None:
    """Return the memory of deleted models to the system and the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ran_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the card's memory or the machine's is full; torch says of the latter little."""
    import torch

    texts = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts))


def _said(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}"
