"""What happens beside the optimizer's steps: tokens counted, checkpoints sealed and copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from helpers.core.distributed import total
from helpers.core.runs import RunDirectory
from helpers.data.contract import IGNORED
from helpers.training.checkpoints import WRITING, Checkpoint
from helpers.training.persist import Persister, persist_folder
from helpers.training.sealing import prune, seal

__all__ = [
    "Keeper",
    "Recorder",
    "TokenCounter",
    "make_callback",
    "synchronize",
]


class Recorder(Protocol):
    """What the callback reports to."""

    def step_begins(self) -> None:
        """An optimizer step begins."""

    def logged(self, step: int, steps: int, loss: float, *, saving: bool) -> None:
        """A step is done, with its loss; `saving` says that a checkpoint comes next."""

    def saved(self, written: Path, step: int) -> None:
        """The trainer has written a checkpoint."""


def make_callback(recorder: Recorder, save_steps: int) -> Any:
    """Return a transformers callback that tells the recorder what the trainer does.

    Args:
        recorder: Gets the calls.
        save_steps: Optimizer steps between checkpoints. A resumed trainer takes this from its checkpoint instead
            (transformers 5.17, TrainerState.load_from_json), so it is set again.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.save_steps = save_steps

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.step_begins()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                recorder.logged(state.global_step, state.max_steps, float(logs["loss"]), saving=control.should_save)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.saved(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

    return Watcher()


class TokenCounter:
    """Counts tokens as they pass. The sums stay on the device until they are asked for: the host never waits.

    Each process counts what passes it, and `read` adds up. A batch without a label stands in for none, and is not
    counted.

    Args:
        trainer: The trainer; its `training_step` is wrapped until `stop`.
        tokens: Tokens seen before, padding not counted.
        supervised: Of them, those that the loss was taken over.

    Attributes:
        passed: Tokens that this process has fed to the model, padding counted.
    """

    def __init__(self, trainer: Any, tokens: int, supervised: int) -> None:
        self._trainer = trainer
        self._original = trainer.training_step
        self._before = tokens, supervised
        self._tokens: Any = 0
        self._supervised: Any = 0
        self.passed = 0
        trainer.training_step = self._step

    def _step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        learned = (labels != IGNORED).sum()
        self.passed += labels.numel()
        self._supervised = self._supervised + learned
        self._tokens = self._tokens + (mask.sum() if mask is not None else labels.numel()) * (learned > 0)
        return self._original(model, inputs, *args, **kwargs)

    def read(self) -> tuple[int, int]:
        """Return (tokens, supervised tokens) so far, of all processes."""
        return self._before[0] + total(int(self._tokens)), self._before[1] + total(int(self._supervised))

    def stop(self) -> None:
        """Put the trainer's own step back."""
        self._trainer.training_step = self._original


class Keeper:
    """Seals checkpoints, copies them to the second place, and removes old ones.

    Args:
        run: The run.
        persist_dir: The second place, or None.
        resumed: What training goes on from, if it does.
        report: Gets one line at a time.
    """

    def __init__(
        self, run: RunDirectory, persist_dir: str | None, resumed: Checkpoint | None, report: Callable[[str], None]
    ) -> None:
        self.run = run
        self.report = report
        self.good = [resumed.path] if resumed else []
        self.sealed = resumed.step if resumed else None
        self.persister = Persister(run, persist_folder(persist_dir, run.path.name)) if persist_dir else None

    def keep(self, written: Path, step: int, state: dict[str, Any]) -> None:
        """Seal one and remove those before the newest few."""
        checkpoint = seal(written, self.run, step, state)
        self.good = [*(path for path in self.good if path != checkpoint.path), checkpoint.path]
        if self.persister:
            self.persister.offer(checkpoint)
        self.good = prune(self.run, self.good, busy=self.persister.busy if self.persister else None)
        self._tell(self.persister.news() if self.persister else [])

    def close(self) -> None:
        """Wait for the second place, and drop what was half written."""
        shutil.rmtree(self.run.checkpoints / WRITING, ignore_errors=True)
        if self.persister:
            self._tell(self.persister.close())

    def last_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, in every process."""
        return self.sealed

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self.report(line)


def synchronize() -> None:
    """Wait for the card, so that times are true."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
