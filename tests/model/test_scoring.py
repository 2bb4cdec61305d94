"""Losses of given answers, held against a plain loop over transformers' model."""

from __future__ import annotations

import random

import pytest

from helpers.data.contract import IGNORED, TokenizedExample
from helpers.model.scoring import RowScore, mean_loss, score_rows


@pytest.fixture(scope="module")
def model(tiny_mistral):
    """The tiny Mistral in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_mistral, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows():
    """Twelve rows of 5 to 60 tokens, their last third learned, in no order of length."""
    draw = random.Random(0)
    made = []
    for length in (30, 5, 60, 12, 33, 7, 5, 21, 48, 9, 16, 60):
        ids = (1, *(draw.randrange(10, 32000) for _ in range(length - 2)), 2)
        given = 2 * length // 3
        made.append(TokenizedExample(ids, (IGNORED,) * given + ids[given:]))
    return made


@pytest.fixture(scope="module")
def plain(model, rows):
    """Each label's -log p, in nats, from one row at a time and no padding."""
    import torch

    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        chances = logits.double().log_softmax(-1)
        losses.append([-chances[i - 1, label].item() for i, label in enumerate(row.labels) if label != IGNORED])
    return losses


class TestScores:
    """The losses of rows."""

    def test_they_are_those_of_a_plain_loop(self, model, rows, plain):
        """Each row's losses equal those of a plain loop, one row at a time, to 1e-5 nats a token."""
        for score, losses in zip(score_rows(model, rows), plain, strict=True):
            assert score.nll == pytest.approx(sum(losses[:-1]), abs=1e-5 * len(losses))
            assert score.eos_nll == pytest.approx(losses[-1], abs=1e-5)
            assert score.tokens == len(losses) - 1

    @pytest.mark.parametrize("batch_tokens", [1, 64, 200, 100_000])
    def test_they_do_not_depend_on_the_batch(self, model, rows, plain, batch_tokens):
        """One row at a time or all at once give the same losses, in the order of the rows."""
        scores = score_rows(model, rows, batch_tokens=batch_tokens)
        assert [score.mean() for score in scores] == pytest.approx([sum(x) / len(x) for x in plain], abs=1e-5)

    def test_they_are_what_transformers_calls_loss(self, model, rows):
        """A row's mean is the loss that transformers gives for its labels."""
        import torch

        row = rows[0]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss.item()
        assert score_rows(model, [row])[0].mean() == pytest.approx(loss, abs=1e-5)

    def test_an_answer_of_only_eos_has_no_other_loss(self, model):
        """With nothing but EOS learned, the answer's own loss is zero."""
        (score,) = score_rows(model, [TokenizedExample((1, 50, 2), (IGNORED, IGNORED, 2))])
        assert (score.nll, score.tokens) == (0.0, 0)
        assert score.eos_nll > 0

    def test_no_rows_have_no_scores(self, model):
        """Nothing in, nothing out."""
        assert score_rows(model, []) == []


class TestBatches:
    """How the model is called."""

    def test_a_batch_is_no_larger_than_asked(self, model, rows, monkeypatch):
        """Rows times longest row stay within the limit, and the longest row is alone when it must be."""
        shapes = []
        forward = model.forward

        def watch(*arguments, **named):
            shapes.append(tuple(named["input_ids"].shape))
            assert set(named) == {"input_ids", "attention_mask"}
            return forward(*arguments, **named)

        monkeypatch.setattr(model, "forward", watch)
        score_rows(model, rows, batch_tokens=60)
        assert sum(lines for lines, _ in shapes) == 12
        assert max(lines * width for lines, width in shapes) <= 60

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_is_given_back(self, model, rows, training):
        """A model in training goes on training, also after a failure."""
        model.train(training)
        try:
            score_rows(model, rows[:1])
            assert model.training is training
            with pytest.raises(IndexError):
                score_rows(model, [TokenizedExample((1, 99999, 2), (IGNORED, 5, 2))])
            assert model.training is training
        finally:
            model.eval()

    def test_no_gradients_are_kept(self, model, rows):
        """Scoring leaves no gradient behind."""
        score_rows(model, rows[:2])
        assert all(weight.grad is None for weight in model.parameters())


class TestMeans:
    """Averages over tokens."""

    def test_of_a_row(self):
        """The EOS counts as one token."""
        assert RowScore(nll=3.0, eos_nll=1.0, tokens=3).mean() == 1.0

    def test_of_all_rows(self):
        """Longer rows weigh more, by their tokens."""
        assert mean_loss([RowScore(6.0, 2.0, 3), RowScore(1.0, 1.0, 1)]) == 10 / 6
