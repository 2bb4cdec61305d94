"""What fuzzing draws from: JSON of any shape, files that are nearly right, and parameters of any type."""

from __future__ import annotations

import io
import json
import os

import hypothesis
from hypothesis import strategies as st

from helpers.core.errors import HelpersError

QUICK = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
"""The same examples each time, on slow machines too, and nothing kept on disk."""

PLANNED = {}
"""How many examples each test draws, by its name."""


def fuzz(count, /, **drawn):
    """Draw so many examples for a test; an eighth of them where slow tests are left out."""

    def wrap(test):
        PLANNED[test.__qualname__] = count
        share = 8 if "HURRY" in os.environ else 1
        return hypothesis.settings(max_examples=count // share, **QUICK)(hypothesis.given(**drawn)(test))

    return wrap


def survives(action, *args):
    """Call a function; the only error that it may raise is one that users can read, complete in all parts."""
    try:
        return action(*args)
    except HelpersError as error:
        caught = error
    assert all((caught.field, caught.expected, caught.remedy, str(caught)))
    return None


NAMES = ("instruction", "input", "context", "output", "response", "category", "prompt", "id", "topic", "reference",
         "expected_items", "source", "question", "text")  # fmt: skip
"""Columns that some reader looks for."""

HUGE = "a number of 5000 digits"

texts = st.text(st.characters(), max_size=6)  # halves of characters included
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**400, 1e308])
scalars = st.none() | st.booleans() | numbers | texts | st.just(HUGE)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=4
)
ODD = (None, True, False, 0, -1, 3, 1.5, float("nan"), float("inf"), 2**63, 10**400, HUGE, "", "a", "1", "nan", "a/b",
       "../x", "\0", "\ud800", "x" * 300, [], [[]], [1, "a"], [[1, 2.0]], [[1, None], "x"], {}, {"a": []},
       {"seed": 1})  # fmt: skip
"""Values that readers stumble over; drawn more often than others, and faster."""

values = st.sampled_from(ODD) | st.sampled_from(ODD) | nested


def objects(names, inside=values):
    """Dictionaries of which most keys are among some names."""
    return st.dictionaries(st.sampled_from([*names, *names, "", "colour"]), inside, max_size=6)


@st.composite
def nearly(draw, good):
    """Draw an object that is good but for a few entries: each of those is odd, missing or too many."""
    changed = dict(good)
    for name in draw(st.lists(st.sampled_from([*good, *good, "colour"]), max_size=3)):
        if draw(st.integers(0, 4)):
            changed[name] = draw(values)
        else:
            changed.pop(name, None)
    return changed


def to_json(value):
    """Return JSON, in which `HUGE` stands for a number that Python refuses to write."""
    return json.dumps(value).replace(f'"{HUGE}"', "9" * 5000)


rows = st.lists(objects(NAMES) | values, max_size=4)
GOOD = [{"instruction": f"Say {n}.", "input": "né"[:n], "output": f"{n}, {n}"} for n in range(4)]
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])


@st.composite
def encoded(draw, text):
    """Draw a text and write it in some encoding."""
    return draw(text).encode(draw(encodings | st.just("utf-8")), "backslashreplace")


@st.composite
def damaged(draw, whole):
    """Draw bytes and damage them: cut, flipped, doubled or filled in a few places."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        size = draw(st.integers(0, 16))
        kind = draw(st.sampled_from(["cut", "flip", "double", "fill", "end"]))
        if kind == "cut":
            del content[place : place + size]
        elif kind == "flip" and content:
            content[place] ^= draw(st.integers(1, 255))
        elif kind == "double":
            content[place:place] = content[place : place + size]
        elif kind == "fill":
            content[place : place + size] = draw(st.binary(max_size=16))
        else:
            del content[place:]
    return bytes(content)


def csv_bytes(names, cells):
    """CSV files with a header of some names, and cells of any text."""
    quoted = cells.map(lambda cell: '"' + cell.replace('"', '""') + '"') | cells
    lines = st.lists(st.lists(quoted, max_size=len(names) + 2).map(",".join), max_size=5)
    header = st.permutations(list(names)).map(",".join) | st.just(",".join(names))
    return encoded(st.tuples(header, lines, st.sampled_from(["\n", "\r\n", "\r"])).map(
        lambda parts: parts[2].join([parts[0], *parts[1]])))  # fmt: skip


json_bytes = encoded(rows.map(to_json)) | encoded(values.map(to_json))
jsonl_bytes = encoded(rows.map(lambda each: "\n".join(map(to_json, each))))
good_json = st.just(json.dumps(GOOD, ensure_ascii=False).encode())
good_jsonl = st.just("\n".join(map(json.dumps, GOOD)).encode())


@st.composite
def parquet_bytes(draw):
    """Draw a whole Parquet file with columns of some type."""
    import pyarrow
    import pyarrow.parquet

    words = st.text(st.characters(codec="utf-8"), max_size=5)
    kinds = [words, st.integers(-(2**62), 2**62), st.floats(), st.binary(max_size=4), st.datetimes(), st.none(),
             st.lists(st.integers(0, 9), max_size=2)]  # fmt: skip
    count = draw(st.integers(0, 5))
    names = draw(st.lists(st.sampled_from(NAMES[:6]), max_size=4))
    columns = [draw(st.lists(draw(st.sampled_from(kinds)), min_size=count, max_size=count)) for _ in names]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(c) for c in columns], names=names), file)
    return file.getvalue()
