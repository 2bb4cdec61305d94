"""The side-by-side notebook's parameters, prompts, references and adapters: what is taken, and what is refused."""

from __future__ import annotations

import json

import pytest

from helpers.cli.parameters import TASKS, find_task
from helpers.core.errors import ConfigError, EvaluationError
from helpers.data.readers import read_file
from helpers.data.rows import data_fingerprint, draw_rows
from helpers.evaluation.adapter import WEIGHTS, complete_runs, find_adapter, recorded_loss, training_config
from helpers.evaluation.arms import choose_arms
from helpers.evaluation.config import build_evaluation_config, evaluation_parameters
from helpers.evaluation.prompts import gather
from helpers.evaluation.session import run_parameters
from helpers.evaluation.votes.ballot import KeyItem, VoteKey, read_votes

SETTINGS = {"task": "alpaca", "preset": "smoke", "model_name": "smollm2-135m", "dataset_name": "sample", "seed": 3407}


def build(**given):
    """Build a configuration of preset smoke."""
    return build_evaluation_config(preset="smoke", **given)


def make_run(folder, name, *, state="complete", finished="2026-01-01", base="smollm2", number=None, **settings):
    """Write a training run that has an adapter but no real weights."""
    run = folder / name
    (run / "adapter").mkdir(parents=True)
    stated = {"base_model_name_or_path": base, "bias": "none"}
    (run / "adapter" / WEIGHTS[0]).write_text(json.dumps(stated))
    (run / "adapter" / WEIGHTS[1]).write_bytes(b"weights")
    (run / "manifest.json").write_text(json.dumps({"state": state, "finished": finished, "number": number}))
    (run / "config.json").write_text(json.dumps(SETTINGS | settings))
    return run


class TestParameters:
    """What the notebook may be told."""

    def test_defaults_are_the_presets(self):
        """Smoke asks few questions with short answers, a T4 all of them."""
        smoke, card = build(), build_evaluation_config(preset="colab-t4")
        assert (smoke.prompt_count, smoke.reference_rows, smoke.max_new_tokens) == (6, 24, 128)
        assert (card.prompt_count, card.reference_rows, card.max_new_tokens) == (0, 100, 256)
        assert smoke.run_name == "side-by-side"

    def test_arms_come_in_the_order_of_reports(self):
        """Whatever order they are given in."""
        assert build(arms=" tuned,base_few_shot , base").arm_names() == ("base", "tuned", "base_few_shot")

    def test_fewer_references_mean_fewer_answered(self):
        """A preset's number of answered rows gives way; one that was given does not."""
        assert build(reference_rows=4).answered_rows == 4
        with pytest.raises(ConfigError, match="answered_rows: expected at most reference_rows"):
            build(reference_rows=4, answered_rows=5)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"arms": "tuned"}, "Add base"),
            ({"arms": ""}, "Add base and tuned"),
            ({"arms": "base,tunned"}, "Did you mean tuned"),
            ({"arms": "base,tuned,base"}, "each arm once"),
            ({"mode": "aa", "arms": "base,tuned"}, 'none with mode "aa"'),
            ({"mode": "ab"}, "compare, aa"),
            ({"adapter": "x"}, "Did you mean adapter_dir"),
            ({"max_new_tokens": 0}, "at least 1"),
            ({"max_new_tokens": "many"}, "whole number"),
            ({"reference_rows": 1}, "at least 2"),
            ({"few_shot_rows": 0}, "at least 1"),
            ({"prompt_style": "chatml"}, "chat, alpaca"),
            ({"prompt_style": "alpaca", "system_prompt": "Be brief."}, "fixed preamble"),
            ({"task": "dollies"}, "Did you mean dolly"),
            ({"run_name": "../x"}, "folder under runs/"),
            ({"prompts_file": "missing.txt"}, "an existing file"),
            ({"prompts_file": "prompts.docx"}, "a file that ends in"),
            ({"reference_data": "rows.txt"}, "a file that ends in"),
            ({"votes_file": "a.csv, b.csv"}, "an existing file"),
            ({"seed": -1}, "at least 0"),
        ],
    )
    def test_contradictions_are_refused(self, given, words):
        """Each error names the parameter and says what would be right."""
        with pytest.raises(ConfigError, match=words):
            build(**given)

    @pytest.mark.parametrize("preset", ["auto", "smokey", None, 3])
    def test_presets_are_known(self, preset):
        """`auto` is resolved before."""
        with pytest.raises(ConfigError, match="preset"):
            build_evaluation_config(preset=preset)

    def test_votes_may_change_from_run_to_run(self, tmp_path):
        """New votes on old answers are the same comparison; another length is not."""
        (tmp_path / "v.csv").write_text("x")
        plain, voted = build(), build(votes_file=str(tmp_path / "v.csv"), batch_size=2)
        assert plain.identity() == voted.identity() != build(max_new_tokens=9).identity()

    def test_mode_aa_has_two_arms_without_adapter(self):
        """Both arms are the base model."""
        arms = choose_arms(build(mode="aa"))
        assert [(arm.name, arm.adapter) for arm in arms] == [("base", False), ("again", False)]

    def test_the_runner_knows_the_task(self):
        """The registry has the parameters of this notebook and of the training ones."""
        assert list(TASKS) == ["alpaca", "dolly", "side_by_side"]
        assert find_task("side_by_side").parameters() == evaluation_parameters()
        assert "learning_rate" in find_task("dolly").parameters()
        with pytest.raises(ConfigError, match="Did you mean dolly"):
            find_task("doly")

    def test_the_runner_checks_them_together(self, runs_folder):
        """Before a kernel starts: the adapter is there, and the prompts can be read."""
        make_run(runs_folder, "trained")
        name, parameters = find_task("side_by_side").plan("smoke", None, {})
        assert (name, parameters["adapter_dir"]) == ("side-by-side", "runs/trained")
        with pytest.raises(EvaluationError, match="prompt_count"):
            find_task("side_by_side").plan("smoke", None, {"prompt_count": 99})


class TestAdapters:
    """Which adapter is compared."""

    def test_the_newest_complete_run_is_taken(self, runs_folder):
        """A newer run that failed or has no adapter does not count."""
        make_run(runs_folder, "old", finished="2026-01-01")
        make_run(runs_folder, "new", finished="2026-02-01")
        make_run(runs_folder, "failed", state="failed", finished="2026-03-01")
        (make_run(runs_folder, "bare", finished="2026-04-01") / "adapter" / WEIGHTS[1]).unlink()
        (runs_folder / "damaged").mkdir()
        (runs_folder / "damaged" / "manifest.json").write_text("{")
        assert [run.path.name for run in complete_runs()] == ["new", "old"]
        assert find_adapter(None).shown() == "runs/new"

    def test_the_count_of_runs_decides_before_the_clock(self, runs_folder):
        """The last run to end is the newest, though the clock was 400 days back."""
        make_run(runs_folder, "before", finished="2026-11-27", number=1)
        make_run(runs_folder, "after", finished="2025-10-23", number=2)
        make_run(runs_folder, "of an older version", finished="2026-12-01")
        assert [run.path.name for run in complete_runs()] == ["after", "before", "of an older version"]

    def test_runs_run_folders_and_adapter_folders_are_taken(self, runs_folder):
        """All three lead to the same adapter and its run."""
        run = make_run(runs_folder, "trained")
        found = [find_adapter(name) for name in ("trained", str(run), str(run / "adapter"))]
        assert {source.folder for source in found} == {(run / "adapter").resolve()}
        assert {source.shown() for source in found} == {"runs/trained"}

    def test_without_any_run_the_error_says_what_to_run(self, runs_folder):
        """The remedy names the training notebooks."""
        with pytest.raises(ConfigError, match="Run alpaca_instruction or dolly_business first"):
            find_adapter(None)

    def test_unknown_names_get_the_nearest(self, runs_folder):
        """A typing mistake is recognised."""
        make_run(runs_folder, "alpaca-smoke")
        with pytest.raises(ConfigError, match="Did you mean alpaca-smoke"):
            find_adapter("alpaca-smok")

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_a_folder_without_weights_is_refused(self, runs_folder, name):
        """The missing file is named."""
        (make_run(runs_folder, "trained") / "adapter" / name).unlink()
        with pytest.raises(EvaluationError, match=rf"a folder with {name}"):
            find_adapter("trained")

    def test_the_run_says_how_prompts_are_written(self, runs_folder):
        """Model, style and system prompt come from the run unless they are given."""
        make_run(runs_folder, "trained", system_prompt="Be brief.", max_seq_length=300)
        config = training_config(find_adapter("trained"), build())
        assert (config.data.system_prompt, config.model.max_seq_length) == ("Be brief.", 300)
        assert config.generation.max_new_tokens == 128
        assert training_config(find_adapter("trained"), build(system_prompt="")).data.system_prompt == ""
        assert training_config(find_adapter("trained"), build(prompt_style="alpaca")).data.system_prompt == ""

    def test_settings_of_another_version_are_passed_over(self, runs_folder):
        """A parameter that no longer exists does not stop a comparison."""
        make_run(runs_folder, "trained", no_longer_known=3)
        assert training_config(find_adapter("trained"), build()).model.model_name == "smollm2-135m"

    def test_answers_must_fit_the_model(self, runs_folder):
        """The limit of the training run holds for answers too."""
        make_run(runs_folder, "trained", max_seq_length=64)
        with pytest.raises(ConfigError, match="max_new_tokens: expected less than max_seq_length"):
            training_config(find_adapter("trained"), build(max_new_tokens=64))

    def test_an_adapter_from_elsewhere_names_its_base(self, tmp_path, runs_folder):
        """Without a run the adapter's own file says which base it needs."""
        folder = make_run(tmp_path, "x", base="unsloth/mistral-7b-instruct-v0.3-bnb-4bit") / "adapter"
        alone = folder.rename(tmp_path / "alone")
        source = find_adapter(str(alone))
        assert (source.run, training_config(source, build()).model.model_name) == (None, "mistral-7b-instruct")

    def test_the_recorded_loss_holds_for_the_same_prompts_only(self, runs_folder):
        """Asked in another way, the held-out loss has nothing to be compared with."""
        run = make_run(runs_folder, "trained")
        (run / "metrics.json").write_text(json.dumps({"eval_loss_after": 1.5}))
        (run / "manifest.json").write_text(json.dumps({"state": "complete", "rows": {"heldout": 24}}))
        assert recorded_loss(find_adapter("trained"), build()) == (1.5, 24)
        assert recorded_loss(find_adapter("trained"), build(system_prompt="")) == (None, None)
        assert recorded_loss(find_adapter("trained"), build(), as_trained=False) == (None, None)

    def test_another_adapter_is_another_comparison(self, runs_folder):
        """The run's identity holds the adapter that was found, not the None that was typed."""
        make_run(runs_folder, "trained")
        assert run_parameters(build(), find_adapter(None))["adapter_dir"] == "runs/trained"


class TestReferences:
    """Rows whose good answers are scored."""

    def gather(self, runs_folder, **given):
        """Gather the rows of a run on the bundled sample."""
        make_run(runs_folder, "trained")
        config, source = build(**given), find_adapter("trained")
        return gather(config, source, training_config(source, config))

    def test_heldout_rows_are_the_default(self, runs_folder):
        """They are not among the training rows, and the first few are answered too."""
        material = self.gather(runs_folder)
        assert (len(material.references), material.answered, len(material.asked())) == (24, 6, 12)
        assert material.train_known
        assert {q.prompt.text for q in material.references}.isdisjoint(material.train_texts())

    def test_rows_that_were_trained_on_are_left_out(self, runs_folder, tmp_path):
        """So are rows that stand in the file twice; both are counted."""
        trained = self.gather(runs_folder).train[0]
        new = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in (1, 2, 3, 3)]
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, [trained, *new])))
        source = find_adapter("trained")
        config = build(reference_data=str(tmp_path / "r.jsonl"))
        material = gather(config, source, training_config(source, config))
        assert len(material.references) == 3
        assert set(material.notes[1:]) == {"1 rows left out: asked twice", "1 rows left out: trained on"}

    @pytest.mark.parametrize("task", ["alpaca", "dolly"])
    @pytest.mark.parametrize("system", ["", "Be brief."])
    def test_a_run_on_conversations_finds_its_rows_again(self, runs_folder, tmp_path, task, system):
        """They are compared with what the run recorded of the rows it loaded, its system prompt among them."""
        talks = [
            [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}!"}] for n in range(12)
        ]
        talks[0] += [{"role": "user", "content": "Again."}, {"role": "assistant", "content": "0!"}]
        (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
        settings = {"task": task, "dataset_name": str(tmp_path / "t.jsonl"), "system_prompt": system, "heldout_rows": 4}
        run = make_run(runs_folder, "trained", given=["heldout_rows", "dataset_name", "system_prompt"], **settings)
        source, config = find_adapter("trained"), build()
        training = training_config(source, config)
        drawn = draw_rows(training.data, task, training.train.seed, tmp_path, given=["heldout_rows"])
        files = drawn.source["data_files"]
        loaded = [read_file(files[part]).rows for part in ("train", "test")]
        recorded = {"state": "complete", "data_fingerprint": data_fingerprint(*loaded, task)}
        (run / "manifest.json").write_text(json.dumps(recorded))
        material = gather(config, source, training)
        assert material.train_known
        assert {q.prompt.text for q in material.references} < {f"Say {n}." for n in range(12)}
        assert {q.prompt.reference for q in material.references} < {f"{n}!" for n in range(12)}
        left_out = sum(int(note.split()[0]) for note in material.notes if "a question after earlier turns" in note)
        rows = 13 if system else 12  # a system prompt before later turns makes each turn a row
        assert left_out == (1 if system else 0)
        assert material.as_trained == all(len(row["prompt"]) == len(row["completion"]) == 1 for row in loaded[1])
        assert left_out + len(material.train) + len(material.references) == rows

    def test_changed_data_are_noticed(self, runs_folder):
        """If the rows are not those that the run recorded, held-out rows may have been trained on."""
        run = make_run(runs_folder, "trained")
        (run / "manifest.json").write_text(json.dumps({"state": "complete", "data_fingerprint": "other"}))
        source, config = find_adapter("trained"), build()
        with pytest.raises(EvaluationError, match="The data set changed since"):
            gather(config, source, training_config(source, config))

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ([{"instruction": "A?", "output": "a"}], "at least two rows"),
            ([{"instruction": "A?", "output": ""}] * 2, "empty output"),
            ([{"question": "A?"}] * 2, "no column is known as the output"),
        ],
    )
    def test_unusable_references_are_refused(self, runs_folder, tmp_path, rows, words):
        """Too few rows, empty answers, other columns."""
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(EvaluationError, match=words):
            self.gather(runs_folder, reference_data=str(tmp_path / "r.jsonl"))

    def test_a_prompt_with_the_name_of_a_reference_is_refused(self, runs_folder, tmp_path):
        """Before anything is loaded: their answers could not be told apart."""
        (tmp_path / "p.jsonl").write_text(json.dumps({"id": "row-002", "prompt": "A?"}))
        with pytest.raises(EvaluationError, match=r"names that are used once, got \['row-002'\]\. Give each its own"):
            self.gather(runs_folder, prompts_file=str(tmp_path / "p.jsonl"), prompt_count=1)

    def test_what_is_left_out_of_references_is_said(self, runs_folder, tmp_path):
        """Conversations that cannot be scored are counted by reason; `columns` says what the answer is."""
        ask = [{"role": "user", "content": "Q"}, {"role": "tool", "content": "x"}]
        rows = [{"talk": ask}] + [
            {"talk": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "a"}]} for n in range(2)
        ]
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found = self.gather(runs_folder, reference_data=str(tmp_path / "r.jsonl"), columns="messages=talk")
        assert len(found.references) == 2
        assert found.notes[-1] == "1 rows left out: tool calls"

    def test_references_come_in_any_format(self, runs_folder, tmp_path):
        """Of a conversation the first question and answer are taken; numbers are text."""
        rows = [
            {"conversations": [{"from": ("human", "gpt")[i % 2], "value": f"{n} {i}"} for i in range(4)]}
            for n in range(3)
        ]
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found = self.gather(runs_folder, reference_data=str(tmp_path / "r.jsonl")).references
        assert sorted((each.prompt.text, each.prompt.reference) for each in found) == [
            ("0 0", "0 1"), ("1 0", "1 1"), ("2 0", "2 1"),
        ]  # fmt: skip


class TestVotes:
    """Votes that do not belong to this page."""

    def test_votes_for_unknown_items_are_refused(self, tmp_path):
        """Votes on answers that have changed since cannot count."""
        (tmp_path / "v.csv").write_text(
            "item_id,choice,concrete,on_topic,structure,voter,seconds\nigone,left,,,,Ann,1\n"
        )
        key = VoteKey("base", "tuned", {"iknown": KeyItem("p", "base", "tuned")})
        with pytest.raises(EvaluationError, match="answers have changed since"):
            read_votes([tmp_path / "v.csv"], key)
