"""Rows: read, checked, selected. Only the rows that will be used are ever formatted or tokenized."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from helpers.core.config import DATASETS, DataConfig, file_kind
from helpers.core.errors import DataError
from helpers.core.files import disk_error, write_bytes
from helpers.data.formats import Format, recognise
from helpers.data.look import Look
from helpers.data.messages import learned_rows
from helpers.data.prompts import COLUMNS, build_example
from helpers.data.readers import read_file
from helpers.data.selection import choose_categories, in_proportion

__all__ = [
    "DrawnRows",
    "Row",
    "Rows",
    "as_messages",
    "data_fingerprint",
    "draw_rows",
    "load_rows",
    "open_source",
    "read_prompts",
    "read_sample",
    "rename_columns",
]

SAMPLES = Path(str(resources.files("helpers.data") / "samples"))
"""The folder of the bundled rows."""

PROMPTS = {"alpaca": "instruction_prompts", "dolly": "business_prompts"}
"""Which bundled prompts go with which task."""

Row = dict[str, Any]
"""A row with the columns of its task (`helpers.data.prompts.COLUMNS`), or with lists of messages, `prompt` and
`completion`."""

_FEW = 8
"""Held-out rows below which a mean loss says little."""


@dataclass(frozen=True)
class Rows:
    """The rows of one run.

    Args:
        heldout: Rows kept apart; nothing is asked twice.
        source: Where they come from, with the revision of a hub data set.
        notes: What else to know of them: the format, the columns that are not used, and warnings.
        drawn: Numbers of the rows taken, in the order of the draw, and of those that were looked at and left out; empty
            for the bundled rows, and for conversations, of which one makes several rows.
    """

    train: list[Row]
    heldout: list[Row]
    source: str
    total: int
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    drawn: tuple[tuple[int, ...], frozenset[int]] = ((), frozenset())

    def changed(self, change: Callable[[Row], Row]) -> Rows:
        """Return the rows with each of them changed."""
        return dataclasses.replace(self, train=[*map(change, self.train)], heldout=[*map(change, self.heldout)])


def load_rows(
    config: DataConfig, task: str, seed: int, *, given: Collection[str] = ("train_rows", "heldout_rows")
) -> Rows:
    """Read a data set and draw the training and held-out rows from it.

    The bundled sample has fixed training and held-out parts; from anything else rows are drawn at random.

    Args:
        task: "alpaca" or "dolly": what the columns of instructions are called in the rows that come out.
        given: The parameters that the user set. Numbers of rows that are not among them adapt to the data.

    Raises:
        DataError: The data set cannot be read, or has too few good rows.

    Example:
        >>> len(load_rows(DataConfig(dataset_name="sample", train_rows=5, heldout_rows=8), "alpaca", seed=1).train)
        5
    """
    if config.dataset_name == "sample":
        train = _choose(read_sample(task, "train"), config, seed)
        heldout = _choose(read_sample(task, "heldout"), config, None)
        if "heldout_rows" in given and config.heldout_rows > len(heldout):
            expected = f"at most {len(heldout)}, the held-out rows there are"
            remedy = "Lower heldout_rows, or name another data set."
            raise DataError("heldout_rows", expected, config.heldout_rows, remedy)
        total, heldout = len(train) + len(heldout), heldout[: config.heldout_rows]
        counts = dataclasses.replace(config, heldout_rows=max(2, len(heldout)))
        _, count = _fit(counts, len(train) + len(heldout), ("heldout_rows", *given), complete=False, why="")
        return Rows(train[:count], heldout, "bundled sample rows", total)
    source = open_source(config.dataset_name, config.dataset_revision, config.columns)
    return _draw(config, task, source, seed, given)


class SeededRows(list[int]):
    """Row numbers, with the lines of Python that draw them again.

    Args:
        lines: They bind `order`; of other names they need `data` alone.
        source: An expression over `order` that gives the numbers.
    """

    def __init__(self, numbers: Iterable[int], lines: Sequence[str] = (), source: str | None = None) -> None:
        super().__init__(numbers)
        self.lines, self.source = tuple(lines), source or repr(list(self))


@dataclass(frozen=True)
class DrawnRows:
    """Which rows a run takes, and where `datasets.load_dataset` finds them.

    Args:
        source: Arguments of `load_dataset`.
        part: The part that the held-out rows are in: "train", or "test" where they are apart.
        train: Numbers of the rows to train on, in the part "train".
        heldout: Numbers of the rows kept apart; nothing is asked in both.
        rows: The same rows, and what was left out.
    """

    source: dict[str, Any]
    part: str
    train: SeededRows
    heldout: SeededRows
    rows: Rows

    @property
    def conversations(self) -> bool:
        """Whether the rows are messages already, in the columns `prompt` and `completion`."""
        return "prompt" in self.rows.train[0]

    def describe(self) -> str:
        """Say where the rows are from, how many are taken, and what was left out."""
        rows = self.rows
        counts = f"{rows.source}: {len(rows.train)} rows to train on, {len(rows.heldout)} held out"
        return "\n".join([counts, *rows.notes, f"left out: {rows.left_out or 'none'}"])


def draw_rows(
    config: DataConfig, task: str, seed: int, folder: Path, *, given: Collection[str] = ("train_rows", "heldout_rows")
) -> DrawnRows:
    """Draw the training and held-out rows, and say where `load_dataset` finds them.

    A data set of the hub, and a JSON or Parquet file, are loaded as they are, if the task's columns stand in them as
    text. The bundled rows, and anything else, such as conversations or a CSV file, are written into `folder` first.

    Args:
        task: "alpaca" or "dolly": which columns to expect.
        folder: For rows that are written first.
        given: The parameters that the user set. Numbers of rows that are not among them adapt to the data.

    Raises:
        DataError: The data set cannot be read, or has too few good rows.
    """
    name = config.dataset_name
    source = None if name == "sample" else open_source(name, config.dataset_revision, config.columns)
    rows = load_rows(config, task, seed, given=given) if source is None else _draw(config, task, source, seed, given)
    plain = None if source is None or "prompt" in rows.train[0] else _plain_source(config, task, source, rows)
    if plain is None:
        files, told = {}, as_messages(rows, config)
        for part, kept in (("train", told.train), ("test", told.heldout)):
            files[part] = str(folder / f"rows_{part}.jsonl")
            lines = [json.dumps(row) + "\n" for row in kept]
            write_bytes(Path(files[part]), "".join(lines).encode())
        train, heldout = (SeededRows(range(len(each))) for each in (rows.train, rows.heldout))
        return DrawnRows({"path": "json", "data_files": files}, "test", train, heldout, rows)
    order, skipped = rows.drawn
    draw = f"order = random.Random({seed}).sample(range({rows.total}), {rows.total})"
    lines = ["import random", draw, *_ordering(config)]
    if skipped:
        lines.append(f"order = [i for i in order if i not in {set(skipped)}]")
    held, last = len(rows.heldout), len(rows.heldout) + len(rows.train)
    train = SeededRows(order[held:last], lines, f"order[{held}:{last}]")
    return DrawnRows(plain, "train", train, SeededRows(order[:held], lines, f"order[:{held}]"), rows)


def _plain_source(config: DataConfig, task: str, source: Source, rows: Rows) -> dict[str, Any] | None:
    """Return where `load_dataset` finds a data set whose rows need no conversion; None for any other."""
    name = config.dataset_name
    if not rows.drawn[0]:
        return None
    if not (file_kind(name) or os.path.exists(Path(name))):
        revision = config.dataset_revision or DATASETS.get(name)
        found: dict[str, Any] = {"path": name, **({"revision": revision} if revision else {})}
    else:
        kind = _LOADERS.get(Path(name).suffix.lower())
        if kind is None or not source.as_text:
            return None
        whole = [source.row_at(index) for index in range(source.total)]
        text = all(isinstance(row, Mapping) and all(isinstance(v, str) for v in row.values()) for row in whole)
        if not text or len({frozenset(row) for row in whole}) > 1:
            return None
        found = {"path": kind, "data_files": {"train": name}}
    taken = zip(rows.drawn[0], [*rows.heldout, *rows.train], strict=False)
    same = all("prompt" not in row and _used(source.row_at(index), task) == _used(row, task) for index, row in taken)
    return found if same else None


_LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""Which loader of `datasets` reads a file as it is."""


def _ordering(config: DataConfig) -> list[str]:
    """Return the lines of Python for what `_ordered` does."""
    lines = ['kinds = data["train"]["category"]'] if config.category or config.stratified else []
    if config.category:
        names = tuple(name.strip() for name in config.category.split(",") if name.strip())
        lines.append(f"order = [i for i in order if kinds[i] in {names}]")
    if config.stratified:
        lines += ["from helpers.data.selection import in_proportion", "order = in_proportion(order, kinds.__getitem__)"]
    return lines


def as_messages(rows: Rows, config: DataConfig) -> Rows:
    """Give conversations the system prompt, and the style, that the run asks for; other rows stay as they are."""

    def told(row: Row) -> Row:
        if "prompt" not in row:
            return row
        return build_example(row, "", style=config.prompt_style, system_prompt=config.system_prompt)

    return rows.changed(told)


def _used(row: Any, task: str) -> Row:
    """Return a row's used columns: messages, or the task's, empty where they are missing."""
    if row.get("prompt") is not None and row.get("completion") is not None:
        return {"prompt": row["prompt"], "completion": row["completion"]}
    names = COLUMNS[task]
    optional = {name: row[name] for name in names.optional if isinstance(row.get(name), str)}
    return {**{name: row.get(name) or "" for name in names.required()}, **optional}


@dataclass(frozen=True)
class Source:
    """Rows that can be read one by one, and how they are to be understood.

    Args:
        read_as: How a file was read; "" for a data set of the hub.
        as_text: Whether a file has text everywhere, or null: no numbers that became text.
    """

    name: str
    total: int
    row_at: Callable[[int], Any]
    format: Format
    read_as: str = ""
    as_text: bool = True


def open_source(name: str, revision: str | None = None, columns: str | None = None) -> Source:
    """Open a file or a data set of the hub, and recognise its format.

    Args:
        name: A local file, or the name of a data set on the hub.
        revision: The hub's; None takes the one pinned here, or the newest.

    Returns:
        The rows, all in memory if they are from a file.

    Raises:
        DataError: It cannot be read, or no format is recognised.
        ConfigError: `columns` names what is not there.
    """
    if file_kind(name) or os.path.exists(Path(name)):
        table = read_file(name)
        found = recognise(table.rows, name, columns=columns)
        shown = f"{Path(name).name} ({len(table.rows)} rows)"
        return Source(shown, len(table.rows), table.rows.__getitem__, found, table.read_as, table.as_text)
    revision = revision or DATASETS.get(name)
    hub = _load_hub(name, revision)
    beginning = [hub[i] for i in range(min(len(hub), 200))]
    found = recognise(beginning, name, names=hub.column_names, columns=columns)
    return Source(
        f"{name} at {data_commit(hub) or revision or 'its newest revision'}", len(hub), hub.__getitem__, found
    )


def read_sample(task: str, part: str) -> list[Row]:
    """Read the bundled rows.

    Args:
        part: "train" or "heldout".
    """
    text = (SAMPLES / f"{task}_{part}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def read_prompts(task: str = "dolly") -> list[dict[str, Any]]:
    """Read the bundled prompts: for "alpaca" small tasks of all kinds, for "dolly" a company's questions.

    Returns:
        One dictionary a prompt: `id`, `topic`, `prompt`, and `expected_items`, a number or None.
    """
    text = (SAMPLES / f"{PROMPTS[task]}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def rename_columns(rows: list[Row], task: str) -> list[Row]:
    """Return converted rows under the task's names of their columns; rows of messages as they are."""
    names = COLUMNS[task]
    new = {"instruction": names.instruction, "input": names.context, "output": names.answer}
    return [row if "prompt" in row else {new.get(name, name): text for name, text in row.items()} for row in rows]


def data_fingerprint(train: Iterable[Row], heldout: Iterable[Row], task: str) -> str:
    """Return the SHA-256 over all training and held-out rows in order, their used columns alone, in hexadecimal."""
    digest = hashlib.sha256()
    for part in (train, heldout):
        for row in part:
            digest.update(json.dumps(_used(row, task), sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n--\n")
    return digest.hexdigest()


def data_commit(table: Any) -> str | None:
    """Return the commit that a `Dataset` from the hub was read at, from the addresses of its files; None if unknown."""
    found = re.search(r"hf://datasets/[^@\s]+@([0-9a-f]{40})", " ".join(table.info.download_checksums or {}))
    return found.group(1) if found else None


def _load_hub(name: str, revision: str | None) -> Any:
    """Load the train split of a hub data set, or say why not."""
    from datasets import load_dataset
    from datasets.config import HF_DATASETS_CACHE

    try:
        return load_dataset(name, revision=revision, split="train")
    except Exception as error:  # the hub client raises a dozen unrelated types
        if full := disk_error(f"the rows of {name}", Path(HF_DATASETS_CACHE), error, reading=True):
            raise full from error
        reason = "".join(str(error).splitlines()[:1])
        raise DataError(
            "dataset_name",
            "a data set on the Hugging Face hub with a train split",
            name,
            f'{type(error).__name__}: {reason} Check the name and the connection, or use a local file or "sample".',
        ) from error


def _draw(config: DataConfig, task: str, source: Source, seed: int, given: Collection[str]) -> Rows:
    """Draw held-out, then training rows in random order, leaving out the unusable ones and repeated questions."""
    total, wanted = source.total, config.heldout_rows + config.train_rows if config.train_rows else source.total
    if "heldout_rows" not in given and total < max(wanted, 10 * config.heldout_rows):
        wanted = total
    look, seen = Look(source.format), list[int]()
    order = random.Random(seed).sample(range(total), total)  # noqa: S311 - a draw, not a secret
    for index in _ordered(order, source.row_at, source.format.used.get("category"), config):
        if len(look.rows) >= wanted:
            break
        look.add(index, source.row_at(index))
        seen.append(index)
    look.check(total, source.name)
    complete = wanted == total or len(look.rows) < wanted
    heldout, train = _fit(config, len(look.rows), given, complete=complete, why=look.why_few(total))
    notes = [source.format.describe(), *look.remarks()]
    if (heldout, train) != (config.heldout_rows, config.train_rows or train):
        notes.append(f"{len(look.rows)} different usable rows: {heldout} of them held out, {train} trained on")
    parts = look.rows[heldout : heldout + train], look.rows[:heldout]
    trained, kept = (rename_columns(_apart(part, config.system_prompt), task) for part in parts)
    several = len(trained) + len(kept) != heldout + train
    if several:
        counts = f"{train} training conversations make {len(trained)} rows, {heldout} held-out ones {len(kept)}"
        marked = any("given" in message for row in look.rows for message in row["completion"])
        why = "with a system prompt each answer of a conversation is a row"
        why += ", and after an answer that is not learned a new row begins" if marked else ""
        notes.append(f"{why}: {counts}")
    drawn = ((), frozenset[int]()) if several else (tuple(look.places), frozenset(seen) - frozenset(look.places))
    return Rows(trained, kept, source.name, total, look.left_out(), tuple(notes), drawn)


def _apart(rows: list[Row], system_prompt: str) -> list[Row]:
    """Return conversations as rows that learn each of their answers; with a system prompt, one row for each answer.

    Mistral's v3 template moves the system prompt to the last user message, so an answer in the middle would be trained
    on what it never sees in use. That all models learn the same, this does not depend on the template.
    """
    apart = []
    for row in rows:
        if "prompt" not in row:
            apart.append(row)
            continue
        told = bool(system_prompt) or row["prompt"][0]["role"] == "system"
        turns = learned_rows(row["prompt"], row["completion"], single=told)
        apart += [{"prompt": prompt, "completion": answers} for prompt, answers in turns]
    return apart


def _fit(config: DataConfig, usable: int, given: Collection[str], *, complete: bool, why: str) -> tuple[int, int]:
    """Return the numbers of held-out and training rows: those given, or what fits the data.

    Args:
        complete: Whether these are all rows of the source.
    """
    heldout, train = config.heldout_rows, config.train_rows
    if complete and "heldout_rows" not in given:
        most = usable - train if train and "train_rows" in given else usable // 2
        heldout = min(heldout, max(_FEW, round(usable / 10)), max(2, most))
    rest = usable - heldout
    if rest < 1 and "heldout_rows" not in given:
        remedy = f"{why}Use a larger data set."
        raise DataError("dataset_name", "at least 3 different usable rows", f"{usable} usable rows", remedy)
    if rest < 1:
        remedy = f"{why}Lower heldout_rows, or use a larger data set."
        raise DataError("heldout_rows", f"fewer than the {usable} usable rows there are", heldout, remedy)
    if train > rest and "train_rows" in given:
        expected = f"at most {rest}, what is left beside {heldout} held-out rows"
        remedy = f"{why}Lower train_rows or heldout_rows, use 0 for all rows, or use a larger data set."
        raise DataError("train_rows", expected, train, remedy)
    return heldout, min(train or rest, rest)


def _choose(rows: list[Row], config: DataConfig, seed: int | None) -> list[Row]:
    """Shuffle bundled rows, unless the seed is None, and keep the categories asked for."""
    order = list(range(len(rows)))
    if seed is not None:
        random.Random(seed).shuffle(order)  # noqa: S311 - a shuffle, not a secret
    return [rows[i] for i in _ordered(order, rows.__getitem__, "category", config)]


def _ordered(order: list[int], row_at: Callable[[int], Any], column: str | None, config: DataConfig) -> list[int]:
    """Apply the category filter and the stratified order, reading categories only if one is asked for."""

    def category_of(index: int) -> Any:
        row = row_at(index)
        return row.get(column) if isinstance(row, Mapping) else None

    if config.category:
        order = choose_categories(order, category_of, config.category)
    return in_proportion(order, category_of) if config.stratified else order
