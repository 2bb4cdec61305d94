"""Answers kept on disk, so that a comparison that was cut off, or is run again, does not ask the model twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json
from helpers.core.processes import place

__all__ = ["AnswerCache", "CachedAnswer"]

_FORMAT = 1


@dataclass(frozen=True)
class CachedAnswer:
    """What is kept of an answer.

    Args:
        text: The answer.
        tokens: Tokens generated, the closing EOS included.
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

        Returns:
            A SHA-256 in hexadecimal.
        """
        parts = json.dumps([_FORMAT, self.configuration, arm, text], sort_keys=True)
        return hashlib.sha256(parts.encode("ascii")).hexdigest()

    def get(self, key: str) -> CachedAnswer | None:
        """Return the answer under a key, or None."""
        return self.answers.get(key)

    def add(self, answers: Mapping[str, CachedAnswer]) -> None:
        """Keep answers, and write the file anew; of several processes the main one writes.

        Args:
            answers: By key.

        Raises:
            RunError: The disk refuses.
        """
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
        return {key: CachedAnswer(**value) for key, value in content["answers"].items()}
    except (RunError, KeyError, TypeError, AttributeError):
        return {}
