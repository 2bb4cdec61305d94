"""Training batches without padding on a CPU, where Unsloth leaves them padded.

With SmolLM2-135M and four bundled rows a pass, 36 % of all tokens that a padded training computes are padding. TRL's
collator can put the rows one after the other instead. Attention must then not look across their borders: TRL wants
FlashAttention for that, which needs a card; transformers' mask costs the attention of one long row. Here torch's
attention is called for each row. The rows of a pass, and so of an optimizer step, stay the same; the loss differs by
rounding alone. Found against transformers 5.17, whose attention functions get `position_ids`, and trl 1.15.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from helpers.model.decoding.support import causal_model

__all__ = ["can_drop_padding", "without_padding"]


def can_drop_padding(trainer: Any) -> bool:
    """Say whether a trainer pads its batches although `without_padding` could spare it that."""
    import torch

    collator = getattr(trainer, "data_collator", None)
    if torch.cuda.is_available() or getattr(collator, "padding_free", True):
        return False
    config = causal_model(trainer.model).config
    known = config.model_type in ("llama", "mistral") and config._attn_implementation == "sdpa"
    return known and getattr(config, "sliding_window", None) is None


@contextmanager
def without_padding(trainer: Any) -> Iterator[None]:
    """Train inside the block without padding, where `can_drop_padding`; afterwards everything is as before."""
    if not can_drop_padding(trainer):
        yield
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _by_rows(attend)
    trainer.data_collator.padding_free = True
    try:
        yield
    finally:
        trainer.data_collator.padding_free = False
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend


def _by_rows(attend: Any) -> Any:
    """Return an attention function that treats each of several rows, which stand one after the other, by itself."""
    import torch

    def attend_by_rows(
        module: Any, query: Any, key: Any, value: Any, mask: Any, *, position_ids: Any = None, **named: Any
    ) -> Any:
        starts = [] if position_ids is None else (position_ids[0] == 0).nonzero().flatten().tolist()
        if len(starts) < 2 or len(query) > 1:
            return attend(module, query, key, value, mask, **named)
        lengths = [end - start for start, end in zip(starts, [*starts[1:], query.shape[2]], strict=True)]
        rows = zip(*(each.split(lengths, 2) for each in (query, key, value)), strict=True)
        return torch.cat([attend(module, *row, None, **named)[0] for row in rows], 1), None

    return attend_by_rows
