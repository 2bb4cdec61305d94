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
# A general model can talk about anything. A company wants one that talks about its own matters, in its own manner, and
# that it can hand over as a file. This notebook makes an assistant for product development, business decisions and
# the use of AI in companies: Mistral-7B-Instruct, tuned on 1,000 rows of Dolly-15k, which employees of Databricks
# wrote by hand in 2023.
#
# The second half is about the handing over. A *merged* model, with the adapter's weights added into the model's own,
# is what most tools want, and merging is where fine-tuning often goes wrong without a word. So each
# export is loaded again in a fresh process and compared with the model in memory before this notebook says "saved".
#
# **You will learn**
#
# - how to choose a subset of a data set, and see what you chose,
# - how a system prompt gets into the training text and stays there,
# - how to read a loss curve,
# - what merging does, what it costs, and how to prove that it worked,
# - how to describe a model honestly before you share it.
#
# **What it needs.** On Colab: a free T4 GPU (*Runtime → Change runtime type → T4 GPU*), about 4 GB of downloads, 16 GB
# of disk for the merged model, and about three quarters of an hour. On Kaggle: *Settings → Accelerator → GPU T4* and
# *Internet on*. Without a GPU: preset `smoke`. If terms such as *token*, *adapter* or *held-out* are new to you, take
# `alpaca_instruction` first.

# %% [markdown]
# ## 1. Parameters
#
# As in the first notebook: `preset` decides, and whatever is not `None` wins over it. The last four parameters say what
# is made of the adapter when it is trained.

# %% tags=["parameters"]
preset = "auto"  # type: str  auto, colab-t4, large-gpu or smoke
run_name = None  # type: str  folder under runs/; None takes the task and the preset
resume = "auto"  # type: str  auto (go on with an earlier run), never (start over) or must
model_name = None  # type: str  alias, hub id or local folder of the base model
model_revision = None  # type: str  hub revision of the base model
max_seq_length = None  # type: int  longest row; longer ones are left out [tokens]
load_in_4bit = None  # type: bool  hold the base model's weights in 4 bit (NF4)
precision = None  # type: str  auto (what the card computes natively), bf16, fp16 or fp32
dataset_name = None  # type: str  hub id, local .json/.jsonl/.csv/.parquet file, or sample for the bundled rows
columns = None  # type: str  which column is what, where the names do not say
dataset_revision = None  # type: str  hub revision of the data set; pinned for the known ones
train_rows = None  # type: int  rows to train on; 0 takes all [rows]
heldout_rows = None  # type: int  rows kept apart to measure the loss on [rows]
category = None  # type: str  only rows of these categories, separated by commas
stratified = None  # type: bool  draw each category in proportion to its rows
prompt_style = None  # type: str  chat (the model's own template) or alpaca (Stanford's text block)
system_prompt = None  # type: str  what the assistant is told before the first message; chat style only
lora_rank = None  # type: int  rank of the adapter's matrices [dimensions]
lora_alpha = None  # type: int  the adapter's output is scaled by lora_alpha / lora_rank
lora_dropout = None  # type: float  share of the adapter's inputs dropped in training
learning_rate = None  # type: float  peak learning rate, after warm-up
num_epochs = None  # type: float  times each row is seen, if max_steps does not end it before [epochs]
max_steps = None  # type: int  end after this many optimizer steps [steps]
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
persist_dir = None  # type: str  second folder for checkpoints and adapter, such as one on Google Drive
eval_steps = None  # type: int  optimizer steps between measurements of the held-out loss [steps]
report_to = None  # type: str  also show the losses in trackio, tensorboard or wandb; none for this notebook only
seed = None  # type: int  seed of row selection, adapter weights and data order
max_new_tokens = None  # type: int  longest answer [tokens]
merge_16bit = None  # type: bool  also save the model with the adapter merged in, in 16 bit
gguf_quantization = None  # type: str  also save a GGUF file of this type, such as q8_0 or f16
push_to = None  # type: str  hub repository to upload to, as owner/name
push_private = None  # type: bool  create that repository as private

# %% [markdown]
# On Colab the next cell fetches this project's own small package. Where it is installed already, nothing happens.

# %%
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
# The parameters are checked before anything is downloaded.

# %%
from helpers.display.tables import show_table
from helpers.training.session import configure_notebook

config = configure_notebook("dolly", globals())
show_table(config.flat())

# %% [markdown]
# The table shows the whole run, the preset's values included. Then the packages, in exact versions.

# %%
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# The folder that everything goes into. What is in it already from an earlier run with the same parameters is used
# again.

# %%
from helpers.training.session import start_run

run = start_run(config, resume=resume)
print("this run:", run.shown())

# %% [markdown]
# If the machine disconnects, run the notebook again with the same parameters: with `resume = "auto"` training goes on
# from its newest complete checkpoint (one is written every `save_steps` steps), and not from the start. On Colab set
# `persist_dir = "/content/drive/MyDrive/runs"` before you begin. The machine's own disk is gone when a session ends;
# the copies on your Google Drive are not, and the next machine, with the same kind of GPU, goes on from them.
#
# ## 2. A thousand rows, and what is in them
#
# A row of Dolly has an `instruction`, a `context` (a text that the instruction is about, often empty), a `response`
# and one of eight categories. The subset is drawn at random with a fixed seed, so that everyone gets the same rows.
# Some are held out. (Preset `smoke` takes 128 rows of the same form that come with this project.)

# %%
from helpers.data.rows import load_rows

rows = load_rows(config.data, "dolly", config.train.seed, given=config.given)
print(f"{rows.source}: {len(rows.train)} rows to train on, {len(rows.heldout)} held out")
print(*rows.notes, sep="\n")
print("left out:", rows.left_out or "none")

# %% [markdown]
# What did the draw give? The categories differ in what they teach: *closed_qa*, *information_extraction* and
# *summarization* work on a given text, *brainstorming* and *creative_writing* are free. Beside each bar stands the
# length of its median answer: half of the answers are shorter.

# %%
from helpers.display.tables import plot_categories

plot_categories(rows.train, run.path / "categories.png")

# %% [markdown]
# A category with many rows and long answers shapes the assistant most. If one that you need is hardly there, choose
# rows with `category`, or keep the proportions of the whole with `stratified`.
#
# Dolly's contexts come from an encyclopaedia, and many still carry its reference marks, such as "[1]". A model would
# learn to write them. They are removed, and counted.

# %%
from helpers.data.selection import clean_rows

rows, removed = clean_rows(rows)
print(removed, "reference marks removed")

# %% [markdown]
# One row with a context, and one without.

# %%
with_context = next((row for row in rows.train if row["context"]), rows.train[0])
without_context = next((row for row in rows.train if not row["context"]), rows.train[0])
show_table([without_context, with_context])

# %% [markdown]
# ## 3. From a row to tokens
#
# Each row becomes three messages. The *system prompt* tells the assistant who it is; it is the same in every row, and
# will be the same whenever the assistant is used.

# %%
from helpers.display.tables import show_conversation
from helpers.data.prompts import build_example

style, system_prompt = config.data.prompt_style, config.data.system_prompt
options = {"style": style, "system_prompt": system_prompt}
show_conversation(build_example(with_context, "dolly", **options))

# %% [markdown]
# Now the model, in 4 bit on a GPU. Its template turns the messages into text.

# %%
from helpers.model.load import load_model

loaded = load_model(config.model, style=style)
print(f"template {loaded.template}, computing in {loaded.precision}")

# %% [markdown]
# The same row as the text that the model reads. Look for the system prompt. The template that Mistral's files on the
# hub carry leaves it out of rows that end with an answer, so that the model would be trained without it and used with
# it. For Mistral this project brings a template of its own, which gives the same tokens as Mistral's own library.

# %%
from helpers.data.chat_templates import render

example = build_example(with_context, "dolly", **options)
print(render(loaded.tokenizer, example.messages(), answer_next=False))

# %% [markdown]
# All rows as tokens, checked: system prompt inside, answer and its end (EOS) learned, nothing else.

# %%
from helpers.data.contract import apply_contract

limit = config.model.max_seq_length
parts = {
    name: [build_example(row, "dolly", **options) for row in part]
    for name, part in (("training", rows.train), ("held out", rows.heldout))
}
checked = {
    name: apply_contract(part, loaded.tokenizer, max_seq_length=limit)
    for name, part in parts.items()
}
show_table([{"part": name, **part.summary()} for name, part in checked.items()])

# %% [markdown]
# The system prompt costs tokens in every row, and none of them is among the supervised ones, which are those that are
# learned.
#
# And one row with its mask: grey is given, underlined blue is learned.

# %%
from helpers.display.tables import show_mask

shortest = min(checked["training"].tokenized, key=lambda row: len(row.input_ids))
show_mask(shortest, loaded.tokenizer)

# %% [markdown]
# The system prompt is also there when the assistant is asked something. The check compares token by token.

# %%
from helpers.data.contract import prove_same_prompt

print(prove_same_prompt(with_context, "dolly", loaded.tokenizer, **options))

# %% [markdown]
# ## 4. Train for one epoch
#
# One *epoch* shows the model each row once. For a thousand rows that is usually enough: the model has the knowledge
# already, it learns a manner.
#
# The rows are shown a few at a time, and after each *optimizer step* the adapter has moved a little. First, how the
# rows of a step are laid out on this card, and why.

# %%
from helpers.training.session import fit_layout

config = fit_layout(config, checked["training"])

# %% [markdown]
# A fresh adapter on all linear layers is what will learn; everything else stays frozen. Its *rank* (`lora_rank`) says
# how much it can hold, *alpha* (`lora_alpha`) how much it counts.

# %%
from helpers.model.load import attach_adapter, trainable_parameters

settings = config.train
attach_adapter(
    loaded, config.adapter, seed=settings.seed,
    gradient_checkpointing=settings.gradient_checkpointing,
    checkpoint_skip_layers=settings.checkpoint_skip_layers,
)
trainable, total = trainable_parameters(loaded.model)
print(f"{trainable:,} of {total:,} parameters are trained: {trainable / total:.2%}")

# %% [markdown]
# The run's record gets a fingerprint of the rows and of the template; then the trainer is built.

# %%
from helpers.training.session import record_inputs
from helpers.training.trainer import build_trainer, planned_steps

record_inputs(run, rows, loaded)
trainer = build_trainer(config, loaded, checked["training"], run)
steps = planned_steps(config, len(trainer.train_dataset))
print(steps, "optimizer steps of", config.train.rows_per_step(), "rows or packed sequences")

# %% [markdown]
# The *learning rate*, how far a step goes, rises over the first few steps and then falls to nearly zero. The held-out
# loss, the mean surprise at a token of an answer that was never trained on, is measured before the first step, on the
# way, and after the last.

# %%
from helpers.training.trainer import train

result = train(trainer, config, loaded, checked["training"], checked["held out"])
run.update_metrics(**result.metrics())

# %% [markdown]
# A healthy curve falls quickly, then slowly, and the held-out loss falls with it. If the grey line falls and the blue
# one rises, the model learns its rows by heart. If both rise or jump, the learning rate is too high.

# %%
from helpers.display.tables import plot_losses

plot_losses(run.metrics(), run.path / "loss.png")

# %% [markdown]
# The same in words, by rules that do not depend on how one feels about the plot.

# %%
from helpers.training.curves import judge_curve
from helpers.training.trainer import describe_change

print(judge_curve(run.metrics()).text)
print(describe_change(result))

# %% [markdown]
# The interval is what counts: it covers the mean change of all rows like these in 95 of 100 such experiments. If it
# lies below zero as a whole, the assistant has become better at answers like Dolly's. Whether these are the answers
# that you want is another question, which section 7 asks.
#
# ## 5. Save the adapter, and prove it
#
# First the space that everything below will take, against the space there is. Running out of disk halfway through a
# merge is how many evenings end.

# %%
from helpers.export import describe_needs, preflight

needs = preflight(
    loaded.model, run.path, merged=config.export.merge_16bit, gguf=config.export.gguf_quantization
)
print(describe_needs(needs, run.path))

# %% [markdown]
# A few fixed questions are answered now, by the tuned model and by its base. At each place a model gives every token a
# number, its *logit*: the larger, the likelier the token. These are kept, and are the yardstick for every export.

# %%
from helpers.export import hub_name, measure_reference, save_adapter

base = hub_name(config.model.model_name)
files = save_adapter(loaded.model, loaded.tokenizer, run.adapter, base=base)
reference = measure_reference(loaded.model, loaded.tokenizer)
print(run.shown("adapter") + ":", ", ".join(files))

# %% [markdown]
# The saved adapter is now loaded by a fresh process with nothing but transformers and PEFT, the public libraries for
# models and for adapters, as a stranger would load it. To pass, it must be close to the tuned model *and* far from the
# base: an adapter that was saved empty is close to the base. How close is close enough depends on the precision of the
# arithmetic; the limits are measured, and printed. *Greedy* answers take the likeliest token each time, so that they
# can be compared token for token.

# %%
from helpers.export import verify_adapter

adapter_proof = verify_adapter(
    loaded.model, loaded.tokenizer, run.adapter, reference=reference
).require()
print(adapter_proof.lines())

# %% [markdown]
# Each line is one test. If one fails, the cell does, and nothing that follows can call the adapter saved.
#
# ## 6. Merge, and prove that too
#
# Merging adds the adapter's product $\frac{\alpha}{r} BA$ into each weight matrix $W$ and writes the sum in 16 bit.
# The result needs no adapter and no PEFT, and it is as large as the whole model. Where the base was held in 4 bit, its
# weights are expanded first: the merged model is the model that was trained, not the 16-bit original with the
# adapter on top, which would be another one.

# %%
from helpers.export import merge_16bit

merged_folder = run.path / "merged"
if config.export.merge_16bit:
    merged = merge_16bit(loaded.model, loaded.tokenizer, merged_folder)
    print(f"{merged.merged} matrices merged, {merged.bytes / 2**30:.2f} GiB in {merged.dtype}")
    print(merged.reason)

# %% [markdown]
# The file is as large as the whole model in 16 bit, whatever the rank was.
#
# The same test for the merged model: a fresh process, plain transformers, close to the tuned model and far from the
# base. Besides, every matrix in the file is compared with base plus adapter.

# %%
from helpers.export import verify_merged

proofs = {"adapter": adapter_proof}
if config.export.merge_16bit:
    proofs["merged"] = verify_merged(
        loaded.model, loaded.tokenizer, merged_folder, reference=reference
    ).require()
    print(proofs["merged"].lines())

# %% [markdown]
# The merged model is not exactly the tuned one: its sums were rounded to 16 bit. The lines say how far it is off, and
# how much of that rounding alone explains.
#
# What was proven goes into the run's record, `manifest.json`, and into a *model card* beside each export: what it was
# made from, with which data and parameters, how it measured, what it is for and what it is not for.

# %%
from helpers.export import write_card

run.update_manifest(exports={name: proof.as_dict() for name, proof in proofs.items()})
folders = {"adapter": run.adapter, "merged": merged_folder}
for name, proof in proofs.items():
    print(write_card(folders[name], run, config, verification=proof).relative_to(run.path))

# %% [markdown]
# Optional: one GGUF file, the format of llama.cpp and of the programs built on it. It is read back and compared with
# the merged model. Set `gguf_quantization` to ask for it. Beside it lies a `Modelfile`, with the template and the system
# prompt of this training: in that folder, `ollama create mine -f Modelfile` and `ollama run mine` start a chat.

# %%
from helpers.export import export_gguf

if config.export.gguf_quantization:
    wanted = config.export.gguf_quantization
    file = export_gguf(
        merged_folder, run.path / "gguf", quantization=wanted,
        system=system_prompt, max_seq_length=config.model.max_seq_length,
    )
    write_card(run.path / "gguf", run, config, verification=file.verification())
    print(f"{file.file}: {file.tensors} tensors compared, worst error {file.worst_error:.2g}")

# %% [markdown]
# Optional: upload to the Hugging Face hub, private unless you say otherwise. The token comes from the environment
# variable `HF_TOKEN` or from Colab's secrets, never from a parameter: parameters are kept in the executed notebook.

# %%
from helpers.export import publish

if config.export.push_to:
    name = "merged" if config.export.merge_16bit else "adapter"
    pushed = publish(folders[name], config.export.push_to, private=config.export.push_private)
    print(pushed.url, f"{pushed.files} files compared")

# %% [markdown]
# ## 7. Ask it about business
#
# Prompts as a colleague might write them, over operations, product discovery, customer support, supply chain, risk and
# decisions; preset `smoke` takes the first eight. None of them is in the training rows.

# %%
from helpers.data.rows import read_prompts

business_prompts = read_prompts()[: 8 if config.preset == "smoke" else None]
show_table([{"topic": p["topic"], "prompt": p["prompt"]} for p in business_prompts])

# %% [markdown]
# All are answered in one go, with the system prompt that the assistant was trained with.

# %%
from helpers.model.decoding import fast_generate
from helpers.data.prompts import build_prompt

prompts = [build_prompt(p["prompt"], **options) for p in business_prompts]
length = config.generation.max_new_tokens
answers = fast_generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=length, arms=["tuned"])["tuned"]
pairs = [(p["prompt"], a.text) for p, a in zip(business_prompts, answers)]
show_table([{"prompt": question, "answer": text} for question, text in pairs])

# %% [markdown]
# Read them as an editor would. Are the suggestions concrete and plausible? Do they stay on the topic? Is the form
# useful: as many items as were asked for, a beginning and an end? The notebook `side_by_side_eval` puts the base
# model's answers beside these and asks the same of people who do not know which is which.
#
# The answers are kept with the run, and the run is marked as complete.

# %%
from helpers.core.files import write_json
from helpers.training.session import finish_run

kept = [{"instruction": question, "answer": text} for question, text in pairs]
write_json(run.path / "answers.json", {"answers": kept})
finish_run(run)

# %% [markdown]
# ## Summary
#
# - A seeded draw, a plot of its categories and a count of what was cleaned say exactly what the assistant learned from.
# - The system prompt is in the training text and in every question, token for token.
# - Adapter and merged model were each loaded again by a process that knows nothing of the training, and gave the
#   tuned model's answers, not the base model's.
# - The model card says what was done, with numbers, and what the assistant is not for.
#
# ## Your turn
#
# 1. Train on `category = "brainstorming"` alone. What happens to the held-out loss, and what to the answers? (With
#    preset `smoke` set `heldout_rows = 5` and `num_epochs = 4` too: of this category it has 16 rows to train on and
#    5 held out.)
# 2. Write your own `system_prompt`, for your company. Does the assistant keep to it when a question leads away from it?
# 3. Set `merge_16bit = False` and compare the size of the run's folder. What does one give up without a merged model?
# 4. Run `side_by_side_eval` on this adapter, and let a colleague vote without knowing which answer is whose.
