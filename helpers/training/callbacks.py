"""What happens beside the optimizer's steps, as callbacks of transformers: give them to `SFTTrainer(callbacks=[...])`.

The only module whose import loads transformers, so that a notebook imports unsloth before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from helpers.core.config import RunConfig
from helpers.core.distributed import gather, on_main, place
from helpers.core.errors import RunError
from helpers.core.files import writing
from helpers.core.runs import RunDirectory
from helpers.data.prompts import row_sources
from helpers.data.tokens import IGNORED, row_labels
from helpers.memory.forecast import Forecast, Pace, forecast_training, format_minutes, past_metrics
from helpers.model.patches.cuda_graphs import GraphedLayers
from helpers.model.scoring import RowScore, mean_loss, score_rows
from helpers.runtime.calibration import calibrate
from helpers.training.checkpoints import BEST, WRITING, Checkpoint, complete, last_complete, prune, sweep
from helpers.training.curves import judge_curve
from helpers.training.failures import nan_error, preflight_disk, weights_are_finite
from helpers.training.persist import Persister, persist_folder
from helpers.training.result import TrainResult
from helpers.training.speed import count_steps, peak_memory, reset_peak_memory, synchronize, training_mode

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Checkpoints", "TrainingRecord"]


class TokenCounter:
    """Counts tokens as they pass. The sums stay on the device until they are asked for: the host never waits.

    Each process counts what passes it, and `read` adds up. A batch without a label stands in for none, and is not
    counted.

    Attributes:
        passed: Tokens that this process has fed to the model, padding counted.
    """

    def __init__(self) -> None:
        self.passed = 0
        self._tokens: Any = 0
        self._supervised: Any = 0

    def count(self, inputs: dict[str, Any]) -> None:
        """Add one batch."""
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        learned = (labels != IGNORED).sum()
        self.passed += labels.numel()
        self._supervised = self._supervised + learned
        self._tokens = self._tokens + (mask.sum() if mask is not None else labels.numel()) * (learned > 0)

    def read(self) -> tuple[int, int]:
        """Return (tokens, supervised tokens) so far, of all processes; padding is not counted."""
        return sum(gather(int(self._tokens))), sum(gather(int(self._supervised)))


class TrainingRecord(TrainerCallback):
    """Measures the held-out rows before, during and after training, prints a line a step, and keeps every figure.

    A training whose loss is not a number any more is stopped.

    Args:
        heldout_dataset: The checked held-out rows, with `input_ids` and `completion_mask`.
        heldout_rows: The same rows before they became tokens, for what they share.

    Attributes:
        best: With `keep = "best"`, the trained weights as they were when the held-out loss was lowest.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        train_dataset: Dataset,
        heldout_dataset: Dataset,
        *,
        heldout_rows: Iterable[Mapping[str, Any]],
        report: Callable[[str], None] = print,
    ) -> None:
        self.run, self.config, self.report = run, config, report
        self.heldout: list[dict[str, Any]] = heldout_dataset.to_list()
        self.sources = [name or place for place, name in enumerate(row_sources(heldout_rows, config.task))]
        rows = train_dataset.to_list()
        self.lengths = [len(row["input_ids"]) for row in rows]
        self.fingerprint = _fingerprint(rows, self.heldout)
        self.result = TrainResult()
        self.counter = TokenCounter()
        self.graphs: GraphedLayers | None = None
        self.pace = Pace()
        self.best: dict[str, Any] = {}
        self._counted = (0, 0)
        self._started = 0.0
        self._sequences = 1

    def score(self, model: Any) -> list[RowScore]:
        """Return the loss of each held-out row under a model."""
        began = time.perf_counter()
        scores = score_rows(model, self.heldout)
        self.result.heldout_seconds += time.perf_counter() - began
        return scores

    def forecast(self) -> Forecast | None:
        """Return how long training will take, from this machine's pace and the runs that have finished on it."""
        return forecast_training(
            self.config,
            self.lengths,
            calibrate(),
            heldout=[len(row["input_ids"]) for row in self.heldout],
            graphs=self.graphs is not None,
            processes=place().count,
            past=past_metrics(self.run.path.parent),
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **named: Any) -> None:
        """Forecast how long it takes and measure the held-out rows, unless training goes on from a checkpoint."""
        if not self.result.heldout_before:
            if forecast := on_main(self.forecast):
                self.result.forecast = forecast.record()
                self.report(forecast.describe())
            self.result.heldout_sources = self.sources
            self.result.heldout_before = self.score(model)
            self.result.eval_loss.append((0, mean_loss(self.result.heldout_before)))
            self.report(f"before training: held-out loss {self.result.eval_loss[0][1]:.4f}")
        self._counted = self.result.tokens, self.result.supervised_tokens
        self._sequences = len(named["train_dataloader"].dataset)
        reset_peak_memory()

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Start the clock, which measurements and checkpoints stop."""
        if not self._started:
            self._started = time.perf_counter()
        self.pace.begins(self.counter.passed)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **named: Any) -> None:
        """Count the updates that fp16's scaler skipped."""
        self.result.skipped_updates += bool(getattr(optimizer, "step_was_skipped", False))

    def on_log(
        self, args: Any, state: Any, control: Any, *, model: Any, logs: dict[str, Any] | None = None, **named: Any
    ) -> None:
        """Keep a step's loss, and measure the held-out rows now and then."""
        if not logs or "loss" not in logs:
            return
        step, last, loss = state.global_step, state.global_step >= state.max_steps, float(logs["loss"])
        if not math.isfinite(loss):
            raise self.broken("training loss", loss, step)
        self.result.train_loss.append((step, loss))
        self.report(f"step {step}/{state.max_steps}  loss {loss:.4f}")
        if left := self.pace.ends(self.counter.passed, state.max_steps - step):
            self.report(f"about {format_minutes(left)} of training left, at the pace of steps 2 to {Pace.STEPS}")
        if control.should_save or last:
            self._pause()
        if last or step % self.config.train.eval_steps == 0:
            self._measure(model, step, state.max_steps)
            if not last and self._lost_patience():
                self.result.stopped_at = step
                control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: Any, **named: Any) -> None:
        """Say what the curve looks like if it needs a word, and refuse a training that changed nothing."""
        self.count(args, state)
        self.put_back_best(model)
        skipped = self.result.skipped_updates
        if skipped and skipped >= state.global_step:
            remedy = "Every gradient overflowed in fp16. Use a card with bf16, or train longer."
            raise RunError("optimizer updates", "at least one that was applied", 0, remedy)
        if skipped:
            self.report(
                f"{skipped} of {state.global_step} optimizer updates were skipped: gradients overflowed in fp16"
            )
        if self.graphs:
            self.report(self.graphs.describe())
        verdict = judge_curve(self.result.metrics()) if self.result.train_loss else None
        if verdict and verdict.kind not in ("healthy", "too short"):
            self.report(verdict.text)

    def put_back_best(self, model: Any) -> None:
        """With `keep = "best"`, give the model the weights back that it had when the held-out loss was lowest."""
        if not self.best or self.result.best_step() == self.result.eval_loss[-1][0]:
            return
        for name, parameter in model.named_parameters():
            if name in self.best:
                parameter.data.copy_(self.best[name])
        self.result.kept_step, self.result.heldout_after = self.result.best_step(), self.result.heldout_best

    def count(self, args: Any, state: Any) -> None:
        """Bring the counts up to date."""
        tokens, supervised = self.counter.read()
        self.result.tokens, self.result.supervised_tokens = self._counted[0] + tokens, self._counted[1] + supervised
        rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * place().count
        whole, more = divmod(state.global_step, math.ceil(self._sequences / rows_per_step))
        epochs = whole + min(more * rows_per_step / self._sequences, 1.0)  # the last step of one may have fewer rows
        self.result.rows = round(len(self.lengths) * epochs)
        self.result.peak_memory_bytes = max(self.result.peak_memory_bytes, *gather(peak_memory(self.graphs)))

    def broken(self, what: str, value: float, step: int) -> RunError:
        """Return the error for what is not a number any more."""
        found = last_complete(self.run).found
        precision = self.result.mode["precision"]
        return nan_error(what, value, self.config, precision, step, found.step if found else None)

    def _measure(self, model: Any, step: int, steps: int) -> None:
        self._pause()
        self.result.heldout_after = self.score(model)
        loss = mean_loss(self.result.heldout_after)
        if not math.isfinite(loss):
            raise self.broken("held-out loss", loss, step)
        self.result.eval_loss.append((step, loss))
        self.report(f"step {step}/{steps}  held-out loss {loss:.4f}")
        if self.config.train.keep == "best" and self.result.best_step() == step:
            trained = ((name, each) for name, each in model.named_parameters() if each.requires_grad)
            self.best = {name: each.detach().to("cpu", copy=True) for name, each in trained}
            self.result.heldout_best = self.result.heldout_after

    def _lost_patience(self) -> bool:
        """Say whether the last `early_stopping` measurements found no new lowest held-out loss."""
        losses, patience = [loss for _, loss in self.result.eval_loss], self.config.train.early_stopping
        return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience

    def _pause(self) -> None:
        if self._started:
            synchronize()
            self.result.train_seconds += time.perf_counter() - self._started
            self._started = 0.0


class Checkpoints(TrainerCallback):
    """Makes each checkpoint whole or not there, copies it to `persist_dir`, and finds the one to go on from.

    `SFTConfig(output_dir=...)` must be `folder`: a checkpoint is written there, completed with a marker, and then moved
    into place; `helpers.training.checkpoints` says which threats that answers.

    Args:
        record: What goes into each checkpoint beside the trainer's own state.
    """

    def __init__(self, record: TrainingRecord) -> None:
        self.record, self.run, self.config, self.report = record, record.run, record.config, record.report
        self.folder = str(self.run.checkpoints / WRITING)
        self._inputs: dict[str, Any] = {}
        self._good: list[Path] = []
        self._persister: Persister | None = None

    def latest(self, trainer: Any) -> str | None:
        """Return the newest complete checkpoint of this run, for `trainer.train(resume_from_checkpoint=...)`, or None.

        Args:
            trainer: Ready to train: the rows and its kind of training must be those of the checkpoint.

        Raises:
            RunError: They are not, the disk has no room for a checkpoint, or the run's `resume` is "must" and there is
                no checkpoint.
        """
        mode = training_mode(trainer, self.config)
        steps = count_steps(trainer)
        kept = ("packing", "padding_free", "optimizer", "precision")
        self._inputs = {"tokens": self.record.fingerprint, "steps": steps, **{name: mode[name] for name in kept}}
        found = on_main(lambda: self._find(trainer))
        self._good = [found.path] if found else []
        if self.config.train.persist_dir and place().main:
            self._persister = Persister(self.run, persist_folder(self.config.train.persist_dir, self.run.path.name))
        if found:
            self.record.result = _read_state(found)
            self.record.best = _read_best(found)
            if found.step >= steps or self.record.result.stopped_at is not None:
                self.report(f"step {found.step}/{steps}  already trained; restored from {found.path.name}")
        self.record.result.mode = mode  # who goes on may be another machine, or several processes
        return str(found.path) if found else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Set what a resumed trainer takes from its checkpoint (transformers 5.17, TrainerState.load_from_json)."""
        state.save_steps = self.config.train.save_steps

    def on_save(self, args: Any, state: Any, control: Any, *, model: Any, **named: Any) -> None:
        """Complete what the trainer wrote, unless a weight is broken."""
        step = state.global_step
        if not weights_are_finite(model):
            raise self.record.broken("adapter weights", math.nan, step)
        self.record.count(args, state)
        gather(None)  # each process has written its random numbers' state
        on_main(lambda: self._keep(Path(args.output_dir) / f"checkpoint-{step}", step))

    def close(self) -> None:
        """Wait for the last copy, and drop what was half written."""
        if place().main:
            shutil.rmtree(self.folder, ignore_errors=True)
        for line in self._persister.close() if self._persister else []:
            self.report(line)

    def _find(self, trainer: Any) -> Checkpoint | None:
        """Make the run's directory ready, and find the checkpoint to go on from."""
        self.run.update_manifest(state="running", failure=None)
        preflight_disk(self.run, trainer.model, self._inputs["optimizer"], best=self.config.train.keep == "best")
        sweep(self.run)
        search = last_complete(self.run)
        for line in search.describe():
            self.report(line)
        if search.found is None:
            if self.run.manifest().get("resume") == "must":
                raise RunError(
                    "resume",
                    f"a complete checkpoint in {self.run.shown('checkpoints')}, because resume is must",
                    "; ".join(search.describe()) or "none",
                    'resume="auto" starts from the first step.',
                )
            return None
        before = search.found.state().get("inputs")
        before = before if isinstance(before, dict) else {}
        if changed := {k: (before.get(k), v) for k, v in self._inputs.items() if before.get(k) != v}:
            raise RunError(
                "run_name",
                "the rows and the hardware of the earlier run",
                "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items()),
                'Choose another run_name, or resume="never" to start over.',
            )
        self.report(f"going on from the checkpoint of step {search.found.step}")
        return search.found

    def _keep(self, written: Path, step: int) -> None:
        """Complete one, offer it to the second place, and remove those before the newest few."""
        state = {"inputs": self._inputs, "result": self.record.result.state()}
        if self.record.best:
            from safetensors.torch import save_file

            with writing(f"the checkpoint of step {step}", self.run.path):
                save_file(self.record.best, written / BEST)
        checkpoint = complete(written, self.run, step, state)
        good = [*(path for path in self._good if path != checkpoint.path), checkpoint.path]
        if self._persister:
            self._persister.offer(checkpoint)
        self._good = prune(self.run, good, busy=self._persister.busy if self._persister else None)
        for line in self._persister.news() if self._persister else []:
            self.report(line)


def _fingerprint(*parts: list[dict[str, Any]]) -> str:
    """Return the SHA-256 of all tokens and labels: a local file can change under its name."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([[row["input_ids"], row_labels(row)] for row in part]).encode())
    return digest.hexdigest()


def _read_best(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the trained weights that a checkpoint keeps as the best so far, if it does."""
    from safetensors.torch import load_file

    return load_file(checkpoint.path / BEST) if BEST in checkpoint.files else {}


def _read_state(checkpoint: Checkpoint) -> TrainResult:
    """Return the result as it was when a checkpoint was written."""
    try:
        return TrainResult.from_state(checkpoint.state()["result"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            str(checkpoint.path),
            "a checkpoint of this version of the package",
            type(error).__name__,
            'Choose another run_name, or resume="never" to start over.',
        ) from error
