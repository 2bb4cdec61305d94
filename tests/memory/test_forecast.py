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
    learned_ratio,
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

    def test_batches_have_no_padding(self):
        """Two rows of 10 and 30 tokens in one batch are 40, on a CPU and on a card."""
        settings = config(batch_size=2, gradient_accumulation=1)
        assert forecast(settings, [10, 30]).tokens == 40
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
        """576 million operations at 0.62 of 0.1 TFLOP/s take 9.3 ms."""
        found = forecast(config(batch_size=8, gradient_checkpointing=False), [50] * 8)
        assert found.train_seconds == pytest.approx(0.576e9 / 0.062e12)
        assert found.limited_by == "card"

    def test_measurements_count_forward_only(self):
        """Before and after one step: twice 4 rows of 50 tokens, 720,000 operations a token."""
        found = forecast(config(max_steps=1), [50] * 8, heldout=[50] * 4)
        assert found.heldout_seconds == pytest.approx(2 * 200 * 720_000 / (0.62 * 0.85 * 0.1e12))

    def test_measurements_on_the_way_are_counted(self):
        """With eval_steps 10 and 30 steps there are four: before, after 10, 20 and 30."""
        one = forecast(config(max_steps=1, eval_steps=10), [50] * 8, heldout=[50] * 4)
        found = forecast(config(max_steps=30, eval_steps=10), [50] * 8, heldout=[50] * 4)
        assert found.heldout_seconds == pytest.approx(2 * one.heldout_seconds)

    def test_a_fast_card_waits_for_its_host(self):
        """On an H100 the tiny model's passes take what launching its layers takes, 0.0066 s each."""
        settings = config(max_steps=10, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False)
        found = forecast(settings, [50] * 8, H100)
        assert found.limited_by == "host"
        assert found.train_seconds == pytest.approx(3 + 10 * 2 * 0.0066)

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

    @pytest.mark.parametrize(
        ("more", "seconds"), [({"graphs": True}, 20.1), ({"graphs": False}, 24.2)], ids=["graphs", "none"]
    )
    def test_944_short_rows_on_an_h200_as_measured(self, more, seconds):
        """8 rows a step, 1,743 tokens on average, with sizes recorded on the way and without: within 20 %."""
        settings = config(num_epochs=1.0, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False)
        lengths = [218 + 9 * (n % 21 - 10) for n in range(944)]
        found = forecast_training(settings, lengths, Calibration(780, "bf16", 8192, "NVIDIA H200"), **more)
        assert found.train_seconds == pytest.approx(seconds, rel=0.2)

    def test_replayed_passes_take_the_card_s_time_for_the_size_that_is_recorded(self):
        """20 passes of 800 tokens are filled up to 1,024; one recording of two layers takes 0.033 s a layer."""
        settings = config(max_steps=20, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False)
        found = forecast(settings, [100] * 64, H100, graphs=True)
        card = 20 * 1024 * 4 * 360_000 / (0.6 * 800e12)
        assert found.train_seconds == pytest.approx(3 + card + 2 * 0.033)
        few = forecast(
            dataclasses.replace(settings, train=dataclasses.replace(settings.train, max_steps=10)),
            [100] * 64,
            H100,
            graphs=True,
        )
        assert few.train_seconds == pytest.approx(3 + 10 * 2 * 0.0066)

    def test_passes_that_keep_the_card_busy_are_limited_by_it(self):
        """8 rows of 1,000 tokens are never recorded; Mistral's card works on them for longer than its host."""
        settings = config(num_epochs=1.0, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False)
        found = forecast_training(settings, [1000] * 800, Calibration(780, "bf16", 8192, "NVIDIA H200"), graphs=True)
        assert found.limited_by == "card"

    def test_several_processes_record_what_their_own_passes_repay(self):
        """60 passes among four are 15 each, of which 14 repay a recording; 52 are 13, and are not recorded."""
        for steps, seconds in ((60, 3 + 15 * 1024 * 4 * 360_000 / 480e12 + 2 * 0.033), (52, 3 + 13 * 2 * 0.0066)):
            settings = config(max_steps=steps, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False)
            found = forecast(settings, [100] * 64, H100, graphs=True, processes=4)
            assert found.train_seconds == pytest.approx(seconds)

    def test_an_unknown_model_has_none(self, tmp_path):
        """A hub id whose config.json is not here gives no forecast."""
        assert forecast_training(config(model_name="nobody/nothing"), [50], CPU) is None


KIND = forecast(config(), [50] * 8).kind


def finished(outcome, **change):
    """The metrics of a run that was to take a second and took so long."""
    record = forecast(config(), [50] * 8).record() | {"train_seconds": 1.0, "outcome_train_seconds": outcome} | change
    return {"forecast": record}


class TestLearned:
    """What finished runs say of the next one."""

    def test_without_runs_the_estimate_stands(self):
        """None is known."""
        assert learned_ratio(KIND, []) == (1.0, 0)

    def test_the_median_of_the_newest_five(self):
        """Three took 1.2 times as long as estimated, two 0.75 times; the oldest of six does not count."""
        past = [finished(9.0), *[finished(1.2)] * 3, *[finished(0.75)] * 2]
        assert learned_ratio(KIND, past) == (pytest.approx(1.2), 5)

    def test_what_an_earlier_run_had_learned_is_part_of_its_forecast(self):
        """Foretold 1 s after runs that took twice their estimates, and took 0.8 s: 1.6 times its own estimate."""
        assert learned_ratio(KIND, [finished(0.8, ratio=2.0)]) == (pytest.approx(1.6), 1)

    def test_a_run_takes_so_many_times_its_estimate(self):
        """Held-out losses, too."""
        one, found = (forecast(config(), [50] * 8, heldout=[50], past=past) for past in ([], [finished(1.5)]))
        assert found.train_seconds == pytest.approx(1.5 * one.train_seconds)
        assert found.heldout_seconds == pytest.approx(1.5 * one.heldout_seconds)

    def test_on_a_card_that_a_run_has_used_kernels_are_compiled(self):
        """The first step takes 0.9 s more than others, instead of 3.0, whatever that run trained."""
        other = finished(1.2, kind={"gpu": "NVIDIA H100", "model_name": "another"})
        new, known = (forecast(config(), [50] * 8, H100, past=past) for past in ([finished(1.2)], [other]))
        assert new.train_seconds - known.train_seconds == pytest.approx(2.1)

    def test_a_run_that_ended_early_says_nothing(self):
        """Its forecast was for all steps."""
        assert learned_ratio(KIND, [finished(0.3) | {"stopped_at": 40}, finished(1.1) | {"stopped_at": None}]) == (
            1.1,
            1,
        )

    @pytest.mark.parametrize(
        "other",
        [
            {},
            {"forecast": {}},
            finished(1.2, outcome_train_seconds=None),
            finished(1.2, kind={"gpu": "Tesla T4"}),
            finished(1.2, ratio=None),
        ],
    )
    def test_other_runs_say_nothing(self, other):
        """Those without an outcome, of another card, model or kind, and of a version that learned otherwise."""
        assert learned_ratio(KIND, [other]) == (1.0, 0)

    def test_they_are_read_from_the_runs_folder(self, tmp_path):
        """Each run's metrics.json; a damaged one is passed over."""
        for name, text in (("a", json.dumps({"x": 1})), ("b", "{"), ("c", None)):
            (tmp_path / name).mkdir()
            if text is not None:
                (tmp_path / name / "metrics.json").write_text(text, encoding="utf-8")
        assert past_metrics(tmp_path) == [{"x": 1}]

    def test_a_forecast_that_is_none_says_nothing(self, tmp_path):
        """A list where the forecast should be, and a text where its kind should be."""
        for name, written in (("a", [1]), ("b", {"kind": "x", "outcome_train_seconds": 3.0, "ratio": 1.0})):
            (tmp_path / name).mkdir()
            (tmp_path / name / "metrics.json").write_text(json.dumps({"forecast": written}), encoding="utf-8")
        past = past_metrics(tmp_path)
        assert len(past) == 1
        assert forecast(config(), [50] * 8, H100, past=past) == forecast(config(), [50] * 8, H100)

    def test_the_sentence_says_what_it_rests_on(self):
        """Operations, pace, the share assumed, and what earlier runs took."""
        first = forecast(config(), [50] * 8).describe()
        assert first.endswith(
            "This is reckoned from 7.8e+08 operations and 62% of this machine's 0.1 TFLOP/s; no run of this model has "
            "finished here yet."
        )
        again = forecast(config(), [50] * 8, past=[finished(1.2)]).describe()
        assert again.endswith("; times 1.20, because 1 earlier run took so much longer or shorter here.")


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
