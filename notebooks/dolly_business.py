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
# of disk for the merged model, and about three quarters of an hour. Without a GPU: preset `smoke`. If terms such as
# *token*, *adapter* or *held-out* are new to you, take `alpaca_instruction` first.

# %% [markdown]
# ## 1. Parameters
#
# As in the first notebook: `preset` decides, and whatever is not `None` wins over it.

# %% tags=["parameters"]
preset = "auto"  # type: str  auto, colab-t4, large-gpu or smoke
run_name = None  # type: str  folder under runs/; None takes the task and the preset
resume = "auto"  # type: str  auto (go on with an earlier run), never (start over) or must
PARAMETERS

# %% [markdown]
# On Colab the next cell fetches this project's own small package. Where it is installed already, nothing happens.

# %%
import importlib.util

if importlib.util.find_spec("helpers") is None:
    source = "git+https://github.com/mistral-qlora/mistral-qlora-notebooks@v0.1.0"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {source}")

# %% [markdown]
# The parameters are checked before anything is downloaded.

# %%
from helpers.display import show_table
from helpers.session import configure_notebook

config = configure_notebook("dolly", globals())
show_table(config.flat())

# %% [markdown]
# The packages, in exact versions.

# %%
from helpers.environment import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# The folder that everything goes into.

# %%
from helpers.session import start_run

run = start_run(config, resume=resume)
print("this run:", run.shown())

# %% [markdown]
# ## 2. A thousand rows, and what is in them
#
# A row of Dolly has an `instruction`, a `context` (a text that the instruction is about, often empty), a `response`
# and one of eight categories. The subset is drawn at random with a fixed seed, so that everyone gets the same rows.
# Some are held out.

# %%
from helpers.data import load_rows

rows = load_rows(config.data, "dolly", config.train.seed)
print(f"{rows.source}: {len(rows.train)} rows to train on, {len(rows.heldout)} held out")
print("left out:", rows.left_out or "none")

# %% [markdown]
# What did the draw give? The categories differ in what they teach: *closed_qa*, *information_extraction* and
# *summarization* work on a given text, *brainstorming* and *creative_writing* are free.

# %%
from helpers.display import plot_categories

plot_categories(rows.train, run.path / "categories.png")

# %% [markdown]
# Dolly's contexts come from an encyclopaedia, and many still carry its reference marks, such as "[1]". A model would
# learn to write them. They are removed, and counted.

# %%
from helpers.data import clean_rows

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
from helpers.display import show_conversation
from helpers.prompts import build_example

style, system_prompt = config.data.prompt_style, config.data.system_prompt
options = {"style": style, "system_prompt": system_prompt}
show_conversation(build_example(with_context, "dolly", **options))

# %% [markdown]
# Now the model, in 4 bit on a GPU, with a fresh adapter on all of its linear layers.

# %%
from helpers.model import attach_adapter, load_model, trainable_parameters

loaded = load_model(config.model, style=style)
checkpointing = config.train.gradient_checkpointing
attach_adapter(
    loaded, config.adapter, seed=config.train.seed, gradient_checkpointing=checkpointing
)
trainable, total = trainable_parameters(loaded.model)
print(f"{trainable:,} of {total:,} parameters are trained: {trainable / total:.2%}")

# %% [markdown]
# The same row as the text that the model reads. Look for the system prompt. The template that Mistral's files on the
# hub carry leaves it out of rows that end with an answer, so that the model would be trained without it and used with
# it; the template used here gives the same tokens as Mistral's own library.

# %%
from helpers.templates import render

example = build_example(with_context, "dolly", **options)
print(render(loaded.tokenizer, example.messages(), answer_next=False))

# %% [markdown]
# All rows as tokens, checked: system prompt inside, answer and its end learned, nothing else.

# %%
from helpers.contract import apply_contract

limit = config.model.max_seq_length
train_checked, heldout_checked = (
    apply_contract([build_example(row, "dolly", **options) for row in part], loaded.tokenizer, max_seq_length=limit)
    for part in (rows.train, rows.heldout)
)
show_table([{"part": "training", **train_checked.summary()}, {"part": "held out", **heldout_checked.summary()}])

# %% [markdown]
# And one row with its mask: grey is given, underlined blue is learned.

# %%
from helpers.display import show_mask

shortest = min(train_checked.tokenized, key=lambda row: len(row.input_ids))
show_mask(shortest, loaded.tokenizer)

# %% [markdown]
# The system prompt is also there when the assistant is asked something. The check compares token by token.

# %%
from helpers.contract import prove_same_prompt

print(prove_same_prompt(with_context, "dolly", loaded.tokenizer, **options))

# %% [markdown]
# ## 4. Train for one epoch
#
# One *epoch* shows the model each row once. For a thousand rows that is usually enough: the model has the knowledge
# already, it learns a manner.

# %%
from helpers.session import record_inputs
from helpers.training import build_trainer, planned_steps

record_inputs(run, rows, loaded)
trainer = build_trainer(config, loaded, train_checked, run)
print(planned_steps(config, len(train_checked.examples)), "optimizer steps of", config.train.rows_per_step(), "rows")

# %% [markdown]
# The held-out loss is measured before the first step, on the way, and after the last.

# %%
from helpers.training import train

result = train(trainer, config, loaded, train_checked, heldout_checked)
run.update_metrics(**result.metrics())

# %% [markdown]
# A healthy curve falls quickly, then slowly, and the held-out loss falls with it. If the grey line falls and the blue
# one rises, the model learns its rows by heart. If both rise or jump, the learning rate is too high.

# %%
from helpers.display import plot_losses

plot_losses(run.metrics(), run.path / "loss.png")

# %% [markdown]
# The same in words, by rules that do not depend on how one feels about the plot.

# %%
from helpers.curves import judge_curve
from helpers.training import describe_change

print(judge_curve(run.metrics()).text)
print(describe_change(result))
EXPORT
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
# 1. Train on `category = "brainstorming"` alone. What happens to the held-out loss, and what to the answers?
# 2. Write your own `system_prompt`, for your company. Does the assistant keep to it when a question leads away from it?
# 3. Set `merge_16bit = False` and compare the size of the run's folder. What does one give up without a merged model?
# 4. Ask the same eight questions with `side_by_side_eval`, and let a colleague vote without knowing which answer is whose.
