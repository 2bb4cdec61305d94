"""Tokens are taken out of texts, and told apart from ordinary words."""

from __future__ import annotations

import base64
import json
import os

import pytest

from helpers.core.files import write_json
from helpers.core.secrets import SECRET_NAMES, redact, removed_in, secrets_in

TOKEN = "hf_" + "Ab1" * 12


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch):
    """No secret is set but the test's own."""
    for name in SECRET_NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_value_of_a_variable_is_removed(monkeypatch):
    """A secret is known by the environment variable that holds it."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert redact("key 0123456789abcdef.") == "key [removed: WANDB_API_KEY]."
    assert secrets_in("key 0123456789abcdef.") == ["WANDB_API_KEY"]


def test_json_stays_json(monkeypatch):
    """A secret with quotes is found in its JSON form too."""
    monkeypatch.setenv("HF_TOKEN", 'a"quoted\\secret')
    assert json.loads(redact(json.dumps(['a"quoted\\secret']))) == ["[removed: HF_TOKEN]"]


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_secret_in_json_may_have_letters_beyond_ascii(monkeypatch, ascii_only):
    """Written as they are, or by number; nothing around it goes with it."""
    monkeypatch.setattr(os, "environ", {"HF_TOKEN": 'geh\xe9"imnis'})  # in a C locale none can be set
    text = json.dumps(["a full null", 'geh\xe9"imnis!'], ensure_ascii=ascii_only)
    assert redact(text) == '["a full null", "[removed: HF_TOKEN]!"]'


def test_a_hugging_face_token_needs_no_variable():
    """Tokens of Hugging Face's form are removed wherever they come from."""
    assert redact(f"login({TOKEN!r})") == "login('[removed: token]')"
    assert secrets_in(TOKEN) == ["token"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("hf_oauth_eyJhbGciOi.abc-def_ghijkl.xyz", "[removed: token]"),
        ("ghp_" + "a1" * 18, "[removed: GitHub token]"),
        ("x=gho_" + "a1" * 18, "x=[removed: GitHub token]"),
        ("github_pat_" + "11ABC_x" * 9, "[removed: GitHub token]"),
        ("sk-" + "a1" * 24, "[removed: API key]"),
        ("sk-proj-abc_def-ghiJKL0123456789", "[removed: API key]"),
        ("AKIA" + "IOSF" * 4, "[removed: AWS key]"),
        ("AWS_SECRET_ACCESS_KEY=" + "wJ/+" * 10, "AWS_SECRET_ACCESS_KEY=[removed: AWS key]"),
        ('"aws_secret_access_key": "' + "wJ/+" * 10 + '"', '"aws_secret_access_key": "[removed: AWS key]"'),
        ("https://me:s3cret@host/x?y", "https://me:[removed: password]@host/x?y"),
        ("https://:s3cret@host", "https://:[removed: password]@host"),
        (f"https://me:{TOKEN}@host", "https://me:[removed: token]@host"),
    ],
)
def test_other_services_tokens_are_removed(text, kept):
    """Of GitHub, of OpenAI and its likes, of Amazon, and passwords in URLs."""
    assert redact(text) == kept
    assert redact(redact(text)) == kept
    assert secrets_in(text) == removed_in(kept)


@pytest.mark.parametrize(
    "text",
    [
        "risk-assessment-of-something-that-is-longer-than-a-key",
        "sk-learn-contrib-packages-of-interest",
        "http://localhost:8080/a@b",
        "a/path/that/is/long/enough/to/be/base64/and/is/not",
        "user_hf_model_name_with_many_letters_in_its_name",
        "0123456789abcdef" * 4,
    ],
)
def test_ordinary_words_stay(text):
    """Long words, paths, ports and sums are no secrets."""
    assert redact(text) == text


@pytest.mark.parametrize("before", ["", "u", "me:", "user"])
def test_base64_hides_no_token(monkeypatch, before):
    """As in a header of HTTP: "user:token" in base64, of the usual alphabet or the one for URLs."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789?>?>abcdef")
    for secret, name in ((TOKEN, "token"), ("0123456789?>?>abcdef", "WANDB_API_KEY")):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(f"{before}{secret} and more".encode()).decode()
            assert redact(f"Basic {encoded}!") == f"Basic [removed: {name}]!"


@pytest.mark.parametrize("text", [f"{'ordinary words, nothing else' * 2}{'x' * n}" for n in range(6)])
def test_ordinary_base64_stays(text):
    """Of any length, with and without the signs that fill it up."""
    encoded = base64.b64encode(text.encode()).decode()
    assert redact(f"{encoded} {encoded.rstrip('=')}") == f"{encoded} {encoded.rstrip('=')}"


def test_every_written_text_is_redacted(tmp_path):
    """Whatever writes a run's files writes no token."""
    write_json(tmp_path / "manifest.json", {"data": f"https://me:{TOKEN}@host/rows.json"})
    assert TOKEN not in (tmp_path / "manifest.json").read_text()


def test_short_values_are_no_secrets(monkeypatch):
    """A variable set to a short word does not empty every text of that word."""
    monkeypatch.setenv("HF_TOKEN", "the")
    assert redact("the text") == "the text"
    assert secrets_in("the text") == []
    monkeypatch.setenv("HF_TOKEN", "seventy")
    assert redact("seventy eightfold") == "seventy eightfold"
    monkeypatch.setenv("HF_TOKEN", "eightfol")
    assert redact("seventy eightfol") == "seventy [removed: HF_TOKEN]"


def test_what_was_removed_can_be_named(monkeypatch):
    """A text says what was taken out of it."""
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    assert removed_in(redact(f"secret-of-mine {TOKEN} secret-of-mine")) == ["HF_TOKEN", "token"]
