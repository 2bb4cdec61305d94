"""What was decided, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Choice", "choose_unless"]


@dataclass(frozen=True)
class Choice:
    """One of several ways, chosen by rule; what else the decision found out stands in a subclass's fields.

    Args:
        name: Of what was chosen, such as "adamw_8bit" or "graphs".

    Example:
        >>> print(Choice("adamw_8bit", "The card has 14.7 GiB, less than 20.0 GiB."))
        adamw_8bit: The card has 14.7 GiB, less than 20.0 GiB.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def choose_unless(against: Iterable[tuple[bool, str]], chosen: Choice, otherwise: str) -> Choice:
    """Return what is chosen unless a condition holds; then the other way, for the reason of the first that does.

    Example:
        >>> print(choose_unless([(True, "it is off")], Choice("graphs", "it is faster"), "none"))
        none: it is off
    """
    why = next((reason for holds, reason in against if holds), None)
    return chosen if why is None else Choice(otherwise, why)
