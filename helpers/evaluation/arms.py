"""The arms of a comparison, and what each of them is given for a question.

All arms come from one model in memory: the adapter is switched on or off, and the prompt is written in another way.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from helpers.data.prompts import Example, Message, build_example, build_prompt
from helpers.data.rows import Row
from helpers.evaluation.config import EvaluationConfig
from helpers.evaluation.material import Material
from helpers.evaluation.questions import Question
from helpers.evaluation.records import Arm

__all__ = ["AA_TEMPERATURE", "Asking", "choose_arms", "choose_shots", "messages_for", "plan_asking"]

AA_TEMPERATURE = 0.7
"""How freely mode aa draws its answers; 0 would give the same answer twice."""

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
        system_prompt: What the assistant is told first; "" for none.
        shots: Training examples that the arm base_few_shot sees as earlier turns.
    """

    style: str
    system_prompt: str
    shots: tuple[Example, ...] = ()


def choose_arms(config: EvaluationConfig) -> tuple[Arm, ...]:
    """Return the arms to compare, in the order of reports.

    Args:
        config: The comparison.

    Example:
        >>> from helpers.evaluation.config import build_evaluation_config
        >>> [arm.name for arm in choose_arms(build_evaluation_config(preset="smoke", mode="aa"))]
        ['base', 'again']
    """
    known = _AA_ARMS if config.mode == "aa" else _ARMS
    return tuple(known[name] for name in config.arm_names())


def plan_asking(config: EvaluationConfig, material: Material, style: str, system_prompt: str) -> Asking:
    """Decide how the arms are asked.

    Args:
        config: The comparison.
        material: Its rows.
        style: "chat" or "alpaca".
        system_prompt: As in training, or as the user said.

    Returns:
        Style, system prompt and, if an arm needs them, examples.
    """
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
        rows: Training rows; held-out rows are never among them.
        texts: What each of them asks.
        count: How many to draw, if there are so many.
        seed: Seed of the draw.
        avoid: Texts that are asked or scored; a row that asks one of them is not drawn.

    Returns:
        The rows, in random order.
    """
    places = [place for place, text in enumerate(texts) if text not in avoid]
    places.sort(key=lambda place: sum(len(value) for value in rows[place].values() if value))
    shorter = places[: max((len(places) + 1) // 2, count)]
    drawn = random.Random(f"shots {seed}").sample(shorter, min(count, len(shorter)))  # noqa: S311 - not a secret
    return [rows[place] for place in drawn]


def messages_for(question: Question, arm: Arm, asking: Asking, *, shots: int | None = None) -> list[Message]:
    r"""Write a question as one arm is given it.

    Args:
        question: What is asked.
        arm: Which arm.
        asking: Style, system prompt and examples.
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
        return list(prompt)
    shown = asking.shots if shots is None else asking.shots[len(asking.shots) - shots :]
    turns = [message for example in shown for message in example.messages()]
    return [*prompt[:-1], *turns, prompt[-1]]
