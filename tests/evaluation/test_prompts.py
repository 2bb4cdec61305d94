"""Prompts of a comparison, from files of every format: what is taken, and what is refused."""

from __future__ import annotations

import json

import pytest

from helpers.core.errors import EvaluationError
from helpers.evaluation.prompts import read_questions, reference_questions


class TestPrompts:
    """Prompts from files."""

    def test_bundled_prompts_are_spread(self):
        """Six of sixteen are taken from all over the file."""
        assert len(read_questions(None)) == 16
        six = [each.prompt for each in read_questions(None, 6)]
        assert [prompt.id for prompt in six][:2] == ["predictive-maintenance", "line-relocation"]
        assert len({prompt.category for prompt in six}) >= 5
        small = [each.prompt for each in read_questions(None, 6, "alpaca")]
        assert [prompt.id for prompt in small][:2] == ["dictionary", "yellow-leaves"]

    def test_a_text_file_has_one_prompt_a_line(self, tmp_path):
        """Blank lines and a byte order mark do not count."""
        (tmp_path / "p.txt").write_bytes("\ufeffFirst?\n\n  Second?  \r\n".encode())
        assert [q.prompt.text for q in read_questions(str(tmp_path / "p.txt"))] == ["First?", "Second?"]

    def test_columns_may_have_other_names(self, tmp_path):
        """Alpaca's and Dolly's columns are understood, and a context goes below the instruction."""
        rows = [
            {"instruction": "Sum up.", "context": "Long text.", "response": "Short.", "topic": "x", "id": 7},
            {"prompt": "Name 2.", "expected_items": "2", "source": "s"},
        ]
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
        first, second = (each.prompt for each in read_questions(str(tmp_path / "p.jsonl")))
        assert (first.id, first.text, first.reference) == ("7", "Sum up.\n\nLong text.", "Short.")
        assert (first.category, second.expected_items, second.source) == ("x", 2, "s")

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("p.txt", "", "at least one prompt"),
            ("p.txt", "\n \n", "at least one prompt"),
            ("p.txt", "same\nother\nsame", "each prompt once, got \"'same' as number 1 and 3\""),
            ("p.txt", b"caf\xe9", "UTF-8"),
            ("p.jsonl", "", "at least one row"),
            ("p.jsonl", '{"prompt": ', "one JSON object a line"),
            ("p.jsonl", '{"prompt": "x"}\n{"prompt": "", "id": "b"}\n{"prompt": "y"}', "prompt 2 is blank"),
            ("p.jsonl", '{"question_text": "x"}', "text under prompt"),
            ("p.jsonl", '{"prompt": {"a": 3}}', "expected text"),
            ("p.jsonl", '["x"]', "an object"),
            ("p.jsonl", '{"prompt": "\\ud800"}', "valid Unicode"),
            ("p.jsonl", '{"prompt": "x", "expected_items": 0}', "1 to 99"),
            ("p.jsonl", '{"prompt": "x", "expected_items": true}', "1 to 99"),
            ("p.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "each id once"),
            ("p.json", '{"prompt": "x"}', "JSON list"),
            ("p.csv", "prompt,id\na,1,2\n", "as many fields"),
        ],
    )
    def test_bad_files_are_refused(self, tmp_path, name, content, words):
        """Empty, blank, double, damaged or foreign prompts: each is named."""
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(EvaluationError, match=words):
            read_questions(str(tmp_path / name))

    def test_conversations_give_their_first_question(self, tmp_path):
        """The first answer is the reference."""
        turns = [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "B?"}]
        (tmp_path / "p.jsonl").write_text(json.dumps({"conversations": turns}))
        (only,) = read_questions(str(tmp_path / "p.jsonl"))
        assert (only.prompt.text, only.prompt.reference) == ("A?", "a")

    @pytest.mark.parametrize(
        ("row", "columns"),
        [
            ({"Question": "A?", "Answer": "a"}, None),
            ({" Instruction ": "A?", "OUTPUT": "a"}, None),
            ({"input": "A?", "output": "a"}, None),
            (
                {"prompt": [{"role": "user", "content": "A?"}], "completion": [{"role": "assistant", "content": "a"}]},
                None,
            ),
            ({"dialog": [{"speaker": "user", "text": "A?"}, {"speaker": "bot", "text": "a"}]}, None),
            ({"messages": '[{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}]'}, None),
            ({"Frage": "A?", "Antwort": "a", "text": "x"}, "instruction=Frage, output=Antwort"),
            ({"talk": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "a"}]}, "messages=talk"),
            ({"prompt": "A?", "answer": "a"}, "instruction=Frage, output=Antwort"),
        ],
    )
    def test_every_format_is_read(self, tmp_path, row, columns):
        """Names in any case, conversations, and columns that the user names; a file without these is read as it is."""
        (tmp_path / "p.jsonl").write_text(json.dumps(row))
        (only,) = read_questions(str(tmp_path / "p.jsonl"), columns=columns)
        assert (only.prompt.text, only.prompt.reference) == ("A?", "a")

    def test_more_than_there_are_is_refused(self):
        """The error says how many there are."""
        with pytest.raises(EvaluationError, match="at most 16"):
            read_questions(None, 17)

    def test_rows_become_questions(self):
        """Rows that share a context share a source; Alpaca's slices are with and without input."""
        rows = [
            {"instruction": "A?", "input": "text", "output": " a "},
            {"instruction": "B?", "input": "text", "output": "b"},
            {"instruction": "C?", "input": "", "output": "c"},
        ]
        first, second, third = (each.prompt for each in reference_questions(rows, "alpaca"))
        assert first.source == second.source == "context of row 1"
        assert (first.reference, first.category, third.category, third.source) == (
            "a",
            "with input",
            "without input",
            "",
        )
