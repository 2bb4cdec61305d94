"""The course's diagrams as a notebook shows them."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers.display import diagrams
from helpers.display.diagrams import show_drawing


@pytest.mark.parametrize("name", ["lora", "lora_small", "mask", "nf4", "packing"])
def test_a_notebook_shows_it_as_an_image(name):
    """The image takes the width that there is, carries the whole picture, and says in words what is in it."""
    drawing = show_drawing(name)
    image = ElementTree.fromstring(drawing._repr_html_().replace(">", "/>"))
    kind, _, source = image.get("src").partition(",")
    assert (image.tag, kind) == ("img", "data:image/svg+xml;base64")
    assert base64.b64decode(source) == (Path(diagrams.__file__).parent / "drawings" / f"{name}.svg").read_bytes()
    assert image.get("style") == "width:100%;max-width:480px"
    assert image.get("alt") == repr(drawing)


def test_a_log_gets_the_words():
    """In plain text a drawing is its title and description."""
    assert repr(show_drawing("packing")) == (
        "Padding, end to end, packing. 4 rows have 19 tokens. Padded, they take 28 places; end to end 19; packed to "
        "10, 2 sequences. In each case a token attends to its own row only."
    )


def test_it_imports_nothing_heavy():
    """Showing a drawing loads neither matplotlib nor IPython."""
    code = (
        "import sys\nfrom helpers.display.diagrams import show_drawing\nshow_drawing('nf4')._repr_html_()\n"
        "assert not {'matplotlib', 'IPython', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
