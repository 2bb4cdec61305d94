"""Nearest training examples, robustness of a verdict, and what teachers ask for."""

from __future__ import annotations

import pytest

from helpers.core.errors import EvaluationError
from helpers.evaluation.metrics.contamination import describe_leakage, leakage_rows, nearest_examples, similarity
from helpers.evaluation.overview import look_over, slice_rows, verdict_rows
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo
from helpers.evaluation.teaching import length_matched, robustness, rows_needed, wins_table, worst_rows

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

    def test_similarity_counts_words_and_pairs(self):
        """The texts "red car" and "red bus" share one of five words and pairs; case and punctuation do not count."""
        assert similarity("red car", "red bus") == 0.2
        assert similarity("Name it!", "name IT") == 1.0
        assert similarity("a b c", "c b a") == pytest.approx(3 / 7)
        assert similarity("", "...") == 0.0

    def test_the_nearest_is_found(self):
        """Of all examples the one that shares most, and of equals the first."""
        examples = ["Plan a trip to Rome.", "Name three uses of AI in sales.", "Name three uses of AI in sales."]
        prompts = [Prompt("a", "Name three uses of AI."), Prompt("b", "Zebra"), Prompt("c", "\u65e5\u672c")]
        found = nearest_examples(prompts, examples)
        assert [(each.place, round(each.score, 3)) for each in found] == [(1, 0.692), (0, 0.0), (0, 0.0)]

    def test_without_examples_nothing_is_near(self):
        """No training rows, no neighbour."""
        (found,) = nearest_examples([Prompt("a", "x")], [])
        assert (found.place, leakage_rows([found])) == (-1, [])
        assert describe_leakage([found]) == "There are no training rows to compare with."

    def test_words_name_what_is_nearly_the_same(self):
        """From half of the words on, a prompt is named."""
        found = nearest_examples(
            [Prompt("same", "Sum up this text"), Prompt("far", "Count to ten")], ["Sum up this text."]
        )
        assert describe_leakage(found).startswith("1 of 2 prompts are nearly the same as a training example: same.")
        assert describe_leakage(found[1:]).startswith("No prompt is nearly the same")
        assert leakage_rows(found)[0] == {"prompt_id": "same", "text": "Sum up this text.", "score": 1.0}


class TestOverview:
    """Verdicts in plain words."""

    def test_a_clear_gain_is_said_in_one_sentence(self):
        """Eight rows that all gain about 0.2 nats decide."""
        losses = [(2.0 + n / 10, 1.8 + n / 10 - n / 100) for n in range(8)]
        overview = look_over(comparison(losses))
        assert overview.headline.startswith(
            "Tuning helped: it made good answers that it never saw more likely. "
            "NLL of the reference: \u22120.235 nats/token (95 % interval \u22120.255 to \u22120.215, 8 rows)."
        )

    def test_a_loss_is_said_too(self):
        """Rows that all lose give the opposite sentence."""
        overview = look_over(comparison([(1.8, 2.0 + n / 100) for n in range(8)]))
        assert overview.headline.startswith("Tuning hurt: it made good answers that it never saw less likely.")

    def test_undecided_is_a_verdict(self):
        """Gains and losses that cancel are inconclusive."""
        overview = look_over(comparison([(2.0, 2.0 + (-1) ** n / 10) for n in range(8)]))
        assert overview.headline.startswith("Inconclusive: these 8 rows cannot tell whether tuning helped.")

    def test_cut_answers_are_mentioned(self):
        """When a quarter of the pairs or more was cut."""
        losses = [(2.0, 1.9 - n / 100) for n in range(4)]
        assert "In 1 of 4 pairs an answer was cut" in look_over(comparison(losses, cut={"p1"})).headline
        assert "was cut" not in look_over(comparison(losses)).headline

    def test_two_draws_of_one_model_are_judged_by_their_words(self):
        """In mode aa both arms find every reference equally likely, so likelihood is not judged."""
        arms = (Arm("base", "Base, first draw", adapter=False), Arm("again", "Base, second draw", adapter=False))
        prompts = tuple(Prompt(f"p{n}", f"Question {n}?", reference="a b c d") for n in range(4))
        said = {"base": "a b c d", "again": "a b"}
        answers = tuple(
            Answer(p.id, a.name, said[a.name] + " x" * n, 5, "eos") for n, p in enumerate(prompts) for a in arms
        )
        scores = tuple(ReferenceScore(p.id, a.name, 1.0, 0.1, 10, 40) for p in prompts for a in arms)
        overview = look_over(Comparison(INFO, prompts, arms, answers, scores))
        assert next(iter(overview.verdicts)) == "rouge_l"
        assert overview.headline.startswith("The two draws differ, though both come from the base model. ROUGE-L:")

    def test_nothing_scored_is_no_verdict(self):
        """Answers without references can be read, not judged by likelihood."""
        plain = Comparison(INFO, (Prompt("p", "?"),), ARMS, (), ())
        assert look_over(plain).headline.startswith("Nothing was scored")

    def test_rows_for_the_report_hold_both_means(self):
        """Base, tuned and their difference agree."""
        row = verdict_rows(look_over(comparison([(2.0, 1.5), (3.0, 2.0)])))[0]
        assert (row["metric"], row["base"], row["tuned"], row["difference"], row["n"]) == ("nll", 2.5, 1.75, -0.75, 2)

    def test_small_categories_show_counts(self):
        """Four rows of a category are too few for an interval."""
        rows = slice_rows(look_over(comparison([(2.0, 1.9 - n / 100) for n in range(8)])))
        assert (rows[0]["category"], rows[0]["low"], rows[0]["text"]) == (
            "even",
            None,
            "too few for an interval: better on 4, worse on 0",
        )


class TestTeaching:
    """What a class asks."""

    def test_wins_are_the_published_ones(self):
        """6 of 6, 9 of 10, 15 of 20, 21 of 30, 33 of 50, 61 of 100; five votes never suffice."""
        assert [row["wins needed"] for row in wins_table()] == ["-", 6, 9, 15, 21, 33, 61]

    def test_rows_needed_are_the_published_ones(self):
        """Cohen's effects 1.0 and 0.5 need 10 and 34 rows, as the tables of the paired t test have it."""
        differences = [1.0, -1.0, 1.0, -1.0, 0.0]
        assert (rows_needed(differences, 1.0), rows_needed(differences, 0.5)) == (10, 34)
        assert rows_needed([0.1, 0.1], 0.1) is None
        assert rows_needed([0.1], 0.1) is None
        with pytest.raises(EvaluationError, match="smallest difference that matters"):
            rows_needed(differences, 0.0)

    def test_the_worst_come_first(self):
        """At most five rows that lost, by their NLL."""
        plain = comparison([(2.0, 2.0 + (n - 2) / 10) for n in range(9)])
        rows = worst_rows(plain, look_over(plain))
        assert [row["prompt"] for row in rows] == [f"Question {n}?" for n in (8, 7, 6, 5, 4)]

    def test_like_lengths_are_a_fifth_apart(self):
        """8 against 10 words stay, 7 against 10 do not."""
        texts = [("w " * 8, "w " * 10), ("w " * 7, "w " * 10), ("w " * 10, "w " * 10)]
        overview = look_over(comparison([(2.0, 1.0)] * 3, texts=texts))
        assert length_matched(overview, "nll").prompt_ids == ("p0", "p2")
        assert length_matched(overview, "unknown") is None

    def test_robustness_has_three_views(self):
        """All pairs, pairs that were not cut, pairs of like length."""
        overview = look_over(comparison([(2.0, 1.0 + n / 10) for n in range(3)], cut={"p0", "p1", "p2"}))
        rows = robustness(overview, "rouge_l")
        assert [row["pairs"] for row in rows] == [3, 0, 3]
        assert rows[1]["95 % interval"] == "no pair is left"
        assert robustness(overview, "items_met") == []
