"""Seconds from the first cell to the first optimizer step, 1,000 rows, model on disk.

    python benchmarks/startup.py --model FOLDER --data ROWS.json [--rounds 3] [--budget SECONDS]

FOLDER and ROWS.json are those of train.py. Each side runs in a fresh process, from before its first import to the end
of its first optimizer step; starting Python itself is not counted, nor is compiling the packages' Python files, which
pip does when it installs them: a process that imports them goes first. ROWS.json is repeated to 51,760 rows, the size
of Alpaca-cleaned, in a local file that both sides read.

- ours: the calls of this project's Alpaca notebook, with its own parts named,
- official: those of Unsloth's notebook: load, attach, format all 51,760 rows, build the trainer, which tokenizes all of
  them, and train for 60 steps, of which it sees 480 rows. dataset_num_proc is 2, as there.

Held-out rows, which only ours has, are 8, so that measuring them before the first step is part of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import add_options, environment, measure_all, median, say

ALL_ROWS, USED_ROWS, HELDOUT = 51_760, 1_000, 8


class Clock:
    """Takes the time of one part after the other."""

    def __init__(self) -> None:
        self.began = self.last = time.perf_counter()
        self.parts: dict[str, float] = {}

    def part(self, name: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self.parts[name] = round(self.parts.get(name, 0.0) + now - self.last, 3)
        self.last = now

    def result(self) -> dict[str, Any]:
        """Return the total and the parts, in seconds."""
        return {"total_seconds": round(self.last - self.began, 3), "parts": self.parts}


class FirstStepError(Exception):
    """The first step is done; nothing after it is of interest."""


def main() -> None:
    """Measure both sides and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=USED_ROWS, help="that ours trains on")
    parser.add_argument("--all-rows", type=int, default=ALL_ROWS, help="in the file")
    add_options(parser, "startup.json")
    options = parser.parse_args()
    if options.one:
        say(SIDES[options.one](options))
        os._exit(0)  # its training was broken off in the middle, and some of what runs beside it cannot be ended
    keep_compiled()
    record = measure_all(__file__, list(SIDES), options)
    for name, runs in record["runs"].items():
        print(f"{name:10}{median(runs, 'total_seconds'):8.1f} s of {len(runs)}  {json.dumps(runs[-1]['parts'])}")


def keep_compiled() -> None:
    """Let Python's compiled files be there, as pip leaves them, also for packages that were installed without."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(tempfile.gettempdir()) / "startup-pycache"))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-c", "import unsloth, trl"], env=environment(), check=False, **quiet)


def rows_file(options: argparse.Namespace) -> Path:
    """Write the rows, repeated, where both sides find them; each instruction is told from its copies by a number."""
    path = Path(tempfile.gettempdir()) / f"startup-{options.all_rows}.json"
    if not path.is_file():
        rows = json.loads(Path(options.data).read_text(encoding="utf-8"))
        kept = ("instruction", "input", "output")
        copies = [
            {**{name: rows[n % len(rows)].get(name) or "" for name in kept}, "number": n}
            for n in range(options.all_rows)
        ]
        for copy in copies:
            copy["instruction"] = f"{copy['instruction']} ({copy.pop('number')})"
        path.write_text(json.dumps(copies), encoding="utf-8")
    return path


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Make the calls of the Alpaca notebook, in its order, up to the first step."""
    file = str(rows_file(options))
    os.environ["HELPERS_RUNS_DIR"] = tempfile.mkdtemp()
    clock = Clock()
    from helpers.training.session import configure, fit_layout, record_inputs, start_run

    given: dict[str, Any] = {"model_name": options.model, "dataset_name": file, "train_rows": options.rows}
    preset = "smoke" if on_cpu() else "large-gpu"
    config = configure(
        "alpaca", preset=preset, run_name="startup", heldout_rows=HELDOUT, prompt_style="alpaca", **given
    )
    run = start_run(config, resume="never")
    clock.part("configuration")
    from helpers.data.prompts import build_example
    from helpers.data.rows import load_rows

    rows = load_rows(config.data, "alpaca", config.train.seed)
    how = {"style": config.data.prompt_style, "system_prompt": config.data.system_prompt}
    examples = [[build_example(row, "alpaca", **how) for row in part] for part in (rows.train, rows.heldout)]
    clock.part("rows")
    from helpers.model.load import attach_adapter, import_unsloth, load_model

    import_unsloth()
    clock.part("import")
    loaded = load_model(config.model, style=config.data.prompt_style)
    clock.part("load")
    from helpers.data.contract import apply_contract

    limit = config.model.max_seq_length
    checked = [apply_contract(part, loaded.tokenizer, max_seq_length=limit) for part in examples]
    clock.part("contract")
    record_inputs(run, rows, loaded)
    config = fit_layout(config, checked[0], report=lambda line: None)
    attach_adapter(
        loaded,
        config.adapter,
        seed=config.train.seed,
        gradient_checkpointing=config.train.gradient_checkpointing,
        checkpoint_skip_layers=config.train.checkpoint_skip_layers,
    )
    clock.part("adapter")
    from helpers.training.trainer import build_trainer, train

    trainer = build_trainer(config, loaded, checked[0], run)
    clock.part("trainer")
    stop_after_first(trainer, clock)
    with suppress(FirstStepError):
        train(trainer, config, loaded, *checked, report=lambda line: None)
    return clock.result()


def official(options: argparse.Namespace) -> dict[str, Any]:
    """Make the calls of Unsloth's notebook, in its order, up to the first step."""
    file = str(rows_file(options))
    clock = Clock()
    import trainers
    from unsloth import FastLanguageModel  # noqa: F401 - before trl, as there

    clock.part("import")
    model, tokenizer = trainers.load_unsloth(options.model, {"batch": 2})
    clock.part("load")
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    from helpers.data.prompts import alpaca_block

    def formatting(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        columns = zip(rows["instruction"], rows["input"], rows["output"], strict=True)
        return {"text": [alpaca_block(i, given) + output + tokenizer.eos_token for i, given, output in columns]}

    table = load_dataset("json", data_files=file, split="train", cache_dir=tempfile.mkdtemp())
    table = table.map(formatting, batched=True)
    clock.part("rows")
    settings = trainers.settings({"batch": 2, "accumulate": 4, "processes": 2}, 60, checkpointing=False)
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=table, args=SFTConfig(**settings))
    clock.part("trainer")
    stop_after_first(trainer, clock)
    with suppress(FirstStepError):
        trainer.train()
    return clock.result()


def stop_after_first(trainer: Any, clock: Clock) -> None:
    """Let training end after its first optimizer step, the card idle."""
    import torch
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.part("first step")
            raise FirstStepError

    trainer.add_callback(Stop())


def on_cpu() -> bool:
    """Say whether there is no GPU, without importing torch."""
    from helpers.runtime.hardware import read_driver

    return read_driver() is None


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"ours": ours, "official": official}


if __name__ == "__main__":
    main()
