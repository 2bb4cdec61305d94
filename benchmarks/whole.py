"""What a user waits for: from the start of the process until the adapter is on disk, stage by stage.

    python benchmarks/whole.py --model FOLDER --data ROWS.json [--rows 944,4000] [--official-steps 60] [--preset NAME]

FOLDER holds an NF4 checkpoint of Mistral-7B's shape (`scripts/random_mistral` makes one without a hub), ROWS.json a
list of Alpaca rows, repeated with numbers added if fewer than --rows. All sides train that many once, 8 an
optimizer step, each in a process of its own:

- ours: the cells of this project's Alpaca notebook, all of them, up to the one after which the adapter is there. It
  also reads 48 more rows, on which it measures losses, keeps checkpoints, draws its figures and writes its records.
- official: what Unsloth's own Mistral Alpaca notebook does, as a script: batch 2 x 4, checkpointing, no packing; it
  saves checkpoints as the trainer does by default.
- best: the same at its best, packed to 2,048 tokens, batch 8, no checkpointing. Its steps see about 72 rows, so that it
  takes a ninth of the steps and learns less from the same rows at the same rate: shown for speed alone.

--official-steps N ends the training of `official` after N steps; the rest is extrapolated from the pace after the
first five, and the record says so. --t4-like gives all sides a T4's memory, fp16 and no flash attention; ours then
chooses its passes for that memory. --until first-step ends each side after its first optimizer step. --model may be
left out: then preset smoke tries it all on the CPU with SmolLM2.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import add_options, measure_all, say
from official import load_official, peer_trainer
from stopwatch import Stages

from tools.t4 import T4_SETTINGS, imitate_t4

HELDOUT = 48
"""Rows on which ours measures losses."""

SIDES: dict[str, dict[str, Any]] = {
    "ours": {},
    "official": {"save": "steps"},
    "best": {"batch": 8, "packing": True, "checkpointing": False, "save": "steps"},
}


class FirstStepError(Exception):
    """The first step is done; nothing after it is of interest."""


def main() -> None:
    """Measure each side for each number of rows, and print the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="without one, the small model of preset smoke")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", default="944,4000", help="numbers of rows, separated by commas")
    parser.add_argument("--official-steps", type=int, default=-1, help="steps to train; the rest is extrapolated")
    parser.add_argument("--preset", default="large-gpu", help="of ours, where a model is given")
    parser.add_argument("--t4-like", action="store_true", help="14.56 GiB, fp16, no flash attention: a T4's path")
    parser.add_argument("--until", choices=("saved", "first-step"), default="saved")
    add_options(parser, "whole.json")
    options = parser.parse_args()
    names = [f"{side}-{rows}" for rows in options.rows.split(",") for side in SIDES]
    if options.one:
        side, rows = options.one.rsplit("-", 1)
        say(measure(side, int(rows), options))
        os._exit(0)  # a training that was stopped early leaves threads that cannot be ended
    if options.t4_like:
        imitate_t4()
    print("\n".join(lines(measure_all(__file__, names, options, expected=240))))


def measure(side: str, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one side with so many rows."""
    now = time.time()
    spare = rows // 50  # for those that the notebook leaves out because they repeat another one's question
    there = getattr(options, "all_rows", rows + HELDOUT + spare)
    data = rows_file(options.data, there)  # not counted: they are there in life
    stages = Stages(float(os.environ["BENCHMARK_BEGAN"]) + time.time() - now)
    stages.turn("imports")
    stages.count_imports()
    try:
        found = ours(data, rows, options, stages) if side == "ours" else peer(side, data, rows, options, stages)
    except FirstStepError:
        found = {}
    return {"side": side, "rows": rows, "until": options.until, **stages.result(), **found, "peak_gib": peak_gib()}


def ours(data: str, rows: int, options: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Run the notebook until its adapter is on disk."""
    runs = Path(tempfile.mkdtemp())
    os.environ["HELPERS_RUNS_DIR"] = str(runs)
    values = {"preset": "smoke", "dataset_name": data, "train_rows": rows, "heldout_rows": HELDOUT, "resume": "never"}
    values |= {"max_steps": -(-rows // 8), "packing": False}
    if options.model:
        values |= {"preset": options.preset, "model_name": options.model, "prompt_style": "alpaca"}
    if options.t4_like:
        values |= {"preset": "colab-t4", **T4_SETTINGS}
    else:
        values |= {"batch_size": 8, "gradient_accumulation": 1}

    from helpers.training.program import TRAINING, find_program, run_cells

    for cell, _ in run_cells(find_program(TRAINING["alpaca"]), values):
        if any(runs.glob("*/adapter/adapter_model.safetensors")):
            break
        building = cell.section == "train" and "trainer.train(" not in cell.text
        stages.turn("rows and trainer" if building else cell.section or "setup")  # as the peer's stages are cut
        if cell.section == "train":
            count_training(stages, options)
    (metrics,) = (json.loads(path.read_text(encoding="utf-8")) for path in runs.glob("*/metrics.json"))
    return {"steps": metrics.get("steps"), "metrics": metrics}


def count_training(stages: Stages, options: argparse.Namespace) -> None:
    """Count apart what happens within the training of ours; once."""
    import transformers

    from helpers.model import scoring
    from helpers.model.patches import graph_capture

    if hasattr(scoring.score_rows, "__wrapped__"):
        return
    stages.count_calls(scoring, "score_rows", "held-out losses")
    stages.count_calls(graph_capture.GraphRecording, "record", "recording graphs")
    stages.count_calls(transformers.Trainer, "_save_checkpoint", "checkpoints")
    if options.until == "first-step":
        end_after_first()


def peer(side: str, data: str, rows: int, options: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Do what Unsloth's notebook does."""
    import unsloth  # noqa: F401 - before trl, as there

    stages.turn("the model")
    wanted = SIDES[side] | ({"precision": "fp16"} if options.t4_like else {})
    if options.model:
        model, tokenizer = load_official(options.model, wanted)
    else:
        from helpers.model.smollm2 import smollm2_folder

        model, tokenizer = load_official(str(smollm2_folder()), wanted | {"packing": False})
    stages.turn("rows and trainer")
    table = json.loads(Path(data).read_text(encoding="utf-8"))[:rows]
    limit = options.official_steps if side == "official" else -1
    trainer = peer_trainer(model, tokenizer, table, wanted, limit)
    import transformers

    stages.count_calls(transformers.Trainer, "_save_checkpoint", "checkpoints")
    if options.until == "first-step":
        end_after_first()
    marks = watch(trainer)
    stages.turn("train")
    trainer.train()
    stages.turn("save the adapter")
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found: dict[str, Any] = {"steps": len(marks)}
    if limit > 0 and -(-rows // 8) > limit:
        missing, first = -(-rows // 8) - limit, min(5, len(marks) - 1)
        seconds = (marks[-1] - marks[first - 1]) / (len(marks) - first)
        found["extrapolated"] = {"steps": missing, "seconds": round(missing * seconds, 2)}
    return found


def watch(trainer: Any) -> list[float]:
    """Return a list that gets the time at the end of each step."""
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.time())

    trainer.add_callback(Clock())
    return marks


def end_after_first() -> None:
    """Let the next training end with its first optimizer step."""
    import transformers

    def stop(*_: object, **__: object) -> None:
        raise FirstStepError

    setattr(transformers.trainer_callback.CallbackHandler, "on_step_end", stop)  # noqa: B010 - mypy knows its type


def rows_file(data: str, count: int) -> str:
    """Write so many rows with different questions; where a file has fewer, each further time with a number."""
    unique: dict[str, dict[str, str]] = {}
    for each in json.loads(Path(data).read_text(encoding="utf-8")):
        row = {name: each.get(name) or "" for name in ("instruction", "input", "output")}
        unique.setdefault(" ".join(f"{row['instruction']} {row['input']}".casefold().split()), row)
    rows = list(unique.values())
    path = Path(tempfile.mkdtemp()) / "rows.json"
    kept = []
    for at in range(count):
        row, turn = rows[at % len(rows)], at // len(rows)
        kept.append({**row, "instruction": f"{row['instruction']} ({turn})"} if turn else row)
    path.write_text(json.dumps(kept), encoding="utf-8")
    return str(path)


def peak_gib() -> float | None:
    """Return the most memory that was allocated on the card."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None


def whole_seconds(run: dict[str, Any]) -> float:
    """Return the seconds of a run, with what was extrapolated."""
    return run["total_seconds"] + run.get("extrapolated", {}).get("seconds", 0)


def lines(record: dict[str, Any]) -> list[str]:
    """Return the stages of each run as text."""
    found = []
    for name, runs in record["runs"].items():
        run = runs[-1]
        more = f" ({run['extrapolated']['seconds']:.0f} s of it extrapolated)" if "extrapolated" in run else ""
        found.append(f"{name}: {whole_seconds(run):.1f} s{more}")
        found += [f"  {stage:32}{seconds:8.1f}" for stage, seconds in run["stages"].items() if seconds >= 0.05]
    return found


if __name__ == "__main__":
    main()
