"""Bad input of every kind: each is a HelpersError that says which field, what is expected, what came, what to do."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import bad_files
import bad_parameters
import bad_runs
import pytest

import helpers
from helpers.core.errors import HelpersError

CATALOGUE = [*bad_parameters.CASES, *bad_files.CASES, *bad_runs.CASES]
COMMANDS = bad_parameters.COMMANDS
PACKAGE = Path(helpers.__file__).parent
RAISED = {cls.__name__ for cls in HelpersError.__subclasses__()} | {"CellError"}
FOREIGN = re.compile(r"Traceback|json\.decoder|pyarrow\.lib|_csv\.Error|UnicodeDecodeError: ")


@pytest.fixture
def place(tmp_path, monkeypatch, runs_folder):
    """An empty folder beside that of the runs, in an environment that is put back."""
    for name in ("HELPERS_RUNS_DIR", "HELPERS_CACHE_DIR", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path / "cache")))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


class TestCatalogue:
    """Everything that a user gives, wrong in one way at a time."""

    def test_it_is_large(self):
        """There are more than three hundred cases, and no two have the same name."""
        names = [name for name, _, _ in CATALOGUE]
        assert len(names) > 300
        assert len(set(names)) == len(names)

    @pytest.mark.parametrize(("action", "words"), [case[1:] for case in CATALOGUE], ids=[case[0] for case in CATALOGUE])
    def test_it_is_refused_in_words(self, place, action, words):
        """The error has four parts, none of them empty, and names what was wrong."""
        with pytest.raises(HelpersError, match=words) as caught:
            action(place)
        error = caught.value
        assert all(isinstance(part, str) and part.strip() for part in (error.field, error.expected, error.remedy))
        assert error.args == (error.field, error.expected, error.got, error.remedy)
        assert not FOREIGN.search(str(error))
        assert bad_parameters.TOKEN not in str(error)

    @pytest.mark.parametrize(
        ("words", "said"), bad_parameters.COMMANDS, ids=[" ".join(c[0]) for c in bad_parameters.COMMANDS]
    )
    def test_the_command_line_says_it_in_one_line(self, place, capsys, words, said):
        """It ends with status 2; nobody sees a traceback or a token."""
        assert bad_parameters.command(words) == 2
        shown = capsys.readouterr()
        assert re.match(said, shown.err)
        assert shown.err.count("\n") == 1
        assert "Traceback" not in shown.out + shown.err
        assert bad_parameters.TOKEN not in shown.out + shown.err


class TestErrors:
    """The errors that the package raises."""

    @pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
    def test_each_says_what_to_do(self, path):
        """Every error that is written out in the package has a remedy."""
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        raised = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in RAISED]
        named = [call for call in raised if not any(isinstance(part, ast.Starred) for part in call.args)]
        bare = [call.lineno for call in named if len(call.args) + len(call.keywords) < 4]
        assert bare == []
