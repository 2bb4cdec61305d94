"""Checked settings: a small base for frozen dataclasses whose fields know their unit, range and help text."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from helpers.core.errors import ConfigError
from helpers.core.secrets import redact, secrets_in

__all__ = ["Settings", "choose", "coerce", "nearest", "refuse_undeclared", "setting"]

_INJECTED = "# Parameters\n"
"""How papermill's cell of injected parameters begins."""


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    free: bool = False,
) -> Any:
    """Declare one field of a `Settings` dataclass.

    Args:
        default: The value when nobody gives one. None makes the field optional.
        meaning: What the field does, in a few words, for `--help`, notebooks and documentation.
        unit: What a number counts: "tokens", "rows", "steps" …
        above: The value must be larger than this.
        tasks: The notebooks that have it, such as ("dolly",); None for all.
        free: It says how a run is kept or shown and not what it computes: a run may be resumed with another value.
    """
    metadata = {
        "help": meaning,
        "unit": unit,
        "low": low,
        "high": high,
        "above": above,
        "choices": choices,
        "tasks": tasks,
        "free": free,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base of frozen dataclasses that check their own values.

    Raises:
        ConfigError: A value has the wrong type, or lies outside its range or choices.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            if each.metadata:
                value = coerce(each.name, getattr(self, each.name), hints[each.name], each.metadata)
                object.__setattr__(self, each.name, value)


def choose(
    given: Mapping[str, Any], known: Collection[str], preset: str, presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what was given, without what is None, which means "not given".

    Args:
        known: Names of parameters.
        presets: Names of presets, each with what it changes.

    Raises:
        ConfigError: The preset or the name of a parameter is unknown.
    """
    if not isinstance(preset, str) or preset not in presets:
        raise ConfigError("preset", f"one of auto, {', '.join(presets)}", preset, nearest(preset, list(presets)))
    for name in given:
        if name not in known:
            raise ConfigError(name, "the name of a parameter", given[name], nearest(name, list(known)))
    return {name: value for name, value in given.items() if value is not None}


def coerce(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """Turn a value into its field's type, or say why that cannot be.

    Text that spells a number is taken for a number field, because YAML reads `2e-4` as text
    (YAML 1.1 wants a dot in the mantissa).

    Args:
        name: The field, as the user types it.
        hint: The field's type: str, int, float, bool, or one of these or None.
        limits: `low`, `high`, `above` and `choices`, as given to `setting`.

    Raises:
        ConfigError: The value does not fit.
    """
    optional = type(None) in typing.get_args(hint)
    kind = next(t for t in typing.get_args(hint) if t is not type(None)) if isinstance(hint, types.UnionType) else hint
    if value is None and optional:
        return None
    converted = _convert(value, kind)
    if converted is None:
        raise ConfigError(name, _expectation(kind, limits), value, _remedy(limits))
    if isinstance(converted, str):
        _check_text(name, converted)
    _check_range(name, converted, kind, limits)
    return converted


def refuse_undeclared(namespace: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise if plain papermill injected a parameter into a notebook that it does not have.

    papermill only warns of one (papermill issue 667) and goes on with the defaults.

    Args:
        namespace: The notebook's `globals()`; `In` holds the cells that ran.

    Raises:
        ConfigError: One is unknown.
    """
    for source in namespace.get("In", ()):
        if not source.startswith(_INJECTED):
            continue
        targets = [node.targets for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        for name in (each.id for each in itertools.chain(*targets) if isinstance(each, ast.Name)):
            if name not in known:
                raise ConfigError(name, "the name of a parameter", namespace.get(name), nearest(name, sorted(known)))


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint such as 'Did you mean learning_rate?', or the known names when none is close."""
    matches = get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"Did you mean {matches[0]}?" if matches else f"Known are: {', '.join(known)}."


def _convert(value: Any, kind: type) -> Any:
    """Return the value as `kind`, or None when it cannot be read as that."""
    if kind is bool:
        words = {"true": True, "false": False}
        return value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
    if kind is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if kind is int:
        if isinstance(value, int):
            return value
        return int(number) if math.isfinite(number) and number == int(number) and isinstance(value, str) else None
    return number if math.isfinite(number) else None


def _check_range(name: str, value: Any, kind: type, limits: Mapping[str, Any]) -> None:
    """Raise when a value of the right type lies outside what is allowed."""
    choices = limits.get("choices")
    if choices and value not in choices:
        raise ConfigError(name, f"one of {', '.join(choices)}", value, nearest(value, choices))
    low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
    fits = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
    if not fits:
        raise ConfigError(name, _expectation(kind, limits), value, _remedy(limits))


def _check_text(name: str, text: str) -> None:
    """Raise for text that no file can hold, or that must not stand in one."""
    if re.search("[\0\ud800-\udfff]", text):
        remedy = "It contains a null byte or an incomplete character: type it again."
        raise ConfigError(name, "text that can be written to a file", text, remedy)
    if secrets_in(text):
        remedy = "A run writes its parameters down. Set the environment variable HF_TOKEN instead."
        raise ConfigError(name, "no secret", redact(text), remedy)


def _remedy(limits: Mapping[str, Any]) -> str:
    """Say what a field does, and that it need not be given."""
    meaning = f"It means: {limits['help']}. " if limits.get("help") else ""
    return f"{meaning}Correct it, or leave it out for its default."


def _expectation(kind: type, limits: Mapping[str, Any]) -> str:
    """Describe in words what a field takes."""
    if limits.get("choices"):
        return f"one of {', '.join(limits['choices'])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    unit = f" of {limits['unit']}" if limits.get("unit") else ""
    bounds = [f"at least {limits['low']}"] if limits.get("low") is not None else []
    bounds += [f"above {limits['above']}"] if limits.get("above") is not None else []
    bounds += [f"at most {limits['high']}"] if limits.get("high") is not None else []
    return words + unit + (", " + " and ".join(bounds) if bounds else "")
