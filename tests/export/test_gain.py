"""The share of the held-out gain that an export keeps."""

from __future__ import annotations

import pytest

from helpers.export.gain import share_of_gain_kept
from helpers.model.scoring import RowScore

ROWS = range(20)


def scores(losses):
    """Return rows of ten tokens, EOS included, with these mean losses."""
    return [RowScore(9 * loss, loss, 9) for loss in losses]


BASE = scores([2.0 + 0.05 * (i % 5) for i in ROWS])
TUNED = scores([1.0 + 0.02 * (i % 3) for i in ROWS])


def blend(share):
    """Return an export that keeps this share of each row's gain, give or take a little that cancels out."""
    wobble = (0.01, -0.01)
    return scores(
        b.mean() + share * (t.mean() - b.mean()) + wobble[i % 2]
        for i, (b, t) in enumerate(zip(BASE, TUNED, strict=True))
    )


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_share_and_its_interval_are_those_of_the_losses(share):
    """An export that keeps 40 % of each row's gain is said to keep 40 %, and 100 % lies outside its interval."""
    kept = share_of_gain_kept(BASE, TUNED, blend(share))
    assert kept.share == pytest.approx(share, abs=1e-9)
    assert kept.low < share < kept.high
    assert kept.high - kept.low < 0.02


def test_a_merge_that_keeps_40_percent_is_told_in_one_line():
    """The line names the share, its interval, the gain and the rows, and says what that means."""
    assert share_of_gain_kept(BASE, TUNED, blend(0.4)).text == (
        "Held-out gain kept: 40.0% (95 % interval 39.6% to 40.4%) of 1.081 nats a token, 20 rows. "
        "Part of what was learned is missing."
    )


def test_where_the_gain_may_be_zero_there_is_none_to_keep():
    """A training whose gain's interval includes 0, and one that made the rows worse, have nothing to keep."""
    unclear = scores(b.mean() + (0.1 if i % 2 else -0.1) for i, b in enumerate(BASE))
    for tuned in (unclear, scores(b.mean() + 0.1 + 0.01 * (i % 2) for i, b in enumerate(BASE))):
        kept = share_of_gain_kept(BASE, tuned, BASE)
        assert kept.share is None
        assert "no gain to keep" in kept.text


def test_a_gain_that_a_few_rows_carry_is_shared_out_without_an_interval():
    """The share needs no verdict on the gain, only an interval above 0; a merge with 40 % of it is seen here, too."""
    tuned = scores(b.mean() - (3.0 if i == 0 else 0.5 + 0.01 * i) for i, b in enumerate(BASE))
    export = scores(b.mean() + 0.4 * (t.mean() - b.mean()) for b, t in zip(BASE, tuned, strict=True))
    kept = share_of_gain_kept(BASE, tuned, export)
    assert (kept.share, kept.low) == (pytest.approx(0.4), None)
    assert kept.text == (
        "Held-out gain kept: 40.0% of 0.720 nats a token, 20 rows, without an interval: a few rows carry the "
        "difference (skewness 4.1), which takes more than 20 rows. Part of what was learned may be missing."
    )


def test_one_row_does_not_tell():
    """Without an interval for the gain, there is no word on what is kept of it."""
    kept = share_of_gain_kept(BASE[:1], TUNED[:1], TUNED[:1])
    assert kept.text == "Held-out gain kept: not known, because one row does not show how much rows differ."
