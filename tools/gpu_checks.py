"""Whether a run on a GPU runner reached what it must: from a run directory to findings that pass or fail.

`tests/gpu_expectations.json` says what that is:

    profiles    by model: how the held-out loss must fall ("interval": the 95 % interval of its mean change lies below
                zero; "fell": the mean is lower), the number formats, tokens a teraflop at least, peak memory at most
    notebooks   by name: whether it trains, and which exports and files it must leave

`scripts/gpu_ci` runs the notebooks, and calls this. A speed is judged by its ratio
to the matrix product of the same machine (`helpers.runtime.calibration`): tokens/s over 10^12 operations/s gives
tokens a teraflop, a number that depends on the program more than on the card.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError
from helpers.core.files import read_json
from helpers.core.runs import RunDirectory
from helpers.core.settings import nearest
from helpers.core.text import format_table

__all__ = ["Expected", "Facts", "Finding", "Profile", "findings_table", "gather_facts", "judge", "read_expectations"]

GIB = 2**30
RECORD = "export.json"
LOSS_RULES = ("interval", "fell")


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model must reach.

    Args:
        loss: "interval" or "fell".
        precisions: Number formats that training may have used; fp32 on a GPU runner means that it had no GPU.
        tokens_per_tflop: Tokens trained in the time of 10^12 operations of the matrix product, at least.
        peak_memory_gib: Highest memory in training, at most.
        basis: Where the two limits come from.
    """

    loss: str
    precisions: tuple[str, ...]
    tokens_per_tflop: float
    peak_memory_gib: float
    basis: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What a notebook must leave.

    Args:
        trains: Whether it has losses, speed and memory to judge.
        exports: Folders of the run that must hold weights.
        verified: Those of them whose record must hold a passed verification.
        files: Other files that must be there.
    """

    trains: bool
    exports: tuple[str, ...] = ()
    verified: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def read_expectations(path: Path, profile: str) -> tuple[Profile, dict[str, Expected]]:
    """Read the expectations of one profile.

    Args:
        path: `tests/gpu_expectations.json`, or a file of the same form.

    Raises:
        ConfigError: There is no such profile, or the file has another form.
        RunError: The file cannot be read.
    """
    content = read_json(path)
    try:
        profiles, notebooks = content["profiles"], content["notebooks"]
        if profile not in profiles:
            raise ConfigError("profile", f"one of {', '.join(profiles)}", profile, nearest(profile, list(profiles)))
        chosen = Profile(**_tuples(profiles[profile]))
        expected = {name: Expected(**_tuples(each)) for name, each in notebooks.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            str(path),
            "profiles and notebooks of the known form",
            str(error),
            "Correct the file; tests/gpu_expectations.json is the model.",
        ) from error
    if chosen.loss not in LOSS_RULES:
        raise ConfigError(f"{path.name}: loss", " or ".join(LOSS_RULES), chosen.loss, "Correct the file.")
    return chosen, expected


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


@dataclass(frozen=True)
class Facts:
    """What a run left.

    Args:
        error: Why the notebook stopped; None if it did not.
        state: The manifest's: "complete" when all was done.
        max_steps: The steps that were asked for; None for whole epochs.
        exports: Of each folder with weights whether its verification passed; None where it has none.
        files: Names of what lies in the run's folder.
    """

    error: str | None = None
    state: str | None = None
    max_steps: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    exports: Mapping[str, bool | None] = field(default_factory=dict)
    files: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, with what was found and what it must be, as text."""

    notebook: str
    check: str
    passed: bool
    measured: str
    limit: str


def gather_facts(run: RunDirectory) -> Facts:
    """Read what a run left in its folder, which may be missing.

    Raises:
        RunError: A file of the run is damaged.
    """
    manifest = run.manifest()
    folders = [path for path in sorted(run.path.glob("*")) if path.is_dir() and any(path.glob("*.safetensors"))]
    return Facts(
        state=manifest.get("state"),
        max_steps=(manifest.get("parameters") or {}).get("max_steps"),
        metrics=run.metrics(),
        exports={path.name: _verified(path, manifest.get("exports") or {}) for path in folders},
        files=frozenset(path.name for path in run.path.glob("*")),
    )


def judge(notebook: str, facts: Facts, expected: Expected, profile: Profile, tflops: float) -> list[Finding]:
    """Hold what a run left against what it must have reached.

    Args:
        tflops: The machine's matrix product, in 10^12 operations a second.

    Returns:
        One finding a check, those that passed too. Of a notebook that stopped, only that.

    Example:
        >>> judge("a", Facts(error="cell 3 failed"), Expected(trains=True), None, 1.0)[0].passed
        False
    """
    if facts.error is not None:
        return [Finding(notebook, "every cell runs", False, facts.error, "no error")]
    checks = list(_traces(facts, expected))
    if expected.trains:
        checks += [*_training(facts, profile), _loss(facts.metrics, profile.loss), _speed(facts, profile, tflops)]
        checks.append(_memory(facts.metrics, profile))
    return [Finding(notebook, *check) for check in checks]


def findings_table(findings: Sequence[Finding]) -> str:
    """Return the findings as lines of text, one a check; what was measured is cut after 72 characters."""
    head = ("notebook", "check", "measured", "must be", "")
    shown = [(f, textwrap.shorten(f.measured, 72, placeholder=" ...")) for f in findings]
    rows = [(f.notebook, f.check, text, f.limit, "PASS" if f.passed else "FAIL") for f, text in shown]
    return format_table([head, *rows])


_Check = tuple[str, bool, str, str]
"""Check, passed, measured, limit."""


def _traces(facts: Facts, expected: Expected) -> Iterator[_Check]:
    """Judge what does not depend on the model: the end of the run, its exports, its files."""
    yield "every cell runs", True, "no error", "no error"
    yield "run is complete", facts.state == "complete", str(facts.state), "complete"
    for name in expected.exports:
        yield f"{name} has weights", name in facts.exports, _yes(name in facts.exports), "yes"
    for name, passed in sorted(facts.exports.items()):
        if name in expected.verified or passed is not None:
            words = {True: "passed", False: "failed", None: "not done"}[passed]
            yield f"{name} is verified", passed is True, words, "passed"
    for name in expected.files:
        yield f"{name} is written", name in facts.files, _yes(name in facts.files), "yes"


def _training(facts: Facts, profile: Profile) -> Iterator[_Check]:
    """Judge how the model was trained."""
    precision = str(facts.metrics.get("mode", {}).get("precision"))
    yield "number format", precision in profile.precisions, precision, " or ".join(profile.precisions)
    losses = facts.metrics.get("train_loss") or [[0, None]]
    if facts.max_steps is not None:
        yield "steps", losses[-1][0] == facts.max_steps, str(losses[-1][0]), str(facts.max_steps)


def _loss(metrics: Mapping[str, Any], rule: str) -> _Check:
    """Judge the change of the held-out loss."""
    change = metrics.get("eval_loss_change") or {}
    mean, low, high = (_number(change.get(name)) for name in ("mean", "low", "high"))
    measured = f"{mean:+.4f} ({low:+.4f} to {high:+.4f}) nats a token"
    if rule == "interval":
        return "held-out loss fell", high < 0, measured, "interval below zero"
    return "held-out loss fell", mean < 0, measured, "mean below zero"


def _speed(facts: Facts, profile: Profile, tflops: float) -> _Check:
    """Judge tokens/s against the matrix product."""
    pace = _number(facts.metrics.get("tokens_per_second"))
    ratio = pace / tflops if tflops > 0 else math.nan
    measured = f"{float(f'{ratio:.3g}'):,g} tokens/TFLOP ({pace:,.0f} tokens/s over {tflops:.4g} TFLOP/s)"
    return "speed", ratio >= profile.tokens_per_tflop, measured, f">= {profile.tokens_per_tflop:g} tokens/TFLOP"


def _memory(metrics: Mapping[str, Any], profile: Profile) -> _Check:
    """Judge the highest memory in training; nothing recorded is a failure, and so is zero."""
    peak = _number(metrics.get("peak_memory_bytes")) / GIB
    return "peak memory", 0 < peak <= profile.peak_memory_gib, f"{peak:.2f} GiB", f"<= {profile.peak_memory_gib:g} GiB"


def _number(value: Any) -> float:
    """Return a number that fails every comparison if there is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _yes(there: bool) -> str:
    return "yes" if there else "no"


def _verified(folder: Path, recorded: Mapping[str, Any]) -> bool | None:
    """Return what is written of an export, beside it or in the manifest: passed, failed, or None for nothing."""
    beside = read_json(folder / RECORD).get("verification") if (folder / RECORD).is_file() else None
    found = [each.get("passed") is True for each in (beside, recorded.get(folder.name)) if each]
    return all(found) if found else None
