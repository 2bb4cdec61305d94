"""What the benchmarks share: a process for each configuration, a record after each, a limit on the time of all.

A benchmark names its configurations. `measure_all` starts one process after the other, each with `--one NAME`, reads
the line that begins with "RESULT " and writes the record at once, so that a cut loses nothing that was measured. What
the record has already is not measured again. A configuration that would not end within the limit is not started.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARK = "RESULT "
PACKAGES = ("torch", "unsloth", "unsloth_zoo", "trl", "peft", "transformers", "accelerate", "bitsandbytes")

sys.path.insert(0, str(ROOT))


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add what every benchmark understands.

    Args:
        parser: The benchmark's.
        out: Name of the record in benchmarks/results.
    """
    parser.add_argument("--only", help="names of configurations, separated by commas; all by default")
    parser.add_argument("--rounds", type=int, default=1, help="times each configuration is measured")
    parser.add_argument("--budget", type=float, help="seconds for everything; what would not end in time is left out")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which one configuration is given up")
    parser.add_argument("--out", type=Path, default=RESULTS / out, help="the record; an existing one is continued")
    parser.add_argument("--again", action="store_true", help="measure also what the record has")
    parser.add_argument("--one", help=argparse.SUPPRESS)


def measure_all(
    script: str,
    names: Sequence[str],
    options: argparse.Namespace,
    *,
    expected: float = 90,
    about: Mapping[str, Any] | None = None,
    launchers: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Measure configurations, each in a process of its own, round after round.

    Args:
        script: The benchmark's file.
        names: Of the configurations.
        options: From `add_options`, and the benchmark's own, which its processes get too.
        expected: Seconds that one takes, until the first one has shown.
        about: What the record says beside machine and runs. With runs of something else nothing is measured.
        launchers: What starts a configuration's script, by name, if not Python itself.

    Returns:
        The record: machine, and the runs of each configuration.
    """
    started, record = time.perf_counter(), read_record(options.out)
    chosen = options.only.split(",") if options.only else list(names)
    if unknown := set(chosen) - set(names):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    if options.again:
        record["runs"] = {name: runs for name, runs in record["runs"].items() if name not in chosen}
    other = {name: record[name] for name, value in (about or {}).items() if record.get(name, value) != value}
    if record["runs"] and other:
        sys.exit(f"{options.out.name} was measured with {other}: name another record with --out")
    record |= about or {}
    for number in range(options.rounds):
        for name in chosen:
            if len(record["runs"].get(name, [])) > number:
                continue
            left = options.budget - (time.perf_counter() - started) if options.budget else float("inf")
            if left < longest(record, name, expected):
                print(f"{name}: left out, {max(left, 0):.0f} s are left", flush=True)
                continue
            result = run_one(script, name, min(options.limit, left), (launchers or {}).get(name, [sys.executable]))
            if result:
                record["machine"] = result.pop("machine", record.get("machine"))
                record["runs"].setdefault(name, []).append(result)
                write_record(options.out, record)
    return record


def longest(record: Mapping[str, Any], name: str, expected: float) -> float:
    """Seconds that a configuration will take: as long as before, or as the longest of the others."""
    runs_of = {
        each: [run["process_seconds"] for run in runs if "process_seconds" in run]
        for each, runs in record["runs"].items()
    }
    known = {each: seconds for each, seconds in runs_of.items() if seconds}
    return max(known.get(name) or [max(seconds) for seconds in known.values()] or [expected])


def run_one(script: str, name: str, limit: float, launcher: Sequence[str]) -> dict[str, Any] | None:
    """Run one configuration in processes of its own; return its figures, or None if it failed."""
    command = [*launcher, script, *sys.argv[1:], "--one", name]
    started = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    try:
        output, _ = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output = (child.communicate()[0] or "") + f"\ngiven up after {limit:.0f} s"
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if child.returncode or not lines:
        print(f"{name} failed:\n{output[-3000:]}", flush=True)
        return None
    result = json.loads(lines[-1].removeprefix(MARK)) | {"process_seconds": round(time.perf_counter() - started, 1)}
    print(f"{name} {json.dumps({k: v for k, v in result.items() if not isinstance(v, (list, dict))})}", flush=True)
    return result


def say(result: Mapping[str, Any]) -> None:
    """In a configuration's process: hand its figures to the process that started it."""
    print("\n" + MARK + json.dumps({**result, "machine": machine()}), flush=True)  # a progress bar may stand there


def read_record(path: Path) -> dict[str, Any]:
    """Return what was measured before; an empty record if nothing was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": None, "runs": {}}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record whole: beside the old one, then in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def median(runs: Sequence[Mapping[str, Any]], figure: str) -> float:
    """Return the median of a figure over the runs of one configuration."""
    return statistics.median(run[figure] for run in runs)


def environment() -> dict[str, str]:
    """Return the environment of a configuration that is started now: no network, no statistics."""
    quiet = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONUNBUFFERED": "1", "BENCHMARK_BEGAN": str(time.time())}


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on; nothing that tells whose machine it is."""
    from helpers.runtime.hardware import describe_hardware
    from helpers.runtime.lockfile import installed_versions

    versions = installed_versions()
    kept = ("cpu", "cores", "ram_bytes", "gpus", "driver", "driver_cuda", "torch_cuda")
    found = describe_hardware()
    python = ".".join(map(str, sys.version_info[:3]))
    packages = {re.sub("_", "-", name): versions.get(re.sub("_", "-", name)) for name in PACKAGES}
    return {name: found[name] for name in kept} | {"python": python} | packages
