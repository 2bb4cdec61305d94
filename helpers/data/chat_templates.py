"""Chat templates: how messages become text, the same in training and in inference.

The model's stock template is replaced by one of these, and saved with the adapter. Those of Mistral's models give the
token ids of Mistral's own library (https://github.com/mistralai/mistral-common) for every conversation; the templates
on the model hub do not when a row with a system prompt ends with the assistant's answer. A model of another family
keeps its own template, if that passes the same checks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    "ChatTemplate",
    "find_control_text",
    "find_template",
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

MISTRAL_TEKKEN = MISTRAL_V3.replace("'[INST] '", "'[INST]'").replace("(' ' + words if words else '')", "words")
"""The same format for the tokenizer Tekken of Mistral Nemo and Ministral 8B, which marks no word starts."""

MISTRAL_V1 = """\
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('After an optional system message, roles must alternate user and assistant.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
"""Mistral's first format, of Mistral-7B-Instruct v0.1 and v0.2. [INST] is plain text there, and the system prompt goes
before the *first* user message."""

MISTRAL_V1_LEGACY = MISTRAL_V1.replace("' [INST] '", "'[INST] '")
"""The same for conversions of that tokenizer which write a word start after each control token themselves."""

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

_HELLO = [("user", "Hello")]
_SYSTEM = [("system", "You are helpful."), ("user", "Hello")]
_ANSWERED = [("user", "Hello"), ("assistant", "Answer ")]

_MISTRAL = (
    # name, template, and the token ids that mistral-common 1.13.1 gives for these three conversations
    ("mistral-v3", MISTRAL_V3, (
        [1, 3, 23325, 4],
        [1, 3, 1763, 1228, 11633, 29491, 781, 781, 16998, 4],
        [1, 3, 23325, 4, 27075, 2],
    )),
    ("mistral-v3-tekken", MISTRAL_TEKKEN, (
        [1, 3, 22177, 4],
        [1, 3, 4568, 1584, 20351, 1338, 22177, 4],
        [1, 3, 22177, 4, 31106, 2],
    )),
    *(("mistral-v1", template, (
        [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793],
        [1, 733, 16289, 28793, 995, 460, 10865, 28723, 13, 13, 16230, 733, 28748, 16289, 28793],
        [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793, 26307, 28705, 2],
    )) for template in (MISTRAL_V1, MISTRAL_V1_LEGACY)),
)  # fmt: skip


def install_template(tokenizer: PreTrainedTokenizerBase, style: str) -> str:
    """Give a tokenizer the template that its model was trained on, or the Alpaca text block.

    Args:
        tokenizer: The model's tokenizer; its `chat_template` is replaced.

    Returns:
        The template's name: "mistral-v3", "mistral-v3-tekken", "mistral-v1", "chatml", "alpaca" or, if the model's own
        stays, "own".

    Raises:
        TemplateError: The tokenizer gives other ids than the model's library, or has neither a known format nor a
            template of its own that can be trained with.
    """
    vocabulary = tokenizer.get_vocab()
    if style == "alpaca":
        name, tokenizer.chat_template = "alpaca", ALPACA
    elif {"[INST]", "[/INST]"} <= vocabulary.keys() or {"▁[", "INST", "▁</"} <= vocabulary.keys():
        name = _install_mistral(tokenizer, vocabulary)
    elif {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys():
        name, tokenizer.chat_template = "chatml", CHATML
    else:
        name = _keep_own(tokenizer)
    return name


def masked_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's template with marks around each answer and its EOS, for training alone.

    With `apply_chat_template(..., chat_template=masked_template(tokenizer), return_assistant_tokens_mask=True)` the
    text is the same, and transformers' `assistant_masks` says which tokens are an answer's. Messages with a true value
    under "given" are not marked.

    Args:
        tokenizer: With a template of this module, or one of its own that was checked here.

    Returns:
        The template in Jinja, with transformers' `generation` blocks.
    """
    text = str(tokenizer.chat_template)
    return next((_mark(text, answer) for answer in _ANSWERS if answer in text), _MASKED % text)


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a model's family, and a token to fill rows up with.

    Args:
        name: As from `install_template`.
        text: In Jinja, for `tokenizer.chat_template`.
        masked: The same with marks around each answer and its EOS, for training alone (`masked_template`).
        pad_token: One that is not EOS, or answers would never end.
    """

    name: str
    text: str
    masked: str
    pad_token: str


def find_template(tokenizer: PreTrainedTokenizerBase, style: str) -> ChatTemplate:
    """Return the template of a tokenizer's family, compared with the model's own library.

    Raises:
        TemplateError: The tokenizer belongs to no family known here, or gives other ids than the model's library.
    """
    own = tokenizer.chat_template
    name = install_template(tokenizer, style)
    masked = masked_template(tokenizer)
    found, tokenizer.chat_template = str(tokenizer.chat_template), own
    lacking = tokenizer.pad_token_id in (None, tokenizer.eos_token_id)
    return ChatTemplate(name, found, masked, tokenizer.unk_token if lacking else tokenizer.pad_token)


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
        field: What to call the prompts in the message.

    Raises:
        TemplateError: A prompt contains a control token.
    """
    for index, string in find_control_text(texts, tokenizer):
        raise TemplateError(
            field,
            "text without the model's control tokens",
            texts[index],
            f"The model would read {string} as a control token, not as text. Write it differently.",
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer_next: bool) -> str:
    """Write messages as the text that is tokenized.

    Args:
        tokenizer: With one of this module's templates installed.
        answer_next: Whether the assistant speaks next.

    Returns:
        The text, control tokens spelled out, BOS included. Tokenize it with `add_special_tokens=False`.

    Raises:
        TemplateError: The template refuses the messages, such as two of the user's in a row.
    """
    import jinja2

    endless = TemplateError(
        "chat_template", "one that ends within a minute", tokenizer.name_or_path, "Use its own model's."
    )
    try:
        with time_limit(60, endless):
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer_next))
    except jinja2.TemplateError as error:
        roles = [message.get("role") for message in messages]
        raise TemplateError("messages", "a conversation that the template can write", roles, str(error)) from None


_ANSWERS = (
    "(' ' + words if words else '') + eos_token",
    "words + eos_token",
    "' ' + message['content'] + eos_token",
    "message['content'] + '<|im_end|>'",
)
"""How templates of this module write an answer."""


def _mark(template: str, answer: str) -> str:
    """Put transformers' `generation` block around what a template writes of an answer."""
    learned = "message['role'] == 'assistant' and not message['given']"
    plain = f"{{{{- {answer} }}}}"
    marked = f"{{%- if {learned} %}}{{%- generation %}}{plain}{{%- endgeneration %}}{{%- else %}}{plain}{{%- endif %}}"
    return (
        template.replace(plain, marked)
        if plain in template
        else template.replace(f" + {answer} }}}}", f" }}}}{marked}")
    )


_MASKED = """\
{%%- macro written(messages, add_generation_prompt) %%}%s{%% endmacro %%}
{%%- set past = namespace(length=0) %%}
{%%- for message in messages %%}
    {%%- if message['role'] == 'assistant' %%}
        {%%- set given = written(messages[:loop.index0], true) %%}
        {%%- set whole = written(messages[:loop.index], false) %%}
        {%%- set end = whole.rfind(eos_token) + eos_token | length %%}
        {{- given[past.length:] }}
        {%%- if message['given'] %%}
            {{- whole[given | length:end] }}
        {%%- else %%}
            {%%- generation %%}{{- whole[given | length:end] }}{%%- endgeneration %%}
        {%%- endif %%}
        {%%- set past.length = end %%}
    {%%- endif %%}
{%%- endfor %%}
"""
"""Any template with marks around the answers: what it writes for a conversation, less what it writes for the prompt."""


def _ids_of(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], *, answer_next: bool) -> list[int]:
    """Return a conversation's token ids."""
    text = render(tokenizer, _messages(turns), answer_next=answer_next)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _install_mistral(tokenizer: PreTrainedTokenizerBase, vocabulary: Iterable[str]) -> str:
    """Install the format of Mistral's that gives the ids of Mistral's own library, or raise."""
    found: list[int] = []
    names = ("mistral-v3", "mistral-v3-tekken") if "[INST]" in vocabulary else ("mistral-v1",)
    for name, template, expected in _MISTRAL:
        if name not in names:
            continue
        tokenizer.chat_template = template
        ids = [_ids_of(tokenizer, turns, answer_next=False) for turns in (_HELLO, _SYSTEM, _ANSWERED)]
        if ids == list(expected):
            return name
        found = found or next(a for a, b in zip(ids, expected, strict=True) if a != b)
    wanted = " or ".join(str(each[2][0]) for each in _MISTRAL if each[0] in names)
    raise TemplateError(
        "model_name",
        f"the token ids of Mistral's own library, such as {wanted} for Hello",
        found,
        "This tokenizer is not Mistral's, or was converted wrongly.",
    )


def _keep_own(tokenizer: PreTrainedTokenizerBase) -> str:
    """Check that a model can be trained with its own template, and keep that."""
    if not tokenizer.chat_template or tokenizer.eos_token is None:
        raise TemplateError(
            "model_name",
            "a model with Mistral's [INST], ChatML's <|im_start|>, or a chat template and an EOS token of its own",
            tokenizer.name_or_path,
            'Use prompt_style "alpaca" for a model without chat tokens.',
        )
    whole = render(tokenizer, _messages(_ANSWERED), answer_next=False)
    if not whole.endswith(tokenizer.eos_token) and whole.rstrip().endswith(tokenizer.eos_token):
        tokenizer.chat_template = _TRIMMED % tokenizer.chat_template
    prompt, ids = (_ids_of(tokenizer, _ANSWERED[:n], answer_next=n == 1) for n in (1, 2))
    bos = tokenizer.bos_token_id
    try:
        system = "You are helpful." in render(tokenizer, _messages(_SYSTEM), answer_next=True)
    except TemplateError:
        system = True  # it refuses system prompts, and so do the rows that have one
    checks = {
        "ends an answer with EOS": ids[-1:] == [tokenizer.eos_token_id],
        "writes BOS once, at the start, if the tokenizer has one": bos is None
        or ids.count(bos) == (ids[0] == bos) == 1,
        "writes the prompt in the same way with and without its answer": ids[: len(prompt)] == prompt,
        "writes the system prompt": system,
    }
    for check, passed in checks.items():
        if not passed:
            remedy = 'Use prompt_style "alpaca", or a template that does.'
            raise TemplateError("model_name", f"a chat template that {check}", whole, remedy)
    return "own"


_TRIMMED = (
    "{%%- set written %%}%s{%% endset %%}{{- written if add_generation_prompt is defined and add_generation_prompt "
    "else written.rstrip() }}"
)
"""A template without the white space that it writes after the last EOS, which nobody should learn."""


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return messages of (role, text)."""
    return [{"role": role, "content": content} for role, content in turns]
