"""The garbage collector rests while modules are imported, and looks at what they made only when it should."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from helpers.model.patches.imports import leave_alone, long_lived


def run_afresh(code):
    """Run code in a fresh process, which must not fail."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


class Collector:
    """Stands for the garbage collector's books: how many objects it looks at, and how many are frozen."""

    def __init__(self):
        self.young, self.old = 100, 0

    def freeze(self):
        """Leave alone what is there."""
        self.young, self.old = 0, self.old + self.young

    def unfreeze(self):
        """Look at everything again."""
        self.young, self.old = self.old + self.young, 0

    def get_freeze_count(self):
        """Return how many are left alone."""
        return self.old

    def collect(self):
        """Find no garbage."""


@pytest.fixture
def collector(monkeypatch):
    """A collector that finds little in the process; the real one looks at other tests' imports for half a second."""
    books = Collector()
    for name in ("freeze", "unfreeze", "get_freeze_count", "collect"):
        monkeypatch.setattr(gc, name, getattr(books, name))
    yield books
    gc.enable()
    with leave_alone():  # forgets what was set aside
        pass


class TestImports:
    """`long_lived`."""

    def test_the_collector_rests_and_then_leaves_alone_what_was_made(self, collector):
        """It does not run inside the block, and what was made there is frozen."""
        with long_lived():
            assert not gc.isenabled()
            collector.young += 50_000
        assert gc.isenabled()
        assert (collector.young, collector.old) == (0, 50_100)

    def test_after_an_error_it_runs_again(self, collector):
        """A module that cannot be imported does not switch it off for good."""
        with pytest.raises(ImportError), long_lived():
            raise ImportError
        assert gc.isenabled()

    def test_one_that_was_off_stays_off(self, collector):
        """Who had switched it off finds it off."""
        gc.disable()
        with long_lived():
            pass
        assert not gc.isenabled()

    def test_what_someone_else_froze_is_all_that_is_frozen(self, collector):
        """All that is frozen is what the other froze."""
        collector.old = 10_000
        with long_lived():
            collector.young += 50_000
        assert (collector.young, collector.old) == (50_100, 10_000)

    @pytest.mark.parametrize("block", [long_lived, leave_alone])
    def test_a_few_frozen_at_the_start_are_nobodys(self, collector, block):
        """Python 3.12 begins with some 400 frozen objects; what is there is frozen all the same, by both blocks."""
        collector.old = 375
        with block():
            inside = collector.old
        assert (collector.old if block is long_lived else inside) == 475

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
        run_afresh(code)


class TestTraining:
    """`leave_alone`."""

    def test_what_was_there_is_looked_at_again_afterwards(self, collector):
        """Frozen inside the block, looked at again after it."""
        with leave_alone():
            assert (collector.young, collector.old) == (0, 100)
        assert (collector.young, collector.old) == (100, 0)

    def test_imports_set_aside_before_do_not_hinder_it(self, collector):
        """What was imported is frozen already; what came since is frozen, too, and all of it thawed."""
        with long_lived():
            collector.young += 50_000
        collector.young += 7
        with leave_alone():
            assert collector.old == 50_107
        assert (collector.young, collector.old) == (50_107, 0)

    def test_a_block_within_changes_nothing(self, collector):
        """The inner of two blocks neither freezes nor thaws."""
        collector.young = 50_000
        with leave_alone():
            collector.young += 7
            with leave_alone():
                assert (collector.young, collector.old) == (7, 50_000)
            assert (collector.young, collector.old) == (7, 50_000)

    def test_what_someone_else_froze_stays_frozen(self, collector):
        """Who froze it may thaw it."""
        collector.old = 10_000
        with leave_alone():
            assert collector.old == 10_000
        assert (collector.young, collector.old) == (100, 10_000)

    def test_a_cycle_made_before_is_collected_after(self):
        """Garbage of an import is not kept for good: in a fresh process, by Python's own collector."""
        code = (
            "import gc, weakref\n"
            "from helpers.model.patches.imports import leave_alone, long_lived\n"
            "class Node: pass\n"
            "with long_lived():\n    node = Node(); node.me = node; alive = weakref.ref(node); del node\n"
            "gc.collect(); assert alive()\n"
            "with leave_alone():\n    assert gc.get_freeze_count() > 2000\n"
            "assert gc.get_freeze_count() == 0; gc.collect(); assert not alive()\n"
        )
        run_afresh(code)
