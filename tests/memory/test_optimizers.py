"""Which optimizer trains on which card, with its reason."""

from __future__ import annotations

import pytest

from helpers.memory.plan import choose_optimizer
from helpers.runtime.hardware import LARGE_GPU_BYTES


@pytest.mark.parametrize(
    ("wanted", "size", "name", "reason"),
    [
        ("auto", None, "adamw_torch", "Optimizer: on a CPU it is always torch's own AdamW."),
        ("adamw_8bit", None, "adamw_torch", "Optimizer: on a CPU it is always torch's own AdamW."),
        ("adamw_8bit", LARGE_GPU_BYTES, "adamw_8bit", "Optimizer adamw_8bit, as asked for."),
        ("adamw_torch_fused", 2**34, "adamw_torch_fused", "Optimizer adamw_torch_fused, as asked for."),
    ],
)
def test_what_is_given(wanted, size, name, reason):
    """A GPU gets what the user wants, a CPU torch's own."""
    found = choose_optimizer(wanted, size)
    assert (found.name, found.reason) == (name, reason)


def test_a_large_card():
    """From 20 GiB on fewer launches count more than memory."""
    found = choose_optimizer("auto", LARGE_GPU_BYTES)
    assert found.name == "adamw_torch_fused"
    assert found.reason == (
        "Optimizer adamw_torch_fused: few launches for all weights; the memory that adamw_8bit saves matters little "
        "from 20.0 GiB on (20.0 GiB here)."
    )


def test_a_small_card():
    """Below that memory counts."""
    found = choose_optimizer("auto", LARGE_GPU_BYTES - 1)
    assert found.name == "adamw_8bit"
    assert found.reason == (
        "Optimizer adamw_8bit: 2 bytes a trained parameter instead of 8, which matters below 20.0 GiB (20.0 GiB here)."
    )
