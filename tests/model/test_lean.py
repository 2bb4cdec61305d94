"""Optimizer steps without needless walks through the model: the same numbers, and everything as before afterwards."""

from __future__ import annotations

import gc
import inspect

import pytest

from helpers.model.patches.imports import leave_alone, long_lived
from helpers.model.patches.optimizer_step import quick_steps

torch = pytest.importorskip("torch")


class Model(torch.nn.Module):
    """Two layers, of which the second is trained."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = torch.nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.trained = torch.nn.Linear(4, 2)
        self.counted = 0

    def num_parameters(self, *, exclude_embeddings):
        """Count, and remember that it was asked for."""
        self.counted += 1
        return 30 if exclude_embeddings else 40

    def forward(self, rows):
        """Return two numbers a row."""
        return self.trained(self.frozen(rows))


class Accelerator:
    """Clips as accelerate does alone."""

    def __init__(self):
        self.seen = []

    def clip_grad_norm_(self, parameters, largest):
        """Remember which parameters came."""
        self.seen = list(parameters)
        return torch.nn.utils.clip_grad_norm_(self.seen, largest)


class Trainer:
    """What of a trainer a step calls."""

    def __init__(self):
        self.model, self.accelerator = Model(), Accelerator()
        self.args = type("Arguments", (), {"max_grad_norm": 0.1})()
        self.optimizer = torch.optim.SGD(self.model.trained.parameters(), lr=0.5)

    def _clip_grad_norm(self, model):
        return self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)

    def floating_point_ops(self, inputs):
        """Count parameters anew each time."""
        return 6 * inputs["input_ids"].numel() * self.model.num_parameters(exclude_embeddings=True)

    def train(self, steps=3):
        """Take steps, and return the losses, norms and counts."""
        found = []
        for step in range(steps):
            rows = torch.full((2, 4), float(step + 1))
            loss = self.model(rows).square().mean()
            loss.backward()
            norm = self._clip_grad_norm(self.model)
            self.optimizer.step()
            self.model.zero_grad()
            found.append((loss.item(), norm.item(), self.floating_point_ops({"input_ids": rows})))
        return found


@pytest.fixture(autouse=True)
def set_aside():
    """What was imported is set aside, as after the import of Unsloth; nothing is frozen after a test."""
    gc.unfreeze()
    with long_lived():
        pass
    yield
    gc.unfreeze()


class TestNumbers:
    """What is computed."""

    def test_steps_are_the_same_bit_for_bit(self):
        """Losses, norms, counts and weights equal those of an ordinary training."""
        plain, lean = Trainer(), Trainer()
        with quick_steps(lean):
            found = lean.train()
        assert found == plain.train()
        assert torch.equal(lean.model.trained.weight, plain.model.trained.weight)
        assert found[0][0] != found[2][0]

    def test_gradients_are_gone_after_a_step(self):
        """Clearing leaves no gradient, and on demand zeros."""
        trainer = Trainer()
        with quick_steps(trainer):
            trainer.model(torch.ones(1, 4)).sum().backward()
            trainer.model.zero_grad(set_to_none=False)
            assert trainer.model.trained.weight.grad.abs().sum() == 0
            trainer.model.zero_grad()
            assert trainer.model.trained.weight.grad is None


class TestWork:
    """What is not done."""

    def test_parameters_are_counted_once(self):
        """Three steps count parameters once; otherwise three times."""
        plain, lean = Trainer(), Trainer()
        plain.train()
        with quick_steps(lean):
            lean.train()
        assert (plain.model.counted, lean.model.counted) == (3, 1)

    def test_only_trained_parameters_are_clipped(self):
        """Of four tensors the two trained ones reach the clipping."""
        trainer = Trainer()
        with quick_steps(trainer):
            trainer.train(1)
        assert [tuple(each.shape) for each in trainer.accelerator.seen] == [(2, 4), (2,)]

    def test_the_collector_leaves_old_objects_alone(self):
        """Inside the block what was there before is frozen."""
        with quick_steps(Trainer()):
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() == 0

    def test_what_something_else_froze_stays_frozen(self):
        """Objects frozen before the block are frozen after it."""
        with leave_alone():  # gives back what was set aside
            pass
        gc.freeze()
        with quick_steps(Trainer()):
            pass
        assert gc.get_freeze_count() > 1000


class TestRestored:
    """Everything is as before afterwards."""

    def test_after_an_error_too(self):
        """The trainer's and the model's own methods come back."""
        trainer = Trainer()
        with pytest.raises(RuntimeError, match="interrupted"), quick_steps(trainer):
            raise RuntimeError("interrupted")
        assert "zero_grad" not in vars(trainer.model)
        assert not {"_clip_grad_norm", "floating_point_ops"} & set(vars(trainer))

    def test_a_method_of_the_object_itself_comes_back(self):
        """A method that someone gave the one object is there again."""
        trainer = Trainer()
        mine = trainer.floating_point_ops = lambda inputs: 7
        with quick_steps(trainer):
            assert trainer.floating_point_ops is not mine
        assert trainer.floating_point_ops is mine

    def test_several_processes_clear_through_their_wrapper(self, monkeypatch):
        """DistributedDataParallel around the model has a method of its own, which knows where gradients are, too."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("LOCAL_RANK", "0")
        trainer = Trainer()
        trainer.accelerator.prepare_model = lambda model, device_placement=None: torch.nn.Sequential(model)
        walks = []
        monkeypatch.setattr(torch.nn.Sequential, "zero_grad", lambda self, set_to_none=True: walks.append(set_to_none))
        with quick_steps(trainer):
            wrapped = trainer.accelerator.prepare_model(trainer.model, device_placement=True)
            wrapped(torch.ones(1, 4)).sum().backward()
            wrapped.zero_grad()
            assert trainer.model.trained.weight.grad is None
            assert not walks
        wrapped.zero_grad()
        assert walks == [True]


class TestUpstream:
    """The steps are still needed."""

    def test_transformers_still_walks(self):
        """The trainer clears gradients, clips and counts through the whole model in each step."""
        from transformers import Trainer as Theirs

        step, clip = inspect.getsource(Theirs._run_epoch), inspect.getsource(Theirs._clip_grad_norm)
        assert "model.zero_grad()" in step
        assert "self._clip_grad_norm(model)" in step
        assert "self.floating_point_ops(inputs)" in step
        assert "clip_grad_norm_(model.parameters(), self.args.max_grad_norm)" in clip
