"""Whether a reloaded adapter is the trained model, from the rows' losses."""

from __future__ import annotations

import random

import pytest

from helpers.model.scoring import RowScore
from helpers.training.reload import judge_reload, largest_difference, loss_distance


def rows(*means, tokens=9):
    """Scores of answers of nine tokens and an EOS with these mean losses."""
    return [RowScore(mean * (tokens + 1) - 1.0, 1.0, tokens) for mean in means]


TRAINED, UNTRAINED = rows(2.0, 1.5, 1.0), rows(2.4, 1.8, 1.5)


class TestFloat32:
    """What is computed in float32 must come out again."""

    def test_equal_losses_pass(self):
        """The sentence names the rows, the largest difference, and what training did."""
        check = judge_reload(rows(2.0, 1.50004, 1.0), TRAINED, UNTRAINED)
        assert (check.result, check.detail) == (
            "PASS",
            "3 held-out rows, 4e-05 nats a token from the trained model (limit 0.0001; training moved them by 0.5).",
        )

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("change", [2e-4, -2e-4, float("nan")])
    def test_one_row_off_fails(self, change, place):
        """Two ten-thousandths of a nat, or no number, is another model, whichever row it is."""
        means = [2.0, 1.5, 1.0]
        means[place] += change
        assert judge_reload(rows(*means), TRAINED, UNTRAINED).result == "FAIL"

    def test_a_training_that_moved_nothing_cannot_be_told(self):
        """A step of a ten-thousandth of a nat could be there or not."""
        check = judge_reload(TRAINED, TRAINED, rows(2.0001, 1.5, 1.0))
        assert (check.name, check.result) == ("reloaded adapter", "CANNOT TELL")
        assert check.detail == (
            "3 held-out rows, 0 nats a token from the trained model (limit 0.0001; training moved them by 0.0001). "
            "Not proven: the effect of training is too small to tell from rounding. Train longer."
        )

    @pytest.mark.parametrize(
        ("learned", "off", "result"),
        [
            (1.5e-4, 0.7e-4, "PASS"),
            (1.5e-4, 0.8e-4, "CANNOT TELL"),
            (1.5e-4, 1.1e-4, "FAIL"),
            (1e-2, 0.9e-4, "PASS"),
            (1e-2, 1.1e-4, "FAIL"),
            (1e-4, 1.9e-4, "CANNOT TELL"),
            (1e-4, 2.1e-4, "FAIL"),
        ],
    )
    def test_it_must_be_nearer_to_the_trained_model_than_half_way(self, learned, off, result):
        """Nor farther than rounding explains; where training cannot be seen, both distances together are the limit."""
        assert judge_reload(rows(2 + off), rows(2.0), rows(2 + learned)).result == result

    @pytest.mark.parametrize("measure", [largest_difference, loss_distance])
    def test_as_many_rows_are_compared_as_there_are(self, measure):
        """A row too many or too few is a mistake, and not a row less to compare."""
        with pytest.raises(ValueError, match="longer"):
            measure(rows(2.0), TRAINED)


class TestSixteenBit:
    """Where sums are rounded, rounding is the measure."""

    def test_a_difference_like_rounding_passes(self):
        """Rounding moves rows by 0.02, the reloaded model is 0.02 away, and training moved rows by 0.4."""
        check = judge_reload(rows(2.02, 1.48, 1.02), TRAINED, UNTRAINED, rows(2.0, 1.50, 1.0))
        assert check.result == "PASS"
        assert check.detail == (
            "3 held-out rows, 0.063 nats a token from the trained model (limit 0.19; training moved them by 1.3, "
            "rounding alone by 0.063)."
        )

    def test_a_short_row_may_move_more(self):
        """A row of two tokens that moves by 0.05 is as far as one of fifty that moves by 0.01."""
        short = loss_distance(rows(1.05, tokens=1), rows(1.0, tokens=1))
        assert short == pytest.approx(0.05 * 2**0.5)
        assert short == pytest.approx(loss_distance(rows(1.01, tokens=49), rows(1.0, tokens=49)))

    def test_four_times_rounding_fails(self):
        """A model farther away than three times what rounding does is another one."""
        check = judge_reload(rows(2.08, 1.58, 1.08), TRAINED, UNTRAINED, rows(2.06, 1.60, 1.10))
        assert check.result == "FAIL"
        assert "0.25 nats a token from the trained model (limit 0.19;" in check.detail

    @pytest.mark.parametrize("rounding", [0.001, 0.01, 0.05, 0.1, 0.2, 0.5])
    def test_the_untrained_model_never_passes(self, rounding):
        """An adapter that was saved empty fails, or cannot be told where rounding is as coarse as what was learned."""
        coarse = rows(*(row.mean() + rounding for row in UNTRAINED))
        result = judge_reload(UNTRAINED, TRAINED, UNTRAINED, coarse).result
        assert result == ("FAIL" if rounding <= 0.1 else "CANNOT TELL")

    def test_training_that_changed_nothing_cannot_be_told(self):
        """Where training moved less than rounding does, an adapter that was not applied looks the same."""
        almost = rows(2.001, 1.501, 1.001)
        check = judge_reload(almost, TRAINED, almost, rows(2.02, 1.52, 1.02))
        assert check.result == "CANNOT TELL"
        assert "Train longer" in check.detail

    def test_losses_that_are_not_numbers_fail(self):
        """NaN is never close."""
        nan = rows(float("nan"), 1.5, 1.0)
        assert judge_reload(nan, TRAINED, UNTRAINED, nan).result == "FAIL"


def simulated(draw, *, applied):
    """One training of 24 rows: what it moved, what rounding does, and a reload with or without the adapter."""
    learned, rounding = 10 ** draw.uniform(-4, 0), 10 ** draw.uniform(-4, -1)
    noise = lambda scores: rows(*(row.mean() + draw.gauss(0, rounding) for row in scores))  # noqa: E731
    untrained = rows(*(2 + draw.gauss(0, 0.5) for _ in range(24)))
    trained = rows(*(row.mean() - learned * draw.gauss(1, 0.5) for row in untrained))
    reloaded = noise(trained if applied else untrained)
    return judge_reload(reloaded, trained, untrained, noise(reloaded))


class TestRule:
    """The rule, over 2,000 simulated trainings of any size beside rounding of any size."""

    def test_an_adapter_that_was_not_applied_never_passes(self):
        """It fails in half of the cases, and cannot be told in the others."""
        draw = random.Random(0)
        results = [simulated(draw, applied=False).result for _ in range(2000)]
        assert results.count("PASS") == 0
        assert results.count("FAIL") > 900

    def test_an_adapter_that_was_applied_never_fails(self):
        """It passes in half of the cases, and cannot be told where training moved little."""
        draw = random.Random(1)
        results = [simulated(draw, applied=True).result for _ in range(2000)]
        assert results.count("FAIL") == 0
        assert results.count("PASS") > 900
