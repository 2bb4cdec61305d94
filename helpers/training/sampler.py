"""Batches of several processes: each row of an epoch once, in the same optimizer steps as in one process.

accelerate deals whole batches to the processes in turn, and at an epoch's end deals out its first rows again, so that
all get equally many (accelerate 1.15, `BatchSamplerShard(even_batches=True)`): some rows are seen twice. Here the order
of an epoch's rows, and where an optimizer step begins, are those of a single process. The rows of each step are then
dealt out, long ones first, so that all passes have about as many tokens: the processes wait for the slowest. The loss
of a step is a sum over all its rows, divided by the labels of all processes, so that the dealing does not change it.
Where an epoch's last step has fewer rows than passes, a process repeats a row without labels, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from helpers.core.distributed import Place, Share, place
from helpers.data.tokens import IGNORED


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """Return the order in which a single process sees an epoch's rows.

    It is that of accelerate 1.15, `SeedableRandomSampler`, which transformers' trainer uses.

    Args:
        seed: The trainer's `data_seed`.
        epoch: From 0.
    """
    import torch

    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def deal(rows: Sequence[int], lengths: Sequence[int], hands: int, size: int) -> list[list[int]]:
    """Deal rows into hands of about equal length, the longest row first, always to the shortest hand with room.

    Args:
        rows: Row numbers, at most hands x size.
        lengths: Of all rows, in tokens.
        size: Rows in one hand, at most.

    Returns:
        The hands, each in the order of `rows`.

    Example:
        >>> deal([0, 1, 2, 3], [9, 8, 2, 1], hands=2, size=2)
        [[0, 3], [1, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    tokens = [0] * hands
    for at in sorted(range(len(rows)), key=lambda at: (-lengths[rows[at]], at)):
        hand = min((h for h in range(hands) if len(dealt[h]) < size), key=lambda h: (tokens[h], h))
        dealt[hand].append(at)
        tokens[hand] += lengths[rows[at]]
    return [[rows[at] for at in sorted(hand)] for hand in dealt]


class StepBatches:
    """A batch sampler: this process's batches of an epoch. A negative number -1 - i stands for row i without labels.

    Args:
        lengths: Of the rows, in tokens.
        seed: The trainer's `data_seed`.

    Example:
        >>> len(StepBatches([5] * 10, Share(2, batch_size=2, gradient_accumulation=1), Place(0, 2), seed=0))
        3
    """

    def __init__(self, lengths: Sequence[int], share: Share, here: Place, seed: int) -> None:
        self.lengths, self.share, self.here, self.seed = list(lengths), share, here, seed
        self.batch_size = share.batch_size
        self.drop_last = False
        self.epoch = 0
        self._blank = -1 - min(range(len(self.lengths)), key=self.lengths.__getitem__)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, left = divmod(len(self.lengths), self.share.rows_per_step())
        return whole * self.share.gradient_accumulation + self._passes(left)

    def __iter__(self) -> Iterator[list[int]]:
        order, step = epoch_order(len(self.lengths), self.seed, self.epoch), self.share.rows_per_step()
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            hands = deal(rows, self.lengths, self._passes(len(rows)) * self.share.processes, self.share.batch_size)
            for batch in hands[self.here.rank :: self.share.processes]:
                yield batch or [self._blank]

    def _passes(self, rows: int) -> int:
        """Return how many passes each process needs for some rows of one step."""
        return -(-rows // (self.share.processes * self.share.batch_size))


def spread_batches(trainer: Any, share: Share) -> None:
    """Give a trainer the batches of its process; alone, leave it as it is.

    Args:
        trainer: TRL's; its `get_train_dataloader` is replaced.
    """
    here = place()
    if here.count == 1:
        return
    from accelerate.data_loader import prepare_data_loader
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader

    rows = trainer._remove_unused_columns(trainer.train_dataset, description="Training")
    batches = StepBatches([len(ids) for ids in rows["input_ids"]], share, here, trainer.args.data_seed)
    collate, pin = _Collate(trainer.data_collator), trainer.args.dataloader_pin_memory

    def get_train_dataloader() -> Any:
        loader: Any = DataLoader(cast(Any, _Marked(rows)), batch_sampler=batches, collate_fn=collate, pin_memory=pin)
        return prepare_data_loader(
            loader, trainer.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    trainer.get_train_dataloader = get_train_dataloader
    same = [name for name, _ in trainer.model.named_buffers()]  # rotary frequencies: sent in each pass otherwise
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trainer.model, same)


class _Marked:
    """A data set whose rows say whether their labels count."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[dict[str, Any], bool]:
        return (self.rows[number], True) if number >= 0 else (self.rows[-1 - number], False)


class _Collate:
    """The trainer's collator, with the labels taken from rows that stand in for none."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, marked: Sequence[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
        batch = self.collate([row for row, _ in marked])
        if not any(counts for _, counts in marked):
            batch["labels"].fill_(IGNORED)
        return batch
