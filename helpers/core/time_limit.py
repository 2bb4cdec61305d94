"""A limit on what a stranger's file can make this process compute: a pattern or a template can go on for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from helpers.core.errors import HelpersError

__all__ = ["time_limit"]


@contextmanager
def time_limit(seconds: float, error: HelpersError) -> Iterator[None]:
    """Raise an error inside the block once it takes too long.

    It interrupts Python code and Python's regular expressions, in the main thread, where the system has timers: not on
    Windows. Elsewhere the block takes as long as it takes.

    Args:
        error: What is raised then; it names whose file it was.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
