"""From distances and answers to PASS, FAIL and CANNOT TELL: each limit from both sides, each sentence word for word."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from helpers.core.errors import ExportError
from helpers.export.reference import Reference
from helpers.export.verdict import (
    LIMITS,
    Verification,
    judge_answers,
    judge_base,
    judge_distance,
    judge_tokenizer,
)
from helpers.model.distance import Check, Distance

NOISE = (0.005, 0.1)


def far(rms):
    """Return a distance."""
    return Distance(rms, 0.0, 0.0, 0.0, 1.0)


def judged(tuned, effect=1.0, base=1.0, noise=NOISE, lost=0.0):
    """Return the three results and their sentences."""
    checks, _ = judge_distance(far(tuned), far(effect), far(base), noise, lost)
    return [check.result for check in checks], [check.detail for check in checks]


class TestDistance:
    """How far an export may be from the tuned model."""

    def test_an_export_within_rounding_passes(self):
        """The checks have names, and the limits that were used are handed back."""
        checks, limits = judge_distance(far(0.01), far(1.0), far(0.9), NOISE)
        assert checks == [
            Check(
                "effect of the adapter",
                True,
                "The adapter moves the logits by 1 (root mean square); rounding alone, measured, by 0.005.",
            ),
            Check(
                "close to the tuned model",
                True,
                "The export is 0.01 from the tuned model, 1.0% of the adapter's effect; at most 2.0% may be rounding.",
            ),
            Check("far from the base", True, "It is 0.9 from the base, farther than from the tuned model."),
        ]
        assert limits == {**LIMITS, "largest_ratio": 0.02}
        assert LIMITS == {
            "visible": 4,
            "close": 2,
            "most_ratio": 0.4,
            "smallest_ratio": 0.02,
            "same_base": 0.1,
            "base_noise": 8,
            "near_tie": 4,
        }

    @pytest.mark.parametrize(
        ("noise", "lost", "limit"),
        [
            (0.0, 0.0, 0.02),
            (0.005, 0.0, 0.02),
            (0.05, 0.0, 0.1),
            (0.06, 0.09, 0.15),
            (0.24, 0.0, 0.4),
            (0.05, 0.9, 0.4),
        ],
    )
    def test_the_limit_is_twice_the_rounding_and_what_rounding_drops(self, noise, lost, limit):
        """Added as root of squares; never below 2 % of the adapter's effect, never above 40 %."""
        for share, result in ((0.999, "PASS"), (1.001, "FAIL")):
            assert judged(limit * share, noise=(noise, 0.1), lost=lost)[0] == ["PASS", result, "PASS"]
        assert judged(2 * limit * 0.999, effect=2.0, noise=(2 * noise, 0.1), lost=lost)[0][1] == "PASS"

    def test_less_than_nothing_is_not_dropped(self):
        """A share below zero, which an estimate may be, is none."""
        assert judge_distance(far(0.01), far(1.0), far(1.0), (0.05, 0.1), -0.9)[1]["largest_ratio"] == 0.1

    def test_an_export_as_far_from_the_base_as_from_the_tuned_model_fails(self):
        """So does one whose distance is no number."""
        results, said = judged(0.01, base=0.01)
        assert results == ["PASS", "PASS", "FAIL"]
        assert said[2] == "It is 0.01 from the base, not farther than from the tuned model."
        assert judged(0.01, base=math.inf)[0] == ["PASS", "PASS", "FAIL"]

    @pytest.mark.parametrize(("effect", "result"), [(0.02, "PASS"), (0.0199, "CANNOT TELL")])
    def test_an_adapter_is_seen_from_four_times_rounding_on(self, effect, result):
        """Below, neither closeness to the tuned model nor distance from the base can be told."""
        results, said = judged(0.001, effect=effect, base=0.002)
        assert results == [result] * 3
        assert said[0].endswith("cannot be told apart: train longer.") is (result == "CANNOT TELL")

    def test_what_cannot_be_told_is_said(self):
        """In each of the three sentences."""
        effect, close, _ = judged(0.01, effect=0.01)[1]
        assert effect.endswith("by 0.005. Below 4 times that, adapter and base cannot be told apart: train longer.")
        assert close.endswith("100.0% of the adapter's effect; cannot tell whether that is close.")

    def test_another_model_fails_though_the_adapter_cannot_be_seen(self):
        """It is farther away than rounding and the adapter together."""
        assert judged(0.0199, effect=0.01)[0] == ["CANNOT TELL"] * 3
        results, said = judged(0.0201, effect=0.01)
        assert results == ["CANNOT TELL", "FAIL", "CANNOT TELL"]
        assert said[1] == (
            "The export is 0.02 from the tuned model, 201.0% of the adapter's effect; at most 200.0% may be rounding."
        )

    @pytest.mark.parametrize("effect", [0.01, 0.1, 0.3, 0.39, 0.41, 1.0, 10.0])
    def test_an_export_without_the_adapter_never_passes(self, effect):
        """Where the export is the base, it fails, or cannot be told if rounding moves logits by a quarter as much."""
        results, _ = judged(effect, effect=effect, base=0.1, noise=(0.1, 0.5))
        assert results[1] == ("CANNOT TELL" if effect < 0.4 else "FAIL")

    def test_an_adapter_without_any_effect_cannot_be_told(self):
        """Nothing is divided by zero."""
        assert judged(0.0, effect=0.0, base=0.0, noise=(0.0, 0.0))[0] == ["CANNOT TELL"] * 3


def reference(**changes):
    """Two answers of two tokens; the tuned model's logits are 1, 2, 3, 4 for its four tokens."""
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    values = {
        "prompts": (),
        "prompt_ids": ((1, 5), (1, 6)),
        "sequences": ((1, 5, 3, 3), (1, 6, 3, 2)),
        "tuned": (logits, logits),
        "base": (),
        "base_answers": ((3, 3), (3, 2)),
        "noise": far(0.0),
        "precision": "fp32",
        "template_sha256": "a",
        "max_new_tokens": 2,
    }
    return Reference(**{**values, **changes})


class TestBase:
    """Whether a fresh process found the base that the adapter was trained on."""

    LOGITS = (torch.tensor([[1.0, -1.0], [3.0, -3.0]]), torch.tensor([[2.0, -2.0]]))
    """They spread by 1.41, 4.24 and 2.83 at three places: by 2.83 in the mean."""

    @pytest.mark.parametrize(
        ("moved", "noise", "same"),
        [(0.28, 0.0, True), (0.29, 0.0, False), (0.79, 0.1, True), (0.81, 0.1, False), (0.28, 0.03, True)],
    )
    def test_its_logits_are_those_in_memory(self, moved, noise, same):
        """Within a tenth of what they spread by, or eight times what precision alone does."""
        found = judge_base(far(moved), reference(base=self.LOGITS, noise=far(noise)))
        assert (found.name, found.passed) == ("base model", same)

    def test_it_says_what_was_measured(self):
        """And whose fault a difference is."""
        assert judge_base(far(0.1), reference(base=self.LOGITS)).detail == (
            "Without the adapter, its logits are 0.1 from those in memory, which spread by 2.8."
        )
        halves = tuple(each.half() for each in self.LOGITS)
        assert judge_base(far(1.0), reference(base=halves, noise=far(0.0))).detail == (
            "Without the adapter, its logits are 1 from those in memory, which spread by 2.8: the adapter belongs to "
            "another base."
        )


class TestAnswers:
    """Greedy answers, token for token."""

    def test_equal_answers_pass(self):
        """The base's are counted beside them."""
        assert judge_answers(reference(), [[3, 3], [3, 2]], 0.0) == (
            Check(
                "greedy answers",
                True,
                "2 of 2 greedy answers are the tuned model's, token for token (the base gives 2).",
            ),
            {"answers": 2, "answers_equal": 2, "answers_base_equal": 2},
        )

    def test_no_answers_are_no_difference(self):
        """Nothing was asked."""
        nothing = reference(prompt_ids=(), sequences=(), tuned=(), base_answers=())
        check, counts = judge_answers(nothing, [], 0.0)
        assert (check.passed, counts) == (True, {"answers": 0, "answers_equal": 0, "answers_base_equal": 0})

    @pytest.mark.parametrize(("noise", "passed"), [(0.25, True), (0.24, False)])
    def test_answers_may_part_at_a_near_tie(self, noise, passed):
        """Tokens 3 and 2 are 1 apart; a near tie is four times the largest change by precision."""
        check, counts = judge_answers(reference(), [[3, 2], [3, 2]], noise)
        assert check.passed is passed
        assert check.detail == (
            "1 of 2 greedy answers are the tuned model's, token for token (the base gives 2). Where others diverge, "
            f"the logits are up to 1 apart; up to {4 * noise:.2g} is a near tie."
        )
        assert counts["answers_equal"] == 1

    def test_only_the_first_token_that_differs_counts(self):
        """After it the two models have read different texts."""
        assert judge_answers(reference(), [[2, 0], [3, 2]], 0.25)[0].passed is True

    @pytest.mark.parametrize("answer", [[3], [], [3, 3, 0]])
    def test_an_answer_of_another_length_fails(self, answer):
        """However large the noise is."""
        assert judge_answers(reference(), [answer, [3, 2]], 1e9)[0].passed is False

    @pytest.mark.parametrize(("apart", "passed"), [(0.0009, True), (0.0011, False)])
    def test_a_thousandth_is_a_tie_without_noise_too(self, apart, passed):
        """In float32 nothing is rounded visibly, and sums still come in another order."""
        logits = torch.tensor([[0.0, 0.0, 0.0, apart]] * 2)
        found, _ = judge_answers(reference(tuned=(logits, logits)), [[2, 3], [3, 2]], 0.0)
        assert found.passed is passed

    def test_as_many_answers_are_compared_as_there_are(self):
        """One too few is a mistake, and not one less to compare."""
        with pytest.raises(ValueError, match="longer"):
            judge_answers(reference(), [[3, 3]], 0.0)
        with pytest.raises(ValueError, match="shorter"):
            judge_answers(reference(tuned=reference().tuned[:1]), [[3, 3], [3, 2]], 0.0)
        with pytest.raises(ValueError, match="longer"):
            judge_answers(reference(base_answers=((3, 3),)), [[3, 3], [3, 2]], 0.0)


class TestTokenizer:
    """What stands beside the weights."""

    @pytest.mark.parametrize(
        ("changes", "passed", "words"),
        [
            ({}, True, "The tokenizer beside the weights renders the prompts as the same tokens."),
            ({"template_sha256": None}, False, "The tokenizer has no chat template."),
            (
                {"prompt_ids": [[1, 5], [1, 7]]},
                False,
                "The tokenizer beside the weights renders the prompts as different tokens.",
            ),
            (
                {"template_sha256": "b"},
                False,
                "The tokenizer beside the weights has another chat template or another EOS.",
            ),
            ({"eos_token_id": 3}, False, "The tokenizer beside the weights has another chat template or another EOS."),
        ],
    )
    def test_prompts_template_and_eos_must_be_the_same(self, changes, passed, words):
        """The first difference is named."""
        result = {"template_sha256": "a", "prompt_ids": [[1, 5], [1, 6]], "eos_token_id": 2, **changes}
        assert judge_tokenizer(reference(), result, 2) == Check("tokenizer", passed, words)


GOOD, BAD, OPEN = Check("a", True, "A."), Check("b", False, "B."), Check("c", None, "C.")


class TestVerification:
    """One result of several checks."""

    @pytest.mark.parametrize(
        ("checks", "passed", "result", "explanation"),
        [
            ((GOOD, GOOD), True, "PASS", "A. A."),
            ((GOOD, OPEN), None, "CANNOT TELL", "C."),
            ((GOOD, BAD, OPEN), False, "FAIL", "B."),
        ],
    )
    def test_the_worst_check_decides(self, checks, passed, result, explanation):
        """What failed or could not be told is explained."""
        found = Verification("merged", checks)
        assert (found.passed, found.result, found.explanation) == (passed, result, explanation)

    def test_only_a_failure_stops(self):
        """What cannot be told is handed on, marked."""
        for checks in ((GOOD,), (GOOD, OPEN)):
            assert Verification("merged", checks).require() == Verification("merged", checks)
        with pytest.raises(ExportError) as caught:
            Verification("merged", (GOOD, BAD)).require()
        assert str(caught.value) == "merged: expected an export that is the tuned model, got 'FAIL'. B."

    def test_its_lines_and_its_values(self):
        """One check a line; numbers that JSON lacks are None."""
        found = Verification(
            "merged",
            (GOOD, BAD, OPEN),
            {"x": 1, "y": math.nan, "z": "bf16", "share": 0.5, "inf": math.inf},
            {"close": 2.0},
        )
        assert found.lines() == "FAIL: merged\n  ok   a: A.\n  FAIL b: B.\n  ?    c: C."
        assert found.as_dict() == {
            "name": "merged",
            "result": "FAIL",
            "passed": False,
            "explanation": "B.",
            "checks": [
                {"name": "a", "passed": True, "detail": "A."},
                {"name": "b", "passed": False, "detail": "B."},
                {"name": "c", "passed": None, "detail": "C."},
            ],
            "numbers": {"x": 1, "y": None, "z": "bf16", "share": 0.5, "inf": None},
            "thresholds": {"close": 2.0},
        }
        with pytest.raises(ValueError, match="not JSON compliant"):
            dataclasses.replace(found, thresholds={"close": math.nan}).as_dict()
        assert dataclasses.replace(found, checks=(OPEN,)).as_dict()["passed"] is False
        assert dataclasses.replace(found, checks=(GOOD,)).as_dict()["passed"] is True
