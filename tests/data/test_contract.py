"""The data contract: ids and labels of good rows, and every way in which rows, templates and trainers go wrong."""

from __future__ import annotations

import pytest
from characters import BOS, END_INST, EOS, INST, PAD, SPACE, character_tokenizer, chatml_tokenizer, codes

from helpers.core.errors import ContractError
from helpers.data.chat_templates import ALPACA, MISTRAL_V3, masked_template
from helpers.data.contract import (
    TokenizedExample,
    apply_contract,
    check_tokens,
    check_trainer_rows,
    tokenize_example,
)
from helpers.data.prompts import Example, build_example

STOCK = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system + '\\n\\n' if system and loop.last else '') + message['content'] + '[/INST]' }}
    {%- else %}{{- ' ' + message['content'] + eos_token }}{% endif %}
{%- endfor %}
"""
"""The model hub's idea of Mistral's template: the system prompt stands only in a *last* message of the user's."""


def row(instruction="Hi", output="Yo", system_prompt=""):
    """Return one example."""
    return build_example({"instruction": instruction, "output": output}, "alpaca", system_prompt=system_prompt)


def error_of(call, *arguments, **named) -> ContractError:
    """Return the ContractError that a call raises."""
    with pytest.raises(ContractError) as caught:
        call(*arguments, **named)
    return caught.value


def check(examples, tokenizer=None, max_seq_length=100):
    """Apply the contract."""
    return apply_contract(examples, tokenizer or character_tokenizer(), max_seq_length=max_seq_length)


class TestTokens:
    """Ids and labels of one row."""

    def test_the_answer_and_its_eos_are_learned(self):
        """Everything up to the end of the instruction is given, the rest is learned."""
        made = tokenize_example(row("Hi", "Yo"), character_tokenizer())
        assert made.input_ids == (BOS, INST, SPACE, *codes("Hi"), END_INST, SPACE, *codes("Yo"), EOS)
        assert made.labels == (-100, -100, -100, -100, -100, -100, SPACE, *codes("Yo"), EOS)
        assert made.supervised() == 4

    def test_with_a_system_prompt(self):
        """The system prompt is given, inside the instruction."""
        made = tokenize_example(row("Hi", "Yo", "Be."), character_tokenizer())
        assert made.input_ids == (BOS, INST, SPACE, *codes("Be.\n\nHi"), END_INST, SPACE, *codes("Yo"), EOS)
        assert made.labels == (-100,) * 11 + (SPACE, *codes("Yo"), EOS)

    def test_chatml(self):
        """In ChatML the learned part begins after the line that names the assistant."""
        made = tokenize_example(row("Hi", "Yo"), chatml_tokenizer())
        start, end = BOS, EOS
        given = (start, *codes("user\nHi"), end, *codes("\n"), start, *codes("assistant\n"))
        assert made.input_ids == (*given, *codes("Yo"), end)
        assert made.labels == (-100,) * len(given) + (*codes("Yo"), end)

    def test_alpaca(self):
        """In the text block the learned part begins after `### Response:` and its line break."""
        example = build_example({"instruction": "Hi", "output": "Yo"}, "alpaca", style="alpaca")
        made = tokenize_example(example, character_tokenizer(ALPACA))
        assert made.input_ids[-17:] == (*codes("### Response:\n"), *codes("Yo"), EOS)
        assert made.labels[-4:] == (-100, *codes("Yo"), EOS)
        assert made.supervised() == 3

    def test_mistral(self, mistral_tokenizer):
        """With Mistral's own tokenizer the labels are the answer's tokens and </s>."""
        made = tokenize_example(row("Hello", "Answer", "You are helpful."), mistral_tokenizer)
        assert made.input_ids == (1, 3, 1763, 1228, 11633, 29491, 781, 781, 16998, 4, 27075, 2)
        assert made.labels == (-100,) * 10 + (27075, 2)

    def test_a_prompt_that_is_no_prefix_is_an_error(self):
        """A template that writes the prompt otherwise when an answer follows leaves no place for labels."""
        error = error_of(tokenize_example, row("Hi", "Yo", "Be."), character_tokenizer(STOCK))
        assert (error.field, error.expected) == ("template", "the prompt's tokens at the start of the whole row's")


class TestRows:
    """Rows that pass."""

    def test_the_figures(self):
        """Rows, tokens, learned tokens and lengths are counted."""
        contract = check([row("Hi", "Yo"), row("Hello", "Yo"), row("Hi", "Yours")])
        assert contract.summary() == {
            "rows": 3,
            "tokens": 36,
            "supervised tokens": 15,
            "median row, tokens": 13,
            "longest row, tokens": 13,
            "left out": 0,
        }
        assert (contract.tokens(), contract.supervised_tokens(), contract.max_seq_length) == (36, 15, 100)

    def test_examples_and_tokens_stay_side_by_side(self):
        """What is left out of one is left out of the other."""
        examples = [row(f"Hi {n}") for n in range(20)]
        examples[3] = row("Hi", "Y" * 200)
        contract = check(examples)
        assert contract.examples == tuple(examples[:3] + examples[4:])
        assert contract.tokenized == tuple(tokenize_example(e, character_tokenizer()) for e in contract.examples)

    def test_a_model_without_bos_passes(self):
        """ChatML rows have no BOS, and none is asked for."""
        assert len(check([row()], chatml_tokenizer()).tokenized) == 1

    @pytest.mark.parametrize("system", ["Be brief.", "Say  “yes” .", "Line\none", "▁ é 你好", "No , commas !"])
    def test_any_system_prompt_is_found_in_the_tokens(self, mistral_tokenizer, system):
        """Spaces, line breaks and Unicode in a system prompt cause no false alarm."""
        assert len(check([row(system_prompt=system)], mistral_tokenizer).tokenized) == 1


class TestLeftOut:
    """Rows that are left out, counted and limited."""

    def test_too_long_rows_are_counted(self):
        """A row of one token more than allowed is left out, never cut."""
        examples = [row()] * 19 + [row("Hi", "You")]
        contract = check(examples, max_seq_length=10)
        assert contract.left_out == {"longer than 10 tokens": 1}
        assert {len(each.input_ids) for each in contract.tokenized} == {10}

    @pytest.mark.parametrize("text", ["[INST]", "</s>", "<s>", "<pad>"])
    def test_rows_with_control_text_are_counted(self, text):
        """A control token spelled out in prompt or answer leaves the row out."""
        contract = check([row()] * 38 + [row(f"Hi {text}"), row("Hi", f"{text} Yo")])
        assert contract.left_out == {f"contains {text}": 2}
        assert contract.summary()["left out"] == f"2 (contains {text})"

    def test_a_tenth_may_be_left_out(self):
        """Nine rows of ten are enough."""
        assert len(check([row()] * 9 + [row("Hi", "Y" * 200)]).tokenized) == 9

    def test_more_than_a_tenth_is_an_error(self):
        """Two rows of ten are too many; the error counts them by reason."""
        error = error_of(check, [row()] * 8 + [row("Hi", "Y" * 200), row("</s>")])
        assert error.expected == "at most 10% of 10 rows left out"
        assert error.got == {"longer than 100 tokens": 1, "contains </s>": 1}
        assert error.remedy == "Raise max_seq_length, or use other rows."

    def test_answers_that_end_in_eos_have_a_remedy_of_their_own(self):
        """Whoever wrote the file wrote the end of the answer into it."""
        error = error_of(check, [row("Hi", "Yo</s>")] * 3)
        assert error.remedy == "Remove the trailing </s> from the answers: the template writes it."

    def test_no_rows_at_all_is_an_error(self):
        """There is no contract about nothing."""
        assert error_of(check, []).expected == "at most 10% of 0 rows left out"


class TestFaults:
    """Templates and tokenizers that would teach something else."""

    def test_a_dropped_system_prompt(self):
        """A template that forgets the system prompt, in training and inference alike, is found."""
        template = MISTRAL_V3.replace("'[INST] ' + prefix + ", "'[INST] ' + ")
        error = error_of(check, [row(system_prompt="Be brief.")], character_tokenizer(template))
        assert (error.field, error.got) == ("row 0", "Be brief.")
        assert error.remedy == "The chat template dropped it."

    def test_a_missing_eos(self):
        """A template without EOS never teaches the model to stop."""
        error = error_of(check, [row()], character_tokenizer(MISTRAL_V3.replace("+ eos_token", "")))
        assert (error.expected, error.got) == ("the EOS token </s> as its last label", ord("o"))

    def test_text_after_the_eos(self):
        """A line break after EOS would be learned in its place."""
        error = error_of(check, [row()], character_tokenizer(MISTRAL_V3.replace("+ eos_token", "+ eos_token + '\\n'")))
        assert (error.expected, error.got) == ("the EOS token </s> as its last label", 10)

    def test_two_bos(self):
        """A template that writes BOS twice is found."""
        error = error_of(check, [row()], character_tokenizer("<s>" + MISTRAL_V3))
        assert (error.expected, error.got) == ("exactly one BOS, at its start", 2)

    def test_no_bos(self):
        """A template without BOS is found for a model that has one."""
        error = error_of(check, [row()], character_tokenizer(MISTRAL_V3.replace("{{- bos_token }}", "")))
        assert (error.expected, error.got) == ("exactly one BOS, at its start", 0)

    @pytest.mark.parametrize("pad", ["</s>", None])
    def test_pad_that_is_eos_or_missing(self, pad):
        """Padding with EOS, or with nothing, is refused before any row is looked at."""
        tokenizer = character_tokenizer()
        tokenizer.pad_token = pad
        error = error_of(check, [row()], tokenizer)
        assert (error.expected, error.got) == ("a PAD token other than EOS", pad)

    def test_no_eos(self):
        """A tokenizer that has no EOS is refused."""
        tokenizer = character_tokenizer()
        tokenizer.eos_token = None
        assert error_of(check, [row()], tokenizer).expected == "an EOS token"

    def test_an_empty_answer(self):
        """An answer of no token is named by its row."""
        error = error_of(check, [row(), row("Hi", "")])
        assert (error.field, error.got) == ("row 1", 1)
        assert error.expected == "an answer of at least one token and its EOS"


class TestTrainerRows:
    """What the trainer will really feed the model."""

    @pytest.fixture
    def contract(self):
        """Two rows of different length."""
        return check([row("Hi", "Yo"), row("Hello", "Yours")])

    @staticmethod
    def rows_of(contract):
        """Return the rows as the trainer keeps them."""
        return [
            {"input_ids": list(each.input_ids), "completion_mask": [int(label != -100) for label in each.labels]}
            for each in contract.tokenized
        ]

    def test_the_same_rows_pass_in_any_order(self, contract):
        """Masks and labels both count, and the order does not."""
        check_trainer_rows(self.rows_of(contract)[::-1], contract)
        check_trainer_rows([{"input_ids": e.input_ids, "labels": list(e.labels)} for e in contract.tokenized], contract)

    def test_packed_rows_pass(self, contract):
        """Rows put end to end have the same learned tokens."""
        first, second = self.rows_of(contract)
        check_trainer_rows([{name: first[name] + second[name] for name in first}], contract)

    def test_everything_masked(self, contract):
        """Labels that are all ignored are found."""
        rows = [{**each, "completion_mask": [0] * len(each["input_ids"])} for each in self.rows_of(contract)]
        error = error_of(check_trainer_rows, rows, contract)
        assert (error.expected, error.got) == ("11 supervised tokens", 0)

    def test_a_learned_prompt(self, contract):
        """Labels on the prompt are found."""
        rows = [{**each, "completion_mask": [1] * len(each["input_ids"])} for each in self.rows_of(contract)]
        assert error_of(check_trainer_rows, rows, contract).got == 26

    def test_a_masked_eos(self, contract):
        """A missing EOS label is found."""
        rows = self.rows_of(contract)
        rows[0]["completion_mask"][-1] = 0
        assert error_of(check_trainer_rows, rows, contract).got == 10

    def test_other_labels_of_the_same_number(self, contract):
        """As many labels in other places are found."""
        rows = self.rows_of(contract)
        rows[0]["completion_mask"] = rows[0]["completion_mask"][::-1]
        assert error_of(check_trainer_rows, rows, contract).got == "other labels"

    def test_other_labels_in_packed_rows(self, contract):
        """In packed rows as well."""
        first, second = self.rows_of(contract)
        first["completion_mask"] = first["completion_mask"][::-1]
        packed = [{name: first[name] + second[name] for name in first}]
        assert error_of(check_trainer_rows, packed, contract).got == "other labels"

    def test_other_ids(self, contract):
        """Rows tokenized with another template are found."""
        rows = self.rows_of(contract)
        rows[0]["input_ids"][2] = ord("x")
        assert error_of(check_trainer_rows, rows, contract).got == "other ids"

    def test_cut_rows(self, contract):
        """Rows that the trainer cut at the end are found."""
        rows = [{name: each[name][:-2] for name in each} for each in self.rows_of(contract)]
        assert error_of(check_trainer_rows, rows, contract).got == 7

    def test_lost_rows(self, contract):
        """Rows that the trainer lost are found."""
        assert error_of(check_trainer_rows, self.rows_of(contract)[:1], contract).got == 4

    def test_rows_without_labels_are_an_error(self, contract):
        """Rows that do not say what is learned are refused."""
        error = error_of(check_trainer_rows, [{"input_ids": [1, 2]}], contract)
        assert error.expected == "rows with labels or a completion mask"


def test_a_row_cannot_be_changed():
    """Ids and labels stay what was checked."""
    with pytest.raises(AttributeError):
        TokenizedExample((PAD,), (PAD,)).labels = ()


TALK = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(("A", "B", "C", "D"))]


def tables(tokenizer, mask=lambda mask: mask, prompt=1):
    """Return a conversation as a table of tokens, its mask perhaps changed, and as a table of messages."""
    from datasets import Dataset

    template = {"chat_template": masked_template(tokenizer), "return_dict": True, "return_assistant_tokens_mask": True}
    whole = tokenizer.apply_chat_template(TALK, **template)
    masks = mask([0] * (prompt + 4) + whole["assistant_masks"][prompt + 4 :])
    tokens = Dataset.from_list([{"input_ids": whole["input_ids"], "completion_mask": masks}])
    return tokens, Dataset.from_list([{"prompt": TALK[:prompt], "completion": TALK[prompt:]}])


class TestConversations:
    """Several answers in a row."""

    IDS = (BOS, INST, SPACE, *codes("A"), END_INST, SPACE, *codes("B"), EOS,
           INST, SPACE, *codes("C"), END_INST, SPACE, *codes("D"), EOS)  # fmt: skip

    def test_each_answer_and_its_eos_are_learned(self):
        """What the user says between them is given."""
        made = tokenize_example(Example(tuple(TALK[:1]), tuple(TALK[1:])), character_tokenizer())
        assert made.input_ids == self.IDS
        assert [label for label in made.labels if label != -100] == [SPACE, *codes("B"), EOS, SPACE, *codes("D"), EOS]
        assert made.labels[5:8] == (SPACE, *codes("B"), EOS)

    def test_an_answer_in_the_prompt_is_given(self):
        """Only the completion's answers are learned."""
        made = tokenize_example(Example(tuple(TALK[:3]), tuple(TALK[3:])), character_tokenizer())
        assert [label for label in made.labels if label != -100] == [SPACE, *codes("D"), EOS]

    def test_a_table_of_them_passes(self):
        """Supervised tokens are counted over all answers."""
        tokens, chats = tables(character_tokenizer())
        checked = check_tokens(tokens, chats, character_tokenizer(), max_seq_length=100)
        assert (checked.kept, checked.supervised_tokens, checked.lengths) == ([0], 6, [15])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                lambda mask: [*mask[:7], 0, *mask[8:]],
                "2 answers that are learned, each ended by </s>, got '2 with 1 of",
            ),
            (lambda mask: [0] * 8 + mask[8:], "2 answers that are learned, each ended by </s>, got '1 with 1 of"),
            (lambda mask: [*mask[:5], *[1] * 10], "2 answers that are learned, each ended by </s>, got '1 with 1 of"),
            (lambda mask: [*mask[:12], 0, *mask[13:]], "what is said before an answer, and that alone"),
        ],
    )
    def test_faults_in_an_earlier_turn_are_found(self, change, words):
        """An EOS that is not learned, an answer or a question that is, or is not."""
        tokens, chats = tables(character_tokenizer(), change)
        error = error_of(check_tokens, tokens, chats, character_tokenizer(), max_seq_length=100)
        assert words in str(error)
