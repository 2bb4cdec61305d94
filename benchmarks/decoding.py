"""Do captured decoding steps give the tokens of the plain loop? For `scripts/gpu_equivalence`, on small models.

In float32 both must give exactly the same tokens, whatever the number of rows and wherever answers end.
"""

from __future__ import annotations

from typing import Any

from generate import adapt, answer, both_arms, device
from tables import ARMS


def check() -> list[dict[str, Any]]:
    """Compare tokens with transformers' loop on small float32 models: they must be equal."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = False
    common: dict[str, Any] = {"vocab_size": 4096, "pad_token_id": 0}
    mistral = MistralConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=None,
        **common,
    )
    llama = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        **common,
    )
    models = (MistralForCausalLM(mistral), LlamaForCausalLM(llama))
    return [each for model in models for each in compare_answers(model)]


def compare_answers(model: Any) -> list[dict[str, Any]]:
    """Spread a model's logits, put a random adapter on it, and compare both arms, with and without EOS."""
    import torch

    torch.manual_seed(0)
    for key, weight in model.named_parameters():
        torch.nn.init.uniform_(weight, 0.5, 1.5) if "norm" in key else torch.nn.init.normal_(weight, std=0.05)
    model.generation_config.eos_token_id = None
    model = adapt(model.to(device()))
    numbers = torch.Generator().manual_seed(7)
    ids = [torch.randint(3, 4096, (n,), generator=numbers).tolist() for n in (5, 130, 1, 17, 300, 3, 127, 60)]
    simple = both_arms(model, lambda: [answer(model, 0, [each], 40)[0] for each in ids])
    eos = simple["base"][0][12]
    ended = {arm: [a[: a.index(eos) + 1] if eos in a else a for a in simple[arm]] for arm in simple}
    return [compare_rows(model, ids, rows, simple, ended, eos) for rows in (3, 8)]


def compare_rows(
    model: Any, ids: list[list[int]], rows: int, simple: dict[str, Any], ended: dict[str, Any], eos: int
) -> dict[str, Any]:
    """Compare ours with the expected tokens, for one number of rows; all must be equal, and the steps captured."""
    found, lengths = decode(model, ids, 40, rows, None)
    short, _ = decode(model, ids, 40, rows, eos)
    equal = {arm: sum(a == b for a, b in zip(found[arm], simple[arm], strict=True)) for arm in ARMS}
    return {
        "name": f"{model.config.model_type}, float32, {rows} rows",
        "prompts": len(ids),
        "equal": equal,
        "ok": found == simple and short == ended and bool(lengths or device().type == "cpu"),
        "equal_with_eos": short == ended,
        "captured_lengths": lengths,
        "distinct_tokens": len({token for answer in simple["base"] for token in answer}),
    }


def decode(
    model: Any, ids: list[list[int]], new: int, rows: int, eos: int | None
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Answer with ours, both arms in one session; returns the tokens and the cache lengths that were captured."""
    from helpers.model.decoding.engine import DecoderSession, Schedule, row_length
    from helpers.model.decoding.forward import decoder_math
    from helpers.model.decoding.weights import DecoderWeights

    with decoder_math(device()):
        weights, found = DecoderWeights(model, model.get_base_model().lm_head.weight.dtype), {}
        session = DecoderSession(weights, rows, row_length(ids, new))
        for arm in ARMS:
            weights.use(arm)
            found[arm] = Schedule(session, ids, new, eos).run()
        return found, session.captured_lengths()
