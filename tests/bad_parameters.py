"""What users can get wrong in parameters, on the command line and in the environment: (name, action, words) each.

The action gets an empty folder and does what a user's mistake leads to; the words are a pattern that the message has.
"""

from __future__ import annotations

import os
from functools import partial

from helpers.__main__ import main
from helpers.cli.parameters import find_task
from helpers.cli.plan import parse_gpu
from helpers.cli.runs import read_run
from helpers.core.config import build_config
from helpers.core.lock import hold_lock
from helpers.core.runs import check_run, runs_root
from helpers.evaluation.config import build_evaluation_config
from helpers.memory.disk import find_llama_quantize
from helpers.model.smollm2 import smollm2_folder
from helpers.training.persist import persist_folder
from helpers.training.tracking import require_tracker

TOKEN = "hf_" + "a" * 34

TRAINING = [
    ({"preset": "colab-t5"}, "^preset: .*Did you mean colab-t4"),
    ({"preset": None}, "^preset: expected one of auto"),
    ({"preset": ["smoke"]}, "^preset: expected one of auto"),
    ({"preset": "auto"}, "^preset: "),
    ({"learning_rat": 1e-4}, "^learning_rat: .*Did you mean learning_rate"),
    ({"category": "brainstorming"}, "^category: expected the name of a parameter"),
    ({"keep": "first"}, "^keep: expected one of last, best"),
    ({"early_stopping": 0}, "^early_stopping: .*at least 1"),
    ({"max_steps": -3}, "^max_steps: .*at least 1.*got -3.*end after this many optimizer steps"),
    ({"max_steps": 0}, "^max_steps: .*at least 1"),
    ({"max_steps": 2.5}, "^max_steps: expected a whole number"),
    ({"max_steps": "two"}, "^max_steps: .*got 'two'"),
    ({"max_steps": True}, "^max_steps: .*got True"),
    ({"max_steps": float("nan")}, "^max_steps: .*got nan"),
    ({"max_steps": 10**5000}, "^max_steps: .*a value of type int that cannot be shown"),
    ({"max_steps": "1e300"}, "^max_steps: .*at most 10000000"),
    ({"max_steps": [3]}, r"^max_steps: .*got \[3\]"),
    ({"learning_rate": float("nan")}, "^learning_rate: .*got nan"),
    ({"learning_rate": float("inf")}, "^learning_rate: .*got inf"),
    ({"learning_rate": 0}, "^learning_rate: .*above 0"),
    ({"learning_rate": "1e-400"}, "^learning_rate: .*above 0"),
    ({"learning_rate": "2e-4 per step"}, "^learning_rate: expected a number"),
    ({"learning_rate": 2}, "^learning_rate: .*at most 1"),
    ({"num_epochs": -1}, "^num_epochs: .*above 0"),
    ({"batch_size": 0}, "^batch_size: .*at least 1"),
    ({"batch_size": 2000}, "^batch_size: .*at most 1024"),
    ({"load_in_4bit": "yes"}, "^load_in_4bit: expected true or false"),
    ({"packing": 1}, "^packing: expected true or false"),
    ({"precision": "fp8"}, "^precision: expected one of auto, bf16"),
    ({"optimizer": "adam"}, "^optimizer: expected one of auto"),
    ({"seed": -1}, "^seed: .*at least 0"),
    ({"seed": 2**32}, "^seed: .*at most 4294967295"),
    ({"lora_rank": 0}, "^lora_rank: .*at least 1"),
    ({"lora_dropout": 1.0}, r"^lora_dropout: .*at most 0\.9"),
    ({"heldout_rows": 1}, "^heldout_rows: .*at least 2"),
    ({"save_steps": 0}, "^save_steps: .*at least 1"),
    ({"report_to": "mlflow"}, "^report_to: expected one of none"),
    ({"max_new_tokens": 1024}, r"^max_new_tokens: expected less than max_seq_length \(1024\)"),
    ({"train_rows": 3, "batch_size": 4}, r"^train_rows: expected at least batch_size \(4\)"),
    ({"prompt_style": "alpaca", "system_prompt": "Be brief."}, "^system_prompt: .*fixed preamble"),
    ({"prompt_style": "llama"}, "^prompt_style: .*chat, alpaca"),
    ({"model_name": ""}, "^model_name: expected an alias"),
    ({"model_name": "mistral-7b-instuct"}, "^model_name: .*Did you mean mistral-7b-instruct"),
    ({"model_name": "../models/mistral"}, "^model_name: expected an alias"),
    ({"model_name": "/no/such/folder"}, "^model_name: expected an alias"),
    ({"model_name": "https://example.org/a/b"}, "^model_name: expected an alias"),
    ({"model_name": "x" * 5000}, "^model_name: expected an alias"),
    ({"model_name": "a\0b"}, "^model_name: .*null byte"),
    ({"model_name": 7}, "^model_name: expected text"),
    ({"dataset_name": {"path": "x"}}, "^dataset_name: expected text"),
    ({"system_prompt": "half \ud800"}, "^system_prompt: .*incomplete character"),
    ({"system_prompt": f"use {TOKEN}"}, r"^system_prompt: expected no secret, got 'use \[removed: token\]'"),
]  # fmt: skip
"""Given to build_config for the Alpaca notebook with preset smoke."""

REFUSED = "^run_name: .*(lead out|in quotes)"
RUN_NAMES = ("../x", "..", ".", ".hidden", "/abs", "a/b", "a\\b", "", " ", "a b", "a\nb", "a\n", "a\0b", "a\x1b[31m",
             "-x", "ü", "x" * 101, "run.", 5, ["run"])  # fmt: skip
"""Refused as the name of a folder under runs/ by all three notebooks."""

DEVICES = ("CON", "nul", "aux.txt", "COM1", "lpt9.tar.gz")
"""Names that Windows reserves."""

DOLLY = [
    ({"gguf_quantization": "q9"}, "^gguf_quantization: expected one of f16"),
    ({"gguf_quantization": "q8_0", "merge_16bit": False}, "^gguf_quantization: .*Set merge_16bit"),
    ({"push_to": "me"}, "^push_to: expected owner/name"),
    ({"push_to": "../me/x"}, "^push_to: expected owner/name"),
    ({"push_to": f"me/{TOKEN}"}, "^push_to: expected no secret"),
    ({"merge_16bit": "maybe"}, "^merge_16bit: expected true or false"),
    ({"stratified": None, "category": 3}, "^category: expected text"),
]

COMPARISON = [
    ({"preset": "smokey"}, "^preset: .*Did you mean smoke"),
    ({"adapter": "x"}, "^adapter: .*Did you mean adapter_dir"),
    ({"mode": "ab"}, "^mode: expected one of compare, aa"),
    ({"mode": "aa", "arms": "base,tuned"}, "^arms: .*compares base with base"),
    ({"arms": "base,tunned"}, "^arms: .*Did you mean tuned"),
    ({"arms": ""}, "^arms: .*Add base and tuned"),
    ({"arms": "base,tuned,base"}, "^arms: expected each arm once"),
    ({"few_shot_rows": 21}, "^few_shot_rows: .*at most 20"),
    ({"prompt_count": -1}, "^prompt_count: .*at least 0"),
    ({"answered_rows": 30}, r"^answered_rows: expected at most reference_rows \(24\)"),
    ({"task": "dollies"}, "^task: .*Did you mean dolly"),
    ({"prompts_file": "missing.txt"}, "^prompts_file: expected an existing file"),
    ({"prompts_file": "prompts.docx"}, "^prompts_file: expected a file that ends in .json"),
    ({"prompts_file": "."}, "^prompts_file: expected a file that ends in"),
    ({"prompts_file": "x" * 5000 + ".txt"}, "^prompts_file: expected an existing file"),
    ({"reference_data": "rows.txt"}, "^reference_data: expected a file that ends in"),
    ({"votes_file": "a.csv, b.csv"}, "^votes_file: expected an existing file, got 'a.csv'"),
    ({"votes_file": "votes.xlsx"}, "^votes_file: expected a file that ends in .csv"),
    ({"system_prompt": "a\0b"}, "^system_prompt: .*null byte"),
    ({"max_new_tokens": "many"}, "^max_new_tokens: expected a whole number"),
]


def train(task, given):
    """Return an action that configures a training notebook."""
    return lambda folder: build_config(task, **{"preset": "smoke", **given})


def compare(given):
    """Return an action that configures the side-by-side notebook."""
    return lambda folder: build_evaluation_config(**{"preset": "smoke", **given})


def with_variable(name, value, action):
    """Return an action under an environment variable; "{folder}" and "{file}" in it are a folder and a file."""

    def act(folder):
        (folder / "file").write_text("x")
        (folder / "circle").symlink_to(folder / "circle")
        os.environ[name] = value.format(folder=folder, file=folder / "file")  # the test restores it
        action()

    return act


ENVIRONMENT = [
    ("HELPERS_RUNS_DIR", "{file}", runs_root, "^HELPERS_RUNS_DIR: expected a folder"),
    ("HELPERS_RUNS_DIR", "~nobody-of-this-name/runs", runs_root, "^HELPERS_RUNS_DIR: .*absolute path"),
    ("HELPERS_RUNS_DIR", "{folder}/circle", runs_root, "^HELPERS_RUNS_DIR: .*absolute path"),
    ("HELPERS_RUNS_DIR", "{file}/runs", lambda: hold_lock(runs_root() / "run"), "a folder that can be written"),
    ("HELPERS_RUNS_DIR", "/proc/runs", lambda: hold_lock(runs_root() / "run"), "a folder that can be written"),
    ("HELPERS_CACHE_DIR", "{file}", smollm2_folder, "^disk: .*269 MB; HELPERS_CACHE_DIR names"),
    ("HELPERS_CACHE_DIR", "/proc/cache", smollm2_folder, "^disk: .*269 MB; HELPERS_CACHE_DIR names"),
    ("PATH", "{folder}", partial(find_llama_quantize, "q4_k_m"), "^gguf_quantization: .*llama-quantize"),
]  # fmt: skip

COMMANDS = [
    (["run", "no_such_notebook"], "error: notebook: expected the name of a notebook"),
    (["run", "missing.ipynb"], "error: notebook: .*There is no such file"),
    (["run", "alpaca_instruction", "-p", "max_steps"], "error: -p: expected PARAMETER=VALUE"),
    (["run", "alpaca_instruction", "-p", "=3"], "error: -p: expected PARAMETER=VALUE"),
    (["run", "alpaca_instruction", "-p", "seed=1", "-p", "seed=2"], "error: seed: expected one value"),
    (["run", "alpaca_instruction", "--preset", "smoke", "-p", "max_steps=-3"], "error: max_steps: .*at least 1"),
    (["run", "alpaca_instruction", "--preset", "smoke", "-p", "sead=1"], "error: sead: .*Did you mean seed"),
    (["run", "alpaca_instruction", "--preset", "smoke", "--name", "../x"], "error: run_name: .*cannot lead out"),
    (["run", "alpaca_instruction", "--preset", "smoke", "--resume", "must"], "error: run_name: .*resume is must"),
    (["run", "dolly_business", "--preset", "nope"], "error: preset: expected one of auto"),
    (
        ["run", "side_by_side_eval", "--preset", "smoke", "-p", "adapter_dir=nope"],
        "error: adapter_dir: .*Run alpaca_instruction",
    ),
    (["run", "alpaca_instruction", "-p", f"system_prompt={TOKEN}"], "error: system_prompt: expected no secret"),
    (["plan", "--preset", "smoke", "--gpu", "potato"], "error: --gpu: expected one of t4"),
    (["plan", "--preset", "smoke", "--gpu", "0"], "error: --gpu: expected one of t4"),
    (["plan", "--preset", "smoke", "--gpu", "t4", "--row-length", "0"], "error: --row-length: expected 1 to"),
    (["plan", "--preset", "smoke", "--gpu", "t4", "-p", "lora_rank=x"], "error: lora_rank: expected a whole"),
    (["plan", "--preset", "smoke", "--gpu", "t4", "-p", "model_name=a/b"], "error: model_name: .*load the model once"),
    (["runs", "show", "nope"], "error: NAME: expected a run in"),
    (["runs", "show", "../nope"], "error: NAME: expected a run in"),
    (["runs", "compare", "a", "b"], "error: NAME: expected a run in"),
]
"""Typed after `python -m helpers`; each ends with status 2 and one line on stderr."""

OTHERS = [
    ("resume of another word", lambda folder: check_run("x", {}, resume="maybe"), "^resume: expected one of auto"),
    ("resume that is a list", lambda folder: check_run("x", {}, resume=["auto"]), "^resume: expected one of auto"),
    ("resume must without a run", lambda folder: check_run("x", {}, resume="must"), "^run_name: .*resume is must"),
    ("persist_dir of nobody", lambda folder: persist_folder("~nobody-of-this-name", "x"), "^persist_dir: "),
    ("persist_dir of nobody, asked for a run",
     lambda folder: check_run("x", {"persist_dir": "~nobody-of-this-name"}), "^persist_dir: "),
    ("a run without a name", lambda folder: read_run(""), "^NAME: expected a run"),
    ("a task that is none", lambda folder: find_task("doly"), "^task: .*Did you mean dolly"),
    ("a task that is a list", lambda folder: find_task(["dolly"]), "^task: expected one of"),
    ("a task of no data set", lambda folder: build_config({}, preset="smoke"), "^task: expected one of"),
    ("a card of no name", lambda folder: parse_gpu("16 apples"), "^--gpu: "),
    ("a tracker that is not there", lambda folder: require_tracker("wandb"), "^report_to: .*pip install wandb"),
]  # fmt: skip

CASES = [
    *((f"alpaca {n}: {', '.join(given)}", train("alpaca", given), words) for n, (given, words) in enumerate(TRAINING)),
    *((f"dolly {n}: {', '.join(given)}", train("dolly", given), words) for n, (given, words) in enumerate(DOLLY)),
    *((f"compare {n}: {', '.join(given)}", compare(given), words) for n, (given, words) in enumerate(COMPARISON)),
    *((f"run_name {name!a:.40}", train("dolly", {"run_name": name}), REFUSED) for name in RUN_NAMES),
    *((f"compare, run_name {name!a:.40}", compare({"run_name": name}), REFUSED) for name in RUN_NAMES),
    *((f"run_name {name}", train("alpaca", {"run_name": name}), "^run_name: .*Windows") for name in DEVICES),
    *((f"{name}={value}", with_variable(name, value, action), words) for name, value, action, words in ENVIRONMENT),
    *OTHERS,
]  # fmt: skip
"""(name, action, words) of each case."""


def command(words):
    """Run a command line in this process; return its status."""
    return main(words)
