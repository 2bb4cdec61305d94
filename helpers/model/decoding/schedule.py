"""Which prompt is in which row: rows whose answer has ended are given to prompts that wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from helpers.model.decoding.session import ROUND, DecoderSession, cache_length

__all__ = ["PREFILL_TOKENS", "Schedule", "row_length"]

PREFILL_TOKENS = 8192
"""Padded prompt tokens read at once; bounds the memory for activations, about 1.4 GB for 7 billion parameters."""


class Schedule:
    """Answers prompts with a session, the longest first, so that what does not fit in memory shows at the start.

    Every `ROUND` steps the answers are looked at. Rows that have ended are refilled once a quarter of all rows is free,
    or none is in use: reading a few prompts costs nearly as much as reading many.

    Args:
        session: Its rows are used from now on, whatever they held.
        prompts: Token ids, none empty.
        max_new_tokens: Longest answer, in tokens, at least 1.
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
        """Cut prompts, the longest first, into groups of at most `PREFILL_TOKENS` once padded."""
        while taken:
            count = max(1, PREFILL_TOKENS // len(self.prompts[taken[0]]))
            yield taken[:count]
            taken = taken[count:]

    def _round(self) -> None:
        """Decode up to `ROUND` steps on all rows, fewer when every answer reaches its limit before."""
        left = {row: self.limit - len(self.answers[index]) for row, index in self._rows.items()}
        steps = min(ROUND, max(left.values()))
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
    return cache_length(max(len(prompt) for prompt in prompts) + max_new_tokens)
