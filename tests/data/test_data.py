"""Rows: the bundled ones, those of the hub and of files, what is refused, and the draw."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from helpers.core.config import DataConfig
from helpers.core.errors import DataError
from helpers.data.formats import recognise
from helpers.data.rows import Source, _draw, data_commit, data_fingerprint, load_rows, read_prompts, read_sample

ROWS = [{"instruction": f"Task {n}", "input": "" if n % 2 else f"Text {n}", "output": f"Answer {n}"} for n in range(40)]
TWO = [{"instruction": "Say “ü”.", "input": "", "output": "ü\nÜ"}, {"instruction": "a, b", "input": "x", "output": "c"}]

CONTROL = re.compile(r"\[/?INST\]|</?s>|<unk>|<\|\w+\|>|\[/?\w*TOOL\w*\]|\[control_\d+\]")


REST = "a model of that kind leaves these rows out, any other learns it as text; remove it"


def write_json(path, rows, encoding="utf-8"):
    """Write a file of rows by the end of its name."""
    if path.suffix == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    else:
        text = json.dumps(rows, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    return path


def load(path, task="alpaca", seed=1, **given):
    """Load rows from a file, four of them held out unless told otherwise."""
    return load_rows(DataConfig(dataset_name=str(path), **{"train_rows": 0, "heldout_rows": 4, **given}), task, seed)


def error_of(call, *arguments, **named) -> DataError:
    """Return the DataError that a call raises."""
    with pytest.raises(DataError) as caught:
        call(*arguments, **named)
    return caught.value


class TestBundledRows:
    """What the project brings along."""

    @pytest.mark.parametrize(
        ("task", "context", "answer"), [("alpaca", "input", "output"), ("dolly", "context", "response")]
    )
    def test_they_are_sound(self, task, context, answer):
        """Every row is text, has an instruction and an answer, and no space around either."""
        for row in [*read_sample(task, "train"), *read_sample(task, "heldout")]:
            assert all(isinstance(text, str) for text in row.values())
            assert row["instruction"]
            assert row[answer]
            assert all(row[name] == row[name].strip() for name in ("instruction", context, answer)), row

    @pytest.mark.parametrize("task", ["alpaca", "dolly"])
    def test_they_contain_no_control_text(self, task):
        """No row spells a control token of Mistral or ChatML."""
        rows = [*read_sample(task, "train"), *read_sample(task, "heldout")]
        assert [row for row in rows if CONTROL.search("\n".join(row.values()))] == []

    @pytest.mark.parametrize("task", ["alpaca", "dolly"])
    def test_each_is_asked_once(self, task):
        """No instruction with its text stands twice, neither in one part nor in both."""
        rows = [*read_sample(task, "train"), *read_sample(task, "heldout")]
        asked = Counter(
            tuple(value for key, value in sorted(row.items()) if key in ("instruction", "input", "context"))
            for row in rows
        )
        assert [key for key, count in asked.items() if count > 1] == []

    def test_alpaca_s_form_and_number(self):
        """At least 120 rows have exactly Alpaca's columns, and at least a third of them an input."""
        train, heldout = read_sample("alpaca", "train"), read_sample("alpaca", "heldout")
        assert (len(train), len(heldout)) == (128, 40)
        assert {tuple(row) for row in train + heldout} == {("instruction", "input", "output")}
        assert sum(bool(row["input"]) for row in train + heldout) >= 56

    def test_dolly_s_categories(self):
        """Both parts have Dolly's eight categories; the training rows, like Dolly's, unequally many."""
        assert Counter(row["category"] for row in read_sample("dolly", "train")) == {
            "open_qa": 22, "general_qa": 19, "classification": 19, "closed_qa": 16, "brainstorming": 16,
            "summarization": 13, "information_extraction": 13, "creative_writing": 10,
        }  # fmt: skip
        assert set(Counter(row["category"] for row in read_sample("dolly", "heldout")).values()) == {5}

    def test_answers_differ_in_length(self):
        """The bundled answers have between one word and more than a hundred, as those of Alpaca and Dolly do."""
        for task, column in (("alpaca", "output"), ("dolly", "response")):
            lengths = [len(row[column].split()) for row in read_sample(task, "train")]
            assert min(lengths) == 1
            assert 100 < max(lengths) < 130

    def test_no_held_out_row_is_a_training_row_in_other_words(self):
        """Held-out rows and bundled prompts share less than a third of their words and pairs with any training row."""
        from helpers.evaluation.metrics.contamination import nearest_examples
        from helpers.evaluation.records import Prompt

        for task, column in (("alpaca", "input"), ("dolly", "context")):
            ask = [f"{row['instruction']} {row[column]}" for row in read_sample(task, "train")]
            apart = [f"{row['instruction']} {row[column]}" for row in read_sample(task, "heldout")]
            apart += [prompt["prompt"] for prompt in read_prompts(task)]
            assert max(each.score for each in nearest_examples([Prompt("p", text) for text in apart], ask)) < 0.33

    def test_their_parts_are_fixed(self):
        """Another seed reorders the training rows, and never moves a row between the parts."""
        one = load("sample", seed=1, heldout_rows=40)
        two = load("sample", seed=2, heldout_rows=40)
        assert one.heldout == two.heldout == read_sample("alpaca", "heldout")
        assert one.train != two.train
        assert sorted(one.train, key=str) == sorted(two.train, key=str)
        assert (one.total, one.source, one.left_out) == (168, "bundled sample rows", {})

    def test_fewer_can_be_asked_for(self):
        """The first held-out rows and a seeded draw of the training rows are taken."""
        rows = load("sample", train_rows=7, heldout_rows=5)
        assert len(rows.train) == 7
        assert rows.heldout == read_sample("alpaca", "heldout")[:5]

    def test_more_than_there_are_is_an_error(self):
        """The error says how many there are."""
        assert str(error_of(load, "sample", heldout_rows=41)).startswith("heldout_rows: expected at most 40")
        assert str(error_of(load, "sample", train_rows=129)).startswith("train_rows: expected at most 128")


class TestHub:
    """Data sets of the hub."""

    def test_known_ones_are_read_at_their_pinned_revision(self, monkeypatch):
        """The pinned revision is asked for, and stands in the source."""
        import datasets

        asked = {}

        def load_dataset(name, **named):
            asked.update(named, name=name)
            return datasets.Dataset.from_list(ROWS)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        rows = load("yahma/alpaca-cleaned")
        assert asked == {
            "name": "yahma/alpaca-cleaned",
            "revision": "12567cabf869d7c92e573c7c783905fc160e9639",
            "split": "train",
        }
        assert rows.source == "yahma/alpaca-cleaned at 12567cabf869d7c92e573c7c783905fc160e9639"
        assert (rows.total, len(rows.train)) == (40, 36)

    def test_what_cannot_be_loaded_is_an_error(self, monkeypatch):
        """The hub client's error becomes one that says what to do."""
        import datasets

        def load_dataset(*_, **__):
            raise ConnectionError("no route\nto host")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        error = error_of(load, "org/name")
        assert error.got == "org/name"
        assert error.remedy == (
            'ConnectionError: no route Check the name and the connection, or use a local file or "sample".'
        )


class TestRows:
    """Single rows and columns."""

    @pytest.mark.parametrize(("value", "reason"), [("", "empty output"), ([7], "output is not text")])
    def test_one_bad_row_in_forty_is_an_error(self, tmp_path, value, reason):
        """The error names the row, the share, the reason and the file."""
        rows = [*ROWS[:5], {**ROWS[5], "output": value}, *ROWS[6:]]
        error = error_of(load, write_json(tmp_path / "a.json", rows))
        assert (error.field, error.expected) == ("row 5", "at most 1% unusable rows")
        assert error.got == f"1 of 40: {reason}"
        assert error.remedy.endswith("a.json; the number counts from 0.") or "a.json (40 rows)" in error.remedy

    def test_few_bad_rows_among_many_are_left_out_and_counted(self, tmp_path):
        """Up to one row in a hundred is left out, with the number and the reason."""
        rows = [{**ROWS[0], "instruction": f"Task {n}", "output": "" if n == 150 else "x"} for n in range(300)]
        loaded = load(write_json(tmp_path / "a.json", rows))
        assert loaded.left_out == {"empty output (first: row 150)": 1}
        assert len(loaded.train) + len(loaded.heldout) == 299

    def test_a_small_draw_from_a_large_data_set_may_meet_a_bad_row(self, tmp_path):
        """One bad row among eleven drawn of a thousand is left out, because the thousand are sound."""
        good = {"instruction": "a", "input": "", "output": "b"}
        drawn = load(
            write_json(tmp_path / "a.json", [{**good, "instruction": str(n)} for n in range(1000)]), train_rows=6
        )
        first = int(drawn.heldout[0]["instruction"])
        rows = [{**good, "instruction": str(n), "output": "" if n == first else "b"} for n in range(1000)]
        loaded = load(write_json(tmp_path / "a.json", rows), train_rows=6)
        assert loaded.left_out == {f"empty output (first: row {first})": 1}
        assert len(loaded.train) == 6

    def test_a_rotten_large_data_set_is_an_error_in_a_small_draw_too(self, tmp_path):
        """Where every second row is bad, ten rows cannot be had."""
        rows = [{"instruction": str(n), "input": "", "output": "b" if n % 2 else ""} for n in range(2000)]
        error = error_of(load, write_json(tmp_path / "a.json", rows), train_rows=20)
        assert error.expected == "at most 1% unusable rows"

    def test_unused_columns_are_dropped(self, tmp_path):
        """Only the task's columns are kept, and a missing input becomes an empty one."""
        rows = [{"instruction": str(n), "output": "b", "text": "c", "id": n} for n in range(10)]
        loaded = load(write_json(tmp_path / "a.json", rows))
        assert {tuple(row) for row in loaded.train + loaded.heldout} == {("instruction", "input", "output")}

    def test_the_format_is_said(self, tmp_path):
        """So are columns that are not used, and control tokens in answers."""
        rows = [{"instruction": str(n), "output": "b<|im_end|>" if n else "b</s>", "id": n} for n in range(10)]
        assert load(write_json(tmp_path / "a.json", rows)).notes == (
            "format: Alpaca (instruction, output); columns not used: id",
            "warning: 1 of 10 answers end in </s>: remove it, the template writes it",
            f"warning: 9 of 10 answers hold <|im_end|>, a control token of ChatML: {REST}",
        )

    def test_control_text_of_mistral_is_warned_of_anywhere(self, tmp_path):
        """Inside answers and in prompts: a Mistral model would leave these rows out."""
        rows = [{"instruction": f"{n} [INST]" if n < 2 else str(n), "output": "a</s>b" if n else "b"} for n in range(9)]
        notes = load(write_json(tmp_path / "rows.json", rows), train_rows=1, heldout_rows=8).notes
        assert notes[1:] == (
            f"warning: 8 of 9 answers hold </s>, a control token of Mistral and Llama 2: {REST}",
            f"warning: 2 of 9 prompts hold [INST], a control token of Mistral and Llama 2: {REST}",
        )

    def test_conversations_stay_whole_without_a_system_prompt(self, tmp_path):
        """With one, each answer becomes a row; what cannot be trained is counted, with the first row and turn."""
        rows = []
        for n in range(10):
            texts = ["a", "b", str(n), "c"]
            rows.append({"conversations": [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]})
        rows[4]["conversations"] = rows[4]["conversations"][1:]
        rows[7]["conversations"].append({"from": "tool", "value": "x"})
        path = write_json(tmp_path / "a.json", rows)
        loaded = load(path)
        assert [len(part) for part in (loaded.train, loaded.heldout)] == [4, 4]
        assert {len(row["completion"]) for row in loaded.train} == {3}
        loaded = load(path, system_prompt="S")
        assert loaded.left_out == {
            "starts with the assistant (first: row 4, turn 1)": 1, "tool calls (first: row 7, turn 5)": 1,
        }  # fmt: skip
        assert [len(part) for part in (loaded.train, loaded.heldout)] == [8, 8]
        assert loaded.notes[-1] == (
            "with a system prompt each answer of a conversation is a row: "
            "4 training conversations make 8 rows, 4 held-out ones 8"
        )
        assert sorted({len(row["prompt"]) for row in loaded.train}) == [1, 3]

    def test_data_made_for_something_else_is_refused(self, tmp_path):
        """Where hardly any conversation can be trained on, the error has the reasons."""
        rows = [{"messages": [{"role": "assistant", "content": str(n)}]} for n in range(10)]
        error = error_of(load, write_json(tmp_path / "a.json", rows))
        assert error.expected == "at most 90% of the conversations of a kind that cannot be trained"
        assert error.got == "10 of 10: starts with the assistant (first: row 0, turn 1)"

    def test_dolly_keeps_its_category(self, tmp_path):
        """The category is read where it is text."""
        rows = [{"instruction": str(n), "context": "", "response": "b", "category": "open_qa"} for n in range(10)]
        assert load(write_json(tmp_path / "a.json", rows), "dolly").train[0]["category"] == "open_qa"


class TestDraw:
    """Which rows are taken."""

    @pytest.fixture
    def path(self, tmp_path):
        """Forty sound rows."""
        return write_json(tmp_path / "rows.json", ROWS)

    def test_the_same_seed_draws_the_same_rows(self, path):
        """A draw can be repeated, and another seed gives another."""
        assert load(path, seed=1) == load(path, seed=1)
        assert load(path, seed=1).heldout != load(path, seed=2).heldout

    def test_all_rows_are_used_once(self, path):
        """With train_rows 0 every row is in exactly one part."""
        rows = load(path)
        assert (len(rows.train), len(rows.heldout), rows.total) == (36, 4, 40)
        assert sorted(rows.train + rows.heldout, key=str) == sorted(ROWS, key=str)

    def test_as_many_as_asked_for(self, path):
        """The numbers asked for are the numbers drawn."""
        rows = load(path, train_rows=10, heldout_rows=6)
        assert (len(rows.train), len(rows.heldout)) == (10, 6)

    def test_the_heldout_rows_do_not_depend_on_the_training_rows(self, path):
        """Training on more rows is measured on the same ones."""
        assert load(path, train_rows=4).heldout == load(path, train_rows=30).heldout

    def test_nothing_is_asked_twice(self, tmp_path):
        """Rows that ask the same in another case or spacing are left out of both parts and counted."""
        rows = [{**row, "output": f"{row['output']} {copy}"} for row in ROWS for copy in range(2)]
        rows = [
            {**row, "instruction": row["instruction"].upper() + " "} if n % 2 else row for n, row in enumerate(rows)
        ]
        loaded = load(write_json(tmp_path / "a.json", rows), heldout_rows=10)
        asked = [(row["instruction"].strip().lower(), row["input"]) for row in loaded.train + loaded.heldout]
        assert len(set(asked)) == len(asked) == 40
        assert loaded.left_out == {"repeats an earlier row's question": 40}

    @pytest.mark.parametrize(
        ("count", "heldout", "train"),
        [(5, 2, 3), (12, 6, 6), (20, 8, 12), (91, 9, 82), (400, 40, 360), (999, 100, 899), (1100, 100, 1000)],
    )
    def test_numbers_that_were_not_given_adapt(self, tmp_path, count, heldout, train):
        """About a tenth is held out, from 8 up to the preset's 100; the rest is trained on, up to its 1000."""
        path = write_json(tmp_path / "a.json", [{**ROWS[0], "instruction": str(n)} for n in range(count)])
        rows = load_rows(DataConfig(dataset_name=str(path)), "alpaca", 1, given=())
        assert (len(rows.heldout), len(rows.train)) == (heldout, train)
        said = f"{count} different usable rows: {heldout} of them held out, {train} trained on"
        assert (said in rows.notes) == (count < 1100)

    @pytest.mark.parametrize(
        ("given", "heldout", "train"),
        [({"heldout_rows": 20}, 20, 20), ({"train_rows": 35}, 5, 35), ({"train_rows": 10}, 8, 10)],
    )
    def test_a_number_that_was_given_stands(self, path, given, heldout, train):
        """The other one adapts to it."""
        rows = load_rows(DataConfig(dataset_name=str(path), **given), "alpaca", 1, given=given)
        assert (len(rows.heldout), len(rows.train)) == (heldout, train)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (
                ("heldout_rows",),
                "heldout_rows: expected fewer than the 2 usable rows there are, got 2. 39 of 40 rows ask",
            ),
            ((), "dataset_name: expected at least 3 different usable rows, got '2 usable rows'. 39 of 40 rows ask"),
        ],
    )
    def test_the_true_reason_is_given(self, tmp_path, given, words):
        """Where rows repeat one question, the numbers are not to blame."""
        rows = [{**ROWS[0], "output": str(n)} for n in range(39)] + [ROWS[1]]
        path = write_json(tmp_path / "a.json", rows)
        config = DataConfig(dataset_name=str(path), train_rows=0, heldout_rows=2)
        message = str(error_of(load_rows, config, "alpaca", 1, given=given))
        assert message.startswith(words)
        assert "rows ask the same question." in message

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"train_rows": 37},
                (
                    "train_rows: expected at most 36, what is left beside 4 held-out rows, got 37. "
                    "Lower train_rows or heldout_rows, use 0 for all rows, or use a larger data set."
                ),
            ),
            (
                {"heldout_rows": 40},
                (
                    "heldout_rows: expected fewer than the 40 usable rows there are, got 40. "
                    "Lower heldout_rows, or use a larger data set."
                ),
            ),
            (
                {"heldout_rows": 100, "train_rows": 1000},
                (
                    "heldout_rows: expected fewer than the 40 usable rows there are, got 100. "
                    "Lower heldout_rows, or use a larger data set."
                ),
            ),
        ],
    )
    def test_more_than_there_are_is_an_error(self, path, given, message):
        """The error says how many rows there are."""
        assert str(error_of(load, path, **given)) == message


class TestFingerprint:
    """The hash over what a run learns from."""

    def test_it_is_the_same_for_the_same_rows(self):
        """The order of columns and unused ones do not matter, and the value is fixed for all time."""
        one = data_fingerprint([{"instruction": "a", "output": "b"}], [], "alpaca")
        two = data_fingerprint([{"output": "b", "instruction": "a", "input": None, "other": "c"}], [], "alpaca")
        assert one == two == "7bbad78bc5b1098fae02e0af293b21b4063483c42c681ed9a1315456dc52bf44"

    @pytest.mark.parametrize(
        ("train", "heldout"),
        [
            ([{"instruction": "a", "output": "c"}], [{"instruction": "d", "output": "e"}]),
            ([], [{"instruction": "a", "output": "b"}, {"instruction": "d", "output": "e"}]),
            ([{"instruction": "a", "output": "b"}, {"instruction": "d", "output": "e"}], []),
            ([{"instruction": "d", "output": "e"}], [{"instruction": "a", "output": "b"}]),
            ([{"instruction": "a", "output": "b"}], []),
        ],
    )
    def test_it_changes_with_a_row(self, train, heldout):
        """Another text, order, part or number of rows gives another hash."""
        first, second = {"instruction": "a", "output": "b"}, {"instruction": "d", "output": "e"}
        assert data_fingerprint(train, heldout, "alpaca") != data_fingerprint([first], [second], "alpaca")


def test_the_commit_of_a_hub_data_set_is_known():
    """`datasets` keeps the addresses of the files that it read, each with the commit; local files have none."""
    from datasets import Dataset

    table = Dataset.from_dict({"a": [1]})
    assert data_commit(table) is None
    address = "hf://datasets/ada/rows@0123456789abcdef0123456789abcdef01234567/train.parquet"
    table.info.download_checksums = {address: {"num_bytes": 1, "checksum": None}}
    assert data_commit(table) == "0123456789abcdef0123456789abcdef01234567"


def test_only_rows_that_are_used_are_read():
    """Of 51,760 rows, 20 to train on and 5 held out, 25 are read."""
    seen = []

    def row_at(index):
        seen.append(index)
        return {"instruction": f"Say {index}.", "input": "", "output": "It is said."}

    wanted = DataConfig(dataset_name="rows.json", train_rows=20, heldout_rows=5)
    source = Source("rows", 51_760, row_at, recognise([row_at(0)], "rows"))
    seen.clear()
    rows = _draw(wanted, "alpaca", source, 1, ())
    assert (len(rows.train), len(rows.heldout), len(seen)) == (20, 5, 25)


def test_an_answer_with_weight_0_begins_a_new_row(tmp_path):
    """It is given in the second row; the notes say so."""
    roles = ("user", "assistant")
    rows = [
        {"messages": [{"role": roles[n % 2], "content": f"{n}{i}"} | {"weight": int(n != 3)} for n in range(6)]}
        for i in range(8)
    ]
    for row in rows:
        row["messages"] += [{"role": "user", "content": "Thanks."}, {"role": "assistant", "content": "!", "weight": 0}]
    loaded = load(write_json(tmp_path / "rows.json", rows), train_rows=4, heldout_rows=4)
    assert [[len(row["prompt"]), len(row["completion"])] for row in loaded.train] == [[1, 1], [5, 1]] * 4
    assert all(set(message) == {"role", "content"} for row in loaded.train for message in row["prompt"])
    assert loaded.notes[1] == "16 answers are given, not learned: weight, train or training says so"
    assert loaded.notes[-1] == (
        "with a system prompt each answer of a conversation is a row, and after an answer that is not learned a new "
        "row begins: 4 training conversations make 8 rows, 4 held-out ones 8"
    )


def test_one_row_does_not_repeat_itself(tmp_path):
    """A single row is too few, and that is the whole reason."""
    path = write_json(tmp_path / "rows.json", [{"question": "Q", "answer": "A"}])
    error = error_of(load_rows, DataConfig(dataset_name=str(path)), "alpaca", 1, given=())
    assert (error.got, error.remedy) == ("1 usable rows", "Use a larger data set.")
