"""Of Unsloth's trainers only the one for SFT is made, as the tested version makes them; packages are listed once."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from sources import definitions, module_tree

from helpers.model.patches.imports import packages_listed_once

HELPERS = Path(__file__).resolve().parents[2]

AS_TESTED = """
made = []
def _patch_trl_rl_trainers(trainer_file="grpo_trainer"):
    made.append(trainer_file)
def patch_trl_rl_trainers():
    for each in ("dpo_trainer", "sft_trainer", "grpo_trainer"):
        _patch_trl_rl_trainers(each)
def PatchFastRL():
    patch_trl_rl_trainers()
"""
OTHERWISE = AS_TESTED.replace("_patch_trl_rl_trainers(", "_rewrite(")


def imported(folder, rl, code):
    """Import a package that is built as Unsloth is, in a process of its own; return what it prints."""
    models = folder / "unsloth" / "models"
    models.mkdir(parents=True)
    (folder / "unsloth" / "__init__.py").write_text("from .models import llama\n")
    (models / "__init__.py").write_text("")
    (models / "rl.py").write_text(rl)
    (models / "llama.py").write_text("from .rl import PatchFastRL\nPatchFastRL()\n")
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(HELPERS)!r}]\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


INSIDE = """
from helpers.model.patches.imports import sft_alone
with sft_alone():
    import unsloth
from unsloth.models import rl
print(rl.made)
"""


class TestTrainers:
    """Which are made."""

    def test_the_one_for_sft_alone(self, tmp_path):
        """Inside the block the others are left out."""
        assert imported(tmp_path, AS_TESTED, INSIDE) == "['sft_trainer']"

    def test_all_where_unsloth_was_imported_before(self, tmp_path):
        """What is imported already is not changed, and the block does no harm."""
        assert imported(tmp_path, AS_TESTED, "import unsloth" + INSIDE) == (
            "['dpo_trainer', 'sft_trainer', 'grpo_trainer']"
        )

    def test_all_where_unsloth_makes_them_otherwise(self, tmp_path):
        """A version with other names is left as it is."""
        assert imported(tmp_path, OTHERWISE, INSIDE) == "['dpo_trainer', 'sft_trainer', 'grpo_trainer']"

    def test_its_source_can_still_be_read(self, tmp_path):
        """Unsloth reads its own functions' source."""
        code = INSIDE + "import inspect; print(len(inspect.getsource(rl.PatchFastRL)))"
        assert int(imported(tmp_path, AS_TESTED, code).split()[-1]) > 20

    def test_nothing_stays_behind(self, tmp_path):
        """Later imports are found as ever, after an error, too."""
        code = (
            "before = list(sys.meta_path)\n"
            "from helpers.model.patches.imports import sft_alone\n"
            "try:\n    with sft_alone():\n        raise ImportError\n"
            "except ImportError:\n    print(sys.meta_path == before)\n"
        )
        assert imported(tmp_path, AS_TESTED, code) == "True"


class TestPackages:
    """What is installed is looked for once, however many libraries ask."""

    def test_all_who_ask_get_one_answer(self, monkeypatch):
        """Afterwards Python's own function is back."""
        asked = []
        ask = lambda: asked.append(1) or {"yaml": ["PyYAML"]}  # noqa: E731
        monkeypatch.setattr(importlib.metadata, "packages_distributions", ask)
        with packages_listed_once():
            assert importlib.metadata.packages_distributions() == importlib.metadata.packages_distributions()
        assert len(asked) == 1
        assert importlib.metadata.packages_distributions is ask

    @pytest.mark.parametrize("file", ["transformers/utils/import_utils.py", "trl/import_utils.py"])
    def test_libraries_ask_while_they_are_imported(self, file):
        """By the name in importlib.metadata, at the module's level."""
        asked = [ast.unparse(each.value) for each in module_tree(file).body if isinstance(each, ast.Assign)]
        assert "importlib.metadata.packages_distributions()" in asked


class TestUnsloth:
    """Unsloth, as installed, is built so."""

    @pytest.mark.parametrize("name", ["patch_trl_rl_trainers", "_patch_trl_rl_trainers"])
    def test_its_functions_are_there(self, name):
        """One goes through the trainers, one writes one, named by its file."""
        (found,) = definitions(f"unsloth/models/rl.py {name}")
        arguments = [each.arg for each in found.args.args]
        assert arguments == ([] if name.startswith("patch") else ["trainer_file"])

    def test_it_asks_for_all_when_it_is_imported(self):
        """The module of the models ends with the call that comes to both."""
        (found,) = definitions("unsloth/models/rl.py PatchFastRL")
        assert "patch_trl_rl_trainers()" in ast.unparse(found)
