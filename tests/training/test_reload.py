"""Whether a reloaded adapter is the trained model, from the rows' losses."""

from __future__ import annotations

import pytest

from helpers.core.errors import ExportError
from helpers.model.scoring import RowScore
from helpers.training.reload import judge_reload, loss_distance


def rows(*means, tokens=9):
    """Scores of answers of nine tokens and an EOS with these mean losses."""
    return [RowScore(mean * (tokens + 1) - 1.0, 1.0, tokens) for mean in means]


TRAINED, UNTRAINED = rows(2.0, 1.5, 1.0), rows(2.4, 1.8, 1.5)


class TestFloat32:
    """What is computed in float32 must come out again."""

    def test_equal_losses_pass(self):
        """The sentence names the rows and the largest difference."""
        said = judge_reload(rows(2.0, 1.50004, 1.0), TRAINED, UNTRAINED)
        assert said == "Reloaded: 3 held-out rows, largest difference of a row's loss 4e-05 (limit 0.0001)."

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("change", [2e-4, -2e-4, float("nan")])
    def test_one_row_off_fails(self, change, place):
        """Two ten-thousandths of a nat, or no number, is another model, whichever row it is."""
        means = [2.0, 1.5, 1.0]
        means[place] += change
        with pytest.raises(ExportError, match="does not reproduce the training"):
            judge_reload(rows(*means), TRAINED, UNTRAINED)


class TestSixteenBit:
    """Where sums are rounded, rounding is the measure."""

    def test_a_difference_like_rounding_passes(self):
        """Rounding moves rows by 0.02, the reloaded model is 0.02 away, and training moved rows by 0.4."""
        said = judge_reload(rows(2.02, 1.48, 1.02), TRAINED, UNTRAINED, rows(2.0, 1.50, 1.0))
        assert said.startswith("Reloaded: 3 held-out rows, 0.063 nats a token from the trained model (limit 0.19;")
        assert said.endswith("rounding alone moves them by 0.063, training moved them by 1.3).")

    def test_a_short_row_may_move_more(self):
        """A row of two tokens that moves by 0.05 is as far as one of fifty that moves by 0.01."""
        short = loss_distance(rows(1.05, tokens=1), rows(1.0, tokens=1))
        assert short == pytest.approx(0.05 * 2**0.5)
        assert short == pytest.approx(loss_distance(rows(1.01, tokens=49), rows(1.0, tokens=49)))

    def test_four_times_rounding_fails(self):
        """A model farther away than three times what rounding does is another one."""
        with pytest.raises(ExportError, match=r"within 0\.19 nats a token, got 0\.25"):
            judge_reload(rows(2.08, 1.58, 1.08), TRAINED, UNTRAINED, rows(2.06, 1.60, 1.10))

    @pytest.mark.parametrize("reloaded", [UNTRAINED, rows(2.3, 1.7, 1.4)])
    def test_the_untrained_model_fails(self, reloaded):
        """An adapter that was saved empty, or nearly so, is not the trained model, however coarse rounding is."""
        coarse = rows(*(row.mean() + 0.05 for row in reloaded))
        with pytest.raises(ExportError, match="does not reproduce"):
            judge_reload(reloaded, TRAINED, UNTRAINED, coarse)

    def test_training_that_changed_nothing_can_be_reloaded(self):
        """Where training moved less than rounding does, only rounding is asked for."""
        almost = rows(2.001, 1.501, 1.001)
        assert "training moved them by 0.0032" in judge_reload(almost, TRAINED, almost, rows(2.02, 1.52, 1.02))

    def test_losses_that_are_not_numbers_fail(self):
        """NaN is never close."""
        nan = rows(float("nan"), 1.5, 1.0)
        with pytest.raises(ExportError, match="got nan"):
            judge_reload(nan, TRAINED, UNTRAINED, nan)
