"""One training from its first or its last complete step to its end."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.distributed import largest, on_main, place, wait_for_all
from helpers.core.errors import RunError
from helpers.core.runs import RunDirectory
from helpers.data.contract import Contract
from helpers.memory.forecast import Forecast, Pace, forecast_training, format_minutes, past_metrics
from helpers.model.load import LoadedModel
from helpers.model.patches.cuda_graphs import GraphedLayers, card_peak, graphed_passes
from helpers.model.patches.optimizer_step import quick_steps
from helpers.model.scoring import RowScore, mean_loss, prompt_numbers, score_rows
from helpers.runtime.calibration import calibrate
from helpers.runtime.hardware import own_cards
from helpers.training.checkpoints import Checkpoint, last_complete
from helpers.training.failures import nan_error, weights_are_finite
from helpers.training.result import TrainResult
from helpers.training.watch import Keeper, TokenCounter, make_callback, synchronize

__all__ = ["Training", "find_checkpoint", "training_inputs"]


@dataclass
class Training:
    """One call of `train`: the recorder that its callback reports to."""

    config: RunConfig
    loaded: LoadedModel
    heldout: Contract
    keeper: Keeper
    inputs: dict[str, Any]
    report: Callable[[str], None]
    result: TrainResult = field(default_factory=TrainResult)
    counter: TokenCounter | None = None
    started: float = 0.0
    rows: int = 0
    trainer: Any = None
    graphs: GraphedLayers | None = None
    pace: Pace = field(default_factory=Pace)

    def finished(self, checkpoint: Checkpoint | None, trainer: Any) -> TrainResult | None:
        """Restore a training that has done its last step; None for any other."""
        if checkpoint is None or checkpoint.step < trainer.args.max_steps:
            return None
        _load_weights(self.loaded.model, checkpoint)
        self.report(
            f"step {checkpoint.step}/{trainer.args.max_steps}  already trained; restored from {checkpoint.path.name}"
        )
        return _read_state(checkpoint)

    def run(self, checkpoint: Checkpoint | None, trainer: Any, rows: Contract) -> TrainResult:
        """Train to the end, from the start or from a checkpoint."""
        self.result = _read_state(checkpoint) if checkpoint else self._begin(trainer, rows)
        self.result.mode = dict(trainer.mode)  # who goes on may be another machine, or several processes
        _reset_peak_memory()
        self.counter = TokenCounter(trainer, self.result.tokens, self.result.supervised_tokens)
        watcher = make_callback(self, self.config.train.save_steps)
        trainer.add_callback(watcher)
        self.rows, self.trainer = len(rows.examples), trainer
        _seed_dropout(self.config.train.seed)
        try:
            with quick_steps(trainer), graphed_passes(trainer, report=self.report) as self.graphs:
                trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
            if self.graphs:
                self.report(self.graphs.describe())
        finally:
            trainer.remove_callback(watcher)
            self.counter.stop()
        self._count()
        return self.result

    def _begin(self, trainer: Any, rows: Contract) -> TrainResult:
        """Say how long it will take, and measure the held-out rows before the first step."""
        result = self.result = TrainResult(mode=dict(trainer.mode))
        result.heldout_sources = prompt_numbers(self.heldout.tokenized)
        forecast = on_main(lambda: self._forecast(trainer, rows))
        if forecast:
            result.forecast = forecast.record()
            self.report(forecast.describe())
        result.heldout_before = self._score()
        result.eval_loss.append((0, mean_loss(result.heldout_before)))
        self.report(f"before training: held-out loss {result.eval_loss[0][1]:.4f}")
        return result

    def _forecast(self, trainer: Any, rows: Contract) -> Forecast | None:
        """Forecast the training, from this machine's pace and the runs that have finished on it."""
        lengths, heldout = ([len(row.input_ids) for row in each.tokenized] for each in (rows, self.heldout))
        return forecast_training(
            self.config,
            lengths,
            calibrate(),
            heldout=heldout,
            graphs=bool(trainer.mode.get("graphs")),
            processes=place().count,
            past=past_metrics(self.keeper.run.path.parent),
        )

    def step_begins(self) -> None:
        """Start the clock, which measurements and checkpoints stop."""
        if not self.started:
            self.started = time.perf_counter()
        self.pace.begins(self.counter.passed if self.counter else 0)

    def logged(self, step: int, steps: int, loss: float, *, saving: bool) -> None:
        """Keep a step's loss, and measure the held-out rows now and then."""
        if not math.isfinite(loss):
            raise self._broken("training loss", loss, step)
        self.result.train_loss.append((step, loss))
        self.report(f"step {step}/{steps}  loss {loss:.4f}")
        if left := self.pace.ends(self.counter.passed if self.counter else 0, steps - step):
            self.report(f"about {format_minutes(left)} of training left, by the pace of steps 2 to {Pace.STEPS}")
        if saving or step >= steps:
            self._pause()
        if step >= steps or step % self.config.train.eval_steps == 0:
            self._measure(step, steps)

    def saved(self, written: Path, step: int) -> None:
        """Seal what the trainer wrote, unless a weight is broken."""
        if not weights_are_finite(self.loaded.model):
            raise self._broken("adapter weights", math.nan, step)
        self._count()
        wait_for_all()  # each process has written its random numbers' state
        on_main(lambda: self.keeper.keep(written, step, {"inputs": self.inputs, "result": self.result.state()}))
        self.keeper.sealed = step

    def _measure(self, step: int, steps: int) -> None:
        self._pause()
        self.result.heldout_after = self._score()
        loss = mean_loss(self.result.heldout_after)
        if not math.isfinite(loss):
            raise self._broken("held-out loss", loss, step)
        self.result.eval_loss.append((step, loss))
        self.report(f"step {step}/{steps}  held-out loss {loss:.4f}")

    def _score(self) -> list[RowScore]:
        began = time.perf_counter()
        scores = score_rows(self.loaded.model, self.heldout.tokenized)
        self.result.heldout_seconds += time.perf_counter() - began
        return scores

    def _pause(self) -> None:
        if self.started:
            synchronize()
            self.result.train_seconds += time.perf_counter() - self.started
            self.started = 0.0

    def _count(self) -> None:
        """Bring the result's counts up to date."""
        self.result.tokens, self.result.supervised_tokens = self.counter.read()
        self.result.rows = round(self.rows * _epochs_done(self.trainer, self.config.train.rows_per_step()))
        self.result.peak_memory_bytes = max(self.result.peak_memory_bytes, largest(_peak_memory(self.graphs)))

    def _broken(self, what: str, value: float, step: int) -> RunError:
        return nan_error(what, value, self.config, self.loaded.precision, step, self.keeper.last_step())


def _epochs_done(trainer: Any, rows_per_step: int) -> float:
    """Return how often each row, or packed sequence, has been seen; an epoch's last step may have fewer rows."""
    steps, rows = trainer.state.global_step, len(trainer.train_dataset)
    whole, more = divmod(steps, math.ceil(rows / rows_per_step))
    return whole + min(more * rows_per_step / rows, 1.0)


def _seed_dropout(seed: int) -> None:
    """Let each of several processes draw its own random numbers; a checkpoint's state, if any, is loaded later."""
    here = place()
    if here.count > 1:
        import torch

        torch.manual_seed(seed + here.rank)


def training_inputs(trainer: Any, rows: Contract, heldout: Contract) -> dict[str, Any]:
    """Return what must be the same when training goes on, beyond the parameters.

    A local data file can change under its name, and the next machine may have another card.
    """
    digest = hashlib.sha256()
    for part in (rows, heldout):
        digest.update(json.dumps([[row.input_ids, row.labels] for row in part.tokenized]).encode())
    kept = ("packing", "padding_free", "optimizer", "precision")
    return {
        "tokens": digest.hexdigest(),
        "steps": trainer.args.max_steps,
        **{name: trainer.mode.get(name) for name in kept},
    }


def find_checkpoint(run: RunDirectory, inputs: dict[str, Any], report: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to go on from, telling which newer ones are not used."""
    search = last_complete(run)
    for line in search.describe():
        report(line)
    if search.found is None:
        if run.manifest().get("resume") == "must":
            raise RunError(
                "resume",
                f"a complete checkpoint in {run.shown('checkpoints')}, because resume is must",
                "; ".join(search.describe()) or "none",
                'resume="auto" starts from the first step.',
            )
        return None
    before = search.found.state().get("inputs")
    before = before if isinstance(before, dict) else {}
    if changed := {k: (before.get(k), v) for k, v in inputs.items() if before.get(k) != v}:
        raise RunError(
            "run_name",
            "the rows and the hardware of the earlier run",
            "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items()),
            'Choose another run_name, or resume="never" to start over.',
        )
    report(f"going on from the checkpoint of step {search.found.step}")
    return search.found


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


def _load_weights(model: Any, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's adapter weights into the model, in place."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    outcome = set_peft_model_state_dict(model, load_file(checkpoint.path / "adapter_model.safetensors"))
    if outcome.unexpected_keys:
        found, remedy = outcome.unexpected_keys[:3], 'Choose another run_name, or resume="never" to start over.'
        raise RunError(str(checkpoint.path), "weights of this model's adapter", found, remedy)


def _reset_peak_memory() -> None:
    """Start measuring the card's peak memory anew."""
    import torch

    if torch.cuda.is_available():
        for card in own_cards():
            torch.cuda.reset_peak_memory_stats(card)


def _peak_memory(graphs: GraphedLayers | None) -> int:
    """Return the highest memory in use, in bytes: on the fullest card, or of this process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return max(card_peak(graphs, card) for card in own_cards())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
