"""What must never happen: code of strangers that runs, files outside their folder, tokens that are written down."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from small_notebooks import write_notebook

from helpers.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("helpers", "notebooks", "scripts", "workshop", "benchmarks", "templates")
    for path in (ROOT / folder).rglob("*")
    if path.suffix == ".py"
    or (folder == "scripts" and path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env py"))
)
CODE = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SOURCES}
CANARY = "canary-7f3a91c2-of-a-token"

UNPICKLES = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "joblib.load", "dill.load", "numpy.load",
    "np.load", "pandas.read_pickle", "pd.read_pickle", "cloudpickle.load", "cloudpickle.loads", "yaml.load",
    "shelve.open", "marshal.loads", "eval", "exec",
}  # fmt: skip
"""Calls that build whatever objects a file asks for, or run code."""

ARCHIVES = {"zipfile", "tarfile", "py7zr", "rarfile"}

FAILURES = {
    "printed": "import os\nprint(os.environ['HF_TOKEN'])",
    "on stderr": "import os, sys\nprint(os.environ['HF_TOKEN'], file=sys.stderr)",
    "in an error": "import os\nraise RuntimeError('401 for ' + os.environ['HF_TOKEN'])",
    "in a helpers error": "import os\nfrom helpers.core.errors import RunError\n"
    "raise RunError('hub', 'a token', os.environ['HF_TOKEN'], 'Renew ' + os.environ['HF_TOKEN'])",
    "shown as HTML": "import os\nfrom IPython.display import HTML\ndisplay(HTML(os.environ['HF_TOKEN']))",
    "as a result": "import os\nos.environ['HF_TOKEN']",
    "escaped": "import os\n{'a': [os.environ['HF_TOKEN']]}",
    "before the kernel dies": "import os, signal\nprint(os.environ['HF_TOKEN'], flush=True)\n"
    "os.kill(os.getpid(), signal.SIGKILL)",
}  # fmt: skip
"""Cells that show a token, by the way in which they do."""


LOAD = """
import pathlib, sys
from helpers.core.errors import StackError
from helpers.model.load import import_unsloth
import_unsloth()
import torch
from unsloth import FastLanguageModel
good, bad, mark = sys.argv[1:]
class Runs:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(mark),)
torch.save({"weight": Runs()}, bad + "/pytorch_model.bin")
for folder in (good, bad):
    try:
        FastLanguageModel.from_pretrained(
            model_name=folder, max_seq_length=64, load_in_4bit=False, dtype=torch.float32, trust_remote_code=False,
            use_safetensors=True,
        )
        print("loaded")
    except StackError as error:
        print(" ".join(str(error).split()))
"""
"""Loads two models in a fresh process, the second from a pickle that makes a file when it is loaded."""


ASKED = """
import json, sys
from pathlib import Path
from helpers.evaluation.adapter import _base_config
from helpers.export.gguf_format import read_tokenizer
from helpers.export.worker import answer_request
from helpers.model.load import import_unsloth
import_unsloth()
import torch
from transformers import AutoTokenizer
from unsloth import FastLanguageModel
folder, output = Path(sys.argv[1]), Path(sys.argv[2])
request = {"folder": str(folder), "base": str(folder), "revision": None, "precision": "fp32", "prompt_ids": []}
for load in (
    lambda: FastLanguageModel.from_pretrained(
        model_name=str(folder), max_seq_length=64, load_in_4bit=False, dtype=torch.float32, trust_remote_code=False
    ),
    lambda: AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False),
    lambda: _base_config(str(folder), None),
    lambda: answer_request({**request, "kind": "adapter"}, output),
    lambda: answer_request({**request, "kind": "merged"}, output),
    lambda: read_tokenizer(folder, 8),
):
    try:
        load()
    except Exception as error:
        print("refused", type(error).__name__, str(error)[:80].replace(chr(10), " "))
"""
"""Loads a folder whose configuration names code, in every way that this project loads models and tokenizers."""


@cache
def nodes(path):
    """Return all nodes of a source's syntax tree."""
    return list(ast.walk(ast.parse(CODE[path])))


@cache
def calls(path):
    """Return (name as written, line) of each call in a source."""
    return [(ast.unparse(node.func), node.lineno) for node in nodes(path) if isinstance(node, ast.Call)]


class TestCode:
    """What the package, the notebooks and the scripts call."""

    def test_every_source_is_looked_at(self):
        """The package, three notebooks, the scripts and the lessons are among the sources."""
        assert len(CODE) > 100
        assert {"helpers/model/load.py", "notebooks/dolly_business.py", "scripts/gpu_ci"} <= set(CODE)

    def test_nothing_is_unpickled_and_no_text_is_run(self):
        """No call loads a pickle, or runs a text as code but where the project's notebooks are run or written out."""
        allowed = {("program.py", "exec"), ("labels.py", "exec"), ("script_values.py", "eval")}
        allowed |= {("script_cells.py", "exec"), ("script_cells.py", "eval")}
        found = [(path, name, line) for path in CODE for name, line in calls(path) if name in UNPICKLES]
        assert [each for each in found if (Path(each[0]).name, each[1]) not in allowed] == []

    def test_code_of_a_model_s_repository_is_never_trusted(self):
        """All that load a model, a tokenizer or a configuration pass False: left out, transformers asks."""
        said = {
            (path, word) for path in CODE for word in re.findall(r"trust_remote_code[\"']?\s*[=:]\s*(\w+)", CODE[path])
        }
        assert {word for _, word in said} == {"False"}, said
        loaders = [
            (path, node)
            for path in CODE
            for node in nodes(path)
            if isinstance(node, ast.Call) and re.search(r"(?<!PeftModel)\.from_pretrained$", ast.unparse(node.func))
        ]
        silent = [(path, node) for path, node in loaders if "trust_remote_code" not in [k.arg for k in node.keywords]]
        assert [(path, ast.unparse(node)) for path, node in silent] == []

    def test_no_archive_is_unpacked(self):
        """No module for archives is imported but to write one, so no member of one can leave its folder."""
        names = {
            (path, name.split(".")[0])
            for path in CODE
            for node in nodes(path)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        found = {(path, name) for path, name in names if name in ARCHIVES}
        assert found == {("helpers/export/folders.py", "zipfile")}
        unpacking = ("unpack_archive", ".extract", ".extractall")
        assert [(path, call) for path in CODE for call in calls(path) if call[0].endswith(unpacking)] == []

    def test_pip_installs_in_the_setup_cell_alone(self):
        """In the package only the function behind the setup cell runs pip; in notebooks only a cell that begins so."""
        installed = ("helpers", "notebooks", "workshop")
        running = [p for p, text in CODE.items() if re.search(r'"pip",\s*"install"', text) and p.startswith(installed)]
        cells = ("notebooks/", "workshop/sources/")
        assert [path for path in running if not path.startswith(cells)] == ["helpers/runtime/setup.py"]
        users = [p for p, text in CODE.items() if "_pip_install(" in text or "_install_until_done(" in text]
        assert users == ["helpers/runtime/setup.py"]
        magic = {p: re.findall(r"(?m)^.*(?:%pip|!pip|\"pip\", f?\"install).*$", t) for p, t in CODE.items()}
        assert {len(lines) for p, lines in magic.items() if p.startswith("notebooks/")} == {1}
        assert [p for p, lines in magic.items() if lines and p.startswith("helpers/") and p not in running] == []


class TestModels:
    """Weights from a place that a user names."""

    @pytest.mark.slow
    def test_a_model_that_is_a_pickle_is_refused(self, tiny_mistral, tmp_path):
        """The same weights are loaded from model.safetensors, and not from pytorch_model.bin, where they run code."""
        folder = shutil.copytree(tiny_mistral, tmp_path / "model")
        (folder / "model.safetensors").rename(folder / "away")
        command = [sys.executable, "-W", "ignore", "-c", LOAD, str(tiny_mistral), str(folder), str(tmp_path / "ran")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        good, bad = done.stdout.splitlines()[-2:]
        assert good == "loaded"
        assert re.match(r"model_name: expected a model that can be loaded, .*safetensors", bad)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.slow
    def test_code_beside_a_model_is_not_run(self, tmp_path):
        """A folder with `auto_map` is refused by all that load models and tokenizers, whatever stands on stdin."""
        folder, mark = tmp_path / "model", tmp_path / "ran"
        folder.mkdir()
        (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
        classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
        (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": classes}))
        settings = {"tokenizer_class": "EvilTokenizer", "auto_map": classes}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        command = [sys.executable, "-W", "ignore", "-c", ASKED, str(folder), str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, input="y\n" * 50, capture_output=True, text=True, check=True)
        assert done.stdout.count("refused") == 6, done.stdout
        assert not mark.exists()


class TestSecrets:
    """A token in the environment, and runs that fail in every way that could show it."""

    @pytest.mark.slow
    def test_no_byte_of_it_is_kept_or_shown(self, tmp_path, runs_folder, monkeypatch, capfd):
        """Each cell fails the run; neither its files nor anything printed has the token."""
        monkeypatch.setenv("HF_TOKEN", CANARY)
        for number, (way, source) in enumerate(FAILURES.items()):
            path = write_notebook(tmp_path / "leak.ipynb", "# Title", source, parameters=None)
            assert main(["run", str(path), "--name", f"leak-{number}"]) == 1, way
        shown = capfd.readouterr()
        assert CANARY not in shown.out + shown.err
        assert shown.err.count("error: ") == len(FAILURES)
        files = [path for path in runs_folder.rglob("*") if path.is_file()]
        assert len([path for path in files if path.name == "notebook.ipynb"]) == len(FAILURES)
        assert [path for path in files if CANARY.encode() in path.read_bytes()] == []

    def test_a_parameter_that_is_one_is_refused(self, tmp_path, runs_folder, monkeypatch, capsys):
        """Whether typed as a parameter's value, name or as part of one, it is not shown."""
        monkeypatch.setenv("HF_TOKEN", CANARY)
        path = write_notebook(tmp_path / "a.ipynb", "# Title", "print(name)")
        for words in (["-p", f"name=x{CANARY}"], ["-p", f"{CANARY}=1"], ["-p", CANARY], ["--name", CANARY + "/x"]):
            assert main(["run", str(path), *words]) == 2
        shown = capsys.readouterr()
        assert CANARY not in shown.out + shown.err
        assert not runs_folder.exists()
