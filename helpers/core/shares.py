"""How the rows of an optimizer step are shared out among processes: as many a step as asked for, however many GPUs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from helpers.core.config import RunConfig, TrainConfig
from helpers.core.errors import ConfigError

__all__ = ["Share", "local_config", "share_out"]


@dataclass(frozen=True)
class Share:
    """One process's part of an optimizer step.

    Args:
        processes: How many share the step.
        batch_size: Rows in one forward pass of one process.
        gradient_accumulation: Forward passes of one process in one optimizer step.
    """

    processes: int
    batch_size: int
    gradient_accumulation: int

    def rows_per_step(self) -> int:
        """Rows that one optimizer step sees, in all processes together."""
        return self.processes * self.batch_size * self.gradient_accumulation

    def describe(self) -> str:
        """Return the numbers as a sentence."""
        several = "processes" if self.processes > 1 else "process"
        return (
            f"{self.rows_per_step()} rows an optimizer step = {self.processes} {several} x batch_size "
            f"{self.batch_size} x gradient_accumulation {self.gradient_accumulation}."
        )


def share_out(train: TrainConfig, processes: int) -> Share:
    """Share out an optimizer step's rows evenly, with passes of at most `batch_size` rows, as many as possible.

    Args:
        train: Its batch_size x gradient_accumulation rows a step are those of all processes together.
        processes: How many there are.

    Returns:
        Each process's part.

    Raises:
        ConfigError: The rows cannot be shared out evenly.

    Example:
        >>> share_out(TrainConfig(batch_size=2, gradient_accumulation=4), 2)
        Share(processes=2, batch_size=2, gradient_accumulation=2)
    """
    rows = train.rows_per_step()
    if rows % processes:
        counts = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        more = -(-rows // processes) * processes
        raise ConfigError(
            "batch_size x gradient_accumulation",
            f"rows that {processes} processes can share evenly",
            f"{train.batch_size} x {train.gradient_accumulation} = {rows}",
            f"Launch {counts} processes, or choose {more} rows a step under another run_name.",
        )
    own = rows // processes
    size = max(n for n in range(1, min(train.batch_size, own) + 1) if own % n == 0)
    return Share(processes, size, own // size)


def local_config(config: RunConfig, processes: int) -> RunConfig:
    """Return a run as one process sees it: its own batch_size and gradient_accumulation.

    Args:
        config: The run.
        processes: How many share its optimizer steps; 1 changes nothing.

    Raises:
        ConfigError: The rows of a step cannot be shared out evenly.
    """
    share = share_out(config.train, processes)
    own = dataclasses.replace(
        config.train, batch_size=share.batch_size, gradient_accumulation=share.gradient_accumulation
    )
    return dataclasses.replace(config, train=own)
