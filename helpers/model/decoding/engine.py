"""Rows of a static cache, filled by prompts and extended one token a step, each step a CUDA graph.

Prompts stand left-aligned in the cache: token i of a prompt is in slot i, and the answer follows directly, so that a
token's position, its slot and the number of keys before it are one number. A shorter prompt is padded on its right,
where causal attention hides the padding from every real token: prefill needs no mask. Each decode step writes its own
slot before it reads, and sees no slot after its own, so padding is overwritten before it can be seen.

A graph is captured for each cache length in use, rounded up to 128, and reads no more of the cache than that. Whatever
a step changes lies in tensors made before the capture: tokens, positions, the step's number, the history, the cache.
The weights are filled in place. All of it under `torch.no_grad`, not inference mode, so that these tensors may be
changed anywhere.

Rows whose answer has ended are given to prompts that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from helpers.model.decoding.forward import embed, finish, next_tokens, project, repeat_heads, rope_tables
from helpers.model.decoding.weights import DecoderWeights

__all__ = ["DecoderSession", "Schedule", "row_length"]

_BUCKET = 128
"""Cache lengths are multiples of this many tokens."""

_ROUND = 16
"""Steps between two looks at what was generated, each of which waits for the GPU."""

_PREFILL_TOKENS = 8192
"""Padded prompt tokens read at once; bounds the memory for activations, about 1.4 GB for 7 billion parameters."""


class DecoderSession:
    """Rows of a static cache, and the two passes that fill it. Use it under `decoder_math`.

    Args:
        weights: The model; its arm may be changed between answers.
        length: Slots of a row, in tokens, a multiple of `_BUCKET`: prompt and answer together.
    """

    def __init__(self, weights: DecoderWeights, rows: int, length: int) -> None:
        import torch

        shape, device, dtype = weights.shape, weights.embed.device, weights.embed.dtype
        size = (shape.layers, rows, shape.kv_heads, length, shape.head_dim)
        self.weights, self.rows, self.length = weights, rows, length
        self.keys = torch.zeros(size, dtype=dtype, device=device)  # zeros: a hidden slot counts 0 times its value
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.history = torch.zeros(_ROUND, rows, dtype=torch.long, device=device)
        self.slots = torch.arange(length, device=device)
        self.cos, self.sin = rope_tables(shape, self.slots, dtype)
        self.graphs = device.type == "cuda"  # whether steps are captured
        self._captured: dict[int, Any] = {}
        self._stream: Any = torch.cuda.Stream() if self.graphs else None
        self._pool = torch.cuda.graph_pool_handle() if self.graphs else None

    def prefill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read prompts into rows of the cache, whatever was there before.

        Args:
            rows: Which rows, each once.
            prompts: Token ids, one prompt a row, none empty.

        Returns:
            The first token of each answer.
        """
        import torch

        device, lengths = self.tokens.device, [len(prompt) for prompt in prompts]
        width = min(-(-max(lengths) // 8) * 8, self.length)
        ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)
        where, ends = torch.tensor(list(rows), device=device), torch.tensor(lengths, device=device)
        hidden = self._prefill_hidden(ids, where)
        last = hidden[torch.arange(len(prompts), device=device), ends - 1]
        first = next_tokens(last, self.weights)
        self.tokens.index_copy_(0, where, first)
        self.positions.index_copy_(0, where, ends)
        return first.tolist()

    def advance(self, steps: int, reach: int) -> list[list[int]]:
        """Decode some steps on all rows; rows not in use go along, and what they give means nothing.

        Args:
            steps: How many, at most `_ROUND`.
            reach: Slots that the rows in use need at the last of these steps, in tokens.

        Returns:
            The tokens of each step, one a row.
        """
        run = self._runner(_cache_length(reach))
        self.step.zero_()
        for _ in range(steps):
            run()
        return self.history[:steps].tolist()  # the only wait for the GPU in a round

    def captured_lengths(self) -> list[int]:
        """Return the cache lengths whose step is a captured graph, in tokens; none where nothing could be captured."""
        return sorted(length for length, graph in self._captured.items() if graph is not None)

    def _prefill_hidden(self, ids: Any, where: Any) -> Any:
        """Run all blocks over prompts and store keys and values: (prompts, width) to (prompts, width, hidden)."""
        from torch.nn import functional

        width, shape = ids.shape[1], self.weights.shape
        cos, sin = self.cos[:width, None], self.sin[:width, None]
        hidden = embed(ids, self.weights)
        for index, layer in enumerate(self.weights.layers):
            q, k, v = (each.transpose(1, 2) for each in project(hidden, layer, shape, cos, sin))
            for cache, new in ((self.keys[index], k), (self.values[index], v)):
                cache[:, :, :width].index_copy_(0, where, new)
                cache[:, :, width:].index_fill_(0, where, 0)
            k, v = (repeat_heads(each, shape.heads // shape.kv_heads) for each in (k, v))
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = finish(hidden, seen.transpose(1, 2).flatten(2), layer, shape)
        return hidden

    def _decode(self, bucket: int) -> None:
        """Run one step on all rows, reading `bucket` slots of the cache; all it changes are this object's tensors.

        The query heads that share a key head take the place of query positions, so no key is copied.
        """
        from torch.nn import functional

        shape, positions = self.weights.shape, self.positions
        group = (self.rows, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
        cos, sin = self.cos[positions, None], self.sin[positions, None]
        slot = positions.view(-1, 1, 1, 1).expand(-1, shape.kv_heads, 1, shape.head_dim)
        mask = self._mask(bucket)
        hidden = embed(self.tokens, self.weights)
        for index, layer in enumerate(self.weights.layers):
            q, k, v = project(hidden, layer, shape, cos, sin)
            keys = self.keys[index].scatter_(2, slot, k[:, :, None])[:, :, :bucket]
            values = self.values[index].scatter_(2, slot, v[:, :, None])[:, :, :bucket]
            seen = functional.scaled_dot_product_attention(q.view(group), keys, values, attn_mask=mask)
            hidden = finish(hidden, seen.reshape(self.rows, -1), layer, shape)
        self.tokens.copy_(next_tokens(hidden, self.weights))
        self.history.index_copy_(0, self.step, self.tokens[None])
        self.step.add_(1).clamp_(max=_ROUND - 1)
        positions.add_(1).clamp_(max=self.length - 1)  # a row not in use must stay inside its cache

    def _mask(self, bucket: int) -> Any:
        """Return what is added to attention scores, (rows, 1, 1, bucket): 0 up to a row's own slot, -inf after it."""
        import torch

        later = self.slots[:bucket] > self.positions[:, None]
        mask = torch.zeros(later.shape, dtype=self.cos.dtype, device=later.device)
        return mask.masked_fill_(later, float("-inf"))[:, None, None]

    def _runner(self, bucket: int) -> Callable[[], None]:
        """Return what runs one step: a captured graph's replay, or the step itself."""
        if self.graphs and bucket not in self._captured:
            self._captured[bucket] = self._try_capture(bucket)
        graph = self._captured.get(bucket)
        return graph.replay if graph is not None else lambda: self._decode(bucket)

    def _try_capture(self, bucket: int) -> Any:
        """Capture a step, or say why that failed, return None and capture no more. The rows' state is as before."""
        import torch

        stream, state = torch.cuda.current_stream(), (self.tokens, self.positions, self.step)
        kept = [each.clone() for each in state]
        try:
            return self._capture(bucket)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.graphs = False
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            print(f"Decoding without CUDA graphs, which is slower; a capture failed: {reason}")
            return None
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails at its end leaves its own stream current
            for each, value in zip(state, kept, strict=True):
                each.copy_(value)

    def _capture(self, bucket: int) -> Any:
        """Run the step twice on a side stream, which sets up the libraries' workspaces, then capture it there.

        As torch's notes ask: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. The warm-up writes slots
        at and after the rows' own; each is written again by the step that owns it before any step sees it.
        """
        import torch

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                self._decode(bucket)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            self._decode(bucket)
        return graph


def _cache_length(tokens: int) -> int:
    """Round a number of tokens up to a multiple of `_BUCKET`.

    Example:
        >>> _cache_length(1), _cache_length(128), _cache_length(129)
        (128, 128, 256)
    """
    return -(-tokens // _BUCKET) * _BUCKET


class Schedule:
    """Answers prompts with a session, the longest first, so that what does not fit in memory shows at the start.

    Every `_ROUND` steps the answers are looked at. Rows that have ended are refilled once a quarter of all rows is
    free, or none is in use: reading a few prompts costs nearly as much as reading many.

    Args:
        session: Its rows are used from now on, whatever they held.
        eos: Ends an answer, and is its last token; None for answers that all have `max_new_tokens`.
    """

    def __init__(
        self, session: DecoderSession, prompts: Sequence[Sequence[int]], max_new_tokens: int, eos: int | None
    ) -> None:
        self.session, self.prompts, self.limit, self.eos = session, prompts, max_new_tokens, eos
        self.answers: list[list[int]] = [[] for _ in prompts]
        self._waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        self._rows: dict[int, int] = {}

    def run(self) -> list[list[int]]:
        """Return the answers' token ids, EOS included, in the order of the prompts."""
        while self._waiting or self._rows:
            self._admit()
            if self._rows:
                self._round()
        return self.answers

    def _admit(self) -> None:
        """Give free rows to waiting prompts, when enough are free."""
        free = [row for row in range(self.session.rows) if row not in self._rows]
        if self._rows and len(free) * 4 < self.session.rows:
            return
        taken = [self._waiting.pop() for _ in range(min(len(free), len(self._waiting)))]
        for group in self._groups(taken):
            rows = [free.pop() for _ in group]
            first = self.session.prefill(rows, [self.prompts[index] for index in group])
            self._rows.update(zip(rows, group, strict=True))
            for row, token in zip(rows, first, strict=True):
                self._extend(row, [token])

    def _groups(self, taken: list[int]) -> Iterator[list[int]]:
        """Cut prompts, the longest first, into groups of at most `_PREFILL_TOKENS` once padded."""
        while taken:
            count = max(1, _PREFILL_TOKENS // len(self.prompts[taken[0]]))
            yield taken[:count]
            taken = taken[count:]

    def _round(self) -> None:
        """Decode up to `_ROUND` steps on all rows, fewer when every answer reaches its limit before."""
        left = {row: self.limit - len(self.answers[index]) for row, index in self._rows.items()}
        steps = min(_ROUND, max(left.values()))
        reach = max(self._used(row) + min(steps, left[row]) for row in self._rows)
        history = self.session.advance(steps, reach)
        for row in list(self._rows):
            self._extend(row, [tokens[row] for tokens in history])

    def _used(self, row: int) -> int:
        """Return how many slots of a row are filled: all tokens but the newest, which the next step writes."""
        index = self._rows[row]
        return len(self.prompts[index]) + len(self.answers[index]) - 1

    def _extend(self, row: int, tokens: Sequence[int]) -> None:
        """Add tokens to a row's answer, up to its end, and free the row there."""
        answer = self.answers[self._rows[row]]
        for token in tokens:
            answer.append(token)
            if token == self.eos or len(answer) == self.limit:
                del self._rows[row]
                return


def row_length(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Return the slots that a row needs for any of these prompts and its answer, in tokens, rounded up."""
    return _cache_length(max(len(prompt) for prompt in prompts) + max_new_tokens)
