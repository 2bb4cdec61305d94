"""The merged file against the model in memory, weight by weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.export.folders import open_weights, tensor_files
from helpers.export.tensors import BaseTensor, base_tensors, refuse_unmergeable

__all__ = ["WeightReport", "compare_weights"]

TOLERANCE_STEPS = 1.01
"""A weight may be one step of its type away from where it should be: sums may be rounded in another order."""


@dataclass(frozen=True)
class WeightReport:
    """What the comparison found.

    Args:
        tensors: Tensors compared.
        matrices: Of these, matrices with an adapter.
        worst_steps: Largest deviation of a weight from its expected value, in steps of the stored type.
        kept: Share of the adapter's change found in the file, by projection, over all matrices; rounding lowers it.
        expected_kept: The same of a correct merge.
        faults: What is wrong, in plain words, worst first.
    """

    tensors: int
    matrices: int
    worst_steps: float
    kept: float
    expected_kept: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class _Compared:
    """One tensor's comparison: steps away, <found - base, delta>, the same as expected, <delta, delta>."""

    name: str
    steps: float
    found: float
    expected: float
    whole: float


def compare_weights(model: Any, folder: Path | str) -> WeightReport:
    """Compare each tensor of a merged model with base + adapter as they are in memory.

    The scale is taken from the adapter's configuration (`alpha / r`), not from the layer that the merge reads.

    Args:
        model: The tuned PEFT model.
        folder: The merged model.

    Returns:
        The deviations.
    """
    adapter, folder = refuse_unmergeable(model), Path(folder)
    config = model.peft_config[adapter]
    root = math.sqrt(config.r) if getattr(config, "use_rslora", False) else config.r
    uniform = not (config.rank_pattern or config.alpha_pattern)
    tensors = {t.name: t for t in base_tensors(model)}
    index = tensor_files(folder)
    faults = [f"{name} is missing" for name in tensors if name not in index]
    faults += [f"{name} should not be there" for name in index if name not in tensors]
    compared = [
        _compare(tensors[name], found, adapter, config.lora_alpha / root if uniform else None)
        for name, found in _stored(folder, index)
        if name in tensors
    ]
    wrong = sorted((c for c in compared if c.steps > TOLERANCE_STEPS), key=lambda c: -c.steps)
    whole = sum(c.whole for c in compared) or 1.0
    return WeightReport(
        len(compared),
        sum(c.whole > 0 for c in compared),
        max((c.steps for c in compared), default=math.inf),
        sum(c.found for c in compared) / whole,
        sum(c.expected for c in compared) / whole,
        tuple(faults) + tuple(map(_explain, wrong)),
    )


def _stored(folder: Path, index: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the file's tensors, one at a time."""
    for file_name in sorted(set(index.values())):
        with open_weights(folder / file_name) as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def _compare(tensor: BaseTensor, stored: Any, adapter: str, scale: float | None) -> _Compared:
    """Compare one tensor."""
    if tuple(stored.shape) != tensor.shape:
        return _Compared(tensor.name, math.inf, 0.0, 0.0, 0.0)
    weight = tensor.weight()
    found, delta = stored.to(weight.device).float(), None
    if tensor.layer is not None:
        factor = 1.0 if scale is None else scale / tensor.layer.scaling[adapter]
        delta = tensor.delta(adapter) * factor
    expected = (weight if delta is None else weight + delta).to(stored.dtype)
    steps = ((found - expected.float()).abs() / _step(expected)).max().item()
    if delta is None:
        return _Compared(tensor.name, steps, 0.0, 0.0, 0.0)
    along = lambda values: ((values - weight) * delta).sum().item()  # noqa: E731
    return _Compared(tensor.name, steps, along(found), along(expected.float()), delta.square().sum().item())


def _step(values: Any) -> Any:
    """Return the distance from each number to the next one of its type, in float32."""
    import torch

    limits, plain = torch.finfo(values.dtype), values.float()
    exponent = torch.frexp(plain.abs().clamp_min(limits.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(plain, limits.eps), exponent - 1)


def _explain(compared: _Compared) -> str:
    """Say what is wrong with a tensor."""
    if math.isinf(compared.steps):
        return f"{compared.name} has another shape"
    if compared.expected == 0:
        return f"{compared.name} is not the base model's ({compared.steps:.0f} steps off)"
    times = compared.found / compared.expected
    return f"{compared.name} has {times:.2f} times the adapter's change ({compared.steps:.0f} steps off)"
