"""The notebooks' sources as programs: read, run, installed, and written out as plain scripts."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.core.config import build_config
from helpers.core.config_file import write_config
from helpers.core.errors import ConfigError, RunError
from helpers.core.runs import RunDirectory
from helpers.data.chat_templates import (
    CHATML,
    MISTRAL_TEKKEN,
    MISTRAL_V1,
    MISTRAL_V1_LEGACY,
    MISTRAL_V3,
    masked_template,
)
from helpers.data.rows import SeededRows
from helpers.training.machine import Machine, StepLayout
from helpers.training.program import TRAINING, find_program, read_cells, run_cells, run_program
from helpers.training.script import copy_inputs, make_script, read_script, write_script

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


class Settings:
    """What stands for a notebook's values."""

    rate, style, extra, watcher, nothing, dtype = 0.5, "chat", {"a": 1}, object(), None, "float32"


class TestScript:
    """Core cells with values in the place of expressions."""

    def script(self, core, folder="/runs/mine", **values):
        """Return the script of one core cell after a cell that binds the values."""
        others = ["\n".join(f"{name} = ..." for name in values)]
        return make_script([core], others, values, title="mine", folder=folder).partition("\n\n")[2].strip()

    @pytest.mark.parametrize(
        ("core", "expected"),
        [
            ("x = f(cfg.rate)", "x = f(0.5)"),
            ("x = f(b=cfg.rate, **cfg.extra)", "x = f(b=0.5, a=1)"),
            ("x = f(1, watch=cfg.watcher)", "x = f(1, )"),
            ("x = f(\n    1,\n    watch=[cfg],\n)", "x = f(\n    1,\n)"),
            ('x.y = 1 if cfg.style == "alpaca" else 2', "x.y = 2"),
            ("x = f(a=cfg.nothing, b=1)", "x = f(b=1)"),
            ("print(cfg)\nx = f(2)\nprint(x)", "x = f(2)"),
            ("x = f(getattr(torch, cfg.dtype), {'a': cfg.style})", 'x = f(torch.float32, {"a": "chat"})'),
            ('if cfg.style == "chat":\n    x = 1\nelse:\n    x = 2', "x = 1"),
            ('if cfg.style == "alpaca":\n    x = 1\ny = 3  # said', "y = 3  # said"),
            ("with cfg.watcher():\n    x = 1\n    y = 2", "x = 1\ny = 2"),
            ("x = f(min(cfg.rate, 2))", "x = f(0.5)"),
            ("x = y.z(numbers)", "x = y.z([i for i in range(9) if i not in {3}])"),
            ("x = y.z(several)", "x = y.z(range(5))"),
            ("x = f(data.map(y))\nz = data.map(y).select(several)\n\n\ndef g(): ...", "x = f(data.map(y))"),
        ],
    )
    def test_values_are_written_and_watchers_left_out(self, core, expected):
        """What other cells made is replaced, taken or dropped; the rest of the text stays."""
        values = {"cfg": Settings, "numbers": [0, 1, 2, 4, 5, 6, 7, 8], "several": [0, 1, 2, 3, 4]}
        assert self.script(core, **values) == expected

    def test_what_the_package_gives_is_a_value(self):
        """A statement that calls it, or combines values, is left out; a branch is taken by the notebook's values."""
        core = [
            "from helpers.x import check\nkept = {part: check(part) for part in 'ab'}\ncheck(1)\nmost = 2 * cfg.rate",
            "if 'a' in kept:\n    x = f(kept['a'], most)\nelse:\n    x = 0",
        ]
        found = {"kept": {"a": 3}, "most": 1.0, "cfg": Settings}
        text = make_script(core, ["cfg = ..."], found, title="mine", folder="/runs/mine")
        assert text.partition("\n\n")[2] == "x = f(3, 1.0)\n"

    def test_held_out_rows_are_left_out_where_nothing_reads_them(self):
        """From what is loaded, selected and tokenized; where a cell reads them, they stay."""
        core = [
            "data = load_dataset(**source)",
            'rows = DatasetDict(train=data["train"].select(range(2)), heldout=data[part].select(range(3)))',
            'held = rows["heldout"].select(range(4))\nfit(rows["train"])',
        ]
        values = {"source": {"data_files": {"train": "a.jsonl", "test": "b.jsonl"}}, "part": "test"}
        script = partial(make_script, others=["source = part = ..."], namespace=values, title="mine", folder="/runs")
        assert script(core).partition("\n\n")[2] == (
            'data = load_dataset(data_files={"train": "a.jsonl"})\n\n'
            'rows = DatasetDict(train=data["train"].select(range(2)))\n\nfit(rows["train"])\n'
        )
        assert '"test": "b.jsonl"' in script([*core, "fit(held)"])

    @pytest.mark.parametrize("template", [MISTRAL_V3, MISTRAL_TEKKEN, MISTRAL_V1, MISTRAL_V1_LEGACY, CHATML])
    def test_the_template_stands_once(self, template):
        """The one with marks around the answers is written as a change of one line."""
        tokenizer = SimpleNamespace(chat_template=template)
        values = {"template": SimpleNamespace(text=template, masked=masked_template(tokenizer))}
        core = ["tokenizer.chat_template = template.text", "def f():\n    return g(text=template.masked)\nx = f()"]
        text = make_script(core, ["template = ..."], values, title="mine", folder="/runs/mine")
        found = {"tokenizer": SimpleNamespace(), "g": dict}
        exec(text, found)
        assert found["tokenizer"].chat_template == template
        assert found["x"] == {"text": values["template"].masked}
        assert len(text.splitlines()) == template.count("\n") + 16

    def test_rows_are_drawn_by_their_seed(self):
        """The lines that draw them come once, before their first use."""
        rows = SeededRows([2, 0], ["order = draw(3)"], "order[:2]")
        assert self.script("x = f(data.select(rows))\ny = f(data.select(rows))", rows=rows) == (
            "order = draw(3)\nx = f(data.select(order[:2]))\ny = f(data.select(order[:2]))"
        )

    def test_functions_of_the_package_are_written_out(self):
        """With what they need, and only if they are called."""
        text = self.script("from helpers.data.prompts import alpaca_block, clean_references\nx = alpaca_block('a')")
        assert "def alpaca_block(" in text
        assert "ALPACA_PREAMBLE = (" in text
        assert "clean_references" not in text
        assert "helpers" not in text
        found = {}
        exec(text, found)
        assert found["x"].endswith("### Instruction:\na\n\n### Response:\n")

    def test_no_path_of_the_machine_stands_in_it(self):
        """The run's files are named as they lie beside the script, and its first lines say which they are."""
        values = {"source": {"data_files": {"train": "/runs/mine/rows_train.jsonl"}}}
        text = make_script(["x = f(**source)"], ["source = ..."], values, title="mine", folder="/runs/mine")
        assert 'x = f(data_files={"train": "rows_train.jsonl"})' in text
        assert "It reads rows_train.jsonl, which `python -m helpers eject mine -o FILE` puts beside it." in text

    def test_what_it_reads_is_put_beside_it(self, tmp_path):
        """Rows are copied from the run's folder."""
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        (run.path / "rows_train.jsonl").write_text("{}")
        assert copy_inputs(run, 'f("rows_train.jsonl")', tmp_path) == ["rows_train.jsonl"]
        assert (tmp_path / "rows_train.jsonl").read_text() == "{}"

    def test_a_cell_that_was_edited_is_written_as_it_ran(self, tmp_path):
        """IPython's `In` has the text; cells that are not this notebook's are not taken for one."""
        texts = [cell.text for cell in read_cells(find_program("alpaca_instruction"))]
        edited = [text.replace('lr_scheduler_type="linear"', 'lr_scheduler_type="cosine"') for text in texts]
        config = build_config("alpaca", preset="smoke")
        machine = Machine("fp32", {}, {}, {})
        namespace = {"config": config, "layout": StepLayout(config, 4, 2, False, {}), "machine": machine}
        run = RunDirectory(tmp_path)
        script = write_script(run, {**namespace, "In": ["", *edited, "print(1)"]})
        assert 'lr_scheduler_type="cosine"' in script
        assert "print(1)" not in script
        assert read_script(run) == script
        assert 'lr_scheduler_type="linear"' in write_script(run, namespace)
        assert "`early_stopping`" not in script
        stopping = {**namespace, "config": build_config("alpaca", preset="smoke", early_stopping=2)}
        assert "`keep` and `early_stopping` are not in it: it trains to the end" in write_script(run, stopping)

    def test_a_run_without_one_is_refused(self, tmp_path):
        """The remedy is to run the notebook again."""
        with pytest.raises(RunError, match="Run its notebook again"):
            read_script(RunDirectory(tmp_path))


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
