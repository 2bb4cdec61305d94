"""The adapter that is compared: where it is, what is known of its training, and whether it fits the base model."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.core.config import DEFAULT_DATASET, MODELS, PRESETS, RunConfig, build_config, parameters
from helpers.core.distributed import on_main
from helpers.core.errors import ConfigError, EvaluationError, RunError, StackError
from helpers.core.files import read_json
from helpers.core.runs import RunDirectory, runs_root
from helpers.core.settings import nearest
from helpers.evaluation.config import EvaluationConfig
from helpers.training.persist import connect_drive
from helpers.training.program import TRAINING, find_program, run_program

__all__ = [
    "check_adapter",
    "find_adapter",
    "known_adapter",
    "provide_adapter",
    "recorded_loss",
    "source_name",
    "training_config",
]

WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")
"""What an adapter folder must hold."""

_QUANTIZED = re.compile(r"(-unsloth)?-(bnb-4bit|4bit|gguf|awq|gptq)$")
_LAYER = re.compile(r"\.layers\.(\d+)\..*?\.(\w+_proj)\.lora_A\.")
_WIDTHS = {"q_proj": "hidden_size", "gate_proj": "hidden_size", "down_proj": "intermediate_size"}

_TRAIN_FIRST = "Run alpaca_instruction or dolly_business first, or give adapter_dir."


@dataclass(frozen=True)
class AdapterSource:
    """An adapter and what is known of its training.

    Args:
        base: The base model that it was trained on, as its own file says: a hub id or a folder.
        run: The training run it belongs to, or None for a folder from elsewhere.
        settings: That run's `config.json`; {} without a run.
    """

    folder: Path
    base: str
    bias: str = "none"
    run: RunDirectory | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> str:
        """Return its name as people type it: the run's name, or the folder."""
        return f"runs/{self.run.path.name}" if self.run else str(self.folder)

    def task(self) -> str:
        """Return "alpaca" or "dolly": what its run was about, or "alpaca"."""
        said = self.settings.get("task")
        return said if isinstance(said, str) and said in DEFAULT_DATASET else "alpaca"


def complete_runs() -> list[RunDirectory]:
    """Return the training runs that ended well and left an adapter, the newest first."""
    found = []
    for path in sorted(runs_root().glob("*/manifest.json")):
        run = RunDirectory(path.parent)
        try:
            manifest = run.manifest()
        except RunError:
            continue  # a damaged run is not a complete one
        if manifest.get("state") == "complete" and all((run.adapter / name).is_file() for name in WEIGHTS):
            number = manifest.get("number")  # earlier versions did not count
            found.append((number if type(number) is int else 0, str(manifest.get("finished") or ""), run))
    return [run for *_, run in sorted(found, key=lambda each: each[:2], reverse=True)]


def find_adapter(adapter_dir: str | None) -> AdapterSource:
    """Find the adapter to compare.

    Args:
        adapter_dir: A run's name, a run's folder or an adapter folder; None takes the newest complete training run.

    Raises:
        ConfigError: There is no such run or folder, or no complete run at all.
        EvaluationError: The folder lacks the adapter's weights or settings.
    """
    if adapter_dir is None:
        runs = complete_runs()
        if not runs:
            raise ConfigError("adapter_dir", f"a complete training run in {runs_root()}", None, _TRAIN_FIRST)
        return _of_folder(runs[0].adapter)
    named = [runs_root() / adapter_dir] if Path(adapter_dir).name == adapter_dir else []  # a name cannot leave runs/
    for folder in (*named, Path(adapter_dir)):
        if os.path.isdir(folder):
            return _of_folder(folder if (folder / WEIGHTS[0]).is_file() else folder / "adapter")
    known = [run.path.name for run in complete_runs()]
    remedy = nearest(adapter_dir, known) if known else _TRAIN_FIRST
    raise ConfigError("adapter_dir", "the name of a run, a run folder or an adapter folder", adapter_dir, remedy)


def _of_folder(folder: Path) -> AdapterSource:
    """Read what an adapter folder and the run around it say."""
    for name in WEIGHTS:
        if not (folder / name).is_file():
            remedy = "The run was not finished, or only part of it was copied. Train again, or copy the whole folder."
            raise EvaluationError("adapter_dir", f"a folder with {name}", str(folder), remedy)
    stated = _read_settings(folder / WEIGHTS[0])
    around = RunDirectory(folder.resolve().parent)
    recorded = folder.name == "adapter" and (around.path / "config.json").is_file()
    return AdapterSource(
        folder=folder.resolve(),
        base=_stated_text(stated, "base_model_name_or_path", ""),
        bias=_stated_text(stated, "bias", "none"),
        run=around if recorded else None,
        settings=read_json(around.path / "config.json") if recorded else {},
    )


def _read_settings(path: Path) -> dict[str, Any]:
    """Read an adapter's own file: plain LoRA, or refused."""
    try:
        stated = read_json(path)
    except RunError as error:
        remedy = "Copy or download the adapter again."
        raise EvaluationError("adapter_dir", f"{error.expected} {path.name}", error.got, remedy) from error
    kind = stated.get("peft_type", "LORA")
    if kind != "LORA":
        raise EvaluationError("adapter_dir", "a LoRA adapter", kind, "Other kinds cannot be compared here.")
    return stated


def _stated_text(stated: dict[str, Any], name: str, default: str) -> str:
    """Return a text of an adapter's own file."""
    value = stated.get(name) or default
    if not isinstance(value, str):
        raise EvaluationError(f"adapter_dir, {name}", "text", value, "Copy or download the adapter again.")
    return value


def training_config(source: AdapterSource, config: EvaluationConfig) -> RunConfig:
    """Return the configuration of the adapter's run, with what the comparison asks for on top.

    Raises:
        ConfigError: The two do not fit together, or nothing says which base model the adapter needs.
    """
    task = source.task()
    known = parameters(task)
    values = {name: value for name, value in source.settings.items() if name in known and value is not None}
    values.setdefault("model_name", _alias(source.base))
    if config.model_name is not None:
        values["model_name"] = config.model_name
    if not values["model_name"]:
        raise ConfigError("model_name", "the base model's name", None, "The adapter's own file does not name it.")
    values["prompt_style"] = config.prompt_style or values.get("prompt_style") or _style(source.folder)
    if config.system_prompt is not None:
        values["system_prompt"] = config.system_prompt
    elif values["prompt_style"] == "alpaca":
        values["system_prompt"] = ""
    preset = source.settings.get("preset")
    preset = preset if isinstance(preset, str) and preset in PRESETS else config.preset
    return build_config(
        task, preset=preset, run_name=config.run_name, **values | {"max_new_tokens": config.max_new_tokens}
    )


def _alias(base: str) -> str:
    """Return the short name of a base model, if it has one."""
    short = {source: alias for alias, (source, _) in MODELS.items()}
    return "smollm2-135m" if "SmolLM2-135M-Instruct" in base else short.get(base, base)


def _style(folder: Path) -> str:
    """Tell the prompt style from the template saved with an adapter."""
    from helpers.data.chat_templates import ALPACA

    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "alpaca" if text.strip() == ALPACA.strip() else "chat"


def recorded_loss(
    source: AdapterSource, config: EvaluationConfig, *, as_trained: bool = True
) -> tuple[float | None, int | None]:
    """Return what the training run measured last on its held-out rows.

    Args:
        config: The comparison; if it asks in another way or for other rows, nothing can be compared.
        as_trained: Whether the rows are scored as training scored them, and not their first exchanges alone.

    Returns:
        The loss in nats a token, EOS included, and the number of rows; (None, None) if there is nothing to compare.
    """
    changed = (config.reference_data, config.system_prompt, config.prompt_style)
    if source.run is None or not as_trained or any(value is not None for value in changed):
        return None, None
    loss, rows = source.run.metrics().get("eval_loss_after"), source.run.manifest().get("rows")
    heldout = rows.get("heldout") if isinstance(rows, dict) else None
    known = isinstance(loss, float) and math.isfinite(loss) and type(heldout) is int
    return (loss, heldout) if known else (None, None)


def same_base_name(first: str, second: str) -> bool:
    """Say whether two hub ids name the same model, quantized or not; a folder's name says nothing.

    Example:
        >>> same_base_name("unsloth/mistral-7b-instruct-v0.3-bnb-4bit", "mistralai/Mistral-7B-Instruct-v0.3")
        True
        >>> same_base_name("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.3")
        False
    """
    if any(not name or Path(name).is_absolute() or Path(name).is_dir() for name in (first, second)):
        return True
    plain = [_QUANTIZED.sub("", name.lower().rpartition("/")[2]) for name in (first, second)]
    return plain[0] == plain[1]


def adapter_shape(path: Path) -> dict[str, int]:
    """Read the size of the model that an adapter's tensors fit.

    Returns:
        `num_hidden_layers`, `hidden_size` and `intermediate_size`, as far as the tensors tell.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, int] = {}
    try:
        with safe_open(str(path), framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                if match := _LAYER.search(name):
                    layers = int(match[1]) + 1
                    found["num_hidden_layers"] = max(found.get("num_hidden_layers", 0), layers)
                    if match[2] in _WIDTHS:
                        _, found[_WIDTHS[match[2]]] = tensors.get_slice(name).get_shape()
    except (SafetensorError, OSError, ValueError) as error:
        remedy = "Copy or download it again."
        raise EvaluationError("adapter_dir", f"readable {WEIGHTS[1]}", str(error), remedy) from error
    return found


def check_adapter(source: AdapterSource, base: str, revision: str | None = None) -> None:
    """Refuse, before weights are loaded, an adapter made for another base model or one that cannot be switched off.

    Raises:
        EvaluationError: The names or the sizes differ, it has a trained bias, or no tokenizer stands beside it.
        StackError: The base model's configuration cannot be read.
    """
    if source.bias != "none":
        remedy = "A trained bias stays on when the adapter is switched off (peft issue 741)."
        raise EvaluationError("adapter_dir", 'an adapter with bias "none"', source.bias, remedy)
    check_base(source, base, _base_config(base, revision))
    if not (source.folder / "tokenizer_config.json").is_file():
        expected, remedy = "an adapter with its tokenizer beside it", "Save the tokenizer into the same folder."
        raise EvaluationError("adapter_dir", expected, str(source.folder), remedy)


def _base_config(base: str, revision: str | None) -> dict[str, Any]:
    """Read a base model's configuration, without its weights."""
    from transformers import AutoConfig

    options = {"revision": revision} if revision and not Path(base).is_dir() else {}
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False, **options).to_dict()
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise StackError("model_name", "a base model that can be loaded", base, reason) from error


def check_base(source: AdapterSource, base: str, config: Mapping[str, Any]) -> None:
    """Refuse an adapter that was made for another base model."""
    shape = adapter_shape(source.folder / WEIGHTS[1])
    fits = shape and all(config.get(name) == size for name, size in shape.items())
    if fits and same_base_name(source.base, base):
        return
    sizes = {name: config.get(name) for name in shape}
    made_for = f"one made for {source.base or 'an unnamed model'} {_words(shape)}"
    remedy = "Set model_name to the base that it was made for, or choose another adapter_dir."
    raise EvaluationError("adapter_dir", f"an adapter for {base} {_words(sizes)}".strip(), made_for.strip(), remedy)


def _words(shape: Mapping[str, int | None]) -> str:
    """Write a model's size in a few words."""
    names = {"num_hidden_layers": "layers", "hidden_size": "wide", "intermediate_size": "wide inside"}
    parts = [f"{shape[name]} {word}" for name, word in names.items() if shape.get(name)]
    return f"({', '.join(parts)})" if parts else ""


FIRST_RUN, FIRST_STEPS = "first-adapter", 30
"""The run that is made then, and its optimizer steps: 240 rows, enough for a loss that clearly falls."""


def first_training(config: EvaluationConfig) -> RunConfig:
    """Return the short training that a comparison without any adapter does first.

    Args:
        config: The comparison; what it says of model, task and prompts holds for the training too.
    """
    names = ("model_name", "system_prompt", "prompt_style")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return build_config(
        config.task or "alpaca", preset=config.preset, run_name=FIRST_RUN, max_steps=FIRST_STEPS, **given
    )


def known_adapter(config: EvaluationConfig) -> AdapterSource | None:
    """Return the adapter to compare, or None where none is named and no training run is complete."""
    if config.adapter_dir is None and not complete_runs():
        return None
    return find_adapter(config.adapter_dir)


def source_name(config: EvaluationConfig, source: AdapterSource | None) -> str:
    """Return what the adapter of a comparison is called, training nothing: see `AdapterSource.shown`."""
    return source.shown() if source else f"runs/{first_training(config).run_name}"


def provide_adapter(
    config: EvaluationConfig,
    *,
    train: Callable[[Path, dict[str, Any]], Any] = run_program,
    report: Callable[[str], None] = print,
) -> AdapterSource:
    """Find the adapter to compare; train one briefly where none is named and no training run is complete.

    Of several processes the main one looks, and all of them train.

    Args:
        train: Runs a notebook's source with its parameters.

    Raises:
        HelpersError: See `find_adapter`, and the cells of the training's notebook.
    """
    source = on_main(lambda: _named_adapter(config))
    if source is not None:
        return source
    from helpers.model.load import free_memory

    training = first_training(config)
    values = training.flat()
    given = {name: values[name] for name in ("preset", "run_name", *sorted(training.given))}
    report(f"There is no adapter yet: first {FIRST_STEPS} training steps are run, in runs/{FIRST_RUN}.")
    train(find_program(TRAINING[training.task]), {**given, "resume": "auto"})
    free_memory()
    return on_main(lambda: find_adapter(None))


def _named_adapter(config: EvaluationConfig) -> AdapterSource | None:
    if config.adapter_dir is not None:
        connect_drive(config.adapter_dir, "adapter_dir")
    return known_adapter(config)
