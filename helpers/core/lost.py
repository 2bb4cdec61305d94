"""A process that ended while others trained with it: what the others say, instead of a traceback of their transport.

A killed process closes its connections. With gloo the others learn that in their next exchange, from a RuntimeError;
with NCCL from an error of torch's own, or not at all: then the launcher ends them, as torchrun and accelerate launch do
within seconds of the first process that ends with a status other than 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from helpers.core.errors import HelpersError, RunError
from helpers.core.processes import place

__all__ = ["LostError", "explain_loss", "losses_explained"]

SIGNS = (
    "Application timeout caused pair closure",
    "Broken pipe",
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL communicator was aborted",
    "Read error",
    "Timed out waiting",
    "Write error",
    "remote process exited",
)
"""What gloo, NCCL and torch's store say when the other side is gone."""


class LostError(RunError):
    """Another process of this job ended before its work was done."""


def explain_loss(error: BaseException, last_step: int | None = None) -> LostError | None:
    """Return what an error means if another process is gone.

    Args:
        error: What was raised in this process.
        last_step: Step of the last complete checkpoint, if there is one.

    Returns:
        The error to show, or None for any other error and in a process that is alone.
    """
    count = place().count
    if count == 1 or isinstance(error, HelpersError) or not isinstance(error, RuntimeError):
        return None
    if not any(sign in str(error) for sign in SIGNS):
        return None
    onward = f"goes on from the checkpoint of step {last_step}" if last_step else "goes on"
    return LostError(
        "processes",
        f"all {count} to work to the end",
        "one that ended early",
        f"Its own message, or the launcher's, says why. The same command, with as many processes or fewer, {onward}.",
    )


@contextmanager
def losses_explained() -> Iterator[None]:
    """Say in plain words that another process is gone.

    Raises:
        LostError: In place of what torch raised.
    """
    try:
        yield
    except RuntimeError as error:
        said = explain_loss(error)
        if said is None:
            raise
        raise said from error
