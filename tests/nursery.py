"""A process that imports the training stack once and forks children that train, so that many can be killed cheaply.

Importing the stack takes ten seconds or more; a fork takes milliseconds. torch runs single-threaded, in the parent
too, so that no child inherits a thread pool without its threads.

    python tests/nursery.py     reads one JSON request a line, answers one JSON line each
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
}


class Child:
    """One forked process.

    Args:
        nursery: Where it runs.
        pid: Its process id.
        folder: Where it leaves its output and its answer.
    """

    def __init__(self, nursery, pid, folder):
        self.nursery, self.pid, self.folder = nursery, pid, folder

    def wait(self):
        """Wait for its end; return the exit status, negative for a signal."""
        return self.nursery.ask({"wait": self.pid})["status"]

    def kill(self):
        """End it as a disconnect would."""
        os.kill(self.pid, signal.SIGKILL)

    def output(self):
        """Return what it printed."""
        return (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")

    def answer(self):
        """Return what its task returned, or None if it did not get there."""
        path = self.folder / "answer.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class Nursery:
    """The client's side.

    Args:
        folder: Where children leave their output.
        environment: Variables to import the stack with, over this process's.
    """

    def __init__(self, folder, environment=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count = 0
        self.errors = (self.folder / "nursery.txt").open("w")
        self.process = subprocess.Popen(
            [sys.executable, __file__], env={**os.environ, **ENVIRONMENT, **(environment or {})}, cwd=self.folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)  # fmt: skip

    def ask(self, request):
        """Send one request and return the answer."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError((self.folder / "nursery.txt").read_text()[-3000:])
        return json.loads(line)

    def warm(self):
        """Do what is the same in every run before forking."""
        self.ask({"warm": True})

    def start(self, task, **arguments):
        """Fork a child that runs a function of `faults` with these arguments."""
        self.count += 1
        folder = self.folder / f"child-{self.count}"
        folder.mkdir()
        answer = self.ask({"start": task, "arguments": arguments, "folder": str(folder)})
        return Child(self, answer["pid"], folder)

    def run(self, task, **arguments):
        """Run a task to its end and return its answer; raise with its output if it has none."""
        child = self.start(task, **arguments)
        status = child.wait()
        if status != 0:
            raise RuntimeError(f"{task} ended with {status}\n{child.output()[-4000:]}")
        return child.answer()

    def close(self):
        """End the nursery."""
        self.process.kill()  # its children have been waited for; a proper exit takes seconds
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


def serve():
    """Import the stack, then fork on request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    from helpers.model.load import import_unsloth

    import_unsloth()
    import datasets
    import faults
    import mistral_common.tokens.tokenizers.tekken  # what AutoTokenizer imports for a Mistral: ten seconds
    import peft
    import scipy.stats
    import trl

    assert all((datasets, faults, peft, trl, mistral_common, scipy))
    for line in sys.stdin:
        request = json.loads(line)
        if "warm" in request:
            faults.warm()
            answer = {}
        elif "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                child(find(request["start"]), request["arguments"], Path(request["folder"]))
            answer = {"pid": pid, "at": time.time()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def find(name):
    """Return a function of `faults`, or of another module beside it that the name leads with a dot."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module or "faults"), function)


def child(task, arguments, folder):
    """Run a task in a forked process and end it."""
    status = 1
    try:
        os.dup2(os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT, 0o644), 1)
        os.dup2(1, 2)
        value = task(**arguments)
        (folder / "answer.json").write_text(json.dumps(value))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
