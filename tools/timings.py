"""What runs took, one line a run, in docs/timings.csv: the badge table's minutes come from there."""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError
from helpers.core.runs import RunDirectory

__all__ = ["COLUMNS", "FILE", "main", "minutes_on", "read_timings", "timing"]

FILE = "docs/timings.csv"

COLUMNS = (
    "task",
    "preset",
    "card",
    "image",
    "torch",
    "unsloth",
    "commit",
    "rows",
    "updates",
    "minutes",
    "train_minutes",
    "forecast_minutes",
    "peak_gib",
    "date",
)
"""Numbers and names only: no text of a run, and no name of its machine or folder."""

ROOT = Path(__file__).resolve().parent.parent


def timing(manifest: Mapping[str, Any], metrics: Mapping[str, Any], image: str = "") -> dict[str, Any]:
    """Return a run's line.

    Args:
        image: Of the machine, such as Colab's release.

    Raises:
        RunError: It is not complete, or was resumed, so that its start and end do not say how long it took.
    """
    if manifest.get("state") != "complete" or manifest.get("resumed"):
        state = "resumed" if manifest.get("resumed") else manifest.get("state")
        raise RunError("run", "a complete run that was never resumed", state, "Let it run once from start to end.")
    started, finished = (datetime.datetime.fromisoformat(manifest[name]) for name in ("started", "finished"))
    versions, forecast = manifest.get("versions", {}), metrics.get("forecast") or {}
    gpus = manifest.get("hardware", {}).get("gpus") or ["CPU"]
    expected = forecast.get("train_seconds", 0.0) + forecast.get("heldout_seconds", 0.0)
    return {
        "task": manifest["task"],
        "preset": manifest.get("parameters", {}).get("preset", ""),
        "card": gpus[0],
        "image": image,
        "torch": versions.get("torch", ""),
        "unsloth": versions.get("unsloth", ""),
        "commit": str(manifest.get("git_commit") or "")[:12],
        "rows": metrics["rows_seen"],
        "updates": len(metrics["train_loss"]) - metrics.get("skipped_updates", 0),
        "minutes": round((finished - started).total_seconds() / 60, 1),
        "train_minutes": round((metrics["train_seconds"] + metrics.get("heldout_seconds", 0.0)) / 60, 1),
        "forecast_minutes": round(expected / 60, 1) if expected else "",
        "peak_gib": round(metrics["peak_memory_bytes"] / 2**30, 1),
        "date": finished.date().isoformat(),
    }


def minutes_on(lines: Sequence[Mapping[str, str]], task: str, card: str, preset: str) -> tuple[float, int] | None:
    """Return the median minutes of a task's runs on a kind of card, and how many runs there are; None without any."""
    found = [
        float(line["minutes"])
        for line in lines
        if line["task"] == task and line["preset"] == preset and card in line["card"].split()
    ]
    return (statistics.median(found), len(found)) if found else None


def read_timings(root: Path = ROOT) -> list[dict[str, str]]:
    """Return the file's lines; none where there is no file."""
    path = root / FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Add a run's line to the file, once."""
    parser = argparse.ArgumentParser(description="Add what a run took to docs/timings.csv.")
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/alpaca-colab-t4")
    parser.add_argument("--image", default=os.environ.get("COLAB_RELEASE_TAG", ""), help="the machine's image")
    options = parser.parse_args(arguments)
    run = RunDirectory(options.run)
    line = {name: str(value) for name, value in timing(run.manifest(), run.metrics(), options.image).items()}
    lines = read_timings(root)
    if line not in lines:
        with (root / FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*lines, line])
    print(f"{FILE}: {line['task']} on {line['card']}, {line['minutes']} minutes. Then run scripts/build_badges.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
