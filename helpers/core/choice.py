"""What was decided, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Choice"]


@dataclass(frozen=True)
class Choice:
    """One of several ways, chosen by rule; what else the decision found out stands in a subclass's fields.

    Args:
        name: Of what was chosen, such as "adamw_8bit" or "graphs".
        reason: Why, in a sentence that can be printed.

    Example:
        >>> print(Choice("adamw_8bit", "The card has 14.7 GiB, less than 20.0 GiB."))
        adamw_8bit: The card has 14.7 GiB, less than 20.0 GiB.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
