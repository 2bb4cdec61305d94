"""Licences of the data sets and base models that the notebooks know, and what the Hub calls them."""

from __future__ import annotations

__all__ = ["BASE_LICENCES", "DATA_LICENCES", "HUB_NAMES"]

DATA_LICENCES = {
    # data set: (SPDX name as the Hub writes it, what to mind)
    "yahma/alpaca-cleaned": (
        "cc-by-4.0",
        "Its answers were generated with OpenAI's text-davinci-003; Stanford's original is CC BY-NC 4.0.",
    ),
    "databricks/databricks-dolly-15k": (
        "cc-by-sa-3.0",
        "Written by employees of Databricks; contexts are from Wikipedia.",
    ),
    "sample": ("apache-2.0", "The rows bundled with the notebooks."),
}
"""As their pages on the Hub state: https://huggingface.co/datasets/<name>."""

BASE_LICENCES = {
    "mistral-7b-instruct": "apache-2.0",
    "smollm2-135m": "apache-2.0",
    "unsloth/mistral-7b-instruct-v0.3-bnb-4bit": "apache-2.0",
    "mistralai/Mistral-7B-Instruct-v0.3": "apache-2.0",
}
"""Licences of the base models that are known here."""

HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What the Hub calls models that come from elsewhere."""
