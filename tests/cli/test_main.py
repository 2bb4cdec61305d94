"""The command line: what it shows, and its exit status."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_notebooks import write_notebook

from helpers.__main__ import main
from helpers.core.files import write_json
from helpers.core.runs import RunDirectory
from helpers.core.summary import summarize

ROOT = Path(__file__).resolve().parents[2]

METRICS = {
    "eval_loss_before": 2.4985,
    "eval_loss_after": 2.4501,
    "eval_loss_change": {"mean": -0.0509, "low": -0.0744, "high": -0.0273, "rows": 8},
    "examples_per_second": 0.6756,
    "peak_memory_bytes": 2120847360,
}

WRITES = """\
import json, os, pathlib
folder = pathlib.Path(os.environ["HELPERS_RUNS_DIR"]) / run_name
(folder / "metrics.json").write_text(json.dumps({"eval_loss_before": 2.0, "eval_loss_after": 1.5}))
print("count is", count)"""

PARAMETERS = """\
run_name = None  # type: str  folder
preset = "auto"  # type: str  which
count = 2  # type: int  how many [lines]"""


class TestRun:
    """`python -m helpers run`."""

    def test_a_run_ends_with_its_summary(self, tmp_path, runs_folder, capfd):
        """What cells print is shown, then what the run found and made; the status is 0."""
        path = write_notebook(tmp_path / "a.ipynb", "# T\n\n## 1. Go", WRITES, parameters=PARAMETERS)
        assert main(["run", str(path), "--preset", "smoke", "--name", "mine", "-p", "count=7"]) == 0
        shown = capfd.readouterr()
        assert "## 1. Go\ncount is 7\n" in shown.out
        assert "held-out loss  2.000 -> 1.500 nats a token\n" in shown.out
        assert "mine/notebook.ipynb  the notebook, executed\n" in shown.out
        assert shown.err == ""

    def test_a_failing_cell_gives_status_1(self, tmp_path, runs_folder, capfd):
        """The cell is shown, and standard error has one line."""
        path = write_notebook(tmp_path / "a.ipynb", "# T\n\n## 1. Go", "1 / 0")
        assert main(["run", str(path)]) == 1
        shown = capfd.readouterr()
        assert "    1 / 0\n" in shown.out
        assert "ZeroDivisionError: division by zero" in shown.out
        last = shown.err.splitlines(keepends=True)[-1]  # a busy ipykernel may print a line of its own before
        assert (
            last == "error: cell 3 of 3, In [2], under \"1. Go\": expected a cell that runs, got 'ZeroDivisionError'.\n"
        )

    def test_a_library_that_cannot_write_gets_the_disk_s_error(self, tmp_path, runs_folder, capfd):
        """A notebook's own `map` writes into the cache of `datasets`, whose error says nothing of space or remedy."""
        path = write_notebook(tmp_path / "a.ipynb", "# T", "import os\nraise OSError(122, os.strerror(122))")
        assert main(["run", str(path)]) == 1
        shown = " ".join(capfd.readouterr().out.split())
        assert f"disk: expected room for what this cell writes, got '{os.strerror(122)} (" in shown
        assert "Free space or check permissions, and run again: what was there before is untouched." in shown

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-p", "cuont=3"], "error: cuont: expected the name of a parameter of a, got '3'. Did you mean count?\n"),
            (["-p", "count"], "error: -p: expected PARAMETER=VALUE, such as max_steps=60, got 'count'. Write no "),
            (["-p", "count=x"], "error: count: expected a whole number, got 'x'. Correct it, or leave it out"),
            (
                ["-p", "count=1", "-p", "count=2"],
                "error: count: expected one value, got '1 and 2'. Leave one of the two out.\n",
            ),
            (["--name", "../a"], "error: run_name: expected at most 100 letters, digits"),
        ],
    )
    def test_a_mistake_gives_status_2_and_one_line(self, tmp_path, runs_folder, capsys, arguments, message):
        """No traceback is shown, and no run directory is made."""
        path = write_notebook(tmp_path / "a.ipynb", "print(count)")
        assert main(["run", str(path), *arguments]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(message)
        assert shown.err.count("\n") == 1
        assert not runs_folder.exists()

    def test_help_lists_the_parameters(self, tmp_path, capsys):
        """Each has its type, default, help and unit."""
        path = write_notebook(tmp_path / "a.ipynb", "print(count)")
        assert main(["run", str(path), "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--resume" in shown
        assert "  limit                    int    None     end after this many [steps]\n" in shown
        assert "  name                     str    'Ann'    whom to greet\n" in shown

    def test_a_notebook_must_be_named(self, capsys):
        """`run` alone says how it is used, and fails."""
        assert main(["run"]) == 2
        assert "name a notebook" in capsys.readouterr().err

    def test_an_interrupt_is_no_traceback(self, tmp_path, monkeypatch, capsys):
        """Ctrl-C ends with the status that shells expect."""
        path = write_notebook(tmp_path / "a.ipynb", "print(count)")

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("papermill.execute_notebook", interrupt)
        assert main(["run", str(path)]) == 130
        assert capsys.readouterr().err == "interrupted\n"


class TestEnding:
    """What ends a run from outside."""

    @pytest.fixture
    def start(self, tmp_path):
        """Start `run` on a notebook whose last cell is busy without printing, in a process of its own."""
        path = write_notebook(tmp_path / "a.ipynb", "# T", "print('started', flush=True)\nwhile True:\n    pass")
        environment = {**os.environ, "HELPERS_RUNS_DIR": str(tmp_path / "runs")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        with subprocess.Popen([sys.executable, "-m", "helpers", "run", str(path)], **pipes) as process:
            while process.stdout.readline() != "started\n":
                assert process.poll() is None
            yield process
            process.kill()

    @pytest.mark.slow
    def test_a_termination_is_quiet(self, start):
        """SIGTERM ends it with status 143, no traceback of its own or of the kernel's."""
        start.send_signal(signal.SIGTERM)
        assert start.wait(timeout=60) == 143
        assert start.stderr.read() == ""

    @pytest.mark.slow
    def test_a_closed_pipe_is_noticed_at_once(self, start):
        """Though the cell would print nothing for hours."""
        start.stdout.close()
        assert start.wait(timeout=60) == 143
        assert start.stderr.read() == ""

    @pytest.mark.slow
    @pytest.mark.parametrize(("encoding", "shown"), [("ascii", "Zo? - 5 -> ?"), ("latin-1", "Zo\u00eb - 5 -> ?")])
    def test_a_terminal_without_unicode_ends_no_run(self, tmp_path, encoding, shown):
        """What it cannot show is written in ASCII, or as a question mark."""
        path = write_notebook(tmp_path / "a.ipynb", "# T", "print('Zo\u00eb \u2212 5 \u2192 \u65e5')")
        environment = {**os.environ, "HELPERS_RUNS_DIR": str(tmp_path / "runs"), "PYTHONIOENCODING": encoding}
        command = [sys.executable, "-m", "helpers", "run", str(path)]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout.decode(encoding).splitlines()

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a file that is always full")
    @pytest.mark.parametrize("command", ["list", pytest.param("run", marks=pytest.mark.slow)])
    def test_a_full_disk_under_what_is_printed_is_said(self, tmp_path, command):
        """`... > log` on a full disk: one line on standard error, no traceback, and no kernel is left behind."""
        path = write_notebook(tmp_path / "a.ipynb", "# T", "print('x')")
        command = [sys.executable, "-m", "helpers", command, *([str(path)] if command == "run" else [])]
        environment = {**os.environ, "HELPERS_RUNS_DIR": str(tmp_path / "runs")}
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
        assert done.returncode == 2
        assert done.stderr == (
            "error: stdout: expected room for what is printed, got 'No space left on device'. Free space, or send what "
            "is printed elsewhere.\n"
        )


class TestOthers:
    """The other commands."""

    def test_doctor_fails_when_there_is_a_problem(self, monkeypatch, capsys):
        """The report is printed, and the status tells scripts."""
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: ())
        assert main(["doctor"]) == 1
        assert "problem  torch: is missing" in capsys.readouterr().out

    def test_list_shows_names_and_titles(self, capsys):
        """Each notebook has a line."""
        assert main(["list"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "alpaca_instruction       Fine-tune Mistral-7B-Instruct on Alpaca-cleaned",
            "dolly_business           A business assistant from a thousand rows",
            "side_by_side_eval        Did the fine-tuning help?",
        ]

    def bare(self, *command, **variables):
        """Run a command in a Python that has nothing installed."""
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from helpers.__main__ import main; sys.exit(main())"
        start = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
        return subprocess.run(
            [*start, *command], capture_output=True, text=True, check=False, env=os.environ | variables
        )

    @pytest.mark.parametrize(
        "command",
        [
            ["doctor"],
            ["run", "alpaca_instruction", "--preset", "smoke"],
            ["run", "alpaca_instruction", "--help"],
            ["runs"],
            ["runs", "show", "begun"],
        ],
    )
    def test_without_the_packages_each_command_says_what_to_do(self, command, tmp_path):
        """In a Python that has nothing installed, one line and no traceback."""
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun" / "manifest.json").write_text('{"format": 1, "state": "running"}')
        (tmp_path / "begun" / ".lock").touch()
        done = self.bare(*command, HELPERS_RUNS_DIR=str(tmp_path))
        said = r"error: the package \w+ is not installed\. Run make doctor, which installs what is missing .*\n"
        assert re.fullmatch(said, done.stderr)
        assert done.returncode == 2

    @pytest.mark.parametrize(
        ("command", "said", "status"),
        [
            (["list"], "alpaca_instruction ", 0),
            (["runs"], "no runs in ", 0),
            (["plan", "--gpu", "t4"], "Fits: ", 0),
            (["data", str(ROOT / "helpers/data/samples/alpaca_train.jsonl")], "answers: 128; ", 0),
            (["plan"], "error: torch: expected torch to be installed, got None.", 2),
            (["runs", "show", "x"], "error: NAME: expected a run in ", 2),
            (["train", "x.json"], "x.json: expected a file that exists, got 'none'. Check the path", 2),
            (["compare", "x.json"], "x.json: expected a file that exists, got 'none'. Check the path", 2),
            (["chat", "x"], "error: adapter_dir: expected the name of a run, a run folder or an adapter folder", 2),
            (["eject", "x"], "error: run: expected a run whose training wrote train.py", 2),
        ],
    )
    def test_without_the_packages_what_needs_none_works(self, command, said, status, tmp_path):
        """Commands that read files need the standard library only; what they refuse, they refuse as ever."""
        done = self.bare(*command, HELPERS_RUNS_DIR=str(tmp_path))
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == status

    def test_it_starts_fast(self):
        """`python -m helpers list` imports none of the packages that take long."""
        code = (
            "import sys; from helpers.__main__ import main; main(['list']); "
            "print(sorted({'torch', 'papermill', 'nbformat', 'numpy', 'transformers'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr

    def test_an_unknown_command_is_refused(self, capsys):
        """Argparse names the commands that there are."""
        with pytest.raises(SystemExit) as caught:
            main(["teach"])
        assert caught.value.code == 2
        assert "doctor" in capsys.readouterr().err


class TestSummary:
    """What is shown of a run when it is done."""

    def test_numbers_answers_and_paths(self, tmp_path):
        """Loss with its interval, speed, memory, three answers evenly spaced, and what was made."""
        run = RunDirectory(tmp_path)
        run.update_metrics(**METRICS)
        answers = [{"instruction": f"Say\n {i}.", "answer": f"It is {i}."} for i in range(5)]
        write_json(tmp_path / "answers.json", {"answers": answers})
        (tmp_path / "adapter").mkdir()
        assert summarize(run) == (
            "held-out loss  2.498 -> 2.450 nats a token\n"
            "mean change    \u22120.051 (95 % interval \u22120.074 to \u22120.027, 8 rows, paired)\n"
            "speed          0.68 examples/s\n"
            "peak memory    2.0 GiB\n\n"
            "Q: Say 0.\nA: It is 0.\n\nQ: Say 2.\nA: It is 2.\n\nQ: Say 4.\nA: It is 4.\n\n"
            f"{run.shown('adapter')}       the LoRA adapter with its tokenizer\n"
            f"{run.shown('metrics.json')}  losses, speed, memory"
        )

    def test_long_answers_are_cut(self, tmp_path):
        """An answer takes three lines, a question one."""
        write_json(tmp_path / "answers.json", {"answers": [{"instruction": "why " * 50, "answer": "because " * 100}]})
        lines = summarize(RunDirectory(tmp_path)).splitlines()
        assert [line.endswith(" ...") for line in lines] == [True, False, False, True]
        assert max(map(len, lines)) <= 103

    def test_base_and_tuned_stand_beside_each_other(self, tmp_path):
        """A training's answers with those of its base, in two columns."""
        answer = {"instruction": "Why?", "base": "I think " * 10, "answer": "Because."}
        write_json(tmp_path / "answers.json", {"answers": [answer]})
        assert summarize(RunDirectory(tmp_path)) == (
            f"Q: Why?\n{'BASE':<48} | TUNED\n"
            f"{'I think I think I think I think I think I think':<48} | Because.\n"
            f"{'I think I think I think I think':<48} |"
        )

    def test_a_comparison_shows_its_first_two_arms(self, tmp_path):
        """Questions that only one arm answered are left out, and an empty answer is nothing."""
        prompts = [{"id": name, "text": f"Ask {name}."} for name in "ab"]
        answers = [("a", "base", ""), ("a", "tuned", "Yes."), ("b", "tuned", "No.")]
        found = {
            "prompts": prompts,
            "arms": [{"name": "base"}, {"name": "tuned"}],
            "answers": [{"prompt_id": prompt, "arm": arm, "text": text} for prompt, arm, text in answers],
        }
        write_json(tmp_path / "comparison.json", found)
        assert summarize(RunDirectory(tmp_path)) == (f"Q: Ask a.\n{'BASE':<48} | TUNED\n{'(nothing)':<48} | Yes.")

    def test_a_run_without_metrics_has_paths_alone(self, tmp_path):
        """What is not there is not mentioned."""
        (tmp_path / "notebook.ipynb").write_text("{}")
        assert summarize(RunDirectory(tmp_path)).count("\n") == 0
