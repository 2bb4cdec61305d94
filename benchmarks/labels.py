"""From a file of conversations to checked labels, as the Alpaca notebook does it: seconds and memory.

    python benchmarks/labels.py --tokenizer FOLDER [--rows 100000]

FOLDER holds a tokenizer, such as Mistral-7B-Instruct-v0.3's. The conversations have eight turns of random words, about
215 tokens with that tokenizer. No GPU and no model is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from bench import ROOT

WORDS = ("the", "of", "bread", "dough", "oven", "yeast", "rests", "bakes", "order", "why", "how", "often")


def main() -> None:
    """Write the conversations, take them through the notebook's cells, and print what each step took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as the notebook's setup cell has it
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder
        write_rows(Path(folder, "rows.jsonl"), options.rows)
        measure(Path(folder), options.tokenizer)


def write_rows(path: Path, rows: int) -> None:
    """Write conversations of eight turns, each of which asks something else."""
    draw = random.Random(0)  # noqa: S311 - a draw, not a secret

    def said(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            turns = [said(6, 16) if turn % 2 == 0 else said(15, 42) for turn in range(8)]
            turns[0] += f" {row}"
            messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
            file.write(json.dumps({"messages": messages}) + "\n")


def measure(folder: Path, tokenizer_folder: str) -> None:
    """Run the notebook's cells between the file and the checked labels."""
    from datasets import DatasetDict, load_dataset
    from transformers import AutoTokenizer

    from helpers.core.config import DataConfig
    from helpers.data.chat_templates import find_template
    from helpers.data.contract import check_tokens
    from helpers.data.rows import draw_rows
    from helpers.training.program import TRAINING, find_program, read_cells

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    began = last = time.perf_counter()

    def say(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{step}: {now - last:.1f} s, {now - began:.1f} s in all, peak {peak:.2f} GiB", flush=True)
        last = now

    config = DataConfig(dataset_name=str(folder / "rows.jsonl"), train_rows=0)
    drawn = draw_rows(config, "alpaca", 1, folder, given=())
    say("rows drawn")
    cells = [cell.text for cell in read_cells(find_program(TRAINING["alpaca"])) if "core" in cell.tags]
    names = {"DatasetDict": DatasetDict, "load_dataset": load_dataset, "drawn": drawn, "tokenizer": tokenizer}
    names["cfg"] = SimpleNamespace(prompt_style="chat", system_prompt="", max_seq_length=2048)
    template = names["template"] = find_template(tokenizer, "chat")
    tokenizer.chat_template, tokenizer.pad_token = template.text, template.pad_token
    for step, beginning in (
        ("table loaded", "load_dataset("),
        ("messages", "def to_messages("),
        ("tokenized", "def tokenize("),
    ):
        exec(next(cell for cell in cells if beginning in cell), names)  # noqa: S102 - a cell of the notebook beside this file
        say(step)
    for part, tokens in names["tokens"].items():
        checked = check_tokens(tokens, names["chats"][part], tokenizer, max_seq_length=2048)
        print(f"{part}: {json.dumps(checked.summary())}")
    say("labels checked")


if __name__ == "__main__":
    main()
