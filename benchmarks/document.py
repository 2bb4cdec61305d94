"""docs/speed.md, its pictures and the README's tables, written from the records in benchmarks/results alone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import charts
import plan
import tables
import targets
from bench import RESULTS, ROOT
from trainers import LENGTH

from tools.svg import Drawing

BEGIN, END = "<!-- speed: written by scripts/build_figures -->", "<!-- end of speed -->"
"""Between these lines the README's tables stand."""

HOW = """
## Where the speed comes from

- **Attention.** On torch 2.11, Colab's version, Unsloth launches one attention call for each row, layer and pass.
  `helpers/model/patches/attention.py` computes all rows in one launch, with a kernel that torch 2.11 already carries.
- **CUDA graphs.** Where the host is slower than the card, a layer's kernels are recorded once and replayed
  (`helpers/model/patches/cuda_graphs.py`). Each recording is compared with the plain pass before it is used.
- **Recomputation.** A layer that is recomputed skips its final, unused product
  (`helpers/model/patches/optimizer_step.py`).
- **Answers.** Generation copies the weights to 16 bit once and replays a CUDA graph for each token
  (`helpers/model/decoding`).
- **The start.** Rows that are not used are not prepared, and only Unsloth's SFT trainer is built
  (`helpers/model/patches/imports.py`). If you need the others, import unsloth before anything of this project.
"""
"""The last section of docs/speed.md."""

TITLES = {"batch": "Rows in a pass", "length": "Length of packed sequences", "rows": "Number of rows"}


def build(root: Path = ROOT, results: Path = RESULTS) -> dict[Path, str]:
    """Return what each file must hold, by its path.

    Args:
        root: Of the repository.
        results: The folder of records.

    Returns:
        docs/speed.md, docs/speed_*.svg and README.md.
    """
    found = {root / "docs" / f"speed_{name}.svg": picture.svg() + "\n" for name, picture in pictures(results).items()}
    found[root / "docs" / "speed.md"] = tables.joined(document(results)) + "\n"
    readme = (root / "README.md").read_text(encoding="utf-8")
    found[root / "README.md"] = put(readme, tables.joined(short(results)))
    return found


def put(text: str, block: str) -> str:
    """Replace what stands between the README's two marks."""
    pattern = re.compile(re.escape(BEGIN) + r"\n.*?" + re.escape(END), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"README.md has not one pair of the lines {BEGIN} and {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", text)


def pictures(results: Path) -> dict[str, Drawing]:
    """Return the drawings by name."""
    found = {}
    if record := tables.find("train", results):
        named = tables.labels(record)
        shown = [(named[name], speed, name.startswith("ours")) for name, speed, _, _ in tables.speeds(record)]
        found["training"] = charts.bars("Training, examples a second", shown, "/s")
    if record := tables.find("generate", results):
        rows = [(tables.LABELS.get(name, name), s, name.startswith("ours")) for name, s in tables.answering(record)]
        found["answers"] = charts.bars("Base and tuned answers, seconds", rows, "s")
    if record := tables.find("curves", results):
        found |= {name: charts.curve(name, sides) for name, sides in tables.curves(record).items()}
    for place, (machine, record) in enumerate(tables.find_all("loss", results).items()):
        shown = {name: runs[0]["heldout"] for name, runs in record["runs"].items() if not name.endswith("-sqrt")}
        if "official" in shown:
            shown.pop("plain", None)
        found[loss_picture(place, machine)] = charts.falling(shown)
    return found


def loss_picture(place: int, machine: str) -> str:
    """Return the name of the picture of a record of losses: the first record's is plain."""
    return f"loss_{machine}" if place else "loss"


def short(results: Path) -> Iterator[str]:
    """Yield the README's lines."""
    train, generate, startup = (tables.find(kind, results) for kind in ("train", "generate", "startup"))
    yield from (*tables.waiting(train, generate, startup), "")
    cards = dict.fromkeys(record["machine"]["gpus"][0] for record in (train, generate, startup) if record)
    yield f"Mistral-7B's shape in 4 bit, LoRA of rank 16, on {' and '.join(cards)}. What was compared with what,"
    yield "memory, losses, and where the speed comes from: [docs/speed.md](docs/speed.md)."


def introduction(record: dict[str, Any]) -> Iterator[str]:
    """Yield what was measured, and on what."""
    yield tables.described(record)
    yield "Mistral-7B's shape in 4 bit, LoRA of rank 16 on all linear layers. The same Alpaca rows for all, in the same"
    yield "batches or packed; whole epochs after warm-up, each configuration in a process of its own, medians."
    yield from notes(record)


def document(results: Path) -> Iterator[str]:
    """Yield the lines of docs/speed.md."""
    yield "# Speed"
    yield ""
    yield "Written by `scripts/build_figures` from the records in `benchmarks/results`, and not by hand."
    yield from ("", "## What was aimed at", "", *targets.table(results))
    if train := tables.find("train", results):
        yield from ("", "## Training", "", *introduction(train), "", *tables.training(train), "")
        yield "![Examples a second](speed_training.svg)"
    yield from parts(results)
    yield from packed_parts(results)
    if generate := tables.find("generate", results):
        yield from ("", "## Answers", "", tables.described(generate), *notes(generate), "")
        yield from (*tables.answers(generate), "", "![Seconds for both arms](speed_answers.svg)")
        if lasting := list(tables.lasting(generate)):
            yield from ("", *lasting)
    yield from growth(results)
    if startup := tables.find("startup", results):
        yield from ("", "## Start", "", tables.described(startup), *notes(startup), "", *tables.starting(startup))
    yield from several(results)
    yield from learned(results)
    yield from memory(results)
    yield from sameness(results)
    yield from ("", *HOW.strip().splitlines())


def notes(record: dict[str, Any]) -> list[str]:
    """Return a record's note as lines, if it has one."""
    return textwrap.wrap(record.get("note", ""), 110)


def growth(results: Path) -> Iterator[str]:
    """Yield how speed grows."""
    record = tables.find("curves", results)
    if not record:
        return
    yield from ("", "## How speed grows", "", tables.described(record), *notes(record))
    for name in tables.curves(record):
        yield from ("", f"### {TITLES[name]}", "", *tables.growing(record, name), "")
        yield f"![{TITLES[name]}](speed_{name}.svg)"


def parts(results: Path) -> Iterator[str]:
    """Yield where a step's time goes."""
    record = tables.find("profile", results)
    if not record:
        return
    yield from ("", "## Where a step goes", "", tables.described(record))
    yield "Ours, 8 examples a step (`python benchmarks/profile_step.py --functions`). The host's clock, part by part; a"
    yield "part ends when the host has launched its kernels."
    yield from ("", *tables.profile(record))
    if "kernels" in record:
        yield ""
        yield from textwrap.wrap(share_of_kernels(record), 110)


def packed_parts(results: Path) -> Iterator[str]:
    """Yield where the time of a packed step's kernels goes."""
    record = tables.find("packed_step", results)
    if not record:
        return
    whole = record["milliseconds"]["whole step"]["host"]
    yield from ("", "## Where a packed step goes", "", tables.described(record), *notes(record))
    yield from textwrap.wrap(
        f"Ours, {record['batch']} packed sequences of {LENGTH:,} tokens, no checkpointing (`python "
        "benchmarks/profile_step.py --packing --steps 12 --warmup 5 --functions`): what the card's kernels do.",
        110,
    )
    yield from ("", *tables.kinds(record), "")
    yield from textwrap.wrap(
        f"The step takes {whole:.0f} ms, so that the kernels fill {record['kernels'] / whole:.0%} of it. Products with "
        f"frozen weights run at {record['frozen_tera']:.0f} TFLOP/s.",
        110,
    )


def share_of_kernels(record: dict[str, Any]) -> str:
    """Say how much of a step the card works, and what that means."""
    whole, kernels = record["milliseconds"]["whole step"]["host"], record["kernels"]
    found = f"The card's kernels take {kernels:.0f} of the {whole:.0f} ms."
    if record["mode"].get("graphs"):
        return f"{found} The layers' kernels are launched as recorded CUDA graphs, one for each direction."
    rest = "The rest is the host, which launches them one by one:"
    return f"{found} {rest} fewer launches, not faster kernels, would make this step shorter."


def several(results: Path) -> Iterator[str]:
    """Yield the speed on several GPUs."""
    if record := tables.find("scale", results):
        yield from ("", "## Several GPUs", "", tables.described(record), *notes(record), "", *tables.scaling(record))


def learned(results: Path) -> Iterator[str]:
    """Yield held-out losses after equal examples."""
    for place, (machine, record) in enumerate(tables.find_all("loss", results).items()):
        if place == 0:
            yield from ("", "## Loss after equal examples")
        yield from ("", tables.described(record), *notes(record))
        yield "SmolLM2-135M, the same rows, answers alone; losses of 64 other rows."
        if any(runs[-1]["examples_per_step"] != 8 for runs in record["runs"].values()):
            yield "The learning rate grows with the examples a step; in sides whose name ends in -sqrt, with their"
            yield "square root. Warm-up takes as many examples everywhere."
        yield from ("", *tables.learning(record), "")
        if said := what_was_learned(record):
            yield from (*textwrap.wrap(said, 110), "")
        yield f"![Held-out loss](speed_{loss_picture(place, machine)}.svg)"


def what_was_learned(record: dict[str, Any]) -> str:
    """Say how far the sides lie apart."""
    sentences = []
    if (apart := tables.losses_apart(record)) is not None:
        sentences.append(f"The points of ours-8 and of the official side lie at most {apart:.1g} apart.")
    if larger := tables.packed_losses(record):
        said = ", ".join(f"{name} {abs(more):.3f} {'above' if more > 0 else 'below'} it" for name, more in larger)
        sentences.append(f"Beside the official side's last loss, with larger steps: {said}.")
    return " ".join(sentences)


def memory(results: Path) -> Iterator[str]:
    """Yield predicted and measured peaks."""
    for file in sorted(results.glob("memory_*.jsonl")):
        yield from (
            "",
            "## Memory",
            "",
            "Peaks measured by `scripts/measure_memory.py` beside what the planner predicts",
        )
        yield from ("(`python benchmarks/plan.py`). " + plan.measured_on(file) + ".", "")
        yield from plan.table(plan.compare(file))


def sameness(results: Path) -> Iterator[str]:
    """Yield what `scripts/gpu_equivalence` found."""
    record = tables.find("equivalence", results)
    if not record:
        return
    yield from ("", "## The same numbers", "", tables.described(record), *notes(record))
    plain = record["runs"].get("plain")
    if plain and "float32_cosines" in plain[-1]:
        own, other = (1 - cosine for cosine in plain[-1]["float32_cosines"])
        yield "Gradients are compared with those in float32, since bf16 rounds on either side: from there the packed"
        yield f"ones are {own:.4f} away (1 - cosine), those of transformers and PEFT, row by row, {other:.4f}."
        yield from textwrap.wrap(against_plain(plain[-1]), 110)
    yield from ("", "| checked by `scripts/gpu_equivalence` | found | wanted | holds |", "|---|---|---|---|")
    for name, verdict in record["verdicts"].items():
        yield f"| {name} | {shown(verdict['found'])} | {verdict['wanted']} | {holds(verdict)} |"


def against_plain(found: dict[str, Any]) -> str:
    """Say how packed and plain gradients lie to each other, and what a plain side that is rounded can reach at all."""
    ours, plain = found["float32_cosines"]
    cosine, aim = found["gradients_cosine"], 0.999
    said = f"Packed and plain ones, both in bf16, have a cosine of {cosine:.4f}; more than {aim} was aimed at and "
    if cosine > aim:
        return said + "reached."
    if plain > aim:
        return said + f"missed. Against float32 the plain side reaches {plain:.4f}, ours {ours:.4f}."
    reaches = f"rounding takes the plain side itself to {plain:.4f} against float32, ours to {ours:.4f}."
    return f"{said}missed: {reaches} So the distance from float32 decides, and this cosine is only shown."


def holds(verdict: dict[str, Any]) -> str:
    """Return whether something holds; what does not and decides nothing was missed."""
    return "yes" if verdict["ok"] else "NO" if verdict.get("decides", True) else "missed, decides nothing"


def shown(value: Any) -> str:
    """Return a finding as text, numbers with five digits."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value)
