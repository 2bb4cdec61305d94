"""Scores as the report reads them, and the gain of each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.evaluation.records import Arm, Comparison

__all__ = ["Gains", "clean_rows", "tuning_gains"]

_WORST = 5  # prompts listed under "where tuning hurt"
_NAMES = {"rep4": "rep_4", "asked_met": "items_met", "asked_for": "asked_items"}


def clean_rows(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what is not known, and settle on one name for each metric.

    Args:
        scores: Flat rows, one a prompt and arm. `rep4`, `asked_met` and `asked_for` are read as `rep_4`, `items_met`
            and `asked_items`.

    Returns:
        The rows without None and NaN.

    Example:
        >>> clean_rows([{"prompt_id": "p", "arm": "base", "rep4": 0.5, "words": None}])
        [{'prompt_id': 'p', 'arm': 'base', 'rep_4': 0.5}]
    """
    # NaN is the one value that is not equal to itself.
    return [
        {_NAMES.get(name, name): value for name, value in row.items() if value is not None and value == value}
        for row in scores
    ]


@dataclass(frozen=True)
class Gains:
    """How much the second arm is better than the first, prompt by prompt.

    Args:
        label: What is measured and its unit.
        values: Gain by `Prompt.id`; negative where tuning hurt.
    """

    label: str
    values: dict[str, float]

    def worst(self) -> list[str]:
        """List the ids of at most five prompts that lost, the largest loss first."""
        losses = [name for name, value in self.values.items() if value < 0]
        return sorted(losses, key=self.values.__getitem__)[:_WORST]


def tuning_gains(comparison: Comparison, scores: Sequence[Mapping[str, Any]], pair: tuple[Arm, Arm]) -> Gains | None:
    """Measure the gain of each prompt by what is at hand.

    Args:
        comparison: What was compared; its reference scores are preferred.
        scores: Rows with `prompt_id`, `arm` and perhaps `rouge_l`, which serves where no reference was scored.
        pair: The two arms.

    Returns:
        NLL gains in nats per token, or ROUGE-L gains, or None if neither is known.
    """
    first, second = (
        {row.prompt_id: row.nll / row.tokens for row in comparison.references if row.arm == arm.name and row.tokens}
        for arm in pair
    )
    if both := [name for name in first if name in second]:
        return Gains("NLL of the reference, nats per token", {name: first[name] - second[name] for name in both})
    rouge = [row for row in clean_rows(scores) if "rouge_l" in row]
    first, second = ({row["prompt_id"]: row["rouge_l"] for row in rouge if row["arm"] == arm.name} for arm in pair)
    both = [name for name in first if name in second]
    return Gains("ROUGE-L", {name: second[name] - first[name] for name in both}) if both else None
