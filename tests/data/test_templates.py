"""Chat templates, above all Mistral's, which is held against Mistral's own library."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
from characters import character_tokenizer, chatml_tokenizer

from helpers.core.errors import TemplateError
from helpers.data.chat_templates import (
    ALPACA,
    CHATML,
    MISTRAL_V3,
    control_strings,
    find_control_text,
    install_template,
    masked_template,
    refuse_control_text,
    render,
    template_sha256,
)

PIECES = (
    "Hello", "The", "the", " the", "a", "I", "x=1", ".", ",", "?", "’", "don't", "123", "2e-4", "<", "[", "]", "/",
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "    ", "\u00a0", "▁", "é", "e\u0301", "İ", "ß", "ﬁ", "٣", "你好",
    "日本", "🙂", "👩‍👩‍👧", "\u200b", "\ufeff", "עברית", "def f():\n    return", "```", "- one\n- two",
)  # fmt: skip


OWN = (
    "{%- for message in messages %}{{- message.role + ':' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
)
GOOD = (
    "{{- bos_token }}{%- for message in messages %}{{- message.role + ':' + message.content + '<end>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
)
"""Templates of models that nobody knows here."""


@pytest.fixture(scope="module")
def mistral_common():
    """Mistral's own encoder: (turns, system prompt or None) to token ids."""
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import InstructRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    encoder = MistralTokenizer.v3().instruct_tokenizer

    def encode(turns, system=None):
        kinds = {"user": UserMessage, "assistant": AssistantMessage}
        messages = [kinds[role](content=content) for role, content in turns]
        return encoder.encode_instruct(InstructRequest(messages=messages, system_prompt=system)).tokens

    return encode


def messages_of(turns, system=None):
    """Return turns in the form that templates take."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": role, "content": content} for role, content in turns)]


def ids_of(tokenizer, messages, *, answer_next):
    """Return the token ids of a conversation."""
    return tokenizer(render(tokenizer, messages, answer_next=answer_next), add_special_tokens=False)["input_ids"]


def random_text(draw):
    """Return a text that is not blank."""
    while True:
        text = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 8)))
        if text.strip():
            return text


def random_conversation(draw, turns, *, system, ends):
    """Return (turns, system prompt): this many user turns, the last answered or not."""
    said = []
    for _ in range(turns):
        said += [("user", random_text(draw)), ("assistant", random_text(draw))]
    return said[:-1] if ends == "user" else said, random_text(draw) if system else None


class TestMistral:
    """Mistral's format, v3."""

    @pytest.mark.parametrize("ends", ["user", "assistant"])
    @pytest.mark.parametrize("system", [False, True], ids=["bare", "system"])
    @pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 6])
    def test_generated_conversations_have_the_ids_of_mistral_common(
        self, mistral_tokenizer, mistral_common, turns, system, ends
    ):
        """Fifty conversations of each shape, with line breaks, Unicode and outer spaces, give the very same ids."""
        draw = random.Random(f"{turns} {system} {ends}")
        for _ in range(50):
            said, prompt = random_conversation(draw, turns, system=system, ends=ends)
            ours = ids_of(mistral_tokenizer, messages_of(said, prompt), answer_next=ends == "user")
            assert ours == mistral_common(said, prompt), (said, prompt)

    def test_the_system_prompt_stands_before_the_last_user_message(self, mistral_tokenizer):
        """System and user text are joined by a blank line inside the instruction."""
        messages = messages_of([("user", "Hello")], "You are helpful.")
        assert ids_of(mistral_tokenizer, messages, answer_next=True) == [
            1, 3, 1763, 1228, 11633, 29491, 781, 781, 16998, 4,
        ]  # fmt: skip

    def test_the_system_prompt_stays_when_an_answer_follows(self, mistral_tokenizer):
        """A training row begins with exactly the ids that inference gives for its prompt."""
        asked = messages_of([("user", "Hello")], "You are helpful.")
        prompt = ids_of(mistral_tokenizer, asked, answer_next=True)
        whole = ids_of(mistral_tokenizer, [*asked, {"role": "assistant", "content": "Answer "}], answer_next=False)
        assert whole == [*prompt, 27075, 2]

    def test_it_is_this_text(self, mistral_tokenizer):
        """The text has one BOS, an EOS after each answer, and the system prompt in the last instruction."""
        messages = messages_of([("user", "A"), ("assistant", " B "), ("user", "C"), ("assistant", "D")], "S")
        assert render(mistral_tokenizer, messages, answer_next=False) == (
            "<s>[INST] A[/INST]  B</s>[INST] S\n\nC[/INST] D</s>"
        )

    def test_an_empty_answer_has_only_its_eos(self, mistral_tokenizer):
        """No space stands before an answer that says nothing."""
        messages = messages_of([("user", "A"), ("assistant", "")])
        assert render(mistral_tokenizer, messages, answer_next=False) == "<s>[INST] A[/INST]</s>"

    @pytest.mark.parametrize(
        "roles",
        [
            ["user", "user"],
            ["assistant"],
            ["system", "assistant"],
            ["user", "system"],
            ["system", "system", "user"],
            ["user", "tool"],
        ],
    )
    def test_roles_in_another_order_are_refused(self, mistral_tokenizer, roles):
        """After an optional system message, user and assistant take turns."""
        with pytest.raises(TemplateError, match="roles must alternate user and assistant") as caught:
            render(mistral_tokenizer, [{"role": role, "content": "x"} for role in roles], answer_next=False)
        assert caught.value.got == roles

    def test_the_template_survives_saving(self, mistral_tokenizer, tmp_path):
        """A tokenizer that was saved and loaded renders the same, by the same template."""
        from transformers import AutoTokenizer

        mistral_tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        messages = messages_of([("user", "Hello"), ("assistant", "Answer")], "You are helpful.")
        assert ids_of(loaded, messages, answer_next=False) == ids_of(mistral_tokenizer, messages, answer_next=False)
        assert template_sha256(loaded) == template_sha256(mistral_tokenizer)


OTHERS = {
    "v1": ("tokenizer.model.v1", "mistral-v1"),
    "v2": ("mistral_instruct_tokenizer_240216.model.v2", "mistral-v3"),
    "nemo": ("tekken_240718.json", "mistral-v3-tekken"),
    "ministral": ("tekken_240911.json", "mistral-v3-tekken"),
}


@pytest.fixture(scope="module", params=list(OTHERS))
def other_mistral(request, tmp_path_factory):
    """Another instruct tokenizer of Mistral's, its template's name, and Mistral's own encoder for it."""
    import mistral_common
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import InstructRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from tiny import build_tokenizer
    from transformers import AutoTokenizer

    file, name = OTHERS[request.param]
    tokenizer = AutoTokenizer.from_pretrained(build_tokenizer(tmp_path_factory.mktemp("other"), file))
    source = Path(mistral_common.__file__).parent / "data" / file
    encoder = MistralTokenizer.from_file(str(source)).instruct_tokenizer
    kinds = {"user": UserMessage, "assistant": AssistantMessage}

    def encode(turns, system=None):
        messages = [kinds[role](content=content) for role, content in turns]
        return encoder.encode_instruct(InstructRequest(messages=messages, system_prompt=system)).tokens

    return tokenizer, name, encode


@pytest.mark.slow
class TestOtherMistrals:
    """v0.1 and v0.2, which share a tokenizer, Mixtral's v2, Nemo, and Ministral 8B."""

    def test_generated_conversations_have_the_ids_of_mistral_common(self, other_mistral):
        """Conversations of one to four turns, with and without a system prompt, ending with either side."""
        tokenizer, name, encode = other_mistral
        assert install_template(tokenizer, "chat") == name
        draw = random.Random(name)
        for number in range(200):
            ends = ("user", "assistant")[number % 2]
            said, prompt = random_conversation(draw, 1 + number % 4, system=number % 3 == 0, ends=ends)
            ours = ids_of(tokenizer, messages_of(said, prompt), answer_next=ends == "user")
            assert ours == encode(said, prompt), (said, prompt)

    def test_answers_are_masked_as_in_mistral_common(self, other_mistral):
        """What is learned are the ids that each answer adds to what was said before it."""
        tokenizer, _, encode = other_mistral
        install_template(tokenizer, "chat")
        draw = random.Random(1)
        for turns in (1, 2, 3, 4):
            said, _ = random_conversation(draw, turns, system=False, ends="assistant")
            said = [(role, text.strip()) for role, text in said]
            ids, mask = masked(tokenizer, messages_of(said))
            assert ids == encode(said)
            assert mask == added_by_answers(said, encode)


def masked(tokenizer, messages):
    """Return a conversation's ids, and 1 for each that belongs to an answer."""
    out = tokenizer.apply_chat_template(
        messages, chat_template=masked_template(tokenizer), return_dict=True, return_assistant_tokens_mask=True
    )
    return out["input_ids"], out["assistant_masks"]


def added_by_answers(said, encode):
    """Return 1 for each id that an answer adds, 0 for the others, by Mistral's own library."""
    mask = []
    for place in range(2, len(said) + 1, 2):
        mask += [0] * (len(encode(said[: place - 1])) - len(mask))
        mask += [1] * (len(encode(said[:place])) - len(mask))
    return mask


class TestMasks:
    """Which tokens of a conversation are learned."""

    @pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
    def test_each_answer_and_its_eos(self, mistral_tokenizer, mistral_common, turns):
        """Random conversations without a system prompt, against mistral-common."""
        draw = random.Random(turns)
        for _ in range(20):
            said, _ = random_conversation(draw, turns, system=False, ends="assistant")
            said = [(role, text.strip()) for role, text in said]
            ids, mask = masked(mistral_tokenizer, messages_of(said))
            assert ids == mistral_common(said)
            assert mask == added_by_answers(said, mistral_common)
            assert sum(i == 2 and m == 1 for i, m in zip(ids, mask, strict=True)) == turns

    def test_a_system_prompt_before_one_answer(self, mistral_tokenizer, mistral_common):
        """It is given, not learned."""
        ids, mask = masked(mistral_tokenizer, messages_of([("user", "A"), ("assistant", "B")], "S"))
        assert ids == mistral_common([("user", "A"), ("assistant", "B")], "S")
        assert [i for i, m in zip(ids, mask, strict=True) if m] == ids[-2:]

    @pytest.mark.parametrize("template", [CHATML, ALPACA, OWN])
    def test_any_template(self, template):
        """The text is that of the plain template, and what is learned reads as answer and EOS, time and again."""
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = template
        messages = messages_of([("user", "A"), ("assistant", "yes yes"), ("user", "B"), ("assistant", "no")], "S")
        ids, mask = masked(tokenizer, messages)
        assert tokenizer.decode(ids) == render(tokenizer, messages, answer_next=False).rstrip()
        learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
        assert learned == "yes yes<|im_end|>no<|im_end|>"

    @pytest.mark.parametrize("template", [CHATML, ALPACA, OWN])
    def test_an_answer_that_is_given_is_not_learned(self, template):
        """The last answer alone is marked."""
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = template
        messages = messages_of([("user", "A"), ("assistant", "yes"), ("user", "B"), ("assistant", "no")], "S")
        for message in messages[:4]:
            message["given"] = True
        ids, mask = masked(tokenizer, messages)
        assert tokenizer.decode(ids) == render(tokenizer, messages, answer_next=False).rstrip()
        assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "no<|im_end|>"

    def test_an_answer_that_is_given_is_not_learned_by_mistral(self, mistral_tokenizer):
        """The last answer alone is marked, and the ids are those of a conversation without marks."""
        said = messages_of([("user", "A"), ("assistant", "yes"), ("user", "B"), ("assistant", "no")])
        ids, mask = masked(mistral_tokenizer, [{**each, "given": True} for each in said[:3]] + said[3:])
        assert ids == ids_of(mistral_tokenizer, said, answer_next=False)
        assert [i for i, m in zip(ids, mask, strict=True) if m] == ids[-2:]

    def test_only_mistral_s_v3_needs_answers_apart(self, mistral_tokenizer):
        """With a system prompt, its earlier turns are written in another way once more is said."""
        said = messages_of([("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")])
        for tokenizer, stays in ((mistral_tokenizer, False), (chatml_tokenizer(), True)):
            first, both = (render(tokenizer, said[:n], answer_next=True) for n in (2, 4))
            assert both.startswith(first) is stays


class TestOwnTemplates:
    """Models of other families, with the template that they bring along."""

    @staticmethod
    def tokenizer(template):
        """Return a tokenizer with other control tokens."""
        from characters import _build

        special = {"<pad>": 0, "<bos>": 1, "<end>": 2}
        return _build(special, template, bos_token="<bos>", eos_token="<end>")

    def test_one_that_passes_the_checks_is_kept(self):
        """The name says so."""
        tokenizer = self.tokenizer(GOOD)
        assert install_template(tokenizer, "chat") == "own"
        assert tokenizer.chat_template == GOOD

    def test_white_space_after_the_last_eos_is_cut_off(self):
        """Inside a conversation it stays."""
        tokenizer = self.tokenizer(GOOD.replace("'<end>' }}", "'<end>\\n' }}"))
        assert install_template(tokenizer, "chat") == "own"
        messages = messages_of([("user", "A"), ("assistant", "B"), ("user", "C")])
        so_far = "<bos>user:A<end>\nassistant:B<end>"
        assert render(tokenizer, messages[:2], answer_next=False) == so_far
        assert (
            render(tokenizer, messages, answer_next=True)
            == "<bos>user:A<end>\nassistant:B<end>\nuser:C<end>\nassistant:"
        )
        assert masked(tokenizer, messages[:2])[1] == [0] * 19 + [1, 1]

    @pytest.mark.parametrize(
        ("change", "check"),
        [
            (("+ '<end>' }}", "+ ';' }}"), "ends an answer with EOS"),
            (("{{- bos_token }}", ""), "writes BOS once, at the start"),
            (("{{- bos_token }}", "{{- bos_token + bos_token }}"), "writes BOS once, at the start"),
            (("add_generation_prompt %}{{- 'assistant:'", "add_generation_prompt %}{{- 'bot:'"),
             "writes the prompt in the"),
            (("{%- for message in messages %}", "{%- for message in messages if message.role != 'system' %}"),
             "writes the system prompt"),
        ],
    )  # fmt: skip
    def test_one_that_does_not_is_refused_with_the_check(self, change, check):
        """Each check is named where it fails."""
        assert change[0] in GOOD
        with pytest.raises(TemplateError, match=f"expected a chat template that {check}"):
            install_template(self.tokenizer(GOOD.replace(*change)), "chat")

    def test_one_that_refuses_system_prompts_is_kept(self):
        """Rows with a system prompt are refused by it when they come."""
        tokenizer = self.tokenizer(
            "{%- if messages[0].role == 'system' %}{{ raise_exception('no') }}{%- endif %}" + GOOD
        )
        assert install_template(tokenizer, "chat") == "own"
        with pytest.raises(TemplateError, match="no"):
            render(tokenizer, messages_of([("user", "A")], "S"), answer_next=True)


class TestChatml:
    """The format of SmolLM2 and many others."""

    def test_a_prompt(self):
        """A prompt ends where the assistant begins to speak."""
        messages = messages_of([("user", "Hi")], "Be brief.")
        assert render(chatml_tokenizer(), messages, answer_next=True) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_a_whole_row(self):
        """A row ends in the end-of-turn token, with no line break after it."""
        messages = messages_of([("user", "Hi"), ("assistant", "Yo")])
        assert render(chatml_tokenizer(), messages, answer_next=False) == (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>"
        )

    def test_a_prompt_is_the_beginning_of_its_row(self):
        """What inference gives is a prefix of what training gives."""
        asked = messages_of([("user", "Hi"), ("assistant", "Yo"), ("user", "And?")], "S")
        prompt = render(chatml_tokenizer(), asked, answer_next=True)
        whole = render(chatml_tokenizer(), [*asked, {"role": "assistant", "content": "No."}], answer_next=False)
        assert whole == prompt + "No.<|im_end|>"


class TestAlpaca:
    """The text block, for models of any kind."""

    def test_messages_follow_each_other(self):
        """BOS, the block, the answer, EOS; nothing between."""
        messages = messages_of([("user", "### Response:\n"), ("assistant", "Yo")])
        assert render(character_tokenizer(ALPACA), messages, answer_next=False) == "<s>### Response:\nYo</s>"
        assert render(character_tokenizer(ALPACA), messages[:1], answer_next=True) == "<s>### Response:\n"

    def test_a_tokenizer_without_bos_gets_none(self):
        """No BOS is invented."""
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = ALPACA
        assert render(tokenizer, messages_of([("user", "Hi")]), answer_next=True) == "Hi"


class TestInstall:
    """Which template a tokenizer gets."""

    def test_mistral(self, mistral_tokenizer):
        """A tokenizer with [INST] gets Mistral's template, once it gave the right ids."""
        tokenizer = copy.deepcopy(mistral_tokenizer)
        assert install_template(tokenizer, "chat") == "mistral-v3"
        assert tokenizer.chat_template == MISTRAL_V3

    def test_chatml(self):
        """A tokenizer with <|im_start|> gets ChatML."""
        tokenizer = chatml_tokenizer()
        assert install_template(tokenizer, "chat") == "chatml"
        assert tokenizer.chat_template == CHATML

    def test_alpaca(self):
        """The Alpaca style fits any tokenizer."""
        tokenizer = character_tokenizer()
        assert install_template(tokenizer, "alpaca") == "alpaca"
        assert tokenizer.chat_template == ALPACA

    def test_another_family_is_refused(self):
        """A tokenizer with neither kind of control tokens has no chat style."""
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
        with pytest.raises(TemplateError, match='Use prompt_style "alpaca"'):
            install_template(tokenizer, "chat")

    def test_the_hash_tells_templates_apart(self):
        """Each template has a SHA-256 of its own."""
        hashes = {template_sha256(character_tokenizer(each)) for each in (MISTRAL_V3, CHATML, ALPACA)}
        assert len(hashes) == 3
        assert all(len(each) == 64 for each in hashes)


class TestConversions:
    """Tokenizers that look like Mistral's and are not."""

    @staticmethod
    def changed(tokenizer, change):
        """Return a tokenizer whose tokenizer.json was changed."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        content = json.loads(tokenizer.backend_tokenizer.to_str())
        change(content)
        made = Tokenizer.from_str(json.dumps(content))
        return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")

    def test_a_faithful_copy_passes(self, mistral_tokenizer):
        """A copy in which nothing changed gets the template."""
        assert install_template(self.changed(mistral_tokenizer, lambda content: None), "chat") == "mistral-v3"

    def test_a_space_before_each_piece_is_found(self, mistral_tokenizer):
        """The legacy conversion, which begins the text after each control token with one more space, is refused."""

        def legacy(content):
            replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
            content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
            content["pre_tokenizer"] = None

        with pytest.raises(TemplateError, match="This tokenizer is not Mistral's, or was converted wrongly"):
            install_template(self.changed(mistral_tokenizer, legacy), "chat")

    def test_missing_merges_are_found(self, mistral_tokenizer):
        """A conversion that lost its merges is refused."""
        with pytest.raises(TemplateError, match="of Mistral's own library"):
            install_template(self.changed(mistral_tokenizer, lambda c: c["model"]["merges"].clear()), "chat")

    def test_control_tokens_as_plain_text_are_found(self, mistral_tokenizer):
        """A conversion that reads [INST] letter by letter is refused."""
        with pytest.raises(TemplateError, match="of Mistral's own library"):
            install_template(self.changed(mistral_tokenizer, lambda c: c["added_tokens"].clear()), "chat")

    def test_another_vocabulary_is_found(self):
        """Control tokens alone do not make a tokenizer Mistral's."""
        with pytest.raises(TemplateError, match="of Mistral's own library"):
            install_template(character_tokenizer(), "chat")


class TestControlText:
    """Text that a tokenizer would read as control."""

    @pytest.mark.parametrize(
        "text", ["[INST]", "a[/INST]b", "the end</s>", "<s>", "x <unk> y", "[TOOL_CALLS]", "[AVAILABLE_TOOLS] []"]
    )
    def test_mistral_s_control_tokens_are_found(self, mistral_tokenizer, text):
        """Every control token is found, wherever it stands in the text."""
        ((index, string),) = find_control_text(["plain", text], mistral_tokenizer)
        assert index == 1
        assert string in text

    @pytest.mark.parametrize("text", ["a<|im_end|>b", "<|im_start|>system"])
    def test_chatml_s_control_tokens_are_found(self, text):
        """The tokens of the other family are found by its tokenizer."""
        assert len(find_control_text([text], chatml_tokenizer())) == 1

    @pytest.mark.parametrize("text", ["", "[inst]", "INST", "[INST", "< /s>", "<S>", "a[0]", "<b>bold</b>", "</ s>"])
    def test_plain_text_is_not(self, mistral_tokenizer, text):
        """Brackets, tags and other spellings are text."""
        assert find_control_text([text], mistral_tokenizer) == []

    def test_each_text_is_named_once(self):
        """The first control token of each text is given, in the order of the texts."""
        texts = ["a</s>[INST]", "plain", "[/INST]</s>"]
        assert find_control_text(texts, character_tokenizer()) == [(0, "</s>"), (2, "[/INST]")]

    def test_the_strings_are_the_tokenizer_s(self):
        """What counts as control is what the tokenizer adds to its vocabulary."""
        assert control_strings(character_tokenizer()) == ("</s>", "<pad>", "<s>", "[/INST]", "[INST]")

    def test_a_prompt_with_control_text_is_refused(self):
        """The error names the field, the text and the token."""
        with pytest.raises(TemplateError) as caught:
            refuse_control_text(["fine", "stop</s>"], character_tokenizer(), "system_prompt")
        assert str(caught.value) == (
            "system_prompt: expected text without the model's control tokens, got 'stop</s>'. "
            "The model would read </s> as a control token, not as text. Write it differently."
        )

    def test_plain_prompts_pass(self):
        """Nothing is said about plain text."""
        assert refuse_control_text(["fine", "a < b"], character_tokenizer(), "system_prompt") is None
