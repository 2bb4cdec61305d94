"""What a training did, in numbers and in words."""

from __future__ import annotations

import pytest

from helpers.model.scoring import RowScore
from helpers.training.result import TrainResult, compare_scores, describe_change


def scores(losses):
    """Return scores of rows with one token and its EOS."""
    return [RowScore(loss, loss, 1) for loss in losses]


def result(changes, sources=()):
    """Return a training that changed the rows' losses from 2."""
    after = scores([2 + change for change in changes])
    losses = [(0, 2.0), (9, 2 + sum(changes) / len(changes))]
    return TrainResult(
        eval_loss=losses, heldout_before=scores([2.0] * len(changes)), heldout_after=after,
        heldout_sources=list(sources),
    )  # fmt: skip


CHANGES = [-0.2, -0.1, -0.3, -0.2] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (CHANGES, "Held-out answers became more likely."),
        ([-each for each in CHANGES], "Held-out answers became less likely."),
        ([-0.2, 0.2] * 8, "Cannot tell whether training helped: the interval contains zero."),
        (CHANGES[:8], "Cannot tell whether training helped: 8 independent rows are too few, 12 are needed."),
        (
            [-0.1] * 14 + [-9.0] * 2,
            (
                "Most held-out answers, 16 of 16, became more likely; the mean is not judged: a few rows carry the "
                "difference (skewness 2.3), which takes more than 16 rows."
            ),
        ),
        ([-0.2], "Cannot tell whether training helped: one row does not show how much rows differ."),
    ],
    ids=["fell", "rose", "unclear", "few", "lopsided", "one"],
)
def test_the_change_is_said_as_far_as_the_rows_tell(changes, words):
    """By the interval of the paired differences, where the rows suffice."""
    assert describe_change(result(changes)).endswith(words)


def test_rows_that_ask_the_same_count_once():
    """Sixteen rows of eight questions are eight; their interval is wider than that of sixteen."""
    alone, twins = result(CHANGES), result(CHANGES, list(range(8)) * 2)
    assert (alone.metrics()["eval_loss_change"]["sources"], twins.metrics()["eval_loss_change"]["sources"]) == (16, 8)
    assert twins.change().high > alone.change().high
    assert "8 independent rows are too few" in describe_change(twins)


def test_scores_are_compared_row_by_row():
    """The mean of the differences of the rows' means."""
    assert compare_scores(scores([2.0, 3.0]), scores([1.0, 2.5])).mean == pytest.approx(-0.75)


def test_the_loss_after_is_that_of_the_adapter_that_is_kept():
    """With keep = "best" it is the lowest; which step that was, and where training ended early, is in the metrics."""
    found = result(CHANGES)
    found.eval_loss = [(0, 2.0), (4, 1.5), (8, 1.4), (12, 1.6)]
    assert (found.metrics()["eval_loss_after"], found.metrics()["kept_step"]) == (1.6, None)
    found.kept_step, found.stopped_at = found.best_step(), 12
    metrics = found.metrics()
    assert (metrics["eval_loss_after"], metrics["kept_step"], metrics["stopped_at"]) == (1.4, 8, 12)
    assert describe_change(found).startswith("Held-out loss 2.000 before, 1.400 after.")
    assert TrainResult.from_state(found.state()) == found
