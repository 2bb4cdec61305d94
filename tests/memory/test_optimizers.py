"""Which optimizer trains on which card, with its reason."""

from __future__ import annotations

import pytest

from helpers.memory.plan import choose_optimizer, resolve_optimizer
from helpers.runtime.hardware import LARGE_GPU_BYTES, Gpu


def card(size):
    """A GPU with this much memory, in bytes."""
    return Gpu("GPU", (8, 0), size, size)


@pytest.mark.parametrize(
    ("wanted", "gpu", "name", "reason"),
    [
        ("auto", None, "adamw_torch", "Optimizer: on a CPU it is always torch's own AdamW."),
        ("adamw_8bit", None, "adamw_torch", "Optimizer: on a CPU it is always torch's own AdamW."),
        ("adamw_8bit", card(LARGE_GPU_BYTES), "adamw_8bit", "Optimizer adamw_8bit, as asked for."),
        ("adamw_torch_fused", card(2**34), "adamw_torch_fused", "Optimizer adamw_torch_fused, as asked for."),
    ],
)
def test_what_is_given(wanted, gpu, name, reason):
    """A GPU gets what the user wants, a CPU torch's own."""
    found = choose_optimizer(wanted, gpu)
    assert (found.name, found.reason) == (name, reason)


def test_a_large_card():
    """From 20 GiB on fewer launches count more than memory."""
    found = choose_optimizer("auto", card(LARGE_GPU_BYTES))
    assert found.name == "adamw_torch_fused"
    assert found.reason == (
        "Optimizer adamw_torch_fused: few launches for all weights; the memory that adamw_8bit saves matters little "
        "from 20.0 GiB on (20.0 GiB here)."
    )


def test_a_small_card():
    """Below that memory counts."""
    found = choose_optimizer("auto", card(LARGE_GPU_BYTES - 1))
    assert found.name == "adamw_8bit"
    assert found.reason == (
        "Optimizer adamw_8bit: 2 bytes a trained parameter instead of 8, which matters below 20.0 GiB (20.0 GiB here)."
    )


@pytest.mark.parametrize("wanted", ["auto", "adamw_8bit", "adamw_torch_fused"])
@pytest.mark.parametrize("gpu", [None, card(2**34), card(LARGE_GPU_BYTES)])
def test_a_prediction_knows_it_from_the_size_alone(wanted, gpu):
    """The name is the same as with the whole card."""
    assert resolve_optimizer(wanted, gpu and gpu.total_bytes) == choose_optimizer(wanted, gpu).name
