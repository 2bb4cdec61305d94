"""How long a training will take, said before it begins.

A QLoRA step multiplies each token by every frozen weight once forward and once backward, and once more where layers are
recomputed: 4 to 6 operations a weight and token. Divided by how fast the card multiplies matrices
(`helpers.runtime.calibration`) and by the share of that pace which training reaches, this is the card's time for a
pass; where the host needs longer to launch the pass's kernels, that is the pass's time. Passes that are replayed as
CUDA graphs take the card's time for the size that they are filled up to. Finished runs of the same model on the same
card, whose `metrics.json` holds forecast and outcome, say how much longer or shorter it really takes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from helpers.core.config import RunConfig
from helpers.core.errors import RunError
from helpers.core.files import read_json
from helpers.memory.plan import shape_for
from helpers.memory.predict import NF4_BYTES
from helpers.memory.shapes import ModelShape
from helpers.model.patches.cuda_graphs import expected_passes, sizes_to_record
from helpers.runtime.calibration import Calibration

__all__ = ["Forecast", "Pace", "forecast_training", "format_minutes", "past_metrics", "seconds_before", "session_note"]

_EFFICIENCY = {"bf16": 0.6, "fp16": 0.4, "fp32": 0.62}
"""Share of the calibrated pace that a training reaches where no run is known. bf16: packed batches on an H100, 16,384
tokens in 0.97 s without and 8,192 in 0.70 s with checkpointing, are 0.60 and 0.63 of 802 TFLOP/s
(benchmarks/results/train_h100.json). fp16: Unsloth's published T4 record, 0.89 rows/s, is about 0.35 of 25 TFLOP/s, its
padding included; batches here have none. fp32: SmolLM2-135M on two cores of a server, 8 rows a step."""

_SCORING = {"bf16": 0.8, "fp16": 0.8, "fp32": 0.85}
"""What measuring the held-out loss reaches, as a share of that: 0.53 of the pace in fp32, in the same runs; assumed of
cards."""

_HOST_SECONDS = {"checkpointing": 0.0110, "plain": 0.0066}
"""Time in which the host launches one layer's kernels, forward and backward, in seconds. Of 32 layers that is 0.21 s a
pass; measured were 0.25 s beside an H100 and 0.20 s beside an H200, and a third more where layers are recomputed."""

_RECORDING_SECONDS = 0.033
"""Recording one layer of a pass as a CUDA graph and comparing it, in seconds: 1.05 s for 32 layers (H200)."""

_START_SECONDS = {"new": 3.0, "known": 0.9}
"""The first step's kernels are loaded, and on a card that no finished run has used compiled before: 2.2 to 3.2 s more
than other steps (train_h100.json), and 0.9 s where they lay in Triton's cache (H200)."""

_COLAB_MINUTES = 12 * 60
"""A free Colab notebook runs at most so long, as its FAQ says, and often less."""

_SETUP_SECONDS = 180.0
"""Installing the packages on a machine that has none of them, and importing them: 100 s on two cores and 34 s on the
host of an H200, where that was measured."""

_DOWNLOAD_BYTES = 40e6
"""Assumed of a hub's download, in bytes a second."""

_RUNS = 5
"""Finished runs that are learned from: the newest."""


@dataclass(frozen=True)
class Forecast:
    """How long training and its held-out measurements will take.

    Args:
        train_seconds: All optimizer steps.
        heldout_seconds: All measurements of the held-out loss.
        operations: Of all optimizer steps, in floating-point operations.
        tokens: Of all optimizer steps, padding included.
        tflops: The machine's pace in matrix products, in 10^12 operations a second.
        efficiency: Share of it that training is taken to reach.
        ratio: How many times as long as estimated so earlier runs took; 1 where there are none.
        runs: Finished runs that the ratio was learned from.
        limited_by: "card" or "host".
        kind: What another run must have in common with this one, so that its outcome says how fast this one will be.
    """

    train_seconds: float
    heldout_seconds: float
    operations: float
    tokens: int
    tflops: float
    efficiency: float
    ratio: float
    runs: int
    limited_by: str
    kind: dict[str, Any]

    def seconds(self) -> float:
        """Return the whole time, in seconds."""
        return self.train_seconds + self.heldout_seconds

    def describe(self) -> str:
        """Say it in two sentences: how long, and what that rests on."""
        measured = f"{format_minutes(self.heldout_seconds)} of it to measure held-out losses"
        basis = "no run of this model has finished here yet"
        if self.runs:
            runs = f"{self.runs} earlier run{'s' if self.runs > 1 else ''}"
            basis = f"times {self.ratio:.2f}, because {runs} took so much longer or shorter here"
        return (
            f"Training will take about {format_minutes(self.seconds())}, {measured}. This is reckoned from "
            f"{self.operations:.2g} operations and {self.efficiency:.0%} of this machine's {self.tflops:.3g} TFLOP/s; "
            f"{basis}."
        )

    def record(self) -> dict[str, Any]:
        """Return what `metrics.json` keeps."""
        return asdict(self)


@dataclass
class Pace:
    """The first steps' seconds a token, from which the time that is left follows better than from any forecast.

    Their own clock runs from a step's beginning to its loss, so that measurements and checkpoints do not count. The
    first step, in which kernels are compiled and loaded, counts neither.
    """

    STEPS: ClassVar[int] = 6
    steps: list[tuple[float, int]] = field(default_factory=list)
    began: tuple[float, int] = (0.0, 0)

    def begins(self, tokens: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """A step begins; `tokens` have been fed to the model, padding counted."""
        self.began = (clock(), tokens)

    def ends(self, tokens: int, steps_left: int, clock: Callable[[], float] = time.perf_counter) -> float | None:
        """A step has ended. After the sixth return the seconds that the others will take; else None."""
        self.steps.append((clock() - self.began[0], tokens - self.began[1]))
        if len(self.steps) != self.STEPS or not steps_left:
            return None
        later = self.steps[1:]
        each = statistics.median(seconds / max(count, 1) for seconds, count in later)
        return each * statistics.mean(count for _, count in self.steps) * steps_left


def forecast_training(
    config: RunConfig,
    lengths: Sequence[int],
    calibration: Calibration,
    *,
    heldout: Sequence[int] = (),
    shape: ModelShape | None = None,
    graphs: bool = False,
    processes: int = 1,
    past: Sequence[Mapping[str, Any]] = (),
) -> Forecast | None:
    """Forecast a training whose layout is chosen; None where the model's shape is not known.

    Args:
        config: The run, with the passes' rows and recomputation as they will be.
        lengths: Of the training rows, in tokens.
        calibration: How fast this machine multiplies matrices.
        heldout: Lengths of the held-out rows.
        shape: Of the model; by default found by `shape_for`.
        graphs: Whether passes may be recorded as CUDA graphs.
        past: `metrics.json` of earlier runs, the newest last.
    """
    shape, train = shape or shape_for(config), config.train
    if shape is None or not lengths:
        return None
    on_card = calibration.gpu is not None
    steps, tokens = _steps_and_tokens(config, lengths)
    passes = max(1, round(steps * train.gradient_accumulation))
    weights = shape.linear_parameters() + shape.vocab * shape.hidden
    again = 1 - train.checkpoint_skip_layers / shape.layers if train.gradient_checkpointing else 0.0
    operations = tokens * (4 * weights + 2 * shape.linear_parameters() * again)
    efficiency = _EFFICIENCY[calibration.precision]
    kind = _kind(config, calibration, graphs=graphs)
    ratio, runs = learned_ratio(kind, past)
    pace = calibration.tflops * 1e12 * efficiency
    card = operations / pace / processes
    host = _HOST_SECONDS["checkpointing" if again else "plain"] * shape.layers if on_card else 0.0
    passes = max(1, round(passes / processes))
    waiting = host * passes
    seconds = max(card, waiting)
    if graphs and not train.packing:
        a_token = operations / tokens / pace
        card, waiting = _with_graphs(lengths, train.batch_size, passes, a_token, host, shape.layers)
        seconds = card + waiting
    start = _START_SECONDS["known" if _known(calibration, past) else "new"] if on_card else 0.0
    measurements = 2 + (math.ceil(steps) - 1) // train.eval_steps
    scored = sum(heldout) * measurements * 2 * weights / (pace * processes * _SCORING[calibration.precision])
    return Forecast(
        (seconds + start) * ratio,
        scored * ratio,
        operations,
        tokens,
        calibration.tflops,
        efficiency,
        ratio,
        runs,
        "host" if waiting > card else "card",
        kind,
    )


def _with_graphs(
    lengths: Sequence[int], batch_size: int, passes: int, a_token: float, host: float, layers: int
) -> tuple[float, float]:
    """Return how long passes take whose limit is the card, and how long all others and the recordings.

    Args:
        a_token: The card's time for a token, in seconds.
        host: The host's time for a pass, in seconds.
    """
    expected = expected_passes(lengths, batch_size, passes)
    sizes = sizes_to_record(expected)
    card, waiting = 0.0, len(set(sizes.values())) * _RECORDING_SECONDS * layers
    for tokens, count in expected.items():
        if tokens in sizes or tokens * a_token >= host:
            card += count * sizes.get(tokens, tokens) * a_token
        else:
            waiting += count * host
    return card, waiting


def learned_ratio(kind: Mapping[str, Any], past: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Return how many times as long as estimated runs of this kind took, and of how many runs.

    Args:
        past: `metrics.json` of earlier runs, the newest last; those that have no outcome, or ended early, say nothing.
    """
    found = [
        each["outcome_train_seconds"] / each["train_seconds"] * each["ratio"]
        for each in (run.get("forecast") or {} for run in past if run.get("stopped_at") is None)
        if each.get("kind") == kind and each.get("outcome_train_seconds") and each.get("ratio")
    ][-_RUNS:]
    return (statistics.median(found), len(found)) if found else (1.0, 0)


def _known(calibration: Calibration, past: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a run has finished on this card, so that its kernels are compiled."""
    finished = [each for each in (run.get("forecast") or {} for run in past) if each.get("outcome_train_seconds")]
    kinds = [each.get("kind") for each in finished]
    return any(isinstance(kind, Mapping) and kind.get("gpu") == calibration.gpu for kind in kinds)


def past_metrics(root: Path) -> list[dict[str, Any]]:
    """Return `metrics.json` of the runs in a folder that have one, the oldest first."""
    files = sorted(root.glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    found = []
    for path in files:
        with suppress(RunError):  # a damaged file says nothing
            metrics = read_json(path)
            if isinstance(metrics.get("forecast") or {}, dict):
                found.append(metrics)
    return found


def format_minutes(seconds: float) -> str:
    """Write a time as people say it.

    Example:
        >>> format_minutes(40), format_minutes(1860), format_minutes(9000)
        ('40 s', '31 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def seconds_before(shape: ModelShape, *, four_bit: bool) -> float:
    """Return the time until training begins on a new machine: packages, imports, the model's download."""
    weight = NF4_BYTES if four_bit else 2
    return _SETUP_SECONDS + (shape.linear_parameters() * weight + 2 * shape.other_parameters()) / _DOWNLOAD_BYTES


def session_note(seconds: float) -> str:
    """Say whether a run fits into a session of a free Colab."""
    if seconds > _COLAB_MINUTES * 60:
        return (
            f"That is longer than a free Colab session, which ends after {_COLAB_MINUTES // 60} h at the latest: set "
            "persist_dir, and go on in a second one."
        )
    return (
        f"A free Colab session, which ends after {_COLAB_MINUTES // 60} h at the latest and often sooner, is enough; "
        "with persist_dir set, nothing is lost if it ends."
    )


def _kind(config: RunConfig, calibration: Calibration, *, graphs: bool) -> dict[str, Any]:
    """Return what two runs must have in common, so that one says how fast the other will be."""
    return {
        "gpu": calibration.gpu,
        "precision": calibration.precision,
        "model_name": config.model.model_name,
        "packing": config.train.packing,
        "graphs": graphs,
    }


def _steps_and_tokens(config: RunConfig, lengths: Sequence[int]) -> tuple[float, int]:
    """Return a run's optimizer steps and the tokens they see; batches of the presets' models have no padding."""
    train, longest = config.train, config.model.max_seq_length
    fitting = [n for n in lengths if n <= longest] or [longest]
    units = [longest] * math.ceil(sum(fitting) / longest) if train.packing else fitting
    mean = sum(units) / len(units)
    seen = len(units) * train.num_epochs
    if train.max_steps:
        seen = train.max_steps * train.rows_per_step()
    return seen / train.rows_per_step(), round(seen * mean)
