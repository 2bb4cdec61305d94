"""The course's diagrams: SVG files, as an image in a notebook and in words anywhere else.

`scripts/build_drawings` makes the files.
"""

from __future__ import annotations

import base64
from html import escape
from importlib import resources
from xml.etree import ElementTree

__all__ = ["show_drawing"]

_SVG = "{http://www.w3.org/2000/svg}"


class Drawing:
    """A diagram: an image in a notebook, its description anywhere else.

    Args:
        svg: A picture with `title` and `desc`.
    """

    def __init__(self, svg: str) -> None:
        root = ElementTree.fromstring(svg)  # noqa: S314  a file of this package
        self.svg = svg
        self.width = root.get("width")
        self.words = f"{root.findtext(f'{_SVG}title')}. {root.findtext(f'{_SVG}desc')}"

    def _repr_html_(self) -> str:
        source = base64.b64encode(self.svg.encode()).decode()
        words, style = escape(self.words, quote=True), f"width:100%;max-width:{self.width}px"
        return f'<img alt="{words}" src="data:image/svg+xml;base64,{source}" style="{style}">'

    def __repr__(self) -> str:
        return self.words


def show_drawing(name: str) -> Drawing:
    """Show a diagram.

    Args:
        name: "lora", "lora_small", "mask", "nf4" or "packing".

    Raises:
        FileNotFoundError: There is none of this name.
    """
    return Drawing(resources.files("helpers.display").joinpath("drawings", f"{name}.svg").read_text(encoding="utf-8"))
