"""Markdown that stays what it was meant to be, whatever text is put into it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["fence", "table"]


def table(rows: Mapping[str, Any], head: tuple[str, str] = ("", "value")) -> str:
    """Return a Markdown table of two columns.

    Args:
        rows: First column -> second.
        head: The columns' titles.
    """
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(k)} | {_cell(v)} |" for k, v in rows.items()])


def _cell(value: Any) -> str:
    """Write a value so that it stays within its table cell."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def fence(text: str, language: str) -> str:
    """Put text into a fence that is longer than any in it.

    Args:
        text: Anything.
        language: For highlighting.
    """
    marks = "`" * max(3, 1 + max((len(m) for m in re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"
