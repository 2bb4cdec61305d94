"""Does the fast path compute the same thing? Each side in a process of its own, for `scripts/gpu_equivalence`.

Ours trains packed rows and writes down what it trained on: tokens, labels, adapter, losses, gradients. The plain side,
transformers and PEFT without Unsloth, computes the same from these, one document at a time.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from official import TARGETS, load_plain, tokens_and_labels
from program import HELDOUT, mode, ready_trainer, values_of
from stopwatch import fast_training

from helpers.model.patches.attention import enable_varlen
from helpers.model.patches.cuda_graphs import GraphedLayers, decoder_layers
from helpers.model.patches.fused_adapters import fused_adapters
from helpers.model.patches.optimizer_step import skip_last_products

STEPS, PLANNED = 20, 1000
"""Optimizer steps that are compared, and those of the training that they begin: graphs pay only in a long one."""

PASSES = 5
"""Of which the median is taken, where a pass is timed."""

TENSORS = ("adapter", "gradients")
"""What is kept in files of their own; all else is plain numbers."""

SPREAD = 0.02
"""Standard deviation of the adapter's B, which begins at zero and would hide the adapter."""


def ours(model: str, data: str, count: int, folder: Path) -> dict[str, Any]:
    """Build the packed trainer, look at a batch of it, train it, and write down what the plain side needs.

    Args:
        model: Its folder.
        data: File of rows.
        count: Rows that are trained.
        folder: For what is written down.
    """
    import torch

    cuda = torch.cuda.is_available()
    options = {"batch": 2, "packing": cuda, "length": 2048 if cuda else 512, "checkpointing": False}
    trainer = ready_trainer(values_of(model, data, count, options, PLANNED))
    randomize(trainer.model)
    start = adapter(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    with fused_adapters(trainer.model) if mode(trainer)["adapters"] == "fused" else nullcontext():
        loss, gradients = one_pass(trainer, batch)
    kept = {"adapter": start, "batch": documents(batch), "loss_sum": loss, "gradients": gradients}
    leaks = contamination(trainer.model, batch, trainer.processing_class.pad_token_id) if cuda else None
    found = {"mode": mode(trainer), "labels": labels(trainer, data, count), "contamination": leaks}
    kept["steps"] = train(trainer)
    store(folder, kept)
    return found


def recompute(model: str, data: str, count: int) -> dict[str, Any]:
    """Compare gradients with and without the last product of recomputed layers, and time both.

    Returns:
        Layers concerned, distances of gradients ("repeated" is that of two whole passes, which a card does not compute
        alike either), milliseconds of a pass.
    """
    import torch

    cuda = torch.cuda.is_available()
    options = {"batch": 4, "packing": cuda, "length": 2048 if cuda else 512, "checkpointing": True}
    trainer = ready_trainer(values_of(model, data, count, options, STEPS))
    randomize(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    one_pass(trainer, batch)  # kernels are compiled
    whole, again = (flat(one_pass(trainer, batch)[1]) for _ in range(2))
    times = {"whole": milliseconds(trainer, batch)}
    with skip_last_products(trainer.model) as layers:
        lean = flat(one_pass(trainer, batch)[1])
        times["lean"] = milliseconds(trainer, batch)
    apart = {"lean": distance(lean, whole), "repeated": distance(again, whole)}
    return {"layers": layers, "mode": mode(trainer), "gradients_apart": apart, "milliseconds": times}


def adapters(model: str, data: str, count: int) -> dict[str, Any]:
    """Compare passes with the adapter's products taken together with passes by Unsloth's own functions.

    Returns:
        For four packed sequences, and for eight rows of them that are also replayed as CUDA graphs: how far losses and
        gradients are from Unsloth's ("repeated" is its own second pass), and milliseconds of a pass.
    """
    import torch

    if not torch.cuda.is_available():
        return {"skipped": "no GPU"}
    options = {"batch": 4, "packing": True, "length": 2048, "checkpointing": False}
    trainer = ready_trainer(values_of(model, data, count, options, PLANNED))
    randomize(trainer.model)
    enable_varlen()
    batch = next(iter(trainer.get_train_dataloader()))
    sizes = batch["packed_seq_lengths"][:8]
    tokens = int(sizes.sum())
    rows = {name: each[:, :tokens] if getattr(each, "ndim", 0) == 2 else each for name, each in batch.items()}
    rows["packed_seq_lengths"] = sizes
    found = {"packed": with_and_without(trainer, batch, None)}
    graphs = GraphedLayers(decoder_layers(trainer.model), options["length"], largest=tokens)
    found["eight rows"] = with_and_without(trainer, rows, graphs)
    norm = flat({n: each for n, each in adapter(trainer.model).items() if "lora_B" in n}).norm().item()
    return {"mode": mode(trainer), **found, "graphs_found": graphs.describe(), "norm_of_b": norm}


def with_and_without(trainer: Any, batch: dict[str, Any], graphs: GraphedLayers | None) -> dict[str, Any]:
    """Compare passes over a batch, and time them."""
    one_pass(trainer, batch)  # kernels are compiled
    separate, repeated = one_pass(trainer, batch), one_pass(trainer, batch)
    times, passes = {"separate": milliseconds(trainer, batch)}, {"repeated": repeated}
    with fused_adapters(trainer.model):
        passes["fused"] = one_pass(trainer, batch)
        times["fused"] = milliseconds(trainer, batch)
        if graphs:
            with graphs.installed():
                for _ in range(4):  # two that are seen, one that is recorded, one that is replayed only
                    passes["recorded"] = one_pass(trainer, batch)
                times["recorded"] = milliseconds(trainer, batch)
    return {**{name: beside(each, separate) for name, each in passes.items()}, "milliseconds": times}


def beside(found: tuple[float, dict[str, Any]], wanted: tuple[float, dict[str, Any]]) -> dict[str, float]:
    """Return how far a pass's loss and gradients are from another's."""
    import torch

    one, other = flat(found[1]), flat(wanted[1])
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=0).item()
    return {"loss_relative": abs(found[0] - wanted[0]) / wanted[0], "cosine": cosine, "apart": distance(one, other)}


def milliseconds(trainer: Any, batch: dict[str, Any]) -> float:
    """Return the median time of a pass over a batch, forward and backward, the card idle before and after."""
    import torch

    wait, found = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None, []
    for _ in range(PASSES):
        wait()
        began = time.perf_counter()
        one_pass(trainer, batch)
        wait()
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


def distance(one: Any, other: Any) -> float:
    """Return how far apart two tensors are, as a share of the second's length."""
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


def store(folder: Path, kept: dict[str, Any]) -> None:
    """Write what the plain side needs: tensors as safetensors, all else as JSON."""
    from safetensors.torch import save_file

    for name in TENSORS:
        save_file(kept[name], folder / f"{name}.safetensors")
    rest = {name: value for name, value in kept.items() if name not in TENSORS}
    (folder / "ours.json").write_text(json.dumps(rest), encoding="utf-8")


def restore(folder: Path) -> dict[str, Any]:
    """Read what `store` wrote."""
    from safetensors.torch import load_file

    kept = json.loads((folder / "ours.json").read_text(encoding="utf-8"))
    return kept | {name: load_file(folder / f"{name}.safetensors") for name in TENSORS}


def plain(model: str, folder: Path) -> dict[str, Any]:
    """Compute the same with transformers and PEFT, one document at a time, and compare."""
    import torch

    kept = restore(folder)
    loaded = _plain_model(model, kept["adapter"])
    loss = sum(backward(loaded, *document, items=items(kept["batch"])) for document in kept["batch"])
    mine, theirs = flat(kept["gradients"]), flat(gradients_of(loaded))
    exact = flat(float32_gradients(loaded, kept["batch"]))
    found = {
        "loss_relative": abs(kept["loss_sum"] - loss) / loss,
        "loss_sum": [kept["loss_sum"], loss],
        "gradients_cosine": torch.nn.functional.cosine_similarity(mine, theirs, dim=0).item(),
        "float32_cosines": [torch.nn.functional.cosine_similarity(g, exact, dim=0).item() for g in (mine, theirs)],
        "gradients_norm": [mine.norm().item(), theirs.norm().item()],
    }
    return found | {"steps": list(replay(loaded, kept["adapter"], kept["steps"]))}


def float32_gradients(model: Any, batch: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Return the gradients of a batch computed in float32, from the same weights; the model is as before afterwards."""
    import torch

    model.zero_grad()
    kept = [(p, p.data) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    four_bit = [module for module in model.modules() if hasattr(module, "compute_dtype")]
    types = [module.compute_dtype for module in four_bit]
    try:
        for parameter, data in kept:
            parameter.data = data.float()
        for module in four_bit:
            module.compute_dtype = torch.float32
        for document in batch:
            backward(model, *document, items=items(batch), rounded=False)
        return gradients_of(model)
    finally:
        model.zero_grad()
        for parameter, data in kept:
            parameter.data = data
        for module, dtype in zip(four_bit, types, strict=True):
            module.compute_dtype = dtype


def randomize(model: Any) -> None:
    """Give the adapter's B random values."""
    import torch

    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=SPREAD)


def adapter(model: Any) -> dict[str, Any]:
    """Return the adapter's weights by name, on the CPU."""
    return {n: p.detach().float().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}


def gradients_of(model: Any) -> dict[str, Any]:
    """Return the adapter's gradients by name, on the CPU."""
    return {n: p.grad.detach().float().cpu().clone() for n, p in model.named_parameters() if p.grad is not None}


def flat(tensors: dict[str, Any]) -> Any:
    """Return all numbers as one vector, in the order of the names."""
    import torch

    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double()


def documents(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Return (tokens, labels) of each document of a batch, whichever way documents stand in it."""
    lengths = batch.get("packed_seq_lengths")
    if lengths is None and "attention_mask" not in batch:  # TRL's batches without padding
        places = batch["position_ids"].flatten()
        starts = (places == 0).nonzero().flatten()
        lengths = starts.diff(append=starts.new_tensor([len(places)]))
    if lengths is None:
        sizes = [int(mask.sum()) for mask in batch["attention_mask"]]
        pairs = zip(batch["input_ids"], batch["labels"], sizes, strict=True)
        return [(ids[:size].tolist(), marks[:size].tolist()) for ids, marks, size in pairs]
    ids, marks, found, at = batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist(), [], 0
    for size in lengths.tolist():
        found.append((ids[at : at + size], marks[at : at + size]))
        at += size
    return found


def items(batch: list[tuple[list[int], list[int]]]) -> int:
    """Return the labels of documents that a loss is taken over; the first of each has nothing before it."""
    return sum(label != -100 for _, marks in batch for label in marks[1:])


def one_pass(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the sum of a batch's losses, and the gradients of its mean, through the trainer's own step."""
    import torch

    count = items(documents(batch))
    device = trainer.args.device
    trainer.model.train()
    loss = trainer.training_step(trainer.model, dict(batch), torch.tensor(count, device=device))
    found = gradients_of(trainer.model)
    trainer.model.zero_grad()
    return loss.item() * count, found


def contamination(model: Any, batch: dict[str, Any], filler: int) -> dict[str, float]:
    """Change the first document's tokens; return how far the logits of the first and of the others move."""
    import torch

    first = int(batch["packed_seq_lengths"][0])
    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"
    moved = dict(batch)
    moved["input_ids"] = batch["input_ids"].clone()
    moved["input_ids"].view(-1)[1:first] = filler
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        pair = [
            model(**{k: v for k, v in each.items() if k != "labels"}).logits.flatten(0, 1) for each in (batch, moved)
        ]
    os.environ.pop("UNSLOTH_RETURN_LOGITS")
    change = (pair[0].float() - pair[1].float()).abs().amax(dim=-1)
    return {"first_document": change[:first].max().item(), "others": change[first:].max().item()}


def labels(trainer: Any, data: str, count: int) -> dict[str, int]:
    """Count the labels that the trainer's rows have, and those of each row of the file by itself.

    The trainer's rows are all but `HELDOUT` of the file's first ones, which are found by their answers.
    """
    tokenizer = trainer.processing_class
    rows = json.loads(Path(data).read_text(encoding="utf-8"))[: count + HELDOUT]
    by_row = tokens_and_labels(rows, tokenizer)
    counts = [sum(label != -100 for label in marks) for _, marks in by_row]
    alone = {row["output"].strip(): number for row, number in zip(rows, counts, strict=True)}
    packed, found = [], []
    for row in trainer.train_dataset:
        marks = row.get("labels") or [
            i if m else -100 for i, m in zip(row["input_ids"], row["completion_mask"], strict=True)
        ]
        packed += [label for label in marks if label != -100]
        sizes = row.get("seq_lengths") or [len(row["input_ids"])]
        ends = list(itertools.accumulate(sizes))
        found += [row["input_ids"][end - size : end] for size, end in zip(sizes, ends, strict=True)]
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    return {
        "packed": len(packed),
        "rows": sum(alone[text.partition("### Response:\n")[2].strip()] for text in texts),
        "packed_ends": packed.count(tokenizer.eos_token_id),
        "row_count": len(found),
    }


def train(trainer: Any) -> list[dict[str, Any]]:
    """Train `STEPS` steps, and return each one's documents, loss, gradient norm and learning rate."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == STEPS

    seen: list[list[tuple[list[int], list[int]]]] = []
    original = trainer.training_step

    def watched(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        seen.append(documents(inputs))
        return original(model, inputs, *rest, **named)

    trainer.training_step = watched
    trainer.add_callback(Stop())
    with fast_training(trainer):
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [
        {"documents": batch, **{name: float(entry[name]) for name in ("loss", "grad_norm", "learning_rate")}}
        for batch, entry in zip(seen, logs, strict=True)
    ]


def _plain_model(model: str, start: dict[str, Any]) -> Any:
    """Load the model without Unsloth, and put the adapter's weights into it."""
    from peft import LoraConfig, get_peft_model

    loaded, _ = load_plain(model)
    wanted = LoraConfig(r=16, lora_alpha=16, lora_dropout=0, bias="none", target_modules=TARGETS)
    found = get_peft_model(loaded, wanted)
    put(found, start)
    return found.train()


def put(model: Any, weights: dict[str, Any]) -> None:
    """Give the adapter its weights; each must be there."""
    import torch

    own = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if own.keys() != weights.keys():
        raise SystemExit(f"other adapters: {sorted(own)[:2]} and {sorted(weights)[:2]}")
    with torch.no_grad():
        for name, weight in own.items():
            weight.data = weights[name].to(weight.device)


def backward(model: Any, ids: list[int], marks: list[int], *, items: int, rounded: bool = True) -> float:
    """Add one document's share to the gradients, on a GPU rounded to bf16 on the way; return the sum of its losses."""
    import torch

    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=rounded and device.type == "cuda"):
        logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(marks[1:], device=device), reduction="sum")
    (loss / items).backward()
    return loss.item()


def replay(model: Any, start: dict[str, Any], steps: list[dict[str, Any]]) -> Iterator[dict[str, list[float]]]:
    """Take the same optimizer steps, one document at a time; yield both sides' losses and gradient norms."""
    import torch

    put(model, start)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.001)
    for step in steps:
        optimizer.zero_grad()
        count = items(step["documents"])
        loss = sum(backward(model, *document, items=count) for document in step["documents"]) / count
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        optimizer.param_groups[0]["lr"] = step["learning_rate"]
        optimizer.step()
        yield {"loss": [step["loss"], loss], "grad_norm": [step["grad_norm"], norm]}
