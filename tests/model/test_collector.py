"""The garbage collector rests while modules are imported, and looks at what they made only when it should."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from helpers.model.patches.imports import leave_alone, long_lived


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    """Returns how many objects are frozen, of all.

    The code under test sees only those made since: a collection of what other tests have imported takes half a second.
    """
    gc.freeze()
    count, before = gc.get_freeze_count, gc.get_freeze_count()
    monkeypatch.setattr(gc, "get_freeze_count", lambda: max(count() - before, 0))
    yield count
    gc.enable()
    gc.freeze()
    with leave_alone():  # forgets what was set aside
        pass
    gc.freeze()


def made(number=10_000):
    """Return so many new objects."""
    return [[each] for each in range(number)]


class TestImports:
    """`long_lived`."""

    def test_the_collector_rests_and_then_leaves_alone_what_was_made(self):
        """It does not run inside the block, and what was made there is frozen."""
        with long_lived():
            assert not gc.isenabled()
            objects = made(100)
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(objects)
        assert not any(each is objects for each in gc.get_objects())

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
        others = made()
        gc.freeze()
        before = gc.get_freeze_count()
        with long_lived():
            objects = made()
        assert before > len(others)
        assert gc.get_freeze_count() < before + len(objects)

    def test_a_few_frozen_at_the_start_are_nobodys(self, monkeypatch):
        """Python 3.12 begins with some 400 frozen objects; what is imported is frozen all the same, in both blocks."""
        count, objects = gc.get_freeze_count, made()
        monkeypatch.setattr(gc, "get_freeze_count", lambda: 375)
        with leave_alone():
            assert count() > len(objects)
        gc.freeze()
        before = count()
        with long_lived():
            objects += made()
        assert count() >= before + 10_000

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

    def test_what_was_there_is_looked_at_again_afterwards(self, frozen):
        """Frozen inside the block, looked at again after it."""
        objects = made()
        with leave_alone():
            assert gc.get_freeze_count() > len(objects)
        assert frozen() == 0

    def test_imports_set_aside_before_do_not_hinder_it(self, frozen):
        """What was imported is frozen already; what came since is frozen, too, and all of it thawed."""
        with long_lived():
            pass
        before, objects = gc.get_freeze_count(), made()
        with leave_alone():
            assert gc.get_freeze_count() >= before + len(objects)
        assert frozen() == 0

    def test_a_block_within_changes_nothing(self):
        """The inner of two blocks neither freezes nor thaws."""
        objects = made()
        with leave_alone():
            before = gc.get_freeze_count()
            with leave_alone():
                pass
            assert gc.get_freeze_count() == pytest.approx(before, abs=100)
        assert before > len(objects)

    def test_what_someone_else_froze_stays_frozen(self):
        """Who froze it may thaw it."""
        objects = made()
        gc.freeze()
        with leave_alone():
            pass
        assert gc.get_freeze_count() > len(objects)

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
