"""An adapter for those who open the comparison first, on a machine where nothing was trained yet."""

from __future__ import annotations

from collections.abc import Callable

from helpers.core.config import RunConfig, build_config
from helpers.evaluation.config import EvaluationConfig
from helpers.evaluation.sources import AdapterSource, complete_runs, find_adapter
from helpers.training.persist import connect_drive

__all__ = ["FIRST_RUN", "FIRST_STEPS", "first_training", "known_adapter", "provide_adapter", "source_name"]

FIRST_RUN, FIRST_STEPS = "first-adapter", 30
"""The run that is made then, and its optimizer steps: 240 rows, enough for a loss that clearly falls."""


def first_training(config: EvaluationConfig) -> RunConfig:
    """Return the short training that a comparison without any adapter does first.

    Args:
        config: The comparison; what it says of model, task and prompts holds for the training too.

    Raises:
        ConfigError: What it says does not fit together.
    """
    names = ("model_name", "system_prompt", "prompt_style")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return build_config(
        config.task or "alpaca", preset=config.preset, run_name=FIRST_RUN, max_steps=FIRST_STEPS, **given
    )


def known_adapter(config: EvaluationConfig) -> AdapterSource | None:
    """Return the adapter to compare, or None where none is named and no training run is complete.

    Args:
        config: The comparison.

    Raises:
        ConfigError: There is no such adapter.
        EvaluationError: The folder lacks the adapter's weights or settings.
    """
    if config.adapter_dir is None and not complete_runs():
        return None
    return find_adapter(config.adapter_dir)


def source_name(config: EvaluationConfig, source: AdapterSource | None) -> str:
    """Return what the adapter of a comparison is called, training nothing: see `AdapterSource.shown`.

    Args:
        config: The comparison.
        source: From `known_adapter`.

    Raises:
        ConfigError: The short training would not work.
    """
    return source.shown() if source else f"runs/{first_training(config).run_name}"


def provide_adapter(config: EvaluationConfig, *, report: Callable[[str], None] = print) -> AdapterSource:
    """Find the adapter to compare; train one briefly where none is named and no training run is complete.

    Args:
        config: The comparison.
        report: Gets a sentence before training begins.

    Returns:
        The adapter, checked to have its weights.

    Raises:
        HelpersError: See `helpers.evaluation.sources.find_adapter` and `helpers.training.launch.train_run`.
    """
    if config.adapter_dir is not None:
        connect_drive(config.adapter_dir, "adapter_dir")
    source = known_adapter(config)
    if source is None:
        from helpers.model.load import free_memory
        from helpers.training.launch import train_run

        training = first_training(config)
        report(f"There is no adapter here yet: {FIRST_STEPS} steps of training come first, into runs/{FIRST_RUN}.")
        train_run(training)
        free_memory()
        source = find_adapter(None)
    return source
