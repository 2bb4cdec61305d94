"""The few lines that are shown when a run is done."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from helpers.core.files import read_json
from helpers.core.runs import RunDirectory
from helpers.core.text import format_bytes, format_number, visible

__all__ = ["summarize"]

_MADE = {
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

_ANSWERS = 3
"""How many questions are shown with their answers, at most: evenly spaced, whatever was answered."""


def summarize(run: RunDirectory) -> str:
    """Return what a run found and made, in lines of text.

    Args:
        run: The run's directory. What is not there is not mentioned.

    Raises:
        RunError: A file of the run is damaged.
    """
    metrics = run.metrics()
    asked = _answers(run)
    chosen = [_shown(*each) for each in asked[:: max(1, -(-len(asked) // _ANSWERS))]]
    sections = [_verdict(metrics), _numbers(metrics), *chosen, _paths(run)]
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


def _answers(run: RunDirectory) -> list[tuple[str, str | None, str]]:
    """Return (question, base answer or None, tuned answer) of each question that a run asked."""
    path, comparison = run.path / "answers.json", run.path / "comparison.json"
    if path.exists():
        return [(each["instruction"], each.get("base"), each["answer"]) for each in read_json(path).get("answers", [])]
    if not comparison.exists():
        return []
    found = read_json(comparison)
    texts = {(each["prompt_id"], each["arm"]): each["text"] for each in found["answers"]}
    before, after = (arm["name"] for arm in found["arms"][:2])
    asked = [prompt for prompt in found["prompts"] if {(prompt["id"], before), (prompt["id"], after)} <= texts.keys()]
    return [(each["text"], texts[each["id"], before], texts[each["id"], after]) for each in asked]


def _shown(question: str, before: str | None, after: str) -> list[str]:
    """Return a question and its answer, or its two answers beside each other, in lines of about 100 characters."""
    lines = ["Q: " + "".join(_wrap(question, 97, 1))]
    if before is None:
        return [*lines, "A: " + "\n   ".join(_wrap(after, 97, 3))]
    left, right = ["BASE", *_wrap(before, 48, 6)], ["TUNED", *_wrap(after, 48, 6)]
    return [*lines, *(f"{a:<48} | {b}".rstrip() for a, b in itertools.zip_longest(left, right, fillvalue=""))]


def _wrap(text: str, width: int, lines: int) -> list[str]:
    """Return text as lines of a width, cut after a few."""
    whole = visible(" ".join(text.split()))
    return textwrap.wrap(whole, width, max_lines=lines, placeholder=" ...") or ["(nothing)"]


def _paths(run: RunDirectory) -> list[str]:
    there = {name: words for name, words in _MADE.items() if (run.path / name).exists()}
    width = max((len(run.shown(name)) for name in there), default=0)
    return [f"{run.shown(name):<{width}}  {words}" for name, words in there.items()]
