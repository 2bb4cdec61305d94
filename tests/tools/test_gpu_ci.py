"""`scripts/gpu_ci`: which parameters the notebooks get, what is judged, and its exit status."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from helpers.core.errors import RunError
from helpers.core.files import write_json
from helpers.core.runs import runs_root
from helpers.runtime.calibration import Calibration

ROOT = Path(__file__).resolve().parents[2]
TRAINED = {
    "train_loss": [[1, 2.5], [20, 2.0]],
    "eval_loss_change": {"mean": -0.06, "low": -0.07, "high": -0.05, "rows": 40},
    "tokens_per_second": 3000.0,
    "peak_memory_bytes": 2**30,
    "mode": {"precision": "bf16"},
}
EXPORTS = {name: {"passed": True} for name in ("adapter", "merged")}


@pytest.fixture
def script(monkeypatch, runs_folder):
    """The script as a module, on a machine with a card; notebooks are not executed but noted."""
    loader = SourceFileLoader("gpu_ci", str(ROOT / "scripts" / "gpu_ci"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_ci", loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loader.exec_module(module)
    module.paces = [Calibration(600.0, "bf16", 8192, "A card"), Calibration(800.0, "bf16", 8192, "A card")]
    module.calibrate_apart = module.paces.pop
    module.given = {}
    module.run_notebook = functools.partial(pretend, module.given)
    return module


def pretend(noted, name, given, *, run_name, report):
    """Leave what a good run leaves."""
    noted[name] = given
    folder = runs_root() / run_name
    for export in EXPORTS:
        (folder / export).mkdir(parents=True, exist_ok=True)
        (folder / export / "model.safetensors").touch()
    for file in ("loss.png", "answers.json", "report.html", "comparison.json", "scores.csv"):
        (folder / file).touch()
    write_json(folder / "manifest.json", {"state": "complete", "parameters": {"max_steps": 20}, "exports": EXPORTS})
    write_json(folder / "metrics.json", TRAINED)


def call(script, monkeypatch, *arguments):
    """Run the script; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["gpu_ci", *arguments])
    return script.main()


class TestStatus:
    """The exit status, and what is written."""

    def test_good_runs_pass(self, script, monkeypatch, capsys):
        """Status 0, a line PASS a check, and a summary with the lower of the two calibrations."""
        assert call(script, monkeypatch, "--smoke-model") == 0
        shown = capsys.readouterr().out
        assert "FAIL" not in shown
        assert "5 tokens/TFLOP (3,000 tokens/s over 600 TFLOP/s)" in shown
        summary = json.loads((runs_root() / "gpu-ci-smollm2-135m.json").read_text())
        assert (summary["passed"], summary["profile"], summary["preset"]) == (True, "smollm2-135m", "gpu-ci")
        assert summary["calibration"]["tflops"] == 600.0
        assert list(summary["notebooks"]) == ["alpaca_instruction", "dolly_business", "side_by_side_eval"]
        assert len(summary["findings"]) == sum(line.endswith("PASS") for line in shown.splitlines())

    def test_a_number_out_of_bounds_fails(self, script, monkeypatch, capsys):
        """Status 1, and the line says which."""
        monkeypatch.setitem(TRAINED, "peak_memory_bytes", 60 * 2**30)
        assert call(script, monkeypatch, "--only", "alpaca_instruction") == 1
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
        assert line.split() == ["alpaca_instruction", "peak", "memory", "60.00", "GiB", "<=", "39", "GiB", "FAIL"]

    def test_a_notebook_that_stops_fails_and_the_next_one_is_run(self, script, monkeypatch, capsys):
        """Status 1; what the others recorded is judged all the same."""

        def stop(name, given, **options):
            if name == "alpaca_instruction":
                raise RunError("cell 3", "a cell that runs", "ZeroDivisionError")
            pretend(script.given, name, given, **options)

        script.run_notebook = stop
        assert call(script, monkeypatch) == 1
        failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
        assert len(failed) == 1
        assert "cell 3: expected a cell that runs, got 'ZeroDivisionError'." in failed[0]
        assert list(script.given) == ["dolly_business", "side_by_side_eval"]

    def test_without_a_card_nothing_is_run(self, script, monkeypatch, capsys):
        """Status 2, one line, and how to try the script."""
        script.paces[:] = [Calibration(0.1, "fp32", 1024, None)]
        assert call(script, monkeypatch) == 2
        assert "preset: expected a GPU for 'gpu-ci', got 'no GPU'" in capsys.readouterr().err
        assert script.given == {}

    def test_an_unknown_notebook_is_refused(self, script, monkeypatch, capsys):
        """A notebook without expectations would pass whatever it did."""
        assert call(script, monkeypatch, "--only", "alpaca") == 2
        assert "--only" in capsys.readouterr().err


class TestParameters:
    """What the notebooks are told."""

    def test_by_default_they_choose_model_and_data(self, script, monkeypatch):
        """Preset and a fresh start are all that is given."""
        call(script, monkeypatch, "--only", "alpaca_instruction")
        assert script.given == {"alpaca_instruction": {"preset": "gpu-ci", "resume": "never"}}

    def test_the_small_model_needs_no_network(self, script, monkeypatch):
        """Model and rows are those that come with packages."""
        call(script, monkeypatch, "--smoke-model")
        assert script.given["dolly_business"]["model_name"] == "smollm2-135m"
        assert script.given["dolly_business"]["dataset_name"] == "sample"

    def test_the_comparison_gets_the_adapter_of_the_same_call(self, script, monkeypatch):
        """It compares what was just trained, and not the newest run there is."""
        call(script, monkeypatch, "--smoke-model")
        given = script.given["side_by_side_eval"]
        assert given["adapter_dir"] == "gpu-ci-smollm2-135m-alpaca_instruction"
        assert "model_name" not in given

    def test_a_t4_s_path_is_taken_on_a_larger_card(self, script, monkeypatch, capsys):
        """fp16 without what needs a newer card, in processes that see 14.56 GiB; bf16 then fails the check."""
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        monkeypatch.setenv("T4_LIKE", "0")
        assert call(script, monkeypatch, "--smoke-model", "--t4-like") == 1
        given = script.given["alpaca_instruction"]
        wanted = {"precision": "fp16", "cuda_graphs": False, "fused_adapters": False}
        assert {name: given[name] for name in wanted} == wanted
        assert os.environ["T4_LIKE"] == "1"
        assert os.environ["PYTHONPATH"] == os.pathsep.join([str(ROOT / "tools" / "t4like"), "/elsewhere"])
        assert "gpu-ci-smollm2-135m-t4-like" in capsys.readouterr().out

    def test_data_can_be_given_for_each_task(self, script, monkeypatch, tmp_path):
        """A file belongs to the task before its "=", and otherwise to all."""
        files = ("--data", f"alpaca={tmp_path}/a.json", "--data", "dolly=sample")
        call(script, monkeypatch, "--model", str(tmp_path), "--random-weights", *files)
        assert script.given["alpaca_instruction"]["dataset_name"] == f"{tmp_path}/a.json"
        assert script.given["dolly_business"]["dataset_name"] == "sample"
        assert script.given["alpaca_instruction"]["model_name"] == str(tmp_path)
        assert (runs_root() / "gpu-ci-random-weights.json").is_file()
