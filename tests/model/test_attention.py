"""Which attention training uses, and when this project's own is not needed any more."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from sources import package_root

from helpers.model.patches import UNSLOTH_TESTED, attention
from helpers.model.patches.attention import choose_attention, efficient_varlen, flash_varlen

ROOT = Path(__file__).resolve().parents[2]
DISPATCH = "unsloth/utils/attention_dispatch.py"


def choose(**changes):
    """Choose for an H100 with torch 2.11 and nothing else installed."""
    stack = {"torch_version": "2.11.0+cu128", "unsloth_version": "2026.10.9", "capability": (9, 0)}
    return choose_attention(**{**stack, "flash_attn": False, "xformers": False, **changes})


class TestChoice:
    """By card, versions and wish."""

    @pytest.mark.parametrize(
        ("changes", "name", "reason"),
        [
            ({}, "varlen (torch kernel)", "torch 2.11 carries the kernel"),
            ({"capability": None}, "sdpa", "there is no GPU"),
            ({"capability": (7, 5)}, "varlen (memory-efficient kernel)", "needs compute capability 8.0"),
            ({"flash": False}, "varlen (memory-efficient kernel)", "needs compute capability 8.0"),
            ({"capability": (7, 5), "wanted": False}, "sdpa", "varlen_attention is off"),
            ({"capability": (7, 5), "torch_version": "2.13.0"}, "sdpa", "not with torch 2.13.0"),
            ({"capability": (7, 5), "xformers": True}, "xformers", "xformers loads"),
            ({"flash_attn": True}, "flash-attn", "flash-attn is installed"),
            ({"torch_version": "2.12.0"}, "varlen (torch)", "from torch 2.12 on"),
            ({"torch_version": "2.10.0"}, "sdpa", "not with torch 2.10.0"),
            ({"unsloth_version": "2026.11.1"}, "sdpa", "not with torch 2.11.0"),
            ({"wanted": False}, "sdpa", "varlen_attention is off"),
            ({"wanted": False, "torch_version": "2.13.0"}, "varlen (torch)", "from torch 2.12 on"),
        ],
    )
    def test_it_has_a_reason(self, changes, name, reason):
        """Each stack has its attention, and a sentence that says why."""
        found = choose(**changes)
        assert found.name == name
        assert reason in found.reason


class TestInstall:
    """The kernel in Unsloth's dispatcher."""

    @pytest.fixture
    def dispatch(self, monkeypatch):
        """A dispatcher, and a module that imported its function by name."""
        first, second = ModuleType("dispatch_first"), ModuleType("dispatch_second")
        first.FLASH_VARLEN = "flash"
        first.select_attention_backend = lambda use_varlen=False, dropout_p=0.0: "sdpa"
        second.select_attention_backend = first.select_attention_backend
        monkeypatch.setitem(sys.modules, "dispatch_first", first)
        monkeypatch.setitem(sys.modules, "dispatch_second", second)
        return first, second

    def test_only_rows_without_padding_take_it(self, dispatch):
        """Batches of several rows go to the kernel, others where they went before."""
        first, second = dispatch
        attention._install(first)
        assert second.select_attention_backend(use_varlen=True) == "flash"
        assert second.select_attention_backend() == "sdpa"

    def test_it_can_be_undone(self, dispatch):
        """The former function is kept, and comes back in every module."""
        first, second = dispatch
        original = first.select_attention_backend
        attention._install(first)
        attention._replace_everywhere(first.select_attention_backend, first.select_attention_backend.wrapped)
        assert first.select_attention_backend is second.select_attention_backend is original

    def test_the_kernel_follows_the_choice(self, monkeypatch, imagine_cards):
        """The flash kernel; after torch may not use it any more, the memory-efficient one; and then none."""
        import torch

        found = SimpleNamespace(HAS_FLASH_ATTENTION=False, HAS_XFORMERS=False, FLASH_VARLEN="flash")
        found.select_attention_backend = lambda use_varlen=False, dropout_p=0.0: "sdpa"
        monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(__version__=UNSLOTH_TESTED))
        monkeypatch.setitem(sys.modules, "unsloth.utils", SimpleNamespace(attention_dispatch=found))
        monkeypatch.setitem(sys.modules, attention.DISPATCH, found)
        monkeypatch.setattr(torch, "__version__", "2.11.0")
        imagine_cards((70 << 30, 80 << 30))
        assert attention.enable_varlen().name == attention.FLASH
        assert found.flash_attn_varlen_func is flash_varlen
        monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
        assert attention.enable_varlen().name == attention.MEMORY_EFFICIENT
        assert found.flash_attn_varlen_func is efficient_varlen
        assert found.select_attention_backend(use_varlen=True) == "flash"
        assert attention.enable_varlen(wanted=False).name == "sdpa"
        assert found.select_attention_backend(use_varlen=True) == "sdpa"

    @pytest.mark.parametrize("kernel", [flash_varlen, efficient_varlen])
    def test_a_window_is_refused(self, kernel):
        """A window would be ignored silently, so it is an error."""
        with pytest.raises(NotImplementedError, match="this attention has no window"):
            kernel(None, None, None, None, None, 1, 1, window_size=(4096, 0))

    def test_no_window_is_none(self, monkeypatch):
        """(-1, -1) means no window: the kernel is called."""
        import torch

        calls = []
        monkeypatch.setattr(
            torch.ops.aten, "_flash_attention_forward", lambda *a, **n: calls.append((a, n)) or ["out"], raising=False
        )
        assert flash_varlen("q", "k", "v", "a", "b", 3, 4, causal=True, window_size=(-1, -1)) == "out"
        assert calls == [(("q", "k", "v", "a", "b", 3, 4, 0.0, True, False), {"scale": None})]

    def test_key_heads_are_repeated_for_the_memory_efficient_kernel(self, monkeypatch):
        """It is given as many key heads as heads, one batch, and each row's own triangle: as row by row."""
        import torch

        def attend(q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def kernel(q, k, v, bias, borders, key_borders, longest, longest_key, dropout, mask, backward, scale):
            assert (bias, longest, longest_key, dropout, mask, backward, scale) == (None, 3, 3, 0.0, 1, True, None)
            assert q.shape == k.shape == v.shape == (1, 5, 4, 8)
            sizes = borders.diff().tolist()
            rows = zip(*(each.transpose(1, 2).split(sizes, dim=2) for each in (q, k, v)), strict=True)
            return [torch.cat([attend(*row) for row in rows], dim=2).transpose(1, 2)]

        monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", kernel, raising=False)
        q, k, v = (torch.randn(5, heads, 8, generator=torch.manual_seed(heads)) for heads in (4, 2, 2))
        borders = torch.tensor([0, 3, 5])
        found = efficient_varlen(q, k, v, borders, borders, 3, 3, causal=True)
        for first, last in ((0, 3), (3, 5)):
            row = attend(*(each[first:last].transpose(0, 1)[None] for each in (q, k, v)))
            torch.testing.assert_close(found[first:last], row[0].transpose(0, 1))


class TestUpstream:
    """Whether the work-around is still needed. On a failure read the reason, and shorten the module."""

    def test_it_was_made_for_the_locked_unsloth(self):
        """The version that it knows is the one in pyproject.toml; another one may have its own path for torch 2.11."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert f"unsloth=={UNSLOTH_TESTED}" in project["dependencies"]
        assert importlib.metadata.version("unsloth") == UNSLOTH_TESTED

    def test_unsloth_still_leaves_torch_2_11_out(self):
        """Unsloth takes torch's own kernel only where varlen_attn has enable_gqa, which torch 2.11's has not."""
        source = (package_root("unsloth") / DISPATCH).read_text(encoding="utf-8")
        loader = re.search(r"def _load_torch_varlen_attn\(\):\n(.*?)\n\n\n", source, re.DOTALL)[1]
        assert '"window_size" not in params or "enable_gqa" not in params' in loader
        assert "Needs window_size (torch 2.11) and enable_gqa (2.12)" in loader

    def test_torch_has_its_own_from_2_12_on(self):
        """On torch 2.12 and later varlen_attn takes enable_gqa, so nothing is installed there."""
        import inspect

        import torch
        from torch.nn.attention.varlen import varlen_attn

        newer = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
        assert ("enable_gqa" in inspect.signature(varlen_attn).parameters) == newer
        assert (choose(torch_version=torch.__version__).name == "varlen (torch)") == newer

    def test_the_loss_needs_no_budget(self):
        """Unsloth's chunked loss stands aside for UNSLOTH_CE_LOSS_TARGET_GB, so setting it would cost memory."""
        source = (package_root("unsloth_zoo") / "unsloth_zoo/fused_losses/cross_entropy_loss.py").read_text("utf-8")
        assert "if not _CHUNKED_CE or target_gb is not None or TARGET_GB or N_CHUNKS:" in source
