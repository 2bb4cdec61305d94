"""The strict runner: parameters are checked before a kernel starts, and nothing fails silently."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.translators import PythonTranslator
from small_notebooks import PARAMETERS, write_notebook

from helpers.cli.execution import _check_all_ran, executed_text
from helpers.cli.notebooks import CellError, _open_folder, check_parameters, find_notebook, run_notebook
from helpers.cli.parameters import read_parameters
from helpers.core.errors import ConfigError, RunError, StackError
from helpers.core.files import write_json
from helpers.core.lock import hold_lock, release_lock
from tools.notebook_lint import expected_parameters

ROOT = Path(__file__).resolve().parents[2]
TRAINING = "\n".join(
    f"{name} = {default!r}  # type: {kind}  {text}"
    for name, (kind, text) in expected_parameters().items()
    for default in [{"preset": "auto", "resume": "auto"}.get(name)]
)
"""A parameters cell as training notebooks have it."""


@pytest.fixture
def small(tmp_path):
    """A notebook with parameters of every type and no task."""
    return write_notebook(tmp_path / "small.ipynb", "# Title", "print(count)")


@pytest.fixture
def training(tmp_path):
    """A notebook with a training notebook's parameters, which does nothing."""
    return write_notebook(
        tmp_path / "training.ipynb", "# Title", "print(preset)", parameters=TRAINING, mistral_qlora={"task": "alpaca"}
    )


@pytest.fixture
def no_kernel(monkeypatch):
    """Starting a kernel fails the test."""
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))


class TestFinding:
    """Notebooks by name and by path."""

    def test_a_path_is_taken_as_it_is(self, small):
        """Any .ipynb file can be run."""
        assert find_notebook(str(small)) == small.resolve()

    def test_a_name_means_the_notebook_of_the_checkout(self):
        """A name without an ending is looked up in the notebooks folder."""
        assert find_notebook("dolly_business") == ROOT / "notebooks" / "dolly_business.ipynb"

    def test_an_unknown_name_names_the_nearest(self):
        """A typing mistake is answered with the name that was meant."""
        with pytest.raises(RunError, match=r"^notebook: .*got 'doly_busines'\. Did you mean dolly_business\?$"):
            find_notebook("doly_busines")

    def test_a_missing_file_is_said_to_be_missing(self, tmp_path):
        """A path that leads nowhere is not looked up as a name."""
        with pytest.raises(RunError, match="There is no such file"):
            find_notebook(str(tmp_path / "none.ipynb"))


class TestReading:
    """The parameters cell, through papermill's inspection."""

    def test_each_line_is_a_parameter(self, small):
        """Name, default, type and help are read in order."""
        read = read_parameters(small)
        assert [(p.name, p.default, p.type) for p in read.values()] == [
            ("count", 2, "int"),
            ("rate", 0.5, "float"),
            ("loud", False, "bool"),
            ("name", "Ann", "str"),
            ("limit", None, "int"),
        ]
        assert read["limit"].help == "end after this many [steps]"

    @pytest.mark.parametrize(
        "line",
        [
            "steps = 4  # type: int  a = b",
            'text = "a # b"  # type: str  text',
            "steps = 4",
            "steps = 4  # type: int",
            "steps = 4  # type: int|None  steps",
            "steps = 2 * 2  # type: int  steps",
            "steps = 'four'  # type: int  steps",
            "from os import path  # type: str  nothing",
            "steps = [1,",
        ],
    )
    def test_a_line_that_papermill_cannot_read_is_an_error(self, tmp_path, line):
        """Papermill would drop or misread the parameter without a word."""
        path = write_notebook(tmp_path / "odd.ipynb", parameters=f"{PARAMETERS}\n{line}")
        with pytest.raises(RunError, match=re.escape(repr(line))):
            read_parameters(path)

    @pytest.mark.parametrize(
        ("line", "kind", "text"),
        [
            (
                'preset = "auto"  # @param ["auto", "smoke"]  # type: str  which machine',
                "None",
                '@param ["auto", "smoke"]  # type: str  which machine',
            ),
            (
                'preset: str = "auto"  # @param ["auto", "smoke"]  which machine',
                "str",
                '@param ["auto", "smoke"]  which machine',
            ),
        ],
        ids=["with a type comment", "with an annotation"],
    )
    def test_a_colab_form_field_costs_the_type_or_the_help(self, line, kind, text):
        """With `@param` after the value, where Colab reads it, papermill finds no type comment, or markup for help."""
        (read,) = PythonTranslator.inspect({"source": line})
        assert (read.inferred_type_name, read.help) == (kind, text)

    def test_a_name_declared_twice_is_an_error(self, tmp_path):
        """The second line would win silently."""
        path = write_notebook(tmp_path / "twice.ipynb", parameters=f"{PARAMETERS}\n{PARAMETERS}")
        with pytest.raises(RunError, match="each name once, got 'count'"):
            read_parameters(path)

    def test_two_parameters_cells_are_an_error(self, small):
        """Papermill would read the first alone."""
        content = json.loads(small.read_text())
        content["cells"].append(content["cells"][0])
        small.write_text(json.dumps(content))
        with pytest.raises(RunError, match="one cell tagged parameters, got 2"):
            read_parameters(small)

    def test_a_file_that_is_no_notebook_is_an_error(self, tmp_path):
        """JSON of another kind gets a message, not a KeyError."""
        path = tmp_path / "odd.ipynb"
        path.write_text("[]")
        with pytest.raises(RunError, match="a readable notebook"):
            read_parameters(path)


class TestChecking:
    """Parameters by name, by type, and together."""

    def test_text_is_converted_to_the_declared_type(self, small):
        """Values from a command line become what the notebook expects."""
        given = {"count": "3", "rate": "2e-4", "loud": "TRUE", "name": "7", "limit": "none"}
        values, _ = check_parameters(small, given)
        assert values == {"count": 3, "rate": 0.0002, "loud": True, "name": "7", "limit": None}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"cuont": "3"}, "cuont: expected the name of a parameter of small, got '3'. Did you mean count?"),
            ({"count": "many"}, "count: expected a whole number, got 'many'."),
            ({"count": 2.5}, "count: expected a whole number, got 2.5."),
            ({"count": "none"}, "count: expected a whole number, got 'none'."),
            ({"loud": "yes"}, "loud: expected true or false, got 'yes'."),
            ({"name": 7}, "name: expected text, got 7."),
        ],
    )
    def test_a_wrong_parameter_is_named(self, small, given, message):
        """The message has the parameter, what is expected and what was given."""
        with pytest.raises(ConfigError) as caught:
            check_parameters(small, given)
        assert str(caught.value).startswith(message)

    def test_a_token_is_refused_and_not_shown(self, small):
        """Executed notebooks keep their parameters, so a token must not be one."""
        with pytest.raises(ConfigError, match="no secret") as caught:
            check_parameters(small, {"name": "hf_" + "a" * 34})
        assert "aaaa" not in str(caught.value)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"max_steps": "0"}, "max_steps: expected a whole number of steps, at least 1 and at most"),
            ({"preset": "smok"}, "got 'smok'. Did you mean smoke?"),
            ({"max_new_tokens": 5000}, "max_new_tokens: expected less than max_seq_length (1024), got 5000."),
            ({"prompt_style": "alpaca", "system_prompt": "x"}, "system_prompt: expected none"),
        ],
    )
    def test_a_training_notebook_is_checked_as_a_configuration(self, training, given, message):
        """Ranges and contradictions are found without starting a kernel."""
        with pytest.raises(ConfigError) as caught:
            check_parameters(training, {"preset": "smoke", **given})
        assert message in str(caught.value)

    @pytest.mark.slow
    def test_no_gpu_is_said_before_a_kernel_starts(self, training, monkeypatch):
        """The preset auto needs a GPU."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(StackError, match="preset: expected a GPU for 'auto', got 'no GPU'"):
            check_parameters(training, {})


@pytest.mark.usefixtures("runs_folder", "no_kernel")
class TestRefusing:
    """What stops a run before a kernel starts."""

    def test_other_parameters_than_the_earlier_run(self, training, runs_folder):
        """A run of the same name with other parameters is left alone."""
        folder = runs_folder / "one"
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {"parameters": {"batch_size": 99}})
        with pytest.raises(RunError, match=r"the parameters of the earlier run one, got .*batch_size: 99 -> 4"):
            run_notebook(str(training), {"preset": "smoke"}, run_name="one")

    def test_a_folder_that_no_run_made(self, training, small, runs_folder):
        """A folder with something else in it is left alone, by notebooks with a task and without."""
        (runs_folder / "mine").mkdir(parents=True)
        (runs_folder / "mine" / "diary.txt").write_text("x")
        with pytest.raises(RunError, match=r"diary\.txt"):
            run_notebook(str(training), {"preset": "smoke"}, run_name="mine")
        with pytest.raises(RunError, match="a new folder or one of an earlier run"):
            run_notebook(str(small), {}, run_name="mine")

    @pytest.mark.parametrize("left", [(".executing",), (".lock", ".lock.json"), ("notebook.ipynb",)])
    def test_a_run_that_ended_before_its_first_cell_can_be_run_again(self, small, runs_folder, left):
        """It left hidden files at most, and these are no one else's."""
        (runs_folder / "x").mkdir(parents=True)
        for name in left:
            (runs_folder / "x" / name).touch()
        assert _open_folder("x").path == runs_folder / "x"

    @pytest.mark.parametrize("name", ["small", "training"])
    def test_a_run_that_another_process_is_writing(self, small, training, runs_folder, name):
        """The executed copy of a run whose kernel still lives is not overwritten; the message names the process."""
        run = runs_folder / "x"
        hold_lock(run)
        (run / "notebook.ipynb").write_text("of the living run")
        path, given = {"small": (small, {}), "training": (training, {"preset": "smoke"})}[name]
        with pytest.raises(RunError, match=rf"^run_name: .*held by process {os.getpid()} on .* Wait for it to end"):
            run_notebook(str(path), given, run_name="x")
        assert (run / "notebook.ipynb").read_text() == "of the living run"
        release_lock(run)

    def test_a_notebook_that_another_process_executes(self, small, runs_folder):
        """Of two runners that start at the same time one is refused, before either kernel has taken the run's lock."""
        code = (
            "import sys, pathlib; from helpers.core.lock import hold_lock;"
            "hold_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", code, str(runs_folder / "x" / ".executing")]
        (runs_folder / "x").mkdir(parents=True)
        (runs_folder / "x" / "notebook.ipynb").write_text("of the other runner")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(RunError, match=f"held by process {other.pid} on "):
                run_notebook(str(small), {}, run_name="x")
            other.stdin.close()
        assert (runs_folder / "x" / "notebook.ipynb").read_text() == "of the other runner"

    def test_resume_must_without_an_earlier_run(self, training):
        """To insist on an earlier run is refused when there is none."""
        with pytest.raises(RunError, match="because resume is must"):
            run_notebook(str(training), {"preset": "smoke"}, run_name="new", resume="must")

    @pytest.mark.parametrize("name", ["../out", "/", "a/b", ".hidden"])
    def test_a_name_that_leaves_the_runs(self, small, training, name):
        """A run's name is a plain folder name."""
        with pytest.raises(ConfigError, match="run_name"):
            run_notebook(str(training), {"preset": "smoke"}, run_name=name)
        with pytest.raises(ConfigError, match="run_name"):
            run_notebook(str(small), {}, run_name=name)

    def test_two_names(self, training):
        """A name given in two ways with two values is refused."""
        with pytest.raises(ConfigError, match="run_name: expected one value, got 'a and b'"):
            run_notebook(str(training), {"preset": "smoke", "run_name": "b"}, run_name="a")

    def test_resume_for_a_notebook_that_has_none(self, small):
        """`resume` is a parameter like others."""
        with pytest.raises(ConfigError, match="resume: expected the name of a parameter of small"):
            run_notebook(str(small), {}, resume="never")


GOOD = """\
import os, sys
from helpers.core.errors import HelpersError
print(sys.executable, os.getcwd())
for i in range(count): print("line", i, repr(name), rate, loud, limit)"""

BAR = """\
for i in range(3): print(f"\\r{i + 1} of 3", end="")
print()
print("no end", end="", flush=True)
print("progress", file=sys.stderr)"""

WIDGET = """\
import ipywidgets
from IPython.display import display
display(ipywidgets.IntSlider(3))"""


@pytest.fixture(scope="class")
def finished(tmp_path_factory):
    """A notebook that ran: its executed copy, as JSON and as text, and what was reported."""
    folder = tmp_path_factory.mktemp("a {odd} name")
    foreign = folder / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Foreign", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    path = write_notebook(
        folder / "good.ipynb", "# Title\n\n## 1. Print", GOOD, "## No number", "## 2.1 More", BAR, WIDGET
    )
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELPERS_RUNS_DIR", str(folder / "runs"))
        patch.setenv("JUPYTER_DATA_DIR", str(folder / "jupyter"))
        patch.chdir(folder)
        copy = run_notebook(str(path), {"name": "Zoë", "rate": "2e-4"}, run_name="good", report=lines.append)
    return {"copy": copy, "text": copy.read_text(), "lines": lines, "folder": folder, "source": path}


class TestRunning:
    """A notebook that runs to its end."""

    def test_the_executed_copy_is_in_the_run_directory(self, finished):
        """It is runs/<name>/notebook.ipynb, beside nothing else."""
        assert finished["copy"] == finished["folder"] / "runs" / "good" / "notebook.ipynb"
        assert sorted(path.name for path in finished["copy"].parent.iterdir()) == [".executing", "notebook.ipynb"]

    def test_lines_and_numbered_headings_are_reported(self, finished):
        """Of a progress bar the last state is shown; stderr is not."""
        import sys

        assert finished["lines"][1:] == [
            "\n## 1. Print",
            f"{sys.executable} {finished['folder']}",
            "line 0 'Zoë' 0.0002 False None",
            "line 1 'Zoë' 0.0002 False None",
            "\n## 2.1 More",
            "3 of 3",
            "no end",
        ]

    def test_the_kernel_is_this_interpreters(self, finished):
        """A kernel installed under the name python3 in the user's folder does not matter."""
        assert "Foreign" not in finished["text"]

    def test_widgets_and_local_paths_are_left_out(self, finished):
        """The copy has neither widget state nor paths, and says how long cells took."""
        assert "widget-view" not in finished["text"]
        assert "widgets" not in json.loads(finished["text"])["metadata"]
        assert "good.ipynb" not in finished["text"]
        assert json.loads(finished["text"])["cells"][3]["metadata"]["papermill"].keys() == {"duration"}

    def test_what_is_printed_is_one_text(self):
        """However many pieces came; a word for a widget that a cell returns, and nothing for one that it displays."""
        import nbformat
        from nbformat.v4 import new_code_cell, new_notebook, new_output

        view = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%|   | 0/272"}
        outputs = [
            new_output("stream", text="I'm "),
            new_output("display_data", data=view),
            new_output("stream", text="glad.\n"),
            new_output("stream", name="stderr", text="hm\n"),
            new_output("execute_result", data=view),
        ]
        text = executed_text(new_notebook(cells=[new_code_cell("1", outputs=outputs)]))
        first, second, third = nbformat.reads(text, 4).cells[0].outputs
        assert (first.text, second.text) == ("I'm glad.\n", "hm\n")
        assert third.data == {"text/plain": "(to be used in a running notebook)"}

    def test_the_notebook_is_not_changed(self, finished):
        """Outputs stand in the copy alone."""
        assert '"outputs": []' in finished["source"].read_text()
        assert "Zoë" not in finished["source"].read_text()


def run_failing(tmp_path, monkeypatch, *sources):
    """Run cells that fail; return the error, what was reported, and the executed copy."""
    monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path / "runs"))
    path, lines = write_notebook(tmp_path / "bad.ipynb", "# Title\n\n## 3. Train", *sources), []
    with pytest.raises(CellError) as caught:
        run_notebook(str(path), {}, run_name="bad", report=lines.append)
    return caught.value, "\n".join(lines), (tmp_path / "runs" / "bad" / "notebook.ipynb").read_text()


class TestFailing:
    """A notebook that does not run to its end."""

    def test_a_cell_that_raises_is_shown(self, tmp_path, monkeypatch):
        """Place, source and a shortened traceback are reported, and the copy is kept; later cells are not run."""
        sources = ("import json\n\njson.loads('{')", "print('never')")
        error, reported, copy = run_failing(tmp_path, monkeypatch, *sources)
        assert (
            str(error) == "cell 3 of 4, In [2], under \"3. Train\": expected a cell that runs, got 'JSONDecodeError'."
        )
        assert 'Cell 3 of 4, In [2], under "3. Train", failed:\n\n    import json\n\n    json.loads' in reported
        assert "more frames" in reported
        assert "JSONDecodeError: Expecting property name" in reported
        assert "notebook.ipynb" in reported.splitlines()[-1]
        assert "\x1b" not in reported
        assert "JSONDecodeError" in copy
        assert "never\n" not in reported

    def test_a_helpers_error_has_no_traceback(self, tmp_path, monkeypatch):
        """An error that users are meant to read is shown alone."""
        source = "from helpers.core.errors import DataError\nraise DataError('row 3', 'an answer', '', 'Fill it in.')"
        _, reported, _ = run_failing(tmp_path, monkeypatch, source)
        assert "\n\nDataError: row 3: expected an answer, got ''. Fill it in.\n\n" in reported
        assert "---->" not in reported

    def test_a_kernel_that_is_killed_is_reported(self, tmp_path, monkeypatch):
        """SIGKILL, as sent when memory runs out, is named; what was printed before is kept."""
        source = "import os, signal\nprint('before', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
        error, reported, copy = run_failing(tmp_path, monkeypatch, source)
        assert "expected a kernel that lives, got 'SIGKILL'. Most often memory ran out" in str(error)
        assert "The kernel died: SIGKILL." in reported
        assert "before" in copy

    def test_leaving_early_is_a_failure(self, tmp_path, monkeypatch):
        """Papermill takes sys.exit(0) for success, although the cells below are not run."""
        error, reported, _ = run_failing(tmp_path, monkeypatch, "import sys\nsys.exit(0)", "print('never')")
        assert error.got == "SystemExit"
        assert "SystemExit(0): the cells below were not run" in reported

    @pytest.mark.parametrize("after", [["print('never')"], []], ids=["in the middle", "in the last cell"])
    def test_an_error_that_ipython_cannot_show_is_a_failure(self, tmp_path, monkeypatch, after):
        """Memory runs out while IPython formats one: the cell has no error output, and papermill finds none."""
        broken = "def broken(*_, **__):\n    raise MemoryError\nget_ipython()._showtraceback = broken"
        broken += "\nget_ipython().showtraceback = broken"
        error, reported, copy = run_failing(tmp_path, monkeypatch, broken, "1 / 0", *after)
        assert error.field == f'cell 4 of {4 + len(after)}, In [3], under "3. Train"'
        assert error.got == "MemoryError"
        assert '"output_type": "error"' not in copy
        assert "    1 / 0\n\nMemoryError: most often, memory ran out" in reported

    def test_a_cell_without_end_is_ended(self, tmp_path, monkeypatch):
        """The error names the cell and the limit; without one a cell may take as long as it likes."""
        monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path / "runs"))
        path = write_notebook(tmp_path / "bad.ipynb", "# Title", "while True:\n    pass", "print('never')")
        with pytest.raises(CellError, match=r"^cell 3 of 4.*: expected a cell that ends within 1 s") as caught:
            run_notebook(str(path), {}, run_name="bad", cell_timeout=1, report=[].append)
        assert caught.value.remedy == "Raise --cell-timeout (0 for no limit) if it does need longer."

    def test_a_cell_that_was_not_run_is_a_failure(self):
        """Also when no cell says why."""
        cells = [
            nbformat.v4.new_code_cell(source, execution_count=n) for source, n in (("1", 1), ("", None), ("2", None))
        ]
        with pytest.raises(CellError, match=r"^cell 3 of 3: expected a cell that is run"):
            _check_all_ran(cells, {})
        _check_all_ran(cells[:2], {})

    def test_a_secret_that_is_printed_is_removed_and_fails_the_run(self, tmp_path, monkeypatch):
        """Neither the report nor the copy shows the token."""
        monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
        error, reported, copy = run_failing(tmp_path, monkeypatch, "import os\nprint(os.environ['HF_TOKEN'])")
        assert str(error).startswith("bad.ipynb: expected no cell that prints a secret, got 'HF_TOKEN'.")
        assert "secret-of-mine" not in reported + copy
        assert "[removed: HF_TOKEN]" in reported


class TestUpstream:
    """Work-arounds that may go one day."""

    def test_papermill_still_only_warns_about_unknown_parameters(self):
        """When papermill raises for them (its issue 667), the check by name can go."""
        import inspect

        import papermill.execute

        assert 'logger.warning(f"Passed unknown parameter' in inspect.getsource(papermill.execute)

    def test_papermill_still_takes_an_early_exit_for_success(self):
        """When papermill fails a run that sys.exit(0) ends, the search for error outputs can go."""
        import inspect

        import papermill.execute

        assert "has_sys_exit" in inspect.getsource(papermill.execute)
