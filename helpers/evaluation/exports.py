"""Files that other tools open: LLM Comparator's viewer, and AlpacaEval.

LLM Comparator (github.com/PAIR-code/llm-comparator, README "JSON Data Format" and client/lib/types.ts at 60edc1e) shows
pairs in the browser. Its loader checks nothing: a missing list or a per-model value that is not a list of two breaks
the page, so every field is written every time.

AlpacaEval (github.com/tatsu-lab/alpaca_eval 0.6.6) reads outputs with `pandas.read_json` and joins the two models on
`instruction`, so an instruction may occur once. A preference is 1 for `output_1`, 2 for `output_2`, 1.5 for neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.core.errors import EvaluationError
from helpers.evaluation.formats import write_json
from helpers.evaluation.metrics.gains import clean_rows
from helpers.evaluation.records import Arm, Comparison, Prompt
from helpers.evaluation.report.cards import headline_arms
from helpers.evaluation.votes.tally import Ballot, Reveal

__all__ = ["write_alpaca_eval", "write_llm_comparator"]

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


def write_llm_comparator(
    path: str | Path,
    comparison: Comparison,
    *,
    scores: Sequence[Mapping[str, Any]] = (),
    votes: Reveal | None = None,
) -> Path:
    """Write the pairs for LLM Comparator; A is the tuned model, and a positive score is a preference for A.

    Args:
        path: The JSON file to write.
        comparison: What was compared.
        scores: Flat rows; numbers that all answers have, and yes-or-no metrics, become columns.
        votes: Blind votes, if there are any: the score of a pair is the mean of its votes, 1 for A and -1 for B.

    Returns:
        The path written. Load it at pair-code.github.io/llm-comparator, which reads the file in the browser.

    Raises:
        EvaluationError: There are fewer than two arms, or the votes are about others.
    """
    base, tuned = _arms(comparison, votes)
    said = {(answer.prompt_id, answer.arm): answer.text for answer in comparison.answers}
    pairs = [prompt for prompt in comparison.prompts if all((prompt.id, arm.name) in said for arm in (base, tuned))]
    rows = {(row["prompt_id"], row["arm"]): row for row in clean_rows(scores)}
    order = (tuned.name, base.name)
    cells = [rows.get((prompt.id, arm), {}) for prompt in pairs for arm in order]
    shared = [name for name, kind in _FIELDS.items() if _shown(kind, [cell.get(name) for cell in cells])]
    schema = [{"name": "prompt_id", "type": "string"}, *({"name": name, "type": _FIELDS[name]} for name in shared)]
    examples = []
    for prompt in pairs:
        custom = {name: [_field(name, rows.get((prompt.id, arm), {})) for arm in order] for name in shared}
        ballots = [ballot for ballot in votes.ballots if ballot.prompt_id == prompt.id] if votes else []
        texts = [said[prompt.id, arm] for arm in order]
        examples.append(_example(prompt, texts, ballots, {"prompt_id": prompt.id} | custom))
    metadata = {"source_path": comparison.info.title, "custom_fields_schema": schema}
    models = [{"name": tuned.label}, {"name": base.label}]
    return write_json(path, {"metadata": metadata, "models": models, "examples": examples})


def _arms(comparison: Comparison, votes: Reveal | None) -> tuple[Arm, Arm]:
    pair = headline_arms(comparison)
    names = tuple(arm.name for arm in pair)
    if votes is not None and (votes.baseline, votes.contender) != names:
        got = (votes.baseline, votes.contender)
        raise EvaluationError("votes", f"votes on {names[0]} against {names[1]}", got, "Pass the votes of these arms.")
    return pair


def _shown(kind: str, values: list[Any]) -> bool:
    """Decide on a column: the viewer breaks on a number that is missing, but a category may be."""
    known = [value is not None for value in values]
    return any(known) and (kind == "per_model_category" or all(known))


def _field(name: str, row: Mapping[str, Any]) -> float | str:
    value = row.get(name)
    if _FIELDS[name] == "per_model_number":
        return float(value)
    return "n/a" if value is None else "yes" if value else "no"


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
    """Write one vote; `is_flipped` says that the voter saw B on the left."""
    label = {"win": "A is better", "loss": "B is better", "tie": "both bad" if ballot.both_bad else "tie"}
    return {
        "score": _SCORES[ballot.outcome],
        "rating_label": label[ballot.outcome],
        "is_flipped": ballot.contender_right,
        "rationale": f"Blind vote of {ballot.voter}",
    }


def write_alpaca_eval(folder: str | Path, comparison: Comparison, *, votes: Reveal | None = None) -> dict[str, Path]:
    """Write AlpacaEval's model outputs, reference outputs and, if there are votes, annotations.

    Args:
        folder: Where `model_outputs.json` (tuned), `reference_outputs.json` (base) and `annotations.json` go.
        comparison: What was compared.
        votes: Blind votes; each voter is an annotator, and a pair seen twice counts once.

    Returns:
        The files written, by name without suffix.

    Raises:
        EvaluationError: There are fewer than two arms, the votes are about others, or two prompts have the same text.
    """
    base, tuned = _arms(comparison, votes)
    texts = [prompt.text for prompt in comparison.prompts]
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise EvaluationError(
            "prompts", "each text once", twice[0], "AlpacaEval joins on the text; drop one of the two."
        )
    folder = Path(folder)
    outputs = {"reference_outputs": _outputs(comparison, base), "model_outputs": _outputs(comparison, tuned)}
    written = {name: write_json(folder / f"{name}.json", list(rows.values())) for name, rows in outputs.items()}
    if votes is not None:
        rows = _annotations(outputs["reference_outputs"], outputs["model_outputs"], votes)
        written["annotations"] = write_json(folder / "annotations.json", rows)
    return written


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


def _annotations(first: Mapping[str, Any], second: Mapping[str, Any], votes: Reveal) -> list[dict[str, Any]]:
    rows = []
    for voter, outcomes in votes.outcomes.items():
        for name, outcome in outcomes.items():
            row: dict[str, Any] = {"instruction": first[name]["instruction"]}
            for place, side in (("1", first[name]), ("2", second[name])):
                row |= {f"output_{place}": side["output"], f"generator_{place}": side["generator"]}
            rows.append(row | {"annotator": voter, "preference": _PREFERENCES[outcome]})
    return rows
