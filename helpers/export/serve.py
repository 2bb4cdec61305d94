"""How others use an export: lines that load it in Python, commands that serve it, and Ollama's Modelfile.

Ollama recognises chat templates by likeness, and Mistral's as it is trained here is not like any that it knows (its
nearest is 574 edits away, 100 are allowed; ollama issues 6371, 6823), so `FROM model.gguf` alone gives raw completion.
"""

from __future__ import annotations

import re

from helpers.core.config import HUB_ID
from helpers.core.errors import ExportError
from helpers.data.chat_templates import ALPACA, CHATML, MISTRAL_V3
from helpers.data.prompts import ALPACA_PREAMBLE

__all__ = ["loading_lines"]

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes: https://docs.vllm.ai/en/latest/features/lora.html."""

_MISTRAL = """\
{{- range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}[INST] {{ if and $last $.System }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]{{ else if eq .Role "assistant" }}{{ .Content }}</s>{{ end }}{{ end }}"""

_CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""

_ALPACA = f"""\
{{{{- range .Messages }}}}{{{{ if eq .Role "user" }}}}{ALPACA_PREAMBLE}

### Instruction:
{{{{ .Content }}}}

### Response:
{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}EOS{{{{ end }}}}{{{{ end }}}}"""

OLLAMA = {
    # Jinja template as trained: (Ollama's template, in Go's language; where generation stops)
    MISTRAL_V3: (_MISTRAL, ("[INST]", "[/INST]", "</s>")),
    CHATML: (_CHATML, ("<|im_start|>", "<|im_end|>")),
    ALPACA: (_ALPACA, ("### Instruction:", "EOS")),
}
"""BOS is left out: llama.cpp puts it before each prompt. In Mistral's format an answer begins with a space, which is
among the tokens that the model writes, so it stands in the history already."""

LOAD = """\
from transformers import AutoTokenizer
from {package} import {loader}

name = "{name}"
tokenizer = AutoTokenizer.from_pretrained(name)
model = {loader}.from_pretrained(name, torch_dtype="auto")
messages = {messages}
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
answer = model.generate(**inputs.to(model.device), max_new_tokens=200)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def loading_lines(kind: str, name: str, system: str | None = None) -> str:
    """Return Python that loads an export and answers a question, for transformers 4.46 and newer.

    Args:
        kind: "adapter" or "merged".
    """
    package, loader = (
        ("peft", "AutoPeftModelForCausalLM") if kind == "adapter" else ("transformers", "AutoModelForCausalLM")
    )
    question = {"role": "user", "content": "Name three risks of a single supplier."}
    messages = [{"role": "system", "content": system}, question] if system else [question]
    return LOAD.format(package=package, loader=loader, name=name, messages=messages)


def serving_lines(kind: str, name: str, *, base: str | None = None, rank: int = 16) -> str:
    """Return the shell commands that serve an export: vLLM for adapter and merged model, Ollama for GGUF.

    Args:
        kind: "adapter", "merged" or "gguf".
        base: The base model's hub id, for an adapter.
    """
    if kind == "gguf":
        fetch = f"hf download {name} --local-dir tuned && cd tuned" if re.fullmatch(HUB_ID, name) else f"cd '{name}'"
        return f"{fetch}\nollama create tuned -f Modelfile\nollama run tuned"
    if kind == "merged":
        return f"vllm serve {name}"
    limit = next((each for each in VLLM_RANKS if each >= rank), VLLM_RANKS[-1])
    where = name if "/" in name else "$PWD"
    template = "" if "/" in name else " --chat-template chat_template.jinja"
    base = sixteen_bit_name(base) if base else "BASE"
    return f"vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules tuned={where}{template}"


def sixteen_bit_name(base: str) -> str:
    """Return the hub id of the model that a bitsandbytes checkpoint was made from; others stay as they are.

    Example:
        >>> sixteen_bit_name("unsloth/mistral-7b-instruct-v0.3-bnb-4bit")
        'unsloth/mistral-7b-instruct-v0.3'
    """
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", base)


def modelfile(
    gguf: str, template: str, *, eos: str = "</s>", system: str | None = None, max_seq_length: int = 2048
) -> str:
    """Return the Modelfile that lets Ollama ask as the training did.

    Args:
        gguf: The GGUF file's name, beside the Modelfile.
        template: The chat template that the model was trained with, in Jinja.
    """
    if template not in OLLAMA:
        remedy = "Write the Modelfile by hand: https://docs.ollama.com/modelfile."
        raise ExportError("gguf", "one of this package's chat templates", template[:40], remedy)
    if system and ('"""' in system or (template == ALPACA)):
        remedy = "Change system_prompt, or write the Modelfile by hand."
        raise ExportError("system_prompt", 'a text without """, in chat style', system[:40], remedy)
    text, stops = (OLLAMA[template][0].replace("EOS", eos), [s.replace("EOS", eos) for s in OLLAMA[template][1]])
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{text}"""']
    lines += [f'SYSTEM """{system}"""'] if system else []
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1.0", f"PARAMETER num_ctx {max_seq_length}"]
    return "\n".join(lines) + "\n"
