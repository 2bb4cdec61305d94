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
#     task: alpaca
#     teaches: Instruction tuning with Alpaca-cleaned, from a raw row to a tested adapter
#     gpu: T4
#     minutes_t4: 45
#     download_gb: 4.2
# ---

# %% [markdown]
# # Fine-tune Mistral-7B-Instruct on Alpaca-cleaned
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/alpaca_instruction.ipynb) [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://www.kaggle.com/notebooks/welcome?src=https://github.com/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/alpaca_instruction.ipynb) [![View in nbviewer](https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg)](https://nbviewer.org/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/alpaca_instruction.ipynb)
#
# A language model continues text: it gives every possible next *token*, a word or a piece of one, a probability.
# Mistral-7B-Instruct was trained further, until it does what a sentence asks of it. This notebook *fine-tunes* it: it
# trains it a little more, on rows of Alpaca-cleaned, small tasks with good answers. Some rows are held out of the
# training, and on these it measures whether that helped.
#
# The model has seven billion numbers, its *weights*; trained in full they do not fit on a free GPU. QLoRA makes them
# fit with two ideas: the weights are *quantized*, rounded to 4 bit and never changed, and a small *adapter* beside
# them, called LoRA, does the learning.
#
# Every call of the libraries stands in a cell: `datasets` for the rows, Unsloth for the model, PEFT for LoRA, TRL for
# the training. What is imported from `helpers`, this project's own package, only checks, watches and proves.
#
# **You will learn**
#
# - what a row becomes before a model can learn from it,
# - what LoRA trains, and how little that is,
# - how to see, token by token, what the model is asked to learn,
# - how to tell from held-out rows whether training helped,
# - how to save an adapter, load it back and prove that it works.
#
# **What it needs.** On Colab: a free T4 GPU (*Runtime → Change runtime type → T4 GPU*), a download of about 4 GB,
# 16 GB of disk for the merged model, and about three quarters of an hour. On Kaggle: *Settings → Accelerator → GPU T4* and *Internet on*. Without a GPU: preset `smoke`,
# which does every step with a small model in a few minutes.

# %% [markdown]
# ## 1. Parameters
#
# `preset` is the one that matters: `auto` looks at the GPU and chooses `colab-t4` or `large-gpu`; `smoke` runs
# anywhere. `None` takes the preset's value, and a value that you write here wins over it. The second block may stay as
# it is; each word there is explained in `docs/`.

# %% tags=["parameters"]
preset = "auto"  # type: str  auto, colab-t4, large-gpu or smoke
run_name = None  # type: str  folder under runs/; None takes the task and the preset
resume = "auto"  # type: str  auto (go on with an earlier run), never (start over) or must
model_name = None  # type: str  alias, hub id or local folder of the base model
dataset_name = None  # type: str  hub id, local .json/.jsonl/.csv/.parquet file, or sample for the bundled rows
train_rows = None  # type: int  rows to train on; 0 takes all [rows]
heldout_rows = None  # type: int  rows kept apart to measure the loss on [rows]
prompt_style = None  # type: str  chat (the model's own template) or alpaca (Stanford's text block)
system_prompt = None  # type: str  what the assistant is told before the first message; chat style only
lora_rank = None  # type: int  rank of the adapter's matrices [dimensions]
learning_rate = None  # type: float  peak learning rate, after warm-up
num_epochs = None  # type: float  times each row is seen, if max_steps does not end it before [epochs]
max_steps = None  # type: int  end after this many optimizer steps [steps]
persist_dir = None  # type: str  second folder for checkpoints and adapter, such as one on Google Drive
max_new_tokens = None  # type: int  longest answer [tokens]
merge_16bit = None  # type: bool  also save the model with the adapter merged in, in 16 bit

# For specialists: what the presets know already.
columns = None  # type: str  which column is what, where the names do not say
model_revision = None  # type: str  hub revision of the base model
max_seq_length = None  # type: int  longest row; longer ones are left out [tokens]
load_in_4bit = None  # type: bool  hold the base model's weights in 4 bit (NF4)
precision = None  # type: str  auto (what the card computes natively), bf16, fp16 or fp32
dataset_revision = None  # type: str  hub revision of the data set; pinned for the known ones
lora_alpha = None  # type: int  the adapter's output is scaled by lora_alpha / lora_rank
lora_dropout = None  # type: float  share of the adapter's inputs dropped in training
batch_size = None  # type: int  rows in one forward pass [rows]
gradient_accumulation = None  # type: int  forward passes in one optimizer step [passes]
warmup_steps = None  # type: int  steps over which the learning rate rises [steps]
weight_decay = None  # type: float  pull of the adapter's weights towards zero
packing = None  # type: bool  fill sequences with several rows each
gradient_checkpointing = None  # type: bool  recompute activations to save memory
checkpoint_skip_layers = None  # type: int  layers that keep their activations all the same [layers]
varlen_attention = None  # type: bool  attention over all rows of a batch in one launch, where it is lacking
cuda_graphs = None  # type: bool  record short passes as CUDA graphs, where the host is slower than the card
optimizer = None  # type: str  auto, adamw_8bit (less memory) or adamw_torch_fused (fewer launches)
save_steps = None  # type: int  optimizer steps between checkpoints [steps]
eval_steps = None  # type: int  optimizer steps between measurements of the held-out loss [steps]
report_to = None  # type: str  also show the losses in trackio, tensorboard or wandb; none for this notebook only
seed = None  # type: int  seed of row selection, adapter weights and data order

# %% [markdown]
# On Colab the next cell fetches this project's own small package. Where it is installed already, nothing happens.

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
# The parameters are checked first, so that a typing mistake costs seconds and not a download. The table is the whole
# run: your values, and the preset's for all others. In the cells below each is `cfg.NAME`.

# %%
from types import SimpleNamespace

from helpers.display.tables import show_table
from helpers.training.session import configure_notebook

config = configure_notebook("alpaca", globals())
cfg = SimpleNamespace(**config.flat())
show_table(config.flat())

# %% [markdown]
# Now the packages, in exact versions, the same for everyone. On Colab the cell installs what is missing; elsewhere it
# only looks. Its last line begins with `ready:`, or says what to do.

# %% tags=["notebook"]
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# Everything that this run makes goes into one folder. Colab deletes the machine's disk when a session ends. If you set
# `persist_dir = "/content/drive/MyDrive/runs"`, then nothing that was saved is lost: each *checkpoint* of the training,
# and the adapter at the end, is also copied to your Google Drive, which the cell asks your permission to use. Run the
# notebook again with the same parameters, and it goes on from the newest checkpoint.

# %%
from helpers.model.load import prepare_unsloth
from helpers.training.session import start_run

run = start_run(config, resume=resume)
prepare_unsloth()
print("this run:", run.shown())

# %% [markdown]
# The libraries. Unsloth makes transformers, PEFT and TRL faster by changing them when it is imported, so it comes
# first.

# %% tags=["core"]
from unsloth import FastLanguageModel  # isort: skip
import random

import torch
from datasets import DatasetDict, load_dataset
from peft import PeftModel
from transformers import TextStreamer
from trl import SFTConfig, SFTTrainer

# %% [markdown]
# ## 2. Rows: what the model learns from
#
# A row has three columns: `instruction` says what to do, `input` holds the text to do it with and is often empty, and
# `output` is the answer to learn. The rows come from the *hub*, a public site of the company Hugging Face; preset
# `smoke` takes rows of the same form that come with this project.
#
# Which rows are trained on is drawn by chance, and `seed` fixes the draw: the same number, the same rows. The
# *held-out* rows are never trained on. They tell us later whether the model learned something general or just these
# sentences. Rows that are empty, or that ask the same as another, are left out and counted.

# %%
from helpers.data.rows import draw_rows

drawn = draw_rows(config.data, config.task, config.train.seed, run.path, given=config.given)
print(drawn.describe())

# %% [markdown]
# `load_dataset` reads the data set as a table, a `Dataset`; `select` takes the rows that were drawn.

# %% tags=["core"]
data = load_dataset(**drawn.source)
rows = DatasetDict(
    train=data["train"].select(drawn.train),
    heldout=data[drawn.part].select(drawn.heldout),
)
print(rows["train"][0])

# %% [markdown]
# A chat model does not know columns. It knows *messages*: something a user said, and something the assistant answered.
# `prompt` is what the model is given, `completion` what it learns to say; TRL uses the same two names. With
# `prompt_style = "alpaca"` the user's message is the text block of Stanford's Alpaca project.

# %% tags=["core"]
from helpers.data.prompts import alpaca_block


def to_messages(row):
    task, text = row["instruction"].strip(), (row.get("input") or "").strip()
    user = alpaca_block(task, text) if cfg.prompt_style == "alpaca" else f"{task}\n\n{text}".strip()
    system = [{"role": "system", "content": cfg.system_prompt}] if cfg.system_prompt else []
    return {
        "prompt": [*system, {"role": "user", "content": user}],
        "completion": [{"role": "assistant", "content": row["output"].strip()}],
    }


if "prompt" in rows["train"].column_names:
    chats = rows  # a data set of conversations
else:
    chats = rows.map(to_messages, remove_columns=rows["train"].column_names)
print(chats["train"][0])

# %% [markdown]
# ## 3. The model
#
# 4 bit can tell 16 values apart. Most weights are near zero, so the format *NF4* puts its levels close together there.
# A block of 64 weights is divided by its largest, and each is stored as the number of the nearest level.

# %% tags=["main"]
from helpers.display.diagrams import show_drawing

show_drawing("nf4")

# %% [markdown]
# `machine` holds more arguments for the libraries' calls, which depend on the hardware; printed, each says why it is
# passed.

# %%
from helpers.training.machine import base_model, fit_machine

base, revision = base_model(config)
machine = fit_machine(config, run)
print(machine)

# %% [markdown]
# `FastLanguageModel.from_pretrained` loads the *base model*, the model before our training, and its *tokenizer*, which
# cuts text into tokens. `trust_remote_code` would allow the model's files to bring Python code along, and run it. Many
# notebooks set it for Mistral; no Mistral needs it, since transformers has the code. It stays off.

# %% tags=["core"]
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=base,
    revision=revision,
    max_seq_length=cfg.max_seq_length,
    load_in_4bit=cfg.load_in_4bit,
    dtype=getattr(torch, machine.dtype),
    trust_remote_code=False,
    **machine.loading,
)
model.generation_config.max_length = None  # beside max_new_tokens it only causes warnings

# %% [markdown]
# ## 4. Tokens, and which of them are learned
#
# A *chat template* turns messages into one text, with *control tokens* where one speaker ends and the other begins.
# For Mistral `<s>` begins the text (*BOS*), `[INST]` and `[/INST]` enclose what the user said, and `</s>` ends the
# answer (*EOS*). The template on the hub drops the system prompt from rows that end with an answer. This one gives the
# token ids of Mistral's own library, which the cell checks.

# %%
from helpers.data.chat_templates import find_template

template = find_template(tokenizer, cfg.prompt_style)
print("template:", template.name)

# %% tags=["core"]
tokenizer.chat_template = template.text
tokenizer.pad_token = template.pad_token  # fills rows up; if it were EOS, answers would never end
tokenizer.padding_side = "right"

# %% [markdown]
# Before any training, the base model answers a question. `apply_chat_template` writes it as the model expects it;
# `generate` then takes the likeliest token again and again (`do_sample=False`, *greedy* decoding), until EOS or
# `max_new_tokens`. `TextStreamer` prints the words as they come. Remember the answer: the same question comes again at
# the end.

# %% tags=["notebook"]
def answer(question):
    prompt = to_messages({"instruction": question, "output": ""})["prompt"]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(
        **inputs.to(model.device), max_new_tokens=cfg.max_new_tokens, do_sample=False, streamer=streamer,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )


FastLanguageModel.for_inference(model)
question = "Write two sentences that invite a friend to a picnic."
answer(question)

# %% [markdown]
# In training the model guesses each token from those before it, and the *loss* says how wrong it was. Only guesses at
# the assistant's answer should count. So each token gets a mask: 1 where it is learned, 0 where it is only given.
#
# Each row is written twice: the prompt alone, up to where the answer begins, and the whole conversation. What the second
# has more than the first is the answer. In a conversation of several turns the user speaks in between: `template.masked`
# is the same template with marks around each answer, from which transformers makes `assistant_masks`.

# %% tags=["core"]
def tokenize(batch):
    chats = [prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"])]
    given = tokenizer.apply_chat_template(batch["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(
        chats, chat_template=template.masked, return_dict=True, return_assistant_tokens_mask=True
    )
    masks = [[0] * len(g) + mask[len(g) :] for g, mask in zip(given, whole["assistant_masks"])]
    return {"input_ids": whole["input_ids"], "completion_mask": masks}


tokens = chats.map(tokenize, batched=True, remove_columns=["prompt", "completion"])
print(tokens)

# %% [markdown]
# Most fine-tuning that goes wrong goes wrong here, silently. So every row is checked: the answer ends with EOS (or the
# model would never learn to stop), the *system prompt* is in the text if there is one, there is one BOS and not two,
# and something is left to learn. Rows that are too long, or that contain a control token spelled out, are left out and
# counted.

# %%
from helpers.data.contract import check_tokens

limit = cfg.max_seq_length
checked = {part: check_tokens(tokens[part], chats[part], tokenizer, max_seq_length=limit) for part in tokens}
show_table([{"part": part, **found.summary()} for part, found in checked.items()])

# %% tags=["core"]
train_dataset = tokens["train"].select(checked["train"].kept)
heldout_dataset = tokens["heldout"].select(checked["heldout"].kept)

# %% [markdown]
# *Supervised* tokens are those that are learned: fewer than one thinks. This is the shortest row as the model sees it.
# Grey tokens are given, underlined blue ones are learned. The last blue token ends the answer.

# %% tags=["main"]
from helpers.data.contract import as_examples
from helpers.display.tables import plot_lengths, show_mask

show_mask(min(as_examples(train_dataset), key=lambda row: len(row.input_ids)), tokenizer)

# %% [markdown]
# Rows differ in length; none may be longer than `max_seq_length`. In a *batch* of several rows the short ones need not be
# filled up to the longest: on a GPU they are laid end to end (`docs/speed.md`).

# %% tags=["main"]
plot_lengths(checked["train"].lengths, limit, run.path / "lengths.png")

# %% [markdown]
# What the run learns from is written down before it starts, with a fingerprint of the rows and of the template.

# %%
from helpers.training.session import record_data

record_data(
    run, rows, task=config.task, source=drawn.rows.source, left_out=drawn.rows.left_out,
    tokenizer=tokenizer, template=template.name, base=base,
    base_commit=getattr(model.config, "_commit_hash", None),
)

# %% [markdown]
# ## 5. What LoRA adds
#
# The model's weights stay as they are. Most are in *linear layers*, which multiply the numbers that come in, $x$, by a
# matrix $W$. Beside each of these matrices LoRA puts two thin ones, $A$ and $B$, and adds their product:
# $Wx + \frac{\alpha}{r} BAx$. The *rank* $r$ says how thin they are. $B$ starts at zero, so that before training the
# model is exactly the base model.

# %% tags=["main"]
show_drawing("lora")

# %% [markdown]
# How many rows fit into one pass depends on the card and on the lengths above. Where memory is short, *gradient
# checkpointing* drops most numbers that the gradient needs and computes them again. The rows of an optimizer step stay
# as many as you asked for.

# %%
from helpers.training.machine import fit_layout

layout = fit_layout(config, checked["train"].lengths, run)
config = layout.config

# %% [markdown]
# `get_peft_model` attaches the adapter to all seven linear layers of each block. The last line says how much is
# trained: the smaller the model, the larger the share.

# %% tags=["core"]
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
# ## 6. Train
#
# The trainer shows the model a batch of rows and computes the *gradient*: for each number of the adapter, in which
# direction the loss falls. After several batches (*gradient accumulation*) the *optimizer* takes one step. When all rows
# were seen once, an *epoch* is over. The *learning rate*, how far a step goes, rises during the first few steps
# (*warm-up*) and then falls to nearly zero.
#
# Two callbacks watch. `record` measures the loss on the held-out rows before, during and after training. `checkpoints`
# saves, every `save_steps` steps, all that is needed to go on as if the training had never stopped.

# %%
from helpers.training.callbacks import Checkpoints, TrainingRecord

record = TrainingRecord(run, config, train_dataset, heldout_dataset)
checkpoints = Checkpoints(record)

# %% tags=["core"]
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=train_dataset,
    args=SFTConfig(
        output_dir=checkpoints.folder,
        max_length=cfg.max_seq_length,
        completion_only_loss=True,
        packing=cfg.packing,
        per_device_train_batch_size=layout.batch_size,
        gradient_accumulation_steps=layout.gradient_accumulation,
        num_train_epochs=cfg.num_epochs,
        max_steps=cfg.max_steps or -1,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=cfg.warmup_steps,
        weight_decay=cfg.weight_decay,
        seed=cfg.seed,
        data_seed=cfg.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=cfg.save_steps,
        eval_strategy="no",
        **machine.sft,
    ),
    callbacks=[record, checkpoints],
)

# %% [markdown]
# The trainer has its own idea of the rows. Its tokens and labels are compared with the ones that were checked. The
# table says how it will train on this machine.

# %%
from helpers.training.speed import check_trainer, count_steps, fast_training

mode = check_trainer(trainer, config, train_dataset)
steps = count_steps(trainer)
show_table({"optimizer steps": steps, "rows or packed sequences a step": config.train.rows_per_step(), **mode})

# %% [markdown]
# The cells that are the training itself are also written into the run's folder, as a plain script with these values.

# %% tags=["main"]
from helpers.training.script import write_script

script = write_script(run, globals())

# %% [markdown]
# The loss below is the mean of $-\log p$ over the answer's tokens, where $p$ is the probability that the model gave to the
# token that came. It is counted in *nats*: 0 is certainty, 0.69 the toss of a coin. A short training warms up for at
# most half of its steps. `fast_training` computes the same numbers in less time.

# %% tags=["core"]
trainer.args.warmup_steps = min(cfg.warmup_steps, steps // 2)
with fast_training(trainer, checkpoints):
    trainer.train(resume_from_checkpoint=checkpoints.latest(trainer))

# %% [markdown]
# ## 7. Did it help?
#
# The grey line jumps, because each step sees other rows, some harder than others. Look at the blue one: it is always
# measured on the same held-out rows. If it falls, held-out answers became more likely. A blue line that turns upwards
# while the grey one falls would mean that the model learns its rows by heart.

# %% tags=["main"]
from helpers.display.tables import plot_losses

run.update_metrics(**record.result.metrics())
plot_losses(run.metrics(), run.path / "loss.png")

# %% [markdown]
# The same curve, judged by fixed rules; and an interval, because a lower number may be luck. Each held-out row was
# measured before and after. The interval covers the mean difference of all rows like these in 95 of 100 such
# experiments; if it lies below zero, the model has become better at rows like these.

# %% tags=["main"]
from helpers.training.curves import judge_curve
from helpers.training.result import describe_change

print(judge_curve(run.metrics()).text)
print(describe_change(record.result))

# %% [markdown]
# What it cost.

# %% tags=["main"]
shown = ("train_seconds", "examples_per_second", "tokens_per_second", "supervised_tokens")
cost = {name: run.metrics()[name] for name in shown}
show_table({**cost, "peak memory, GiB": record.result.peak_memory_bytes / 2**30})

# %% [markdown]
# ## 8. Save the adapter, and load it back
#
# `save_pretrained` writes the two thin matrices of each layer, and the tokenizer with its template. The folder appears
# whole or not at all, even if the machine stops in the middle.

# %% tags=["core", "main"]
from helpers.export import hub_name, saving_adapter

with saving_adapter(model, tokenizer, run.adapter, base=hub_name(config.model.model_name)) as adapter:
    model.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)

# %% [markdown]
# Many tools want one model instead of a model and an adapter. *Merging* adds $\frac{\alpha}{r} BA$ to each matrix $W$ and
# writes the sum in 16 bit: the file is as large as the whole model. First the tuned model and its base answer a few
# fixed questions, against which everything that is saved can be measured.

# %% tags=["notebook"]
from helpers.export import measure_reference, merge_16bit

folders = {"adapter": run.adapter, "merged": run.path / "merged"}
reference = measure_reference(model, tokenizer)
if cfg.merge_16bit:
    merged = merge_16bit(model, tokenizer, folders["merged"])
    print(f"{merged.merged} matrices merged, {merged.bytes / 2**30:.2f} GiB in {merged.dtype}")

# %% [markdown]
# A file that was written is not yet a file that can be read. Adapter and merged model are each loaded by a fresh process
# that has only transformers and PEFT. To pass, they must be close to the tuned model *and* far from its base.

# %% tags=["notebook"]
from helpers.export import verify_adapter, verify_merged

proofs = {"adapter": verify_adapter(model, tokenizer, run.adapter, reference=reference).require()}
if cfg.merge_16bit:
    proofs["merged"] = verify_merged(model, tokenizer, folders["merged"], reference=reference).require()
for name, proof in proofs.items():
    print(name, proof.lines(), sep="\n")

# %% [markdown]
# Beside each lies a *model card*, `README.md`: what it was made from, how it measured, what was proven, what it is for.

# %% tags=["notebook"]
from helpers.export import write_card

run.update_manifest(exports={name: proof.as_dict() for name, proof in proofs.items()})
for name, proof in proofs.items():
    print(write_card(folders[name], run, config, verification=proof).relative_to(run.path))

# %% [markdown]
# Now the trained model is thrown away, the base model is loaded again as if this were another day, and `PeftModel` puts the saved adapter on it.

# %%
from helpers.model.load import free_memory

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
model.generation_config.max_length = None
model = PeftModel.from_pretrained(model, str(run.adapter))

# %% [markdown]
# The reloaded model must find the held-out answers as likely as the trained one did, but for rounding. A wrong adapter
# misses that by far, and the cell would fail. After very few steps in 16 bit it says CANNOT TELL: rounding moved the
# losses as much as training did.

# %%
from helpers.training.reload import prove_adapter

print(prove_adapter(model, record))

# %% [markdown]
# ## 9. Ask it something
#
# The question from before, now with the adapter.

# %% tags=["notebook"]
FastLanguageModel.for_inference(model)
answer(question)

# %% [markdown]
# Five questions, one of each kind that a general assistant should master: reasoning, summarization, explanation,
# translation, problem solving. They are written exactly as the training rows were.

# %% tags=["notebook"]
questions = [
    ("Anna is older than Ben, Ben is older than Carla. Who is the youngest, and why?", ""),
    ("Summarize the text in one sentence.",
     "The ferry was late because fog hid the harbour. It left at nine instead of seven, "
     "and by noon the sky was clear."),
    ("Explain to a child what an echo is.", ""),
    ("Translate the sentence into French.", "The swimming lessons begin next Thursday."),
    ("A machine fills 45 bottles in 3 minutes. How many bottles does it fill in 8 minutes?", ""),
]
asked = [to_messages({"instruction": task, "input": text, "output": ""})["prompt"] for task, text in questions]

# %% [markdown]
# All are answered at once, by the tuned model and by its base: the same weights with the adapter switched off.

# %% tags=["notebook"]
from helpers.model.decoding import fast_generate

answers = fast_generate(model, tokenizer, asked, max_new_tokens=cfg.max_new_tokens)
columns = [
    {"question": f"{task}\n{text}".strip(), "base": before.text, "tuned": after.text}
    for (task, text), before, after in zip(questions, answers["base"], answers["tuned"])
]
show_table(columns)

# %% [markdown]
# Mistral-7B-Instruct was an instruction model before this training, which adds the manner of Alpaca's answers; a small
# model stays a small model. So look at the form as much as at the truth: do they answer at once, do they end by
# themselves?
#
# The answers are kept with the run.

# %% tags=["notebook"]
from helpers.core.files import write_json

kept = [{"instruction": c["question"], "base": c["base"], "answer": c["tuned"]} for c in columns]
write_json(run.path / "answers.json", {"answers": kept})

# %% [markdown]
# ## 10. All that ran
#
# The training without the checks, as a script that needs only the libraries; `python -m helpers eject RUN` prints it
# too. The run is marked as complete.

# %%
from helpers.training.session import finish_run

finish_run(run)

# %% tags=["notebook"]
print(script)

# %% [markdown]
# ## 10. Your own data
#
# Give `dataset_name` a file: .json, .jsonl, .csv, .tsv or .parquet. Its format is recognised by the columns.
#
# | format | a row |
# |---|---|
# | Alpaca; `input` may be empty or missing | `{"instruction": "Add.", "input": "2 and 3", "output": "5"}` |
# | Dolly; `category` may be there | `{"instruction": "Add.", "context": "2 and 3", "response": "5"}` |
# | OpenAI's and TRL's messages | `{"messages": [{"role": "user", "content": "Add. 2 and 3"}, {"role": "assistant", "content": "5"}]}` |
# | ShareGPT | `{"conversations": [{"from": "human", "value": "Add. 2 and 3"}, {"from": "gpt", "value": "5"}]}` |
# | TRL's prompt and completion, as text or messages | `{"prompt": "Add. 2 and 3", "completion": "5"}` |
# | question and answer, input and output, … | `{"Question": "Add. 2 and 3", "Answer": "5"}` |
# | any other, with `columns = "instruction=Frage, output=Antwort"` | `{"Frage": "Add. 2 and 3", "Antwort": "5"}` |
#
# Of a conversation each answer is learned. `python -m helpers data FILE` looks at a file before any training: rows,
# columns, lengths, what is left out and why.

# %% [markdown]
# ## Summary
#
# - A row became messages, messages became text through one chat template, text became tokens, and only the answer's
#   tokens were learned.
# - LoRA trained a few thin matrices beside frozen weights.
# - Rows that were held out told, with an interval, whether that helped.
# - The saved adapter was loaded onto a fresh base model and gave the same numbers.
#
# ## Your turn
#
# 1. Set `max_steps = 4` and run again under another `run_name`. How much of the improvement is already there?
# 2. Set `learning_rate` ten times higher. What does the grey line do, and what the blue one?
# 3. Train with `prompt_style = "alpaca"` and compare the held-out losses. Why are they not quite comparable? (Look at
#    which tokens are given.)
# 4. Put five rows of your own into a `.jsonl` file and give its path as `dataset_name`. Which check complains first?
