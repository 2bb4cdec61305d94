"""Answers kept on disk, and work shared out among processes.

A comparison that was cut off, or is run again, does not ask the model twice. In several processes each has the whole
model. Batches are cut as one process cuts them, so that in float32 each gives the same numbers whoever computes it, and
are dealt out in rounds: after each round every process knows all answers, and the main one has written them down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from helpers.core.distributed import gather, place
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json

__all__ = ["AnswerCache"]

_FORMAT = 1


@dataclass(frozen=True)
class CachedAnswer:
    """What is kept of an answer.

    Args:
        finish_reason: "eos" or "length".
    """

    text: str
    tokens: int
    finish_reason: str


class AnswerCache:
    """Answers by a hash of everything that they depend on, in one JSON file that is written whole.

    A file that is damaged, or of another format, counts as empty: its answers can be generated again.

    Args:
        path: The file; None keeps the answers in memory only.
        configuration: What all answers depend on: base model, adapter, template, precision, length limit, decoding.
    """

    def __init__(self, path: Path | None, configuration: Mapping[str, Any]) -> None:
        self.path = path
        self.configuration = dict(configuration)
        self.answers: dict[str, CachedAnswer] = {}
        if path is not None and path.is_file():
            self.answers = _read(path)

    def key(self, arm: str, text: str) -> str:
        """Return the key of an answer.

        Args:
            arm: What switches the model: "on" or "off" for the adapter, with the number of the draw if there are draws.
            text: The prompt as the model reads it, control tokens spelled out.
        """
        parts = json.dumps([_FORMAT, self.configuration, arm, text], sort_keys=True)
        return hashlib.sha256(parts.encode("ascii")).hexdigest()

    def add(self, answers: Mapping[str, CachedAnswer]) -> None:
        """Keep answers, and write the file anew; of several processes the main one writes."""
        self.answers |= answers
        if self.path is not None and place().main:
            kept = {key: asdict(answer) for key, answer in self.answers.items()}
            write_json(self.path, {"format": _FORMAT, "answers": kept})


def _read(path: Path) -> dict[str, CachedAnswer]:
    """Read the answers of a file, none if it is not one of ours."""
    try:
        content = read_json(path)
        if content["format"] != _FORMAT:
            return {}
        found = {key: CachedAnswer(**value) for key, value in content["answers"].items()}
        return found if all(map(_sound, found.values())) else {}
    except (RunError, KeyError, TypeError, AttributeError):
        return {}


def _sound(answer: CachedAnswer) -> bool:
    """Say whether a file's answer has what an answer must have."""
    known = answer.finish_reason in ("eos", "length")
    return known and isinstance(answer.text, str) and isinstance(answer.tokens, int)


_T = TypeVar("_T")
_R = TypeVar("_R")
_K = TypeVar("_K")


def own_batch(items: Sequence[_T], size: int) -> list[_T]:
    """Return this process's batch of the next round: in the second process the second, if there are so many.

    Example:
        >>> own_batch(["a", "b", "c"], 2)
        ['a', 'b']
    """
    rank = place().rank
    return list(items[rank * size : (rank + 1) * size])


def exchange(found: Mapping[_K, _R]) -> dict[_K, _R]:
    """Return what all processes found, in every process."""
    return {key: value for part in gather(dict(found)) for key, value in part.items()}


def do_each(items: Sequence[_T], work: Callable[[_T], _R]) -> list[_R]:
    """Do one piece of work for each item, every process its part.

    Args:
        work: What to do. Its value must be one that pickle can write.

    Example:
        >>> do_each([1, 2, 3], lambda number: number * number)
        [1, 4, 9]
    """
    here = place()
    own = {at: work(items[at]) for at in range(here.rank, len(items), here.count)}
    done = exchange(own)
    return [done[at] for at in range(len(items))]
