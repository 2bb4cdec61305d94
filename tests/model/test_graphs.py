"""Recorded passes: the rules that CUDA graphs must keep, on the CPU; scripts/gpu_equivalence tries the graphs."""

from __future__ import annotations

import gc
import itertools
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.core.config import build_config
from helpers.model.patches.cuda_graphs import (
    GraphedLayers,
    choose_graphs,
    decoder_layers,
    expected_passes,
    host_lengths,
    recorded_size,
    sizes_to_record,
)
from helpers.model.patches.graph_capture import Buffers, GraphRecording, Recording, Weights
from helpers.runtime.hardware import SPLIT, Gpu

torch = pytest.importorskip("torch")

GOOD = {"attention": "varlen (torch kernel)", "unsloth_version": "2026.10.9"}


def choose(capability=(9, 0), cards=1, options=GOOD, **given):
    """The choice for a run with these parameters on these cards; None for no card."""
    given = {"gradient_checkpointing": False, "lora_dropout": 0.0, **given}
    gpu = Gpu("GPU", capability, 80 << 30, 79 << 30, cards) if capability else None
    return choose_graphs(build_config("alpaca", preset="large-gpu", **given), gpu, **options)


class Layer(torch.nn.Module):
    """A decoder layer in small: what it adds depends on a token's place and on the tokens before it in its row."""

    def __init__(self, size=6):
        super().__init__()
        self.frozen = torch.nn.Linear(size, size, bias=False)
        self.frozen.requires_grad_(False)
        self.trained = torch.nn.Linear(size, size, bias=False)
        self.calls = 0

    def forward(self, hidden, position_ids=None, packed_seq_lengths=None, attention_mask=None, **named):
        """Return a tuple, as transformers' layers do."""
        self.calls += 1
        parts = hidden[0].split([int(n) for n in packed_seq_lengths if n])
        means = torch.cat([part.cumsum(0) / torch.arange(1, len(part) + 1)[:, None] for part in parts])
        places = position_ids[0, :, None] / 10
        return (hidden + torch.tanh(self.trained(means[None]) + self.frozen(hidden) + places),)


class Computed(GraphedLayers):
    """Records by computing anew; every other part is the real one."""

    def _new_recording(self, buffers, named):
        return Recording(self._run, buffers, named, self.weights)

    def _announce(self, buffers):
        pass

    def _check_room(self, buffers, named):
        pass


def make_layers(count=3):
    """Return layers with the same weights each time."""
    torch.manual_seed(0)
    return torch.nn.ModuleList([Layer() for _ in range(count)]).train()


def batch(*lengths, seed=1):
    """Return hidden states of a flattened batch and a layer's named arguments."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, sum(lengths), 6, generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])[None].int()
    return hidden, {"position_ids": positions, "packed_seq_lengths": torch.tensor(lengths), "attention_mask": None}


def walk(layers, hidden, named):
    """Go through the layers as Unsloth's model does."""
    for layer in layers:
        hidden = layer(hidden, **named)[0]
    return hidden


def step(layers, hidden, named):
    """Return output and gradients of a training pass."""
    for parameter in layers.parameters():
        parameter.grad = None
    output = walk(layers, hidden, named)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output.detach().clone(), [layer.trained.weight.grad.clone() for layer in layers]


class TestChoice:
    """Whether passes are recorded."""

    def test_where_the_host_is_the_limit_they_are(self):
        """A fast card, rows without padding, nothing recomputed."""
        choice = choose()
        assert choice.name == "graphs"
        assert "waits for the host" in choice.reason

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"capability": None}, "no GPU"),
            ({"capability": (7, 5)}, "below compute capability 8.0"),
            ({"options": GOOD | {"unsloth_version": "2026.11.1"}}, "2026.11.1"),
            ({"options": GOOD | {"attention": "sdpa"}}, "sdpa"),
            ({"options": GOOD | {"attention": "xformers"}}, "xformers"),
            ({"gradient_checkpointing": True}, "recomputed"),
            ({"lora_dropout": 0.1}, "dropout"),
            ({"options": GOOD | {"padding_free": False}}, "padded"),
            ({"cuda_graphs": False}, "cuda_graphs is off"),
        ],
    )
    def test_elsewhere_they_are_not_and_it_is_said_why(self, change, said):
        """Each condition that is missing is named."""
        choice = choose(**change)
        assert choice.name == "none"
        assert said in choice.reason

    def test_layers_on_two_cards_are_not_recorded(self, monkeypatch):
        """A model that is split over its cards is against it, and a second card without a share of it is not."""
        assert choose(cards=2).name == "graphs"
        monkeypatch.setenv(SPLIT, "1")
        assert choose(cards=2).reason == "the layers lie on 2 cards"

    @pytest.mark.parametrize("attention", ["flash-attn", "varlen (torch)", "varlen (torch kernel)"])
    def test_each_attention_that_takes_borders_will_do(self, attention):
        """Which kernel it is does not matter."""
        assert choose(options=GOOD | {"attention": attention}).name == "graphs"


class TestSizes:
    """What a batch is filled up to."""

    @pytest.mark.parametrize(
        ("tokens", "rows", "size"),
        [
            (1, 1, (256, 16)),
            (256, 8, (256, 16)),
            (257, 15, (512, 16)),
            (1700, 16, (1792, 32)),
            (4096, 8, (4096, 16)),
            (4000, 8, (4096, 16)),
        ],
    )
    def test_known(self, tokens, rows, size):
        """Whole multiples stay."""
        assert recorded_size(tokens, rows) == size

    def test_there_is_always_room_for_a_segment_of_filling(self):
        """At most one step of tokens is added."""
        for tokens in range(1, 9000, 37):
            for rows in (1, 7, 15, 16, 40):
                filled, segments = recorded_size(tokens, rows)
                assert filled >= tokens
                assert segments > rows
                assert filled - tokens < 256

    @pytest.mark.parametrize("size", [(256, 16), (8192, 16), (1792, 32), (256, 272)])
    def test_unsloth_is_told_of_short_rows_that_differ(self, size):
        """For rows all alike, or longer than 1024 on average, it may call a kernel that takes no borders."""
        lengths = host_lengths(*size)
        assert (sum(lengths), len(lengths)) == size
        assert min(lengths[:16]) > 0
        assert len(set(lengths[:16])) > 1
        assert size[0] / 16 <= 1024


class TestBuffers:
    """How a batch is laid into them."""

    def test_borders_end_with_the_filling(self):
        """The last segment with tokens is what was filled up."""
        hidden, named = batch(3, 2)
        buffers = Buffers.like(hidden, 8, 4)
        buffers.load(hidden, named["position_ids"], named["packed_seq_lengths"])
        assert buffers.borders.tolist() == [0, 3, 5, 8, 8]
        assert buffers.lengths.tolist() == [3, 2, 3, 0]
        assert torch.equal(buffers.hidden[:, :5], hidden)
        assert buffers.hidden[:, 5:].eq(1).all()

    def test_only_hidden_states_of_their_type_fit(self):
        """Copying would make others of theirs, silently."""
        buffers = Buffers.like(batch(3)[0], 8, 4)
        assert buffers.fits(torch.zeros(1, 2, 6))
        assert not buffers.fits(torch.zeros(1, 2, 6, dtype=torch.bfloat16))
        assert not buffers.fits(torch.zeros(1, 2, 6, device="meta"))

    def test_nothing_is_left_of_a_longer_batch(self):
        """A shorter batch overwrites all of it."""
        long, named_long = batch(4, 4)
        short, named = batch(2)
        buffers = Buffers.like(long, 8, 4)
        buffers.load(long, named_long["position_ids"], named_long["packed_seq_lengths"])
        buffers.load(short, named["position_ids"], named["packed_seq_lengths"])
        assert buffers.lengths.tolist() == [2, 6, 0, 0]
        assert buffers.hidden[:, 2:].eq(1).all()
        assert not buffers.positions[:, 2:].any()


class TestReplay:
    """What a replayed pass computes."""

    def test_a_size_is_recorded_at_its_second_coming_and_replayed_from_then_on(self):
        """And the line that says so counts them."""
        layers = make_layers()
        graphs = Computed(list(layers), 20)
        with graphs.installed():
            for seed, replayed in ((1, 0), (2, 1), (3, 2)):
                step(layers, *batch(5, 3, 7, seed=seed))
                assert graphs.replayed == replayed
            step(layers, *batch(300, seed=4))
            assert graphs.replayed == 2
        said = f"1 sizes recorded and compared with the plain pass in {graphs.seconds:.1f} s."
        assert graphs.describe() == f"CUDA graphs: 2 of 4 passes replayed, {said}"
        graphs.unpacked = 13 << 30
        more = "Frozen weights were unpacked once, into 13.0 GiB."
        assert graphs.describe() == f"CUDA graphs: 2 of 4 passes replayed, {said} {more}"

    @pytest.mark.parametrize("lengths", [(5, 3, 7), (1,), (256,), (100, 156), (9,) * 15])
    def test_output_and_gradients_are_those_of_the_plain_pass(self, lengths):
        """Whatever the batch was that the size was recorded with."""
        plain, layers = make_layers(), make_layers()
        graphs = Computed(list(layers), 300)
        with graphs.installed():
            step(layers, *batch(200, 30))  # other batches of the same size
            step(layers, *batch(8, 8, 8, 8))
            mine = step(layers, *batch(*lengths))
        assert graphs.replayed == 2
        theirs = step(plain, *batch(*lengths))
        torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=1e-6)
        for a, b in zip(mine[1], theirs[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_gradients_of_several_passes_add_up(self):
        """Gradients handed out are not overwritten by the next replay."""
        plain, layers = make_layers(), make_layers()
        graphs = Computed(list(layers), 20)
        batches = [batch(5, 3, seed=s) for s in range(4)]

        def total(those):
            """Return the gradients of all batches together."""
            for parameter in those.parameters():
                parameter.grad = None
            for hidden, named in batches:
                walk(those, hidden, named).square().sum().backward()
            return [layer.trained.weight.grad.clone() for layer in those]

        with graphs.installed():
            mine = total(layers)
        assert graphs.replayed == 3
        for a, b in zip(mine, total(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_the_hidden_states_get_their_gradient_if_they_want_one(self):
        """As below a trained embedding."""
        plain, layers = make_layers(), make_layers()
        graphs = Computed(list(layers), 20)
        found = []
        for those in (plain, layers):
            hidden, named = batch(5, 3)
            hidden.requires_grad_()
            with graphs.installed():
                for _ in range(3):
                    hidden.grad = None
                    walk(those, hidden, named).square().sum().backward()
            found.append(hidden.grad)
        assert graphs.replayed == 2
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)

    def test_training_with_replays_takes_the_same_steps(self):
        """Twelve steps over batches of other lengths."""
        losses = []
        for recorded in (False, True):
            layers = make_layers()
            graphs = Computed(list(layers), 64)
            optimizer = torch.optim.AdamW([p for p in layers.parameters() if p.requires_grad], lr=0.05)
            seen = []
            with graphs.installed() if recorded else torch.enable_grad():
                for at in range(12):
                    hidden, named = batch(5 + at, 3, 40 - at, seed=at)
                    loss = (walk(layers, hidden, named) - 1).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    seen.append(loss.item())
            losses.append(seen)
        assert graphs.replayed == 11
        assert losses[1][-1] < 0.8 * losses[1][0]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class TestWorth:
    """Which sizes are recorded: those that will come often enough."""

    def walked(self, passes, lengths):
        """Train so many passes in all, of these lengths; return the graphs."""
        layers, left = make_layers(), [passes]
        graphs = Computed(list(layers), 600, largest=600, left=lambda: left[0])
        with graphs.installed():
            for length in lengths:
                step(layers, *batch(length))
                left[0] -= 1
        return graphs

    def test_a_short_training_records_nothing_and_says_so(self):
        """Recording costs more than its replays save."""
        graphs = self.walked(14, [8] * 14)
        assert (graphs.replayed, graphs.sizes) == (0, 0)
        said = "none recorded; in 14 passes no size was expected to recur 14 times."
        assert graphs.describe() == f"CUDA graphs: {said}"

    def test_one_size_of_enough_passes_is_recorded_at_its_second_coming(self):
        """This pass counts: 15 passes in all leave 14 when it comes again, 14 leave 13."""
        assert self.walked(15, [8, 8]).replayed == 1
        assert self.walked(14, [8, 8]).replayed == 0

    def test_a_rare_size_is_not_recorded_beside_a_frequent_one(self):
        """Two of ten passes are a fifth of the 50 that are left: 10, too few."""
        graphs = self.walked(59, [8] * 8 + [500] * 2)
        assert (graphs.sizes, graphs.replayed) == (1, 7)

    def test_what_was_rare_at_first_may_turn_out_to_be_frequent(self):
        """Shares are of all passes until then."""
        graphs = self.walked(200, [8] * 6 + [500] * 2)
        assert (graphs.sizes, graphs.replayed) == (2, 6)


class TestPlanned:
    """Sizes that are chosen before training, from its own rows."""

    @pytest.mark.parametrize(
        ("expected", "wanted"),
        [
            ({}, {}),
            ({1536: 13.0}, {}),
            ({1536: 15.0}, {1536: 1536}),
            ({1536: 20, 1792: 20, 2048: 20}, {1536: 2048, 1792: 2048, 2048: 2048}),
            ({1024: 100, 2048: 100}, {1024: 1024, 2048: 2048}),
            ({256: 5, 2048: 100}, {2048: 2048}),
            ({4096: 100, 4352: 500}, {4096: 4096}),
        ],
    )
    def test_recordings_that_replays_repay(self, expected, wanted):
        """14 replays repay one, 256 tokens more cost a quarter of one; passes over 4,096 tokens are not recorded."""
        assert sizes_to_record(expected) == wanted

    @given(st.dictionaries(st.integers(1, 12).map(lambda n: 256 * n), st.integers(1, 60), max_size=6))
    @settings(max_examples=60, deadline=None)
    def test_no_other_choice_saves_more(self, expected):
        """Every set of recorded sizes is tried."""

        def saved(recorded, filled=None):
            total = -14.0 * len(recorded)
            for size, count in expected.items():
                tops = [top for top in recorded if top >= size]
                total += max([0.0, *(count * (1 - 0.25 * (top - size) / 256) for top in tops)])
            return total

        chosen = sizes_to_record(expected)
        sets = [set(each) for n in range(len(expected) + 1) for each in itertools.combinations(expected, n)]
        assert saved(set(chosen.values())) == pytest.approx(max(map(saved, sets)))

    def test_how_often_each_size_comes(self):
        """8 rows of 100 tokens are 800 each time; with rows of 100 and 160 sums differ, and the passes add up."""
        assert expected_passes([100] * 64, 8, 40) == {1024: 40.0}
        mixed = expected_passes([100] * 32 + [160] * 32, 8, 40)
        assert list(mixed) == [1024, 1280]
        assert sum(mixed.values()) == pytest.approx(40)

    def test_fewer_rows_than_a_pass_has(self):
        """All of them are one pass."""
        assert expected_passes([100] * 3, 8, 5) == {512: 5.0}

    def test_batches_are_filled_up_to_the_recorded_size(self):
        """From the second pass on; a size that is not wanted runs as it is."""
        layers, left = make_layers(), [100]
        graphs = Computed(list(layers), 600, largest=600, left=lambda: left[0], sizes={256: 512, 512: 512})
        with graphs.installed():
            for length in (8, 300, 8, 700, 8):
                step(layers, *batch(length))
        assert (graphs.sizes, graphs.replayed) == (1, 3)
        assert list(graphs.recorded) == []  # dropped at the end
        assert graphs.seen == {(512, 16): 4, (768, 16): 1}

    def test_the_longest_row_may_be_what_fills_up(self):
        """257 tokens filled up to 1,024 end in a row of 767, longer than ours: kernels must reach its end."""
        sizes = {512: 1024, 768: 1024, 1024: 1024}
        assert GraphedLayers([], 300, sizes=sizes).longest == 768
        assert GraphedLayers([], 900, sizes=sizes).longest == 900
        assert GraphedLayers([], 100).longest == 256

    def test_near_the_end_nothing_is_recorded(self):
        """A training that is resumed for its last 13 passes does not repay a recording."""
        layers = make_layers()
        graphs = Computed(list(layers), 600, largest=600, left=lambda: 13, sizes={256: 256})
        with graphs.installed():
            for _ in range(3):
                step(layers, *batch(8))
        assert graphs.describe() == "CUDA graphs: none recorded; 3 passes of these lengths do not repay it."


class TestRoom:
    """Memory that must be free."""

    @pytest.mark.parametrize(("largest", "wanted"), [(300, 600), (6000, 10096)])
    def test_the_largest_pass_and_the_recorded_ones_fit_beside_each_other(self, monkeypatch, largest, wanted):
        """At 1,000 bytes a token; a pass that is too large to record counts once, recorded ones as far as they go."""
        hidden, named = batch(200)
        buffers = Buffers.like(hidden, 256, 16)
        buffers.load(hidden, named["position_ids"], named["packed_seq_lengths"])
        named |= {"position_ids": buffers.positions, "packed_seq_lengths": buffers.lengths}
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        for free, fits in ((1100 * wanted, True), (1100 * wanted - 1, False)):
            allocated = iter((10_000, 266_000))  # before a pass, and with what it leaves for the pass backward
            monkeypatch.setattr(torch.cuda, "memory_allocated", lambda allocated=allocated: next(allocated))
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 << 30))
            graphs = GraphedLayers(list(make_layers()), 200, largest=largest)
            graphs.unpack = lambda room: 5 + room
            with nullcontext() if fits else pytest.raises(RuntimeError, match="of free memory is needed"):
                graphs._check_room(buffers, named)
            assert graphs.unpacked == (5 if fits else 0)  # nothing is left to offer


class TestOrder:
    """Recordings share their memory, so a pass goes backward before the next one begins."""

    def replayed(self, graphs, layers, *lengths):
        """Return the loss of a pass that is replayed."""
        before = graphs.replayed
        loss = walk(layers, *batch(*lengths)).sum()
        assert graphs.replayed == before + 1
        return loss

    @pytest.fixture
    def recorded(self):
        """Layers with two sizes recorded, inside the block."""
        layers = make_layers()
        graphs = Computed(list(layers), 300)
        with graphs.installed():
            for lengths in ((5, 3), (200, 100)) * 2:
                step(layers, *batch(*lengths))
            yield graphs, layers

    def test_a_second_pass_before_the_first_went_backward(self, recorded):
        """The first one's activations are gone: of the same size, or of another."""
        for lengths in ((5, 3), (200, 100)):
            first, second = self.replayed(*recorded, 5, 3), self.replayed(*recorded, *lengths)
            with pytest.raises(RuntimeError, match="before the next pass is replayed"):
                first.backward()
            second.backward()

    def test_a_second_pass_backward(self, recorded):
        """The first overwrites what it reads."""
        loss = self.replayed(*recorded, 5, 3)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="must go backward once"):
            loss.backward()

    def test_a_pass_that_never_goes_backward_is_no_harm(self, recorded):
        """As after an error between the two."""
        self.replayed(*recorded, 5, 3)
        self.replayed(*recorded, 5, 3).backward()


class TestChangedWeights:
    """A graph reads addresses; it is not replayed when something else lies there."""

    def after(self, change):
        """Record, change the layers, train two passes; return the graphs, and what both kinds of layers give then."""
        plain, layers = make_layers(), make_layers()
        graphs = Computed(list(layers), 20)
        with graphs.installed():
            for _ in range(2):
                step(layers, *batch(5, 3))
            assert graphs.sizes == 1
            change(layers)
            for _ in range(2):
                mine = step(layers, *batch(5, 3))
        change(plain)
        return graphs, mine, step(plain, *batch(5, 3))

    @pytest.mark.parametrize("name", ["trained", "frozen"])
    def test_another_parameter(self, name):
        """As a loader may put in the old one's place; a trained one gets the gradients."""

        def change(layers):
            weight = getattr(layers[1], name).weight
            getattr(layers[1], name).weight = torch.nn.Parameter(weight.detach() * 2, weight.requires_grad)

        graphs, mine, theirs = self.after(change)
        assert graphs.sizes == 2
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", ["trained", "frozen"])
    def test_other_memory(self, name):
        """As when a model is moved to the host and back."""

        def change(layers):
            weight = getattr(layers[1], name).weight
            weight.data = weight.data * 2

        graphs, mine, theirs = self.after(change)
        assert graphs.sizes == 2
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    def test_the_same_memory(self):
        """An optimizer, or a checkpoint that is loaded, writes in place."""

        def change(layers):
            layers.load_state_dict({name: value * 2 for name, value in layers.state_dict().items()})

        graphs, mine, theirs = self.after(change)
        assert graphs.sizes == 1
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    def test_parameters_that_are_replaced_before_the_first_pass(self):
        """As a checkpoint may be loaded after the layers were prepared."""
        layers = make_layers()
        graphs = Computed(list(layers), 20)
        with graphs.installed():
            for layer in layers:
                layer.trained.weight = torch.nn.Parameter(layer.trained.weight.detach().clone())
            for _ in range(3):
                _, gradients = step(layers, *batch(5, 3))
        assert graphs.replayed == 2
        assert all(gradient.any() for gradient in gradients)

    def test_tables_of_positions_outlive_their_replacement(self):
        """Unsloth builds longer ones for a longer pass, and drops those that a graph still reads."""
        layers = make_layers()
        layers[0].rotary = torch.nn.Module()
        layers[0].rotary.multi_gpu_cos_cached = [torch.zeros(8), None]
        table = weakref.ref(layers[0].rotary.multi_gpu_cos_cached[0])
        graphs = Computed(list(layers), 20)
        with graphs.installed():
            for _ in range(2):
                step(layers, *batch(5, 3))
            layers[0].rotary.multi_gpu_cos_cached[0] = torch.zeros(16)
            assert table() is not None
        gc.collect()
        assert table() is None

    def test_hidden_states_that_want_a_gradient_which_was_not_recorded(self):
        """They get it, from a plain pass."""
        layers = make_layers()
        graphs = Computed(list(layers), 20)
        hidden, named = batch(5, 3)
        with graphs.installed():
            for _ in range(2):
                step(layers, hidden, named)
            hidden.requires_grad_()
            step(layers, hidden, named)
        assert graphs.replayed == 1
        assert hidden.grad.any()


class Graph:
    """Stands for a CUDA graph: on a CPU recording computes at once, and a replay is only noticed."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        """Notice."""
        self.replays += 1


class TestGraphRecording:
    """Which tensors the graphs read and write; the graphs themselves need a GPU."""

    @pytest.fixture
    def recording(self, monkeypatch):
        """A recording for which torch.cuda is stand-ins; `asked` are the calls of autograd while a graph records."""
        asked, within = [], []
        gradients = torch.autograd.grad

        @contextmanager
        def graph(which, **named):
            within.append(named)
            yield
            within.append(None)

        def grad(outputs, inputs, given, **named):
            if within and within[-1]:
                asked.append((outputs, inputs, given))
            return gradients(outputs, inputs, given, **named)

        stream = SimpleNamespace(wait_stream=lambda other: None)
        stand_ins = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda s: nullcontext()}
        for name, value in {**stand_ins, "CUDAGraph": Graph, "graph": graph}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.autograd, "grad", grad)
        layers = make_layers()
        hidden, named = batch(5, 3)
        hidden.requires_grad_()
        buffers = Buffers.like(hidden, 16, 4)
        buffers.load(hidden, named["position_ids"], named["packed_seq_lengths"])
        named |= {"position_ids": buffers.positions, "packed_seq_lengths": buffers.lengths}
        weights = Weights(layers)
        memory = {"pool": "the pool", "shared": [torch.zeros_like(each) for each in weights.trained]}
        made = GraphRecording(lambda given, how: walk(layers, given, how), buffers, named, weights, **memory)
        made.asked, made.within = asked, [each for each in within if each]
        return made

    def test_the_backward_graph_reads_what_a_replay_fills(self, recording):
        """The gradient that a replay copies in lies where the graph looks for it."""
        ((_, inputs, given),) = recording.asked
        assert given is recording.grad_output
        recording.give(torch.full((1, 8, 6), 3.0))
        assert given[:, :8].eq(3).all()
        assert not given[:, 8:].any()
        assert [each.data_ptr() for each in inputs] == [p.data_ptr() for p in recording.inputs(recording.trained)]

    def test_the_parameters_own_gradient_nodes_are_not_touched(self, recording):
        """DistributedDataParallel keeps them, on a stream that no capture can reach; others stand in meanwhile."""
        ((output, inputs, _),) = recording.asked
        nodes, seen = [output.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                nodes += [each for each, _ in node.next_functions]
        leaves = {id(node.variable) for node in seen if hasattr(node, "variable")}
        assert leaves == {id(each) for each in inputs}
        assert leaves.isdisjoint(id(each) for each in recording.trained)
        assert recording.weights.unchanged()

    def test_the_parameters_are_back_after_an_error(self):
        """Whatever a capture fails of."""
        layers = make_layers()
        weights = Weights(layers)
        within = weights.stand_ins()
        within.__enter__()
        assert layers[0].trained.weight is not weights.trained[0]
        error = RuntimeError("capture")
        assert not within.__exit__(RuntimeError, error, None)
        assert weights.unchanged()

    def test_a_parameter_of_two_layers_has_one_stand_in(self):
        """And one gradient."""
        layers = make_layers(2)
        layers[1].trained.weight = layers[0].trained.weight
        weights = Weights(layers)
        assert len(weights.trained) == 1
        with weights.stand_ins() as found:
            assert layers[1].trained.weight is layers[0].trained.weight is found[0]

    def test_the_output_lies_where_the_forward_graph_writes(self, recording):
        """It is the recorded tensor, without its way to the gradients."""
        ((output, _, _),) = recording.asked
        assert recording.output.data_ptr() == output.data_ptr()
        assert not recording.output.requires_grad

    def test_both_graphs_share_the_pool_and_let_other_threads_work(self, recording):
        """Autograd's thread launches the backward pass."""
        assert recording.within == [{"pool": "the pool", "capture_error_mode": "thread_local"}] * 2

    def test_recordings_leave_their_gradients_in_the_same_place(self, recording):
        """The parameters'; the hidden states' have a size of their own."""
        asked = [*recording.trained, recording.buffers.hidden]
        output = recording.run(recording.buffers.hidden, recording.named)
        recording.grad_output.fill_(1.0)
        expected = torch.autograd.grad(output, asked, recording.grad_output)
        found = recording._share(expected)
        assert all(mine is kept for mine, kept in zip(found, recording.shared, strict=False))
        assert found[-1] is expected[-1]
        torch.testing.assert_close(found, list(expected), rtol=0, atol=0)

    def test_a_parameter_without_a_gradient_gets_none(self, recording):
        """What another recording left in its place is not handed out."""
        found = recording._share([None, *(torch.ones_like(each) for each in recording.shared[1:])])
        assert found[0] is None
        assert all(each.eq(1).all() for each in found[1:])

    def test_gradients_handed_out_are_copies(self, recording):
        """The next replay overwrites the graph's own."""
        found = recording.backward()
        assert recording._backward.replays == 1
        for mine, theirs in zip(found, recording.gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
            assert mine.data_ptr() != theirs.data_ptr()

    def test_a_replay_runs_both_graphs_in_turn(self, recording):
        """Forward at once, backward when its turn comes."""
        hidden, named = batch(5, 3)
        output = recording(hidden.requires_grad_(), named["position_ids"], named["packed_seq_lengths"])
        assert (recording._forward.replays, recording._backward.replays) == (1, 0)
        output.sum().backward()
        assert (recording._forward.replays, recording._backward.replays) == (1, 1)
        assert hidden.grad.shape == hidden.shape


class TestPlainPasses:
    """What goes through the layers as before."""

    @pytest.mark.parametrize(
        "change",
        [
            {"attention_mask": torch.ones(1, 8)},
            {"use_cache": True},
            {"output_attentions": True},
            {"causal_mask": torch.ones(8, 8)},
            {"unknown": torch.ones(1)},
            {"past_key_value": (torch.ones(1),)},
            {"unknown": (torch.ones(1),)},
            {"unknown": SimpleNamespace(table=torch.ones(1))},
        ],
    )
    def test_unusual_arguments(self, change):
        """What a recording would not see is never replayed."""
        layers = make_layers()
        graphs = Computed(list(layers), 20)
        hidden, named = batch(5, 3)
        with graphs.installed():
            for _ in range(3):
                walk(layers, hidden, {**named, **change})
        assert graphs.replayed == 0
        assert [layer.calls for layer in layers] == [3, 3, 3]

    def test_evaluation_and_passes_without_gradients(self):
        """They are not even counted."""
        layers = make_layers()
        graphs = Computed(list(layers), 20)
        hidden, named = batch(5, 3)
        with graphs.installed():
            for _ in range(3):
                with torch.no_grad():
                    walk(layers, hidden, named)
            layers.eval()
            for _ in range(3):
                walk(layers, hidden, named)
        assert graphs.replayed == 0
        assert not graphs.seen

    def test_layers_that_are_recomputed(self):
        """The first layer's second run, in the pass backward, is no pass of its own."""
        layers = make_layers()
        graphs = Computed(list(layers), 20)
        layers[2].gradient_checkpointing = True
        with graphs.installed():
            for _ in range(3):
                step(layers, *batch(5, 3))
        assert graphs.replayed == 0

    @pytest.mark.parametrize(("tokens", "replayed"), [(4096, 2), (4097, 0)])
    def test_large_passes(self, tokens, replayed):
        """They keep the card busy by themselves."""
        layers = make_layers()
        graphs = Computed(list(layers), tokens, largest=tokens)
        with graphs.installed():
            for _ in range(3):
                step(layers, *batch(tokens))
        assert graphs.replayed == replayed

    def test_an_evaluation_between_replays_does_not_skip_layers(self):
        """Only a replay stands for the later layers."""
        layers = make_layers()
        graphs = Computed(list(layers), 20)
        hidden, named = batch(5, 3)
        with graphs.installed():
            for _ in range(3):
                step(layers, hidden, named)
            layers.eval()
            with torch.no_grad():
                found = walk(layers, hidden, named)
        with torch.no_grad():
            torch.testing.assert_close(found, walk(layers, hidden, named))


class TestGivingUp:
    """When recording fails, training goes on."""

    def test_frozen_weights_are_dropped_with_the_recordings(self):
        """Memory that was plenty may now be short."""
        asked, lines, layers = [], [], make_layers()

        class Full(Computed):
            def _check_room(self, buffers, named):
                self.unpacked = self.unpack(1 << 40)

            def _check_replay(self, *_, **__):
                raise torch.OutOfMemoryError

        graphs = Full(list(layers), 20, report=lines.append)
        graphs.unpack = lambda free: asked.append(free) or (5 if free else 0)
        with graphs.installed():
            for _ in range(3):
                step(layers, *batch(8))
        assert (asked, graphs.unpacked, graphs.replayed) == ([1 << 40, 0], 0, 0)
        assert lines == ["CUDA graphs: given up, the card's memory is full."]

    def failing(self, error):
        """Return layers and graphs whose recording raises."""
        layers, lines = make_layers(), []

        class Failing(Computed):
            """Cannot record."""

            def _new_recording(self, buffers, named):
                raise error

        return layers, Failing(list(layers), 20, report=lines.append), lines

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (torch.OutOfMemoryError("CUDA out of memory"), "the card's memory is full"),
            (RuntimeError("operation not permitted when stream is capturing\nmore"), "operation not permitted"),
        ],
    )
    def test_it_is_said_once_and_the_numbers_stay(self, error, said):
        """The first line of the error is enough."""
        layers, graphs, lines = self.failing(error)
        hidden, named = batch(5, 3)
        expected = step(make_layers(), hidden, named)
        with graphs.installed():
            found = [step(layers, hidden, named) for _ in range(4)]
        assert len(lines) == 1
        assert said in lines[0]
        assert "more" not in lines[0]
        for each in found:
            assert torch.equal(each[0], expected[0])

    def test_a_replay_that_differs_is_not_used(self):
        """The first recording is compared with the plain pass."""
        layers, lines = make_layers(), []

        class Wrong(Computed):
            """Replays something else."""

            def _new_recording(self, buffers, named):
                recording = super()._new_recording(buffers, named)
                right = recording.run
                recording.run = lambda hidden, given: right(hidden, given) * 1.2
                return recording

        graphs = Wrong(list(layers), 20, report=lines.append)
        with graphs.installed():
            for _ in range(3):
                step(layers, *batch(5, 3))
        assert graphs.replayed == 0
        assert "replays differ: output by 0.2, gradients by 0.2" in lines[0]

    def test_rows_that_are_known_wrongly_while_recording(self):
        """What Unsloth is told of the rows then is not what the pass is compared with."""
        known, lines = {}, []

        class Knowing(Layer):
            """Takes the rows' lengths from a store, for the tensor that is in it."""

            def forward(self, hidden, packed_seq_lengths=None, **named):
                """Return what a layer does with the lengths that it knows."""
                lengths = known.get(id(packed_seq_lengths), packed_seq_lengths)
                return super().forward(hidden, packed_seq_lengths=lengths, **named)

        class Misled(Computed):
            """Tells of one row."""

            def _announce(self, buffers):
                known[id(buffers.lengths)] = torch.tensor([buffers.hidden.shape[1]])

        layers = torch.nn.ModuleList([Knowing() for _ in range(3)]).train()
        graphs = Misled(list(layers), 20, report=lines.append)
        with graphs.installed():
            for _ in range(3):
                step(layers, *batch(5, 3))
        assert graphs.replayed == 0
        assert "replays differ" in lines[0]

    def test_gradients_that_differ_are_not_used(self):
        """A pass forward may be right and the one backward read a gradient that nobody gave it."""
        layers, lines = make_layers(), []

        class Stale(Recording):
            """Its backward pass reads a buffer of its own."""

            def backward(self):
                """Return the gradients of something else."""
                return list(torch.autograd.grad(self.output, self.trained, torch.ones_like(self.output)))

        class Unheard(Computed):
            """Records so."""

            def _new_recording(self, buffers, named):
                return Stale(self._run, buffers, named, self.weights)

        graphs = Unheard(list(layers), 20, report=lines.append)
        with graphs.installed():
            for _ in range(3):
                step(layers, *batch(5, 3))
        assert graphs.replayed == 0
        assert "replays differ: output by 0, gradients by" in lines[0]

    def test_other_errors_are_not_swallowed(self):
        """A mistake in the code is not a matter of the card."""
        layers, graphs, _ = self.failing(KeyError("a mistake"))
        with graphs.installed():
            step(layers, *batch(5, 3))
            with pytest.raises(KeyError):
                step(layers, *batch(5, 3))


class TestInstalling:
    """The layers afterwards."""

    def test_forward_methods_come_back(self):
        """The class's, or the instance's own."""
        layers = make_layers()
        own = lambda hidden, **named: (hidden,)  # noqa: E731  an instance's own forward, as accelerate's hooks set
        layers[1].forward = own
        with Computed(list(layers), 20).installed():
            assert "forward" in vars(layers[0])
        assert "forward" not in vars(layers[0])
        assert vars(layers[1])["forward"] is own

    def test_they_come_back_after_an_error(self):
        """As after any training that stops."""
        layers = make_layers()
        with pytest.raises(ValueError, match="stop"), Computed(list(layers), 20).installed():
            raise ValueError("stop")
        assert "forward" not in vars(layers[0])

    def test_layers_are_found_below_an_adapter(self):
        """PEFT's wrapper hides them."""
        inner = type("Causal", (), {})()
        inner.model = type("Model", (), {"layers": [1, 2]})()
        outer = type("Peft", (), {"get_base_model": lambda self: inner})()
        assert decoder_layers(outer) == decoder_layers(inner) == [1, 2]
