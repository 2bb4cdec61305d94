"""Optimizer steps without the work that changes nothing.

A QLoRA step on a fast card is limited by the host. transformers 5.17 walks through all modules of the model several
times a step, about 2,500 of them with an adapter on 32 layers: to clear gradients, to find the parameters to clip, to
look among them for ones spread over several machines, and to count them. Only the adapter's have gradients, and which
they are does not change while training. Python's garbage collector, too, need not look again and again at what was
there before the first step. Recomputed layers need not compute what nothing reads (see
`helpers.model.patches.recompute`). The numbers are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from helpers.core.processes import place
from helpers.model.patches.collector import leave_alone
from helpers.model.patches.recompute import lean_recompute

__all__ = ["lean_steps"]


@contextmanager
def lean_steps(trainer: Any) -> Iterator[None]:
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
            stack.enter_context(lean_recompute(trainer.model))
            stack.enter_context(_replaced(trainer.model, "zero_grad", _clear(trainer.model, trained)))
            stack.enter_context(_replaced(trainer, "_clip_grad_norm", _clip(trainer, trained)))
            stack.enter_context(_replaced(trainer, "floating_point_ops", _count(trainer)))
            if place().count > 1:
                stack.enter_context(_replaced(trainer.accelerator, "prepare_model", _prepare(trainer, trained, stack)))
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
            stack.enter_context(_replaced(wrapped, "zero_grad", _clear(wrapped, trained)))
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
def _replaced(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Give one object its own method inside the block. Its class keeps the old one, which comes back."""
    kept = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)
        if kept is not None:
            setattr(owner, name, kept)
