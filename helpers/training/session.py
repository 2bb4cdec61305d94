"""The first cells of every training notebook: from parameters to a checked configuration and an open run directory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from helpers.core.config import RunConfig, build_config, parameters
from helpers.core.config_file import write_config
from helpers.core.distributed import on_main, place
from helpers.core.errors import RunError
from helpers.core.files import read_json
from helpers.core.lock import hold_lock
from helpers.core.runs import CONFIG, RunDirectory, check_run, open_run, runs_root
from helpers.core.settings import refuse_undeclared
from helpers.data.chat_templates import template_sha256
from helpers.data.rows import data_fingerprint
from helpers.memory.disk import preflight_room
from helpers.memory.plan import check_layers, preflight_memory
from helpers.runtime.hardware import describe_hardware, find_gpu, require_gpu, suitable_preset
from helpers.runtime.lockfile import shown_versions
from helpers.training.checkpoints import step_folders
from helpers.training.persist import connect_drive, disconnect_drive, keep_result, prepare_persist
from helpers.training.tracking import require_tracker

__all__ = ["configure_notebook", "finish_run", "record_data", "resolve_preset", "start_run", "watch_cells"]


def resolve_preset(preset: str) -> str:
    """Turn "auto" into the preset for this machine's GPU; leave any other name as it is.

    Returns:
        "colab-t4" below 20 GiB of GPU memory or without native bf16, else "large-gpu".

    Raises:
        StackError: There is no GPU, and the preset needs one.
    """
    gpu = find_gpu()
    require_gpu(preset, gpu)
    if preset != "auto" or gpu is None:
        return preset
    return suitable_preset(gpu)


def configure(task: str, *, preset: str, run_name: str | None = None, **given: Any) -> RunConfig:
    """Check a notebook's parameters against each other and against this machine.

    Args:
        preset: "auto", "smoke", "colab-t4" or "large-gpu".
        **given: The notebook's other parameters; None means the preset's value.

    Raises:
        ConfigError: A parameter is wrong.
        StackError: The preset needs a GPU and there is none.
    """
    build_config(task, preset="colab-t4" if preset == "auto" else preset, run_name=run_name, **given)
    config = build_config(task, preset=resolve_preset(preset), run_name=run_name, **given)
    require_tracker(config.train.report_to)
    check_layers(config)
    preflight_memory(config, find_gpu())
    return config


def start_run(config: RunConfig, *, resume: str = "auto") -> RunDirectory:
    """Lock and open the run's directory, and write down what is known before training.

    In a notebook, a cell that fails from now on marks the run as failed.

    Returns:
        The directory, with `manifest.json` and `config.json` in it.

    Raises:
        RunError: The directory belongs to something else, to a run with other parameters, or to another process, or its
            disk cannot hold what the run will write.
    """
    run = on_main(lambda: _start(config, resume))
    if place().count > 1:
        _check_shared(run)
    watch_cells(run)
    return run


def _start(config: RunConfig, resume: str) -> RunDirectory:
    """Do what `start_run` does, in the main process."""
    parameters = config.flat()
    if config.train.persist_dir:
        connect_drive(config.train.persist_dir)
    check_run(config.run_name, parameters, resume=resume)
    run = RunDirectory(runs_root() / config.run_name)
    preflight_room(run, config)
    hold_lock(run.path)
    if config.train.persist_dir:
        for line in prepare_persist(run, config.train.persist_dir, resume=resume):
            print(line)
    facts = {"task": config.task, "seed": config.train.seed, "hardware": describe_hardware()}
    run = open_run(config.run_name, parameters, resume=resume, versions=shown_versions(), **facts)
    write_config(run, config)
    return run


def _check_shared(run: RunDirectory) -> None:
    """Raise unless this process sees the run directory that the main one opened."""
    name = on_main(run.run_id)
    if run.run_id() != name:
        remedy = "Let all hosts share the folder that holds the runs: HELPERS_RUNS_DIR on a shared disk."
        raise RunError("run directory", "the main process's, seen from each host", str(run.path), remedy)


def configure_notebook(task: str, namespace: Mapping[str, Any]) -> RunConfig:
    """Check the parameters that stand in a notebook's variables.

    Args:
        namespace: The notebook's `globals()`; of it, the names of parameters are read and nothing else.
    """
    refuse_undeclared(namespace, {"preset", "resume", "run_name", *parameters(task)})
    given = {name: namespace[name] for name in parameters(task) if name in namespace}
    return configure(task, preset=namespace["preset"], run_name=namespace.get("run_name"), **given)


def record_data(
    run: RunDirectory,
    data: Mapping[str, Any],
    *,
    task: str,
    source: str,
    left_out: Mapping[str, int],
    tokenizer: Any,
    template: str,
    base: str,
    base_commit: str | None = None,
) -> None:
    """Write into the manifest what exactly the run learns from.

    Args:
        data: Its rows, "train" and "heldout", before they become messages.
        task: "alpaca" or "dolly": which of their columns are used.
        source: Where the rows come from.
        left_out: How many were unusable, by reason.
        tokenizer: With the template that the run trains with.
        base: Where the base weights come from.
        base_commit: The commit that its name on the hub stood for, `model.config._commit_hash`; None for a folder.

    Raises:
        RunError: The run has checkpoints of other rows, another template or another commit of the base model.
    """

    def write() -> None:
        commit = re.search(r" at ([0-9a-f]{40})$", source)
        prints = {
            "data_fingerprint": data_fingerprint(data["train"], data["heldout"], task),
            "template_sha256": template_sha256(tokenizer),
            **({"base_commit": base_commit} if base_commit else {}),
            **({"data_commit": commit.group(1)} if commit else {}),
        }
        earlier = run.manifest()
        changed = {k: (earlier[k], v) for k, v in prints.items() if earlier.get(k) not in (None, v)}
        if changed and step_folders(run.checkpoints):
            raise RunError(
                "run_name",
                "the rows, the template and the base model of the earlier run, which left checkpoints",
                "; ".join(f"{k}: {str(old)[:12]!r} -> {new[:12]!r}" for k, (old, new) in changed.items()),
                'What a name stands for has changed. Choose another run_name, or resume="never" to start over.',
            )
        run.update_manifest(
            base_model=base,
            data_source=source,
            rows={"train": len(data["train"]), "heldout": len(data["heldout"]), "left_out": dict(left_out)},
            template=template,
            **prints,
        )
        print("data fingerprint:", prints["data_fingerprint"][:16], "…")

    on_main(write)


def finish_run(run: RunDirectory) -> None:
    """Write into the manifest that everything asked for was done; bring `persist_dir` up to date, if that is set.

    Args:
        run: The run, with its adapter saved.
    """
    on_main(lambda: _finish(run))


def _finish(run: RunDirectory) -> None:
    run.finish()
    path = run.path / CONFIG
    persist_dir = read_json(path).get("persist_dir") if path.is_file() else None
    if persist_dir:
        print(keep_result(run, persist_dir))
        if said := disconnect_drive(persist_dir, run.path):
            print(said)


def watch_cells(run: RunDirectory) -> None:
    """In a notebook, mark the run as failed when a later cell fails."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    for each in shell.events.callbacks["post_run_cell"][:]:
        if isinstance(each, _CellWatch):
            shell.events.unregister("post_run_cell", each)
    shell.events.register("post_run_cell", _CellWatch(run))


class _CellWatch:
    """What IPython calls after each cell."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def __call__(self, result: Any) -> None:
        error = result.error_in_exec or result.error_before_exec
        if error is not None:
            self.run.mark_failed(error)
