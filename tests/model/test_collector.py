"""The garbage collector rests while modules are imported, and looks at what they made only when it should."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from helpers.model.patches import imports as collector
from helpers.model.patches.imports import leave_alone, long_lived


@pytest.fixture(autouse=True)
def thawed(monkeypatch):
    """Nothing is frozen before or after a test, and the collector runs."""
    gc.unfreeze()
    monkeypatch.setattr(collector, "_set_aside", [False])
    yield
    gc.unfreeze()
    gc.enable()


class TestImports:
    """`long_lived`."""

    def test_the_collector_rests_and_then_leaves_alone_what_was_made(self):
        """It does not run inside the block, and what was made there is frozen."""
        with long_lived():
            assert not gc.isenabled()
            made = [[each] for each in range(100)]
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(made)
        assert not any(each is made for each in gc.get_objects())

    def test_after_an_error_it_runs_again(self):
        """A module that cannot be imported does not switch it off for good."""
        with pytest.raises(ImportError), long_lived():
            raise ImportError
        assert gc.isenabled()

    def test_one_that_was_off_stays_off(self):
        """Who had switched it off finds it off."""
        gc.disable()
        with long_lived():
            pass
        assert not gc.isenabled()

    def test_what_someone_else_froze_is_all_that_is_frozen(self):
        """All that is frozen is what the other froze."""
        gc.freeze()
        before = gc.get_freeze_count()
        made = []
        with long_lived():
            made.extend([each] for each in range(10_000))
        assert gc.get_freeze_count() < before + 10_000

    def test_a_few_frozen_at_the_start_are_nobodys(self, monkeypatch):
        """Python 3.12 begins with some 400 frozen objects; what is imported is frozen all the same, in both blocks."""
        count = gc.get_freeze_count
        for block in (long_lived, leave_alone):
            gc.unfreeze()
            with monkeypatch.context() as patch:
                patch.setattr(gc, "get_freeze_count", lambda: 375)
                with block():
                    inside = [[each] for each in range(10_000)] if block is long_lived else count()
            assert (count() if block is long_lived else inside) > 10_000

    @pytest.mark.slow
    def test_importing_unsloth_is_done_so(self):
        """In a fresh process the import costs not one run, and a second import freezes nothing more."""
        code = (
            "import gc; runs = []; gc.callbacks.append(lambda phase, info: runs.append(phase))\n"
            "from helpers.model.load import import_unsloth\n"
            "before = len(runs); import_unsloth(); assert len(runs) == before, len(runs) - before\n"
            "frozen = gc.get_freeze_count(); assert frozen > 100_000, frozen\n"
            "held = [[] for _ in range(50_000)]; import_unsloth(); assert gc.get_freeze_count() <= frozen"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]


class TestTraining:
    """`leave_alone`."""

    def test_what_was_there_is_looked_at_again_afterwards(self):
        """Frozen inside the block, looked at again after it."""
        with leave_alone():
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() == 0

    def test_imports_set_aside_before_do_not_hinder_it(self):
        """What was imported is frozen already; what came since is frozen, too, and all of it thawed."""
        with long_lived():
            pass
        frozen = gc.get_freeze_count()
        made = [[each] for each in range(10_000)]
        with leave_alone():
            assert gc.get_freeze_count() >= frozen + len(made)
        assert gc.get_freeze_count() == 0

    def test_a_block_within_changes_nothing(self):
        """The inner of two blocks neither freezes nor thaws."""
        with leave_alone():
            frozen = gc.get_freeze_count()
            with leave_alone():
                pass
            assert gc.get_freeze_count() == pytest.approx(frozen, abs=100)

    def test_what_someone_else_froze_stays_frozen(self):
        """Who froze it may thaw it."""
        gc.freeze()
        with leave_alone():
            pass
        assert gc.get_freeze_count() > 1000

    def test_a_cycle_made_before_is_collected_after(self):
        """Garbage of an import is not kept for good."""

        class Node:
            alive = 0

            def __init__(self):
                Node.alive += 1
                self.me = self

            def __del__(self):
                Node.alive -= 1

        with long_lived():
            Node()
        gc.collect()
        assert Node.alive == 1  # frozen
        with leave_alone():
            pass
        gc.collect()
        assert Node.alive == 0
