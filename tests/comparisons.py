"""What children of the nursery do for the evaluation: a tiny Mistral with a random adapter, compared in every way."""

from __future__ import annotations

import json
import os
from pathlib import Path

PROMPTS = (
    "Name a prime.",
    "Why is the sky blue? Explain it to a child.",
    "List three tools of a carpenter.",
    "Say no.",
)
SETTINGS = {"task": "alpaca", "preset": "smoke", "load_in_4bit": False, "max_seq_length": 256, "dataset_name": "sample"}


def everything(*, runs, model, other):
    """Return all that the tests of `helpers.evaluation.generate` look at.

    Args:
        runs: Folder of all runs.
        model: Folder of the tiny base model.
        other: Folder of another base model.
    """
    os.environ["HELPERS_RUNS_DIR"] = str(runs)
    adapter = make_adapter(Path(runs) / "trained", model)
    bench, arms, material = _bench(adapter="trained")
    found = {"adapter": str(adapter), "checks": _checks(bench, arms, material), "texts": _texts(bench, arms, material)}
    found["scores"] = _scores(bench, arms, material)
    found["cache"] = _cache(bench, arms, material, Path(runs))
    found["steps"] = _steps(bench, arms)
    found["memory"] = _memory(bench, arms, material)
    found["empty"] = _empty(bench, arms, material)
    found["shift"] = _shift(bench, material)
    found["one"] = _one_prompt(bench, arms, material)
    found["room"] = _room(bench, arms, material)
    found["draws"] = _draws(bench, material)
    found["refused"] = _refused(other, Path(runs), model)
    return found


def make_adapter(run, model, *, scale=0.05):
    """Save a random LoRA adapter as a complete training run, and return its folder."""
    import torch

    from helpers.data.chat_templates import install_template, template_sha256
    from helpers.model.load import TARGET_MODULES

    base, tokenizer = load_base(model)
    from unsloth import FastLanguageModel

    install_template(tokenizer, "chat")
    tuned = FastLanguageModel.get_peft_model(
        base, r=4, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=list(TARGET_MODULES),
        use_gradient_checkpointing=False, random_state=1,
    )  # fmt: skip
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * scale)
    run.mkdir(parents=True)
    tuned.save_pretrained(str(run / "adapter"))
    tokenizer.save_pretrained(str(run / "adapter"))
    (run / "config.json").write_text(json.dumps(SETTINGS | {"model_name": str(model)}))
    manifest = {"state": "complete", "finished": "2026-01-01", "template_sha256": template_sha256(tokenizer)}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run / "adapter"


def load_base(model):
    """Load a base model in float32 and its tokenizer, as the notebooks do."""
    from helpers.model.load import import_unsloth

    import_unsloth()
    import torch
    from unsloth import FastLanguageModel

    loaded, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(model), max_seq_length=256, load_in_4bit=False, dtype=torch.float32,
        trust_remote_code=False, use_safetensors=True,
    )  # fmt: skip
    loaded.generation_config.max_length = None
    return loaded, tokenizer


def _bench(*, adapter, **given):
    from transformers import AutoTokenizer

    from helpers.evaluation.adapter import check_adapter, find_adapter, training_config
    from helpers.evaluation.arms import choose_arms, plan_asking
    from helpers.evaluation.config import build_evaluation_config
    from helpers.evaluation.generate import Bench
    from helpers.evaluation.prompts import gather
    from helpers.model.load import model_source, put_adapter

    given = {
        "arms": "base,tuned,base_bare,base_few_shot",
        "reference_rows": 4,
        "prompt_count": 4,
        "max_new_tokens": 8,
        "adapter_dir": adapter,
        "seed": 5,
        **given,
    }
    config = build_evaluation_config(preset="smoke", **given)
    source = find_adapter(config.adapter_dir)
    training = training_config(source, config)
    material = gather(config, source, training)
    asking = plan_asking(config, material, "chat", "Be brief.")
    check_adapter(source, *model_source(training.model))
    base, _ = load_base(training.model.model_name)
    tokenizer = AutoTokenizer.from_pretrained(str(source.folder))
    bench = Bench(
        put_adapter(base, source.folder), tokenizer, asking, source, training.model.model_name, "fp32",
        config.max_new_tokens,
        training.model.max_seq_length, config.temperature(), config.seed,
    )  # fmt: skip
    return bench, choose_arms(config), material


def _questions():
    from helpers.evaluation.prompts import Question
    from helpers.evaluation.records import Prompt

    return [Question(Prompt(f"p{place}", text), text) for place, text in enumerate(PROMPTS)]


def _checks(bench, arms, material):
    from helpers.evaluation.generate import self_test

    rows = self_test(bench, material.prompts[0], arms)
    return {"rows": rows, "max_length": bench.model.generation_config.max_length}


def _texts(bench, arms, material):
    question = _questions()[0]
    return {
        "prompts": {arm.name: bench.writer.text(question, arm, 8) for arm in arms},
        "shots": [[*example["prompt"], *example["completion"]] for example in bench.asking.shots],
        "heldout": [each.prompt.text for each in material.references],
    }


def _scores(bench, arms, material):
    """Score references in batches, and again in a plain loop, one row at a time."""
    from helpers.evaluation.generate import score_references

    scores, left_out = score_references(bench, material.references, arms, report=lambda line: None)
    plain = {f"{q.prompt.id} {arm.name}": _plain(bench, q, arm) for q in material.references for arm in arms}
    return {"batched": {f"{s.prompt_id} {s.arm}": [s.nll, s.eos_nll, s.tokens, s.utf8_bytes] for s in scores},
            "plain": plain, "left_out": left_out}  # fmt: skip


def _plain(bench, question, arm):
    """Return (nll, eos_nll, tokens) of one reference by transformers alone: no batch, no padding, no cross_entropy."""
    import torch

    tokenizer, model = bench.tokenizer, bench.model
    room = len(bench.writer.ids(question.prompt.reference)) + 2
    prompt = tokenizer(bench.writer.text(question, arm, room), add_special_tokens=False)["input_ids"]
    whole = list(bench.writer.with_answer(question, arm, question.prompt.reference)["input_ids"])
    assert whole[: len(prompt)] == prompt
    with torch.no_grad(), bench.playing(arm):
        shares = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    losses = [-shares[at - 1, whole[at]].item() for at in range(len(prompt), len(whole))]
    return [sum(losses[:-1]), losses[-1], len(losses) - 1]


class Counter:
    """Stands in for the one call that generates, and counts."""

    def __init__(self, answer=None, most=None):
        from helpers.evaluation import generate as module

        self.module, self.real, self.answer, self.most, self.sizes = module, module.generate, answer, most, []

    def __enter__(self):
        """Take the place."""
        self.module.generate = self
        return self

    def __exit__(self, *_):
        """Leave it."""
        self.module.generate = self.real

    def __call__(self, model, tokenizer, prompts, **options):
        """Answer as the real one does, or as told; run out of memory above `most` prompts."""
        import torch

        self.sizes.append(len(prompts))
        if self.most is not None and len(prompts) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.answer is not None:
            return [self.answer] * len(prompts)
        return self.real(model, tokenizer, prompts, **options)


def _plain_answers(answers):
    return [[a.prompt_id, a.arm, a.text, a.tokens, a.finish_reason] for a in answers]


def _cache(bench, arms, material, folder):
    """Answer twice, once more from the file, and once with one question more."""
    from helpers.evaluation.cache import AnswerCache
    from helpers.evaluation.generate import answer_all

    path, questions, lines, sizes, answers = folder / "cache.json", _questions(), [], [], []
    for count in (3, 3, 4):
        cache = AnswerCache(path, bench.configuration())
        with Counter() as counter:
            found = answer_all(bench, questions[:count], arms, batch_size=2, cache=cache, report=lines.append)
        sizes.append(counter.sizes)
        answers.append(_plain_answers(found))
    one = answer_all(bench, questions[:3], arms, batch_size=8, report=lines.append)
    return {"sizes": sizes, "answers": answers, "lines": lines, "one_batch": _plain_answers(one)}


def _steps(bench, arms):
    """Answer with the ordinary loop, and with the decoder that a GPU with room gets."""
    from helpers.evaluation import generate as module
    from helpers.model.decoding import DecodePlan

    def answered(plan):
        chosen, module.choose_plan = module.choose_plan, lambda *_, **__: plan
        try:
            with Counter() as counter:
                found = module.answer_all(bench, _questions(), arms, batch_size=2, report=lines.append)
        finally:
            module.choose_plan = chosen
        return _plain_answers(found), counter.sizes

    lines = []
    simple, sizes = answered(DecodePlan("simple", "for this test", 2))
    graphs, none = answered(DecodePlan("graphs", "for this test", 3))
    return {"simple": simple, "graphs": graphs, "sizes": sizes, "none": none, "lines": lines}


def _memory(bench, arms, material):
    """Run out of memory above one prompt, and then with one prompt too."""
    from helpers.core.errors import StackError
    from helpers.evaluation.generate import answer_all

    lines = []
    with Counter(most=1) as counter:
        answers = answer_all(bench, _questions(), arms[:1], batch_size=4, report=lines.append)
    try:
        with Counter(most=0):
            answer_all(bench, _questions(), arms[:1], batch_size=4, report=lines.append)
    except StackError as error:
        return {"sizes": counter.sizes, "answers": len(answers), "lines": lines, "error": str(error)}
    return {}


def _empty(bench, arms, material):
    """Let every arm end at once."""
    from helpers.evaluation.generate import answer_all, token_shift
    from helpers.model.decoding import GeneratedAnswer

    with Counter(answer=GeneratedAnswer("", 1, True)):
        answers = answer_all(bench, _questions()[:1], arms[:2], batch_size=4, report=lambda line: None)
    return {"answers": _plain_answers(answers), "shift": len(token_shift(bench, _questions()[0], answers[1]))}


def _shift(bench, material):
    """Rank the tokens of a text, and rank them again one by one."""
    import torch

    from helpers.evaluation.generate import token_shift
    from helpers.evaluation.records import Answer, Arm

    question, text, base = _questions()[0], "Two is a prime:\n\n2 and 3 \u2014 5.", Arm("base", "", adapter=False)
    found = token_shift(bench, question, Answer("p0", "tuned", text, 9, "eos"))
    prompt = bench.writer.ids(bench.writer.text(question, base, 0))
    whole = list(bench.writer.with_answer(question, base, text)["input_ids"])
    ranks = []
    for at in range(len(prompt), len(whole) - 1):
        with torch.no_grad(), bench.model.disable_adapter():
            logits = bench.model(input_ids=torch.tensor([whole[:at]])).logits[0, -1]
        ranks.append(int((logits > logits[whole[at]]).sum()) + 1)
    return {"text": "".join(token.text for token in found), "ranks": [token.rank for token in found], "plain": ranks}


def _one_prompt(bench, arms, material):
    """Compare on a single row."""
    from helpers.evaluation.generate import answer_all, score_references
    from helpers.evaluation.overview import look_over
    from helpers.evaluation.records import Comparison, RunInfo

    row = material.references[:1]
    scores, _ = score_references(bench, row, arms[:2], report=lambda line: None)
    answers = answer_all(bench, row, arms[:2], batch_size=4, report=lambda line: None)
    info = RunInfo("one", "base", "adapter", "", 8, 0, "2026-01-01")
    overview = look_over(Comparison(info, (row[0].prompt,), tuple(arms[:2]), answers, scores))
    return {"headline": overview.headline(), "outcomes": [verdict.outcome for verdict in overview.verdicts]}


def _room(bench, arms, material):
    """Ask with little room: examples are dropped, and rows that are too long are left out."""
    import dataclasses

    from helpers.evaluation.generate import score_references

    few = next(arm for arm in arms if arm.name == "base_few_shot")
    question = _questions()[0]
    lengths = []
    for room in (256, 130, 30):
        writer = dataclasses.replace(bench.writer, room=room)
        lengths.append(sum(m["role"] == "assistant" for m in writer.messages(question, few, 8)))
    small = dataclasses.replace(bench, max_seq_length=40)
    kept, left_out = score_references(small, material.references, arms[:2], report=lambda line: None)
    return {"shots": lengths, "kept": len(kept), "left_out": left_out}


def _draws(bench, material):
    """Draw answers at random, twice with one seed and once with another."""
    import dataclasses

    from helpers.evaluation.arms import choose_arms
    from helpers.evaluation.config import build_evaluation_config
    from helpers.evaluation.generate import answer_all

    arms = choose_arms(build_evaluation_config(preset="smoke", mode="aa"))
    found = []
    for seed in (1, 1, 2):
        drawing = dataclasses.replace(bench, temperature=0.7, seed=seed)
        answers = answer_all(drawing, _questions()[:2], arms, batch_size=2, report=lambda line: None)
        found.append([answer.text for answer in answers])
    return found


def _refused(other, runs, model):
    """Try an adapter on another base, and one that was never trained."""
    from helpers.core.errors import EvaluationError

    said = {}
    try:
        _bench(adapter="trained", model_name=str(other))
    except EvaluationError as error:
        said["other base"] = str(error)
    make_adapter(runs / "untrained", model, scale=0.0)
    bench, arms, material = _bench(adapter="untrained")
    try:
        _checks(bench, arms, material)
    except EvaluationError as error:
        said["untrained"] = str(error)
    return said
