"""Figures of several GPUs: how they are counted, and that docs/multi_gpu.md states what was measured."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
DOCUMENT = (ROOT / "docs" / "multi_gpu.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "benchmarks" / "results" / "scale_4xh200.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scale():
    """The benchmark's module."""
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_a_packed_batch_are_counted(scale):
    """A batch that lists the lengths of its rows has so many; one without a list does not say how many it has."""
    import torch

    ids, lengths = torch.zeros(1, 9), torch.tensor([4, 3, 2])
    assert scale.rows_in({"input_ids": ids, "position_ids": ids, "packed_seq_lengths": lengths}) == 3
    assert scale.rows_in({"input_ids": torch.zeros(5, 9)}) == 5
    assert scale.rows_in({"input_ids": ids, "position_ids": ids}) is None


def test_counts_are_added_up_over_passes_and_processes(scale):
    """Two processes with two passes a step; a pass that does not say leaves its step unknown."""
    assert scale.by_step([[1, 2, 3, 4], [10, 20, 30, 40]], 2) == [33, 77]
    assert scale.by_step([[1, 2, 3, None], [10, 20, 30, 40]], 2) == [33, None]


def test_counted_rows_come_before_estimated_ones(scale):
    """Steps 1 and 2 take four seconds; rows are reckoned from the tokens only where a step does not say."""
    marks, tokens = [1.0, 3.0, 5.0], [90, 30, 50]
    found = scale.speed(marks, [9, 4, 6], tokens, 8.0, 1, 3)
    assert found == {"examples": 2.5, "tokens": 20.0}
    assert scale.speed(marks, [9, None, 6], tokens, 8.0, 1, 3)["examples"] == 2.5
    assert scale.speed(marks, [None, 4, 7], tokens, 8.0, 1, 3)["examples"] == 2.75
    assert scale.speed(marks, [9, 4, None], tokens, 8.0, 1, 3, {2}) == {"examples": 2.0, "tokens": 15.0}


def test_the_usage_names_each_option_and_kind(scale):
    """The module's text has what --help lists, the seconds after which it gives up, and each kind of configuration."""
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"^  (--[a-z]+)", shown, re.MULTILINE))
    assert {"--model", "--gpus", "--again", "--markdown"} <= options
    assert [option for option in sorted(options) if option not in scale.__doc__] == []
    assert f"{scale.LIMIT}\nseconds" in scale.__doc__
    assert {
        re.sub(r"\d+$", "N", name.removeprefix("packed-").removeprefix("eager-")) for name in scale.configurations([2])
    } == set(re.findall(r"^- (one|[a-z]+-N):", scale.__doc__, re.MULTILINE))
    guide = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"gives it up after {scale.LIMIT} s" in guide


def test_each_is_compared_with_one_gpu_of_its_kind(scale):
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
    results = RECORD["results"]
    found = {n: each["speedup"] for n, each in RECORD["comparison"].items()}
    assert found.keys() == results.keys() - {"one", "packed-one"}
    for name, speedup in found.items():
        one = results["packed-one" if name.startswith("packed") else "one"]
        assert speedup == pytest.approx(results[name]["examples_per_second"] / one["examples_per_second"])


def test_grown_batches_reach_their_marks():
    """At least 1.85 times with two GPUs and 3.5 times with four."""
    found = RECORD["comparison"]
    assert found["packed-grown-2"]["speedup"] >= 1.85
    assert found["packed-grown-4"]["speedup"] >= 3.5
    assert found["grown-4"]["speedup"] >= 3.5


def test_losses_at_the_same_batch_are_those_of_one_gpu():
    """The largest difference that is stated is that of the curves."""
    results = RECORD["results"]
    for name in ("same-2", "same-4", "packed-same-2", "packed-same-4"):
        one = results[name.replace(name[name.index("same") :], "one")]["losses"]
        far = max(abs(a - b) for a, b in zip(results[name]["losses"], one, strict=True))
        assert RECORD["comparison"][name]["largest_loss_difference"] == pytest.approx(far)
        assert far < 0.02 < one[0] - one[-1]


def test_the_documents_table_is_the_record(scale):
    """What stands between its two marks is what the benchmark prints for the record."""
    (table,) = re.findall(r"<!-- scale: [^\n]*-->\n(.*?)\n<!-- end of scale -->", DOCUMENT, re.DOTALL)
    assert table == scale.markdown(RECORD)
    assert table.count("\n") == len(RECORD["results"]) + 1


def test_the_documents_sentences_are_the_record():
    """Its numbers of gradients, milliseconds, speedups, losses and waiting are those that were measured."""
    results, against = RECORD["results"], RECORD["comparison"]
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
