"""`python -m helpers data`: what it says of a file, how fast, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from helpers.__main__ import main
from helpers.cli.data import describe_data

REST = "a model of that kind leaves these rows out, any other learns it as text; remove it"


def write(path, rows):
    """Write JSON lines; return the path as text."""
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


class TestData:
    """A look at a file."""

    def test_it_says_all_there_is_to_know(self, tmp_path):
        """Rows, format, columns, lengths in characters, repeats, what is left out, and warnings."""
        rows = [{"question": "What?", "answer": "Yes.</s>", "id": 1}, {"question": " what? ", "answer": "No"},
                {"question": "Why?", "answer": ""}, {"question": "Who?", "answer": "She.<|im_end|>"}]  # fmt: skip
        assert describe_data(write(tmp_path / "a.jsonl", rows)).splitlines() == [
            "a.jsonl (4 rows), JSON lines",
            "format: question and answer (instruction = question, output = answer); columns not used: id",
            "2 different usable rows",
            "left out: 1 (empty answer (first: row 2))",
            "left out: 1 (repeats an earlier row's question)",
            "prompts: 2; median 5 characters, 95% at most 5, longest 5",
            "answers: 2; median 14 characters, 95% at most 14, longest 14",
            "warning: 1 of 2 answers end in </s>: remove it, the template writes it",
            f"warning: 1 of 2 answers hold <|im_end|>, a control token of ChatML: {REST}",
        ]

    def test_columns_can_be_named(self, tmp_path, capsys):
        """The option is the parameter of the notebooks."""
        path = write(tmp_path / "a.jsonl", [{"Frage": "a", "Antwort": "b"}])
        assert main(["data", path]) == 2
        assert "Say which column is what" in capsys.readouterr().err
        assert main(["data", path, "--columns", "instruction=Frage,output=Antwort"]) == 0
        assert "1 different usable rows" in capsys.readouterr().out

    def test_a_file_without_usable_rows(self, tmp_path):
        """There are no lengths then."""
        text = describe_data(write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "a"}]}]))
        assert text.splitlines()[2:] == [
            "0 different usable rows",
            "left out: 1 (no answer at its end (first: row 0, turn 1))",
        ]

    def test_it_loads_no_heavy_library(self, tmp_path):
        """A file in JSON needs neither transformers nor datasets."""
        path = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
        code = (
            "import sys; from helpers.__main__ import main; main(['data', sys.argv[1]])\n"
            "print(sorted({'transformers', 'torch', 'datasets', 'pandas'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    @pytest.mark.slow
    def test_fifty_thousand_rows_take_seconds(self, tmp_path):
        """Reading, converting and looking for repeats is quick."""
        rows = [{"instruction": f"Task {n}", "input": "x" * 200, "output": "y" * 600} for n in range(50_000)]
        path = write(tmp_path / "a.jsonl", rows)
        began = time.perf_counter()
        assert "50,000 different usable rows" in describe_data(path)
        assert time.perf_counter() - began < 5
