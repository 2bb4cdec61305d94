"""Formats of instruction data: how they are recognised, what their rows become, and what is left out and why."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.core.errors import ConfigError, DataError
from helpers.data.formats import question_key, recognise
from helpers.data.messages import RowError, learned_rows


def said(*turns):
    """Return messages that user and assistant exchange, after a system message if the first turn is a pair."""
    first = [{"role": "system", "content": turns[0][0]}] if isinstance(turns[0], tuple) else []
    rest = turns[1:] if first else turns
    return [*first, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(rest))]


def converted(rows, **named):
    """Return the rows' format as a sentence, and the first row as it comes out."""
    found = recognise(rows, "a.json", **named)
    return found.describe().removeprefix("format: "), found.convert(rows[0])


PLAIN = {"instruction": "Q", "input": "", "output": "A"}
CHAT = {"prompt": said("Q"), "completion": said("Q", "A")[1:]}
LONG = {"prompt": said("Q"), "completion": said("Q", "A", "R", "B")[1:]}
TOLD = {"prompt": said(("S",), "Q"), "completion": said("Q", "A")[1:]}

EXAMPLES = [
    ({"instruction": "Q", "input": "", "output": "A"}, "Alpaca (instruction, input, output)", PLAIN),
    ({"instruction": "Q", "output": "A"}, "Alpaca (instruction, output)", PLAIN),
    (
        {"instruction": "Q", "context": "", "response": "A", "category": "open_qa"},
        "Dolly (instruction, input = context, output = response, category)",
        {**PLAIN, "category": "open_qa"},
    ),
    (
        {"instruction": "Q", "input": "T", "response": "A"},
        "Dolly (instruction, input, output = response)",
        {**PLAIN, "input": "T"},
    ),
    ({"messages": said("Q", "A", "R", "B")}, "messages (messages)", LONG),
    ({"messages": said(("S",), "Q", "A")}, "messages (messages)", TOLD),
    ({"messages": json.dumps(said("Q", "A"))}, "messages (messages)", CHAT),
    (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        "ShareGPT conversations (messages = conversations)",
        CHAT,
    ),
    (
        {"conversations": [{"from": "Human", "value": "Q"}, {"from": "chatgpt", "value": "A"}], "system": "S"},
        "ShareGPT conversations (system, messages = conversations)",
        TOLD,
    ),
    (
        {"prompt": "Q", "completion": "A"},
        "TRL's prompt and completion (instruction = prompt, output = completion)",
        PLAIN,
    ),
    (
        {"prompt": said("Q"), "completion": [{"role": "assistant", "content": "A"}]},
        "TRL's prompt and completion with messages (instruction = prompt, output = completion)",
        CHAT,
    ),
    (
        {"instruction": "Q", "input": "", "output": "A", "system": "S", "history": [["P", "B"]]},
        "Alpaca (instruction, input, output, system, history); history is given, not learned",
        {"prompt": said(("S",), "P", "B", "Q"), "completion": said("Q", "A")[1:]},
    ),
    (
        {"system_prompt": "S", "question": "Q", "response": "A"},
        "question and response (instruction = question, output = response, system = system_prompt)",
        TOLD,
    ),
    ({"Question ": "Q", " ANSWER": "A"}, "question and answer (instruction = Question , output =  ANSWER)", PLAIN),
    ({"Q": "Q", "A": "A"}, "q and a (instruction = Q, output = A)", PLAIN),
    ({"Questions": "Q", "Answers": "A"}, "questions and answers (instruction = Questions, output = Answers)", PLAIN),
    (
        {"": "0", "question": "Q", "answer": "A"},
        "question and answer (instruction = question, output = answer); columns not used: ''",
        PLAIN,
    ),
    ({"input": "Q", "output": "A"}, "input and output (instruction = input, output)", PLAIN),
    ({"query": "Q", "response": "A"}, "query and response (instruction = query, output = response)", PLAIN),
    ({"problem": "Q", "solution": "A"}, "problem and solution (instruction = problem, output = solution)", PLAIN),
    (
        {"instruction": "Q", "output": "A", "id": "7", "text": "Q A"},
        "Alpaca (instruction, output); columns not used: id, text",
        PLAIN,
    ),
]


class TestRecognise:
    """Which columns are taken for what."""

    @pytest.mark.parametrize(("row", "line", "expected"), EXAMPLES, ids=[line for _, line, _ in EXAMPLES])
    def test_a_format_is_recognised_by_its_columns(self, row, line, expected):
        """One line says the format, the columns used and those that are not; the row comes out in one of two forms."""
        assert converted([row]) == (line, expected)

    def test_rows_of_a_mapping_with_numbers(self):
        """Numbers are taken as text, also where a data set of the hub has them."""
        assert converted([{"question": 3, "answer": 4.5}])[1] == {"instruction": "3", "input": "", "output": "4.5"}

    @pytest.mark.parametrize("nothing", ["", None, float("nan"), "NaN", "null"])
    def test_an_input_of_nothing_is_empty(self, nothing):
        """What data frames write where nothing is does not become part of the question."""
        assert converted([{"instruction": "Q", "input": nothing, "output": "A"}])[1] == PLAIN

    def test_an_answer_of_null_stays(self):
        """It may well be the answer."""
        assert converted([{"question": "What is nothing in JSON?", "answer": "null"}])[1]["output"] == "null"

    def test_all_rows_are_looked_at(self):
        """A column that only the last row has counts."""
        rows = [{"instruction": "Q", "output": "A"}, {"instruction": "R", "output": "B", "input": "T"}]
        found = recognise(rows, "a.json")
        assert [found.convert(row)["input"] for row in rows] == ["", "T"]

    def test_an_empty_column_of_another_format_does_no_harm(self):
        """Where `input` and `context` both stand, the one with text is used."""
        rows = [{"instruction": "Q", "input": "", "context": "T", "output": "A"}]
        assert converted(rows)[1]["input"] == "T"

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"instruction": "Q", "input": "T", "context": "U", "output": "A"}, "both input and context hold text"),
            ({"instruction": "Q", "inputt": "T", "output": "A"}, "'inputt' is nearly 'input' and would not be used"),
            ({"instruction": "Q", "contexts": "T", "output": "A"}, "'contexts' is nearly 'context'"),
            ({"instruction": "Q", "outptu": "A"}, r"no column is known as the output \(outptu comes near\)"),
            ({"question": "Q", "query": "R", "response": "A"}, "question and query could each be the instruction"),
            ({"instruction": "Q", "question": "R", "answer": "A"}, "instruction and question could each be the instr"),
            ({"question": "Q", "solution": "A", "response": "B"}, "response and solution could each be the output"),
            ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "`chosen` and `rejected` are preference data: name one"),
            ({"text": "Q A"}, "no column is known as the instruction"),
        ],
    )
    def test_where_guessing_is_not_enough_columns_are_asked_for(self, row, words):
        """The error says what is in doubt, lists the columns, and names the parameter."""
        with pytest.raises(DataError, match=words) as caught:
            recognise([row], "a.json")
        assert caught.value.got == list(row)
        assert "Say which column is what: columns = " in caught.value.remedy

    @pytest.mark.parametrize("rows", [["a", "b"], [["a"]], [3]])
    def test_rows_without_columns_are_an_error(self, rows):
        """A list of texts is no data set."""
        with pytest.raises(DataError, match="expected rows with named columns"):
            recognise(rows, "a.json")


class TestTexts:
    """The tables of formats that users read."""

    @pytest.mark.parametrize("file", ["README.md", "notebooks/alpaca_instruction.py"])
    def test_each_row_is_an_example_that_loads(self, file):
        """All ask the same and answer the same, whatever the format."""
        text = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
        table = re.findall(r"^(?:# )?\| (.+) \| `(\{.+\})` \|$", text, re.MULTILINE)
        assert len(table) == 7
        for form, row in table:
            columns = re.search('columns = "(.+)"', form)
            _, out = converted([json.loads(row)], columns=columns and columns[1])
            prompt = out["prompt"][0]["content"] if "prompt" in out else f"{out['instruction']} {out['input']}".strip()
            answer = out["completion"][0]["content"] if "prompt" in out else out["output"]
            assert (prompt, answer) == ("Add. 2 and 3", "5"), form


class TestColumns:
    """The parameter `columns`."""

    @pytest.mark.parametrize(
        "columns",
        ["instruction=Frage, output=Antwort", "prompt = frage,completion=ANTWORT", "output=Antwort,prompt=Frage"],
    )
    def test_it_says_which_column_is_what(self, columns):
        """Case and spaces do not matter; the rest is still guessed."""
        rows = [{"Frage": "Q", "Antwort": "A", "input": "T", "n": "1"}]
        line, row = converted(rows, columns=columns)
        assert row == {"instruction": "Q", "input": "T", "output": "A"}
        assert line == "frage and antwort (instruction = Frage, input, output = Antwort); columns not used: n"

    def test_it_wins_over_what_would_be_guessed(self):
        """Where a file has two answers, one can be chosen; so can a column with messages."""
        row = {"prompt": "Q", "chosen": "A", "rejected": "B", "talk": said("Q", "C")}
        assert converted([row], columns="output=chosen")[1]["output"] == "A"
        assert converted([row], columns="messages=talk")[1]["completion"][0]["content"] == "C"

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ("instruction=Frag", "expected the name of a column, got 'Frag'. Did you mean Frage"),
            ("output=x", "The columns are: Frage, Antwort."),
            ("Frage", "expected pairs such as .* got 'Frage'"),
            ("question=Frage", "Known parts are: instruction, input, output, system, history, category, messages"),
            ("instruction=Frage, output=Frage", "each part and each column once"),
            ("instruction=Frage, prompt=Antwort", "each part and each column once"),
        ],
    )
    def test_a_mistake_in_it_lists_what_there_is(self, columns, words):
        """The error names the parameter."""
        with pytest.raises(ConfigError, match=f"^columns: .*{words}"):
            recognise([{"Frage": "Q", "Antwort": "A"}], "a.json", columns=columns)


def problem(row, **named):
    """Return why a row cannot be used, at which turn, and whether it is damaged."""
    with pytest.raises(RowError) as caught:
        recognise([row, PLAIN | CHAT] if not isinstance(row, dict) else [row], "a.json", **named).convert(row)
    return caught.value.reason, caught.value.turn, caught.value.damaged


class TestProblems:
    """Rows that cannot be trained on."""

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"instruction": "a", "input": "", "output": ""}, "empty output"),
            ({"instruction": "a", "input": "", "output": " \n"}, "empty output"),
            ({"instruction": "a", "input": "", "output": None}, "empty output"),
            ({"question": "a", "answer": ""}, "empty answer"),
            ({"instruction": "", "input": "c", "output": "b"}, "empty instruction"),
            ({"instruction": "a", "input": "", "output": {"b": 5}}, "output is not text"),
            ({"instruction": "a", "input": ["c"], "output": "b"}, "input is not text"),
            ({"instruction": "a", "input": "", "output": "\ud800"}, "output is not valid Unicode"),
            ({"instruction": "a\0", "input": "", "output": "b"}, "instruction holds a null byte"),
        ],
    )
    def test_the_problem_of_an_instruction(self, row, reason):
        """It is named by its column."""
        assert problem(row) == (reason, None, True)

    @pytest.mark.parametrize("row", [["a", "", "b"], "a", None])
    def test_a_row_without_columns(self, row):
        """One text among objects is no row."""
        with pytest.raises(RowError, match="not an object with columns"):
            recognise([PLAIN], "a.json").convert(row)

    @pytest.mark.parametrize(
        ("messages", "reason", "turn"),
        [
            (said("Q", "A")[1:], "starts with the assistant", 1),
            (said(("S",), "Q", "A")[::2], "starts with the assistant", 2),
            ([*said("Q"), *said("Q", "A")], "two messages of the user in a row", 2),
            ([*said("Q", "A"), *said("Q", "A")[1:]], "two messages of the assistant in a row", 3),
            (said("Q", "A", "R"), "no answer at its end", 3),
            (said("Q"), "no answer at its end", 1),
            ([*said("Q", "A"), *said(("S",), "Q", "A")], "a system message that is not the first", 3),
            ([*said("Q"), {"role": "assistant", "content": None, "tool_calls": [{}]}], "tool calls", 2),
            ([*said("Q"), {"role": "tool", "content": "x"}], "tool calls", 2),
            ([*said("Q"), {"role": "narrator", "content": "x"}], "unknown role 'narrator'", 2),
            ([{"role": "user", "content": [{"type": "image_url"}]}], "content of type 'image_url'", 1),
            (said("Q", " "), "an empty message", 2),
        ],
    )
    def test_the_problem_of_a_conversation(self, messages, reason, turn):
        """It is named with its turn, counted from 1, and the row is not called damaged."""
        assert problem({"messages": messages}) == (reason, turn, False)

    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ([], "no messages"),
            ("[{", "messages that are not valid JSON"),
            (["Q", "A"], "a message without role and content"),
            ([{"content": "Q"}], "a message without a role"),
        ],
    )
    def test_damaged_conversations(self, messages, reason):
        """What is no conversation at all is damaged."""
        found = recognise([{"messages": said("Q", "A")}], "a.json")
        with pytest.raises(RowError) as caught:
            found.convert({"messages": messages})
        assert (caught.value.reason, caught.value.damaged) == (reason, True)

    def test_rows_with_files_are_left_out(self):
        """A column with pictures, sound or film beside the text says that the text is not all there was."""
        row = {"messages": said("Q <image>", "A"), "images": ["a.png"]}
        assert problem(row) == ("images or other files", None, False)
        assert recognise([row], "a.json").convert({**row, "images": []}) == {
            "prompt": said("Q <image>"), "completion": said("Q", "A")[1:],
        }  # fmt: skip

    def test_an_empty_system_message_is_none(self):
        """Tools write one where nothing was said."""
        assert converted([{"messages": said((" ",), "Q", "A")}])[1] == CHAT

    def test_texts_in_parts_are_joined(self):
        """OpenAI's lists of text parts are one text."""
        turn = {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "value": "?"}]}
        assert converted([{"messages": [turn, *said("Q", "A")[1:]]}])[1]["prompt"][0]["content"] == "Q?"


class TestQuestions:
    """When two rows ask the same."""

    @pytest.mark.parametrize(
        ("one", "two", "same"),
        [
            (PLAIN, {"instruction": " q ", "input": "", "output": "B"}, True),
            (PLAIN, {**PLAIN, "input": "T"}, False),
            ({**PLAIN, "instruction": "a  b\nc"}, {**PLAIN, "instruction": "A b C"}, True),
            (CHAT, LONG, False),
            (CHAT, TOLD, False),
            (LONG, {**LONG, "completion": said("Q", "other", "r", "B")[1:]}, True),
        ],
    )
    def test_case_spacing_and_answers_do_not_count(self, one, two, same):
        """System text, input and every turn of the user do."""
        assert (question_key(one) == question_key(two)) is same


class TestTurns:
    """Conversations as one row for each answer."""

    def test_each_answer_comes_after_all_that_was_said(self):
        """The system message is there each time."""
        first, second = learned_rows(said(("S",), "Q"), said("Q", "A", "R", "B")[1:], single=True)
        assert first == (said(("S",), "Q"), said("Q", "A")[1:])
        assert second == (said(("S",), "Q", "A", "R"), said("Q", "B")[1:])

    def test_answers_that_are_given_stay_given(self):
        """Those in the prompt are not learned."""
        asked, answer = said("P", "B", "Q"), said("Q", "A")[1:]
        assert learned_rows(asked, answer, single=True) == [(asked, answer)]

    @pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": "0"}, {"train": False}, {"training": "false"}])
    def test_marked_answers_are_given(self, mark):
        """OpenAI's weight 0 and axolotl's train: what comes after such an answer has it in its prompt."""
        talk = said("Q", "A", "R", "B", "S", "C", "T", "D")
        talk[3] |= mark
        row = recognise([{"messages": talk}], "a").convert({"messages": talk})
        assert (row["prompt"], row["completion"][0]) == (said("Q"), said("Q", "A")[1])
        talk = said("Q", "A", "R", "B", "S", "C", "T", "D")
        assert learned_rows(row["prompt"], row["completion"], single=False) == [
            (talk[:1], talk[1:2]), (talk[:5], talk[5:]),
        ]  # fmt: skip

    def test_marks_at_the_ends(self):
        """What comes before the first answer that is learned is given; after the last nothing is learned."""
        talk = said("Q", "A", "R", "B", "S", "C")
        talk[1]["weight"] = talk[5]["weight"] = 0
        row = recognise([{"messages": talk}], "a").convert({"messages": talk})
        assert row == {
            "prompt": [talk[0], said("Q", "A")[1] | {"given": True}, talk[2]],
            "completion": [talk[3], talk[4], said("S", "C")[1] | {"given": True}],
        }
        assert learned_rows(row["prompt"], row["completion"], single=False) == [(said("Q", "A", "R"), talk[3:4])]

    def test_a_weight_of_1_and_marks_of_users_change_nothing(self):
        """Users are never learned."""
        talk = [said("Q")[0] | {"train": False}, said("Q", "A")[1] | {"weight": 1, "train": True}]
        found = recognise([{"messages": talk}], "a")
        assert found.convert({"messages": talk}) == {"prompt": said("Q"), "completion": said("Q", "A")[1:]}
        assert found.unused == ()

    def test_nothing_learned(self):
        """A conversation whose answers all have weight 0 is left out."""
        talk = [*said("Q"), said("Q", "A")[1] | {"weight": 0}]
        assert problem({"messages": talk}) == ("no answer that is learned (weight 0)", None, False)

    def test_other_parts_of_messages_are_named(self):
        """They are among what is not used, if there is something in them."""
        talk = [said("Q")[0] | {"name": "Eva", "id": ""}, said("Q", "A")[1]]
        assert recognise([{"messages": talk}], "a").describe() == (
            "format: messages (messages); columns not used: messages.name"
        )


texts = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    .map(str.strip)
    .filter(lambda text: text and not text.lower().startswith(("nan", "null", "[")))
)
talks = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}


class TestThereAndBack:
    """Random rows through each format."""

    @settings(deadline=None, max_examples=60)
    @given(texts, st.one_of(st.just(""), texts), texts)
    def test_instructions(self, asked, context, answer):
        """Every pair of columns gives the same row."""
        row = {"instruction": asked, "input": context, "output": answer}
        for names in (("instruction", "input", "output"), ("Instruction", " context", "response"),
                      ("question", "context", "answer"), ("prompt", "input", "completion")):  # fmt: skip
            given_row = dict(zip(names, row.values(), strict=True))
            assert recognise([given_row], "a").convert(given_row) == row

    @settings(deadline=None, max_examples=60)
    @given(talks, st.one_of(st.none(), texts))
    def test_conversations(self, pairs, system):
        """OpenAI's, ShareGPT's, TRL's and Alpaca's forms give the same messages in the same order."""
        talk = said(*([] if system is None else [(system,)]), *(text for pair in pairs for text in pair))
        share = [{"from": NAMES[m["role"]], "value": m["content"]} for m in talk]
        alpaca = {"instruction": pairs[-1][0], "output": pairs[-1][1], "history": [list(p) for p in pairs[:-1]],
                  "system": system or ""}  # fmt: skip
        for row in ({"messages": talk}, {"conversations": share}, {"prompt": talk[:-1], "completion": talk[-1:]},
                    {"messages": json.dumps(talk)}, alpaca):  # fmt: skip
            out = recognise([row], "a").convert(row)
            assert out["prompt"] + out["completion"] == talk
