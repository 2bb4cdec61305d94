"""Which process this is, and what a process that is alone does."""

from __future__ import annotations

import pytest

from helpers.core.errors import StackError
from helpers.core.processes import Place, gather, join, on_main, place, same_everywhere, total


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


def test_what_differs_between_processes_is_refused(alone, monkeypatch):
    """As with GPUs of which one trains in 8 bit and the other does not; alone there is nothing to differ."""
    same_everywhere("number format", "bf16")
    monkeypatch.setattr("helpers.core.processes.gather", lambda value: [value, "fp16"])
    same_everywhere("number format", "fp16")
    with pytest.raises(StackError, match="the same number format in each, got 'process 0: bf16; process 1: fp16'"):
        same_everywhere("number format", "bf16")


def test_a_tensor_saved_for_a_second_cpu_is_loaded(monkeypatch, tmp_path):
    """PyTorch 2.13 does not know the device "cpu:1", under which accelerate has a second process load its optimizer."""
    import torch

    from helpers.core import processes

    path = tmp_path / "state.pt"
    torch.save(torch.arange(3), path)
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        torch.load(path, map_location="cpu:1", weights_only=True)
    monkeypatch.setattr(torch.serialization, "_package_registry", [*torch.serialization._package_registry])
    torch.serialization.register_package(1, lambda storage: None, processes._load_on_cpu)
    assert torch.load(path, map_location="cpu:1", weights_only=True).tolist() == [0, 1, 2]
