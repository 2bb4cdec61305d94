"""What a run on a GPU runner must reach, as `tests/gpu_expectations.json` says it.

    profiles    by model: how the held-out loss must fall ("interval": the 95 % interval of its mean change lies below
                zero; "fell": the mean is lower), the number formats, tokens a teraflop at least, peak memory at most
    notebooks   by name: whether it trains, and which exports and files it must leave

`scripts/gpu_ci` runs the notebooks, and `tools.gpu_findings` judges what they left. A speed is judged by its ratio
to the matrix product of the same machine (`helpers.runtime.calibration`): tokens/s over 10^12 operations/s gives
tokens a teraflop, a number that depends on the program more than on the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import ConfigError
from helpers.core.files import read_json
from helpers.core.settings import nearest

__all__ = ["Expected", "Profile", "read_expectations"]

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
        profile: One of its profiles.

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
