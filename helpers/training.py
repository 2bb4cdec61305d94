"""From checked rows to a trained adapter: TRL's SFTTrainer, watched."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from helpers.config import RunConfig
from helpers.contract import IGNORED, Contract, check_trainer_rows
from helpers.errors import ExportError, RunError
from helpers.model import LoadedModel, import_unsloth
from helpers.runs import RunDirectory
from helpers.scoring import RowScore, mean_loss, score_rows

__all__ = [
    "TrainResult",
    "build_trainer",
    "compare_scores",
    "describe_change",
    "planned_steps",
    "prove_reload",
    "save_adapter",
    "train",
]


@dataclass
class TrainResult:
    """What training did.

    Args:
        train_loss: (step, mean loss a token) of each optimizer step.
        eval_loss: (step, mean held-out loss a token); the first is from before training.
        heldout_before: Score of each held-out row before training.
        heldout_after: The same after it.
        train_seconds: Time in optimizer steps, measurements of the held-out loss left out.
        rows: Rows seen, repeats counted.
        tokens: Tokens seen, padding not counted.
        supervised_tokens: Tokens that the loss was taken over.
        peak_memory_bytes: Highest memory in use: on the card, or of the process on a CPU.
        mode: What the trainer did: packing, padding-free, precision, optimizer.
    """

    train_loss: list[tuple[int, float]] = field(default_factory=list)
    eval_loss: list[tuple[int, float]] = field(default_factory=list)
    heldout_before: list[RowScore] = field(default_factory=list)
    heldout_after: list[RowScore] = field(default_factory=list)
    train_seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    peak_memory_bytes: int = 0
    mode: dict[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Return the figures that `metrics.json` keeps."""
        seconds = max(self.train_seconds, 1e-9)
        return {
            "train_loss": [[step, loss] for step, loss in self.train_loss],
            "eval_loss": [[step, loss] for step, loss in self.eval_loss],
            "eval_loss_before": self.eval_loss[0][1],
            "eval_loss_after": self.eval_loss[-1][1],
            "eval_loss_change": compare_scores(self.heldout_before, self.heldout_after),
            "supervised_tokens": self.supervised_tokens,
            "tokens": self.tokens,
            "rows_seen": self.rows,
            "examples_per_second": self.rows / seconds,
            "tokens_per_second": self.tokens / seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "train_seconds": self.train_seconds,
            "mode": self.mode,
        }


def planned_steps(config: RunConfig, rows: int) -> int:
    """Return the number of optimizer steps that a run will take.

    Args:
        config: The run.
        rows: Training rows after the contract.

    Returns:
        `max_steps` if set, else the epochs' steps; an incomplete last group of rows makes a step too.
    """
    micro = math.ceil(rows / config.train.batch_size)
    per_epoch = max(math.ceil(micro / config.train.gradient_accumulation), 1)
    return config.train.max_steps or math.ceil(per_epoch * config.train.num_epochs)


def build_trainer(
    config: RunConfig,
    loaded: LoadedModel,
    rows: Contract,
    run: RunDirectory,
) -> Any:
    """Build TRL's trainer over the rows that passed the contract, and check what it made of them.

    Args:
        config: The run.
        loaded: The model with its adapter attached.
        rows: Training rows.
        run: Where checkpoints go.

    Returns:
        An `SFTTrainer` with Unsloth's patches.

    Raises:
        ContractError: The trainer would feed the model other tokens or labels than were checked.
    """
    import_unsloth()
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    table = Dataset.from_list([{"prompt": list(e.prompt), "completion": list(e.completion)} for e in rows.examples])
    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        train_dataset=table,
        args=SFTConfig(**_arguments(config, loaded, run, planned_steps(config, len(rows.examples)))),
    )
    trainer.remove_callback(PrinterCallback)
    check_trainer_rows(list(trainer.train_dataset), rows)
    return trainer


def train(
    trainer: Any,
    config: RunConfig,
    loaded: LoadedModel,
    rows: Contract,
    heldout: Contract,
    *,
    report: Callable[[str], None] = print,
) -> TrainResult:
    """Train, measuring the held-out loss before, during and after.

    Args:
        trainer: From `build_trainer`.
        config: The run.
        loaded: The model.
        rows: Training rows.
        heldout: Held-out rows.
        report: Gets one line of progress at a time.

    Returns:
        Losses, speed and memory.

    Raises:
        RunError: The loss is not a number any more.
    """
    result = TrainResult(mode=_mode(trainer, loaded))
    score = lambda: score_rows(loaded.model, heldout.tokenized, loaded.tokenizer.pad_token_id)  # noqa: E731
    result.heldout_before = score()
    result.eval_loss.append((0, mean_loss(result.heldout_before)))
    report(f"before training: held-out loss {result.eval_loss[0][1]:.4f}")
    _reset_peak_memory()
    watcher = _make_watcher(result, config, score, report)
    counter = _count_tokens(trainer, result)
    trainer.add_callback(watcher)
    trainer.train()
    counter()
    result.rows = round(len(rows.examples) * (trainer.state.epoch or 0))
    result.heldout_after = watcher.last_scores
    result.peak_memory_bytes = _peak_memory()
    return result


def compare_scores(before: list[RowScore], after: list[RowScore]) -> dict[str, float]:
    """Return the mean change of the rows' losses with its 95 % interval (paired t).

    Args:
        before: One score a row.
        after: The same rows later.

    Returns:
        `mean`, `low`, `high` in nats a token (negative is better), and `rows`.
    """
    from scipy import stats

    differences = [b.mean() - a.mean() for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / len(differences)
    error = stats.sem(differences)
    reach = float(stats.t.ppf(0.975, len(differences) - 1) * error)
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "rows": len(differences)}


def describe_change(result: TrainResult) -> str:
    """Say in words whether the held-out loss fell, with its interval.

    Args:
        result: A finished training.

    Returns:
        Two sentences.
    """
    change = compare_scores(result.heldout_before, result.heldout_after)
    before, after = result.eval_loss[0][1], result.eval_loss[-1][1]
    verdict = ("That is an improvement beyond chance." if change["high"] < 0 else
               "That is worse beyond chance." if change["low"] > 0 else
               "The interval contains zero: from these rows one cannot say whether training helped.")
    return (f"Held-out loss {before:.3f} before, {after:.3f} after. Mean change of {change['rows']} rows: "
            f"{change['mean']:+.3f} nats a token (95 % interval {change['low']:+.3f} to {change['high']:+.3f}). {verdict}")


def prove_reload(loaded: LoadedModel, heldout: Contract, result: TrainResult, *, tolerance: float | None = None) -> str:
    """Compare the held-out losses of a reloaded model with those of the trained one, row by row.

    Args:
        loaded: Base model and saved adapter, freshly loaded.
        heldout: The held-out rows.
        result: The training, with each row's loss after it.
        tolerance: Largest difference of a row's mean loss, in nats a token; by default 1e-4 in fp32 and 0.02 in
            16 bit, where the order of additions already moves the last digits.

    Returns:
        A sentence with the largest difference.

    Raises:
        ExportError: The reloaded model is another one.
    """
    limit = tolerance if tolerance is not None else 1e-4 if loaded.precision == "fp32" else 0.02
    scores = score_rows(loaded.model, heldout.tokenized, loaded.tokenizer.pad_token_id)
    worst = max(abs(a.mean() - b.mean()) for a, b in zip(scores, result.heldout_after, strict=True))
    if not worst <= limit:
        raise ExportError("adapter", f"the trained model's held-out losses, within {limit} nats a token", worst,
                          "The saved adapter does not reproduce the training. Do not use it.")
    return f"Reloaded: {len(scores)} held-out rows, largest difference of a row's loss {worst:.2g} (limit {limit})."


def save_adapter(loaded: LoadedModel, run: RunDirectory) -> list[str]:
    """Save the LoRA weights with the tokenizer and its template.

    Args:
        loaded: The trained model.
        run: Where to.

    Returns:
        The names of the files, sorted.

    Raises:
        ExportError: A file that a reader needs is missing afterwards.
    """
    try:
        loaded.model.save_pretrained(str(run.adapter))
        loaded.tokenizer.save_pretrained(str(run.adapter))
    except OSError as error:
        raise ExportError("adapter", "room to save the adapter", error.strerror or str(error), "Free disk space.") from error
    names = sorted(p.name for p in run.adapter.iterdir())
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"):
        if name not in names:
            raise ExportError("adapter", f"{name} among the saved files", names)
    return names


def _arguments(config: RunConfig, loaded: LoadedModel, run: RunDirectory, steps: int) -> dict[str, Any]:
    """Translate the configuration into SFTConfig's arguments."""
    import torch

    train = config.train
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(run.checkpoints),
        "max_length": config.model.max_seq_length,
        "completion_only_loss": True,
        "packing": train.packing,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "max_steps": steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": min(train.warmup_steps, steps // 2),
        "weight_decay": train.weight_decay,
        "optim": "adamw_8bit" if cuda else "adamw_torch",
        "bf16": cuda and loaded.precision == "bf16",
        "fp16": cuda and loaded.precision == "fp16",
        "seed": train.seed,
        "data_seed": train.seed,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "dataset_num_proc": 1,  # workers die in small containers (unsloth issues 2693, 4490)
        "dataloader_pin_memory": cuda,
    }


def _mode(trainer: Any, loaded: LoadedModel) -> dict[str, Any]:
    """Return what the trainer really does, for the record."""
    return {
        "packing": bool(trainer.args.packing),
        "padding_free": bool(getattr(trainer, "padding_free", False) or trainer.args.padding_free),
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "precision": loaded.precision,
    }


def _count_tokens(trainer: Any, result: TrainResult) -> Callable[[], None]:
    """Count tokens as they pass; returns a function that stores the counts.

    The sums stay on the device until the end, so that counting never makes the host wait.
    """
    import torch

    sums: dict[str, Any] = {"all": 0, "supervised": 0}
    original = trainer.training_step

    def counting_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        sums["supervised"] = sums["supervised"] + (labels != IGNORED).sum()
        sums["all"] = sums["all"] + (mask.sum() if mask is not None else torch.tensor(labels.numel()).to(labels.device))
        return original(model, inputs, *args, **kwargs)

    trainer.training_step = counting_step

    def store() -> None:
        trainer.training_step = original
        result.tokens, result.supervised_tokens = int(sums["all"]), int(sums["supervised"])

    return store


def _make_watcher(
    result: TrainResult, config: RunConfig, score: Callable[[], list[RowScore]], report: Callable[[str], None]
) -> Any:
    """Return a trainer callback that keeps losses and time, reports progress, and stops on NaN."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        last_scores: list[RowScore]
        started = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.started:
                self.started = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            step, loss = state.global_step, float(logs["loss"])
            if not math.isfinite(loss):
                raise RunError("training loss", "a number", loss, _nan_advice(config, step))
            result.train_loss.append((step, loss))
            report(f"step {step}/{state.max_steps}  loss {loss:.4f}")
            if step >= state.max_steps or step % config.train.eval_steps == 0:
                self._measure(step, state.max_steps)

        def _measure(self, step: int, steps: int) -> None:
            self._pause()
            self.last_scores = score()
            result.eval_loss.append((step, mean_loss(self.last_scores)))
            report(f"step {step}/{steps}  held-out loss {result.eval_loss[-1][1]:.4f}")

        def _pause(self) -> None:
            _synchronize()
            result.train_seconds += time.perf_counter() - self.started
            self.started = 0.0

    return Watcher()


def _nan_advice(config: RunConfig, step: int) -> str:
    """Say what usually makes a loss NaN."""
    return (f"It broke at step {step}. Usual causes: a learning rate that is too high (now "
            f"{config.train.learning_rate}; try a fifth of it), or overflow in fp16.")


def _synchronize() -> None:
    """Wait for the card, so that times are true."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak_memory() -> None:
    """Start measuring the card's peak memory anew."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    """Return the highest memory in use, in bytes: on the card, or of this process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
