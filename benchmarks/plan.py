"""The planner's predicted peaks beside measured ones.

    python benchmarks/plan.py [FILE.jsonl]                    what was measured, predicted by the present code
    python benchmarks/plan.py --measure MODEL_DIR FILE.jsonl  measure first, on a GPU, about 25 s a configuration

FILE.jsonl holds lines of `scripts/measure_memory.py`, by default those of an H100. Nothing that was predicted then is
used: each peak is predicted anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from bench import RESULTS, ROOT

from helpers.memory.predict import GIB
from helpers.memory.shapes import MISTRAL_7B, ModelShape

SCRIPT = ROOT / "scripts" / "measure_memory.py"
H100 = RESULTS / "memory_h100.jsonl"
CAPABILITIES = {"NVIDIA H100 80GB HBM3": (9, 0), "NVIDIA H200": (9, 0)}
"""Compute capability by the name that a line has."""


def main() -> None:
    """Measure if asked to, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=H100, metavar="FILE.jsonl")
    parser.add_argument("--measure", type=Path, metavar="MODEL_DIR")
    options = parser.parse_args()
    if options.measure:
        with options.file.open("w", encoding="utf-8") as lines:
            subprocess.run([sys.executable, str(SCRIPT), str(options.measure)], stdout=lines, check=True)
    print("\n".join(table(compare(options.file))))


def compare(file: Path, shape: ModelShape = MISTRAL_7B) -> list[dict[str, Any]]:
    """Predict each configuration of a file with the present code.

    Args:
        file: Lines of `scripts/measure_memory.py`.
        shape: Of the model that was measured.

    Returns:
        For each line that was measured: what it is, measured and predicted GiB, and the error as a share.
    """
    predict = _script().predict
    found = []
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if not line.get("measured_bytes"):
            continue
        attention, capability = line["mode"]["attention"], CAPABILITIES[line["gpu"]]
        peak = predict(shape, line["configuration"], attention, capability).total()
        found.append(
            {
                "what": describe(line["configuration"], line["mode"]),
                "measured_gib": line["measured_bytes"] / GIB,
                "predicted_gib": peak / GIB,
                "error": peak / line["measured_bytes"] - 1,
            }
        )
    return found


def measured_on(file: Path) -> str:
    """Say on which cards a file's lines were measured."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return "Measured on " + " and ".join(sorted({line["gpu"] for line in lines}))


def describe(configuration: dict[str, Any], mode: dict[str, Any]) -> str:
    """Say in words what was measured."""
    c = configuration
    length = c["max_seq_length"] if c["packing"] else c["row_length"]
    unit = "packed sequence" if c["packing"] else "row"
    words = [f"{c['batch_size']} {unit}{'s' if c['batch_size'] > 1 else ''} of {length} tokens"]
    words.append("checkpointing" if c["gradient_checkpointing"] else "no checkpointing")
    if c["skip_layers"]:
        words[-1] += f" except for {c['skip_layers']} layers"
    words += [f"rank {c['lora_rank']}"] if c["lora_rank"] != 16 else []
    words += [f"dropout {c['lora_dropout']}"] if c["lora_dropout"] else []
    words += ["32-bit AdamW"] if c["optimizer"] == "adamw_torch_fused" else []
    words += ["attention row by row"] if mode["attention"] == "sdpa" else []
    return ", ".join(words)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the comparison as a Markdown table."""
    lines = ["| micro-batch | measured, GiB | predicted, GiB | error |", "|---|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['what']} | {row['measured_gib']:.2f} | {row['predicted_gib']:.2f} | {100 * row['error']:+.1f} % |"
        )
    return lines


def _script() -> Any:
    """Load scripts/measure_memory.py, which is no module of a package."""
    loader = SourceFileLoader("measure_memory", str(SCRIPT))
    spec = spec_from_loader("measure_memory", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
