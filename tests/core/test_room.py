"""The disk is asked before anything is downloaded."""

from __future__ import annotations

import pytest

from helpers.core.config import build_config
from helpers.core.errors import RunError
from helpers.core.lock import release_lock
from helpers.core.runs import RunDirectory
from helpers.memory.disk import disk_needs, preflight_room
from helpers.memory.shapes import MISTRAL_7B
from helpers.training.session import start_run

GIB = 2**30


def config(task="dolly", **given):
    """Return a run of Mistral-7B."""
    return build_config(task, preset="colab-t4", **given)


class TestNeeds:
    """What a run of Mistral-7B writes at most."""

    def test_the_adapter_alone(self):
        """Without a merged model: 42 million trained numbers of 12 bytes in each checkpoint."""
        needs = disk_needs(config("alpaca", merge_16bit=False), MISTRAL_7B)
        assert needs == {"3 checkpoints": 1_585_446_912, "the adapter": 578_813_952}

    def test_the_best_adapter_makes_checkpoints_larger(self):
        """With keep = "best" each of the three holds a second adapter, of 4 bytes a number."""
        needs = disk_needs(config("alpaca", keep="best"), MISTRAL_7B)
        assert needs["3 checkpoints"] == 1_585_446_912 + 3 * 4 * 41_943_040

    def test_a_larger_rank_takes_more(self):
        """Rank 64 has four times the numbers of rank 16."""
        needs = disk_needs(config("alpaca", lora_rank=64), MISTRAL_7B)
        assert needs["3 checkpoints"] == 6_115_295_232

    def test_the_merged_model_and_its_gguf_file(self):
        """7.25 billion weights take 2 bytes each, and 8.5 bits in q8_0; q4_k_m needs a 16-bit file besides."""
        needs = disk_needs(config(gguf_quantization="q8_0"), MISTRAL_7B)
        assert round(needs["the merged model"] / GIB, 1) == 13.5
        assert round(needs["GGUF, q8_0"] / GIB, 1) == 7.2
        assert round(disk_needs(config(gguf_quantization="q4_k_m"), MISTRAL_7B)["GGUF, q4_k_m"] / GIB, 1) == 17.7

    def test_nothing_is_merged_unasked(self):
        """Without merge_16bit the adapter and its checkpoints are all."""
        assert list(disk_needs(config(merge_16bit=False), MISTRAL_7B)) == ["3 checkpoints", "the adapter"]


class TestPreflight:
    """Before the first download."""

    def test_a_small_disk_stops_the_run_before_anything_is_written(self, runs_folder, leave_free):
        """The message says how much is needed, for what, how much is leave_free, and what to do."""
        leave_free(10 * GIB)
        with pytest.raises(RunError) as caught:
            start_run(config(run_name="run"))
        assert caught.value.expected == (
            f"at least 15.5 GiB free at {runs_folder / 'run'} for 3 checkpoints, the adapter and the merged model"
        )
        assert caught.value.got == "10.0 GiB free"
        assert "HELPERS_RUNS_DIR" in caught.value.remedy
        assert not runs_folder.exists()

    def test_a_large_disk_is_said_to_have_room(self, runs_folder, leave_free):
        """The sentence names the sum."""
        leave_free(16 * GIB)
        said = preflight_room(RunDirectory(runs_folder / "run"), config())
        assert said.startswith("The run's disk has room for 3 checkpoints, the adapter and the merged model: 15.5 GiB")

    def test_what_an_earlier_run_left_is_replaced(self, runs_folder, leave_free):
        """A run that goes on needs no more than what is missing."""
        leave_free(3 * GIB)
        (runs_folder / "run").mkdir(parents=True)
        with (runs_folder / "run" / "model.safetensors").open("wb") as earlier:
            earlier.truncate(14 * GIB)  # takes no place on the disk
        assert preflight_room(RunDirectory(runs_folder / "run"), config())

    def test_an_unknown_model_is_not_predicted(self, runs_folder, leave_free):
        """Of a hub model that was never loaded, nothing is known."""
        leave_free(0)
        said = preflight_room(RunDirectory(runs_folder / "run"), config(model_name="org/never-loaded"))
        assert said == "The shape of org/never-loaded is not known yet, so its files are not predicted."

    def test_a_run_with_room_begins(self, runs_folder, leave_free):
        """Nothing is in the way of a run that fits."""
        leave_free(100 * GIB)
        run = start_run(config(run_name="run"))
        assert run.manifest()["state"] == "running"
        release_lock(run.path)
