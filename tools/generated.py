"""Files that are made from others: `scripts/build_*` write those that differ, or name them with `--check`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from helpers.core.errors import HelpersError
from helpers.core.files import write_text

__all__ = ["main", "update"]


def update(wanted: Mapping[Path, str], root: Path, *, check: bool = False, present: Iterable[Path] = ()) -> list[str]:
    """Write the files that differ.

    Args:
        wanted: What each file must hold.
        check: Write nothing.
        present: Files that are there; with `check`, one that is not wanted is named too.

    Returns:
        Names below `root` of the files that were written; with `check`, of those that would be.
    """
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check:
        changed += [path for path in present if path not in wanted]
    for path in () if check else changed:
        write_text(path, wanted[path])
    return sorted(path.relative_to(root).as_posix() for path in changed)


def main(description: str, build: Callable[[bool], list[str]]) -> int:
    """Run one of the scripts; return its exit status.

    Args:
        build: Takes whether to check only, and returns what `update` does.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if any differs")
    check = parser.parse_args().check
    try:
        changed = build(check)
    except HelpersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in changed:
        print(f"{name} is out of date; run scripts/{parser.prog}" if check else f"wrote {name}")
    return 1 if check and changed else 0
