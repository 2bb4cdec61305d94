"""A Hugging Face tokenizer as the tokenizer metadata of a GGUF file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import StackError

__all__ = ["GgufVocabulary", "read_vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer."""


@dataclass(frozen=True)
class GgufVocabulary:
    """What llama.cpp needs to tokenize.

    Args:
        model: "llama" for SentencePiece, "gpt2" for byte-level BPE.
        pre: How text is split before merging: llama.cpp's name for it.
        tokens: The tokens' texts, by id.
        types: Their types, by id.
        scores: SentencePiece's scores, by id; None for byte-level BPE.
        merges: Pairs to merge, best first; None for SentencePiece.
        special: "bos", "eos", "pad" and "unk" -> id, where there is one.
        add_bos: Whether BOS goes before each text.
        add_space_prefix: Whether a space goes before each text.
        chat_template: The Jinja template.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    special: dict[str, int]
    add_bos: bool
    add_space_prefix: bool
    chat_template: str

    def write(self, writer: Any) -> None:
        """Write it as key-value pairs.

        Args:
            writer: A `gguf.GGUFWriter`.
        """
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.scores is not None:
            writer.add_token_scores(list(self.scores))
        if self.merges is not None:
            writer.add_token_merges(list(self.merges))
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path | str, size: int) -> GgufVocabulary:
    """Read the tokenizer beside a model's weights.

    Args:
        folder: The merged model.
        size: Rows of its embedding; ids that the tokenizer lacks become unused tokens.

    Returns:
        The vocabulary.

    Raises:
        StackError: The tokenizer is neither SentencePiece's BPE nor byte-level BPE with a split that is known here.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, pre = _kind(content)
    tokens, types = _tokens(content, size, model)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "unk": tokenizer.unk_token_id,
    }
    scheme = (content.get("pre_tokenizer") or {}).get("prepend_scheme")
    return GgufVocabulary(
        model,
        pre,
        tokens,
        types,
        _scores(content, tokens) if model == "llama" else None,
        tuple(merges) if model == "gpt2" else None,
        {k: v for k, v in special.items() if v is not None},
        tokenizer.bos_token_id is not None and model == "llama",
        scheme == "always",
        tokenizer.chat_template or "",
    )


def _kind(content: dict[str, Any]) -> tuple[str, str]:
    """Return llama.cpp's names for the tokenizer and its split.

    A text that follows BOS gets no space before it from `prepend_scheme: first`, and every rendered conversation
    begins with BOS, so only `always` becomes `add_space_prefix`.
    """
    split, merge = content.get("pre_tokenizer") or {}, content["model"]
    if merge["type"] == "BPE" and merge.get("byte_fallback") and split.get("type") in (None, "Metaspace"):
        return "llama", "default"
    parts = split.get("pretokenizers", [split])
    kinds = [part.get("type") for part in parts]
    if merge["type"] == "BPE" and kinds == ["ByteLevel"]:
        return "gpt2", "gpt-2"
    if merge["type"] == "BPE" and kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "gpt2", "smollm"
    raise StackError(
        "tokenizer",
        "SentencePiece BPE, or byte-level BPE as GPT-2's or SmolLM's",
        f"{merge['type']} with {kinds}",
        "Convert this model with llama.cpp's convert_hf_to_gguf.py.",
    )


def _tokens(content: dict[str, Any], size: int, model: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return all tokens' texts and types, by id."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for text, number in content["model"]["vocab"].items():
        byte = model == "llama" and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        tokens[number], types[number] = text, BYTE if byte else NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    unknown = content["model"].get("unk_token") or "<unk>"
    if model == "llama" and unknown in tokens:
        types[tokens.index(unknown)] = UNKNOWN
    return tuple(tokens), tuple(types)


def _scores(content: dict[str, Any], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """Return SentencePiece's scores: minus the order in which tokens are merged; others come last."""
    order: dict[str, int] = {}
    for pair in content["model"]["merges"]:
        first, second = pair if isinstance(pair, list) else pair.split(" ")
        order.setdefault(first + second, len(order))
    return tuple(-float(order.get(token, len(order))) for token in tokens)
