"""Live tracking of the losses with trackio, tensorboard or wandb, through transformers; off unless asked for.

No account is ever needed. trackio keeps what it gets in its own folder on this machine, tensorboard in the run's
folder, and wandb too as long as it finds no key. What is kept offline can be uploaded later with `wandb sync`.
"""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core.config import RunConfig
from helpers.core.errors import StackError
from helpers.core.runs import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

_PROJECT = "mistral-qlora-notebooks"
"""Under what name trackers group the runs; WANDB_PROJECT replaces it for wandb."""

PACKAGES = {"trackio": ("trackio",), "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""For each tracker the packages that provide it; one of them is enough."""

_FOLDER = "tracking"
"""In the run's folder: what a tracker keeps."""


def require_tracker(report_to: str) -> None:
    """Stop before anything is downloaded if the tracker that was asked for is not installed.

    Args:
        report_to: "none", "trackio", "tensorboard" or "wandb".

    Raises:
        StackError: The package is missing.
    """
    if report_to == "none" or any(importlib.util.find_spec(name) for name in PACKAGES[report_to]):
        return
    remedy = f'Run pip install {report_to} in this environment, or set report_to = "none". The lock leaves it out.'
    raise StackError("report_to", f"{report_to} to be installed", None, remedy)


def tracking_arguments(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Return the arguments of TRL's SFTConfig that turn tracking on, or off.

    transformers reads the folders from environment variables when the trainer is built (5.17,
    integrations/integration_utils.py); by itself it would write tensorboard's files among the checkpoints, which are
    removed. They are set here: TENSORBOARD_LOGGING_DIR, or WANDB_DIR, and unless they are set already WANDB_PROJECT
    and, without a key, WANDB_MODE=offline: wandb would otherwise stop and ask.

    Returns:
        `report_to`, and with a tracker the run's name and the project.

    Raises:
        StackError: The tracker is not installed.
    """
    tracker = config.train.report_to
    if tracker == "none":
        return {"report_to": "none"}
    require_tracker(tracker)
    folder = run.path / _FOLDER
    if tracker == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    if tracker == "wandb":
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DIR"] = str(folder)
        os.environ.setdefault("WANDB_PROJECT", _PROJECT)
        if not _has_wandb_key():
            os.environ.setdefault("WANDB_MODE", "offline")
    return {"report_to": [tracker], "run_name": config.run_name, "project": _PROJECT}


def track_configuration(trainer: Any, config: RunConfig) -> None:
    """Have the notebook's parameters sent to the tracker when training begins; without a tracker do nothing.

    transformers sends its own arguments, which lack the data set, the prompt style and the preset.

    Args:
        trainer: Built with `tracking_arguments`. It calls its callbacks in the order in which they were added, so
            that the tracker is there when this one is called.
    """
    if config.train.report_to == "none":
        return
    from transformers import TrainerCallback

    send = _SENDERS[config.train.report_to]

    class Sender(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not state.is_world_process_zero:  # transformers starts the tracker in the main process only
                return
            send(trainer, {"task": config.task, **config.flat()})

    trainer.add_callback(Sender())


def _has_wandb_key() -> bool:
    """Whether wandb would find a key: in the environment, or where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _send_to_wandb(trainer: Any, values: dict[str, Any]) -> None:
    import wandb

    wandb.config.update({"notebook": values}, allow_val_change=True)


def _send_to_trackio(trainer: Any, values: dict[str, Any]) -> None:
    import trackio

    trackio.config.update({"notebook": values}, allow_val_change=True)


def _send_to_tensorboard(trainer: Any, values: dict[str, Any]) -> None:
    for callback in trainer.callback_handler.callbacks:
        if getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_text("notebook", f"```json\n{json.dumps(values, indent=2)}\n```")


_SENDERS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "trackio": _send_to_trackio,
    "tensorboard": _send_to_tensorboard,
    "wandb": _send_to_wandb,
}
