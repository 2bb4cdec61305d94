"""The arms of a comparison, and what each of them reads for a question.

All arms come from one model in memory: the adapter is switched on or off, and the prompt is written in another way.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from helpers.data.chat_templates import ALPACA, find_control_text, render
from helpers.data.prompts import Example, Message, build_example, build_prompt
from helpers.data.rows import Row
from helpers.data.tokens import tokenize_chats
from helpers.evaluation.config import EvaluationConfig
from helpers.evaluation.prompts import Material, Question
from helpers.evaluation.records import Arm

__all__ = ["choose_arms", "messages_for", "plan_asking"]

_ARMS = {
    "base": Arm("base", "Base", adapter=False),
    "tuned": Arm("tuned", "Tuned", adapter=True),
    "base_bare": Arm("base_bare", "Base, plain text", adapter=False, prompting="bare"),
    "base_few_shot": Arm("base_few_shot", "Base + examples", adapter=False, prompting="few_shot"),
}
_AA_ARMS = {
    "base": Arm("base", "Base, first draw", adapter=False),
    "again": Arm("again", "Base, second draw", adapter=False),
}


@dataclass(frozen=True)
class Asking:
    """How the arms are asked.

    Args:
        style: "chat" or "alpaca", as in training.
        shots: Training examples that the arm base_few_shot sees as earlier turns.
    """

    style: str
    system_prompt: str
    shots: tuple[Example, ...] = ()


def choose_arms(config: EvaluationConfig) -> tuple[Arm, ...]:
    """Return the arms to compare, in the order of reports.

    Example:
        >>> from helpers.evaluation.config import build_evaluation_config
        >>> [arm.name for arm in choose_arms(build_evaluation_config(preset="smoke", mode="aa"))]
        ['base', 'again']
    """
    known = _AA_ARMS if config.mode == "aa" else _ARMS
    return tuple(known[name] for name in config.arm_names())


def plan_asking(config: EvaluationConfig, material: Material, style: str, system_prompt: str) -> Asking:
    """Decide how the arms are asked."""
    if "base_few_shot" not in config.arm_names():
        return Asking(style, system_prompt)
    taken = {each.prompt.text for each in (*material.prompts, *material.references)}
    rows = choose_shots(material.train, material.train_texts(), config.few_shot_rows, config.seed, avoid=taken)
    return Asking(style, system_prompt, tuple(build_example(row, material.task, style=style) for row in rows))


def choose_shots(
    rows: Sequence[Row], texts: Sequence[str], count: int, seed: int, *, avoid: Collection[str]
) -> list[Row]:
    """Draw examples from the shorter half of the training rows.

    Args:
        avoid: Texts that are asked or scored; a row that asks one of them is not drawn.
    """
    places = [place for place, text in enumerate(texts) if text not in avoid]
    places.sort(key=lambda place: sum(len(value) for value in rows[place].values() if value))
    shorter = places[: max((len(places) + 1) // 2, count)]
    drawn = random.Random(f"shots {seed}").sample(shorter, min(count, len(shorter)))  # noqa: S311 - not a secret
    return [rows[place] for place in drawn]


def messages_for(question: Question, arm: Arm, asking: Asking, *, shots: int | None = None) -> list[Message]:
    r"""Write a question as one arm is given it.

    Args:
        shots: Examples to show, counted from the last; None shows all.

    Returns:
        Messages. Those of a bare arm are one text with a line break at its end, to be written without any template.

    Example:
        >>> from helpers.evaluation.records import Prompt
        >>> question = Question(Prompt("p", "Name a prime."), "Name a prime.")
        >>> messages_for(question, _ARMS["base_bare"], Asking("chat", "Be brief."))
        [{'role': 'user', 'content': 'Name a prime.\n'}]
    """
    if arm.prompting == "bare":
        return [{"role": "user", "content": f"{question.prompt.text}\n"}]
    prompt = build_prompt(
        question.instruction, question.context, style=asking.style, system_prompt=asking.system_prompt
    )
    if arm.prompting != "few_shot":
        return prompt
    shown = asking.shots if shots is None else asking.shots[len(asking.shots) - shots :]
    turns = [message for example in shown for message in (*example["prompt"], *example["completion"])]
    return [*prompt[:-1], *turns, prompt[-1]]


@dataclass(frozen=True)
class Writer:
    """Writes questions for every arm.

    Args:
        room: The longest sequence that the model takes, in tokens.
    """

    tokenizer: Any
    asking: Asking
    room: int

    @cached_property
    def plain(self) -> Any:
        """The tokenizer of bare arms, whose template writes contents one after the other and nothing else."""
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = ALPACA
        return tokenizer

    def tokenizer_of(self, arm: Arm) -> Any:
        """Return the tokenizer whose template an arm is asked with."""
        return self.plain if arm.prompting == "bare" else self.tokenizer

    def ids(self, text: str) -> list[int]:
        """Tokenize a text whose control tokens are spelled out."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def messages(self, question: Question, arm: Arm, answer_tokens: int) -> list[Message]:
        """Write a question for an arm, with as many examples as leave room for the answer."""
        shots = len(self.asking.shots) if arm.prompting == "few_shot" else 0
        for count in range(shots, 0, -1):
            messages = messages_for(question, arm, self.asking, shots=count)
            if len(self.ids(render(self.tokenizer, messages, answer_next=True))) + answer_tokens <= self.room:
                return messages
        return messages_for(question, arm, self.asking, shots=0)

    def text(self, question: Question, arm: Arm, answer_tokens: int) -> str:
        """Return a prompt as the text that is tokenized."""
        messages = self.messages(question, arm, answer_tokens)
        return render(self.tokenizer_of(arm), messages, answer_next=True)

    def with_answer(self, question: Question, arm: Arm, answer: str) -> dict[str, list[int]]:
        """Tokenize a question with a given answer and its EOS, as an arm reads it.

        Raises:
            ContractError: The tokenizer merges characters across the border between prompt and answer.
        """
        prompt = self.messages(question, arm, len(self.ids(answer)) + 2)
        chats = {"prompt": [prompt], "completion": [[{"role": "assistant", "content": answer}]]}
        return {name: rows[0] for name, rows in tokenize_chats(chats, self.tokenizer_of(arm)).items()}

    def scorable(
        self, questions: Sequence[Question], arms: Sequence[Arm]
    ) -> tuple[list[tuple[Question, list[dict[str, list[int]]]]], dict[str, int]]:
        """Tokenize questions with their references, but for those that spell control tokens or do not fit for some arm.

        Returns:
            Each question with its rows, one an arm; and how many questions were left out, by reason.
        """
        texts = [f"{each.prompt.text}\n{each.prompt.reference}" for each in questions]
        control = {place for place, _ in find_control_text(texts, self.tokenizer)}
        others = [question for place, question in enumerate(questions) if place not in control]
        kept = []
        for question in others:
            rows = [self.with_answer(question, arm, question.prompt.reference or "") for arm in arms]
            if all(len(row["input_ids"]) <= self.room for row in rows):
                kept.append((question, rows))
        left_out = {"control tokens in the text": len(control), "too long": len(others) - len(kept)}
        return kept, {reason: count for reason, count in left_out.items() if count}


def cut_at_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Cut a text at its tokens.

    Returns:
        A piece for each token, white space included; together they are the text. Of a character made of several
        tokens, the last one has it.
    """
    pieces, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        whole = text.rstrip("\ufffd") if end < len(ids) else text
        more = whole.startswith(done)
        pieces.append(whole[len(done) :] if more else "")
        done = whole if more else done
    return pieces
