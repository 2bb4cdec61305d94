"""From the records in benchmarks/results to Markdown tables; nothing else is written there by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import RESULTS

ONE_BY_ONE, COUNTED, STEADY = "unsloth, one by one", "ours, warm-up counted", "ours, steady state"
"""Engines of benchmarks/generate.py that are compared."""

LABELS = {
    "official": "setting of Unsloth's own Mistral Alpaca notebook (batch 2 x 4)",
    "official-8": "the same with its 8 examples in one pass",
    "plain": "TRL + PEFT + bitsandbytes as shipped (batch 2 x 4)",
    "plain-packed": "the same, packed, batch 4, checkpointing",
    "plain-packed-8": "the same, packed, batch 8, checkpointing",
    "plain-packed-kept": "the same, packed, batch 2, no checkpointing",
    "plain-packed-large": "the same, packed, batch 8, no checkpointing",
    "ours-8": "ours, the same 8 examples a step",
    "ours-8-eager": "ours, 8 examples a step, without CUDA graphs",
    "ours-packed-small": "ours, packed, batch 4, checkpointing",
    "ours-packed-large": "ours, packed, batch 8, no checkpointing",
    "ours-8-checkpointing": "ours, 8 examples a step, checkpointing",
    "ours-8-8bit": "ours, 8 examples a step, 8-bit AdamW",
    "ours-8-unpacked": "ours, 8 examples a step, frozen weights unpacked once",
    "ours-8-sdpa": "ours, 8 examples a step, without the attention kernel",
    ONE_BY_ONE: "Unsloth, one by one (by tokens/s of four prompts)",
    COUNTED: "ours, warm-up counted",
    STEADY: "ours, everything counted",
}
"""What a configuration is called where it is shown, in the order of the tables."""

ARMS = ("tuned", "base")


def find(kind: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the record of a benchmark; of several machines' the first by name.

    Args:
        kind: "train", "generate", "curves", "startup" or "equivalence": the record's name begins so.
        folder: Where the records are.

    Returns:
        The record, or None if nothing was measured.
    """
    return next(iter(find_all(kind, folder).values()), None)


def find_all(kind: str, folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return a benchmark's records by the machine in their names, those of a GPU first.

    Args:
        kind: As for `find`.
        folder: Where the records are.
    """
    names = sorted([*folder.glob(f"{kind}.json"), *folder.glob(f"{kind}_*.json")])
    found = {path.stem.removeprefix(kind).strip("_"): json.loads(path.read_text(encoding="utf-8")) for path in names}
    return dict(sorted(found.items(), key=lambda item: not (item[1].get("machine") or {}).get("gpus")))


def figure(record: Mapping[str, Any], name: str, key: str) -> float:
    """Return the median of a figure over the runs of a configuration."""
    return statistics.median(run[key] for run in record["runs"][name])


def speeds(record: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """Return (configuration, examples/s, peak GiB, times the official setting) of a training record."""
    names = sorted(record["runs"], key=list(LABELS).index)
    base = figure(record, "official", "examples_per_second") if "official" in names else None
    rows = []
    for name in names:
        examples = figure(record, name, "examples_per_second")
        peak = max(run["peak_gib"] or 0 for run in record["runs"][name])
        rows.append((name, examples, peak, examples / base if base else 1.0))
    return rows


def best_plain(record: Mapping[str, Any]) -> str | None:
    """Return the fastest configuration of TRL + PEFT + bitsandbytes that a training record holds."""
    rows = {name: examples for name, examples, _, _ in speeds(record) if name.startswith("plain")}
    return max(rows, key=rows.get) if rows else None


def labels(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what each configuration of a training record is called there: the best of the plain ones is named so."""
    best = best_plain(record)
    return {
        name: LABELS[name].replace("the same, packed", "the same at its best: packed") if name == best else LABELS[name]
        for name in record["runs"]
    }


def training(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of training speeds."""
    named = labels(record)
    yield "| training | examples/s | peak GiB | against the first |"
    yield "|---|---:|---:|---:|"
    for name, examples, peak, ratio in speeds(record):
        yield f"| {named[name]} | {examples:.1f} | {peak:.1f} | {times(ratio)} |"
    if any(run.get("graphs") for runs in record["runs"].values() for run in runs):
        yield ""
        yield "Where CUDA graphs are replayed, the peak is all memory that is reserved, since what graphs keep does not"
        yield "count as allocated; elsewhere, and so for all peers, it is the memory that is allocated, which is less."


def answering(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return (engine, seconds for both arms) of a generation record."""
    work = record["prompts"] * record["new"]
    found: dict[str, list[float]] = {}
    for name, own in engines(record).items():
        if both := [each["seconds"] for each in own if each.get("arm") == "tuned+base"]:
            found[name] = both
        elif {each.get("arm") for each in own} >= set(ARMS):
            rates = [statistics.median(e["tokens_per_s"] for e in own if e["arm"] == arm) for arm in ARMS]
            found[name] = [sum(work / rate for rate in rates)]
    return [(name, statistics.median(seconds)) for name, seconds in found.items()]


def engines(record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return what was measured of each engine of a generation record, of all runs together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in (each for runs in record.get("runs", {}).values() for run in runs for each in run["results"]):
        found.setdefault(each["name"], []).append(each)
    return found


def steady(record: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """Return (engine, prompts, tokens/s) of the tuned arm: Unsloth one by one and ours over many prompts.

    Without ours over many prompts there is nothing to compare, and nothing is returned.
    """
    found = []
    for name in (ONE_BY_ONE, STEADY):
        own = [each for each in engines(record).get(name, []) if each.get("arm") == "tuned"]
        if own:
            found.append((name, own[-1]["prompts"], statistics.median(each["tokens_per_s"] for each in own)))
    return found if any(name == STEADY for name, _, _ in found) else []


def lasting(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the tuned arm's steady state, if the record has one."""
    rows = steady(record)
    if not rows:
        return
    alone = {name: rate for name, _, rate in rows}.get(ONE_BY_ONE)
    yield f"| tuned arm, steady state, {record['new']} tokens each | prompts | tokens/s | against one by one |"
    yield "|---|---:|---:|---:|"
    for name, prompts, rate in rows:
        label = LABELS[name].partition(" (")[0]
        yield f"| {label} | {prompts} | {rate:,.1f} | {times(rate / alone) if alone else ''} |"


def answers(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of both arms' seconds."""
    rows = answering(record)
    alone = dict(rows).get(ONE_BY_ONE)
    asked = f"{record['prompts']} prompts, {record['new']} tokens each"
    yield f"| base and tuned answers, {asked} | seconds | against the first |"
    yield "|---|---:|---:|"
    for name, seconds in rows:
        yield f"| {LABELS.get(name, name)} | {seconds:.1f} | {times(alone / seconds) if alone else ''} |"


def times(ratio: float) -> str:
    """Return a factor, such as "0.57x", "7.5x" or "110x".

    Example:
        >>> times(0.57), times(1.0), times(7.53), times(110.2)
        ('0.57x', '1x', '7.5x', '110x')
    """
    if ratio < 0.995:
        return f"{ratio:.2f}".rstrip("0") + "x"
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.1f}x".replace(".0x", "x")


def waiting(
    train: Mapping[str, Any] | None, generate: Mapping[str, Any] | None, startup: Mapping[str, Any] | None
) -> Iterator[str]:
    """Yield the README's table: what one waits for, with each side's seconds."""
    yield "| you wait for | Unsloth's own notebook | TRL, PEFT, bitsandbytes | these notebooks |"
    yield "|---|---:|---:|---:|"
    if startup:
        sides = [_seconds(figure(startup, name, "total_seconds")) for name in ("official", "ours")]
        yield f"| the first step, from the first cell on | {sides[0]} | | {sides[1]} |"
    if train:
        rates = {name: rate for name, rate, _, _ in speeds(train)}
        cells = [_seconds(1000 / rates[name]) if name in rates else "" for name in ("official", "plain", "ours-8")]
        yield f"| 1,000 rows of Alpaca, 8 a step | {' | '.join(cells)} |"
        packed = [name for name in rates if name.startswith("ours-packed")]
        cells = [_seconds(1000 / max(rates[n] for n in names)) if names else "" for names in (_packed(rates), packed)]
        yield f"| the same, packed, each at its best | | {' | '.join(cells)} |"
    if generate:
        seconds = dict(answering(generate))
        names = (ONE_BY_ONE, next((name for name in seconds if "transformers" in name), ""), COUNTED)
        cells = [_seconds(seconds[name]) if name in seconds else "" for name in names]
        yield f"| base and tuned answers to {generate['prompts']} prompts | {' | '.join(cells)} |"


def _packed(rates: Mapping[str, float]) -> list[str]:
    """Return the packed settings of the plain libraries."""
    return [name for name in rates if name.startswith("plain-packed")]


def _seconds(number: float) -> str:
    """Return seconds as one feels them: "2.1 s", "18 s", "4.0 min"."""
    return f"{number / 60:.1f} min" if number >= 120 else f"{number:.0f} s" if number >= 10 else f"{number:.1f} s"


def starting(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of seconds from the first cell to the first optimizer step, with the parts of each side."""
    yield "| from the first cell to the first optimizer step | seconds | against the official setting | its parts |"
    yield "|---|---:|---:|---|"
    base = figure(record, "official", "total_seconds") if "official" in record["runs"] else None
    for name, runs in record["runs"].items():
        total = figure(record, name, "total_seconds")
        parts = {part: statistics.median(run["parts"][part] for run in runs) for part in runs[0]["parts"]}
        shown = ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items())
        yield f"| {name} | {total:.1f} | {times(total / base) if base else ''} | {shown} |"


def profile(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of a step's parts, in milliseconds of the host's clock."""
    yield "| part | ms |"
    yield "|---|---:|"
    for name, each in record["milliseconds"].items():
        yield f"| {name} | {each['host']:.1f} |"


def kinds(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of what the kernels of a profiled step do."""
    yield "| what kernels do | ms | of all kernels |"
    yield "|---|---:|---:|"
    for name, milliseconds in record["kinds"].items():
        yield f"| {name} | {milliseconds:.1f} | {milliseconds / record['kernels']:.0%} |"
    yield f"| all | {record['kernels']:.1f} | 100% |"


def curves(record: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return the points of each curve by curve and side."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for runs in record["runs"].values():
        found.setdefault(runs[-1]["curve"], {})[runs[-1]["whose"]] = runs[-1]["points"]
    return found


def growing(record: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the table of a curve."""
    heads = {"batch": "rows in a pass", "length": "tokens in a packed sequence", "rows": "rows"}
    sides = curves(record)[name]
    sections = [(side, key, text) for side in sides for key, text in _columns(name, side)]
    yield f"| {heads[name]} | " + " | ".join(text for _, _, text in sections) + " |"
    yield "|---:|" + "---:|" * len(sections)
    for place, point in enumerate(next(iter(sides.values()))):
        values = [f"{sides[side][place][key]:.1f}" for side, key, _ in sections if place < len(sides[side])]
        yield f"| {point['at']:,} | " + " | ".join(values) + " |"


def _columns(name: str, side: str) -> list[tuple[str, str]]:
    columns = [("examples_per_second", f"{side}, examples/s")]
    return columns + ([("seconds_to_trainer", f"{side}, seconds to the trainer")] if name == "rows" else [])


def scaling(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of benchmarks/scale.py, with the speed against one GPU."""
    yield "| configuration | GPUs | rows, or packed sequences, a step | examples/s | against one GPU |"
    yield "|---|---:|---:|---:|---:|"
    for name, each in record["results"].items():
        ratio = record["comparison"].get(name, {}).get("speedup", 1.0)
        cells = (
            name,
            each["processes"],
            each["rows_per_step"],
            f"{each['examples_per_second']:.1f}",
            f"{ratio:.2f}x".replace("1.00x", "1x"),
        )
        yield f"| {' | '.join(map(str, cells))} |"


def learning(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of held-out losses before and after the same examples; of several orders of the rows the mean."""
    yield "| side | examples a step | steps | learning rate | orders | before | after, mean | lowest to highest |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, runs in record["runs"].items():
        ends, run = final_losses(runs), runs[-1]
        cells = (
            name,
            f"{run['examples_per_step']:.0f}",
            len(run["losses"]),
            f"{run['learning_rate']:.1e}",
            len(runs),
            f"{run['heldout'][0][1]:.4f}",
            f"{statistics.mean(ends):.4f}",
            f"{min(ends):.4f} to {max(ends):.4f}" if len(runs) > 1 else "",
        )
        yield f"| {' | '.join(map(str, cells))} |"


def final_losses(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the held-out loss at the end of each run."""
    return [run["heldout"][-1][1] for run in runs]


def losses_apart(record: Mapping[str, Any]) -> float | None:
    """Return how far ours and the official side lie apart where both see the same 8 examples a step; None if one lacks.

    Points of the same order of the rows and the same number of examples are compared.
    """
    sides = [
        {(run.get("seed"), examples): loss for run in record["runs"].get(name, ()) for examples, loss in run["heldout"]}
        for name in ("ours-8", "official")
    ]
    common = sides[0].keys() & sides[1].keys()
    return max((abs(sides[0][at] - sides[1][at]) for at in common), default=None)


def packed_losses(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return how much higher each side with larger steps ends than the official one, in means over the orders."""
    runs = record["runs"]
    if "official" not in runs:
        return []
    base = statistics.mean(final_losses(runs["official"]))
    larger = {name: each for name, each in runs.items() if each[-1]["examples_per_step"] > 8}
    return [(name, statistics.mean(final_losses(each)) - base) for name, each in larger.items()]


def described(record: Mapping[str, Any]) -> str:
    """Say what a record was measured on."""
    machine = record["machine"]
    gpus = machine.get("gpus") or []
    card = f"{len(gpus)} x {gpus[0]}" if len(gpus) > 1 else f"one {gpus[0]}" if gpus else "a CPU"
    versions = [f"{n} {machine[n]}" for n in ("torch", "unsloth", "trl", "transformers") if machine.get(n)]
    return f"Measured on {', '.join([card, *versions])}."


def joined(lines: Sequence[str] | Iterator[str]) -> str:
    """Return lines as a block of text."""
    return "\n".join(lines)
