"""Python's garbage collector, kept from looking again and again at what stays.

Importing the stack makes some 900,000 objects that live as long as the process. While they are made, the collector runs
1,500 times, for 1.5 of 10 seconds on two cores of a server; afterwards each `gc.collect()`, of which Unsloth calls nine
to attach an adapter, takes half a second to walk through them. Here it rests during the import, and then leaves what
was imported alone (`gc.freeze`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["leave_alone", "long_lived"]

FEW = 2_000
"""Objects that may be frozen without anybody having done so: Python 3.12 begins with some 400."""

_set_aside = [False]
"""Whether what is frozen was frozen here, after an import, rather than by someone else."""


@contextmanager
def long_lived() -> Iterator[None]:
    """Make objects inside the block that will stay, such as modules: the collector rests, then leaves them alone.

    Where someone else has frozen objects or switched the collector off, it stays so.
    """
    others, running = _frozen(), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not others:
            gc.freeze()
            _set_aside[0] = True
        if running:
            gc.enable()


@contextmanager
def leave_alone() -> Iterator[None]:
    """Let the collector leave alone what is there now; afterwards it looks at everything again.

    Where someone else has frozen objects, nothing is changed.
    """
    if _frozen() and not _set_aside[0]:
        yield
        return
    gc.collect()
    gc.freeze()
    _set_aside[0] = False  # so that a block within this one changes nothing
    try:
        yield
    finally:
        gc.unfreeze()


def _frozen() -> bool:
    """Say whether objects were frozen, here or by someone else."""
    return gc.get_freeze_count() > FEW
