"""What can be wrong in what runs left behind, in notebooks and in the lock: (name, action, words) each."""

from __future__ import annotations

import json

from small_notebooks import write_notebook

from helpers.cli.notebooks import run_notebook
from helpers.cli.parameters import read_parameters
from helpers.core.runs import RunDirectory, open_run, runs_root
from helpers.evaluation.adapter import WEIGHTS, AdapterSource, check_base, find_adapter, training_config
from helpers.evaluation.config import build_evaluation_config
from helpers.export.folders import refuse_foreign, tensor_files
from helpers.export.gguf import export_gguf
from helpers.export.hub import publish
from helpers.memory.shapes import shape_of
from helpers.model.load import put_adapter
from helpers.runtime.lockfile import read_lock
from helpers.training.persist import prepare_persist
from tools.badges import read_facts

DEEP = "[" * 200_000
STATED = {"base_model_name_or_path": "smollm2-135m", "bias": "none", "peft_type": "LORA"}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 100}  # fmt: skip


def put(path, content):
    """Write a file with its folders: bytes, text, or anything else as JSON; None makes a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def adapter(folder, stated=STATED, weights=b"weights", **files):
    """Write an adapter's folder and return its path."""
    place = folder / "some" / "adapter"
    put(place / WEIGHTS[0], stated)
    if weights is not None:
        put(place / WEIGHTS[1], weights)
    for name, content in files.items():
        put(place.parent / name.replace("_json", ".json"), content)
    return place


def plan(stated=STATED, weights=b"weights", **files):
    """Return an action that plans a comparison with such an adapter."""

    def act(folder):
        source = find_adapter(str(adapter(folder, stated, weights, **files)))
        training_config(source, build_evaluation_config(preset="smoke"))

    return act


def tensors(**shapes):
    """Return a safetensors file's bytes."""
    import numpy
    from safetensors.numpy import save

    return save({name: numpy.zeros(shape, dtype="float32") for name, shape in shapes.items()})


def fit(weights, base="org/base", stated="org/base", **config):
    """Return an action that asks whether an adapter fits a base model."""

    def act(folder):
        put(folder / WEIGHTS[1], weights() if callable(weights) else weights)
        check_base(AdapterSource(folder, stated), base, config)

    return act


LAYER = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


def pickle_only(folder):
    """Load an adapter whose weights are a pickle."""
    put(folder / WEIGHTS[0], STATED)
    put(folder / "adapter_model.bin", b"\x80\x04.")
    put_adapter(None, folder)


ADAPTERS = [
    ("no adapter of the name", lambda folder: find_adapter("nope"), "^adapter_dir: .*Run alpaca_instruction"),
    ("an overlong name", lambda folder: find_adapter("x" * 5000), "^adapter_dir: expected the name of a run"),
    ("a file", lambda folder: find_adapter(str(put(folder / "x", "x"))), "^adapter_dir: expected the name of a run"),
    ("a path out of the runs", lambda folder: find_adapter("../../no/such"), "^adapter_dir: .*the name of a run"),
    ("no runs at all", lambda folder: find_adapter(None), "^adapter_dir: expected a complete training run"),
    ("an empty folder", lambda folder: find_adapter(str(folder)), "a folder with adapter_config.json"),
    ("no weights", plan(weights=None), "a folder with adapter_model.safetensors"),
    ("weights in a pickle", pickle_only, "adapter_model.safetensors.*pickle and are not loaded"),
    ("settings empty", plan(""), "a readable JSON file adapter_config.json"),
    ("settings cut off", plan('{"bias": '), "a readable JSON file adapter_config.json"),
    ("settings a list", plan([STATED]), "a JSON object adapter_config.json, got 'list'"),
    ("settings null", plan("null"), "a JSON object adapter_config.json"),
    ("settings in Latin-1", plan('{"bias": "é"}'.encode("latin-1")), "a readable JSON file"),
    ("settings nested deeply", plan(DEEP), "a readable JSON file"),
    ("another kind of adapter", plan({**STATED, "peft_type": "LOHA"}), "a LoRA adapter, got 'LOHA'"),
    ("a kind that is a list", plan({**STATED, "peft_type": ["LORA"]}), "a LoRA adapter"),
    ("a base that is a list", plan({**STATED, "base_model_name_or_path": ["a"]}), "base_model_name_or_path: .*text"),
    ("a bias that is a number", plan({**STATED, "bias": 3}), "bias: expected text"),
    ("no base", plan({"bias": "none"}), "^model_name: .*does not name it"),
    ("a base up the tree", plan({**STATED, "base_model_name_or_path": "../../etc/passwd"}), "^model_name: "),
    ("a base that is a file", plan({**STATED, "base_model_name_or_path": "/etc/passwd"}), "^model_name: "),
    ("a base that is gone", plan({**STATED, "base_model_name_or_path": "/no/such/model"}), "^model_name: "),
    ("a run's settings cut off", plan(config_json="{"), "a readable JSON file"),
    ("a run's settings a list", plan(config_json=[]), "a JSON object, got 'list'"),
    ("a run's settings of wrong type", plan(config_json={"task": ["x"], "lora_rank": "x"}), "^lora_rank: "),
    ("a run's preset a list", plan(config_json={"preset": [], "seed": -1}), "^seed: "),
    ("weights of another format", fit(b"weights", num_hidden_layers=2), "readable adapter_model.safetensors"),
    ("weights empty", fit(b"", num_hidden_layers=2), "readable adapter_model.safetensors"),
    ("weights with a huge header", fit(b"\xff" * 8 + b"{}", num_hidden_layers=2), "readable adapter_model"),
    ("weights cut off", fit(lambda: tensors(**{LAYER: (4, 64)})[:-9], num_hidden_layers=2), "readable adapter_model"),
    ("weights without LoRA", fit(lambda: tensors(x=(2, 2)), num_hidden_layers=2), "an adapter for org/base"),
    ("weights of fewer layers", fit(lambda: tensors(**{LAYER: (4, 64)}), num_hidden_layers=3, hidden_size=64),
     r"3 layers.*2 layers"),
    ("weights of another width", fit(lambda: tensors(**{LAYER: (4, 64)}), num_hidden_layers=2, hidden_size=32),
     r"32 wide.*64 wide"),
    ("weights of another shape", fit(lambda: tensors(**{LAYER: (4,)}), num_hidden_layers=2), "readable adapter_model"),
    ("another base", fit(lambda: tensors(**{LAYER: (4, 64)}), stated="org/other", num_hidden_layers=2, hidden_size=64),
     "one made for org/other"),
]  # fmt: skip


def reopen(name="run", resume="auto", persist=False, **files):
    """Return an action that opens a run directory in which such files lie."""

    def act(folder):
        for file, content in files.items():
            put(runs_root() / name / file.replace("_json", ".json"), content)
        given = {"seed": 1, **({"persist_dir": str(folder)} if persist else {})}
        open_run(name, given, resume=resume)

    return act


def link(folder):
    """Open a run whose folder is a link."""
    runs_root().mkdir(parents=True)
    (runs_root() / "run").symlink_to(folder)
    open_run("run", {})


def change(name, content, use):
    """Return an action on a good run one of whose files is replaced."""

    def act(folder):
        run = open_run("run", {"seed": 1})
        (run.path / name).unlink(missing_ok=True)
        put(run.path / name, content)
        use(run)

    return act


def second(content, resume="auto"):
    """Return an action that prepares a second place in which such a thing lies under the run's name."""

    def act(folder):
        run = open_run("run", {"seed": 1})
        if content is not None:
            put(folder / "drive" / "run" / "manifest.json", content)
        prepare_persist(run, str(folder / "drive"), resume=resume)

    return act


def on_a_file(folder):
    """Use a file as the second place."""
    prepare_persist(open_run("run", {"seed": 1}), str(put(folder / "f", "x")), resume="auto")


RUNS = [
    ("manifest empty", reopen(manifest_json=""), "manifest.json: expected a readable JSON file"),
    ("manifest cut off", reopen(manifest_json='{"parameters": {'), "a readable JSON file"),
    ("manifest a list", reopen(manifest_json=[]), "a JSON object, got 'list'"),
    ("manifest in UTF-16", reopen(manifest_json="{}".encode("utf-16")), "a readable JSON file"),
    ("manifest null bytes", reopen(manifest_json=b"\0" * 40), "a readable JSON file"),
    ("manifest nested deeply", reopen(manifest_json=DEEP), "a readable JSON file"),
    ("manifest a folder", reopen(manifest_json=None), "a readable JSON file"),
    ("manifest of huge numbers", reopen(manifest_json='{"parameters": ' + "9" * 5000 + "}"), "a readable JSON file"),
    ("manifest with parameters a list", reopen(manifest_json={"parameters": ["seed"]}), "an object of parameters"),
    ("manifest with parameters a text", reopen(manifest_json={"parameters": "seed"}), "an object of parameters"),
    ("other parameters", reopen(manifest_json={"parameters": {"seed": 2}}), "seed: 2 -> 1"),
    ("fewer parameters", reopen(manifest_json={"parameters": {"rank": 2}}), "rank: 2 -> None; seed: 3407 -> 1"),
    ("a stranger's folder", reopen(notes_json={}), "^run_name: .*no manifest.json, so it is left alone"),
    ("a stranger's folder, cleared", reopen(notes_json={}, resume="never"), "^run_name: .*it is left alone"),
    ("a run that is a file", lambda f: (put(runs_root() / "run", "x"), open_run("run", {})), "A link or a file"),
    ("a run that is a link", link, "A link or a file"),
    ("no run to insist on", reopen(resume="must"), "^run_name: .*resume is must"),
    ("metrics cut off", change("metrics.json", '{"a"', RunDirectory.metrics), "a readable JSON file"),
    ("metrics a number", change("metrics.json", "3", lambda run: run.update_metrics(a=1)), "a JSON object"),
    ("metrics a folder", change("metrics.json", None, lambda run: run.update_metrics(a=1)), "a readable JSON file"),
    ("a manifest damaged meanwhile", change("manifest.json", "{", lambda r: r.update_manifest(a=1)), "readable JSON"),
    ("a fingerprint of a list", change("manifest.json", {"parameters": [1]}, RunDirectory.fingerprint),
     "an object of parameters"),
    ("a second place with another run", second({"run_id": "x"}), "^persist_dir: .*without another run"),
    ("a second place with a damaged run", second("{"), "a readable JSON file"),
    ("a second place that does not exist", lambda f: prepare_persist(open_run("run", {}), "/no/such/place/x",
                                                                      resume="auto"), "^persist_dir: "),
    ("a second place that is a file", on_a_file, "^persist_dir: "),
    ("the runs folder as second place", lambda f: prepare_persist(open_run("run", {}), str(runs_root()), resume="auto"),
     "^persist_dir: expected a folder outside"),
]  # fmt: skip

LOCKS = [
    ("a package name alone", "torch\n", "one exact version a line"),
    ("a range", "torch>=2\n", "one exact version a line"),
    ("a wildcard", "torch==2.*\n", "one exact version a line"),
    ("two versions", "torch==2,==3\n", "one exact version a line"),
    ("an address", "torch @ https://example.org/x.whl\n", "one exact version a line"),
    ("an option", "-r other.txt\n", "lines such as name==1.2.3"),
    ("words", "please install torch\n", "lines such as name==1.2.3"),
    ("a broken marker", 'torch==2 ; python_version <\n', "lines such as name==1.2.3"),
    ("an unknown marker", 'torch==2 ; colour == "red"\n', "lines such as name==1.2.3"),
    ("deep brackets", "torch==2 ; " + "(" * 5000 + "\n", "lines such as name==1.2.3"),
    ("Latin-1", b"t\xf6rch==2\n", "a readable file of exact pins"),
    ("a folder", None, "a readable file of exact pins"),
]  # fmt: skip

SHAPES = [
    ("empty", "", "a config.json of a Llama"),
    ("a list", [], "a config.json of a Llama"),
    ("nested deeply", DEEP, "a config.json of a Llama"),
    ("no sizes", {}, "a config.json of a Llama"),
    ("a size of text", {**SHAPE, "hidden_size": "64"}, "^hidden: expected a whole number"),
    ("a size of zero", {**SHAPE, "num_hidden_layers": 0}, "^layers: expected a whole number"),
    ("a negative size", {**SHAPE, "vocab_size": -1}, "^vocab: expected a whole number"),
    ("heads that do not divide", {**SHAPE, "num_key_value_heads": 3}, "^kv_heads: expected a divisor"),
    ("a width that does not divide", {**SHAPE, "num_attention_heads": 5}, "^heads: expected a divisor"),
    ("a folder in its place", None, "a folder with config.json"),
]

NOTEBOOKS = [
    ("empty", "", "a readable notebook"),
    ("a list", [], "a readable notebook"),
    ("no cells", {"metadata": {}}, "a readable notebook"),
    ("cells a number", {"metadata": {}, "cells": 3}, "a readable notebook"),
    ("a cell without source", {"metadata": {}, "cells": [{}]}, "a readable notebook"),
    ("a cell without metadata", {"metadata": {}, "cells": [{"source": "x"}]}, "a readable notebook"),
    ("tags a number", {"metadata": {}, "cells": [{"source": "x", "metadata": {"tags": 3}}]}, "a readable notebook"),
    ("nested deeply", DEEP, "a readable notebook"),
    ("in UTF-16", "{}".encode("utf-16"), "a readable notebook"),
]

PARAMETERS = ("x", "x = 1", "x = 1  # type: int", "x = y  # type: int  a number", "x = 1.5  # type: int  a number",
              "x = 1  # type: count  a number", "x = y = 1  # type: int  a number", "x = (  # type: int  a number",
              'x = "#"  # type: str  a text', "x = " + "(" * 500 + "1" + ")" * 500 + "  # type: int  a number",
              "x = 1  # type: int  a\nx = 2  # type: int  a", "def x(): pass", "x = 1\0  # type: int  a")  # fmt: skip
"""Lines of a parameters cell that cannot be read."""


def notebook(content, read=read_parameters):
    """Return an action that reads a notebook."""
    return lambda folder: read(put(folder / "x.ipynb", content))


def cell(text):
    """Return an action that reads a notebook with such a parameters cell."""
    return lambda folder: read_parameters(write_notebook(folder / "x.ipynb", "# Title", parameters=text))


def locked(content):
    """Return an action that reads a lock."""
    return lambda folder: read_lock(put(folder / "lock.txt", content))


def shaped(content):
    """Return an action that reads a model's shape."""
    return lambda folder: shape_of(put(folder / "config.json", content).parent)


def foreign_task(task):
    """Return an action that runs a notebook whose metadata name such a task."""

    def act(folder):
        path = write_notebook(folder / "x.ipynb", "# Title", mistral_qlora={"task": task})
        run_notebook(str(path), {}, run_name="x")

    return act


def upload(name="me/model", token="hf_x", **files):
    """Return an action that pushes a folder."""

    def act(folder):
        for file, content in files.items():
            put(folder / "out" / file.replace("_json", ".json"), content)
        publish(folder / "out", name, token=token)

    return act


def index(content):
    """Return an action that reads the index of a merged model."""
    return lambda folder: tensor_files(put(folder / "model.safetensors.index.json", content).parent)


EXPORTS = [
    ("push to a bare name", upload("model"), "^hub_repo: expected owner/name"),
    ("push up the tree", upload("../x"), "^hub_repo: expected owner/name"),
    ("push nothing", upload(), "^folder: expected an exported folder"),
    ("push without a token", upload(token=None, config_json={}), "^HF_TOKEN: .*never write it into a notebook"),
    ("push broken settings", upload(adapter_config_json="{"), "a readable adapter_config.json"),
    ("push settings a list", upload(adapter_config_json=[]), "a JSON object in adapter_config.json"),
    ("push an adapter of a local base", upload(adapter_config_json={"base_model_name_or_path": "/x"}), "on the Hub"),
    ("push an adapter of a base list", upload(adapter_config_json={"base_model_name_or_path": ["a/b"]}), "on the Hub"),
    ("an index cut off", index("{"), "a readable model.safetensors.index.json"),
    ("an index without map", index({}), "names files beside it"),
    ("an index up the tree", index({"weight_map": {"a": "../../x.safetensors"}}), "names files beside it"),
    ("an absolute index", index({"weight_map": {"a": "/etc/passwd"}}), "names files beside it"),
    ("an index of numbers", index({"weight_map": {"a": 3}}), "names files beside it"),
    ("no weights", lambda folder: tensor_files(folder), "model.safetensors or an index"),
    ("weights cut off", lambda f: tensor_files(put(f / "model.safetensors", b"x").parent), "a whole file"),
    ("an export over a file", lambda f: refuse_foreign(put(f / "x", "x")), "^folder: expected a folder"),
    ("an export over a folder", lambda f: refuse_foreign(put(f / "x" / "notes", "x").parent), "It is left as it is"),
    ("an export over a forged record",
     lambda f: (put(f / "x" / "export.json", DEEP), refuse_foreign(put(f / "x" / "y", "x").parent)), "It is left"),
    ("a GGUF type that is none", lambda f: export_gguf(f, f / "g", quantization="q9"), "^gguf_quantization: "),
    ("a GGUF file of nothing", lambda f: export_gguf(f, f / "g"), "^merged: expected a merged model"),
    ("a GGUF file of broken settings", lambda f: export_gguf(put(f / "m" / "config.json", "[]").parent, f / "g"),
     "a JSON object in config.json"),
    ("a GGUF file of another model", lambda f: export_gguf(put(f / "m" / "config.json", {"model_type": "bert"}).parent,
                                                            f / "g"), "a Mistral or Llama model"),
]  # fmt: skip

CASES = [
    *((f"adapter: {name}", action, words) for name, action, words in ADAPTERS),
    *((f"run: {name}", action, words) for name, action, words in RUNS),
    *((f"lock: {name}", locked(content), words) for name, content, words in LOCKS),
    ("lock: missing", lambda folder: read_lock(folder / "no.txt"), "a readable file of exact pins"),
    ("lock: a null byte in its name", lambda folder: read_lock("a\0b"), "a readable file of exact pins"),
    *((f"model: {n}", shaped(content), words) for n, content, words in SHAPES),
    *((f"notebook: {name}", notebook(content), words) for name, content, words in NOTEBOOKS),
    *((f"parameters cell {n}", cell(text), "parameters: expected ") for n, text in enumerate(PARAMETERS)),
    *((f"task {task!r}", foreign_task(task), "^task: expected one of") for task in ("poems", 3, ["alpaca"], {})),
    *((f"facts: {name}", notebook(content, read_facts), "a readable .ipynb file|expected a text")
      for name, content, _ in NOTEBOOKS),
    *((f"export: {name}", action, words) for name, action, words in EXPORTS),
]  # fmt: skip
"""(name, action, words) of each case."""
