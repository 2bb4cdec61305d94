"""Keeps tokens out of what is printed and kept: a run's parameters, its output and its executed notebook."""

from __future__ import annotations

import json
import os
import re

__all__ = ["SECRET_NAMES", "SECRET_PATTERN", "redact", "removed_in", "secrets_in"]

SECRET_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "KAGGLE_KEY")
"""Environment variables whose values are secrets."""

SECRET_PATTERN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
"""Hugging Face's user access tokens: hf_ and 34 letters or digits."""

SHORTEST = 8
"""Shorter values are no tokens; leaving them out of a text would spoil it."""


def secrets_in(text: str) -> list[str]:
    """Name the secrets that stand in a text.

    Args:
        text: Any text, JSON included.

    Returns:
        Names of environment variables, and "a Hugging Face token" for one that no variable holds.
    """
    found = [name for name, value in _values().items() if any(form in text for form in _forms(value))]
    return found or (["a Hugging Face token"] if SECRET_PATTERN.search(text) else [])


def redact(text: str) -> str:
    """Replace each secret in a text by its name in brackets.

    Args:
        text: Any text, JSON included; JSON stays JSON.

    Returns:
        The text without secrets.

    Example:
        >>> redact("token hf_" + "a" * 34)
        'token [removed: token]'
    """
    for name, value in _values().items():
        for form in _forms(value):
            text = text.replace(form, f"[removed: {name}]")
    return SECRET_PATTERN.sub("[removed: token]", text)


def removed_in(text: str) -> list[str]:
    """Name the secrets that `redact` has taken out of a text.

    Args:
        text: What `redact` returned.
    """
    return sorted(set(re.findall(r"\[removed: ([\w ]+)\]", text)))


def _values() -> dict[str, str]:
    """Return the secrets that are set, by name."""
    values = {name: os.environ.get(name, "").strip() for name in SECRET_NAMES}
    return {name: value for name, value in values.items() if len(value) >= SHORTEST}


def _forms(value: str) -> tuple[str, ...]:
    """Return a secret as it is, and as it stands in JSON."""
    escaped = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    return tuple(dict.fromkeys((value, *escaped)))
