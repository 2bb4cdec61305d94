"""What the package uses of unsloth, trl, peft, transformers and their neighbours is still there, under its names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import sources
from sources import calls_into, definitions, keys_of, takes

HELPERS = Path(__file__).resolve().parent.parent / "helpers"
LIBRARIES = ("bitsandbytes", "datasets", "huggingface_hub", "peft", "transformers", "trl", "unsloth", "unsloth_zoo")

HF_BASE, HF_AUTO = "transformers/tokenization_utils_base.py", "transformers/models/auto"
SFT = (
    "trl/trainer/sft_config.py SFTConfig",
    "trl/trainer/base_config.py _BaseConfig",
    "transformers/training_args.py TrainingArguments",
)
MODEL = ("transformers/modeling_utils.py PreTrainedModel.from_pretrained",)
CONFIG = ("transformers/configuration_utils.py PreTrainedConfig._get_config_dict",)

IMPORTED = {
    "bitsandbytes.functional.dequantize_4bit": ("bitsandbytes/functional.py dequantize_4bit",),
    "datasets.Dataset": ("datasets/arrow_dataset.py Dataset",),
    "datasets.DatasetDict": ("datasets/dataset_dict.py DatasetDict",),
    "datasets.config.HF_DATASETS_CACHE": ("datasets/config.py HF_DATASETS_CACHE",),
    "datasets.load_dataset": ("datasets/load.py load_dataset",),
    "huggingface_hub.HfApi": ("huggingface_hub/hf_api.py HfApi",),
    "huggingface_hub.ModelCardData": ("huggingface_hub/repocard_data.py ModelCardData",),
    "huggingface_hub.constants.HF_HUB_CACHE": ("huggingface_hub/constants.py HF_HUB_CACHE",),
    "huggingface_hub.get_token": ("huggingface_hub/utils/_auth.py get_token",),
    "huggingface_hub.split_state_dict_into_shards_factory": (
        "huggingface_hub/serialization/_base.py split_state_dict_into_shards_factory",
    ),
    "huggingface_hub.try_to_load_from_cache": ("huggingface_hub/file_download.py try_to_load_from_cache",),
    "peft.LoraConfig": ("peft/tuners/lora/config.py LoraConfig",),
    "peft.PeftModel": ("peft/peft_model.py PeftModel",),
    "peft.PeftModel.from_pretrained": ("peft/peft_model.py PeftModel.from_pretrained",),
    "peft.get_peft_model_state_dict": ("peft/utils/save_and_load.py get_peft_model_state_dict",),
    "peft.tuners.lora.LoraLayer": ("peft/tuners/lora/layer.py LoraLayer",),
    "transformers.AutoConfig.from_pretrained": (f"{HF_AUTO}/configuration_auto.py AutoConfig.from_pretrained", *CONFIG),
    "transformers.AutoModelForCausalLM.from_pretrained": (
        f"{HF_AUTO}/auto_factory.py _BaseAutoModelClass.from_pretrained",
        *MODEL,
    ),
    "transformers.AutoTokenizer.from_pretrained": (
        f"{HF_AUTO}/tokenization_auto.py AutoTokenizer.from_pretrained",
        f"{HF_BASE} PreTrainedTokenizerBase.from_pretrained",
    ),
    "transformers.GenerationConfig": ("transformers/generation/configuration_utils.py GenerationConfig",),
    "transformers.PreTrainedTokenizerBase": (f"{HF_BASE} PreTrainedTokenizerBase",),
    "transformers.PrinterCallback": ("transformers/trainer_callback.py PrinterCallback",),
    "transformers.TextStreamer": (
        "transformers/generation/streamers.py TextStreamer",
        f"{HF_BASE} PreTrainedTokenizerBase.decode",
    ),
    "transformers.TrainerCallback": ("transformers/trainer_callback.py TrainerCallback",),
    "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS": ("transformers/modeling_utils.py ALL_ATTENTION_FUNCTIONS",),
    "transformers.trainer_callback.TrainerState.load_from_json": (
        "transformers/trainer_callback.py TrainerState.load_from_json",
    ),
    "transformers.trainer_utils.TrainOutput": ("transformers/trainer_utils.py TrainOutput",),
    "trl.SFTConfig": SFT,
    "trl.SFTTrainer": ("trl/trainer/sft_trainer.py SFTTrainer",),
    "unsloth.FastLanguageModel.for_inference": ("unsloth/models/loader.py FastLanguageModel.for_inference",),
    "unsloth.FastLanguageModel.for_training": ("unsloth/models/loader.py FastLanguageModel.for_training",),
    "unsloth.FastLanguageModel.from_pretrained": ("unsloth/models/loader.py FastLanguageModel.from_pretrained",),
    "unsloth.FastLanguageModel.get_peft_model": ("unsloth/models/llama.py FastLlamaModel.get_peft_model",),
    "unsloth.kernels.fast_lora": ("unsloth/kernels/fast_lora.py",),
    "unsloth.kernels.utils": ("unsloth/kernels/utils.py",),
    "unsloth.utils.attention_dispatch": ("unsloth/utils/attention_dispatch.py",),
    "unsloth.utils.packing": ("unsloth/utils/packing.py",),
    "unsloth_zoo.gradient_checkpointing.in_gradient_checkpoint_recompute": (
        "unsloth_zoo/gradient_checkpointing.py in_gradient_checkpoint_recompute",
    ),
}
"""Where each thing that the package imports is defined; together the places take all keywords."""

USED = {
    # what is used of objects that other packages make: (place, keywords)
    "bitsandbytes/functional.py QuantState": ("absmax", "blocksize", "quant_type", "dtype"),
    "datasets/arrow_dataset.py Dataset.with_format": ("type",),
    "huggingface_hub/hf_api.py HfApi.create_repo": ("private", "exist_ok", "repo_type"),
    "huggingface_hub/hf_api.py HfApi.upload_folder": ("repo_id", "folder_path", "commit_message"),
    "peft/peft_model.py PeftModel.active_adapters": (),
    "peft/peft_model.py PeftModel.disable_adapter": (),
    "peft/peft_model.py PeftModel.get_base_model": (),
    "peft/peft_model.py PeftModel.get_nb_trainable_parameters": (),
    "peft/peft_model.py PeftModel.peft_config": (),
    "peft/peft_model.py PeftModel.save_pretrained": (),
    "peft/tuners/lora/layer.py LoraLayer.base_layer": (),
    "peft/tuners/lora/layer.py LoraLayer.lora_A": (),
    "peft/tuners/lora/layer.py LoraLayer.lora_B": (),
    "peft/tuners/lora/layer.py LoraLayer.scaling": (),
    "transformers/generation/configuration_utils.py GenerationConfig": (
        "do_sample",
        "eos_token_id",
        "max_new_tokens",
        "pad_token_id",
        "temperature",
        "top_k",
        "top_p",
    ),
    "transformers/generation/utils.py GenerationMixin.generate": ("streamer",),
    f"{HF_BASE} PreTrainedTokenizerBase.__call__": ("add_special_tokens", "padding", "return_tensors"),
    f"{HF_BASE} PreTrainedTokenizerBase.apply_chat_template": ("add_generation_prompt", "return_dict", "tokenize"),
    f"{HF_BASE} PreTrainedTokenizerBase.decode": ("skip_special_tokens",),
    "transformers/modeling_utils.py PreTrainedModel.save_pretrained": (),
    "transformers/trainer.py OPTIMIZER_NAME": (),
    "transformers/trainer.py SCHEDULER_NAME": (),
    "transformers/trainer.py TRAINER_STATE_NAME": (),
    "transformers/trainer.py Trainer.add_callback": ("callback",),
    "transformers/trainer.py Trainer.remove_callback": ("callback",),
    "transformers/trainer.py Trainer.train": ("resume_from_checkpoint",),
    "transformers/trainer.py Trainer.training_step": ("model", "inputs"),
    "transformers/trainer_callback.py TrainerCallback.on_log": ("args", "state", "control"),
    "transformers/trainer_callback.py TrainerCallback.on_save": ("args", "state", "control"),
    "transformers/trainer_callback.py TrainerCallback.on_step_begin": ("args", "state", "control"),
    "transformers/trainer_callback.py TrainerCallback.on_train_begin": ("args", "state", "control"),
    "transformers/trainer_callback.py TrainerControl": ("should_save",),
    "transformers/trainer_callback.py TrainerState": ("epoch", "global_step", "max_steps", "save_steps"),
    "transformers/training_args.py OptimizerNames.ADAMW_8BIT": (),
    "transformers/training_args.py OptimizerNames.ADAMW_TORCH": (),
    "transformers/training_args.py OptimizerNames.ADAMW_TORCH_FUSED": (),
    "unsloth/kernels/fast_lora.py LoRA_MLP": (),
    "unsloth/kernels/utils.py fast_dequantize": ("W", "quant_state", "out", "use_global_buffer", "dtype"),
    "unsloth/kernels/utils.py matmul_lora": (),
    "unsloth/models/_utils.py HAS_FLASH_ATTENTION": (),
    "transformers/training_args.py TrainingArguments": ("max_steps", "warmup_steps"),
    "unsloth/models/loader.py FastLanguageModel.from_pretrained": (
        "device_map",
        "device_map_planner_kwargs",
        "revision",
    ),
    "unsloth/models/loader_utils.py UNSLOTH_DEVICE_MAP": (),
    "unsloth/utils/attention_dispatch.py FLASH_VARLEN": (),
    "unsloth/utils/attention_dispatch.py HAS_XFORMERS": (),
    "unsloth/utils/attention_dispatch.py flash_attn_varlen_func": (),
    "unsloth/utils/attention_dispatch.py select_attention_backend": ("use_varlen", "dropout_p"),
    "unsloth/utils/packing.py _PACKED_HOST_LENGTHS_CACHE": (),
    "unsloth/utils/packing.py _PACKED_INFO_CACHE": (),
}


NOTEBOOKS = HELPERS.parent / "notebooks"
TRAINING = HELPERS / "training"


@cache
def uses():
    """Return what the package and the notebooks call, with which keywords, and where."""
    return calls_into(HELPERS, LIBRARIES) | calls_into(NOTEBOOKS, LIBRARIES)


def settings():
    """Return what the trainer is told."""
    return (
        {keyword for name, keyword, _ in uses() if name == "trl.SFTConfig" and keyword}
        | keys_of(TRAINING / "machine.py", "fit_machine", "sft")
        | keys_of(TRAINING / "tracking.py", "tracking_arguments")
    )


DICTIONARIES = ("datasets.DatasetDict",)
"""A dictionary takes any keyword."""


def what_moved(read=USED):
    """Return a sentence for each thing that the package uses and that is not there any more.

    Args:
        read: What is read without being imported or called.
    """
    moved = []
    for name, keyword, where in sorted(uses(), key=str):
        places = IMPORTED.get(name, ())
        found = [node for place in places for node in definitions(place)]
        if not found:
            moved.append(f"{name}, used in {where}, is not in {' or '.join(places) or 'the table IMPORTED'}")
        elif keyword and name not in DICTIONARIES and not any(takes(node, keyword) for node in found):
            moved.append(f"{name} does not take {keyword}, which {where} gives")
    for place, keywords in read.items():
        found = definitions(place)
        moved += [] if found else [f"{place} is gone"]
        moved += [f"{place} has no {each}" for each in keywords if found and not any(takes(n, each) for n in found)]
    known = [node for place in SFT for node in definitions(place)]
    return moved + [f"SFTConfig has no {each}" for each in sorted(settings()) if not any(takes(n, each) for n in known)]


def test_nothing_moved():
    """All that is imported, called and set exists, and takes the keywords that it is given."""
    assert what_moved() == []


def test_every_import_is_named():
    """The table of imports has what package and notebooks import, and nothing that they do not."""
    used = {name for name, _, _ in uses()}
    assert used == set(IMPORTED)


def test_settings_are_found():
    """The settings that are checked are those of the trainer and of the trackers."""
    assert {"max_length", "completion_only_loss", "packing", "optim", "report_to", "run_name", "project"} <= settings()


def test_an_upgrade_unpacks_what_is_read():
    """`scripts/lock --upgrade` unpacks each library that is read here, and runs this file on them."""
    script = (HELPERS.parent / "scripts" / "lock").read_text(encoding="utf-8")
    unpacked = re.search(r"\^\(([a-z|-]+)\)==", script)[1].split("|")
    assert [name.replace("-", "_") for name in unpacked] == list(LIBRARIES)
    assert 'STACK_SOURCES="$sources" "$python" -m pytest -q -vv tests/test_drift.py' in script


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (
            "max_length: int",
            "maximum_length: int",
            [
                "trl.SFTConfig does not take max_length, which notebooks/alpaca_instruction.py gives",
                "trl.SFTConfig does not take max_length, which notebooks/dolly_business.py gives",
                "SFTConfig has no max_length",
            ],
        ),
        (
            "processing_class: ",
            "tokenizer: ",
            [
                "trl.SFTTrainer does not take processing_class, which notebooks/alpaca_instruction.py gives",
                "trl.SFTTrainer does not take processing_class, which notebooks/dolly_business.py gives",
            ],
        ),
        (
            "class SFTTrainer",
            "class Trainer",
            [
                f"trl.SFTTrainer, used in notebooks/{name}.py, is not in trl/trainer/sft_trainer.py SFTTrainer"
                for _ in range(6)
                for name in ("alpaca_instruction", "dolly_business")
            ],
        ),
    ],
)
def test_what_moved_is_named(before, after, named, tmp_path, monkeypatch):
    """A setting, an argument or a class that has another name is told, with the place that uses it."""
    (tmp_path / "trl" / "trainer").mkdir(parents=True)
    for name in ("sft_config", "base_config", "sft_trainer"):
        text = (sources.package_root("trl") / f"trl/trainer/{name}.py").read_text(encoding="utf-8")
        (tmp_path / "trl" / "trainer" / f"{name}.py").write_text(text.replace(before, after), encoding="utf-8")
    monkeypatch.setenv("STACK_SOURCES", str(tmp_path))
    sources.package_root.cache_clear()
    try:
        assert what_moved(read={}) == named
    finally:
        sources.package_root.cache_clear()
