"""Files of a comparison: our own reads back, and those of other tools are what the tools ask for."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pandas as pd
import pytest
from hostile import HOSTILE, hostile_comparison, hostile_overview, plain_comparison

from helpers.core.errors import EvaluationError
from helpers.core.text import plain_cell
from helpers.evaluation.files import write_alpaca_eval, write_comparison, write_llm_comparator, write_scores
from helpers.evaluation.metrics.table import score_table
from helpers.evaluation.overview import look_over
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo
from helpers.evaluation.votes.ballot import Vote, blind_items
from helpers.evaluation.votes.tally import reveal

# FieldType in LLM Comparator's client/lib/types.ts (60edc1e), without "base", which is reserved.
FIELD_TYPES = {"number", "string", "category", "text", "url", "image_path", "image_byte"}
FIELD_TYPES |= {f"per_model_{kind}" for kind in ("boolean", "number", "category", "text")}
EXAMPLE = {"input_text", "tags", "output_text_a", "output_text_b", "score", "individual_rater_scores", "custom_fields"}


def voted(comparison, *choices, repeats=0):
    """Let Ann vote on the items in order, and Ben call every pair bad."""
    items, key = blind_items(comparison, 1, repeats=repeats)
    arms = [{"a": key.items[item.id].a, "b": key.items[item.id].b} for item in items]
    sides = [
        next((s for s, arm in pair.items() if arm == want), want) for pair, want in zip(arms, choices, strict=True)
    ]
    votes = [Vote(item.id, side, voter="Ann") for item, side in zip(items, sides, strict=True)]
    return reveal(votes + [Vote(item.id, "both_bad", voter="Ben") for item in items], key), items


def read_comparison(path):
    """Build the records from the file again, as other tools may."""
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data.pop("format") == "side-by-side comparison 1"
    lists = {"prompts": Prompt, "arms": Arm, "answers": Answer, "references": ReferenceScore}
    lists["other_task"] = ReferenceScore
    found = {name: tuple(kind(**row) for row in data.pop(name)) for name, kind in lists.items()}
    return Comparison(info=RunInfo(**data.pop("info")), **found, **data)


@pytest.mark.parametrize("comparison", [plain_comparison(), hostile_comparison()], ids=["plain", "hostile"])
def test_a_comparison_can_be_read_back(tmp_path, comparison):
    """Its file holds every field under the record's own name, lone surrogates and control characters included."""
    comparison = replace(comparison, other_task=(ReferenceScore("other-001", "base", 1.0, 0.5, 2, 9),))
    write_comparison(tmp_path / "deep" / "comparison.json", comparison)
    assert read_comparison(tmp_path / "deep" / "comparison.json") == comparison


def rows_of(path):
    """Read a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_long(tmp_path):
    """One line for each prompt, arm and measure; truth is 1 or 0, and what is not known is left out."""
    comparison = plain_comparison(1)
    scores = (ReferenceScore("p0", "base", 12.5, 0.5, 5, 20), ReferenceScore("p0", "tuned", 10.0, 0.5, 5, 20))
    write_scores(tmp_path / "deep" / "scores.csv", score_table(replace(comparison, references=scores)))
    rows = rows_of(tmp_path / "deep" / "scores.csv")
    assert list(rows[0]) == ["prompt_id", "category", "source", "arm", "metric", "value"]
    assert {row["category"] for row in rows} == {"even"}
    found = {row["metric"]: row["value"] for row in rows if row["arm"] == "base"}
    assert found == {
        "tokens": "9",
        "truncated": "0",
        "empty": "0",
        "words": "6",
        "list_items": "0",
        "rep_4": "0",
        "prompt_echo": "0",
        "template_leak": "0",
        "refusal": "0",
        "nll": "2.5",
        "nll_with_eos": "2.16666666666667",
        "bits_per_byte": "0.901684400555602",
        "reference_nll": "12.5",
        "reference_eos_nll": "0.5",
        "reference_tokens": "5",
        "reference_bytes": "20",
    }


def test_scores_hold_no_formulas(tmp_path):
    """No cell of a hostile comparison begins with a sign that starts a formula, whatever separates cells."""
    write_scores(tmp_path / "s.csv", hostile_overview().table)
    for delimiter in ",;":
        with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file, delimiter=delimiter) for cell in row]
        assert [cell for cell in cells if cell.strip()[:1] in ("=", "+", "-", "@", "\t", "\r") and cell.strip()] == []


@pytest.mark.parametrize(
    ("sign", "kept"), [("=", "="), ("+", "+"), ("-", "-"), ("@", "@"), ("\t", "\t"), ("\t=", "\t'=")]
)
@pytest.mark.parametrize(
    ("before", "shown"),
    [("", "'"), (" ", "' "), ("a;", "a;'"), ("a; ", "a;' "), ("a\n", "a\n'"), ('a;"', "a;'\""), ('"', "'\"")],
    ids=["start", "space", "semicolon", "both", "line", "quotation", "quotation at the start"],
)
def test_what_starts_a_formula_gets_an_apostrophe(sign, kept, before, shown):
    """At a cell's start, and after what may separate cells elsewhere, with spaces or quotation marks before it."""
    assert plain_cell(f"{before}{sign}1") == f"{shown}{kept}1"


@pytest.mark.parametrize("text", ['x;"=1+1;y', 'x;"";=1+1', 'x\n"=1+1', '";""=1+1', "a\t=1+1"])
def test_quotation_marks_hide_no_formula(tmp_path, text):
    """Read with semicolons between cells, a quotation mark doubled in a file of commas opens and closes a cell."""
    pd.DataFrame({"arm": ["tuned"], "value": [plain_cell(text)]}).to_csv(tmp_path / "s.csv", index=False)
    for delimiter in ",;\t":
        with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file, delimiter=delimiter) for cell in row]
        assert [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@")] == []


def test_a_carriage_return_is_a_line_break_in_a_cell():
    """And what stands after it no formula."""
    assert plain_cell("\r=1+1") == "'\n'=1+1"


def test_cells_of_other_texts_stay_as_they_are():
    """Signs within words start nothing, and hidden characters are written out."""
    assert plain_cell("well-known; a=b; 50 + 1") == "well-known; a=b; 50 + 1"
    assert plain_cell("a\u202eb\x00\x1b") == "a[U+202E]b[U+0000][U+001B]"


def llm_comparator(folder, comparison, votes=None, overview=None):
    """Write the file and read it."""
    write_llm_comparator(folder / "c.json", comparison, overview or look_over(comparison), votes)
    return json.loads((folder / "c.json").read_text(encoding="utf-8"))


def test_llm_comparator_has_every_required_field(tmp_path):
    """README "JSON Data Format": all fields are required; the loader reads each without asking whether it is there."""
    data = llm_comparator(tmp_path, hostile_comparison(), overview=hostile_overview())
    assert set(data) == {"metadata", "models", "examples"}
    assert set(data["metadata"]) == {"source_path", "custom_fields_schema"}
    assert [set(model) for model in data["models"]] == [{"name"}, {"name"}]
    assert len(data["examples"]) == len(HOSTILE)
    for example in data["examples"]:
        assert set(example) == EXAMPLE
        assert {type(example[name]) for name in ("input_text", "output_text_a", "output_text_b")} == {str}
        assert {type(example[name]) for name in ("tags", "individual_rater_scores")} == {list}


def test_llm_comparator_fields_follow_the_schema(tmp_path):
    """Each column has a known type, and each example a value for it; per-model values are lists of two, tuned first."""
    comparison = plain_comparison(2)
    prompts = (replace(comparison.prompts[0], expected_items=1), comparison.prompts[1])
    answers = (comparison.answers[0], replace(comparison.answers[1], text="- one"), *comparison.answers[2:])
    data = llm_comparator(tmp_path, replace(comparison, prompts=prompts, answers=answers))
    schema = {field["name"]: field["type"] for field in data["metadata"]["custom_fields_schema"]}
    assert schema == {
        "prompt_id": "string",
        "words": "per_model_number",
        "list_items": "per_model_number",
        "rep_4": "per_model_number",
        "items_met": "per_model_category",
        "truncated": "per_model_category",
    }
    assert set(schema.values()) <= FIELD_TYPES
    assert [example["custom_fields"] for example in data["examples"]] == [
        {
            "prompt_id": "p0",
            "words": [1.0, 6.0],
            "list_items": [1.0, 0.0],
            "rep_4": [0.0, 0.0],
            "items_met": ["yes", "no"],
            "truncated": ["no", "no"],
        },
        {
            "prompt_id": "p1",
            "words": [9.0, 6.0],
            "list_items": [0.0, 0.0],
            "rep_4": [0.0, 0.0],
            "items_met": ["n/a", "n/a"],
            "truncated": ["no", "no"],
        },
    ]


def test_llm_comparator_scores_are_for_a(tmp_path):
    """A is the tuned model: its win is +1, its loss -1; the score of a pair is the mean of its votes."""
    comparison = plain_comparison(3)
    votes, items = voted(comparison, "tuned", "base", "tie")
    data = llm_comparator(tmp_path, comparison, votes)
    assert [model["name"] for model in data["models"]] == ["Tuned", "Base + template"]
    examples = {example["input_text"]: example for example in data["examples"]}
    assert [examples[item.prompt]["score"] for item in items] == [0.5, -0.5, 0.0]
    first = examples[items[0].prompt]
    assert first["output_text_a"].startswith("plan a route")
    assert [rating["rating_label"] for rating in first["individual_rater_scores"]] == ["A is better", "both bad"]
    assert first["individual_rater_scores"][0]["is_flipped"] is (first["output_text_a"] == items[0].b)


def test_llm_comparator_without_votes_has_null_scores(tmp_path):
    """types.ts allows a score of null; without votes there is none to give."""
    data = llm_comparator(tmp_path, plain_comparison(1))
    assert (data["examples"][0]["score"], data["examples"][0]["individual_rater_scores"]) == (None, [])


def test_alpaca_eval_joins_the_outputs(tmp_path):
    """As AlpacaEval does: read_json, merge on instruction, one generator a file; every pair is found, once."""
    comparison = plain_comparison(5)
    write_alpaca_eval(tmp_path / "deep", comparison, look_over(comparison))
    first, second = (pd.read_json(tmp_path / "deep" / f"{n}.json") for n in ("reference_outputs", "model_outputs"))
    assert list(first.columns) == ["instruction", "output", "generator", "dataset"]
    assert (list(first["generator"].unique()), list(second["generator"].unique())) == (["Base + template"], ["Tuned"])
    merged = pd.merge(first, second, on=["instruction"], suffixes=("_1", "_2")).drop_duplicates()
    assert len(first) == len(second) == len(merged) == 5
    assert merged["output_2"].tolist()[0] == "plan a route before noon and check it p0"


def test_alpaca_eval_reads_hostile_outputs(tmp_path):
    """Pandas gives hostile outputs back as they were, the empty answer as an empty text and not as missing."""
    comparison = hostile_comparison()
    keep = [prompt for prompt in comparison.prompts if "surrogate" not in prompt.id]
    write_alpaca_eval(tmp_path, replace(comparison, prompts=tuple(keep)), hostile_overview())
    frame = pd.read_json(tmp_path / "reference_outputs.json")
    assert frame["output"].tolist() == [text for name, text in HOSTILE.items() if name != "lone-surrogate"]


def test_alpaca_eval_annotations(tmp_path):
    """Preference 2 is for output_2, the tuned one; 1 for the base; 1.5 for neither, or both by turns."""
    comparison = plain_comparison(2)
    votes, items = voted(comparison, "tuned", "base", "base", repeats=1)
    write_alpaca_eval(tmp_path, comparison, look_over(comparison), votes)
    frame = pd.read_json(tmp_path / "annotations.json")
    keys = ["instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference"]
    assert list(frame.columns) == keys
    ann = frame[frame["annotator"] == "Ann"].set_index("instruction")["preference"].to_dict()
    twice = next(item.prompt for item in items[:2] if item.prompt == items[2].prompt)
    once = next(item.prompt for item in items[:2] if item.prompt != items[2].prompt)
    expected = {item.prompt: value for item, value in zip(items[:2], (2.0, 1.0), strict=True)}
    assert ann[once] == expected[once]
    assert ann[twice] == (1.5 if expected[twice] == 2.0 else 1.0)
    assert frame["preference"].between(1, 2).all()
    assert not frame.duplicated(["instruction", "output_1", "output_2", "annotator"]).any()


def test_alpaca_eval_refuses_equal_prompts(tmp_path):
    """Two prompts of one text would join four times."""
    comparison = plain_comparison(2)
    same = tuple(replace(prompt, text="Same?") for prompt in comparison.prompts)
    with pytest.raises(EvaluationError, match="joins on the text"):
        write_alpaca_eval(tmp_path, replace(comparison, prompts=same), look_over(comparison))


def test_votes_on_other_arms_are_refused(tmp_path):
    """Votes between two other arms cannot be exported as votes between these."""
    comparison = plain_comparison(1)
    votes, _ = voted(comparison, "tuned")
    for write in (write_llm_comparator, write_alpaca_eval):
        with pytest.raises(EvaluationError, match="base against tuned"):
            write(tmp_path / "x", comparison, look_over(comparison), replace(votes, contender="base_bare"))
