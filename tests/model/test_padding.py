"""Batches without padding on a CPU: the same losses and gradients, and afterwards all is as before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from helpers.model.patches.padding import can_drop_padding, without_padding

ROWS = [list(range(5, 45)), [7], list(range(60, 72)), list(range(90, 113))]
"""Token ids of rows that share a pass."""


@pytest.fixture
def trainer(tiny_mistral):
    """What is read of a trainer: a model, and TRL's collator."""
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = AutoModelForCausalLM.from_pretrained(tiny_mistral, dtype=torch.float32)
    return SimpleNamespace(model=model, data_collator=DataCollatorForLanguageModeling(pad_token_id=0))


def learn(trainer):
    """Return the shape of a batch, the sum of its losses, and the gradients as one vector."""
    batch = trainer.data_collator([{"input_ids": ids, "labels": ids} for ids in ROWS])
    labels = batch.pop("labels")
    logits = trainer.model(**batch, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100
    )
    loss.backward()
    gradients = torch.cat([each.grad.flatten() for each in trainer.model.parameters()])
    trainer.model.zero_grad()
    return tuple(labels.shape), loss.item(), gradients


def test_losses_and_gradients_are_those_of_a_padded_batch(trainer):
    """76 tokens in one line give what four lines of 40 give, to 1e-6 of it."""
    shape, loss, gradients = learn(trainer)
    with without_padding(trainer):
        short, same, close = learn(trainer)
    assert (shape, short) == ((4, 40), (1, 76))
    assert same == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(close, gradients, rtol=0, atol=1e-6 * gradients.abs().max().item())


def test_padded_batches_are_scored_as_ever(trainer):
    """A batch of several lines inside the block, as when held-out rows are scored, is computed as outside."""
    ids = torch.tensor([ROWS[0][:12], ROWS[2]])
    with torch.no_grad():
        plain = trainer.model(input_ids=ids).logits
        with without_padding(trainer):
            assert torch.equal(trainer.model(input_ids=ids).logits, plain)


def test_attention_is_called_for_each_row(trainer):
    """Four rows in each of the layers, none of them with a mask; a batch of several lines is one call, as ever."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls, attend = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(module, query, *rest, **named):
        calls.append(tuple(query.shape[::2]))
        return attend(module, query, *rest, **named)

    layers, lengths = trainer.model.config.num_hidden_layers, [len(row) for row in ROWS]
    lines = {"input_ids": torch.tensor([ROWS[2], ROWS[2]]), "position_ids": torch.tensor([[0, 0, *range(10)]] * 2)}
    ALL_ATTENTION_FUNCTIONS["sdpa"] = counted
    try:
        with without_padding(trainer):
            learn(trainer)
            assert calls == [(1, length) for length in lengths] * layers
            calls.clear()
            trainer.model(**lines)
            assert calls == [(2, 12)] * layers
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend


def test_a_failure_leaves_everything_as_it_was(trainer):
    """A training that ends with an error."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(ZeroDivisionError), without_padding(trainer):
        raise ZeroDivisionError
    assert (ALL_ATTENTION_FUNCTIONS["sdpa"], trainer.data_collator.padding_free) == (before, False)


def test_afterwards_everything_is_as_before(trainer):
    """Collator and attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with without_padding(trainer):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert trainer.data_collator.padding_free is False


@pytest.mark.parametrize(
    ("name", "value"), [("model_type", "gemma2"), ("_attn_implementation", "eager"), ("sliding_window", 64)]
)
def test_other_models_stay_padded(trainer, name, value):
    """A model whose attention needs more than the rows' borders is left as it is."""
    assert can_drop_padding(trainer)
    setattr(trainer.model.config, name, value)
    assert not can_drop_padding(trainer)
