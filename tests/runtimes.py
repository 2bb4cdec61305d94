"""Recorded package lists of Colab and Kaggle, and what tests do with them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from helpers.runtime.hardware import Host
from helpers.runtime.lockfile import read_lock

FIXTURES = Path(__file__).parent / "fixtures"
HOST = Host("3.12.4")
COLAB = Host("3.12.4", service="colab")


def runtime(name):
    """Installed versions of a recorded runtime."""
    return {pin.name: pin.version for pin in read_lock(FIXTURES / f"{name}.txt")}


def requires(table):
    """Declared requirements from a table keyed by "name version"."""
    return lambda name, version: table.get(f"{name} {version}", ())


@contextmanager
def own_machine():
    """A machine of one's own, whose environment variables are put back afterwards."""
    with mock.patch.dict(os.environ):
        for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "CUDA_VISIBLE_DEVICES", "VERTEX_PRODUCT"):
            os.environ.pop(name, None)
        yield
