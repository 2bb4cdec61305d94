"""A T4's path on a larger card: its memory, its number format, its attention. Not its speed."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["T4_SETTINGS", "imitate_t4"]

T4_SETTINGS = {"precision": "fp16", "cuda_graphs": False, "fused_adapters": False}
"""Parameters of a training notebook that a T4 cannot have otherwise."""


def imitate_t4() -> None:
    """Let processes started from now on find a T4's memory, and no flash attention (`tools/t4like`)."""
    folders = [str(Path(__file__).resolve().parent / "t4like"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"T4_LIKE": "1", "PYTHONPATH": os.pathsep.join(filter(None, folders))}
