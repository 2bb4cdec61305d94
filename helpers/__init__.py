"""Tested helpers behind the Mistral QLoRA notebooks.

Importing this package loads nothing heavy: torch, transformers, trl, datasets and unsloth are imported inside the
functions that need them, unsloth always first.
"""

from helpers.core.errors import HelpersError

__version__ = "0.1.0"
__all__ = ["HelpersError", "__version__"]
