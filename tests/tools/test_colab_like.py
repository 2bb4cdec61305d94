"""An imitation of Colab: which packages it gets, and how a notebook is prepared for it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tools.colab_like import NOTEBOOKS, moved, prepared, recorded

ROOT = Path(__file__).resolve().parents[2]


def test_it_has_colabs_older_packages():
    """The recorded list gives transformers, PEFT and pyarrow in Colab's versions, and nothing that the lock lacks."""
    found = recorded("colab_2026_08_py313")
    assert {name: found[name] for name in ("transformers", "peft", "datasets", "numpy")} == {
        "transformers": "5.15.0",
        "peft": "0.20.0",
        "datasets": "4.0.0",
        "numpy": "2.1.3",
    }
    assert not {"torch", "unsloth", "trl", "bitsandbytes", "mistral-qlora-notebooks"} & found.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_gets_small_values_and_this_checkout(name):
    """Each published notebook installs from the given source, once, and trains or compares little."""
    book = prepared(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4), "git+file:///checkout@abc")
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    assert sum(source.count('"git+file:///checkout@abc"') for source in sources) == 1
    (values,) = [cell.source for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    wanted = ["prompt_count = 2"] if name == "side_by_side_eval" else ["max_steps = 2", "train_rows = 16"]
    assert [line for line in ['preset = "smoke"', *wanted] if f"\n{line}  #" not in f"\n{values}"] == []


def test_a_notebook_that_installs_nothing_is_refused():
    """An imitation that ran without installing this project would prove nothing."""
    with pytest.raises(ValueError, match="no cell installs this project"):
        prepared(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), "git+file:///x")


def test_what_moved_is_said():
    """A package whose newest version is the lock's, or that the lock lacks, is not named."""
    assert moved({"trl": "99.0", "not-in-the-lock": "1.0"})[0].endswith("the newest that fits is 99.0")
    assert moved({"trl": "1.15.0", "not-in-the-lock": "1.0"}) == []
