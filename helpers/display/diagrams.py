"""The course's diagrams: SVG files, as an image in a notebook and in words anywhere else.

`scripts/build_drawings` makes the files.
"""

from __future__ import annotations

import base64
from html import escape
from importlib import resources
from xml.etree import ElementTree

from helpers.display.tables import Shown

__all__ = ["show_drawing"]

_SVG = "{http://www.w3.org/2000/svg}"


def show_drawing(name: str) -> Shown:
    """Show a diagram: an image in a notebook, its title and description anywhere else.

    Args:
        name: "lora", "lora_small", "mask", "nf4" or "packing".
    """
    svg = resources.files("helpers.display").joinpath("drawings", f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)  # noqa: S314  a file of this package
    words = f"{root.findtext(f'{_SVG}title')}. {root.findtext(f'{_SVG}desc')}"
    source, style = base64.b64encode(svg.encode()).decode(), f"width:100%;max-width:{root.get('width')}px"
    image = f'<img alt="{escape(words, quote=True)}" src="data:image/svg+xml;base64,{source}" style="{style}">'
    return Shown(image, words)
