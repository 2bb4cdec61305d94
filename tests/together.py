"""What children of the nursery do together: one training in several processes, as torchrun would start them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
"""What a nursery must have in its environment when it imports the stack: Unsloth looks at it then."""

SMALL = {
    "max_steps": 10, "num_epochs": 10.0, "train_rows": 27, "heldout_rows": 6, "batch_size": 2,
    "gradient_accumulation": 4, "save_steps": 4, "eval_steps": 5, "lora_rank": 4, "max_seq_length": 256,
}  # fmt: skip
"""Ten steps of eight rows; the fourth, and the eighth, end an epoch of 27 rows with three."""


def start_all(nursery, count, task, **arguments):
    """Fork the processes of one launch; return the children, the main one first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [nursery.start("together.as_rank", rank=r, count=count, port=port, work=task, given=arguments)
            for r in range(count)]  # fmt: skip


def run_all(nursery, count, task, **arguments):
    """Run one launch to its end; return what each process answered, or raise with the output of one that failed."""
    children = start_all(nursery, count, task, **arguments)
    for child in children:
        if status := child.wait():
            raise RuntimeError(f"{task} ended with {status}\n" + "\n".join(each.output()[-3000:] for each in children))
    return [child.answer() for child in children]


def as_rank(*, rank, count, port, work, given):
    """Do a task of this module as one of several processes, or alone."""
    for name in LAUNCHED:
        os.environ.pop(name, None)
    if count > 1:
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})  # fmt: skip
    from helpers.processes import join, leave

    join()
    answer = globals()[work](**given)
    leave()
    return answer


def train(*, runs, model, name, resume="auto", packed=False, **parameters):
    """Train as `python -m helpers train` does; return the metrics."""
    from helpers.config import build_config
    from helpers.launch import train_run

    os.environ["HELPERS_RUNS_DIR"] = str(runs)
    if packed:
        pack_on_cpu()
    config = build_config("alpaca", preset="smoke", run_name=name, model_name=str(model), **{**SMALL, **parameters})
    run = train_run(config, resume=resume)
    return json.loads((run.path / "metrics.json").read_text())


def pack_on_cpu():
    """Let TRL pack rows on a CPU, where Unsloth turns packing off: rows of one sequence then see each other.

    For comparing one process with several that makes no difference.
    """
    from trl import SFTConfig

    original = SFTConfig.__post_init__

    def packed(self):
        original(self)
        self.packing = True

    SFTConfig.__post_init__ = packed


def adapter(runs, name):
    """Return a run's adapter weights by name."""
    from safetensors.torch import load_file

    return load_file(Path(runs) / name / "adapter" / "adapter_model.safetensors")
