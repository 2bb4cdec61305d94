"""What can be wrong in files that users give: data, prompts, votes and good answers: (name, action, words) each."""

from __future__ import annotations

import csv
import json

from helpers.core.config import DataConfig
from helpers.data.rows import load_rows
from helpers.evaluation.prompts import _file_rows, read_questions
from helpers.evaluation.votes.ballot import KeyItem, VoteKey, read_key, read_votes

GOOD = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(6)]
CSV = "instruction,input,output\n"
KEY = VoteKey("base", "tuned", {"i1": KeyItem("p1", "base", "tuned")})
VOTES = "item_id,choice,concrete,on_topic,structure,voter,seconds\n"
FORMAT = "side-by-side vote key 1"
HUGE, DEEP = "9" * 5000, "[" * 200_000


def written(folder, name, content):
    """Write a file, or make a folder where content is None; return its path."""
    path = folder / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def rows(changed=None, *, count=6):
    """Return good rows of which the first is changed, as JSON."""
    return json.dumps([{**GOOD[0], **(changed or {})}, *GOOD[1:count]])


def lines(*values):
    """Return JSON lines: these, then good rows."""
    return "\n".join([*values, *map(json.dumps, GOOD)])


def parquet(**columns):
    """Return a Parquet file's bytes, or those of a table with two columns of one name."""
    import io

    import pyarrow
    import pyarrow.parquet

    names = columns.pop("names", list(columns))
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(list(columns.values()), names=names), file)
    return file.getvalue()


def good_parquet():
    """Return a good Parquet file's bytes."""
    return parquet(**{name: [row[name] for row in GOOD] for name in GOOD[0]})


DATA = [
    ("d.json", "", "at least one row"),
    ("d.json", " \n ", "at least one row"),
    ("d.json", "[]", "at least one row"),
    ("d.json", rows()[:-30], "valid JSON"),
    ("d.json", rows() + "]", "valid JSON"),
    ("d.json", json.dumps(GOOD[0]), "a JSON list of rows"),
    ("d.json", "3", "a JSON list of rows, .*one str"),
    ("d.json", '"text"', "a JSON list of rows"),
    ("d.json", "null", "a JSON list of rows"),
    ("d.json", "[1, 2, 3]", "rows with named columns"),
    ("d.json", "[[], []]", "at least one row"),
    ("d.json", DEEP, "valid JSON"),
    ("d.json", f'[{{"instruction": {HUGE}}}]', "no column is known as the output"),
    ("d.json", rows().encode("utf-16")[:-1], "a file in UTF-16"),
    ("d.json", rows().replace("Say", "Скажи").encode("cp1251"), "a file in UTF-8, got .*byte 0xd1"),
    ("d.json", b"\xef\xbb\xbf", "at least one row"),
    ("d.json", b"\x00" * 100, "a text file, got .*null byte at 0"),
    ("d.json", None, "an existing file"),
    ("d.json", rows({"instruction": {"text": "x"}}), "1 of 6: instruction is not text"),
    ("d.json", rows({"output": ["a", "b"]}), "output is not text"),
    ("d.json", rows({"input": {"a": 3}}), "input is not text"),
    ("d.json", rows({"output": ""}), "empty output"),
    ("d.json", rows({"output": " \n\t"}), "empty output"),
    ("d.json", rows({"instruction": None}), "empty instruction"),
    ("d.json", rows({"output": "a\0b"}), "output holds a null byte"),
    ("d.json", rows({"output": "\ud800"}), "output is not valid Unicode"),
    ("d.json", json.dumps([{"question": "x", "answerr": "y"}] * 6), r"known as the output \(answerr comes near"),
    ("d.json", json.dumps([GOOD[0]] * 6), "6 of 6 rows ask the same question"),
    ("d.json", rows(count=2), "fewer than the 2 usable rows"),
    ("d.json", json.dumps([*GOOD, "text"]), "not an object with columns"),
    ("d.jsonl", "", "at least one row"),
    ("d.jsonl", "\n\n \n", "at least one row"),
    ("d.jsonl", lines('{"instruction": "x", '), "one JSON object a line, got .*line 1"),
    ("d.jsonl", lines() + "\n{", "one JSON object a line, got .*line 7"),
    ("d.jsonl", lines("[1]"), "not an object with columns|rows with the columns"),
    ("d.jsonl", lines(DEEP), "one JSON object a line"),
    ("d.jsonl", lines(f'{{"instruction": {HUGE}}}'), "empty output"),
    ("d.jsonl", lines('{"instruction": NaN, "output": "x"}'), "empty instruction"),
    ("d.jsonl", lines("\ufeff" + json.dumps(GOOD[0])).replace("\ufeff", " \ufeff", 1), "one JSON object a line"),
    ("d.jsonl", lines().encode("utf-16")[:-1], "a file in UTF-16"),
    ("d.jsonl", b"\xff\xfe\x00", "a file in UTF-16"),
    ("d.jsonl", rows({"output": ""}), "empty output"),
    ("d.jsonl", None, "an existing file"),
    ("d.csv", "", "at least one row"),
    ("d.csv", CSV, "at least one row"),
    ("d.csv", "question,text\nx,y\n", "no column is known as the output"),
    ("d.csv", "instruction:input:output\nx::y\n", "no column is known as the instruction"),
    ("d.csv", "instruction,output,output\nx,y,z\n", "each column once, got .*'output' 2 times"),
    ("d.csv", CSV + "a,b\n", "as many fields in each row"),
    ("d.csv", CSV + "a,b,c,d\n", "as many fields in each row"),
    ("d.csv", CSV + '"a,b,c\n', "valid CSV"),
    ("d.csv", CSV + '"a"b,c,d\n', "valid CSV"),
    ("d.csv", CSV + "a,,\n" * 6, "6 of 6: empty output"),
    ("d.csv", CSV + "a,,b\0\n" * 6, "a text file, got .*null byte at 29"),
    ("d.csv", (CSV + "a,,b\n" * 6).encode("utf-16")[:-1], "a file in UTF-16"),
    ("d.csv", (CSV + "a,,p\u00f3\u0142 z\u0142otego\n" * 6).encode("cp1250"), "a file in UTF-8, got .*byte 0xf3"),
    ("d.parquet", "", "a Parquet file"),
    ("d.parquet", CSV + "a,,b\n", "a Parquet file"),
    ("d.parquet", b"PAR1" + b"\x00" * 50 + b"PAR1", "a Parquet file"),
    ("d.parquet", lambda: good_parquet()[:-20], "a Parquet file"),
    ("d.parquet", lambda: good_parquet()[:40] + b"\xff" * 40 + good_parquet()[80:], "a Parquet file"),
    ("d.parquet", lambda: parquet(instruction=[], output=[]), "at least one row"),
    ("d.parquet", lambda: parquet(question=["x"], text=["y"]), "no column is known as the output"),
    ("d.parquet", lambda: parquet(a=["x"], b=["y"], names=["output", "output"]), "each column once"),
    ("d.parquet", lambda: parquet(instruction=[["x"]] * 6, output=["y"] * 6), "instruction is not text"),
    ("d.parquet", lambda: parquet(instruction=["x"] * 6, output=[None] * 6), "empty output"),
    ("d.parquet", lambda: parquet(instruction=[b"\xff"] * 6, output=["y"] * 6), "instruction is not text"),
    ("d.parquet", None, "an existing file"),
    ("d.txt", "hello", "a file that ends in .json"),
    ("d.xlsx", "PK", "a file that ends in .json"),
    ("d.json.gz", b"\x1f\x8b", "a whole gzip file"),
    ("d", "[]", "a file that ends in .json"),
    ("d", None, "a file that ends in .json"),
]  # fmt: skip
"""File name, content and what is said when rows are loaded from it; held-out rows are 2."""

PROMPTS = [
    ("p.txt", "", "at least one prompt"),
    ("p.txt", " \n\n", "at least one prompt"),
    ("p.txt", "same\nother\nsame", "each prompt once"),
    ("p.txt", "caf\xe9".encode("latin-1"), "a file in UTF-8"),
    ("p.txt", "What?".encode("utf-16"), "a file in UTF-8"),
    ("p.txt", "a\0b", "valid Unicode"),
    ("p.txt", None, "a readable file"),
    ("p.jsonl", "", "at least one row"),
    ("p.jsonl", '{"prompt": ', "one JSON object a line"),
    ("p.jsonl", '["x"]', "an object with a `prompt`"),
    ("p.jsonl", '"x"', "an object with a `prompt`"),
    ("p.jsonl", '{"prompt": "  ", "id": "a"}', "prompt 1 is blank"),
    ("p.jsonl", '{"title": "x"}', "text under prompt"),
    ("p.jsonl", '{"prompt": {"a": 3}}', "expected text, got .*3"),
    ("p.jsonl", '{"prompt": ["a"]}', "expected text"),
    ("p.jsonl", '{"prompt": "x", "id": [true]}', "expected text, got"),
    ("p.jsonl", '{"prompt": "x", "reference": {}}', "expected text"),
    ("p.jsonl", '{"prompt": "\\ud800"}', "valid Unicode"),
    ("p.jsonl", '{"prompt": "x", "expected_items": 0}', "1 to 99"),
    ("p.jsonl", '{"prompt": "x", "expected_items": 2.0}', "1 to 99"),
    ("p.jsonl", '{"prompt": "x", "expected_items": [2]}', "1 to 99"),
    ("p.jsonl", '{"prompt": "x", "expected_items": "\u0663"}', "1 to 99"),
    ("p.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "each id once"),
    ("p.json", '{"prompt": "x"}', "a JSON list of rows"),
    ("p.json", DEEP, "valid JSON"),
    ("p.csv", "prompt,id\na,1,2\n", "as many fields"),
    ("p.csv", "prompt,prompt\na,b\n", "each column once"),
    ("p.docx", "x", "a file that ends in"),
]

BALLOTS = [
    ("v.csv", None, "a readable file"),
    ("v.csv", "", "the columns item_id"),
    ("v.csv", VOTES, "at least one vote"),
    ("v.csv", VOTES + ",,,,,,\n", "at least one vote"),
    ("v.csv", VOTES.replace("voter,", "") + "i1,left,,,,1\n", "Add voter"),
    ("v.csv", VOTES.replace("seconds", "voter") + "i1,left,,,,Ann,1\n", "Add seconds"),
    ("v.csv", VOTES.replace("\n", ",voter\n") + "i1,left,,,,Ann,1,Ben\n", "each column once"),
    ("v.csv", VOTES + "i9,left,,,,Ann,1\n", "an item of the key, got 'i9'"),
    ("v.csv", VOTES + "i1,middle,,,,Ann,1\n", "one of a, b"),
    ("v.csv", VOTES + "i1,LEFT,,,,Ann,1\n", "one of a, b"),
    ("v.csv", VOTES + "i1,,,,,Ann,1\n", "one of a, b"),
    ("v.csv", VOTES + "i1,left,yes,,,Ann,1\n", "concrete: expected one of"),
    ("v.csv", VOTES + "i1,left,,,,,1\n", "voter: expected a name"),
    ("v.csv", VOTES + "i1,left\n", "voter: expected a name"),
    ("v.csv", VOTES + "i1,left,,,,Ann,-1\n", "seconds: expected a time"),
    ("v.csv", VOTES + "i1,left,,,,Ann,nan\n", "seconds: expected a time"),
    ("v.csv", VOTES + "i1,left,,,,Ann,1e999\n", "seconds: expected a time"),
    ("v.csv", VOTES + "i1,left,,,,Ann,soon\n", "seconds: expected a time"),
    ("v.csv", VOTES + "i1,left,,,,Ann,1\n" * 2, "one vote of each voter"),
    ("v.csv", (VOTES + "i1,left,,,,Zo\xeb,1\n").encode("latin-1"), "UTF-8 text"),
    ("v.csv", (VOTES + "i1,left,,,,Ann,1\n").encode("utf-16"), "UTF-8 text"),
    ("v.csv", VOTES.replace(",", "\t") + "i1\tleft\n", "the columns item_id"),
    ("v.csv", b"\x89PNG\r\n\x1a\n", "UTF-8 text"),
]

KEYS = [
    ("k.json", None, "a readable vote key"),
    ("k.json", "", "a readable vote key"),
    ("k.json", "[]", "a readable vote key"),
    ("k.json", "{}", "a readable vote key"),
    ("k.json", DEEP, "a readable vote key"),
    ("k.json", '{"format": "other"}', "^format: expected"),
    ("k.json", json.dumps({"format": FORMAT, "baseline": "b", "contender": "t", "items": []}), "a readable vote key"),
    ("k.json", json.dumps({"format": FORMAT, "baseline": 1, "contender": "t", "items": {}}), "a name that is no text"),
    ("k.json", json.dumps({"format": FORMAT, "baseline": "b", "contender": "t", "items": {"i": 3}}), "vote key"),
    ("k.json", json.dumps({"format": FORMAT, "baseline": "b", "contender": "t",
                           "items": {"i": {"prompt_id": [], "left": "a", "right": "b"}}}), "a name that is no text"),
]  # fmt: skip

REFERENCES = [
    ("r.jsonl", "", "at least one row"),
    ("r.jsonl", '{"instruction": "x", "output": ""}', "row 0: .*empty output"),
    ("r.jsonl", '{"question": "x"}', "no column is known as the output"),
    ("r.jsonl", '{"question": "x", "answer": "y"}\n3', "row 1: .*not an object"),
    ("r.json", "{}", "a JSON list of rows"),
    ("r.csv", CSV.encode("utf-16"), "at least one row"),
    ("r.parquet", "x", "a Parquet file"),
    ("r.jsonl", None, "an existing file"),
]


def _load(path):
    load_rows(DataConfig(dataset_name=str(path), train_rows=0, heldout_rows=2), "alpaca", 1)


READERS = {
    "data": (_load, DATA),
    "prompts": (lambda path: read_questions(str(path)), PROMPTS),
    "votes": (lambda path: read_votes([path], KEY), BALLOTS),
    "key": (read_key, KEYS),
    "reference rows": (lambda path: _file_rows(str(path), "alpaca", 1)[0], REFERENCES),
}
"""What reads a file, and the files that it refuses."""


def reading(read, name, content):
    """Return an action that writes a file and reads it."""
    return lambda folder: read(written(folder, name, content() if callable(content) else content))


def choose(folder):
    """Ask for a category that no row has."""
    path = written(folder, "d.json", rows())
    load_rows(DataConfig(dataset_name=str(path), train_rows=0, heldout_rows=2, category="poems"), "alpaca", 1)


def swell(folder):
    """Read votes with a cell that is larger than the csv module takes."""
    before = csv.field_size_limit(1000)
    try:
        read_votes([written(folder, "v.csv", VOTES + f"i1,left,,,,{'x' * 2000},1\n")], KEY)
    finally:
        csv.field_size_limit(before)


OTHERS = [
    ("data that is missing", lambda folder: _load(folder / "no.csv"), "an existing file"),
    ("data with an overlong name", lambda folder: _load(folder / ("x" * 400 + ".json")), "an existing file"),
    ("data in a file's folder", lambda folder: _load(written(folder, "f", "x") / "d.json"), "an existing file"),
    ("a category that no row has", choose, "^category: .*data with a column category"),
    ("prompts that are missing", lambda folder: read_questions(str(folder / "no.txt")), "a readable file"),
    ("more prompts than there are", lambda folder: read_questions(None, 17), "^prompt_count: .*at most 16"),
    ("votes that are missing", lambda folder: read_votes([folder / "no.csv"], KEY), "a file that exists"),
    ("votes with a cell beyond bounds", swell, "valid CSV"),
    ("votes with an overlong name", lambda folder: read_votes(["x" * 5000 + ".csv"], KEY), "a readable file"),
    ("votes with a null byte in the name", lambda folder: read_votes(["a\0.csv"], KEY), "a readable file"),
]

CASES = [
    *(
        (f"{kind} {n}: {name}", reading(read, name, content), words)
        for kind, (read, cases) in READERS.items()
        for n, (name, content, words) in enumerate(cases)
    ),
    *OTHERS,
]
"""(name, action, words) of each case."""
