"""A look at rows before training: which can be used, which not and why, and what they would teach that nobody meant."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from helpers.core.errors import DataError
from helpers.data.formats import Format, question_key
from helpers.data.messages import RowError

__all__ = ["Look"]

MAX_BAD_SHARE = 0.01
"""Share of unusable rows above which a data set is refused rather than cleaned. Alpaca-cleaned has a few rows without
an answer among its 51,760; a hand-made file with one bad row in fifty should be looked at."""

MAX_UNTRAINABLE_SHARE = 0.9
"""Share of conversations of a kind that is not trained, such as those with tool calls, above which a data set is
refused: it was made for something else."""

MARKS = {
    **dict.fromkeys(("<|im_start|>", "<|im_end|>"), "ChatML"),
    "<|endoftext|>": "GPT and Qwen",
    **dict.fromkeys(("<s>", "</s>", "[INST]", "[/INST]"), "Mistral and Llama 2"),
    "<<SYS>>": "Llama 2",
    **dict.fromkeys(("<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>", "<|end_of_text|>"), "Llama 3"),
    **dict.fromkeys(("<start_of_turn>", "<end_of_turn>"), "Gemma"),
    **dict.fromkeys(("<|user|>", "<|assistant|>"), "Zephyr and Phi"),
    "<|end|>": "Phi",
}
"""Control tokens that texts may hold spelled out, and whose they are."""

_MARK = re.compile("|".join(map(re.escape, MARKS)))
_END = re.compile(r"</s>\s*\Z")
_CHANCE = 3
"""Unusable rows that a draw from a large data set may meet by chance, however small the draw."""


class Look:
    """Rows of one format, looked at one by one.

    Attributes:
        rows: The usable ones, converted; each asks something that none before it asks.
        places: Their places in the source.
    """

    def __init__(self, source_format: Format) -> None:
        self._format = source_format
        self.rows: list[dict[str, Any]] = []
        self.places: list[int] = []
        self._asked: Counter[bytes] = Counter()
        self._problems: dict[str, list[tuple[int, int]]] = {}
        self._damaged: list[tuple[int, str]] = []
        self._untrainable = 0

    def add(self, index: int, row: Any) -> None:
        """Look at a row.

        Args:
            index: Its place in the source, from 0.
        """
        try:
            converted = self._format.convert(row)
        except RowError as error:
            self._problems.setdefault(error.reason, []).append((index, error.turn or 0))
            if error.damaged:
                self._damaged.append((index, error.reason))
            else:
                self._untrainable += 1
            return
        key = question_key(converted)
        self._asked[key] += 1
        if self._asked[key] == 1:
            self.rows.append(converted)
            self.places.append(index)

    def left_out(self) -> dict[str, int]:
        """Return how many rows are not among `rows`, by reason.

        A reason names its first row, counted from 0, and in a conversation the turn, counted from 1.
        """
        counts = {}
        for reason, places in self._problems.items():
            index, turn = min(places)
            counts[f"{reason} (first: row {index}{f', turn {turn}' if turn else ''})"] = len(places)
        repeated = self._asked.total() - len(self._asked)
        return counts | ({"repeats an earlier row's question": repeated} if repeated else {})

    def why_few(self, total: int) -> str:
        """Say why there are few rows, if that is because they repeat each other; otherwise ""."""
        most = max(self._asked.values(), default=0)
        repeated = self._asked.total() - len(self._asked)
        if most > 1 and 2 * most > total:
            return f"{most} of {total} rows ask the same question. "
        return f"{repeated} of {total} rows repeat another row's question. " if repeated else ""

    def check(self, total: int, source: str) -> None:
        """Raise when too large a share of the rows is unusable: of the whole data set, or of the rows looked at."""
        bad, seen = len(self._damaged), self._asked.total() + len(self._damaged) + self._untrainable
        if bad > min(MAX_BAD_SHARE * total, max(MAX_BAD_SHARE * seen, _CHANCE)):
            index, reason = self._damaged[0]
            remedy = f"Fix or remove the rows in {source}; row numbers start at 0."
            got = f"{bad} of {seen}: {reason}"
            raise DataError(f"row {index}", f"at most {MAX_BAD_SHARE:.0%} unusable rows", got, remedy)
        if self._untrainable > MAX_UNTRAINABLE_SHARE * seen:
            got = "; ".join(f"{count} of {seen}: {why}" for why, count in self.left_out().items())
            expected = f"at most {MAX_UNTRAINABLE_SHARE:.0%} of the conversations of a kind that cannot be trained"
            raise DataError("dataset_name", expected, got, f"Remove or change them in {source}.")

    def remarks(self) -> list[str]:
        """Return sentences on answers that are not learned, and on control tokens that answers hold as text."""
        answers = [text for row in self.rows for text in _answers(row)]
        asked = ["\n".join(_given(row)) for row in self.rows]
        ends = sum(_END.search(text) is not None for text in answers)
        said = [f"{ends} of {len(answers)} answers end in </s>: remove it, the template writes it"] if ends else []
        for kind, texts in (("answers", [_END.sub("", text) for text in answers]), ("prompts", asked)):
            marks = Counter(mark for text in texts for mark in set(_MARK.findall(text)))
            said += [
                f"{count} of {len(texts)} {kind} hold {mark}, a control token of {MARKS[mark]}: a model of that kind "
                "leaves these rows out, any other learns it as text; remove it"
                for mark, count in marks.most_common()
            ]
        given = sum("given" in m for row in self.rows if "prompt" in row for m in (*row["prompt"], *row["completion"]))
        marked = [f"{given} answers are given, not learned: weight, train or training says so"] if given else []
        return marked + [f"warning: {sentence}" for sentence in said]

    def lengths(self) -> list[str]:
        """Return sentences on the lengths of prompts and answers."""
        if not self.rows:
            return []
        asked = [len("".join(_given(row))) for row in self.rows]
        answered = [len(text) for row in self.rows for text in _answers(row)]
        return [f"{name}: {_lengths(values)}" for name, values in (("prompts", asked), ("answers", answered))]


def _given(row: dict[str, Any]) -> list[str]:
    """Return the texts of a converted row that come before the first answer that is learned."""
    return [m["content"] for m in row["prompt"]] if "prompt" in row else [row["instruction"], row["input"]]


def _answers(row: dict[str, Any]) -> list[str]:
    """Return the texts of a converted row that are learned."""
    if "prompt" in row:
        return [m["content"] for m in row["completion"] if m["role"] == "assistant" and "given" not in m]
    return [row["output"]]


def _lengths(values: list[int]) -> str:
    """Say how lengths in characters are distributed."""
    ordered = sorted(values)
    middle, high = ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]
    return f"{len(ordered):,}; median {middle:,} characters, 95% at most {high:,}, longest {ordered[-1]:,}"
