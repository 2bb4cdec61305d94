"""Nearest training examples, robustness of a verdict, and what teachers ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.core.errors import EvaluationError
from helpers.core.paired import estimate
from helpers.evaluation.metrics.contamination import describe_leakage, nearest_examples
from helpers.evaluation.overview import look_over, verdict_rows
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo
from helpers.evaluation.teaching import robustness, rows_needed, wins_table, worst_rows
from helpers.evaluation.votes.ballot import KeyItem, Vote, VoteKey
from helpers.evaluation.votes.tally import reveal

ARMS = (Arm("base", "Base", adapter=False), Arm("tuned", "Tuned", adapter=True))
INFO = RunInfo("t", "base", "adapter", "", 64, 7, "2026-01-01")


def comparison(losses, *, texts=None, cut=()):
    """Compare on rows with given (base, tuned) losses of ten-token references, and answers of given texts."""
    prompts = tuple(
        Prompt(f"p{n}", f"Question {n}?", "even" if n % 2 == 0 else "odd", reference="a b c")
        for n in range(len(losses))
    )
    texts = texts or [("a b c", "a b d")] * len(losses)
    references, answers = [], []
    for prompt, loss, said in zip(prompts, losses, texts, strict=True):
        for arm, nll, text in zip(ARMS, loss, said, strict=True):
            references.append(ReferenceScore(prompt.id, arm.name, 10 * nll, 0.1, 10, 40))
            answers.append(Answer(prompt.id, arm.name, text, 5, "length" if prompt.id in cut else "eos"))
    return Comparison(INFO, prompts, ARMS, tuple(answers), tuple(references))


class TestLeakage:
    """Which training example a prompt is nearest to."""

    @pytest.mark.parametrize(
        ("prompt", "example", "score"),
        [("red car", "red bus", 0.2), ("Name it!", "name IT", 1.0), ("a b c", "c b a", 3 / 7), ("x", "...", 0.0)],
    )
    def test_words_and_pairs_of_words_are_compared(self, prompt, example, score):
        """The texts "red car" and "red bus" share one of five; case and punctuation do not count."""
        (found,) = nearest_examples([Prompt("p", prompt)], [example])
        assert found.score == pytest.approx(score)

    def test_the_nearest_is_found(self):
        """Of all examples the one that shares most, and of equals the first."""
        examples = ["Plan a trip to Rome.", "Name three uses of AI in sales.", "Name three uses of AI in sales."]
        prompts = [Prompt("a", "Name three uses of AI."), Prompt("b", "Zebra"), Prompt("c", "\u65e5\u672c")]
        found = nearest_examples(prompts, examples)
        assert [(each.place, round(each.score, 3)) for each in found] == [(1, 0.692), (0, 0.0), (0, 0.0)]

    def test_without_examples_nothing_is_near(self):
        """No training rows, no neighbour."""
        (found,) = nearest_examples([Prompt("a", "x")], [])
        assert found.place == -1
        assert describe_leakage([found]) == "There are no training rows to compare with."

    def test_words_name_what_is_nearly_the_same(self):
        """From half of the words on, a prompt is named."""
        found = nearest_examples(
            [Prompt("same", "Sum up this text"), Prompt("far", "Count to ten")], ["Sum up this text."]
        )
        assert describe_leakage(found).startswith("1 of 2 prompts are nearly the same as a training example: same.")
        assert describe_leakage(found[1:]).startswith("No prompt is nearly the same")


class TestOverview:
    """Verdicts in plain words."""

    def test_a_clear_gain_is_said_with_what_is_known_of_the_answers(self):
        """Sixteen rows that all gain about 0.2 nats decide the first question, and nobody has answered the second."""
        losses = [(2.0 + n / 10, 1.8 + n / 10 - n / 100) for n in range(16)]
        assert look_over(comparison(losses)).headline() == (
            "Held-out answers became more likely. Cannot tell whether its own answers are better (16 pairs)."
        )

    def test_rows_that_may_have_been_trained_on_are_not_called_held_out(self):
        """The headline says what they are."""
        losses = [(2.0 + n / 10, 1.8 + n / 10 - n / 100) for n in range(16)]
        unknown = replace(comparison(losses), info=replace(INFO, held_out=False))
        assert look_over(unknown).headline().startswith("The reference answers became more likely.")

    def test_what_was_lost_elsewhere_is_the_third_question(self):
        """Rows of the other task that lose 0.2 nats each."""
        other = [
            ReferenceScore(f"other-{n}", arm.name, 10 * (2 + (0.2 + n / 100) * arm.adapter), 1.0, 9, 40)
            for n in range(14)
            for arm in ARMS
        ]
        plain = comparison([(2.0, 1.9 - n / 100) for n in range(14)])
        lost = look_over(replace(plain, info=replace(INFO, other_task="dolly"), other_task=tuple(other)))
        assert [verdict.outcome for verdict in lost.verdicts] == ["better", "cannot tell", "worse"]
        assert lost.headline().endswith("The model got worse on dolly rows (not trained on).")
        unknown = replace(plain, info=replace(INFO, other_task="dolly", held_out=False), other_task=tuple(other))
        assert look_over(unknown).headline().endswith("The model got worse on dolly rows.")

    def test_votes_answer_the_second_question(self):
        """Ten of ten."""
        plain = comparison([(2.0, 1.9 - n / 100) for n in range(10)])
        key = VoteKey("base", "tuned", {f"i{n}": KeyItem(f"p{n}", "tuned", "base") for n in range(10)})
        votes = reveal([Vote(f"i{n}", "a", voter="Ann") for n in range(10)], key)
        assert look_over(plain, votes).verdicts[1].outcome == "preferred"

    def test_prompts_of_one_source_vote_once(self):
        """Ten wins of ten on two contexts are two wins; two losses on one of them are a loss."""
        plain = comparison([(2.0, 1.9 - n / 100) for n in range(10)])
        key = VoteKey("base", "tuned", {f"i{n}": KeyItem(f"p{n}", "tuned", "base") for n in range(10)})
        votes = reveal([Vote(f"i{n}", "a", voter="Ann") for n in range(10)], key)
        prompts = tuple(replace(prompt, source=f"context {place % 2}") for place, prompt in enumerate(plain.prompts))
        found = look_over(replace(plain, prompts=prompts), votes).verdicts[1]
        assert found.outcome == "cannot tell"
        assert found.basis.startswith(
            "Votes: tuned 2, base 0, ties 0; 10 pairs. Prompts that share a source count once."
        )
        mixed = reveal([Vote(f"i{n}", "b" if n % 4 == 0 or n == 2 else "a", voter="Ann") for n in range(4)], key)
        found = look_over(replace(plain, prompts=prompts), mixed).verdicts[1]
        assert found.basis.startswith("Votes: tuned 1, base 1, ties 0; 10 pairs.")

    def test_cut_answers_are_counted(self):
        """A pair in which one answer was cut."""
        overview = look_over(comparison([(2.0, 1.9 - n / 100) for n in range(4)], cut={"p1"}))
        assert (overview.cut, overview.answered) == (1, 4)
        assert "own answers are better (4 pairs, 1 with an answer cut at the length limit)" in overview.headline()

    def test_nothing_scored_is_no_verdict(self):
        """Answers without references can be read, not judged by likelihood."""
        plain = Comparison(INFO, (Prompt("p", "?"),), ARMS, (), ())
        assert [verdict.outcome for verdict in look_over(plain).verdicts] == ["cannot tell", "cannot tell"]

    def test_rows_for_metrics_json_hold_question_verdict_and_reason(self):
        """One row a verdict."""
        row = verdict_rows(look_over(comparison([(2.0, 1.5), (3.0, 2.0)])))[0]
        assert (row["question"], row["verdict"]) == ("Are held-out answers more likely?", "cannot tell")
        assert row["because"].startswith("2 independent rows are too few, 12 are needed. NLL with EOS: ")


class TestTeaching:
    """What a class asks."""

    def test_wins_are_the_published_ones(self):
        """6 of 6, 9 of 10, 15 of 20, 21 of 30, 33 of 50, 61 of 100; five votes never suffice."""
        assert [row["wins needed"] for row in wins_table()] == ["-", 6, 9, 15, 21, 33, 61]

    def test_rows_needed_are_the_published_ones(self):
        """Cohen's effects 1.0 and 0.5 need 10 and 34 rows, as the tables of the paired t test have it."""
        differences = [1.0, -1.0, 1.0, -1.0, 0.0]
        found = estimate(differences)
        assert (rows_needed(found, 1.0), rows_needed(found, 0.5)) == (10, 34)
        assert rows_needed(estimate([0.1, 0.1]), 0.1) is None
        assert rows_needed(estimate([0.1]), 0.1) is None
        with pytest.raises(EvaluationError, match="smallest difference that matters"):
            rows_needed(found, 0.0)

    def test_rows_that_share_sources_are_worth_less(self):
        """Twins say nothing new: twice the rows are needed, and one source too few."""
        differences = [1.0, -1.0, 1.0, -1.0, 0.0]
        alone, twins = estimate(differences), estimate(differences * 2, list(range(5)) * 2)
        assert (rows_needed(alone, 0.5), rows_needed(twins, 0.5)) == (34, 65)

    def test_the_worst_come_first(self):
        """At most five rows that lost, by their NLL."""
        plain = comparison([(2.0, 2.0 + (n - 2) / 10) for n in range(9)])
        rows = worst_rows(plain, look_over(plain))
        assert [row["prompt"] for row in rows] == [f"Question {n}?" for n in (8, 7, 6, 5, 4)]

    def test_like_lengths_are_a_fifth_apart(self):
        """8 against 10 words stay, 7 against 10 do not."""
        texts = [("w " * 8, "w " * 10), ("w " * 7, "w " * 10), ("w " * 10, "w " * 10)]
        overview = look_over(comparison([(2.0, 1.0)] * 3, texts=texts))
        assert [row["pairs"] for row in robustness(overview, "rouge_l")] == [3, 3, 2]

    def test_fewer_than_six_pairs_get_no_interval(self):
        """Such as two of like length, whose interval may be as narrow by chance as it likes."""
        texts = [("w " * 8, "w " * (3 + n)) for n in range(6)]
        rows = robustness(look_over(comparison([(2.0, 1.0)] * 6, texts=texts)), "words")
        assert [(row["pairs"], row["95 % interval"]) for row in rows] == [
            (6, "\u22124.46 to \u22120.537"),
            (6, "\u22124.46 to \u22120.537"),
            (2, "too few pairs"),
        ]

    def test_robustness_has_three_views(self):
        """All pairs, pairs that were not cut, pairs of like length."""
        overview = look_over(comparison([(2.0, 1.0 + n / 10) for n in range(3)], cut={"p0", "p1", "p2"}))
        rows = robustness(overview, "rouge_l")
        assert [row["pairs"] for row in rows] == [3, 0, 3]
        same = "all 3 rows differ by the same amount, which leaves nothing to estimate chance from"
        assert [row["95 % interval"] for row in rows] == [same, "no pair is left", same]
        assert robustness(overview, "items_met") == []
