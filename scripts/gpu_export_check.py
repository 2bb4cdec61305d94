#!/usr/bin/env python3
"""Save, merge and verify an adapter on a real card, without training: one line of JSON with disk, time and memory.

    scripts/gpu_export_check.py MODEL [--out FOLDER] [--std 0.002] [--dtype fp16] [--plain] [--gguf q8_0]

MODEL is a folder or hub id, such as an NF4 Mistral-7B. It is loaded through Unsloth as the notebooks do (`--plain`:
through transformers), gets a LoRA adapter whose B matrices are random, and is exported; adapter and merged model are
each verified in a fresh process. The exit status is 0 if both pass.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.data.chat_templates import install_template
from helpers.model.load import TARGET_MODULES, import_unsloth
from helpers.runtime.hardware import choose_precision, find_gpu, torch_dtype


def main() -> int:
    """Run all steps and print what they took."""
    options = _arguments()
    out = Path(options.out or tempfile.mkdtemp(prefix="export-check-"))
    report: dict[str, Any] = {"model": Path(options.model).name, "std": options.std, "dtype": options.dtype}
    with _measured(report, "load"):
        model, tokenizer = _load(options)
    try:
        verdicts = _export(model, tokenizer, out, options, report)
    finally:
        if not options.out:
            shutil.rmtree(out, ignore_errors=True)
    print("\n".join(verdict.lines() for verdict in verdicts), file=sys.stderr)
    print(json.dumps(report))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _export(model: Any, tokenizer: Any, out: Path, options: argparse.Namespace, report: dict[str, Any]) -> list[Any]:
    """Save, merge, verify; returns both verdicts."""
    from helpers.export import (
        export_gguf,
        measure_reference,
        merge_16bit,
        save_adapter,
        verify_adapter,
        verify_merged,
    )

    with _measured(report, "reference"):
        reference = measure_reference(model, tokenizer)
    with _measured(report, "save_adapter"):
        save_adapter(model, tokenizer, out / "adapter")
    with _measured(report, "verify_adapter"):
        adapter = verify_adapter(model, tokenizer, out / "adapter", reference=reference)
    with _measured(report, "merge"):
        result = merge_16bit(model, tokenizer, out / "merged", dtype=options.dtype)
    with _measured(report, "verify_merged"):
        merged = verify_merged(model, tokenizer, out / "merged", reference=reference)
    report |= {
        "adapter": adapter.as_dict()["numbers"],
        "merged": merged.as_dict()["numbers"],
        "kept": result.kept,
        "passed": {"adapter": adapter.passed, "merged": merged.passed},
        "reference_noise_rms": reference.noise.rms,
    }
    if options.gguf:
        with _measured(report, "gguf"):
            report["gguf_error"] = export_gguf(out / "merged", out / "gguf", quantization=options.gguf).worst_error
    report["disk_bytes"] = {
        p.name: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in sorted(out.iterdir())
    }
    return [adapter, merged]


def _arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", help="keep the exports in this folder")
    parser.add_argument("--std", type=float, default=0.002, help="spread of the random B matrices")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--plain", action="store_true", help="load with transformers and PEFT instead of Unsloth")
    parser.add_argument("--full", action="store_true", help="do not load in 4 bit")
    parser.add_argument("--gguf", help="write GGUF of this type too")
    return parser.parse_args()


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model and give it an adapter with a visible effect."""
    import torch

    if options.plain:
        model, tokenizer = _load_plain(options)
    else:
        model, tokenizer = _load_with_unsloth(options)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            values = torch.randn(parameter.shape, generator=generator) * options.std
            parameter.data.copy_(values)
    return model, tokenizer


def _load_with_unsloth(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load as the notebooks do."""
    import_unsloth()
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=options.model,
        max_seq_length=2048,
        load_in_4bit=not options.full,
        dtype=_dtype(),
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.generation_config.max_length = None
    install_template(tokenizer, "chat")
    tuned = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(TARGET_MODULES),
        use_gradient_checkpointing="unsloth",
        random_state=1,
    )
    return tuned, tokenizer


def _load_plain(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load without Unsloth."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    install_template(tokenizer, "chat")
    base = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=_dtype(), device_map={"": 0 if find_gpu() else "cpu"}, trust_remote_code=False
    )
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=16, target_modules=list(TARGET_MODULES)))
    return model, tokenizer


def _dtype() -> Any:
    """Return the type that the card computes in natively; float32 without one."""
    gpu = find_gpu()
    return torch_dtype(choose_precision(gpu.capability if gpu else None))


@contextmanager
def _measured(report: dict[str, Any], name: str) -> Iterator[None]:
    """Keep the time of a step and the highest memory on the card and of the process so far."""
    import torch

    read: Callable[[], int] = torch.cuda.max_memory_allocated if torch.cuda.is_available() else (lambda: 0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    yield
    import resource

    report[f"{name}_seconds"] = round(time.perf_counter() - started, 2)
    report[f"{name}_peak_card_bytes"] = read()
    report[f"{name}_peak_process_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
