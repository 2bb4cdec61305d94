"""A small canvas for diagrams: SVG that reads in light and dark, on a phone and on a projector, described in words.

A drawing brings its own paper and its own ink, because an image inherits no colours from its page. Where the reader's
system asks for dark pages, paper and ink change together.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["WIDTH", "Drawing"]

WIDTH = 400
"""Units across; text of 13 units is still legible on a phone that is 360 pixels wide."""

SHOWN = 480
"""Pixels across where there is room."""

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f1f1f",
    "dim": "#5c5c5c",
    "rule": "#9a9a9a",
    "given": "#d5d5d5",
    "learned": "#0072b2",
    "on-learned": "#ffffff",
    "second": "#b34f00",
    "on-second": "#ffffff",
    "third": "#00785a",
    "on-third": "#ffffff",
    "fourth": "#8f4a77",
    "on-fourth": "#ffffff",
}
"""Colours by role: Okabe and Ito's (https://jfly.uni-koeln.de/color/), darkened until white text on them has a contrast
of 4.5 (WCAG 2.2)."""

DARK = LIGHT | {
    "paper": "#1e1e1e",
    "ink": "#f0f0f0",
    "dim": "#b8b8b8",
    "rule": "#8a8a8a",
    "given": "#4d4d4d",
    "learned": "#56b4e9",
    "on-learned": "#10202b",
    "second": "#f0914d",
    "on-second": "#2b1405",
    "third": "#2fbf94",
    "on-third": "#04231a",
    "fourth": "#d79bc2",
    "on-fourth": "#2a1020",
}
"""The same roles on dark paper."""

PLAIN = "system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
MONO = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"


class Drawing:
    """A diagram with a description in words. All its lengths are in units, of which it is 400 wide.

    Args:
        title: What it shows, in a few words.
        description: The same for those who do not see it, and for a log.
    """

    def __init__(self, height: float, title: str, description: str) -> None:
        self.height = height
        self.title = title
        self.description = description
        self.shapes: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, *, dashed: bool = False, edge: bool = True
    ) -> None:
        """Draw a rectangle, from its upper left corner on.

        Args:
            fill: A role of `LIGHT`, or "none".
            dashed: For a place that is empty.
        """
        looks = f"f-{fill} s-rule" if edge else f"f-{fill}"
        outline = ' stroke-dasharray="2 2"' if dashed else ""
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" class="{looks}"{outline}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        role: str = "ink",
        *,
        size: float = 13,
        anchor: str = "start",
        mono: bool = False,
        bold: bool = False,
    ) -> None:
        """Write one line.

        Args:
            y: Its baseline.
            words: Escaped here.
            role: Colour, a role of `LIGHT`.
            anchor: "start", "middle" or "end": which part of the line is at x.
        """
        looks = f"t-{role}" + (" mono" if mono else "") + (" bold" if bold else "")
        place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
        self.shapes.append(f'<text {place} class="{looks}">{escape(words)}</text>')

    def line(self, points: Sequence[tuple[float, float]], role: str = "rule", *, thick: float = 1.5) -> None:
        """Draw a line through points; `role`, of `LIGHT`, is its colour."""
        places = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(f'<polyline points="{places}" class="line s-{role}" stroke-width="{thick:g}"/>')

    def dot(self, x: float, y: float, radius: float, role: str) -> None:
        """Draw a filled circle around (x, y)."""
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="f-{role}"/>')

    def svg(self) -> str:
        """Return the whole picture."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="mqn" role="img" viewBox="0 0 {WIDTH} {self.height:g}" '
            f'width="{SHOWN}" height="{self.height * SHOWN / WIDTH:g}">'
        )
        words = f"<title>{escape(self.title)}</title><desc>{escape(self.description)}</desc>"
        paper = f'<rect width="{WIDTH}" height="{self.height:g}" rx="6" class="f-paper"/>'
        return f"{head}{words}<style>{_styles()}</style>{paper}{''.join(self.shapes)}</svg>"


def _styles() -> str:
    """Return the style sheet; each rule begins with the class of the drawing, so that it changes nothing else."""
    fonts = f".mqn text{{font-family:{PLAIN}}}.mqn .mono{{font-family:{MONO}}}"
    fixed = f"{fonts}.mqn .bold{{font-weight:700}}.mqn .f-none,.mqn .line{{fill:none}}"
    dark = _colours(DARK)
    return f"{fixed}{_colours(LIGHT)}@media (prefers-color-scheme:dark){{{dark}}}"


def _colours(roles: dict[str, str]) -> str:
    """Return the rules that give each role its colour, as a fill, as a stroke and as text."""
    return "".join(
        f".mqn .f-{role},.mqn .t-{role}{{fill:{colour}}}.mqn .s-{role}{{stroke:{colour}}}"
        for role, colour in roles.items()
    )
