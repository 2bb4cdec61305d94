"""Publishing: against a local server that speaks the Hub client's protocol."""

from __future__ import annotations

import json

import pytest
from hub_server import COMMIT, HubServer

from helpers.core.errors import ConfigError, ExportError
from helpers.export.hub import publish

TOKEN = "hf_verysecret"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the hub client's own upload


@pytest.fixture
def folder(tmp_path):
    """A small merged model: regular files, an index and two LFS files in a subfolder's company."""
    place = tmp_path / "merged"
    (place / "extra").mkdir(parents=True)
    (place / "config.json").write_text('{"model_type": "mistral"}')
    (place / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Card\n")
    (place / "model-00001-of-00002.safetensors").write_bytes(b"\x01" * 3000)
    (place / "model-00002-of-00002.safetensors").write_bytes(b"\x02" * 2000)
    (place / "extra" / "notes.txt").write_text("ünï")
    return place


@pytest.fixture
def push(monkeypatch, folder):
    """Publishes to a local hub; returns what was published, or the error's text."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def push(hub, **options):
        settings = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
                    "HF_HUB_DISABLE_PROGRESS_BARS": True}  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        try:
            return publish(folder, "ada/tuned", **options)
        except ExportError as error:
            return str(error)

    return push


def test_publish_sends_every_file_and_compares_it(push):
    """All files arrive byte for byte, large ones through LFS, in a private repository."""
    with HubServer(token=TOKEN) as hub:
        result = push(hub)
    assert (result.files, result.commit) == (5, COMMIT)
    assert hub.created["visibility"] == "private"
    assert hub.files["extra/notes.txt"].decode() == "ünï"
    assert hub.files["model-00002-of-00002.safetensors"] == b"\x02" * 2000
    assert hub.lfs == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


@pytest.mark.parametrize("lost", ["config.json", "model-00002-of-00002.safetensors"])
def test_publish_fails_when_a_file_did_not_arrive(push, lost):
    """A file that the remote list lacks is an error that names it."""
    with HubServer(token=TOKEN, lose=[lost]) as hub:
        result = push(hub)
    assert f"{lost} is missing" in result


def test_publish_fails_when_a_file_differs(push):
    """A remote hash other than the local file's is an error, also at equal size."""
    with HubServer(token=TOKEN, spoil=["config.json", "model-00001-of-00002.safetensors"]) as hub:
        result = push(hub)
    assert "config.json differs" in result
    assert "model-00001-of-00002.safetensors differs" in result


def test_publish_fails_when_old_weights_were_left_behind(push):
    """Weights of an earlier push, which a loader might read, are an error; a .gitattributes is not."""
    with HubServer(token=TOKEN, leftovers={"model.safetensors": b"old", ".gitattributes": b"* text"}) as hub:
        result = push(hub)
    assert "model.safetensors is from an earlier push" in result
    assert ".gitattributes" not in result


def test_wrong_token_is_explained_and_not_shown(push, capfd):
    """A refused token gives advice; the token itself appears nowhere."""
    with HubServer(token="another") as hub:
        result = push(hub)
    assert "401" in result
    assert "make a new one" in result
    assert TOKEN not in result + "".join(capfd.readouterr())


def test_server_error_on_commit_is_an_export_error(push, capfd):
    """A failing commit ends in one readable error, and nothing is listed."""
    with HubServer(token=TOKEN, fail=("POST", "/commit/", 500)) as hub:
        result = push(hub)
    assert "500" in result
    assert hub.files == {}
    assert TOKEN not in result + "".join(capfd.readouterr())


def test_public_repository_is_refused_before_anything_is_sent(push):
    """An existing public repository is not pushed to when a private one was asked for."""
    with HubServer(token=TOKEN, public=True) as hub:
        result = push(hub)
    assert "public" in result
    assert not any("preupload" in path for _, path in hub.requests)


def test_public_repository_is_used_when_asked_for(push):
    """private=False allows it."""
    with HubServer(token=TOKEN, public=True) as hub:
        result = push(hub, private=False)
    assert result.files == 5


def test_publish_needs_a_token(folder, monkeypatch):
    """Without a token nothing is tried, and the message says where it belongs."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ExportError, match="Colab's secrets"):
        publish(folder, "ada/tuned")


@pytest.mark.parametrize("name", ["tuned", "ada/../x/y", "https://huggingface.co/ada/tuned", "ada/", "ada/tu ned"])
def test_publish_refuses_names_that_are_none(folder, name):
    """Only owner/name is a repository."""
    with pytest.raises(ConfigError, match="hub_repo"):
        publish(folder, name, token=TOKEN)


def test_adapter_of_a_local_base_is_not_published(tmp_path):
    """Nobody else could load it; the local path is not shown whole."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/ada/models/base"}))
    with pytest.raises(ExportError, match="merged model instead") as caught:
        publish(tmp_path, "ada/tuned", token=TOKEN)
    assert "/home/ada" not in str(caught.value)
