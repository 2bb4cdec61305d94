"""Fixtures shared by the tests. No test touches the network."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers whose threads wait for each other are several times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.modules["rfc3987_syntax"] = None  # optional to jsonschema, which nbformat imports: its grammar takes over a second


def pytest_collection():
    """Let the garbage collector rest while test files import the libraries: a sixth of that time."""
    gc.disable()


def pytest_collection_finish():
    """Let it work again, on what tests make."""
    gc.freeze()
    gc.enable()


def pytest_configure(config):
    """Tell the fuzzing tests when slow tests are left out."""
    if "not slow" in config.getoption("markexpr"):
        os.environ["HURRY"] = "1"


@pytest.fixture(scope="module", autouse=True)
def _libraries_set_aside():
    """Keep the garbage collector from the million objects that the libraries made: a quarter of some files' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory) -> Path:
    """A folder with a two-layer Mistral and Mistral's real v0.3 tokenizer."""
    from tiny import build_mistral

    return build_mistral(tmp_path_factory.mktemp("models") / "tiny-mistral")


@pytest.fixture(scope="session")
def mistral_tokenizer(tiny_mistral):
    """Mistral's v0.3 tokenizer with our template installed. Shared: do not change it."""
    from transformers import AutoTokenizer

    from helpers.data.chat_templates import install_template

    tokenizer = AutoTokenizer.from_pretrained(tiny_mistral)
    install_template(tokenizer, "chat")
    return tokenizer


@pytest.fixture
def unsloth_modes(monkeypatch) -> list[str]:
    """Unsloth's switch between its modes, without its import, which takes seconds; lists the modes it was put into."""
    modes: list[str] = []
    switch = {f"for_{mode}": lambda model, mode=mode: modes.append(mode) for mode in ("inference", "training")}
    module = types.SimpleNamespace(FastLanguageModel=types.SimpleNamespace(**switch))
    monkeypatch.setitem(sys.modules, "unsloth", module)
    return modes


@pytest.fixture
def imagine_cards(monkeypatch):
    """Gives this machine cards, each with (free, total) bytes of memory; returns the shares that torch is held to."""

    def imagine(*memory, name="NVIDIA H100", capability=(9, 0)) -> dict[int, float]:
        import torch
        from transformers import TrainerCallback  # noqa: F401 - imported later, it would look for what these cards lack

        limits: dict[int, float] = {}
        cuda = {
            "is_available": lambda: bool(memory),
            "device_count": lambda: len(memory),
            "current_device": lambda: 0,
            "mem_get_info": lambda card=0: memory[card],
            "get_device_name": lambda card: name,
            "get_device_capability": lambda card: capability,
            "set_per_process_memory_fraction": lambda share, card: limits.__setitem__(card, share),
        }
        for function, stand_in in cuda.items():
            monkeypatch.setattr(torch.cuda, function, stand_in)
        return limits

    return imagine


@pytest.fixture
def leave_free(monkeypatch):
    """Makes every disk have so many bytes free."""

    def leave(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**13, 0, size))

    return leave


@pytest.fixture
def runs_folder(tmp_path, monkeypatch) -> Path:
    """An empty folder that runs are made in."""
    monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def mount_disk(tmp_path):
    """Mounts a disk of its own, of a size such as "4m", and returns its folder."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("mounting a tmpfs takes root on Linux")
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this machine does not let root mount a tmpfs")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # torch keeps a file open that it could not write


@pytest.fixture
def small_disk(mount_disk, monkeypatch):
    """A disk of 4 MiB that runs are made on."""
    place = mount_disk("4m")
    monkeypatch.setenv("HELPERS_RUNS_DIR", str(place))
    return place


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """A process that has imported the training stack and forks children which train and may be killed."""
    from nursery import Nursery

    folder = Nursery(tmp_path_factory.mktemp("nursery"))
    yield folder
    folder.close()
