"""A pass through decoder layers, forward and backward, recorded as two CUDA graphs and replayed on other numbers.

A graph repeats the very kernels with the very addresses of its recording. So inputs are copied into buffers that stay
where they are, shorter batches are filled up behind the last row, and the gradients are copied out before the next
replay overwrites them. Recordings share one pool of memory: a pass must have gone backward before the next one begins.

What is filled up is ones: after RMS norm an ordinary token, whereas the norm's gradient at zero multiplies any rounding
by 1 / sqrt(eps), in each layer anew. Its own gradient is zero, so that it changes nothing.

Reference: PyTorch, "CUDA semantics", section CUDA Graphs; `torch.cuda.make_graphed_callables` does the same for fixed
shapes, but hands out the buffers themselves as gradients, which gradient accumulation would add to themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["GraphRecording"]

_LayerCall = Callable[[Any, dict[str, Any]], Any]
"""Runs all layers: (hidden states, named arguments of a layer) -> hidden states."""


@dataclass(frozen=True)
class Buffers:
    """What a recording reads: hidden states and where rows begin.

    Args:
        hidden: (1, tokens, hidden size).
        positions: Of the tokens within their rows, int32, (1, tokens).
        lengths: Of the rows, int32, (segments,); what is left of the tokens is the last segment that has any.
        borders: Their sums, int32, (segments + 1,), beginning with 0 and ending with the number of tokens.
    """

    hidden: Any
    positions: Any
    lengths: Any
    borders: Any

    @classmethod
    def like(cls, hidden: Any, tokens: int, segments: int) -> Buffers:
        """Make empty buffers for hidden states of this type, on their device."""
        import torch

        whole = {"dtype": torch.int32, "device": hidden.device}
        made = torch.zeros(1, tokens, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        return cls(
            made.requires_grad_(hidden.requires_grad),
            torch.zeros(1, tokens, **whole),
            torch.zeros(segments, **whole),
            torch.zeros(segments + 1, **whole),
        )

    def fits(self, hidden: Any) -> bool:
        """Say whether hidden states are of the type that was recorded, and get the gradient that they want."""
        mine = self.hidden
        same = (hidden.dtype, hidden.device) == (mine.dtype, mine.device)
        return same and (mine.requires_grad or not hidden.requires_grad)

    def load(self, hidden: Any, positions: Any, lengths: Any) -> None:
        """Copy a batch in, (1, used, hidden size), and fill the rest with ones; nothing waits for the card."""
        import torch

        used, rows, tokens = hidden.shape[1], lengths.numel(), self.hidden.shape[1]
        with torch.no_grad():
            self.hidden[:, :used].copy_(hidden)
            self.hidden[:, used:].fill_(1.0)
            self.positions[:, :used].copy_(positions)
            self.positions[:, used:].zero_()
            self.borders[1 : rows + 1] = lengths.to(self.borders.device, torch.int32, non_blocking=True).cumsum(0)
            self.borders[rows + 1 :] = tokens
            torch.sub(self.borders[1:], self.borders[:-1], out=self.lengths)


class Weights:
    """Parameters of layers, and whether they are still where a recording reads them."""

    def __init__(self, layers: Sequence[Any]) -> None:
        owners = [module._parameters for layer in layers for module in layer.modules()]
        found = [(owner, name, each) for owner in owners for name, each in owner.items() if each is not None]
        self._found = [(*each, each[2].data_ptr(), each[2].requires_grad) for each in found]
        everything = [each for layer in layers for each in layer.parameters() if each.requires_grad]
        self.trained = list({id(each): each for each in everything}.values())

    @contextmanager
    def stand_ins(self) -> Iterator[list[Any]]:
        """Let other parameters with the same memory stand in the trained ones' places inside the block.

        A pass leaves a node for each parameter's gradient, on the stream that it runs on; DistributedDataParallel keeps
        the nodes that it found. A capture cannot reach nodes of another stream
        (see `torch.cuda.make_graphed_callables`), and these parameters have none yet.

        Yields:
            Them, in the order of `trained`.
        """
        import torch

        made = {id(each): torch.nn.Parameter(each.detach()) for each in self.trained}
        places = [(owner, name, each) for owner, name, each, *_ in self._found if id(each) in made]
        try:
            for owner, name, each in places:
                owner[name] = made[id(each)]
            yield [made[id(each)] for each in self.trained]
        finally:
            for owner, name, each in places:
                owner[name] = each

    def unchanged(self) -> bool:
        """Say whether each is the same parameter at the same address, trained or frozen as before."""
        import torch

        with torch._C.DisableTorchFunctionSubclass():  # bitsandbytes' 4-bit weights see each access: 2 ms a pass
            return all(
                owner.get(name) is each and each.data_ptr() == address and each.requires_grad == trained
                for owner, name, each, address, trained in self._found
            )


class Recording:
    """A pass that can be repeated on other numbers. This one computes it anew: the rule for what a graph must do.

    Args:
        named: Named arguments of a layer, reading from the buffers.
        weights: The layers'; the trained ones get gradients.
    """

    passes: ClassVar[int] = 0
    """Passes forward of all recordings: each overwrites what the one before it left for its pass backward."""

    def __init__(self, run: _LayerCall, buffers: Buffers, named: dict[str, Any], weights: Weights) -> None:
        self.run, self.buffers, self.named, self.weights = run, buffers, named, weights
        self.trained = weights.trained
        self.output: Any = None
        self.kept: list[Any] = []
        self.grad_output: Any = None
        self.record()

    def __call__(self, hidden: Any, positions: Any, lengths: Any) -> Any:
        """Repeat the pass on a batch of one flattened row, (1, used, hidden size); the result is differentiable."""
        self.buffers.load(hidden, positions, lengths)
        return _replayed().apply(self, hidden, *self.trained)

    def give(self, grad: Any) -> None:
        """Copy in the gradient of a batch's output, (1, used, hidden size); what was filled up gets none."""
        used = grad.shape[1]
        self.grad_output[:, :used].copy_(grad)
        self.grad_output[:, used:].zero_()

    def inputs(self, trained: Sequence[Any]) -> list[Any]:
        """Return what gets a gradient: parameters, and the hidden states if they are to have one."""
        return [*trained, *([self.buffers.hidden] if self.buffers.hidden.requires_grad else [])]

    def record(self) -> None:
        """Prepare the pass; from now on `output` and `grad_output`, which the backward pass reads, stay in place."""
        import torch

        self.forward()
        self.grad_output = torch.zeros_like(self.output)

    def forward(self) -> None:
        """Compute `output` from the buffers."""
        import torch

        Recording.passes += 1
        with torch.enable_grad():
            self.output = self.run(self.buffers.hidden, self.named)

    def backward(self) -> list[Any]:
        """Return the gradients of the trained parameters, and of the hidden states if they want one."""
        import torch

        wanted = self.inputs(self.trained)
        return list(torch.autograd.grad(self.output, wanted, self.grad_output, allow_unused=True))


class GraphRecording(Recording):
    """A pass recorded as CUDA graphs.

    Args:
        run: Runs the layers; nothing in it may wait for the card.
        named: Named arguments of a layer.
        pool: Of memory, shared with other recordings that never run at the same time.
        shared: Tensors like the trained parameters, in which these recordings leave the gradients. With its own, each
            would keep 4 bytes a trained parameter.
    """

    def __init__(
        self,
        run: _LayerCall,
        buffers: Buffers,
        named: dict[str, Any],
        weights: Weights,
        *,
        pool: Any,
        shared: list[Any],
    ) -> None:
        self.pool, self.shared = pool, shared
        super().__init__(run, buffers, named, weights)

    def record(self) -> None:
        """Run once on a stream of its own, so that kernels are compiled and loaded, then record both directions."""
        with self.weights.stand_ins() as trained:
            self._capture(self.inputs(trained))

    def _capture(self, inputs: list[Any]) -> None:
        """Do so, with these getting the gradients."""
        import torch

        stream, now = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            self._once(inputs)
        now.wait_stream(stream)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _casts_not_kept(), torch.cuda.graph(self._forward, pool=self.pool, capture_error_mode="thread_local"):
            output = self.run(self.buffers.hidden, self.named)
        given = torch.empty_like(output)
        with (
            torch.autocast("cuda", enabled=False),  # as the trainer's backward
            torch.cuda.graph(self._backward, pool=self.pool, capture_error_mode="thread_local"),
        ):
            self.gradients = self._share(torch.autograd.grad(output, inputs, given, allow_unused=True))
        self.output, self.grad_output = output.detach(), given

    def _share(self, found: Sequence[Any]) -> list[Any]:
        """Copy the parameters' gradients to where all recordings have them; return where each gradient is now."""
        import torch

        present = [(kept, each) for kept, each in zip(self.shared, found, strict=False) if each is not None]
        torch._foreach_copy_([kept for kept, _ in present], [each for _, each in present])
        own = found[len(self.shared) :]  # that of the hidden states, whose size is this recording's
        return [None if each is None else kept for kept, each in zip(self.shared, found, strict=False)] + list(own)

    def _once(self, inputs: list[Any]) -> None:
        """Compute both directions without recording them."""
        import torch

        with _casts_not_kept():
            output = self.run(self.buffers.hidden, self.named)
        with torch.autocast("cuda", enabled=False):
            torch.autograd.grad(output, inputs, torch.zeros_like(output), allow_unused=True)

    def forward(self) -> None:
        """Replay the forward pass."""
        Recording.passes += 1
        self._forward.replay()

    def backward(self) -> list[Any]:
        """Replay the backward pass; the gradients are copies, made in a few launches."""
        import torch

        self._backward.replay()
        present = [each for each in self.gradients if each is not None]
        copies = iter(torch._foreach_mul(present, 1.0))
        return [None if each is None else next(copies) for each in self.gradients]


def activation_bytes(run: _LayerCall, buffers: Buffers, named: dict[str, Any]) -> int:
    """Return what a forward pass leaves in the card's memory for the backward pass, in bytes."""
    import torch

    before = torch.cuda.memory_allocated()
    with _casts_not_kept():
        output = run(buffers.hidden, named)
    taken = torch.cuda.memory_allocated() - before
    del output
    return taken


@contextmanager
def _casts_not_kept() -> Iterator[None]:
    """Keep autocast as it is, but without its store of cast weights: a graph must cast them at each replay."""
    import torch

    wanted = torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=wanted, cache_enabled=False):
        yield


@functools.cache
def _replayed() -> Any:
    """Return the function that autograd sees: replays forward, and backward when its turn comes."""
    import torch
    from torch.autograd.function import once_differentiable

    class Replayed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, recording: Recording, hidden: Any, *trained: Any) -> Any:
            ctx.recording, ctx.used = recording, hidden.shape[1]
            recording.forward()
            ctx.number = Recording.passes
            return recording.output[:, : hidden.shape[1]].detach().clone()

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Any) -> Any:
            recording = ctx.recording
            if ctx.number != Recording.passes:
                raise RuntimeError("a replayed pass must go backward once, before the next pass is replayed")
            Recording.passes += 1
            recording.give(grad)
            found = recording.backward()
            of_hidden = found.pop() if recording.buffers.hidden.requires_grad else None
            return None, None if of_hidden is None else of_hidden[:, : ctx.used], *found

    return Replayed
