"""What depends on the machine and teaches nothing: more arguments for the libraries' calls, each with its reason."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.config_file import record_layout
from helpers.core.distributed import local_config, on_main, place, share_out
from helpers.core.runs import RunDirectory
from helpers.memory.layout import plan_layout
from helpers.memory.plan import choose_optimizer
from helpers.model.load import model_source
from helpers.model.patches.attention import loaded_attention
from helpers.runtime.hardware import TORCH_NAMES, Gpu, choose_precision, find_gpu, loader_options
from helpers.training.tracking import tracking_arguments

__all__ = ["base_model", "fit_layout", "fit_machine"]


@dataclass(frozen=True, repr=False)
class Machine:
    """More arguments for the libraries' calls. Print it to see them with their reasons.

    Args:
        precision: "bf16", "fp16" or "fp32": what the model computes in.
        loading: For `FastLanguageModel.from_pretrained`.
        sft: For `SFTConfig`.
        reasons: By the argument's name.
    """

    precision: str
    loading: dict[str, Any]
    sft: dict[str, Any]
    reasons: dict[str, str]

    @property
    def dtype(self) -> str:
        """The precision's name in torch."""
        return TORCH_NAMES[self.precision]

    def __repr__(self) -> str:
        lines = [f"dtype={self.dtype!r}: {self.reasons['dtype']}"]
        for part in ("loading", "sft"):
            given = getattr(self, part).items()
            lines += [f"{part}: {name}={value!r}: {self.reasons.get(name, '')}" for name, value in given]
        return "\n".join(line.removesuffix(": ") for line in lines)


def base_model(config: RunConfig) -> tuple[str, str | None]:
    """Return the hub id or folder of the base model, and its revision; the small model is unpacked the first time."""
    source, revision = on_main(lambda: model_source(config.model))
    return source, revision or None


def run_precision(config: RunConfig) -> str:
    """Return "bf16", "fp16" or "fp32": what was asked for, or what the card computes natively."""
    gpu = find_gpu()
    native = choose_precision(gpu.capability if gpu else None)
    return native if config.model.precision == "auto" else config.model.precision


def fit_machine(config: RunConfig, run: RunDirectory) -> Machine:
    """Return what the libraries must be told on this machine.

    Args:
        run: Where a tracker's files go.
    """
    gpu, here, precision = find_gpu(), place(), run_precision(config)
    loading: dict[str, Any] = {"use_safetensors": True}
    sft: dict[str, Any] = {
        "bf16": gpu is not None and precision == "bf16",
        "fp16": gpu is not None and precision == "fp16",
        "optim": choose_optimizer(config.train.optimizer, gpu.total_bytes if gpu else None).name,
        "dataloader_pin_memory": gpu is not None,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        **tracking_arguments(config, run),
    }
    sft |= {"dataset_num_proc": 1} if gpu else {"gradient_checkpointing": config.train.gradient_checkpointing}
    if here.count > 1:
        loading["device_map"] = {"": f"cuda:{here.local}" if gpu else "cpu"}
        sft |= {"use_cpu": gpu is None, "ddp_find_unused_parameters": False}
    loading |= loader_options()
    return Machine(precision, loading, sft, {**_REASONS, "dtype": f"computing in {precision}"})


_REASONS = {
    "bf16": "mixed precision, where the card computes in bf16",
    "dataloader_pin_memory": "helps with a GPU only",
    "dataset_num_proc": "worker processes die in small containers (unsloth issues 2693, 4490)",
    "ddp_find_unused_parameters": "each LoRA weight has a gradient in each pass",
    "device_map": "a whole model for each process",
    "disable_tqdm": "a line a step instead of a bar",
    "fp16": "mixed precision on cards without bf16, such as the T4",
    "gradient_checkpointing": "without a GPU, trl does not ask the model",
    "logging_nan_inf_filter": "on by default, it hides a broken step",
    "optim": "chosen by the card, unless the parameter optimizer names one",
    "report_to": "the parameter of that name",
    "use_cpu": "without it accelerate does not start several processes on CPUs",
    "use_safetensors": "pytorch_model.bin is a pickle, which can run code",
}
"""Why an argument is passed."""


@dataclass(frozen=True)
class StepLayout:
    """How the rows of an optimizer step are laid out.

    Args:
        config: The run, with the layout chosen.
        batch_size: Rows in one forward pass of one process.
        gradient_accumulation: Forward passes of one process in one optimizer step.
        lora: More arguments for `FastLanguageModel.get_peft_model`.
    """

    config: RunConfig
    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    lora: dict[str, Any]


_find_gpu = functools.partial(find_gpu, held_is_free=True)  # what is held already is part of the prediction


def fit_layout(
    config: RunConfig, lengths: Sequence[int], run: RunDirectory, *, find: Callable[[], Gpu | None] = _find_gpu
) -> StepLayout:
    """Choose how the rows of an optimizer step are laid out on this machine's GPU, the fastest way that fits; say why.

    The rows of a step stay as many as asked for, and what the user has set stays as it is. Without a GPU nothing
    changes. Several processes share the rows of a step; what fits on the main one's GPU is chosen for all.

    Args:
        lengths: Of the training rows [tokens].
        run: Gets the layout into its `config.json`.
        find: Returns the GPU; None for none.

    Raises:
        ConfigError: The rows of a step cannot be shared out evenly among the processes, or the model has fewer than
            `checkpoint_skip_layers` layers.
        StackError: Nothing fits.
    """
    processes, gpu, attention = place().count, find(), "sdpa"
    if gpu is not None:
        attention = loaded_attention(gpu.capability, wanted=config.train.varlen_attention).name
    own = local_config(config, processes)
    own, reasons = on_main(lambda: plan_layout(own, gpu, lengths, chosen=attention, processes=processes))
    print("\n".join(reasons))
    config = own.changed(gradient_accumulation=own.train.gradient_accumulation * processes)
    share = share_out(config.train, processes)
    if processes > 1:
        print(share.describe())
    on_main(lambda: record_layout(run, config, share))
    # unsloth_zoo 2026.10.9 hands names that it does not know to PEFT on a CPU, which refuses them
    skipped = config.train.checkpoint_skip_layers
    lora = {"checkpoint_skip_layers": skipped} if gpu and skipped else {}
    checkpointing = config.train.gradient_checkpointing
    return StepLayout(config, share.batch_size, share.gradient_accumulation, checkpointing, lora)
