"""Paths that users give, and names that become folders.

Whether they exist is asked of `os.path`: for a name that is too long, `Path.is_file` raises OSError (Python 3.11).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError

__all__ = ["cache_root", "folder_name", "user_folder"]

_LONGEST_NAME = 100
"""Characters of a run's name; file systems take 255 bytes, and temporary files beside it are longer."""

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that stand for devices on Windows, and whose folders cannot be copied there
(learn.microsoft.com/windows/win32/fileio/naming-a-file)."""


def cache_root() -> Path:
    """Return the folder for what can be made again: HELPERS_CACHE_DIR, or this project's in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mistral-qlora-notebooks"
    return Path(os.environ.get("HELPERS_CACHE_DIR") or base)


def user_folder(field: str, text: str) -> Path:
    """Return a folder that a user named as an absolute path; it need not exist.

    Args:
        text: As it was given; a leading "~" is the user's home.

    Returns:
        The path, links resolved.

    Raises:
        ConfigError: There is no such user, or the path cannot be one.
    """
    try:
        return Path(text).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:  # no such user; a circle of links; a null byte
        raise ConfigError(field, "the path of a folder", text, f"{error}. Give an absolute path.") from error


def folder_name(name: Any) -> str:
    """Return a run's name if it can name a folder under `runs/` on every system.

    Raises:
        ConfigError: It is not text, leads out of `runs/`, is too long, or names a device on Windows.

    Example:
        >>> folder_name("alpaca-smoke")
        'alpaca-smoke'
    """
    if not isinstance(name, str):
        raise ConfigError("run_name", "text, in quotes", name, "With papermill, give it by -r, not -p.")
    good = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and not name.endswith(".")
    if not good or len(name) > _LONGEST_NAME:
        raise ConfigError(
            "run_name",
            f"at most {_LONGEST_NAME} letters, digits, '.', '_' and '-', beginning with a letter or digit, no '.' last",
            name,
            "It names a folder under runs/ and cannot lead out of it.",
        )
    if _RESERVED.fullmatch(name):
        raise ConfigError("run_name", "a name that is no device's", name, f"Windows reserves it: use run-{name}.")
    return name
