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
# A language model continues text: it gives every possible next *token*, a word or a piece of one, a probability. This
# notebook *fine-tunes* Mistral-7B-Instruct: it trains the model a little more, on small tasks with good answers. Rows
# that were held out tell whether that helped.
#
# Seven billion numbers, the model's *weights*, cannot be trained on a free GPU. QLoRA *quantizes* them: it rounds them to
# 4 bit, freezes them, and trains a small *adapter*, LoRA, beside them.
#
# The libraries' calls stand in the cells; `helpers`, this project's own package, prepares, watches, merges and proves.
#
# **You will learn**
#
# - what a row becomes before a model can learn from it, token by token,
# - what LoRA trains, and how little that is,
# - how to tell from held-out rows whether training helped,
# - how to save and merge an adapter, and prove that both work.
#
# **What it needs.** On Colab: a free T4 GPU (*Runtime → Change runtime type*), 4 GB of downloads, 16 GB of disk, and about
# 45 minutes. On Kaggle: *Settings → Accelerator → GPU T4* and *Internet on*. Without a GPU:
# `preset = "smoke"`, a few minutes.

# %% [markdown]
# ## 1. Parameters
#
# `preset = "auto"` looks at the GPU and chooses `colab-t4` or `large-gpu`. `smoke` runs anywhere: SmolLM2, unquantized,
# on bundled rows, with the template ChatML; its answers stay weak. A value that you write here wins over the preset's.
# The second block may stay as it is.

# %% tags=["parameters"]
preset = "auto"  # type: str  auto, colab-t4, large-gpu or smoke
run_name = None  # type: str  folder under runs/; None takes the task and the preset
resume = "auto"  # type: str  auto (go on with an earlier run), never (start over) or must
model_name = None  # type: str  alias, hub id or local folder of the base model
dataset_name = None  # type: str  hub id, local .json/.jsonl/.csv/.tsv/.parquet file, or sample for the bundled rows
train_rows = None  # type: int  rows to train on; 0 takes all [rows]
heldout_rows = None  # type: int  rows kept apart to measure the loss on [rows]
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
# The parameters are checked, so that a typing mistake costs seconds and not a download. The table shows all of them, with
# the preset's values; below, each is `cfg.NAME`.

# %%
from types import SimpleNamespace

from helpers.display.tables import show_table
from helpers.training.session import configure_notebook, start_run

config = configure_notebook("alpaca", globals())
cfg = SimpleNamespace(**config.flat())
show_table(config.flat())

# %% [markdown]
# The packages, in exact versions. The last line begins with `ready:`, or says what to do.

# %% tags=["notebook"]
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# All that this run makes goes into one folder. Colab deletes its disk when a session ends. With
# `persist_dir = "/content/drive/MyDrive/runs"` the training's *checkpoints* and the adapter are also copied to your Google
# Drive. Run the notebook again with the same parameters, and it goes on from the newest checkpoint; others need a new
# `run_name`.

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
# ## 2. Rows: what the model learns from
#
# `instruction` says what to do, `input` holds a text to do it with and is often empty, `output` is the answer to learn.
# The rows come from the *hub* of Hugging Face.
#
# `seed` fixes which rows are drawn: the same number, the same rows. The *held-out* rows are never trained on.

# %%
from helpers.data.rows import draw_rows

drawn = draw_rows(config.data, config.task, config.train.seed, run.path, given=config.given)
print(drawn.describe())

# %% [markdown]
# `load_dataset` reads the data set as a table, a `Dataset`; `select` takes the drawn rows.

# %% tags=["core"]
data = load_dataset(**drawn.source)
rows = DatasetDict(train=data["train"].select(drawn.train), heldout=data[drawn.part].select(drawn.heldout))
print(rows["train"][0])

# %% [markdown]
# A chat model knows no columns but *messages*: something a user said, something the assistant answered. `prompt` is what
# the model is given, `completion` what it learns to say; TRL uses the same two names. `prompt_style = "alpaca"` writes
# the user's message as Stanford's text block.

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


if drawn.conversations:
    chats = rows
else:
    chats = rows.map(to_messages, remove_columns=rows["train"].column_names)
print(chats["train"][0])

# %% [markdown]
# ## 3. The model
#
# 4 bit can tell 16 values apart. Most weights are near zero, so *NF4* puts its levels close together there. Each weight is
# divided by the largest absolute value among 64 neighbours, and stored as the number of the nearest level.

# %% tags=["main"]
from helpers.display.diagrams import show_drawing

show_drawing("nf4")

# %% [markdown]
# `machine` holds arguments that depend on the hardware; printed, each says why it is passed.
# `FastLanguageModel.from_pretrained` loads the *base model*, as it is before our training, and its *tokenizer*, which cuts
# text into tokens. No Mistral needs `trust_remote_code`, which lets a model's files run code of their own: transformers has
# the code.

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
# ## 4. Tokens, and which of them are learned
#
# A *chat template* turns messages into one text. Mistral's adds *control tokens*: `<s>` begins the text (*BOS*), `[INST]`
# and `[/INST]` enclose what the user said, `</s>` ends the answer (*EOS*). The template on the hub drops the *system
# prompt*, which tells the assistant who it is, from rows with an answer. This one does not; it is compared with
# Mistral's own library.

# %%
from helpers.data.chat_templates import find_template

template = find_template(tokenizer, cfg.prompt_style)
print("template:", template.name)

# %% tags=["core"]
tokenizer.chat_template = template.text
tokenizer.pad_token = template.pad_token  # fills rows up; if it were EOS, answers would never end
tokenizer.padding_side = "right"  # in training, rows are filled up after the answer

# %% [markdown]
# Before any training, the base model answers a question. `generate` takes the likeliest token again and again (*greedy*
# decoding), until EOS or `max_new_tokens`; `TextStreamer` prints the words as they come.

# %% tags=["notebook"]
from transformers import TextStreamer


def answer(question):
    prompt = to_messages({"instruction": question, "output": ""})["prompt"]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generation_config.max_length = None  # beside max_new_tokens it only causes warnings
    model.generate(
        **inputs.to(model.device), max_new_tokens=cfg.max_new_tokens, do_sample=False, streamer=streamer,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )


FastLanguageModel.for_inference(model)
question = "Write two sentences that invite a friend to a picnic."
answer(question)

# %% [markdown]
# In training the model guesses each token from those before it; the *loss* says how wrong it was. Only answers should
# count, so each token gets a mask: 1 where it is learned, 0 where it is given. `template.masked` is the same template with
# marks around each answer. What the prompt holds is given, an earlier answer too.

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
# Fine-tuning mostly goes wrong here, silently. So every row is checked: the answer ends with EOS (or the
# model would never learn to stop), there is one BOS, and the *system prompt* if there is one. Rows that are too long, or
# that spell out a control token, are left out and counted.

# %%
from helpers.data.contract import check_tokens

limit = cfg.max_seq_length
checked = {part: check_tokens(tokens[part], chats[part], tokenizer, max_seq_length=limit) for part in tokens}
show_table([{"part": part, **found.summary()} for part, found in checked.items()])

# %% tags=["core"]
train_dataset = tokens["train"].select(checked["train"].kept)
heldout_dataset = tokens["heldout"].select(checked["heldout"].kept)

# %% [markdown]
# The shortest row as the model sees it: grey tokens are given, underlined blue ones are learned (*supervised*), EOS too.

# %% tags=["main"]
from helpers.display.tables import plot_lengths, show_mask

show_mask(min(train_dataset, key=lambda row: len(row["input_ids"])), tokenizer)

# %% [markdown]
# How long are all rows?

# %% tags=["main"]
plot_lengths(checked["train"].lengths, limit, run.path / "lengths.png")

# %% [markdown]
# ## 5. What LoRA adds
#
# Most weights are in *linear layers*, which multiply what comes in, $x$, by a matrix $W$. Beside each LoRA puts two thin
# matrices, $A$ and $B$, and adds their product: $Wx + \frac{\alpha}{r} BAx$. The *rank* $r$ says how thin, $\alpha$ how
# strong. $B$ starts at zero: untrained, the adapter changes nothing.

# %% tags=["main"]
show_drawing("lora")

# %% [markdown]
# How many rows fit into one pass, a *batch*, depends on the card. Where memory is short, *gradient checkpointing* drops
# intermediate results and computes them again. `batch_size` times `gradient_accumulation` stays as in the table above.
#
# The model repeats one *block* with seven linear layers; `get_peft_model` adapts them all. The last line: how much is
# trained.

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
# ## 6. Train
#
# The *gradient* says for each number of the adapter in which direction the loss falls. After several
# batches (*gradient accumulation*) the *optimizer* takes one step; when all rows were seen once, an *epoch* is over. The
# *learning rate*, how far a step goes, rises during the first few steps (*warm-up*) and then falls to nearly zero.
#
# `record` measures the held-out loss before, during and after training; `checkpoints` saves all that is needed to go
# on as if the training had never stopped. Rows and template get a hash: going on with others fails.

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
# The loss is the mean of $-\log p$ over the answer's tokens, where $p$ is the probability that the model gave to the right
# token: 0 is certainty, 0.69 the toss of a coin. A short training warms up for at most half of its steps. `fast_training`
# computes the same, but for rounding, faster.

# %% tags=["core"]
trainer.args.warmup_steps = min(cfg.warmup_steps, steps // 2)
with fast_training(trainer, checkpoints):
    trainer.train(resume_from_checkpoint=checkpoints.latest(trainer))

# %% [markdown]
# ## 7. Did it help?
#
# The grey line jumps, because each step sees other rows. The blue one is always measured on the same held-out rows: if it
# falls, held-out answers became more likely. If it turns upwards while the grey one falls, the model learns its rows by
# heart. Above the figure, fixed rules judge the same curve, and the rows' mean change has an interval, because it may be
# luck. If that lies below zero, and the rows suffice, answers like these became more likely.

# %% tags=["main"]
from helpers.display.tables import plot_losses
from helpers.training.curves import judge_curve
from helpers.training.result import describe_change

run.update_metrics(**record.result.metrics())
metrics, peak = run.metrics(), record.result.peak_memory_bytes / 2**30
print(judge_curve(metrics).text)
print(describe_change(record.result))
print(f"{metrics['train_seconds']:.0f} s, {metrics['tokens_per_second']:.0f} tokens a second, peak memory {peak:.1f} GiB")
plot_losses(metrics, run.path / "loss.png")

# %% [markdown]
# ## 8. Save, merge, and load back
#
# `save_pretrained` writes the adapter's matrices, and the tokenizer with its template.

# %% tags=["core", "main"]
from helpers.export import hub_name, saving_adapter

with saving_adapter(model, tokenizer, run.adapter, base=hub_name(config.model.model_name)) as adapter:
    model.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)

# %% [markdown]
# The training cells, as a plain script in the run's folder:

# %% tags=["main"]
from helpers.training.script import write_script

script = write_script(run, globals())

# %% [markdown]
# A fresh process loads it with transformers and PEFT alone. To pass, its *logits*, scores of every next token, must be
# close to the tuned model's *and* far from its base's (`reference`). How much of the held-out gain is kept?

# %% tags=["notebook"]
from helpers.export import HeldOut, measure_reference, sixteen_bit_name, verify_adapter
from helpers.training.persist import keep_result

folders = {"adapter": run.adapter, "merged": run.path / "merged", "gguf": run.path / "gguf"}
scored = record.result
heldout = HeldOut(heldout_dataset, scored.heldout_before, scored.heldout_after, scored.heldout_sources)
reference, other = measure_reference(model, tokenizer), sixteen_bit_name(base) if cfg.score_16bit_base else None
proof = verify_adapter(model, tokenizer, run.adapter, reference=reference, heldout=heldout, base_16bit=other)
proofs = {"adapter": proof.require()}
print(proof.lines())
if cfg.persist_dir:
    print(keep_result(run, cfg.persist_dir))

# %% [markdown]
# Many tools want one model. *Merging* adds $\frac{\alpha}{r} BA$ to each $W$ and writes the sum in 16 bit.
# `gguf_quantization = "q8_0"` makes a GGUF file of it, for llama.cpp and Ollama, and prints three lines that start a chat
# there.

# %% tags=["notebook"]
from helpers.export import export_gguf, merge_16bit, serving_lines, verify_merged

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
# Each export gets a *model card*, `README.md`: what it was made from, how it measured, what was proven, what it is for.

# %% tags=["notebook"]
from helpers.export import write_card

run.update_manifest(exports={name: proof.as_dict() for name, proof in proofs.items()})
for name, proof in proofs.items():
    print(write_card(folders[name], run, config, verification=proof).relative_to(run.path))

# %% [markdown]
# Now as on another day: the base model afresh, and the saved adapter on it. It must find the held-out answers as likely
# as the trained model did, but for rounding. CANNOT TELL: training moved them less than four times what rounding does.

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
# ## 9. Ask it something
#
# The question from before, now with the adapter.

# %% tags=["notebook"]
FastLanguageModel.for_inference(model)
answer(question)

# %% [markdown]
# Five more: reasoning, summarization, explanation, translation, problem solving, written as the training rows.

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
# The tuned model answers all at once, and so does its base: the same weights with the adapter switched off. Mistral followed
# instructions before; this training adds the manner of Alpaca's answers. So look at the form as much as at the truth: do
# they answer at once, do they end by themselves?

# %% tags=["notebook"]
from helpers.core.files import write_json
from helpers.model.decoding import fast_generate

answers = fast_generate(model, tokenizer, asked, max_new_tokens=cfg.max_new_tokens)
shown = [
    {"question": f"{task}\n{text}".strip(), "base": before.text, "tuned": after.text}
    for (task, text), before, after in zip(questions, answers["base"], answers["tuned"])
]
kept = [{"instruction": c["question"], "base": c["base"], "answer": c["tuned"]} for c in shown]
write_json(run.path / "answers.json", {"answers": kept})
show_table(shown)

# %% [markdown]
# ## 10. All that ran
#
# The training without the checks, as a script that needs only the libraries; `python -m helpers eject RUN` prints it too.

# %% tags=["notebook"]
print(script)

# %% [markdown]
# ## 11. Your own data
#
# Give `dataset_name` a .json, .jsonl, .csv, .tsv or .parquet file. Its columns say which format it has.
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
# `python -m helpers data FILE` looks at a file before any training: rows, columns, lengths, what is left out and why.

# %% [markdown]
# ## 12. Take it with you
#
# `push_to = "owner/name"` uploads to the Hugging Face hub. The token comes from `HF_TOKEN` in the environment or in Colab's
# secrets, never from a parameter. The zip holds adapter, card, script, figures, rows and answers: on Colab, in the list of
# files.

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
# - A row became messages, text and tokens, and only the answer's tokens were learned.
# - Rows that were held out told, with an interval, whether that helped.
# - Adapter and merged model were loaded again, and proved close to the tuned model.
#
# ## Your turn
#
# 1. Set `learning_rate` ten times higher, under a new `run_name`. What do grey and blue line do?
# 2. Train with `prompt_style = "alpaca"`. Why are the held-out losses not quite comparable? (Which tokens are given?)
# 3. Put five rows of your own, one without `output`, into a `.jsonl` file for `dataset_name`. Which check complains?
# 4. Give this run's name to `side_by_side_eval`, as `adapter_dir`.
