"""Everything in the evaluation that needs a model: load, read off logits, answer, score, rank tokens.

One model in memory plays all arms. The rest of `helpers.evaluation` gets answers and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from helpers.core.distributed import gather, on_main, place, same_everywhere
from helpers.core.errors import HelpersError, StackError
from helpers.core.files import file_sha256
from helpers.data.chat_templates import template_sha256
from helpers.evaluation.adapter import WEIGHTS, AdapterSource
from helpers.evaluation.arms import Asking, Writer, cut_at_tokens
from helpers.evaluation.cache import AnswerCache, CachedAnswer, do_each, exchange, own_batch
from helpers.evaluation.metrics.token_shift import ShiftedToken
from helpers.evaluation.prompts import Question
from helpers.evaluation.records import Answer, Arm, Prompt, ReferenceScore
from helpers.evaluation.sanity import judge
from helpers.model.decoding import GeneratedAnswer, choose_plan, encode_prompts, fast_generate, generate
from helpers.model.distance import logits_of
from helpers.model.load import free_memory, ran_out_of_memory
from helpers.model.scoring import score_rows

if TYPE_CHECKING:
    from helpers.data.prompts import Message

__all__ = ["Bench", "answer_all", "ask", "score_references", "self_test", "token_shifts"]

_BASE = Arm("base", "Base", adapter=False)


@dataclass(frozen=True)
class Bench:
    """A base model with its adapter, ready to play every arm.

    Args:
        tokenizer: Saved beside the adapter, with its template.
        precision: "bf16", "fp16" or "fp32": what the model computes in.
        temperature: 0 for the likeliest answer, above 0 for a draw.
    """

    model: Any
    tokenizer: Any
    asking: Asking
    source: AdapterSource
    base: str
    precision: str
    max_new_tokens: int
    max_seq_length: int
    temperature: float = 0.0
    seed: int = 0

    @cached_property
    def writer(self) -> Writer:
        """Writes questions as the arms read them."""
        room = min(self.max_seq_length, self.model.config.max_position_embeddings)
        return Writer(self.tokenizer, self.asking, room)

    def configuration(self) -> dict[str, Any]:
        """Return what all answers depend on, for the cache."""
        return {
            "base": self.base,
            "adapter": file_sha256(self.source.folder / WEIGHTS[1]),
            "template": template_sha256(self.tokenizer),
            "precision": self.precision,
            "max_new_tokens": self.max_new_tokens,
            "decoding": [self.temperature, self.seed] if self.temperature else "greedy",
        }

    def playing(self, arm: Arm) -> AbstractContextManager[None]:
        """Switch the adapter as an arm has it."""
        return nullcontext() if arm.adapter else self.model.disable_adapter()


def self_test(bench: Bench, question: Question, arms: Sequence[Arm]) -> list[dict[str, str]]:
    """Test that the arms are what they claim to be, before any answer is shown.

    Raises:
        EvaluationError: A test fails.
        RunError: Of several processes one would answer in another way.
    """
    same_everywhere("way of answering", bench.configuration())
    ids = bench.writer.ids(bench.writer.text(question, _BASE, bench.max_new_tokens))
    on = logits_of(bench.model, ids)
    with bench.playing(_BASE):
        off = logits_of(bench.model, ids)
    again = logits_of(bench.model, ids)
    tokenizer, run = bench.tokenizer, bench.source.run
    written = {arm.name: bench.writer.ids(bench.writer.text(question, arm, bench.max_new_tokens)) for arm in arms}
    places = {
        name: tuple(at for at, i in enumerate(ids) if i == tokenizer.bos_token_id) for name, ids in written.items()
    }
    return judge(
        change=float((on - off).abs().max()),
        identical=bool((on == again).all()),
        bos=None if tokenizer.bos_token_id is None else places,
        template_sha256=template_sha256(tokenizer),
        recorded_sha256=run.manifest().get("template_sha256") if run else None,
    )


def answer_all(
    bench: Bench,
    questions: Sequence[Question],
    arms: Sequence[Arm],
    *,
    batch_size: int,
    cache: AnswerCache | None = None,
    report: Callable[[str], object] = print,
) -> tuple[Answer, ...]:
    """Let every arm answer every question, arms first. Several processes share the questions among them.

    Args:
        batch_size: Questions answered at a time; halved when memory runs out.
        cache: Answers of an earlier run; new ones are added. None keeps nothing.

    Raises:
        TemplateError: A prompt contains control tokens.
        StackError: A prompt leaves no room for its answer, or memory does not suffice for one.
    """
    cache = AnswerCache(None, bench.configuration()) if cache is None else cache
    cache.answers = on_main(lambda: cache.answers)
    answers: list[Answer] = []
    for draw, arm in enumerate(arms):
        pending = _Pending(bench, questions, arm, draw, cache)
        pending.answer(batch_size, report)
        found = [(question, cache.answers[key]) for question, key in zip(questions, pending.keys, strict=True)]
        answers += [Answer(q.prompt.id, arm.name, a.text, a.tokens, a.finish_reason) for q, a in found]
    return tuple(answers)


class _Pending:
    """The questions of one arm that the cache has no answer for, those with the shortest prompts first."""

    def __init__(self, bench: Bench, questions: Sequence[Question], arm: Arm, draw: int, cache: AnswerCache) -> None:
        self.bench, self.questions, self.arm, self.draw, self.cache = bench, questions, arm, draw, cache
        switch = ("on" if arm.adapter else "off") + (f" draw {draw}" if bench.temperature else "")
        texts = [bench.writer.text(question, arm, bench.max_new_tokens) for question in questions]
        self.keys = [cache.key(switch, text) for text in texts]
        unknown = [at for at, key in enumerate(self.keys) if key not in cache.answers]
        self.places = sorted(unknown, key=lambda at: len(bench.writer.ids(texts[at])))
        self.left = {each: len(self.places) - at for at, each in enumerate(self.places)}

    def answer(self, batch_size: int, report: Callable[[str], object]) -> None:
        """Answer them batch by batch, keeping each batch at once."""
        total = len(self.questions)
        if known := total - len(self.places):
            report(f"{self.arm.label}: {known} of {total} answers were kept from an earlier run")
        if self.places and not self.bench.temperature:
            self._keep(exchange(self._answer_at_once()), report)
        while self.places:
            found, batch_size = self._answer_batch(own_batch(self.places, batch_size), batch_size, report)
            batch_size = min(gather(batch_size))
            self._keep(exchange(found), report)

    def _answer_at_once(self) -> dict[int, CachedAnswer]:
        """Answer this process's part from a copy of the weights, if there is room and the questions are worth it.

        Neighbours in length go to different processes, so that all have about as much to do.
        """
        length, here = self.bench.max_new_tokens, place()
        own = self.places[here.rank :: here.count]
        if not own:
            return {}
        model, tokenizer, prompts = self._asked([self.questions[at] for at in own])
        plan = choose_plan(model, encode_prompts(model, tokenizer, prompts, length), max_new_tokens=length)
        if plan.name != "graphs":
            return {}
        name = "tuned" if self.arm.adapter else "base"
        found = fast_generate(model, tokenizer, prompts, max_new_tokens=length, arms=(name,), plan=plan)[name]
        return {at: _cached(answer) for at, answer in zip(own, found, strict=True)}

    def _answer_batch(
        self, places: Sequence[int], size: int, report: Callable[[str], object]
    ) -> tuple[dict[int, CachedAnswer], int]:
        """Answer one batch with the usual loop, in parts if memory runs out; return also how many fitted at a time."""
        found: dict[int, CachedAnswer] = {}
        while chunk := places[len(found) : len(found) + size]:
            try:
                found |= zip(chunk, self._generate(chunk), strict=True)
            except (RuntimeError, MemoryError) as error:
                size = _halved(len(chunk), error)
                report(f"{self.arm.label}: memory ran out with {len(chunk)} at a time, going on with {size}")
        return found, size

    def _generate(self, places: Sequence[int]) -> list[CachedAnswer]:
        """Answer a few questions at once."""
        bench = self.bench
        model, tokenizer, prompts = self._asked([self.questions[at] for at in places])
        seed = bench.seed + 7919 * self.draw + self.left[places[0]]
        options: dict[str, Any] = {"max_new_tokens": bench.max_new_tokens, "batch_size": len(prompts)}
        if bench.temperature:
            options |= {"temperature": bench.temperature, "seed": seed}
        with bench.playing(self.arm):
            answers = generate(model, tokenizer, prompts, **options)
        return [_cached(each) for each in answers]

    def _asked(self, questions: Sequence[Question]) -> tuple[Any, Any, list[list[Message]]]:
        """Return the model, the arm's tokenizer, and the questions as the arm reads them."""
        bench = self.bench
        prompts = [bench.writer.messages(each, self.arm, bench.max_new_tokens) for each in questions]
        return bench.model, bench.writer.tokenizer_of(self.arm), prompts

    def _keep(self, found: dict[int, CachedAnswer], report: Callable[[str], object]) -> None:
        """Put answers into the cache, and on disk."""
        if not found:
            return
        self.cache.add({self.keys[at]: answer for at, answer in found.items()})
        self.places = [at for at in self.places if at not in found]
        total = len(self.questions)
        report(f"{self.arm.label}: {total - len(self.places)} of {total} answered")


def _cached(answer: GeneratedAnswer) -> CachedAnswer:
    """Return an answer as the cache keeps it."""
    return CachedAnswer(answer.text, answer.tokens, "eos" if answer.finished else "length")


def ask(bench: Bench, text: str, arms: Sequence[Arm]) -> list[dict[str, str]]:
    """Let arms answer one prompt that nobody keeps: a row an arm."""
    question = Question(Prompt("own", text), text)
    answers = answer_all(bench, [question], arms, batch_size=1, report=lambda line: None)
    return [{"arm": arm.label, "answer": answer.text} for arm, answer in zip(arms, answers, strict=True)]


def _halved(size: int, error: Exception) -> int:
    """Return half the batch size if memory ran out; raise anything else on."""
    if isinstance(error, HelpersError) or not ran_out_of_memory(error):
        raise error
    if size == 1:
        remedy = "Lower max_new_tokens, shorten the prompt, or use a larger GPU."
        raise StackError("batch_size", "memory for one answer", "out of memory", remedy) from error
    free_memory()
    return size // 2


def score_references(
    bench: Bench, questions: Sequence[Question], arms: Sequence[Arm], *, report: Callable[[str], object] = print
) -> tuple[tuple[ReferenceScore, ...], dict[str, int]]:
    """Measure how likely each arm finds the given answers, without generating.

    Args:
        questions: With references; those without are passed over.

    Returns:
        A score for each arm and question, arms first; and how many questions were left out for all arms, by reason.
    """
    kept, left_out = bench.writer.scorable([each for each in questions if each.prompt.reference is not None], arms)
    scores: list[ReferenceScore] = []
    for number, arm in enumerate(arms):
        with bench.playing(arm):
            found = score_rows(bench.model, [rows[number] for _, rows in kept])
        for (question, _), score in zip(kept, found, strict=True):
            size = len((question.prompt.reference or "").encode())
            scores.append(ReferenceScore(question.prompt.id, arm.name, score.nll, score.eos_nll, score.tokens, size))
        report(f"{arm.label}: {len(kept)} good answers scored")
    return tuple(scores), left_out


def token_shift(bench: Bench, question: Question, answer: Answer) -> tuple[ShiftedToken, ...]:
    """Rank each token of an answer under the base model, which reads the answer as if it had written it.

    Args:
        answer: What the tuned model said. It is tokenized again, without an EOS.
    """
    import torch

    row = bench.writer.with_answer(question, _BASE, answer.text)
    start = row["completion_mask"].index(1)
    with bench.playing(_BASE):
        logits = logits_of(bench.model, row["input_ids"])[start - 1 : -2]
    chosen = torch.tensor(row["input_ids"][start:-1], dtype=torch.long)
    picked = logits.gather(1, chosen[:, None])
    ranks = (logits > picked).sum(1) + 1
    texts = cut_at_tokens(bench.tokenizer, chosen.tolist())
    return tuple(ShiftedToken(*each) for each in zip(texts, ranks.tolist(), strict=True))


def token_shifts(
    bench: Bench, questions: Sequence[Question], answers: Sequence[Answer]
) -> dict[str, tuple[ShiftedToken, ...]]:
    """Rank the tokens of each prompt's tuned answer, in mode aa of the second draw; several processes share them."""
    arm = next((answer.arm for answer in answers if answer.arm in ("tuned", "again")), "")
    said = {answer.prompt_id: answer for answer in answers if answer.arm == arm}
    asked = [question for question in questions if question.prompt.id in said]
    found = do_each(asked, lambda question: token_shift(bench, question, said[question.prompt.id]))
    return {question.prompt.id: tokens for question, tokens in zip(asked, found, strict=True)}
