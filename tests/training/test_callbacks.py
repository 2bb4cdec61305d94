"""What the record of a training counts: updates that fp16's scaler skipped."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from helpers.core.config import build_config
from helpers.core.errors import RunError
from helpers.core.runs import RunDirectory
from helpers.model.scoring import RowScore
from helpers.training.callbacks import TrainingRecord

ROWS = Dataset.from_list([{"input_ids": [1, 5, 2], "completion_mask": [0, 0, 1]}] * 4)
ASKED = [{"instruction": text, "input": "", "output": "x"} for text in ("A", "B", "a ", "C")]


class Scaler:
    """In the place of torch's GradScaler: skips the given steps, as that does where a gradient overflowed."""

    def __init__(self, skipped):
        self.skipped, self.number = skipped, 0

    def scale(self, loss):
        """Return the loss as it is."""
        return loss

    def step(self, optimizer, closure=None):
        """Take the optimizer's step unless it is to be skipped."""
        self.number += 1
        if self.number not in self.skipped:
            optimizer.step()

    def update(self):
        """Change no scale."""


class Line(torch.nn.Module):
    """A model of one weight, which begins at zero."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, labels=None):
        """Return a loss that falls as the weight grows."""
        return {"loss": (self.weight - 1) ** 2, "logits": input_ids}


def train(folder, skipped):
    """Take three steps with accelerate's own optimizer and a scaler that skips some; return the record and lines."""
    lines = []
    config = build_config("alpaca", preset="smoke", eval_steps=100)
    record = TrainingRecord(RunDirectory(folder), config, ROWS, ROWS, heldout_rows=ASKED, report=lines.append)
    record.score = lambda model: [RowScore(1.0, 0.5, 2)] * 4
    record.result.heldout_before = record.score(None)
    record.result.mode = {"precision": "fp16"}
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=3, per_device_train_batch_size=1, use_cpu=True, report_to="none",
        logging_steps=1, save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", learning_rate=0.1,
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": [1], "labels": [1]}] * 4)
    trainer = Trainer(model=Line(), args=arguments, train_dataset=rows, callbacks=[record])
    trainer.accelerator.scaler = Scaler(skipped)
    trainer.train()
    return record, lines, trainer.model.weight.item()


def test_held_out_rows_that_ask_the_same_are_one_source(tmp_path):
    """Their interval counts them once, whatever their tokens are."""
    config = build_config("alpaca", preset="smoke")
    record = TrainingRecord(RunDirectory(tmp_path), config, ROWS, ROWS, heldout_rows=ASKED)
    assert record.sources == ["question of row 1", 1, "question of row 1", 3]


def test_skipped_updates_are_counted_and_said(tmp_path):
    """Of three updates the first two overflowed: both are in the metrics, and one step moved the weight."""
    record, lines, weight = train(tmp_path, {1, 2})
    assert record.result.skipped_updates == 2
    assert record.result.metrics()["skipped_updates"] == 2
    assert "2 of 3 optimizer updates were skipped: gradients overflowed in fp16" in lines
    assert weight == pytest.approx(0.1)


def test_without_one_applied_update_the_training_is_an_error(tmp_path):
    """It would end with the adapter as it began."""
    with pytest.raises(RunError, match="optimizer updates: expected at least one that was applied, got 0"):
        train(tmp_path, {1, 2, 3})


def test_where_none_is_skipped_nothing_is_said(tmp_path):
    """As in bf16 and fp32."""
    record, lines, _ = train(tmp_path, set())
    assert record.result.skipped_updates == 0
    assert not any("skipped" in line for line in lines)
