"""What children of the nursery do together: one training in several processes, as torchrun would start them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
"""What a nursery must have in its environment when it imports the stack: Unsloth looks at it then."""

SMALL = {
    "max_steps": 10, "num_epochs": 10.0, "train_rows": 27, "heldout_rows": 6, "batch_size": 2,
    "gradient_accumulation": 4, "save_steps": 7, "eval_steps": 5, "lora_rank": 4, "max_seq_length": 256,
}  # fmt: skip
"""Ten steps of eight rows; the fourth, and the eighth, end an epoch of 27 rows with three; a checkpoint is within."""


def start_all(nursery, count, task, *, faults=None, **arguments):
    """Fork the processes of one launch; return the children, the main one first.

    Args:
        nursery: Where they run.
        count: How many.
        task: A function of this module.
        faults: By rank, what strikes that process: see `faults.strike`.
        **arguments: The task's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [nursery.start("together.as_rank", rank=r, count=count, port=port, work=task, given=arguments,
                          fault=(faults or {}).get(r)) for r in range(count)]  # fmt: skip


def run_all(nursery, count, task, **arguments):
    """Run one launch to its end; return what each process answered, or raise with the output of one that failed."""
    return wait_all(task, start_all(nursery, count, task, **arguments))


def wait_all(task, children):
    """Wait for a launch to end; return what each process answered, or raise with the output of one that failed."""
    for child in children:
        if status := child.wait():
            raise RuntimeError(f"{task} ended with {status}\n" + "\n".join(each.output()[-3000:] for each in children))
    return [child.answer() for child in children]


def as_rank(*, rank, count, port, work, given, fault=None):
    """Do a task of this module as one of several processes, or alone."""
    for name in LAUNCHED:
        os.environ.pop(name, None)
    if count > 1:
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})  # fmt: skip
    from faults import strike

    from helpers.core.distributed import join, leave, peer_exits_explained

    join()
    with strike(fault), peer_exits_explained():
        answer = globals()[work](**given)
        leave()
    return answer


def train(*, runs, model, name, resume="auto", packed=False, **parameters):
    """Train as `python -m helpers train` does; return the metrics."""
    from helpers.cli.train import train_run
    from helpers.core.config import build_config

    os.environ["HELPERS_RUNS_DIR"] = str(runs)
    adjust_trainer(packed)
    config = build_config("alpaca", preset="smoke", run_name=name, model_name=str(model), **{**SMALL, **parameters})
    run = train_run(config, resume=resume)
    return json.loads((run.path / "metrics.json").read_text())


def replay_passes():
    """Take four steps over replayed passes, one batch a rank and step; return the weights, and how many were replayed.

    Alone, one process computes what two average.
    """
    import torch
    from model.test_graphs import Computed, batch, make_layers, walk

    from helpers.core.distributed import place

    class Stack(torch.nn.Module):
        """Layers behind one forward method, as DistributedDataParallel wants it."""

        def __init__(self):
            super().__init__()
            self.layers = make_layers()

        def forward(self, hidden, named):
            """Go through all layers."""
            return walk(self.layers, hidden, named)

    here, stack = place(), Stack()
    ranks = [here.rank] if here.count > 1 else [0, 1]
    model = torch.nn.parallel.DistributedDataParallel(stack) if here.count > 1 else stack
    optimizer = torch.optim.SGD([p for p in stack.parameters() if p.requires_grad], lr=0.5)
    graphs = Computed(list(stack.layers), 20)
    with graphs.installed():
        for at in range(4):
            optimizer.zero_grad()
            for rank in ranks:
                output = model(*batch(5 + rank, 3, seed=10 * at + rank))
                (output.square().mean() / len(ranks)).backward()
            optimizer.step()
    return {"weights": [layer.trained.weight.flatten().tolist() for layer in stack.layers], "replayed": graphs.replayed}


def adjust_trainer(packed):
    """Let TRL prepare rows in this process, and pack them where a test asks for that.

    On a CPU Unsloth turns packing off: rows of one sequence then see each other. For comparing one process with several
    that makes no difference.
    """
    from trl import SFTConfig

    original = SFTConfig.__post_init__

    def adjusted(self):
        original(self)
        self.packing = packed

    SFTConfig.__post_init__ = adjusted


def adapter(runs, name):
    """Return a run's adapter weights by name."""
    from safetensors.torch import load_file

    return load_file(Path(runs) / name / "adapter" / "adapter_model.safetensors")


def difference(runs, one, other):
    """Return the largest difference of two runs' adapter weights, and the largest weight."""
    first, second = adapter(runs, one), adapter(runs, other)
    assert first.keys() == second.keys()
    far = max((first[key] - second[key]).abs().max().item() for key in first)
    return far, max(each.abs().max().item() for each in first.values())


def copy_interrupted(runs, name, other, step):
    """Copy a finished run to what it was after the checkpoint of a step; return the folder of runs that holds it.

    A run's name is part of it, so that the copy lies under another folder of runs.
    """
    folder = Path(runs) / other
    run = folder / name
    shutil.copytree(Path(runs) / name, run)
    for path in sorted(run.glob("checkpoints/step-*")):
        if path.name > f"step-{step:06d}":
            shutil.rmtree(path)
    shutil.rmtree(run / "adapter")
    (run / "metrics.json").unlink()
    return folder


def compare(*, runs, name, adapter, resume="auto"):
    """Compare an adapter with its base as `python -m helpers compare` does; return what was answered and scored."""
    from helpers.cli.compare import compare_run
    from helpers.evaluation.config import build_evaluation_config

    os.environ["HELPERS_RUNS_DIR"] = str(runs)
    config = build_evaluation_config(
        preset="smoke", run_name=name, adapter_dir=adapter, arms="base,tuned", prompt_count=5, reference_rows=6,
        answered_rows=2, max_new_tokens=6, batch_size=2)  # fmt: skip
    run = compare_run(config, resume=resume)
    found = json.loads((run.path / "comparison.json").read_text())
    return {
        "answers": found["answers"],
        "references": found["references"],
        "state": run.manifest()["state"],
        "shift": run.metrics()["token_shift"],
        "files": sorted(path.name for path in run.path.iterdir()),
    }
