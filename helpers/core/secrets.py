"""Keeps tokens out of what is printed and kept: a run's parameters, its output, its files and its executed notebook."""

from __future__ import annotations

import base64
import functools
import json
import os
import re

__all__ = ["redact", "removed_in", "secrets_in"]

SECRET_NAMES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "KAGGLE_KEY", "KAGGLE_API_TOKEN"),
    *("GITHUB_TOKEN", "GH_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)
"""Environment variables whose values are secrets."""

_SHORTEST = 8
"""Shorter values are no tokens; leaving them out of a text would spoil it."""

PATTERNS = {
    "token": r"hf_(?:(?:oauth|jwt)_[\w.-]{16,}|[A-Za-z0-9]{30,})",
    "GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "API key": r"(?<![A-Za-z0-9])sk-(?:(?:proj|svcacct|admin|ant|or|lf)-[\w-]{16,}|[A-Za-z0-9]{20,})",
    "AWS key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|(?<=aws_secret_access_key)([\"'\\\s:=]{1,8})[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "password": r"(?<=://)([^\s/:@\"'<>]*:)[^\s/@\"'<>]+(?=@)",
}
"""What secrets of these kinds look like, whoever holds them: of Hugging Face, GitHub, OpenAI and its likes, Amazon, and
in a URL. What stands in a group is kept."""

_PATTERNS = {name: re.compile(pattern, re.IGNORECASE if name == "AWS key" else 0) for name, pattern in PATTERNS.items()}
_MARKED = re.compile(r"\[removed: ([\w ]+)\]")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{27,}={0,2}")  # of the shortest token, 20 characters
_STANDARD, _URL_SAFE = str.maketrans("-_", "+/"), str.maketrans("+/", "-_")
_BEGINNINGS = re.compile(rb"hf_|gh[pousr]_|github_pat_|sk-|AKIA|ASIA")


def secrets_in(text: str) -> list[str]:
    """Return the names of the secrets that stand in a text: of environment variables, or of `PATTERNS`."""
    return removed_in(redact(_MARKED.sub("", text)))


def redact(text: str) -> str:
    """Replace each secret in a text, also in base64, by its name in brackets.

    Args:
        text: Any text, JSON included; JSON stays JSON.

    Example:
        >>> redact("token hf_" + "a" * 34)
        'token [removed: token]'
    """
    return _BASE64.sub(_without_encoded, _redact_plain(text))


def removed_in(text: str) -> list[str]:
    """Return the names of the secrets that `redact` has taken out of a text."""
    return sorted(set(_MARKED.findall(text)))


def _redact_plain(text: str) -> str:
    """Replace each secret that stands in a text as it is, and the values of variables in base64 as well."""
    for name, value in _values().items():
        for form in _forms(value):
            text = text.replace(form, f"[removed: {name}]")
        for core in _encoded(value.encode()):
            if core in text:
                text = re.sub(f"[A-Za-z0-9+/_-]*{re.escape(core)}[A-Za-z0-9+/_-]*={{0,2}}", f"[removed: {name}]", text)
    for name, pattern in _PATTERNS.items():
        text = pattern.sub(functools.partial(_removed, name), text)
    return text


def _removed(name: str, match: re.Match[str]) -> str:
    """Return the part of a match that is no secret, and say what was."""
    kept = match[1] or "" if match.re.groups else ""
    return f"{kept}[removed: {name}]"


def _encoded(value: bytes) -> list[str]:
    """Return what of a value's base64 does not depend on what stands around it, for each of three places."""
    cores = []
    for before, skipped in enumerate((0, 2, 3)):
        core = base64.b64encode(bytes(before) + value).decode()[skipped : (before + len(value)) * 8 // 6]
        cores += [core, core.translate(_URL_SAFE)]
    return cores


def _without_encoded(match: re.Match[str]) -> str:
    """Return a run of base64 characters, or the name of a token that is encoded in it, wherever it begins."""
    run = match[0].rstrip("=").translate(_STANDARD)
    for start in range(4):
        part = run[start : len(run) - ((len(run) - start) % 4 == 1)]
        decoded = base64.b64decode(part + "=" * (-len(part) % 4))
        if _BEGINNINGS.search(decoded) and (names := removed_in(_redact_plain(decoded.decode("latin-1")))):
            return f"[removed: {names[0]}]"
    return match[0]


def _values() -> dict[str, str]:
    """Return the secrets that are set, by name."""
    values = {name: os.environ.get(name, "").strip() for name in SECRET_NAMES}
    return {name: value for name, value in values.items() if len(value) >= _SHORTEST}


def _forms(value: str) -> tuple[str, ...]:
    """Return a secret as it is, and as it stands in JSON."""
    escaped = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    return tuple(dict.fromkeys((value, *escaped)))
