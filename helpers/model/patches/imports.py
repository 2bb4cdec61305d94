"""Imports of the stack without what a run does not need.

Unsloth writes its own variant of each of TRL's trainers while it is imported on a GPU, of SFT and of DPO, GRPO and a
dozen more, and imports them: 9 of the import's 24 seconds on the host of an H100. Training here is SFT alone. Whoever
wants the others imports unsloth before this package does, and gets all of them. Found against unsloth 2026.10.9:
`unsloth.models.rl.patch_trl_rl_trainers` goes through the trainers, `_patch_trl_rl_trainers` writes one. Where these
are not found, nothing is changed.

transformers and TRL each ask for all installed packages and what they hold. Both get the same answer, for which Python
3.12 checks that 57,000 files of 220 packages exist; here it is found once.

Importing also makes some 900,000 objects that live as long as the process. While they are made, Python's garbage
collector runs 1,500 times, for 1.5 of 10 seconds on two cores of a server; afterwards each `gc.collect()`, of which
Unsloth calls nine to attach an adapter, takes half a second to walk through them. Here it rests during the import, and
then leaves what was imported alone (`gc.freeze`).
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from helpers.model.patches import replaced_method

__all__ = ["long_lived"]

MODULE, EACH, ALL = "unsloth.models.rl", "_patch_trl_rl_trainers", "patch_trl_rl_trainers"

_FEW = 2_000
"""Objects that may be frozen without anybody having done so: Python 3.12 begins with some 400."""

_set_aside = [False]
"""Whether what is frozen was frozen here, after an import, rather than by someone else."""


@contextmanager
def long_lived() -> Iterator[None]:
    """Make objects inside the block that will stay, such as modules: the collector rests, then leaves them alone.

    Where someone else has frozen objects or switched the collector off, it stays so.
    """
    others, running = _frozen() and not _set_aside[0], gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not others:
            gc.freeze()
            _set_aside[0] = True
        if running:
            gc.enable()


@contextmanager
def leave_alone() -> Iterator[None]:
    """Let the collector leave alone what is there now; afterwards it looks at everything again.

    Where someone else has frozen objects, nothing is changed.
    """
    if _frozen() and not _set_aside[0]:
        yield
        return
    gc.collect()
    gc.freeze()
    _set_aside[0] = False  # so that a block within this one changes nothing
    try:
        yield
    finally:
        gc.unfreeze()


def _frozen() -> bool:
    """Say whether objects were frozen, here or by someone else."""
    return gc.get_freeze_count() > _FEW


@contextmanager
def packages_listed_once() -> Iterator[None]:
    """Let libraries that are imported inside the block share one answer when they ask for all installed packages."""
    once = functools.cache(importlib.metadata.packages_distributions)
    with replaced_method(importlib.metadata, "packages_distributions", once):
        yield


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
