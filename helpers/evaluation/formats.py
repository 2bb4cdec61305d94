"""A comparison as a file that can be read back, and its scores as a long table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.core.errors import EvaluationError
from helpers.core.files import write_text
from helpers.evaluation.metrics.gains import clean_rows
from helpers.evaluation.pages import visible
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo, build_record

__all__ = ["read_comparison", "write_comparison", "write_json", "write_scores"]

_FORMAT = "side-by-side comparison 1"
_LISTS = {"prompts": Prompt, "arms": Arm, "answers": Answer, "references": ReferenceScore}
_COLUMNS = ("prompt_id", "category", "source", "arm", "metric", "value")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_json(path: str | Path, data: object) -> Path:
    """Write JSON in ASCII, which every reader takes, whatever characters a model came up with.

    Args:
        path: The file to write; its folder is made.
        data: What `json` can write. NaN and infinity are not JSON.

    Returns:
        The path written.

    Raises:
        EvaluationError: There is a NaN or an infinity in the data.
        RunError: The disk refuses.
    """
    path = Path(path)
    try:
        text = json.dumps(data, ensure_ascii=True, allow_nan=False, indent=1)
    except ValueError as error:
        raise EvaluationError(path.name, "finite numbers", str(error), "Replace NaN and infinity by None.") from error
    write_text(path, text + "\n")
    return path


def write_comparison(path: str | Path, comparison: Comparison) -> Path:
    """Write a comparison; `read_comparison` gives it back unchanged.

    Args:
        path: The JSON file to write.
        comparison: What was compared.

    Returns:
        The path written.

    Raises:
        EvaluationError: A reference score is NaN or infinite.
    """
    return write_json(path, {"format": _FORMAT} | asdict(comparison))


def read_comparison(path: str | Path) -> Comparison:
    """Read what `write_comparison` wrote.

    Args:
        path: The JSON file.

    Returns:
        The comparison.

    Raises:
        EvaluationError: The file is missing, is not such a file, or an answer or score names a prompt or arm that it
            does not list.
    """
    remedy = "Pass a comparison.json that this package wrote."
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise EvaluationError("format", repr(_FORMAT), data["format"], remedy)
        lists = {name: tuple(build_record(kind, row) for row in data[name]) for name, kind in _LISTS.items()}
        comparison = Comparison(info=build_record(RunInfo, data["info"]), **lists)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        got = f"{type(error).__name__}: {error}"
        raise EvaluationError(str(path), "a readable comparison", got, remedy) from error
    _check(comparison)
    return comparison


def _check(comparison: Comparison) -> None:
    """Refuse answers and scores of prompts or arms that are not listed."""
    prompts, arms = {row.id for row in comparison.prompts}, {row.name for row in comparison.arms}
    for name, rows in (("answers", comparison.answers), ("references", comparison.references)):
        for row in rows:
            if row.prompt_id not in prompts or row.arm not in arms:
                got = f"prompt {row.prompt_id}, arm {row.arm}"
                raise EvaluationError(name, "a listed prompt and arm", got, "Write the comparison again.")


def write_scores(path: str | Path, comparison: Comparison, scores: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write all scores as one long CSV: a line for each prompt, arm and metric.

    Args:
        path: The CSV file to write. Cells that a spreadsheet would read as a formula begin with an apostrophe.
        comparison: Gives categories and sources, and the reference scores (`reference_nll` and `reference_eos_nll` in
            nats, `reference_tokens`, `reference_bytes`).
        scores: Flat rows, one a prompt and arm; all keys that are not columns are metrics. True and False are
            written as 1 and 0; None and NaN are left out.

    Returns:
        The path written.
    """
    prompts = {prompt.id: prompt for prompt in comparison.prompts}
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for row in [*clean_rows(scores), *map(_reference, comparison.references)]:
        prompt = prompts.get(row["prompt_id"])
        place = (row["prompt_id"], prompt.category if prompt else "", prompt.source if prompt else "", row["arm"])
        for metric, value in row.items():
            if metric not in _COLUMNS:
                writer.writerow([_cell(cell) for cell in (*place, metric, value)])
    write_text(Path(path), file.getvalue())
    return Path(path)


def _reference(score: ReferenceScore) -> dict[str, Any]:
    values = {"nll": score.nll, "eos_nll": score.eos_nll, "tokens": score.tokens, "bytes": score.utf8_bytes}
    named = {f"reference_{name}": value for name, value in values.items()}
    return {"prompt_id": score.prompt_id, "arm": score.arm} | named


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(_FORMULA) else visible(value)
