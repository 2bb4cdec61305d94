"""Answers by transformers' own loop, and base and tuned answers at the card's speed where that is the better choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.core.errors import StackError
from helpers.core.text import visible
from helpers.data.chat_templates import refuse_control_text, render
from helpers.model.decoding.engine import DecoderSession, Schedule, row_length
from helpers.model.decoding.forward import decoder_math
from helpers.model.decoding.support import (
    SIMPLE_BATCH,
    DecodePlan,
    cache_bytes,
    causal_model,
    copied_parameters,
    has_adapter,
    plan_decoding,
    read_shape,
    unsupported,
)
from helpers.model.decoding.weights import DecoderWeights
from helpers.model.load import free_memory, ran_out_of_memory
from helpers.runtime.hardware import available_memory

if TYPE_CHECKING:
    from helpers.data.prompts import Message


@dataclass(frozen=True)
class GeneratedAnswer:
    """One generated answer.

    Args:
        text: Special tokens removed, surrounding white space dropped.
        tokens: Tokens generated, EOS included, padding not.
        finished: Whether the model ended it with EOS, rather than reaching the limit.
    """

    text: str
    tokens: int
    finished: bool


def fast_generate(
    model: Any,
    tokenizer: Any,
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
        model: A causal language model, or PEFT's wrapper. The copy of its weights is freed before this returns.
        prompts: Conversations that end with the user's message.
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
    _check_arms(model, arms)
    ids = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    if not ids:
        return {arm: [] for arm in arms}
    plan = plan or choose_plan(model, ids, max_new_tokens=max_new_tokens, arms=len(arms))
    print(f"Generating with {plan.reason}.")
    eos = None if ignore_eos else tokenizer.eos_token_id
    tokens = _fast(model, ids, max_new_tokens, arms, plan.batch_size, eos) if plan.name == "graphs" else None
    if tokens is not None:
        return {arm: [_read_answer(each, tokenizer) for each in tokens[arm]] for arm in arms}
    if ignore_eos:
        raise StackError("ignore_eos", "a plan on copied weights", plan.reason, "Leave ignore_eos out.")
    batch = plan.batch_size if plan.name == "simple" else SIMPLE_BATCH
    return {arm: _simple(model, tokenizer, prompts, max_new_tokens, arm, batch) for arm in arms}


def choose_plan(model: Any, ids: Sequence[Sequence[int]], *, max_new_tokens: int, arms: int = 1) -> DecodePlan:
    """Decide how to generate, from the model, the prompts and the memory that is free now.

    Args:
        ids: The prompts' token ids, at least one.
        arms: How often all prompts are answered.
    """
    problem = unsupported(model)
    if problem:
        return DecodePlan("simple", f"the ordinary loop, because {problem}", SIMPLE_BATCH)
    dtype, gpu = causal_model(model).model.embed_tokens.weight.dtype, _device(model).type == "cuda"
    if not gpu and dtype != _copy_dtype(model):
        return DecodePlan("simple", f"the ordinary loop, because a CPU would copy {dtype} as float32", SIMPLE_BATCH)
    shape, itemsize = read_shape(causal_model(model).config), _copy_dtype(model).itemsize
    row = cache_bytes(shape, row_length(ids, max_new_tokens), itemsize)
    packed_head = 0 if gpu else causal_model(model).lm_head.weight.numel()  # on a card the model's own is read
    return plan_decoding(
        copied_parameters(shape) + packed_head,
        _free_bytes(_device(model)),
        len(ids),
        max_new_tokens,
        row_bytes=row,
        weight_bytes=itemsize,
        arms=arms,
        gpu=gpu,
    )


def encode_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[Message]], max_new_tokens: int
) -> list[list[int]]:
    """Return the token ids of prompts that leave room for their answers.

    Args:
        model: Its length limits are used: `max_position_embeddings`, and Unsloth's `max_seq_length` where there is one.
        prompts: Conversations that end with the user's message.
        max_new_tokens: Room that each prompt must leave, in tokens, at least 1.

    Raises:
        TemplateError: A prompt contains control tokens.
        StackError: A prompt leaves no room for its answer, or none is asked for.
    """
    if max_new_tokens < 1:
        raise StackError("max_new_tokens", "at least 1", max_new_tokens, "Raise max_new_tokens.")
    refuse_control_text([m["content"] for p in prompts for m in p], tokenizer, "prompt")
    texts = [render(tokenizer, prompt, answer_next=True) for prompt in prompts]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest, limit = max(map(len, ids), default=0), model.config.max_position_embeddings
    limit = min(limit, getattr(model, "max_seq_length", limit))
    if longest + max_new_tokens > limit:
        expected = f"at most {limit - max_new_tokens} tokens beside {max_new_tokens} of answer"
        remedy = "Shorten the prompt, lower max_new_tokens or raise max_seq_length."
        raise StackError("prompt", expected, longest, remedy)
    return ids


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int = SIMPLE_BATCH,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[GeneratedAnswer]:
    """Answer prompts with transformers' loop, in batches of similar length; greedily unless a temperature is given.

    Args:
        tokenizer: With its chat template, and a PAD that is not EOS.
        prompts: Conversations that end with the user's message.
        temperature: 0 for the likeliest token each time; above 0 tokens are drawn, the more freely the higher.

    Returns:
        One answer a prompt, in the order given.

    Raises:
        TemplateError: A prompt contains control tokens.
        StackError: A prompt leaves no room for its answer.
    """
    ids = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    sampling = _sampling(temperature, seed)
    answers: dict[int, GeneratedAnswer] = {}
    with _inference(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found = _generate_batch(model, tokenizer, [ids[i] for i in batch], max_new_tokens, **sampling)
            answers |= dict(zip(batch, found, strict=True))
    return [answers[i] for i in range(len(ids))]


def stream(model: Any, tokenizer: Any, prompt: Sequence[Message], *, max_new_tokens: int) -> str:
    """Answer one prompt, print the words as they come, and return the answer.

    Args:
        prompt: A conversation that ends with the user's message.
    """
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        """What a model writes may hold commands for the terminal."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(visible(text), stream_end)

    ids = encode_prompts(model, tokenizer, [prompt], max_new_tokens)
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with _inference(model):
        return _generate_batch(model, tokenizer, ids, max_new_tokens, do_sample=False, streamer=streamer)[0].text


def _check_arms(model: Any, arms: Sequence[str]) -> None:
    """Raise unless each arm is known and the model has it."""
    for arm in arms:
        if arm not in ("tuned", "base"):
            raise StackError("arms", "tuned or base", arm, "Correct the name.")
    if "tuned" in arms and not has_adapter(model):
        raise StackError(
            "arms",
            "a model with an adapter for the tuned arm",
            "a model without one",
            'Ask for arms=("base",), or attach an adapter.',
        )


def _fast(
    model: Any, ids: list[list[int]], max_new_tokens: int, arms: Sequence[str], rows: int, eos: int | None
) -> dict[str, list[list[int]]] | None:
    """Answer from a copy of the weights, with fewer rows whenever memory runs out; None when it does with one row."""
    import torch

    while rows:
        try:
            answers = _answer_arms(model, ids, max_new_tokens, arms, rows, eos)
            torch.cuda.empty_cache()  # the copy of the weights goes back to the card, not to torch's cache
            return answers
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            where = "The GPU's memory" if _device(model).type == "cuda" else "Memory"
            shown = f"{rows // 2} prompts side by side" if rows > 1 else "the ordinary loop"
            print(f"{where} ran out with {rows} prompts side by side; going on with {shown}.")
        free_memory()  # here, where the error no longer holds the tensors
        rows //= 2
    return None


def _answer_arms(
    model: Any, ids: list[list[int]], max_new_tokens: int, arms: Sequence[str], rows: int, eos: int | None
) -> dict[str, list[list[int]]]:
    """Return each arm's answers as token ids, all arms in the same buffers and graphs."""
    with decoder_math(_device(model)):
        weights = DecoderWeights(model, _copy_dtype(model))
        session = DecoderSession(weights, min(rows, len(ids)), row_length(ids, max_new_tokens))
        answers = {}
        for arm in arms:
            weights.use(arm)
            answers[arm] = Schedule(session, ids, max_new_tokens, eos).run()
    return answers


def _simple(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[Message]], max_new_tokens: int, arm: str, batch: int
) -> list[GeneratedAnswer]:
    """Answer with the ordinary loop, the adapter switched off for the base."""
    if arm == "tuned" or not has_adapter(model):
        return generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch)
    with model.disable_adapter():
        return generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch)


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Put a model into Unsloth's inference mode, and back into the mode it was in."""
    from unsloth import FastLanguageModel

    training = model.training
    FastLanguageModel.for_inference(model)
    try:
        yield
    finally:
        if training:
            FastLanguageModel.for_training(model)


def _sampling(temperature: float, seed: int) -> dict[str, Any]:
    """Return generate()'s options for drawing tokens; the seed is set once, before the first batch."""
    if not temperature:
        return {"do_sample": False}
    import torch

    torch.manual_seed(seed)
    return {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}


def _generate_batch(
    model: Any, tokenizer: Any, ids: Sequence[list[int]], max_new_tokens: int, **options: Any
) -> list[GeneratedAnswer]:
    """Generate for one batch, padded here: generate() can flip the tokenizer's side to right (unsloth issue 3283)."""
    import torch

    width, pad, eos = max(map(len, ids)), tokenizer.pad_token_id, tokenizer.eos_token_id
    batch = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    with torch.inference_mode():
        output = model.generate(
            input_ids=batch.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=eos,
            **options,
        )
    answers = output[:, width:].tolist()
    cut = [answer[: answer.index(eos) + 1] if eos in answer else answer for answer in answers]
    return [_read_answer(answer, tokenizer) for answer in cut]


def _read_answer(ids: list[int], tokenizer: Any) -> GeneratedAnswer:
    """Decode an answer that ends with EOS or at its limit."""
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return GeneratedAnswer(text, len(ids), ids[-1] == tokenizer.eos_token_id)


def _device(model: Any) -> Any:
    """Return the device that holds the model."""
    return causal_model(model).model.embed_tokens.weight.device


def _copy_dtype(model: Any) -> Any:
    """Return the type of the copied weights: that of the embedding on a GPU, float32 on a CPU."""
    import torch

    embedding = causal_model(model).model.embed_tokens.weight
    return embedding.dtype if embedding.device.type == "cuda" else torch.float32


def _free_bytes(device: Any) -> int | None:
    """Return the GPU's free memory, torch's own unused blocks included; for a CPU the machine's, None if unknown."""
    import torch

    if device.type != "cuda":
        return available_memory() if device.type == "cpu" else None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
