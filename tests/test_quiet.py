"""What libraries log that tells a user nothing is left out, and nothing else."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from helpers.model import _is_news


def record(message):
    """A line of a log."""
    return logging.LogRecord("transformers", logging.WARNING, "save.py", 1, message, None, None)


class TestIsNews:
    """The filter on transformers' logger through which Unsloth writes."""

    def test_a_tokenizer_that_was_saved_as_it_should_be_is_no_news(self):
        """Unsloth says so after each save."""
        assert not _is_news(record("Unsloth: Restored added_tokens_decoder metadata in a/tokenizer_config.json."))

    def test_every_other_warning_is_news(self):
        """Warnings about the model stay."""
        assert _is_news(record("Sliding Window Attention is enabled but not implemented."))

    def test_unsloth_still_writes_the_line(self):
        """When this fails, the filter in `helpers.model` can go."""
        folder = Path(importlib.util.find_spec("unsloth").origin).parent
        text = (folder / "save.py").read_text(encoding="utf-8")
        assert "Restored added_tokens_decoder metadata" in text
        assert "from transformers.models.llama.modeling_llama import logger" in text
