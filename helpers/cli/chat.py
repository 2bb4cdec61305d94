"""`python -m helpers chat RUN`: several turns with a tuned model, its base, or both, in the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from helpers.core.config import RunConfig
from helpers.core.errors import ConfigError, HelpersError
from helpers.core.runs import RunDirectory
from helpers.core.text import visible

__all__ = ["add_command"]

HELP = "/base, /tuned or /both choose who answers; /new forgets the conversation; /quit or Ctrl-D ends."

Answer = Callable[[list[dict[str, str]], str], str]
"""Takes a conversation and "base" or "tuned", prints the answer as it comes, and returns it."""


def add_command(commands: Any) -> None:
    """Add `chat` to a command line; `commands` is what `ArgumentParser.add_subparsers` returned."""
    chat = commands.add_parser("chat", help="talk to a run's model in the terminal, and to its base")
    chat.add_argument("name", metavar="RUN", help="a run's name, its folder, or an adapter folder")
    chat.add_argument("--max-new-tokens", type=int, default=512, help="longest answer, in tokens (default 512)")
    chat.add_argument("--who", choices=("base", "tuned", "both"), default="tuned", help="who answers at first")
    chat.set_defaults(command=_chat)


def converse(lines: Iterable[str], answer: Answer, *, system: str = "", who: str = "tuned") -> None:
    """Hold a conversation: one history for the tuned model and one for its base.

    Args:
        answer: Lets one of the two answer.
        system: The system prompt of the training, which begins each conversation.
    """
    start = [{"role": "system", "content": system}] if system else []
    print(f"system prompt: {visible(system) or 'none'}\n{HELP}")
    histories = {arm: [*start] for arm in ("tuned", "base")}
    for line in map(str.strip, lines):
        if line == "/quit":
            return
        if line == "/new":
            histories = {arm: [*start] for arm in histories}
        elif line in ("/base", "/tuned", "/both"):
            who = line[1:]
            print(f"{who} answers from here on" if who != "both" else "both answer from here on")
        elif line.startswith("/"):
            print(HELP)
        elif line:
            for arm in ("base", "tuned") if who == "both" else (who,):
                print(f"{arm}: ", end="", flush=True)
                _turn(histories[arm], line, arm, answer)


def _turn(history: list[dict[str, str]], line: str, arm: str, answer: Answer) -> None:
    """Ask and keep the answer; a question that cannot be asked is told and forgotten."""
    question = {"role": "user", "content": line}
    try:
        said = answer([*history, question], arm)
    except HelpersError as error:
        print(f"error: {visible(' '.join(str(error).split()))}")
        return
    history += [question, {"role": "assistant", "content": said}]


def _chat(options: argparse.Namespace) -> int:
    """Load the run's adapter on its base, and read lines from the terminal."""
    from helpers.evaluation.adapter import find_adapter, training_config
    from helpers.evaluation.config import build_evaluation_config
    from helpers.model.decoding import stream
    from helpers.runtime.hardware import find_gpu, suitable_preset

    if options.max_new_tokens < 1:
        raise ConfigError("--max-new-tokens", "at least 1", options.max_new_tokens, "Such as 512.")
    source = find_adapter(options.name)
    gpu = find_gpu()
    preset = suitable_preset(gpu) if gpu else "smoke"
    config = training_config(source, build_evaluation_config(preset=preset, adapter_dir=options.name))
    model, tokenizer = _load(source.folder, config)

    def answer(messages: list[dict[str, str]], arm: str) -> str:
        with model.disable_adapter() if arm == "base" else nullcontext():
            return stream(model, tokenizer, messages, max_new_tokens=options.max_new_tokens)

    converse(_typed(), answer, system=config.data.system_prompt, who=options.who)
    return 0


def _load(folder: Path, config: RunConfig) -> tuple[Any, Any]:
    """Load the base model as in training, its saved adapter, and the tokenizer beside that."""
    from helpers.model.load import import_unsloth, put_adapter
    from helpers.training.machine import base_model, fit_machine

    import_unsloth()
    import torch
    from transformers import AutoTokenizer
    from unsloth import FastLanguageModel

    (base, revision), machine = base_model(config), fit_machine(config, RunDirectory(folder.parent))
    model, _ = FastLanguageModel.from_pretrained(
        model_name=base,
        revision=revision,
        max_seq_length=config.model.max_seq_length,
        load_in_4bit=config.model.load_in_4bit,
        dtype=getattr(torch, machine.dtype),
        trust_remote_code=False,
        **machine.loading,
    )
    model.generation_config.max_length = None  # beside max_new_tokens it only causes warnings
    return put_adapter(model, folder), AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def _typed() -> Iterable[str]:
    """Yield what is typed, until the end of the input."""
    while True:
        try:
            yield input("you: ")
        except EOFError:
            print()
            return
