"""Pushing an export to the Hugging Face Hub, and proving that it arrived."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.config import HUB_ID
from helpers.core.errors import ConfigError, ExportError
from helpers.core.files import file_sha256
from helpers.export.folders import read_settings
from helpers.runtime.setup import read_secret

_OURS = (".safetensors", ".safetensors.index.json", ".gguf", ".bin", "adapter_config.json")
"""Files that a loader would pick up if an earlier push left them behind."""


@dataclass(frozen=True)
class PublishResult:
    """What stands on the Hub.

    Args:
        files: Files compared with the local ones.
    """

    url: str
    commit: str
    files: int


def publish(folder: Path | str, repo_id: str, *, token: str | None = None, private: bool = True) -> PublishResult:
    """Push a folder to a model repository and compare what arrived, file by file, with what was sent.

    Args:
        repo_id: Such as "name/model". The repository is made if need be.
        token: With write permission; by default HF_TOKEN from the environment or Colab's secrets. Never shown.

    Raises:
        ConfigError: `repo_id` is not "owner/name".
        ExportError: There is no token, the base of an adapter is a local folder, the Hub refuses, an existing
            repository is public where a private one was asked for, or what arrived is not what was sent.
    """
    from huggingface_hub import HfApi

    folder, token = Path(folder), token or read_secret("HF_TOKEN")
    _check_before(folder, repo_id, token)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        if private and not api.repo_info(repo_id).private:
            raise ExportError(
                "hub_repo",
                "a private repository",
                f"{repo_id}, which is public",
                "Nothing was pushed. Choose another name, or make the repository private on its settings page.",
            )
        info = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload fine-tuned model")
        tree = api.list_repo_tree(repo_id, recursive=True, revision=info.oid)
        remote = {entry.path: entry for entry in tree if hasattr(entry, "size")}
    except ExportError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise _translate(error, repo_id, token or "") from None
    return PublishResult(f"{api.endpoint}/{repo_id}", info.oid, _compare(folder, remote))


def _compare(folder: Path, remote: Mapping[str, Any]) -> int:
    """Compare a pushed folder with the Hub's entries by path; return the number of files."""
    local = {
        p.relative_to(folder).as_posix(): p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".cache" not in p.parts
    }
    faults = [f"{name} is missing" for name in local if name not in remote]
    faults += [f"{name} differs" for name, path in local.items() if name in remote and not _same(path, remote[name])]
    faults += [
        f"{name} is from an earlier push" for name in sorted(remote) if name not in local and name.endswith(_OURS)
    ]
    if faults:
        raise ExportError(
            "hub_repo",
            f"the {len(local)} local files on the Hub",
            "; ".join(faults[:5]),
            "Push again; delete files of an earlier push on the Hub first.",
        )
    return len(local)


def _check_before(folder: Path, repo_id: str, token: str | None) -> None:
    """Raise for what can be known to fail before anything is sent."""
    if not re.fullmatch(HUB_ID, repo_id):
        raise ConfigError("hub_repo", "owner/name", repo_id, "Such as ada/mistral-assistant.")
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ExportError("folder", "an exported folder", str(folder), "Save the model first.")
    if not token:
        raise ExportError(
            "HF_TOKEN",
            "a token with write permission in the environment or in Colab's secrets",
            None,
            "Make one at https://huggingface.co/settings/tokens; never write it into a notebook.",
        )
    if (folder / "adapter_config.json").is_file():
        base = read_settings(folder, "adapter_config.json").get("base_model_name_or_path") or ""
        if not isinstance(base, str) or not re.fullmatch(HUB_ID, base):
            raise ExportError(
                "model_name",
                "a base model on the Hub, so that others can load the adapter",
                Path(base).name if isinstance(base, str) else base,
                "Train from a hub id, or push the merged model instead.",
            )


def _same(path: Path, remote: Any) -> bool:
    """Return whether a local file has the hash of the remote one."""
    if remote.lfs:
        return file_sha256(path) == remote.lfs.sha256
    content = path.read_bytes()  # what the Hub does not keep as LFS is small
    git = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False)
    return git.hexdigest() == remote.blob_id


def _translate(error: Exception, repo_id: str, token: str) -> ExportError:
    """Turn an error of the hub client into ours, without the token."""
    status: int = getattr(getattr(error, "response", None), "status_code", 0)
    text = str(error).strip().splitlines()
    shown = f"{status or type(error).__name__}: {text[0] if text else ''}".replace(token or "\0", "***")
    remedy = {
        401: "The token is not valid: make a new one.",
        403: "The token may not write there: check its permissions.",
        404: "Check the name; the token may not see it.",
    }
    return ExportError(
        "hub_repo",
        f"the Hub to take {repo_id}",
        shown,
        remedy.get(status, "Check the connection and try again; a second push sends only what is missing."),
    )
