"""What the side-by-side notebook is told to do: one class of frozen settings, and its presets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.config import ROW_FILES
from helpers.core.errors import ConfigError
from helpers.core.paths import folder_name
from helpers.core.settings import Settings, choose, nearest, setting

__all__ = ["EvaluationConfig", "build_evaluation_config", "evaluation_parameters"]

_ARM_NAMES = ("base", "tuned", "base_bare", "base_few_shot")
"""All arms there are, in the order of reports."""

_MODES = ("compare", "aa")
"""compare: base against tuned. aa: base against base, both drawn at random, which shows how large noise is."""

_DEFAULT_RUN_NAME = "side-by-side"

_AA_TEMPERATURE = 0.7
"""How freely mode aa draws its answers; 0 would give the same answer twice."""

_HIDDEN = ("preset", "run_name")


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """One comparison of a base model with its adapter."""

    preset: str
    run_name: str
    adapter_dir: str | None = setting(
        None, "run name, run folder or adapter folder; None takes the newest complete training run"
    )
    model_name: str | None = setting(
        None, "alias, hub id or folder of the base model; None takes the one the adapter was trained on"
    )
    mode: str = setting(
        "compare", "compare (base against tuned) or aa (base against base: how big is noise?)", choices=_MODES
    )
    arms: str = setting(
        ",".join(_ARM_NAMES), "base and tuned, and perhaps base_bare and base_few_shot, separated by commas"
    )
    few_shot_rows: int = setting(3, "example training rows for the arm base_few_shot", unit="rows", low=1, high=20)
    prompts_file: str | None = setting(
        None,
        "own prompts, a .jsonl, .json, .csv, .tsv or .txt file, one a line; None takes the bundled ones",
    )
    prompt_count: int = setting(0, "prompts to ask; 0 asks all", unit="prompts", low=0)
    reference_data: str | None = setting(
        None, "file of rows with good answers; None takes the held-out rows of the adapter's own run"
    )
    reference_rows: int = setting(100, "rows whose good answers are scored", unit="rows", low=2, high=5000)
    answered_rows: int = setting(16, "how many of these are also answered, for ROUGE and chrF++", unit="rows", low=0)
    columns: str | None = setting(
        None, "which column of prompts_file and reference_data is what, where the names do not say"
    )
    task: str | None = setting(
        None, "columns of reference_data: alpaca or dolly; None takes the adapter run's", choices=("alpaca", "dolly")
    )
    system_prompt: str | None = setting(None, "what the assistant is told first; None takes the adapter run's")
    prompt_style: str | None = setting(
        None, "chat (the model's own template) or alpaca (text block); None takes the adapter run's",
        choices=("chat", "alpaca"),
    )  # fmt: skip
    max_new_tokens: int = setting(256, "longest answer", unit="tokens", low=1, high=32768)
    batch_size: int = setting(
        8, "prompts answered at a time; halved when memory runs out", unit="prompts", low=1, high=1024, free=True
    )
    seed: int = setting(3407, "seed of blind shuffling, examples and, in mode aa, answers", low=0, high=2**32 - 1)
    votes_file: str | None = setting(None, "votes exported from vote.html, CSV files separated by commas", free=True)

    def arm_names(self) -> tuple[str, ...]:
        """Return the arms to compare, in the order of reports; those of mode aa are `base` and `again`."""
        if self.mode == "aa":
            return ("base", "again")
        chosen = _listed(self.arms)
        return tuple(name for name in _ARM_NAMES if name in chosen)

    def temperature(self) -> float:
        """Return how freely answers are drawn; 0 is the likeliest token each time, which mode aa cannot use."""
        return _AA_TEMPERATURE if self.mode == "aa" else 0.0

    def votes_files(self) -> list[str]:
        """Return the paths of the votes."""
        return _listed(self.votes_file or "")

    def flat(self) -> dict[str, Any]:
        """Return every parameter under its own name, as the notebook would take them."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Return the parameters that decide what is compared; votes and batch size may change from run to run."""
        free = {name for name, each in evaluation_parameters().items() if each.metadata["free"]}
        return {name: value for name, value in self.flat().items() if name not in free}


_EVALUATION_PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "arms": "base,tuned,base_few_shot",
        "prompt_count": 6,
        "reference_rows": 24,
        "answered_rows": 6,
        "max_new_tokens": 128,
        "batch_size": 12,
        "few_shot_rows": 2,
    },
    "colab-t4": {},
    "large-gpu": {"reference_rows": 200, "answered_rows": 50, "batch_size": 32},
    "gpu-ci": {"prompt_count": 8, "reference_rows": 40, "answered_rows": 8, "max_new_tokens": 64, "few_shot_rows": 2},
}
"""What each preset changes against the defaults. smoke: minutes on two CPU cores; gpu-ci: for scripts/gpu_ci."""


def evaluation_parameters() -> dict[str, dataclasses.Field]:
    """Return each parameter of the notebook but `preset` and `run_name`, with its help, unit and limits."""
    return {each.name: each for each in dataclasses.fields(EvaluationConfig) if each.name not in _HIDDEN}


def build_evaluation_config(*, preset: str, run_name: str | None = None, **given: Any) -> EvaluationConfig:
    """Check the notebook's parameters and fill in the preset's values.

    Args:
        preset: "smoke", "colab-t4" or "large-gpu". Resolve "auto" first (`helpers.training.session`).
        **given: Any parameter of `EvaluationConfig`. None means "not given".

    Raises:
        ConfigError: A name is unknown, a value does not fit, or two contradict each other.

    Example:
        >>> build_evaluation_config(preset="smoke", arms="base, tuned").arm_names()
        ('base', 'tuned')
    """
    known = evaluation_parameters()
    chosen = choose(given, known, preset, _EVALUATION_PRESETS)
    values = {**_EVALUATION_PRESETS[preset], **chosen}
    if "answered_rows" not in chosen and isinstance(chosen.get("reference_rows"), int):
        default = values.get("answered_rows", known["answered_rows"].default)
        values["answered_rows"] = min(default, max(chosen["reference_rows"], 0))
    name = _DEFAULT_RUN_NAME if run_name is None else run_name
    config = EvaluationConfig(preset=preset, run_name=folder_name(name), **values)
    _check_arms(config, chosen)
    _check_together(config)
    _check_files(config)
    return config


def _listed(text: str) -> list[str]:
    """Split a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _check_arms(config: EvaluationConfig, chosen: Mapping[str, Any]) -> None:
    """Raise for arms that do not exist, that come twice, or without which nothing can be compared."""
    if config.mode == "aa":
        if "arms" in chosen:
            raise ConfigError("arms", 'none with mode "aa"', config.arms, "Mode aa compares base with base.")
        return
    names = _listed(config.arms)
    for name in names:
        if name not in _ARM_NAMES:
            raise ConfigError("arms", f"some of {', '.join(_ARM_NAMES)}", name, nearest(name, _ARM_NAMES))
    if len(set(names)) < len(names):
        raise ConfigError("arms", "each arm once", config.arms, "Leave the second one out.")
    if missing := [name for name in ("base", "tuned") if name not in names]:
        raise ConfigError("arms", "base and tuned among the arms", config.arms, f"Add {' and '.join(missing)}.")


def _check_together(config: EvaluationConfig) -> None:
    """Raise when two parameters, each right by itself, contradict each other."""
    if config.system_prompt and config.prompt_style == "alpaca":
        remedy = 'The Alpaca block has a fixed preamble. Use prompt_style "chat".'
        raise ConfigError("system_prompt", 'none with prompt_style "alpaca"', config.system_prompt, remedy)
    if config.answered_rows > config.reference_rows:
        expected = f"at most reference_rows ({config.reference_rows})"
        raise ConfigError("answered_rows", expected, config.answered_rows, "Only scored rows are answered.")


def _check_files(config: EvaluationConfig) -> None:
    """Raise for a file that is not there, or of a kind that cannot be read."""
    named = [
        ("prompts_file", config.prompts_file, (*ROW_FILES, ".txt")),
        ("reference_data", config.reference_data, ROW_FILES),
    ]
    named += [("votes_file", path, (".csv",)) for path in config.votes_files()]
    for field, name, endings in named:
        if name is None:
            continue
        if Path(name.lower().removesuffix(".gz")).suffix not in endings:
            remedy = "Save it in one of these formats; the ending says how it is read."
            raise ConfigError(field, f"a file that ends in {', '.join(endings)}", name, remedy)
        if not os.path.isfile(name):
            raise ConfigError(field, "an existing file", name, "Check the path; it starts from the working directory.")
