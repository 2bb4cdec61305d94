"""A model split over the cards of one machine: what is asked of Unsloth, and what is refused. No card is needed."""

from __future__ import annotations

import argparse
import json
import types

import pytest
from sources import package_root

from helpers.cli import train
from helpers.core.config import build_config
from helpers.core.errors import ConfigError, HelpersError, RunError, StackError
from helpers.core.runs import RunDirectory
from helpers.model.decoding.support import unsupported
from helpers.runtime import hardware
from helpers.runtime.hardware import SPLIT, Gpu, loader_options, own_cards, split_share
from helpers.training.failures import explained
from helpers.training.machine import fit_layout

GIB = 2**30


@pytest.fixture
def two_cards(monkeypatch, imagine_cards):
    """A machine with two cards of 80 GiB, of which 70 and 30 are free; returns the limits that were set."""
    for name in ("RANK", "WORLD_SIZE", SPLIT):
        monkeypatch.delenv(name, raising=False)
    return imagine_cards((70 * GIB, 80 * GIB), (30 * GIB, 80 * GIB))


def test_nothing_is_split_unless_asked_for(two_cards):
    """The loader gets no options, and the first card counts alone."""
    assert split_share() is None
    assert loader_options() == {}
    assert own_cards() == [0]
    assert hardware.find_gpu() == Gpu("NVIDIA H100", (9, 0), 80 * GIB, 70 * GIB, 2)
    assert two_cards == {}


def test_all_cards_count_as_one(two_cards, monkeypatch):
    """Unsloth gets each card's memory, and the plan of memory their sum."""
    monkeypatch.setenv(SPLIT, "1")
    assert loader_options() == {
        "device_map": "unsloth",
        "device_map_planner_kwargs": {"max_memory": {0: 80 * GIB, 1: 80 * GIB}},
    }
    assert hardware.find_gpu() == Gpu("NVIDIA H100", (9, 0), 160 * GIB, 100 * GIB, 2)
    assert own_cards() == [0, 1]
    assert two_cards == {}


def test_large_cards_act_as_small_ones(two_cards, monkeypatch):
    """A twentieth of 80 GiB is 4 GiB a card: torch is limited to it, and the plan too."""
    monkeypatch.setenv(SPLIT, "0.05")
    options = loader_options()
    assert options["device_map_planner_kwargs"]["max_memory"] == {0: 4 * GIB, 1: 4 * GIB}
    assert two_cards == {0: 0.05, 1: 0.05}
    assert hardware.find_gpu().free_bytes == 8 * GIB


def hold(monkeypatch, total, *cards):
    """Let each card have this much memory, of which (held, free) are this process's and nobody's, in GiB."""
    import torch

    cuda = {
        "is_initialized": lambda: True,
        "mem_get_info": lambda card=0: (round(cards[card][1] * GIB), round(total * GIB)),
        "memory_reserved": lambda card=0: round(cards[card][0] * GIB),
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)


def usable():
    """Return the memory that a layout is planned with, in GiB."""
    return hardware.find_gpu(held_is_free=True).free_bytes / GIB


@pytest.mark.parametrize(
    ("share", "total", "cards", "expected"),
    [
        ("", 80, [(5, 70), (20, 30)], 75),
        ("1", 23.5, [(18.5, 4.5), (18.5, 4.5)], 46),
        ("0.5", 80, [(30, 50), (5, 10)], 55),
        ("0.03", 139.8, [(1.2, 138), (1.2, 138)], 8.39),
    ],
)
def test_what_is_held_counts_on_each_card(two_cards, monkeypatch, share, total, cards, expected):
    """Weights that lie on the cards already are part of the plan, and a card never has more than its share."""
    monkeypatch.setenv(SPLIT, share)
    hold(monkeypatch, total, *cards)
    assert usable() == pytest.approx(expected, abs=0.01)


def test_a_model_of_70b_fits_on_two_cards(two_cards, monkeypatch, tmp_path, capsys):
    """37 GiB of weights lie on two cards of 23.5 GiB: a layout is found in what both have."""
    sizes = {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    monkeypatch.setenv(SPLIT, "1")
    hold(monkeypatch, 23.5, (18.5, 4.6), (18.5, 4.6))
    config = build_config("alpaca", preset="colab-t4", model_name=str(tmp_path))
    found = fit_layout(config, [219] * 80, RunDirectory(tmp_path))
    assert found.config.train.rows_per_step() == 8
    assert "of 42.5 GiB" in capsys.readouterr().out.splitlines()[1]


def test_memory_that_ran_out_was_that_of_all_cards(two_cards, monkeypatch, tmp_path):
    """A run that needs 100 GiB gets advice for one card of 80; on both it should have fitted: the usual remedies."""
    config = build_config("alpaca", preset="large-gpu", max_seq_length=4096, packing=True, gradient_checkpointing=False)
    said = {}
    for share in ("", "1"):
        monkeypatch.setenv(SPLIT, share)
        with pytest.raises(RunError) as caught, explained(RunDirectory(tmp_path), config, lambda: None):
            raise MemoryError
        said[share] = caught.value.remedy
    assert "predicted peak" in said[""]
    assert "predicted peak" not in said["1"]


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "nan"])
def test_a_share_is_a_number_from_0_to_1(monkeypatch, text):
    """The message shows what was given."""
    monkeypatch.setenv(SPLIT, text)
    with pytest.raises(ConfigError, match=f"HELPERS_SPLIT: expected a share of each card's memory.*got '{text}'"):
        split_share()


def test_the_command_line_switches_it_on(monkeypatch, tmp_path):
    """Without a share all of each card is used; without --split nothing changes."""
    parser = argparse.ArgumentParser()
    train.add_command(parser.add_subparsers())
    monkeypatch.setenv(SPLIT, "")
    found = []
    for line in ([], ["--split"], ["--split", "--card-share", "0.25"]):
        with pytest.raises(HelpersError, match=r"config\.json"):
            train.run_train(parser.parse_args(["train", str(tmp_path / "config.json"), *line]))
        found.append(split_share())
    assert found == [None, 1.0, 0.25]


def test_several_processes_are_refused(monkeypatch):
    """Each of them would take all cards."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), (SPLIT, "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(StackError, match="expected one process with HELPERS_SPLIT, got 2"):
        split_share()


def test_one_card_is_refused(imagine_cards, monkeypatch):
    """There is nothing to split over."""
    monkeypatch.setenv(SPLIT, "1")
    imagine_cards((70 * GIB, 80 * GIB))
    with pytest.raises(StackError, match="expected two or more with HELPERS_SPLIT, got 1"):
        loader_options()


def test_sharding_over_processes_still_cannot_load_such_a_model():
    """Its FSDP2 wants a whole 4-bit model on each card; once it does not, docs/multi_gpu.md can say better."""
    folder = package_root("unsloth") / "unsloth" / "models"
    assert "got a 4-bit model on the CPU" in (folder / "fsdp2_native.py").read_text(encoding="utf-8")
    said = "still loads the full quantized model on every rank"
    assert said in (folder / "fsdp2_load.py").read_text(encoding="utf-8")


def test_a_split_model_is_not_decoded_with_captured_steps():
    """A captured step belongs to one card."""
    split = types.SimpleNamespace(hf_device_map={"model.layers.0": 0, "model.layers.1": 1})
    assert unsupported(split) == "its layers lie on several cards"
