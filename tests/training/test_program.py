"""The notebooks' sources as programs: read, run, installed, and written out as plain scripts."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.core.config import build_config
from helpers.core.config_file import write_config
from helpers.core.errors import ConfigError, RunError
from helpers.core.runs import RunDirectory
from helpers.training.program import TRAINING, find_program, read_cells, run_cells, run_program

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """\
# %% [markdown]
# # Title

# %% tags=["parameters"]
number = 1  # type: int  a number

# %% tags=["notebook"]
number = get_ipython()

# %% tags=["main"]
shown = number

# %%
run = Run()
double = 2 * number
"""


@pytest.fixture
def program(tmp_path):
    """A percent script of four code cells."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


class TestProgram:
    """A percent script, run."""

    def test_its_cells_have_lines_and_tags(self, program):
        """Markdown is left out; a line is that of the file."""
        cells = read_cells(program)
        assert [(cell.line, cell.tags) for cell in cells] == [
            (5, ("parameters",)), (8, ("notebook",)), (11, ("main",)), (14, ()),
        ]  # fmt: skip
        assert cells[3].text == "run = Run()\ndouble = 2 * number"

    def test_parameters_are_put_in_and_notebook_cells_left_out(self, program):
        """The last cell reads the given value; `get_ipython`, which is not there, is never called."""
        program.write_text(PROGRAM.replace("run = Run()\n", ""))
        assert run_program(program, {"number": 21})["double"] == 42

    def test_whoever_runs_it_may_stop_between_cells(self, program):
        """Each cell comes before it is run, with its section and the variables of those before it."""
        program.write_text(PROGRAM.replace("# # Title", "# # Title\n#\n# ## 1. Small steps").replace("Run()", "1 / 0"))
        seen = []
        for cell, found in run_cells(program, {"number": 3}):
            seen.append((cell.section, found.get("shown")))
            if "shown" in found:
                break
        assert seen == [("small steps", None), ("small steps", None), ("small steps", 3)]

    def test_an_unknown_parameter_is_refused(self, program):
        """By its name."""
        with pytest.raises(ConfigError, match="numbr: expected the name of a parameter"):
            run_program(program, {"numbr": 2})

    def test_an_error_is_written_into_the_run(self, program, tmp_path):
        """The manifest says failed, and why."""
        run = RunDirectory(tmp_path / "run")
        run.update_manifest(state="running")
        program.write_text(PROGRAM.replace("Run()", "number").replace("2 * number", "1 / 0"))
        with pytest.raises(ZeroDivisionError):
            run_program(program, {"number": run})
        assert run.manifest()["state"] == "failed"
        assert "ZeroDivisionError" in run.manifest()["failure"]

    def test_each_training_task_has_one(self):
        """Both are found in a checkout, and no other name is."""
        assert [find_program(name).name for name in TRAINING.values()] == ["alpaca_instruction.py", "dolly_business.py"]
        with pytest.raises(RunError, match="alpaca_instruction"):
            find_program("alpaca_instructions")


LOSSES = [2.4681589603424072, 2.8096179962158203, 2.564816474914551, 2.230177879333496]
"""Of four steps of version 5812a4d, preset smoke, on the rows that it carried."""

WITHOUT_PACKAGE = """\
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "helpers":
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
found = {"__name__": "__main__"}
exec(compile(open("train.py").read(), "train.py", "exec"), found)
json.dump([each["loss"] for each in found["trainer"].state.log_history if "loss" in each], open("losses.json", "w"))
"""


@pytest.mark.slow
def test_an_installed_package_trains_and_ejects(tmp_path):
    """From the wheel, elsewhere: `helpers train` and the script without helpers give the losses of 5812a4d to 1e-6."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "runs", "build", "*.ipynb"))
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    shutil.rmtree(source)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    for file in (ROOT / "tests" / "fixtures" / "rows_5812a4d").glob("*.jsonl"):
        shutil.copy(file, tmp_path / "site" / "helpers" / "data" / "samples")
    run = RunDirectory(tmp_path / "runs" / "mine")
    run.path.mkdir(parents=True)
    config = build_config("alpaca", preset="smoke", run_name="mine", max_steps=4, learning_rate=0.0005)
    write_config(run, config)
    values = json.loads((run.path / "config.json").read_text()) | {"folder": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    shutil.rmtree(run.path)
    python = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path / "site"),
              "HELPERS_RUNS_DIR": str(tmp_path / "runs")}}  # fmt: skip
    for arguments in (["train", "config.json"], ["eject", "mine", "-o", "train.py"]):
        done = subprocess.run(
            [sys.executable, "-m", "helpers", *arguments], **python, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert [loss for _, loss in run.metrics()["train_loss"]] == pytest.approx(LOSSES, abs=1e-6)
    assert run.metrics()["eval_loss"][-1][1] == pytest.approx(2.7058308817514134, abs=1e-6)
    assert run.manifest()["state"] == "complete"
    script = (tmp_path / "train.py").read_text()
    assert "'/" not in script
    assert len(script.splitlines()) <= 115
    modules = [node.module for node in ast.walk(ast.parse(script)) if isinstance(node, ast.ImportFrom)]
    assert modules == ["unsloth", "datasets", "trl"]
    subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE], cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(LOSSES, abs=1e-6)
