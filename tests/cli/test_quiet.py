"""What libraries log that tells a user nothing is left out, and nothing else."""

from __future__ import annotations

import importlib.util
import io
import logging
from pathlib import Path

from helpers.model.load import _is_news, _WithoutNotes


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
        """When this fails, the filter in `helpers.model.load` can go."""
        folder = Path(importlib.util.find_spec("unsloth").origin).parent
        text = (folder / "save.py").read_text(encoding="utf-8")
        assert "Restored added_tokens_decoder metadata" in text
        assert "from transformers.models.llama.modeling_llama import logger" in text


class TestWithoutNotes:
    """What Unsloth prints of itself on a machine without a GPU."""

    def test_its_two_lines_go_and_all_others_stay(self):
        """print() writes a line's end by itself; an empty line after a note is not one."""
        said = io.StringIO()
        stream = _WithoutNotes(said)
        print("Unsloth 2026.10.9: no GPU found, training on CPU (x86_64, 2 threads).", file=stream)
        print("Unsloth (CPU): LlamaForCausalLM on 2 CPU threads. dtype = torch.float32.", file=stream)
        print(file=stream)
        print("Unsloth (CPU): optim = 'adamw_8bit' needs a GPU.", file=stream, flush=True)
        assert said.getvalue() == "\nUnsloth (CPU): optim = 'adamw_8bit' needs a GPU.\n"

    def test_unsloth_still_prints_them(self):
        """When this fails, the class in `helpers.model.load` can go."""
        folder = Path(importlib.util.find_spec("unsloth").origin).parent
        assert ": no GPU found, training on CPU" in (folder / "_cpu_init.py").read_text(encoding="utf-8")
