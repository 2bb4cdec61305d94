"""What a GPU run must reach: the file of expectations, the facts read from a run, and the verdict on them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from helpers.core.config import build_config
from helpers.core.errors import ConfigError, RunError, StackError
from helpers.core.files import write_json
from helpers.core.runs import RunDirectory
from helpers.evaluation.config import build_evaluation_config
from helpers.runtime.calibration import calibrate
from helpers.runtime.hardware import require_gpu
from tools.gpu_checks import Expected, Facts, Profile, findings_table, gather_facts, judge, read_expectations

ROOT = Path(__file__).resolve().parents[2]
EXPECTATIONS = ROOT / "tests" / "gpu_expectations.json"
PROFILE = Profile("interval", ("bf16", "fp16"), tokens_per_tflop=2.0, peak_memory_gib=6.0, basis="a test")
TRAINING = Expected(trains=True, exports=("adapter",), verified=("adapter",), files=("loss.png",))
METRICS = {
    "train_loss": [[1, 2.5], [20, 2.0]],
    "eval_loss_change": {"mean": -0.06, "low": -0.07, "high": -0.05, "rows": 24},
    "tokens_per_second": 2400.0,
    "peak_memory_bytes": 5 * 2**30,
    "mode": {"precision": "bf16"},
}
GOOD = Facts(
    state="complete",
    max_steps=20,
    metrics=METRICS,
    exports={"adapter": True},
    files=frozenset({"adapter", "loss.png", "metrics.json"}),
)


def failed(facts=GOOD, expected=TRAINING, profile=PROFILE, tflops=800.0):
    """Return the checks that fail."""
    return [finding.check for finding in judge("a", facts, expected, profile, tflops) if not finding.passed]


def with_metrics(**changes):
    """Return the good facts with other metrics; a value of None takes the entry away."""
    metrics = {name: value for name, value in {**METRICS, **changes}.items() if value is not None}
    return dataclasses.replace(GOOD, metrics=metrics)


def change(mean, low, high):
    """Return the metrics' entry for a change of the held-out loss."""
    return with_metrics(eval_loss_change={"mean": mean, "low": low, "high": high, "rows": 24})


class TestJudge:
    """The verdict on a run."""

    def test_a_good_run_passes_every_check(self):
        """Each check has its finding, and none fails."""
        findings = judge("a", GOOD, TRAINING, PROFILE, 800.0)
        assert [f.check for f in findings] == [
            "every cell runs",
            "run is complete",
            "adapter has weights",
            "adapter is verified",
            "loss.png is written",
            "number format",
            "steps",
            "held-out loss fell",
            "speed",
            "peak memory",
        ]
        assert all(f.passed for f in findings)

    def test_a_notebook_that_stopped_has_one_finding(self):
        """Where a cell failed, nothing else is judged."""
        (finding,) = judge("a", Facts(error="cell 3 of 9 failed"), TRAINING, PROFILE, 800.0)
        assert (finding.passed, finding.measured) == (False, "cell 3 of 9 failed")

    @pytest.mark.parametrize(
        ("facts", "check"),
        [
            (dataclasses.replace(GOOD, state="running"), "run is complete"),
            (dataclasses.replace(GOOD, state=None), "run is complete"),
            (dataclasses.replace(GOOD, files=frozenset()), "loss.png is written"),
            (dataclasses.replace(GOOD, max_steps=21), "steps"),
            (dataclasses.replace(GOOD, exports={"adapter": False}), "adapter is verified"),
            (dataclasses.replace(GOOD, exports={"adapter": None}), "adapter is verified"),
            (dataclasses.replace(GOOD, exports={"adapter": True, "merged": False}), "merged is verified"),
            (with_metrics(mode={"precision": "fp32"}), "number format"),
            (with_metrics(mode=None), "number format"),
            (with_metrics(train_loss=None), "steps"),
            (change(-0.06, -0.13, 0.01), "held-out loss fell"),
            (change(0.06, 0.05, 0.07), "held-out loss fell"),
            (with_metrics(eval_loss_change=None), "held-out loss fell"),
            (with_metrics(tokens_per_second=1599.0), "speed"),
            (with_metrics(tokens_per_second=None), "speed"),
            (with_metrics(peak_memory_bytes=6 * 2**30 + 1), "peak memory"),
            (with_metrics(peak_memory_bytes=0), "peak memory"),
            (with_metrics(peak_memory_bytes=None), "peak memory"),
        ],
    )
    def test_each_fault_fails_its_own_check_and_no_other(self, facts, check):
        """What is wrong, missing or not recorded fails; the rest still passes."""
        assert failed(facts) == [check]

    def test_missing_weights_fail(self):
        """An export that left no weights fails."""
        assert failed(dataclasses.replace(GOOD, exports={})) == ["adapter has weights"]

    def test_an_export_that_nobody_asked_to_verify_needs_no_verification(self):
        """A notebook without verification is not failed for it."""
        expected = Expected(trains=True, exports=("adapter",))
        assert failed(dataclasses.replace(GOOD, exports={"adapter": None}), expected) == []

    def test_with_random_weights_the_loss_has_only_to_fall(self):
        """Rule "fell" passes a mean below zero whose interval contains zero, and no mean above."""
        fell = dataclasses.replace(PROFILE, loss="fell")
        assert failed(change(-0.06, -0.13, 0.01), profile=fell) == []
        assert failed(change(0.0, -0.01, 0.01), profile=fell) == ["held-out loss fell"]

    def test_whole_epochs_have_no_number_of_steps(self):
        """Without max_steps the steps are not judged."""
        assert "steps" not in [
            f.check for f in judge("a", dataclasses.replace(GOOD, max_steps=None), TRAINING, PROFILE, 1)
        ]

    def test_the_floor_moves_with_the_machine(self):
        """The same tokens a second are enough on one card and too few on one that multiplies faster."""
        assert failed(tflops=1200.0) == []
        assert failed(tflops=1201.0) == ["speed"]

    @pytest.mark.parametrize("tflops", [0.0, math.nan])
    def test_a_failed_calibration_passes_no_speed(self, tflops):
        """Without a matrix product there is no ratio."""
        assert failed(tflops=tflops) == ["speed"]

    def test_a_notebook_that_trains_nothing_is_judged_by_its_files(self):
        """Losses, speed and memory of a comparison are not looked for."""
        expected = Expected(trains=False, files=("report.html",))
        facts = Facts(state="complete", files=frozenset({"report.html"}))
        assert [f.check for f in judge("a", facts, expected, PROFILE, 1.0)] == [
            "every cell runs",
            "run is complete",
            "report.html is written",
        ]

    def test_the_table_has_the_numbers(self):
        """A line a check, with what was measured, the limit, and PASS or FAIL at its end."""
        lines = findings_table(judge("a", with_metrics(tokens_per_second=800.0), TRAINING, PROFILE, 800.0)).splitlines()
        assert lines[0].split() == ["notebook", "check", "measured", "must", "be"]
        speed = next(line for line in lines if "speed" in line)
        assert "1 tokens/TFLOP (800 tokens/s over 800 TFLOP/s)" in speed
        assert ">= 2 tokens/TFLOP" in speed
        assert speed.endswith("FAIL")
        assert sum(line.endswith("PASS") for line in lines) == 9


class TestFacts:
    """What is read from a run's folder."""

    def test_they_come_from_manifest_metrics_and_exports(self, tmp_path):
        """State, steps, metrics, verifications of both kinds and file names are found."""
        verified, failing = {"verification": {"passed": True}}, {"verification": {"passed": False}}
        for name, record in (("adapter", None), ("merged", verified), ("other", failing), ("checkpoints", None)):
            (tmp_path / name).mkdir()
            if name != "checkpoints":
                (tmp_path / name / "model.safetensors").touch()
            if record:
                write_json(tmp_path / name / "export.json", record)
        write_json(
            tmp_path / "manifest.json",
            {"state": "complete", "parameters": {"max_steps": 20}, "exports": {"adapter": {"passed": True}}},
        )
        write_json(tmp_path / "metrics.json", {"tokens_per_second": 3.0})
        facts = gather_facts(RunDirectory(tmp_path))
        assert (facts.state, facts.max_steps, facts.metrics) == ("complete", 20, {"tokens_per_second": 3.0})
        assert facts.exports == {"adapter": True, "merged": True, "other": False}
        assert {"adapter", "metrics.json"} <= facts.files

    def test_a_failed_verification_is_not_outvoted(self, tmp_path):
        """Where the manifest says passed and the export's own record failed, it failed."""
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "model.safetensors").touch()
        write_json(tmp_path / "merged" / "export.json", {"verification": {"passed": False}})
        write_json(tmp_path / "manifest.json", {"exports": {"merged": {"passed": True}}})
        assert gather_facts(RunDirectory(tmp_path)).exports == {"merged": False}

    def test_a_run_that_left_nothing_fails_everything(self, tmp_path):
        """A folder that is not there gives empty facts, which pass nothing but the absence of an error."""
        facts = gather_facts(RunDirectory(tmp_path / "gone"))
        assert len(failed(facts)) == len(judge("a", facts, TRAINING, PROFILE, 1.0)) - 1

    def test_a_damaged_file_is_an_error(self, tmp_path):
        """Half a metrics.json is not taken for an empty one."""
        (tmp_path / "metrics.json").write_text("{")
        with pytest.raises(RunError, match=r"metrics\.json"):
            gather_facts(RunDirectory(tmp_path))


class TestExpectations:
    """tests/gpu_expectations.json."""

    @pytest.mark.parametrize("profile", ["mistral-7b", "random-weights", "smollm2-135m", "smoke"])
    def test_every_profile_can_be_read(self, profile):
        """Limits are positive, and the notebooks exist."""
        found, notebooks = read_expectations(EXPECTATIONS, profile)
        assert found.tokens_per_tflop > 0
        assert found.peak_memory_gib > 0
        assert found.basis
        assert list(notebooks) == ["alpaca_instruction", "dolly_business", "side_by_side_eval"]

    def test_the_small_real_model_must_improve_beyond_chance(self):
        """SmolLM2's interval must lie below zero; of random weights only a fall is asked."""
        assert read_expectations(EXPECTATIONS, "smollm2-135m")[0].loss == "interval"
        assert read_expectations(EXPECTATIONS, "random-weights")[0].loss == "fell"

    def test_a_gpu_profile_does_not_accept_fp32(self):
        """Training in fp32 would mean that there was no GPU."""
        for profile in ("mistral-7b", "random-weights", "smollm2-135m"):
            assert read_expectations(EXPECTATIONS, profile)[0].precisions == ("bf16", "fp16")

    def test_an_unknown_profile_is_named(self):
        """The known ones are suggested."""
        with pytest.raises(ConfigError, match="Did you mean smollm2-135m"):
            read_expectations(EXPECTATIONS, "smollm2")

    @pytest.mark.parametrize(
        "content",
        [
            {},
            {"profiles": {"a": {"los": "fell"}}, "notebooks": {}},
            {"profiles": {"a": {**dataclasses.asdict(PROFILE), "loss": "rose"}}, "notebooks": {}},
            {"profiles": {"a": dataclasses.asdict(PROFILE)}, "notebooks": {"x": {"trained": True}}},
        ],
    )
    def test_another_form_is_an_error(self, tmp_path, content):
        """A misspelled key is not read as "no limit"."""
        path = tmp_path / "expectations.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError):
            read_expectations(path, "a")


class TestPreset:
    """The preset gpu-ci."""

    def test_it_is_mistral_in_20_steps(self):
        """The model is the notebooks' own, on few rows."""
        config = build_config("alpaca", preset="gpu-ci")
        assert (config.model.model_name, config.model.load_in_4bit) == ("mistral-7b-instruct", True)
        assert (config.train.max_steps, config.train.rows_per_step(), config.data.heldout_rows) == (20, 8, 40)

    def test_it_fits_the_bundled_rows(self):
        """The sample has as many rows as the preset asks for."""
        from helpers.data.rows import load_rows

        config = build_config("dolly", preset="gpu-ci", dataset_name="sample")
        rows = load_rows(config.data, "dolly", config.train.seed)
        assert (len(rows.train), len(rows.heldout)) == (128, 40)

    def test_it_needs_a_gpu(self):
        """Without a GPU it stops, as every preset but smoke does."""
        with pytest.raises(StackError, match="a GPU for 'gpu-ci'"):
            require_gpu("gpu-ci", None)

    def test_the_comparison_has_it_too(self):
        """The side-by-side notebook takes the same preset."""
        assert build_evaluation_config(preset="gpu-ci").prompt_count == 8


def test_the_calibration_times_a_matrix_product():
    """The product's operations over its median time give a positive pace; size and card are recorded."""
    measured = calibrate(size=64, repeats=3)
    assert measured.size == 64
    assert 0 < measured.tflops < 5000
    assert measured.precision in ("bf16", "fp16", "fp32")
