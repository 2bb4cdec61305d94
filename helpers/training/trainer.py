"""From checked rows to a trained adapter: TRL's SFTTrainer, watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.config_file import record_layout
from helpers.core.distributed import Share, on_main, place, same_everywhere, share_out
from helpers.core.errors import ExportError, StackError
from helpers.core.files import replaced_folder
from helpers.core.runs import RunDirectory
from helpers.data.contract import Contract, check_trainer_rows
from helpers.data.tokens import trainer_table
from helpers.memory.plan import choose_optimizer, largest_micro_batch
from helpers.model.load import LoadedModel, import_unsloth
from helpers.model.patches.attention import enable_varlen
from helpers.model.patches.cuda_graphs import choose_graphs, planned_sizes
from helpers.runtime.hardware import find_gpu, own_cards
from helpers.runtime.lockfile import installed_version
from helpers.training.checkpoints import WRITING, Checkpoint
from helpers.training.curves import judge_curve
from helpers.training.failures import explained, preflight_disk
from helpers.training.loop import Training, find_checkpoint, training_inputs
from helpers.training.result import TrainResult, compare_scores, describe_change
from helpers.training.sampler import spread_batches
from helpers.training.sealing import sweep
from helpers.training.tracking import track_configuration, tracking_arguments
from helpers.training.watch import Keeper

__all__ = [
    "TrainResult",
    "build_trainer",
    "compare_scores",
    "describe_change",
    "planned_steps",
    "save_adapter",
    "train",
]


def planned_steps(config: RunConfig, rows: int) -> int:
    """Return the number of optimizer steps that a run will take.

    Args:
        config: The run.
        rows: Rows of the trainer's data set: after the contract, and after packing, where a row is a packed sequence.

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
        run: Where checkpoints go, and are looked for.

    Returns:
        An `SFTTrainer` with Unsloth's patches, and the attributes `run` and `mode`.

    Raises:
        ConfigError: The rows of a step cannot be shared out evenly among the processes.
        ContractError: The trainer would feed the model other tokens or labels than were checked.
        StackError: On a GPU, the trainer does not pack although it was asked to; or the GPUs of several processes are
            of kinds that train in other ways.
    """
    share = share_out(config.train, place().count)
    import_unsloth()
    attention = enable_varlen(wanted=config.train.varlen_attention)
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        train_dataset=trainer_table(rows.columns),
        args=SFTConfig(**_arguments(config, loaded, run, share)),
    )
    _plan(trainer, config)
    trainer.remove_callback(PrinterCallback)
    spread_batches(trainer, share)
    track_configuration(trainer, config)
    on_main(lambda: record_layout(run, config, share))
    trainer.run = run
    trainer.mode = {**_mode(trainer, loaded), "attention": attention.name, "attention_reason": attention.reason}
    same_everywhere("kind of training", {name: trainer.mode[name] for name in ("optimizer", "precision", "attention")})
    _plan_graphs(trainer, config, rows, share)
    _check_mode(trainer.mode, config, on_gpu=find_gpu() is not None)
    check_trainer_rows(trainer.train_dataset, rows)
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
    """Train, measuring the held-out loss before, during and after; go on from the last complete checkpoint.

    A checkpoint is written every `save_steps` steps and after the last one. If the run directory holds one, training
    continues after it as if it had never stopped: optimizer, schedule, data order, random numbers, losses, counts and
    times. If it is the last step's, nothing is trained and the result is restored.

    Args:
        trainer: From `build_trainer`.
        config: The run.
        loaded: The model.
        rows: Training rows.
        heldout: Held-out rows.
        report: Gets one line of progress at a time.

    Returns:
        Losses, speed and memory, of the whole training.

    Raises:
        RunError: The loss is not a number any more, the disk or the memory is full, the rows or the hardware's number
            format are not those of the checkpoints, or the run's `resume` is "must" and there is no checkpoint.
    """
    run, keeper = trainer.run, None
    with explained(run, config, lambda: keeper.last_step() if keeper else None):
        inputs = training_inputs(trainer, rows, heldout)
        checkpoint = on_main(lambda: _prepare(trainer, loaded, inputs, report))
        keeper = Keeper(run, config.train.persist_dir, checkpoint, report)
        work = Training(config, loaded, heldout, keeper, inputs, report)
        try:
            result = work.finished(checkpoint, trainer) or work.run(checkpoint, trainer, rows)
        finally:
            if place().main:
                keeper.close()
    verdict = judge_curve(result.metrics()) if result.train_loss else None
    if verdict and verdict.kind not in ("healthy", "too short"):
        report(verdict.text)
    return result


def _prepare(
    trainer: Any, loaded: LoadedModel, inputs: dict[str, Any], report: Callable[[str], None]
) -> Checkpoint | None:
    """Make the run's directory ready, and return the checkpoint to go on from."""
    trainer.run.update_manifest(state="running", failure=None)
    preflight_disk(trainer.run, loaded.model, trainer.args.optim)
    sweep(trainer.run)
    return find_checkpoint(trainer.run, inputs, report)


def save_adapter(loaded: LoadedModel, run: RunDirectory) -> list[str]:
    """Save the LoRA weights with the tokenizer and its template, beside the old ones, which they then replace.

    Args:
        loaded: The trained model.
        run: Where to.

    Returns:
        The names of the files, sorted.

    Raises:
        ExportError: A file that a reader needs is missing afterwards.
        RunError: The disk is full; an adapter that was there before is still there.
    """
    try:
        with replaced_folder(run.adapter, "the adapter") as beside:
            loaded.model.save_pretrained(str(beside))
            loaded.tokenizer.save_pretrained(str(beside))
    except BaseException as error:
        run.mark_failed(error)
        raise
    names = sorted(p.name for p in run.adapter.iterdir())
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"):
        if name not in names:
            raise ExportError("adapter", f"{name} among the saved files", names, "Save the adapter again.")
    return names


def _arguments(config: RunConfig, loaded: LoadedModel, run: RunDirectory, share: Share) -> dict[str, Any]:
    """Translate the configuration into SFTConfig's arguments, but for what `_plan` knows later."""
    import torch

    train = config.train
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(run.checkpoints / WRITING),
        "max_length": config.model.max_seq_length,
        "completion_only_loss": True,
        "packing": train.packing,
        "per_device_train_batch_size": share.batch_size,
        "gradient_accumulation_steps": share.gradient_accumulation,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": "linear",
        "weight_decay": train.weight_decay,
        "optim": choose_optimizer(train.optimizer, find_gpu()).name,
        "bf16": cuda and loaded.precision == "bf16",
        "fp16": cuda and loaded.precision == "fp16",
        "seed": train.seed,
        "data_seed": train.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # on by default in transformers: it hides a broken step
        "disable_tqdm": True,
        **tracking_arguments(config, run),
        "save_strategy": "steps",
        "save_steps": train.save_steps,
        "eval_strategy": "no",
        # On a GPU unsloth takes None for many workers, which die in small containers (unsloth issues 2693, 4490). On a
        # CPU it does not, and for 1 datasets starts a worker, which takes a second.
        "dataset_num_proc": 1 if cuda else None,
        "dataloader_pin_memory": cuda,
        # On by default in trl 1.15, whatever the model says; on a GPU unsloth's trainer asks the model.
        **({} if cuda else {"gradient_checkpointing": train.gradient_checkpointing}),
        **(_process_arguments(cuda) if share.processes > 1 else {}),
    }


def _plan(trainer: Any, config: RunConfig) -> None:
    """Set how many steps are taken, which packing decides: the trainer has packed the rows by now."""
    steps = planned_steps(config, len(trainer.train_dataset))
    trainer.args.max_steps = steps
    trainer.args.warmup_steps = min(config.train.warmup_steps, steps // 2)


def _plan_graphs(trainer: Any, config: RunConfig, rows: Contract, share: Share) -> None:
    """Write into the trainer's mode whether passes are recorded, and note how large they can be if they are."""
    gpu = find_gpu()
    choice = choose_graphs(
        capability=gpu.capability if gpu else None,
        unsloth_version=installed_version("unsloth"),
        attention=trainer.mode["attention"],
        checkpointing=config.train.gradient_checkpointing,
        dropout=config.adapter.lora_dropout,
        padding_free=trainer.mode["padding_free"] or trainer.mode["packing"],
        cards=len(own_cards()) if gpu else 1,
        wanted=config.train.cuda_graphs,
    )
    recorded = choice.name == "graphs"
    trainer.mode |= {"graphs": recorded, "graphs_reason": choice.reason}
    if recorded:
        lengths = [len(row.input_ids) for row in rows.tokenized]
        packed = share.batch_size * config.model.max_seq_length
        trainer.longest_row = max(lengths)
        passes = trainer.args.max_steps * share.gradient_accumulation
        trainer.graph_sizes = planned_sizes(lengths, share.batch_size, passes, packing=trainer.mode["packing"])
        trainer.longest_pass = packed if trainer.mode["packing"] else largest_micro_batch(lengths, share.batch_size)


def _process_arguments(cuda: bool) -> dict[str, Any]:
    """Return what SFTConfig must know when several processes train together."""
    return {
        "use_cpu": not cuda,  # accelerate 1.15 forms a group on CPUs only if told so
        "ddp_find_unused_parameters": False,  # each LoRA weight has a gradient in each pass
    }


def _check_mode(mode: Mapping[str, Any], config: RunConfig, *, on_gpu: bool) -> None:
    """Raise when rows are not packed although it was asked for. On a CPU they never are, and `mode` says so."""
    if on_gpu and config.train.packing and not mode["packing"]:
        raise StackError(
            "packing",
            "a trainer that packs, because packing is True",
            f"mode {dict(mode)}",
            "Use the locked versions (see python -m helpers doctor), or set packing = False.",
        )


def _mode(trainer: Any, loaded: LoadedModel) -> dict[str, Any]:
    """Return what the trainer really does, for the record."""
    return {
        "packing": bool(trainer.args.packing),
        "padding_free": bool(getattr(trainer, "padding_free", False) or trainer.args.padding_free),
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "precision": loaded.precision,
        **({"processes": place().count} if place().count > 1 else {}),
    }
