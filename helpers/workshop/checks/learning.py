"""Checks on loss, perplexity and curves: the exercises on how a run learns, and the recorded runs that they show."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from helpers.core.errors import ConfigError
from helpers.core.settings import nearest
from helpers.workshop.checks.kinds import MATCHES, NUMBER, WHOLE, Check, matching, near

__all__ = ["recorded_run"]


def recorded_run(name: str) -> dict[str, Any]:
    """Return the losses of a run that was recorded with `scripts/record_curves`.

    Args:
        name: Such as "run-2".

    Returns:
        `learning_rate`, `rows`, `seed`, and `train_loss` and `eval_loss` as lists of [step, loss in nats a token].

    Raises:
        ConfigError: There is no such run.
    """
    runs = _runs()
    if name not in runs:
        raise ConfigError("recorded_run", "the name of a recorded run", name, nearest(name, list(runs)))
    return runs[name]


@cache
def _runs() -> dict[str, dict[str, Any]]:
    path = resources.files("helpers.data").joinpath("samples", "workshop_curves.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


LEARNING: dict[str, Check] = {
    "loss": Check(
        NUMBER,
        near(
            1.15129,
            "Take the logarithm of each probability first, then the mean, then flip the sign.",
            [
                (-1.15129, "the sign: is a surprise less than nothing?"),
                (1.66096, "this is in bits. The loss is taken with the natural logarithm."),
                (0.5, "this is with the logarithm to base 10. The loss is taken with the natural one."),
                (4.60517, "this is the sum over the tokens. The loss is their mean."),
                (0.88552, "this is the surprise at the mean probability. Which of the two comes first?"),
                (0.4125, "this is the mean probability. How surprised is the model?"),
            ],
            decimals=2,
        ),
        "a single token that the model thought unlikely makes up half of this loss.",
    ),
    "perplexity": Check(
        NUMBER,
        near(
            1.91554,
            "All tokens count alike: add up the losses, add up the tokens, divide, and then?",
            [
                (0.65, "this is the mean loss a token. Perplexity is one step further."),
                (3.49034, "a mean of means lets a token of the short row count nine times as much."),
                (4.51889, "perplexities are not averaged. Go back to the losses and the tokens."),
                (442413.4, "this is e to the sum. Divide by something first."),
                (665.1416, "this divides by rows. By what should it?"),
            ],
            decimals=2,
        ),
        "long and short rows are told apart only by their tokens, so numbers averaged by row are not comparable.",
    ),
    "real-loss": Check(
        NUMBER,
        near(
            1.5152,
            "Pick one answer token by hand. At which place did the model say how likely it is?",
            [
                (
                    12.7183,
                    "the model's words at a place are about the token that comes next, not the one that stands there.",
                ),
                (12.1218, "this is the sum over the answer's tokens."),
                (2.9580, "this is the mean over all tokens. The labels say which of them count."),
                (1.6816, "the token that ends the answer is learned too."),
                (2.1862, "this is in bits. The loss is taken with the natural logarithm."),
                (-1.5152, "the sign: is a surprise less than nothing?"),
            ],
            tolerance=0.02,
            decimals=2,
        ),
        "this is the very number that training lowers and that the notebooks report for held-out rows.",
    ),
    "learning-rate": Check(
        MATCHES,
        matching(
            {"A": 5e-4, "B": 2e-2, "C": 2e-5},
            {
                "A": "run A: the held-out loss falls early and does not rise again. What does that say of its steps?",
                "B": "run B: it gets worse than before training. What kind of step makes a model worse?",
                "C": "run C: it moves in the right direction. How far does it get?",
            },
        ),
        "the loss before the first step is always the same, so a few steps show which rate is out of the question.",
    ),
    "read-curve": Check(
        MATCHES,
        matching(
            {"P": "healthy", "Q": "overfitting", "R": "flat", "S": "diverging"},
            {
                "P": "run P: follow the held-out line from its first point to its last.",
                "Q": "run Q: do the two lines go the same way?",
                "R": "run R: how much does the held-out line change, as a share of where it began?",
                "S": "run S: hold the last held-out loss against the first.",
            },
        ),
        "the held-out line decides; the training line, of other rows at each step, only explains.",
    ),
    "stop-early": Check(
        WHOLE,
        near(
            8,
            "Find the smallest held-out loss, and say at which step it was measured.",
            [
                (39, "this is where the training loss is lowest. Which loss tells how it does on new rows?"),
                (40, "this is the last step. Was the held-out loss lowest there?"),
                (1, "this is a place in the list. Which step stands there?"),
            ],
            tolerance=0,
        ),
        "the adapter of that step is the better one, which is why checkpoints are kept while a run goes on.",
    ),
}
"""The checks by exercise."""
