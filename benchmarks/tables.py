"""The records in benchmarks/results as tables, each with the figures that a document shows of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import scale
from bench import RESULTS
from whole import whole_seconds

ONE_BY_ONE, COUNTED, STEADY = "unsloth, one by one", "ours, warm-up counted", "ours, steady state"
"""Engines of benchmarks/generate.py that are compared."""

LABELS = {
    "official": "setting of Unsloth's own Mistral Alpaca notebook (batch 2 x 4)",
    "official-8": "the same with its 8 examples in one pass",
    "official-packed-large": "Unsloth at its best: packed, batch 8, no checkpointing",
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
    "ours-8-sdpa": "ours, 8 examples a step, without the attention kernel",
    "ours-8-separate": "ours, 8 examples a step, adapter products one by one",
    "ours-packed-large-separate": "ours, packed, batch 8, adapter products one by one",
    ONE_BY_ONE: "Unsloth, one by one (by tokens/s of four prompts)",
    COUNTED: "ours, warm-up counted",
    STEADY: "ours, everything counted",
}
"""What a configuration is called where it is shown, in the order of the tables."""

ARMS = ("tuned", "base")

SIDES = {
    "official": "Unsloth's notebook as a script",
    "best": "the same, packed, batch 8",
    "ours": "ours, the notebook",
}
"""What the sides of benchmarks/whole.py are called, in the order of the table."""

RESERVED = """Where CUDA graphs are replayed, the peak is all memory that is reserved, since what graphs keep does not
count as allocated; elsewhere, and so for all peers, it is the memory that is allocated, which is less."""

INNER = ("imports", "train", "held-out losses", "recording graphs", "checkpoints")
"""Stages of benchmarks/whole.py that have columns of their own."""


def find(kind: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the record of a benchmark, of several machines' the first by name; None if nothing was measured.

    Args:
        kind: "train", "whole" or another one: the record's name begins so.
        folder: Where the records are.
    """
    return next(iter(find_all(kind, folder).values()), None)


def find_all(kind: str, folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return a benchmark's records by the machine in their names, those of a GPU first."""
    names = sorted([*folder.glob(f"{kind}.json"), *folder.glob(f"{kind}_*.json")])
    found = {path.stem.removeprefix(kind).strip("_"): json.loads(path.read_text(encoding="utf-8")) for path in names}
    return dict(sorted(found.items(), key=lambda item: not (item[1].get("machine") or {}).get("gpus")))


def runs_of(record: Mapping[str, Any]) -> pandas.DataFrame:
    """Return a record's runs, one a line, with the configuration's name as "name"."""
    return pandas.DataFrame([{"name": name, **run} for name, runs in record["runs"].items() for run in runs])


def markdown(frame: pandas.DataFrame) -> str:
    """Return a table in Markdown; columns of numbers, or of texts that begin with one, stand at the right."""
    numbers = [str(value)[:1].isdigit() or not str(value) for value in frame.iloc[0]]
    rule = "|" + "|".join("---:" if number else "---" for number in numbers) + "|"
    head, *lines = ("| " + " | ".join(map(str, line)) + " |" for line in [frame.columns, *frame.to_numpy().tolist()])
    return "\n".join([head, rule, *lines])


def times(ratio: float) -> str:
    """Return a factor, such as "0.57x", "7.5x" or "110x".

    Example:
        >>> times(0.57), times(1.0), times(7.53), times(110.2)
        ('0.57x', '1x', '7.5x', '110x')
    """
    if ratio < 0.995:
        return f"{ratio:.2f}".rstrip("0") + "x"
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.1f}x".replace(".0x", "x")


def speeds(record: Mapping[str, Any]) -> pandas.DataFrame:
    """Return examples a second (median) and GiB (most) of each configuration of a training record, in order."""
    grouped = runs_of(record).groupby("name")
    frame = pandas.DataFrame({"examples": grouped["examples_per_second"].median(), "gib": grouped["peak_gib"].max()})
    return frame.loc[[name for name in LABELS if name in frame.index]].fillna(0)


def best_plain(frame: pandas.DataFrame) -> str | None:
    """Return the fastest configuration of TRL + PEFT + bitsandbytes of `speeds`."""
    plain = frame[frame.index.str.startswith("plain")]
    return None if plain.empty else str(plain["examples"].idxmax())


def labels(frame: pandas.DataFrame) -> dict[str, str]:
    """Return what each configuration of `speeds` is called: the best of the plain ones is named so."""
    best = best_plain(frame)
    named = {name: LABELS[name] for name in frame.index}
    if best:
        named[best] = named[best].replace("the same, packed", "the same at its best: packed")
    return named


def training(record: Mapping[str, Any]) -> str:
    """Return the table of training speeds."""
    frame = speeds(record)
    named, base = labels(frame), frame["examples"].iloc[0]
    shown = {
        "training": [named[name] for name in frame.index],
        "examples/s": [f"{value:.1f}" for value in frame["examples"]],
        "peak GiB": [f"{value:.1f}" for value in frame["gib"]],
        "against the first": [times(value / base) for value in frame["examples"]],
    }
    graphs = any(run.get("graphs") for runs in record["runs"].values() for run in runs)
    return markdown(pandas.DataFrame(shown)) + (f"\n\n{RESERVED}" if graphs else "")


def waiting(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the README's table: what one waits for, with each side's seconds.

    Args:
        records: By kind: "whole", "startup", "train", "generate"; any may lack.
    """
    lines: list[list[str]] = []

    def line(name: str, seconds: Mapping[str, float], *sides: str) -> None:
        lines.append([name, *(_felt(seconds[side]) if side in seconds else "" for side in sides)])

    for rows, sides in whole_runs(records.get("whole", {"runs": {}})).items():
        both = {side: f"{_felt(whole_seconds(run))} ({_felt(training_seconds(run))})" for side, run in sides.items()}
        cells = (both.get(side, "") for side in ("official", "best", "", "ours"))
        lines.append([f"the adapter, from the start, {rows:,} rows of Alpaca once (training alone)", *cells])
    if (startup := records.get("startup")) and "official" in startup["runs"]:
        total = runs_of(startup).groupby("name")["total_seconds"].median()
        line("the first step, from the start", total, "official", "", "", "ours")
    if train := records.get("train"):
        each = 1000 / speeds(train)["examples"]
        line("1,000 rows of Alpaca, 8 a step, when all is warm", each, "official", "", "plain", "ours-8")
        names = [f"{whose}-packed" for whose in ("official", "plain", "ours")]
        packed = {name: each[each.index.str.startswith(name)].min() for name in names}
        found = {name: seconds for name, seconds in packed.items() if seconds > 0}
        line("the same, packed, each at its best", found, "", "official-packed", "plain-packed", "ours-packed")
    if generate := records.get("generate"):
        seconds = answering(generate)
        plain = next((name for name in seconds if "transformers" in name), "")
        line(f"base and tuned answers to {generate['prompts']} prompts", seconds, ONE_BY_ONE, "", plain, COUNTED)
    heads = ["you wait for", "Unsloth's notebook", "Unsloth, packed", "TRL, PEFT, bitsandbytes", "these notebooks"]
    return markdown(pandas.DataFrame(lines, columns=heads)) if lines else "Nothing was measured yet."


def _felt(number: float) -> str:
    """Return seconds as one feels them: "2.1 s", "18 s", "4.0 min"."""
    return f"{number / 60:.1f} min" if number >= 120 else f"{number:.0f} s" if number >= 10 else f"{number:.1f} s"


def whole_runs(record: Mapping[str, Any]) -> dict[int, dict[str, dict[str, Any]]]:
    """Return the last run of each side of a record of benchmarks/whole.py, by the number of rows."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for *_, run in record["runs"].values():
        found.setdefault(run["rows"], {})[run["side"]] = run
    return dict(sorted(found.items()))


def training_seconds(run: Mapping[str, Any]) -> float:
    """Return the seconds of a run's training alone, with what was reckoned: no held-out losses, no checkpoints."""
    reckoned: float = run.get("extrapolated", {}).get("seconds", 0)
    return float(run["stages"].get("train", 0) + reckoned)


def joined_runs(records: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the runs of several records of one benchmark in one, with the first's machine; None of none."""
    found: dict[str, Any] | None = None
    for record in records:
        found = found or {"machine": record.get("machine", {}), "runs": {}}
        for name, runs in record["runs"].items():
            found["runs"].setdefault(name, []).extend(runs)
    return found


def until_saved(record: Mapping[str, Any]) -> str:
    """Return the table of benchmarks/whole.py: seconds until the adapter is on disk, and where they go."""
    lines = []
    for rows, sides in whole_runs(record).items():
        base = whole_seconds(sides["official"]) if "official" in sides else None
        for side, label in SIDES.items():
            if side not in sides:
                continue
            run = sides[side]
            seconds, stages = whole_seconds(run), dict(run["stages"])
            stages["train"] = training_seconds(run)
            last = sum(value for name, value in stages.items() if name.startswith(("save", "did it help")))
            rest = sum(value for name, value in stages.items() if name not in INNER) - last
            mark = "*" if "extrapolated" in run else ""
            values = [stages.get("imports", 0), rest, *(stages.get(name, 0) for name in INNER[1:]), last]
            lines.append([f"{rows:,}", label, f"{seconds:.1f}{mark}", times(base / seconds) if base else ""])
            lines[-1] += [f"{value:.1f}" for value in values]
    heads = ["rows", "seconds until the adapter is on disk", "all", "against the first", "imports", "model to trainer"]
    return markdown(pandas.DataFrame(lines, columns=[*heads, "training", *INNER[2:], "save"]))


def engines(record: Mapping[str, Any]) -> pandas.DataFrame:
    """Return what was measured of each engine of a generation record, of all runs together."""
    return pandas.DataFrame([each for runs in record["runs"].values() for run in runs for each in run["results"]])


def answering(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds for both arms by engine: ours as measured, peers' by their tokens a second of each arm."""
    work, found = record["prompts"] * record["new"], {}
    for name, own in engines(record).groupby("name", sort=False):
        arms = own.groupby("arm")
        if "tuned+base" in arms.groups:
            found[str(name)] = float(arms["seconds"].median()["tuned+base"])
        elif set(arms.groups) >= set(ARMS):
            found[str(name)] = float((work / arms["tokens_per_s"].median()).sum())
    return found


def answers(record: Mapping[str, Any]) -> str:
    """Return the table of both arms' seconds; "" if no engine was measured on both."""
    found = answering(record)
    if not found:
        return ""
    alone = found.get(ONE_BY_ONE)
    shown = {
        f"base and tuned answers, {record['prompts']} prompts, {record['new']} tokens each": [
            LABELS.get(name, name) for name in found
        ],
        "seconds": [f"{seconds:.1f}" for seconds in found.values()],
        "against the first": [times(alone / seconds) if alone else "" for seconds in found.values()],
    }
    return markdown(pandas.DataFrame(shown))


def steady(record: Mapping[str, Any]) -> pandas.DataFrame:
    """Return prompts and tokens a second of the tuned arm, of Unsloth one by one and of ours over many prompts.

    Without ours over many prompts there is nothing to compare, and the table is empty.
    """
    frame = engines(record)
    tuned = frame[(frame["arm"] == "tuned") & frame["name"].isin([ONE_BY_ONE, STEADY])]
    found = tuned.groupby("name").agg({"prompts": "last", "tokens_per_s": "median"})
    return (
        found.loc[[name for name in (ONE_BY_ONE, STEADY) if name in found.index]]
        if STEADY in found.index
        else found[:0]
    )


def lasting(record: Mapping[str, Any]) -> str:
    """Return the table of the tuned arm's steady state; "" if the record has none."""
    frame = steady(record)
    if frame.empty:
        return ""
    alone = frame["tokens_per_s"].get(ONE_BY_ONE)
    shown = {
        f"tuned arm, steady state, {record['new']} tokens each": [LABELS[n].partition(" (")[0] for n in frame.index],
        "prompts": list(frame["prompts"]),
        "tokens/s": [f"{rate:,.1f}" for rate in frame["tokens_per_s"]],
        "against one by one": [times(rate / alone) if alone else "" for rate in frame["tokens_per_s"]],
    }
    return markdown(pandas.DataFrame(shown))


def starting(record: Mapping[str, Any]) -> str:
    """Return the table of seconds to the first optimizer step, with the stages of each side."""
    total = runs_of(record).groupby("name", sort=False)["total_seconds"].median()
    lines = []
    for name, seconds in total.items():
        stages = pandas.DataFrame([run["stages"] for run in record["runs"][name]]).median()
        ratio = times(seconds / total["official"]) if "official" in total.index else ""
        lines.append([name, f"{seconds:.1f}", ratio, ", ".join(f"{n} {value:.1f}" for n, value in stages.items())])
    heads = ["to the first optimizer step", "seconds", "against the official setting", "its parts"]
    table = pandas.DataFrame(lines, columns=heads)
    return markdown(table if "official" in total.index else table.drop(columns=heads[2]))


def by_rows(record: Mapping[str, Any]) -> str:
    """Return the table of seconds to the first optimizer step by how many rows are trained (whole.py --until)."""
    lines = [
        [f"{rows:,}", *(f"{whole_seconds(sides[side]):.1f}" if side in sides else "" for side in ("official", "ours"))]
        for rows, sides in whole_runs(record).items()
    ]
    return markdown(pandas.DataFrame(lines, columns=["rows that are trained", SIDES["official"], SIDES["ours"]]))


def kinds(record: Mapping[str, Any]) -> str:
    """Return the table of what the kernels of a profiled step do."""
    found = {**record["kinds"], "all": record["kernels"]}
    shown = {
        "what kernels do": list(found),
        "ms": [f"{milliseconds:.1f}" for milliseconds in found.values()],
        "of all kernels": [f"{milliseconds / record['kernels']:.0%}" for milliseconds in found.values()],
    }
    return markdown(pandas.DataFrame(shown))


def scaling(record: Mapping[str, Any]) -> str:
    """Return the table of benchmarks/scale.py, with the speed against one GPU."""
    lines, against = [], scale.compare(dict(record))
    for name, (*_, run) in record["runs"].items():
        ratio = f"{against[name]['speedup']:.2f}x" if name in against else "1x"
        lines.append([name, run["processes"], run["rows_per_step"], f"{run['examples_per_second']:.1f}", ratio])
    heads = ["configuration", "GPUs", "rows, or packed sequences, a step", "examples/s", "against one GPU"]
    return markdown(pandas.DataFrame(lines, columns=heads))


def learning(record: Mapping[str, Any]) -> str:
    """Return the table of held-out losses before and after the same examples; of several orders the mean."""
    lines = []
    for name, runs in record["runs"].items():
        ends, run = pandas.Series(final_losses(runs)), runs[-1]
        spread = f"{ends.min():.4f} to {ends.max():.4f}" if len(runs) > 1 else ""
        steps = [f"{run['examples_per_step']:.0f}", len(run["losses"]), f"{run['learning_rate']:.1e}", len(runs)]
        lines.append([name, *steps, f"{run['heldout'][0][1]:.4f}", f"{ends.mean():.4f}", spread])
    heads = [
        "side",
        "examples a step",
        "steps",
        "learning rate",
        "orders",
        "before",
        "after, mean",
        "lowest to highest",
    ]
    return markdown(pandas.DataFrame(lines, columns=heads))


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
    means = {name: pandas.Series(final_losses(each)).mean() for name, each in runs.items()}
    larger = [name for name, each in runs.items() if each[-1]["examples_per_step"] > 8]
    return [(name, means[name] - means["official"]) for name in larger]


def described(record: Mapping[str, Any]) -> str:
    """Say what a record was measured on."""
    machine = record["machine"]
    gpus = machine.get("gpus") or []
    card = f"{len(gpus)} x {gpus[0]}" if len(gpus) > 1 else f"one {gpus[0]}" if gpus else "a CPU"
    versions = [f"{n} {machine[n]}" for n in ("torch", "unsloth", "trl", "transformers") if machine.get(n)]
    return f"Measured on {', '.join([card, *versions])}."


TRIED = {
    "base": "adapter products one by one, all in 16 bit",
    "fused": "adapter products together",
    "fused+act": "the same, those of gate and up added in the gate's kernels",
    "fp8-row": "frozen products in fp8, a scale a row",
    "fp8-tensor": "frozen products in fp8, a scale a tensor",
}
"""What the ways of benchmarks/results/experiment_*.json are called, in order."""


def experiment(record: Mapping[str, Any]) -> str:
    """Return the table of what was tried beyond products in 16 bit."""
    steps = record["steps"]
    base = steps["base"]["milliseconds"]
    lines = [
        [
            said,
            f"{steps[name]['milliseconds']:.0f}",
            f"{base / steps[name]['milliseconds']:.2f}x",
            f"{steps[name]['peak_gib']:.1f}",
            f"{steps[name]['cosine']:.4f}",
        ]
        for name, said in TRIED.items()
    ]
    return markdown(pandas.DataFrame(lines, columns=["packed step", "ms", "gain", "peak GiB", "cosine"]))


def verdicts(record: Mapping[str, Any]) -> str:
    """Return the table of what `scripts/gpu_equivalence` found."""
    lines = []
    for name, each in record["verdicts"].items():
        holds = "yes" if each["ok"] else "NO" if each.get("decides", True) else "missed, decides nothing"
        lines.append([name, _shown(each["found"]), each["wanted"], holds])
    return markdown(
        pandas.DataFrame(lines, columns=["checked by `scripts/gpu_equivalence`", "found", "wanted", "holds"])
    )


def _shown(value: Any) -> str:
    """Return a finding as text, numbers with five digits."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def joined(lines: Sequence[str] | Iterator[str]) -> str:
    """Return lines as a block of text."""
    return "\n".join(lines)
