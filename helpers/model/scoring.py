"""How likely a model finds given answers: the loss of each row by itself, without sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.core.distributed import gather, place
from helpers.model.decoding.support import causal_model

__all__ = ["RowScore", "mean_loss", "score_rows"]

_PACKED_TOKENS = 8192
"""Tokens of a pass on a card: its host launches some 2,000 kernels a pass, however many tokens. An MLP of a 7B model
takes 0.7 GiB of memory for it."""

_PACKED_LOGITS = 1 << 28
"""Logits of such a pass, at most, unless one row has more: 8,192 tokens times Mistral's vocabulary, 0.5 GiB."""

_PADDED_TOKENS = {"cuda": 2048, "cpu": 256}
"""Tokens of a pass elsewhere. A CPU computes few as fast as many, and pads less: of SmolLM2-135M 24 rows took 6.3 s of
one core, not 9.4."""

_LOSS_TOKENS = 1024
"""Tokens whose logits are in float32 at a time."""


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


def score_rows(model: Any, rows: Iterable[Mapping[str, Any]], *, batch_tokens: int | None = None) -> list[RowScore]:
    """Score each row's learned tokens.

    The model is called without labels, and the cross-entropy is taken in float32: with labels Unsloth returns one fused
    mean for the whole batch and no logits. Which rows share a pass depends on their lengths and the kind of model
    alone, so that a model scored twice on one machine gives the same numbers. Several processes share the passes.

    Args:
        model: A causal language model. It is put into evaluation mode and back.
        rows: Token ids, and a `completion_mask` (0 or 1 a token); the last learned token of each is its EOS.
        batch_tokens: Tokens in one pass, padding included, at most; one row always fits. The default depends on the
            kind of device, on whether Unsloth computes the pass, and on the vocabulary.

    Returns:
        One score a row, in the order given.
    """
    import torch

    training, here, packed = model.training, place(), _takes_packed_rows(model)
    known = [_read_row(row) for row in rows]
    limit = batch_tokens or _most_tokens(model, packed=packed)
    model.eval()
    own: dict[int, RowScore] = {}
    try:
        with torch.no_grad():
            for batch in _batches([len(ids) for ids, _ in known], limit)[here.rank :: here.count]:
                found = (_packed_losses if packed else _padded_losses)(model, [known[index] for index in batch])
                own |= dict(zip(batch, map(_row_score, found), strict=True))
    finally:
        model.train(training)
    scores = {i: score for part in gather(own) for i, score in part.items()}
    return [scores[i] for i in range(len(known))]


def mean_loss(scores: Sequence[RowScore]) -> float:
    """Return the mean loss a token over all rows, EOS included, in nats."""
    return sum(s.nll + s.eos_nll for s in scores) / sum(s.tokens + 1 for s in scores)


def _read_row(row: Mapping[str, Any]) -> tuple[Sequence[int], list[int]]:
    """Return a row's token ids, and where its learned tokens are."""
    return row["input_ids"], [at for at, learned in enumerate(row["completion_mask"]) if learned]


def _takes_packed_rows(model: Any) -> bool:
    """Say whether Unsloth's own forward pass computes the layers, which takes rows that stand one after the other."""
    decoder = getattr(causal_model(model), "model", None)
    return decoder is not None and type(decoder).forward.__module__.startswith("unsloth.models.")


def _most_tokens(model: Any, *, packed: bool) -> int:
    """Return how many tokens a pass has at most."""
    if packed:
        return min(_PACKED_TOKENS, _PACKED_LOGITS // model.config.vocab_size)
    return _PADDED_TOKENS["cuda" if next(model.parameters()).is_cuda else "cpu"]


def _batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group row numbers of similar length, at most `limit` tokens once padded."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _packed_losses(model: Any, rows: Sequence[tuple[Sequence[int], list[int]]]) -> list[list[float]]:
    """Return the losses of each row's learned tokens, from one pass over rows without padding, as training makes it."""
    import torch

    device, lengths = next(model.parameters()).device, [len(ids) for ids, _ in rows]
    starts = [0, *itertools.accumulate(lengths[:-1])]
    ids = torch.tensor([[token for row, _ in rows for token in row]])
    inputs = {
        "input_ids": ids.to(device),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None].to(device),
        "packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32),
    }
    logits = model(**inputs, use_cache=False).logits[0]
    return _losses(
        logits, [[start + at - 1 for at in places] for start, (_, places) in zip(starts, rows, strict=True)], rows
    )


def _padded_losses(model: Any, rows: Sequence[tuple[Sequence[int], list[int]]]) -> list[list[float]]:
    """Return the losses of each row's learned tokens, from one pass over rows that are padded on the right.

    No token looks to its right, so that the padding needs no mask.
    """
    import torch

    device, width = next(model.parameters()).device, max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in rows])
    kept = width - min(places[0] for _, places in rows) + 1
    logits = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=kept).logits.flatten(0, 1)
    starts = [line * kept - (width - kept) for line in range(len(rows))]
    return _losses(
        logits, [[start + at - 1 for at in places] for start, (_, places) in zip(starts, rows, strict=True)], rows
    )


def _losses(
    logits: Any, places: Sequence[list[int]], rows: Sequence[tuple[Sequence[int], list[int]]]
) -> list[list[float]]:
    """Return each row's losses, computed in float32 a piece at a time; the card is waited for once.

    Args:
        logits: Of all tokens, (tokens, vocabulary).
        places: For each row the tokens before its learned ones, in order.
        rows: Token ids, and where the learned ones are.
    """
    import torch
    from torch.nn.functional import cross_entropy

    # Of a model split over cards the logits are on the last one.
    before = torch.tensor([place for row in places for place in row], device=logits.device)
    wanted = torch.tensor([ids[at] for ids, learned in rows for at in learned], device=logits.device)
    pieces = zip(before.split(_LOSS_TOKENS), wanted.split(_LOSS_TOKENS), strict=True)
    found = [cross_entropy(logits[where].float(), tokens, reduction="none") for where, tokens in pieces]
    losses = iter(torch.cat(found).tolist())
    return [[next(losses) for _ in row] for row in places]


def _row_score(losses: Sequence[float]) -> RowScore:
    """Return the score of a row: the last learned token is its EOS."""
    return RowScore(math.fsum(losses[:-1]), losses[-1], len(losses) - 1)
