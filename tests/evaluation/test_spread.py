"""A comparison's work shared out among processes, and its configuration read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.__main__ import main
from helpers.cli.compare import read_evaluation
from helpers.core.errors import ConfigError
from helpers.evaluation.cache import do_each, exchange, own_batch
from helpers.evaluation.config import build_evaluation_config


@pytest.fixture
def second(monkeypatch):
    """The environment of the second of three processes."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)


def test_a_round_gives_each_process_a_batch(second):
    """The second process takes the second batch; where there are fewer batches than processes, it has none."""
    assert own_batch("abcdefgh", 3) == ["d", "e", "f"]
    assert own_batch("abcd", 3) == ["d"]
    assert own_batch("abc", 3) == []


def test_alone_a_process_does_everything(monkeypatch):
    """The first batch is its own, and values come in the items' order."""
    monkeypatch.delenv("RANK", raising=False)
    assert own_batch([4, 5, 6], 2) == [4, 5]
    assert do_each(["a", "bb"], len) == [1, 2]
    assert exchange({1: "x"}) == {1: "x"}


def test_values_of_several_processes_come_in_order(second, monkeypatch):
    """The second of three does items 1 and 4, and gets the others' values from them."""
    asked = []
    others = [{0: "zero", 3: "three"}, None, {2: "two"}]

    def all_gather_object(values, own):
        values[:] = [own if part is None else part for part in others]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert do_each(range(5), lambda item: asked.append(item) or f"own {item}") == [
        "zero", "own 1", "two", "three", "own 4",
    ]  # fmt: skip
    assert asked == [1, 4]


@pytest.mark.parametrize("chosen", [{"arms": "base,tuned"}, {"mode": "aa"}])
def test_a_comparisons_configuration_is_read_back(tmp_path, chosen):
    """Every parameter comes out as it went in, from the file or from its folder."""
    config = build_evaluation_config(preset="smoke", run_name="mine", max_new_tokens=7, **chosen)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "side_by_side", "folder": "/", **config.flat()}))
    assert read_evaluation(path) == read_evaluation(tmp_path) == config


@pytest.mark.parametrize("values", [{"kind": None}, {"run_name": None}, {"preset": 3}])
def test_a_trainings_configuration_is_refused(tmp_path, values):
    """The message says what would be right, and which command takes the other kind."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "side_by_side", "preset": "smoke", "run_name": "mine", **values}))
    with pytest.raises(ConfigError, match=r"expected a comparison's config\.json.*For a training, use train"):
        read_evaluation(path)


def test_the_file_is_found_from_where_it_was_named(tmp_path, monkeypatch, capsys):
    """Although the paths within it begin at the folder where it was written: it is read again there, and refused."""
    config = build_evaluation_config(preset="smoke", run_name="c")
    written, run = tmp_path / "written", tmp_path / "runs" / "c"
    for folder in (written, run):
        folder.mkdir(parents=True)
    values = {"kind": "side_by_side", "folder": str(written), **config.flat(), "max_new_tokens": 0}
    (run / "config.json").write_text(json.dumps(values))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("HELPERS_RUNS_DIR", "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "runs/c/config.json"]) == 2
    assert "max_new_tokens: expected" in capsys.readouterr().err
    assert Path.cwd() == written
