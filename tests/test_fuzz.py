"""Thousands of inputs that nobody would type: whatever a user gives, the only error is one that says what to do."""

from __future__ import annotations

import contextlib
import io
import json
import platform

import pytest
from fuzzing import (
    NAMES,
    PLANNED,
    csv_bytes,
    damaged,
    encoded,
    fuzz,
    good_json,
    good_jsonl,
    json_bytes,
    jsonl_bytes,
    nearly,
    parquet_bytes,
    survives,
    texts,
    to_json,
    values,
)
from hypothesis import configuration
from hypothesis import strategies as st

from helpers.__main__ import main
from helpers.cli.parameters import read_parameters
from helpers.cli.plan import parse_gpu
from helpers.cli.runs import compare_runs, list_runs, read_runs, show_run
from helpers.core.config import DataConfig, build_config, parameters
from helpers.core.lock import HOLDER, LOCK, find_holder
from helpers.core.runs import RunDirectory, check_run, open_run, runs_root
from helpers.core.secrets import redact, secrets_in
from helpers.core.text import visible
from helpers.data.prompts import clean_references
from helpers.data.rows import load_rows
from helpers.data.selection import choose_categories, in_proportion
from helpers.evaluation.adapter import (
    WEIGHTS,
    adapter_shape,
    complete_runs,
    find_adapter,
    recorded_loss,
    same_base_name,
    training_config,
)
from helpers.evaluation.cache import AnswerCache
from helpers.evaluation.config import build_evaluation_config, evaluation_parameters
from helpers.evaluation.metrics.text import asked_items, list_items
from helpers.evaluation.pages import embed_json
from helpers.evaluation.prompts import read_questions
from helpers.evaluation.votes.ballot import KeyItem, VoteKey, read_key, read_votes
from helpers.export.folders import refuse_foreign, tensor_files
from helpers.memory.shapes import shape_of
from helpers.runtime.lockfile import install_plan, read_lock, read_waivers
from helpers.training.checkpoints import MARKER, STATE, last_complete
from helpers.training.curves import judge_curve
from helpers.training.persist import prepare_persist
from helpers.training.result import TrainResult

KEY = VoteKey("base", "tuned", {"i1": KeyItem("p1", "base", "tuned"), "i2": KeyItem("p2", "tuned", "base")})
VOTES = ("item_id", "choice", "concrete", "on_topic", "structure", "voter", "seconds")


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A folder that all examples write to, with the runs in it."""
    folder = tmp_path_factory.mktemp("fuzz")
    configuration.set_hypothesis_home_dir(folder / "hypothesis")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELPERS_RUNS_DIR", str(folder / "runs"))
        patch.chdir(folder)
        yield folder


def put(path, content):
    """Write bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else to_json(content).encode())
    return path


class TestData:
    """Files of rows, in every format."""

    def read(self, place, name, content):
        """Load rows from a file, all and one, as either notebook does."""
        path = put(place / name, content)
        for task, count in (("alpaca", 0), ("dolly", 1)):
            survives(load_rows, DataConfig(dataset_name=str(path), train_rows=count, heldout_rows=2), task, 1)

    @fuzz(300, content=st.binary(max_size=60) | json_bytes)
    def test_json(self, place, content):
        """Any bytes and any JSON are read or refused."""
        self.read(place, "d.json", content)

    @fuzz(300, content=damaged(good_json))
    def test_nearly_good_json(self, place, content):
        """So is JSON with a few damaged bytes."""
        self.read(place, "d.json", content)

    @fuzz(300, content=st.binary(max_size=60) | jsonl_bytes)
    def test_json_lines(self, place, content):
        """Any bytes and any JSON lines are read or refused."""
        self.read(place, "d.jsonl", content)

    @fuzz(300, content=damaged(good_jsonl))
    def test_nearly_good_json_lines(self, place, content):
        """So are JSON lines with a few damaged bytes."""
        self.read(place, "d.jsonl", content)

    @fuzz(350, content=st.binary(max_size=60) | csv_bytes(NAMES[:6], texts) | damaged(csv_bytes(NAMES[:6], texts)))
    def test_csv(self, place, content):
        """Any text with commas, quotes and line breaks anywhere is read or refused."""
        self.read(place, "d.csv", content)

    @fuzz(200, content=st.binary(max_size=60) | parquet_bytes() | damaged(parquet_bytes()))
    def test_parquet(self, place, content):
        """Columns of any type, and damaged files, are read or refused."""
        self.read(place, "d.parquet", content)

    @fuzz(200, found=st.lists(values, min_size=1, max_size=6), wanted=texts | st.none())
    def test_categories(self, found, wanted):
        """A category may be anything."""
        survives(choose_categories, range(len(found)), found.__getitem__, wanted)
        assert sorted(in_proportion(range(len(found)), found.__getitem__)) == list(range(len(found)))


class TestComparison:
    """Prompts, votes and their key."""

    @fuzz(
        350,
        content=st.binary(max_size=60)
        | encoded(texts)
        | json_bytes
        | jsonl_bytes
        | csv_bytes(NAMES[6:], texts)
        | damaged(good_jsonl),
        kind=st.sampled_from(["txt", "json", "jsonl", "csv"]),
        count=st.integers(0, 9),
    )
    def test_prompts(self, place, content, kind, count):
        """A prompts file of any content is read or refused."""
        survives(read_questions, str(put(place / f"p.{kind}", content)), count)

    @fuzz(
        350,
        content=st.binary(max_size=60)
        | csv_bytes(VOTES, texts | st.sampled_from(["i1", "i2", "left", "right", "tie", "both", "1", "1,5", "nan"]))
        | damaged(st.just((",".join(VOTES) + "\ni1,left,both,,left,Ann,3.5\ni2,tie,,,,Ann,\n").encode())),
    )
    def test_votes(self, place, content):
        """A file of votes of any content is read or refused."""
        survives(read_votes, [put(place / "v.csv", content)], KEY)

    @fuzz(
        300,
        content=st.binary(max_size=60)
        | json_bytes
        | nearly({"format": "side-by-side vote key 1", "baseline": "base", "contender": "tuned", "items": {}}),
        item=nearly({"prompt_id": "p", "left": "base", "right": "tuned"}) | values,
    )
    def test_key(self, place, content, item):
        """A key of any content is read or refused."""
        if isinstance(content, dict) and content.get("items") == {}:
            content["items"] = {"i1": item}
        key = survives(read_key, put(place / "k.json", content))
        if key is not None:
            survives(read_votes, [put(place / "v.csv", (",".join(VOTES) + "\ni1,left,,,,Ann,1\n").encode())], key)

    @fuzz(100, content=st.binary(max_size=60) | json_bytes | nearly({"format": 1, "answers": {"x": {}}}))
    def test_kept_answers(self, place, content):
        """A damaged file of answers counts as empty."""
        assert "x" not in AnswerCache(put(place / "a.json", content), {}).answers


class TestTexts:
    """Prompts, answers and rows as text."""

    words = st.lists(
        st.sampled_from(["three", "\u017fix", "f\u0131ve", "10", "\u0664", "ways", "list of", "top", "steps", "1.", "-",
                         "*", "\n", "`", "[1]", "(", "=", "at least", "or", "and", "|", "**"]) | texts,
        max_size=12,
    ).map(" ".join)  # fmt: skip

    @fuzz(700, text=words)
    def test_any_text_is_read(self, text):
        """How many items it asks for or gives, and its reference marks, can be told of any text."""
        asked = asked_items(text)
        assert asked is None or 2 <= asked <= 100
        assert list_items(text).main >= 0
        assert len(clean_references(text)) <= len(text)
        assert isinstance(redact(text), str)
        assert secrets_in(text) == []
        assert not any("\ud800" <= character <= "\udfff" for character in visible(text))
        assert json.loads(embed_json(text)) == text
        assert same_base_name(text, text)


class TestParameters:
    """The notebooks' parameters, by name and on the command line."""

    given = values | texts.map(lambda text: text[:3]) | st.sampled_from(
        ["1", "-1", "1e3", "true", "none", "smoke", "~x/y", "con", 2, 64, 0.5, 1e-5]
    )  # fmt: skip
    training = st.dictionaries(st.sampled_from([*parameters("dolly"), "preset", "learnin_rate"]), given, max_size=6)

    @fuzz(600, task=st.sampled_from(["alpaca", "dolly"]) | values, name=given, chosen=training)
    def test_training_notebooks(self, task, name, chosen):
        """Any value under any name is taken or refused, and what is taken can be written down."""
        chosen.setdefault("preset", "smoke")
        config = survives(lambda: build_config(task, run_name=name, **chosen))
        if config is not None:
            assert json.loads(json.dumps(config.flat(), allow_nan=False).encode()) == config.flat()

    comparing = st.dictionaries(st.sampled_from([*evaluation_parameters(), "preset", "adaptor"]), given, max_size=5)

    @fuzz(400, name=given, chosen=comparing)
    def test_the_comparing_notebook(self, place, name, chosen):
        """So it is for the notebook that compares, up to the adapter that it names."""
        chosen.setdefault("preset", "smoke")
        config = survives(lambda: build_evaluation_config(run_name=name, **chosen))
        if config is not None:
            survives(find_adapter, config.adapter_dir)

    @fuzz(300, word=texts | st.from_regex(r"\A[0-9]{1,20}(\.[0-9]{1,9})? ?(gb|GiB|MB)?\Z"))
    def test_a_card(self, word):
        """A card's memory is a positive number, or refused."""
        card = survives(parse_gpu, word)
        assert card is None or card.total_bytes >= 1

    options = st.sampled_from(["--gpu", "--preset", "--row-length", "-p", "--task", "smoke", "t4", "8GB"])
    pairs = st.tuples(st.sampled_from(list(parameters())), texts).map("=".join)
    words = st.lists(options | texts | pairs, max_size=5)
    plans = (["plan", "--gpu", "t4"], ["plan", "--preset", "smoke", "--gpu", "8GB"])
    commands = (*plans, ["runs", "show"], ["runs", "compare"], ["run"], ["rnu"])

    @fuzz(150, rest=words, command=st.sampled_from(commands))
    def test_the_command_line(self, place, rest, command):
        """Whatever is typed, the status is 0, 1 or 2, and argparse's own mistakes are 2."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = main([*command, *rest])
            except SystemExit as end:
                status = end.code
        assert status in (0, 1, 2)
        assert "Traceback" not in said.getvalue()

    lines = st.lists(st.tuples(st.sampled_from(["x", "y", ""]) | texts, st.sampled_from([" = ", "=", "", " : "]), texts
                               | st.sampled_from(["1", "None", "'a'", "(" * 300, "1.5"]), st.sampled_from(
                                   ["  # type: int  help", "  # type: str  help", "  # type: ", "#", "\n", "\0"]))
                     .map("".join), max_size=3)  # fmt: skip

    cell = nearly({"source": "x", "metadata": {}})
    whole = nearly({"metadata": {}, "cells": [{"source": "x = 1", "metadata": {}}]})

    @fuzz(300, lines=lines, content=st.none() | st.binary(max_size=40) | json_bytes | whole, cell=cell | values)
    def test_a_parameters_cell(self, place, lines, content, cell):
        """A notebook of any form, and a cell of any lines, is read or refused."""
        tagged = {"source": "\n".join(lines), "metadata": {"tags": ["parameters"]}, "cell_type": "code"}
        whole = {"cells": [cell, tagged], "metadata": {}}
        survives(read_parameters, put(place / "n.ipynb", whole if content is None else content))


class TestRuns:
    """What runs wrote down: manifests, metrics, states, markers and locks."""

    metrics = st.fixed_dictionaries({}, optional={
        "train_loss": st.lists(st.tuples(st.integers(0, 9), st.floats()), max_size=12) | values,
        "eval_loss": st.lists(st.tuples(st.integers(0, 9), st.floats()), max_size=4) | values,
        "train_seconds": values, "tokens_per_second": values, "peak_memory_bytes": values, "eval_loss_after": values,
    })  # fmt: skip
    manifests = st.sampled_from(["complete", "running", "failed"]).flatmap(lambda state: nearly(
        {"parameters": {"seed": 1}, "run_id": "x", "state": state, "failure": "x", "resumed": ["2026"],
         "started": "2026", "finished": "2026", "rows": {"heldout": 2}, "data_fingerprint": "f"}))  # fmt: skip
    anything = st.binary(max_size=40) | json_bytes

    @fuzz(300, manifest=manifests | anything, metrics=metrics | anything, state=metrics | values | anything)
    def test_manifest_metrics_and_state(self, place, manifest, metrics, state):
        """A run whose files hold anything can be listed, shown, compared, continued or refused."""
        run = RunDirectory(runs_root() / "run")
        put(run.path / "manifest.json", manifest)
        put(run.path / "metrics.json", metrics)
        put(run.checkpoints / "step-000004" / STATE, state if isinstance(state, bytes) else {"result": state})
        found = read_runs()
        assert [each.name for each in found] == ["run"]
        assert all((list_runs(found), show_run(found[0]), compare_runs(*found, *found)))
        survives(check_run, "run", {"seed": 1})
        survives(run.fingerprint)
        survives(run.metrics)
        assert isinstance(complete_runs(), list)

    marker = nearly({"run_id": None, "fingerprint": None, "step": 4, "files": None, "format": 1})
    files = st.dictionaries(texts | st.just(STATE), nearly({"bytes": 2, "sha256": "x"}) | values, max_size=2)

    @fuzz(300, marker=anything | marker, files=files)
    def test_marker(self, place, marker, files):
        """A checkpoint whose marker holds anything but the truth is not used, and the reason is said."""
        run = RunDirectory(runs_root() / "marked")
        run = run if run.manifest() else open_run("marked", {"seed": 1})
        if isinstance(marker, dict):
            truth = {"run_id": run.run_id(), "fingerprint": run.fingerprint(), "files": files}
            marker = {name: truth.get(name) if value is None else value for name, value in marker.items()}
        put(run.checkpoints / "step-000004" / MARKER, marker)
        search = last_complete(run)
        assert search.found is None
        assert [name for name, why in search.rejected if why] == ["step-000004"]

    @fuzz(200, state=nearly(TrainResult([(1, 2.0)], [(0, 2.0)]).state()) | values)
    def test_state_of_a_training(self, state):
        """A training's state of another form is refused with the errors that its reader expects."""
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            TrainResult.from_state(state)

    @fuzz(200, lock=anything | nearly({"pid": 1, "host": platform.node(), "since": "2026"}))
    def test_lock_file(self, place, lock):
        """Lock and holder of any content, which nobody holds, stop nobody."""
        for name in (LOCK, HOLDER):
            put(place / "locked" / name, lock)
        assert find_holder(place / "locked") is None

    @fuzz(300, curve=metrics)
    def test_curves(self, curve):
        """Any finite curve has a verdict; a curve of another form is refused by the list of runs."""
        with contextlib.suppress(TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
            assert judge_curve(curve).text

    @fuzz(200, manifest=manifests | anything, resume=st.sampled_from(["auto", "never"]))
    def test_second_place(self, place, manifest, resume):
        """A second place whose manifest holds anything is restored from, replaced or refused."""
        run = open_run("persisted", {"seed": 1}, resume="never")
        put(place / "drive" / "persisted" / "manifest.json", manifest)
        survives(lambda: prepare_persist(run, str(place / "drive"), resume=resume))


class TestModels:
    """Adapters, exports, shapes of models, and the lock."""

    stated = nearly({"base_model_name_or_path": "smollm2-135m", "bias": "none", "peft_type": "LORA", "r": 8})
    settings = nearly({**build_config("alpaca", preset="smoke").flat(), "task": "alpaca", "eval_loss_after": 1.5})

    @fuzz(250, stated=stated | st.binary(max_size=40) | json_bytes, settings=settings, template=st.binary(max_size=20))
    def test_adapter(self, place, stated, settings, template):
        """An adapter whose files hold anything can be planned with, or is refused."""
        folder = place / "trained" / "adapter"
        put(folder / WEIGHTS[0], stated)
        put(folder / WEIGHTS[1], b"weights")
        put(folder / "chat_template.jinja", template)
        put(folder.parent / "config.json", settings)
        put(folder.parent / "metrics.json", settings)
        config = build_evaluation_config(preset="smoke")
        source = survives(find_adapter, str(folder))
        if source is not None:
            survives(training_config, source, config)
            survives(recorded_loss, source, config)

    @staticmethod
    def weights():
        """Return a small adapter's file."""
        import numpy
        from safetensors.numpy import save

        layer = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
        return save({layer: numpy.zeros((2, 4), "float32")})

    @fuzz(300, content=st.binary(max_size=60) | damaged(st.builds(weights.__func__)))
    def test_weights(self, place, content):
        """Weights with damaged bytes tell a size, or are refused."""
        survives(adapter_shape, put(place / "adapter_model.safetensors", content))

    @fuzz(200, content=json_bytes | nearly({"weight_map": {"a": "b.safetensors"}, "files": {"c": 1}}))
    def test_exports(self, place, content):
        """An index or a record of any content is read or refused."""
        put(place / "export" / "model.safetensors.index.json", content)
        survives(tensor_files, place / "export")
        put(place / "record" / "export.json", content)
        survives(refuse_foreign, place / "record")

    shape = nearly({"hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "vocab_size": 9, "head_dim": 2})  # fmt: skip

    @fuzz(300, content=json_bytes | shape)
    def test_shape(self, place, content):
        """A model's configuration of any content gives a shape, or is refused."""
        survives(shape_of, put(place / "model" / "config.json", content))

    lock = st.lists(st.sampled_from(
        ["torch==2.0", "trl", "==1", ">=1", " ; ", "python_version < '3.12'", "sys_platform", "(" * 400,
         "# left out: a: b", "@ https://x.org", "[extra]", "*", "\\", "-r x", "torch==1!2.0+cpu"])
        | texts, max_size=6)  # fmt: skip

    @fuzz(300, parts=st.lists(lock.map("".join), max_size=4), raw=st.none() | st.binary(max_size=40))
    def test_lock(self, place, parts, raw):
        """Any lines are a lock that can be planned with, or are refused."""
        path = put(place / "lock.txt", "\n".join(parts).encode("utf-8", "replace") if raw is None else raw)
        pins = survives(read_lock, path)
        survives(read_waivers, path)
        if pins is not None:
            survives(lambda: install_plan({"trl": "0.9", "torch": "2.0"}, pins))


def test_they_are_thousands():
    """All tests of this file together draw more than eight thousand examples."""
    assert sum(PLANNED.values()) > 8_000
