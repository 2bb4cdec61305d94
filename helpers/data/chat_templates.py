"""Chat templates: how messages become text, the same in training and in inference.

The model's stock template is replaced by one of these, and saved with the adapter. `mistral-v3` gives the token ids of
Mistral's own library (https://github.com/mistralai/mistral-common, tokenizer v3) for every conversation; the template
on the model hub does not when a row with a system prompt ends with the assistant's answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from helpers.core.errors import TemplateError
from helpers.core.time_limit import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from helpers.data.prompts import Message

__all__ = [
    "ALPACA",
    "CHATML",
    "MISTRAL_V3",
    "control_strings",
    "find_control_text",
    "install_template",
    "refuse_control_text",
    "render",
    "template_sha256",
]

MISTRAL_V3 = """\
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- set last = namespace(user=-1) %}
{%- for message in turns %}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('After an optional system message, roles must alternate user and assistant.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {%- set prefix = system + '\\n\\n' if system and loop.index0 == last.user else '' %}
        {{- '[INST] ' + prefix + message['content'] + '[/INST]' }}
    {%- else %}
        {%- set words = message['content'].rstrip(' ') %}
        {{- (' ' + words if words else '') + eos_token }}
    {%- endif %}
{%- endfor %}
"""
"""Mistral's v3 format. The system prompt goes before the *last* user message, also when an answer follows it. The space
after `[INST]` and before an answer is SentencePiece's word-start mark, which mistral-common's encoder adds itself."""

CHATML = """\
{%- for message in messages %}
    {{- ('' if loop.first else '\\n') + '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n<|im_start|>assistant\\n' }}{%- endif %}
"""
"""ChatML without a closing line break, so that the end-of-turn token is the last one that is learned."""

ALPACA = """\
{{- bos_token or '' }}
{%- for message in messages %}
    {{- message['content'] + (eos_token if message['role'] == 'assistant' else '') }}
{%- endfor %}
"""
"""Messages written one after the other: the user's message is already Stanford's text block."""

_PROOFS = (
    # messages, token ids that mistral-common 1.13.1 gives (MistralTokenizer.v3())
    ([("user", "Hello")], [1, 3, 23325, 4]),
    ([("system", "You are helpful."), ("user", "Hello")], [1, 3, 1763, 1228, 11633, 29491, 781, 781, 16998, 4]),
    ([("user", "Hello"), ("assistant", "Answer ")], [1, 3, 23325, 4, 27075, 2]),
)


def install_template(tokenizer: PreTrainedTokenizerBase, style: str) -> str:
    """Give a tokenizer the template that its model was trained on, or the Alpaca text block.

    Args:
        tokenizer: The model's tokenizer; its `chat_template` is replaced.
        style: "chat" or "alpaca".

    Returns:
        The template's name: "mistral-v3", "chatml" or "alpaca".

    Raises:
        TemplateError: The tokenizer belongs to no family known here, or gives other ids than the model's library.
    """
    vocabulary = tokenizer.get_vocab()
    if style == "alpaca":
        name, tokenizer.chat_template = "alpaca", ALPACA
    elif {"[INST]", "[/INST]"} <= vocabulary.keys():
        name, tokenizer.chat_template = "mistral-v3", MISTRAL_V3
        _prove_mistral(tokenizer)
    elif {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys():
        name, tokenizer.chat_template = "chatml", CHATML
    else:
        raise TemplateError(
            "model_name",
            "a model with Mistral's [INST] or ChatML's <|im_start|> tokens",
            tokenizer.name_or_path,
            'Use prompt_style "alpaca" for a model without chat tokens.',
        )
    return name


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the tokenizer's chat template, in hexadecimal."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def control_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts that the tokenizer reads as control tokens, such as "[INST]" or "</s>"."""
    added = tokenizer.get_added_vocab()
    return tuple(sorted({*added, *tokenizer.all_special_tokens}))


def find_control_text(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    """Find the texts that contain a control token spelled out.

    Such a text would be read as control: an `</s>` inside an answer ends it, an `[INST]` begins a new turn.

    Args:
        texts: Any texts.
        tokenizer: Says which strings are control tokens.

    Returns:
        (index, control string) of each text that contains one, the first found in each.
    """
    strings = control_strings(tokenizer)
    if not strings:
        return []
    pattern = re.compile("|".join(re.escape(s) for s in sorted(strings, key=len, reverse=True)))
    found = ((i, pattern.search(text)) for i, text in enumerate(texts))
    return [(i, match.group()) for i, match in found if match]


def refuse_control_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, field: str) -> None:
    """Raise if a prompt contains a control token spelled out.

    Args:
        texts: The prompts.
        tokenizer: Says which strings are control tokens.
        field: What to call the prompts in the message.

    Raises:
        TemplateError: A prompt contains a control token.
    """
    for index, string in find_control_text(texts, tokenizer):
        raise TemplateError(
            field,
            "text without the model's control tokens",
            texts[index],
            f"The model would read {string} as control, not as text. Write it differently.",
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer_next: bool) -> str:
    """Write messages as the text that is tokenized.

    Args:
        tokenizer: With one of this module's templates installed.
        messages: The conversation.
        answer_next: Whether the assistant speaks next.

    Returns:
        The text, control tokens spelled out, BOS included. Tokenize it with `add_special_tokens=False`.

    Raises:
        TemplateError: The template refuses the messages, such as two of the user's in a row.
    """
    import jinja2

    endless = TemplateError("chat_template", "a template that ends within a minute", tokenizer.name_or_path)
    try:
        with time_limit(60, endless):
            return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer_next)
    except jinja2.TemplateError as error:
        roles = [message.get("role") for message in messages]
        raise TemplateError("messages", "a conversation that the template can write", roles, str(error)) from None


def _prove_mistral(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless a few conversations give the ids of Mistral's own library."""
    for turns, expected in _PROOFS:
        messages = [{"role": role, "content": content} for role, content in turns]
        ids = tokenizer(render(tokenizer, messages, answer_next=False), add_special_tokens=False)["input_ids"]
        if ids != expected:
            raise TemplateError(
                "model_name",
                f"the token ids {expected} of Mistral's own library for {turns}",
                ids,
                "This tokenizer is not Mistral's v3, or was converted wrongly.",
            )
