"""The benchmarks' records: written after each configuration, gone on with, within a time; and what is made of them."""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402  the path comes first
import document  # noqa: E402
import generate  # noqa: E402
import loss  # noqa: E402
import plan  # noqa: E402
import profile_step  # noqa: E402
import stopwatch  # noqa: E402
import tables  # noqa: E402
import train  # noqa: E402

SCRIPT = """
import json, sys, time
name = sys.argv[sys.argv.index("--one") + 1]
if name == "broken":
    sys.exit("no figures")
if name == "slow":
    time.sleep(30)
print("noise")
print("RESULT " + json.dumps({"speed": 3.5, "machine": {"gpus": ["Card"]}}))
"""


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measure configurations of a small script; return the record."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def run(*names, about=None, **given):
        settings = {"only": None, "rounds": 1, "budget": None, "limit": 20, "again": False}
        options = argparse.Namespace(**settings | given, out=tmp_path / "record.json")
        return bench.measure_all(str(tmp_path / "script.py"), names, options, about=about)

    return run


class TestRecord:
    """One process a configuration, and a record that survives a cut."""

    def test_it_holds_machine_and_runs(self, measure, tmp_path):
        """The file has the machine once, and each configuration's runs."""
        measure("one", "two", rounds=2)
        record = json.loads((tmp_path / "record.json").read_text())
        assert record["machine"] == {"gpus": ["Card"]}
        assert [run["speed"] for run in record["runs"]["two"]] == [3.5, 3.5]

    def test_it_is_gone_on_with(self, measure, capsys):
        """What the record has is not measured again unless asked for."""
        measure("one")
        capsys.readouterr()
        measure("one", "two")
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["two"]
        measure("one", "two", again=True, only="one")
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["one"]

    def test_a_failure_costs_only_itself(self, measure, capsys):
        """The others are measured, and the end of its output is shown."""
        assert list(measure("broken", "two")["runs"]) == ["two"]
        assert "no figures" in capsys.readouterr().out

    def test_what_takes_too_long_is_given_up(self, measure, capsys):
        """After the limit a configuration is ended."""
        assert measure("slow", limit=1)["runs"] == {}
        assert "given up after 1 s" in capsys.readouterr().out

    def test_a_budget_leaves_out_what_would_not_end(self, measure, tmp_path, capsys):
        """A configuration that took 50 s before is not started with 10 s left; another unknown one is the same."""
        record = {"machine": None, "runs": {"one": [{"process_seconds": 50.0}]}}
        (tmp_path / "record.json").write_text(json.dumps(record))
        assert list(measure("one", "two", rounds=2, budget=10)["runs"]) == ["one"]
        assert capsys.readouterr().out.count("left out, 10 s are left") == 3

    def test_unknown_names_are_refused(self, measure):
        """A typing mistake is no empty measurement."""
        with pytest.raises(SystemExit, match="unknown: ten; known are one, two"):
            measure("one", "two", only="ten")

    def test_it_says_what_was_asked_for(self, measure, tmp_path):
        """From the first run on; runs of something else are not mixed with it."""
        measure("one", about={"prompts": 32})
        assert json.loads((tmp_path / "record.json").read_text())["prompts"] == 32
        with pytest.raises(SystemExit, match=r"record.json was measured with \{'prompts': 32\}"):
            measure("one", "two", about={"prompts": 8})
        assert measure("one", about={"prompts": 8}, again=True)["prompts"] == 8

    def test_figures_stand_in_a_line_of_their_own(self, capsys):
        """Behind a progress bar, too, that did not come to its end."""
        print("  2%|1/60", end="")
        bench.say({"speed": 3.5})
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(bench.MARK)]
        assert json.loads(line.removeprefix(bench.MARK))["speed"] == 3.5

    def test_the_machine_is_described_without_names(self):
        """Hardware and versions are in it; no host, user or path is."""
        found = bench.machine()
        assert {"gpus", "cores", "torch", "unsloth", "transformers"} <= set(found)
        assert "/" not in json.dumps(found).replace("+", "")


class TestOptions:
    """What the benchmarks understand is what their guide says."""

    COMMON = ("--only", "--rounds", "--budget", "--again", "--out")

    @pytest.mark.parametrize("name", ["train", "generate", "startup", "loss", "whole", "scale"])
    def test_all_have_the_common_ones(self, monkeypatch, capsys, name):
        """All that measure are called alike."""
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert [option for option in self.COMMON if option not in shown] == []

    def test_engines_are_measured_in_rounds(self, tmp_path, monkeypatch, capsys):
        """Each engine once a round, in a process of its own; the record holds what the tables need."""
        calls, given = [], ["--model", "M", "--data", "D", "--rounds", "2", "--only", "unsloth,ours", "--budget", "900"]
        rates = {"unsloth": ("unsloth, one by one", 4, 8.0), "ours": ("ours, steady state", 512, 1240.0)}

        def process(command, **_):
            _, script, *_, name = command
            calls.append((Path(script).name, name))
            engine, prompts, rate = rates[name]
            found = [{"name": engine, "arm": "tuned", "prompts": prompts, "tokens_per_s": rate}]
            said = "RESULT " + json.dumps({"results": found, "machine": {"gpus": ["Card"]}})
            return SimpleNamespace(communicate=lambda timeout: (said, None), returncode=0)

        monkeypatch.setattr(subprocess, "Popen", process)
        monkeypatch.setattr(sys, "argv", ["generate.py", *given, "--out", str(tmp_path / "generate.json")])
        generate.main()
        assert calls == [("generate.py", "unsloth"), ("generate.py", "ours")] * 2
        record = json.loads((tmp_path / "generate.json").read_text())
        assert (record["prompts"], record["new"], record["steady"]) == (32, 64, 512)
        assert {name: len(runs) for name, runs in record["runs"].items()} == {"unsloth": 2, "ours": 2}
        assert "| ours, everything counted | 512 | 1,240.0 | 155x |" in capsys.readouterr().out


class TestStopwatch:
    """Speeds in blocks."""

    def test_steps_are_cut_into_blocks(self):
        """Fifteen timed steps are three blocks of five, seven are blocks of two, two and three."""
        assert stopwatch.borders(5, 20, 3) == [(5, 10), (10, 15), (15, 20)]
        assert stopwatch.borders(1, 8, 3) == [(1, 3), (3, 5), (5, 8)]

    def test_warm_up_is_left_out(self):
        """Two steps of 8 rows and 100 labels in 4 seconds, after a first one of 10 seconds."""
        steps = [(8, 100), (8, 100), (8, 100)]
        assert stopwatch.speed([10.0, 12.0, 14.0], steps, 1, 3) == {"examples": 4.0, "tokens": 50.0}
        assert stopwatch.speed([10.0, 12.0, 14.0], steps, 1, 3, {2}) == {"examples": 4.0, "tokens": 50.0}

    def test_a_step_that_records_takes_neither_time_nor_rows(self):
        """Its seconds come once, and would not come again in the steps that are not timed."""
        steps = [(8, 100), (8, 100), (6, 50)]
        assert stopwatch.changes([0, 2, 2]) == {1}
        found = stopwatch.speed([10.0, 19.0, 21.0], steps, 1, 3, stopwatch.changes([0, 2, 2]))
        assert found == {"examples": 3.0, "tokens": 25.0}

    def test_an_epoch_has_so_many_steps(self):
        """An incomplete batch is a pass, too; an incomplete step is refused, since its passes could not be told."""
        assert stopwatch.steps_an_epoch(288, 2, 4) == 36
        assert stopwatch.steps_an_epoch(33, 8, 1) == 5
        with pytest.raises(ValueError, match="9 passes are not a multiple of 4"):
            stopwatch.steps_an_epoch(18, 2, 4)

    @pytest.mark.parametrize("warmup", [1, 2, 4])
    def test_each_part_has_all_batches(self, monkeypatch, warmup):
        """Wherever warm-up ends: 41 rows in 20 seconds, although half of the batches have one row and half 20."""
        trainer = CountedTrainer(rows=(1, 20, 1, 19), seconds=(7.0, 3.0, 6.0, 4.0))
        monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: trainer.now)
        found = stopwatch.time_epochs(trainer, warmup, epochs=2, rows_per_pass=None, ours=False)
        assert found["examples_per_second"] == 41 / 20
        assert found["useful_tokens_per_second"] == 10 * 41 / 20
        assert found["parts_examples_per_second"] == [41 / 20, 41 / 20]
        assert (found["steps"], found["steps_an_epoch"]) == (warmup + 8, 4)
        assert (found["step_seconds"], found["examples_per_step"]) == (5.0, 41 / 4)
        assert trainer.args.train_sampling_strategy == "sequential"

    def test_the_library_knows_that_order(self, tmp_path):
        """Transformers' sampler then gives every epoch the data set's own order."""
        from datasets import Dataset
        from transformers import Trainer, TrainingArguments

        trainer = Trainer(
            model=torch.nn.Linear(1, 1),
            args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=Dataset.from_dict({"x": list(range(50))}),
        )
        assert list(trainer._get_train_sampler()) != list(range(50))
        stopwatch.same_batches(trainer)
        assert [list(trainer._get_train_sampler()) for _ in range(2)] == [list(range(50))] * 2


class CountedTrainer:
    """A stand-in for a peer's trainer: packed batches of so many rows, each of which takes so many seconds."""

    def __init__(self, rows, seconds):
        self.rows, self.seconds, self.now = rows, seconds, 0.0
        self.args = SimpleNamespace(gradient_accumulation_steps=1, per_device_train_batch_size=1)
        self.train_dataset = [None] * len(rows)
        self.state = SimpleNamespace(log_history=[], global_step=0)

    def add_callback(self, callback):
        """Keep the clock."""
        self.clock = callback

    def training_step(self, model, inputs):
        """Take this batch's time."""
        self.now += self.seconds[self.state.global_step % len(self.rows)]

    def train(self):
        """Train until told to stop; a step belongs to the batch that comes next in the data set's order."""
        control = SimpleNamespace(should_training_stop=False)
        while not control.should_training_stop:
            rows = self.rows[self.state.global_step % len(self.rows)]
            labels = torch.ones(10 * rows, dtype=torch.long)
            self.training_step(None, {"labels": labels, "packed_seq_lengths": torch.ones(rows)})
            self.state.global_step += 1
            self.clock.on_step_end(self.args, self.state, control)


class TestSides:
    """What all sides train."""

    def test_all_sides_train_the_same_rows(self):
        """Whole steps of 8 rows, and graphs recorded in two epochs of them before time is taken."""
        assert train.ROWS % 8 == 0
        warm = {name: given["warmup"] for name, (_, given) in train.CONFIGURATIONS.items() if "warmup" in given}
        assert warm == {"ours-8": 72, "ours-8-separate": 72, "plain-packed-kept": 16}
        assert not any("rows" in given for _, given in train.CONFIGURATIONS.values())


class TestProfile:
    """What the kernels of a step do."""

    CALLS = (
        ([[16384, 4096], [4096, 14336]], 32, 96.0),
        ([[16384, 14336], [16384, 4096], [4096, 14336], [], []], 32, 100.0),
        ([[16384, 4096], [4096, 16]], 32, 4.0),
        ([[16384, 14336], [16384, 16], [16, 14336], [], []], 32, 8.0),
        ([[16, 16384], [16384, 4096]], 32, 2.0),
    )

    def test_products_are_told_apart_by_the_rank(self):
        """Those with a narrow dimension are the adapter's; the rest of the kernels is what remains."""
        kernels = [("nvjet_gemm", 210.0), ("void pytorch_flash::flash_bwd", 9.0), ("_nf4_dequant_kernel", 12.0)]
        found = profile_step.divide([*kernels, ("_DWf_DW_dfg_kernel", 20.0)], self.CALLS)
        assert found["kinds"] == {
            "products with frozen weights": 196.0,
            "products with the adapter": 14.0,
            "attention": 9.0,
            "unpacking of 4-bit weights": 12.0,
            "everything else": 20.0,
        }
        assert found["frozen_tera"] == round(2 * 2 * 16384 * 4096 * 14336 * 32 / 0.196 / 1e12, 1)

    def test_torch_gives_the_shapes(self):
        """A profile of products on a CPU has them under the names and with the shapes that are looked for."""
        left, right, out = torch.ones(96, 128), torch.ones(128, 80), torch.ones(96, 80)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            _ = left @ right
            out.addmm_(left, right)
        events = profile.key_averages(group_by_input_shape=True)
        shapes = {each.key: each.input_shapes for each in events if each.key in profile_step.PRODUCTS}
        assert shapes["aten::mm"] == [[96, 128], [128, 80]]
        assert shapes["aten::addmm_"][:3] == [[96, 80], [96, 128], [128, 80]]

    def test_it_stands_in_the_document(self, tmp_path):
        """Shares of all kernels, and the speed of products."""
        record = {"machine": {"gpus": ["Card"]}, "batch": 8, "step": 500.0, "kernels": 400.0, "frozen_tera": 747.0}
        record["kinds"] = {"products with frozen weights": 300.0, "everything else": 100.0}
        (tmp_path / "packed_step_card.json").write_text(json.dumps(record))
        text = "\n".join(document.document(tmp_path))
        assert "| products with frozen weights | 300.0 | 75% |" in text
        assert (
            "The step takes 500 ms, so that the kernels fill 80% of it. Products with frozen weights run at 747" in text
        )


class TestPlan:
    """Predicted peaks beside those that were measured on a card."""

    def test_each_is_within_a_tenth(self):
        """The present prediction is within 10 % of all ten peaks measured on an H100."""
        rows = plan.compare(plan.H100)
        assert len(rows) == 10
        assert [row["what"] for row in rows if abs(row["error"]) > 0.1] == []

    def test_the_measured_peaks_are_those_of_the_card(self):
        """The smallest peak is 4.71 GiB and the largest 31.83."""
        peaks = [row["measured_gib"] for row in plan.compare(plan.H100)]
        assert (round(min(peaks), 2), round(max(peaks), 2)) == (4.71, 31.83)

    def test_lines_without_a_measurement_are_left_out(self, tmp_path):
        """A configuration that failed, or was tried without a GPU, is not compared."""
        (tmp_path / "memory.jsonl").write_text('{"configuration": {}, "failed": "x"}\n{"measured_bytes": null}\n')
        assert plan.compare(tmp_path / "memory.jsonl") == []


def write_losses(path, sides, gpus=("Card",)):
    """Write a record of held-out losses: examples a step, and the losses by seed, of each side."""
    runs = {
        name: [
            {
                "seed": seed,
                "examples_per_step": each,
                "learning_rate": 2e-4,
                "losses": [1.0, 1.0, 1.0],
                "heldout": [[80 * at, value] for at, value in enumerate(values)],
            }
            for seed, values in orders.items()
        ]
        for name, (each, orders) in sides.items()
    }
    path.write_text(json.dumps({"machine": {"gpus": list(gpus)}, "runs": runs}))


class TestDocuments:
    """docs/speed.md and the README say what the records say."""

    def test_they_agree_with_the_records(self, monkeypatch, capsys):
        """`scripts/build_figures --check` finds no file that would be written otherwise."""
        monkeypatch.setattr(sys, "argv", ["build_figures", "--check"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "scripts" / "build_figures"), run_name="__main__")
        assert (caught.value.code, capsys.readouterr().out) == (0, "")

    def test_medians_of_a_record_stand_in_the_tables(self, tmp_path):
        """Of several runs, with the machine they were measured on."""
        runs = {
            "ours-8": [{"examples_per_second": speed, "peak_gib": 12.0} for speed in (30.0, 50.0, 36.0)],
            "official": [{"examples_per_second": 4.0, "peak_gib": 5.0}],
        }
        (tmp_path / "train_card.json").write_text(json.dumps({"machine": {"gpus": ["New"]}, "runs": runs}))
        text = "\n".join(document.document(tmp_path))
        assert "| ours, the same 8 examples a step | 36.0 | 12.0 | 9x |" in text
        assert "Measured on one New." in text

    @pytest.mark.parametrize("best", ["plain-packed", "plain-packed-8", "plain-packed-kept"])
    def test_the_fastest_plain_setting_is_its_best(self, best):
        """Of those that a record holds."""
        speeds = {"official": 4.0, "plain": 2.0, "plain-packed": 10.0, "plain-packed-8": 10.5, "plain-packed-kept": 11}
        speeds[best] = 12.0
        runs = {name: [{"examples_per_second": speed, "peak_gib": 8.0}] for name, speed in speeds.items()}
        text = tables.training({"runs": runs})
        name = tables.LABELS[best].replace("the same, packed", "the same at its best: packed")
        assert "at its best: packed, batch" in name
        assert f"| {name} | 12.0 | 8.0 | 3x |" in text
        assert text.count("at its best") == 1
        assert text.count("the same, packed") == 2

    def test_the_readme_tells_what_one_waits_for(self, tmp_path):
        """Seconds for each side: the first step, and 1,000 rows with 8 a step and packed."""
        speeds = {"official": 4.0, "plain": 2.0, "plain-packed": 10.0, "plain-packed-kept": 40.0, "ours-8": 50.0}
        runs = {name: [{"examples_per_second": speed, "peak_gib": 8.0}] for name, speed in speeds.items()}
        train = {"machine": {"gpus": ["Card"]}, "runs": runs}
        started = {side: [{"total_seconds": seconds}] for side, seconds in (("official", 36.6), ("ours", 9.04))}
        (tmp_path / "train_card.json").write_text(json.dumps(train))
        (tmp_path / "startup_card.json").write_text(json.dumps({"machine": {"gpus": ["Card"]}, "runs": started}))
        text = "\n".join(document.short(tmp_path))
        assert "| the first step, from the start | 37 s |  |  | 9.0 s |" in text
        assert "| 1,000 rows of Alpaca, 8 a step, when all is warm | 4.2 min |  | 8.3 min | 20 s |" in text
        assert "| the same, packed, each at its best |  |  | 25 s |  |" in text
        assert "on Card; an empty cell was not measured." in text

    @pytest.mark.parametrize("graphs", [None, "CUDA graphs: 50 of 60 passes replayed."])
    def test_what_the_peak_is_with_graphs_is_said(self, tmp_path, graphs):
        """Under the table of a record with CUDA graphs, whose peak is of reserved memory; else not."""
        run = {"examples_per_second": 30.0, "peak_gib": 12.0, **({"graphs": graphs} if graphs else {})}
        record = {"machine": {"gpus": ["Card"]}, "runs": {"ours-8": [run]}}
        (tmp_path / "train_card.json").write_text(json.dumps(record))
        text = "\n".join(document.document(tmp_path))
        assert ("the peak is all memory that is reserved" in text) == bool(graphs)

    def test_plain_is_measured_packed_in_four_ways(self):
        """With batch 4 and 8, and 2 and 8 without checkpointing; all configurations have a name in the tables."""
        found = {name: given for name, (whose, given) in train.CONFIGURATIONS.items() if whose == "plain"}
        ways = [(each["batch"], each.get("checkpointing", True)) for each in found.values() if each.get("packing")]
        assert ways == [(4, True), (8, True), (2, False), (8, False)]
        assert train.CONFIGURATIONS.keys() <= tables.LABELS.keys()

    def test_engines_are_compared_by_both_arms(self, tmp_path):
        """Peers by tokens a second of each arm, ours by its seconds for both."""
        peer = [{"name": "unsloth, one by one", "arm": arm, "tokens_per_s": 10.0} for arm in ("tuned", "base")]
        ours = [{"name": "ours, warm-up counted", "arm": "tuned+base", "seconds": 2.0}]
        runs = {"unsloth": [{"results": peer}], "ours": [{"results": ours}]}
        record = {"machine": {}, "prompts": 5, "new": 10, "runs": runs}
        assert tables.answering(record) == {"unsloth, one by one": 10.0, "ours, warm-up counted": 2.0}
        assert tables.answers(record).splitlines()[3] == "| ours, warm-up counted | 2.0 | 5x |"

    def test_the_steady_state_is_shown_beside_one_by_one(self, tmp_path):
        """An engine that was measured on the tuned arm alone has a table of its own, in both documents."""
        arms = {"tuned": (7.5, 8.5, 8.0), "base": (20.0,)}
        peer = [
            {"name": "unsloth, one by one", "arm": arm, "prompts": 4, "tokens_per_s": rate}
            for arm, rates in arms.items()
            for rate in rates
        ]
        many = {"name": "ours, steady state", "arm": "tuned", "prompts": 512, "tokens_per_s": 1240.0}
        both = {"name": "ours, warm-up counted", "arm": "tuned+base", "prompts": 32, "seconds": 2.0}
        runs = {"unsloth": [{"results": peer}], "ours": [{"results": [both, many]}]}
        record = {"machine": {"gpus": ["Card"]}, "prompts": 32, "new": 64, "runs": runs}
        assert "ours, steady state" not in tables.answering(record)
        table = [
            "| tuned arm, steady state, 64 tokens each | prompts | tokens/s | against one by one |",
            "|---|---:|---:|---:|",
            "| Unsloth, one by one | 4 | 8.0 | 1x |",
            "| ours, everything counted | 512 | 1,240.0 | 155x |",
        ]
        assert tables.lasting(record).splitlines() == table
        (tmp_path / "generate_card.json").write_text(json.dumps(record))
        assert "\n".join(table) in "\n".join(document.document(tmp_path))

    def test_without_a_steady_state_there_is_no_table_of_it(self):
        """Of an engine that answered both arms only there is none, and nothing is made up."""
        both = {"name": "ours, warm-up counted", "arm": "tuned+base", "prompts": 32, "tokens_per_s": 9.0}
        assert tables.lasting({"prompts": 32, "new": 64, "runs": {"ours": [{"results": [both]}]}}) == ""

    def test_losses_stand_beside_the_peers(self, tmp_path):
        """Each side's held-out loss before and after; of several orders the mean and the range."""
        write_losses(
            tmp_path / "loss.json", {"ours-8": (8, {1: [2.5, 2.0, 1.75]}), "plain": (8, {1: [2.5, 1.5], 2: [2.5, 1.7]})}
        )
        text = "\n".join(document.document(tmp_path))
        assert "| ours-8 | 8 | 3 | 2.0e-04 | 1 | 2.5000 | 1.7500 |  |" in text
        assert "| plain | 8 | 3 | 2.0e-04 | 2 | 2.5000 | 1.6000 | 1.5000 to 1.7000 |" in text
        assert "ours-8: 2.500 to 1.750; plain: 2.500 to 1.500." in document.pictures(tmp_path)["loss"]
        assert "apart" not in text.split("## Loss after equal examples")[1]

    @pytest.mark.parametrize(("steps", "said"), [(8, False), (36, True)])
    def test_how_far_the_sides_lie_apart_is_said(self, tmp_path, steps, said):
        """Of points with the same order and the same examples; the rule for the rate where a side has other steps."""
        sides = {
            "official": (8, {1: [2.5, 2.02, 1.9], 2: [2.5, 2.0, 1.7]}),
            "ours-8": (8, {1: [2.5, 2.0, 1.9]}),
            "ours-36": (steps, {1: [2.5, 1.7]}),
            "ours-36-sqrt": (steps, {1: [2.5, 1.85]}),
        }
        write_losses(tmp_path / "loss.json", sides)
        text = " ".join("\n".join(document.document(tmp_path)).split())
        assert "The points of ours-8 and of the official side lie at most 0.02 apart." in text
        assert ("grows with the examples a step" in text) == said
        beside = "with larger steps: ours-36 0.100 below it, ours-36-sqrt 0.050 above it."
        assert (beside in text) == said

    def test_a_second_machine_has_its_own_table_and_picture(self, tmp_path):
        """What was measured on a GPU comes first; sides that only explain are not drawn."""
        sides = {name: (8, {1: [2.5, 1.9]}) for name in ("official", "plain", "ours-36-sqrt", "ours-8")}
        write_losses(tmp_path / "loss_cpu.json", sides, gpus=[])
        write_losses(tmp_path / "loss_h200.json", sides)
        assert list(tables.find_all("loss", tmp_path)) == ["h200", "cpu"]
        drawn = document.pictures(tmp_path)
        assert list(drawn) == ["loss", "loss_cpu"]
        assert "official: 2.500 to 1.900; ours-8: 2.500 to 1.900." in drawn["loss"]
        text = "\n".join(document.document(tmp_path))
        assert text.count("## Loss after equal examples") == 1
        assert text.index("speed_loss.svg") < text.index("Measured on a CPU") < text.index("speed_loss_cpu.svg")

    def test_the_rate_follows_the_examples(self):
        """In proportion, or with the root; with 8 examples a step it is the official notebook's."""
        assert [loss.rate(8, power) for power in (1.0, 0.5)] == [2e-4, 2e-4]
        assert (loss.rate(40, 1.0), loss.rate(32, 0.5)) == (1e-3, 4e-4)
        roots = {name for name, (_, given) in loss.SIDES.items() if given.get("power") == 0.5}
        assert roots == {name for name in loss.SIDES if name.endswith("-sqrt")}

    def test_starts_and_checks_become_tables(self, tmp_path):
        """Seconds to the first step with their parts, and what a GPU check found."""
        runs = {
            name: [{"total_seconds": s, "stages": {"imports": 5.0}}] for name, s in (("ours", 12), ("official", 40))
        }
        (tmp_path / "startup.json").write_text(json.dumps({"machine": {"gpus": ["Card"]}, "runs": runs}))
        verdicts = {"gradients, cosine": {"found": 0.99991, "wanted": "> 0.999", "ok": True}}
        found = {"machine": {"gpus": ["Card"]}, "runs": {}, "verdicts": verdicts}
        (tmp_path / "equivalence_card.json").write_text(json.dumps(found))
        text = "\n".join(document.document(tmp_path))
        assert "| ours | 12.0 | 0.3x | imports 5.0 |" in text
        assert "| gradients, cosine | 0.99991 | > 0.999 | yes |" in text

    def test_what_was_tried_beyond_16_bit_is_said(self):
        """With its gain, the gradients, and why fp8 is not used."""
        text = " ".join("\n".join(document.beyond(document.RESULTS)).split())
        assert "| adapter products together | 895 | 1.10x | 59.5 | 0.9998 |" in text
        assert "| frozen products in fp8, a scale a row | 647 | 1.52x | 72.5 | 0.6958 |" in text
        assert (
            "was 0.0118, 0.0135, 0.0082 higher in three orders of the rows; the orders alone differ by 0.0100" in text
        )
        assert "So 2 of 3 missed the goal" in text

    def test_without_a_record_nothing_is_said_of_it(self, tmp_path):
        """There is no empty section."""
        assert list(document.beyond(tmp_path)) == []

    def test_the_readme_must_have_its_marks(self):
        """Without the two lines between which the tables stand nothing is written."""
        with pytest.raises(ValueError, match="not one pair"):
            document.put("# A text", "tables")

    @pytest.mark.parametrize(
        ("ratio", "text"),
        [(1.0, "1x"), (7.53, "7.5x"), (0.6, "0.6x"), (0.574, "0.57x"), (0.999, "1x"), (108.96, "109x")],
    )
    def test_factors_are_short(self, ratio, text):
        """One decimal, none where it would be zero or from a hundred on."""
        assert tables.times(ratio) == text

    def test_seconds_until_the_adapter_is_there_stand_beside_the_official_ones(self, tmp_path):
        """Each side's stages in columns; what was reckoned is marked and counts as training."""
        stages = {"python": 1.0, "imports": 10.0, "the model": 4.0, "train": 40.0, "checkpoints": 2.0}
        official = {
            "side": "official",
            "rows": 944,
            "total_seconds": 60.0,
            "stages": {**stages, "save the adapter": 3.0},
        }
        official |= {"steps": 60, "extrapolated": {"steps": 58, "seconds": 90.0}}
        ours = {"side": "ours", "rows": 944, "total_seconds": 30.0, "stages": {"train": 24.0, "held-out losses": 6.0}}
        runs = {"ours-944": [ours], "official-944": [official]}
        (tmp_path / "whole_card.json").write_text(json.dumps({"machine": {"gpus": ["Card"]}, "runs": runs}))
        text = "\n".join(document.document(tmp_path))
        peer = "| 944 | Unsloth's notebook as a script | 150.0* | 1x | 10.0 | 5.0 | 130.0 | 0.0 | 0.0 | 2.0 | 3.0 |"
        assert peer in text
        assert "| 944 | ours, the notebook | 30.0 | 5x | 0.0 | 0.0 | 24.0 | 6.0 | 0.0 | 0.0 | 0.0 |" in text
        assert "\\* 60 steps were measured, and the rest reckoned from their speed." in text
        waited = "944 rows of Alpaca once (training alone) | 2.5 min (2.2 min) |  |  | 30 s (24 s) |"
        shutil.copy(tmp_path / "whole_card.json", tmp_path / "whole_t4like_card.json")  # speaks of no card's speed
        assert "\n".join(document.short(tmp_path)).count(waited) == 1

    def test_the_start_stands_by_rows(self, tmp_path):
        """Seconds to the first step of each side, by how many rows it trains."""
        runs = {
            f"{side}-{rows}": [{"side": side, "rows": rows, "total_seconds": seconds, "stages": {}}]
            for side, rows, seconds in (("ours", 10_000, 30.0), ("ours", 944, 20.0), ("official", 944, 35.25))
        }
        (tmp_path / "rows_card.json").write_text(json.dumps({"machine": {"gpus": ["Card"]}, "runs": runs}))
        text = "\n".join(document.document(tmp_path))
        assert "| 944 | 35.2 | 20.0 |\n| 10,000 |  | 30.0 |" in text

    def test_a_chart_is_whole(self):
        """The picture is XML on white, with a description, and comes out the same each time."""
        picture, again = (document.bars("Speed", {"peer": 10.0, "ours": 40.0}) for _ in range(2))
        assert picture == again
        root = ElementTree.fromstring(picture)
        said = [each.text for each in root.iter("{http://purl.org/dc/elements/1.1/}description")]
        assert said == ["peer: 10.0, ours: 40.0."]
