"""The plain records that a comparison is made of: prompts, answers, reference scores.

Everything in `helpers.evaluation` but `generate` works on these alone, never on a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prompt:
    """One thing that every arm is asked.

    Args:
        id: A short unique name, such as "predictive-maintenance".
        text: What the user says, with the context that belongs to it, if any.
        category: The slice it is reported under, such as "operations"; "" for none.
        source: Rows that share a source are not independent; statistics cluster by it. "" for none.
        reference: A person's answer to it, or None.
        expected_items: How many items the prompt asks for, or None.
    """

    id: str
    text: str
    category: str = ""
    source: str = ""
    reference: str | None = None
    expected_items: int | None = None


@dataclass(frozen=True)
class Arm:
    """One way to answer: which weights, and how they are asked.

    Args:
        name: "base", "tuned", "base_bare" or "base_few_shot".
        label: What reports call it, such as "Base + template".
        adapter: Whether the adapter is switched on.
        prompting: "template", "bare" or "few_shot".
    """

    name: str
    label: str
    adapter: bool
    prompting: str = "template"


@dataclass(frozen=True)
class Answer:
    """What one arm said to one prompt.

    Args:
        prompt_id: The `Prompt.id` it answers.
        arm: The `Arm.name` that said it.
        text: The answer, special tokens removed, otherwise as generated.
        tokens: How many tokens were generated, the closing EOS included.
        finish_reason: "eos" (ended by itself) or "length" (cut at the limit).
    """

    prompt_id: str
    arm: str
    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class ReferenceScore:
    """How likely one arm finds a reference answer.

    Args:
        prompt_id: The `Prompt.id` whose reference was scored.
        arm: The `Arm.name` that scored it.
        nll: Sum of -log p over the answer's tokens without its EOS, in nats.
        eos_nll: -log p of the closing EOS, in nats.
        tokens: The answer's tokens, without the EOS.
        utf8_bytes: The answer's length in UTF-8 bytes.
    """

    prompt_id: str
    arm: str
    nll: float
    eos_nll: float
    tokens: int
    utf8_bytes: int

    def mean(self) -> float:
        """Return -log p a token, EOS included, in nats: what training lowers."""
        return (self.nll + self.eos_nll) / (self.tokens + 1)


@dataclass(frozen=True)
class RunInfo:
    """What was compared and how, for the head of every report.

    Args:
        title: A line for people, such as "SmolLM2-135M-Instruct against its adapter runs/demo".
        base_model: Hub id or path of the base model.
        adapter: Path or id of the adapter.
        system_prompt: The system prompt of all templated arms; "" for none.
        max_new_tokens: The length limit of an answer, in tokens.
        seed: Seed of generation and blind shuffling.
        created: ISO 8601 time in UTC.
        details: Further name-value pairs worth showing (versions, hardware, decoding).
        held_out: Whether the references, and the other task's rows, are known not to be training rows.
        other_task: The task that was not trained, whose bundled rows were scored: "alpaca" or "dolly"; "" if none were.
    """

    title: str
    base_model: str
    adapter: str
    system_prompt: str
    max_new_tokens: int
    seed: int
    created: str
    details: dict[str, str] = field(default_factory=dict)
    held_out: bool = True
    other_task: str = ""


@dataclass(frozen=True)
class Comparison:
    """Prompts, arms, and what came of them.

    `answers` holds one `Answer` for each prompt and arm; `references` one `ReferenceScore` for each arm and each prompt
    that has a reference and was scored (the two sets of prompts may differ: scoring is cheap, generating is not).
    `other_task` holds one for each bundled row of the task that was not trained, and for base and tuned alone.
    """

    info: RunInfo
    prompts: tuple[Prompt, ...]
    arms: tuple[Arm, ...]
    answers: tuple[Answer, ...]
    references: tuple[ReferenceScore, ...] = ()
    other_task: tuple[ReferenceScore, ...] = ()
