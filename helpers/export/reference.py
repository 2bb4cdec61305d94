"""What the tuned model in memory says: the reference that every export is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.core.errors import ExportError
from helpers.data.chat_templates import refuse_control_text, render, template_sha256
from helpers.model.distance import Distance, input_device, jitter_activations, logits_of_batch, measure_distance
from helpers.runtime.hardware import precision_of

if TYPE_CHECKING:
    from helpers.data.prompts import Message

VERIFY_PROMPTS: tuple[tuple[Message, ...], ...] = tuple(
    ({"role": "user", "content": text},)
    for text in (
        "What is predictive maintenance, in one sentence?",
        "Name three risks of a single supplier.",
        "Summarize: The meeting moved to Friday because two people were ill.",
        "Write a short, polite reply to a customer whose parcel is late.",
        "What is 17 + 25?",
        "Translate to French: Good morning, how are you?",
    )
)
"""Fixed prompts, so that verifications can be compared with each other."""


_SIDE_BY_SIDE = 8
"""Prompts in one pass, in float32."""


@dataclass(frozen=True)
class Reference:
    """The tuned model's and its base's view of the same tokens.

    Args:
        prompts: Conversations that end with the user's message.
        prompt_ids: Their token ids, as the template in memory renders them.
        sequences: Prompt and the tuned model's greedy answer, as token ids.
        tuned: Logits that predict the answer's tokens: one float32 tensor a prompt, positions x vocabulary.
        base: The same with the adapter switched off.
        noise: What the precision of the arithmetic alone does to the tuned model's logits.
        precision: "bf16", "fp16" or "fp32": the type it was computed in.
    """

    prompts: tuple[tuple[Message, ...], ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    sequences: tuple[tuple[int, ...], ...]
    tuned: tuple[Any, ...]
    base: tuple[Any, ...]
    base_answers: tuple[tuple[int, ...], ...]
    noise: Distance
    precision: str
    template_sha256: str
    max_new_tokens: int

    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Return the tuned model's greedy answers, as token ids."""
        return tuple(s[len(p) :] for s, p in zip(self.sequences, self.prompt_ids, strict=True))


def measure_reference(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[Message]] = VERIFY_PROMPTS, *, max_new_tokens: int = 16
) -> Reference:
    """Let the tuned model and its base answer, and keep their logits.

    In 16 bit logits depend on the batch (unsloth issue 9708), and prompts are run one by one; in float32 side by side.

    Args:
        prompts: Conversations that end with the user's message.

    Raises:
        ExportError: The model has no adapter.
        TemplateError: A prompt contains control tokens.
    """
    if not hasattr(model, "disable_adapter"):
        raise ExportError(
            "model", "a model with a LoRA adapter", type(model).__name__, "Attach or load an adapter first."
        )
    refuse_control_text([m["content"] for p in prompts for m in p], tokenizer, "prompts")
    ids = [
        tuple(tokenizer(render(tokenizer, p, answer_next=True), add_special_tokens=False)["input_ids"]) for p in prompts
    ]
    training = model.training
    model.eval()
    answers = answer_greedily(model, ids, max_new_tokens, tokenizer)
    sequences, starts = tuple(p + a for p, a in zip(ids, answers, strict=True)), [len(p) for p in ids]
    tuned = answer_logits(model, sequences, starts)
    with jitter_activations(model):
        noise = measure_distance(tuned, answer_logits(model, sequences, starts))
    with model.disable_adapter():
        base = answer_logits(model, sequences, starts)
        base_answers = answer_greedily(model, ids, max_new_tokens, tokenizer)
    if training:
        getattr(model, "for_training", model.train)()  # Unsloth's also switches gradient checkpointing back on
    return Reference(
        tuple(map(tuple, prompts)),
        tuple(ids),
        sequences,
        tuple(tuned),
        tuple(base),
        tuple(base_answers),
        noise,
        precision_of(model.get_input_embeddings().weight.dtype),
        template_sha256(tokenizer),
        max_new_tokens,
    )


def answer_logits(model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Any]:
    """Return the logits that predict each sequence's answer: a tensor each, answer positions x vocabulary.

    Args:
        sequences: Token ids of prompt and answer.
        starts: Where the answers begin.
    """
    found = [logits for batch in _batches(model, sequences) for logits in logits_of_batch(model, batch)]
    return [logits[start - 1 : -1] for logits, start in zip(found, starts, strict=True)]


def answer_greedily(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, tokenizer: Any = None
) -> list[tuple[int, ...]]:
    """Answer prompts without sampling.

    Args:
        prompts: Token ids.
        tokenizer: Says where answers end; without it, the model's own generation settings do.
    """
    import torch

    device, settings = input_device(model), tokenizer or model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    pad = next((each for each in (settings.pad_token_id, *ends) if each is not None), 0)
    answers: list[tuple[int, ...]] = []
    for batch in _batches(model, prompts):
        width = max(map(len, batch))
        padding = [width - len(prompt) for prompt in batch]
        ids = torch.tensor([[pad] * count + list(prompt) for count, prompt in zip(padding, batch, strict=True)])
        mask = torch.arange(width) >= torch.tensor(padding)[:, None]
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.long().to(device),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends if None not in ends else None,
                pad_token_id=pad,
            )
        for answer in output[:, width:].tolist():
            first = next((at for at, token in enumerate(answer, 1) if token in ends), len(answer))
            answers.append(tuple(answer[:first]))
    return answers


def _batches(model: Any, rows: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    """Share rows out among passes: side by side in float32, one by one in 16 bit, where logits depend on the batch."""
    import torch

    size = _SIDE_BY_SIDE if model.get_input_embeddings().weight.dtype == torch.float32 else 1
    return [rows[at : at + size] for at in range(0, len(rows), size)]
