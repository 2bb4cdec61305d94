"""The side-by-side notebook's first and last cells: from parameters to an open run, and from answers to files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.distributed import on_main
from helpers.core.files import file_sha256, write_json
from helpers.core.lock import hold_lock
from helpers.core.runs import RunDirectory, check_run, now, open_run, runs_root
from helpers.core.settings import refuse_undeclared
from helpers.display.style import Drawing
from helpers.evaluation.adapter import WEIGHTS, AdapterSource
from helpers.evaluation.config import EvaluationConfig, build_evaluation_config, evaluation_parameters
from helpers.evaluation.files import write_alpaca_eval, write_comparison, write_llm_comparator, write_scores
from helpers.evaluation.metrics.contamination import Neighbour
from helpers.evaluation.overview import JUDGED, OTHER_TASK, Overview, verdict_rows
from helpers.evaluation.prompts import Material
from helpers.evaluation.records import Answer, Arm, Comparison, ReferenceScore, RunInfo
from helpers.evaluation.report.page import write_report
from helpers.evaluation.show import reference_table
from helpers.evaluation.votes.tally import Reveal
from helpers.evaluation.votes.vote import check_votes, describe_votes
from helpers.export.gain import gain_lines
from helpers.runtime.hardware import describe_hardware
from helpers.runtime.lockfile import shown_versions
from helpers.training.session import resolve_preset, watch_cells

__all__ = ["compare", "configure_evaluation", "finish_evaluation", "open_evaluation", "write_files"]

_TASK = "side_by_side"
"""What the notebook's metadata and its runs' manifests call it."""


def configure_evaluation(namespace: Mapping[str, Any]) -> EvaluationConfig:
    """Check the parameters that stand in the notebook's variables, against each other and against this machine.

    Args:
        namespace: The notebook's `globals()`; of it, the names of parameters are read and nothing else.

    Raises:
        ConfigError: A parameter is wrong.
        StackError: The preset needs a GPU and there is none.
    """
    refuse_undeclared(namespace, {"preset", "resume", "run_name", *evaluation_parameters()})
    given = {name: namespace[name] for name in evaluation_parameters() if name in namespace}
    preset, run_name = namespace["preset"], namespace.get("run_name")
    build_evaluation_config(preset="colab-t4" if preset == "auto" else preset, run_name=run_name, **given)
    return build_evaluation_config(preset=resolve_preset(preset), run_name=run_name, **given)


def run_parameters(config: EvaluationConfig, source: AdapterSource) -> dict[str, Any]:
    """Return what makes two evaluations the same run: the parameters, and which adapter they led to."""
    return {**config.identity(), "adapter_dir": source.shown()}


def open_evaluation(config: EvaluationConfig, source: AdapterSource, *, resume: str = "auto") -> RunDirectory:
    """Lock and open the evaluation's own run directory, and write down what is known so far.

    Votes are read at once, so that a mistake in them does not show after everything was computed. In a notebook, a cell
    that fails from now on marks the run as failed.

    Raises:
        RunError: The directory belongs to something else, to an evaluation with other parameters, or to another
            process.
        EvaluationError: A file of votes cannot be read, or its votes are on another page than this run's.
    """
    run = on_main(lambda: _open(config, source, resume))
    watch_cells(run)
    return run


def _open(config: EvaluationConfig, source: AdapterSource, resume: str) -> RunDirectory:
    """Open it in the main process."""
    check_votes(config.votes_files(), runs_root() / config.run_name)
    parameters = run_parameters(config, source)
    check_run(config.run_name, parameters, resume=resume)
    hold_lock(runs_root() / config.run_name)
    facts = {"task": _TASK, "seed": config.seed, "hardware": describe_hardware(), "adapter": source.shown()}
    facts["adapter_sha256"] = file_sha256(source.folder / WEIGHTS[1])
    run = open_run(config.run_name, parameters, resume=resume, versions=shown_versions(), **facts)
    write_json(run.path / "config.json", {"kind": _TASK, "folder": os.getcwd(), **config.flat()})
    return run


def compare(
    config: EvaluationConfig,
    source: AdapterSource,
    training: RunConfig,
    material: Material,
    arms: Sequence[Arm],
    answers: Sequence[Answer],
    references: Sequence[ReferenceScore],
    other_task: Sequence[ReferenceScore] = (),
) -> Comparison:
    """Put prompts, arms, answers and scores together.

    Args:
        other_task: Scores of base and tuned on rows of the task that was not trained.
    """
    model = training.model.model_name.rstrip("/").rpartition("/")[2]
    against = "itself, drawn twice" if config.mode == "aa" else f"its adapter {source.shown()}"
    drawn = (
        f"drawn at temperature {config.temperature()}"
        if config.mode == "aa"
        else "greedy: the likeliest token each time"
    )
    info = RunInfo(
        title=f"{model} against {against}",
        base_model=training.model.model_name,
        adapter=source.shown(),
        system_prompt=training.data.system_prompt,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        created=now(),
        details={
            "Decoding": drawn,
            "Prompt style": training.data.prompt_style,
            "Rows": "\n".join(material.notes),
            **gains_of_exports(source),
        },
        held_out=material.train_known,
        other_task=material.other_task if other_task else "",
    )
    prompts = tuple(each.prompt for each in (*material.prompts, *material.references))
    return Comparison(info, prompts, tuple(arms), tuple(answers), tuple(references), tuple(other_task))


def gains_of_exports(source: AdapterSource) -> dict[str, str]:
    """Return how much of the held-out gain each export of the adapter's run keeps, under a title; {} if unknown."""
    exports = source.run.manifest().get("exports") if source.run else None
    lines = []
    for name, proof in exports.items() if isinstance(exports, dict) else ():
        numbers = proof.get("numbers", {}) if isinstance(proof, dict) else {}
        lines += [f"{name}: {text}" for text in gain_lines(numbers)]
    return {"Exports": "\n".join(lines)} if lines else {}


def write_files(
    run: RunDirectory,
    comparison: Comparison,
    overview: Overview,
    *,
    figures: Sequence[Drawing] = (),
    neighbours: Sequence[Neighbour] = (),
    votes: Reveal | None = None,
) -> list[dict[str, str]]:
    """Write the report and the files that other tools read; return what each file is for."""
    said = describe_votes(votes) if votes else ""
    write_report(run.path / "report.html", comparison, overview, figures=figures, neighbours=neighbours, votes=said)
    write_comparison(run.path / "comparison.json", comparison)
    write_scores(run.path / "scores.csv", overview.table)
    write_llm_comparator(run.path / "llm_comparator.json", comparison, overview, votes)
    write_alpaca_eval(run.path / "alpaca_eval", comparison, overview, votes)
    named = {
        "report.html": "everything on one page that works offline",
        "vote.html": "the voting page to hand out",
        "vote_key.json": "who wrote what; keep it to yourself",
        "comparison.json": "prompts, answers and reference scores",
        "scores.csv": "every score in a long table",
        "llm_comparator.json": "for the LLM Comparator viewer",
        "alpaca_eval": "for AlpacaEval",
    }
    return [{"file": run.shown(name), "what for": use} for name, use in named.items() if (run.path / name).exists()]


def finish_evaluation(run: RunDirectory, comparison: Comparison, overview: Overview, **more: Any) -> None:
    """Write the numbers into `metrics.json`, and into the manifest that everything asked for was done."""
    answered = len({answer.prompt_id for answer in comparison.answers})
    run.update_metrics(
        verdict=overview.headline(),
        verdicts=verdict_rows(overview),
        estimates={
            name: asdict(overview.estimates[name]) for name in (JUDGED, OTHER_TASK) if name in overview.estimates
        },
        references=reference_table(comparison.references, comparison.arms),
        prompts_answered=answered,
        arms=[arm.name for arm in comparison.arms],
        **more,
    )
    run.finish(verdict=overview.headline(), report="report.html")
