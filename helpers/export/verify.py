"""Exports, reloaded as a stranger would: a fresh process, plain transformers and PEFT, no Unsloth."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.core.errors import ExportError
from helpers.core.files import disk_error, require_space, write_bytes
from helpers.core.text import format_bytes
from helpers.export.folders import RECORD, open_weights, record_export, tensor_files, weight_bytes
from helpers.export.gain import GainKept, HeldOut, share_of_gain_kept
from helpers.export.loadable import find_faults
from helpers.export.reference import Reference
from helpers.export.tensors import BaseTensor, base_tensors, refuse_unmergeable
from helpers.export.verdict import Verification, judge_answers, judge_base, judge_distance, judge_tokenizer
from helpers.model.distance import Check, measure_distance
from helpers.model.load import free_memory
from helpers.model.scoring import RowScore

TIMEOUT_SECONDS = 3600

TOLERANCE_STEPS = 1.01
"""A weight may be one step of its type away from where it should be: sums may be rounded in another order."""


def verify_adapter(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    *,
    reference: Reference,
    base: str | None = None,
    heldout: HeldOut | None = None,
    base_16bit: str | None = None,
) -> Verification:
    """Reload base and adapter in a fresh process and compare them with the model in memory.

    Precision is measured: on the base, the same weights without adapter in memory and in the fresh process; and on the
    model in memory, by moving its embedded tokens by single steps.

    Args:
        folder: What `save_adapter` wrote.
        base: Folder or hub id of the base model; by default the one that PEFT knows.
        heldout: Held-out rows with their losses, to say how much of the gain the export keeps.
        base_16bit: Hub id of the base in 16 bit, to say the same of the adapter on that one; it is downloaded.

    Returns:
        The verdict. It is also written into `export.json` if the folder has one.

    Raises:
        ExportError: The folder holds no adapter, or it cannot be loaded.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ExportError("adapter", f"a folder with {name}", str(folder), "Save the adapter first.")
    base = base or model.active_peft_config.base_model_name_or_path
    result, logits = _ask_stranger("adapter", folder, model, reference, base, heldout)
    bare = measure_distance(reference.base, logits["base"])
    found = judge_base(bare, reference)
    noise = reference.noise.rms, reference.noise.largest
    if found.passed:  # another base says nothing of precision
        noise = max(bare.rms, noise[0]), max(bare.largest, noise[1])
    stored = _compare_adapter(model, folder)
    numbers = {"base_to_base_rms": bare.rms, "reference_noise_rms": reference.noise.rms, **_kept(result, heldout)}
    if heldout and base_16bit and base_16bit != base:
        numbers["gain_kept_16bit"] = _kept_on_16bit(model, folder, heldout, base_16bit, reference.precision)
    return _judge(tokenizer, reference, result, logits["export"], noise, (stored, found), folder, **numbers)


def verify_merged(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    *,
    reference: Reference,
    heldout: HeldOut | None = None,
) -> Verification:
    """Reload the merged model in a fresh process and compare it with the model in memory; also weight by weight.

    Precision is measured too: on the model in memory by moving its embedded tokens by single steps, on the merged one
    by moving its weights by single steps as often as rounding does.

    Returns:
        The verdict. It is also written into `export.json` if the folder has one.

    Raises:
        ExportError: The folder holds no model, or it cannot be loaded.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ExportError("merged", "a folder with config.json", str(folder), "Merge first.")
    stored, numbers, lost = _compare_weights(model, folder)
    result, logits = _ask_stranger("merged", folder, model, reference, heldout=heldout)
    known = reference.noise  # independent of what rounding the weights does
    noise = math.hypot(known.rms, result["noise_rms"]), known.largest + result["noise_largest"]
    numbers |= _kept(result, heldout)
    return _judge(tokenizer, reference, result, logits["export"], noise, (stored,), folder, lost, **numbers)


def measure_gain(
    folder: Path | str,
    heldout: HeldOut,
    *,
    base: str | None = None,
    merged: Path | str | None = None,
    precision: str = "fp16",
) -> GainKept:
    """Score held-out rows with an export in a fresh process: how much of the gain does it keep?

    A GGUF file's weights are unpacked and run by transformers: what its quantization alone does, without the
    rounding of activations that llama.cpp adds.

    Args:
        folder: An adapter, or a folder with a GGUF file.
        base: Folder or hub id that an adapter is put on.
        merged: The model that a GGUF file was made from.

    Raises:
        ExportError: The export cannot be loaded.
        RunError: The disk cannot hold a GGUF file unpacked.
    """
    folder, place = Path(folder), None
    request = {
        "kind": "adapter" if merged is None else "gguf",
        "folder": str(folder.absolute()),
        "base": base,
        "revision": None,
        "precision": precision,
        "prompts": [],
        "heldout": heldout.request(),
    }
    if merged is not None:
        require_space(folder, weight_bytes(Path(merged)), "the GGUF file's weights, unpacked")
        request["merged"], place = str(Path(merged).absolute()), folder.parent
    return _gain(_ask(request, place)[0], heldout)


def _gain(result: dict[str, Any], heldout: HeldOut) -> GainKept:
    """Return how much of the held-out gain an export keeps, from a fresh process's answer."""
    return share_of_gain_kept(
        heldout.base, heldout.tuned, [RowScore(**score) for score in result["heldout"]], heldout.sources
    )


def _kept(result: dict[str, Any], heldout: HeldOut | None) -> dict[str, Any]:
    """Return how much of the held-out gain the export keeps, if it was asked."""
    return {"gain_kept": _gain(result, heldout).as_dict()} if heldout else {}


def _kept_on_16bit(model: Any, folder: Path, heldout: HeldOut, base: str, precision: str) -> dict[str, Any]:
    """Return how much of the gain the adapter keeps on the base in 16 bit, or why that was not measured."""
    import torch

    needed = int(2.2 * sum(tensor.numel() for tensor in base_tensors(model)))
    free_memory()
    free = torch.cuda.mem_get_info(0)[0] if torch.cuda.is_available() else needed
    if free < needed:
        why = f"not measured, {format_bytes(needed)} of the card's memory are needed and {format_bytes(free)} are free."
        return {"text": f"On {base}: {why}"}
    kept = measure_gain(folder, heldout, base=base, precision=precision).as_dict()
    return {**kept, "text": f"On {base}: {kept['text']}"}


def _judge(
    tokenizer: Any,
    reference: Reference,
    result: dict[str, Any],
    logits: list[Any],
    noise: tuple[float, float],
    own: tuple[Check, ...],
    folder: Path,
    lost: float = 0.0,
    **numbers: Any,
) -> Verification:
    """Put all checks together, `own` of this kind of export, and keep the verdict beside it."""
    tuned, base = measure_distance(reference.tuned, logits), measure_distance(reference.tuned, reference.base)
    export_base = measure_distance(reference.base, logits)
    checks, thresholds = judge_distance(tuned, base, export_base, noise, lost)
    answers, counts = judge_answers(reference, result["answers"], noise[1])
    fresh = Check("fresh process", not result["unsloth_loaded"], f"Loaded without Unsloth: {result['loaded']}.")
    numbers = {
        **{f"tuned_to_export_{name}": value for name, value in asdict(tuned).items()},
        **{f"tuned_to_base_{name}": value for name, value in asdict(base).items()},
        "base_to_export_rms": export_base.rms,
        "noise_rms": noise[0],
        "noise_largest": noise[1],
        "ratio": tuned.rms / max(base.rms, 1e-12),
        **counts,
        **numbers,
        **{k: result[k] for k in ("loaded", "seconds", "peak_memory_bytes", "peak_card_bytes")},
    }
    kind = "adapter" if (folder / "adapter_config.json").is_file() else "merged"
    rendered = judge_tokenizer(reference, result, tokenizer.eos_token_id)
    faults = find_faults(folder)
    said = "; ".join(faults[:3]) if faults else "They hold what transformers 4.46 and PEFT 0.14 and newer read"
    files = Check("files for other readers", not faults, f"{said}.")
    verification = Verification(kind, (fresh, rendered, files, *own, *checks, answers), numbers, thresholds)
    if (folder / RECORD).is_file():
        record_export(folder, verification=verification.as_dict())
    return verification


def _ask_stranger(
    kind: str,
    folder: Path,
    model: Any,
    reference: Reference,
    base: str | None = None,
    heldout: HeldOut | None = None,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Let a fresh process load an export and compute what the reference holds."""
    config = model.get_base_model().config
    request = {
        "kind": kind,
        "folder": str(folder.absolute()),
        "base": base,
        "precision": reference.precision,
        "revision": None if base is None or Path(base).is_dir() else getattr(config, "_commit_hash", None),
        "prompts": reference.prompts,
        "prompt_ids": reference.prompt_ids,
        "sequences": reference.sequences,
        "max_new_tokens": reference.max_new_tokens,
        "heldout": heldout.request() if heldout else [],
    }
    result, tensors = _ask(request)
    names = {key.split(".")[0] for key in tensors}
    return result, {n: [tensors[f"{n}.{i}"] for i in range(len(reference.prompts))] for n in names}


def _ask(request: dict[str, Any], place: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the worker and read what it found: facts and logits.

    Args:
        request: As `helpers.export.worker.answer_request` takes it.
        place: Where its temporary files go, if they may be large.
    """
    from safetensors.torch import load_file

    free_memory()
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=place) as temporary:
        output = Path(temporary)
        write_bytes(output / "request.json", json.dumps(request).encode())
        _run_worker(output / "request.json", output)
        result = json.loads((output / "result.json").read_text(encoding="utf-8"))
        logits = output / "logits.safetensors"
        return result, load_file(logits) if logits.is_file() else {}


def _run_worker(request: Path, output: Path) -> None:
    """Start a fresh interpreter on the worker and wait for it."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-m", "helpers.export.worker", str(request), str(output)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ExportError(
            "verification",
            f"an answer within {TIMEOUT_SECONDS} seconds",
            "none",
            "The machine is too slow or stuck: look at its load and memory, then verify again.",
        ) from None
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [f"exit status {done.returncode}"]
        if full := disk_error("the logits of the verification", output, last[0]):
            raise full
        raise ExportError(
            "verification",
            "an export that plain transformers and PEFT can load",
            last[0],
            "A negative exit status, or 137, means that memory ran out.",
        )


def _compare_adapter(model: Any, folder: Path) -> Check:
    """Compare the adapter's file with the adapter in memory, number by number."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    found, wanted = load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(model)
    wrong = sorted(
        name
        for name in {*found, *wanted}
        if name not in found or name not in wanted or not torch.equal(found[name], wanted[name].detach().cpu())
    )
    detail = (
        f"{len(wrong)} tensors differ from memory: {', '.join(wrong[:3])}."
        if wrong
        else f"{len(found)} tensors are those in memory."
    )
    return Check("weights in the files", not wrong, detail)


@dataclass(frozen=True)
class _Compared:
    """One tensor's comparison: steps away, <found - base, delta>, the same as expected, <delta, delta>."""

    name: str
    steps: float
    found: float
    expected: float
    whole: float


def _compare_weights(model: Any, folder: Path) -> tuple[Check, dict[str, Any], float]:
    """Compare each tensor of a merged model with base + adapter as they are in memory.

    The scale is taken from the adapter's configuration (`alpha / r`), not from the layer that the merge reads.

    Returns:
        The check; its numbers; and the share of the adapter's change that rounding drops in a correct merge.
    """
    adapter = refuse_unmergeable(model)
    config = model.peft_config[adapter]
    root = math.sqrt(config.r) if getattr(config, "use_rslora", False) else config.r
    uniform = not (config.rank_pattern or config.alpha_pattern)
    tensors = {t.name: t for t in base_tensors(model)}
    index = tensor_files(folder)
    faults = [f"{name} is missing" for name in tensors if name not in index]
    faults += [f"{name} should not be there" for name in index if name not in tensors]
    compared = [
        _compare(tensors[name], found, adapter, config.lora_alpha / root if uniform else None)
        for name, found in _stored(folder, index)
        if name in tensors
    ]
    faults += [_explain(c) for c in sorted(compared, key=lambda c: -c.steps) if c.steps > TOLERANCE_STEPS]
    whole = sum(c.whole for c in compared) or 1.0
    kept, expected = sum(c.found for c in compared) / whole, sum(c.expected for c in compared) / whole
    detail = (
        f"{len(faults)} tensors are wrong: {'; '.join(faults[:3])}."
        if faults
        else f"{len(compared)} tensors are base plus adapter to the last step of their type; rounding kept {kept:.0%} "
        "of the adapter's change."
    )
    numbers = {
        "weights_worst_steps": max((c.steps for c in compared), default=math.inf),
        "weights_kept": kept,
        "weights_wrong": len(faults),
    }
    return Check("weights in the files", not faults, detail), numbers, 1.0 - expected


def _stored(folder: Path, index: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the file's tensors, one at a time."""
    for file_name in sorted(set(index.values())):
        with open_weights(folder / file_name) as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def _compare(tensor: BaseTensor, stored: Any, adapter: str, scale: float | None) -> _Compared:
    """Compare one tensor."""
    if tuple(stored.shape) != tensor.shape:
        return _Compared(tensor.name, math.inf, 0.0, 0.0, 0.0)
    weight = tensor.weight()
    found, delta = stored.to(weight.device).float(), None
    if tensor.layer is not None:
        factor = 1.0 if scale is None else scale / tensor.layer.scaling[adapter]
        delta = tensor.delta(adapter) * factor
    expected = (weight if delta is None else weight + delta).to(stored.dtype)
    steps = ((found - expected.float()).abs() / _step(expected)).max().item()
    if delta is None:
        return _Compared(tensor.name, steps, 0.0, 0.0, 0.0)
    along = lambda values: ((values - weight) * delta).sum().item()  # noqa: E731
    return _Compared(tensor.name, steps, along(found), along(expected.float()), delta.square().sum().item())


def _step(values: Any) -> Any:
    """Return the distance from each number to the next one of its type, in float32."""
    import torch

    limits, plain = torch.finfo(values.dtype), values.float()
    exponent = torch.frexp(plain.abs().clamp_min(limits.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(plain, limits.eps), exponent - 1)


def _explain(compared: _Compared) -> str:
    """Say what is wrong with a tensor."""
    if math.isinf(compared.steps):
        return f"{compared.name} has another shape"
    if compared.expected == 0:
        return f"{compared.name} is not the base model's ({compared.steps:.0f} steps off)"
    times = compared.found / compared.expected
    return f"{compared.name} has {times:.2f} times the adapter's change ({compared.steps:.0f} steps off)"
