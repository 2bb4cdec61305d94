# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#     provenance: []
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   mistral_qlora:
#     task: dolly
#     teaches: A business assistant from 1,000 rows of Dolly-15k, with exports that are reloaded and compared
#     gpu: T4
#     minutes_t4: 45
#     download_gb: 4.2
# ---

# %% [markdown]
# # A business assistant from a thousand rows
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/dolly_business.ipynb) [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://www.kaggle.com/notebooks/welcome?src=https://github.com/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/dolly_business.ipynb) [![View in nbviewer](https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg)](https://nbviewer.org/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/dolly_business.ipynb)
#
# A company wants an assistant that talks about its own matters, in its own manner, and that it can hand over as a file.
# This notebook makes one for product development, business decisions and AI in companies: Mistral-7B-Instruct, tuned on
# 1,000 rows of Dolly-15k, which employees of Databricks wrote by hand in 2023.
#
# Most tools want a *merged* model, with the adapter's weights added into the model's own, and merging often goes wrong
# without a word. So adapter and merged model are each loaded in a fresh process, and compared with the tuned model.
#
# **You will learn**
#
# - how to choose a subset of a data set, and see what you chose,
# - how a system prompt gets into the training text and stays there,
# - how to train with Unsloth, PEFT and TRL, call by call,
# - what merging does, what it costs, and how to prove that it worked,
# - how to describe a model honestly before you share it.
#
# **What it needs.** On Colab: a free T4 GPU (*Runtime → Change runtime type → T4 GPU*), about 4 GB of downloads, 16 GB
# of disk for the merged model, and about three quarters of an hour. On Kaggle: *Settings → Accelerator → GPU T4* and
# *Internet on*. Without a GPU: `preset = "smoke"`, a small model with weak answers, in a few minutes. If terms such as *token*, *adapter* or *held-out* are new to you, take
# `alpaca_instruction` first.

# %% [markdown]
# ## 1. Parameters
#
# `preset` decides, and whatever is not `None` wins over it. The second block may stay as it is.

# %% tags=["parameters"]
preset = "auto"  # type: str  auto, colab-t4, large-gpu or smoke
run_name = None  # type: str  folder under runs/; None takes the task and the preset
resume = "auto"  # type: str  auto (go on with an earlier run), never (start over) or must
model_name = None  # type: str  alias, hub id or local folder of the base model
dataset_name = None  # type: str  hub id, local .json/.jsonl/.csv/.tsv/.parquet file, or sample for the bundled rows
train_rows = None  # type: int  rows to train on; 0 takes all [rows]
heldout_rows = None  # type: int  rows kept apart to measure the loss on [rows]
category = None  # type: str  only rows of these categories, separated by commas
prompt_style = None  # type: str  chat (the model's own template) or alpaca (Stanford's text block)
system_prompt = None  # type: str  what the assistant is told before the first message; chat style only
lora_rank = None  # type: int  rank of the adapter's matrices [dimensions]
learning_rate = None  # type: float  peak learning rate, after warm-up
num_epochs = None  # type: float  times each row is seen, unless max_steps ends training first [epochs]
max_steps = None  # type: int  end after this many optimizer steps [steps]
persist_dir = None  # type: str  second folder for checkpoints and adapter, such as one on Google Drive
max_new_tokens = None  # type: int  longest answer [tokens]
merge_16bit = None  # type: bool  also save the model with the adapter merged in, in 16 bit
gguf_quantization = None  # type: str  also save a GGUF file of this type, such as q8_0 or f16
push_to = None  # type: str  hub repository to upload to, as owner/name
push_private = None  # type: bool  create that repository as private

# For specialists: what the presets know already.
columns = None  # type: str  which column is what, where the names do not say
model_revision = None  # type: str  hub revision of the base model
max_seq_length = None  # type: int  longest row; longer ones are left out [tokens]
load_in_4bit = None  # type: bool  hold the base model's weights in 4 bit (NF4)
precision = None  # type: str  auto (what the card computes natively), bf16, fp16 or fp32
dataset_revision = None  # type: str  hub revision of the data set; pinned for the known ones
stratified = None  # type: bool  draw each category in proportion to its rows
lora_alpha = None  # type: int  the adapter's output is scaled by lora_alpha / lora_rank
lora_dropout = None  # type: float  share of the adapter's inputs dropped in training
batch_size = None  # type: int  rows in one forward pass [rows]
gradient_accumulation = None  # type: int  forward passes in one optimizer step [passes]
warmup_steps = None  # type: int  steps over which the learning rate rises [steps]
weight_decay = None  # type: float  pull of the adapter's weights towards zero
packing = None  # type: bool  fill sequences with several rows each
gradient_checkpointing = None  # type: bool  recompute activations to save memory
checkpoint_skip_layers = None  # type: int  layers exempt from gradient_checkpointing [layers]
varlen_attention = None  # type: bool  attention over all rows of a batch in one launch, if unsloth lacks it
cuda_graphs = None  # type: bool  record short passes as CUDA graphs, where the host is slower than the card
fused_adapters = None  # type: bool  take adapter products that read the same activations together
optimizer = None  # type: str  auto, adamw_8bit (less memory) or adamw_torch_fused (fewer launches)
save_steps = None  # type: int  optimizer steps between checkpoints [steps]
eval_steps = None  # type: int  optimizer steps between measurements of the held-out loss [steps]
keep = None  # type: str  which adapter is kept: last, or best by held-out loss
early_stopping = None  # type: int  end after so many held-out measurements without a new lowest [measurements]
report_to = None  # type: str  also show the losses in trackio, tensorboard or wandb; none for this notebook only
seed = None  # type: int  seed of row selection, adapter weights and data order
score_16bit_base = None  # type: bool  also try the adapter on the base in 16 bit, a large download

# %% [markdown]
# The next cell fetches this project's own small package, unless it is there already.

# %% tags=["notebook"]
import importlib.util
import subprocess
import sys

source = "git+https://github.com/mistral-qlora/mistral-qlora-notebooks@main"
if importlib.util.find_spec("helpers") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", source], check=False)
    importlib.invalidate_caches()
found = importlib.util.find_spec("helpers")
assert found, f"{source} could not be installed. Does this repository have that tag or branch? Is the network on (Kaggle: Settings, Internet on)? Then run again."
assert found.submodule_search_locations, f"{found.origin} hides this project's package of that name: rename it, and restart the kernel."

# %% [markdown]
# The parameters are checked before anything is downloaded. The table shows the whole run, the preset's values included.

# %%
from types import SimpleNamespace

from helpers.display.tables import show_table
from helpers.training.session import configure_notebook, start_run

config = configure_notebook("dolly", globals())
cfg = SimpleNamespace(**config.flat())
show_table(config.flat())

# %% [markdown]
# Then the packages, in exact versions.

# %% tags=["notebook"]
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# The folder that everything goes into. If the machine disconnects, run the notebook again with the same parameters:
# training goes on from its newest complete checkpoint; others need a new `run_name`. On Colab the disk is gone when a
# session ends: set `persist_dir = "/content/drive/MyDrive/runs"` before you begin, and the checkpoints are also kept on
# your Google Drive.

# %%
from helpers.model.load import prepare_unsloth

run = start_run(config, resume=resume)
prepare_unsloth()
print("this run:", run.shown())

# %% [markdown]
# The libraries. Unsloth makes transformers, PEFT and TRL faster by changing them when it is imported, so it comes
# first.

# %% tags=["core"]
from unsloth import FastLanguageModel  # first: it changes the others
import torch
from datasets import DatasetDict, load_dataset
from trl import SFTConfig, SFTTrainer

# %% [markdown]
# ## 2. A thousand rows, and what is in them
#
# A row of Dolly has an `instruction`, a `context` (a text that the instruction is about, often empty), a `response`
# and one of eight categories. The subset is drawn at random with a fixed seed, so that everyone gets the same rows;
# some are held out. (Preset `smoke` takes 128 bundled rows of the same form.)

# %%
from helpers.data.rows import draw_rows

drawn = draw_rows(config.data, config.task, config.train.seed, run.path, given=config.given)
print(drawn.describe())

# %% [markdown]
# `load_dataset` reads the data set as a table, and `select` takes the rows that were drawn.

# %% tags=["core"]
data = load_dataset(**drawn.source)
rows = DatasetDict(train=data["train"].select(drawn.train), heldout=data[drawn.part].select(drawn.heldout))
print(rows)

# %% [markdown]
# What did the draw give? The categories differ in what they teach: *closed_qa*, *information_extraction* and
# *summarization* work on a given text, *brainstorming* and *creative_writing* are free. Beside each bar stands the
# length of its median answer. If a category that you need is hardly there, choose rows with `category`.

# %% tags=["main"]
from helpers.display.tables import plot_categories

plot_categories(list(rows["train"]), run.path / "categories.png")

# %% [markdown]
# Dolly's contexts come from an encyclopaedia, and many still carry its reference marks, such as "[1]". Some answers copy
# them, and a model would too. They are removed from Dolly's rows; other data stays as it is.

# %% tags=["core"]
from helpers.data.prompts import clean_references

if cfg.dataset_name in ("databricks/databricks-dolly-15k", "sample"):
    rows = rows.map(lambda row: {name: clean_references(text) for name, text in row.items()})

# %% [markdown]
# Each row becomes three messages. The *system prompt* tells the assistant who it is; it is the same in every row, and
# will be the same whenever the assistant is used. `prompt` is what the model is given, `completion` what it learns to
# say.

# %% tags=["core"]
from helpers.data.prompts import alpaca_block


def to_messages(row):
    task, text = row["instruction"].strip(), (row.get("context") or "").strip()
    user = alpaca_block(task, text) if cfg.prompt_style == "alpaca" else f"{task}\n\n{text}".strip()
    system = [{"role": "system", "content": cfg.system_prompt}] if cfg.system_prompt else []
    return {
        "prompt": [*system, {"role": "user", "content": user}],
        "completion": [{"role": "assistant", "content": row["response"].strip()}],
    }


if drawn.conversations:
    chats = rows
else:
    chats = rows.map(to_messages, remove_columns=rows["train"].column_names)
print(chats["train"][0])

# %% [markdown]
# ## 3. The model, and from a row to tokens
#
# `machine` holds arguments for the libraries' calls that depend on the hardware; printed, each says why it is passed.
#
# The base model is loaded, in 4 bit on a GPU. No Mistral needs `trust_remote_code`, which would let the model's files
# run code of their own: transformers has the code.

# %% tags=["core"]
from helpers.training.machine import base_model, fit_machine

base, revision = base_model(config)
machine = fit_machine(config, run)
print(machine)

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=base,
    revision=revision,
    max_seq_length=cfg.max_seq_length,
    load_in_4bit=cfg.load_in_4bit,
    dtype=getattr(torch, machine.dtype),
    trust_remote_code=False,
    **machine.loading,
)

# %% [markdown]
# The *chat template* turns messages into text. The one that Mistral's files on the hub carry leaves the system prompt
# out of rows that end with an answer, so that the model would be trained without it and used with it. This one gives
# the same tokens as Mistral's own library. (The small model of preset `smoke` has another, ChatML.)

# %%
from helpers.data.chat_templates import find_template

template = find_template(tokenizer, cfg.prompt_style)
print("template:", template.name)

# %% tags=["core"]
tokenizer.chat_template = template.text
tokenizer.pad_token = template.pad_token  # fills rows up; if it were EOS, answers would never end
tokenizer.padding_side = "right"  # in training, rows are filled up after the answer

# %% [markdown]
# The same row as the text that the model reads. Look for the system prompt.

# %% tags=["main"]
first = chats["train"][0]
print(tokenizer.apply_chat_template(first["prompt"] + first["completion"], tokenize=False))

# %% [markdown]
# The first question, put to the model as it is. `generate` takes the likeliest token again and again (*greedy*
# decoding) until the token that ends an answer, *EOS*; `TextStreamer` prints prompt and answer as they come. The tuned
# model will answer the same question.

# %% tags=["notebook"]
from transformers import TextStreamer

question = "You are an AI consultant in a large industrial company. Suggest three concrete ways to use machine learning in predictive maintenance for production lines."


def answer(question):
    prompt = to_messages({"instruction": question, "response": ""})["prompt"]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    model.generation_config.max_length = None  # beside max_new_tokens it only causes warnings
    model.generate(
        **inputs.to(model.device), max_new_tokens=cfg.max_new_tokens, do_sample=False, streamer=streamer,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )


FastLanguageModel.for_inference(model)
answer(question)

# %% [markdown]
# All rows as tokens, each with a mask: 1 where a token is learned, 0 where it is only given. `template.masked` is the
# same template with marks around each answer; an answer that stands in the prompt is given.

# %% tags=["core"]
def tokenize(batch):
    chats = [
        [{**message, "given": True} for message in prompt] + completion
        for prompt, completion in zip(batch["prompt"], batch["completion"])
    ]
    whole = tokenizer.apply_chat_template(
        chats, chat_template=template.masked, return_dict=True, return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_attention_mask": False},
    )
    return {"input_ids": whole["input_ids"], "completion_mask": whole["assistant_masks"]}


tokens = chats.map(tokenize, batched=True, remove_columns=["prompt", "completion"])
print(tokens)

# %% [markdown]
# Every row is checked: the system prompt is inside, the answer and its end (EOS) are learned, and nothing else. Rows
# that are too long are left out and counted. The system prompt costs tokens in every row; none of them is learned.

# %%
from helpers.data.contract import check_tokens

limit = cfg.max_seq_length
checked = {part: check_tokens(tokens[part], chats[part], tokenizer, max_seq_length=limit) for part in tokens}
show_table([{"part": part, **found.summary()} for part, found in checked.items()])

# %% tags=["core"]
train_dataset = tokens["train"].select(checked["train"].kept)
heldout_dataset = tokens["heldout"].select(checked["heldout"].kept)

# %% [markdown]
# The shortest row with its mask: grey is given, underlined blue is learned.

# %% tags=["main"]
from helpers.display.tables import show_mask

show_mask(min(train_dataset, key=lambda row: len(row["input_ids"])), tokenizer)

# %% [markdown]
# ## 4. Train for one epoch
#
# One *epoch* shows the model each row once. For a thousand rows that is usually enough: the model has the knowledge
# already, it learns a manner. First, how the rows of an optimizer step are laid out on this card, and why.
#
# A fresh adapter on `target_modules` is what will learn; everything else stays frozen. Its *rank* says how much it can
# hold, *alpha* how much it counts. The last line says how few numbers are trained.

# %% tags=["core"]
from helpers.training.machine import fit_layout

layout = fit_layout(config, checked["train"].lengths, run)
config = layout.config

model = FastLanguageModel.get_peft_model(
    model,
    r=cfg.lora_rank,
    lora_alpha=cfg.lora_alpha,
    lora_dropout=cfg.lora_dropout,
    bias="none",  # a trained bias would stay when the adapter is switched off
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    use_gradient_checkpointing="unsloth" if layout.gradient_checkpointing else False,
    random_state=cfg.seed,
    **layout.lora,
)
model.print_trainable_parameters()

# %% [markdown]
# Rows and template get a hash: going on with others fails. Two callbacks watch. `record` measures the loss on the
# held-out rows before, during and after training; `checkpoints` saves all that is needed to go on. The *learning rate*,
# how far a step goes, rises over the first few steps and then falls to nearly zero.

# %%
from helpers.training.callbacks import Checkpoints, TrainingRecord
from helpers.training.session import record_data

record_data(
    run, rows, task=config.task, source=drawn.rows.source, left_out=drawn.rows.left_out,
    tokenizer=tokenizer, template=template.name, base=base,
    base_commit=getattr(model.config, "_commit_hash", None),
)
held = rows["heldout"].select(checked["heldout"].kept)  # those of one context, or one question, count once
record = TrainingRecord(run, config, train_dataset, heldout_dataset, heldout_rows=held)
checkpoints = Checkpoints(record)

# %% tags=["core"]
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=train_dataset,
    args=SFTConfig(
        output_dir=checkpoints.folder,
        max_length=cfg.max_seq_length,
        completion_only_loss=True,  # the loss counts the mask's ones alone
        packing=cfg.packing,
        per_device_train_batch_size=layout.batch_size,
        gradient_accumulation_steps=layout.gradient_accumulation,
        num_train_epochs=cfg.num_epochs,
        max_steps=cfg.max_steps or -1,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=cfg.weight_decay,
        seed=cfg.seed,
        data_seed=cfg.seed,
        logging_steps=1,
        save_steps=cfg.save_steps,
        **machine.sft,
    ),
    callbacks=[record, checkpoints],
)

# %% [markdown]
# The trainer's own tokens and *labels*, what it learns, are compared with the checked ones. The table's last six lines
# concern speed.

# %%
from helpers.training.speed import check_trainer, count_steps, fast_training

mode = check_trainer(trainer, config, train_dataset)
steps = count_steps(trainer)
show_table({"optimizer steps": steps, "rows or packed sequences a step": config.train.rows_per_step(), **mode})

# %% [markdown]
# `fast_training` computes the same, but for rounding, faster. A short training warms up for at most half of its steps.

# %% tags=["core"]
trainer.args.warmup_steps = min(cfg.warmup_steps, steps // 2)
with fast_training(trainer, checkpoints):
    trainer.train(resume_from_checkpoint=checkpoints.latest(trainer))

# %% [markdown]
# The held-out loss (blue) should fall, quickly, then slowly. The training loss (grey) jumps, as each step sees other
# rows. If it falls and blue rises, the model learns its rows by heart. If both rise, the learning rate is too high. Fixed
# rules judge the curve; the rows' mean change has an interval, because it may be luck. Whether these are the answers that
# you want, section 7 asks.

# %% tags=["main"]
from helpers.display.tables import plot_losses
from helpers.training.curves import judge_curve
from helpers.training.result import describe_change

run.update_metrics(**record.result.metrics())
print(judge_curve(run.metrics()).text)
print(describe_change(record.result))
plot_losses(run.metrics(), run.path / "loss.png")

# %% [markdown]
# ## 5. Save the adapter, and prove it
#
# `save_pretrained` writes the adapter, and the tokenizer with its template. The folder appears whole or not at all.

# %% tags=["core", "main"]
from helpers.export import hub_name, saving_adapter

with saving_adapter(model, tokenizer, run.adapter, base=hub_name(config.model.model_name)) as adapter:
    model.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)

# %% [markdown]
# The training cells are also written into the run's folder, as a plain script with these values.

# %% tags=["main"]
from helpers.training.script import write_script

script = write_script(run, globals())

# %% [markdown]
# The tuned model and its base answer a few fixed questions. Their *logits*, one number for each token that could come
# next, are the yardstick for both exports. Then a fresh process loads the saved adapter with nothing but transformers
# and PEFT, as a stranger would. To pass, it must be close to the tuned model *and* far from the base. It also scores
# the held-out rows: how much of the gain is kept?

# %% tags=["notebook"]
from helpers.export import HeldOut, measure_reference, sixteen_bit_name, verify_adapter
from helpers.training.persist import keep_result

scored = record.result
heldout = HeldOut(heldout_dataset, scored.heldout_before, scored.heldout_after, scored.heldout_sources)
reference, other = measure_reference(model, tokenizer), sixteen_bit_name(base) if cfg.score_16bit_base else None
proof = verify_adapter(model, tokenizer, run.adapter, reference=reference, heldout=heldout, base_16bit=other)
proofs = {"adapter": proof.require()}
print(proof.lines())
if cfg.persist_dir:
    print(keep_result(run, cfg.persist_dir))

# %% [markdown]
# ## 6. Merge, and prove that too
#
# An adapter has two thin matrices, $A$ and $B$, for each weight matrix $W$. Merging adds $\frac{\alpha}{r} BA$ ($r$ is
# the rank) to $W$, in 16 bit. The result needs no PEFT, and is as large as the whole model. Where the base was in 4
# bit, its weights are expanded first: these are the weights that the adapter was trained with. Then the same test;
# besides, every matrix in the file is compared with base plus adapter. It is not exactly the tuned model: the lines say
# how far it is off, and how much of it rounding explains. `gguf_quantization = "q8_0"` makes a GGUF file of it, for
# llama.cpp and Ollama, and prints three lines that start a chat there.

# %% tags=["notebook"]
from helpers.export import export_gguf, merge_16bit, serving_lines, verify_merged

folders = {"adapter": run.adapter, "merged": run.path / "merged", "gguf": run.path / "gguf"}
if cfg.merge_16bit:
    merged = merge_16bit(model, tokenizer, folders["merged"])
    print(f"{merged.merged} matrices merged, {merged.bytes / 2**30:.2f} GiB in {merged.dtype}")
    proof = verify_merged(model, tokenizer, folders["merged"], reference=reference, heldout=heldout)
    proofs["merged"] = proof.require()
    print(proof.lines())
if cfg.gguf_quantization:
    asking = {"system": cfg.system_prompt, "max_seq_length": cfg.max_seq_length, "heldout": heldout}
    file = export_gguf(folders["merged"], folders["gguf"], quantization=cfg.gguf_quantization, **asking)
    proofs["gguf"] = file.verification()
    print(proofs["gguf"].lines(), serving_lines("gguf", str(folders["gguf"])), sep="\n")

# %% [markdown]
# What was proven goes into `manifest.json`, and into a *model card* beside each export: what it was made from, how it
# measured, what it is for and what it is not for.

# %% tags=["notebook"]
from helpers.export import write_card

run.update_manifest(exports={name: proof.as_dict() for name, proof in proofs.items()})
for name, proof in proofs.items():
    print(write_card(folders[name], run, config, verification=proof).relative_to(run.path))

# %% [markdown]
# ## 7. Load it back, and ask it about business
#
# As on another day: the base model afresh, and `PeftModel` puts the saved adapter on it. It must find the held-out
# answers as likely as the trained model did, but for rounding. CANNOT TELL: training moved them less than four times as
# far.

# %%
from helpers.model.load import free_memory
from helpers.training.reload import prove_adapter
from peft import PeftModel

del trainer, model
free_memory()
model, _ = FastLanguageModel.from_pretrained(
    model_name=base,
    revision=revision,
    max_seq_length=cfg.max_seq_length,
    load_in_4bit=cfg.load_in_4bit,
    dtype=getattr(torch, machine.dtype),
    trust_remote_code=False,
    **machine.loading,
)
model = PeftModel.from_pretrained(model, str(run.adapter))
print(prove_adapter(model, record))

# %% [markdown]
# The question from the beginning, with the adapter.

# %% tags=["notebook"]
FastLanguageModel.for_inference(model)
answer(question)

# %% [markdown]
# Prompts as a colleague might write them, the first one again; preset `smoke` takes eight. They were written for this
# project, not taken from Dolly. The tuned model and its base answer all, with the system prompt of the training.
#
# Read them as an editor would. Are the suggestions concrete and plausible? Do they stay on the topic? Is the form
# useful: as many items as were asked for, a beginning and an end? The notebook `side_by_side_eval` asks the same of
# people who do not know whose answer is which.

# %% tags=["notebook"]
from helpers.core.files import write_json
from helpers.data.rows import read_prompts
from helpers.model.decoding import fast_generate

business_prompts = [each["prompt"] for each in read_prompts()[: 8 if config.preset == "smoke" else None]]
asked = [to_messages({"instruction": each, "response": ""})["prompt"] for each in business_prompts]
answers = fast_generate(model, tokenizer, asked, max_new_tokens=cfg.max_new_tokens)
pairs = zip(business_prompts, answers["base"], answers["tuned"])
shown = [{"prompt": asked, "base": before.text, "tuned": after.text} for asked, before, after in pairs]
kept = [{"instruction": each["prompt"], "base": each["base"], "answer": each["tuned"]} for each in shown]
write_json(run.path / "answers.json", {"answers": kept})
show_table(shown)

# %% [markdown]
# ## 8. All that ran
#
# The training without the checks, as a script that needs only the libraries; `python -m helpers eject RUN` prints it
# too.

# %% tags=["notebook"]
print(script)

# %% [markdown]
# ## 9. Take it with you
#
# `push_to = "owner/name"` uploads to the Hugging Face hub. The token comes from `HF_TOKEN` in the environment or in
# Colab's secrets, never from a parameter. The zip holds adapter, card, script, figures, rows and answers: on Colab, in the
# list of files.

# %% tags=["notebook"]
from helpers.export import publish, zip_run

if cfg.push_to:
    name = "merged" if cfg.merge_16bit else "adapter"  # one of the two is uploaded
    write_card(folders[name], run, config, verification=proofs[name], name=cfg.push_to)
    pushed = publish(folders[name], cfg.push_to, private=cfg.push_private)
    print(pushed.url, f"{pushed.files} files compared")
print(zip_run(run))

# %%
from helpers.training.session import finish_run

finish_run(run)

# %% [markdown]
# ## Summary
#
# - A seeded draw and a plot of its categories say what the assistant learned from.
# - The system prompt is in the training text and in every question, token for token.
# - Adapter and merged model were each loaded again by a process that knows nothing of the training, and were
#   close to the tuned model, far from its base.
# - The model card says what was done, with numbers, and what the assistant is not for.
#
# ## Your turn
#
# 1. Under a new `run_name`, train on `category = "brainstorming"` alone. What happens to the held-out loss, and what to
#    the answers? (Preset `smoke` has 16 such rows, and 5 held out: set `num_epochs = 4` too, for enough steps.)
# 2. Write your own `system_prompt`, for your company. Does the assistant keep to it when a question leads away from it?
# 3. Compare the sizes of `adapter` and `merged` in the run's folder. What does one give up with `merge_16bit = False`?
# 4. Run `side_by_side_eval` on this adapter (`adapter_dir` takes this run's name), and let a colleague vote without knowing which answer is whose.
