"""The three notebooks themselves, executed headless to their end, with a tiny Mistral and with the real SmolLM2."""

from __future__ import annotations

import json
import re

import pytest

from helpers.cli.notebooks import CellError, run_notebook
from helpers.core.files import read_json

pytestmark = pytest.mark.slow

METRICS = {
    "train_loss",
    "eval_loss_before",
    "eval_loss_after",
    "supervised_tokens",
    "examples_per_second",
    "tokens_per_second",
    "peak_memory_bytes",
    "train_seconds",
}
MANIFEST = {"parameters", "versions", "hardware", "data_fingerprint", "template_sha256", "seed", "git_commit"}


CANARY = "hf_" + "CanaryThatMustNotSing" + "0123456789abc"
"""A token of the hub's form, in the environment of all runs here."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for this module's runs."""
    folder = tmp_path_factory.mktemp("course") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELPERS_RUNS_DIR", str(folder))
        patch.setenv("HF_TOKEN", CANARY)
        yield folder


@pytest.fixture(scope="module")
def lines():
    """What the runs of this module print."""
    return []


@pytest.fixture(scope="module")
def tiny_run(runs, lines, tiny_mistral):
    """The Alpaca notebook with a Mistral of two layers, eight steps in the classic text block."""
    given = {
        "preset": "smoke",
        "model_name": str(tiny_mistral),
        "prompt_style": "alpaca",
        "max_steps": 8,
        "train_rows": 64,
        "heldout_rows": 8,
        "learning_rate": 0.01,
        "max_new_tokens": 8,
    }
    run_notebook("alpaca_instruction", given, run_name="tiny", report=lines.append)
    return runs / "tiny"


@pytest.fixture(scope="module")
def business_run(runs, lines, tmp_path_factory):
    """The Dolly notebook with the real SmolLM2, three steps on rows without a category."""
    from helpers.data.rows import read_sample

    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{k: v for k, v in row.items() if k != "category"} for row in read_sample("dolly", "train")[:32]]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    given = {
        "preset": "smoke",
        "dataset_name": str(path),
        "train_rows": 24,
        "heldout_rows": 8,
        "max_steps": 3,
        "max_new_tokens": 8,
    }
    run_notebook("dolly_business", given, run_name="business", report=lines.append)
    return runs / "business"


class TestAlpacaNotebook:
    """`alpaca_instruction`, through Unsloth's CPU path."""

    def test_its_metrics_are_complete(self, tiny_run):
        """Losses, counts, speed, memory and time are recorded, and eight steps were taken."""
        metrics = read_json(tiny_run / "metrics.json")
        assert metrics.keys() >= METRICS
        assert [step for step, _ in metrics["train_loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert metrics["eval_loss_after"] < metrics["eval_loss_before"]

    def test_its_manifest_is_complete(self, tiny_run):
        """What made the run is recorded, and that it ended."""
        manifest = read_json(tiny_run / "manifest.json")
        assert manifest.keys() >= MANIFEST
        assert (manifest["state"], manifest["template"], manifest["task"]) == ("complete", "alpaca", "alpaca")

    def test_it_leaves_an_adapter_a_plot_and_answers(self, tiny_run):
        """Adapter, template, picture, answers, configuration and executed copy stand in the run's folder."""
        names = {
            "adapter/adapter_model.safetensors",
            "adapter/chat_template.jinja",
            "adapter/tokenizer.json",
            "answers.json",
            "config.json",
            "loss.png",
            "notebook.ipynb",
        }
        assert [name for name in sorted(names) if not (tiny_run / name).is_file()] == []
        assert len(read_json(tiny_run / "answers.json")["answers"]) == 5

    def test_the_reloaded_adapter_gives_the_trained_losses(self, tiny_run, lines):
        """The notebook compares the reloaded model with the trained one, exactly in float32."""
        assert any(": 8 held-out rows" in line for line in lines)


@pytest.fixture(scope="module")
def real_run(runs, lines):
    """The Alpaca notebook with the real SmolLM2, four steps on bundled rows."""
    given = {"preset": "smoke", "train_rows": 32, "heldout_rows": 8, "max_steps": 4, "max_new_tokens": 8}
    run_notebook("alpaca_instruction", given, run_name="real", report=lines.append)
    return runs / "real"


class TestRealModel:
    """`alpaca_instruction` with SmolLM2-135M-Instruct, unpacked from its package."""

    def test_four_steps_lower_the_held_out_loss_beyond_chance(self, real_run):
        """The interval of the mean change lies below zero."""
        assert read_json(real_run / "metrics.json")["eval_loss_change"]["high"] < 0


class TestDollyNotebook:
    """`dolly_business`, from rows to proven exports."""

    def test_the_held_out_loss_falls_beyond_chance(self, business_run):
        """After three steps the interval of the mean change lies below zero."""
        assert read_json(business_run / "metrics.json")["eval_loss_change"]["high"] < 0

    def test_both_exports_are_proven(self, business_run):
        """Adapter and merged model passed in a fresh process, and the manifest says so."""
        exports = read_json(business_run / "manifest.json")["exports"]
        assert {name: proof["passed"] for name, proof in exports.items()} == {"adapter": True, "merged": True}

    def test_each_export_has_a_model_card(self, business_run):
        """The cards name base and verification."""
        for folder in ("adapter", "merged"):
            text = (business_run / folder / "README.md").read_text(encoding="utf-8")
            assert text.startswith("---\n")
            assert "## Verification" in text


@pytest.fixture(scope="module")
def comparison(runs, lines, tiny_run):
    """The comparison of the tiny Mistral with its adapter."""
    given = {"preset": "smoke", "adapter_dir": "tiny", "arms": "base,tuned", "max_new_tokens": 8, "prompt_count": 3}
    given |= {"reference_rows": 8, "answered_rows": 2}
    run_notebook("side_by_side_eval", given, run_name="comparison", report=lines.append)
    return runs / "comparison"


class TestSideBySideNotebook:
    """`side_by_side_eval`, from an adapter to a report."""

    def test_it_finds_the_gain_that_training_recorded(self, comparison, tiny_run):
        """Its mean difference is the one that training measured, and each of the three questions has its verdict."""
        metrics = read_json(comparison / "metrics.json")
        assert [each["question"] for each in metrics["verdicts"]] == [
            "Are held-out answers more likely?",
            "Are the tuned model's answers preferred?",
            "What was lost on dolly rows, which it was not trained on?",
        ]
        found = metrics["estimates"]["nll_with_eos"]
        assert (found["rows"], found["sources"]) == (8, 8)
        change = read_json(tiny_run / "metrics.json")["eval_loss_change"]["mean"]
        assert found["mean"] < 0
        assert found["mean"] == pytest.approx(change, abs=1e-4)

    def test_it_leaves_report_votes_and_scores(self, comparison):
        """Every file that the notebook promises stands in its folder."""
        names = {"report.html", "vote.html", "vote_key.json", "comparison.json", "scores.csv", "llm_comparator.json"}
        assert [name for name in sorted(names) if not (comparison / name).is_file()] == []
        assert read_json(comparison / "manifest.json")["state"] == "complete"

    def test_votes_are_revealed_when_it_runs_again(self, runs, comparison, lines):
        """Two people of one name, in two files, are two voters, and the reveal names wins, losses and ties."""
        items = read_json(comparison / "vote_key.json")["items"]
        files = [runs.parent / f"votes-kim{again}.csv" for again in ("", " (1)")]
        for file, choice in zip(files, ("a", "tie"), strict=True):
            rows = [f"{each},{choice},,,,Kim,1" for each in items]
            file.write_text(
                "\n".join(["item_id,choice,concrete,on_topic,structure,voter,seconds", *rows]), encoding="utf-8"
            )
        given = {"preset": "smoke", "adapter_dir": "tiny", "arms": "base,tuned", "max_new_tokens": 8, "prompt_count": 3}
        given |= {"reference_rows": 8, "answered_rows": 2, "votes_file": ",".join(map(str, files))}
        run_notebook("side_by_side_eval", given, run_name="comparison", report=lines.append)
        cells = read_json(comparison / "notebook.ipynb")["cells"]
        cell = next(each for each in cells if "count_votes(" in "".join(each["source"]))
        said = "".join("".join(output.get("text", [])) for output in cell["outputs"])
        assert re.search(
            r"Are the tuned model's answers preferred\? cannot tell\. Votes: tuned \d, base \d, ties \d; 5 pairs", said
        )
        assert "Kim (votes-kim (1)) judged " in said


class TestComparisonAlone:
    """`side_by_side_eval` opened first, as by its badge, where nothing was trained."""

    def test_it_trains_an_adapter_to_compare(self, tmp_path, lines, tiny_mistral, monkeypatch):
        """Run all ends with a report on an adapter of its own."""
        monkeypatch.setenv("HELPERS_RUNS_DIR", str(tmp_path))
        given = {"preset": "smoke", "model_name": str(tiny_mistral), "arms": "base,tuned", "max_new_tokens": 8}
        given |= {"prompt_count": 2, "reference_rows": 4, "answered_rows": 2}
        run_notebook("side_by_side_eval", given, run_name="alone", report=lines.append)
        assert read_json(tmp_path / "first-adapter" / "manifest.json")["state"] == "complete"
        assert read_json(tmp_path / "alone" / "manifest.json")["adapter"] == "runs/first-adapter"
        assert (tmp_path / "alone" / "report.html").is_file()


@pytest.fixture(scope="module")
def failed_run(runs, lines, tiny_mistral):
    """The Alpaca notebook, stopped by the check of its rows, which are all longer than it allows."""
    given = {
        "preset": "smoke",
        "model_name": str(tiny_mistral),
        "max_seq_length": 32,
        "train_rows": 16,
        "max_new_tokens": 8,
    }
    with pytest.raises(CellError) as caught:
        run_notebook("alpaca_instruction", given | {"heldout_rows": 4}, run_name="failed", report=lines.append)
    lines.append(str(caught.value))
    return runs / "failed"


class TestFailingNotebook:
    """What is left when a cell fails."""

    def test_the_run_says_so_and_the_copy_shows_where(self, failed_run):
        """The manifest has the state, the executed copy the error."""
        assert read_json(failed_run / "manifest.json")["state"] == "failed"
        assert "ContractError" in (failed_run / "notebook.ipynb").read_text(encoding="utf-8")


class TestNoise:
    """What the executed copies of the three notebooks show that nobody asked for."""

    def test_nothing_red_stands_in_them(self, tiny_run, business_run, comparison):
        """No cell wrote to stderr, and no library's complaint reached stdout: gemm, torchao, fonts, warnings."""
        found = []
        for run in (tiny_run, business_run, comparison):
            for cell in read_json(run / "notebook.ipynb")["cells"]:
                for output in cell.get("outputs", []):
                    text = "".join(output.get("text", []))
                    noise = re.findall(r"Failed to load|[Tt]orchao|findfont|\w*Warning:", text)
                    found += [(run.name, line) for line in noise]
                    if output.get("name") == "stderr":
                        found.append((run.name, text[:300]))
        assert found == []


class TestSecrets:
    """A token in the environment of every run above, the failing one too."""

    def test_no_file_and_no_line_has_it(self, runs, lines, tiny_run, real_run, business_run, comparison, failed_run):
        """Its random part stands in no byte of any file, and was not printed."""
        files = [path for path in runs.rglob("*") if path.is_file()]
        assert len(files) > 100
        assert [str(path) for path in files if b"MustNotSing" in path.read_bytes()] == []
        assert not any("MustNotSing" in line for line in lines)
