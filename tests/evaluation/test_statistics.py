"""What votes can say, how far voters agree, and what each verdict rests on."""

from __future__ import annotations

import re

import numpy as np
import pytest

from helpers.core.paired import estimate
from helpers.evaluation.stats.verdicts import Verdict, interval_text, judge_likelihood, judge_other_task, judge_votes
from helpers.evaluation.stats.votes import krippendorff_alpha, same_vote_share, wilson_interval, wins_needed

FALL = [-0.2, -0.1, -0.3, -0.15, -0.25, -0.2] * 3
UNCLEAR = [-0.2, 0.1, -0.1, 0.2, -0.15, 0.15] * 3


class TestVotes:
    """Counts of votes."""

    @pytest.mark.parametrize(("votes", "wins"), [(6, 6), (10, 9), (20, 15), (30, 21), (50, 33), (100, 61)])
    def test_wins_needed_is_the_published_table(self, votes, wins):
        """The two-sided exact sign test at 5 %."""
        assert wins_needed(votes) == wins

    @pytest.mark.parametrize("votes", [0, 1, 5])
    def test_five_votes_are_never_enough(self, votes):
        """2 / 2**5 is 0.0625."""
        assert wins_needed(votes) is None

    def test_coin_tosses_are_called_a_preference_at_most_5_percent_of_the_time(self):
        """For 20 decided votes the exact size is P(at most 5 or at least 15) = 0.0414."""
        wins = np.random.default_rng(8).binomial(20, 0.5, 4000)
        assert np.mean(np.maximum(wins, 20 - wins) >= wins_needed(20)) == pytest.approx(0.0414, abs=0.01)

    @pytest.mark.parametrize(
        ("successes", "trials", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_wilson_interval_is_newcombes_table(self, successes, trials, low, high):
        """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)

    def test_nothing_has_no_share(self):
        """Without trials there is no interval."""
        assert wilson_interval(0, 0) is None


def _votes(*rows):
    return {f"voter {n}": {str(i): vote for i, vote in enumerate(row) if vote != "."} for n, row in enumerate(rows)}


class TestAgreement:
    """How far voters agree."""

    @pytest.mark.parametrize(
        ("rows", "alpha"),
        [
            (("0100000010", "1110010000"), 0.095),
            (("aabbdccceDDa".lower(), "babbbcccEddd".lower()), 0.692),
            (("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
        ],
        ids=["binary", "nominal", "four-with-gaps"],
    )
    def test_alpha_is_the_published_value(self, rows, alpha):
        """The examples A, B and C of Krippendorff's "Computing Krippendorff's Alpha-Reliability" (2011)."""
        assert krippendorff_alpha(_votes(*rows)) == pytest.approx(alpha, abs=5e-4)

    @pytest.mark.parametrize("rows", [("tttt", "tttt"), ("abab",), ("ab..", "..ab"), ()])
    def test_agreement_by_habit_or_without_shared_items_is_undefined(self, rows):
        """If everybody always votes tuned, chance explains it all."""
        assert krippendorff_alpha(_votes(*rows)) is None

    @pytest.mark.parametrize(
        ("rows", "share"),
        [(("abab", "abba"), 0.5), (("abab", "abba", "abab"), 8 / 12), (("tttt", "tttt"), 1.0), (("abab",), None)],
    )
    def test_same_votes_are_counted_by_pair(self, rows, share):
        """Three voters of one item are three pairs."""
        found = same_vote_share(_votes(*rows))
        assert found is None if share is None else found == pytest.approx(share)


class TestLikelihood:
    """The first question."""

    @pytest.mark.parametrize(
        ("values", "outcome", "sentence"),
        [
            (FALL, "better", "Held-out answers became more likely."),
            ([-d for d in FALL], "worse", "Held-out answers became less likely."),
            ([0.0] * 20, "cannot tell", "Held-out answers are as likely as before."),
        ],
        ids=["fall", "rise", "same"],
    )
    def test_the_interval_decides_where_the_rows_suffice(self, values, outcome, sentence):
        """In either direction."""
        found = judge_likelihood(estimate(values), held_out=True)
        assert (found.outcome, found.sentence) == (outcome, sentence)

    def test_lopsided_rows_are_counted(self):
        """What is said of most rows is not said of their mean."""
        found = judge_likelihood(estimate([-0.1] * 22 + [-9.0] * 2), held_out=True)
        assert (found.outcome, found.sentence) == (
            "mostly better",
            "Most held-out answers became more likely; whether they did on average, these rows cannot tell.",
        )
        assert found.basis.startswith(
            "24 of 24 held-out answers. The mean is not judged: a few rows carry the difference"
        )
        risen = judge_likelihood(estimate([0.1] * 22 + [9.0, -0.1]), held_out=False)
        assert (risen.outcome, risen.sentence) == (
            "mostly worse",
            "Most reference answers became less likely; whether they did on average, these rows cannot tell.",
        )

    def test_sources_are_named_beside_rows(self):
        """36 rows of 18 sources."""
        found = judge_likelihood(estimate(FALL * 2, list(range(18)) * 2), held_out=True)
        assert found.basis.endswith("36 rows from 18 sources).")


class TestOtherTask:
    """The third question: a small loss is not worse, a large one is, and too little says nothing."""

    @pytest.mark.parametrize(
        ("shift", "spread", "outcome"),
        [(0.0, 0.01, "not worse"), (0.02, 0.01, "not worse"), (0.3, 0.1, "worse"), (0.05, 0.3, "cannot tell")],
    )
    def test_the_upper_end_is_held_against_the_margin(self, shift, spread, outcome):
        """0.05 nats a token."""
        values = [shift + spread * sign for sign in (-1, 1, -0.5, 0.5)] * 5
        found = judge_other_task(estimate(values), "dolly", held_out=True)
        assert found.outcome == outcome
        assert "dolly" in found.sentence

    def test_without_rows_it_cannot_tell(self):
        """Nor with too few."""
        assert judge_other_task(None, "dolly", held_out=True).outcome == "cannot tell"
        assert judge_other_task(estimate([0.0, 0.001] * 4), "dolly", held_out=True).outcome == "cannot tell"

    @pytest.mark.parametrize("rows", [12, 24, 50])
    def test_a_loss_at_the_margin_is_seldom_called_none(self, rows):
        """Of 1,000 experiments whose true loss is the margin, with rare large losses among them, at most 6 %."""
        random = np.random.default_rng(rows)
        draws = 0.05 + 0.1 * (random.lognormal(0, 1, (1000, rows)) - np.exp(0.5))
        called = [judge_other_task(estimate(each), "dolly", held_out=True).outcome == "not worse" for each in draws]
        assert np.mean(called) <= 0.06 + 0.015


MORE, LOST = "Are held-out answers more likely?", "What was lost on dolly rows, which it was not trained on?"
OWN = "Are the tuned model's answers preferred?"
ON_DOLLY = "on dolly rows, which it was not trained on"
NLL = "NLL with EOS: "
OPEN = "Voters: cannot tell whether its own answers are better."

WHOLE = [
    (
        judge_likelihood(None, held_out=True),
        Verdict(MORE, "cannot tell", "Cannot tell whether held-out answers became more likely.", "None was scored."),
    ),
    (
        judge_likelihood(estimate(FALL), held_out=False),
        Verdict(
            "Are the reference answers more likely?",
            "better",
            "The reference answers became more likely.",
            f"{NLL}\u22120.200 nats a token (95 % interval \u22120.233 to \u22120.167, 18 rows). Whether the adapter "
            "was trained on these rows is not known.",
        ),
    ),
    (
        judge_likelihood(estimate(UNCLEAR), held_out=True),
        Verdict(
            MORE,
            "cannot tell",
            "Cannot tell whether held-out answers became more likely.",
            f"The interval contains zero. {NLL}0 nats a token (95 % interval \u22120.080 to +0.080, 18 rows).",
        ),
    ),
    (
        judge_likelihood(estimate(FALL[:8]), held_out=True),
        Verdict(
            MORE,
            "cannot tell",
            "Cannot tell whether held-out answers became more likely.",
            f"8 independent rows are too few, 12 are needed. {NLL}\u22120.188 nats a token (95 % interval \u22120.246 "
            "to \u22120.129, 8 rows).",
        ),
    ),
    (
        judge_likelihood(estimate([0.0]), held_out=True),
        Verdict(
            MORE,
            "cannot tell",
            "Held-out answers are as likely as before.",
            f"{NLL}0 nats a token (1 row, no interval: one row does not show how much rows differ).",
        ),
    ),
    (
        judge_other_task(None, "dolly", held_out=True),
        Verdict(LOST, "cannot tell", f"Cannot tell whether anything was lost {ON_DOLLY}.", "None was scored."),
    ),
    (
        judge_other_task(estimate([-each for each in FALL]), "dolly", held_out=True),
        Verdict(
            LOST,
            "worse",
            "The model got worse on dolly rows (not trained on).",
            f"{NLL}+0.200 nats a token (95 % interval +0.167 to +0.233, 18 rows); up to +0.05 counts as kept.",
        ),
    ),
    (
        judge_other_task(estimate([each / 100 for each in UNCLEAR]), "dolly", held_out=True),
        Verdict(
            LOST,
            "not worse",
            "The model did not get worse by 0.05 nats a token on dolly rows (not trained on).",
            f"{NLL}0 nats a token (95 % interval \u22120.00080 to +0.00080, 18 rows); up to +0.05 counts as kept.",
        ),
    ),
    (
        judge_other_task(estimate([each / 100 + 0.01 for each in UNCLEAR]), "dolly", held_out=True),
        Verdict(
            LOST,
            "not worse",
            "The model got worse on dolly rows (not trained on), but by less than 0.05 nats a token.",
            f"{NLL}+0.010 nats a token (95 % interval +0.0092 to +0.011, 18 rows); up to +0.05 counts as kept.",
        ),
    ),
    (
        judge_other_task(estimate(FALL), "dolly", held_out=False),
        Verdict(
            "What was lost on dolly rows?",
            "not worse",
            "The model did not get worse on dolly rows.",
            f"{NLL}\u22120.200 nats a token (95 % interval \u22120.233 to \u22120.167, 18 rows); up to +0.05 counts as "
            "kept. Whether the adapter was trained on such rows is not known.",
        ),
    ),
    (
        judge_other_task(estimate(UNCLEAR), "dolly", held_out=True),
        Verdict(
            LOST,
            "cannot tell",
            f"Cannot tell whether anything was lost {ON_DOLLY}.",
            f"The interval is too wide. {NLL}0 nats a token (95 % interval \u22120.080 to +0.080, 18 rows); up to "
            "+0.05 counts as kept.",
        ),
    ),
    (
        judge_other_task(estimate(FALL[:8]), "dolly", held_out=True),
        Verdict(
            LOST,
            "cannot tell",
            f"Cannot tell whether anything was lost {ON_DOLLY}.",
            f"8 independent rows are too few, 12 are needed. {NLL}\u22120.188 nats a token (95 % interval \u22120.246 "
            "to \u22120.129, 8 rows); up to +0.05 counts as kept.",
        ),
    ),
    (
        judge_votes(9, 3, 1, pairs=13, cut=0),
        Verdict(
            OWN,
            "preferred",
            "Voters: its own answers are preferred.",
            "Votes: tuned 9, base 1, ties 3; 13 pairs. Tuned won 90 % of the 10 decided (95 % interval 60 % to 98 %).",
        ),
    ),
    (
        judge_votes(1, 0, 9, pairs=10, cut=0),
        Verdict(
            OWN,
            "not preferred",
            "Voters: its own answers are liked less.",
            "Votes: tuned 1, base 9, ties 0; 10 pairs. Tuned won 10 % of the 10 decided (95 % interval 2 % to 40 %).",
        ),
    ),
    (
        judge_votes(6, 0, 2, pairs=8, cut=3),
        Verdict(
            OWN,
            "cannot tell",
            OPEN,
            "Votes: tuned 6, base 2, ties 0; 8 pairs, 3 with an answer cut at the length limit. Tuned won 75 % of the "
            "8 decided (95 % interval 41 % to 93 %). One side needs 8 of the 8 decided votes.",
        ),
    ),
    (
        judge_votes(0, 1, 1, pairs=2, cut=0),
        Verdict(
            OWN,
            "cannot tell",
            OPEN,
            "Votes: tuned 0, base 1, ties 1; 2 pairs. Tuned won 0 % of the 1 decided (95 % interval 0 % to 79 %). So "
            "few could be chance.",
        ),
    ),
    (
        judge_votes(0, 1, 0, pairs=1, cut=0),
        Verdict(OWN, "cannot tell", OPEN, "Votes: tuned 0, base 0, ties 1; 1 pair. So few could be chance."),
    ),
    (
        judge_votes(0, 0, 0, pairs=12, cut=11),
        Verdict(
            OWN,
            "cannot tell",
            "Cannot tell whether its own answers are better (12 pairs, 11 with an answer cut at the length limit).",
            "Nobody has compared them: read them, or vote on vote.html.",
        ),
    ),
]


@pytest.mark.parametrize(("found", "said"), WHOLE)
def test_each_verdict_is_a_whole_statement(found, said):
    """Question, outcome, sentence and the figures behind it, word for word."""
    assert found == said


def test_a_mean_can_have_a_unit_and_more_rows_than_sources():
    """Rows are counted in the singular too; without a unit nothing is written in its place."""
    assert interval_text(estimate([0.1])) == "+0.100 (1 row, no interval: one row does not show how much rows differ)"
    assert interval_text(estimate([1.0, 2.0, 3.0, 6.0], list("aabb")), "nats") == (
        "+3 nats (95 % interval \u221216.1 to +22.1, 4 rows from 2 sources)"
    )


def test_no_verdict_speaks_of_chance_or_p():
    """What is said are figures, and what they cannot tell."""
    found = [judge_likelihood(estimate(FALL), held_out=True), judge_other_task(estimate(FALL), "dolly", held_out=True)]
    found.append(judge_votes(9, 3, 1, pairs=13, cut=0))
    text = " ".join(f"{each.sentence} {each.basis}" for each in found)
    assert re.findall(r"beyond chance|\bp =|significan", text) == []
