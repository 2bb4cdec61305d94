"""Losses of given answers, held against a plain loop over transformers' model."""

from __future__ import annotations

import random
import types

import pytest

from helpers.data.tokens import IGNORED, row_labels
from helpers.model import scoring
from helpers.model.scoring import RowScore, mean_loss, score_rows


@pytest.fixture(scope="module")
def model(tiny_mistral):
    """The tiny Mistral in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_mistral, dtype=torch.float32).eval()


def row_of(ids, given):
    """Return a row of which all but the first tokens are learned."""
    return {"input_ids": list(ids), "completion_mask": [0] * given + [1] * (len(ids) - given)}


@pytest.fixture(scope="module")
def rows():
    """Twelve rows of 5 to 60 tokens, their last third learned, in no order of length."""
    draw = random.Random(0)
    made = []
    for length in (30, 5, 60, 12, 33, 7, 5, 21, 48, 9, 16, 60):
        ids = (1, *(draw.randrange(10, 32000) for _ in range(length - 2)), 2)
        given = 2 * length // 3
        made.append(row_of(ids, given))
    return made


@pytest.fixture(scope="module")
def plain(model, rows):
    """Each label's -log p, in nats, from one row at a time and no padding."""
    import torch

    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        chances = logits.double().log_softmax(-1)
        losses.append([-chances[i - 1, label].item() for i, label in enumerate(row_labels(row)) if label != IGNORED])
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

    def test_several_answers_in_a_row_are_all_counted(self, model):
        """With two learned spans, the loss is that of their tokens, the last of which is the EOS."""
        ids, mask = [1, 50, 51, 2, 60, 61, 2], [0, 0, 1, 1, 0, 1, 1]
        (score,) = score_rows(model, [{"input_ids": ids, "completion_mask": mask}])
        first, second = score_rows(
            model,
            [
                {"input_ids": ids[:4], "completion_mask": mask[:4]},
                {"input_ids": ids, "completion_mask": [0] * 5 + [1, 1]},
            ],
        )
        assert score.tokens == 3
        assert score.nll == pytest.approx(first.nll + first.eos_nll + second.nll, abs=1e-5)

    def test_they_are_what_transformers_calls_loss(self, model, rows):
        """A row's mean is the loss that transformers gives for its labels."""
        import torch

        row = rows[0]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row_labels(row)])).loss.item()
        assert score_rows(model, [row])[0].mean() == pytest.approx(loss, abs=1e-5)

    def test_an_answer_of_only_eos_has_no_other_loss(self, model):
        """With nothing but EOS learned, the answer's own loss is zero."""
        (score,) = score_rows(model, [row_of((1, 50, 2), 2)])
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
            assert set(named) == {"input_ids", "use_cache", "logits_to_keep"}
            return forward(*arguments, **named)

        monkeypatch.setattr(model, "forward", watch)
        score_rows(model, rows, batch_tokens=60)
        assert sum(lines for lines, _ in shapes) == 12
        assert max(lines * width for lines, width in shapes) <= 60

    def test_only_logits_from_the_first_learned_token_on_are_asked_for(self, model, monkeypatch):
        """Of a batch whose answers begin at tokens 4 and 6 of 10, the last 7 logits of each row are computed."""
        kept = []
        forward = model.forward
        monkeypatch.setattr(model, "forward", lambda **named: kept.append(named["logits_to_keep"]) or forward(**named))
        ids = tuple(range(40, 50))
        score_rows(model, [row_of(ids, given) for given in (4, 6)])
        assert kept == [7]

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_is_given_back(self, model, rows, training):
        """A model in training goes on training, also after a failure."""
        model.train(training)
        try:
            score_rows(model, rows[:1])
            assert model.training is training
            with pytest.raises(IndexError):
                score_rows(model, [row_of((1, 99999, 2), 1)])
            assert model.training is training
        finally:
            model.eval()

    def test_no_gradients_are_kept(self, model, rows):
        """Scoring leaves no gradient behind."""
        score_rows(model, rows[:2])
        assert all(weight.grad is None for weight in model.parameters())


class TestPacked:
    """Rows that stand one after the other in one pass, which Unsloth's forward takes."""

    @pytest.fixture
    def packed(self, model, monkeypatch):
        """Gives the model Unsloth's name for its forward; transformers sees from the positions where rows begin."""

        class Decoder(type(model.model)):
            def forward(self, *arguments, **named):
                return super().forward(*arguments, **named)

        Decoder.forward.__module__ = "unsloth.models.llama"
        monkeypatch.setattr(model.model, "__class__", Decoder)

    @pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
    def test_the_losses_are_those_of_a_plain_loop(self, model, rows, plain, packed, batch_tokens):
        """Whichever rows share a pass, each row's mean is that of the row alone, to 1e-6."""
        scores = score_rows(model, rows, batch_tokens=batch_tokens)
        assert [score.mean() for score in scores] == pytest.approx([sum(x) / len(x) for x in plain], abs=1e-6)

    def test_a_pass_has_no_more_logits_than_allowed(self, model, rows, packed, monkeypatch):
        """Here those of 12 tokens."""
        seen = []
        forward = model.forward
        monkeypatch.setattr(scoring, "_PACKED_LOGITS", 12 * model.config.vocab_size)
        monkeypatch.setattr(
            model, "forward", lambda **named: seen.append(named["input_ids"].numel()) or forward(**named)
        )
        score_rows(model, [row_of(range(40, 46), 2)] * 5)
        assert seen == [12, 12, 6]

    def test_it_is_told_where_rows_begin(self, model, rows, packed, monkeypatch):
        """Positions begin anew with each row, the lengths stand beside them, and there is no padding."""
        seen = []
        forward = model.forward
        monkeypatch.setattr(model, "forward", lambda **named: seen.append(named) or forward(**named))
        score_rows(model, [rows[1], rows[5]])
        (named,) = seen
        assert named["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]
        assert named["packed_seq_lengths"].tolist() == [5, 7]
        assert named["input_ids"].tolist() == [[*rows[1]["input_ids"], *rows[5]["input_ids"]]]

    @pytest.mark.parametrize(("vocabulary", "tokens"), [(32_000, 8192), (32_768, 8192), (128_256, 2092)])
    def test_logits_take_at_most_half_a_gib(self, vocabulary, tokens):
        """Of a larger vocabulary fewer tokens share a pass."""
        model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=vocabulary))
        assert scoring._most_tokens(model, packed=True) == tokens
        assert 2 * vocabulary * tokens <= 1 << 29

    def test_only_unsloths_own_forward_is_asked(self, model):
        """A model of transformers alone is not."""
        assert not scoring._takes_packed_rows(model)
        assert scoring._takes_packed_rows(types.SimpleNamespace(model=_Unsloth()))


class _Unsloth:
    """A decoder whose forward pass is Unsloth's."""

    def forward(self):
        """Computes nothing."""


_Unsloth.forward.__module__ = "unsloth.models.llama"


class TestMeans:
    """Averages over tokens."""

    def test_of_a_row(self):
        """The EOS counts as one token."""
        assert RowScore(nll=3.0, eos_nll=1.0, tokens=3).mean() == 1.0

    def test_of_all_rows(self):
        """Longer rows weigh more, by their tokens."""
        assert mean_loss([RowScore(6.0, 2.0, 3), RowScore(1.0, 1.0, 1)]) == 10 / 6
