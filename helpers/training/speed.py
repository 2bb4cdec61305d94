"""What a trainer really does, and a context that makes it faster and changes nothing but roundings."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from helpers.core.choice import Choice
from helpers.core.config import RunConfig
from helpers.core.distributed import place, same_everywhere, share_out
from helpers.core.errors import StackError
from helpers.data.contract import check_trainer_dataset
from helpers.memory.plan import largest_micro_batch
from helpers.model.patches import replaced_method
from helpers.model.patches.attention import enable_varlen, loaded_attention
from helpers.model.patches.cuda_graphs import (
    GraphedLayers,
    card_peak,
    choose_graphs,
    decoder_layers,
    expected_passes,
    sizes_to_record,
)
from helpers.model.patches.fused_adapters import choose_adapters, fused_adapters
from helpers.model.patches.optimizer_step import quick_steps
from helpers.model.patches.padding import can_drop_padding, without_padding
from helpers.model.patches.unpacked import weights_unpacked_once
from helpers.runtime.hardware import find_gpu, own_cards
from helpers.training.checkpoints import last_complete
from helpers.training.failures import explained
from helpers.training.machine import run_precision
from helpers.training.sampler import spread_batches
from helpers.training.tracking import track_configuration

if TYPE_CHECKING:
    from datasets import Dataset

    from helpers.training.callbacks import Checkpoints, TrainingRecord

__all__ = ["check_trainer", "count_steps", "fast_training", "training_mode"]


def check_trainer(trainer: Any, config: RunConfig, checked: Dataset) -> dict[str, Any]:
    """Check what the trainer made of the rows, and return how it will train.

    Lines a step come from the callbacks, so that the trainer's own, which mislead after a resume, are turned off. A
    tracker gets the parameters.

    Raises:
        ContractError: The trainer would feed the model other tokens or labels than were checked.
        StackError: On a GPU, the trainer does not pack although it was asked to; or the GPUs of several processes are
            of kinds that train in other ways.
    """
    from transformers import PrinterCallback

    mode = training_mode(trainer, config)
    same_everywhere("kind of training", {name: mode[name] for name in ("optimizer", "precision", "attention")})
    if find_gpu() is not None and config.train.packing and not mode["packing"]:
        raise StackError(
            "packing",
            "a trainer that packs, because packing is True",
            f"mode {mode}",
            "Use the locked versions (see python -m helpers doctor), or set packing = False.",
        )
    check_trainer_dataset(trainer.train_dataset, checked)
    trainer.remove_callback(PrinterCallback)
    track_configuration(trainer, config)
    return mode


def count_steps(trainer: Any) -> int:
    """Return the number of optimizer steps that training will take; packed sequences count as rows."""
    args = trainer.args
    passes = math.ceil(len(trainer.train_dataset) / (args.per_device_train_batch_size * place().count))
    per_epoch = max(math.ceil(passes / args.gradient_accumulation_steps), 1)
    return args.max_steps if args.max_steps > 0 else math.ceil(per_epoch * args.num_train_epochs)


def training_mode(trainer: Any, config: RunConfig) -> dict[str, Any]:
    """Return what the trainer really does, for the record: by name, in places with the reason."""
    gpu = find_gpu()
    packing = bool(trainer.args.packing)
    collates = getattr(getattr(trainer, "data_collator", None), "padding_free", False) or can_drop_padding(trainer)
    padding_free = bool(getattr(trainer, "padding_free", False) or trainer.args.padding_free or collates)
    attention = Choice("sdpa", "there is no GPU")
    if gpu is not None:
        attention = loaded_attention(gpu.capability, wanted=config.train.varlen_attention)
    graphs = choose_graphs(config, gpu, attention=attention.name, padding_free=padding_free or packing)
    adapters = choose_adapters(config, gpu)
    return {
        "packing": packing,
        "padding_free": padding_free,
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "precision": run_precision(config),
        **({"processes": place().count} if place().count > 1 else {}),
        "attention": attention.name,
        "attention_reason": attention.reason,
        "graphs": graphs.name == "graphs",
        "graphs_reason": graphs.reason,
        "adapters": adapters.name,
        "adapters_reason": adapters.reason,
    }


@contextmanager
def fast_training(trainer: Any, checkpoints: Checkpoints) -> Iterator[None]:
    """Call `trainer.train()` inside: faster where the machine allows it, equal up to rounding, errors explained.

    Steps lose the work that changes nothing; attention takes all rows of a batch in one call, and adapter products
    that read the same are taken together; short passes are recorded as CUDA graphs, and where memory is ample frozen
    weights are then unpacked only once. Several processes share each step's rows evenly. A training that was finished
    before is restored and takes no further step. Afterwards the trainer is as it was.

    Args:
        trainer: TRL's, checked.

    Raises:
        RunError: The disk or the memory is full, a checkpoint cannot be read, or another process is gone.
    """
    config, record = checkpoints.config, checkpoints.record

    def last_step() -> int | None:
        found = last_complete(checkpoints.run).found
        return found.step if found else None

    with explained(checkpoints.run, config, last_step), ExitStack() as stack:
        stack.callback(checkpoints.close)
        enable_varlen(wanted=config.train.varlen_attention)
        stack.enter_context(replaced_method(trainer, "training_step", _counting(trainer.training_step, record.counter)))
        stack.enter_context(replaced_method(trainer, "_inner_training_loop", _restoring(trainer, record)))
        if place().count > 1:
            spread_batches(trainer, share_out(config.train, place().count))
            _seed_dropout(config.train.seed)
        stack.enter_context(quick_steps(trainer))
        stack.enter_context(without_padding(trainer))
        mode = training_mode(trainer, config)
        fused = mode["adapters"] == "fused"
        taken = stack.enter_context(fused_adapters(trainer.model)) if fused else set[str]()
        if mode["graphs"]:
            record.graphs = _graphed_layers(trainer, config, record.lengths)
            record.graphs.unpack = stack.enter_context(weights_unpacked_once(trainer.model))
            stack.enter_context(record.graphs.installed())
        yield
        if fused and not taken and record.counter.passed:
            record.result.mode |= {
                "adapters": "separate",
                "adapters_reason": "in no pass were the layers in a form for it, as where Unsloth compiles them",
            }


def _graphed_layers(trainer: Any, config: RunConfig, lengths: Sequence[int]) -> GraphedLayers:
    """Return the model's layers, ready to be recorded."""
    args = trainer.args
    batch = args.per_device_train_batch_size
    longest_pass = batch * config.model.max_seq_length if args.packing else largest_micro_batch(tuple(lengths), batch)

    def passes_left() -> int:
        return (trainer.state.max_steps - trainer.state.global_step) * args.gradient_accumulation_steps

    passes = count_steps(trainer) * args.gradient_accumulation_steps
    sizes = None if args.packing else sizes_to_record(expected_passes(lengths, batch, passes))
    layers = decoder_layers(trainer.model)
    return GraphedLayers(layers, max(lengths), largest=longest_pass, left=passes_left, sizes=sizes)


def _counting(step: Any, counter: Any) -> Any:
    """Return a `training_step` that counts its batch first."""

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
        counter.count(inputs)
        return step(model, inputs, *args, **named)

    return training_step


def _restoring(trainer: Any, record: TrainingRecord) -> Any:
    """Return a training loop that takes no step where none is left, or where `early_stopping` ended the training.

    transformers 5.17 takes one more in the middle of an epoch: it looks whether training should stop after a step.
    """
    loop = trainer._inner_training_loop

    def inner_training_loop(*args: Any, **named: Any) -> Any:
        from transformers.trainer_callback import TrainerState
        from transformers.trainer_utils import TrainOutput

        folder = named.get("resume_from_checkpoint")
        if folder is None:
            return loop(*args, **named)
        state = TrainerState.load_from_json(f"{folder}/trainer_state.json")
        if state.global_step < count_steps(trainer) and record.result.stopped_at is None:
            return loop(*args, **named)
        trainer.state = state
        record.put_back_best(trainer.model)
        return TrainOutput(state.global_step, 0.0, {})

    return inner_training_loop


def _seed_dropout(seed: int) -> None:
    """Let each of several processes draw its own random numbers; a checkpoint's state, if any, is loaded later."""
    import torch

    torch.manual_seed(seed + place().rank)


def reset_peak_memory() -> None:
    """Start measuring the cards' peak memory anew."""
    import torch

    if torch.cuda.is_available():
        for card in own_cards():
            torch.cuda.reset_peak_memory_stats(card)


def peak_memory(graphs: GraphedLayers | None) -> int:
    """Return the highest memory in use, in bytes: on the fullest card, or of this process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return max(card_peak(graphs, card) for card in own_cards())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def synchronize() -> None:
    """Wait for the card, so that times are true."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
