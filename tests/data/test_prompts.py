"""Rows as messages, both prompt styles, and the removal of reference marks."""

from __future__ import annotations

import pytest

from helpers.core.errors import ConfigError
from helpers.data.prompts import (
    COLUMNS,
    alpaca_block,
    build_example,
    build_prompt,
    clean_references,
    row_sources,
    user_text,
)

ROW = {"instruction": "Add the numbers.", "input": "1 and 2", "output": "3"}
BARE = {"instruction": "Name a prime.", "input": "", "output": "7"}


class TestAlpacaBlock:
    """Stanford's text block."""

    def test_with_an_input(self):
        """The text with an input is Stanford's, letter by letter."""
        assert alpaca_block("Add the numbers.", "1 and 2") == (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd the numbers.\n\n### Input:\n1 and 2\n\n### Response:\n"
        )

    @pytest.mark.parametrize("context", ["", "  ", "\n"])
    def test_without_an_input(self, context):
        """Without an input the preamble does not speak of one, and the section is missing."""
        assert alpaca_block("Name a prime.", context) == (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nName a prime.\n\n### Response:\n"
        )


def texts(example):
    """Return what the messages of an example say."""
    return [message["content"] for message in (*example["prompt"], *example["completion"])]


class TestPrompt:
    """What the model is given."""

    def test_chat_joins_with_a_blank_line(self):
        """The input stands under the instruction."""
        assert build_prompt("Add.", "1 and 2") == [{"role": "user", "content": "Add.\n\n1 and 2"}]

    def test_chat_without_an_input_is_the_instruction(self):
        """Nothing is added to an instruction that stands alone."""
        assert user_text(" Name a prime. ") == "Name a prime."

    def test_a_system_prompt_comes_first(self):
        """The system message stands before the user's."""
        assert build_prompt("Hi", system_prompt="Be brief.") == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ]

    def test_the_alpaca_style_is_one_user_message(self):
        """The block is the user's message."""
        (message,) = build_prompt("Name a prime.", style="alpaca")
        assert message["role"] == "user"
        assert message["content"] == alpaca_block("Name a prime.")

    def test_the_alpaca_style_has_no_place_for_a_system_prompt(self):
        """A system prompt beside the block is refused, not glued to it."""
        with pytest.raises(ConfigError, match="system_prompt: expected none with prompt_style"):
            build_prompt("Hi", style="alpaca", system_prompt="Be brief.")

    def test_an_unknown_style_is_an_error(self):
        """A misspelt style is not taken for another."""
        with pytest.raises(ConfigError, match="prompt_style: expected one of chat, alpaca, got 'alpca'"):
            build_prompt("Hi", style="alpca")


class TestExample:
    """A row as prompt and completion."""

    def test_an_alpaca_row(self):
        """The output is the assistant's message, everything else the prompt."""
        assert build_example(ROW, "alpaca") == {
            "prompt": [{"role": "user", "content": "Add the numbers.\n\n1 and 2"}],
            "completion": [{"role": "assistant", "content": "3"}],
        }

    def test_a_dolly_row(self):
        """Dolly's columns have other names and the same form."""
        row = {"instruction": "When?", "context": "In 1901.", "response": "1901", "category": "closed_qa"}
        example = build_example(row, "dolly", system_prompt="Be brief.")
        assert texts(example) == ["Be brief.", "When?\n\nIn 1901.", "1901"]

    @pytest.mark.parametrize("row", [{**BARE, "input": None}, {"instruction": "Name a prime.", "output": "7"}])
    def test_a_missing_input_is_an_empty_one(self, row):
        """A row whose input is null or absent has none."""
        assert build_example(row, "alpaca") == build_example(BARE, "alpaca")

    def test_surrounding_space_is_dropped(self):
        """White space around each text goes, inside it stays."""
        row = {"instruction": "\n Add. ", "input": " 1\n2 ", "output": " 3\n\n4 \n"}
        assert texts(build_example(row, "alpaca")) == ["Add.\n\n1\n2", "3\n\n4"]

    def test_training_and_asking_give_the_same_prompt(self):
        """A row's prompt is what `build_prompt` makes when one asks by hand."""
        for style in ("chat", "alpaca"):
            assert build_example(ROW, "alpaca", style=style)["prompt"] == build_prompt(
                ROW["instruction"], ROW["input"], style=style
            )

    def test_the_columns_of_both_tasks(self):
        """Instruction, context and answer are called as in the published data sets."""
        assert COLUMNS["alpaca"].required() == ("instruction", "input", "output")
        assert COLUMNS["dolly"].required() == ("instruction", "context", "response")
        assert COLUMNS["dolly"].optional == ("category",)


class TestReferences:
    """Marks such as "[1]" that encyclopaedia text leaves behind."""

    @pytest.mark.parametrize(
        ("text", "cleaned"),
        [
            ("Founded in 1901.[2]", "Founded in 1901."),
            ("Founded in 1901.[2][13] Closed in 1950.[100]", "Founded in 1901. Closed in 1950."),
            ("The river[4] flows.", "The river flows."),
            ("Over 1,000,[3] and more", "Over 1,000, and more"),
            ("He said “so.”[12] Then", "He said “so.” Then"),
            ("Born (in 1990)[5] in Rome", "Born (in 1990) in Rome"),
            ("It closed. [4] It opened.", "It closed. It opened."),
            ("The river[2]; the sea", "The river; the sea"),
        ],
    )
    def test_marks_go(self, text, cleaned):
        """A number in brackets after a word or its punctuation is removed."""
        assert clean_references(text) == cleaned

    @pytest.mark.parametrize(
        "text",
        [
            "[1] Anna\n[2] Ben",
            "Guests:\n[1] Anna",
            "x = [1]",
            "f(a, [1])",
            "return [1]",
            "see [1] for more",
            "use `items[1]` here",
            "items[0] is the first",
            "rows_seen[2] grows",
            "C[1][1] = A[1][1] * B[1][0]",
            "total = items[1]",
            "[1](https://example.org)",
            "more.[1](https://example.org)",
            "word[1234]",
            "word[a]",
            "",
        ],
    )
    def test_everything_else_stays(self, text):
        """Lists, code, links and other brackets are left alone."""
        assert clean_references(text) == text


class TestSources:
    """Which rows count as one."""

    def test_rows_share_a_context_or_a_question(self):
        """A context counts before a question, and white space and case do not count; a missing one is none."""
        rows = [("Who?", "A text."), ("When?", " A text."), ("Why?", None), ("why? ", ""), ("Who?", ""), ("", "")]
        rows = [{"instruction": asked, "context": context} for asked, context in rows]
        assert row_sources(rows, "dolly") == [
            *("context of row 1", "context of row 1"),
            *("question of row 3", "question of row 3", "", ""),
        ]

    def test_rows_of_one_conversation_share_its_first_question(self):
        """A long conversation is several rows, each with what was said before; another may begin alike."""
        hello, who = {"role": "user", "content": "Hello"}, {"role": "user", "content": "Who?"}
        first, answer = [{"role": "system", "content": "Be brief."}, hello], {"role": "assistant", "content": "Hi"}
        other = {"role": "assistant", "content": "Good day"}
        talks = [(first, [answer]), ([*first, answer, who], [other]), ([hello], [other]), ([who], [answer])]
        rows = [{"prompt": prompt, "completion": said, "input": "x"} for prompt, said in talks]
        assert row_sources(rows, "alpaca") == ["question of row 1", "question of row 1", "", ""]
