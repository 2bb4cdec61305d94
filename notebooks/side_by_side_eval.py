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
#     task: side_by_side
#     teaches: Comparing a base model with its adapter so that you may believe the result
#     gpu: T4
#     minutes_t4: 20
#     download_gb: 4.2
# ---

# %% [markdown]
# # Did the fine-tuning help?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/side_by_side_eval.ipynb) [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://www.kaggle.com/notebooks/welcome?src=https://github.com/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/side_by_side_eval.ipynb) [![View in nbviewer](https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg)](https://nbviewer.org/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/side_by_side_eval.ipynb)
#
# You have trained an adapter. Is the tuned model *better*? One prompt that looks good proves nothing, and whoever trained
# a model is the last person to judge it. This notebook asks the base model and the tuned one the same things, shows the
# answers side by side, measures what can be measured, and says what the numbers allow. Often that is: *cannot tell*.
#
# **You will learn**
#
# - to switch an adapter on and off, and to compute a likelihood and an answer with the libraries' own calls,
# - why comparing in pairs gets the most out of few questions,
# - how much better prompting gives without any training, and what training cost elsewhere,
# - to vote blind, so that your hopes cannot decide,
# - to read an interval, and to accept "cannot tell".
#
# **What it needs.** An adapter from `alpaca_instruction` or `dolly_business`; if there is none, a small one is trained
# first. On Colab: a free T4 GPU (*Runtime → Change runtime type → T4 GPU*), a download of about 4 GB and about twenty
# minutes, ten more if it trains. On Kaggle: *Settings → Accelerator → GPU T4* and *Internet on*. Without a GPU, preset
# `smoke` takes a few minutes.

# %% [markdown]
# ## 1. Parameters
#
# With everything at `None`, the newest adapter is compared on the bundled prompts of its task and on the rows that its
# training held out. Your own prompts go into a text file, one a line: `prompts_file = "my_prompts.txt"`.

# %% tags=["parameters"]
preset = "auto"  # type: str  auto, colab-t4, large-gpu or smoke
run_name = None  # type: str  folder under runs/; None takes side-by-side
resume = "auto"  # type: str  auto (go on with an earlier run), never (start over) or must
adapter_dir = None  # type: str  run name, run folder or adapter folder; None takes the newest complete training run
model_name = None  # type: str  alias, hub id or folder of the base model; None takes the one the adapter was trained on
mode = None  # type: str  compare (base against tuned) or aa (base against base: how big is noise?)
arms = None  # type: str  base and tuned, and perhaps base_bare and base_few_shot, separated by commas
few_shot_rows = None  # type: int  example training rows for the arm base_few_shot [rows]
prompts_file = None  # type: str  own prompts, a .jsonl, .json, .csv, .tsv or .txt file, one a line; None takes the bundled ones
prompt_count = None  # type: int  prompts to ask; 0 asks all [prompts]
reference_data = None  # type: str  file of rows with good answers; None takes the held-out rows of the adapter's own run
reference_rows = None  # type: int  rows whose good answers are scored [rows]
answered_rows = None  # type: int  how many of these are also answered, for ROUGE and chrF++ [rows]
columns = None  # type: str  which column of prompts_file and reference_data is what, where the names do not say
task = None  # type: str  columns of reference_data: alpaca or dolly; None takes the adapter run's
system_prompt = None  # type: str  what the assistant is told first; None takes the adapter run's
prompt_style = None  # type: str  chat (the model's own template) or alpaca (text block); None takes the adapter run's
max_new_tokens = None  # type: int  longest answer [tokens]
batch_size = None  # type: int  prompts answered at a time; halved when memory runs out [prompts]
seed = None  # type: int  seed of blind shuffling, examples and, in mode aa, answers
votes_file = None  # type: str  votes exported from vote.html, CSV files separated by commas

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
# The parameters are checked first: a typing mistake should cost seconds, not a download.

# %%
from helpers.display.tables import show_table
from helpers.evaluation.session import configure_evaluation

config = configure_evaluation(globals())
show_table(config.flat())

# %% [markdown]
# Where the table says `None`, the parameter's line above says what is taken. Now the packages.

# %% tags=["notebook"]
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# Which adapter? Its run knows the base model, the system prompt and the way prompts were written. All of that is used
# here too: to ask a model in another way than it was trained on is a different experiment.
#
# A Colab or Kaggle machine is fresh each time. If you kept your training on Google Drive
# (`persist_dir = "/content/drive/MyDrive/runs"`), set `adapter_dir = "/content/drive/MyDrive/runs/NAME"` here.

# %%
from helpers.evaluation.adapter import provide_adapter, training_config

adapter = provide_adapter(config)
training = training_config(adapter, config)
print(f"adapter: {adapter.shown()}, trained on {training.model.model_name}, prompt style {training.data.prompt_style}")

# %% [markdown]
# Everything that the comparison makes goes into its own folder.

# %%
from helpers.evaluation.session import open_evaluation

run = open_evaluation(config, adapter, resume=resume)
print("this comparison:", run.shown())

# %% [markdown]
# ## 2. What is asked
#
# *Prompts* are what you want to use the model for; nobody has written down the right answer. *References* are held-out
# rows with a good answer: where the training rows are known, none of them is among these.

# %%
from helpers.evaluation.prompts import gather

material = gather(config, adapter, training)
print(f"{len(material.prompts)} prompts, {len(material.references)} references, {material.answered} of these answered")
print("\n".join(material.notes))

# %% [markdown]
# The first three prompts. If one asks for a number of things, an answer can be checked for that number.

# %% tags=["main"]
first_three = [each.prompt for each in material.prompts[:3]]
show_table([{"category": p.category, "prompt": p.text, "asks for": p.expected_items or ""} for p in first_three])

# %% [markdown]
# What a model answers depends on how it is asked, so there are up to four *arms*. The comparison that counts is **base**
# against **tuned**: the same weights, the same text, only the adapter is switched. **Base, plain text** gets no template.
# **Base + examples** sees a few training rows before the question. If examples do as well as the adapter, you may not
# need the adapter.

# %%
from helpers.evaluation.arms import choose_arms, plan_asking

arms = choose_arms(config)
asking = plan_asking(config, material, training.data.prompt_style, training.data.system_prompt)
show_table([{"arm": arm.label, "adapter": "on" if arm.adapter else "off", "asked with": arm.prompting} for arm in arms])

# %% [markdown]
# ## 3. One model, adapter on and off
#
# The base model is loaded once, as in training. First its name and size are compared with the adapter's own file: on
# another base of that size it would produce nonsense.

# %%
from helpers.evaluation.adapter import check_adapter
from helpers.model.load import prepare_unsloth
from helpers.training.machine import base_model, fit_machine

prepare_unsloth()
base, revision = base_model(training)
machine = fit_machine(training, run)  # arguments that depend on the hardware

# %%
from unsloth import FastLanguageModel  # isort: skip
import torch
from transformers import AutoTokenizer

check_adapter(adapter, base, revision)
model, _ = FastLanguageModel.from_pretrained(
    model_name=base,
    revision=revision,
    max_seq_length=training.model.max_seq_length,
    load_in_4bit=training.model.load_in_4bit,
    dtype=getattr(torch, machine.dtype),
    trust_remote_code=False,
    **machine.loading,
)
model.generation_config.max_length = None  # beside max_new_tokens it only causes warnings
tokenizer = AutoTokenizer.from_pretrained(str(adapter.folder), trust_remote_code=False)

# %% [markdown]
# `put_adapter` is `PeftModel.from_pretrained` with two checks: every weight of the adapter found its place, and the model
# with the adapter switched off computes what the base computed before. Some kinds of LoRA change the base's own weights;
# then "off" would no longer be the base.

# %%
from helpers.model.load import put_adapter

model = put_adapter(model, adapter.folder).eval()
lora = model.peft_config["default"]
print(f"rank {lora.r}, alpha {lora.lora_alpha}, on {lora.target_modules}")

# %% [markdown]
# `bench` keeps model, tokenizer and the way of asking together. This is the text that each arm reads, control tokens
# included.

# %%
from helpers.evaluation.generate import Bench

bench = Bench(
    model, tokenizer, asking, adapter, base, machine.precision,
    max_new_tokens=config.max_new_tokens, max_seq_length=training.model.max_seq_length,
    temperature=config.temperature(), seed=config.seed,
)
show_table({arm.label: bench.writer.text(material.prompts[0], arm, config.max_new_tokens) for arm in arms}, limit=5_000)

# %% [markdown]
# Four tests before any answer is shown. Does the adapter change the *logits*, the numbers behind the probabilities of
# the next token? Does switching it off and on restore them exactly? Is there one beginning-of-sequence token (BOS), not
# two? Is the template the one from training? If a test fails, the cell stops here.

# %%
from helpers.evaluation.generate import self_test

show_table(self_test(bench, material.prompts[0], arms))

# %% [markdown]
# ## 4. How likely is a good answer?
#
# One measure needs no generating. The model reads a question with its good answer and says how likely it finds each
# token of the answer. By hand, for three tokens with probabilities 0.5, 0.25 and 0.8: the *negative log-likelihood*
# (NLL) adds up $-\log p$, in *nats*; *perplexity* is $e$ to its mean, as if the model chose among that many tokens each
# time.

# %% tags=["notebook"]
import math

nll = -sum(math.log(p) for p in (0.5, 0.25, 0.8))
print(f"NLL {nll:.3f} nats, {nll / 3:.3f} a token, perplexity {math.exp(nll / 3):.2f}")

# %% [markdown]
# Now one reference with the model, in the libraries' own calls. What the whole conversation has beyond the prompt is the
# answer; each token is predicted from the position before it.

# %% tags=["notebook"]
from helpers.evaluation.arms import messages_for

example = material.references[0]
messages = messages_for(example, arms[0], asking)
good = [*messages, {"role": "assistant", "content": example.prompt.reference}]
given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
whole = tokenizer.apply_chat_template(good, return_dict=True, return_tensors="pt").to(model.device)


def mean_nll():
    logits = model(**whole).logits[0, len(given) - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits, whole["input_ids"][0, len(given) :]).item()


with torch.no_grad():
    tuned_nll = mean_nll()
    with model.disable_adapter():
        base_nll = mean_nll()
print(f"base {base_nll:.3f}, tuned {tuned_nll:.3f} nats a token")

# %% [markdown]
# Then all references, in batches, under every arm. *NLL with EOS* counts the closing token, as training does; the next
# column leaves it out, since a model that only learned when to stop would gain there, too. *Bits per byte* does
# not depend on how a tokenizer cuts text.

# %%
from helpers.evaluation.generate import score_references
from helpers.evaluation.show import reference_table

references, left_out = score_references(bench, material.references, arms)
print("left out:", left_out or "none")
show_table(reference_table(references, arms))

# %% [markdown]
# Lower is better in every column but the count. If these are all held-out rows of the training run, its last held-out
# loss must come out again, within 0.02: the right adapter on the right model.

# %%
from helpers.evaluation.adapter import recorded_loss
from helpers.evaluation.sanity import reproduces_training

print(reproduces_training(references, *recorded_loss(adapter, config, as_trained=material.as_trained)))

# %% [markdown]
# What did training cost elsewhere? The same for bundled rows of the task that was *not* trained: a model can lose there
# what it gains here.

# %%
other_task = () if config.mode == "aa" else score_references(bench, material.other, arms[:2])[0]
show_table(reference_table(other_task, arms))

# %% [markdown]
# Are such differences more than luck? Four made-up questions, some easy, some hard; the tuned model is a little better
# on each.

# %% tags=["notebook"]
from statistics import mean, stdev

base_losses, tuned_losses = [1.0, 2.0, 4.0, 3.0], [0.9, 1.8, 3.8, 2.9]
print(f"base {mean(base_losses):.2f} ± {stdev(base_losses):.2f}, tuned {mean(tuned_losses):.2f} ± {stdev(tuned_losses):.2f}")

# %% [markdown]
# The ±, how far questions spread, hides the difference: it is nearly nine times as large. Subtract question by question
# and the difficulty drops out. The *95 % interval* of these *paired* differences is built to hold the true mean in 95 of
# 100 such experiments.

# %% tags=["notebook"]
from helpers.core.paired import estimate

found = estimate([tuned - base for base, tuned in zip(base_losses, tuned_losses, strict=True)])
print(f"mean difference {found.mean:+.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f}")
print("no verdict:", found.why_no_verdict)

# %% [markdown]
# The interval lies below zero, and yet four rows get no verdict: from so few, or when a few rows carry the whole
# difference, such an interval promises more than it holds.
#
# ## 5. The answers
#
# One prompt first: `apply_chat_template` writes it, `generate` takes the likeliest token again and again, and inside
# `disable_adapter()` the base answers.

# %% tags=["notebook"]
asked = messages_for(material.prompts[0], arms[0], asking)
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
start, limit = inputs["input_ids"].shape[1], {"max_new_tokens": config.max_new_tokens, "do_sample": False}
with model.disable_adapter():
    said = model.generate(**inputs.to(model.device), **limit, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(said[0, start:], skip_special_tokens=True))

# %% [markdown]
# Now all arms answer all prompts and some of the references. Answers are kept on disk batch by batch, or arm by arm where
# memory allows a copy of the weights: if you are cut off, run the notebook again and it goes on from there.

# %%
from helpers.evaluation.cache import AnswerCache
from helpers.evaluation.generate import answer_all

cache = AnswerCache(run.path / "answers_cache.json", bench.configuration())
answers = answer_all(bench, material.asked(), arms, batch_size=config.batch_size, cache=cache)

# %% [markdown]
# Prompts, answers and scores go into one record, and every answer is measured.

# %% tags=["main"]
from helpers.evaluation.overview import look_over
from helpers.evaluation.session import compare

comparison = compare(config, adapter, training, material, arms, answers, references, other_task)
overview = look_over(comparison)

# %% [markdown]
# Read before you count. Are the suggestions concrete and plausible? Is it on topic? Is the structure useful? Words that
# only one answer has are underlined; *cut at the length limit* means that nobody knows how it would have gone on.

# %% tags=["main"]
from helpers.evaluation.show import pick_ids, show_pairs

show_pairs(comparison, overview, pick_ids(comparison, 4))

# %% [markdown]
# All measures, with the paired difference of tuned and base. ROUGE-L and chrF++ see wording, not truth: a right answer
# in other words scores low. Look at *Cut at the limit* first: where many answers were cut, the others measure how
# answers begin. (Each row counts once here. In section 4 each token did, so its NLL is another number.)

# %% tags=["main"]
from helpers.evaluation.metrics.reference import chrf_signature
from helpers.evaluation.show import measure_table

print("chrF++:", chrf_signature())  # which variant, for whoever computes it elsewhere
show_table(measure_table(overview, arms))

# %% [markdown]
# ## 6. The verdict
#
# Among so many measures some differ by chance. So three questions were fixed before any answer was seen, and only they
# are judged: Are held-out answers more likely? Are the model's own answers preferred? What was lost on the other task?

# %% tags=["main"]
import textwrap

print(textwrap.fill("Verdict: " + overview.headline(), 100))

# %% [markdown]
# *Cannot tell* is not "equal": rows are too few or unlike, or votes missing. On the other task, +0.05 still counts as kept.

# %% tags=["main"]
from helpers.evaluation.overview import verdict_rows

show_table(verdict_rows(overview) or {"verdict": "none: both arms are the base model"}, limit=900)

# %% [markdown]
# The likelihood as a picture: every row, and below the rows' mean with its interval. Do few rows carry it?

# %% tags=["main"]
from helpers.evaluation.report.figures import draw_all
from helpers.evaluation.show import show_picture

pictures = draw_all(comparison, overview)
show_picture(pictures, "differences", run.path)

# %% [markdown]
# By category; with fewer than six rows it gets counts and no interval.

# %% tags=["main"]
show_picture(pictures, "categories", run.path)

# %% [markdown]
# How much does prompting alone give? Each arm against the base with its template.

# %% tags=["main"]
show_picture(pictures, "ladder", run.path)

# %% [markdown]
# People and metrics like long answers, so a gain may be nothing but length.

# %% tags=["main"]
show_picture(pictures, "lengths", run.path)

# %% [markdown]
# What is left of ROUGE-L among answers of similar length, and without pairs that were cut?

# %% tags=["main"]
from helpers.evaluation.teaching import robustness

show_table(robustness(overview, "rouge_l"))

# %% [markdown]
# If the difference shrinks in the lower lines, length or cutting may explain it. Few pairs say nothing either way.
#
# ## 7. What did tuning change?
#
# The base model reads a tuned answer and ranks each token among all it knows. Rank 1: the base would have chosen it too,
# though perhaps with another probability. A study of 7B models, Mistral among them, finds that *alignment*, the tuning
# that turns a model into an assistant, shifts few tokens, most of them words of style
# ([Lin et al. 2023](https://arxiv.org/abs/2312.01552)).

# %%
from helpers.evaluation.generate import token_shifts
from helpers.evaluation.metrics.token_shift import describe_shift

shifts = token_shifts(bench, material.asked(), answers)
shifted = describe_shift([token for tokens in shifts.values() for token in tokens])
print(shifted)

# %% [markdown]
# One answer in full. Read the marked words aloud: do they carry meaning, or manner?

# %% tags=["main"]
from helpers.evaluation.report.figures import draw_shift

question = material.prompts[0].prompt
pictures["token_shift"] = draw_shift(shifts[question.id], question.text)
show_picture(pictures, "token_shift", run.path)

# %% [markdown]
# ## 8. The blind vote
#
# Numbers do not know what is useful. People do, if they do not know whose answer they read. Order and letters (A, B) are
# shuffled; some pairs come twice with the letters exchanged, which shows how steady a voter is.
#
# `vote.html` is one file that works offline. Hand it to colleagues or a class; each votes on a phone and sends back the
# file that the page exports. Give these files as `votes_file` and run the notebook again: the answers are kept.
# `vote_key.json` says who wrote what. Do not hand it out.

# %% tags=["main"]
from helpers.evaluation.votes.vote import prepare_vote, warn_of_cut_pairs

items, key = prepare_vote(run, comparison, overview)
print(f"{len(items)} pairs to vote on: {run.shown('vote.html')}\n{warn_of_cut_pairs(overview)}")

# %% [markdown]
# The reveal: the second verdict, now with votes. Each prompt counts once, however many people voted, and ties do not count.
# *Krippendorff's alpha* says how far voters agree beyond chance: 0 is chance, 1 full agreement.

# %% tags=["main"]
from helpers.evaluation.votes.vote import count_votes, describe_votes

votes = count_votes(config.votes_files(), key)
overview = look_over(comparison, votes)
for verdict in overview.verdicts[1:2]:  # there is none if both arms are the base model
    print(textwrap.fill(f"{verdict.question} {verdict.outcome}. {verdict.basis}", 100))
print(describe_votes(votes))

# %% [markdown]
# ## 9. For teachers
#
# **How many wins do we need?** Let the class guess first.

# %% tags=["main"]
from helpers.evaluation.teaching import wins_table

show_table(wins_table())

# %% [markdown]
# With five questions not even five wins are enough; the more you ask, the smaller the majority you need.
#
# **How many rows would have been enough?** That many show a difference of a given size in 80 of 100 experiments, unless
# they are too lopsided for a verdict. Halve the difference and you need about four times the rows.

# %% tags=["main"]
from helpers.evaluation.teaching import rows_needed

measured = next(iter(overview.estimates.values()))  # as a rule NLL with EOS, in nats a token
for effect in (0.1, 0.05, 0.02):
    print(f"a mean difference of {effect}: {rows_needed(measured, effect)} rows")

# %% [markdown]
# **Where did tuning hurt?** Here are the rows that lost most in likelihood. What do they have in common? (Of the
# references, only `answered_rows` have answers in the report.)

# %% tags=["main"]
from helpers.evaluation.teaching import worst_rows

show_table(worst_rows(comparison, overview) or {"none": f"No row lost in {overview.gains()[0] or 'any measure'}."})

# %% [markdown]
# **Did it learn, or remember?** A question that also stands among the training rows has *leaked*: a good answer to it
# may be memory. For each question, the nearest training row by words; `alike` is the share of words and pairs of words
# that the two have in common.

# %% tags=["main"]
from helpers.evaluation.metrics.contamination import describe_leakage, nearest_examples

neighbours = nearest_examples([q.prompt for q in material.asked()], material.train_texts())
print(describe_leakage(neighbours))
nearest = sorted(neighbours, key=lambda n: -n.score)[:4]
show_table([{"asked": n.prompt_id, "nearest training row": n.text, "alike": f"{n.score:.2f}"} for n in nearest])

# %% [markdown]
# **How large is noise?** With `mode = "aa"` this notebook compares the base model with itself (an *A/A test*), answers
# drawn at random. Every "gain" is noise. Run it before you believe a small difference of answers. Likelihood draws
# nothing and has none of this noise; which rows were scored is chance there, too.
#
# ## 10. Files
#
# `report.html` holds all of this on one page that opens anywhere, also on a phone and on paper.

# %% tags=["main"]
from helpers.evaluation.session import finish_evaluation, write_files

pictures |= draw_all(comparison, overview, votes)
more = {"figures": list(pictures.values()), "neighbours": neighbours, "votes": votes}
show_table(write_files(run, comparison, overview, **more))

# %% tags=["main"]
finish_evaluation(run, comparison, overview, token_shift=shifted, votes=describe_votes(votes) if votes else None)
print("report:", run.shown("report.html"))

# %% [markdown]
# Now a prompt of your own: the one your work depends on.

# %% tags=["notebook"]
from helpers.evaluation.generate import ask

my_prompt = "Suggest three ways in which a bakery could use its sales data."
show_table(ask(bench, my_prompt, arms[:2]))

# %% [markdown]
# ## Summary
#
# - One base model played all arms; base and tuned differed by the adapter alone.
# - Three questions were judged, fixed beforehand, and only as far as the rows allow.
# - Length, truncation, prompting and leakage were looked at before anything was believed.
# - People vote blind, on a page that does not say whose answer is whose.
#
# ## Your turn
#
# 1. Set `mode = "aa"` under another `run_name`. How large a difference does noise alone make?
# 2. Give ten prompts from your own work as `prompts_file`, under another `run_name`. Do the answers still please you?
# 3. Let three people vote on `vote.html`. Do they agree with each other, and with ROUGE-L?
# 4. Train with `max_steps = 4` and compare again, both under new names. Which measure notices this first?
