"""What was aimed at, and what the records say about it: one list, from which docs/speed.md takes its table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tables
from trainers import LENGTH

from helpers.memory.shapes import MISTRAL_7B

H100_TERA = 989
"""TFLOP/s of an H100 SXM in dense bf16 products: NVIDIA H100 Tensor Core GPU data sheet."""


class Found(NamedTuple):
    """A factor in a record, what it was found with, and whether that keeps the target's limit of memory."""

    factor: float
    said: str = ""
    fits: bool = True


@dataclass(frozen=True)
class Target:
    """Something that was aimed at.

    Args:
        what: In words.
        factor: That is to be reached.
        kind: The record that says what was reached.
        read: Takes the factor from the record; None if the record does not have it.
        least: Whether the factor is to be reached from below; else it must not be exceeded.
        hindrance: Says from the record and the folder of records what stands in the way; "" if they do not tell.
    """

    what: str
    factor: float
    kind: str
    read: Callable[[Mapping[str, Any]], Found | None]
    least: bool = True
    hindrance: Callable[[Mapping[str, Any], Path], str] = lambda record, results: ""

    def reached(self, found: Found) -> bool:
        """Return whether a factor is what was aimed at, or better, within the limit."""
        return found.fits and (found.factor >= self.factor if self.least else found.factor <= self.factor)


def over_official(name: str, limit: float = float("inf")) -> Callable[[Mapping[str, Any]], Found | None]:
    """Return a function that takes a configuration's speed over the official setting's.

    Args:
        name: Of the configuration.
        limit: GiB that it may take.
    """

    def read(record: Mapping[str, Any]) -> Found | None:
        rows = {name: (examples, peak) for name, examples, peak, _ in tables.speeds(record)}
        if name not in rows or "official" not in rows:
            return None
        examples, peak = rows[name]
        return Found(examples / rows["official"][0], f"{peak:.1f} GiB", peak <= limit)

    return read


def over_plain(record: Mapping[str, Any]) -> Found | None:
    """Return the speed of ours packed over that of TRL + PEFT + bitsandbytes, each at its best."""
    rows = {name: examples for name, examples, _, _ in tables.speeds(record)}
    ours = [name for name in rows if name.startswith("ours-packed")]
    other = tables.best_plain(record)
    if not ours or other is None:
        return None
    one = max(ours, key=rows.get)
    return Found(rows[one] / rows[other], f"`{one}` over `{other}`")


def beyond(factor: float) -> Callable[[Mapping[str, Any], Path], str]:
    """Return a function that says how near a multiple of the best plain setting comes to what the card can do."""

    def reason(record: Mapping[str, Any], results: Path) -> str:
        rows = {name: examples for name, examples, _, _ in tables.speeds(record)}
        ours = max((name for name in rows if name.startswith("ours-packed")), key=rows.get)
        plain, run = tables.best_plain(record), record["runs"][ours][-1]
        recomputed = [name for name in ("plain-packed", "plain-packed-8") if name in rows]
        gpus = record["machine"].get("gpus") or [""]
        if "examples_per_step" not in run or not recomputed or "H100" not in gpus[0]:
            return ""
        tokens = run["options"]["batch"] * LENGTH / run["examples_per_step"]
        tera = 4 * MISTRAL_7B.linear_parameters() * tokens / 1e12
        slower = max(recomputed, key=rows.get)
        wanted = factor * rows[plain]
        return (
            f"{factor:g} times `{plain}` ({rows[plain]:.1f} examples/s) would be {wanted:.0f} examples/s. With "
            f"{tokens:.0f} tokens each, and 4 operations for a token and a linear parameter, forward and backward, "
            f"products alone would take {wanted * tera:.0f} of the {H100_TERA} TFLOP/s that NVIDIA's data sheet names "
            f"(H100 SXM, bf16, dense). `{ours}` does {rows[ours] * tera:.0f}, attention, the unpacking of 4-bit "
            "weights and the optimizer in the same time. Over the best plain setting that recomputes layers, "
            f"`{slower}`, it is {rows[ours] / rows[slower]:.2f}x."
        ) + profiled(record["runs"][ours][-1]["examples_per_step"] / wanted, results)

    return reason


def profiled(seconds: float, results: Path) -> str:
    """Say beside the seconds that a step may take what a profile of it says; "" without one."""
    profile = tables.find("packed_step", results)
    if not profile or "kinds" not in profile:
        return ""
    products = profile["kinds"]["products with frozen weights"]
    return (
        f" By the profile of such a step, below, its products with frozen weights alone take {products:.0f} ms; "
        f"the whole step might take {1000 * seconds:.0f} ms."
    )


def answered(record: Mapping[str, Any]) -> Found | None:
    """Return how many times faster both arms are answered than one by one, our warm-up counted."""
    rows = dict(tables.answering(record))
    if tables.ONE_BY_ONE not in rows or tables.COUNTED not in rows or (record["prompts"], record["new"]) != (32, 64):
        return None
    return Found(rows[tables.ONE_BY_ONE] / rows[tables.COUNTED])


def steady(record: Mapping[str, Any]) -> Found | None:
    """Return how many times more tokens a second the tuned arm gives than one by one."""
    rows = {name: (prompts, rate) for name, prompts, rate in tables.steady(record)}
    if rows.keys() != {tables.ONE_BY_ONE, tables.STEADY}:
        return None
    prompts, rate = rows[tables.STEADY]
    return Found(rate / rows[tables.ONE_BY_ONE][1], f"{prompts} prompts")


def started(record: Mapping[str, Any]) -> Found | None:
    """Return the seconds to the first optimizer step as a share of the official setting's."""
    if not {"ours", "official"} <= record["runs"].keys():
        return None
    seconds = [tables.figure(record, name, "total_seconds") for name in ("ours", "official")]
    return Found(seconds[0] / seconds[1], f"{seconds[0]:.1f} s beside {seconds[1]:.1f} s")


def grown(name: str) -> Callable[[Mapping[str, Any]], Found | None]:
    """Return a function that takes a configuration's speed against one GPU."""

    def read(record: Mapping[str, Any]) -> Found | None:
        found = record["comparison"].get(name)
        return Found(found["speedup"]) if found else None

    return read


def launches(record: Mapping[str, Any], results: Path) -> str:
    """Say what holds up the step of the same 8 examples, if a profile of the same kind of step is in the records."""
    profile = tables.find("profile", results)
    modes = [run.get("mode") for run in record["runs"]["ours-8"]]
    if not profile or "kernels" not in profile or modes[-1] is None:
        return ""
    if bool(profile["mode"].get("graphs")) != bool(modes[-1].get("graphs")):
        return ""
    whole = profile["milliseconds"]["whole step"]["host"]
    return (
        f"By the profile of this step the host stands in the way, which launches the kernels one by one: of "
        f"{whole:.0f} ms the card's kernels take {profile['kernels']:.0f}."
    )


def parts(record: Mapping[str, Any], results: Path) -> str:
    """Say which part of our start is the longest."""
    found = record["runs"]["ours"][-1]
    name, seconds = max(found["parts"].items(), key=lambda part: part[1])
    return f"The longest part is `{name}` with {seconds:.1f} of {found['total_seconds']:.1f} s."


TARGETS = (
    Target(
        "the same 8 examples a step, over the official setting", 7.5, "train", over_official("ours-8"), True, launches
    ),
    Target("packed, at no more than 6.5 GiB, over it", 11, "train", over_official("ours-packed-small", 6.5)),
    Target("packed, at no more than 70 GiB, over it", 17, "train", over_official("ours-packed-large", 70)),
    Target("ours packed over TRL + PEFT + bitsandbytes, each at its best", 4.5, "train", over_plain, True, beyond(4.5)),
    Target(
        "base and tuned answers, 32 prompts of 64 tokens, warm-up counted, over one by one", 30, "generate", answered
    ),
    Target("steady state, tuned arm, over one by one", 130, "generate", steady),
    Target("first cell to first optimizer step, against the official setting", 0.6, "startup", started, False, parts),
    Target("2 GPUs, the batch grown", 1.85, "scale", grown("grown-2")),
    Target("2 GPUs, the batch grown, packed", 1.85, "scale", grown("packed-grown-2")),
    Target("4 GPUs, the batch grown", 3.5, "scale", grown("grown-4")),
    Target("4 GPUs, the batch grown, packed", 3.5, "scale", grown("packed-grown-4")),
)


def table(results: Path) -> Iterator[str]:
    """Yield what was aimed at, what the records say, and below it what stands in the way of what was missed.

    Args:
        results: The folder of records.
    """
    yield "| aimed at | factor | in the records | |"
    yield "|---|---:|---:|---|"
    reasons = []
    for target in TARGETS:
        record = tables.find(target.kind, results)
        found = target.read(record) if record else None
        aim = f"{'at least' if target.least else 'at most'} {precise(target.factor)}"
        if found is None:
            yield f"| {target.what} | {aim} | not in a record yet | |"
            continue
        good = target.reached(found)
        shown = precise(found.factor) + (f" ({found.said})" if found.said else "")
        yield f"| {target.what} | {aim} | {shown} | {'reached' if good else '**missed**'} |"
        if not good and (reason := target.hindrance(record, results)):
            reasons.append(f"Missed: {target.what}. {reason}")
    for reason in reasons:
        yield from ("", *textwrap.wrap(reason, 110))


def precise(factor: float) -> str:
    """Return a factor with two decimals where they say something.

    Example:
        >>> precise(7.5), precise(6.753), precise(108.96)
        ('7.5x', '6.75x', '109x')
    """
    return f"{factor:.0f}x" if factor >= 100 else f"{factor:.2f}".rstrip("0").rstrip(".") + "x"
