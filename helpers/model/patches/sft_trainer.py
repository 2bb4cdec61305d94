"""Unsloth imported without its variants of trainers that are not used here.

While it is imported on a GPU, Unsloth writes its own variant of each of TRL's trainers, of SFT and of DPO, GRPO and a
dozen more, and imports them: 9 of the import's 24 seconds on the host of an H100. Training here is SFT alone.

Whoever wants the others imports unsloth before this package does, and gets all of them.

Found against unsloth 2026.10.9: `unsloth.models.rl.patch_trl_rl_trainers` goes through the trainers, and
`_patch_trl_rl_trainers` writes one. Where these are not found, nothing is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

__all__ = ["sft_alone"]

MODULE, EACH, ALL = "unsloth.models.rl", "_patch_trl_rl_trainers", "patch_trl_rl_trainers"


@contextmanager
def sft_alone() -> Iterator[None]:
    """Import Unsloth inside the block; of its trainers only the one for SFT is made."""
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    try:
        yield
    finally:
        sys.meta_path.remove(watcher)


class _Watcher(MetaPathFinder):
    """Finds one module as it is found anyway, and changes it as soon as it is there."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _narrow(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _narrow(module: Any) -> None:
    """Let the module make the trainer for SFT when it is asked for all."""
    each = getattr(module, EACH, None)
    if each is not None and hasattr(module, ALL):
        setattr(module, ALL, lambda: each("sft_trainer"))
