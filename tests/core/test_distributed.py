"""Which process this is, its rows of a step, and what it says when another one is gone."""

from __future__ import annotations

import pytest

from helpers.core.config import TrainConfig, build_config
from helpers.core.distributed import (
    PeerExitError,
    Place,
    Share,
    explain_peer_exit,
    gather,
    join,
    local_config,
    on_main,
    peer_exits_explained,
    place,
    same_everywhere,
    share_out,
)
from helpers.core.errors import ConfigError, RunError, StackError


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
    """Work is done, and values are its own."""
    assert on_main(lambda: 5) == 5
    assert gather("mine") == ["mine"]


def test_what_differs_between_processes_is_refused(alone, monkeypatch):
    """As with GPUs of which one trains in 8 bit and the other does not; alone there is nothing to differ."""
    import torch

    def all_gather_object(values, own):
        values[:] = [own, "fp16"]

    same_everywhere("number format", "bf16")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    same_everywhere("number format", "fp16")
    with pytest.raises(StackError, match="the same number format in each, got 'process 0: bf16; process 1: fp16'"):
        same_everywhere("number format", "bf16")


def test_a_tensor_saved_for_a_second_cpu_is_loaded(monkeypatch, tmp_path):
    """PyTorch 2.13 does not know the device "cpu:1", under which accelerate has a second process load its optimizer."""
    import torch

    from helpers.core import distributed

    path = tmp_path / "state.pt"
    torch.save(torch.arange(3), path)
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        torch.load(path, map_location="cpu:1", weights_only=True)
    monkeypatch.setattr(torch.serialization, "_package_registry", [*torch.serialization._package_registry])
    torch.serialization.register_package(1, lambda storage: None, distributed._load_on_cpu)
    assert torch.load(path, map_location="cpu:1", weights_only=True).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("batch", "passes", "processes", "own"),
    [
        (2, 4, 1, (2, 4)),
        (2, 4, 2, (2, 2)),
        (2, 4, 4, (2, 1)),
        (2, 4, 8, (1, 1)),
        (8, 1, 2, (4, 1)),
        (8, 3, 4, (6, 1)),
        (4, 3, 2, (3, 2)),
    ],
)
def test_the_rows_of_a_step_stay_as_many(batch, passes, processes, own):
    """Passes are spread first; where that does not divide, they become smaller, never larger than batch_size."""
    share = share_out(TrainConfig(batch_size=batch, gradient_accumulation=passes), processes)
    assert (share.batch_size, share.gradient_accumulation) == own
    assert share.rows_per_step() == batch * passes


def test_an_uneven_split_is_refused_with_the_numbers():
    """The message has the rows, the processes, the counts that would do, and the next number of rows."""
    with pytest.raises(ConfigError) as caught:
        share_out(TrainConfig(batch_size=2, gradient_accumulation=4), 3)
    assert str(caught.value) == (
        "batch_size x gradient_accumulation: expected rows that 3 processes can share evenly, got '2 x 4 = 8'. "
        "Launch 1, 2, 4, 8 processes, or choose 9 rows a step under another run_name."
    )


def test_a_share_describes_itself():
    """All four numbers stand in the sentence."""
    assert Share(2, 4, 3).describe() == (
        "24 rows an optimizer step = 2 processes x batch_size 4 x gradient_accumulation 3."
    )


def test_one_process_sees_its_own_part_of_a_run():
    """Only the layout differs from the run's configuration."""
    config = build_config("alpaca", preset="smoke", batch_size=4, gradient_accumulation=2)
    own = local_config(config, 4)
    assert (own.train.batch_size, own.train.gradient_accumulation) == (2, 1)
    changed = {k for k, v in own.flat().items() if config.flat()[k] != v}
    assert changed == {"batch_size", "gradient_accumulation"}


GLOO = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


@pytest.fixture
def two(monkeypatch):
    """The environment of the second of two processes."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)


def test_a_closed_connection_is_explained(two):
    """The message says what to do, and where the run goes on."""
    assert str(explain_peer_exit(RuntimeError(GLOO), last_step=40)) == (
        "processes: expected all 2 to work to the end, got 'one that ended early'. Its own message, or the launcher's, "
        "says why. The same command, with as many processes or fewer, goes on from the checkpoint of step 40."
    )


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), OSError(GLOO), RunError("memory", "enough", "none")])
def test_other_errors_stay_as_they_are(two, error):
    """Only what the transport says of the other side is translated."""
    assert explain_peer_exit(error) is None


def test_a_process_that_is_alone_loses_nobody(monkeypatch):
    """The same words mean something else there."""
    monkeypatch.delenv("RANK", raising=False)
    assert explain_peer_exit(RuntimeError(GLOO)) is None


def test_the_transports_error_is_kept_as_the_cause(two):
    """What is raised instead names it, and anything else passes."""
    cause = RuntimeError(GLOO)
    with pytest.raises(PeerExitError) as caught, peer_exits_explained():
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(RuntimeError, match="CUDA error"), peer_exits_explained():
        raise RuntimeError("CUDA error")
