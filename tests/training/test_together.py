"""Trainings in two processes on the CPU, with gloo: what comes out is what one process gives.

The model is a Mistral of two layers in fp32. One optimizer step sees eight rows, and each epoch of 27 rows ends with a
step of three.
"""

from __future__ import annotations

import json
import time

import pytest
import together
from nursery import Nursery
from together import copy_interrupted, difference

pytestmark = pytest.mark.slow

PACKED = {"packed": True, "max_steps": None, "num_epochs": 4.0}
"""Four epochs of packed sequences."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs of this file."""
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def launched(folder):
    """A nursery that imported the stack as a process of a launch does."""
    nursery = Nursery(folder / "nursery", together.LAUNCHED)
    nursery.warm()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def train(launched, folder, tiny_mistral):
    """A function that does one launch and returns what its main process answered."""

    def train(count, name, runs=folder, **parameters):
        return together.run_all(
            launched, count, "train", runs=str(runs), model=str(tiny_mistral), name=name, **parameters
        )[0]

    return train


@pytest.fixture(scope="module")
def trained(train, launched, folder, tiny_mistral):
    """What one and two processes gave, packed and not."""
    shared = {"runs": str(folder), "model": str(tiny_mistral)}
    kinds = {"plain": {}, "packed": PACKED}
    alone = {
        name: together.start_all(launched, 1, "train", name=f"{name}-1", **shared, **kinds[name]) for name in kinds
    }
    found = {(name, 1): together.wait_all("train", children)[0] for name, children in alone.items()}
    return found | {(name, 2): train(2, f"{name}-2", **kinds[name]) for name in kinds}


@pytest.mark.parametrize(("name", "steps", "rows"), [("plain", 10, 70), ("packed", 4, 108)])
def test_two_processes_train_the_same_adapter_as_one(trained, folder, name, steps, rows):
    """After ten steps over more than two epochs the weights agree to 1e-6, and so do losses and counts."""
    one, two = trained[name, 1], trained[name, 2]
    far, size = difference(folder, f"{name}-1", f"{name}-2")
    assert far < 1e-6 < 0.001 < size
    assert two["mode"]["processes"] == 2
    assert two["mode"]["packing"] is (name == "packed")
    for curve in ("train_loss", "eval_loss"):
        assert [s for s, _ in two[curve]] == [s for s, _ in one[curve]]
        assert [x for _, x in two[curve]] == pytest.approx([x for _, x in one[curve]], abs=1e-5)
    for count in ("tokens", "supervised_tokens", "rows_seen"):
        assert two[count] == one[count]
    assert (two["train_loss"][-1][0], two["rows_seen"]) == (steps, rows)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(trained, train, folder, before, after):
    """Begun with two and ended with one, or the other way round: adapter and figures of the undisturbed run."""
    name = f"plain-{before}"
    elsewhere = copy_interrupted(folder, name, f"resumed-{after}", step=7)
    result = train(after, name, runs=elsewhere, resume="must")
    far, _ = difference(folder, name, f"resumed-{after}/{name}")
    assert far < 1e-6
    assert (result["rows_seen"], result["tokens"]) == (70, trained["plain", 1]["tokens"])
    assert result["mode"].get("processes", 1) == after
    assert [x for _, x in result["train_loss"]] == pytest.approx(
        [x for _, x in trained["plain", 1]["train_loss"]], abs=1e-5
    )


@pytest.mark.parametrize("struck", [0, 1])
def test_a_killed_process_ends_the_others(launched, folder, tiny_mistral, struck):
    """Within a minute, with a message of its own; the run is marked as failed, and its checkpoint is whole."""
    fault = {struck: {"do": "kill_at_step", "step": 6, "seconds": 0.0}}
    given = {"runs": str(folder), "model": str(tiny_mistral), "name": f"killed-{struck}", "save_steps": 3}
    children = together.start_all(launched, 2, "train", faults=fault, **given)
    assert children[struck].wait() == -9
    struck_at = time.monotonic()
    assert children[1 - struck].wait() == 1
    assert time.monotonic() - struck_at < 60
    assert "PeerExitError: processes: expected all 2 to work to the end" in children[1 - struck].output()
    run = folder / f"killed-{struck}"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert "goes on from the checkpoint of step 3" in manifest["failure"]
    assert [path.name for path in run.glob("checkpoints/step-*")] == ["step-000003"]
    assert not (run / "adapter").exists()


def test_replayed_passes_train_together_as_one(launched):
    """DistributedDataParallel averages the gradients that a replay hands out."""
    (alone,), both = (together.run_all(launched, count, "replay_passes") for count in (1, 2))
    assert alone["replayed"] == 7
    assert [each["replayed"] for each in both] == [3, 3]
    assert both[0]["weights"] == both[1]["weights"]
    for mine, theirs in zip(both[0]["weights"], alone["weights"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_two_processes_compare_as_one(trained, launched, folder):
    """They share references and questions; what comes out is what one process answers and scores, digit for digit."""
    one, two = (
        together.run_all(launched, count, "compare", runs=str(folder), name=f"compare-{count}", adapter="plain-1")[0]
        for count in (1, 2)
    )
    assert one == two
    assert one["state"] == "complete"
    assert {"report.html", "vote.html", "comparison.json"} <= set(one["files"])
    places = [(answer["arm"], answer["prompt_id"]) for answer in one["answers"]]
    assert [arm for arm, _ in places] == ["base"] * 7 + ["tuned"] * 7
    assert [name for _, name in places[:7]] == [name for _, name in places[7:]]
    assert len(one["references"]) == 12
