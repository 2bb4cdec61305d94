"""Base and tuned answers at the card's speed, or by the ordinary loop where that is the better choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helpers.core.errors import StackError
from helpers.data.chat_templates import refuse_control_text, render
from helpers.model.decoding.blocks import decoder_math
from helpers.model.decoding.plans import SIMPLE_BATCH, DecodePlan, plan_decoding
from helpers.model.decoding.schedule import Schedule, row_length
from helpers.model.decoding.session import DecoderSession
from helpers.model.decoding.shapes import (
    cache_bytes,
    causal_model,
    copied_parameters,
    has_adapter,
    read_shape,
    unsupported,
)
from helpers.model.decoding.weights import DecoderWeights
from helpers.model.load import GeneratedAnswer, LoadedModel, free_memory, generate, without_adapter

if TYPE_CHECKING:
    from helpers.data.prompts import Message

__all__ = ["choose_plan", "encode_prompts", "fast_generate"]


def fast_generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    arms: Sequence[str] = ("tuned", "base"),
    plan: DecodePlan | None = None,
    ignore_eos: bool = False,
) -> dict[str, list[GeneratedAnswer]]:
    """Answer prompts greedily with the adapter, without it, or both; say on one line how, and why so.

    In float32 the answers are those of the ordinary loop. In 16 bit they need not be: the tuned arm's weights are base
    plus adapter rounded to 16 bit, where the ordinary loop rounds each of the two products, and attention adds up in
    another order. Where two tokens are about as likely, such a difference can choose the other one, as a different
    batch size can in the ordinary loop too.

    Args:
        loaded: The model. It is not changed; the copy of its weights is freed before this returns.
        prompts: Conversations that end with the user's message.
        max_new_tokens: Longest answer, in tokens.
        arms: "tuned", "base" or both. A model without an adapter has only "base".
        plan: How; by default `choose_plan` decides.
        ignore_eos: Generate `max_new_tokens` for every prompt, for measuring. Not in the ordinary loop.

    Returns:
        For each arm one answer a prompt, in the order given.

    Raises:
        TemplateError: A prompt contains control tokens.
        StackError: A prompt leaves no room for its answer, an arm is unknown or has no adapter, or `ignore_eos` is
            asked of the ordinary loop.
    """
    _check_arms(loaded, arms)
    ids = encode_prompts(loaded, prompts, max_new_tokens)
    if not ids:
        return {arm: [] for arm in arms}
    plan = plan or choose_plan(loaded, ids, max_new_tokens=max_new_tokens, arms=len(arms))
    print(f"Generating with {plan.reason}.")
    eos = None if ignore_eos else loaded.tokenizer.eos_token_id
    tokens = _fast(loaded, ids, max_new_tokens, arms, plan.batch_size, eos) if plan.kind == "graphs" else None
    if tokens is not None:
        return {arm: [_read_answer(each, loaded.tokenizer) for each in tokens[arm]] for arm in arms}
    if ignore_eos:
        raise StackError("ignore_eos", "a plan with CUDA graphs", plan.reason, "Leave ignore_eos out.")
    batch = plan.batch_size if plan.kind == "simple" else SIMPLE_BATCH
    return {arm: _simple(loaded, prompts, max_new_tokens, arm, batch) for arm in arms}


def choose_plan(loaded: LoadedModel, ids: Sequence[Sequence[int]], *, max_new_tokens: int, arms: int = 1) -> DecodePlan:
    """Decide how to generate, from the model, the prompts and the memory that is free now.

    Args:
        loaded: The model.
        ids: The prompts' token ids, at least one.
        max_new_tokens: Longest answer, in tokens.
        arms: How often all prompts are answered.

    Returns:
        The plan with its reason.
    """
    problem = unsupported(loaded.model)
    if problem:
        return DecodePlan("simple", SIMPLE_BATCH, f"the ordinary loop, because {problem}")
    shape, itemsize = read_shape(causal_model(loaded.model).config), _dtype(loaded).itemsize
    row = cache_bytes(shape, row_length(ids, max_new_tokens), itemsize)
    return plan_decoding(
        copied_parameters(shape),
        _free_bytes(_device(loaded)),
        len(ids),
        max_new_tokens,
        row_bytes=row,
        weight_bytes=itemsize,
        arms=arms,
    )


def encode_prompts(loaded: LoadedModel, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[list[int]]:
    """Return the token ids of prompts, checked as `helpers.model.load.generate` checks them.

    Args:
        loaded: Its tokenizer, template and length limits are used.
        prompts: Conversations that end with the user's message.
        max_new_tokens: Room that each prompt must leave, in tokens, at least 1.

    Raises:
        TemplateError: A prompt contains control tokens.
        StackError: A prompt leaves no room for its answer, or none is asked for.
    """
    tokenizer = loaded.tokenizer
    if max_new_tokens < 1:
        raise StackError("max_new_tokens", "at least 1", max_new_tokens, "Raise max_new_tokens.")
    refuse_control_text([m["content"] for p in prompts for m in p], tokenizer, "prompt")
    texts = [render(tokenizer, prompt, answer_next=True) for prompt in prompts]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, ids), default=0)
    limit = min(loaded.max_seq_length, loaded.model.config.max_position_embeddings)
    if longest + max_new_tokens > limit:
        expected = f"at most {limit - max_new_tokens} tokens beside {max_new_tokens} of answer"
        remedy = "Shorten the prompt, lower max_new_tokens or raise max_seq_length."
        raise StackError("prompt", expected, longest, remedy)
    return ids


def _check_arms(loaded: LoadedModel, arms: Sequence[str]) -> None:
    """Raise unless each arm is known and the model has it."""
    for arm in arms:
        if arm not in ("tuned", "base"):
            raise StackError("arms", "tuned or base", arm, "Correct the name.")
    if "tuned" in arms and not has_adapter(loaded.model):
        raise StackError(
            "arms",
            "a model with an adapter for the tuned arm",
            "a model without one",
            'Ask for arms=("base",), or attach an adapter.',
        )


def _fast(
    loaded: LoadedModel, ids: list[list[int]], max_new_tokens: int, arms: Sequence[str], rows: int, eos: int | None
) -> dict[str, list[list[int]]] | None:
    """Answer with captured steps, with fewer rows whenever memory runs out; None when it does with a single row."""
    import torch

    while rows:
        try:
            answers = _answer_arms(loaded, ids, max_new_tokens, arms, rows, eos)
            torch.cuda.empty_cache()  # the copy of the weights goes back to the card, not to torch's cache
            return answers
        except torch.OutOfMemoryError:
            shown = f"{rows // 2} prompts side by side" if rows > 1 else "the ordinary loop"
            print(f"The GPU's memory ran out with {rows} prompts side by side; going on with {shown}.")
        free_memory()  # here, where the error no longer holds the tensors
        rows //= 2
    return None


def _answer_arms(
    loaded: LoadedModel, ids: list[list[int]], max_new_tokens: int, arms: Sequence[str], rows: int, eos: int | None
) -> dict[str, list[list[int]]]:
    """Return each arm's answers as token ids, all arms in the same buffers and graphs."""
    with decoder_math(_device(loaded)):
        weights = DecoderWeights(loaded.model, _dtype(loaded))
        session = DecoderSession(weights, min(rows, len(ids)), row_length(ids, max_new_tokens))
        answers = {}
        for arm in arms:
            weights.use(arm)
            answers[arm] = Schedule(session, ids, max_new_tokens, eos).run()
    return answers


def _simple(
    loaded: LoadedModel, prompts: Sequence[Sequence[Message]], max_new_tokens: int, arm: str, batch: int
) -> list[GeneratedAnswer]:
    """Answer with the ordinary loop, the adapter switched off for the base."""
    if arm == "tuned" or not has_adapter(loaded.model):
        return generate(loaded, prompts, max_new_tokens=max_new_tokens, batch_size=batch)
    with without_adapter(loaded.model):
        return generate(loaded, prompts, max_new_tokens=max_new_tokens, batch_size=batch)


def _read_answer(ids: list[int], tokenizer: Any) -> GeneratedAnswer:
    """Decode an answer that ends with EOS or at its limit."""
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return GeneratedAnswer(text, len(ids), ids[-1] == tokenizer.eos_token_id)


def _device(loaded: LoadedModel) -> Any:
    """Return the device that holds the model."""
    return causal_model(loaded.model).model.embed_tokens.weight.device


def _dtype(loaded: LoadedModel) -> Any:
    """Return the type of the copied weights: the model's precision on a GPU, float32 on a CPU."""
    import torch

    on_gpu = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[loaded.precision]
    return on_gpu if _device(loaded).type == "cuda" else torch.float32


def _free_bytes(device: Any) -> int | None:
    """Return the GPU's free memory, torch's own unused blocks included; None for a CPU."""
    import torch

    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
