"""Seconds from the start of the process to the end of the first optimizer step, model on disk.

    python benchmarks/startup.py --model FOLDER --data ROWS.json [--rounds 3] [--budget SECONDS]

FOLDER and ROWS.json are those of train.py, and what the sides do is in whole.py. ROWS.json is repeated to 51,760 rows,
the size of Alpaca-cleaned, in a local file that both sides read:

- ours draws 1,000 of them, and 48 to measure losses on, which it does before the first step,
- official formats and tokenizes all of them, as its notebook does, to train on the first 480 in 60 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import whole
from bench import add_options, environment, measure_all, median, say

ALL_ROWS = 51_760
ROWS = {"ours": 1_000, "official": ALL_ROWS}
"""That a side takes of them."""


def main() -> None:
    """Measure both sides and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="without one, the small model of preset smoke")
    parser.add_argument("--data", required=True)
    add_options(parser, "startup.json")
    options = parser.parse_args()
    if options.one:
        settings = {"until": "first-step", "official_steps": 60, "preset": "large-gpu", "all_rows": ALL_ROWS}
        settings |= {"t4_like": False}
        say(whole.measure(options.one, ROWS[options.one], argparse.Namespace(**vars(options), **settings)))
        os._exit(0)  # a training that was stopped early leaves threads that cannot be ended
    keep_compiled()
    record = measure_all(__file__, list(ROWS), options)
    for name, runs in record["runs"].items():
        print(f"{name:10}{median(runs, 'total_seconds'):8.1f} s of {len(runs)}  {json.dumps(runs[-1]['stages'])}")


def keep_compiled() -> None:
    """Let Python's compiled files be there, as pip leaves them, also for packages that were installed without."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(tempfile.gettempdir()) / "startup-pycache"))
    subprocess.run([sys.executable, "-c", "import unsloth, trl"], env=environment(), check=False, capture_output=True)


if __name__ == "__main__":
    main()
