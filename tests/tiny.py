"""Small real things for tests: Mistral's own v0.3 tokenizer, and a Mistral of two layers with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def build_tokenizer(folder: Path, file: str = "mistral_instruct_tokenizer_240323.model.v3") -> Path:
    """Write the fast form of a tokenizer of Mistral's, by default v0.3's, from the file that mistral-common carries.

    transformers 5.17 orders the merges by token id; SentencePiece merges by score, which differs for runs of spaces.
    They are put into the order of their scores here, and `test_templates` compares the result with mistral-common.

    Args:
        folder: Where to; made if need be.
        file: Its name in mistral-common: a SentencePiece model, or a "tekken" file.

    Returns:
        The folder.
    """
    import mistral_common

    if file.startswith("tekken"):
        from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

        source = Path(mistral_common.__file__).parent / "data" / file
        convert_tekken_tokenizer(str(source), chat_template="").save_pretrained(folder)
        return folder
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    source = Path(mistral_common.__file__).parent / "data" / file
    shutil.copy(source, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    (folder / "tokenizer.model").unlink()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    merges = content["model"]["merges"]
    merges.sort(key=lambda pair: -pieces.get_score(pieces.piece_to_id("".join(pair))))
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def build_mistral(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a tiny Mistral with random float32 weights and the real tokenizer.

    Args:
        folder: Where to.
        layers: Transformer blocks.
        seed: Of the weights.

    Returns:
        The folder, which `model_name` takes.
    """
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    build_tokenizer(folder)
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=32768,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        sliding_window=None,
        rope_theta=1e6,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = MistralForCausalLM(config)
    model.generation_config.max_length = 2048  # as published checkpoints have it
    model.save_pretrained(folder)
    return folder
