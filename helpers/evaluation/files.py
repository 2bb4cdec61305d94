"""The files of a comparison: comparison.json and scores.csv, and those that LLM Comparator and AlpacaEval read.

docs/comparison_files.md describes all of them. LLM Comparator's loader checks nothing: a missing list or a per-model
value that is not a list of two breaks the page, so every field is written every time. AlpacaEval joins the two models
by instruction, so that each may occur once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core.errors import EvaluationError
from helpers.core.files import write_json, write_text
from helpers.core.text import plain_cell
from helpers.evaluation.metrics.table import scores_by_answer
from helpers.evaluation.overview import Overview
from helpers.evaluation.records import Arm, Comparison, Prompt
from helpers.evaluation.votes.tally import Ballot, Reveal

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "side-by-side comparison 1"
_FIELDS = {
    "words": "per_model_number",
    "list_items": "per_model_number",
    "rep_4": "per_model_number",
    "rouge_l": "per_model_number",
    "items_met": "per_model_category",
    "truncated": "per_model_category",
}
_SCORES = {"win": 1.0, "tie": 0.0, "loss": -1.0}
_PREFERENCES = {"win": 2.0, "tie": 1.5, "loss": 1.0}


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write prompts, arms, answers and reference scores as JSON."""
    write_json(path, {"format": _FORMAT} | asdict(comparison))


def write_scores(path: Path, table: pd.DataFrame) -> None:
    """Write all scores as one long CSV: a line for each prompt, arm and measure.

    Cells that a spreadsheet would read as a formula begin with an apostrophe, and no hidden character stays hidden.
    """
    texts = table.select_dtypes(exclude="number").map(plain_cell)
    write_text(path, table.assign(**texts).to_csv(index=False, float_format="%.15g", lineterminator="\r\n"))


def write_llm_comparator(path: Path, comparison: Comparison, overview: Overview, votes: Reveal | None = None) -> None:
    """Write the pairs for LLM Comparator; A is the tuned model, and a positive score is a preference for A.

    Args:
        overview: Its scores; those of `_FIELDS` that all answers have become columns.
        votes: Blind votes, if there are any: the score of a pair is the mean of its votes, 1 for A and -1 for B.
    """
    arms = _arms(overview, votes)
    said = {(answer.prompt_id, answer.arm): answer.text for answer in comparison.answers}
    pairs = [prompt for prompt in comparison.prompts if all((prompt.id, arm.name) in said for arm in arms)]
    rows = scores_by_answer(overview.table)
    cells = [rows.get((prompt.id, arm.name), {}) for prompt in pairs for arm in arms]
    shared = [name for name, kind in _FIELDS.items() if _shown(kind, [name in cell for cell in cells])]
    schema = [{"name": "prompt_id", "type": "string"}, *({"name": name, "type": _FIELDS[name]} for name in shared)]
    examples = []
    for prompt in pairs:
        custom = {name: [_field(name, rows[prompt.id, arm.name]) for arm in arms] for name in shared}
        ballots = [ballot for ballot in votes.ballots if ballot.prompt_id == prompt.id] if votes else []
        texts = [said[prompt.id, arm.name] for arm in arms]
        examples.append(_example(prompt, texts, ballots, {"prompt_id": prompt.id} | custom))
    metadata = {"source_path": comparison.info.title, "custom_fields_schema": schema}
    models = [{"name": arm.label} for arm in arms]
    write_json(path, {"metadata": metadata, "models": models, "examples": examples})


def _arms(overview: Overview, votes: Reveal | None) -> tuple[Arm, Arm]:
    """Return the tuned arm and the base."""
    names = overview.base.name, overview.tuned.name
    if votes is not None and (votes.baseline, votes.contender) != names:
        got = (votes.baseline, votes.contender)
        raise EvaluationError("votes", f"votes on {names[0]} against {names[1]}", got, "Pass the votes of these arms.")
    return overview.tuned, overview.base


def _shown(kind: str, known: list[bool]) -> bool:
    """Decide on a column: the viewer breaks on a number that is missing, but a category may be."""
    return any(known) and (kind == "per_model_category" or all(known))


def _field(name: str, row: Mapping[str, float]) -> float | str:
    if _FIELDS[name] == "per_model_number":
        return row[name]
    return "n/a" if name not in row else "yes" if row[name] else "no"


def _example(prompt: Prompt, texts: list[str], ballots: list[Ballot], custom: dict[str, Any]) -> dict[str, Any]:
    ratings = [_rating(ballot) for ballot in ballots]
    return {
        "input_text": prompt.text,
        "tags": [prompt.category] if prompt.category else [],
        "output_text_a": texts[0],
        "output_text_b": texts[1],
        "score": sum(rating["score"] for rating in ratings) / len(ratings) if ratings else None,
        "individual_rater_scores": ratings,
        "custom_fields": custom,
    }


def _rating(ballot: Ballot) -> dict[str, Any]:
    """Write one vote; `is_flipped` says that the voter saw the base's answer first."""
    label = {"win": "A is better", "loss": "B is better", "tie": "both bad" if ballot.both_bad else "tie"}
    return {
        "score": _SCORES[ballot.outcome],
        "rating_label": label[ballot.outcome],
        "is_flipped": ballot.contender_second,
        "rationale": f"Blind vote of {ballot.voter}",
    }


def write_alpaca_eval(folder: Path, comparison: Comparison, overview: Overview, votes: Reveal | None = None) -> None:
    """Write AlpacaEval's model outputs, reference outputs and, if there are votes, annotations.

    Args:
        folder: Where `model_outputs.json` (tuned), `reference_outputs.json` (base) and `annotations.json` go.
        votes: Blind votes; each voter is an annotator, and a pair seen twice counts once.
    """
    tuned, base = _arms(overview, votes)
    texts = [prompt.text for prompt in comparison.prompts]
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        remedy = "AlpacaEval joins on the text; drop one of the two."
        raise EvaluationError("prompts", "each text once", twice[0], remedy)
    first, second = _outputs(comparison, base), _outputs(comparison, tuned)
    write_json(folder / "reference_outputs.json", list(first.values()))
    write_json(folder / "model_outputs.json", list(second.values()))
    if votes is not None:
        rows = [
            _annotation(first[n], second[n], who, o) for who, found in votes.outcomes.items() for n, o in found.items()
        ]
        write_json(folder / "annotations.json", rows)


def _outputs(comparison: Comparison, arm: Arm) -> dict[str, dict[str, str]]:
    said = {answer.prompt_id: answer.text for answer in comparison.answers if answer.arm == arm.name}
    return {
        prompt.id: {
            "instruction": prompt.text,
            "output": said[prompt.id],
            "generator": arm.label,
            "dataset": prompt.category or "side_by_side_eval",
        }
        for prompt in comparison.prompts
        if prompt.id in said
    }


def _annotation(first: Mapping[str, str], second: Mapping[str, str], voter: str, outcome: str) -> dict[str, Any]:
    row: dict[str, Any] = {"instruction": first["instruction"]}
    for place, side in (("1", first), ("2", second)):
        row |= {f"output_{place}": side["output"], f"generator_{place}": side["generator"]}
    return row | {"annotator": voter, "preference": _PREFERENCES[outcome]}
