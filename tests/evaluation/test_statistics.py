"""Paired statistics, votes and agreement, against closed forms, published tables and simulation."""

import math

import numpy as np
import pytest

from helpers.core.errors import EvaluationError
from helpers.evaluation.stats.agreement import agreement, cohen_kappa, krippendorff_alpha, self_consistency
from helpers.evaluation.stats.intervals import Interval, observe
from helpers.evaluation.stats.preferences import sign_test, summarise_votes, wilson_interval, win_rate, wins_needed
from helpers.evaluation.stats.resampling import bootstrap_interval, permutation_p_value
from helpers.evaluation.stats.summaries import slices, summarise
from helpers.evaluation.stats.tests import count_clusters, holm, standard_error, t_interval, t_p_value
from helpers.evaluation.stats.verdicts import state, state_all

# Student, "The Probable Error of a Mean" (1908): extra hours of sleep with one drug over the other, ten patients.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
# Fisher, "The Design of Experiments" (1935): Darwin's maize, crossed minus self-fertilised, eighths of an inch.
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
# Differences of eight prompts that tell nothing, and of eight that tell something.
UNCLEAR = [0.1, -0.2, 0.05, 0.1, -0.05, 0.02, -0.1, 0.15]
CLEAR = [0.10, 0.20, 0.15, 0.10, 0.05, 0.12, 0.20, 0.15]


def test_t_interval_of_students_sleep_data_is_the_published_one():
    """The interval that R's documentation of `sleep` prints is 0.7001142 to 2.4598858."""
    interval = t_interval(SLEEP)
    assert (interval.low, interval.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert interval.method == "t"


def test_t_p_value_of_students_sleep_data_is_the_published_one():
    """R prints p = 0.002833 for the paired test."""
    assert t_p_value(SLEEP) == pytest.approx(0.002833, abs=5e-7)


def test_permutation_test_of_darwins_maize_is_fishers():
    """Fisher found 1,726 of the 32,768 combinations of signs at least as extreme."""
    assert permutation_p_value(MAIZE, resamples=40_000) == pytest.approx(1726 / 32768, abs=1e-12)


def test_permutation_test_of_few_prompts_is_exact():
    """Three positive differences are as extreme as 2 of 8 combinations of signs."""
    assert permutation_p_value([0.1, 0.2, 0.3]) == 0.25


def test_permutation_test_flips_whole_sources():
    """Eight prompts of three sources leave only 8 combinations, so p cannot fall below 2 / 8."""
    assert permutation_p_value(CLEAR, list("aaabbbcc")) == 0.25


def test_standard_error_without_sources_is_the_textbook_formula():
    """The standard deviation of 1, 2, 3 is 1, and its standard error 1 / sqrt(3)."""
    assert standard_error([1, 2, 3]) == pytest.approx(0.5773502691896258)


def test_sources_of_one_prompt_each_change_nothing():
    """Clustering by a source that nobody shares is no clustering."""
    assert t_interval(SLEEP, list("abcdefghij")) == t_interval(SLEEP)


def test_clustered_standard_error_follows_its_formula():
    """Residuals 1, -1, -2, 2, 0 of a, a, b, c, c sum to 0, -2, 2: sqrt(3 / 2 * 8) / 5."""
    assert standard_error([4, 2, 1, 5, 3], list("aabcc")) == pytest.approx(math.sqrt(12) / 5)


def test_clusters_of_one_size_give_the_t_interval_of_their_means():
    """Three sources with two prompts each have as much to say as their three means."""
    clustered = t_interval([1, 2, 3, 6, 4, 5], list("aabbcc"))
    means = t_interval([1.5, 4.5, 4.5])
    assert (clustered.low, clustered.high) == pytest.approx((means.low, means.high))
    assert clustered.method == "clustered t"


def test_sources_may_come_in_any_order():
    """Prompts of a source need not stand together."""
    assert standard_error([1, 3, 2, 6], list("abab")) == standard_error([1, 2, 3, 6], list("aabb")) == 1.5


def test_bootstrap_is_reproducible_and_depends_on_its_seed():
    """One seed gives one interval."""
    values = np.random.default_rng(0).standard_normal(30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_bca_says_so_when_it_cannot_correct():
    """With all three resamples on one side of the mean BCa's correction is infinite; there is a note, no warning."""
    interval = bootstrap_interval([0] * 7 + [1], method="BCa", resamples=3, seed=23)
    assert (interval.low, interval.note) == (None, "BCa's correction is undefined for these differences.")


def _share(outcomes):
    outcomes = list(outcomes)
    return sum(outcomes) / len(outcomes)


def test_t_interval_of_eight_prompts_covers_95_percent():
    """4,000 drawn experiments: the standard error of the share is 0.0034."""
    draws = np.random.default_rng(1).normal(0.3, 1.0, (4000, 8))
    assert _share(not t_interval(row).excludes(0.3) for row in draws) == pytest.approx(0.95, abs=0.01)


def test_percentile_bootstrap_of_eight_prompts_covers_only_88_percent():
    """2,000 drawn experiments: the standard error of the share is 0.0073."""
    draws = np.random.default_rng(2).normal(0.3, 1.0, (2000, 8))
    covered = _share(not bootstrap_interval(row, resamples=999, seed=5).excludes(0.3) for row in draws)
    assert covered == pytest.approx(0.88, abs=0.02)


def test_clustered_interval_covers_where_the_plain_one_does_not():
    """Eight sources of four alike prompts: clustered covers 95 %, plain t far less."""
    random = np.random.default_rng(3)
    draws = np.repeat(random.standard_normal((2000, 8)), 4, axis=1) + 0.5 * random.standard_normal((2000, 32))
    sources = np.repeat(np.arange(8), 4).tolist()
    assert _share(not t_interval(row, sources).excludes(0) for row in draws) == pytest.approx(0.95, abs=0.015)
    assert _share(not t_interval(row).excludes(0) for row in draws) < 0.75


def test_small_sample_factor_keeps_few_sources_honest():
    """Four sources of unequal size cover at least 90 %; without the factor the ends would lie 13 % closer."""
    sources = list("aaaabbbccd")
    random = np.random.default_rng(4)
    shared = random.standard_normal((2000, 4))[:, [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]]
    draws = shared + random.standard_normal((2000, 10))
    assert _share(not t_interval(row, sources).excludes(0) for row in draws) > 0.90


def test_t_test_rejects_a_true_null_5_percent_of_the_time():
    """4,000 experiments of ten prompts without any difference."""
    draws = np.random.default_rng(6).standard_normal((4000, 10))
    assert _share(t_p_value(row) < 0.05 for row in draws) == pytest.approx(0.05, abs=0.01)


def test_permutation_test_rejects_a_true_null_at_most_5_percent_of_the_time():
    """With 8 prompts p comes in steps of 2 / 256; 12 / 256 = 0.047 is the largest below 0.05."""
    draws = np.random.default_rng(7).standard_normal((2000, 8))
    assert _share(permutation_p_value(row) < 0.05 for row in draws) == pytest.approx(12 / 256, abs=0.012)


def test_sign_test_rejects_a_true_null_at_most_5_percent_of_the_time():
    """For 20 decided votes the exact size is P(at most 5 or at least 15) = 0.0414."""
    wins = np.random.default_rng(8).binomial(20, 0.5, 4000).tolist()
    p_values = {win: sign_test(win, 20 - win) for win in set(wins)}
    assert _share(p_values[win] < 0.05 for win in wins) == pytest.approx(0.0414, abs=0.01)


def test_holm_keeps_the_chance_of_any_false_finding():
    """Five independent true nulls: some unadjusted p is below 0.05 in 23 % of 4,000 draws, some adjusted one in 5 %."""
    draws = np.random.default_rng(9).uniform(size=(4000, 5)).tolist()
    adjusted = _share(min(holm(dict(zip("abcde", row, strict=True))).values()) < 0.05 for row in draws)
    assert adjusted == pytest.approx(0.049, abs=0.01)
    assert _share(min(row) < 0.05 for row in draws) == pytest.approx(0.226, abs=0.02)


def test_holm_follows_the_textbook():
    """The worked example 0.01, 0.04, 0.03, 0.005 becomes 0.03, 0.06, 0.06, 0.02."""
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]


def test_holm_never_exceeds_one():
    """Large p-values stay probabilities."""
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(("votes", "wins"), [(6, 6), (10, 9), (20, 15), (30, 21), (50, 33), (100, 61)])
def test_wins_needed_is_the_published_table(votes, wins):
    """One win fewer is not enough."""
    assert wins_needed(votes) == wins
    assert sign_test(wins, votes - wins) < 0.05 <= sign_test(wins - 1, votes - wins + 1)


@pytest.mark.parametrize("votes", [0, 1, 5])
def test_five_votes_are_never_enough(votes):
    """2 / 2**5 is 0.0625."""
    assert wins_needed(votes) is None


def test_wins_needed_follows_alpha():
    """At 10 % five of five are enough, at 1 % eight of eight."""
    assert (wins_needed(5, alpha=0.10), wins_needed(8, alpha=0.01), wins_needed(7, alpha=0.01)) == (5, 8, None)


def test_sign_test_follows_the_binomial():
    """8 of 8 has p = 2 / 256, an even split has p = 1, and so has no vote at all."""
    assert (sign_test(8, 0), sign_test(4, 4), sign_test(0, 0)) == (0.0078125, 1.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_newcombes_table(successes, trials, low, high):
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_nothing_says_so():
    """Without trials there is no share."""
    assert str(wilson_interval(0, 0)) == "no interval: there is nothing to take a share of."


def test_win_rate_counts_a_tie_half():
    """5 wins and 1 tie in 8 are 0.6875; no votes have no rate."""
    assert (win_rate(5, 2, 1), win_rate(0, 0, 4), win_rate(0, 0)) == (0.6875, 0.5, None)


@pytest.mark.parametrize(
    ("votes", "outcome", "words"),
    [
        ((9, 1, 3), "better", "Tuned is preferred"),
        ((1, 9, 0), "worse", "Base is preferred"),
        ((6, 2, 0), "inconclusive", "with 8 decided votes, 8 for one side are needed"),
        ((3, 0, 1), "cannot say", "even a clean sweep could be chance"),
        ((0, 0, 2), "cannot say", "nothing to test"),
        ((0, 0, 0), "cannot say", "nothing to test"),
    ],
)
def test_votes_are_stated_in_words(votes, outcome, words):
    """Each kind of outcome says what it rests on."""
    summary = summarise_votes(*votes)
    assert summary.outcome == outcome
    assert words in summary.text()


def test_votes_text_gives_tally_share_interval_and_p():
    """A whole statement reads as one paragraph."""
    assert summarise_votes(9, 1, 3).text() == (
        "Votes: tuned 9, base 1, ties 3. Tuned won 90 % of the 10 decided votes (95 % interval 60 % to 98 %, Wilson); "
        "sign test p = 0.021. Tuned is preferred: chance alone rarely gives so uneven a split."
    )


def test_verdict_text_gives_mean_interval_counts_and_tests():
    """A whole statement reads as one paragraph."""
    verdict = state(summarise(SLEEP, metric="Sleep", a="drug 2", b="drug 1", resamples=999))
    assert verdict.outcome == "better"
    assert verdict.text.startswith(
        "Sleep: drug 2 is better than drug 1. Drug 2 minus drug 1 is +1.58 on average over 10 prompts "
        "(95 % interval +0.700 to +2.46, t; "
    )
    assert verdict.text.endswith(
        "percentile bootstrap). Drug 2 is higher on 9, lower on 0, equal on 1. "
        "p = 0.0028 (t test), permutation test p = 0.0039."
    )


def test_inconclusive_is_a_verdict():
    """An interval around zero tells neither a gain nor a loss."""
    verdict = state(summarise(UNCLEAR, metric="ROUGE-L"))
    assert verdict.outcome == "inconclusive"
    assert "do not tell a gain from a loss" in verdict.text


@pytest.mark.parametrize(
    ("better", "outcome"), [(True, "better"), (False, "worse"), (None, "higher")], ids=["good", "bad", "neither"]
)
def test_verdict_follows_the_metrics_direction(better, outcome):
    """More ROUGE is better, more NLL is worse, more words are more words."""
    assert state(summarise(CLEAR, higher_is_better=better)).outcome == outcome


def test_verdict_of_a_fall_is_lower_or_worse():
    """Fewer words are fewer, and less ROUGE is worse."""
    fall = [-d for d in CLEAR]
    assert state(summarise(fall, higher_is_better=None)).outcome == "lower"
    assert state(summarise(fall)).outcome == "worse"


def test_one_prompt_says_what_it_cannot_say():
    """Nothing is raised, and no interval is made up."""
    summary = summarise([0.1], metric="ROUGE-L")
    verdict = state(summary)
    assert (summary.interval.low, summary.bootstrap.low, summary.p_value, verdict.p_value) == (None, None, None, None)
    assert verdict.outcome == "cannot say"
    assert "one prompt does not show how much prompts differ" in verdict.text


def test_one_source_says_what_it_cannot_say():
    """Three prompts of one source are one observation."""
    verdict = state(summarise([0.1, 0.2, 0.3], ["manual"] * 3))
    assert verdict.outcome == "cannot say"
    assert "all 3 prompts come from one source" in verdict.text


def test_all_ties_are_no_difference_and_no_proof():
    """Equal answers leave nothing to test."""
    verdict = state(summarise([0.0] * 8))
    assert verdict.outcome == "no difference"
    assert "other prompts may still differ" in verdict.text


def test_the_same_gain_on_every_prompt_is_decided_by_the_permutation_test():
    """A yes/no metric that turns on all 8 prompts has no spread, but p = 2 / 256."""
    summary = summarise([1] * 8)
    assert (summary.interval.known(), summary.bootstrap.known(), summary.deciding_p()) == (False, False, 0.0078125)
    assert state(summary).outcome == "better"


def test_the_same_gain_on_few_prompts_is_inconclusive():
    """Five of five is p = 0.0625."""
    verdict = state(summarise([1] * 5))
    assert verdict.outcome == "inconclusive"
    assert "cannot rule out chance" in verdict.text


def test_rounding_is_no_spread():
    """Differences that are equal but for floating point are equal."""
    assert not t_interval([0.3 - 0.1, 0.5 - 0.3, 0.7 - 0.5]).known()


def test_tests_that_disagree_are_called_borderline():
    """Three prompts can pass the t test, but not the permutation test."""
    verdict = state(summarise([3000, 2000, 4500], metric="Words", higher_is_better=None))
    assert "3 observations cannot bring that test below 0.25" in verdict.text


def test_holm_can_turn_a_verdict():
    """A metric that is significant alone may not be among ten."""
    alone = summarise([0.1, 0.2, -0.05, 0.1, 0.05, 0.12, 0.2, -0.02])
    others = {f"m{number}": summarise(UNCLEAR, resamples=99) for number in range(9)}
    assert state(alone).outcome == "better"
    verdict = state_all({"alone": alone, **others})["alone"]
    assert verdict.outcome == "inconclusive"
    assert "not among this many metrics" in verdict.text


def test_untested_metrics_do_not_count_towards_the_adjustment():
    """One prompt has no p-value to adjust."""
    verdicts = state_all({"clear": summarise(CLEAR), "single": summarise([0.1])})
    assert verdicts["clear"].p_value == t_p_value(CLEAR)
    assert verdicts["single"].outcome == "cannot say"


def test_small_slices_show_counts_only():
    """Five prompts get counts, six an interval; a prompt without a category is in no slice."""
    values = [*(0.1, 0.2, 0.1, -0.1, 0.0), *(0.1, 0.3, 0.2, 0.1, 0.2, 0.1), 9.0]
    found = slices(values, ["sales"] * 5 + ["operations"] * 6 + [""], metric="ROUGE-L", resamples=99)
    sales = found["sales"]
    assert list(found) == ["sales", "operations"]
    assert (sales.n, sales.higher, sales.lower, sales.ties, sales.interval) == (5, 3, 1, 1, None)
    assert found["operations"].interval.known()
    assert state(sales).outcome == "counts only"
    assert state(sales).text.startswith("ROUGE-L: counts only. 5 prompts are too few for an interval: Tuned is higher")


def test_slices_keep_their_sources():
    """Clusters are cut with the prompts."""
    assert slices([1, 2, 3, 4, 5, 6], ["x"] * 6, list("aabbcc"), resamples=99)["x"].clusters == 3


def test_cohens_kappa_is_the_textbook_value():
    """20 and 15 agreed, 5 and 10 disagreed: (0.7 - 0.5) / (1 - 0.5)."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def _votes(*rows):
    return {f"voter {n}": {str(i): vote for i, vote in enumerate(row) if vote != "."} for n, row in enumerate(rows)}


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [
        (("0100000010", "1110010000"), 0.095),
        (("aabbdccceDDa".lower(), "babbbcccEddd".lower()), 0.692),
        (("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
    ],
    ids=["binary", "nominal", "four-with-gaps"],
)
def test_krippendorffs_alpha_is_the_published_value(rows, alpha):
    """The examples A, B and C of Krippendorff's "Computing Krippendorff's Alpha-Reliability" (2011)."""
    assert krippendorff_alpha(_votes(*rows)) == pytest.approx(alpha, abs=5e-4)


def test_agreement_takes_kappa_for_two_and_alpha_for_more():
    """The method is named with the value."""
    two, three = agreement(_votes("abab", "abba")), agreement(_votes("abab", "abba", "abab"))
    assert (two.method, two.value, two.share, two.items) == ("Cohen's kappa", 0.0, 0.5, 4)
    assert (three.method, three.voters) == ("Krippendorff's alpha", 3)
    assert three.share == pytest.approx(8 / 12)


def test_agreement_by_habit_is_undefined():
    """If everybody always votes tuned, chance explains it all."""
    found = agreement(_votes("tttt", "tttt"))
    assert (found.value, found.share) == (None, 1.0)
    assert found.note.startswith("Everybody gave the same vote")


@pytest.mark.parametrize("rows", [("abab",), ("ab..", "..ab")], ids=["one-voter", "no-shared-item"])
def test_agreement_needs_shared_items(rows):
    """One voter, or voters of different items, have nothing to agree on."""
    found = agreement(_votes(*rows))
    assert (found.value, found.share, found.items) == (None, None, 0)
    assert found.note == "No two people voted on the same item."


def test_self_consistency_is_a_share_with_an_interval():
    """Three of four repeated items got the same vote; none repeated has no share."""
    found = self_consistency([("t", "t"), ("b", "b"), ("t", "b"), ("tie", "tie")])
    assert (found.same, found.repeats, found.share) == (3, 4, 0.75)
    assert found.interval.known()
    assert self_consistency([]).share is None


def test_count_clusters_counts_prompts_where_no_source_is_given():
    """Three prompts are three observations, or two if two share a source."""
    assert (count_clusters([1, 2, 3]), count_clusters([1, 2, 3], ["a", "b", "a"])) == (3, 2)


def test_interval_excludes_only_what_is_outside():
    """An interval that is not known excludes nothing."""
    assert Interval(0.1, 0.2, 0.95, "t").excludes(0)
    assert not Interval(-0.1, 0.2, 0.95, "t").excludes(0)
    assert not Interval(None, None, 0.95, "t", "no data.").excludes(0)


@pytest.mark.parametrize("function", [observe, t_interval, bootstrap_interval, permutation_p_value, t_p_value])
@pytest.mark.parametrize(
    ("values", "field"),
    [
        ([], "differences"),
        ([[1, 2]], "differences"),
        ([0.1, None], "differences[1]"),
        (["much"], "differences"),
        ([0.1, math.nan], "differences[1]"),
        ([math.inf], "differences[0]"),
    ],
    ids=["empty", "nested", "none", "text", "nan", "infinite"],
)
def test_values_that_are_no_numbers_are_refused(function, values, field):
    """The message names the entry."""
    with pytest.raises(EvaluationError) as caught:
        function(values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: t_interval([1, 2], ["a"]), "clusters"),
        (lambda: t_interval([1, 2], level=95), "level"),
        (lambda: bootstrap_interval([1, 2], level=0), "level"),
        (lambda: bootstrap_interval([1, 2], method="basic"), "method"),
        (lambda: bootstrap_interval([1, 2], resamples=0), "resamples"),
        (lambda: permutation_p_value([1, 2], resamples=0.5), "resamples"),
        (lambda: slices([1, 2], ["a"]), "categories"),
        (lambda: slices([1, 2], ["a", "a"], ["x"]), "clusters"),
        (lambda: summarise([]), "differences"),
        (lambda: state(summarise([1, 2], resamples=9), adjusted_p=2), "adjusted_p"),
        (lambda: state_all({}), "summaries"),
        (lambda: holm({}), "p_values"),
        (lambda: holm({"words": math.nan}), "p_values['words']"),
        (lambda: holm({"words": None}), "p_values['words']"),
        (lambda: sign_test(-1, 2), "wins"),
        (lambda: win_rate(1, 2, 0.5), "ties"),
        (lambda: wilson_interval(3, 2), "successes"),
        (lambda: wilson_interval(1, 2, level=1), "level"),
        (lambda: wins_needed(10, alpha=5), "alpha"),
        (lambda: wins_needed(-1), "votes"),
        (lambda: summarise_votes(1.5, 2), "wins"),
        (lambda: cohen_kappa([], []), "votes"),
        (lambda: cohen_kappa(["a"], ["a", "b"]), "votes"),
        (lambda: agreement({}), "votes"),
        (lambda: krippendorff_alpha({"ann": {}}), "votes"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, field):
    """Each is an EvaluationError that names the argument."""
    with pytest.raises(EvaluationError) as caught:
        call()
    assert caught.value.field == field
