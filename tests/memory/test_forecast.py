"""How long a training will take: operations, pace, what past runs say, and the first steps' own pace."""

from __future__ import annotations

import dataclasses
import json

import pytest

from helpers.core.config import build_config
from helpers.memory.forecast import (
    Pace,
    forecast_training,
    format_minutes,
    learned_efficiency,
    past_metrics,
    session_note,
)
from helpers.memory.shapes import ModelShape
from helpers.runtime.calibration import Calibration

H100 = Calibration(800.0, "bf16", 8192, "NVIDIA H100")
CPU = Calibration(0.1, "fp32", 1024, None)
TINY = ModelShape(100, 300, 2, 2, 2, 1000)
"""2 layers of 4 x 100 x 100 + 3 x 100 x 300 = 130,000 weights, and a head of 100,000."""


def config(preset="colab-t4", **given):
    """A checked configuration."""
    return build_config("alpaca", preset=preset, **given)


def forecast(settings, lengths, calibration=CPU, **more):
    """Forecast with the tiny shape."""
    return forecast_training(settings, lengths, calibration, shape=TINY, **more)


class TestOperations:
    """What a training computes."""

    def test_each_token_meets_each_weight_twice(self):
        """Forward and backward, two operations a weight each: 8 rows of 50 tokens, 360,000 weights, 4 operations."""
        found = forecast(config(batch_size=8, gradient_checkpointing=False), [50] * 8)
        assert (found.tokens, found.operations) == (400, 400 * 4 * 360_000)

    def test_recomputed_layers_cost_a_third_pass(self):
        """With checkpointing the layers' 260,000 weights are multiplied once more; the head is not."""
        found = forecast(config(batch_size=8, gradient_checkpointing=True, checkpoint_skip_layers=0), [50] * 8)
        assert found.operations == 400 * (4 * 360_000 + 2 * 260_000)

    def test_layers_that_keep_their_activations_are_not_recomputed(self):
        """One of two layers: half of the third pass."""
        found = forecast(config(batch_size=8, gradient_checkpointing=True, checkpoint_skip_layers=1), [50] * 8)
        assert found.operations == 400 * (4 * 360_000 + 260_000)

    def test_rows_that_do_not_fit_are_not_trained_on(self):
        """A row longer than max_seq_length is left out, as in training."""
        assert forecast(config(max_seq_length=512), [50] * 8 + [600]).tokens == 400

    def test_a_cpu_s_batches_are_padded(self):
        """Two rows of 10 and 30 tokens in one batch are 60 on a CPU and 40 on a card."""
        settings = config(batch_size=2, gradient_accumulation=1)
        assert forecast(settings, [10, 30]).tokens == 60
        assert forecast(settings, [10, 30], H100).tokens == 40

    def test_max_steps_decides(self):
        """Three steps of 8 rows of 50 tokens, however many rows there are."""
        assert forecast(config(max_steps=3, batch_size=8, gradient_accumulation=1), [50] * 800).tokens == 1200

    def test_packed_rows_fill_sequences(self):
        """90 rows of 100 tokens fill 18 sequences of 512."""
        found = forecast(config(packing=True, max_seq_length=512, num_epochs=1.0), [100] * 90, H100)
        assert found.tokens == 18 * 512


class TestSeconds:
    """From operations to time."""

    def test_the_efficiency_is_a_share_of_the_pace(self):
        """576 million operations at 0.85 of 0.1 TFLOP/s take 6.8 ms."""
        found = forecast(config(batch_size=8, gradient_checkpointing=False), [50] * 8)
        assert found.train_seconds == pytest.approx(0.576e9 / 0.085e12)
        assert found.limited_by == "card"

    def test_measurements_count_forward_only(self):
        """Before and after one step: twice 4 rows of 50 tokens, 720,000 operations a token."""
        found = forecast(config(max_steps=1), [50] * 8, heldout=[50] * 4)
        assert found.heldout_seconds == pytest.approx(2 * 200 * 720_000 / (0.85 * 0.72 * 0.1e12))

    def test_measurements_on_the_way_are_counted(self):
        """With eval_steps 10 and 30 steps there are four: before, after 10, 20 and 30."""
        one = forecast(config(max_steps=1, eval_steps=10), [50] * 8, heldout=[50] * 4)
        found = forecast(config(max_steps=30, eval_steps=10), [50] * 8, heldout=[50] * 4)
        assert found.heldout_seconds == pytest.approx(2 * one.heldout_seconds)

    def test_a_fast_card_waits_for_its_host(self):
        """On an H100 the tiny model's passes take what launching its layers takes, 0.0079 s each."""
        settings = config(max_steps=10, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False)
        found = forecast(settings, [50] * 8, H100)
        assert found.limited_by == "host"
        assert found.train_seconds == pytest.approx(3 + 10 * 2 * 0.0079)

    def test_two_processes_take_half_as_long(self):
        """Operations are shared."""
        settings = config(batch_size=8)
        assert forecast(settings, [50] * 8, processes=2).seconds() == forecast(settings, [50] * 8).seconds() / 2

    def test_mistral_on_an_h100_as_measured(self):
        """8 packed sequences of 2,048 tokens without checkpointing took 0.972 s a step: within 20 %."""
        settings = config(
            packing=True, max_steps=100, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False
        )
        found = forecast_training(settings, [230] * 5000, Calibration(802, "bf16", 8192, "NVIDIA H100"))
        assert found.train_seconds / 100 == pytest.approx(0.972, rel=0.2)

    def test_mistral_recomputed_on_an_h100_as_measured(self):
        """4 packed sequences of 2,048 tokens with checkpointing took 0.696 s a step: within 20 %."""
        settings = config(
            packing=True, max_steps=100, batch_size=4, gradient_accumulation=1, gradient_checkpointing=True
        )
        found = forecast_training(settings, [230] * 5000, Calibration(802, "bf16", 8192, "NVIDIA H100"))
        assert found.train_seconds / 100 == pytest.approx(0.696, rel=0.2)

    def test_944_short_rows_on_an_h200_as_measured(self):
        """8 rows a step, graphs recorded on the way, took 24.3 s: within 20 %."""
        settings = config(num_epochs=1.0, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False)
        found = forecast_training(settings, [233] * 944, dataclasses.replace(H100, gpu="NVIDIA H200"), graphs=True)
        assert found.train_seconds == pytest.approx(24.3, rel=0.2)

    def test_an_unknown_model_has_none(self, tmp_path):
        """A hub id whose config.json is not here gives no forecast."""
        assert forecast_training(config(model_name="nobody/nothing"), [50], CPU) is None


def finished(seconds, **change):
    """The metrics of a run of 6e10 operations that took so long."""
    record = forecast(config(), [50] * 8).record() | {"operations": 6e10, "outcome_train_seconds": seconds} | change
    return {"forecast": record}


class TestLearned:
    """What finished runs say of the next one."""

    def test_without_runs_a_constant_is_taken(self):
        """None is known."""
        assert learned_efficiency(config(), CPU, []) == (0.85, 0)

    def test_the_median_of_the_newest_five(self):
        """0.1 TFLOP/s: 6e10 operations in 1.2 s are 0.5 of it, in 0.75 s 0.8; the oldest of six does not count."""
        past = [finished(9.0), *[finished(1.2)] * 3, *[finished(0.75)] * 2]
        assert learned_efficiency(config(), CPU, past) == (pytest.approx(0.5), 5)

    @pytest.mark.parametrize(
        "other",
        [
            {},
            {"forecast": {}},
            finished(1.2, outcome_train_seconds=None),
            finished(1.2, kind={"gpu": "Tesla T4"}),
        ],
    )
    def test_other_runs_say_nothing(self, other):
        """Those without an outcome, and those of another card, model or kind."""
        assert learned_efficiency(config(), CPU, [other]) == (0.85, 0)

    def test_they_are_read_from_the_runs_folder(self, tmp_path):
        """Each run's metrics.json; a damaged one is passed over."""
        for name, text in (("a", json.dumps({"x": 1})), ("b", "{"), ("c", None)):
            (tmp_path / name).mkdir()
            if text is not None:
                (tmp_path / name / "metrics.json").write_text(text, encoding="utf-8")
        assert past_metrics(tmp_path) == [{"x": 1}]

    def test_the_sentence_says_what_it_rests_on(self):
        """Operations, pace, and whether its share was learned."""
        first = forecast(config(), [50] * 8).describe()
        assert "85% of it assumed, since no run of this model has finished here yet" in first
        assert "50% of it, as in 1 earlier run here" in forecast(config(), [50] * 8, past=[finished(1.2)]).describe()


class TestPace:
    """The first steps' own pace."""

    def test_after_six_steps_the_rest_is_known(self):
        """The first step, ten times as slow, does not count: 0.01 s a token, 100 tokens a step, 20 steps left."""
        pace, now, said = Pace(), 0.0, []
        for step in range(8):
            pace.begins(100 * step, clock=lambda now=now: now)
            now += 10.0 if step == 0 else 1.0
            said.append(pace.ends(100 * step + 100, 25 - step, clock=lambda now=now: now))
        assert said == [None] * 5 + [pytest.approx(20.0), None, None]

    def test_a_pause_between_steps_does_not_count(self):
        """An hour of measuring between steps leaves the pace as it is."""
        pace, now, left = Pace(), 0.0, None
        for step in range(6):
            now += 3600.0
            pace.begins(100 * step, clock=lambda now=now: now)
            now += 1.0
            left = pace.ends(100 * step + 100, 10, clock=lambda now=now: now)
        assert left == pytest.approx(10.0)

    def test_the_last_step_has_nothing_left(self):
        """With no step to come nothing is said."""
        pace = Pace()
        for _ in range(6):
            pace.begins(0)
            assert pace.ends(1, 0) is None


class TestWords:
    """How times are said."""

    def test_minutes(self):
        """Seconds below a minute and a half, hours from two on."""
        assert [format_minutes(n) for n in (12, 89, 100, 7199, 7300)] == [
            "12 s",
            "89 s",
            "2 min",
            "2 h 0 min",
            "2 h 2 min",
        ]

    def test_a_session(self):
        """More than twelve hours do not fit into one."""
        assert session_note(3600).startswith("A free Colab session, which ends after 12 h at the latest")
        assert session_note(13 * 3600).startswith("That is longer than a free Colab session")
