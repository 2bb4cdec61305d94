"""What a prediction means for a run: micro-batches, advice, layouts, the check before a run, and the command."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cli.plan import CARDS, add_command, parse_gpu
from helpers.core.config import build_config
from helpers.core.errors import ConfigError, StackError
from helpers.core.runs import RunDirectory
from helpers.memory.layout import plan_layout
from helpers.memory.plan import (
    advise,
    attention_kind,
    check_layers,
    choose_optimizer,
    divisors,
    largest_micro_batch,
    predict_config,
    preflight_memory,
    shape_for,
)
from helpers.memory.predict import GIB, predict_peak
from helpers.memory.shapes import MISTRAL_7B, SMOLLM2_135M, ModelShape
from helpers.model.patches import UNSLOTH_TESTED, attention
from helpers.runtime.hardware import SPLIT, Gpu
from helpers.runtime.lockfile import installed_version
from helpers.training import machine, session

GPUS = {name: parse_gpu(name).total_bytes for name in CARDS}
T4 = Gpu("Tesla T4", (7, 5), 15_828_320_256, 15_700_000_000)
L4 = Gpu("NVIDIA L4", (8, 9), round(22.1 * GIB), round(21.8 * GIB))
H100 = Gpu("NVIDIA H100", (9, 0), 85_000_000_000, 84_500_000_000)
LENGTHS = (120, 160, 180, 200, 240, 300, 420, 620) * 40
"""Rows about as long as Alpaca's: mean 280 tokens, longest 620."""


def config(preset="colab-t4", **given):
    """A checked configuration."""
    return build_config("alpaca", preset=preset, **given)


def planned(wanted, card, lengths=LENGTHS, *, keep=None, **more):
    """Return the training settings of a run in its layout, and the reasons; what is named in `keep` is the user's."""
    wanted = wanted if keep is None else dataclasses.replace(wanted, given=frozenset(keep))
    found, reasons = plan_layout(wanted, card, lengths, **more)
    return found.train, reasons


def command(*arguments):
    """Run `plan` with these arguments; return its exit status."""
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    options = parser.parse_args(["plan", *arguments])
    return options.command(options)


class TestLargestMicroBatch:
    """How many tokens the largest micro-batch has."""

    def test_one_row_is_the_longest(self):
        """A micro-batch of one row is as large as the longest row."""
        assert largest_micro_batch(LENGTHS, 1) == 620

    def test_more_rows_than_there_are(self):
        """All rows at once are their sum."""
        assert largest_micro_batch((3, 4, 5), 8) == 12

    def test_equal_rows(self):
        """Rows of one length give no surprise."""
        assert largest_micro_batch((233,) * 100, 8) == 1864

    def test_it_lies_between_the_mean_and_the_worst(self):
        """Eight rows are seldom the eight longest, but always some are longer than the mean."""
        largest = largest_micro_batch(LENGTHS, 8)
        assert 8 * 280 < largest < 8 * 620
        assert largest == largest_micro_batch(LENGTHS, 8)

    @given(lengths=st.lists(st.integers(1, 2048), min_size=1, max_size=40), size=st.integers(1, 12))
    @settings(max_examples=40, deadline=None)
    def test_its_bounds(self, lengths, size):
        """It is at least the longest row and at most the sum of the longest rows."""
        longest = sorted(lengths, reverse=True)
        assert longest[0] <= largest_micro_batch(tuple(lengths), size) <= sum(longest[:size])


class TestPredictConfig:
    """From a configuration to a prediction."""

    def test_without_lengths_every_row_is_full(self):
        """Two rows of 2,048 tokens are taken, and the peak on a T4 is 5.3 GiB."""
        peak = predict_config(config(), total_bytes=GPUS["t4"])
        assert peak.tokens == 4096
        assert peak.total() / GIB == pytest.approx(5.31, abs=0.01)

    def test_rows_over_the_limit_are_left_out(self):
        """A row that training leaves out is not planned for."""
        assert predict_config(config(batch_size=1), lengths=[100, 5000]).tokens == 100

    def test_float32_needs_more(self):
        """Parameters of 4 bytes make everything but the adapter larger."""
        half = predict_config(config("smoke"))
        assert predict_config(config("smoke", precision="fp32")).embeddings == 2 * half.embeddings

    def test_the_optimizer_is_the_configured_one(self):
        """AdamW in 32 bit keeps eight bytes a parameter, in 8 bit two."""
        for card in ("t4", "h100"):
            states = [
                predict_config(config(optimizer=name), total_bytes=GPUS[card]).optimizer
                for name in ("adamw_torch_fused", "adamw_8bit")
            ]
            assert states == [335_544_320, 85_196_800]

    @pytest.mark.parametrize(
        ("total", "states"), [(None, 335_544_320), (GPUS["t4"], 85_196_800), (20 * GIB, 335_544_320)]
    )
    def test_auto_is_what_training_takes(self, total, states):
        """A small card gets 8-bit states, a large one or a CPU 32-bit ones."""
        assert predict_config(config(), total_bytes=total).optimizer == states

    def test_known_shapes(self, tmp_path):
        """Aliases are known, folders are read, other hub ids are not known."""
        assert shape_for(config()) == MISTRAL_7B
        assert shape_for(config("smoke")) == SMOLLM2_135M
        assert shape_for(config(model_name="nobody/nothing")) is None
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        (tmp_path / "config.json").write_text(json.dumps({**sizes, "vocab_size": 100}))
        assert shape_for(config(model_name=str(tmp_path))) == ModelShape(64, 128, 2, 4, 4, 100)

    def test_an_unknown_shape_is_an_error(self):
        """A model whose config.json is nowhere cannot be planned."""
        with pytest.raises(ConfigError, match=r"config\.json is on this machine"):
            predict_config(config(model_name="nobody/nothing"))

    @pytest.mark.parametrize(
        ("capability", "chosen", "kind"),
        [
            ((7, 5), "sdpa", "expanded"),
            ((8, 0), "sdpa", "rows"),
            ((9, 0), "varlen (torch kernel)", "varlen"),
            ((8, 9), "flash-attn", "varlen"),
            ((8, 9), "xformers", "expanded"),
            ((7, 5), "varlen (memory-efficient kernel)", "expanded"),
            ((9, 0), "varlen (memory-efficient kernel)", "expanded"),
        ],
    )
    def test_attention_by_card(self, capability, chosen, kind):
        """Old cards repeat keys and values; one call for all rows needs no copies."""
        assert attention_kind(capability, chosen) == kind


class TestAdvise:
    """What to change until a run fits."""

    def test_what_fits_needs_no_advice(self):
        """The T4 preset fits into a T4."""
        assert advise(config(), GPUS["t4"]) == []

    def test_checkpointing_comes_first(self):
        """Recomputing is enough for eight full rows on 22 GiB."""
        assert advise(config("large-gpu", gradient_checkpointing=False), GPUS["l4"]) == [
            "Set gradient_checkpointing = True (about 27 % slower): predicted peak 8.0 GiB."
        ]

    def test_skipped_layers_are_recomputed_first(self):
        """Checkpointing all layers comes before smaller batches."""
        assert advise(config("large-gpu", checkpoint_skip_layers=30), GPUS["l4"]) == [
            "Set checkpoint_skip_layers = 0 (up to 27 % slower): predicted peak 8.0 GiB."
        ]

    def test_smaller_batches_keep_the_rows_of_a_step(self):
        """64 rows at once become fewer at once, and still 64 a step."""
        assert advise(config("large-gpu", batch_size=64), GPUS["t4"], attention="expanded") == [
            "Set batch_size = 16 and gradient_accumulation = 4 (still 64 rows a step): predicted peak 11.1 GiB."
        ]

    def test_smaller_states_are_offered(self):
        """A large card that is nearly full is advised to keep 8-bit states: what auto takes there is larger."""
        wanted = config(lora_rank=128, batch_size=1, gradient_accumulation=8, max_seq_length=512)
        steps = advise(wanted, round(9.5 * GIB), total_bytes=GPUS["l4"])
        assert steps == ["Set optimizer = adamw_8bit: predicted peak 7.4 GiB."]
        assert advise(wanted, round(9.5 * GIB), total_bytes=GPUS["t4"]) == []

    def test_nothing_helps(self):
        """Below the size of the weights the last sentence says that nothing helps."""
        steps = advise(config(), 3 * GIB)
        assert steps[-1] == "That is still more than 2.8 GiB: take a larger card or a smaller model."
        assert len(steps) == 4

    @pytest.mark.parametrize("gib", [5, 6, 8, 12, 16, 24])
    @pytest.mark.parametrize(
        "given",
        [
            {"batch_size": 32, "gradient_checkpointing": False},
            {"batch_size": 6, "gradient_accumulation": 5, "lora_rank": 128},
            {"max_seq_length": 32768, "optimizer": "adamw_torch_fused"},
            {"load_in_4bit": False, "packing": True},
        ],
    )
    def test_what_is_advised_fits(self, gib, given):
        """After the changes named, the predicted peak is within 92 % of the memory, and no larger than before."""
        before = config(**given)
        steps = advise(before, gib * GIB)
        changed = dict(given)
        for step in steps:
            for part in step.split(": predicted")[0].split(" and "):
                name, _, value = part.removeprefix("Set ").removeprefix("Then set ").partition(" = ")
                changed[name] = value.split(" (")[0].lower()
        after = config(**changed)
        assert after.train.rows_per_step() == before.train.rows_per_step()
        peak, earlier = (predict_config(each, total_bytes=gib * GIB).total() for each in (after, before))
        assert peak <= 0.92 * gib * GIB
        assert bool(steps) == (earlier > 0.92 * gib * GIB)


class TestChooseLayout:
    """The fastest layout that fits."""

    def choose(self, gpu, attention="rows", pass_cost=2000, batch_size=8, **wanted):
        """Choose for Mistral-7B and rows like Alpaca's, 8 a step; what is named in `wanted` is kept."""
        wanted |= {} if batch_size == 8 else {"batch_size": batch_size}
        steps = {"batch_size": batch_size, "gradient_accumulation": 8 // batch_size, "optimizer": "adamw_8bit"}
        setting = config(**{**steps, **wanted})
        card = Gpu(gpu, (8, 0), GPUS[gpu], GPUS[gpu])
        return planned(setting, card, keep=wanted, attention=attention, pass_cost=pass_cost)

    @pytest.mark.parametrize(
        ("gpu", "changes", "expected"),
        [
            ("h100", {}, (8, 1, False, 0)),
            ("h100", {"packing": True}, (8, 1, False, 0)),
            ("h100", {"packing": True, "gradient_accumulation": 4}, (8, 4, False, 0)),
            ("l4", {"attention": "varlen"}, (8, 1, False, 0)),
            ("t4", {"attention": "expanded", "checkpoint_skip_layers": 0}, (8, 1, True, 0)),
            ("t4", {"attention": "expanded", "checkpoint_skip_layers": 0, "pass_cost": 200}, (2, 4, False, 0)),
            ("t4", {"attention": "expanded", "packing": True, "checkpoint_skip_layers": 0}, (8, 1, True, 0)),
            ("t4", {"batch_size": 2}, (2, 4, False, 0)),
            ("h100", {"gradient_checkpointing": True, "checkpoint_skip_layers": 0}, (8, 1, True, 0)),
        ],
    )
    def test_by_card(self, gpu, changes, expected):
        """Cards with room take all rows at once without recomputing; what is given is kept."""
        found, _ = self.choose(gpu, **changes)
        shown = (
            found.batch_size,
            found.gradient_accumulation,
            found.gradient_checkpointing,
            found.checkpoint_skip_layers,
        )
        assert shown == expected

    def test_some_layers_are_recomputed(self):
        """On a T4 eight rows fit when part of the layers keep their activations."""
        found, _ = self.choose("t4", attention="expanded")
        assert (found.batch_size, found.gradient_checkpointing) == (8, True)
        assert 0 < found.checkpoint_skip_layers < 32

    def test_packing_is_never_turned_on(self):
        """Packing changes the rows that a step sees, so it is left as asked for."""
        assert not self.choose("h100")[0].packing
        assert self.choose("h100", packing=True)[0].packing

    def test_every_choice_has_its_reason(self):
        """Three sentences with numbers: micro-batch, checkpointing, packing."""
        assert self.choose("h100")[1][:3] == (
            (
                "batch_size 8 x gradient_accumulation 1: 8 rows a step as asked for, in one pass, since each pass "
                "costs as much time as 2,000 tokens."
            ),
            "No checkpointing: predicted peak 19.6 GiB of 72.8 GiB; recomputing would take about 27% longer.",
            "No packing, since it was not asked for: a step would see about 59 rows instead of 8.",
        )

    def test_without_a_gpu_all_is_as_configured(self):
        """There is nothing to plan for on a CPU."""
        reasons = ("No GPU: all as configured.", "Optimizer: on a CPU it is always torch's own AdamW.")
        assert plan_layout(config("smoke"), None, LENGTHS) == (config("smoke"), reasons)

    def test_skipping_layers_on_a_cpu_is_said_to_do_nothing(self):
        """Unsloth's training on a CPU recomputes all layers or none; the number stays as it was given."""
        found, reasons = planned(config("smoke", gradient_checkpointing=True, checkpoint_skip_layers=5), None)
        assert (found.gradient_checkpointing, found.checkpoint_skip_layers) == (True, 5)
        assert reasons[1] == ("checkpoint_skip_layers has no effect: on a CPU Unsloth recomputes all layers or none.")

    def test_a_run_keeps_its_rows(self):
        """The rows of a step are those of the configuration."""
        found, _ = planned(config(), H100)
        assert (found.batch_size, found.rows_per_step()) == (8, 8)
        kept, _ = planned(config(), H100, keep=("batch_size", "gradient_checkpointing"))
        assert (kept.batch_size, kept.gradient_checkpointing) == (2, True)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, (8, True, 14)),
            ({"gradient_checkpointing": True}, (8, True, 0)),
            ({"gradient_checkpointing": False}, (2, False, 0)),
            ({"checkpoint_skip_layers": 0}, (8, True, 0)),
            ({"checkpoint_skip_layers": 9}, (8, True, 9)),
            ({"gradient_checkpointing": True, "checkpoint_skip_layers": 9}, (8, True, 9)),
            ({"checkpoint_skip_layers": 32}, (2, False, 0)),
        ],
    )
    def test_layers_are_skipped_unless_the_user_has_said_which(self, given, expected):
        """On a T4 14 of 32 layers keep their activations; with either parameter given no number is chosen."""
        found, _ = planned(config(**given), T4, pass_cost=2000)
        assert (found.batch_size, found.gradient_checkpointing, found.checkpoint_skip_layers) == expected

    def test_layers_chosen_one_by_one_leave_more_room(self):
        """They fill 85 % of the memory, and one more would be beyond; what is asked for may fill 92 %."""

        def peak(**given):
            """Return the layers that keep their activations, and the predicted peak as a share of the free memory."""
            found, reasons = planned(config(**given), T4, pass_cost=2000)
            share = float(re.search(r"predicted peak ([\d.]+) GiB", reasons[1])[1]) * GIB / T4.free_bytes
            return found.checkpoint_skip_layers, share

        chosen, share = peak()
        assert share <= 0.851  # the sentence has one digit
        more, share = peak(checkpoint_skip_layers=chosen + 1)
        assert more == chosen + 1
        assert 0.849 <= share <= 0.92

    def test_skipped_layers_are_named(self):
        """The sentence has the numbers of both kinds of layers and the parameter's name."""
        _, reasons = planned(config(checkpoint_skip_layers=9), T4)
        assert reasons[1].startswith("Checkpointing for 23 of 32 layers (checkpoint_skip_layers 9): predicted ")

    def test_more_layers_than_there_are(self):
        """The parameter is named as the user types it, wherever the model's shape is known."""
        wanted = config(checkpoint_skip_layers=33)
        message = r"checkpoint_skip_layers: expected at most the model's 32 layers, got 33\."
        for refuses in (
            lambda: plan_layout(wanted, H100, LENGTHS),
            lambda: predict_config(wanted),
            lambda: check_layers(wanted),
        ):
            with pytest.raises(ConfigError, match=message):
                refuses()
        check_layers(config(checkpoint_skip_layers=33, model_name="nobody/nothing"))

    def test_the_optimizer_is_counted_that_trains(self):
        """On a large card the states of 8 bytes are planned with: 2 GiB at rank 128."""
        _, reasons = planned(config(lora_rank=128, checkpoint_skip_layers=0), H100)
        assert "predicted peak 24.2 GiB" in reasons[1]
        _, reasons = planned(config(lora_rank=128, optimizer="adamw_8bit"), H100)
        assert "predicted peak 22.3 GiB" in reasons[1]

    def test_the_optimizer_has_its_reason(self):
        """It is the sentence of the function that training calls."""
        assert planned(config(), H100)[1][3] == choose_optimizer("auto", H100.total_bytes).reason

    def test_several_processes_need_more(self, monkeypatch):
        """Two processes keep buckets of 1.25 GiB at rank 128, in the layout and in the check before."""
        wanted = config(lora_rank=128, optimizer="adamw_8bit")
        found = [planned(wanted, H100, processes=n)[1][1] for n in (1, 2)]
        assert ["22.3 GiB" in found[0], "23.6 GiB" in found[1]] == [True, True]
        alone = preflight_memory(wanted, T4)
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
            monkeypatch.setenv(name, value)
        together = preflight_memory(wanted, T4)
        assert [said.split(" at least")[0] for said in (alone, together)] == [
            "Predicted peak 7.3 GiB",
            "Predicted peak 8.5 GiB",
        ]

    def test_what_bounds_the_loss_is_said(self):
        """Logits of 2,048 tokens at once are assumed, of a pass of 4,000."""
        assert planned(config(), H100)[1][4] == (
            "Loss: logits in pieces of at most 0.25 GiB (2,048 tokens) are assumed, as Unsloth's loss makes them; "
            "those of all 4,000 tokens of a pass would take 0.49 GiB."
        )

    def test_a_short_pass_has_all_its_logits(self):
        """The longest row alone is one piece."""
        _, reasons = planned(config(batch_size=1, gradient_accumulation=1), H100)
        assert reasons[4] == ("Loss: the logits of all 620 tokens of a pass at once are assumed, 0.08 GiB.")

    def test_another_loss_is_not_planned_with(self, monkeypatch):
        """A variable that changes Unsloth's loss is named."""
        monkeypatch.setenv("UNSLOTH_CE_LOSS_TARGET_GB", "1")
        assert planned(config(), H100)[1][4] == (
            "Loss: UNSLOTH_CE_LOSS_TARGET_GB is set, and what it makes Unsloth keep is not counted in the prediction."
        )

    def test_an_unknown_model_is_left_alone(self):
        """Without a shape nothing is chosen, and said so."""
        _, reasons = planned(config(model_name="nobody/nothing"), H100)
        assert reasons[0] == "The shape of nobody/nothing is not known: all as configured."
        assert len(reasons) == 2

    def test_nothing_fits(self):
        """A card smaller than the weights is refused with the numbers."""
        card = Gpu("small", (8, 0), 3 * GIB, 3 * GIB)
        with pytest.raises(StackError, match=r"expected 4\.6 GiB for the smallest layout, got '2\.8 GiB usable'"):
            plan_layout(config(optimizer="adamw_8bit"), card, LENGTHS, attention="rows")

    @given(
        rows=st.integers(1, 48),
        gib=st.integers(7, 90),
        packing=st.booleans(),
        skip=st.sampled_from([None, 0]),
        attention=st.sampled_from(["varlen", "rows", "expanded"]),
    )
    @settings(max_examples=40, deadline=None)
    def test_it_fits_and_keeps_the_rows(self, rows, gib, packing, skip, attention):
        """Whatever the card, the rows of a step are exact and the predicted peak is within 92 % of the memory."""
        wanted = config(
            batch_size=1,
            gradient_accumulation=rows,
            max_seq_length=1024,
            packing=packing,
            checkpoint_skip_layers=0,
            optimizer="adamw_8bit",
        )
        keep = () if skip is None else ("checkpoint_skip_layers",)
        card = Gpu("card", (8, 0), gib * GIB, gib * GIB)
        found, reasons = planned(wanted, card, keep=keep, attention=attention)
        assert found.rows_per_step() == rows
        assert len(reasons) >= 5
        peak = predict_peak(
            MISTRAL_7B,
            rank=16,
            batch_size=found.batch_size,
            seq_length=1024,
            packing=packing,
            attention=attention,
            tokens=None if packing else largest_micro_batch(LENGTHS, found.batch_size),
            checkpointing=found.gradient_checkpointing,
            skip_layers=found.checkpoint_skip_layers,
        )
        assert peak.total() <= 0.92 * gib * GIB


class TestAttention:
    """The kind of attention that a layout is planned with."""

    def load(self, monkeypatch, torch_version, **dispatch):
        """Let unsloth be imported, with a dispatcher that has found nothing but what is named."""
        import torch

        found = types.SimpleNamespace(**{"HAS_FLASH_ATTENTION": False, "HAS_XFORMERS": False, **dispatch})
        monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(__version__=UNSLOTH_TESTED))
        monkeypatch.setitem(sys.modules, attention.DISPATCH, found)
        monkeypatch.setattr(torch, "__version__", torch_version)
        return found

    @pytest.mark.parametrize(
        ("torch_version", "dispatch", "wanted", "name"),
        [
            ("2.11.0+cu128", {}, True, "varlen (torch kernel)"),
            ("2.11.0+cu128", {}, False, "sdpa"),
            ("2.13.0", {}, False, "varlen (torch)"),
            ("2.11.0", {"HAS_FLASH_ATTENTION": True}, True, "flash-attn"),
            ("2.11.0", {"HAS_XFORMERS": True}, True, "xformers"),
        ],
    )
    def test_the_dispatcher_is_asked_and_left_alone(self, monkeypatch, torch_version, dispatch, wanted, name):
        """The choice is made from what unsloth found; no function of it is replaced."""
        found = self.load(monkeypatch, torch_version, **dispatch)
        before = vars(found).copy()
        assert attention.loaded_attention((8, 9), wanted=wanted).name == name
        assert vars(found) == before

    @pytest.mark.parametrize(
        ("installed", "name"),
        [
            ({"torch": "2.11.0+cu128", "unsloth": UNSLOTH_TESTED}, "varlen (torch kernel)"),
            ({"torch": "2.11.0", "unsloth": "2027.1"}, "sdpa"),
            ({"torch": "2.12.0", "unsloth": "2027.1", "flash-attn": "2.8.3"}, "flash-attn"),
            ({"torch": "2.12.0"}, "sdpa"),
            ({"unsloth": "2027.1"}, "sdpa"),
        ],
    )
    def test_before_unsloth_is_imported_what_is_installed_counts(self, installed, name):
        """Versions are read and nothing is imported."""
        assert attention.installed_attention((8, 9), versions=installed).name == name

    @pytest.mark.parametrize(("built", "name"), [("2.12.0+cu128", "xformers"), ("2.10.0+cu128", "varlen (torch)")])
    def test_an_xformers_for_another_torch_does_not_count(self, built, name):
        """Its extensions load under the torch that they were built for."""
        versions = {"torch": "2.12.0+cpu", "unsloth": "2027.1", "xformers": "0.0.40"}
        assert attention.installed_attention((8, 9), versions=versions, xformers_built_for=built).name == name

    def test_a_layout_is_planned_with_it(self, monkeypatch, tmp_path):
        """On an L4 15 of 32 layers keep their activations of 16 rows, and 17 where attention needs no copies."""
        wanted, run = config(batch_size=16, gradient_accumulation=1), RunDirectory(tmp_path)
        found = [machine.fit_layout(wanted, LENGTHS, run, find=lambda: L4).config.train.checkpoint_skip_layers]
        self.load(monkeypatch, "2.11.0")
        found.append(machine.fit_layout(wanted, LENGTHS, run, find=lambda: L4).config.train.checkpoint_skip_layers)
        assert found == [15, 17]


UNPACKED = " Unpacked weights may take 13.0 GiB, if twice that is left."


class TestRecordedPasses:
    """The memory of recorded passes, which is named and not counted."""

    def last(self, gpu=H100, chosen="varlen (torch kernel)", **given):
        """Return the last reason of a layout, and the sentence on checkpointing."""
        _, reasons = planned(config(**given), gpu, chosen=chosen)
        return reasons[-1], reasons[1]

    def test_it_is_said(self):
        """Eight rows are 4,000 tokens: a pass recorded in 4,096 keeps 13.5 GiB, which the peak leaves out."""
        said, peak = self.last()
        assert said == f"CUDA graphs may take up to 13.5 GiB more, if that much is free.{UNPACKED}"
        plain = self.last(cuda_graphs=False)
        assert plain[1] == peak
        assert plain[0].startswith("Loss: ")

    def test_larger_passes_are_not_recorded(self):
        """Eight packed sequences of 2,048 tokens are too many, and one is not; 16 rows are sometimes few enough."""
        assert self.last(packing=True)[0].startswith("Loss: ")
        said, _ = self.last(packing=True, batch_size=1)
        assert said == f"CUDA graphs may take up to 6.8 GiB more, if that much is free.{UNPACKED}"
        said, _ = self.last(batch_size=16)
        assert said == f"CUDA graphs may take up to 13.5 GiB more, if that much is free.{UNPACKED}"

    def test_weights_that_are_not_packed_stay_as_they_are(self):
        """Without load_in_4bit they are in 16 bit anyway."""
        said, _ = self.last(load_in_4bit=False)
        assert said == "CUDA graphs may take up to 13.5 GiB more, if that much is free."

    def test_a_small_pass_needs_less(self):
        """The longest row of 620 tokens is filled up to 768."""
        said, _ = self.last(batch_size=1, gradient_accumulation=8)
        assert said == f"CUDA graphs may take up to 2.5 GiB more, if that much is free.{UNPACKED}"

    @pytest.mark.parametrize(
        "changes",
        [
            {"gpu": T4, "chosen": "sdpa", "gradient_checkpointing": False, "batch_size": 1},
            {"chosen": "sdpa"},
            {"gradient_checkpointing": True},
            {"lora_dropout": 0.1},
        ],
    )
    def test_where_nothing_is_recorded_nothing_is_said(self, changes):
        """Card, attention, checkpointing or dropout may be against it."""
        assert self.last(**changes)[0].startswith("Loss: ")

    def test_a_model_on_two_cards_is_not_recorded(self, monkeypatch):
        """Its passes go from card to card."""
        monkeypatch.setenv(SPLIT, "1")
        two = dataclasses.replace(H100, count=2)
        assert self.last(gpu=two)[0].startswith("Loss: ")


class TestPreflight:
    """The check before anything is downloaded."""

    def test_what_fits_is_said(self):
        """A run that fits gives a sentence with both numbers."""
        said = "Predicted peak 4.5 GiB at least, 13.5 GiB usable of 14.6 GiB free on the Tesla T4."
        assert preflight_memory(config(), T4) == said

    def test_without_a_gpu(self):
        """A CPU has no GPU memory to check."""
        assert preflight_memory(config("smoke"), None) == "No GPU, so no GPU memory to plan."

    def test_an_unknown_model(self):
        """A model that was never loaded is not predicted."""
        assert "not known yet" in preflight_memory(config(model_name="nobody/nothing"), T4)

    def test_what_does_not_fit_is_stopped_with_advice(self):
        """The error has the need, what there is, and what to change."""
        with pytest.raises(StackError) as caught:
            preflight_memory(config(batch_size=8, packing=True, gradient_checkpointing=False), T4)
        error = caught.value
        assert error.field == "GPU memory"
        assert error.got == "13.5 GiB usable of 14.6 GiB free on the Tesla T4"
        assert error.remedy == "Set gradient_checkpointing = True (about 27 % slower): predicted peak 7.8 GiB."

    def test_weights_that_do_not_fit(self):
        """In 16 bit the weights alone are too large, whatever the rows are."""
        message = r"expected 1\d\.\d GiB for this run's peak with the shortest rows.*Set load_in_4bit = True"
        with pytest.raises(StackError, match=message):
            preflight_memory(config(load_in_4bit=False), T4)

    @pytest.mark.parametrize("card", [T4, L4])
    @pytest.mark.parametrize(
        "given",
        [
            {"gradient_checkpointing": False},
            {"batch_size": 8, "gradient_checkpointing": False},
            {"batch_size": 64},
            {"checkpoint_skip_layers": 32},
            {"packing": True, "gradient_checkpointing": False},
            {"packing": True, "batch_size": 8, "gradient_checkpointing": False},
            {"lora_rank": 1024, "max_seq_length": 32768},
            {"load_in_4bit": False},
        ],
    )
    def test_what_has_a_layout_is_not_stopped(self, card, given):
        """Only what the layout would refuse too, however short the rows are, is refused before they are known."""
        wanted = config(**given)
        try:
            plan_layout(wanted, card, [16] * 80)
        except StackError:
            return
        preflight_memory(wanted, card)

    def test_rows_decide_what_fits(self):
        """Rows of 219 tokens fit into 22 GiB without checkpointing; 8 of 2,048 would need 67 GiB."""
        wanted = config("large-gpu", gradient_checkpointing=False)
        assert predict_config(wanted, total_bytes=L4.total_bytes).total() > 60 * GIB
        found, _ = planned(wanted, L4, [219] * 1000)
        assert (found.batch_size, found.gradient_checkpointing) == (8, False)
        assert preflight_memory(wanted, L4).startswith("Predicted peak 4.")

    @pytest.mark.parametrize(("capability", "attention"), [((8, 0), "varlen"), ((7, 5), "expanded")])
    def test_it_and_the_layout_agree(self, capability, attention):
        """What is refused once the rows are known is refused before: both plan with 92 % of the free memory."""
        wanted = config(batch_size=1, max_seq_length=4096, packing=True, gradient_checkpointing=False)
        peak = predict_config(wanted, attention=attention, total_bytes=T4.total_bytes).total()
        for share, fits in ((0.915, True), (0.925, False), (0.99, False)):
            card = dataclasses.replace(T4, capability=capability, free_bytes=round(peak / share))
            for check in (
                lambda card: preflight_memory(wanted, card),
                lambda card: plan_layout(wanted, card, [4096], attention=attention),
            ):
                with contextlib.nullcontext() if fits else pytest.raises(StackError):
                    check(card)

    def test_memory_held_by_something_else(self):
        """A card that is half full already is named as such."""
        busy = dataclasses.replace(T4, free_bytes=4 * GIB)
        with pytest.raises(StackError, match=r"10\.7 GiB are in use by something else: restart the runtime\."):
            preflight_memory(config(), busy)


class TestCommand:
    """`python -m helpers plan`."""

    @pytest.fixture
    def this_card(self, imagine_cards, monkeypatch):
        """Gives this machine a card that multiplies matrices at a pace of 100 TFLOP/s."""

        def give(gpu):
            imagine_cards((gpu.free_bytes, gpu.total_bytes), name=gpu.name, capability=gpu.capability)
            pace = {"tflops": 100.0, "precision": "bf16", "size": 8192, "gpu": gpu.name}
            done = subprocess.CompletedProcess([], 0, json.dumps(pace) + "\n", "")
            monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

        return give

    def test_a_run_that_fits(self, capsys):
        """The table, the peak, the layout's reasons and the verdict are printed, and the status is 0."""
        assert command("--preset", "colab-t4", "--gpu", "t4") == 0
        printed = capsys.readouterr().out
        assert "batch_size 8 x gradient_accumulation 1,\n" in printed
        assert "  weights of the blocks                3.35  GiB\n" in printed
        assert "  predicted peak                      12.28  GiB\n" in printed
        assert "\nRows of 233 tokens on average and 1,233 at most are assumed" in printed
        assert "\nCheckpointing for 18 of 32 layers (checkpoint_skip_layers 14): predicted peak 12.3 GiB" in printed
        assert "\nFits: 13.5 GiB usable of 14.7 GiB (t4).\n" in printed

    def test_it_says_how_long_the_run_takes(self, capsys):
        """Minutes on a named card, and for a T4 whether a free Colab session holds them."""
        command("--preset", "colab-t4", "--gpu", "t4")
        lines = capsys.readouterr().out.splitlines()
        said = "from installation to adapter, 18 min of it training over 1,000 rows (25 TFLOP/s assumed, the card being"
        assert lines[-2] == f"About 23 min {said} the limit). A forecast: expect a third more or less."
        assert lines[-1].startswith("A free Colab session, which ends after 12 h at the latest")

    def test_a_card_of_which_only_the_size_is_known_has_no_minutes(self, capsys):
        """Memory says nothing of speed."""
        command("--preset", "colab-t4", "--gpu", "16GB")
        assert capsys.readouterr().out.endswith(
            "it is forecast only for a card given by name, or for this machine's.\n"
        )

    @pytest.mark.parametrize("card", ["t4", "l4", "a100-40"])
    @pytest.mark.parametrize(
        "given", [{}, {"batch_size": 2}, {"gradient_checkpointing": False}, {"checkpoint_skip_layers": 3}]
    )
    def test_it_is_the_runs_layout(self, capsys, monkeypatch, tmp_path, card, given):
        """The layout and the peak are those that a run on that card finds with rows of these lengths."""
        size = GPUS[card]
        capability = (7, 5) if card == "t4" else (8, 9)
        pairs = [part for name, value in given.items() for part in ("-p", f"{name}={str(value).lower()}")]
        command("--gpu", card, "--row-length", "300", "--preset", "colab-t4", *pairs)
        printed = capsys.readouterr().out
        installed = attention.installed_attention((8, 9)).name
        found = {"HAS_FLASH_ATTENTION": installed == "flash-attn", "HAS_XFORMERS": installed == "xformers"}
        unsloth = types.SimpleNamespace(__version__=installed_version("unsloth"))
        monkeypatch.setitem(sys.modules, "unsloth", unsloth)
        monkeypatch.setitem(sys.modules, attention.DISPATCH, types.SimpleNamespace(**found))
        gpu = Gpu(card, capability, size, size)
        found = machine.fit_layout(config(**given), [300] * 80, RunDirectory(tmp_path), find=lambda: gpu).config.train
        reasons = capsys.readouterr().out.splitlines()
        layout = f"batch_size {found.batch_size} x gradient_accumulation {found.gradient_accumulation},\n"
        assert layout in printed
        assert "\n".join(reasons) in printed
        said, shown = (
            re.search(r"predicted peak ([\d.]+)", reasons[1])[1],
            re.search(r"\n  predicted peak +(\S+)", printed),
        )
        assert float(shown[1]) == pytest.approx(float(said), abs=0.06)

    @pytest.mark.parametrize(
        ("gpu", "preset"),
        [
            (Gpu("Tesla V100", (7, 0), 32 * GIB, 31 * GIB), "colab-t4"),
            (Gpu("NVIDIA L4", (8, 9), 22 * GIB, 9 * GIB), "large-gpu"),
            (Gpu("RTX 4080", (8, 9), 16 * GIB, 15 * GIB), "colab-t4"),
        ],
    )
    def test_auto_is_the_preset_that_a_notebook_takes(self, capsys, this_card, gpu, preset):
        """It goes by the card's size and capability, not by what happens to be free."""
        this_card(gpu)
        command()
        printed = capsys.readouterr().out
        assert printed.startswith(f"alpaca, {preset}: ")
        assert "(by what this card just did, the card being the limit)" in printed
        assert session.resolve_preset("auto") == preset

    def test_a_run_that_does_not_fit(self, capsys):
        """What to change is printed, and the status is 1."""
        given = ("gradient_checkpointing=false", "packing=true", "max_seq_length=8192")
        assert command("--gpu", "l4", *(part for pair in given for part in ("-p", pair))) == 1
        printed = capsys.readouterr().out
        assert "batch_size 1 x gradient_accumulation 8,\n" in printed
        assert "Does not fit: 20.3 GiB usable of 22.1 GiB (l4).\n  Set gradient_checkpointing = True" in printed
        assert "large-gpu" in printed

    def test_the_optimizer_is_the_cards(self, capsys):
        """32-bit states are counted on a card of 22 GiB, 8-bit ones on a T4."""
        for card, states in (("l4", "0.31"), ("t4", "0.08")):
            command("--gpu", card, "-p", "max_seq_length=512")
            assert f"  optimizer states                     {states}  GiB\n" in capsys.readouterr().out

    def test_rows_of_a_length(self, capsys):
        """Rows of 233 tokens make micro-batches of 1,864."""
        assert command("--gpu", "24gb", "--row-length", "233", "-p", "gradient_checkpointing=false") == 0
        assert "1,864 tokens in the largest micro-batch" in capsys.readouterr().out

    def test_without_a_card(self, capsys, imagine_cards):
        """Without --gpu and without a GPU there is a table and no verdict."""
        imagine_cards()
        assert command("--preset", "smoke") == 0
        assert "No GPU here: name a card with --gpu" in capsys.readouterr().out

    def test_this_machines_card(self, capsys, this_card):
        """Without --gpu the free memory of this machine's card counts."""
        this_card(T4)
        assert command() == 0
        assert "(Tesla T4)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("t4", 15_784_004_813),
            ("A100-80", 84_932_978_278),
            ("8e9", None),
            ("16GB", 16_000_000_000),
            ("15.5 GiB", 16_642_998_272),
            ("8000000000", 8_000_000_000),
        ],
    )
    def test_cards(self, text, size):
        """Names, bytes and sizes with a unit are taken."""
        if size is None:
            with pytest.raises(ConfigError):
                parse_gpu(text)
        else:
            assert parse_gpu(text).total_bytes == size

    @given(st.text(max_size=20))
    @settings(max_examples=100, deadline=None)
    def test_any_text_is_a_size_or_an_error(self, text):
        """No text breaks the parser."""
        with contextlib.suppress(ConfigError):
            assert parse_gpu(text).total_bytes > 0

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--gpu", "tpu"],
            ["--gpu", "0"],
            ["--gpu", "t4", "-p", "batch_size"],
            ["--gpu", "t4", "-p", "batchsize=4"],
            ["--gpu", "t4", "-p", "batch_size=x"],
            ["--gpu", "t4", "--row-length", "0"],
            ["--gpu", "t4", "--row-length", "9999"],
            ["--gpu", "t4", "-p", "model_name=nobody/nothing"],
        ],
    )
    def test_bad_input(self, arguments):
        """A wrong card, parameter, length or model is a ConfigError."""
        with pytest.raises(ConfigError):
            command(*arguments)


def test_divisors():
    """Every divisor, in rising order."""
    assert [divisors(n) for n in (1, 7, 12)] == [[1], [1, 7], [1, 2, 3, 4, 6, 12]]
