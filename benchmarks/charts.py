"""Bars and curves as SVG, drawn from the records in benchmarks/results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tools.svg import WIDTH, Drawing

MARGIN, BAR, GAP = 16, 18, 42
ROLES = {"ours": "learned", "official": "second"}
"""Colours of the two sides of a curve."""


def bars(title: str, rows: Sequence[tuple[str, float, bool]], unit: str) -> Drawing:
    """Draw a bar for each row, its label above it.

    Args:
        title: What is compared.
        rows: (label, value, whether it is ours).
        unit: Stands behind each number.

    Returns:
        The drawing.
    """
    said = ", ".join(f"{label}: {value:.1f} {unit}" for label, value, _ in rows) + "."
    drawing = Drawing(44 + GAP * len(rows) + 8, title, said)
    drawing.text(MARGIN, 28, title, bold=True, size=15)
    longest, room = max(value for _, value, _ in rows), WIDTH - 2 * MARGIN - 84
    for place, (label, value, own) in enumerate(rows):
        top = 44 + GAP * place
        width = max(room * value / longest, 1.5)
        drawing.text(MARGIN, top + 11, label, "dim", size=11.5)
        drawing.box(MARGIN, top + 16, width, BAR, "learned" if own else "given", edge=False)
        drawing.text(MARGIN + width + 6, top + 30, f"{value:.1f} {unit}", size=12)
    return drawing


def lines(title: str, across: str, up: str, sides: Mapping[str, Sequence[tuple[float, float]]]) -> Drawing:
    """Draw one line a side, both axes logarithmic.

    Args:
        title: What is shown.
        across: Name of the horizontal axis, with its unit.
        up: Name of the vertical axis, with its unit.
        sides: (across, up) of the points of each side.

    Returns:
        The drawing.
    """
    said = "; ".join(f"{side}: " + ", ".join(f"{y:.1f} at {x:,}" for x, y in points) for side, points in sides.items())
    drawing = Drawing(268, title, f"{up} by {across}. {said}.")
    drawing.text(MARGIN, 26, title, bold=True, size=15)
    drawing.text(MARGIN, 46, up, "dim", size=11.5)
    drawing.text(WIDTH - MARGIN, 260, across, "dim", size=11.5, anchor="end")
    every = [point for points in sides.values() for point in points]
    place = _Places(every)
    for x in dict.fromkeys(x for x, _ in every):
        drawing.text(place.x(x), 242, f"{x:,}", "dim", size=10.5, anchor="middle")
    for value in place.marks():
        drawing.line([(place.left, place.y(value)), (place.right, place.y(value))], thick=0.5)
        drawing.text(place.left - 6, place.y(value) + 4, f"{value:g}", "dim", size=10.5, anchor="end")
    for number, (side, points) in enumerate(sides.items()):
        role = ROLES.get(side, "third")
        drawing.line([(place.x(x), place.y(y)) for x, y in points], role, thick=2)
        for x, y in points:
            drawing.dot(place.x(x), place.y(y), 3.5, role)
        drawing.text(WIDTH - MARGIN - 92 * number, 46, side, role, size=12, anchor="end", bold=True)
    return drawing


class _Places:
    """Where a value is on the paper."""

    left, right, top, bottom = 56.0, WIDTH - 24.0, 62.0, 222.0

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        xs, ys = zip(*points, strict=True)
        self.xs = math.log(min(xs)), math.log(max(xs)) or 1.0
        self.ys = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def x(self, value: float) -> float:
        """Return where a value is from left to right."""
        low, high = self.xs
        return self.left + (self.right - self.left) * (math.log(value) - low) / (high - low or 1.0)

    def y(self, value: float) -> float:
        """Return where a value is from top to bottom."""
        low, high = self.ys
        return self.bottom - (self.bottom - self.top) * (math.log10(value) - low) / (high - low or 1)

    def marks(self) -> list[float]:
        """Return the powers of ten between the borders."""
        return [10.0**power for power in range(self.ys[0], self.ys[1] + 1)]


def falling(sides: Mapping[str, Sequence[tuple[float, float]]]) -> Drawing:
    """Draw held-out losses by examples seen, both axes linear.

    Args:
        sides: (examples, loss) of the points of each side.

    Returns:
        The drawing.
    """
    said = "; ".join(f"{side}: {points[0][1]:.3f} to {points[-1][1]:.3f}" for side, points in sides.items())
    drawing = Drawing(240 + 18 * len(sides), "Held-out loss by examples seen", said + ".")
    drawing.text(MARGIN, 26, "Held-out loss by examples seen", bold=True, size=15)
    every = [point for points in sides.values() for point in points]
    most, low, high = max(x for x, _ in every), min(y for _, y in every), max(y for _, y in every)
    left, right, top, bottom = 56.0, WIDTH - 24.0, 44.0, 204.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / most, bottom - (bottom - top) * (y - low) / (high - low or 1.0)

    for value in (low, high):
        drawing.line([place(0, value), place(most, value)], thick=0.5)
        drawing.text(left - 6, place(0, value)[1] + 4, f"{value:.2f}", "dim", size=10.5, anchor="end")
    drawing.text(right, bottom + 18, f"{most:g} examples", "dim", size=11.5, anchor="end")
    for number, (side, points) in enumerate(sides.items()):
        role = ("learned", "second", "third", "fourth")[number % 4]
        below = 2 * (len(sides) - 1 - number)  # wider, so that a side on which another lies can be seen
        drawing.line([place(x, y) for x, y in points], role, thick=2 + below)
        drawing.text(MARGIN, bottom + 36 + 18 * number, side, role, size=12, bold=True)
    return drawing


def curve(name: str, sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> Drawing:
    """Draw a curve of benchmarks/train.py."""
    titles = {
        "batch": ("Speed by batch", "rows in a pass", "examples/s", "examples_per_second"),
        "length": ("Speed by length of packed sequences", "tokens in a sequence", "examples/s", "examples_per_second"),
        "rows": ("Time before the first step", "rows", "seconds to the trainer", "seconds_to_trainer"),
    }
    title, across, up, key = titles[name]
    return lines(title, across, up, {side: [(p["at"], p[key]) for p in points] for side, points in sides.items()})
