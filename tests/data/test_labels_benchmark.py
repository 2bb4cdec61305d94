"""From a file of conversations to checked labels, as benchmarks/labels.py measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_labels_of_two_thousand_conversations_are_checked(tiny_mistral):
    """All rows pass; four of eight turns are learned in each, with less than two GiB of memory."""
    command = [sys.executable, ROOT / "benchmarks" / "labels.py", "--tokenizer", tiny_mistral, "--rows", "2000"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=300)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    trained, heldout = (json.loads(lines[part]) for part in ("train", "heldout"))
    assert (trained["rows"], heldout["rows"], trained["left out"]) == (1900, 100, 0)
    assert 0.5 < trained["supervised tokens"] / trained["tokens"] < 0.7
    assert float(lines["labels checked"].split("peak ")[1].split()[0]) < 2
