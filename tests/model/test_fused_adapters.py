"""Adapter products taken together: the same outputs and gradients as PyTorch's own, on the CPU.

That they are Unsloth's, too, is seen where its kernels run: scripts/gpu_equivalence compares whole trainings.
"""

from __future__ import annotations

import ast
from types import SimpleNamespace

import pytest
from sources import definitions

from helpers.core.config import build_config
from helpers.model.patches.fused_adapters import choose_adapters, fused_adapters
from helpers.model.patches.optimizer_step import skip_last_products
from helpers.runtime.hardware import Gpu

torch = pytest.importorskip("torch")

IN, OUT, RANK = 12, 20, 3
NAMES = ("LoRA_QKV", "LoRA_W", "LoRA_MLP")
TRAINED = SimpleNamespace(training=True)


class Count:
    """Counts the calls of a function of Unsloth's, which computes nothing here."""

    def __init__(self):
        self.calls = 0

    def apply(self, *args):
        """Count."""
        self.calls += 1


@pytest.fixture
def kernels():
    """Stands for Unsloth's module of kernels: three functions that are replaced, and what is asked of it instead."""
    return SimpleNamespace(
        **{name: Count() for name in NAMES},
        matmul_lora=lambda x, weight, state, a, b, scale: x @ weight.t(),
        fast_dequantize=lambda weight, state, **_: weight,
        _rms_layernorm=SimpleNamespace(_SAVE_OUTPUT=False),
    )


def gate(e, g):
    """Return silu(e) * g, as Unsloth's `swiglu_fg_kernel`."""
    return torch.nn.functional.silu(e) * g


def gate_backward(d, e, g):
    """Return what Unsloth's `swiglu_DWf_DW_dfg_kernel` leaves in its three arguments."""
    sigmoid = torch.sigmoid(e)
    f = sigmoid * e
    return f * g, d * f, d * g * sigmoid * (1 + e * (1 - sigmoid))


def projections(name, dtype=torch.float64, adapter_dtype=None, scales=(2.0, 1.0, 0.5)):
    """Return what a function is given after x, but for what follows the adapters."""
    torch.manual_seed(0)
    sizes = {
        "LoRA_QKV": [(OUT, IN), (8, IN), (8, IN)],
        "LoRA_W": [(OUT, IN)],
        "LoRA_MLP": [(OUT, IN)] * 2 + [(IN, OUT)],
    }
    found = []
    for (out, inner), scale in zip(sizes[name], scales, strict=False):
        a, b = (torch.randn(*size, dtype=adapter_dtype or dtype) / 3 for size in ((RANK, inner), (out, RANK)))
        found.append((torch.randn(out, inner, dtype=dtype) / 3, None, a.requires_grad_(), b.requires_grad_(), scale))
    return found


def plain(name, x, group):
    """Return what PyTorch makes of the formulas, one after the other."""

    def project(x, weight, _, a, b, scale):
        return x @ weight.t() + scale * (x @ a.to(x.dtype).t() @ b.to(x.dtype).t())

    if name == "LoRA_MLP":
        return (project(gate(project(x, *group[0]), project(x, *group[1])), *group[2]),)
    return tuple(project(x, *each) for each in group)


def arguments(name, group, more=()):
    """Return all that a function is given after x."""
    rest = {"LoRA_QKV": (True,), "LoRA_W": (), "LoRA_MLP": (gate, gate_backward, True)}
    return (*sum(group, ()), *rest[name], *more)


def outputs_and_gradients(call, group, dtype=torch.float64, start=None):
    """Return the outputs, and the gradients of x and of the adapters, for the same x each time."""
    torch.manual_seed(1)
    x = torch.randn(2, 5, IN, dtype=dtype).requires_grad_()
    hidden = x * 1  # as a norm's output: what is made of it may be overwritten
    found = call(hidden)
    found = found if isinstance(found, tuple) else (found,)
    kept = [each.detach().clone() for each in found]
    loss = sum((each * torch.linspace(-1, 1, each.numel(), dtype=dtype).view_as(each)).sum() for each in found)
    adapters = [each for projection in group for each in projection[2:4]]
    return kept, torch.autograd.grad(loss, [x, *adapters])


def near(one, other, **limits):
    """Say whether two lists of outputs and gradients are the same up to rounding."""
    return all(
        torch.allclose(a, b, **limits) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
class TestNumbers:
    """What a layer gives, and what it learns."""

    def test_outputs_and_gradients_are_pytorchs(self, kernels, name):
        """In float64, with another scale for each projection, up to rounding; Unsloth's function is not called."""
        group, count = projections(name), getattr(kernels, name)
        wanted = outputs_and_gradients(lambda x: plain(name, x, group), group)
        with fused_adapters(TRAINED, kernels) as taken:
            found = outputs_and_gradients(lambda x: getattr(kernels, name).apply(x, *arguments(name, group)), group)
        assert (count.calls, taken) == (0, {name})
        assert near(found, wanted, rtol=1e-10, atol=1e-10)
        assert all(each.abs().max() > 0 for each in found[1])

    @pytest.mark.parametrize(
        ("dtype", "adapter_dtype", "limit"),
        [
            (torch.float32, torch.float32, 2e-5),
            (torch.bfloat16, torch.float32, 0.02),
            (torch.bfloat16, torch.bfloat16, 0.02),
            (torch.float16, torch.float32, 0.003),
        ],
    )
    def test_they_are_so_in_other_types(self, kernels, name, dtype, adapter_dtype, limit):
        """The adapter may be in float32 beside 16-bit activations; its gradients have its own type."""
        group = projections(name, dtype, adapter_dtype)
        wanted = outputs_and_gradients(lambda x: plain(name, x, group), group, dtype)
        with fused_adapters(TRAINED, kernels):
            fused = getattr(kernels, name).apply
            found = outputs_and_gradients(lambda x: fused(x, *arguments(name, group)), group, dtype)
        for one, other in zip(found, wanted, strict=True):
            apart = [(a.double() - b.double()).norm() / b.double().norm() for a, b in zip(one, other, strict=True)]
            assert max(apart) < limit
        assert [each.dtype for each in found[1]] == [dtype, *[adapter_dtype] * (len(found[1]) - 1)]

    def test_gradients_of_two_passes_add_up(self, kernels, name):
        """A second backward pass adds its gradients to those of the first."""
        group = projections(name)
        adapters = [each for projection in group for each in projection[2:4]]
        with fused_adapters(TRAINED, kernels):
            for _ in range(2):
                x = torch.ones(1, 4, IN, dtype=torch.float64)
                found = getattr(kernels, name).apply(x * 1, *arguments(name, group))
                sum(each.sum() for each in (found if isinstance(found, tuple) else (found,))).backward()
        x = torch.ones(1, 4, IN, dtype=torch.float64)
        alone = torch.autograd.grad(sum(each.sum() for each in plain(name, x, group)), adapters)
        assert all(torch.allclose(each.grad, 2 * one, rtol=1e-10) for each, one in zip(adapters, alone, strict=True))

    def test_the_gradient_of_x_takes_its_place_where_unsloths_does(self, kernels, name):
        """Projections that share x, and the MLP, need no memory for it; o has an x that attention may have kept."""
        group = projections(name)
        x = torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True)
        hidden = x * 1
        with fused_adapters(TRAINED, kernels):
            found = getattr(kernels, name).apply(hidden, *arguments(name, group))
        sum(each.sum() for each in (found if isinstance(found, tuple) else (found,))).backward()
        assert torch.equal(hidden.detach(), x.grad) is (name != "LoRA_W")

    def test_elsewhere_unsloths_own_is_called(self, kernels, name):
        """In evaluation, with dropout or a bias, without an adapter, with weights of another format."""
        group = projections(name)
        other = [(weight.to(torch.float8_e4m3fn), *rest) for weight, *rest in group]
        packed = [(weight, SimpleNamespace(quant_type="int4"), *rest) for weight, _, *rest in group]
        bare = [(weight, None, None, None, None) for weight, *_ in group]
        x, count = torch.ones(1, 2, IN, dtype=torch.float64), getattr(kernels, name)
        for model, given, more in (
            (SimpleNamespace(training=False), group, ()),
            (TRAINED, group, ((0.1,) * len(group) if name != "LoRA_W" else 0.1,)),
            (TRAINED, group, (None, torch.ones(1))),
            (TRAINED, other, ()),
            (TRAINED, packed, ()),
            (TRAINED, bare, ()),
        ):
            with fused_adapters(model, kernels) as taken:
                getattr(kernels, name).apply(x, *arguments(name, given, more))
            assert not taken
        assert count.calls == 6

    def test_afterwards_unsloths_are_back(self, kernels, name):
        """Also after an error."""
        before = getattr(kernels, name)
        with pytest.raises(KeyError), fused_adapters(TRAINED, kernels):
            raise KeyError
        with fused_adapters(TRAINED, kernels):
            assert getattr(kernels, name) is not before
        assert getattr(kernels, name) is before


def test_a_recomputed_layer_still_leaves_out_its_last_product(kernels):
    """Gradients of a recomputed MLP are the same with and without the product of its down projection."""
    group = projections("LoRA_MLP")
    linear = SimpleNamespace(weight=group[2][0], out_features=IN)
    layer = SimpleNamespace(mlp=SimpleNamespace(down_proj=linear))
    model = SimpleNamespace(training=True, config=SimpleNamespace(model_type="mistral"), modules=lambda: [layer])
    run = lambda x: kernels.LoRA_MLP.apply(x, *arguments("LoRA_MLP", group))  # noqa: E731  looked up at each call
    with fused_adapters(model, kernels):
        whole = outputs_and_gradients(run, group)
        with skip_last_products(model, kernels, lambda: True):
            lean = outputs_and_gradients(run, group)
    assert not torch.allclose(lean[0][0], whole[0][0])
    assert all(torch.equal(one, other) for one, other in zip(lean[1], whole[1], strict=True))


class TestChoice:
    """Where adapter products are taken together."""

    @staticmethod
    def choose(capability=(9, 0), version="2026.10.9", **given):
        """Return the choice for a run with these parameters on such a card."""
        config = build_config("alpaca", preset="large-gpu", **given)
        gpu = Gpu("GPU", capability, 80 << 30, 79 << 30, 1) if capability else None
        return choose_adapters(config, gpu, unsloth_version=version)

    @pytest.mark.parametrize("given", [{}, {"gradient_checkpointing": True}, {"packing": True}, {"capability": (8, 0)}])
    def test_from_ampere_on_they_are(self, given):
        """Packed or not, recomputed or not."""
        assert self.choose(**given).name == "fused"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"capability": None}, "there is no GPU"),
            ({"capability": (7, 5)}, "not tried below compute capability 8.0"),
            ({"version": "2026.11.1"}, "tried with unsloth 2026.10.9 only, not with 2026.11.1"),
            ({"lora_dropout": 0.1}, "with dropout each product has an input of its own"),
            ({"fused_adapters": False}, "fused_adapters is off"),
        ],
    )
    def test_elsewhere_they_are_not_and_it_is_said_why(self, change, said):
        """Each condition that is missing is named."""
        choice = self.choose(**change)
        assert (choice.name, choice.reason) == ("separate", said)


class TestUnsloth:
    """Unsloth, as installed, still takes the products one by one, and looks its functions up by name."""

    @pytest.mark.parametrize(
        ("caller", "name"),
        [("apply_lora_qkv", "LoRA_QKV"), ("apply_lora_o", "LoRA_W"), ("apply_lora_mlp_swiglu", "LoRA_MLP")],
    )
    def test_its_layers_call_the_function_of_the_module(self, caller, name):
        """What is put in the function's place is what the layers call."""
        (found,) = definitions(f"unsloth/kernels/fast_lora.py {caller}")
        assert f"_apply({name}, X" in ast.unparse(found)

    @pytest.mark.parametrize(
        ("name", "projections", "more"),
        [
            ("LoRA_QKV", ["Q", "K", "V"], ["inplace", "dropout_p", "QBias", "KBias", "VBias"]),
            ("LoRA_W", [""], ["dropout_p", "bias"]),
            (
                "LoRA_MLP",
                ["gate", "up", "down"],
                ["_forward_function", "_backward_function", "inplace", "dropout_p", "gateBias", "upBias", "downBias"],
            ),
        ],
    )
    def test_its_functions_take_what_the_replacements_do(self, name, projections, more):
        """For each projection the weight, its state, A, B and the scale; after them what else there is."""
        (found,) = definitions(f"unsloth/kernels/fast_lora.py {name}.forward")
        each = [f"{one}{part}" for one in projections for part in ("W", "W_quant", "A", "B", "S")]
        assert [argument.arg for argument in found.args.args] == ["ctx", "X", *each, *more]

    @pytest.mark.parametrize("name", NAMES)
    def test_its_backward_pass_computes_x_a_again(self, name):
        """As soon as it keeps them, this module may have nothing left to do."""
        (found,) = definitions(f"unsloth/kernels/fast_lora.py {name}.backward")
        assert ".t() @ X" in ast.unparse(found)
