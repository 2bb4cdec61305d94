"""Files of a comparison: our own reads back, and those of other tools are what the tools ask for."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pandas as pd
import pytest
from hostile import HOSTILE, hostile_comparison, plain_comparison

from helpers.core.errors import EvaluationError
from helpers.evaluation.exports import write_alpaca_eval, write_llm_comparator
from helpers.evaluation.formats import read_comparison, write_comparison, write_json, write_scores
from helpers.evaluation.records import ReferenceScore
from helpers.evaluation.votes.ballots import Vote
from helpers.evaluation.votes.tally import reveal
from helpers.evaluation.votes.votes import blind_items

# FieldType in LLM Comparator's client/lib/types.ts (60edc1e), without "base", which is reserved.
FIELD_TYPES = {"number", "string", "category", "text", "url", "image_path", "image_byte"}
FIELD_TYPES |= {f"per_model_{kind}" for kind in ("boolean", "number", "category", "text")}
EXAMPLE = {"input_text", "tags", "output_text_a", "output_text_b", "score", "individual_rater_scores", "custom_fields"}


def scores_of(comparison, **values):
    """Give every answer the same scores."""
    return [{"prompt_id": answer.prompt_id, "arm": answer.arm} | values for answer in comparison.answers]


def voted(comparison, *choices, repeats=0):
    """Let Ann vote on the items in order, and Ben call every pair bad."""
    items, key = blind_items(comparison, 1, repeats=repeats)
    arms = [{"left": key.items[item.id].left, "right": key.items[item.id].right} for item in items]
    sides = [
        next((s for s, arm in pair.items() if arm == want), want) for pair, want in zip(arms, choices, strict=True)
    ]
    votes = [Vote(item.id, side, voter="Ann") for item, side in zip(items, sides, strict=True)]
    return reveal(votes + [Vote(item.id, "both_bad", voter="Ben") for item in items], key), items


@pytest.mark.parametrize("comparison", [plain_comparison(), hostile_comparison()])
def test_comparison_round_trip(tmp_path, comparison):
    """A comparison read back equals the one written, lone surrogates and control characters included."""
    assert read_comparison(write_comparison(tmp_path / "deep" / "comparison.json", comparison)) == comparison


def test_json_is_ascii(tmp_path):
    """The file is ASCII, so that no reader's idea of an encoding matters."""
    raw = write_comparison(tmp_path / "comparison.json", hostile_comparison()).read_bytes()
    assert raw.isascii()


def test_nan_is_refused(tmp_path):
    """NaN is not JSON; the error says what to do, and no half file is left."""
    with pytest.raises(EvaluationError, match="by None"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "side-by-side comparison 1"}', "\xff"])
def test_other_files_are_no_comparisons(tmp_path, text):
    """A file that is not a comparison is refused with a remedy."""
    (tmp_path / "c.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"Pass a comparison\.json"):
        read_comparison(tmp_path / "c.json")


def test_future_format_is_refused(tmp_path):
    """Another format version is named in the error."""
    path = write_comparison(tmp_path / "c.json", plain_comparison())
    path.write_text(path.read_text().replace("comparison 1", "comparison 2"))
    with pytest.raises(EvaluationError, match="comparison 2"):
        read_comparison(path)


def test_answers_of_strangers_are_refused(tmp_path):
    """An answer to a prompt that is not listed cannot be compared."""
    comparison = plain_comparison()
    path = write_comparison(tmp_path / "c.json", replace(comparison, prompts=comparison.prompts[1:]))
    with pytest.raises(EvaluationError, match="prompt p0, arm base"):
        read_comparison(path)


def rows_of(path):
    """Read a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_long(tmp_path):
    """One line for each prompt, arm and metric; truth is 1 or 0; what is not known is left out."""
    comparison = plain_comparison(1)
    comparison = replace(comparison, references=(ReferenceScore("p0", "base", 12.5, 0.5, 5, 20),))
    values = [{"prompt_id": "p0", "arm": "tuned", "words": 9, "empty": False, "rouge_l": None, "nll": float("nan")}]
    rows = rows_of(write_scores(tmp_path / "deep" / "scores.csv", comparison, values))
    assert list(rows[0]) == ["prompt_id", "category", "source", "arm", "metric", "value"]
    assert [(row["arm"], row["metric"], row["value"]) for row in rows] == [
        ("tuned", "words", "9"),
        ("tuned", "empty", "0"),
        ("base", "reference_nll", "12.5"),
        ("base", "reference_eos_nll", "0.5"),
        ("base", "reference_tokens", "5"),
        ("base", "reference_bytes", "20"),
    ]
    assert {row["category"] for row in rows} == {"even"}


def test_scores_hold_no_formulas(tmp_path):
    """No cell of a hostile comparison begins with a sign that starts a formula; negative numbers stay numbers."""
    comparison = hostile_comparison()
    rows = rows_of(
        write_scores(tmp_path / "s.csv", comparison, scores_of(comparison, note=HOSTILE["formula"], gain=-1.5))
    )
    texts = [row[name] for row in rows for name in row if name != "value"] + [
        r["value"] for r in rows if r["metric"] == "note"
    ]
    assert [text for text in texts if text[:1] in ("=", "+", "-", "@", "\t", "\r")] == []
    assert {row["value"] for row in rows if row["metric"] == "gain"} == {"-1.5"}


def test_llm_comparator_has_every_required_field(tmp_path):
    """README "JSON Data Format": all fields are required; the loader reads each without asking whether it is there."""
    comparison = hostile_comparison()
    path = write_llm_comparator(tmp_path / "c.json", comparison, scores=scores_of(comparison, words=3, truncated=True))
    data = json.loads(path.read_text(encoding="utf-8"))
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
    scores = scores_of(comparison, words=3, rep4=0.0, truncated=False)
    scores[1] |= {"words": 7, "asked_met": True}
    del scores[2]["rep4"]
    path = write_llm_comparator(tmp_path / "c.json", comparison, scores=scores)
    data = json.loads(path.read_text(encoding="utf-8"))
    schema = {field["name"]: field["type"] for field in data["metadata"]["custom_fields_schema"]}
    assert schema == {
        "prompt_id": "string",
        "words": "per_model_number",
        "items_met": "per_model_category",
        "truncated": "per_model_category",
    }
    assert set(schema.values()) <= FIELD_TYPES
    assert data["examples"][0]["custom_fields"] == {
        "prompt_id": "p0",
        "words": [7.0, 3.0],
        "items_met": ["yes", "n/a"],
        "truncated": ["no", "no"],
    }


def test_llm_comparator_scores_are_for_a(tmp_path):
    """A is the tuned model: its win is +1, its loss -1; the score of a pair is the mean of its votes."""
    comparison = plain_comparison(3)
    votes, items = voted(comparison, "tuned", "base", "tie")
    data = json.loads(write_llm_comparator(tmp_path / "c.json", comparison, votes=votes).read_text(encoding="utf-8"))
    assert [model["name"] for model in data["models"]] == ["Tuned", "Base + template"]
    examples = {example["input_text"]: example for example in data["examples"]}
    assert [examples[item.prompt]["score"] for item in items] == [0.5, -0.5, 0.0]
    first = examples[items[0].prompt]
    assert first["output_text_a"].startswith("plan a route")
    assert [rating["rating_label"] for rating in first["individual_rater_scores"]] == ["A is better", "both bad"]
    assert first["individual_rater_scores"][0]["is_flipped"] is (first["output_text_a"] == items[0].right)


def test_llm_comparator_without_votes_has_null_scores(tmp_path):
    """types.ts allows a score of null; without votes there is none to give."""
    data = json.loads(write_llm_comparator(tmp_path / "c.json", plain_comparison(1)).read_text(encoding="utf-8"))
    assert (data["examples"][0]["score"], data["examples"][0]["individual_rater_scores"]) == (None, [])


def test_alpaca_eval_joins_the_outputs(tmp_path):
    """As AlpacaEval does: read_json, merge on instruction, one generator a file; every pair is found, once."""
    comparison = plain_comparison(5)
    paths = write_alpaca_eval(tmp_path / "deep", comparison)
    first, second = (pd.read_json(paths[name]) for name in ("reference_outputs", "model_outputs"))
    assert list(first.columns) == ["instruction", "output", "generator", "dataset"]
    assert (list(first["generator"].unique()), list(second["generator"].unique())) == (["Base + template"], ["Tuned"])
    merged = pd.merge(first, second, on=["instruction"], suffixes=("_1", "_2")).drop_duplicates()
    assert len(first) == len(second) == len(merged) == 5
    assert merged["output_2"].tolist()[0] == "plan a route before noon and check it p0"


def test_alpaca_eval_reads_hostile_outputs(tmp_path):
    """Pandas gives hostile outputs back as they were, the empty answer as an empty text and not as missing."""
    comparison = hostile_comparison()
    keep = [prompt for prompt in comparison.prompts if "surrogate" not in prompt.id]
    comparison = replace(comparison, prompts=tuple(keep))
    frame = pd.read_json(write_alpaca_eval(tmp_path, comparison)["reference_outputs"])
    assert frame["output"].tolist() == [text for name, text in HOSTILE.items() if name != "lone-surrogate"]


def test_alpaca_eval_annotations(tmp_path):
    """Preference 2 is for output_2, the tuned one; 1 for the base; 1.5 for neither, or both by turns."""
    comparison = plain_comparison(2)
    votes, items = voted(comparison, "tuned", "base", "base", repeats=1)
    frame = pd.read_json(write_alpaca_eval(tmp_path, comparison, votes=votes)["annotations"])
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
        write_alpaca_eval(tmp_path, replace(comparison, prompts=same))


def test_votes_on_other_arms_are_refused(tmp_path):
    """Votes between two other arms cannot be exported as votes between these."""
    comparison = plain_comparison(1)
    votes, _ = voted(comparison, "tuned")
    for write in (write_llm_comparator, write_alpaca_eval):
        with pytest.raises(EvaluationError, match="base against tuned"):
            write(tmp_path / "x", comparison, votes=replace(votes, contender="base_bare"))
