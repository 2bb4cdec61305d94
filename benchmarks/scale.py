"""Training speed on one GPU and on several: examples a second, loss curves, cost of communication.

    python benchmarks/scale.py --model FOLDER --data ROWS.json [--gpus 2,4] [--only NAME,NAME] [--out FILE.json]
                               [--again] [--checkpointing]

FOLDER holds an NF4 checkpoint of Mistral-7B's shape (`scripts/random_mistral` makes one without a hub), ROWS.json a
list of Alpaca rows. Each configuration is a launch of its own: plain Python on one GPU, torchrun on several. All train
the same rows in the same order with LoRA of rank 16, as `python -m helpers train` does:

- one: 8 rows an optimizer step on one GPU,
- same-N: the same 8 a step, shared out among N GPUs; its loss curve should lie on that of one,
- grown-N: 8 a step and GPU,
- packed-...: each of these with as many packed sequences of 2048 tokens instead of rows,
- eager-...: each with rows as above, but without CUDA graphs.

Each is broken off in a training of 1,000 steps, for which graphs pay. Speed is taken over the steps after warm-up, in
three blocks whose median counts, steps in which a graph is recorded left out: rows, or the rows that the packed
sequences of these steps hold, a second. FILE.json (by default benchmarks/results/scale.json) is written after each
configuration; what stands in it already is not measured again unless --again is given. What takes longer than 240
seconds is given up. --checkpointing recomputes activations, for smaller cards.

    python benchmarks/scale.py --markdown --out FILE.json     print the table of docs/multi_gpu.md, measuring nothing
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Set
from pathlib import Path
from statistics import mean, median
from typing import Any

from stopwatch import borders, changes, durations

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

HERE = Path(__file__).resolve().parent
SCRATCH = Path(tempfile.gettempdir()) / "benchmark-scale"
SIZE, ROWS_A_SEQUENCE = 8, 10
"""Rows, or packed sequences, that one GPU sees in a step; and how many Alpaca rows a sequence of 2048 tokens holds."""

STEPS = {False: (120, 60), True: (24, 9)}
"""Packed or not: optimizer steps, and those of them that are not timed; most graphs are recorded in these."""

EPOCH = 20
"""Unpacked: steps after which the same rows come again, in another order, and so batches of much the same sizes."""

PLANNED = 1000
"""Steps of the training that is broken off."""

LIMIT = 240
"""Seconds after which a configuration is given up."""

BLOCKS = 3
"""Parts of the timed steps; the median of their speeds is what is reported."""


def main() -> None:
    """Run the chosen configurations one after the other, writing what each gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--gpus", default="2", help="numbers of GPUs beside 1, separated by commas")
    parser.add_argument("--only", help="names of configurations, separated by commas; all by default")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scale.json")
    parser.add_argument("--again", action="store_true", help="measure also what FILE.json has")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, for smaller cards")
    parser.add_argument("--markdown", action="store_true", help="only print FILE.json as a table in Markdown")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.out.read_text())))
        return
    if not arguments.model or not arguments.data:
        parser.error("--model and --data are needed to measure")
    known = configurations([int(number) for number in arguments.gpus.split(",")])
    if arguments.one:
        measure(known[arguments.one], arguments)
        return
    record = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"results": {}}
    for name in arguments.only.split(",") if arguments.only else known:
        if name in record["results"] and not arguments.again:
            continue
        result = launch(name, known[name], arguments)
        if result is not None:
            record["results"][name] = result
            record.update(machine=machine(), comparison=compare(record["results"]))
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print_table(record)


def configurations(gpus: list[int]) -> dict[str, dict]:
    """Return what is measured, by name: processes, batch x accumulation of all processes together, packing, graphs."""
    found = {}
    for prefix, change in {"": {}, "packed-": {"packing": True}, "eager-": {"graphs": False}}.items():
        base = {"batch": SIZE, "accumulate": 1, "packing": False, "graphs": True, **change}
        found[f"{prefix}one"] = {"processes": 1, **base}
        found |= {f"{prefix}same-{n}": {"processes": n, **base} for n in gpus}
        found |= {f"{prefix}grown-{n}": {"processes": n, **base, "accumulate": n} for n in gpus}
    return found


def launch(name: str, options: dict, arguments: argparse.Namespace) -> dict | None:
    """Run one configuration in processes of its own; return its figures, or None if it failed."""
    command = [sys.executable]
    if options["processes"] > 1:
        command += ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc_per_node={options['processes']}"]
        command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    command += [__file__, "--one", name, "--model", arguments.model, "--data", arguments.data]
    command += ["--gpus", arguments.gpus, *(["--checkpointing"] if arguments.checkpointing else [])]
    started, lines, result = time.perf_counter(), [], None
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment()
    )
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
    signal.alarm(LIMIT)
    for line in child.stdout:
        lines.append(line)
        if line.startswith("RESULT "):
            result = json.loads(line[7:])
        elif line.startswith("> "):
            print(f"{name} {line[2:].rstrip()}", flush=True)
    status = child.wait()
    signal.alarm(0)
    if result is None or status:
        print(f"{name} failed with {status}:\n{''.join(lines)[-3000:]}", flush=True)
        return None
    result["process_seconds"] = round(time.perf_counter() - started, 1)
    shown = {k: v for k, v in result.items() if k not in ("losses", "mode")}
    print(f"{name} {json.dumps(shown)}", flush=True)
    return result


def environment() -> dict[str, str]:
    """Return the environment of a launch: this checkout importable, one thread a process for small sums."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine() -> dict:
    """Describe what the figures were measured on."""
    from helpers.runtime.hardware import describe_hardware
    from helpers.runtime.lockfile import installed_versions

    versions = installed_versions()
    names = ("unsloth", "trl", "peft", "transformers", "accelerate", "bitsandbytes")
    return {**describe_hardware(), **{n: versions.get(n) for n in names}}


def first(name: str) -> str:
    """Return the configuration on one GPU that a name is compared with."""
    return re.sub(r"(one|same-\d+|grown-\d+)$", "one", name)


def compare(results: dict[str, dict]) -> dict[str, dict]:
    """Return each configuration's speed against one GPU, and the largest difference of losses at the same batch."""
    found = {}
    for name, result in results.items():
        one = results.get(first(name))
        if one is None or result is one:
            continue
        found[name] = {"speedup": result["examples_per_second"] / one["examples_per_second"]}
        if "same" in name:
            pairs = zip(result["losses"], one["losses"], strict=True)
            found[name]["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
    return found


def print_table(record: dict) -> None:
    """Print the figures."""
    heads = f"{'GPUs':>5}{'rows a step':>12}{'examples/s':>11}{'x one':>7}{'peak GiB':>10}{'loss diff':>11}"
    print(f"{'configuration':18}{heads}")
    for name, r in record["results"].items():
        against = record["comparison"].get(name, {})
        ratio = f"{against['speedup']:.2f}" if against else "-"
        loss = f"{against['largest_loss_difference']:.4f}" if "largest_loss_difference" in against else "-"
        print(
            f"{name:18}{r['processes']:>5}{r['rows_per_step']:>12}{r['examples_per_second']:>11.2f}{ratio:>7}"
            f"{r['peak_gib']:>10.2f}{loss:>11}"
        )


def markdown(record: dict) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| | GPUs | a step | s/step | examples/s | against one GPU | peak GiB a GPU | all-reduce, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, r in record["results"].items():
        against = record["comparison"].get(name)
        ratio = f"{against['speedup']:.2f}x" if against else "1x"
        sent = f"{r['all_reduce_ms']:.2f}" if "all_reduce_ms" in r else "-"
        kind = "sequences of 2,048 tokens" if r["mode"]["packing"] else "rows"
        lines.append(
            f"| {name} | {r['processes']} | {r['rows_per_step']} {kind} | {r['step_seconds']:.3f} "
            f"| {r['examples_per_second']:.1f} | {ratio} | {r['peak_gib']:.1f} | {sent} |"
        )
    return "\n".join(lines)


def measure(options: dict, arguments: argparse.Namespace) -> None:
    """In each process: build the trainer, train, and let the main one print the figures.

    Args:
        options: Of `configurations`.
        arguments: The command line's.
    """
    from helpers.core.processes import gather, join, largest, leave
    from helpers.model.patches.cuda_graphs import card_peak, graphed_passes
    from helpers.model.patches.optimizer_step import quick_steps

    started = time.perf_counter()
    here = join()
    steps, warm = STEPS[options["packing"]]
    trainer, mean_useful = build(options, arguments, steps)

    import torch
    from transformers import TrainerCallback

    cuda = torch.cuda.is_available()
    marks: list[float] = []
    recorded: list[int] = []
    held: list[Any] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
            if cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            recorded.append(held[0].sizes if held[0] else 0)
            if here.main and state.global_step % 5 == 0:
                print(f"> step {state.global_step}/{steps} after {marks[-1] - started:.0f} s", flush=True)
            if state.global_step == steps:
                control.should_training_stop = True

    useful: list = []
    sizes: list = []
    rows: list = []
    original = trainer.training_step

    def counting(model: object, inputs: dict, *rest: object, **named: object) -> object:
        useful.append((inputs["labels"] != -100).sum())
        sizes.append(inputs["labels"].numel())
        rows.append(rows_in(inputs))
        return original(model, inputs, *rest, **named)

    trainer.training_step = counting
    trainer.add_callback(Clock())
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    ready = time.perf_counter()
    if here.main:
        print(f"> ready after {ready - started:.0f} s", flush=True)
    with (
        quick_steps(trainer),
        graphed_passes(trainer, report=lambda line: print(f"> {line}", flush=True)) as graphs,
    ):
        held.append(graphs)
        trainer.train()
    passes = trainer.args.gradient_accumulation_steps
    blocks = borders(warm, steps, BLOCKS)
    everyones = by_step(gather([int(count) for count in useful]), passes)
    loads = list(zip(*gather([sum(sizes[s * passes : (s + 1) * passes]) for s in range(warm, steps)]), strict=True))
    seen = by_step(gather(rows), passes)
    recording = set().union(*gather(changes(recorded)))  # the others wait for the one that records
    speeds = [speed(marks, seen, everyones, mean_useful, *block, recording) for block in blocks]
    peak = largest(card_peak(graphs) if cuda else 0)
    cost = communication(trainer) if here.count > 1 else {}
    result = {
        "processes": here.count,
        "rows_per_step": options["batch"] * options["accumulate"],
        "per_process": [trainer.args.per_device_train_batch_size, passes],
        "examples_per_second": median(each["examples"] for each in speeds),
        "blocks_examples_per_second": [each["examples"] for each in speeds],
        "useful_tokens_per_second": median(each["tokens"] for each in speeds),
        "step_seconds": median(mean(durations(marks, *block, recording)) for block in blocks),
        "slowest_over_mean_tokens": sum(max(load) * len(load) / sum(load) for load in loads) / len(loads),
        "peak_gib": peak / 2**30,
        "first_step_seconds": marks[0] - ready,
        "start_to_first_step_seconds": marks[0] - started,
        **cost,
        "losses": [float(h["loss"]) for h in trainer.state.log_history if "loss" in h],
        "mode": trainer.mode,
        **({"graphs": graphs.describe(), "steps_recording": len(recording)} if graphs else {}),
    }
    if here.main:
        print("RESULT " + json.dumps(result), flush=True)
    leave()


def rows_in(inputs: dict) -> int | None:
    """Return how many rows a batch holds: of a packed one the sequences that it lists, or None if it lists none."""
    packed = inputs.get("packed_seq_lengths")
    if packed is not None:
        return packed.numel()
    return len(inputs["input_ids"]) if inputs.get("position_ids") is None else None


def by_step(everyones: list[list[int | None]], passes: int) -> list[int | None]:
    """Return what all processes counted in each optimizer step; None for a step in which one could not say.

    Args:
        everyones: For each process the count of each pass.
        passes: In a step of one process.
    """
    found: list[int | None] = []
    for at in range(0, len(everyones[0]), passes):
        counts = [count for each in everyones for count in each[at : at + passes]]
        found.append(None if None in counts else sum(counts))
    return found


def speed(
    marks: list[float],
    rows: list[int | None],
    tokens: list[int],
    mean_tokens: float,
    first: int,
    last: int,
    left_out: Set[int] = frozenset(),
) -> dict[str, float]:
    """Return rows and tokens with a label a second, over some steps.

    Args:
        marks: When each step ended.
        rows: Of each step; where one is unknown, the number is reckoned from the tokens.
        tokens: With a label, of each step.
        mean_tokens: Of a row.
        first: Step with which they begin, from 0.
        last: Step before which they end.
        left_out: Steps that are not timed.
    """
    timed = [step for step in range(first, last) if step not in left_out]
    seconds, useful = sum(durations(marks, first, last, left_out)), sum(tokens[step] for step in timed)
    counted = [rows[step] for step in timed]
    return {
        "examples": (useful / mean_tokens if None in counted else sum(counted)) / seconds,
        "tokens": useful / seconds,
    }


def build(options: dict, arguments: argparse.Namespace, steps: int) -> tuple:
    """Build the trainer as `python -m helpers train` does; return it with the mean labels of a row."""
    from helpers.core.config import build_config
    from helpers.core.runs import RunDirectory
    from helpers.data.contract import apply_contract
    from helpers.data.prompts import build_example
    from helpers.model.load import attach_adapter, load_model
    from helpers.training.trainer import build_trainer

    config = build_config(
        "alpaca",
        preset="large-gpu",
        model_name=arguments.model,
        dataset_name="sample",
        batch_size=options["batch"],
        gradient_accumulation=options["accumulate"],
        packing=options["packing"],
        cuda_graphs=options["graphs"],
        gradient_checkpointing=arguments.checkpointing,
        max_steps=PLANNED,
        save_steps=10 * PLANNED,
        prompt_style="alpaca",
    )
    given = json.loads(Path(arguments.data).read_text(encoding="utf-8"))
    wanted = EPOCH * config.train.rows_per_step()
    if options["packing"]:
        wanted = 5 * steps * config.train.rows_per_step() * ROWS_A_SEQUENCE // 4  # none of these is an epoch's last
    rows = [given[at % len(given)] for at in range(wanted)]
    loaded = load_model(config.model, style="alpaca")
    attach_adapter(
        loaded,
        config.adapter,
        seed=config.train.seed,
        gradient_checkpointing=config.train.gradient_checkpointing,
        checkpoint_skip_layers=config.train.checkpoint_skip_layers,
    )
    examples = [build_example(row, "alpaca", style="alpaca") for row in rows]
    checked = apply_contract(examples, loaded.tokenizer, max_seq_length=config.model.max_seq_length)
    trainer = build_trainer(config, loaded, checked, RunDirectory(SCRATCH))
    trainer.args.save_strategy = "no"
    return trainer, checked.supervised_tokens() / len(checked.tokenized)


def communication(trainer: object) -> dict[str, float]:
    """Time what the processes send each other in a step: the adapter's gradients, added up over all of them."""
    import torch
    from torch import distributed

    numbers = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    device = trainer.accelerator.device
    gradient = torch.ones(numbers, device=device)
    marks = []
    for _ in range(12):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(gradient)
        gradient.mul_(0).sum().item()  # waits for the card
        marks.append(time.perf_counter() - began)
    return {"gradient_mib": numbers * 4 / 2**20, "all_reduce_ms": 1000 * sorted(marks)[len(marks) // 2]}


if __name__ == "__main__":
    main()
