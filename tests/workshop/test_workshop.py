"""The workshop: its checks, its exercises, and the notebooks that are built from their sources."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.core.errors import ConfigError
from helpers.workshop import CHECKS, check
from helpers.workshop.checks.learning import recorded_run
from tools.badges import read_release
from tools.build_notebooks import STUB, build_workshop, clean_text, solution_text, student_text

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "workshop" / "sources").glob("*.py"))
COURSE = [path for path in sorted((ROOT / "notebooks").glob("*.py")) if path.with_suffix(".ipynb").is_file()]
WITH_A_MODEL = "3_learning"

WRONG = {
    # name: wrong answers, each of which has a hint of its own
    "write-template": [
        "<s>[INST] Be brief.\n\nAdd 2 and 3.[/INST] 5",
        "[INST] Be brief.\n\nAdd 2 and 3.[/INST] 5</s>",
        "<s>Be brief.\n\nAdd 2 and 3. 5</s>",
        "<s>[INST] Add 2 and 3.[/INST] 5</s>",
        "<s>[INST] Be brief.\nAdd 2 and 3.[/INST] 5</s>",
        "<s>[INST] Be brief.\n\nAdd 2 and 3. [/INST] 5</s>",
        "<s>[INST]Be brief.\n\nAdd 2 and 3.[/INST]5</s>",
        "<s>[INST] Be brief.\n\nAdd 2 and 3.[/INST] 6</s>",
    ],
    "labels": [[1, 2], [58, 13939, 314, 260, 3995, 3925, 30, 2]],
    "faulty-rows": [{"A": "works"}, dict.fromkeys("ABCDE", "works"), dict.fromkeys("ABCDE", "melts")],
    "padding": [57.43, 0.4257, 0.5956, 873, 0.1],
    "packing": [
        [[31, 200], [45, 52]],
        [[31, 200, 45], [52, 180], [38, 60, 41]],
        [[31, 200], [45, 52], [180, 38], [60, 41]],
    ],
    "positions": [list(range(12)), [1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2], [5]],
    "lora-size": [58_720_256, 939_524_096, 229_376, 18_432, 7],
    "lora-share": [0.018084, 0.005787, 41_943_040, 1_310_720, 0.6010, 99],
    "lora-merge": [
        [[2, 0, 3], [1, 2, 1], [0, -1, 1]],
        [[1.5, 0, 2.5], [0.5, 1.5, 0.5], [0, -0.5, 1]],
        [[2, 0, 2], [2, 2, 2], [0, -2, 0]],
        [[3, 2, 0], [0, 3, -2], [4, 2, 1]],
        [[0]],
    ],
    "quantize": [[1, -1 / 3, 1 / 3, -1], [0.4, -0.4, 0.4, -1.2], [1.2, -0.4, -0.4, -1.2], [0]],
    "nf4-bits": [4, 4.125, 4.5, 0.51587, 9],
    "full-memory": [115.97, 13.5, 81, 54, 1],
    "qlora-memory": [4.557, 3.854, 3.744, 3.353, 1],
    "loss": [-1.1513, 1.661, 0.5, 4.605, 0.8855, 0.4125, 9],
    "perplexity": [0.65, 3.49, 4.519, 442413, 665.14, 9],
    "real-loss": [12.72, 12.12, 2.958, 1.682, 2.186, -1.515, 7],
    "learning-rate": [{"A": 5e-4, "B": 2e-5, "C": 2e-2}, {"A": 2e-2, "B": 5e-4, "C": 2e-5}, {"A": 1.0}],
    "read-curve": [
        {"P": "flat", "Q": "overfitting", "R": "healthy", "S": "diverging"},
        {"P": "healthy", "Q": "diverging", "R": "flat", "S": "overfitting"},
        {"P": "healthy", "Q": "overfitting", "R": "overfitting", "S": "diverging"},
        {"P": "healthy", "Q": "overfitting", "R": "flat", "S": "flat"},
    ],
    "stop-early": [39, 40, 1, 24],
    "unblind": [[5, 1, 2], [5, 1, 1], [4, 1, 2], [4, 1, 1], [1, 2, 4], [0, 0, 0]],
    "sign-test": [11 / 1024, 10 / 1024, 20 / 1024, 22, 2.148, 0.9, 0.5],
    "wins-needed": [20, 22, 15, 16, 29, 25],
    "interval": [
        [-0.16286, -0.03714],
        [-0.17094, -0.02906],
        [-0.3145, 0.1145],
        [-0.02416, -0.17584],
        [-0.1, 0.07584],
        [0],
    ],
    "many-looks": [1.0, 0.3585, 0.05, 64.15, 0.2],
    "leaks": [[4], [2, 5, 7], [0, 1], [1, 4]],
}

WRONG_KIND = [
    "abc",
    None,
    True,
    {"x": object()},
    [[object()]],
    float("nan"),
    17.5,
    10**400,
    {"A": [1]},
    int,
    [...],
    object(),
]


def cells(text):
    """Return (tags, code) of each code cell of a text in the percent format."""
    import jupytext

    notebook = jupytext.reads(text, fmt="py:percent")
    return [(c.metadata.get("tags", []), c.source) for c in notebook.cells if c.cell_type == "code"]


def execute(text):
    """Run a notebook's code in this process; return [(name, answer, verdict)] of its check cells."""
    namespace, found = {}, []
    for _, code in cells(text):
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), namespace)
        if last is None:
            continue
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
        if code.startswith("check("):
            found.append((ast.literal_eval(last.value.args[0]), namespace["answer"], value))
    return found


@pytest.fixture(scope="session")
def solved():
    """Run a source's solutions once; return [(name, answer, verdict)]."""
    done = {}

    def run(source):
        if source not in done:
            done[source] = execute(solution_text(source.read_text(encoding="utf-8")))
        return done[source]

    return run


def sources():
    """Name each source; the one that loads a model takes long."""
    slow = pytest.mark.slow
    return [pytest.param(p, id=p.stem, marks=[slow] if p.stem == WITH_A_MODEL else []) for p in SOURCES]


def names_in(source):
    """Return the exercises of a source, in its order."""
    return re.findall(r'^check\("([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE)


class TestExercises:
    """What students do, and what the solutions say."""

    @pytest.mark.parametrize("source", sources())
    def test_every_solution_is_right(self, source, solved):
        """The solutions, run in their order, satisfy their checks."""
        assert [(name, verdict.text) for name, _, verdict in solved(source) if not verdict.right] == []

    @pytest.mark.parametrize("source", sources())
    def test_every_stub_gets_a_hint(self, source):
        """A student copy runs from end to end without an error, and each check says what to put in."""
        verdicts = [verdict for _, _, verdict in execute(student_text(source.read_text(encoding="utf-8")))]
        assert len(verdicts) == len(names_in(source))
        assert all(not v.right and v.text.startswith("Not yet: Put your answer") for v in verdicts)

    @pytest.mark.parametrize("source", sources())
    def test_run_all_shows_no_answer(self, source, solved, capsys):
        """What a student copy prints before anything was answered does not contain a number that is asked for."""
        answers = solved(source)
        capsys.readouterr()
        execute(student_text(source.read_text(encoding="utf-8")))
        printed = re.sub(r"(?m)^ready: .*", "", capsys.readouterr().out)  # versions are no answers
        forms = [form for _, answer, _ in answers for form in spelled(answer) if len(re.findall(r"\d", form)) >= 3]
        assert [form for form in forms if stands_in(form, printed)] == []

    @pytest.mark.parametrize("source", sources())
    def test_no_hint_contains_the_answer(self, source, solved):
        """What stands in a hint is not the answer, however it is written."""
        for name, answer, _ in solved(source):
            said = [check(name, wrong).text for wrong in [*WRONG[name], *WRONG_KIND, ...]]
            assert [(text, form) for text in said for form in spelled(answer) if stands_in(form, text)] == []

    @pytest.mark.parametrize("source", sources())
    def test_no_student_copy_contains_a_number_that_is_asked_for(self, source, solved):
        """Of what students get, neither a task nor a summary spells out an answer that is a number of three digits."""
        text = student_text(source.read_text(encoding="utf-8"))
        for name, answer, _ in solved(source):
            forms = [f for f in spelled(answer) if re.fullmatch(r"-?[\d.,]+", f) and len(re.findall(r"\d", f)) >= 3]
            right = [form for form in forms if check(name, json.loads(form.replace(",", ""))).right]
            assert [form for form in right if stands_in(form, text)] == []

    @pytest.mark.slow
    @pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
    def test_no_exercise_shows_noise(self, source):
        """In a fresh process the cells write nothing red but a bar: no note, no warning; and no number of 17 digits."""
        code = "\n".join(code for _, code in cells(solution_text(source.read_text(encoding="utf-8"))))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert re.sub(r"\s*Loading weights:[^\r\n]*", "", done.stderr).strip() == ""
        assert re.findall(r"Failed to load|[Ww]arning|findfont|torchao|\d\.\d{15,}", done.stdout) == []

    def test_every_check_has_an_exercise(self):
        """Sources and checks have the same names, in the same order, each once."""
        assert [name for source in SOURCES for name in names_in(source)] == list(CHECKS)
        assert len(CHECKS) >= 12

    @pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
    def test_every_exercise_has_its_parts(self, source):
        """A task, a solution, a check and a sentence on what was learned follow each other."""
        text = source.read_text(encoding="utf-8")
        part = r'\*\*Task\.\*\*(?:(?!# %%)[\s\S])+# %% tags=\["solution"\]\n(?:(?!# %%)[\s\S])+'
        part += r'# %%\ncheck\("([^"]+)", answer\)\n\n# %% \[markdown\]\n# <details><summary>What you learned</summary>'
        assert re.findall(part, text) == names_in(source)
        assert text.count('"solution"') == len(names_in(source))

    @pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
    def test_the_package_comes_from_the_release(self, source):
        """The setup cell names the repository and the tag that the project is released under."""
        repository, tag = read_release(ROOT / "pyproject.toml")
        assert f"git+https://github.com/{repository}@{tag}" in source.read_text(encoding="utf-8")


def spelled(answer):
    """Yield the ways in which an answer could be spelled out."""
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    if isinstance(answer, dict):
        yield repr(answer)
    elif isinstance(answer, list):
        yield from (repr(answer), repr([round(x, 3) if isinstance(x, float) else x for x in answer]))
    elif isinstance(answer, float):
        yield from (f"{answer:.{digits}g}" for digits in (3, 4, 5))
    else:
        yield from (str(answer), f"{answer:,}" if isinstance(answer, int) else str(answer))


def stands_in(form, text):
    """Whether a text contains something that is not merely a part of a longer number."""
    return re.search(rf"(?<![\d.]){re.escape(form)}(?!\d)", text) is not None


class TestCheck:
    """What `check` makes of answers."""

    @pytest.mark.parametrize("name", CHECKS)
    def test_wrong_answers_get_different_hints(self, name):
        """Each mistake that is known has a hint of its own, which is a sentence."""
        said = [check(name, wrong) for wrong in WRONG[name]]
        assert not any(verdict.right for verdict in said)
        assert len({verdict.text for verdict in said}) >= len(said) - (name == "lora-size")
        assert all(re.fullmatch(r"Not yet: [\w(].+[.?]", verdict.text) for verdict in said)

    @pytest.mark.parametrize("name", CHECKS)
    @pytest.mark.parametrize("answer", WRONG_KIND, ids=lambda answer: type(answer).__name__)
    def test_an_answer_of_any_kind_is_survived(self, name, answer):
        """Nothing that a student can type raises an error or is taken for right."""
        assert not check(name, answer).right

    @pytest.mark.parametrize(
        ("name", "answer", "text"),
        [
            ("wins-needed", "21", "Not yet: The answer should be a whole number, and yours is text."),
            ("wins-needed", 21.5, "Not yet: The answer should be a whole number, and yours is a number."),
            ("wins-needed", None, "Not yet: The answer should be a whole number, and yours is None."),
            ("labels", 7, "Not yet: The answer should be a list of whole numbers, and yours is a whole number."),
            (
                "faulty-rows",
                {1, 2},
                ("Not yet: The answer should be a dict with a text or a number for each letter, and yours is a set."),
            ),
            ("unblind", {"wins": 4}, "Not yet: The answer should be a list of whole numbers, and yours is a dict."),
            (
                "leaks",
                [[1]],
                "Not yet: The answer should be a list of whole numbers, and yours is another kind of list.",
            ),
            ("interval", -0.1, "Not yet: The answer should be a list of numbers, and yours is a number."),
            ("wins-needed", ..., "Not yet: Put your answer in place of the three dots. It should be a whole number."),
        ],
    )
    def test_another_kind_of_answer_is_named(self, name, answer, text):
        """The hint says which kind of answer is wanted, and which was given."""
        assert check(name, answer).text == text

    def test_numpy_and_torch_are_taken_for_plain_numbers(self):
        """Answers may be scalars, arrays or tensors."""
        import numpy as np
        import torch

        assert check("wins-needed", np.int64(21)).right
        assert check("loss", torch.tensor(1.15129)).right
        assert check("positions", np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4])).right
        assert check("lora-merge", np.array([[3, 0, 4], [2, 3, 2], [0, -2, 1.0]])).right

    def test_rounding_is_allowed(self):
        """Rounded to the decimals that the exercise asks for, every number is right; one further off is not."""
        rounded = {
            "padding": (0.574, 0.573), "lora-share": (0.579, 0.57), "nf4-bits": (4.127, 4.12), "full-memory": (108, 107),
            "qlora-memory": (4.2, 4.1), "loss": (1.15, 1.14), "perplexity": (1.92, 1.93), "real-loss": (1.52, 1.47),
            "sign-test": (0.021, 0.022), "many-looks": (0.64, 0.63),
        }  # fmt: skip
        assert [name for name, (right, _) in rounded.items() if not check(name, right).right] == []
        assert [name for name, (_, wrong) in rounded.items() if check(name, wrong).right] == []
        assert check("interval", [-0.176, -0.024]).right

    @pytest.mark.parametrize(
        ("name", "answer", "hint"),
        [
            ("padding", 0.57, "Give 3 decimals, as the task asks."),
            ("loss", 1.2, "Give 2 decimals, as the task asks."),
            ("interval", [-0.18, -0.02], "Give 3 decimals, as the task asks."),
            ("nf4-bits", 4.126, "Nearly: round the last decimal instead of cutting off the rest."),
            ("interval", [-0.175, -0.024], "Nearly: round the last decimal instead of cutting off the rest."),
            (
                "lora-share",
                0.6,
                "If you rounded: give 3 decimals, as the task asks. If you did not: this compares",
            ),
        ],
    )
    def test_a_right_number_that_is_badly_rounded_is_named(self, name, answer, hint):
        """Too few decimals, or digits cut off, are not called too large or too small."""
        assert check(name, answer).text.startswith(f"Not yet: {hint}")

    def test_a_known_mistake_is_known_when_it_is_rounded(self):
        """A student who gives the decimals that the task asks for gets the hint for the mistake."""
        assert check("padding", 0.426).text == "Not yet: This is the share of real tokens."
        assert check("sign-test", 0.011).text.startswith("Not yet: That is one direction.")
        assert check("quantize", [1, -0.33, 0.33, -1]).text.startswith("Not yet: These are levels.")

    def test_a_comma_in_a_number_is_explained(self):
        """To Python 0,574 is two numbers, which is how much of the world writes one."""
        for name, answer in (("padding", (0, 574)), ("lora-size", (294, 912))):
            assert check(name, answer).text.startswith("Not yet: To Python a comma begins the next number.")

    def test_the_verdict_says_what_was_checked(self):
        """After an edit that was not run, or failed, the old answer is still there: it is shown, with six digits."""
        assert check("many-looks", 0.6415140775914581).checked == "0.641514"
        assert check("interval", [-0.09999999999999999, 0.1]).checked == "[-0.1, 0.1]"
        assert check("write-template", "x" * 999).checked == f"'{'x' * 27}...{'x' * 28}'"
        assert check("wins-needed", 10**5000).checked == "a whole number"
        assert check("leaks", ...).checked == ""

    def test_a_set_of_row_numbers_is_right(self):
        """Where the order does not matter, a set is as good as a list."""
        assert check("leaks", {1, 4, 6}).right

    def test_a_set_is_no_list_where_the_order_matters(self):
        """It has none."""
        assert check("unblind", {4, 2, 1}).text.endswith("and yours is a set.")

    def test_labels_and_questions_are_counted(self):
        """An answer of another length, or outcomes of more questions than there are, are counted for the student."""
        assert check("labels", [1, 2]).text.startswith("Not yet: The row has 22 tokens, and you have 2 labels.")
        assert check("unblind", [3, 1, 2]).text == "Not yet: There are seven questions, and yours add up to 6."

    def test_any_packing_with_few_sequences_is_right(self):
        """The exercise has several solutions."""
        assert check("packing", [[31, 180, 45], [52, 200], [60, 41, 38]]).right

    def test_an_unknown_name_is_an_error_with_the_nearest(self):
        """A mistyped exercise is not a wrong answer."""
        with pytest.raises(ConfigError, match=r"check: expected the name of an exercise.+Did you mean padding\?"):
            check("paddin", 0.5)
        with pytest.raises(ConfigError, match="name of an exercise"):
            check([3], 0.5)

    def test_a_verdict_shows_itself(self):
        """A notebook shows escaped HTML, a terminal the text."""
        verdict = check("faulty-rows", dict.fromkeys("ABCDE", "<b>"))
        assert verdict.text == "Not yet: There is no '<b>' among the choices."
        assert repr(check("padding", 0.57)) == "Not yet: Give 3 decimals, as the task asks.\nChecked: 0.57"
        assert "&lt;b&gt;" in verdict._repr_html_()

    def test_an_unknown_recorded_run_is_an_error(self):
        """A mistyped run is named, with the nearest."""
        with pytest.raises(ConfigError, match=r"Did you mean run-\d\?"):
            recorded_run("run1")


class TestBuild:
    """The notebooks that are built."""

    def test_the_projects_notebooks_are_up_to_date(self):
        """What is committed is what the sources say."""
        assert build_workshop(ROOT, check=True) == []

    def test_each_source_has_both_copies(self):
        """Students and teachers get a notebook each; each course notebook has a clean copy."""
        built = {path.name for path in (ROOT / "workshop").glob("*.ipynb")}
        assert built == {f"{kind}_{p.stem}.ipynb" for kind in ("exercises", "solutions") for p in SOURCES}
        assert {path.stem for path in (ROOT / "clean").glob("*.ipynb")} == {path.stem for path in COURSE}

    def test_building_depends_on_the_sources_alone(self, tmp_path):
        """Building into an empty folder gives the committed bytes; a second time nothing is written."""
        folder = tmp_path / "workshop" / "sources"
        folder.mkdir(parents=True)
        (folder / SOURCES[1].name).write_bytes(SOURCES[1].read_bytes())
        names = [f"workshop/{kind}_{SOURCES[1].stem}.ipynb" for kind in ("exercises", "solutions")]
        assert build_workshop(tmp_path, check=True) == names
        assert build_workshop(tmp_path) == names
        assert [(tmp_path / name).read_bytes() == (ROOT / name).read_bytes() for name in names] == [True, True]
        assert build_workshop(tmp_path) == []

    def test_a_notebook_without_a_source_is_named(self, tmp_path):
        """What is left of a source that was removed is found."""
        (tmp_path / "clean").mkdir()
        (tmp_path / "clean" / "old.ipynb").write_text("{}")
        assert build_workshop(tmp_path, check=True) == ["clean/old.ipynb"]
        assert build_workshop(tmp_path) == []

    @pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
    def test_students_get_stubs_and_no_solutions(self, source):
        """Only the solutions are replaced."""
        text = source.read_text(encoding="utf-8")
        ours = [STUB if "solution" in tags else code for tags, code in cells(text)]
        assert [code for _, code in cells(student_text(text))] == ours
        assert "solution" not in student_text(text).lower()

    @pytest.mark.parametrize("source", COURSE, ids=lambda path: path.stem)
    def test_clean_copies_have_headings_and_code_alone(self, source):
        """All code stays, with the ids that it has in the notebook; of the prose only headings stay."""
        clean = json.loads((ROOT / "clean" / f"{source.stem}.ipynb").read_text(encoding="utf-8"))
        whole = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
        code = [[(c["id"], c["source"]) for c in book["cells"] if c["cell_type"] == "code"] for book in (clean, whole)]
        assert code[0] == code[1]
        prose = ["".join(c["source"]) for c in clean["cells"] if c["cell_type"] == "markdown"]
        assert prose
        assert [line for text in prose for line in text.splitlines() if not line.startswith("#")] == []

    def test_clean_text_drops_cells_without_a_heading(self):
        """A Markdown cell that is prose alone goes."""
        assert clean_text("# %% [markdown]\n# Prose.\n\n# %%\nx = 1\n") == "# %%\nx = 1\n"
