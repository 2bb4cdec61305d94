"""Run directories: written whole or not at all, continued, replaced or refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.core import runs
from helpers.core.config import build_config
from helpers.core.config_file import write_config
from helpers.core.errors import ConfigError, HelpersError, RunError
from helpers.core.files import read_json, write_json
from helpers.core.runs import (
    RunDirectory,
    check_run,
    finite,
    git_commit,
    open_run,
    runs_root,
)

PARAMETERS = {"preset": "smoke", "max_steps": 4, "learning_rate": 2e-4, "system_prompt": "ü"}


def copied_to(folder):
    """Return the module of run directories as it is in a package that lies in a folder."""
    (folder / "helpers" / "core").mkdir(parents=True)
    path = shutil.copy(runs.__file__, folder / "helpers" / "core")
    spec = importlib.util.spec_from_file_location("copied_runs", path)
    module = sys.modules["copied_runs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(folder, *words) -> str:
    """Return what git says in a folder, to somebody without settings."""
    who = {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    settings = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(["git", *words], cwd=folder, env=settings, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def error_of(call, *arguments, **named) -> RunError:
    """Return the RunError that a call raises."""
    with pytest.raises(RunError) as caught:
        call(*arguments, **named)
    return caught.value


def test_finite_numbers_stay():
    """NaN and infinity, which JSON cannot hold, become None."""
    assert [finite(x) for x in (1.5, 0, None, float("nan"), float("inf"))] == [1.5, 0, None, None, None]


class TestRoot:
    """Where runs are kept."""

    def test_the_environment_decides(self, runs_folder):
        """HELPERS_RUNS_DIR names the folder."""
        assert runs_root() == runs_folder

    def test_a_file_is_no_place_for_runs(self, tmp_path, monkeypatch):
        """The error names the variable, and so does that about a path that cannot be one."""
        (tmp_path / "file").touch()
        monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path / "file"))
        with pytest.raises(ConfigError) as caught:
            runs_root()
        assert str(caught.value) == (
            f"HELPERS_RUNS_DIR: expected a folder, got {str(tmp_path / 'file')!r}. A file is in its place: name "
            "another folder."
        )
        monkeypatch.setenv("HELPERS_RUNS_DIR", "~nobody-of-this-name/runs")
        with pytest.raises(ConfigError, match=r"^HELPERS_RUNS_DIR: "):
            runs_root()

    def test_a_checkout_keeps_them_beside_the_package(self, monkeypatch, tmp_path):
        """In a checkout it is `runs/` at its root, whatever the working directory."""
        monkeypatch.delenv("HELPERS_RUNS_DIR", raising=False)
        monkeypatch.chdir(tmp_path)
        root = runs_root()
        assert root.name == "runs"
        assert (root.parent / "helpers" / "core" / "runs.py").is_file()

    def test_an_installed_package_uses_the_working_directory(self, monkeypatch, tmp_path):
        """Without a checkout it is `runs/` in the working directory."""
        monkeypatch.delenv("HELPERS_RUNS_DIR", raising=False)
        monkeypatch.chdir(tmp_path)
        assert copied_to(tmp_path / "site-packages").runs_root() == tmp_path / "runs"


class TestDirectory:
    """One run's folder."""

    def test_its_places(self, tmp_path):
        """Adapter and checkpoints have folders of their own."""
        run = RunDirectory(tmp_path / "x")
        assert (run.adapter, run.checkpoints) == (tmp_path / "x" / "adapter", tmp_path / "x" / "checkpoints")

    def test_manifest_and_metrics_grow(self, tmp_path):
        """Entries are added, and replaced by later ones of the same name."""
        run = RunDirectory(tmp_path / "x")
        assert (run.manifest(), run.metrics()) == ({}, {})
        run.update_manifest(seed=1, state="running")
        run.update_manifest(state="complete")
        run.update_metrics(eval_loss_before=2.5)
        assert run.manifest() == {"seed": 1, "state": "complete"}
        assert run.metrics() == {"eval_loss_before": 2.5}

    def test_paths_are_shown_as_people_type_them(self, tmp_path, monkeypatch):
        """A path below the working directory is shown relative to it."""
        run = RunDirectory(tmp_path / "runs" / "x")
        monkeypatch.chdir(tmp_path)
        assert run.shown("loss.png") == os.path.join("runs", "x", "loss.png")
        assert run.shown() == os.path.join("runs", "x")
        (tmp_path / "a" / "long" / "way" / "down").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "a" / "long" / "way" / "down")
        assert RunDirectory(Path("/r")).shown("loss.png") == "/r/loss.png"

    def test_the_fingerprint_is_of_what_decides_the_result(self, tmp_path):
        """Not of the order of the parameters, nor of those that change no weight."""
        prints = []
        for name, changes in {"a": {}, "b": {"save_steps": 9}, "c": {"max_steps": 9}}.items():
            run = RunDirectory(tmp_path / name)
            parameters = {**PARAMETERS, **changes}
            run.update_manifest(parameters=dict(reversed(parameters.items())) if name == "b" else parameters)
            prints.append(run.fingerprint())
        assert prints[0] == prints[1] != prints[2]
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in prints)


class TestOpening:
    """New runs, earlier ones, and folders that are neither."""

    def test_a_new_run(self, runs_folder):
        """The folder is made, with the parameters in its manifest."""
        run = open_run("x", PARAMETERS)
        assert run.path == runs_folder / "x"
        assert run.manifest()["parameters"] == PARAMETERS

    def test_the_manifest_says_since_when_and_how_often_it_ran(self, runs_folder):
        """What was known before a continuation stays, and what the cell knows is added."""
        run = open_run("x", PARAMETERS, gpu="T4")
        run.update_manifest(started="2026-01-01T00:00:00+00:00")
        began = {
            "parameters": PARAMETERS,
            "run_id": run.run_id(),
            "git_commit": git_commit(),
            "started": "2026-01-01T00:00:00+00:00",
            "resumed": [],
            "resume": "auto",
            "state": "running",
            "failure": None,
            "gpu": "T4",
        }
        assert run.manifest() == began
        run.finish()
        finished = {name: run.manifest()[name] for name in ("finished", "number")}
        assert (run.manifest()["state"], finished["number"]) == ("complete", 1)
        open_run("x", PARAMETERS)
        run.update_manifest(resumed=["2026-01-03T00:00:00+00:00"])
        open_run("x", PARAMETERS, resume="must")
        again = run.manifest()["resumed"]
        assert again[0] == "2026-01-03T00:00:00+00:00" < finished["finished"] <= again[1]
        assert run.manifest() == {**began, **finished, "resumed": again, "resume": "must"}
        new = open_run("x", PARAMETERS, resume="never").manifest()
        assert (new["started"] >= again[1], new["resumed"], "number" in new) == (True, [], False)

    def test_times_are_in_utc(self):
        """So that runs of several machines can be sorted."""
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", runs.now())

    def test_a_folder_that_cannot_be_made_is_named(self, monkeypatch, tmp_path):
        """With what the system says, and what to do."""
        (tmp_path / "file").touch()
        monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path / "file" / "runs"))
        error = error_of(open_run, "x", PARAMETERS)
        assert (error.field, error.expected, error.got, error.remedy) == (
            str(tmp_path / "file" / "runs" / "x"),
            "a folder that can be written",
            "Not a directory",
            "Check its permissions, or set HELPERS_RUNS_DIR to another folder.",
        )

        def odd(*_, **__):
            raise OSError("odd")

        monkeypatch.setattr(Path, "mkdir", odd)
        monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path))
        assert error_of(open_run, "x", PARAMETERS).got == "odd"

    def test_a_run_left_only_in_persist_dir_is_an_earlier_one(self, runs_folder, tmp_path):
        """Its parameters are held against the new ones, though the run's own folder is gone."""
        parameters = {**PARAMETERS, "persist_dir": str(tmp_path / "drive")}
        RunDirectory(tmp_path / "drive" / "x").update_manifest(parameters=parameters)
        assert check_run("x", parameters) is True
        assert check_run("x", parameters, resume="must") is True
        assert check_run("x", parameters, resume="never") is False
        assert check_run("y", parameters) is False
        assert error_of(check_run, "x", {**parameters, "max_steps": 8}).got == "max_steps: 4 -> 8"
        (tmp_path / "drive" / "x" / "manifest.json").write_text("{")
        assert check_run("x", parameters, resume="never") is False
        with pytest.raises(ConfigError, match=r"^persist_dir: "):
            check_run("x", {**PARAMETERS, "persist_dir": "~nobody-of-this-name/runs"})

    def test_a_run_has_an_id_of_its_own(self, runs_folder):
        """The id stays when a run is continued, and changes when it is started over."""
        assert RunDirectory(runs_folder / "x").run_id() == ""
        first = open_run("x", PARAMETERS).manifest()["run_id"]
        assert open_run("x", PARAMETERS).manifest()["run_id"] == first
        assert open_run("x", PARAMETERS, resume="never").manifest()["run_id"] != first

    def test_auto_continues_an_equal_run(self, runs_folder):
        """What the earlier run left is kept."""
        open_run("x", PARAMETERS).update_metrics(step=3)
        assert open_run("x", PARAMETERS).metrics() == {"step": 3}

    def test_never_starts_over(self, runs_folder):
        """What the earlier run left is removed, but for the notebook that is being executed into it."""
        run = open_run("x", PARAMETERS)
        run.update_metrics(step=3)
        (run.checkpoints / "checkpoint-3").mkdir(parents=True)
        (run.path / "notebook.ipynb").write_text("{}")
        open_run("x", {**PARAMETERS, "max_steps": 9}, resume="never")
        assert sorted(os.listdir(run.path)) == ["manifest.json", "notebook.ipynb"]
        assert run.manifest()["parameters"]["max_steps"] == 9

    @pytest.mark.parametrize("stuck", ["a.txt", "metrics.json", "z.txt"])
    def test_a_run_that_cannot_be_cleared_is_a_run_still(self, runs_folder, monkeypatch, stuck):
        """The manifest goes last: else the next start would find a stranger's folder, and leave it alone for ever."""
        run = open_run("x", PARAMETERS)
        for name in ("a.txt", "metrics.json", "z.txt", ".hidden"):
            (run.path / name).write_text("{}")
        unlink = Path.unlink

        def refuse(path, missing_ok=False):
            if path.name == stuck:
                raise PermissionError(13, "Permission denied")
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refuse)
            assert error_of(open_run, "x", PARAMETERS, resume="never").got == "Permission denied"
        assert {stuck, "manifest.json", ".hidden"} <= set(os.listdir(run.path))
        open_run("x", PARAMETERS, resume="never")
        assert sorted(os.listdir(run.path)) == [".hidden", "manifest.json"]

    def test_never_does_not_follow_links(self, runs_folder, tmp_path):
        """A link in the folder is removed, and what it leads to stays."""
        run = open_run("x", PARAMETERS)
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("a")
        (run.path / "link").symlink_to(tmp_path / "precious")
        open_run("x", PARAMETERS, resume="never")
        assert (tmp_path / "precious" / "file").exists()
        assert not (run.path / "link").is_symlink()

    def test_must_insists_on_an_earlier_run(self, runs_folder):
        """Without one it is an error, with one it goes on."""
        assert str(error_of(open_run, "x", PARAMETERS, resume="must")) == (
            "run_name: expected the name of an earlier run, because resume is must, got 'x'. Check the name, or use "
            'resume = "auto".'
        )
        assert not (runs_folder / "x").exists()
        open_run("x", PARAMETERS)
        assert open_run("x", PARAMETERS, resume="must").path == runs_folder / "x"

    @pytest.mark.parametrize("resume", ["alway", "", None, True])
    def test_another_word_is_an_error(self, runs_folder, resume):
        """`resume` takes three words, and nothing is made for another."""
        with pytest.raises(HelpersError) as caught:
            open_run("x", PARAMETERS, resume=resume)
        assert str(caught.value).startswith(f"resume: expected one of auto, never, must, got {resume!r}. ")
        assert not (runs_folder / "x").exists()

    @pytest.mark.parametrize("resume", ["auto", "must"])
    def test_changed_parameters_are_named(self, runs_folder, resume):
        """A run with other parameters is not continued; the error lists old and new values."""
        open_run("x", PARAMETERS)
        error = error_of(open_run, "x", {**PARAMETERS, "max_steps": 8, "preset": "colab-t4"}, resume=resume)
        assert (error.field, error.expected) == ("run_name", "the parameters of the earlier run x")
        assert error.got == "max_steps: 4 -> 8; preset: 'smoke' -> 'colab-t4'"
        assert error.remedy == 'Choose another run_name, or resume="never" to start over.'

    @pytest.mark.parametrize("resume", ["auto", "never", "must"])
    def test_a_foreign_folder_is_left_alone(self, runs_folder, resume):
        """A folder with files and no manifest is refused, and nothing in it is touched."""
        (runs_folder / "x").mkdir(parents=True)
        (runs_folder / "x" / "thesis.txt").write_text("a")
        for name in "abcde":
            (runs_folder / "x" / name).touch()
        error = error_of(open_run, "x", PARAMETERS, resume=resume)
        assert (error.field, error.expected, error.got, error.remedy) == (
            "run_name",
            "a new folder or one of an earlier run",
            f"{runs_folder / 'x'} with a, b, c, d, e",
            "It has no manifest.json, so it is left alone. Choose another run_name.",
        )
        assert sorted(os.listdir(runs_folder / "x")) == [*"abcde", "thesis.txt"]

    def test_a_folder_with_only_the_notebook_is_new(self, runs_folder):
        """The runner puts the executed copy there first."""
        (runs_folder / "x").mkdir(parents=True)
        (runs_folder / "x" / "notebook.ipynb").write_text("{}")
        assert open_run("x", PARAMETERS).manifest()["parameters"] == PARAMETERS

    @pytest.mark.parametrize("resume", ["auto", "never"])
    def test_a_link_is_refused(self, runs_folder, tmp_path, resume):
        """A run's folder that leads elsewhere is not written to."""
        (tmp_path / "elsewhere").mkdir()
        runs_folder.mkdir()
        (runs_folder / "x").symlink_to(tmp_path / "elsewhere")
        assert error_of(open_run, "x", PARAMETERS, resume=resume).expected == "the name of a folder"
        assert os.listdir(tmp_path / "elsewhere") == []

    def test_a_file_is_refused(self, runs_folder):
        """A file of the run's name is not replaced."""
        runs_folder.mkdir()
        (runs_folder / "x").write_text("a")
        error = error_of(open_run, "x", PARAMETERS)
        assert (error.field, error.expected, error.got, error.remedy) == (
            "run_name",
            "the name of a folder",
            str(runs_folder / "x"),
            "A link or a file is left alone.",
        )

    @pytest.mark.parametrize(("problem", "got"), [(OSError("odd"), "odd"), (PermissionError(13, "No"), "No")])
    def test_a_folder_that_cannot_be_read_is_named(self, runs_folder, monkeypatch, problem, got):
        """With what the system says."""

        def refuse(_):
            raise problem

        (runs_folder / "x").mkdir(parents=True)
        monkeypatch.setattr(Path, "iterdir", refuse)
        error = error_of(open_run, "x", PARAMETERS)
        assert (error.field, error.expected, error.got, error.remedy) == (
            str(runs_folder / "x"),
            "a folder that can be read",
            got,
            "Check its permissions.",
        )

    @pytest.mark.parametrize("content", ["{", "[]", "", '{"parameters": [1]}', '{"parameters": "x"}'])
    @pytest.mark.parametrize("resume", ["auto", "must"])
    def test_a_damaged_manifest_is_an_error(self, runs_folder, content, resume):
        """What an earlier run was cannot be read, so its folder is left alone unless the user wants to start over."""
        run = open_run("x", PARAMETERS)
        (run.path / "manifest.json").write_text(content)
        (run.path / "metrics.json").write_text("{}")
        assert error_of(open_run, "x", PARAMETERS, resume=resume).field == str(run.path / "manifest.json")
        assert sorted(os.listdir(run.path)) == ["manifest.json", "metrics.json"]

    def test_parameters_that_are_a_list_are_shown(self, runs_folder):
        """The error names the file and what stands there."""
        run = open_run("x", PARAMETERS)
        run.update_manifest(parameters=[1])
        error = error_of(open_run, "x", PARAMETERS)
        assert (error.expected, error.got, error.remedy) == ("an object of parameters", [1], "Choose another run_name.")

    def test_checking_only_reads(self, runs_folder):
        """Whether a run would be continued can be asked without making anything."""
        assert check_run("x", PARAMETERS) is False
        assert not runs_folder.exists()
        open_run("x", PARAMETERS)
        assert check_run("x", PARAMETERS) is True
        assert check_run("x", PARAMETERS, resume="never") is False
        assert error_of(check_run, "x", {}).field == "run_name"


@pytest.mark.usefixtures("runs_folder")
class TestFailing:
    """What a run that stops leaves in its manifest."""

    @pytest.mark.parametrize(
        ("error", "state", "failure"),
        [
            (ValueError("bad hf_" + "a1" * 17), "failed", "ValueError: bad [removed: token]"),
            (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: "),
            (ValueError("x" * 2000), "failed", "ValueError: " + "x" * 988),
        ],
        ids=["error", "interrupt", "long"],
    )
    def test_the_error_is_written_down(self, error, state, failure):
        """Without secrets, 1,000 characters at most; whoever interrupts a run may go on with it."""
        run = open_run("x", PARAMETERS)
        run.mark_failed(error)
        assert (run.manifest()["state"], run.manifest()["failure"]) == (state, failure)
        assert open_run("x", PARAMETERS).manifest()["failure"] is None

    def test_what_is_complete_stays_complete(self):
        """A cell that fails afterwards spoils no run, and a manifest that cannot be read hides no error."""
        run = open_run("x", PARAMETERS)
        run.finish()
        run.mark_failed(ValueError("later"))
        assert (run.manifest()["state"], run.manifest()["failure"]) == ("complete", None)
        (run.path / "manifest.json").write_text("{")
        run.mark_failed(ValueError("later"))
        assert (run.path / "manifest.json").read_text() == "{"


class TestCommit:
    """Which state of the project made a run."""

    @pytest.fixture
    def checkout(self, tmp_path):
        """The package in a checkout with one commit."""
        made = copied_to(tmp_path / "checkout")
        git(tmp_path / "checkout", "init", "--quiet")
        (tmp_path / "checkout/.git/info/exclude").write_text("__pycache__/")
        git(tmp_path / "checkout", "add", "helpers/core/runs.py")
        git(tmp_path / "checkout", "commit", "--quiet", "--message", "All there is")
        return made

    def test_it_is_the_checkout_s(self, checkout, tmp_path):
        """The commit has a mark when files differ from it."""
        commit = git(tmp_path / "checkout", "rev-parse", "HEAD")
        assert len(commit) == 40
        assert checkout.git_commit() == commit
        (tmp_path / "checkout" / "README.md").write_text("new")
        assert checkout.git_commit() == f"{commit}+changes"

    def test_a_broken_checkout_has_none(self, checkout, tmp_path):
        """What git cannot read is no error."""
        (tmp_path / "checkout" / ".git" / "HEAD").unlink()
        assert checkout.git_commit() is None

    def test_without_git_there_is_none(self, checkout, monkeypatch):
        """A machine without git is no error."""
        monkeypatch.setenv("PATH", "")
        assert checkout.git_commit() is None

    def test_outside_a_checkout_there_is_none(self, checkout, tmp_path):
        """An installed package has no commit, even inside someone else's repository."""
        assert copied_to(tmp_path / "checkout" / "site-packages").git_commit() is None


def test_manifests_are_plain_json(runs_folder):
    """Any JSON reader can read what a run leaves."""
    run = open_run("x", PARAMETERS)
    assert json.loads((run.path / "manifest.json").read_text("utf-8")) == run.manifest()


@pytest.mark.usefixtures("runs_folder")
class TestDamagedManifest:
    """A crash left the manifest empty, or full of zeros."""

    @pytest.mark.parametrize("content", [b"", bytes(4096), b'{"parameters": '])
    def test_it_is_rebuilt_from_the_configuration(self, content):
        """Parameters and identity are in config.json, so that the run goes on; the manifest says so."""
        config = build_config("alpaca", preset="smoke", run_name="r")
        run = open_run("r", config.flat())
        write_config(run, config)
        before, prints = run.manifest(), run.fingerprint()
        (run.path / "manifest.json").write_bytes(content)
        assert check_run("r", config.flat())
        assert run.fingerprint() == prints
        again = open_run("r", config.flat())
        assert again.run_id() == before["run_id"]
        assert again.manifest()["task"] == "alpaca"
        assert again.manifest()["rebuilt"].startswith("20")

    def test_without_a_configuration_the_error_says_what_helps(self):
        """Nothing is deleted, and nobody is told to."""
        run = open_run("r", PARAMETERS)
        (run.path / "manifest.json").write_bytes(bytes(100))
        (run.path / "config.json").write_bytes(bytes(100))
        assert str(error_of(open_run, "r", PARAMETERS)) == (
            f"{run.path / 'manifest.json'}: expected a readable JSON file, got 'JSONDecodeError'. Restore it from a "
            'copy, such as the one in persist_dir, or start over with resume="never".'
        )

    @pytest.mark.parametrize("change", [{"task": "poetry"}, {"task": None}, {"max_steps": ...}])
    def test_another_version_s_configuration_rebuilds_nothing(self, change):
        """Of a task that is not known, or without a parameter of today, it says too little."""
        config = build_config("alpaca", preset="smoke", run_name="r")
        run = open_run("r", config.flat())
        write_config(run, config)
        values = {**read_json(run.path / "config.json"), **change}
        write_json(run.path / "config.json", {name: value for name, value in values.items() if value is not ...})
        (run.path / "manifest.json").write_bytes(b"")
        assert error_of(open_run, "r", config.flat()).expected == "a readable JSON file"

    def test_another_run_s_damage_stops_no_run(self):
        """When runs are counted, one that cannot be read is left out."""
        (open_run("broken", PARAMETERS).path / "manifest.json").write_text("{")
        run = open_run("r", PARAMETERS)
        run.finish()
        assert run.manifest()["number"] == 1

    def test_starting_over_needs_no_manifest(self):
        """With resume="never" a damaged one is no obstacle."""
        run = open_run("r", PARAMETERS)
        (run.path / "manifest.json").write_bytes(bytes(100))
        assert open_run("r", PARAMETERS, resume="never").manifest()["parameters"] == PARAMETERS


@pytest.mark.usefixtures("runs_folder")
class TestNumber:
    """Which run is the newest."""

    def test_runs_are_counted_as_they_end(self):
        """A clock that was far ahead when the first one ended does not make it the newer."""
        first = open_run("first", PARAMETERS)
        first.finish()
        first.update_manifest(finished="2999-10-23T00:00:00+00:00")
        second = open_run("second", PARAMETERS)
        second.finish(report="report.html")
        assert (first.manifest()["number"], second.manifest()["number"]) == (1, 2)
        assert second.manifest()["report"] == "report.html"
        assert second.manifest()["finished"] < first.manifest()["finished"]
