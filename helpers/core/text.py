"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["format_bytes"]


def format_bytes(number: float) -> str:
    """Return bytes as GiB with one decimal, such as "14.7 GiB"."""
    return f"{number / 2**30:.1f} GiB"
