"""One palette and one style for everything that is drawn: tables, plots, the report and its figures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from helpers.core.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BASE",
    "BETTER",
    "INK",
    "NEITHER",
    "SHIFTED",
    "SOFT",
    "TUNED",
    "WORSE",
    "Drawing",
    "new_figure",
    "plain_text",
]

BASE, TUNED = "#9a4a00", "#5b3aa8"
"""The two arms, brown and violet, in tables, figures, cards and marks alike."""

BETTER, WORSE, NEITHER = "#17653a", "#a3195b", "#8a8a8a"
"""Verdicts and single rows: green, magenta, grey. Shapes differ too, so that no one needs to see the colours."""

LEARNED = "#0072B2"
"""What the loss is taken over, and the loss on held-out rows: blue (Okabe and Ito)."""

SHIFTED = {"marginal": "#f3e3a1", "shifted": "#e2b007"}
"""Tokens that the base model would not have written: amber, the darker the further down it ranks them."""

INK, SOFT = "#1c1c1c", "#5f5f5f"
"""Text and axes. The report inverts pictures in dark mode, so that these become light."""

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "svg.fonttype": "path",  # letters as shapes: a picture inside a page has no fonts of its own
    "svg.hashsalt": "side-by-side",  # the same picture gives the same file
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Drawing:
    """A picture with the words that belong to it.

    Args:
        name: A short name for its file, such as "differences".
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """Return the picture as SVG, without a background."""
        metadata = {"Date": None, "Creator": None}
        return self._written(format="svg", transparent=True, metadata=metadata).decode("utf-8")

    def save(self, folder: Path) -> Path:
        """Write the picture as PNG on white, which is readable in a dark notebook too."""
        path = folder / f"{self.name}.png"
        write_bytes(path, self._written(format="png", dpi=150, facecolor="white"))
        return path

    def _written(self, **options: Any) -> bytes:
        import matplotlib

        content = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(content, bbox_inches="tight", **options)
        return content.getvalue()


def new_figure(height: float, *, width: float = 4.4, grid: Literal["x", "y", "both", ""] = "x") -> tuple[Figure, Axes]:
    """Return a figure in the house style that pyplot does not know of.

    Args:
        height: In inches.
        width: In inches; 4.4 leaves letters readable when a phone scales the picture down.
        grid: Which axis has grid lines: "x", "y", "both" or "".
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    if grid:
        axes.grid(axis=grid, color="#8884", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, axes


def plain_text(text: str, limit: int = 0) -> str:
    """Make a text that matplotlib can draw: one line, no formulas, only characters that its font has.

    Args:
        limit: Characters after which it is cut; 0 for none.

    Returns:
        The text; a character that the font lacks becomes "□".
    """
    known = characters("DejaVu Sans Mono")
    line = "".join(c if ord(c) in known else "□" for c in " ".join(text.split())).replace("$", r"\$")
    return line if not limit or len(line) <= limit else f"{line[: limit - 1]}…"


def characters(font: str) -> frozenset[int]:
    """Return the characters that a font of matplotlib has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(font)).get_charmap())
