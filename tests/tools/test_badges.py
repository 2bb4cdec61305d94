"""Badges, their links and the table of notebooks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from helpers.core.errors import ConfigError
from tools import release
from tools.badges import (
    NotebookFacts,
    badge_links,
    badge_table,
    main,
    notebook_badges,
    read_facts,
    read_release,
    release_texts,
    rename_release,
)
from tools.build_notebooks import build_all, build_workshop

ROOT = Path(__file__).parents[2]
FACTS = {"teaches": "to count", "gpu": "T4", "minutes_t4": 25, "download_gb": 4.1}


@pytest.fixture
def repository(tmp_path):
    """A repository with one notebook, and a function that adds more."""

    def add(name, facts=FACTS, heading="# Counting\n"):
        path = tmp_path / "notebooks" / name
        path.parent.mkdir(exist_ok=True)
        cells = [
            {"cell_type": "code", "source": ["# no heading\n"]},
            {"cell_type": "markdown", "source": [heading, "x"]},
        ]
        path.write_text(json.dumps({"cells": cells, "metadata": {"mistral_qlora": facts}}), encoding="utf-8")
        return path

    add("counting.ipynb")
    return tmp_path, add


class TestLinks:
    """Where the badges lead."""

    def test_the_three_forms(self):
        """Each service has its own address for the same file at the same tag."""
        assert badge_links("notebooks/a.ipynb", "org/repo", "v0.1.0") == {
            "Open in Colab": "https://colab.research.google.com/github/org/repo/blob/v0.1.0/notebooks/a.ipynb",
            "Open in Kaggle": "https://www.kaggle.com/notebooks/welcome?src="
            "https://github.com/org/repo/blob/v0.1.0/notebooks/a.ipynb",
            "View in nbviewer": "https://nbviewer.org/github/org/repo/blob/v0.1.0/notebooks/a.ipynb",
        }

    def test_paths_are_percent_encoded(self):
        """Spaces, brackets and letters with accents are encoded, and a slash in a tag is."""
        link = badge_links("notebooks/é (1).ipynb", "org/repo", "fix/a")["Open in Colab"]
        assert link == "https://colab.research.google.com/github/org/repo/blob/fix%2Fa/notebooks/%C3%A9%20%281%29.ipynb"

    def test_kaggle_gets_an_address_that_survives_its_query(self):
        """What Kaggle reads from the query is GitHub's address, still encoded."""
        link = badge_links("notebooks/a&b c.ipynb", "org/repo", "v1")["Open in Kaggle"]
        (source,) = parse_qs(urlsplit(link).query)["src"]
        assert source == "https://github.com/org/repo/blob/v1/notebooks/a%26b%20c.ipynb"

    def test_badges_are_linked_images_in_one_line(self):
        """The line has three linked images with a text each."""
        line = notebook_badges("notebooks/a.ipynb", "org/repo", "v1")
        assert re.findall(r"\[!\[([^]]+)\]\(https://[^)]+\.svg\)\]\(https://[^)]+\)", line) == [
            "Open in Colab",
            "Open in Kaggle",
            "View in nbviewer",
        ]
        assert "\n" not in line


class TestFacts:
    """What a notebook says of itself."""

    def test_they_come_from_the_notebook(self, repository):
        """The title is the first heading of a text cell; the rest is metadata."""
        root, _ = repository
        assert read_facts(root / "notebooks/counting.ipynb") == NotebookFacts("Counting", "to count", "T4", 25, 4.1)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("teaches", None),
            ("teaches", " "),
            ("gpu", 4),
            ("minutes_t4", "25"),
            ("minutes_t4", True),
            ("download_gb", -1),
        ],
    )
    def test_a_missing_or_wrong_fact_is_an_error(self, repository, name, value):
        """The error names the notebook and the fact."""
        _, add = repository
        path = add("other.ipynb", {**FACTS, name: value})
        with pytest.raises(ConfigError, match=rf"other\.ipynb: {name}: expected .* metadata\.mistral_qlora"):
            read_facts(path)

    def test_a_notebook_without_a_heading_is_an_error(self, repository):
        """A notebook has a title."""
        _, add = repository
        with pytest.raises(ConfigError, match=r"other\.ipynb: title"):
            read_facts(add("other.ipynb", heading="no heading"))

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"cells": [1], "metadata": {}}'])
    def test_what_is_no_notebook_is_an_error(self, tmp_path, text):
        """A file that is no notebook is named."""
        (tmp_path / "bad.ipynb").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.ipynb"):
            read_facts(tmp_path / "bad.ipynb")


class TestTable:
    """The text of colab_badges.md."""

    def test_a_row_says_all(self, repository):
        """A row links the notebook and has its facts and its badges."""
        root, _ = repository
        row = badge_table(root, "org/repo", "v1").splitlines()[-1]
        badges = notebook_badges("notebooks/counting.ipynb", "org/repo", "v1")
        assert row == f"| [Counting](notebooks/counting.ipynb) | to count | T4 | 25 (forecast) | 4.1 GB | {badges} |"

    def test_rows_are_in_the_order_of_names(self, repository):
        """Without a list the notebooks stand by name."""
        root, add = repository
        add("another.ipynb", heading="# Another\n")
        assert re.findall(r"^\| \[(\w+)\]", badge_table(root, "org/repo", "v1"), re.MULTILINE) == [
            "Another",
            "Counting",
        ]

    def test_bars_stay_in_their_cell(self, repository):
        """A bar in a text does not begin a new column."""
        root, add = repository
        add("counting.ipynb", {**FACTS, "teaches": "a | b\nc"})
        assert r"| a \| b c |" in badge_table(root, "org/repo", "v1")

    def test_paths_in_the_links_exist(self, repository):
        """Every Colab link in the table leads to a file of the repository."""
        root, add = repository
        add("a b.ipynb")
        paths = re.findall(
            r"colab\.research\.google\.com/github/org/repo/blob/v1/([^)]+)", badge_table(root, "org/repo", "v1")
        )
        assert [(root / unquote(path)).is_file() for path in paths] == [True, True]

    def test_no_notebooks_are_an_error(self, tmp_path):
        """An empty table is not written."""
        with pytest.raises(ConfigError, match="at least one notebook"):
            badge_table(tmp_path, "org/repo", "v1")


class TestRelease:
    """Which repository and ref the badges name."""

    def test_this_project_has_one(self):
        """pyproject.toml names the repository and the ref of the badges."""
        tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
        repository, ref = read_release(ROOT / "pyproject.toml")
        assert tools["mistral-qlora-notebooks"] == {"repository": repository, "ref": ref}

    def test_both_can_be_overridden(self, tmp_path):
        """What is given wins over the file."""
        (tmp_path / "pyproject.toml").write_text('[tool.mistral-qlora-notebooks]\nrepository = "a/b"\nref = "v1"\n')
        assert read_release(tmp_path / "pyproject.toml") == ("a/b", "v1")
        assert read_release(tmp_path / "pyproject.toml", "c/d", "main") == ("c/d", "main")

    @pytest.mark.parametrize(
        ("repository", "ref", "field"),
        [(None, "v1", "repository"), ("a", "v1", "repository"), ("a/b", None, "ref"), ("a/b", "v 1", "ref")],
    )
    def test_what_is_no_release_is_an_error(self, tmp_path, repository, ref, field):
        """A slug without an owner and a ref with a space are refused by name."""
        (tmp_path / "pyproject.toml").write_text("")
        with pytest.raises(ConfigError, match=f"^{field}:"):
            read_release(tmp_path / "pyproject.toml", repository, ref)

    def test_a_file_that_is_no_toml_is_an_error(self, tmp_path):
        """The file is named."""
        (tmp_path / "pyproject.toml").write_text("=")
        with pytest.raises(ConfigError, match=r"pyproject\.toml"):
            read_release(tmp_path / "pyproject.toml")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what names the release."""
    for name in ("CITATION.cff", "CONTRIBUTING.md", "README.md", "CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("clean", "docs", "notebooks", "templates", "workshop"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "helpers").mkdir()
    shutil.copy(ROOT / "helpers" / "__init__.py", tmp_path / "helpers")
    return tmp_path


@pytest.fixture
def segno(monkeypatch):
    """The package that draws QR codes, which tests do not install: here it writes the address alone."""

    class Code:
        def __init__(self, text, **_):
            self.text = text

        def save(self, out, **options):
            out.write(f"<svg><desc>{options['desc']}</desc></svg>".encode())

    monkeypatch.setitem(sys.modules, "segno", types.SimpleNamespace(make=Code))


class TestTexts:
    """What else names the repository and the ref."""

    def test_all_agree_with_pyproject(self):
        """Badges, setup cells, README, templates, workshop, QR codes and citation name one repository and one ref."""
        texts = release_texts(ROOT, *read_release(ROOT / "pyproject.toml"))
        assert [path.name for path, text in texts.items() if path.read_text(encoding="utf-8") != text] == []

    def test_the_readme_opens_every_notebook(self):
        """The README has the Colab badge that stands on top of each notebook."""
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        paths = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
        links = [badge_links(path, *read_release(ROOT / "pyproject.toml"))["Open in Colab"] for path in paths]
        assert len(links) >= 3
        assert [
            link for link in links if f"(https://colab.research.google.com/assets/colab-badge.svg)]({link})" not in text
        ] == []

    @pytest.mark.parametrize("part", ["exercises", "solutions"])
    def test_every_exercise_has_its_badge(self, part):
        """Exercises and solutions open themselves on Colab."""
        paths = sorted(ROOT.glob(f"workshop/{part}_*.ipynb"))
        assert len(paths) == 4
        for path in paths:
            name = path.relative_to(ROOT).as_posix()
            link = badge_links(name, *read_release(ROOT / "pyproject.toml"))["Open in Colab"]
            first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
            assert f"colab-badge.svg)]({link})" in "".join(first)

    def test_a_fork_renames_all_of_them(self, checkout, segno, capsys):
        """`--repo` and `--ref` leave no file that names the old ones, and afterwards nothing is out of date."""
        repository, ref = read_release(ROOT / "pyproject.toml")
        assert main(["--repo", "some/fork", "--ref", "next"], checkout) == 0
        files = [path for path in checkout.rglob("*") if path.is_file() and path.suffix != ".png"]
        texts = {path.relative_to(checkout).as_posix(): path.read_text(encoding="utf-8") for path in files}
        assert [name for name, text in texts.items() if repository in text] == []
        assert [
            name for name, text in texts.items() if re.search(rf"some/fork(/blob/|@){re.escape(ref)}\b", text)
        ] == []
        assert "git clone https://github.com/some/fork\ncd fork\nmake doctor" in texts["CONTRIBUTING.md"]
        assert read_release(checkout / "pyproject.toml") == ("some/fork", "next")
        assert main(["--check"], checkout) == 0

    def test_notebooks_stay_as_their_builders_write_them(self, checkout, segno):
        """Renamed notebooks are those that `build_notebooks` and `build_workshop` make of the renamed sources."""
        assert main(["--repo", "some/fork", "--ref", "next"], checkout) == 0
        assert build_all(checkout / "notebooks", check=True) == []
        assert build_workshop(checkout, check=True) == []

    def test_no_other_file_names_the_repository(self):
        """What a fork must rename is what `release_texts` renames; the code itself names no repository."""
        repository, _ = read_release(ROOT / "pyproject.toml")
        listed = subprocess.run(
            ["git", "grep", "-l", repository], cwd=ROOT, capture_output=True, text=True, check=False
        )
        known = {
            path.relative_to(ROOT).as_posix() for path in release_texts(ROOT, *read_release(ROOT / "pyproject.toml"))
        }
        assert set(listed.stdout.split()) - known <= {"tools/badges.py"}

    def test_without_segno_new_qr_codes_are_refused(self, checkout, monkeypatch, capsys):
        """Nothing is written, and the message says what to install."""
        monkeypatch.setitem(sys.modules, "segno", None)
        before = (checkout / "README.md").read_text(encoding="utf-8")
        assert main(["--repo", "some/fork"], checkout) == 2
        assert "pip install segno" in capsys.readouterr().err
        assert (checkout / "README.md").read_text(encoding="utf-8") == before

    def test_it_needs_python_alone(self):
        """Badges are checked by a Python without any package."""
        command = [sys.executable, "-S", "-m", "tools.badges", "--check"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_setup_cells_install_what_the_badge_opens(self):
        """Every notebook and every exercise that installs the package takes it from the ref of the badges."""
        repository, ref = read_release(ROOT / "pyproject.toml")
        wanted = f'source = "git+https://github.com/{repository}@{ref}"'
        lessons = [*ROOT.glob("notebooks/*.py"), *ROOT.glob("templates/*.py"), *ROOT.glob("workshop/sources/*.py")]
        assert len(lessons) >= 8
        assert [path.name for path in lessons if wanted not in path.read_text(encoding="utf-8")] == []

    def test_setup_cells_say_what_could_not_be_installed(self):
        """The error of each setup cell names repository and ref."""
        lessons = [*ROOT.glob("notebooks/*.py"), *ROOT.glob("templates/*.py"), *ROOT.glob("workshop/sources/*.py")]
        wanted = 'f"{source} could not be installed.'
        assert [path.name for path in lessons if wanted not in path.read_text(encoding="utf-8")] == []

    def test_encoded_paths_stay_encoded(self):
        """A path with a space is found in each of the three links, and written as the badges have it."""
        before = notebook_badges("notebooks/a b.ipynb", "o/r", "v1")
        assert rename_release(before, "c/d", "fix/a") == notebook_badges("notebooks/a b.ipynb", "c/d", "fix/a")

    def test_other_links_stay(self):
        """What links to other projects, or to no notebook, is not touched."""
        text = (
            "https://github.com/o/r/issues/1 https://github.com/rhysd/actionlint https://example.org/notebooks/a.ipynb"
        )
        assert rename_release(text, "c/d", "v2") == text


class TestCommand:
    """`scripts/build_badges`."""

    def test_badges_are_written_and_checked(self, repository, capsys):
        """`--check` writes nothing and fails until the files are written; `--repo` and `--ref` are kept."""
        tmp_path, _ = repository
        table = tmp_path / "colab_badges.md"
        (tmp_path / "pyproject.toml").write_text('[tool.mistral-qlora-notebooks]\nrepository = "a/b"\nref = "v1"\n')
        assert main(["--check"], tmp_path) == 1
        assert not table.exists()
        assert main(["--repo", "c/d", "--ref", "v2"], tmp_path) == 0
        assert "https://colab.research.google.com/github/c/d/blob/v2/notebooks/counting.ipynb" in table.read_text()
        assert main(["--check"], tmp_path) == 0
        assert main(["--check", "--repo", "a/b", "--ref", "v1"], tmp_path) == 1
        assert "colab_badges.md is out of date" in capsys.readouterr().err


class TestMakeRelease:
    """`make release VERSION=…`."""

    def test_one_version_stands_everywhere(self, checkout, segno, capsys):
        """Version, tag, changelog and badges change, and the two git commands that remain are printed."""
        (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\nNews.\n\n## 0.1.0\n")
        assert release.main(["1.2.3"], checkout) == 0
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
        assert (project["project"]["version"], project["tool"]["mistral-qlora-notebooks"]["ref"]) == ("1.2.3", "v1.2.3")
        assert '__version__ = "1.2.3"' in (checkout / "helpers/__init__.py").read_text()
        assert "\nversion: 1.2.3\n" in (checkout / "CITATION.cff").read_text()
        assert "## 1.2.3\n\nNews.\n\n## 0.1.0\n" in (checkout / "CHANGELOG.md").read_text()
        assert "@v1.2.3" in (checkout / "notebooks/alpaca_instruction.ipynb").read_text(encoding="utf-8")
        said = capsys.readouterr().out
        assert 'git commit --all --message "Release 1.2.3"' in said
        assert "git tag v1.2.3 && git push origin HEAD v1.2.3" in said

    @pytest.mark.parametrize(
        ("version", "changelog", "message"),
        [
            ("1.2", "## Unreleased\n", "VERSION: expected three numbers"),
            ("1.2.3", "## 0.1.0\n", "CHANGELOG.md: expected"),
        ],
    )
    def test_what_cannot_be_released_changes_nothing(self, checkout, segno, capsys, version, changelog, message):
        """A version of two numbers, and a changelog without news, are refused before anything is written."""
        (checkout / "CHANGELOG.md").write_text(changelog)
        before = (checkout / "pyproject.toml").read_text(encoding="utf-8")
        assert release.main([version], checkout) == 2
        assert message in capsys.readouterr().err
        assert (checkout / "pyproject.toml").read_text(encoding="utf-8") == before
