"""How much GPU memory a QLoRA run needs at its peak, computed without a GPU.

Each part follows from the model's shape and from what Unsloth keeps, read in unsloth 2026.10.9 and unsloth-zoo; the
method of each part has its formula. The few numbers that no source states were set by measured peaks
(`torch.cuda.max_memory_allocated`, Mistral-7B in NF4 on an H100); `scripts/measure_memory.py` measures again.

Not counted: the CUDA context (0.3 to 0.6 GiB, not torch's to count) and what the allocator cannot use for being in
pieces. `helpers.memory.plan` leaves 8 % of the free memory for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.core.errors import ConfigError
from helpers.memory.shapes import ModelShape, whole

__all__ = ["ATTENTION", "GIB", "Prediction", "predict_peak"]

GIB = 2**30

OPTIMIZERS = {"adamw_8bit": 2 + 2 * 4 / 256, "adamw_torch": 8.0, "adamw_torch_fused": 8.0}
"""State of each optimizer, in bytes a trained parameter. The 8-bit one has two moments of one byte and a float32 scale
for each block of 256 values (bitsandbytes, Dettmers et al. 2021, arXiv 2110.02861)."""

ATTENTION = {
    "varlen": "all rows of a batch in one call (flash-attn, torch's varlen_attn, helpers.model.patches.attention)",
    "rows": "a call for each row, on compute capability 8.0 or more",
    "expanded": "keys and values repeated for each query head: older cards, in one call or a call for each row",
}
"""The ways in which Unsloth's padding-free batches go through attention (unsloth/utils/attention_dispatch.py)."""

_SMALLEST_8BIT = 4096
"""Tensors with fewer values keep float32 moments (bitsandbytes, `min_8bit_size`)."""

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight in NF4: half a byte, one byte of scale for 64 values, and, since the scales are quantized too, one
float32 for 256 scales (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""

LOSS_BYTES = 2 * GIB
"""Logits of one chunk of the loss, in bytes, at most (fused_linear.py in unsloth_zoo, _CHUNK_GB)."""

_LOSS_ROWS = (512, 4096)
"""Rows of one chunk of the loss, at least and at most (the same file, _MIN_LOGITS and _MAX_ROWS)."""

_OFFLOAD_BYTES = 2 * 2**20
"""Unsloth's checkpointing moves a layer's input to the host when it is larger (unsloth_zoo/gradient_checkpointing.py,
MINIMUM_SIZE)."""


# Fitted to measurements, or read from Unsloth's code, and a new version may change them.

_BACKWARD_TENSORS = 3
"""Tensors of (tokens, hidden size) alive beside a layer's own activations in its backward pass: the gradient that comes
in, the one that goes out, and the last hidden state."""

_STAGING_TENSORS = 3
"""More of them with checkpointing: two buffers for inputs coming back from the host, and the recomputed layer's
output."""

_ROW_TENSORS = 1.7
"""Tensors of (tokens, heads x head size) that a layer keeps more with attention "rows": 1.0 is the copy that puts the
rows' outputs together; the rest is fitted."""

LOGIT_BYTES = 4
"""Bytes a logit in the loss: float32, which the gradient overwrites."""

_LOSS_LOGITS = 512 * 151936
"""The loss goes through the rows in chunks of about this many logits; see `loss_rows`."""

_WORKSPACE_BYTES = 48 * 2**20
"""cuBLAS's workspace, rotary tables and other small things, in bytes."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted peak and its parts, in bytes.

    Args:
        weights: Linear layers of the blocks, in NF4 or 16 bit.
        embeddings: Embedding, output head and norms.
        adapter: LoRA weights, float32.
        gradients: Their gradients, float32; where several processes train, also the buckets that they are averaged in.
        workspace: cuBLAS and, with NF4, the matrix that weights are unpacked into.
        activations: What the forward pass keeps for the backward pass.
        temporary: What one layer's backward pass needs beside that.
        cross_entropy: What the loss needs. It is over before the first layer's backward pass begins.
        tokens: In the largest micro-batch.
    """

    weights: int
    embeddings: int
    adapter: int
    gradients: int
    optimizer: int
    workspace: int
    activations: int
    temporary: int
    cross_entropy: int
    tokens: int

    def static(self) -> int:
        """Return what is in memory at all times, in bytes."""
        return self.weights + self.embeddings + self.adapter + self.gradients + self.optimizer + self.workspace

    def total(self) -> int:
        """Return the peak, in bytes: of `temporary` and `cross_entropy` only the larger one counts."""
        return self.static() + self.activations + max(self.temporary, self.cross_entropy)


def predict_peak(
    shape: ModelShape,
    *,
    rank: int,
    batch_size: int,
    seq_length: int,
    tokens: int | None = None,
    four_bit: bool = True,
    checkpointing: bool = True,
    packing: bool = False,
    skip_layers: int = 0,
    attention: str = "rows",
    dropout: float = 0.0,
    dtype_bytes: int = 2,
    optimizer: str = "adamw_8bit",
    processes: int = 1,
) -> Prediction:
    """Predict the peak of training with LoRA on all linear layers.

    Batches are taken to be free of padding, as Unsloth makes them, so that only their tokens count.

    Args:
        batch_size: Rows, or packed sequences, in one forward pass.
        seq_length: Longest row, or length of a packed sequence, in tokens.
        tokens: In the largest micro-batch; by default, and always with packing, batch_size x seq_length.
        four_bit: Linear layers in NF4; else in 16 bit.
        checkpointing: Unsloth's: layers are recomputed, their inputs wait on the host.
        skip_layers: Layers that keep their activations in spite of checkpointing.
        dropout: Of the adapter's inputs; more than 0 keeps masks.
        dtype_bytes: Of activations and 16-bit weights.
        processes: How many train together. With more than one DistributedDataParallel keeps a second set of gradients,
            since accelerate leaves gradient_as_bucket_view off: 160 MiB more were measured for 41.9 M parameters.

    Raises:
        ConfigError: A number is out of range, or two contradict each other.

    Example:
        >>> from helpers.memory.shapes import MISTRAL_7B
        >>> peak = predict_peak(MISTRAL_7B, rank=16, batch_size=4, seq_length=2048, packing=True)
        >>> f"{peak.total() / 2**30:.1f} GiB"
        '6.1 GiB'
    """
    for name, value in {"rank": rank, "batch_size": batch_size, "seq_length": seq_length}.items():
        whole(name, value)
    if dtype_bytes not in (2, 4):
        raise ConfigError("dtype_bytes", "2 or 4", dtype_bytes, "Use 2 for 16-bit activations.")
    tokens = _tokens(tokens, batch_size * seq_length, packing)
    if whole("skip_layers", skip_layers, low=0) > shape.layers:
        raise ConfigError("skip_layers", f"at most the model's {shape.layers} layers", skip_layers, "Lower it.")
    for name, chosen, choices in (("optimizer", optimizer, OPTIMIZERS), ("attention", attention, ATTENTION)):
        if chosen not in choices:
            raise ConfigError(name, f"one of {', '.join(choices)}", chosen, "Correct the name.")
    tensors, sets = shape.lora_tensors(rank), 2 if whole("processes", processes) > 1 else 1
    weight = NF4_BYTES if four_bit else dtype_bytes
    matrix = max(inputs * outputs for inputs, outputs in shape.linear_layers()) * dtype_bytes if four_bit else 0
    token = _Token(shape, dtype_bytes, attention=attention, dropout=dropout > 0)
    kept = shape.layers if not checkpointing else skip_layers
    return Prediction(
        weights=round(shape.linear_parameters() * weight),
        embeddings=shape.other_parameters() * dtype_bytes,
        adapter=4 * sum(tensors),
        gradients=4 * sum(tensors) * sets,
        optimizer=round(sum(n * (OPTIMIZERS[optimizer] if n >= _SMALLEST_8BIT else 8) for n in tensors)),
        workspace=_WORKSPACE_BYTES + matrix,
        activations=round(tokens * kept * token.layer() + _waiting(tokens, shape.layers - kept, token.hidden())),
        temporary=round(tokens * token.backward(recomputed=kept < shape.layers)) + matrix,
        cross_entropy=round(loss_rows(shape, tokens) * shape.vocab * LOGIT_BYTES + tokens * 3 * token.hidden()),
        tokens=tokens,
    )


@dataclass(frozen=True, slots=True)
class _Token:
    """Bytes that one token costs."""

    shape: ModelShape
    dtype_bytes: int
    attention: str
    dropout: bool

    def hidden(self) -> int:
        """One vector of the residual stream."""
        return self.shape.hidden * self.dtype_bytes

    def layer(self) -> float:
        """What a layer keeps for its backward pass.

        Values of the activations' type: the layer's input, its normed form, the stream after attention and its normed
        form (4 hidden); queries and attention's output (2 attention widths); keys and values (2 key widths); gate and
        up (2 intermediate). float32: a factor for each norm, and a log-sum for each head. The product of gate and up
        is not kept (unsloth/kernels/fast_lora.py, LoRA_MLP). Dropout keeps a byte for each value of an adapter's input.
        """
        s = self.shape
        values = 4 * s.hidden + 2 * s.attention_width() + 2 * s.key_width() + 2 * s.intermediate
        masks = sum(inputs for inputs, _ in s.linear_layers()) if self.dropout else 0
        return (values + self.copies()) * self.dtype_bytes + 4 * (2 + s.heads) + masks

    def copies(self) -> float:
        """The values that attention keeps beside that: its rows' outputs put together (one attention width) and, where
        the kernel does not share key heads, keys and values repeated for each query head.
        """
        wide, narrow = self.shape.attention_width(), self.shape.key_width()
        expanded = wide + 2 * (wide - narrow)
        return {"varlen": 0, "rows": _ROW_TENSORS * wide, "expanded": expanded}[self.attention]

    def backward(self, *, recomputed: bool) -> float:
        """What a layer's backward pass needs: the MLP's gradient (intermediate wide; the two others overwrite gate and
        up), gradients of the stream, and with checkpointing the layer's own activations and the staging buffers.
        """
        streams = _BACKWARD_TENSORS + (_STAGING_TENSORS if recomputed else 0)
        own = self.layer() if recomputed else 0
        return own + self.shape.intermediate * self.dtype_bytes + streams * self.hidden()


def _waiting(tokens: int, layers: int, hidden: int) -> int:
    """What inputs of checkpointed layers occupy on the card: the last one stays, the others only while small."""
    size = tokens * hidden
    return size * (layers if size <= _OFFLOAD_BYTES else min(layers, 1))


def loss_rows(shape: ModelShape, tokens: int) -> int:
    """Return for how many tokens logits exist at once, as Unsloth's loss chooses it (fused_linear_rows in unsloth_zoo).

    A power of two: tokens x hidden / vocab, but at least _LOSS_LOGITS / vocab, within LOSS_ROWS and LOSS_BYTES.
    Unsloth keeps to half of the free memory too, and leaves tokens without a label out; neither is counted here.
    UNSLOTH_CE_LOSS_TARGET_GB or UNSLOTH_CE_LOSS_N_CHUNKS, when set, send it down another path, with 16 bytes a logit.

    Args:
        tokens: In the micro-batch.

    Example:
        >>> from helpers.memory.shapes import MISTRAL_7B
        >>> loss_rows(MISTRAL_7B, 16_384)
        2048
    """
    low, high = _LOSS_ROWS
    least = max(_power_of_two(_LOSS_LOGITS // shape.vocab), low)
    wanted = max(_power_of_two(tokens * shape.hidden // shape.vocab), least)
    most = int(LOSS_BYTES // (shape.vocab * LOGIT_BYTES))
    return max(min(wanted, high, most, tokens), 1)


def _power_of_two(number: int) -> int:
    """The largest power of two up to a number; 1 below 1."""
    return 1 << max(number, 1).bit_length() - 1


def _tokens(tokens: int | None, full: int, packing: bool) -> int:
    """The tokens of the largest micro-batch."""
    if tokens is None or packing:
        return full
    if whole("tokens", tokens) > full:
        raise ConfigError(
            "tokens", f"at most batch_size x seq_length ({full})", tokens, "Lower tokens, or raise seq_length."
        )
    return tokens
