"""Run the notebooks as Colab or Kaggle would: with their packages, from each notebook's setup cell on.

    scripts/colab_like [colab_2026_08_py313]   the packages of a recorded list, tests/fixtures/NAME.txt
    scripts/colab_like newest                  the newest versions that the pins' own metadata allow
        [--notebooks NAME ...] [--folder DIR] [--torch torch==2.13.0]

The environment gets torch and what the list and the lock both name, without this project and without what Colab lacks:
the setup cell installs the rest, and this project from this checkout's last commit. Then all cells run with preset
smoke, two steps of a few rows. "newest" tells which versions differ from the lock: what a runtime will have some day.

Needs nbclient, which the project's environment has, and an index of packages; "newest" needs uv, or pipx to fetch it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from helpers.runtime.lockfile import FROZEN, read_lock

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("alpaca_instruction", "dolly_business", "side_by_side_eval")
SMALL = {
    "preset": "smoke", "max_steps": 2, "train_rows": 16, "heldout_rows": 8,
    "prompt_count": 2, "reference_rows": 4, "answered_rows": 2,
}  # fmt: skip
"""Values of those parameters that a notebook has."""

KERNEL = ("ipykernel", "ipywidgets")
"""Installed last, in versions that fit this Python: the list's would need a whole Jupyter of their age."""

KERNEL_PARTS = tuple(each for each in FROZEN if each not in ("numpy", "triton"))
"""What they bring along; see `helpers.runtime.lockfile.FROZEN`."""

LIMIT = 900
"""Seconds that one cell may take."""


def main() -> int:
    """Make the environment, run the notebooks, and print what the setup said and how long all took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="?", default="colab_2026_08_py313", metavar="LIST")
    parser.add_argument("--notebooks", nargs="+", default=NOTEBOOKS, choices=NOTEBOOKS, metavar="NAME")
    parser.add_argument("--folder", type=Path, help="for environment and runs (default: a temporary one)")
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip installs first")
    options = parser.parse_args()
    versions = newest() if options.packages == "newest" else recorded(options.packages)
    if options.packages == "newest":
        print("\n".join(moved(versions)) or "The lock holds the newest versions.", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        python = environment(folder / "environment", options.torch, versions)
        for name in options.notebooks:
            began = time.monotonic()
            run(ROOT / "notebooks" / f"{name}.ipynb", folder, python, options.packages)
            print(f"{name}: all cells ran in {time.monotonic() - began:.0f} s", flush=True)
    return 0


def recorded(name: str) -> dict[str, str]:
    """Return the versions of a recorded list, of those packages that the lock names, too, but for the kernel's own."""
    wanted = {pin.name for pin in read_lock() if not any(fnmatch(pin.name, each) for each in KERNEL_PARTS)}
    file = ROOT / "tests" / "fixtures" / f"{name}.txt"
    return {pin.name: pin.version for pin in read_lock(file) if pin.name in wanted}


def newest() -> dict[str, str]:
    """Return the newest versions that fit with transformers, trl and unsloth as pyproject.toml pins them."""
    uv = [shutil.which("uv")] if shutil.which("uv") else ["pipx", "run", "uv"]
    how = ["pip", "compile", "pyproject.toml", "--upgrade", "--extra", "smoke", "--extra", "torch", "--no-annotate"]
    done = subprocess.run(
        [*uv, *how, "--no-header", "--quiet"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    )
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", done.stdout, re.MULTILINE))


def moved(versions: Mapping[str, str]) -> list[str]:
    """Return a line for each package whose newest version is not the lock's."""
    locked = {pin.name: pin.version for pin in read_lock() if pin.applies()}
    return [
        f"{name}: the lock has {locked[name]}, the newest that fits is {version}"
        for name, version in versions.items()
        if locked.get(name, version) != version
    ]


def environment(folder: Path, torch: str, versions: Mapping[str, str]) -> Path:
    """Make a virtual environment with a kernel; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--no-deps", *(f"{name}=={version}" for name, version in versions.items())], check=True)
    subprocess.run([*pip, *KERNEL], check=True)  # with what these need, as far as it is not there
    install = [str(python), "-m", "ipykernel", "install", "--prefix", str(folder), "--name", "imitation"]
    subprocess.run(install, check=True)
    return python


def run(notebook: Path, folder: Path, python: Path, packages: str) -> None:
    """Execute a notebook in a folder, and print what its first cells said."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["JUPYTER_PATH"] = str(python.parent.parent / "share" / "jupyter")
    os.environ.pop("PYTHONPATH", None)
    os.environ["KAGGLE_KERNEL_RUN_TYPE" if packages.startswith("kaggle") else "COLAB_RELEASE_TAG"] = "imitation"
    book = prepared(nbformat.read(notebook, 4), commit())
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=LIMIT, kernel_name="imitation", resources=place).execute()
    print("\n".join(said(book))[:2000], flush=True)


def prepared(book: Any, source: str) -> Any:
    """Give a notebook small values for its parameters, and let it install this project from a source.

    Args:
        book: From nbformat.
        source: For pip.

    Raises:
        ValueError: No cell of it installs this project.
    """
    found = 0
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for name, value in SMALL.items():
                cell.source = re.sub(
                    rf"^{name} = \S+", f"{name} = {json.dumps(value)}", cell.source, flags=re.MULTILINE
                )
        if cell.cell_type == "code":
            cell.source, count = re.subn(r"git\+https://[^\s\"']+", source, cell.source)
            found += count
    if not found:
        raise ValueError("no cell installs this project")
    return book


def commit() -> str:
    """Return the last commit of this checkout, as pip names it."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    return f"git+file://{ROOT}@{done.stdout.strip()}"


def said(book: Any) -> list[str]:
    """Return what the cells printed up to the setup's report."""
    streams = [each.text for cell in book.cells for each in cell.get("outputs", []) if each.output_type == "stream"]
    return [line for text in streams[:4] for line in text.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
