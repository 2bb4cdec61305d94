"""What the doctor calls a problem, what a note, and how both read."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from runtimes import HOST, requires

from helpers.runtime.doctor import SUPPORTED_PYTHON, SUPPORTED_TORCH, Finding, _system_findings, doctor
from helpers.runtime.hardware import Driver, Host
from helpers.runtime.lockfile import Pin, Waiver

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def with_t4(cuda, cards=1):
    """A machine with a T4 or several, and a torch built for a CUDA version, or for none."""
    return Host("3.12.4", driver=Driver("550.54", "12.4", ("Tesla T4",) * cards), torch_cuda=cuda)


class TestDoctor:
    """What is a problem, what is a note, and how both read."""

    def test_this_environment_is_right(self):
        """Where these tests run, the lock is installed and the doctor has no problem to tell."""
        assert doctor().problems == ()

    def examine(self, installed, table=None, waivers=(), host=HOST):
        """The report on a machine that should have trl 2 and scipy 2."""
        pins, needed = [Pin("trl", "2"), Pin("scipy", "2")], ["trl", "scipy"]
        installed = {"torch": "2.13.0", **installed}
        return doctor(pins, installed, needed=needed, waivers=waivers, requires=requires(table or {}), host=host)

    @pytest.mark.parametrize(
        ("torch", "ok"), [("2.10.1", False), ("2.11.0+cu128", True), ("2.14.0", True), ("2.15.0", False)]
    )
    def test_torch_outside_the_range_is_a_problem(self, torch, ok):
        """Just the versions that the documentation names are accepted."""
        report = self.examine({"trl": "2", "scipy": "2", "torch": torch})
        assert report.ok is ok
        if not ok:
            assert str(report.problems[0]) == f"problem  torch: {torch} is not supported; install one of 2.11 to 2.14"

    def test_the_documentation_names_the_same_versions_of_torch(self):
        """docs/usage.md tells which torch may stay."""
        said = f"keep the torch you have: {SUPPORTED_TORCH[0]} to {SUPPORTED_TORCH[-1]}"
        assert said in (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")

    def test_two_gpus_are_said_clearly(self):
        """Kaggle's "GPU T4 x2" trains as "GPU T4" does: on the first."""
        report = self.examine({"trl": "2", "scipy": "2"}, host=with_t4("12.4", cards=2))
        assert report.verdict().endswith("Tesla T4 (the first of 2 GPUs; a notebook trains on one)")

    @pytest.mark.parametrize(("system", "remedy"), [("Windows", "WSL"), ("Darwin", "Colab")])
    def test_other_systems_are_told_where_it_works(self, system, remedy):
        """Linux alone has been tried; on others a note says what to do."""
        (finding,) = _system_findings(system)
        assert finding.level == "note"
        assert remedy in finding.remedy
        assert list(_system_findings("Linux")) == []

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
        report = doctor([], {}, needed=[], waivers=[], host=HOST)
        assert [problem.subject for problem in report.problems] == ["torch"]

    def test_a_cpu_torch_beside_a_gpu_is_a_problem(self):
        """A torch without CUDA cannot use the card that the driver shows."""
        (problem,) = self.examine({"trl": "2", "scipy": "2"}, host=with_t4(None)).problems
        assert problem.message == "2.13.0 is built without CUDA, and there is a Tesla T4"

    @pytest.mark.parametrize(("cuda", "ok"), [("12.8", True), ("13.0", False)])
    def test_torch_s_cuda_must_be_of_the_driver_s_major_version(self, cuda, ok):
        """A driver for CUDA 12.4 runs any 12.x, and no 13.x."""
        assert self.examine({"trl": "2", "scipy": "2"}, host=with_t4(cuda)).ok is ok

    def test_an_xformers_for_another_torch_is_a_note(self):
        """An xformers built for torch 2.10 does not load under 2.13; that costs speed and nothing else."""
        host = Host("3.12.4", xformers_torch="2.10.0+cu128")
        report = self.examine({"trl": "2", "scipy": "2", "xformers": "0.0.35"}, host=host)
        assert report.ok
        assert "0.0.35 is built for torch 2.10.0+cu128 and does not load under 2.13.0" in str(report)

    def test_an_unsupported_python_is_a_problem(self):
        """Python 3.14 is not supported yet."""
        (problem,) = self.examine({"trl": "2", "scipy": "2"}, host=Host("3.14.0")).problems
        assert problem.remedy == "use one of 3.11, 3.12, 3.13"

    def test_supported_pythons_are_those_of_pyproject(self):
        """3.11 to 3.13 are supported, in both places."""
        assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"
        assert SUPPORTED_PYTHON == ("3.11", "3.12", "3.13")
