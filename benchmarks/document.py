"""docs/speed.md, its pictures and the README's tables, written from the records in benchmarks/results alone."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plan
import tables
from bench import RESULTS, ROOT
from official import LENGTH

from helpers.display.style import BASE, BETTER, WORSE, new_figure

BEGIN, END = "<!-- speed: written by scripts/build_figures -->", "<!-- end of speed -->"
"""Between these lines the README's tables stand."""

HOW = """
## Where the speed comes from

- **Attention.** On torch 2.11, Colab's version, Unsloth launches one attention call for each row, layer and pass.
  `helpers/model/patches/attention.py` computes all rows in one launch, with a kernel that torch 2.11 already carries:
  flash attention from compute capability 8.0 on, below it (T4) the memory-efficient one.
- **CUDA graphs.** Where the host is slower than the card, a layer's kernels are recorded once and replayed
  (`helpers/model/patches/cuda_graphs.py`). Each recording is compared with the plain pass before it is used.
- **Adapter products.** Those that read the same activations are taken together, and x A is kept from the forward pass
  (`helpers/model/patches/fused_adapters.py`).
- **Unpacked weights.** Where passes are recorded, and 16-bit copies need at most half of the memory left free, frozen
  4-bit weights are unpacked once and kept (`helpers/model/patches/unpacked.py`): 13 GiB for a 7B model. What is
  multiplied is the same, bit for bit. On an H200 `train.py --only ours-8` gave 66.6 and 65.9 examples/s with it, 61.0
  without. The peak of reserved memory rose by 21 GiB there, by 7 and 16 in whole runs of 944 and 4,000 rows.
- **Recomputation.** A layer that is recomputed skips its final, unused product
  (`helpers/model/patches/optimizer_step.py`).
- **Answers.** Generation copies the weights to 16 bit once and replays a CUDA graph for each token
  (`helpers/model/decoding`).
- **A CPU.** Training batches have no padding (`helpers/model/patches/padding.py`), and answers come from weights that
  oneDNN has packed. What remains is mostly products in fp32.
- **The start.** Rows that are not used are not prepared, and only Unsloth's SFT trainer is built
  (`helpers/model/patches/imports.py`). If you need the others, import unsloth before anything of this project.
"""
"""The last section of docs/speed.md."""


def build(root: Path = ROOT, results: Path = RESULTS) -> dict[Path, str]:
    """Return what each file must hold, by its path.

    Args:
        root: Of the repository.
        results: The folder of records.

    Returns:
        docs/speed.md, docs/speed_*.svg and README.md.
    """
    found = {root / "docs" / f"speed_{name}.svg": picture for name, picture in pictures(results).items()}
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


def pictures(results: Path) -> dict[str, str]:
    """Return the drawings, as SVG, by name."""
    found = {}
    if record := tables.find("train", results):
        frame = tables.speeds(record)
        named = tables.labels(frame)
        found["training"] = bars("Training, examples a second", {named[n]: frame["examples"][n] for n in frame.index})
    if record := tables.find("generate", results):
        seconds = {tables.LABELS.get(name, name): value for name, value in tables.answering(record).items()}
        found["answers"] = bars("Base and tuned answers, seconds", seconds)
    for place, (machine, record) in enumerate(tables.find_all("loss", results).items()):
        shown = {name: runs[0]["heldout"] for name, runs in record["runs"].items() if not name.endswith("-sqrt")}
        if "official" in shown:
            shown.pop("plain", None)
        found[loss_picture(place, machine)] = falling(shown)
    return found


def loss_picture(place: int, machine: str) -> str:
    """Return the name of the picture of a record of losses: the first record's is plain."""
    return f"loss_{machine}" if place else "loss"


def bars(title: str, values: Mapping[str, float]) -> str:
    """Draw a bar for each value, its label above it; ours in blue."""
    figure, axes = new_figure(0.6 + 0.55 * len(values), width=7, grid="")
    for place, (label, value) in enumerate(values.items()):
        axes.barh(-place, value, height=0.4, color=BETTER if label.startswith("ours") else BASE)
        axes.text(0, 0.3 - place, label, fontsize=9)
        axes.text(value, -place, f" {value:.1f}", va="center", fontsize=9)
    axes.set(title=title, xlim=(0, 1.12 * max(values.values())), ylim=(-len(values) + 0.6, 0.8))
    axes.set_axis_off()
    said = ", ".join(f"{label}: {value:.1f}" for label, value in values.items())
    return svg(figure, title, f"{said}.")


def falling(sides: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw held-out losses by examples seen.

    Args:
        sides: (examples, loss) of the points of each side.
    """
    figure, axes = new_figure(3.6, width=7, grid="y")
    colours = (BETTER, WORSE, "#009E73", "#CC79A7", BASE)
    for number, (side, points) in enumerate(sides.items()):
        wider = 1.5 + 1.5 * (len(sides) - 1 - number)  # so that a side on which another lies can be seen
        axes.plot(*zip(*points, strict=True), color=colours[number % 5], linewidth=wider, label=side)
    axes.set(title="Held-out loss by examples seen", xlabel="examples")
    axes.legend(frameon=False)
    said = "; ".join(f"{side}: {points[0][1]:.3f} to {points[-1][1]:.3f}" for side, points in sides.items())
    return svg(figure, "Held-out loss by examples seen", f"{said}.")


def svg(figure: Any, title: str, said: str) -> str:
    """Return a figure as SVG on white, its letters as text, the same each time; what it says is in its description."""
    import matplotlib

    stream = io.StringIO()
    about = {"Title": title, "Description": said, "Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed"}):
        figure.savefig(stream, format="svg", facecolor="white", metadata=about)
    return stream.getvalue()


def short(results: Path) -> Iterator[str]:
    """Yield the README's lines."""
    found = {kind: tables.find(kind, results) for kind in ("startup", "generate")}
    found["train"] = tables.joined_runs(tables.find_all("train", results).values())
    wholes = tables.find_all("whole", results).items()
    found["whole"] = tables.joined_runs(each for machine, each in wholes if not machine.startswith("t4like"))
    records = {kind: record for kind, record in found.items() if record}
    yield from (tables.waiting(records), "")
    cards = sorted({gpu for each in records.values() for gpu in each["machine"].get("gpus", [])[:1]})
    yield f"Mistral-7B's shape in 4 bit, LoRA of rank 16, on {' and '.join(cards)}; an empty cell was not measured."
    yield (
        "What Unsloth's notebook takes from the start is reckoned from its first steps; packed, it takes a ninth of "
        "them. On a T4,"
    )
    yield (
        "which nobody has timed yet, there is no flash attention, and CUDA graphs and joint adapter products, untried "
        "there, stay off."
    )
    yield "What was compared with what, losses, memory: [docs/speed.md](docs/speed.md)."


def waited() -> Iterator[str]:
    """Yield what is waited for."""
    yield "What a user waits for: from the start of the process until the adapter is on disk, each side seeing that"
    yield "many Alpaca rows once. Packed, Unsloth's notebook takes steps of about 72 examples, and so a ninth of the"
    yield "steps: it is shown for speed, and learns less from the same rows."


def extrapolated(record: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of runs that were cut short."""
    found = {run["steps"] for (*_, run) in record["runs"].values() if "extrapolated" in run}
    return ["", f"\\* {max(found)} steps were measured, and the rest reckoned from their speed."] if found else []


def introduction(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was measured, and on what."""
    yield tables.described(record)
    yield "Mistral-7B's shape in 4 bit, LoRA of rank 16 on all linear layers. The same Alpaca rows for all, in batches"
    yield "of 8 or packed; whole epochs after warm-up, each configuration in a process of its own, medians."
    yield from notes(record)


def document(results: Path) -> Iterator[str]:
    """Yield the lines of docs/speed.md."""
    yield "# Speed"
    yield ""
    yield "Written by `scripts/build_figures` from the records in `benchmarks/results`, and not by hand."
    for at, whole in enumerate(tables.find_all("whole", results).values()):
        yield from () if at else ("", "## Until the adapter is there", "", *waited())
        yield from ("", tables.described(whole), *notes(whole), "", tables.until_saved(whole), *extrapolated(whole))
    for at, train in enumerate(tables.find_all("train", results).values()):
        first = ("", "## Training", "", *introduction(train))
        yield from ("", tables.described(train), *notes(train)) if at else first
        yield from ("", tables.training(train))
        yield from () if at else ("", "![Examples a second](speed_training.svg)")
    yield from packed_parts(results)
    if generate := tables.find("generate", results):
        yield from ("", "## Answers", "", tables.described(generate), *notes(generate), "")
        yield from (tables.answers(generate), "", "![Seconds for both arms](speed_answers.svg)")
        if lasting := tables.lasting(generate):
            yield from ("", lasting)
    if startup := tables.find("startup", results):
        yield from ("", "## Start", "", tables.described(startup), *notes(startup), "", tables.starting(startup))
    if record := tables.find("rows", results):
        yield from ("", "Seconds to the first step by rows (`benchmarks/whole.py --until first-step`).", "")
        yield from (tables.described(record), *notes(record), "", tables.by_rows(record))
    if record := tables.find("scale", results):
        yield from ("", "## Several GPUs", "", tables.described(record), *notes(record), "", tables.scaling(record))
    yield from learned(results)
    yield from memory(results)
    yield from beyond(results)
    yield from sameness(results)
    yield from ("", *HOW.strip().splitlines())


def wrapped(text: str) -> list[str]:
    """Return a text as lines; words with hyphens, such as addresses, stay whole."""
    return textwrap.wrap(text, 110, break_on_hyphens=False, break_long_words=False)


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return a record's note as lines, if it has one."""
    return wrapped(record.get("note", ""))


def packed_parts(results: Path) -> Iterator[str]:
    """Yield where the time of a packed step's kernels goes."""
    record = tables.find("packed_step", results)
    if not record:
        return
    yield from ("", "## Where a packed step goes", "", tables.described(record), *notes(record))
    yield from wrapped(
        f"Ours, {record['batch']} packed sequences of {LENGTH:,} tokens, no checkpointing (`python "
        "benchmarks/profile_step.py --packing --steps 12`): what the card's kernels do.",
    )
    yield from ("", tables.kinds(record), "")
    yield from wrapped(
        f"The step takes {record['step']:.0f} ms, so that the kernels fill {record['kernels'] / record['step']:.0%} of "
        f"it. Products with frozen weights run at {record['frozen_tera']:.0f} TFLOP/s.",
    )


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
        yield from ("", tables.learning(record), "")
        if said := what_was_learned(record):
            yield from (*wrapped(said), "")
        yield f"![Held-out loss](speed_{loss_picture(place, machine)}.svg)"


def what_was_learned(record: Mapping[str, Any]) -> str:
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
        yield from ("", "## Memory", "")
        yield "Peaks measured by `scripts/measure_memory.py` beside what the planner predicts"
        yield from ("(`python benchmarks/plan.py`). " + plan.measured_on(file) + ".", "")
        yield from plan.table(plan.compare(file))


def beyond(results: Path) -> Iterator[str]:
    """Yield what was tried beyond products in 16 bit, what of it was kept, and why the rest was not."""
    record = tables.find("experiment", results)
    if not record:
        return
    steps, gates, losses = record["steps"], record["gates"], record["heldout"]
    yield from ("", "## Beyond the 16-bit rate", "", tables.described(record))
    yield from wrapped(
        "Products with frozen weights run nearly as fast as other 16-bit products do on such a card. Two ways to go "
        "further were tried on "
        f"packed steps of {record['tokens']:,} tokens, Mistral-7B's shape with random weights. One takes adapter "
        "products that read the same activations together; the idea is that of "
        "[LoRAFusion](https://arxiv.org/abs/2510.00206), which has kernels of its own. The other computes the frozen "
        "products in fp8, forward and backward, as was reported "
        "for [torchtune](https://github.com/meta-pytorch/torchtune/issues/2833) and "
        "[Unsloth](https://github.com/unslothai/unsloth/pull/3440). The goals were set beforehand: a step "
        f"{gates['fused']} times as fast for the first and {gates['fp8']} times for the second, and a held-out loss, "
        f"after {losses['rows']} rows, no farther from the 16-bit one than another order of the rows is.",
    )
    yield from ("", tables.experiment(record), "")
    spread = max(losses["base"]) - min(losses["base"])
    more = [fp8 - base for fp8, base in zip(losses["fp8-row"], losses["base"], strict=True)]
    kept = record["fused_losses"]
    small_losses, eight = kept["smollm2"], kept["smollm2_eight_rows"]
    small = record["smollm2"]["fp8-row+all"] - record["smollm2"]["base"]
    yield from wrapped(
        "The cosine compares all gradients with those of the first line; in that line, with those of a second pass. "
        "Adapter products are taken together (`fused_adapters`); a later command, `benchmarks/train.py --only "
        "ours-packed-large,ours-packed-large-separate` on another H200, gave "
        f"{record['again']['fused']:.0f} instead of {record['again']['base']:.0f} ms, a gain of "
        f"{record['again']['base'] / record['again']['fused']:.2f}. Adding them in the gate's kernels brought nothing "
        f"more. The held-out loss of the 7B shape after {kept['rows']} rows is {kept['fused']:.4f} with products taken "
        f"together, and {listed(kept['base'], ' and ')} in two runs without. SmolLM2 in NF4 after "
        f"{kept['smollm2_rows']} rows, in three orders of them: {listed(small_losses['fused'])} together and "
        f"{listed(small_losses['base'])} one by one, where the orders alone differ by "
        f"{max(small_losses['base']) - min(small_losses['base']):.4f}; in rows of eight {eight['fused']:.4f} and "
        f"{eight['base']:.4f}. Fp8 is "
        "not used. After training with it, a scale a row, the held-out loss in 16 bit was "
        f"{listed(more)} higher in three orders of the rows; the orders alone differ by "
        f"{spread:.4f}. So {sum(each > spread for each in more)} of 3 missed the goal, all in one direction, and fp8 "
        f"weights take {steps['fp8-row']['peak_gib'] - steps['base']['peak_gib']:.0f} GiB more. SmolLM2, whose weights "
        f"are trained, had a loss {small:.4f} higher in the one order that was measured, which decides nothing.",
    )


def listed(losses: Sequence[float], link: str = ", ") -> str:
    """Return losses to four places, one after the other."""
    return link.join(f"{each:.4f}" for each in losses)


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
        yield from wrapped(against_plain(plain[-1]))
    yield from ("", tables.verdicts(record))


def against_plain(found: Mapping[str, Any]) -> str:
    """Say how packed and plain gradients lie to each other, and what a plain side that is rounded can reach at all."""
    ours, plain = found["float32_cosines"]
    cosine, aim = found["gradients_cosine"], 0.999
    said = f"Packed and plain ones, both in bf16, have a cosine of {cosine:.4f}; the goal of more than {aim} was "
    if cosine > aim:
        return said + "reached."
    if plain > aim:
        return said + f"missed. Against float32 the plain side reaches {plain:.4f}, ours {ours:.4f}."
    reaches = f"rounding takes the plain side itself to {plain:.4f} against float32, ours to {ours:.4f}."
    return f"{said}missed: {reaches} So the distance from float32 decides, and this cosine is only shown."
