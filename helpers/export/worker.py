"""A stranger's view of an export: run in a process of its own, with plain transformers and PEFT and no Unsloth.

    python -m helpers.export.worker REQUEST.json OUTPUT_FOLDER

`answer_request` reads a request that `helpers.export.verify` wrote and leaves `result.json` and `logits.safetensors`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.export.folders import weight_bytes
from helpers.export.gguf_format import unpack_gguf
from helpers.export.reference import answer_greedily, answer_logits
from helpers.model.distance import jitter_weights, measure_distance
from helpers.model.patches.imports import long_lived
from helpers.model.scoring import score_rows
from helpers.runtime.hardware import TORCH_NAMES, available_memory, precision_of, torch_dtype


def answer_request(request: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Load an export, compute what is asked, and write it down.

    Args:
        request: `kind` ("adapter", "merged" or "gguf"), `folder`, `prompts`, `heldout` (rows with `input_ids` and
            `completion_mask`, perhaps none); of an adapter also `base`, `revision` and `precision`; of a GGUF file the
            `merged` model that it was made from; with prompts also `prompt_ids`, `sequences` and `max_new_tokens`.
        output: An existing folder for `result.json` and, with prompts, `logits.safetensors`.
    """
    started = time.perf_counter()
    load = {"adapter": _load_adapter, "merged": _load_merged, "gguf": _load_gguf}[request["kind"]]
    with long_lived():  # the libraries are imported there
        model, result = load(request, output)
    model.eval()
    if request["prompts"]:
        result |= {**_compare_logits(request, model, result, output), **_tokenizer_facts(request)}
    if request["heldout"]:
        result["heldout"] = [asdict(score) for score in score_rows(model, request["heldout"])]
    result |= {
        "unsloth_loaded": "unsloth" in sys.modules,
        "seconds": round(time.perf_counter() - started, 2),
        **_memory(),
    }
    (output / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return result


def _compare_logits(request: Mapping[str, Any], model: Any, facts: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Write down the logits of the reference's sequences; return the answers, and what precision does to a model."""
    from safetensors.torch import save_file

    starts, noise = [len(p) for p in request["prompt_ids"]], {}
    logits = {"export": answer_logits(model, request["sequences"], starts)}
    if request["kind"] == "adapter":
        with model.disable_adapter():
            logits["base"] = answer_logits(model, request["sequences"], starts)
    else:
        with jitter_weights(facts["stored"], model.get_input_embeddings().weight.shape[0]):
            moved = answer_logits(model, request["sequences"], starts)
        distance = measure_distance(logits["export"], moved)
        noise = {"noise_rms": distance.rms, "noise_largest": distance.largest}
    save_file(
        {f"{k}.{i}": t.contiguous() for k, v in logits.items() for i, t in enumerate(v)}, output / "logits.safetensors"
    )
    return {**noise, "answers": answer_greedily(model, request["prompt_ids"], request["max_new_tokens"])}


def _load_adapter(request: Mapping[str, Any], output: Path) -> tuple[Any, dict[str, Any]]:
    """Load the base model and put the adapter on it."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"revision": request["revision"]} if request["revision"] else {}
    config = AutoConfig.from_pretrained(request["base"], trust_remote_code=False, **options)
    if getattr(config, "quantization_config", None):
        config.quantization_config["bnb_4bit_compute_dtype"] = TORCH_NAMES[request["precision"]]
    base = AutoModelForCausalLM.from_pretrained(
        request["base"],
        config=config,
        dtype=torch_dtype(request["precision"]),
        use_safetensors=True,
        trust_remote_code=False,
        device_map={"": _first_device()},
        **options,
    )
    model = PeftModel.from_pretrained(base, request["folder"])
    return model, {"loaded": f"base and adapter on {_first_device()} in {request['precision']}"}


def _load_merged(request: Mapping[str, Any], output: Path) -> tuple[Any, dict[str, Any]]:
    """Load the merged model: in its own type on a card, split with main memory and disk if need be; else in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(request["folder"])
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype", "float32")
    options: dict[str, Any] = {"device_map": {"": _first_device()}}
    where, dtype = _first_device(), torch.float32
    if torch.cuda.is_available():
        dtype, size = getattr(torch, stored), weight_bytes(folder)
        free = torch.cuda.mem_get_info(0)[0]
        if size > 0.85 * free:
            room = {0: int(0.7 * free), "cpu": int(0.7 * (available_memory() or 0))}
            options = {"device_map": "auto", "max_memory": room, "offload_folder": str(output / "offload")}
            where = "cuda:0, main memory and disk"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
    )
    known = stored if stored in TORCH_NAMES.values() else "float32"
    return model, {"stored": precision_of(known), "loaded": f"merged model on {where} in {precision_of(dtype)}"}


def _load_gguf(request: Mapping[str, Any], output: Path) -> tuple[Any, dict[str, Any]]:
    """Unpack a GGUF file's weights into a folder like the merged model's, and load that."""
    folder = output / "unpacked"
    unpack_gguf(next(Path(request["folder"]).glob("*.gguf")), Path(request["merged"]), folder)
    return _load_merged({**request, "folder": str(folder)}, output)


def _tokenizer_facts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Render the prompts with the tokenizer that stands beside the weights."""
    from transformers import AutoTokenizer

    from helpers.core.errors import TemplateError
    from helpers.core.time_limit import time_limit
    from helpers.data.chat_templates import template_sha256

    tokenizer: Any = AutoTokenizer.from_pretrained(request["folder"], trust_remote_code=False)
    if not tokenizer.chat_template:
        return {"template_sha256": None, "prompt_ids": None, "eos_token_id": tokenizer.eos_token_id}
    endless = TemplateError("chat_template", "one that ends within a minute", request["folder"], "Export again.")
    with time_limit(60, endless):
        rendered = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"]
            for p in request["prompts"]
        ]
    return {
        "template_sha256": template_sha256(tokenizer),
        "prompt_ids": rendered,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _first_device() -> str:
    """Return "cuda:0" if there is a card, else "cpu"."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _memory() -> dict[str, int]:
    """Return the highest memory in use, in bytes: of the process, and on the card."""
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    card = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak_card_bytes": card}


def _main() -> None:
    """Answer one request from the command line."""
    request, output = Path(sys.argv[1]), Path(sys.argv[2])
    answer_request(json.loads(request.read_text(encoding="utf-8")), output)


if __name__ == "__main__":
    _main()
