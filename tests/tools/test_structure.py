"""The form that every notebook of this project has, and how .ipynb files are built from .py files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.core.errors import RunError
from helpers.data.rows import read_prompts
from tools.badges import notebook_badges, read_release
from tools.build_notebooks import build_all, notebook_text
from tools.notebook_lint import check_notebook, expected_parameters

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))

HEADER = """\
# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""

BODY = """
# %% [markdown]
# # Title
# BADGES

# %% tags=["parameters"]
steps = 4  # type: int  end after this many [steps]

# %% [markdown]
# Why.

# %%
print(steps)
"""


def build(folder, body=BODY, header=HEADER):
    """Write a .py file, build its pair, and return the pair's path."""
    (folder / "small.py").write_text(header + body)
    build_all(folder)
    return folder / "small.ipynb"


def edit(path, change):
    """Change a notebook's JSON in place, and drop its .py file's claim on it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return [problem for problem in check_notebook(path) if "differs from" not in problem]


class TestBuilding:
    """The .ipynb file that belongs to a .py file."""

    def test_it_depends_on_the_py_file_alone(self, tmp_path):
        """Building twice gives the same bytes, whatever stood there."""
        first = build(tmp_path).read_bytes()
        (tmp_path / "small.ipynb").unlink()
        assert build(tmp_path).read_bytes() == first

    def test_an_edit_changes_the_id_of_its_cell_alone(self, tmp_path):
        """Ids follow the text, so that a diff shows what was edited."""
        before = [cell["id"] for cell in json.loads(build(tmp_path).read_text())["cells"]]
        after = [cell["id"] for cell in json.loads(build(tmp_path, BODY.replace("Why", "How")).read_text())["cells"]]
        assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]

    def test_equal_cells_have_different_ids(self, tmp_path):
        """A cell that stands twice has an id of its own each time."""
        ids = [cell["id"] for cell in json.loads(build(tmp_path, BODY + "\n# %%\nprint(steps)\n").read_text())["cells"]]
        assert len(set(ids)) == 5

    def test_metadata_and_tags_come_from_the_header(self, tmp_path):
        """What the header says stands in the notebook, without jupytext's version."""
        content = json.loads(build(tmp_path).read_text())
        assert content["metadata"]["colab"] == {"gpuType": "T4"}
        assert content["cells"][1]["metadata"] == {"tags": ["parameters"]}
        assert sorted(content["metadata"]) == ["accelerator", "colab", "kernelspec", "language_info"]

    def test_check_writes_nothing(self, tmp_path):
        """With `check`, differing files and files without a source are named and left as they are."""
        path = build(tmp_path)
        assert build_all(tmp_path, check=True) == []
        path.write_text("{}")
        (tmp_path / "alone.ipynb").write_text("{}")
        assert build_all(tmp_path, check=True) == ["alone.ipynb", "small.ipynb"]
        assert path.read_text() == "{}"
        assert build_all(tmp_path) == ["small.ipynb"]

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path):
        """A file in another encoding gets a message."""
        (tmp_path / "odd.py").write_bytes(b"# %%\n\xff")
        with pytest.raises(RunError, match=r"odd\.py"):
            notebook_text(tmp_path / "odd.py")


class TestChecks:
    """What the checks accept, and what they find."""

    def test_a_good_notebook_has_no_problems(self, tmp_path):
        """The smallest notebook that follows the rules passes."""
        assert check_notebook(build(tmp_path), badges="BADGES") == []

    @pytest.mark.parametrize(
        ("code", "problem"),
        [
            ("if False:\n    print(1)", "cell 5 has code that never runs; make it a parameter"),
            ("while 0:\n    print(1)", "cell 5 has code that never runs; make it a parameter"),
            ("# steps = 60\nprint(1)", "cell 5 has code in a comment: # steps = 60"),
            ("# print(2)\nprint(1)", "cell 5 has code in a comment: # print(2)"),
            ("# for row in rows:\nprint(1)", "cell 5 has code in a comment: # for row in rows:"),
            ("def f():\n" + "    x = 1\n" * 10, "cell 5 defines f in 11 lines; put it into the package"),
            ("\n".join(f"x{i} = {i}" for i in range(16)), "cell 5 has 16 lines, more than 15"),
            ("\n".join(f"x{i} = {i}" for i in range(11)), "the median code cell has 6.0 lines, more than 4"),
            (
                "plot_losses(1)\nprint(1)",
                "cell 5 calls plot_losses before its last line; a notebook shows the last value alone",
            ),
            ("print(", "cell 5 is not Python"),
            ("", "cell 5 is empty"),
        ],
    )
    def test_code_that_does_not_belong_in_a_notebook_is_found(self, tmp_path, code, problem):
        """Each rule names the cell and what to do."""
        path = build(tmp_path)
        cell = {
            "cell_type": "code",
            "id": "new",
            "metadata": {},
            "source": code,
            "execution_count": None,
            "outputs": [],
        }
        assert problem in edit(path, lambda content: content["cells"].append(cell))

    @pytest.mark.parametrize(
        "code",
        ["# Note: this is prose.\nx = 1", "# note: important\nx = 1", "# seconds\nx = 1", "%pip list\n!ls\nx = 1"],
    )
    def test_comments_and_commands_are_not_code_in_a_comment(self, tmp_path, code):
        """Prose that happens to parse, and lines for IPython, are left in peace."""
        assert check_notebook(build(tmp_path, f"{BODY}\n# %% [markdown]\n# Why.\n\n# %%\n{code}\n")) == []

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda n: n["cells"][3].update(execution_count=3), "cell 4 has outputs or an execution count"),
            (lambda n: n["metadata"].update(widgets={}), "widget state is kept"),
            (lambda n: n["cells"][3].update(id=n["cells"][0]["id"]), "two cells have the same id"),
            (lambda n: n["cells"][3].pop("id"), "cells have no ids"),
            (lambda n: n["metadata"].pop("accelerator"), "metadata accelerator is None, not 'GPU'"),
            (lambda n: n["metadata"].pop("colab"), "metadata colab.gpuType is None, not 'T4'"),
            (lambda n: n["metadata"]["kernelspec"].update(name="venv"), "metadata kernelspec.name is 'venv'"),
            (lambda n: n["cells"][1]["metadata"].clear(), "no cell is tagged parameters"),
            (lambda n: n["cells"][3]["metadata"].update(tags=["parameters"]), "one cell tagged parameters, got 2"),
            (lambda n: n["cells"].pop(2), "1 of 2 code cells follow a Markdown cell, less than 80%"),
            (lambda n: n["metadata"].update(mistral_qlora={"task": "alpaca"}), "parameter steps is none of the config"),
            (
                lambda n: n["metadata"].update(mistral_qlora={"task": "alpaca"}),
                "parameter seed should be `seed = ...",
            ),
        ],
    )
    def test_a_notebook_that_departs_from_the_form_is_found(self, tmp_path, change, problem):
        """Each departure is said in words."""
        assert any(problem in found for found in edit(build(tmp_path), change))

    def test_a_pair_that_differs_is_found(self, tmp_path):
        """A notebook edited without its .py file, or the other way round, is found."""
        path = build(tmp_path)
        (tmp_path / "small.py").write_text(HEADER + BODY.replace("Why", "How"))
        assert check_notebook(path) == ["it differs from small.py; run scripts/build_notebooks"]
        (tmp_path / "small.py").unlink()
        assert check_notebook(path) == ["small.py, from which it should be built, is not there"]

    def test_missing_badges_are_found(self, tmp_path):
        """The line of badges stands in the first Markdown cell, as it should be now."""
        assert check_notebook(build(tmp_path), badges="OTHERS") == [
            "the first Markdown cell lacks the line of badges: OTHERS"
        ]

    def test_help_texts_have_their_unit(self):
        """Notebooks show the help and the unit that the configuration declares."""
        expected = expected_parameters()
        assert list(expected)[:3] == ["preset", "run_name", "resume"]
        assert expected["max_steps"] == ("int", "end after this many optimizer steps [steps]")
        assert expected["model_revision"] == ("str", "hub revision of the base model")

    def test_help_texts_can_stand_in_a_parameters_cell(self):
        """An "=" in a help text would take the parameter out of papermill's inspection."""
        assert [name for name, (_, text) in expected_parameters().items() if set(text) & set("=#\n")] == []


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_projects_notebooks_have_the_form(source):
    """Each notebook of the project is built, and follows all rules, badges included."""
    line = notebook_badges(f"notebooks/{source.stem}.ipynb", *read_release(ROOT / "pyproject.toml"))
    assert check_notebook(source.with_suffix(".ipynb"), badges=line) == []


def test_the_business_notebook_asks_the_first_bundled_prompt():
    """Its first question stands in a cell, word for word, and comes again among the prompts at the end."""
    question = read_prompts("dolly")[0]["prompt"]
    assert question.startswith("You are an AI consultant in a large industrial company.")
    assert f'question = "{question}"' in (ROOT / "notebooks" / "dolly_business.py").read_text(encoding="utf-8")
