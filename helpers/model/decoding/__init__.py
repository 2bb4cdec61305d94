"""Greedy answers of a base model and its adapter, as fast as the card reads the weights.

Weights unpacked once into 16 bit, the adapter added in place for the tuned arm, a static cache, and each step a CUDA
graph; the ordinary loop, `generate`, where memory, the model or the number of prompts speak against that.
"""

from helpers.model.decoding.answers import (
    GeneratedAnswer,
    choose_plan,
    encode_prompts,
    fast_generate,
    generate,
    stream,
)
from helpers.model.decoding.support import DecodePlan

__all__ = ["DecodePlan", "GeneratedAnswer", "choose_plan", "encode_prompts", "fast_generate", "generate", "stream"]
