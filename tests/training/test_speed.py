"""That the trainer does what was asked for, with the rows that were checked."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
from datasets import Dataset

from helpers.core.config import build_config
from helpers.core.errors import ContractError, StackError
from helpers.model.patches import UNSLOTH_TESTED
from helpers.model.patches.attention import DISPATCH
from helpers.training import speed

ROWS = Dataset.from_list([{"input_ids": [1, 5, 6, 2], "completion_mask": [0, 0, 1, 1]}] * 3)


@pytest.fixture
def check(imagine_cards):
    """Checks a trainer that packs or not; returns its mode and the callbacks that were taken from it."""

    def check(*, asked, done, on_gpu, rows=ROWS):
        imagine_cards(*[(70 << 30, 80 << 30)] * on_gpu)
        removed: list[type] = []
        args = SimpleNamespace(report_to=[], packing=done, padding_free=False, optim="adamw")
        trainer = SimpleNamespace(args=args, train_dataset=rows, remove_callback=removed.append)
        return speed.check_trainer(trainer, build_config("alpaca", preset="colab-t4", packing=asked), ROWS), removed

    return check


@pytest.mark.parametrize(
    ("asked", "done", "on_gpu"), [(True, True, True), (False, False, True), (False, True, True), (True, False, False)]
)
def test_what_was_asked_for_passes(check, asked, done, on_gpu):
    """A trainer that packs when asked to, or need not, is accepted; on a CPU nothing is packed."""
    mode, removed = check(asked=asked, done=done, on_gpu=on_gpu)
    assert mode["packing"] is done
    assert [each.__name__ for each in removed] == ["PrinterCallback"]


def test_a_silent_fallback_is_an_error(check):
    """A trainer that on a GPU does not pack although it was asked to is refused, with what it does."""
    with pytest.raises(StackError, match="a trainer that packs, because packing is True") as caught:
        check(asked=True, done=False, on_gpu=True)
    assert "'packing': False" in caught.value.got


def test_rows_that_the_trainer_changed_are_an_error(check):
    """Its own labels are compared with those that were checked."""
    learned = Dataset.from_list([{**row, "completion_mask": [0, 1, 1, 1]} for row in ROWS])
    with pytest.raises(ContractError, match="6 supervised tokens, got 9"):
        check(asked=False, done=False, on_gpu=True, rows=learned)


class TestGraphedLayers:
    """What recorded passes are told of a training."""

    @pytest.fixture
    def trainer(self):
        """A trainer of two layers, after 3 of 10 steps of 4 passes of 2 rows."""
        layers = [SimpleNamespace(forward=len), SimpleNamespace(forward=len)]
        args = SimpleNamespace(
            per_device_train_batch_size=2, gradient_accumulation_steps=4, packing=False, max_steps=10
        )
        return SimpleNamespace(
            args=args,
            train_dataset=range(80),
            model=SimpleNamespace(model=SimpleNamespace(layers=layers)),
            state=SimpleNamespace(max_steps=10, global_step=3),
        )

    def test_they_are_the_models_layers_with_the_longest_row(self, trainer):
        """The largest pass is of the two longest rows; packed, it is of two whole sequences."""
        config = build_config("alpaca", preset="colab-t4", max_seq_length=2048)
        graphs = speed._graphed_layers(trainer, config, [30, 400, 10, 300])
        assert (graphs.layers, graphs.largest) == (trainer.model.model.layers, 700)
        trainer.args.packing = True
        graphs = speed._graphed_layers(trainer, config, [30, 400, 10, 300])
        assert (graphs.longest, graphs.largest) == (400, 4096)

    def test_sizes_are_chosen_before_training(self, trainer):
        """40 passes of two rows of 120 tokens are filled up to 256; packed, rows say nothing of passes."""
        config = build_config("alpaca", preset="colab-t4")
        assert speed._graphed_layers(trainer, config, [120] * 80).wanted == {256: 256}
        trainer.args.packing = True
        assert speed._graphed_layers(trainer, config, [120] * 80).wanted is None

    def test_the_passes_that_are_left_go_down_with_the_steps(self, trainer):
        """Seven steps of four passes; one step later six."""
        graphs = speed._graphed_layers(trainer, build_config("alpaca", preset="colab-t4"), [30, 400])
        assert graphs.left() == 28
        trainer.state.global_step += 1
        assert graphs.left() == 24

    def test_without_a_card_none_are_recorded(self, trainer):
        """The mode says so, and why."""
        trainer.args.padding_free, trainer.args.optim = True, "adamw_torch"
        mode = speed.training_mode(trainer, build_config("alpaca", preset="colab-t4"))
        assert (mode["graphs"], mode["graphs_reason"]) == (False, "there is no GPU")
        assert (mode["adapters"], mode["adapters_reason"]) == ("separate", "there is no GPU")


@pytest.mark.parametrize(("capability", "replaced"), [((9, 0), True), ((7, 5), False)])
def test_adapter_products_are_taken_together_where_the_card_gains(monkeypatch, imagine_cards, capability, replaced):
    """While it trains, and no longer; otherwise Unsloth's functions stay."""
    kernels = SimpleNamespace(LoRA_QKV="theirs", LoRA_W="theirs", LoRA_MLP="theirs")
    dispatch = SimpleNamespace(HAS_FLASH_ATTENTION=True, HAS_XFORMERS=False, select_attention_backend=len)
    modules = {
        "unsloth": SimpleNamespace(__version__=UNSLOTH_TESTED),
        "unsloth.kernels": SimpleNamespace(fast_lora=kernels),
        "unsloth.utils": SimpleNamespace(attention_dispatch=dispatch),
        DISPATCH: dispatch,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    imagine_cards((70 << 30, 80 << 30), capability=capability)
    args = SimpleNamespace(packing=False, padding_free=False, optim="adamw")
    model = SimpleNamespace(parameters=lambda: [])
    trainer = SimpleNamespace(args=args, model=model, training_step=len, _inner_training_loop=len)
    config = build_config("alpaca", preset="colab-t4")
    checkpoints = SimpleNamespace(
        config=config, record=SimpleNamespace(counter=SimpleNamespace(passed=0)), run=None, close=lambda: None
    )
    with speed.fast_training(trainer, checkpoints):
        assert (kernels.LoRA_MLP != "theirs") is replaced
    assert set(vars(kernels).values()) == {"theirs"}


def test_weights_stay_unpacked_as_long_as_recordings_read_them(monkeypatch, imagine_cards):
    """Recordings may ask for it; they are gone before the weights are."""
    events = []

    @contextmanager
    def noted(name, value):
        events.append(f"{name} begins")
        yield value
        events.append(f"{name} ends")

    imagine_cards()
    graphs = SimpleNamespace(installed=lambda: noted("recording", None))
    monkeypatch.setattr(speed, "training_mode", lambda *_: {"graphs": True, "adapters": "separate"})
    monkeypatch.setattr(speed, "_graphed_layers", lambda *_: graphs)
    monkeypatch.setattr(speed, "weights_unpacked_once", lambda model: noted("unpacking", f"for {model}"))
    for name in ("quick_steps", "without_padding"):
        monkeypatch.setattr(speed, name, lambda _: nullcontext())
    trainer = SimpleNamespace(model="a model", training_step=len, _inner_training_loop=len)
    record = SimpleNamespace(counter=SimpleNamespace(passed=0), lengths=[])
    config = build_config("alpaca", preset="smoke")
    checkpoints = SimpleNamespace(config=config, record=record, run=None, close=lambda: None)
    with speed.fast_training(trainer, checkpoints):
        assert (record.graphs, graphs.unpack) == (graphs, "for a model")
    assert events == ["unpacking begins", "recording begins", "recording ends", "unpacking ends"]


def test_on_a_cpu_batches_lose_their_padding(imagine_cards):
    """Inside `fast_training` the collator leaves it out, and the record says so."""
    imagine_cards()
    collator = SimpleNamespace(padding_free=False)
    config = SimpleNamespace(model_type="mistral", _attn_implementation="sdpa", sliding_window=None)
    trainer = SimpleNamespace(
        args=SimpleNamespace(packing=False, padding_free=False, optim="adamw"),
        model=SimpleNamespace(config=config, parameters=lambda: []),
        data_collator=collator,
        training_step=len,
        _inner_training_loop=len,
    )
    settings = build_config("alpaca", preset="smoke")
    assert speed.training_mode(trainer, settings)["padding_free"] is True
    record = SimpleNamespace(counter=SimpleNamespace(passed=0))
    checkpoints = SimpleNamespace(config=settings, record=record, run=None, close=lambda: None)
    with speed.fast_training(trainer, checkpoints):
        assert collator.padding_free is True
        assert speed.training_mode(trainer, settings)["padding_free"] is True
    assert collator.padding_free is False
    config.sliding_window = 64
    assert speed.training_mode(trainer, settings)["padding_free"] is False
