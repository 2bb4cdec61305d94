"""Which process this is, and what a process that is alone does."""

from __future__ import annotations

import pytest

from helpers.errors import StackError
from helpers.processes import Place, gather, join, on_main, place, total


@pytest.fixture
def alone(monkeypatch):
    """An environment without a launcher."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_a_process_is_alone(alone):
    """It is the main one, of one."""
    assert place() == Place(rank=0, count=1, local=0)
    assert join().main


def test_the_launcher_says_which_process_this_is(monkeypatch):
    """The fourth of eight processes is the second on its machine."""
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert place() == Place(rank=3, count=8, local=1)
    assert not place().main


def test_variables_that_are_no_numbers_are_refused(monkeypatch):
    """The message shows them."""
    for name, value in (("RANK", "first"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(StackError, match="first, 2, 0"):
        place()


def test_alone_everything_is_done_here(alone):
    """Work is done, values are its own, sums have one part."""
    assert on_main(lambda: 5) == 5
    assert gather("mine") == ["mine"]
    assert total(7) == 7
