"""Tokens are taken out of texts, and told apart from ordinary words."""

from __future__ import annotations

import json

import pytest

from helpers.core.secrets import redact, removed_in, secrets_in

TOKEN = "hf_" + "Ab1" * 12


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch):
    """No secret is set but the test's own."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "KAGGLE_KEY"):
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


def test_a_hugging_face_token_needs_no_variable():
    """Tokens of Hugging Face's form are removed wherever they come from."""
    assert redact(f"login({TOKEN!r})") == "login('[removed: token]')"
    assert secrets_in(TOKEN) == ["a Hugging Face token"]


def test_short_values_are_no_secrets(monkeypatch):
    """A variable set to a short word does not empty every text of that word."""
    monkeypatch.setenv("HF_TOKEN", "the")
    assert redact("the text") == "the text"
    assert secrets_in("the text") == []


def test_what_was_removed_can_be_named(monkeypatch):
    """A text says what was taken out of it."""
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    assert removed_in(redact(f"secret-of-mine {TOKEN} secret-of-mine")) == ["HF_TOKEN", "token"]
