"""Tuned tiny models for export tests: plain transformers and PEFT, lora_B random instead of trained, no Unsloth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SERVER = """
import sys, json, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers.export.worker import answer_request
for line in sys.stdin:
    request, output = (Path(part) for part in json.loads(line))
    try:
        answer_request(json.loads(request.read_text()), output)
        answer = ""
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print("answer " + json.dumps(answer), flush=True)
"""


class Stranger:
    """One process without Unsloth that answers many requests, so that it imports transformers only once."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, command, **_):
        """Take the place of `subprocess.run` for the command that ends with a request and its folder."""
        self.process.stdin.write(json.dumps(command[-2:]) + "\n")
        self.process.stdin.flush()
        line = next(line for line in self.process.stdout if line.startswith("answer "))
        error = json.loads(line.removeprefix("answer "))
        return subprocess.CompletedProcess(command, int(bool(error)), "", error)

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def tuned_mistral(folder, *, std=0.05, nf4=False):
    """Return (model, tokenizer): a tiny Mistral with a LoRA adapter whose effect is visible."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from helpers.data.chat_templates import install_template
    from helpers.model.load import TARGET_MODULES

    tokenizer = AutoTokenizer.from_pretrained(folder)
    install_template(tokenizer, "chat")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGET_MODULES)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return model, tokenizer


def quantize_nf4(source, folder):
    """Write the NF4 form of a model, as bitsandbytes does on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=torch.float32).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def rewrite(source, target, change):
    """Copy a merged model and change its tensors: `change(name, tensor)` returns the new one."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for path in target.glob("*.safetensors"):
        tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)
    return target
