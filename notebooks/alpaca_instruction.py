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
#     minutes_t4: 35
#     download_gb: 4.2
# ---

# %% [markdown]
# # Fine-tune Mistral-7B-Instruct on Alpaca-cleaned
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/alpaca_instruction.ipynb) [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://www.kaggle.com/notebooks/welcome?src=https://github.com/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/alpaca_instruction.ipynb) [![View in nbviewer](https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg)](https://nbviewer.org/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/alpaca_instruction.ipynb)
#
# A language model continues text: it gives every possible next *token*, a word or a piece of one, a probability. An
# *instruction model* was trained further, until it does what a sentence asks of it. Mistral-7B-Instruct is one already.
# This notebook *fine-tunes* it, that is, trains it a little more, on rows of Alpaca-cleaned, small tasks with good
# answers, so that it answers in their manner. Some rows are held out of the training, and on these it measures whether
# that helped.
#
# The model computes with seven billion numbers, its *weights*. They do not fit on a free GPU if all of them are
# trained. QLoRA makes them fit with two ideas: the model's own weights are *quantized*, that is rounded so that each
# takes 4 bit, and never changed; and a small *adapter* beside them does the learning. The adapter's kind is called
# LoRA.
#
# **You will learn**
#
# - what a row of instruction data becomes before a model can learn from it,
# - what LoRA trains, and how little that is,
# - how to see, token by token, what the model is asked to learn,
# - how to tell from held-out rows whether training helped,
# - how to save an adapter and prove that it can be loaded again.
#
# **What it needs.** On Colab: a free T4 GPU (*Runtime → Change runtime type → T4 GPU*), a download of about 4 GB and
# about half an hour. On Kaggle: *Settings → Accelerator → GPU T4* and *Internet on*. Without a GPU: preset `smoke`,
# which does every step with a small model in a few minutes.

# %% [markdown]
# ## 1. Parameters
#
# `preset` is the one parameter that you must understand: `auto` looks at the GPU and chooses `colab-t4` or
# `large-gpu`; `smoke` runs anywhere. Everything else may stay `None`, which takes the preset's value. A value that you
# write here wins over the preset. You need none of the other words now: each is explained where it is first used.
# (Only the *hub* comes first: a public site of the company Hugging Face, from which the model and the rows are
# downloaded. A *revision* is the state of a model or a data set there on one day.)

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

# %% [markdown]
# On Colab the next cell fetches this project's own small package. Where it is installed already, nothing happens.

# %%
import importlib.util

if importlib.util.find_spec("helpers") is None:
    source = "git+https://github.com/mistral-qlora/mistral-qlora-notebooks@main"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {source}")
    importlib.invalidate_caches()
    assert importlib.util.find_spec("helpers"), f"{source} could not be installed. On Kaggle: Settings, Internet on; then run again."

# %% [markdown]
# The parameters are checked first, so that a typing mistake costs seconds and not a download.

# %%
from helpers.display.tables import show_table
from helpers.training.session import configure_notebook

config = configure_notebook("alpaca", globals())
show_table(config.flat())

# %% [markdown]
# The table is the whole run: your values, and the preset's for all others.
#
# Now the packages: exact versions, the same for everyone. On Colab the cell installs what is missing; elsewhere it
# only looks. Its last line begins with `ready:`, or says what to do.

# %%
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# Everything that this run makes goes into one folder. If the folder holds an earlier run with other parameters, the
# cell refuses rather than mix the two.

# %%
from helpers.training.session import start_run

run = start_run(config, resume=resume)
print("this run:", run.shown())

# %% [markdown]
# Nothing is lost if the machine disconnects. Every `save_steps` steps a complete *checkpoint* is written: the adapter,
# and all that training needs to go on as if it had never stopped. Run the notebook again with the same parameters, and
# with `resume = "auto"` it goes on from the newest one. Colab, though, deletes the machine's own disk when a session
# ends. Set `persist_dir = "/content/drive/MyDrive/runs"` before you start, and each checkpoint, and at the end the
# adapter, is also copied to your Google Drive, which the cell above asks your permission to use. On the next machine, the
# same parameters and the same kind of GPU go on from there.
#
# ## 2. Rows: what the model learns from
#
# A row has three columns: `instruction` says what to do, `input` holds the text to do it with and is often empty, and
# `output` is the answer to learn. Some rows are set aside at once: these *held-out* rows are never trained on, and
# tell us later whether the model learned something general or just these sentences. Which rows are taken is drawn by
# chance, and `seed` fixes the draw: the same number, the same rows. Rows that are empty, or that stand in the data
# twice, are left out and counted. (Preset `smoke` takes rows of the same form that come with this project.)

# %%
from helpers.data.rows import load_rows

rows = load_rows(config.data, "alpaca", config.train.seed, given=config.given)
print(f"{rows.source}: {len(rows.train)} rows to train on, {len(rows.heldout)} held out")
print(*rows.notes, sep="\n")
print("left out:", rows.left_out or "none")

# %% [markdown]
# Here is one row without an input, and one with.

# %%
without_input = next(row for row in rows.train if not row["input"])
with_input = next(row for row in rows.train if row["input"])
show_table([without_input, with_input])

# %% [markdown]
# A chat model does not know columns. It knows *messages*: something a user said, and something the assistant answered.
# First an example small enough to check by hand: instruction and input become one user message, with a blank line
# between them; the output becomes the assistant's.

# %%
from helpers.display.tables import show_conversation
from helpers.data.prompts import build_example

tiny = {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}
show_conversation(build_example(tiny, "alpaca"))

# %% [markdown]
# The same for all rows, in the style that the parameters chose. `chat` is the model's own format. `alpaca` is the text
# block of the original Stanford project, with its two preambles: one for rows with an input, one for rows without.

# %%
style = config.data.prompt_style
how = {"style": style, "system_prompt": config.data.system_prompt}
train_examples = [build_example(row, "alpaca", **how) for row in rows.train]
heldout_examples = [build_example(row, "alpaca", **how) for row in rows.heldout]
show_conversation(build_example(with_input, "alpaca", **how))

# %% [markdown]
# For comparison, the row without input as an Alpaca block. Nothing marks where the user ends and the assistant begins
# but the words `### Response:`. That works too, as long as training and use write it the same way.

# %%
show_conversation(build_example(without_input, "alpaca", style="alpaca"))

# %% [markdown]
# ## 3. The model
#
# 4 bit can tell 16 values apart. Which 16? Most weights of a model are near zero and few are large, so the format *NF4*
# puts its levels close together near zero. Weights are taken in blocks of 64; a block's largest absolute value is its
# *scale*. Each weight is divided by the scale and stored as the number of the nearest level.

# %%
from helpers.display.diagrams import show_drawing

show_drawing("nf4")

# %% [markdown]
# The table shows four weights of a block whose scale is 0.112. At the moment a weight is used it is computed back,
# level times scale, as a 16-bit number. The rounding loses a little, and saves three quarters of the memory.
#
# Now the *base model*, the model before our training, is loaded, on a GPU in this format. The cell prints what it
# computes in: `bf16` and `fp16` are two kinds of 16-bit numbers, of which older cards such as the T4 know only the
# second; `fp32` has 32 bit, for the CPU. The template that it names is the subject of the next section.

# %%
from helpers.model.load import load_model

loaded = load_model(config.model, style=style)
print(f"{config.model.model_name}: template {loaded.template}, computing in {loaded.precision}")

# %% [markdown]
# ## 4. Tokens, and which of them are learned
#
# The model reads tokens, and knows each by a number. A *chat template* turns messages into one text, with *control
# tokens* where one speaker ends and the other begins; the *tokenizer* cuts that text up. For Mistral `<s>` begins the
# text (the beginning-of-sequence token, *BOS*), `[INST]` and `[/INST]` enclose what the user said, and `</s>` ends the
# answer (the end-of-sequence token, *EOS*). Other models have other marks for the same things.
#
# In training the model guesses each token from those before it, and the *loss* says how wrong it was. Only the guesses
# at the assistant's answer should count. So every token has a *label*: its own number where it is to be learned, and
# -100 elsewhere, which the loss leaves out.

# %%
from helpers.display.diagrams import show_drawing

show_drawing("mask")

# %% [markdown]
# Most fine-tuning that goes wrong goes wrong here, silently. So every row is checked before training: the answer ends
# with EOS (or the model would never learn to stop), the *system prompt*, what the assistant is told before the first
# message, is in the text if there is one, there is one BOS and not two (some models have none), and something is left
# to learn. Rows that are too long, or that contain a control token spelled out, are left out and counted.

# %%
from helpers.data.contract import apply_contract

limit = config.model.max_seq_length
train_checked = apply_contract(train_examples, loaded.tokenizer, max_seq_length=limit)
heldout_checked = apply_contract(heldout_examples, loaded.tokenizer, max_seq_length=limit)
parts = {"training": train_checked, "held out": heldout_checked}
show_table([{"part": name, **part.summary()} for name, part in parts.items()])

# %% [markdown]
# *Supervised* tokens are those that are learned. They are what the model really trains on, and fewer than one thinks.
#
# This is one row as the model sees it. Grey tokens are given, underlined blue ones are learned. The last blue token is
# the one that ends the answer.

# %%
from helpers.display.tables import show_mask

shortest = min(train_checked.tokenized, key=lambda row: len(row.input_ids))
show_mask(shortest, loaded.tokenizer)

# %% [markdown]
# Rows differ in length. Here are all of them, in tokens; none may be longer than `max_seq_length`.

# %%
from helpers.display.tables import plot_lengths

lengths = [len(row.input_ids) for row in train_checked.tokenized]
plot_lengths(lengths, limit, run.path / "lengths.png")

# %% [markdown]
# The wider the heap, the more the next question matters. A GPU works on several rows at once, a *batch*. The plain way
# fills each of them up to the longest: *padding*, work for nothing, and much of it where a few rows are long and most
# are short. Two ways are better. Rows can be laid end to end; or they can be *packed* into sequences of a fixed
# length, which the parameter `packing` asks for. *Attention* is how a token takes up what the tokens before it say;
# both ways need one that stays within a row, as the lowest drawing below shows. (With `varlen_attention` the GPU
# computes it for all rows in one call, where it would need a call for each. `cuda_graphs` goes further: short passes
# are recorded and launched as a whole, since a fast GPU waits longer for its thousands of small orders than it works on
# them. Recording takes time, too, so that it is done only in a training of about a hundred steps or more.)

# %%
from helpers.display.diagrams import show_drawing

show_drawing("packing")

# %% [markdown]
# The number in a place is the token's position. It begins anew with each row; that is how the model is told where a row
# ends. Which of the three ways is used depends on the card, and is printed after training. Packing also changes what is
# learned: a step sees tens of rows instead of eight, and an epoch has fewer steps. Unless the learning rate grows with
# the rows, these learn less. When we measured it, with a small model and a short training, 40 rows a step and a rate of
# 0.001 learned more from the same rows than 8 rows and 0.0002 (`docs/speed.md`). Nothing is packed unless you ask for
# it.
#
# What went into the run is written down before it starts, with a fingerprint of the rows and of the template: two runs
# with the same fingerprints learned from the same tokens.

# %%
from helpers.training.session import record_inputs

record_inputs(run, rows, loaded)
print("data fingerprint:", run.manifest()["data_fingerprint"][:16], "…")

# %% [markdown]
# ## 5. The card, and what LoRA adds
#
# Training goes in *optimizer steps*: the model reads some rows, then the adapter is changed once. How many of these
# rows fit into one *pass* through the model depends on the card and on the lengths above. The rows of a step stay as
# many as you asked for; how they are laid out is computed from the model's shape, and each choice comes with its
# reason. Most of the memory goes to *activations*, what a pass has to remember of each token until it is known in
# which direction the adapter should change (the *gradient*, section 6). With *gradient checkpointing* most of them are
# forgotten and computed a second time: slower, and far smaller. The model is a stack of *layers*, 32 in
# Mistral-7B; the numbers that stand for a token pass through one after another. Where there is room for it, some layers
# keep their activations all the same. What else is printed is about section 6: which optimizer is used and, on a GPU,
# how much memory the loss takes.

# %%
from helpers.training.session import fit_layout

config = fit_layout(config, train_checked)

# %% [markdown]
# The model's weights stay as they are. Most of them are in *linear layers*, seven in each layer of the stack. A
# linear layer multiplies the numbers that come in, $x$, by a matrix $W$. Beside each of these matrices *LoRA* puts two
# thin ones, $A$ and $B$, and adds their product: $Wx + \frac{\alpha}{r} BAx$.

# %%
from helpers.display.diagrams import show_drawing

show_drawing("lora")

# %% [markdown]
# The sizes are those of one of Mistral's matrices. The *rank* $r$, here 16, is how thin $A$ and $B$ are: $A$ takes 4096
# numbers down to 16, $B$ takes these back up. A larger rank can learn more, and costs more. *Alpha*, $\alpha$, says how
# much the result counts: $\alpha / r$ is a factor in front of it, 1 in our presets. $B$ starts at zero, so that before
# training the model is exactly the base model.
#
# The cell prints how much is trained. A model's numbers, its weights, are also called its *parameters*; these are not
# the parameters of section 1.

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
# That share is all that is learned; the smaller the model, the larger it is. It is what a checkpoint has to hold, and
# what the *optimizer*, which changes the weights step by step, has to remember two further numbers for. The optimizer
# is AdamW; `adamw_8bit` rounds these two numbers to 8 bit each, `adamw_torch_fused` does not and is faster, and `auto`
# chooses by the card.
#
# Two parameters of section 1 keep the adapter from learning its rows by heart. `weight_decay` pulls its weights a
# little towards zero at each step; `lora_dropout` leaves out a random share of its inputs, in our presets none.
#
# ## 6. Train
#
# The trainer shows the model a batch of rows (`batch_size`) and computes the *gradient*: for each number of the
# adapter, in which direction the loss falls. It adds up the gradients of several batches, because one large batch
# might not fit into memory (*gradient accumulation*), and then takes one *optimizer step*. The rows that one step sees
# are the product of the two. When all rows were seen once, an *epoch* is over. Training ends after `num_epochs` of
# them, or after `max_steps` steps if that comes first.
#
# How far a step goes is the *learning rate*. It rises from zero during the first few steps (*warm-up*), while the
# optimizer does not know the terrain yet, and then falls in a straight line, to nearly zero at the last step.
#
# After the trainer is built, its own tokens and labels are compared with the ones that were checked above.

# %%
from helpers.training.trainer import build_trainer, planned_steps

trainer = build_trainer(config, loaded, train_checked, run)
steps = planned_steps(config, len(trainer.train_dataset))
print(steps, "optimizer steps of", config.train.rows_per_step(), "rows or packed sequences")

# %% [markdown]
# The loss below is the model's surprise: the mean of $-\log p$ over the answer's tokens, where $p$ is the probability
# that the model gave to the token that came. With the natural logarithm it is counted in *nats*: 0 is certainty, and
# 0.69 is what the toss of a coin costs. It is measured on the held-out rows before the first step, every `eval_steps`
# steps on the way, and after the last. To watch it in trackio, tensorboard or wandb, name one of them in `report_to`;
# by default the numbers stay in the run's folder.

# %%
from helpers.training.trainer import train

result = train(trainer, config, loaded, train_checked, heldout_checked)
run.update_metrics(**result.metrics())

# %% [markdown]
# ## 7. Did it help?
#
# The grey line jumps up and down, because each step sees other rows, some harder than others. Look at the blue one: it
# is always measured on the same held-out rows.

# %%
from helpers.display.tables import plot_losses

plot_losses(run.metrics(), run.path / "loss.png")

# %% [markdown]
# If the blue line falls, the model finds good answers that it never saw more likely than before. Most of the fall comes
# early. A blue line that turns upwards while the grey one falls would mean that the model learns its rows by heart.
#
# What the curve looks like, in words, by rules that do not depend on how one feels about it.

# %%
from helpers.training.curves import judge_curve

print(judge_curve(run.metrics()).text)

# %% [markdown]
# A lower number may still be luck. Each held-out row was measured before and after, so each gives one difference; the
# interval below covers the mean difference of all rows like these in 95 of 100 such experiments. If it lies below zero
# as a whole, the model has become better at rows like these.

# %%
from helpers.training.trainer import describe_change

print(describe_change(result))

# %% [markdown]
# (The change is a mean over rows, each counted once. The two losses are means over tokens, in which long answers count
# for more. So the change need not be exactly their difference.)
#
# What it cost: time in optimizer steps (measurements of the held-out loss left out), speed, and the highest memory use.

# %%
shown = ("train_seconds", "examples_per_second", "tokens_per_second", "supervised_tokens")
cost = {name: run.metrics()[name] for name in shown}
show_table({**cost, "peak memory, GiB": result.peak_memory_bytes / 2**30, **result.mode})

# %% [markdown]
# `tokens_per_second` counts all tokens that were read, `supervised_tokens` those that were learned from. The lines at
# the end say what the trainer really did, in places with the reason: `padding_free` is rows laid end to end,
# `attention` is how attention was computed. There `sdpa`, short for *scaled dot-product attention*, is torch's own
# function for any case, and a name with `varlen` is one that takes rows of different lengths in one call.
#
# ## 8. Save the adapter, and load it back
#
# The adapter is small: the two thin matrices of each layer. Beside them go the tokenizer, with the template that it was
# trained with, and a description.

# %%
from helpers.export import hub_name, save_adapter

base = hub_name(config.model.model_name)
files = save_adapter(loaded.model, loaded.tokenizer, run.adapter, base=base)
print(run.shown("adapter") + ":", ", ".join(files))

# %% [markdown]
# A file that was written is not yet a file that can be read. So the trained model is thrown away, the base model is
# loaded again as if this were another day, and the saved adapter is put on it.

# %%
from helpers.model.load import free_memory, load_adapter

del trainer, loaded
free_memory()
loaded = load_adapter(run.adapter, config)

# %% [markdown]
# The reloaded model must find the held-out answers as likely as the trained one did. The limit leaves room for rounding
# and for nothing else; a wrong adapter misses it by far, and the cell would fail.

# %%
from helpers.training.reload import prove_reload

print(prove_reload(loaded, heldout_checked, result))

# %% [markdown]
# ## 9. Ask it something
#
# Five questions, one of each kind that a general assistant should master: reasoning, summarization, explanation,
# translation, problem solving. All are answered at once, by the tuned model and by its base, from the same weights in
# memory.
#
# An answer is written token by token. At each place the model gives every token a number, its *logit*; the larger, the
# likelier. Here the likeliest is taken each time (*greedy* decoding), until it is EOS or `max_new_tokens` is reached.
# What attention has computed of the text so far, for each token two lists of numbers named keys and values, is kept in
# the *KV cache*, so that it need not be computed anew for each token.

# %%
questions = [
    ("Anna is older than Ben, Ben is older than Carla. Who is the youngest, and why?", ""),
    ("Summarize the text in one sentence.",
     "The ferry was late because fog hid the harbour. It left at nine instead of seven, "
     "and by noon the sky was clear."),
    ("Explain to a child why we see lightning before we hear thunder.", ""),
    ("Translate the sentence into French.", "The library closes at six o'clock."),
    ("A recipe for 4 people needs 300 g of rice. How much rice do 6 people need?", ""),
]

# %% [markdown]
# The questions are written exactly as the training rows were: by the same function, with the same template. Both models
# answer: `tuned` with the adapter, `base` with the adapter switched off. How the answers are generated depends on the
# card, and is printed.

# %%
from helpers.model.decoding import fast_generate
from helpers.data.prompts import build_prompt

prompts = [build_prompt(task, text, **how) for task, text in questions]
length = config.generation.max_new_tokens
answers = fast_generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=length)

# %% [markdown]
# Read them side by side. If the base is Mistral-7B-Instruct, its answers are reasonable already: it was an instruction
# model before this training, which adds the manner of Alpaca's answers. A small model stays a small model. So look at
# the form of the answers as much as at their truth: do they answer at once, do they end by themselves?

# %%
asked = [f"{task}\n{text}".strip() for task, text in questions]
columns = [
    {"question": question, "base": before.text, "tuned": after.text}
    for question, before, after in zip(asked, answers["base"], answers["tuned"])
]
show_table(columns)

# %% [markdown]
# The answers are kept with the run, and the run is marked as complete.

# %%
from helpers.core.files import write_json
from helpers.training.session import finish_run

kept = [{"instruction": c["question"], "answer": c["tuned"]} for c in columns]
write_json(run.path / "answers.json", {"answers": kept})
finish_run(run)

# %% [markdown]
# Now one of your own. The words appear as the model chooses them.

# %%
from helpers.model.decoding import stream

my_instruction = "Write two sentences that invite a friend to a picnic."
question = build_prompt(my_instruction, **how)
answer = stream(loaded.model, loaded.tokenizer, question, max_new_tokens=length)

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
