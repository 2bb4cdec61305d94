"""The few lines that are shown when a run is done."""

from __future__ import annotations

import textwrap
from typing import Any

from helpers.core.files import read_json
from helpers.core.runs import RunDirectory
from helpers.core.text import format_bytes, format_number, visible

__all__ = ["summarize"]

MADE = {
    "notebook.ipynb": "the notebook, executed",
    "adapter": "the LoRA adapter with its tokenizer",
    "merged": "the merged model",
    "loss.png": "the loss curves",
    "metrics.json": "losses, speed, memory",
    "manifest.json": "parameters, versions, hardware",
    "report.html": "base and tuned answers side by side",
    "vote.html": "a blind vote, to hand out",
}
"""What a run may have made, in the order of showing."""


def summarize(run: RunDirectory, *, answers: int = 3) -> str:
    """Return what a run found and made, in lines of text.

    Args:
        run: The run's directory. What is not there is not mentioned.
        answers: How many answers to show, at most.

    Raises:
        RunError: A file of the run is damaged.
    """
    metrics = run.metrics()
    sections = [_verdict(metrics), _numbers(metrics), _answers(run)[:answers], _paths(run)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _verdict(metrics: dict[str, Any]) -> list[str]:
    """Return what a comparison came to, and what people said in a blind vote."""
    said = [metrics.get(name) for name in ("verdict", "votes")]
    return [line for text in said if isinstance(text, str) for line in textwrap.wrap(visible(text), 100)]


def _numbers(metrics: dict[str, Any]) -> list[str]:
    lines = []
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss_after")
    if before is not None and after is not None:
        lines.append(f"held-out loss  {before:.3f} -> {after:.3f} nats a token")
    if change := metrics.get("eval_loss_change"):
        ends = [_signed(change[end]) for end in ("low", "high") if change.get(end) is not None]
        interval = f"95 % interval {' to '.join(ends)}" if ends else "no interval"
        lines.append(f"mean change    {_signed(change['mean'])} ({interval}, {change['rows']} rows, paired)")
    if metrics.get("examples_per_second") is not None:
        lines.append(f"speed          {metrics['examples_per_second']:.2f} examples/s")
    if metrics.get("peak_memory_bytes") is not None:
        lines.append(f"peak memory    {format_bytes(metrics['peak_memory_bytes'])}")
    return lines


def _signed(value: float) -> str:
    return format_number(value, places=3, sign=True)


def _answers(run: RunDirectory) -> list[str]:
    path = run.path / "answers.json"
    answers = read_json(path).get("answers", []) if path.exists() else []
    return [f"Q: {_short(each['instruction'], 1)}\nA: {_short(each['answer'], 3)}" for each in answers]


def _short(text: str, lines: int) -> str:
    """Return text in lines of 100 characters that stand under each other, cut after a few."""
    wrapped = textwrap.wrap(visible(" ".join(text.split())), 100, max_lines=lines, placeholder=" ...")
    return "\n   ".join(wrapped) or "(nothing)"


def _paths(run: RunDirectory) -> list[str]:
    there = {name: words for name, words in MADE.items() if (run.path / name).exists()}
    width = max((len(run.shown(name)) for name in there), default=0)
    return [f"{run.shown(name):<{width}}  {words}" for name, words in there.items()]
