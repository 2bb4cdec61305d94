"""Export folders: written beside their place and renamed, so that they are whole or not there."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers.core.errors import ExportError, RunError
from helpers.core.files import read_json, replaced_folder, write_json, writing
from helpers.core.runs import RunDirectory

RECORD = "export.json"
"""Written into each folder that is exported here: what it is, how it was made, and its files with their sizes."""

CARD = "README.md"


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, which takes its place when the block ends well.

    Args:
        folder: Where the export shall be. It may be missing, empty, or an earlier export of this package.

    Yields:
        The temporary folder. It is removed when the block raises.

    Raises:
        ExportError: `folder` holds something else.
    """
    refuse_foreign(folder)
    with replaced_folder(folder, "the export") as staged:
        yield staged


def refuse_foreign(folder: Path) -> None:
    """Raise if a folder holds anything but an earlier export of this package."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError("folder", "a folder", str(folder), "Choose another place; nothing was changed.")
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")) if folder.exists() else []
    recorded = set(_read_record(folder).get("files", {}))
    recorded |= {parent.as_posix() for name in recorded for parent in Path(name).parents}
    foreign = [name for name in found if name not in {*recorded, RECORD, CARD}]
    if foreign or (found and RECORD not in found):
        raise ExportError(
            "folder",
            "an empty folder or an earlier export",
            f"{folder} with {', '.join((foreign or found)[:5])}",
            "It is left as it is. Choose another folder, or move what is in it.",
        )


def record_export(folder: Path, **facts: Any) -> None:
    """Write `export.json`: the facts given and every file with its size in bytes."""
    earlier = _read_record(folder)
    sizes = {
        p.relative_to(folder).as_posix(): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in (RECORD, CARD)
    }
    write_json(folder / RECORD, {**earlier, **facts, "files": sizes})


def tensor_files(folder: Path) -> dict[str, str]:
    """Return which safetensors file holds each tensor, from the index or the one file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_settings(folder, index.name).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
            raise ExportError("folder", f"an {index.name} that names files beside it", names, "Export again.")
        return dict(names)
    if not (folder / "model.safetensors").is_file():
        raise ExportError("folder", "model.safetensors or an index of several files", str(folder), "Merge again.")
    with open_weights(folder / "model.safetensors") as file:
        return dict.fromkeys(file.keys(), "model.safetensors")


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object that lies beside weights, such as `config.json`."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError("folder", f"a readable {name}", type(error).__name__, "Export again.") from error
    if not isinstance(value, dict):
        raise ExportError("folder", f"a JSON object in {name}", type(value).__name__, "Export again.")
    return value


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file; its tensors are read when asked for.

    Yields:
        The open file, with `keys`, `get_slice` and `get_tensor`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        said = "".join(str(error).splitlines()[:1])
        raise ExportError("folder", f"a whole file {path.name}", said, "Export again.") from None


def check_weight_files(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the tensors that stand in the files with those that should, without reading their values."""
    index = tensor_files(folder)
    found: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(index.values())):
        with open_weights(folder / name) as file:
            found |= {
                key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys()) if index.get(key) == name
            }
    wrong = sorted(k for k in {*shapes, *found, *index} if shapes.get(k) != found.get(k) or k not in index)
    if wrong:
        raise ExportError("folder", f"{len(shapes)} tensors of known shapes in the files", wrong[:5], "Merge again.")


def _read_record(folder: Path) -> dict[str, Any]:
    """Return `export.json`, or {} if there is none that can be read."""
    try:
        value = read_json(folder / RECORD)
    except RunError:
        return {}
    return value if isinstance(value.get("files", {}), dict) else {}


def weight_bytes(folder: Path) -> int:
    """Return the size of a model's weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def zip_run(run: RunDirectory) -> Path:
    """Put a run's adapter with its card, its script, figures, answers and rows into one zip in its folder.

    The zip is read back. Merged model and GGUF file are left out: they are as large as the base.
    """
    target = run.path / f"{run.path.name}.zip"
    files = [path for path in run.path.iterdir() if path.suffix != ".zip"] + list(run.adapter.rglob("*"))
    beside = target.with_name(f".{target.name}")
    try:
        with writing(target.name, run.path):
            with zipfile.ZipFile(beside, "w") as archive:
                for path in sorted(p for p in files if p.is_file() and not p.name.startswith(".")):
                    archive.write(path, f"{run.path.name}/{path.relative_to(run.path).as_posix()}")
            with beside.open("rb+") as stream:
                os.fsync(stream.fileno())
            with zipfile.ZipFile(beside) as archive:
                if damaged := archive.testzip():
                    raise ExportError("zip", "an archive that reads back", damaged, "Free disk space, and try again.")
            os.replace(beside, target)
    finally:
        with suppress(OSError):  # a disk that is read-only, which the error says
            beside.unlink(missing_ok=True)
    return target
