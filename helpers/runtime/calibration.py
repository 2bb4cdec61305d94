"""How fast this machine multiplies matrices: the unit in which speeds of different cards can be compared."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from helpers.core.errors import StackError
from helpers.runtime.hardware import choose_precision, find_gpu, torch_dtype

__all__ = ["Calibration", "calibrate", "calibrate_apart"]

_SIZES = {"bf16": 8192, "fp16": 8192, "fp32": 1024}
"""Rows and columns of the matrices. 8192 is large enough for a card to reach its pace; a CPU gets less to do."""

_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Calibration:
    """One measurement of a matrix product.

    Args:
        tflops: Floating-point operations a second, in 10^12: the median of the repeats.
        precision: "bf16", "fp16" or "fp32": what training computes in on this machine.
        size: Rows and columns of the matrices.
        gpu: The card's name; None on a CPU.
    """

    tflops: float
    precision: str
    size: int
    gpu: str | None


def calibrate(size: int | None = None, repeats: int = _REPEATS) -> Calibration:
    """Time the product of two square matrices, in the number format that training would use here.

    Args:
        size: Rows and columns; by default one that suits the machine.
        repeats: How many products are timed; three more come before them.

    Returns:
        The measurement. Of memory, a card needs 0.4 GiB for it.
    """
    import torch

    gpu = find_gpu()
    precision = choose_precision(gpu.capability if gpu else None)
    size = size or _SIZES[precision]
    dtype = torch_dtype(precision)
    draw = torch.Generator("cuda" if gpu else "cpu").manual_seed(0)  # its own: training's numbers stay as they are
    left, right = (torch.randn(size, size, dtype=dtype, device=draw.device, generator=draw) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        torch.matmul(left, right)
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    pace = 2 * size**3 / statistics.median(seconds[3:])
    return Calibration(pace / 1e12, precision, size, gpu.name if gpu else None)


def calibrate_apart() -> Calibration:
    """Calibrate in a process of its own, which gives the card's memory back when it ends.

    Raises:
        StackError: torch is missing, or does not work with this card.
    """
    code = "import json, dataclasses; from helpers.runtime.calibration import calibrate; "
    code += "print(json.dumps(dataclasses.asdict(calibrate())))"
    checkout = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise StackError("calibration", "a matrix product", said, "Run python -m helpers doctor.")
    return Calibration(**json.loads(done.stdout.splitlines()[-1]))
