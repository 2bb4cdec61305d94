"""That the trainer does what was asked for, with the rows that are used."""

from __future__ import annotations

import pytest

from helpers.core.config import DataConfig, build_config
from helpers.core.errors import StackError
from helpers.data.formats import recognise
from helpers.data.rows import Source, _draw
from helpers.training.trainer import _check_mode


@pytest.mark.parametrize(
    ("asked", "done", "on_gpu"), [(True, True, True), (False, False, True), (False, True, True), (True, False, False)]
)
def test_what_was_asked_for_passes(asked, done, on_gpu):
    """A trainer that packs when asked to, or need not, is accepted; on a CPU nothing is packed."""
    _check_mode({"packing": done}, build_config("alpaca", preset="colab-t4", packing=asked), on_gpu=on_gpu)


def test_a_silent_fallback_is_an_error():
    """A trainer that on a GPU does not pack although it was asked to is refused, with what it does."""
    with pytest.raises(StackError, match="a trainer that packs, because packing is True") as caught:
        _check_mode({"packing": False}, build_config("alpaca", preset="colab-t4", packing=True), on_gpu=True)
    assert caught.value.got == "mode {'packing': False}"


def test_only_rows_that_are_used_are_read():
    """Of 51,760 rows, 20 to train on and 5 held out, 25 are read."""
    seen = []

    def row_at(index):
        seen.append(index)
        return {"instruction": f"Say {index}.", "input": "", "output": "It is said."}

    wanted = DataConfig(dataset_name="rows.json", train_rows=20, heldout_rows=5)
    source = Source("rows", 51_760, row_at, recognise([row_at(0)], "rows"))
    seen.clear()
    rows = _draw(wanted, "alpaca", source, 1, ())
    assert (len(rows.train), len(rows.heldout), len(seen)) == (20, 5, 25)
