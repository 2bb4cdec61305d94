"""Training speed on one GPU and on several: examples a second, loss curves, cost of communication.

    python benchmarks/scale.py --model FOLDER --data ROWS.json [--gpus 2,4] [--only NAME,NAME] [--checkpointing]

FOLDER holds an NF4 checkpoint of Mistral-7B's shape (`scripts/random_mistral` makes one without a hub), ROWS.json a
list of Alpaca rows. Each configuration is a launch of its own: plain Python on one GPU, torchrun on several. All train
the same rows in the same order with LoRA of rank 16; each process runs the notebook's cells:

- one: 8 rows an optimizer step on one GPU,
- same-N: the same 8 a step, shared out among N GPUs; its loss curve should lie on that of one,
- grown-N: 8 rows a step on each GPU,
- packed-...: each of these with as many packed sequences of 2,048 tokens instead of rows,
- eager-...: each with rows as above, but without CUDA graphs.

Each is stopped early in a training of 1,000 steps, for which graphs pay. Speed is taken over the steps after warm-up,
in three blocks whose median counts. --checkpointing recomputes activations, for smaller cards.

    python benchmarks/scale.py --markdown --out FILE.json     print the table of docs/multi_gpu.md, measuring nothing
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

from bench import add_options, measure_all, read_record, say
from program import HELDOUT, mode, ready_trainer, values_of
from stopwatch import borders, time_parts

SIZE, ROWS_A_SEQUENCE = 8, 10
"""Rows, or packed sequences, that one GPU sees in a step; and how many Alpaca rows a sequence of 2,048 tokens holds."""

STEPS = {False: (120, 60), True: (24, 9)}
"""Packed or not: optimizer steps, and those of them that are not timed; most graphs are recorded in these."""

EPOCH = 20
"""Steps after which the same rows come again, in another order, and so batches of much the same sizes."""

PLANNED = 1000
"""Steps of the training that is stopped early."""

BLOCKS = 3
"""Parts of the timed steps; the median of their speeds is what is reported."""


def main() -> None:
    """Run the chosen configurations one after the other, writing what each gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--gpus", default="2", help="numbers of GPUs besides 1, separated by commas")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, for smaller cards")
    parser.add_argument("--markdown", action="store_true", help="only print the record as a table in Markdown")
    add_options(parser, "scale.json")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(read_record(options.out)))
        return
    if not options.model or not options.data:
        parser.error("--model and --data are needed to measure")
    known = configurations([int(number) for number in options.gpus.split(",")])
    if options.one:
        measure(known[options.one], options)
        return
    launchers = {name: torchrun(each["processes"]) for name, each in known.items() if each["processes"] > 1}
    print(markdown(measure_all(__file__, list(known), options, launchers=launchers)))


def configurations(gpus: list[int]) -> dict[str, dict[str, Any]]:
    """Return what is measured, by name: processes, batch x accumulation of all processes together, packing, graphs."""
    found: dict[str, dict[str, Any]] = {}
    kinds: dict[str, dict[str, Any]] = {"": {}, "packed-": {"packing": True}, "eager-": {"graphs": False}}
    for prefix, change in kinds.items():
        base = {"batch": SIZE, "accumulate": 1, "packing": False, "graphs": True, **change}
        found[f"{prefix}one"] = {"processes": 1, **base}
        found |= {f"{prefix}same-{n}": {"processes": n, **base} for n in gpus}
        found |= {f"{prefix}grown-{n}": {"processes": n, **base, "accumulate": n} for n in gpus}
    return found


def torchrun(processes: int) -> list[str]:
    """Return the command that starts a script in several processes, at a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = ["--nnodes=1", f"--nproc_per_node={processes}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return [sys.executable, "-m", "torch.distributed.run", *places]


def measure(wanted: dict[str, Any], options: argparse.Namespace) -> None:
    """In each process: build the trainer with the notebook's cells and train; the main one says the figures."""
    from helpers.core.distributed import gather, join, leave

    here = join()
    steps, warm = STEPS[wanted["packing"]]
    a_step = wanted["batch"] * wanted["accumulate"]
    there = len(json.loads(Path(options.data).read_text(encoding="utf-8"))) - HELDOUT
    rows = min(there, EPOCH * a_step * (ROWS_A_SEQUENCE if wanted["packing"] else 1))
    how = {**wanted, "checkpointing": options.checkpointing, "settings": {"cuda_graphs": wanted["graphs"]}}
    trainer = ready_trainer(values_of(options.model, options.data, rows, how, PLANNED))
    found = time_parts(trainer, borders(warm, steps, BLOCKS), rows_per_pass=None, ours=True, gather=gather)
    found |= {"processes": here.count, "rows_per_step": a_step, "mode": mode(trainer)}
    found |= communication(trainer) if here.count > 1 else {}
    if here.main:
        say(found)
    leave()


def communication(trainer: Any) -> dict[str, float]:
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


def compare(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return each configuration's speed against one GPU, and the largest difference of losses at the same batch."""
    results = {name: runs[-1] for name, runs in record["runs"].items()}
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


def first(name: str) -> str:
    """Return the configuration on one GPU that a name is compared with."""
    return re.sub(r"(one|same-\d+|grown-\d+)$", "one", name)


def markdown(record: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| | GPUs | a step | s/step | examples/s | against one GPU | peak GiB a GPU | all-reduce, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    against = compare(record)
    for name, (*_, r) in record["runs"].items():
        ratio = f"{against[name]['speedup']:.2f}x" if name in against else "1x"
        sent = f"{r['all_reduce_ms']:.2f}" if "all_reduce_ms" in r else "-"
        kind = "sequences of 2,048 tokens" if r["mode"]["packing"] else "rows"
        lines.append(
            f"| {name} | {r['processes']} | {r['rows_per_step']} {kind} | {r['step_seconds']:.3f} "
            f"| {r['examples_per_second']:.1f} | {ratio} | {r['peak_gib'] or 0:.1f} | {sent} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
