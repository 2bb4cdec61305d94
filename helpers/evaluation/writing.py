"""Questions as the text and the tokens that each arm reads; needs a tokenizer, but no model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from helpers.data.chat_templates import ALPACA, find_control_text, render
from helpers.data.contract import TokenizedExample, tokenize_example
from helpers.data.prompts import Example, Message
from helpers.evaluation.arms import Asking, messages_for
from helpers.evaluation.questions import Question
from helpers.evaluation.records import Arm

__all__ = ["Writer", "cut_at_tokens"]


@dataclass(frozen=True)
class Writer:
    """Writes questions for every arm.

    Args:
        tokenizer: The adapter's, with its template.
        asking: Style, system prompt and examples.
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
        """Write a question for an arm, with as many examples as leave room for the answer.

        Args:
            question: What is asked.
            arm: Who is asked.
            answer_tokens: Room for the answer, in tokens.

        Returns:
            Messages, the last one the user's.
        """
        shots = len(self.asking.shots) if arm.prompting == "few_shot" else 0
        for count in range(shots, 0, -1):
            messages = messages_for(question, arm, self.asking, shots=count)
            if len(self.ids(render(self.tokenizer, messages, answer_next=True))) + answer_tokens <= self.room:
                return messages
        return messages_for(question, arm, self.asking, shots=0)

    def text(self, question: Question, arm: Arm, answer_tokens: int) -> str:
        """Return a prompt as the text that is tokenized; arguments as for `messages`."""
        messages = self.messages(question, arm, answer_tokens)
        return render(self.tokenizer_of(arm), messages, answer_next=True)

    def with_answer(self, question: Question, arm: Arm, answer: str) -> TokenizedExample:
        """Tokenize a question with a given answer and its EOS, as an arm reads it.

        Args:
            question: What is asked.
            arm: Who reads it.
            answer: The answer, whose tokens are labelled.

        Raises:
            ContractError: The tokenizer merges characters across the border between prompt and answer.
        """
        prompt = self.messages(question, arm, len(self.ids(answer)) + 2)
        example = Example(tuple(prompt), ({"role": "assistant", "content": answer},))
        return tokenize_example(example, self.tokenizer_of(arm))

    def scorable(self, questions: Sequence[Question], arms: Sequence[Arm]) -> tuple[list[Question], dict[str, int]]:
        """Leave out questions that spell control tokens, or whose answers do not fit for some arm.

        Args:
            questions: With references.
            arms: Who will score them.

        Returns:
            The others, and how many were left out by reason.
        """
        texts = [f"{each.prompt.text}\n{each.prompt.reference}" for each in questions]
        control = {place for place, _ in find_control_text(texts, self.tokenizer)}
        others = [question for place, question in enumerate(questions) if place not in control]
        kept = [question for question in others if all(self._fits(question, arm) for arm in arms)]
        left_out = {"control tokens in the text": len(control), "too long": len(others) - len(kept)}
        return kept, {reason: count for reason, count in left_out.items() if count}

    def _fits(self, question: Question, arm: Arm) -> bool:
        return len(self.with_answer(question, arm, question.prompt.reference or "").input_ids) <= self.room


def cut_at_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Cut a text at its tokens.

    Args:
        tokenizer: Turns ids into text.
        ids: The text's tokens.

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
