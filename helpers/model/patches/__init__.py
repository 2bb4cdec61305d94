"""Changes to the libraries' speed or quirks, each guarded by versions."""

UNSLOTH_TESTED = "2026.10.9"
"""The only version of unsloth that these changes are known to work with; with others each leaves things as they are."""
