"""The table of notebooks in colab_badges.md, the badges on each notebook and exercise, and what else names the release.

What a notebook teaches and costs stands in its own metadata, and the repository and the ref stand in pyproject.toml,
so that neither is written down twice:

    notebook metadata   {"mistral_qlora": {"teaches": "...", "gpu": "T4", "minutes_t4": 25, "download_gb": 4.1}}
    pyproject.toml      [tool.mistral-qlora-notebooks]
                        repository = "mistral-qlora/mistral-qlora-notebooks"
                        ref = "main"

`ref` is `main` until a release sets its tag (`tools.release`). `release_texts` carries the two into every file that
names them: badges, setup cells, README, notebooks and the rest. All this needs is Python.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from helpers.core.errors import ConfigError, HelpersError
from tools.build_notebooks import cell_ids
from tools.generated import update
from tools.timings import minutes_on, read_timings

__all__ = [
    "NotebookFacts",
    "badge_links",
    "badge_table",
    "main",
    "notebook_badges",
    "read_facts",
    "read_release",
    "release_texts",
    "rename_release",
]

SECTION = "mistral-qlora-notebooks"
METADATA = "mistral_qlora"

IMAGES = {
    "Open in Colab": "https://colab.research.google.com/assets/colab-badge.svg",
    "Open in Kaggle": "https://kaggle.com/static/images/open-in-kaggle.svg",
    "View in nbviewer": "https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg",
}

TEXTS = (
    "CITATION.cff",
    "CONTRIBUTING.md",
    "README.md",
    "docs/*.md",
    "notebooks/*.py",
    "templates/*.py",
    "workshop/README.md",
    "workshop/sources/*.py",
)
"""Files that may name the repository or the ref, and that people write."""

NOTEBOOKS = ("clean/*.ipynb", "notebooks/*.ipynb", "workshop/*.ipynb")
"""Files that are built from some of them."""

ROOT = Path(__file__).resolve().parent.parent

SLUG = r"[\w.-]+/[\w.-]+"
OPENED = r"(?:notebooks|workshop)/[^)\s]+"
"""Paths that badges open."""

HEAD = """<!-- Made by `scripts/build_badges` from the notebooks' metadata and pyproject.toml. Do not edit. -->

# The notebooks, one click away

On Colab choose a T4 GPU if none is set (Runtime, Change runtime type), then Runtime, Run all. On Kaggle choose under
Settings a GPU T4 as accelerator and Internet on, then Run all. The badges open {ref}, and the setup cell
installs the same. Minutes are forecasts until somebody has timed a run (`scripts/record_timing`); then they are the
median of the runs in docs/timings.csv, with their number.

| Notebook | You learn | GPU | Minutes on a T4 | Download | Open |
|---|---|---|---:|---:|---|
"""


@dataclass(frozen=True, slots=True)
class NotebookFacts:
    """What the badge table says of a notebook.

    Args:
        title: Its first heading.
        teaches: What the reader learns, in one sentence.
        gpu: What it needs, such as "T4".
        minutes_t4: Forecast of the minutes from Run all to the end on a T4.
        download_gb: What it downloads, in GB (10^9 bytes).
    """

    title: str
    teaches: str
    gpu: str
    minutes_t4: float
    download_gb: float


def read_release(pyproject: str | Path, repository: str | None = None, ref: str | None = None) -> tuple[str, str]:
    """Repository and ref that the badges point at.

    Args:
        repository: "owner/name", to use instead of the one in the file.
        ref: Tag or branch, to use instead of the one in the file.

    Raises:
        ConfigError: The file or its table cannot be read, or the repository is not of the form owner/name.
    """
    path = Path(pyproject)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get(SECTION, {})
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError("pyproject", "a readable TOML file", str(path), "Run it from the repository.") from error
    repository, ref = repository or table.get("repository"), ref or table.get("ref")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repository)):
        raise ConfigError("repository", "owner/name", repository, f"Set it in [tool.{SECTION}], or give --repo.")
    if not isinstance(ref, str) or not re.fullmatch(r"[^\s~^:?*\[\\]+", ref):
        raise ConfigError("ref", "the name of a tag or branch", ref, f"Set it in [tool.{SECTION}], or give --ref.")
    return str(repository), ref


def badge_links(path: str, repository: str, ref: str) -> dict[str, str]:
    """Where the three badges lead, percent-encoded.

    The forms are those of colab.research.google.com/github and nbviewer.org, whose path is GitHub's, and of
    kaggle.com/notebooks/welcome, which takes GitHub's address as a query value and so encodes it once more.

    Args:
        path: The notebook's path in the repository, with forward slashes.

    Example:
        >>> badge_links("notebooks/a b.ipynb", "o/r", "v1")["Open in Colab"]
        'https://colab.research.google.com/github/o/r/blob/v1/notebooks/a%20b.ipynb'
    """
    place = f"{repository}/blob/{quote(ref, safe='')}/{quote(path)}"
    source = quote(f"https://github.com/{place}", safe=":/")
    return {
        "Open in Colab": f"https://colab.research.google.com/github/{place}",
        "Open in Kaggle": f"https://www.kaggle.com/notebooks/welcome?src={source}",
        "View in nbviewer": f"https://nbviewer.org/github/{place}",
    }


def notebook_badges(path: str, repository: str, ref: str) -> str:
    """The line of three badges, in Markdown, that stands at the top of a notebook and in the table."""
    links = badge_links(path, repository, ref)
    return " ".join(f"[![{text}]({image})]({links[text]})" for text, image in IMAGES.items())


def read_facts(notebook: str | Path) -> NotebookFacts:
    """What a notebook, an .ipynb file, says of itself.

    Raises:
        ConfigError: It is not a notebook, has no heading, or a fact is missing or of the wrong kind.
    """
    path = Path(notebook)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        given = {"title": _first_heading(content["cells"]), **content["metadata"].get(METADATA, {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError("notebook", "a readable .ipynb file", str(path), "Run scripts/build_notebooks.") from error
    return NotebookFacts(**{one.name: _fact(path.name, one.name, given.get(one.name)) for one in fields(NotebookFacts)})


def _first_heading(cells: Sequence[Any]) -> str | None:
    """The first heading of the text cells."""
    lines = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = re.search(r"^#+ +(.+)$", "\n".join(lines), re.MULTILINE)
    return found and found[1].strip()


def _fact(notebook: str, name: str, value: Any) -> Any:
    """One fact, checked."""
    if name in ("minutes_t4", "download_gb"):
        good, expected = type(value) in (int, float) and value >= 0, "a number of at least 0"
    else:
        good, expected = isinstance(value, str) and value.strip() != "", "a text"
    if not good:
        remedy = "Give it a first heading." if name == "title" else f"Set it in the notebook's metadata.{METADATA}."
        raise ConfigError(f"{notebook}: {name}", expected, value, remedy)
    return value


def badge_table(root: str | Path, repository: str, ref: str) -> str:
    """The text of colab_badges.md: notebooks/*.ipynb by name.

    Raises:
        ConfigError: There is no notebook, or one lacks a fact.
    """
    base = Path(root)
    notebooks = sorted(path.relative_to(base).as_posix() for path in base.glob("notebooks/*.ipynb"))
    if not notebooks:
        raise ConfigError("notebooks", "at least one notebook", str(base / "notebooks"), "Run scripts/build_notebooks.")
    lines = read_timings(base)
    rows = (_row(path, read_facts(base / path), repository, ref, lines) for path in notebooks)
    return HEAD.format(ref=ref) + "".join(rows)


def release_texts(root: str | Path, repository: str, ref: str) -> dict[Path, str]:
    """The text of every file that names the release, as it should be.

    Returns:
        Text by file: pyproject.toml, colab_badges.md, `TEXTS`, `NOTEBOOKS` as their builders would write them, and the
        exercises' QR codes.

    Raises:
        ConfigError: There is no notebook, one lacks a fact, or QR codes have to be drawn without segno.
    """
    base = Path(root)
    texts = {path: path.read_text(encoding="utf-8") for name in TEXTS for path in sorted(base.glob(name))}
    found = {path: rename_release(text, repository, ref) for path, text in texts.items()}
    for path in (path for name in NOTEBOOKS for path in sorted(base.glob(name))):
        found[path] = _rename_notebook(path.read_text(encoding="utf-8"), repository, ref)
    project = base / "pyproject.toml"
    if project.is_file():
        found[project] = _rename_project(project.read_text(encoding="utf-8"), repository, ref)
    for path in sorted(base.glob("workshop/exercises_*.ipynb")):
        link = badge_links(path.relative_to(base).as_posix(), repository, ref)["Open in Colab"]
        code = path.parent / "qr" / f"{path.stem}.svg"
        found[code] = _qr_code(link, code.read_text(encoding="utf-8") if code.is_file() else "")
    return {**found, base / "colab_badges.md": badge_table(base, repository, ref)}


def _qr_code(link: str, drawn: str) -> str:
    """The QR code of an address, as SVG: the one that is there, if it is of the same address."""
    if f"<desc>{link}</desc>" in drawn:
        return drawn
    try:
        import segno
    except ImportError as error:
        remedy = f"Nothing was written. Run {sys.executable} -m pip install segno, then this again."
        raise ConfigError("segno", "the package that draws the workshop's QR codes", None, remedy) from error
    stream = io.BytesIO()
    code = segno.make(link, error="m", micro=False)
    said = {"title": "Opens the exercises on Colab", "desc": link}
    code.save(stream, kind="svg", xmldecl=False, scale=4, light="white", **said)
    return stream.getvalue().decode()


def _rename_notebook(text: str, repository: str, ref: str) -> str:
    """Do the same in a notebook, whose cells' ids depend on their text."""
    notebook = json.loads(text)
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    renamed = [rename_release(source, repository, ref) for source in sources]
    if renamed == sources:
        return text
    ids = cell_ids([(cell["cell_type"], source) for cell, source in zip(notebook["cells"], renamed, strict=True)])
    for cell, source, name in zip(notebook["cells"], renamed, ids, strict=True):
        cell["source"], cell["id"] = source.splitlines(keepends=True), name
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _rename_project(text: str, repository: str, ref: str) -> str:
    """Write repository and ref into this project's table of pyproject.toml."""
    head, table, tail = text.partition(f"[tool.{SECTION}]")
    tail = re.sub(r'^repository = ".*"', lambda _: f'repository = "{repository}"', tail, count=1, flags=re.MULTILINE)
    return head + table + re.sub(r'^ref = ".*"', lambda _: f'ref = "{ref}"', tail, count=1, flags=re.MULTILINE)


def rename_release(text: str, repository: str, ref: str) -> str:
    """Make every badge, install line and clone line of a text name one repository and ref.

    Example:
        >>> rename_release('source = "git+https://github.com/o/r@v1"', "a/b", "v2")
        'source = "git+https://github.com/a/b@v2"'
    """
    starts = {
        "Open in Colab": "https://colab.research.google.com/github/",
        "Open in Kaggle": "https://www.kaggle.com/notebooks/welcome?src=https://github.com/",
        "View in nbviewer": "https://nbviewer.org/github/",
    }
    for name, start in starts.items():
        pattern = rf"{re.escape(start)}{SLUG}/blob/[^/)\s]+/({OPENED})"
        text = re.sub(pattern, partial(_link, name, repository, ref), text)
    text = re.sub(rf"git\+https://github\.com/{SLUG}@[\w./%-]+", f"git+https://github.com/{repository}@{ref}", text)
    home = rf"(git clone |repository-code: )https://github\.com/{SLUG}"
    text = re.sub(home, lambda m: f"{m[1]}https://github.com/{repository}", text)
    return re.sub(r"(?<=^cd )[\w.-]+(?=\nmake )", repository.split("/")[1], text, flags=re.MULTILINE)


def _link(name: str, repository: str, ref: str, old: re.Match[str]) -> str:
    """One badge's address, for the path that stands in another; Kaggle's is encoded twice."""
    path = old[1]
    plain = unquote(unquote(path)) if name == "Open in Kaggle" else unquote(path)
    return badge_links(plain, repository, ref)[name]


def _minutes(path: str, facts: NotebookFacts, lines: Sequence[Mapping[str, str]]) -> str:
    """The minutes on a T4: measured, with the number of runs, or the notebook's own forecast."""
    measured = minutes_on(lines, Path(path).stem.split("_")[0], "T4", "colab-t4")
    if measured is None:
        return f"{facts.minutes_t4:g} (forecast)"
    minutes, runs = measured
    return f"{minutes:.0f} ({runs} run{'s' if runs > 1 else ''})"


def _row(path: str, facts: NotebookFacts, repository: str, ref: str, lines: Sequence[Mapping[str, str]]) -> str:
    cells = [
        f"[{_cell(facts.title)}]({quote(path)})",
        _cell(facts.teaches),
        _cell(facts.gpu),
        _minutes(path, facts, lines),
        f"{facts.download_gb:g} GB",
        notebook_badges(path, repository, ref),
    ]
    return f"| {' | '.join(cells)} |\n"


def _cell(text: str) -> str:
    """Text that stays within its table cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the badge table, and the release into every file that names it.

    Returns:
        The exit status: 1 if `--check` found a file that would change, 2 if the release cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/build_badges", description="Write colab_badges.md, and the release into the files that name it."
    )
    parser.add_argument("--repo", metavar="OWNER/NAME", help="of a fork; kept in pyproject.toml")
    parser.add_argument("--ref", "--tag", help="tag or branch; kept in pyproject.toml")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    options = parser.parse_args(arguments)
    try:
        release = read_release(root / "pyproject.toml", options.repo, options.ref)
        texts = release_texts(root, *release)
    except HelpersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    changed = update(texts, root, check=options.check)
    for name in changed:
        if options.check:
            print(f"{name} is out of date; run scripts/build_badges", file=sys.stderr)
        else:
            print(f"wrote {name}")
    if not changed:
        print("badges and setup cells name {} {}".format(*release))
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
