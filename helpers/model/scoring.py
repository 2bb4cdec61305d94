"""How likely a model finds given answers: the loss of each row by itself, without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.core.processes import gather, place
from helpers.data.contract import IGNORED, TokenizedExample

__all__ = ["RowScore", "mean_loss", "score_rows"]


@dataclass(frozen=True)
class RowScore:
    """The loss of one answer.

    Args:
        nll: Sum of -log p over the answer's tokens without the closing EOS, in nats.
        eos_nll: -log p of the closing EOS, in nats.
        tokens: The answer's tokens without the EOS.
    """

    nll: float
    eos_nll: float
    tokens: int

    def mean(self) -> float:
        """Return the row's mean loss a token, EOS included, in nats: what training lowers."""
        return (self.nll + self.eos_nll) / (self.tokens + 1)


def score_rows(model: Any, rows: Sequence[TokenizedExample], *, batch_tokens: int = 2048) -> list[RowScore]:
    """Score each row's labelled tokens.

    The model is called without labels, right-padded, and the cross-entropy is taken in float32: with labels Unsloth
    returns one fused mean for the whole batch and no logits. Several processes share the batches among them.

    Args:
        model: A causal language model. It is put into evaluation mode and back.
        rows: Token ids and labels; the last label of each is its EOS.
        batch_tokens: Longest row times rows in one batch, at most; one row always fits.

    Returns:
        One score a row, in the order given.
    """
    import torch

    training, here = model.training, place()
    model.eval()
    own: dict[int, RowScore] = {}
    try:
        with torch.no_grad():
            for batch in _batches(rows, batch_tokens)[here.rank :: here.count]:
                own |= _score_batch(model, rows, batch)
    finally:
        model.train(training)
    scores = {i: score for part in gather(own) for i, score in part.items()}
    return [scores[i] for i in range(len(rows))]


def mean_loss(scores: Sequence[RowScore]) -> float:
    """Return the mean loss a token over all rows, EOS included, in nats."""
    return sum(s.nll + s.eos_nll for s in scores) / sum(s.tokens + 1 for s in scores)


def _batches(rows: Sequence[TokenizedExample], batch_tokens: int) -> list[list[int]]:
    """Group row numbers of similar length."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids)):
        length = len(rows[index].input_ids)
        if batches and (len(batches[-1]) + 1) * length <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _score_batch(model: Any, rows: Sequence[TokenizedExample], batch: list[int]) -> dict[int, RowScore]:
    """Run one right-padded batch and split its loss by row."""
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    lengths = [len(rows[i].input_ids) for i in batch]
    width = max(lengths)
    ids = torch.tensor([[*rows[i].input_ids, *[0] * (width - n)] for i, n in zip(batch, lengths, strict=True)])
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    scores = {}
    for line, i in enumerate(batch):
        labels = torch.tensor(rows[i].labels, device=logits.device)  # of a split model, the last card
        places = (labels != IGNORED).nonzero().squeeze(1)
        losses = cross_entropy(logits[line, places - 1].float(), labels[places], reduction="none").double()
        scores[i] = RowScore(losses[:-1].sum().item(), losses[-1].item(), len(places) - 1)
    return scores
