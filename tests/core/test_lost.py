"""What a process says when another one of its job is gone."""

from __future__ import annotations

import pytest

from helpers.core.errors import RunError
from helpers.core.lost import LostError, explain_loss, losses_explained

GLOO = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


@pytest.fixture
def two(monkeypatch):
    """The environment of the second of two processes."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)


def test_a_closed_connection_is_explained(two):
    """The message says what to do, and where the run goes on."""
    assert str(explain_loss(RuntimeError(GLOO), last_step=40)) == (
        "processes: expected all 2 to work to the end, got 'one that ended early'. Its own message, or the launcher's, "
        "says why. The same command, with as many processes or fewer, goes on from the checkpoint of step 40."
    )


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), OSError(GLOO), RunError("memory", "enough", "none")])
def test_other_errors_stay_as_they_are(two, error):
    """Only what the transport says of the other side is translated."""
    assert explain_loss(error) is None


def test_a_process_that_is_alone_loses_nobody(monkeypatch):
    """The same words mean something else there."""
    monkeypatch.delenv("RANK", raising=False)
    assert explain_loss(RuntimeError(GLOO)) is None


def test_the_transports_error_is_kept_as_the_cause(two):
    """What is raised instead names it, and anything else passes."""
    cause = RuntimeError(GLOO)
    with pytest.raises(LostError) as caught, losses_explained():
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(RuntimeError, match="CUDA error"), losses_explained():
        raise RuntimeError("CUDA error")
