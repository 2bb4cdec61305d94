"""Loading, self-tests, answers, reference scores and token shift, on a tiny Mistral with a random adapter."""

from __future__ import annotations

import json

import pytest

from helpers.core.errors import EvaluationError
from helpers.data.prompts import build_example
from helpers.evaluation.adapter import AdapterSource, check_base, same_base_name
from helpers.evaluation.arms import Asking, choose_shots, messages_for
from helpers.evaluation.cache import AnswerCache, CachedAnswer
from helpers.evaluation.metrics.token_shift import ShiftedToken, describe_shift
from helpers.evaluation.prompts import Question
from helpers.evaluation.records import Arm, Prompt, ReferenceScore
from helpers.evaluation.sanity import judge, reproduces_training

ARMS = ("base", "tuned", "base_bare", "base_few_shot")


@pytest.fixture(scope="module")
def found(nursery, tiny_mistral, tmp_path_factory):
    """What one loaded model said to everything that is tested here."""
    from tiny import build_mistral

    folder = tmp_path_factory.mktemp("comparisons")
    other = build_mistral(folder / "other-mistral", layers=3)
    return nursery.run("comparisons.everything", runs=str(folder / "runs"), model=str(tiny_mistral), other=str(other))


@pytest.mark.slow
class TestSelfTests:
    """What must hold before an answer is shown."""

    def test_a_sound_adapter_passes_all_four(self, found):
        """Adapter on and off differ, on-off-on is identical, each prompt has one BOS, the template is the run's."""
        first, *others = [row["result"] for row in found["checks"]["rows"]]
        assert others == ["yes, to the last bit", "yes, in all 4 arms", "yes"]
        assert float(first.removeprefix("yes, a logit by up to ")) > 0.01

    def test_only_one_limit_of_the_answer_is_left(self, found):
        """The checkpoint's own max_length, 2048, is gone: beside max_new_tokens transformers warns of it each time."""
        assert found["checks"]["max_length"] is None

    def test_an_untrained_adapter_is_refused(self, found):
        """An adapter whose second matrices are zero changes nothing, and that is said."""
        assert "the same logits on and off" in found["refused"]["untrained"]


class TestJudging:
    """What the self-tests say to what was read."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"change": 0.0},
                (
                    "an adapter that changes the logits, got 'the same logits on and off'. The adapter is untrained, "
                    "or was not applied. Train it, or choose another adapter_dir."
                ),
            ),
            ({"identical": False}, "the same logits on, off and on again, got 'others'. Start a fresh kernel."),
            (
                {"bos": {"tuned": (0,), "base": (0, 1)}},
                "one BOS, at the start, for base, got 'BOS at (0, 1)'. Look at the chat template.",
            ),
            ({"bos": {"base": ()}}, "one BOS, at the start, for base, got 'BOS at ()'. Look at the chat template."),
            ({"bos": {"base": (1,)}}, "one BOS, at the start, for base, got 'BOS at (1,)'. Look at the chat template."),
            (
                {"recorded_sha256": "other"},
                (
                    "the template that the adapter was trained with, got '0123456789ab'. The tokenizer in the adapter "
                    "folder is not the run's. Save the adapter again."
                ),
            ),
        ],
    )
    def test_each_failure_is_named(self, changes, message):
        """A failing test raises and says what is wrong, and what to do."""
        sound = {"change": 1e-6, "identical": True, "bos": {"base": (0,)}}
        same = "0123456789abcdef"
        with pytest.raises(EvaluationError) as caught:
            judge(**{**sound, "template_sha256": same, "recorded_sha256": same, **changes})
        assert str(caught.value) == f"self-test: expected {message}"

    def test_what_passed_is_said(self):
        """With how far the adapter moves a logit, and where the template is from."""
        passed = judge(0.12345, True, {"base": (0,), "tuned": (0,)}, "a", "a")
        assert [tuple(row.values()) for row in passed] == [
            ("adapter on and off differ", "yes, a logit by up to 0.123"),
            ("on, off, on again is identical", "yes, to the last bit"),
            ("exactly one BOS token", "yes, in all 2 arms"),
            ("the template is the adapter's own", "yes"),
        ]
        assert {tuple(row) for row in passed} == {("test", "result")}
        unknown = judge(0.5, True, {}, "a", None)
        assert unknown[3]["result"] == "its training run is not known"

    def test_a_model_without_bos_is_fine(self):
        """ChatML models have no BOS, and none is asked for."""
        rows = judge(0.5, True, None, "a", None)
        assert rows[2]["result"] == "this model has none, and none is added"

    def test_training_loss_must_come_out_again(self):
        """The tuned arm's held-out loss, (1 + 0.5 + 2 + 0.5) / (2 + 2), is 1.0 nats a token."""
        scores = [ReferenceScore("a", "tuned", 1.0, 0.5, 1, 9), ReferenceScore("b", "tuned", 2.0, 0.5, 1, 9)]
        assert reproduces_training(scores, 1.005, 2) == (
            "Held-out loss of the tuned model: 1.000 here, 1.005 at the end of training, as it should be."
        )
        unknown = "The held-out loss of the training run cannot be compared: other rows were scored, or none is known."
        assert reproduces_training(scores, 1.0, 3) == unknown
        assert reproduces_training(scores, None, 2) == unknown
        base = [ReferenceScore("a", "base", 9.0, 0.5, 1, 9), ReferenceScore("b", "base", 9.0, 0.5, 1, 9)]
        assert reproduces_training([*base, *scores], 1.0, 2).startswith("Held-out loss of the tuned model: 1.000 here")

    @pytest.mark.parametrize(("recorded", "same"), [(0.979, False), (0.981, True), (1.019, True), (1.021, False)])
    def test_two_hundredths_of_a_nat_are_another_model(self, recorded, same):
        """In either direction; the error gives both losses."""
        scores = [ReferenceScore("a", "tuned", 1.0, 0.5, 1, 9), ReferenceScore("b", "tuned", 2.0, 0.5, 1, 9)]
        if same:
            assert reproduces_training(scores, recorded, 2).endswith("as it should be.")
            return
        scores[0] = ReferenceScore("a", "tuned", 1.00016, 0.5, 1, 9)
        with pytest.raises(EvaluationError) as caught:
            reproduces_training(scores, recorded, 2)
        assert str(caught.value) == (
            f"self-test: expected the held-out loss that training ended with, {recorded} nats a token, got 1.0. The "
            "base model, the adapter or the prompts are not those of the run."
        )


@pytest.mark.slow
class TestArms:
    """What each arm is given."""

    def test_prompts_of_the_four_arms(self, found):
        """Template, plain text, and examples as earlier turns; the system prompt goes before the last question."""
        texts = found["texts"]["prompts"]
        assert texts["base"] == texts["tuned"] == "<s>[INST] Be brief.\n\nName a prime.[/INST]"
        assert texts["base_bare"] == "<s>Name a prime.\n"
        assert texts["base_few_shot"].startswith("<s>[INST] ")
        assert texts["base_few_shot"].endswith("</s>[INST] Be brief.\n\nName a prime.[/INST]")
        assert texts["base_few_shot"].count("[INST]") == 3

    def test_examples_are_no_heldout_rows(self, found):
        """What the few-shot arm sees is never what is scored."""
        shown = {messages[0]["content"] for messages in found["texts"]["shots"]}
        assert len(shown) == 2
        assert shown.isdisjoint(found["texts"]["heldout"])

    def test_examples_avoid_what_is_asked(self):
        """A training row that asks the same as a prompt is not drawn, and the draw depends on the seed alone."""
        rows = [{"instruction": f"Say {n}", "input": "", "output": "x" * n} for n in range(1, 9)]
        texts = [row["instruction"] for row in rows]
        drawn = choose_shots(rows, texts, 3, seed=1, avoid={"Say 1", "Say 2"})
        assert drawn == choose_shots(rows, texts, 3, seed=1, avoid={"Say 1", "Say 2"})
        assert {row["instruction"] for row in drawn} == {"Say 3", "Say 4", "Say 5"}

    def test_alpaca_blocks_stand_one_after_the_other(self):
        """In the Alpaca style an example is a block with its answer."""
        shots = (build_example({"instruction": "Add.", "input": "1 + 1", "output": "2"}, "alpaca", style="alpaca"),)
        question = Question(Prompt("p", "Name a prime."), "Name a prime.")
        few = Arm("base_few_shot", "", adapter=False, prompting="few_shot")
        roles = [m["role"] for m in messages_for(question, few, Asking("alpaca", "", shots))]
        assert roles == ["user", "assistant", "user"]

    def test_examples_are_dropped_when_room_is_short(self, found):
        """Two examples fit in 256 tokens, fewer in 130, none in 30."""
        assert found["room"]["shots"][0] == 2
        assert found["room"]["shots"][2] == 0
        assert sorted(found["room"]["shots"], reverse=True) == found["room"]["shots"]

    def test_rows_that_are_too_long_are_counted(self, found):
        """References that do not fit are left out for all arms alike."""
        kept, left_out = found["room"]["kept"], found["room"]["left_out"]
        assert kept / 2 + left_out["too long"] == 4
        assert left_out["too long"] > 0


@pytest.mark.slow
class TestReferenceScores:
    """How likely a given answer is."""

    def test_they_equal_a_plain_loop(self, found):
        """Batched, padded scores equal transformers alone, one row at a time, to 1e-5 nats a token in float32."""
        batched, plain = found["scores"]["batched"], found["scores"]["plain"]
        assert len(batched) == 16
        assert batched.keys() == plain.keys()
        for place, (nll, eos, tokens) in plain.items():
            assert batched[place][2] == tokens
            assert batched[place][0] / tokens == pytest.approx(nll / tokens, abs=1e-5)
            assert batched[place][1] == pytest.approx(eos, abs=1e-5)

    def test_the_adapter_changes_them(self, found):
        """Base and tuned score the same tokens differently."""
        scores = found["scores"]["batched"]
        base, tuned = scores["row-001 base"], scores["row-001 tuned"]
        assert base[2:] == tuned[2:]
        assert abs(base[0] - tuned[0]) > 1e-3


@pytest.mark.slow
class TestAnswers:
    """Generating, and not generating twice."""

    def test_a_cached_answer_makes_no_call(self, found):
        """The second run calls nothing; one question more costs one call an arm."""
        assert found["cache"]["sizes"] == [[2, 1] * 4, [], [1] * 4]
        first, second, third = found["cache"]["answers"]
        assert first == second
        assert [a for a in third if a[0] != "p3"] == first

    def test_there_is_one_answer_for_each_arm_and_question(self, found):
        """Answers come arms first, questions in their order."""
        places = [(arm, name) for name, arm, *_ in found["cache"]["answers"][0]]
        assert places == [(arm, f"p{n}") for arm in ARMS for n in range(3)]

    def test_batches_do_not_change_answers(self, found):
        """In float32, batches of two and one batch give the same answers."""
        assert found["cache"]["one_batch"] == found["cache"]["answers"][0]

    def test_progress_is_reported(self, found):
        """A line a batch, and a line for what was known."""
        assert found["cache"]["lines"][:2] == ["Base: 2 of 3 answered", "Base: 3 of 3 answered"]
        assert "Tuned: 3 of 3 answers were kept from an earlier run" in found["cache"]["lines"]

    def test_captured_steps_give_the_same_answers(self, found):
        """In float32 every arm says the same with the fast decoder, which answers all questions in one go."""
        steps = found["steps"]
        assert steps["graphs"] == steps["simple"]
        assert len({text for *_, text, _tokens, _why in steps["simple"]}) > 4
        assert (steps["sizes"], steps["none"]) == ([2, 2] * 4, [])
        assert steps["lines"][-1] == "Base + examples: 4 of 4 answered"

    def test_batches_are_halved_when_memory_runs_out(self, found):
        """Four at a time fails, two fails, one works to the end."""
        assert found["memory"]["sizes"] == [4, 2, 1, 1, 1, 1]
        assert found["memory"]["answers"] == 4
        assert found["memory"]["lines"][0] == "Base: memory ran out with 4 at a time, going on with 2"

    def test_memory_for_not_even_one_is_an_error(self, found):
        """The error says what to lower."""
        assert "memory for one answer" in found["memory"]["error"]
        assert "Lower max_new_tokens" in found["memory"]["error"]

    def test_an_answer_of_zero_tokens_is_an_answer(self, found):
        """A model that ends at once gave an empty answer of one token, its EOS; there is nothing to rank."""
        assert found["empty"]["answers"] == [["p0", "base", "", 1, "eos"], ["p0", "tuned", "", 1, "eos"]]
        assert found["empty"]["shift"] == 0

    def test_draws_repeat_with_their_seed(self, found):
        """Mode aa draws two different answers; the same seed gives the same pair, another seed another."""
        first, again, other = found["draws"]
        assert first == again != other
        assert first[:2] != first[2:]

    def test_one_prompt_cannot_decide(self, found):
        """With a single row the verdict says what it cannot say."""
        assert found["one"]["headline"].startswith("Cannot tell whether held-out answers became more likely.")
        assert found["one"]["outcomes"] == ["cannot tell", "cannot tell"]


@pytest.mark.slow
class TestTokenShift:
    """The tuned answer's tokens under the base model."""

    def test_ranks_equal_one_token_at_a_time(self, found):
        """One forward pass gives the ranks that the base gives token by token."""
        assert found["shift"]["ranks"] == found["shift"]["plain"]

    def test_pieces_join_to_the_answer(self, found):
        """White space and characters of several tokens are kept."""
        assert found["shift"]["text"] == "Two is a prime:\n\n2 and 3 \u2014 5."

    def test_classes_are_the_papers(self):
        """Rank 1 is unshifted, 2 and 3 are marginal, all else is shifted."""
        tokens = [ShiftedToken("x", rank) for rank in (1, 1, 2, 3, 4, 900)]
        assert describe_shift(tokens) == (
            "Of 6 tokens the base model would have chosen 2 too (33 %): 2 more were among its first three (33 %), "
            "2 were not (33 %)."
        )
        assert describe_shift([]) == "There is no token to rank: the answers are empty."


@pytest.mark.slow
class TestOtherBase:
    """An adapter belongs to one base model."""

    def test_another_size_is_refused(self, found, tiny_mistral):
        """The message says which model the adapter was made for, and how large both are."""
        said = found["refused"]["other base"]
        assert "other-mistral (3 layers, 64 wide, 128 wide inside)" in said
        assert f"one made for {tiny_mistral} (2 layers, 64 wide, 128 wide inside)" in said

    def test_another_name_is_refused(self, found, tmp_path):
        """Models of one size but with other names on the hub are not the same."""
        source = AdapterSource(tmp_path, "mistralai/Mistral-7B-v0.1")
        (tmp_path / "adapter_model.safetensors").symlink_to(found["adapter"] + "/adapter_model.safetensors")
        size = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
        with pytest.raises(EvaluationError, match=r"one made for mistralai/Mistral-7B-v0\.1"):
            check_base(source, "mistralai/Mistral-7B-Instruct-v0.3", size)
        check_base(source, "unsloth/mistral-7b-v0.1-bnb-4bit", size)

    def test_damaged_weights_are_refused(self, tmp_path):
        """A file that is no safetensors gives advice."""
        (tmp_path / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(EvaluationError, match="Copy or download it again"):
            check_base(AdapterSource(tmp_path, ""), "x/y", {})

    def test_folders_say_nothing(self, tmp_path):
        """A model that was moved is still the same model."""
        assert same_base_name("/somewhere/else", "org/name")
        assert same_base_name(str(tmp_path), "org/name")


class TestCache:
    """Answers on disk."""

    def test_it_reads_what_it_wrote(self, tmp_path):
        """A second cache on the file knows the answers of the first."""
        cache = AnswerCache(tmp_path / "c.json", {"base": "x"})
        cache.add({cache.key("on", "a"): CachedAnswer("b", 2, "eos")})
        assert AnswerCache(tmp_path / "c.json", {"base": "x"}).answers[cache.key("on", "a")] == CachedAnswer(
            "b", 2, "eos"
        )

    def test_another_configuration_knows_nothing(self, tmp_path):
        """Another adapter, arm or prompt is another key."""
        cache, other = AnswerCache(None, {"adapter": "1"}), AnswerCache(None, {"adapter": "2"})
        keys = {cache.key("on", "a"), cache.key("off", "a"), cache.key("on", "b"), other.key("on", "a")}
        assert len(keys) == 4

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", '{"format": 0, "answers": {}}', '{"format": 1, "answers": [1]}']
    )
    def test_a_damaged_file_counts_as_empty(self, tmp_path, content):
        """Answers can be generated again, so a broken cache stops nobody."""
        (tmp_path / "c.json").write_text(content)
        assert AnswerCache(tmp_path / "c.json", {}).answers == {}

    def test_text_with_lone_surrogates_can_be_a_key(self):
        """Whatever a file holds, a key comes out."""
        assert len(AnswerCache(None, {}).key("on", json.loads('"\\ud800"'))) == 64
