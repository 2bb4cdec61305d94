"""Training passes replayed as CUDA graphs, where the host is what limits them.

A pass of 8 short rows through a 7B QLoRA model launches some 6,000 kernels. On an H100 the card works 0.10 s on them;
launching them one by one takes the host 0.30 s. Recorded once as a CUDA graph, they are launched together. Rows differ
in length, so batches are filled up, and a few sizes are recorded: those that this training's own rows repay
(`sizes_to_record`). Where passes do not follow from rows, as with packing, batches are filled up to a
multiple of 256 tokens, and a size is recorded when it has come twice and, by its share of the passes until then, will
come often enough again. What is not recorded runs as before; the numbers are those of the same kernels.

Found against unsloth 2026.10.9, whose decoder layers wait for the card nowhere once the rows' borders are known.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from helpers.core.choice import Choice, choose_unless
from helpers.core.config import RunConfig
from helpers.core.text import format_bytes
from helpers.model.patches import UNSLOTH_TESTED
from helpers.model.patches.graph_capture import Buffers, GraphRecording, Recording, Weights, activation_bytes
from helpers.runtime.hardware import Gpu, split_share
from helpers.runtime.lockfile import installed_version

__all__ = [
    "MOST_TOKENS",
    "GraphedLayers",
    "card_peak",
    "choose_graphs",
    "decoder_layers",
    "expected_passes",
    "recorded_size",
    "sizes_to_record",
]


_VARLEN = ("varlen (torch kernel)", "varlen (torch)", "flash-attn")
"""Kinds of attention that take the rows' borders as a tensor, and that passes were recorded with."""

_STEP = 256
"""Batches are filled up to a multiple of this many tokens: 7 % more on average, where a pass has 1,800."""

_RECORDING = 14
"""What recording a size costs, in times of what a replay saves: 1.05 s and 0.075 s (0.205 s become 0.13 s, H200)."""

_FILLING = 0.25
"""What _STEP tokens more cost in a replay, as a share of what it saves: 0.018 s of 0.075 s (H200)."""

_SEGMENTS = 16
"""Rows of a batch are filled up with empty ones to a multiple of this."""

_SHUFFLED_PASSES = 2000
"""Passes that are drawn to find how often each size comes."""

_RUNS = 16
"""Rows of the even batch that Unsloth is told of while a size is recorded; sizes are multiples of it."""


def choose_graphs(
    config: RunConfig,
    gpu: Gpu | None,
    *,
    attention: str,
    padding_free: bool = True,
    unsloth_version: str | None = None,
) -> Choice:
    """Decide whether training passes are to be recorded as CUDA graphs.

    Args:
        config: The run, with the layout chosen.
        attention: The kind in use; see `helpers.model.patches.attention.choose_attention`.
        padding_free: Whether a batch is one row of rows.
        unsloth_version: None asks what is installed.

    Returns:
        "graphs" or "none", with the reason.
    """
    unsloth_version = installed_version("unsloth") if unsloth_version is None else unsloth_version
    if gpu is None:
        return Choice("none", "there is no GPU")
    cards = gpu.count if split_share() else 1
    reasons = (
        (not config.train.cuda_graphs, "cuda_graphs is off"),
        (gpu.capability < (8, 0), "below compute capability 8.0 the card is slower than the host"),
        (unsloth_version != UNSLOTH_TESTED, f"tried with unsloth {UNSLOTH_TESTED} only, not with {unsloth_version}"),
        (attention not in _VARLEN, f"only with flash attention are passes recorded, not with {attention}"),
        (not padding_free, "batches are padded"),
        (cards > 1, f"the layers lie on {cards} cards"),
        (
            config.train.gradient_checkpointing,
            "layers are recomputed, and what they need moves between the card and the host",
        ),
        (config.adapter.lora_dropout > 0, "dropout draws other numbers in each pass"),
    )
    why = "in passes over few tokens the card waits for the host; recorded, they are launched at once"
    return choose_unless(reasons, Choice("graphs", why), "none")


def expected_passes(lengths: Sequence[int], batch_size: int, passes: int) -> dict[int, float]:
    """Return how many passes of each size a training will have, by shuffling its rows.

    Args:
        lengths: Of the rows, in tokens.
        batch_size: Rows of a pass.
        passes: How many there will be.

    Returns:
        Passes by tokens, rounded up to a multiple of _STEP.

    Example:
        >>> expected_passes([100] * 64, 8, 40)
        {1024: 40.0}
    """
    draw, order, found = random.Random(0), list(lengths), Counter[int]()  # noqa: S311 - no secret depends on it
    while found.total() < _SHUFFLED_PASSES:
        draw.shuffle(order)
        whole = range(0, max(len(order) - batch_size, 0) + 1, batch_size)
        found.update(recorded_size(sum(order[i : i + batch_size]), batch_size)[0] for i in whole)
    return {size: count * passes / found.total() for size, count in sorted(found.items())}


def sizes_to_record(expected: Mapping[int, float]) -> dict[int, int]:
    """Choose the sizes whose recording the training's own passes repay, smaller passes being filled up to them.

    Each pass that is replayed saves 1, less _FILLING for each _STEP that it is filled up; each size that is recorded
    costs _RECORDING. The best choice is found by going through the sizes in rising order.

    Args:
        expected: Passes by tokens, from `expected_passes`.

    Returns:
        For each size that is to be replayed, the recorded one; empty where nothing repays it.

    Example:
        >>> sizes_to_record({1536: 20, 1792: 20, 2048: 20, 4096: 2})
        {1536: 2048, 1792: 2048, 2048: 2048}
    """
    sizes = sorted(size for size in expected if size <= MOST_TOKENS)
    best: list[tuple[float, dict[int, int]]] = [(0.0, {})]
    for end, top in enumerate(sizes, 1):
        options = [best[end - 1]]
        saved, filled = -float(_RECORDING), dict[int, int]()
        for start in range(end - 1, -1, -1):
            each = expected[sizes[start]] * (1 - _FILLING * (top - sizes[start]) / _STEP)
            if each > 0:
                saved, filled = saved + each, {sizes[start]: top, **filled}
            options.append((best[start][0] + saved, {**best[start][1], **filled}))
        best.append(max(options, key=lambda option: option[0]))
    return dict(sorted(best[-1][1].items()))


def recorded_size(tokens: int, rows: int) -> tuple[int, int]:
    """Return the size that a batch is filled up to.

    Returns:
        Tokens, and segments: the rows, one for what is filled up, and empty ones.

    Example:
        >>> recorded_size(1700, 8)
        (1792, 16)
    """
    return -(-tokens // _STEP) * _STEP, -(-(rows + 1) // _SEGMENTS) * _SEGMENTS


def host_lengths(tokens: int, segments: int) -> tuple[int, ...]:
    """Return lengths of rows that stand for any batch of a size: short ones, not all alike.

    Args:
        tokens: Of all rows together, a multiple of 256.
        segments: How many rows, a multiple of 16; beyond that many they are empty.

    Example:
        >>> host_lengths(1792, 16)[:4]
        (113, 111, 112, 112)
    """
    each = tokens // _RUNS
    return (each + 1, each - 1, *[each] * (_RUNS - 2), *[0] * (segments - _RUNS))


MOST_TOKENS = 4096
"""Larger passes keep the card busy by themselves; recorded, four packed sequences of 2048 tokens took 94 GiB."""

_MEMORY_MARGIN = 1.1
"""Free memory that recording asks for, in times of what the graphs and the largest pass without one keep."""

OUTPUT_SHIFT, GRADIENT_SHIFT = 0.01, 0.05
"""How far a replay may be from the same pass without a graph, as shares of the plain pass's length.

Attention's backward kernel adds in changing order: two plain passes differ by 0.01 (bf16, H200)."""

_KNOWN = frozenset(
    {
        "attention_mask",
        "causal_mask",
        "n_items",
        "num_items_in_batch",
        "output_attentions",
        "packed_seq_lengths",
        "padding_mask",
        "past_key_value",
        "position_embeddings",
        "position_ids",
        "use_cache",
    }
)
"""Named arguments of a layer; a pass with others, but for plain values, is not recorded."""

_PLAIN = (type(None), bool, int, float, str)
"""Types of arguments that no pass has to copy into a recording."""

_ROPE_TABLES = ("multi_gpu_cos_cached", "multi_gpu_sin_cached")
"""Attributes in which Unsloth's rotary embeddings hold their tables, one for each card."""


def decoder_layers(model: Any) -> list[Any]:
    """Return the decoder layers of a causal language model, with or without an adapter.

    Args:
        model: The transformers model, or PEFT's wrapper.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(causal.model.layers)


def card_peak(graphs: GraphedLayers | None, card: int | None = None) -> int:
    """Return the highest memory in use on a card since its statistics were reset, in bytes.

    What graphs keep is reserved and not allocated, so that with them all that is reserved counts.

    Args:
        graphs: What trained there; None without recordings.
        card: Its number; by default the current one's.
    """
    import torch

    read = torch.cuda.max_memory_reserved if graphs and graphs.replayed else torch.cuda.max_memory_allocated
    return read(card)


class GraphedLayers:
    """Decoder layers whose training passes are recorded, where that pays, and replayed from then on.

    Args:
        layers: In order, all on one device.
        largest: Largest pass, in tokens; it decides how much memory must be free.
        left: Returns how many passes are still to come, this one included; by default no end is known.
        sizes: Which sizes are recorded, and to which others are filled up, from `sizes_to_record`; None finds out on
            the way.
        report: Gets a line when recording is given up.

    Attributes:
        unpack: Called with the bytes that recordings leave free. It unpacks the frozen weights if these are enough,
            else drops what it kept, and returns the bytes that they take (`helpers.model.patches.unpacked`). By
            default it does nothing.
    """

    def __init__(
        self,
        layers: list[Any],
        longest: int,
        *,
        largest: int = MOST_TOKENS,
        left: Callable[[], float] = lambda: math.inf,
        sizes: Mapping[int, int] | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.layers, self.largest, self.left, self.report = layers, largest, left, report
        self.unpack: Callable[[int], int] = lambda free: 0
        filler = _STEP + max((top - size for size, top in (sizes or {}).items()), default=0)
        self.longest = max(longest, filler)  # what fills a batch up is a row, too
        self.wanted = sizes
        self.forwards = [layer.forward for layer in layers]
        self.weights: Weights | None = None
        self.recorded: dict[tuple[int, int], Recording] = {}
        self.seen: Counter[tuple[int, int]] = Counter()
        self.replayed = self.sizes = self.unpacked = 0
        self.seconds = 0.0
        self.given_up: str | None = None
        self._pool: Any = None
        self._gradients: list[Any] = []
        self._done = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the layers' forward methods go through here inside the block."""
        kept = [vars(layer).get("forward") for layer in self.layers]
        for index, layer in enumerate(self.layers):
            layer.forward = self._first if index == 0 else self._later(self.forwards[index])
        try:
            yield
        finally:
            for layer, before in zip(self.layers, kept, strict=True):
                del layer.forward
                if before is not None:
                    layer.forward = before
            self._forget()

    def describe(self) -> str:
        """Say what was recorded and replayed, in a sentence."""
        if self.given_up:
            return f"CUDA graphs: given up, {self.given_up}."
        passes = sum(self.seen.values())
        if not self.sizes:
            rare = f"in {passes} passes no size was expected to recur {_RECORDING} times"
            unpaid = f"{passes} passes of these lengths do not repay it"
            return f"CUDA graphs: none recorded; {rare if self.wanted is None else unpaid}."
        unpacked = f" Frozen weights were unpacked once, into {format_bytes(self.unpacked)}." if self.unpacked else ""
        return (
            f"CUDA graphs: {self.replayed} of {passes} passes replayed, "
            f"{self.sizes} sizes recorded and compared with the plain pass in {self.seconds:.1f} s.{unpacked}"
        )

    def _first(self, hidden: Any, *rest: Any, **named: Any) -> Any:
        """Stand for the first layer's forward: all layers at once, if they are recorded."""
        self._done = False
        if not rest and self._recordable(hidden, named):
            output = self._replay(hidden, named)
            if output is not None:
                self._done = True
                return (output,)
        return self.forwards[0](hidden, *rest, **named)

    def _later(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Stand for a later layer's forward, which has nothing to do after a replay."""

        def through(hidden: Any, *rest: Any, **named: Any) -> Any:
            return (hidden,) if self._done else forward(hidden, *rest, **named)

        return through

    def _recordable(self, hidden: Any, named: dict[str, Any]) -> bool:
        """Say whether this is a plain training pass over rows without padding."""
        import torch

        if self.given_up or not torch.is_grad_enabled() or not self.layers[0].training:
            return False
        absent = ("attention_mask", "causal_mask", "output_attentions", "past_key_value", "use_cache")
        if any(not (named.get(name) is None or named[name] is False) for name in absent):
            return False
        if any(not (name in _KNOWN or isinstance(value, _PLAIN)) for name, value in named.items()):
            return False
        if any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers):
            return False
        if named.get("packed_seq_lengths") is None or named.get("position_ids") is None:
            return False
        return hidden.shape[0] == 1 and hidden.shape[1] <= MOST_TOKENS

    def _replay(self, hidden: Any, named: dict[str, Any]) -> Any:
        """Return the layers' output from a recording; None if there is none yet."""
        lengths, positions = named["packed_seq_lengths"], named["position_ids"]
        size = self._size(hidden.shape[1], lengths.numel())
        self.seen[size] += 1
        if self.weights is None or not self.weights.unchanged():
            self._forget()
            self.weights = Weights(self.layers)
        if size not in self.recorded and not (self._pays(size) and self._try_to_record(size, hidden, named)):
            return None
        if not self.recorded[size].buffers.fits(hidden):
            return None
        self.replayed += 1
        return self.recorded[size](hidden, positions, lengths)

    def _size(self, tokens: int, rows: int) -> tuple[int, int]:
        """Return the size that a batch is filled up to."""
        filled, segments = recorded_size(tokens, rows)
        return (self.wanted or {}).get(filled, filled), segments

    def _pays(self, size: tuple[int, int]) -> bool:
        """Say whether a size is to be recorded.

        Where that was decided before, from the second pass on: in the first, kernels are compiled and tables made.
        Elsewhere its share of the passes so far is taken for its share of those to come.
        """
        if self.wanted is not None:
            return size[0] in self.wanted.values() and self.seen.total() > 1 and self.left() >= _RECORDING
        share = self.seen[size] / sum(self.seen.values())
        return self.seen[size] > 1 and share * self.left() >= _RECORDING

    def _try_to_record(self, size: tuple[int, int], hidden: Any, named: dict[str, Any]) -> bool:
        """Record a size; whatever goes wrong, training goes on without."""
        import torch

        started = time.perf_counter()
        try:
            self._record(size, hidden, named)
        except torch.OutOfMemoryError:
            self._give_up("the card's memory is full")
        except _UnrecordableError as error:
            self._give_up(str(error))
        except RuntimeError as error:  # what a capture cannot hold is told in a dozen ways
            self._give_up(f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}")
        self.seconds += time.perf_counter() - started
        return size in self.recorded

    def _record(self, size: tuple[int, int], hidden: Any, named: dict[str, Any]) -> None:
        """Record a size, after the first look at memory, and see whether a replay is right."""
        buffers = Buffers.like(hidden, *size)
        buffers.load(hidden.detach(), named["position_ids"], named["packed_seq_lengths"])
        named = {**named, "position_ids": buffers.positions, "packed_seq_lengths": buffers.lengths}
        self._announce(buffers)
        if not self.recorded:
            self._check_room(buffers, named)
        recording = self._new_recording(buffers, named)
        recording.kept = _rope_tables(self.layers)
        self._check_replay(recording, named, used=hidden.shape[1])
        self.recorded[size] = recording
        self.sizes += 1

    def _new_recording(self, buffers: Buffers, named: dict[str, Any]) -> Recording:
        """Record both directions."""
        import torch

        weights = self.weights or Weights(self.layers)

        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._gradients = [torch.empty_like(each) for each in weights.trained]
        return GraphRecording(self._run, buffers, named, weights, pool=self._pool, shared=self._gradients)

    def _run(self, hidden: Any, named: dict[str, Any]) -> Any:
        """Run all layers as they are."""
        for forward in self.forwards:
            hidden = forward(hidden, **named)[0]
        return hidden

    def _announce(self, buffers: Buffers) -> None:
        """Tell Unsloth the rows' borders, which it would otherwise ask the card for.

        Attention's kernels leave what is beyond the longest row as it was in memory: NaN at times. Of the lengths on
        the host Unsloth reads the sum, so that nothing is left to be filled up, and, from torch 2.12 on, whether they
        differ: only then does it call the kernel that takes borders (`_torch_varlen_beats_segments`).
        """
        from unsloth.utils import packing

        tokens, segments = buffers.hidden.shape[1], buffers.lengths.numel()
        found = (buffers.lengths, buffers.borders, min(self.longest, tokens))
        device = buffers.lengths.device
        packing._PACKED_INFO_CACHE[device] = {"seq_lengths": buffers.lengths, "result": found, "inference": False}
        packing._PACKED_HOST_LENGTHS_CACHE[device] = (buffers.lengths, buffers.borders, host_lengths(tokens, segments))

    def _check_room(self, buffers: Buffers, named: dict[str, Any]) -> None:
        """Raise unless the activations of a recorded pass fit beside those of the largest one; offer what is left."""
        import torch

        per_token = activation_bytes(self._run, buffers, named) / buffers.hidden.shape[1]
        gc.collect()
        torch.cuda.empty_cache()
        tokens = min(self.largest, MOST_TOKENS) + self.largest
        needed, free = round(_MEMORY_MARGIN * per_token * tokens), torch.cuda.mem_get_info()[0]
        if needed > free:
            raise _UnrecordableError(f"{format_bytes(needed)} of free memory is needed, there is {format_bytes(free)}")
        self.unpacked = self.unpack(free - needed)

    def _check_replay(self, recording: Recording, named: dict[str, Any], *, used: int) -> None:
        """Raise unless a replay gives the output and the gradients that the layers give by themselves.

        They get the lengths as a tensor of its own, of which Unsloth was told nothing: it asks the card for them.
        """
        import torch

        recording.forward()
        replayed = recording.output.detach().clone()
        generator = torch.Generator(replayed.device).manual_seed(0)
        recording.give(torch.empty_like(replayed[:, :used]).normal_(std=1e-3, generator=generator))
        given = recording.grad_output.clone()  # a backward pass may overwrite what it is given
        found = recording.backward()
        hidden = recording.buffers.hidden.detach().requires_grad_(recording.buffers.hidden.requires_grad)
        plain = self._run(hidden, {**named, "packed_seq_lengths": recording.buffers.lengths.clone()})
        wanted = [*recording.trained, *([hidden] if hidden.requires_grad else [])]
        gradients = torch.autograd.grad(plain, wanted, given, allow_unused=True)
        output, gradient = _shift([replayed], [plain.detach()]), _shift(found, gradients)
        if not (output <= OUTPUT_SHIFT and gradient <= GRADIENT_SHIFT):
            raise _UnrecordableError(f"replays differ: output by {output:.2g}, gradients by {gradient:.2g}")

    def _give_up(self, why: str) -> None:
        """Drop what is recorded, and record nothing from now on."""
        self.given_up = why
        self._forget()
        self.unpacked = self.unpack(0)
        self.report(self.describe())

    def _forget(self) -> None:
        """Drop all recordings."""
        self.recorded.clear()
        self._pool, self._gradients = None, []


def _rope_tables(layers: Sequence[Any]) -> list[Any]:
    """Return the tables that layers read positions from: a longer pass than ever makes Unsloth replace them."""
    owners = [vars(module) for layer in layers for module in layer.modules()]
    return [table for owner in owners for name in _ROPE_TABLES for table in owner.get(name, ()) if table is not None]


def _shift(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Return how far tensors are from others, as a share of the others' length; infinite if one of them is missing."""
    import torch

    if any((a is None) != (b is None) for a, b in zip(found, wanted, strict=True)):
        return float("inf")
    pairs = [(a.float(), b.float()) for a, b in zip(found, wanted, strict=True) if b is not None]
    apart = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return (apart / torch.stack([b.norm() for _, b in pairs]).norm()).item()


class _UnrecordableError(RuntimeError):
    """Why a pass is not recorded."""
