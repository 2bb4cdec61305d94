"""The data contract: ids and labels of good rows, and every way in which rows, templates and trainers go wrong."""

from __future__ import annotations

import pytest
from characters import BOS, END_INST, EOS, INST, SPACE, character_tokenizer, chatml_tokenizer, codes
from chats import chats_of, tokens_of
from datasets import Dataset

from helpers.core.errors import ContractError
from helpers.data.chat_templates import ALPACA, MISTRAL_V3, masked_template
from helpers.data.contract import check_tokens, check_trainer_dataset
from helpers.data.prompts import build_example
from helpers.data.tokens import row_labels

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
    """Tokenize examples and check the table."""
    tokenizer, chats = tokenizer or character_tokenizer(), chats_of(examples)
    return check_tokens(tokens_of(chats, tokenizer), chats, tokenizer, max_seq_length=max_seq_length)


def check_with(template):
    """Check a row whose tokens come from a faulty template, all that follows the prompt learned."""
    tokenizer, chats = character_tokenizer(template), chats_of([row()])
    given = tokenizer.apply_chat_template(chats[0]["prompt"], add_generation_prompt=True, return_dict=True)
    whole = tokenizer.apply_chat_template(chats[0]["prompt"] + chats[0]["completion"], return_dict=True)["input_ids"]
    first = len(given["input_ids"])
    tokens = [{"input_ids": whole, "completion_mask": [0] * first + [1] * (len(whole) - first)}]
    return check_tokens(Dataset.from_list(tokens), chats, tokenizer, max_seq_length=100)


def ids_and_labels(example, tokenizer):
    """Return a row's token ids, and -100 in their place where they are given."""
    (row,) = tokens_of(chats_of([example]), tokenizer)
    return tuple(row["input_ids"]), tuple(row_labels(row))


class TestTokens:
    """Ids and labels of one row."""

    def test_the_answer_and_its_eos_are_learned(self):
        """Everything up to the end of the instruction is given, the rest is learned."""
        ids, labels = ids_and_labels(row("Hi", "Yo"), character_tokenizer())
        assert ids == (BOS, INST, SPACE, *codes("Hi"), END_INST, SPACE, *codes("Yo"), EOS)
        assert labels == (-100, -100, -100, -100, -100, -100, SPACE, *codes("Yo"), EOS)
        assert len(labels) - labels.count(-100) == 4

    def test_with_a_system_prompt(self):
        """The system prompt is given, inside the instruction."""
        ids, labels = ids_and_labels(row("Hi", "Yo", "Be."), character_tokenizer())
        assert ids == (BOS, INST, SPACE, *codes("Be.\n\nHi"), END_INST, SPACE, *codes("Yo"), EOS)
        assert labels == (-100,) * 11 + (SPACE, *codes("Yo"), EOS)

    def test_chatml(self):
        """In ChatML the learned part begins after the line that names the assistant."""
        ids, labels = ids_and_labels(row("Hi", "Yo"), chatml_tokenizer())
        start, end = BOS, EOS
        given = (start, *codes("user\nHi"), end, *codes("\n"), start, *codes("assistant\n"))
        assert ids == (*given, *codes("Yo"), end)
        assert labels == (-100,) * len(given) + (*codes("Yo"), end)

    def test_alpaca(self):
        """In the text block the learned part begins after `### Response:` and its line break."""
        example = build_example({"instruction": "Hi", "output": "Yo"}, "alpaca", style="alpaca")
        ids, labels = ids_and_labels(example, character_tokenizer(ALPACA))
        assert ids[-17:] == (*codes("### Response:\n"), *codes("Yo"), EOS)
        assert labels[-4:] == (-100, *codes("Yo"), EOS)
        assert len(labels) - labels.count(-100) == 3

    def test_mistral(self, mistral_tokenizer):
        """With Mistral's own tokenizer the labels are the answer's tokens and </s>."""
        ids, labels = ids_and_labels(row("Hello", "Answer", "You are helpful."), mistral_tokenizer)
        assert ids == (1, 3, 1763, 1228, 11633, 29491, 781, 781, 16998, 4, 27075, 2)
        assert labels == (-100,) * 10 + (27075, 2)

    def test_a_prompt_that_is_no_prefix_is_an_error(self):
        """A template that writes the prompt otherwise when an answer follows leaves no place for labels."""
        error = error_of(ids_and_labels, row("Hi", "Yo", "Be."), character_tokenizer(STOCK))
        assert (error.field, error.expected) == ("template", "the prompt's tokens at the start of the whole row's")


class TestRows:
    """Rows that pass."""

    def test_the_figures(self):
        """Rows, tokens, learned tokens and lengths are counted."""
        long = [row("Hi", "Y" * 200), row("</s>")]
        checked = check([row("Hello", "Yours"), row("Hi", "Yo"), row("Hi", "You")] + [row("Hi", "Yo")] * 15 + long)
        assert checked.summary() == {
            "rows": 18,
            "tokens": 187,
            "supervised tokens": 76,
            "median row, tokens": 10,
            "longest row, tokens": 16,
            "left out": "1 (contains </s>), 1 (longer than 100 tokens)",
        }
        assert (checked.lengths[:4], checked.supervised_tokens) == ([16, 10, 11, 10], 76)
        few = check([row("Hi", "Your own"), row("Hi", "Yo"), row("Hi", "You")])
        assert (few.summary()["median row, tokens"], few.summary()["left out"]) == (11, 0)

    def test_the_numbers_of_the_rows_that_pass_are_kept(self):
        """Of twenty rows the fourth is too long."""
        examples = [row(f"Hi {n}") for n in range(20)]
        examples[3] = row("Hi", "Y" * 200)
        assert check(examples).kept == [0, 1, 2, *range(4, 20)]

    def test_a_model_without_bos_passes(self):
        """ChatML rows have no BOS, and none is asked for."""
        assert check([row()], chatml_tokenizer()).kept == [0]

    @pytest.mark.parametrize("system", ["Be brief.", "Say  “yes” .", "Line\none", "▁ é 你好", "No , commas !"])
    def test_any_system_prompt_is_found_in_the_tokens(self, mistral_tokenizer, system):
        """Spaces, line breaks and Unicode in a system prompt cause no false alarm."""
        assert check([row(system_prompt=system)], mistral_tokenizer).kept == [0]


class TestLeftOut:
    """Rows that are left out, counted and limited."""

    def test_too_long_rows_are_counted(self):
        """A row of one token more than allowed is left out, never cut."""
        examples = [row()] * 18 + [row("Hi", "You")] * 2
        checked = check(examples, max_seq_length=10)
        assert checked.left_out == {"longer than 10 tokens": 2}
        assert set(checked.lengths) == {10}

    @pytest.mark.parametrize("text", ["[INST]", "</s>", "<s>", "<pad>"])
    def test_rows_with_control_text_are_counted(self, text):
        """A control token spelled out in prompt or answer leaves the row out."""
        checked = check([row()] * 38 + [row(f"Hi {text}"), row("Hi", f"{text} Yo")])
        assert checked.left_out == {f"contains {text}": 2}
        assert checked.summary()["left out"] == f"2 (contains {text})"

    def test_a_tenth_may_be_left_out(self):
        """Nine rows of ten are enough."""
        assert len(check([row()] * 9 + [row("Hi", "Y" * 200)]).kept) == 9

    def test_more_than_a_tenth_is_an_error(self):
        """Two rows of ten are too many; the error counts them by reason."""
        error = error_of(check, [row()] * 8 + [row("Hi", "Y" * 200), row("</s>")])
        assert error.args == (
            "dataset_name",
            "at most 10% of 10 rows left out",
            {"longer than 100 tokens": 1, "contains </s>": 1},
            "Raise max_seq_length, or use other rows.",
        )

    def test_answers_that_end_in_eos_have_a_remedy_of_their_own(self):
        """Whoever wrote the file wrote the end of the answer into it."""
        error = error_of(check, [row("Hi", "Yo</s>")] * 3)
        assert error.remedy == "Remove the trailing </s> from the answers: the template writes it."
        error = error_of(check, [row("Hi", "Yo<|im_end|>")] * 3, chatml_tokenizer())
        assert error.remedy == "Remove the trailing <|im_end|> from the answers: the template writes it."

    def test_half_of_them_are_not_enough_for_that_remedy(self):
        """Where most rows are left out for something else, that is what to see to."""
        mixed = [row("Hi", "Yo</s>"), row("Hi", "Y" * 200)]
        assert error_of(check, mixed).remedy == "Raise max_seq_length, or use other rows."
        assert error_of(check, [*mixed, mixed[0]]).remedy.startswith("Remove the trailing </s>")

    def test_no_rows_at_all_is_an_error(self):
        """There is no contract about nothing."""
        none = [table.select([]) for table in tables(character_tokenizer())]
        error = error_of(check_tokens, *none, character_tokenizer(), max_seq_length=100)
        assert error.expected == "at most 10% of 0 rows left out"


class TestFaults:
    """Templates and tokenizers that would teach something else."""

    def test_a_dropped_system_prompt(self):
        """A template that forgets the system prompt, in training and inference alike, is found."""
        template = MISTRAL_V3.replace("'[INST] ' + prefix + ", "'[INST] ' + ")
        error = error_of(check, [row(system_prompt="Be brief.")], character_tokenizer(template))
        dropped = "The chat template dropped it."
        assert error.args == ("row 0", "the system prompt in the training text", "Be brief.", dropped)

    def test_a_system_prompt_dropped_from_a_later_row(self):
        """Each row is looked at, also after rows without a system prompt and rows that were left out."""
        template = MISTRAL_V3.replace("'[INST] ' + prefix + ", "'[INST] ' + ('' if 'Be' in prefix else prefix) + ")
        long = row("Hi", "Y" * 200, "Be.")
        rows = [*[row()] * 9, long, row(system_prompt="Ah."), row(system_prompt="Be.")]
        assert error_of(check, rows, character_tokenizer(template)).field == "row 11"

    def test_a_system_prompt_only_in_the_answer(self):
        """What is learned is no place for it, however often it stands there."""
        template = MISTRAL_V3.replace("'[INST] ' + prefix + ", "'[INST] ' + ")
        error = error_of(check, [row("Hi", "Be brief. Be brief.", "Be brief.")], character_tokenizer(template))
        assert error.remedy == "The chat template dropped it."

    def test_a_missing_eos(self):
        """A template without EOS never teaches the model to stop."""
        error = error_of(check_with, MISTRAL_V3.replace("+ eos_token", ""))
        assert error.args == (
            "row 0",
            "the EOS token </s> as its last label",
            ord("o"),
            "The chat template does not end an answer with EOS: use helpers.data.chat_templates.install_template.",
        )

    def test_text_after_the_eos(self):
        """A line break after EOS would be learned in its place."""
        error = error_of(check_with, MISTRAL_V3.replace("+ eos_token", "+ eos_token + '\\n'"))
        assert (error.expected, error.got) == ("the EOS token </s> as its last label", 10)

    def test_two_bos(self):
        """A template that writes BOS twice is found."""
        error = error_of(check, [row()], character_tokenizer("<s>" + MISTRAL_V3))
        remedy = "Tokenize with add_special_tokens=False: the template writes BOS."
        assert error.args == ("row 0", "exactly one BOS, at its start", 2, remedy)

    def test_no_bos(self):
        """A template without BOS is found for a model that has one."""
        error = error_of(check, [row()], character_tokenizer(MISTRAL_V3.replace("{{- bos_token }}", "")))
        assert (error.expected, error.got) == ("exactly one BOS, at its start", 0)

    def test_bos_elsewhere(self):
        """One that stands after the first token is no better than none."""
        error = error_of(check, [row()], character_tokenizer("x" + MISTRAL_V3))
        assert (error.expected, error.got) == ("exactly one BOS, at its start", 1)

    def test_a_later_row_without_bos(self):
        """The first token of each row is looked at, not that of the table."""
        template = MISTRAL_V3.replace("{{- bos_token }}", "{{- 'x' if 'No' in messages[0]['content'] else '' }}<s>")
        error = error_of(check, [row(), row("No"), row()], character_tokenizer(template))
        assert (error.field, error.got) == ("row 1", 1)

    @pytest.mark.parametrize("pad", ["</s>", None])
    def test_pad_that_is_eos_or_missing(self, pad):
        """Padding with EOS, or with nothing, is refused before any row is looked at."""
        tokenizer = character_tokenizer()
        tokenizer.pad_token = pad
        error = error_of(check, [row()], tokenizer)
        remedy = "Otherwise the EOS of each row is masked as padding and answers never end."
        assert error.args == ("tokenizer", "a PAD token other than EOS", pad, remedy)

    def test_no_eos(self):
        """A tokenizer that has no EOS is refused."""
        tokenizer, (tokens, chats) = character_tokenizer(), tables(character_tokenizer())
        tokenizer.eos_token = None
        error = error_of(check_tokens, tokens, chats, tokenizer, max_seq_length=100)
        assert error.args == ("tokenizer", "an EOS token", None, "Load the tokenizer of an instruct model.")

    def test_an_empty_answer(self):
        """An answer of no token is named by its row."""
        error = error_of(check, [row(), row("Hi", "")])
        expected = "an answer of at least one token and its EOS"
        assert error.args == ("row 1", expected, 1, "Give the row an answer, or leave it out.")

    def test_an_answer_of_one_token(self):
        """With its EOS it is enough."""
        assert check([row("Hi", "Y")], chatml_tokenizer()).supervised_tokens == 2


class TestTrainerRows:
    """What the trainer will really feed the model."""

    @pytest.fixture
    def checked(self):
        """Two rows of different length."""
        return tokens_of(chats_of([row("Hi", "Yo"), row("Hello", "Yours")]), character_tokenizer())

    @staticmethod
    def trained(rows):
        """Return rows as the trainer keeps them."""
        return Dataset.from_list(list(rows))

    def test_the_same_rows_pass_in_any_order(self, checked):
        """Masks and labels both count, and the order does not."""
        check_trainer_dataset(checked.select([1, 0]), checked)
        labelled = [{"input_ids": each["input_ids"], "labels": row_labels(each)} for each in checked]
        check_trainer_dataset(self.trained(labelled), checked)

    def test_packed_rows_pass(self, checked):
        """Rows put end to end have the same learned tokens."""
        first, second = checked
        check_trainer_dataset(self.trained([{name: first[name] + second[name] for name in first}]), checked)

    def refused(self, rows, checked):
        """Return what the error says was found."""
        error = error_of(check_trainer_dataset, self.trained(rows), checked)
        labels = "The trainer labels other tokens than the answers."
        assert (error.field, error.expected, error.remedy) == {
            "other ids": (
                *("trainer", "the token ids that the contract checked"),
                "The trainer tokenizes with another template.",
            ),
            "other labels": ("trainer", "the labels that the contract checked", labels),
        }.get(error.got, ("trainer", "11 supervised tokens", labels))
        return error.got

    def test_everything_masked(self, checked):
        """Labels that are all ignored are found."""
        rows = [{**each, "completion_mask": [0] * len(each["input_ids"])} for each in checked]
        assert self.refused(rows, checked) == 0

    def test_a_learned_prompt(self, checked):
        """Labels on the prompt are found."""
        rows = [{**each, "completion_mask": [1] * len(each["input_ids"])} for each in checked]
        assert self.refused(rows, checked) == 26

    def test_a_masked_eos(self, checked):
        """A missing EOS label is found."""
        rows = list(checked)
        rows[0]["completion_mask"][-1] = 0
        assert self.refused(rows, checked) == 10

    def test_other_labels_of_the_same_number(self, checked):
        """As many labels in other places are found."""
        rows = list(checked)
        rows[0]["completion_mask"] = rows[0]["completion_mask"][::-1]
        assert self.refused(rows, checked) == "other labels"

    def test_other_labels_in_packed_rows(self, checked):
        """In packed rows as well."""
        first, second = checked
        first["completion_mask"] = first["completion_mask"][::-1]
        assert self.refused([{name: first[name] + second[name] for name in first}], checked) == "other labels"

    def test_other_ids(self, checked):
        """Rows tokenized with another template are found."""
        rows = list(checked)
        rows[0]["input_ids"][2] = ord("x")
        assert self.refused(rows, checked) == "other ids"

    def test_cut_rows(self, checked):
        """Rows that the trainer cut at the end are found."""
        assert self.refused([{name: each[name][:-2] for name in each} for each in checked], checked) == 7

    def test_lost_rows(self, checked):
        """Rows that the trainer lost are found."""
        assert self.refused(list(checked)[:1], checked) == 4

    def test_rows_without_labels_are_an_error(self, checked):
        """Rows that do not say what is learned are refused."""
        error = error_of(check_trainer_dataset, self.trained([{"input_ids": [1, 2]}]), checked)
        assert error.expected == "rows with labels or a completion mask"


TALK = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(("A", "B", "C", "D"))]


def tables(tokenizer, mask=lambda mask: mask, prompt=1):
    """Return a conversation as a table of tokens, its mask perhaps changed, and as a table of messages."""
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
        ids, labels = ids_and_labels({"prompt": TALK[:1], "completion": TALK[1:]}, character_tokenizer())
        assert ids == self.IDS
        assert [label for label in labels if label != -100] == [SPACE, *codes("B"), EOS, SPACE, *codes("D"), EOS]
        assert labels[5:8] == (SPACE, *codes("B"), EOS)

    def test_an_answer_in_the_prompt_is_given(self):
        """Only the completion's answers are learned."""
        _, labels = ids_and_labels({"prompt": TALK[:3], "completion": TALK[3:]}, character_tokenizer())
        assert [label for label in labels if label != -100] == [SPACE, *codes("D"), EOS]

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
            (lambda mask: [*mask[:12], 0, *mask[13:]], "exactly the prompt's tokens before the learned ones"),
        ],
    )
    def test_faults_in_an_earlier_turn_are_found(self, change, words):
        """An EOS that is not learned, an answer or a question that is, or is not."""
        tokens, chats = tables(character_tokenizer(), change)
        error = error_of(check_tokens, tokens, chats, character_tokenizer(), max_seq_length=100)
        mask = "completion_mask is 1 for each answer and its EOS, and 0 for what the user says between them."
        given = "Mask what the prompt is: completion_mask is 0 there, and 1 for the answer."
        assert error.field == "row 0"
        assert words in str(error)
        assert error.remedy == (given if "prompt's" in words else mask)


class TestPrompts:
    """What is given before an answer."""

    @staticmethod
    def check(faulty, rows):
        """Check rows of which some do not learn the first token of their answer."""
        tokenizer, chats = character_tokenizer(), chats_of(rows)
        tokens = list(tokens_of(chats, tokenizer))
        for index in faulty:
            tokens[index]["completion_mask"][tokens[index]["completion_mask"].index(1)] = 0
        return check_tokens(Dataset.from_list(tokens), chats, tokenizer, max_seq_length=100)

    def test_it_is_the_prompt_alone(self):
        """An answer's first token among it is shown with its neighbours."""
        error = error_of(self.check, [1], [row(), row("Hi", "You")])
        assert error.args == (
            "row 1",
            "exactly the prompt's tokens before the learned ones",
            ["i", "[/INST]", " ", "Y", "o", "u"],
            "Mask what the prompt is: completion_mask is 0 there, and 1 for the answer.",
        )

    def test_a_sample_over_the_whole_table_is_looked_at(self):
        """Of 770 rows, the first too long, a sample of 256 or a few more: every third of those that are kept."""
        rows = [row("Hi", "Y" * 200), *[row()] * 769]
        for faulty in (1, 4, 385, 766, 769):
            assert error_of(self.check, [faulty], rows).field == f"row {faulty}"
        assert len(self.check([number for number in range(2, 770) if number % 3 != 1], rows).kept) == 769
