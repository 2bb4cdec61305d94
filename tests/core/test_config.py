"""The configuration of a run: presets, parameters on top of them, and contradictions."""

from __future__ import annotations

import dataclasses

import pytest

from helpers.core.config import MODELS, PRESETS, TASK_PRESETS, build_config, changed_parameters, parameters
from helpers.core.errors import ConfigError, HelpersError


def error_of(task="alpaca", preset="smoke", **given) -> ConfigError:
    """Return the error that a configuration raises."""
    with pytest.raises(ConfigError) as caught:
        build_config(task, preset=preset, **given)
    return caught.value


class TestPresets:
    """What a preset stands for."""

    def test_smoke(self):
        """The smoke preset trains the small model on all bundled rows, without 4-bit weights."""
        config = build_config("alpaca", preset="smoke")
        assert (config.model.model_name, config.model.load_in_4bit) == ("smollm2-135m", False)
        assert (config.data.dataset_name, config.data.train_rows) == ("sample", 0)

    @pytest.mark.parametrize("preset", ["colab-t4", "large-gpu"])
    def test_gpu_presets(self, preset):
        """The GPU presets train Mistral-7B-Instruct in 4 bit on Alpaca-cleaned."""
        config = build_config("alpaca", preset=preset)
        assert (config.model.model_name, config.model.load_in_4bit) == ("mistral-7b-instruct", True)
        assert config.data.dataset_name == "yahma/alpaca-cleaned"

    def test_the_seed_projects_setting(self):
        """colab-t4 has rank 16, batches of 2 in 4 passes, a rate of 2e-4 and sequences of 2048 tokens."""
        config = build_config("alpaca", preset="colab-t4")
        assert (config.adapter.lora_rank, config.adapter.lora_alpha, config.adapter.lora_dropout) == (16, 16, 0.0)
        assert (config.train.batch_size, config.train.gradient_accumulation) == (2, 4)
        assert config.train.rows_per_step() == 8
        assert (config.train.learning_rate, config.model.max_seq_length) == (0.0002, 2048)

    def test_the_dolly_task_has_its_own_data(self):
        """The Dolly task reads Dolly unless told otherwise."""
        assert build_config("dolly", preset="colab-t4").data.dataset_name == "databricks/databricks-dolly-15k"

    @pytest.mark.parametrize("preset", PRESETS)
    @pytest.mark.parametrize("task", ["alpaca", "dolly"])
    def test_every_preset_is_free_of_contradictions(self, task, preset):
        """Each preset can be built for each task, and names only parameters that exist."""
        assert build_config(task, preset=preset).preset == preset
        assert set(PRESETS[preset]) <= set(parameters(task))

    def test_dolly_takes_a_thousand_rows_on_every_card(self):
        """Preset large-gpu trains on 4,000 rows of Alpaca and on 1,000 of Dolly, unless another number is given."""
        rows = {task: build_config(task, preset="large-gpu").data.train_rows for task in ("alpaca", "dolly")}
        assert rows == {"alpaca": 4000, "dolly": 1000}
        assert build_config("dolly", preset="colab-t4").data.train_rows == 1000
        assert build_config("dolly", preset="large-gpu", train_rows=4000).data.train_rows == 4000

    def test_what_differs_by_task_exists(self):
        """Each such entry names a task, a preset and parameters that there are."""
        for (task, preset), values in TASK_PRESETS.items():
            assert (preset in PRESETS, set(values) <= set(parameters(task))) == (True, True)

    def test_the_run_is_named_after_task_and_preset(self):
        """Without a name the run is called after what it is."""
        assert build_config("alpaca", preset="smoke").run_name == "alpaca-smoke"


class TestParameters:
    """What a user gives beside the preset."""

    def test_a_parameter_overrides_the_preset(self):
        """A given value replaces the preset's, and leaves the others."""
        config = build_config("alpaca", preset="smoke", max_steps=4, learning_rate="1e-3", run_name="x")
        assert (config.train.max_steps, config.train.learning_rate, config.run_name) == (4, 0.001, "x")
        assert config.train.batch_size == 4

    def test_none_means_not_given(self):
        """A parameter that is None takes the preset's value."""
        assert build_config("alpaca", preset="smoke", batch_size=None) == build_config("alpaca", preset="smoke")

    def test_flat_gives_every_parameter_back(self):
        """The flat form builds the same configuration again."""
        config = build_config("alpaca", preset="smoke", max_steps=4, run_name="x")
        assert build_config("alpaca", **config.flat()) == config
        assert {"preset", "run_name", *parameters("alpaca")} == set(config.flat())

    @pytest.mark.parametrize("task", ["alpaca", "dolly"])
    def test_every_parameter_has_a_help_text(self, task):
        """Each parameter says what it does, in words that begin small and end without a dot."""
        helps = {name: each.metadata["help"] for name, each in parameters(task).items()}
        assert [name for name, text in helps.items() if not text or text.endswith(".")] == []

    @pytest.mark.parametrize("task", ["alpaca", "dolly"])
    def test_numbers_that_count_have_a_unit(self, task):
        """Every parameter that counts tokens, rows or steps says so; pure ratios and seeds have none."""
        fields = parameters(task)
        units = {name: fields[name].metadata["unit"] for name in ("max_seq_length", "train_rows", "max_steps")}
        assert units == {"max_seq_length": "tokens", "train_rows": "rows", "max_steps": "steps"}

    def test_a_configuration_cannot_be_changed(self):
        """What was checked stays as it is."""
        config = build_config("alpaca", preset="smoke")
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.preset = "colab-t4"
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.train.seed = 1


class TestErrors:
    """Each mistake names the parameter, what is expected, the value, and what to do."""

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"learnin_rate": 1e-4},
                "learnin_rate: expected the name of a parameter, got 0.0001. Did you mean learning_rate?",
            ),
            (
                {"save_steps": -3},
                (
                    "save_steps: expected a whole number of steps, at least 1, got -3. It means: optimizer steps "
                    "between checkpoints. Correct it, or leave it out for its default."
                ),
            ),
            (
                {"packing": 1},
                (
                    "packing: expected true or false, got 1. It means: fill sequences with several rows each. Correct "
                    "it, or leave it out for its default."
                ),
            ),
            (
                {"prompt_style": "alpca"},
                "prompt_style: expected one of chat, alpaca, got 'alpca'. Did you mean alpaca?",
            ),
            (
                {"max_seq_length": 64},
                "max_new_tokens: expected less than max_seq_length (64), got 128. A prompt must fit beside its answer.",
            ),
            (
                {"train_rows": 3},
                (
                    "train_rows: expected at least batch_size (4), got 3. Raise train_rows, lower batch_size, or use "
                    "train_rows = 0 for all rows."
                ),
            ),
            (
                {"checkpoint_skip_layers": 4},
                (
                    "checkpoint_skip_layers: expected 0 without gradient_checkpointing, got 4. Leave it out, or set "
                    "gradient_checkpointing = True; otherwise all layers keep their activations."
                ),
            ),
            (
                {"gradient_checkpointing": True, "checkpoint_skip_layers": -1},
                (
                    "checkpoint_skip_layers: expected a whole number of layers, at least 0, got -1. It means: layers "
                    "exempt from gradient_checkpointing. Correct it, or leave it out for its default."
                ),
            ),
            (
                {"prompt_style": "alpaca", "system_prompt": "Be brief."},
                (
                    "system_prompt: expected none with prompt_style \"alpaca\", got 'Be brief.'. "
                    'The Alpaca block has a fixed preamble. Use prompt_style "chat".'
                ),
            ),
        ],
    )
    def test_the_message(self, given, message):
        """The message is exactly this."""
        assert str(error_of(**given)) == message

    @pytest.mark.parametrize("preset", ["smok", "", None, 3, ["smoke"]])
    def test_an_unknown_preset(self, preset):
        """The error lists the presets."""
        error = error_of(preset=preset)
        assert error.field == "preset"
        assert error.expected == "one of auto, smoke, colab-t4, large-gpu, gpu-ci"

    def test_an_unknown_task(self):
        """The error lists the tasks."""
        assert str(error_of(task="dollly")) == (
            "task: expected one of alpaca, dolly, got 'dollly'. Did you mean dolly?"
        )

    @pytest.mark.parametrize(
        "name", ["../x", "a/b", "/tmp/x", "..", ".hidden", "a b", "a\n", "x" * 101, "C:\\x", "é", "-x"]
    )
    def test_a_run_name_that_could_leave_its_folder(self, name):
        """Only plain folder names are run names."""
        error = error_of(run_name=name)
        assert (error.field, error.got) == ("run_name", name)
        assert error.remedy == "It names a folder under runs/ and cannot lead out of it."

    def test_a_run_name_that_is_a_number(self):
        """YAML, and so `papermill -p`, reads 2026 as one."""
        expected = "run_name: expected text, in quotes, got 2026. With papermill, give it by -r, not -p."
        assert str(error_of(run_name=2026)) == expected

    @pytest.mark.parametrize("name", ["a", "A-1_b.c", "9", "x" * 100])
    def test_plain_run_names(self, name):
        """Letters, digits, dots, dashes and underscores make a name."""
        assert build_config("alpaca", preset="smoke", run_name=name).run_name == name

    @pytest.mark.parametrize("name", ["mistral-7b-instuct", "", "./missing", "../missing", "a/b/c", "no such model"])
    def test_an_unknown_model(self, name):
        """What is no alias, hub id or folder is refused before anything is downloaded."""
        assert error_of(model_name=name).field == "model_name"

    def test_a_misspelt_alias_gets_a_hint(self):
        """The nearest alias is offered."""
        assert error_of(model_name="mistral-7b-instuct").remedy == "Did you mean mistral-7b-instruct?"

    def test_aliases_hub_ids_and_folders_are_models(self, tmp_path):
        """All three ways to name a model are accepted."""
        for name in (*MODELS, "org/name", "org/name-v0.3", str(tmp_path)):
            assert build_config("alpaca", preset="smoke", model_name=name).model.model_name == name

    def test_all_of_them_are_helpers_errors(self):
        """A caller catches one class."""
        assert isinstance(error_of(seed=-1), HelpersError)


class TestChanges:
    """What differs between two runs."""

    def test_changed_parameters_are_named_with_both_values(self):
        """Only what differs is listed, in the order of names; a missing value is None."""
        changes = changed_parameters({"b": 1, "a": 2, "c": 3}, {"b": 1, "a": 5, "d": 4})
        assert list(changes.items()) == [("a", (2, 5)), ("c", (3, None)), ("d", (None, 4))]

    def test_a_parameter_that_an_earlier_version_lacked_was_at_its_default(self):
        """So that its runs can be gone on with."""
        now = build_config("alpaca", preset="smoke").flat()
        earlier = {name: value for name, value in now.items() if name not in ("keep", "columns", "merge_16bit")}
        assert changed_parameters(earlier, now) == {}
        assert changed_parameters(earlier, now | {"keep": "best"}) == {"keep": ("last", "best")}
