"""The side-by-side notebook without the notebook, in one process or in several: `python -m helpers compare`.

It calls what the notebook's cells call, in their order. Each process has the model, and they share questions and
references; what reads data, judges and writes is done by the main one.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.errors import ConfigError
from helpers.core.files import read_json
from helpers.core.processes import on_main, same_everywhere
from helpers.core.runs import RESUME, RunDirectory
from helpers.evaluation.adapter import AdapterSource
from helpers.evaluation.config import EvaluationConfig, build_evaluation_config, evaluation_parameters
from helpers.evaluation.prompts import Material
from helpers.evaluation.records import Arm, Comparison
from helpers.training.job import failure_noted, run_job

__all__ = ["add_command", "compare_run", "read_evaluation", "run_compare"]


def add_command(subparsers: Any) -> None:
    """Add `compare` to the command line.

    Args:
        subparsers: What `ArgumentParser.add_subparsers` returned.
    """
    said = "compare base and tuned from a comparison's config.json, on one GPU or, launched, on several"
    parser = subparsers.add_parser("compare", help=said)
    parser.add_argument("config", metavar="RUN_DIR/config.json", type=Path, help="what side_by_side_eval wrote")
    parser.add_argument("--resume", choices=RESUME, default="auto", help="go on, start over, or insist on going on")
    parser.set_defaults(command=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Compare as the command line asks.

    Args:
        options: Parsed by the parser that `add_command` made.

    Returns:
        The exit status: 0.

    Raises:
        HelpersError: What is asked for cannot be done; in the main process, or where it went wrong.
    """
    path = options.config.resolve()  # `run_job` goes to the folder that the file's own paths begin at

    def work(_: object) -> RunDirectory:
        return compare_run(on_main(partial(read_evaluation, path)), resume=options.resume)

    return run_job(options.config, _check, work)


def read_evaluation(path: Path) -> EvaluationConfig:
    """Read a comparison's configuration back, checked again.

    Args:
        path: `config.json`, or the run directory that holds it.

    Returns:
        The configuration that was written.

    Raises:
        ConfigError: It is no comparison's, or a parameter is unknown or wrong.
        RunError: The file cannot be read.
    """
    values = _check(path)
    given = {name: values.get(name) for name in evaluation_parameters()}
    return build_evaluation_config(preset=values["preset"], run_name=values["run_name"], **given)


def _check(path: Path) -> dict[str, Any]:
    """Return what stands in a comparison's file."""
    values = read_json(path / "config.json" if path.is_dir() else path)
    names = ("preset", "run_name")
    if values.get("kind") != "side_by_side" or not all(isinstance(values.get(name), str) for name in names):
        remedy = "Run side_by_side_eval up to open_evaluation: it writes one. For a training, use train."
        raise ConfigError(str(path), "a comparison's config.json", values.get("kind"), remedy)
    return values


@dataclass(frozen=True)
class _Opened:
    """What the main process read and opened: the run, the adapter and its training, the prompts."""

    run: RunDirectory
    source: AdapterSource
    training: RunConfig
    material: Material


def compare_run(config: EvaluationConfig, *, resume: str = "auto") -> RunDirectory:
    """Compare from prompts to the report, as the notebook does, with the votes that there are.

    Args:
        config: The checked configuration.
        resume: "auto", "never" or "must"; see `helpers.core.runs.open_run`.

    Returns:
        The run directory, complete.

    Raises:
        HelpersError: See the functions that are called here.
    """
    opened = on_main(partial(_open, config, resume))
    with failure_noted(opened.run):
        comparison, shifted = _ask(config, opened)
        on_main(partial(_finish, config, opened, comparison, shifted))
    return opened.run


def _open(config: EvaluationConfig, resume: str) -> _Opened:
    """Find the adapter, open the run, and gather what is asked."""
    from helpers.evaluation.adapter import find_adapter, training_config
    from helpers.evaluation.prompts import gather
    from helpers.evaluation.session import open_evaluation

    source = find_adapter(config.adapter_dir)
    training = training_config(source, config)
    run = open_evaluation(config, source, resume=resume)
    material = gather(config, source, training)
    print("\n".join(material.notes), flush=True)
    return _Opened(run, source, training, material)


def _ask(config: EvaluationConfig, opened: _Opened) -> tuple[Comparison, str]:
    """Load the model, test it, score and answer; return the comparison, and what became of the tokens."""
    from helpers.evaluation import generate
    from helpers.evaluation.adapter import recorded_loss
    from helpers.evaluation.arms import choose_arms, plan_asking
    from helpers.evaluation.cache import AnswerCache
    from helpers.evaluation.overview import headline_arms
    from helpers.evaluation.sanity import judge, reproduces_training
    from helpers.evaluation.session import compare

    training, material, arms = opened.training, opened.material, choose_arms(config)
    asking = plan_asking(config, material, training.data.prompt_style, training.data.system_prompt)
    bench = generate.load_bench(training, opened.source, asking, aa=config.mode == "aa", seed=config.seed)
    same_everywhere("way of answering", bench.configuration())
    judge(generate.take_readings(bench, material.prompts[0], arms))
    references, left_out = generate.score_references(bench, material.references, arms)
    print("left out:", left_out or "none")
    print(reproduces_training(references, *recorded_loss(opened.source, config)), flush=True)
    cache = AnswerCache(opened.run.path / "answers_cache.json", bench.configuration())
    answers = generate.answer_all(bench, material.asked(), arms, batch_size=config.batch_size, cache=cache)
    other = () if config.mode == "aa" else generate.score_references(bench, material.other, arms[:2])[0]
    comparison = compare(config, opened.source, training, material, arms, answers, references, other)
    return comparison, _shift(bench, opened, comparison, headline_arms(comparison)[1])


def _shift(bench: Any, opened: _Opened, comparison: Comparison, tuned: Arm) -> str:
    """Say which tokens of the tuned answers the base model would not have chosen."""
    from helpers.evaluation.cache import do_each
    from helpers.evaluation.generate import token_shift
    from helpers.evaluation.metrics.token_shift import describe_shift

    said = {answer.prompt_id: answer for answer in comparison.answers if answer.arm == tuned.name}
    tokens = do_each(opened.material.asked(), lambda question: token_shift(bench, question, said[question.prompt.id]))
    return describe_shift([token for each in tokens for token in each])


def _finish(config: EvaluationConfig, opened: _Opened, comparison: Comparison, shifted: str) -> None:
    """Judge, draw, and write everything that the notebook writes."""
    from helpers.evaluation.metrics.contamination import nearest_examples
    from helpers.evaluation.overview import look_over
    from helpers.evaluation.report.figures import draw_all
    from helpers.evaluation.session import finish_evaluation, write_files
    from helpers.evaluation.votes.vote import count_votes, describe_votes, prepare_vote

    run, overview = opened.run, look_over(comparison)
    _, key = prepare_vote(run, comparison, overview)
    votes = count_votes(config.votes_files(), key)
    overview = look_over(comparison, votes)
    asked = [question.prompt for question in opened.material.asked()]
    neighbours = nearest_examples(asked, opened.material.train_texts())
    figures = list(draw_all(comparison, overview, votes).values())
    write_files(run, comparison, overview, figures=figures, neighbours=neighbours, votes=votes)
    finish_evaluation(run, comparison, overview, token_shift=shifted, votes=describe_votes(votes) if votes else None)
