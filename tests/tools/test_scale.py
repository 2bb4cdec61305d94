"""Figures of several GPUs: how they are counted, and that docs/multi_gpu.md states what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scale  # noqa: E402  the path comes first
import stopwatch  # noqa: E402

DOCUMENT = (ROOT / "docs" / "multi_gpu.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "benchmarks" / "results" / "scale_4xh200.json").read_text(encoding="utf-8"))
RESULTS = {name: runs[-1] for name, runs in RECORD["runs"].items()}
COMPARISON = scale.compare(RECORD)


def test_rows_of_a_batch_are_counted():
    """By the lengths that it lists, else by the positions, which begin with 0 in each row, else by its lines."""
    import torch

    ids, positions = torch.zeros(1, 9), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])
    listed = {"input_ids": ids, "position_ids": positions, "packed_seq_lengths": torch.tensor([6, 3])}
    assert stopwatch.rows_in(listed) == 2
    assert stopwatch.rows_in({"input_ids": ids, "position_ids": positions}) == 3
    assert stopwatch.rows_in({"input_ids": torch.zeros(5, 9)}) == 5


def test_rows_are_added_up_over_processes(monkeypatch):
    """Two processes with two passes of 3 rows a step are 12 rows a step, and the step that one records is not timed."""
    import torch

    class Trainer:
        """Takes a second a pass; 5 labels in each."""

        def __init__(self):
            self.now, self.train_dataset = 0.0, []
            self.args = types.SimpleNamespace(gradient_accumulation_steps=2)
            self.state = types.SimpleNamespace(log_history=[{"loss": 2.0}], global_step=0)

        def add_callback(self, callback):
            self.clock = callback

        def training_step(self, model, inputs):
            self.now += 1.0

        def train(self):
            control = types.SimpleNamespace(should_training_stop=False)
            while not control.should_training_stop:
                for _ in range(2):
                    self.training_step(None, {"input_ids": torch.zeros(3, 9), "labels": torch.ones(5)})
                self.state.global_step += 1
                self.clock.on_step_end(self.args, self.state, control)

    def gather(value):
        return [value, {2}] if isinstance(value, set) else [value, value]  # the other records in its third step

    trainer = Trainer()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: trainer.now)
    parts = [(1, 4), (4, 6)]
    found = stopwatch.time_parts(trainer, parts, rows_per_pass=None, ours=False, gather=gather)
    assert (found["examples_per_second"], found["useful_tokens_per_second"]) == (6.0, 10.0)
    assert (found["examples_per_step"], found["step_seconds"], found["losses"]) == (12.0, 2.0, [2.0])


def test_the_usage_names_each_option_and_kind():
    """The module's text has the benchmark's own options, and each kind of configuration."""
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own = {"--model", "--data", "--gpus", "--checkpointing", "--markdown"}
    assert own <= set(re.findall(r"^  (--[a-z]+)", shown, re.MULTILINE))
    assert [option for option in sorted(own) if option not in scale.__doc__] == []
    assert {
        re.sub(r"\d+$", "N", name.removeprefix("packed-").removeprefix("eager-")) for name in scale.configurations([2])
    } == set(re.findall(r"^- (one|[a-z]+-N):", scale.__doc__, re.MULTILINE))


def test_each_is_compared_with_one_gpu_of_its_kind():
    """Packed with packed, eager with eager; the names of one GPU stand for themselves."""
    known = scale.configurations([2, 4])
    assert len(known) == 15
    for name, options in known.items():
        one = known[scale.first(name)]
        assert one["processes"] == 1
        assert (one["packing"], one["graphs"]) == (options["packing"], options["graphs"])
        assert (options["processes"] == 1) == (scale.first(name) == name)
        assert options["batch"] * options["accumulate"] % options["processes"] == 0


def test_speedups_are_speed_against_one_gpu_of_the_same_kind():
    """Of each configuration with several GPUs."""
    results = RESULTS
    found = {n: each["speedup"] for n, each in COMPARISON.items()}
    assert found.keys() == results.keys() - {"one", "packed-one"}
    for name, speedup in found.items():
        one = results["packed-one" if name.startswith("packed") else "one"]
        assert speedup == pytest.approx(results[name]["examples_per_second"] / one["examples_per_second"])


def test_grown_batches_reach_their_marks():
    """At least 1.85 times with two GPUs and 3.5 times with four."""
    found = COMPARISON
    assert found["packed-grown-2"]["speedup"] >= 1.85
    assert found["packed-grown-4"]["speedup"] >= 3.5
    assert found["grown-4"]["speedup"] >= 3.5


def test_losses_at_the_same_batch_are_those_of_one_gpu():
    """The largest difference that is stated is that of the curves."""
    results = RESULTS
    for name in ("same-2", "same-4", "packed-same-2", "packed-same-4"):
        one = results[name.replace(name[name.index("same") :], "one")]["losses"]
        far = max(abs(a - b) for a, b in zip(results[name]["losses"], one, strict=True))
        assert COMPARISON[name]["largest_loss_difference"] == pytest.approx(far)
        assert far < 0.02 < one[0] - one[-1]


def test_the_documents_table_is_the_record():
    """What stands between its two marks is what the benchmark prints for the record."""
    (table,) = re.findall(r"<!-- scale: [^\n]*-->\n(.*?)\n<!-- end of scale -->", DOCUMENT, re.DOTALL)
    assert table == scale.markdown(RECORD)
    assert table.count("\n") == len(RESULTS) + 1


def test_the_documents_sentences_are_the_record():
    """Its numbers of gradients, milliseconds, speedups, losses and waiting are those that were measured."""
    results, against = RESULTS, COMPARISON
    four = results["grown-4"]
    numbers = {
        "160 MiB": four["gradient_mib"],
        "0.76 ms": results["grown-2"]["all_reduce_ms"],
        "0.99 ms": four["all_reduce_ms"],
        "151 ms": 1000 * four["step_seconds"],
        "0.7 %": four["all_reduce_ms"] / four["step_seconds"] / 10,
        "3.61 times": against["grown-4"]["speedup"],
        "3.67 times": against["packed-grown-4"]["speedup"],
        "21 % more": 100 * (results["same-4"]["slowest_over_mean_tokens"] - 1),
        "11.26 to": results["one"]["losses"][0],
        "3.84,": results["one"]["losses"][-1],
        "0.011 and": against["same-2"]["largest_loss_difference"],
        "0.006.": against["same-4"]["largest_loss_difference"],
        "0.003 and": against["packed-same-2"]["largest_loss_difference"],
        "0.001.": against["packed-same-4"]["largest_loss_difference"],
        "3.35 times": against["packed-same-4"]["speedup"],
    }
    for words, measured in numbers.items():
        assert words in DOCUMENT
        digits = words.split()[0].rstrip(".,")
        assert f"{measured:.{len(digits.partition('.')[2])}f}" == digits


@pytest.mark.parametrize("block", re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL))
def test_its_commands_are_shell(block):
    """A shell can read each block."""
    assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False).stderr == ""
