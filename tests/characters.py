"""Tokenizers whose ids are code points, so that expected ids and labels can be read."""

from __future__ import annotations

PAD, BOS, EOS, INST, END_INST, SPACE = 0, 1, 2, 3, 4, 32


def character_tokenizer(template: str = ""):
    """Return a tokenizer of the first 256 characters, five of whose ids are Mistral's control tokens instead.

    Args:
        template: A chat template, or "" for Mistral's.
    """
    from helpers.data.chat_templates import MISTRAL_V3

    special = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "[INST]": INST, "[/INST]": END_INST}
    return _build(special, template or MISTRAL_V3, bos_token="<s>", eos_token="</s>")


def chatml_tokenizer():
    """Return the same with ChatML's control tokens, and no BOS."""
    from helpers.data.chat_templates import CHATML

    return _build({"<pad>": PAD, "<|im_start|>": BOS, "<|im_end|>": EOS}, CHATML, eos_token="<|im_end|>")


def codes(text: str) -> list[int]:
    """Return the code points of a text."""
    return [ord(character) for character in text]


def _build(special, template, **tokens):
    """Put a tokenizer together."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(point): point for point in range(5, 256)} | special
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", additional_special_tokens=sorted(special), **tokens
    )
    made.chat_template = template
    return made
