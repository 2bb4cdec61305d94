"""Changes to the libraries' speed or quirks, each guarded by versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["replaced_method"]

UNSLOTH_TESTED = "2026.10.9"
"""The only version of unsloth that these changes are known to work with; with others each leaves things as they are."""


@contextmanager
def replaced_method(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Give one object its own method inside the block. Its class keeps the old one, which comes back."""
    kept = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)
        if kept is not None:
            setattr(owner, name, kept)
