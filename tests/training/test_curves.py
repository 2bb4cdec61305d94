"""What is said of a loss curve."""

from __future__ import annotations

import math

import pytest

from helpers.training.curves import judge_curve

NOISE = [0.05, -0.08, 0.02, 0.09, -0.04, -0.03, 0.07, -0.06, 0.01, -0.02, 0.04, -0.05]


def curve(slope, held, *, steps=24, start=2.0):
    """Return metrics with a straight, noisy training loss and given held-out losses."""
    train = [[step, start + slope * step + NOISE[step % 12]] for step in range(1, steps + 1)]
    return {"train_loss": train, "eval_loss": [[place * 8, loss] for place, loss in enumerate(held)]}


class TestVerdict:
    """One kind of curve each."""

    def test_a_falling_held_out_loss_is_healthy(self):
        """Both losses fall."""
        assert judge_curve(curve(-0.02, [2.0, 1.8, 1.7, 1.65])).kind == "healthy"

    def test_a_small_fall_under_the_noise_is_healthy(self):
        """The held-out loss is of the same rows each time: one per cent is progress though training is noisy."""
        assert judge_curve(curve(0.0, [2.0, 1.99, 1.98, 1.97])).kind == "healthy"

    def test_a_loss_that_never_moves_is_flat(self):
        """A learning rate of next to nothing."""
        verdict = judge_curve(curve(0.0, [2.0, 2.0001, 1.9999, 2.0]))
        assert verdict.kind == "flat"
        assert verdict.text == (
            "The held-out loss went from 2.000 to 2.000: it did not move. Raise learning_rate, or train for more "
            "steps; if the rows are what the model already says, there is nothing to learn."
        )

    def test_losses_that_both_rise_are_diverging(self):
        """A learning rate that is far too high."""
        verdict = judge_curve(curve(0.1, [2.0, 2.6, 3.4, 4.4]))
        assert verdict.kind == "diverging"
        assert "lower learning_rate to a fifth" in verdict.text

    def test_a_held_out_loss_that_rises_alone_is_diverging(self):
        """Without a falling training loss, nothing is learned by heart."""
        assert judge_curve(curve(0.0, [2.0, 2.1, 2.2, 2.3])).kind == "diverging"

    def test_a_held_out_loss_that_turns_is_overfitting(self):
        """The training loss goes on falling; the text names the best step."""
        verdict = judge_curve(curve(-0.05, [2.0, 1.7, 1.8, 1.95]))
        assert verdict.kind == "overfitting"
        assert "lowest at step 8 (1.700) and ended at 1.950" in verdict.text

    def test_an_early_end_and_the_step_that_is_kept_are_told(self):
        """After the verdict on the curve."""
        metrics = {**curve(-0.05, [2.0, 1.7, 1.8, 1.95]), "stopped_at": 24, "kept_step": 8}
        assert judge_curve(metrics).text.endswith(
            "early_stopping ended it after step 24. "
            "The adapter of step 8 is kept, whose held-out loss was lowest (1.700). "
            "It was chosen by the rows that also judge it, so the change shown is a little too good."
        )

    def test_a_held_out_loss_that_does_not_follow_is_overfitting(self):
        """The training loss falls by half and the held-out loss stays."""
        assert judge_curve(curve(-0.05, [2.0, 2.0, 2.0, 2.0])).kind == "overfitting"

    @pytest.mark.parametrize("bad", [math.nan, math.inf, None])
    def test_a_loss_that_is_no_number_is_nan(self, bad):
        """One broken step is enough, also when JSON has made it null."""
        metrics = curve(-0.02, [2.0, 1.8])
        metrics["train_loss"][5][1] = bad
        assert judge_curve(metrics).kind == "nan"

    @pytest.mark.parametrize("metrics", [{}, {"train_loss": [], "eval_loss": []}, curve(-0.1, [2.0, 1.9], steps=7)])
    def test_a_few_steps_are_too_short(self, metrics):
        """Under eight steps nothing is claimed."""
        assert judge_curve(metrics).kind == "too short"

    def test_a_healthy_text_has_the_numbers(self):
        """The text can be read without the plot."""
        assert judge_curve(curve(-0.02, [2.0, 1.8, 1.7, 1.72])).text == (
            "The held-out loss went from 2.000 to 1.720, its lowest was 1.700, and the training loss fell by 17%. "
            "The curve looks healthy."
        )
