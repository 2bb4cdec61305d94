"""Optimizer steps without the work that changes nothing; the numbers are the same, bit for bit.

A QLoRA step on a fast card is limited by the host. transformers 5.17 walks through all modules of the model several
times a step, about 2,500 of them with an adapter on 32 layers: to clear gradients, to find the parameters to clip, to
look among them for ones spread over several machines, and to count them. Only the adapter's have gradients, and which
they are does not change while training. Python's garbage collector, too, need not look again and again at what was
there before the first step.

With checkpointing a layer is run again when the backward pass reaches it, to have what its gradients need. The hidden
states that it hands to the next layer are not among that, and in a Llama-like layer the down projection, 27 % of
Mistral-7B's products, makes nothing else. Where autograd sees single operations, PyTorch stops such a pass early (see
`torch.utils.checkpoint.set_checkpoint_early_stop`); Unsloth runs the whole MLP as one operation and so multiplies all
the same. Here zeros take the product's place. Found against unsloth 2026.10.9: `LoRA_MLP` asks
`unsloth.kernels.fast_lora.matmul_lora` for each product, and `unsloth_zoo.gradient_checkpointing` tells when a layer is
recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from helpers.core.distributed import place
from helpers.model.patches import UNSLOTH_TESTED, replaced_method
from helpers.model.patches.imports import leave_alone

__all__ = ["quick_steps", "skip_last_products"]

_MODEL_TYPES = ("llama", "mistral")
"""Models whose layers end with "residual + MLP". Others, such as Gemma 2, normalize what the MLP gives, and need it."""


@contextmanager
def quick_steps(trainer: Any) -> Iterator[None]:
    """Train inside the block with less work; afterwards everything is as before.

    With parameters spread over several machines nothing is changed but the garbage collector.

    Args:
        trainer: A transformers trainer, ready to train.

    Yields:
        Nothing: call `trainer.train()` inside.
    """
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(leave_alone())
        if trained and not any(hasattr(each, "device_mesh") for each in trained):
            stack.enter_context(skip_last_products(trainer.model))
            stack.enter_context(replaced_method(trainer.model, "zero_grad", _clear(trainer.model, trained)))
            stack.enter_context(replaced_method(trainer, "_clip_grad_norm", _clip(trainer, trained)))
            stack.enter_context(replaced_method(trainer, "floating_point_ops", _count(trainer)))
            if place().count > 1:
                stack.enter_context(
                    replaced_method(trainer.accelerator, "prepare_model", _prepare(trainer, trained, stack))
                )
        yield


def _clear(model: Any, trained: list[Any]) -> Callable[..., None]:
    """Return a `zero_grad` that knows where gradients are."""
    everywhere = model.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        if not set_to_none:
            everywhere(set_to_none=False)
            return
        for parameter in trained:
            parameter.grad = None

    return zero_grad


def _prepare(trainer: Any, trained: list[Any], stack: ExitStack) -> Callable[..., Any]:
    """Return a `prepare_model` whose DistributedDataParallel, which has a `zero_grad` of its own, knows it too."""
    prepare = trainer.accelerator.prepare_model

    def prepare_model(model: Any, **named: Any) -> Any:
        wrapped = prepare(model, **named)
        if wrapped is not model:
            stack.enter_context(replaced_method(wrapped, "zero_grad", _clear(wrapped, trained)))
        return wrapped

    return prepare_model


def _clip(trainer: Any, trained: list[Any]) -> Callable[[Any], Any]:
    """Return a `_clip_grad_norm` that knows where gradients are."""

    def clip(model: Any) -> Any:
        return trainer.accelerator.clip_grad_norm_(trained, trainer.args.max_grad_norm)

    return clip


def _count(trainer: Any) -> Callable[[dict[str, Any]], int]:
    """Return a `floating_point_ops` that counts parameters once."""
    known: list[int] = []

    def floating_point_ops(inputs: dict[str, Any]) -> int:
        if not known:
            known.append(6 * trainer.model.num_parameters(exclude_embeddings=True))
        return inputs["input_ids"].numel() * known[0]

    return floating_point_ops


@contextmanager
def skip_last_products(model: Any, kernels: Any = None, recomputing: Callable[[], bool] | None = None) -> Iterator[int]:
    """Leave out the last product of recomputed layers inside the block; afterwards everything is as before.

    Args:
        model: With an adapter or without.
        kernels: The module with `matmul_lora`; by default Unsloth's, if its version is the tested one.
        recomputing: Says whether a layer is being recomputed; by default Unsloth's.

    Yields:
        The number of layers concerned; 0 where nothing is changed.
    """
    last = _last_products(model)
    if kernels is None and last:
        kernels, recomputing = _unsloth()
    if kernels is None or recomputing is None or not last:
        yield 0
        return
    with replaced_method(kernels, "matmul_lora", _leaving_out(kernels.matmul_lora, last, recomputing)):
        yield len(last)


def _last_products(model: Any) -> dict[int, Any]:
    """Return the linear layer behind each down projection, by the identity of its weight."""
    if getattr(getattr(model, "config", None), "model_type", None) not in _MODEL_TYPES:
        return {}
    projections = (getattr(getattr(module, "mlp", None), "down_proj", None) for module in model.modules())
    linear = (getattr(each, "base_layer", each) for each in projections if each is not None)
    return {id(each.weight): each for each in linear}


def _unsloth() -> tuple[Any, Any]:
    """Return Unsloth's kernels, and what tells a recomputed pass; None for another version or without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    import unsloth

    if unsloth.__version__ != UNSLOTH_TESTED:
        return None, None
    from unsloth.kernels import fast_lora
    from unsloth_zoo.gradient_checkpointing import in_gradient_checkpoint_recompute

    return fast_lora, in_gradient_checkpoint_recompute


def _leaving_out(
    original: Callable[..., Any], last: dict[int, Any], recomputing: Callable[[], bool]
) -> Callable[..., Any]:
    """Return a `matmul_lora` that gives zeros where nothing reads the product. A compiled layer is left as it is."""
    import torch

    def matmul_lora(x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling() or id(weight) not in last or not recomputing():
            return original(x, weight, *rest, **named)
        return x.new_zeros(*x.shape[:-1], last[id(weight)].out_features)

    return matmul_lora
