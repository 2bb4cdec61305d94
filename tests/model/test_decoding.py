"""Captured decoding: the same tokens as the ordinary loop, both arms in the same buffers, and when it is chosen.

Everything runs in float32 on the CPU, where the steps are not captured but otherwise the same.
"""

from __future__ import annotations

import copy
import types
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from helpers.core.errors import StackError, TemplateError
from helpers.model.decoding import DecodePlan, answers, fast_generate
from helpers.model.decoding.engine import DecoderSession, Schedule, row_length
from helpers.model.decoding.forward import decoder_math
from helpers.model.decoding.support import plan_decoding, unsupported
from helpers.model.decoding.weights import DecoderWeights

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 200,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LENGTHS = (5, 130, 1, 17, 3, 127, 9)


@pytest.fixture(scope="module")
def one_thread():
    """Matrices this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(kind, seed=0, **changes):
    """Return a small float32 model with random weights that spread its logits."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    if kind == "mistral":
        config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": None}
        model = MistralForCausalLM(MistralConfig(**SMALL | config | changes))
    else:  # SmolLM2's proportions: three query heads a key head, the head tied to the embedding
        config = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "tie_word_embeddings": True}
        model = LlamaForCausalLM(LlamaConfig(**SMALL | config | changes))
    return spread(model)


def spread(model):
    """Give matrices and norms values large enough that greedy answers do not repeat one token."""
    for name, weight in model.named_parameters():
        torch.nn.init.uniform_(weight, 0.5, 1.5) if "norm" in name else torch.nn.init.normal_(weight, std=0.15)
    model.generation_config.eos_token_id = None  # passing None to generate() would mean this one
    return model.eval()


def adapt(model, seed=1, **changes):
    """Put a LoRA adapter with random matrices on all linear layers."""
    from peft import LoraConfig, get_peft_model

    from helpers.model.load import TARGET_MODULES

    options = {"r": 4, "lora_alpha": 8, "target_modules": list(TARGET_MODULES)} | changes
    wrapped = get_peft_model(model, LoraConfig(**options))
    torch.manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return wrapped.eval()


def prompts(lengths=LENGTHS, vocabulary=200):
    """Return random token ids of these lengths, without the special tokens."""
    numbers = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocabulary, (n,), generator=numbers).tolist() for n in lengths]


def simple_loop(model, ids, new, eos=None):
    """Answer one by one with transformers' own greedy loop."""
    options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    found = []
    for prompt in ids:
        row = torch.tensor([prompt])
        with torch.no_grad():
            whole = model.generate(row, attention_mask=torch.ones_like(row), **options)
        found.append(whole[0, len(prompt) :].tolist())
    return found


def cut(answer, eos):
    """Return an answer up to its first EOS, that included."""
    return answer[: answer.index(eos) + 1] if eos in answer else answer


def simple_arms(model, ids, new, eos=None):
    """Answer with the ordinary loop, with and without the adapter."""
    tuned = simple_loop(model, ids, new, eos)
    with model.disable_adapter():
        return {"tuned": tuned, "base": simple_loop(model, ids, new, eos)}


def decode(model, ids, new, rows, arms=("tuned", "base"), eos=None, kind=DecoderSession, **options):
    """Answer with the code under test, all arms in one session."""
    with decoder_math(CPU):
        weights = DecoderWeights(model, torch.float32, **options)
        session = kind(weights, rows, row_length(ids, new))
        found = {}
        for arm in arms:
            weights.use(arm)
            found[arm] = Schedule(session, ids, new, eos).run()
    return found


@pytest.fixture(scope="module", params=["mistral", "llama"])
def adapted(request):
    """A small Mistral, and a small Llama of SmolLM2's proportions, each with a random adapter."""
    return adapt(build(request.param))


@pytest.fixture(scope="module")
def expected(adapted):
    """The ordinary loop's answers of 20 tokens, both arms."""
    return simple_arms(adapted, prompts(), 20)


class TestAnswers:
    """The tokens are those of transformers' greedy loop, one prompt at a time."""

    @pytest.mark.parametrize("rows", [1, 3, 8])
    def test_both_arms_equal_the_ordinary_loop(self, adapted, expected, rows):
        """Prompts of 1 to 130 tokens get the same 20 tokens, however many stand side by side."""
        assert decode(adapted, prompts(), 20, rows) == expected

    @pytest.mark.parametrize("packs", [True, False])
    def test_packed_matrices_give_the_same(self, adapted, expected, monkeypatch, packs):
        """With oneDNN and without it, the tokens are the ordinary loop's."""
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: packs)
        with decoder_math(CPU):
            weights = DecoderWeights(adapted, torch.float32)
            weights.use("base")
        assert weights.layers[0].qkv.is_mkldnn == weights.head.is_mkldnn == packs
        assert decode(adapted, prompts(), 20, 8) == expected

    def test_the_arms_differ(self, expected):
        """The adapter of these tests changes every answer, and the answers are not one token repeated."""
        assert all(a != b for a, b in zip(expected["tuned"], expected["base"], strict=True))
        assert min(len(set(answer)) for answer in expected["tuned"]) > 3

    @pytest.mark.parametrize("rows", [1, 3, 8])
    def test_answers_end_with_eos(self, adapted, expected, rows):
        """A token that some answers have and others have not ends them, and their rows go to prompts that wait."""
        tokens = [set(answer[2:12]) for answer in expected["base"]]
        eos = max(set.union(*tokens), key=lambda t: sum(t in each for each in tokens))
        ended = {arm: [cut(answer, eos) for answer in expected[arm]] for arm in expected}
        assert len({len(answer) for arm in ended.values() for answer in arm}) > 2
        assert decode(adapted, prompts(), 20, rows, eos=eos) == ended

    def test_cutting_at_eos_is_what_the_ordinary_loop_does(self, adapted, expected):
        """The expectation above holds for transformers' loop."""
        eos = expected["tuned"][0][4]
        assert simple_loop(adapted, prompts()[:1], 20, eos) == [cut(expected["tuned"][0], eos)]

    def test_the_first_token_can_be_the_last(self, adapted, expected):
        """With max_new_tokens 1 each answer is what prefill gives."""
        first = {arm: [answer[:1] for answer in expected[arm]] for arm in expected}
        assert decode(adapted, prompts(), 1, 3) == first

    def test_an_answer_that_begins_with_eos_is_that(self, adapted, expected):
        """Rows freed before their first step are given away at once."""
        eos = expected["base"][0][0]
        found = decode(adapted, [prompts()[0]] * 3 + prompts()[1:3], 20, 2, arms=("base",), eos=eos)
        assert found["base"] == [[eos]] * 3 + [cut(answer, eos) for answer in expected["base"][1:3]]

    def test_answers_may_cross_a_cache_length(self, adapted):
        """A prompt of 120 tokens and 12 more use the cache's first 128 slots, then 256."""
        ids = prompts((120,))
        assert decode(adapted, ids, 12, 1, arms=("tuned",))["tuned"] == simple_loop(adapted, ids, 12)

    def test_a_prompt_may_fill_its_row(self, adapted):
        """A prompt and its answer may take all 128 slots of a row."""
        ids = prompts((124,))
        assert row_length(ids, 4) == 128
        assert decode(adapted, ids, 4, 1, arms=("tuned",))["tuned"] == simple_loop(adapted, ids, 4)

    def test_a_plain_model_has_a_base(self):
        """A model without PEFT's wrapper is its own base."""
        model = build("mistral")
        ids = prompts()[:3]
        assert decode(model, ids, 4, 2, arms=("base",))["base"] == simple_loop(model, ids, 4)

    def test_rows_not_in_use_change_nothing(self, adapted, expected):
        """More rows than prompts, some left over from the other arm, give the same answers."""
        ids = prompts()[:2]
        found = decode(adapted, ids, 20, 5, arms=("base", "tuned", "base"))
        assert found == {arm: expected[arm][:2] for arm in ("base", "tuned")}


class Recording(TorchDispatchMode):
    """Records the operations of a step once, and runs the same ones again on the same tensors, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run and record one operation."""
        result = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, result))
        return result

    def replay(self):
        """Run what was recorded; intermediate results are made anew, all other tensors are the recorded ones."""
        fresh = {}
        for operation, args, kwargs, result in self.calls:
            args, kwargs = tree_map(lambda each: fresh.get(id(each), each), (args, kwargs))
            again = operation(*args, **kwargs)
            old, new = (x if isinstance(x, (tuple, list)) else (x,) for x in (result, again))
            fresh.update((id(a), b) for a, b in zip(old, new, strict=True) if isinstance(a, torch.Tensor))


class Captured(DecoderSession):
    """Captures its steps with `Recording`."""

    captures: ClassVar = {}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.graphs = True
        self.captures.clear()

    def _capture(self, bucket):
        for _ in range(2):
            self._decode(bucket)
        with Recording() as self.captures[bucket]:
            self._decode(bucket)
        return self.captures[bucket]


@pytest.mark.usefixtures("streams")
class TestCapture:
    """What a CUDA graph needs of a step, shown without a GPU."""

    @pytest.fixture(autouse=True)
    def _as_on_a_card(self, monkeypatch):
        """Matrices that oneDNN has packed move when the arm changes."""
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)

    @pytest.fixture
    def streams(self, monkeypatch):
        """A card has streams."""
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_recorded_step_can_be_repeated(self, adapted, expected, rows):
        """The warm-up leaves no trace, and one recorded step decodes all prompts, for both arms."""
        tokens = [set(answer[2:12]) for answer in expected["base"]]
        eos = max(set.union(*tokens), key=lambda t: sum(t in each for each in tokens))
        ended = {arm: [cut(answer, eos) for answer in expected[arm]] for arm in expected}
        assert decode(adapted, prompts(), 20, rows, eos=eos, kind=Captured) == ended
        assert sorted(Captured.captures) == [128, 256]

    def test_a_step_reads_nothing_back(self, adapted):
        """No operation of a step gives the host a number or a shape that depends on the data."""
        decode(adapted, prompts()[:2], 3, 2, kind=Captured)
        names = {str(operation) for recording in Captured.captures.values() for operation, *_ in recording.calls}
        assert {name.split(".")[1] for name in names} & {"_local_scalar_dense", "nonzero", "item", "_to_copy"} == set()

    def test_a_failed_capture_is_said_and_survived(self, adapted, expected, capsys):
        """The reason is printed once, and the answers are the same."""

        class Failing(Captured):
            def _capture(self, bucket):
                assert self.captured_lengths() == []
                self._decode(bucket)
                raise RuntimeError("operation not permitted when stream is capturing\nmore")

        assert decode(adapted, prompts()[:2], 20, 2, kind=Failing) == {arm: expected[arm][:2] for arm in expected}
        assert capsys.readouterr().out == (
            "Decoding without CUDA graphs, which is slower; a capture failed: "
            "operation not permitted when stream is capturing\n"
        )

    def test_memory_that_runs_out_in_a_capture_is_passed_on(self, adapted):
        """Less memory is a reason for fewer rows, not for doing without graphs."""

        class Full(Captured):
            def _capture(self, bucket):
                raise torch.OutOfMemoryError("no memory")

        with pytest.raises(torch.OutOfMemoryError):
            decode(adapted, prompts()[:2], 20, 2, kind=Full)


class TestWeights:
    """Two arms in the same buffers."""

    def test_switching_restores_every_bit(self, adapted, monkeypatch):
        """Tuned, base and tuned again give the same buffers as the first time, on a card at the same addresses."""
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        with torch.no_grad():
            weights = DecoderWeights(adapted, torch.float32)
            seen, places = {}, []
            for arm in ("tuned", "base", "tuned", "base"):
                weights.use(arm)
                matrices = [m for each in weights.layers for m in (each.qkv, each.out, each.gate_up, each.down)]
                places.append([m.data_ptr() for m in matrices])
                first = seen.setdefault(arm, [m.clone() for m in matrices])
                assert all(torch.equal(a, b) for a, b in zip(first, matrices, strict=True))
        assert places[0] == places[1] == places[2] == places[3]
        assert not torch.equal(seen["tuned"][0], seen["base"][0])

    def test_the_model_is_not_changed(self, adapted):
        """All weights of the loaded model are what they were."""
        before = {name: weight.clone() for name, weight in adapted.named_parameters()}
        decode(adapted, prompts()[:2], 3, 2)
        assert all(torch.equal(before[name], weight) for name, weight in adapted.named_parameters())

    def test_packed_weights_are_unpacked(self):
        """A model in NF4 answers as the model of its unpacked weights does."""
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        model = adapt(build("mistral", hidden_size=64, intermediate_size=128))
        packed = []
        for layer in (each for name, each in model.named_modules() if hasattr(each, "lora_A")):
            data, state = quantize_4bit(layer.base_layer.weight.data, quant_type="nf4", compress_statistics=True)
            layer.base_layer.weight.data = dequantize_4bit(data, state)
            packed.append((layer.base_layer, data, state))
        simple = simple_arms(model, prompts()[:3], 4)
        for linear, data, state in packed:
            linear.weight = torch.nn.Parameter(data, requires_grad=False)
            linear.weight.quant_state = state
        assert decode(model, prompts()[:3], 4, 2) == simple

    def test_what_unpacks_can_be_given(self):
        """The function that unpacks gets the packed weight and its state."""
        model = adapt(build("llama"))
        simple = simple_arms(model, prompts()[:3], 4)
        for layer in (each for each in model.modules() if hasattr(each, "lora_A")):
            values = layer.base_layer.weight.detach()
            layer.base_layer.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
            layer.base_layer.weight.quant_state = types.SimpleNamespace(values=values)
        assert decode(model, prompts()[:3], 4, 2, dequantize=lambda weight, state: state.values) == simple

    def test_several_active_adapters_add_up(self):
        """Two adapters in force at once are both in the tuned arm."""
        from peft import LoraConfig

        model = adapt(build("mistral"))
        model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
        assert decode(model, prompts()[:3], 4, 2) == simple_arms(model.eval(), prompts()[:3], 4)

    @pytest.mark.parametrize("arm", ["tuned", "other"])
    def test_an_arm_that_is_not_there_is_refused(self, arm):
        """A model without an adapter has no tuned arm, and there are no others."""
        with pytest.raises(StackError, match="arms: expected"):
            DecoderWeights(build("mistral"), torch.float32).use(arm)


class TestSupport:
    """What the own forward pass can compute."""

    def test_mistral_and_llama_are_supported(self, adapted):
        """Both families, with and without an adapter."""
        assert unsupported(adapted) == unsupported(adapted.get_base_model()) == ""

    @pytest.mark.parametrize(
        ("kind", "changes", "problem"),
        [
            ("mistral", {"sliding_window": 4096}, "sliding_window is 4096"),
            ("mistral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
            ("llama", {"attention_bias": True}, "attention_bias is True"),
            ("llama", {"mlp_bias": True}, "mlp_bias is True"),
            (
                "llama",
                {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
                "rope_parameters are {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 2.0}",
            ),
        ],
    )
    def test_other_settings_are_refused(self, kind, changes, problem):
        """A configuration that means another computation is named."""
        model = build(kind, **changes)
        assert unsupported(model) == problem
        with pytest.raises(StackError, match="a Llama or Mistral model"):
            DecoderWeights(model, torch.float32)

    def test_other_families_are_refused(self):
        """A model of another type is named, whatever its layers look like."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        model = Qwen2ForCausalLM(Qwen2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2))
        assert unsupported(model) == "model_type is 'qwen2'"

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"use_dora": True}, "the adapter is a variant of LoRA, or has biases"),
            ({"target_modules": ["lm_head"]}, "there is an adapter on base_model.model.lm_head"),
            ({"modules_to_save": ["lm_head"]}, "whole layers were trained beside the adapter"),
        ],
    )
    def test_other_adapters_are_refused(self, changes, problem):
        """Only plain LoRA on the blocks' linear layers is added."""
        assert unsupported(adapt(build("mistral"), **changes)) == problem

    def test_a_merged_adapter_is_refused(self):
        """A base that carries the adapter is no base."""
        model = adapt(build("mistral"))
        model.base_model.merge_adapter()
        assert unsupported(model) == "the adapter is merged into the base"


GIB = 2**30
MISTRAL = 6_979_321_856
ROW = 33_554_432


class TestPlan:
    """When a copy of the weights and captured steps pay for themselves."""

    @pytest.mark.parametrize(
        ("free", "prompts", "new", "kind", "batch"),
        [
            (70 * GIB, 32, 64, "graphs", 32),
            (70 * GIB, 512, 64, "graphs", 128),
            (17 * GIB, 512, 64, "graphs", 64),
            (15.5 * GIB, 512, 64, "graphs", 16),
            (15 * GIB, 32, 64, "simple", 8),
            (10 * GIB, 512, 64, "simple", 8),
            (70 * GIB, 1, 64, "graphs", 1),
            (70 * GIB, 8, 47, "simple", 8),
            (70 * GIB, 8, 48, "graphs", 8),
            (70 * GIB, 9, 24, "graphs", 9),
            (None, 512, 64, "simple", 8),
        ],
    )
    def test_it_follows_memory_and_work(self, free, prompts, new, kind, batch):
        """Mistral-7B's weights take 13 GiB in 16 bit, and a row of 256 tokens 32 MiB."""
        plan = plan_decoding(MISTRAL, free, prompts, new, row_bytes=ROW)
        assert (plan.name, plan.batch_size) == (kind, batch)

    def test_two_arms_pay_sooner(self):
        """Answering twice counts twice."""
        assert plan_decoding(MISTRAL, 70 * GIB, 8, 24, arms=2).name == "graphs"

    @pytest.mark.parametrize(
        ("free", "prompts", "reason"),
        [
            (
                70 * GIB,
                64,
                (
                    "CUDA graphs, 64 prompts side by side: 13.0 GiB of copied weights, 2.0 GiB of cache and "
                    "2.0 GiB of reserve fit into the 70.0 GiB that are free"
                ),
            ),
            (
                14 * GIB,
                64,
                (
                    "the ordinary loop, because 13.0 GiB of copied weights, 32.0 MiB of cache and 2.0 GiB of "
                    "reserve do not fit into the 14.0 GiB that are free"
                ),
            ),
            (None, 64, "the ordinary loop, because it is not known how much memory is free"),
        ],
    )
    def test_it_says_why(self, free, prompts, reason):
        """The reason names what was weighed."""
        assert plan_decoding(MISTRAL, free, prompts, 64, row_bytes=ROW).reason == reason

    @pytest.mark.parametrize(("kind", "batch"), [("fast", 8), ("graphs", 0)])
    def test_a_plan_that_means_nothing_is_refused(self, kind, batch):
        """A plan has a known kind and at least one row."""
        with pytest.raises(StackError, match="plan: expected"):
            DecodePlan(kind, "because", batch)


GRAPHS = DecodePlan("graphs", "the steps under test", 3)
SIMPLE = DecodePlan("simple", "the ordinary loop", 4)


def question(text):
    """Return a conversation of one question."""
    return ({"role": "user", "content": text},)


QUESTIONS = [question(text) for text in ("Name a colour.", "What is two and two? In words.", "Why?", "Who are you?")]


@pytest.fixture(scope="module")
def loaded(tiny_mistral, mistral_tokenizer):
    """The tiny Mistral with its real tokenizer and a random adapter."""
    from transformers import AutoModelForCausalLM

    base = spread(AutoModelForCausalLM.from_pretrained(tiny_mistral, dtype=torch.float32))
    base.max_seq_length = 512  # as Unsloth notes it
    return types.SimpleNamespace(model=adapt(base), tokenizer=mistral_tokenizer)


@pytest.fixture(scope="module")
def ordinary(loaded):
    """The texts that transformers' loop gives, both arms."""
    ids = answers.encode_prompts(loaded.model, loaded.tokenizer, QUESTIONS, 6)
    simple = simple_arms(loaded.model, ids, 6, loaded.tokenizer.eos_token_id)
    return {arm: [loaded.tokenizer.decode(each, skip_special_tokens=True).strip() for each in simple[arm]]
            for arm in simple}  # fmt: skip


class TestFastGenerate:
    """From conversations to answers."""

    def test_the_answers_are_the_ordinary_loops(self, loaded, capsys):
        """Text, length and end of each answer are those of transformers' loop, in the order of the prompts."""
        found = fast_generate(loaded.model, loaded.tokenizer, QUESTIONS, max_new_tokens=6, plan=GRAPHS)
        ids = answers.encode_prompts(loaded.model, loaded.tokenizer, QUESTIONS, 6)
        simple = simple_arms(loaded.model, ids, 6, loaded.tokenizer.eos_token_id)
        for arm in ("tuned", "base"):
            texts = [loaded.tokenizer.decode(each, skip_special_tokens=True).strip() for each in simple[arm]]
            assert [answer.text for answer in found[arm]] == texts
            assert [answer.tokens for answer in found[arm]] == [len(each) for each in simple[arm]]
        assert capsys.readouterr().out == "Generating with the steps under test.\n"

    def test_an_answer_that_ends_is_finished(self, loaded):
        """EOS counts as a token, and its text is not shown; `ignore_eos` goes on behind it."""
        ids = answers.encode_prompts(loaded.model, loaded.tokenizer, QUESTIONS[:1], 6)
        simple = simple_arms(loaded.model, ids, 6)["base"][0]
        tokenizer = copy.deepcopy(loaded.tokenizer)
        tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(simple[2])})
        how = {"max_new_tokens": 6, "arms": ("base",), "plan": GRAPHS}
        ended = fast_generate(loaded.model, tokenizer, QUESTIONS[:1], **how)["base"][0]
        assert (ended.tokens, ended.finished) == (3, True)
        assert ended.text == loaded.tokenizer.decode(simple[:2]).strip()
        longer = fast_generate(loaded.model, tokenizer, QUESTIONS[:1], **how, ignore_eos=True)
        assert longer["base"][0].tokens == 6

    def test_the_ordinary_loop_answers_both_arms(self, loaded, ordinary, unsloth_modes, capsys):
        """With a simple plan the answers are the loop's, with the adapter and without it."""
        found = fast_generate(loaded.model, loaded.tokenizer, QUESTIONS, max_new_tokens=6, plan=SIMPLE)
        assert {arm: [answer.text for answer in found[arm]] for arm in found} == ordinary
        assert unsloth_modes == ["inference"] * 2
        assert capsys.readouterr().out == "Generating with the ordinary loop.\n"

    @pytest.mark.parametrize(("prompts", "batch"), [(1, 1), (8, 8), (30, 8)])
    def test_on_a_cpu_the_weights_are_copied_too(self, loaded, monkeypatch, prompts, batch):
        """If memory allows; more than eight prompts side by side are no faster there."""
        monkeypatch.setattr(answers, "available_memory", lambda: 3 * GIB)
        plan = answers.choose_plan(loaded.model, [[1, 2]] * prompts, max_new_tokens=64)
        assert (plan.name, plan.batch_size) == ("graphs", batch)
        assert plan.reason.startswith(f"a copy of the weights, {batch} prompts side by side: ")

    @pytest.mark.parametrize("free", [2 * GIB, None])
    def test_on_a_cpu_without_room_the_ordinary_loop_is_chosen(self, loaded, monkeypatch, free):
        """Also where the system does not say how much memory is free."""
        monkeypatch.setattr(answers, "available_memory", lambda: free)
        assert answers.choose_plan(loaded.model, [[1, 2]], max_new_tokens=64).name == "simple"

    def test_on_a_cpu_a_model_in_16_bit_is_not_copied(self, loaded):
        """The copy would be in float32, and its answers not the model's."""
        plan = answers.choose_plan(copy.deepcopy(loaded.model).bfloat16(), [[1, 2]], max_new_tokens=64)
        assert plan.reason == "the ordinary loop, because a CPU would copy torch.bfloat16 as float32"

    def test_an_unsupported_model_takes_the_ordinary_loop(self):
        """The plan says what is in the way."""
        other = build("mistral", sliding_window=64)
        assert answers.choose_plan(other, [[1]], max_new_tokens=64).reason == (
            "the ordinary loop, because sliding_window is 64"
        )

    @pytest.mark.usefixtures("unsloth_modes")
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
    def test_memory_that_runs_out_halves_the_batch(self, loaded, ordinary, monkeypatch, capsys, error):
        """Three rows, then one, then the ordinary loop; each change is printed. A CPU raises no error of its own."""
        tried, zeros = [], torch.zeros

        def full(*size, **how):
            if isinstance(size[0], tuple):  # a cache: layers, rows, heads, length, width
                tried.append(size[0][1])
                raise error
            return zeros(*size, **how)

        monkeypatch.setattr(torch, "zeros", full)
        found = fast_generate(loaded.model, loaded.tokenizer, QUESTIONS, max_new_tokens=6, plan=GRAPHS)
        assert {arm: [answer.text for answer in found[arm]] for arm in found} == ordinary
        assert tried == [3, 1]
        assert capsys.readouterr().out.splitlines()[1:] == [
            "Memory ran out with 3 prompts side by side; going on with 1 prompts side by side.",
            "Memory ran out with 1 prompts side by side; going on with the ordinary loop.",
        ]

    def test_no_prompts_have_no_answers(self, loaded):
        """Nothing asked, nothing loaded."""
        assert fast_generate(loaded.model, loaded.tokenizer, [], max_new_tokens=6) == {"tuned": [], "base": []}

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"prompts": [question("Say [/INST] now.")]}, TemplateError, "prompt: expected text without"),
            ({"max_new_tokens": 510}, StackError, "prompt: expected at most 2 tokens beside 510"),
            ({"max_new_tokens": 0}, StackError, "max_new_tokens: expected at least 1"),
            ({"arms": ("best",)}, StackError, "arms: expected tuned or base"),
            ({"ignore_eos": True, "plan": SIMPLE}, StackError, "ignore_eos: expected a plan on copied weights"),
        ],
    )
    def test_what_cannot_be_answered_is_refused(self, loaded, options, error, message):
        """The checks are those of `helpers.model.decoding.generate`, and each names what is wrong."""
        with pytest.raises(error, match=message.replace("[", r"\[")):
            fast_generate(loaded.model, loaded.tokenizer, **{"prompts": QUESTIONS, "max_new_tokens": 6} | options)

    def test_a_base_model_has_no_tuned_arm(self, loaded):
        """Asking a model without an adapter for tuned answers is an error, not a base answer."""
        with pytest.raises(StackError, match="a model with an adapter"):
            fast_generate(build("mistral"), loaded.tokenizer, QUESTIONS, max_new_tokens=6)
