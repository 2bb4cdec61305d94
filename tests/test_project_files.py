"""The files around the code: workflows, templates, changelog, citation and what they refer to."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from test_package import DIRECTIONS

from helpers import __version__
from tools.badges import notebook_badges, read_facts, read_release
from tools.build_notebooks import build_all
from tools.notebook_lint import check_notebook

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MADE_LATER = (".venv", "runs", "outputs")
"""What is not in the repository, and may be named all the same."""


def read(name):
    """Return the text of a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def jobs(workflow):
    """Return the jobs of a workflow."""
    return yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]


def steps(workflow):
    """Return all steps of a workflow."""
    return [step for job in jobs(workflow).values() for step in job["steps"]]


def make_targets():
    """Return the names that `make` knows."""
    return re.findall(r"^([a-z_]+):", read("Makefile"), re.MULTILINE)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
class TestWorkflow:
    """Each workflow."""

    def test_its_actions_are_pinned_by_commit(self, workflow):
        """Each action is named by 40 hexadecimal digits, with its version in a comment."""
        lines = [line.strip() for line in workflow.read_text(encoding="utf-8").splitlines() if "uses:" in line]
        assert lines
        pinned = r"(- )?uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
        assert [line for line in lines if not re.fullmatch(pinned, line)] == []

    def test_it_only_calls_what_runs_by_hand(self, workflow):
        """Each step is one call of make or of a script that exists."""
        for step in steps(workflow):
            if "run" not in step:
                continue
            assert "\n" not in step["run"].strip()
            program, *rest = shlex.split(step["run"].replace("${{ matrix.target }}", "test"))
            if program == "make":
                assert rest[0] in make_targets()
            else:
                assert program.startswith("scripts/")
                assert (ROOT / program).stat().st_mode & 0o100

    def test_it_may_only_read(self, workflow):
        """No job has more rights than reading the code, and the token is not left in the checkout."""
        content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
        assert content["permissions"] == {"contents": "read"}
        assert [name for name, job in content["jobs"].items() if "permissions" in job] == []
        checkouts = [step for step in steps(workflow) if "actions/checkout" in step.get("uses", "")]
        assert [step["with"]["persist-credentials"] for step in checkouts] == [False]

    def test_it_ends(self, workflow):
        """Each job has a time limit, and a newer push replaces an older run."""
        assert all(job["timeout-minutes"] <= 120 for job in jobs(workflow).values())
        assert "group" in yaml.safe_load(workflow.read_text(encoding="utf-8"))["concurrency"]

    def test_it_takes_no_code_from_titles_and_branches(self, workflow):
        """No shell line contains what a stranger can write: titles, branch names, comments."""
        lines = " ".join(step.get("run", "") for step in steps(workflow))
        assert re.findall(r"\$\{\{\s*(?!matrix\.target\b)\S+", lines) == []


class TestRunners:
    """Who may use which machine."""

    def test_forks_do_not_reach_the_gpu(self):
        """Every job on a self-hosted runner asks where a pull request comes from."""
        for workflow in WORKFLOWS:
            for job in jobs(workflow).values():
                if "self-hosted" in job["runs-on"]:
                    assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]
            assert "pull_request_target" not in workflow.read_text(encoding="utf-8")

    def test_ci_tries_every_python(self):
        """The matrix has the versions that pyproject.toml allows, and one of them checks the style too."""
        matrix = jobs(ROOT / ".github" / "workflows" / "ci.yml")["test"]["strategy"]["matrix"]["include"]
        assert [each["python"] for each in matrix] == ["3.11", "3.12", "3.13"]
        assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
        assert "check" in [each["target"] for each in matrix]

    def test_the_gpu_workflow_watches_what_it_runs(self):
        """Changes of notebooks, helpers, the script and its limits start it."""
        content = yaml.safe_load(read(".github/workflows/gpu.yml"))
        paths = content[True]["pull_request"]["paths"]  # YAML 1.1 reads the key `on` as true
        assert {"notebooks/**", "helpers/**", "scripts/gpu_ci", "tests/gpu_expectations.json"} <= set(paths)
        assert set(content[True]) == {"workflow_dispatch", "schedule", "pull_request"}

    def test_the_gpu_workflows_notebooks_exist(self):
        """The notebooks with expectations are those of the project."""
        expected = json.loads(read("tests/gpu_expectations.json"))["notebooks"]
        assert [name for name in expected if not (ROOT / "notebooks" / f"{name}.py").is_file()] == []


class TestForms:
    """Issue templates and the other YAML files."""

    @pytest.mark.parametrize("name", ["bug", "question"])
    def test_an_issue_form_is_whole(self, name):
        """Name, description and fields are there, and each field has an id of its own and a label."""
        form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(field["attributes"]["label"] for field in form["body"])

    def test_a_bug_report_asks_for_the_doctor(self):
        """The doctor's output must be given."""
        body = yaml.safe_load(read(".github/ISSUE_TEMPLATE/bug.yml"))["body"]
        (field,) = [field for field in body if "python -m helpers doctor" in field["attributes"]["label"]]
        assert field["validations"] == {"required": True}

    def test_hooks_call_what_exists(self):
        """Every pre-commit hook is local, and its script is there."""
        (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
        assert repository["repo"] == "local"
        scripts = [word for hook in repository["hooks"] for word in hook["entry"].split() if "scripts/" in word]
        assert scripts == ["scripts/build_notebooks", "scripts/build_workshop"]
        assert all((ROOT / script).is_file() for script in scripts)


class TestRelease:
    """One version, everywhere."""

    def test_the_version_is_the_same_in_all_files(self):
        """The package, pyproject.toml, its tag and CITATION.cff agree; between releases the ref is a branch."""
        version = PROJECT["project"]["version"]
        citation = yaml.safe_load(read("CITATION.cff"))
        assert (version, citation["version"]) == (__version__, __version__)
        ref = PROJECT["tool"]["mistral-qlora-notebooks"]["ref"]
        assert ref == f"v{version}" or not re.match(r"v\d", ref)

    def test_the_changelog_begins_with_it(self):
        """The newest heading is this version, after what is not released yet."""
        headings = re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
        assert next(heading for heading in headings if heading != "Unreleased") == __version__
        assert "Unreleased" not in headings[1:]

    def test_the_citation_names_repository_and_licence(self):
        """CITATION.cff says what pyproject.toml says."""
        citation = yaml.safe_load(read("CITATION.cff"))
        repository, _ = read_release(ROOT / "pyproject.toml")
        assert citation["repository-code"] == f"https://github.com/{repository}"
        assert citation["license"] == PROJECT["project"]["license"]


class TestTemplate:
    """The notebook that contributors start from."""

    def test_a_copy_has_the_form_of_a_notebook(self, tmp_path):
        """Copied and built as CONTRIBUTING.md says, it passes every check, with facts for the badge table."""
        text = read("templates/notebook.py").replace("my_notebook", "new_one")
        (tmp_path / "new_one.py").write_text(text, encoding="utf-8")
        build_all(tmp_path)
        line = notebook_badges("notebooks/new_one.ipynb", *read_release(ROOT / "pyproject.toml"))
        assert check_notebook(tmp_path / "new_one.ipynb", badges=line) == []
        assert read_facts(tmp_path / "new_one.ipynb").minutes_t4 == 5

    @pytest.mark.slow
    def test_a_copy_runs(self, tmp_path, runs_folder):
        """It can be executed as it is."""
        from helpers.cli.notebooks import run_notebook

        (tmp_path / "new_one.py").write_text(read("templates/notebook.py"), encoding="utf-8")
        build_all(tmp_path)
        shown = []
        assert run_notebook(str(tmp_path / "new_one.ipynb"), {"row_count": 2}, report=shown.append).is_file()


class TestTexts:
    """What README.md, CONTRIBUTING.md and tests/README.md refer to."""

    @pytest.mark.parametrize("name", ["CONTRIBUTING.md", "tests/README.md", "README.md"])
    def test_paths_in_them_exist(self, name):
        """Every path within backquotes that looks like the project's is there, from the root or beside the text."""
        known = {path.name for path in ROOT.iterdir()} - set(MADE_LATER)
        spans = re.findall(r"`([\w./-]+)`", read(name))
        paths = [span for span in spans if "/" in span and span.split("/")[0] in known]
        places = (ROOT, (ROOT / name).parent)
        lost = [path for path in paths if not any(any(place.glob(path)) for place in places)]
        assert [path for path in lost if "NAME" not in path] == []

    def test_every_test_file_is_described(self):
        """tests/README.md names each test module with its room, some by a pattern, and nothing that is gone."""
        patterns = re.findall(r"`((?:\w+/)?test_[\w*]+\.py)`", read("tests/README.md"))
        found = {pattern: set((ROOT / "tests").glob(pattern)) for pattern in patterns}
        assert [pattern for pattern, paths in found.items() if not paths] == []
        assert set((ROOT / "tests").rglob("test_*.py")) - set().union(*found.values()) == set()

    def test_make_targets_in_them_exist(self):
        """What one is told to `make` can be made."""
        named = re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", read("CONTRIBUTING.md"), re.MULTILINE)
        assert {a or b for a, b in named} <= set(make_targets())

    def test_the_maps_show_every_room(self):
        """README's tree and CONTRIBUTING's table name the rooms of the package, in the order of their directions."""
        tree = [path.split("/")[1] for path in tree_paths(read("README.md")) if re.fullmatch(r"helpers/\w+", path)]
        table = re.findall(r"^\| `helpers/(\w+)` \|", read("CONTRIBUTING.md"), re.MULTILINE)
        assert tree == table == list(DIRECTIONS)

    def test_the_tree_in_the_readme_exists(self):
        """Each line of the README's commented tree names something that is there."""
        paths = tree_paths(read("README.md"))
        assert paths
        assert [path for path in paths if not any(ROOT.glob(path)) and path.split("/")[0] not in MADE_LATER] == []


def tree_paths(text):
    """Return the paths in the first fenced block of a Markdown text that draws the project's tree.

    A line is a name, or some separated by single spaces, perhaps after lines of the drawing; then a comment after two
    spaces or a "#". Names indented under a folder belong to it.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    block = next((each for each in blocks if re.search(r"^\W*helpers/", each, re.MULTILINE)), "")
    paths, folders = [], []
    for line in block.splitlines():
        drawing = re.match(r"[\s│├└─|+`-]*", line)[0]
        words = re.split(r"\s{2,}|\s+#", line[len(drawing) :].strip())[0].split()
        if not words or (len(words) == 1 and words[0] in (".", "./")):
            continue
        while folders and folders[-1][0] >= len(drawing):
            folders.pop()
        prefix = folders[-1][1] if folders else ""
        names = [word.rstrip(",") for word in words if re.fullmatch(r"[\w.*/-]+,?", word)]
        paths += [prefix + name.rstrip("/") for name in names if name.rstrip("/") != "mistral-qlora-notebooks"]
        if len(names) == 1 and names[0].endswith("/") and names[0] != "mistral-qlora-notebooks/":
            folders.append((len(drawing), prefix + names[0]))
    return paths


def test_a_tree_is_read_with_its_folders():
    """Both ways to draw a tree give the paths, comments left out."""
    plain = "```\nhelpers/     the package\n  config.py  settings\nREADME.md LICENSE  texts\ntests/  # tests\n```\n"
    assert tree_paths(plain) == ["helpers", "helpers/config.py", "README.md", "LICENSE", "tests"]
    drawn = "```text\n.\n├── helpers/      # the package\n│   ├── errors.py  # errors\n└── Makefile\n```\n"
    assert tree_paths(drawn) == ["helpers", "helpers/errors.py", "Makefile"]
