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
# You have trained an adapter. Now comes the question that matters, and that is easily answered wrongly: is the tuned
# model *better*? One prompt that looks good proves nothing, and the person who trained a model is the last one whose
# eye can be trusted. This notebook asks the same things of the base model and of the tuned one, shows the answers side
# by side, measures what can be measured, and says what the numbers allow. Quite often that is: *we cannot tell*.
#
# **You will learn**
#
# - why one prompt proves nothing, and how comparing in pairs gets most out of few,
# - what likelihood, ROUGE and chrF++ measure, and what they miss,
# - how much of a gain better prompting gives without any training,
# - how to vote blind, so that what you wish cannot decide,
# - how to read an interval, and to be at peace with "inconclusive".
#
# **What it needs.** An adapter from `alpaca_instruction` or `dolly_business`; where there is none, it trains a small one
# first. On Colab: a free T4 GPU (*Runtime → Change runtime type → T4 GPU*), a download of about 4 GB and about twenty
# minutes, and ten more to train. On Kaggle: *Settings → Accelerator → GPU T4* and *Internet on*. Without a GPU: preset
# `smoke`, if the adapter was trained with it or is still to be, and a few minutes.

# %% [markdown]
# ## 1. Parameters
#
# With everything at `None` the newest adapter is compared on the bundled business prompts and on the rows that its
# training held out. Your own prompts go into a text file, one a line: `prompts_file = "my_prompts.txt"`.

# %% tags=["parameters"]
preset = "auto"  # type: str  auto, colab-t4, large-gpu or smoke
run_name = None  # type: str  folder under runs/; None takes side-by-side
resume = "auto"  # type: str  auto (go on with an earlier run), never (start over) or must
adapter_dir = None  # type: str  run name, run folder or adapter folder; None takes the newest complete training run
model_name = None  # type: str  alias, hub id or folder of the base model; None takes the one the adapter was trained on
mode = None  # type: str  compare (base against tuned) or aa (base against base: how big is noise?)
arms = None  # type: str  base and tuned, and perhaps base_bare and base_few_shot, separated by commas
few_shot_rows = None  # type: int  training rows shown first to the arm base_few_shot [rows]
prompts_file = None  # type: str  own prompts, a .jsonl, .json, .csv or .txt file, one a line; None takes the bundled ones
prompt_count = None  # type: int  prompts to ask; 0 asks all [prompts]
reference_data = None  # type: str  file of rows with good answers; None takes the held-out rows of the adapter's own run
reference_rows = None  # type: int  rows whose good answers are scored [rows]
answered_rows = None  # type: int  of these, rows that are answered too, for ROUGE and chrF++ [rows]
task = None  # type: str  columns of reference_data: alpaca or dolly; None takes the adapter run's
system_prompt = None  # type: str  what the assistant is told first; None takes the adapter run's
prompt_style = None  # type: str  chat (the model's own template) or alpaca (text block); None takes the adapter run's
max_new_tokens = None  # type: int  longest answer [tokens]
batch_size = None  # type: int  prompts answered at a time; halved when memory runs out [prompts]
seed = None  # type: int  seed of intervals, blind shuffling, examples and, in mode aa, answers
votes_file = None  # type: str  votes exported from vote.html, CSV files separated by commas

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
# The parameters are checked first, so that a typing mistake costs seconds and not a download.

# %%
from helpers.display.tables import show_table
from helpers.evaluation.session import configure_evaluation

config = configure_evaluation(globals())
show_table(config.flat())

# %% [markdown]
# The table shows every setting of this comparison. Where it says `None`, the parameter's line above says what is taken.
#
# Now the packages: exact versions, the same for everyone.

# %%
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=config.preset == "smoke")

# %% [markdown]
# Which adapter? It knows the run that it came from, and so the base model, the system prompt and the way in which
# prompts were written in training. All of that is used here too: a model that is asked in another way than it was
# trained is a different experiment.
#
# A Colab or Kaggle machine is fresh each time. What you trained in another notebook is not on this one, unless it was
# kept on Google Drive: with `persist_dir = "/content/drive/MyDrive/runs"` there, set here
# `adapter_dir = "/content/drive/MyDrive/runs/NAME"`. If no adapter is named and none is found, the cell trains one, thirty
# steps on rows of Alpaca-cleaned, so that there is something to compare.

# %%
from helpers.evaluation.adapter import provide_adapter
from helpers.evaluation.adapter import training_config

adapter = provide_adapter(config)
training = training_config(adapter, config)
print(f"adapter: {adapter.shown()}, trained on {training.model.model_name}, prompt style {training.data.prompt_style}")

# %% [markdown]
# Everything that the comparison makes goes into a folder of its own.

# %%
from helpers.evaluation.session import open_evaluation

run = open_evaluation(config, adapter, resume=resume)
print("this comparison:", run.shown())

# %% [markdown]
# ## 2. What is asked
#
# Two kinds of questions. *Prompts* are what you really want to use the model for; nobody has written down the right
# answer. *References* are rows that come with a good answer. They were held out: the adapter was not trained on them,
# and a row that it was trained on is left out here.

# %%
from helpers.evaluation.prompts import gather

material = gather(config, adapter, training)
print(f"{len(material.prompts)} prompts, {len(material.references)} references, {material.answered} of these answered")
print("\n".join(material.notes))

# %% [markdown]
# The first three prompts. Where one asks for a number of things, that number stands beside it; whether an answer gives
# so many can be counted.

# %%
first_three = [each.prompt for each in material.prompts[:3]]
show_table([{"category": p.category, "prompt": p.text, "asks for": p.expected_items or ""} for p in first_three])

# %% [markdown]
# What a model answers depends on how it is asked, so there are up to four *arms*. The comparison that counts is
# **base** against **tuned**: the same weights in memory and the same text, only the adapter is switched.
# **Base, plain text** is the base model without any template. **Base + examples** sees a few training rows before the
# question, which costs nothing to train. If examples do as well as the adapter, you may not need the adapter.

# %%
from helpers.evaluation.arms import choose_arms, plan_asking

arms = choose_arms(config)
asking = plan_asking(config, material, training.data.prompt_style, training.data.system_prompt)
show_table([{"arm": arm.label, "adapter": "on" if arm.adapter else "off", "asked with": arm.prompting} for arm in arms])

# %% [markdown]
# ## 3. One model, switched on and off
#
# The base model is loaded once and the adapter is put on it. Before that the adapter's own file is asked which model
# it was made for: on another one it would run, and say nonsense.

# %%
from helpers.evaluation.generate import load_bench

bench = load_bench(training, adapter, asking, aa=config.mode == "aa", seed=config.seed)
print(f"template {bench.loaded.template}, computing in {bench.loaded.precision}")

# %% [markdown]
# This is the text that each arm really reads. Control tokens are spelled out.

# %%
texts = {arm.label: bench.writer.text(material.prompts[0], arm, config.max_new_tokens) for arm in arms}
show_table(texts, limit=5_000)

# %% [markdown]
# Nothing is shown of answers before four tests have passed. Does the adapter change anything? That shows in the
# *logits*, the numbers from which a model makes the probabilities of the next token. Does it leave without a trace when
# it is switched off and on? Is there one beginning-of-sequence token (BOS), and not two? Is the template the one of the
# training?

# %%
from helpers.evaluation.generate import take_readings
from helpers.evaluation.sanity import judge

show_table(judge(take_readings(bench, material.prompts[0], arms)))

# %% [markdown]
# Had a test failed, the cell would have stopped here and said which.
#
# ## 4. How likely is a good answer?
#
# One measure needs no generating at all. The model is given a question and its good answer, and says how likely it
# finds each token of that answer. First by hand: an answer of three tokens, found likely with 0.5, 0.25 and 0.8.
# The *negative log-likelihood* (NLL) adds up $-\log p$, counted in *nats* because the logarithm is the natural one; its
# mean a token makes long and short answers comparable; *perplexity* is $e$ to that power: as unsure as if the model
# chose among so many tokens each time.

# %%
import math

probabilities = [0.5, 0.25, 0.8]
nll = -sum(math.log(p) for p in probabilities)
print(f"NLL {nll:.3f} nats, {nll / 3:.3f} a token, perplexity {math.exp(nll / 3):.2f}")

# %% [markdown]
# Now the references, under every arm. The answer's closing token (EOS) is counted apart: a model that learned when to
# stop gains there, whatever it learned besides. *Bits per byte* does not depend on how a tokenizer cuts text, so it
# can be compared between models.

# %%
from helpers.evaluation.generate import score_references
from helpers.evaluation.show import reference_table

references, left_out = score_references(bench, material.references, arms)
print("left out:", left_out or "none")
show_table(reference_table(references, arms))

# %% [markdown]
# What did training cost elsewhere? The bundled rows of the task that was *not* trained tell whether the model forgot
# something. Their loss is judged below, question by question.

# %%
other_task = () if config.mode == "aa" else score_references(bench, material.other, arms[:2])[0]
show_table(reference_table(other_task, arms))

# %% [markdown]
# Lower is better in every column but the count. Compare the arms, not the size of the numbers: how likely an answer can
# be depends on the text. If these are the rows that training measured itself on, its last number must come
# out again here. That is the best proof that the right adapter sits on the right model.

# %%
from helpers.evaluation.sanity import reproduces_training
from helpers.evaluation.adapter import recorded_loss

print(reproduces_training(references, *recorded_loss(adapter, config)))

# %% [markdown]
# Are the means different, or is that luck? A handmade example first: four questions, some easy, some hard. The tuned
# model is a little better on each. Look at the two lists by themselves and the questions' difficulty hides that
# almost completely.

# %%
from statistics import mean, stdev

base_nll, tuned_nll = [1.0, 2.0, 4.0, 3.0], [0.9, 1.8, 3.8, 2.9]
print(f"base {mean(base_nll):.2f} ± {stdev(base_nll):.2f}, tuned {mean(tuned_nll):.2f} ± {stdev(tuned_nll):.2f}")

# %% [markdown]
# The spreads, ± 1.3, are more than eight times the difference of the means. Subtract question by question and
# difficulty drops out. The *95 % interval* holds the true mean difference in 95 of 100 such experiments. If zero lies
# outside, chance alone is an unlikely explanation.

# %%
from helpers.core.paired import estimate

differences = [tuned - base for base, tuned in zip(base_nll, tuned_nll, strict=True)]
found = estimate(differences)
print(f"mean difference {found.mean:+.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f}")

# %% [markdown]
# The interval lies below zero: on these four questions, chance is hardly the reason. The means and spreads above could
# not have told. Such differences, question by question, are called *paired*; everything below is judged by them.
#
# ## 5. The answers
#
# Now all arms answer all prompts and some of the references, in batches of like length. Every answer is kept on disk
# at once: if you are cut off, run the notebook again and it goes on from there.

# %%
from helpers.evaluation.cache import AnswerCache
from helpers.evaluation.generate import answer_all

cache = AnswerCache(run.path / "answers_cache.json", bench.configuration())
answers = answer_all(bench, material.asked(), arms, batch_size=config.batch_size, cache=cache)

# %% [markdown]
# From here on no model is needed. Prompts, answers and scores go into one record, and every answer is measured.

# %%
from helpers.evaluation.session import compare
from helpers.evaluation.overview import look_over

comparison = compare(config, adapter, training, material, arms, answers, references, other_task)
overview = look_over(comparison)

# %% [markdown]
# Read before you count. Words that only one answer has are underlined, where the two have enough in common. The line
# above an answer says how it is built; *cut at the length limit* means that nobody knows how it would have gone on.

# %%
from helpers.evaluation.show import pick_ids, show_pairs

show_pairs(comparison, overview, pick_ids(comparison, 4))

# %% [markdown]
# Ask yourself three things of each pair: are the suggestions concrete and plausible? Is it on topic? Is the structure
# of use? Then the averages. ROUGE-L is the longest sequence of words that answer and reference share, ROUGE-Lsum the
# same by sentence, chrF++ counts shared pieces of words. All three see wording and not truth: a right answer in other
# words scores low. *Repetition* is the share of groups of four words that an answer has said before. The first line
# names the exact settings of chrF++; scores of other settings cannot be compared with these.

# %%
from helpers.evaluation.metrics.reference import chrf_signature
from helpers.evaluation.show import measure_table

print("chrF++:", chrf_signature())
show_table(measure_table(overview, arms))

# %% [markdown]
# Look at *Cut at the limit* first: where many answers were cut, the other lines measure how answers begin. *Asked-for
# items met* is the share of answers that hold as many items as the prompt asked for. A difference between two columns
# is not yet a result; that is what comes next.
#
# ## 6. The verdict
#
# Each measure is judged by its paired differences. Its *p-value* says how often a difference so large would come about
# by chance if the two models were equally good. Trying many measures makes one of them look good by chance, so their
# p-values are raised together (Holm's method). *Inconclusive* does not mean "equal"; it means that these questions are
# too few or too different to tell.

# %%
import textwrap

print(textwrap.fill("Verdict: " + overview.headline(), 100))

# %% [markdown]
# In detail, a measure a row: the mean difference with its interval, how many questions went which way, and the tests.
# Interval and p-value are each computed twice. The *t* ones follow from a formula; the *bootstrap* interval comes from
# drawing the questions again and again, with repetition, and the *permutation test* from flipping the signs of the
# differences at random. Where the two ways agree, the result does not hang on the method.
#
# Here each question counts once. In the table of section 4 each token did, and long answers with it, so a difference of
# means need not be exactly the one there.

# %%
from helpers.evaluation.overview import verdict_rows

show_table(verdict_rows(overview) or {"verdicts": "none, since both arms are the base model"})

# %% [markdown]
# The first row of the table as a picture: every question by itself, and the mean with its interval at the bottom. Look
# for single questions that carry the whole mean.

# %%
from helpers.evaluation.report.figures import draw_all
from helpers.evaluation.show import show_picture

pictures = draw_all(comparison, overview)
show_picture(pictures, "differences", run.path)

# %% [markdown]
# By category. A category with fewer than six questions gets no interval, because one from so little would mislead.

# %%
show_picture(pictures, "categories", run.path)

# %% [markdown]
# How much is the prompt's doing? Each arm against the base with its template; here too each question counts once.

# %%
show_picture(pictures, "ladder", run.path)

# %% [markdown]
# Longer answers please people and metrics alike, so a gain may be nothing but length.

# %%
show_picture(pictures, "lengths", run.path)

# %% [markdown]
# What is left of ROUGE-L when only pairs count whose answers are about equally long, and when pairs are left out in
# which an answer was cut?

# %%
from helpers.evaluation.teaching import robustness

show_table(robustness(overview, "rouge_l"))

# %% [markdown]
# If the difference shrinks towards zero in the lower lines, length or cutting may have made it. Where few pairs are
# left the interval is wide, or there is none, and the line says nothing either way.
#
# ## 7. What did tuning change?
#
# The base model reads a tuned answer and ranks each token among all that it knows. Where the token is its own first
# choice, tuning changed nothing. A study of models of 7 billion weights, Mistral-7B among them, finds that *alignment*,
# the tuning that makes an assistant of a model, shifts few tokens, most of them words of style
# ([Lin et al. 2023](https://arxiv.org/abs/2312.01552)).

# %%
from helpers.evaluation.generate import token_shift
from helpers.evaluation.metrics.token_shift import describe_shift

said = {answer.prompt_id: answer for answer in answers if answer.arm == overview.tuned.name}
shifts = {q.prompt.id: token_shift(bench, q, said[q.prompt.id]) for q in material.asked()}
shifted = describe_shift([token for tokens in shifts.values() for token in tokens])
print(shifted)

# %% [markdown]
# One answer in full. Read the marked words aloud: do they carry meaning, or manner?

# %%
from helpers.evaluation.report.figures import draw_shift

example = material.prompts[0].prompt
pictures["token_shift"] = draw_shift(shifts[example.id], example.text)
show_picture(pictures, "token_shift", run.path)

# %% [markdown]
# The model computes the same for every token, yet only the marked ones are what training changed.
#
# ## 8. The blind vote
#
# Numbers do not know what is useful; people do, as long as they do not know whose answer they are reading. Order and
# sides are shuffled. Some pairs come twice with sides exchanged, which tells how steady a voter is.
#
# `vote.html` is one file without a network. Hand it to colleagues or to a class; each person votes on a phone and
# sends back the file that the page exports. Give these files as `votes_file` and run the notebook again: the
# answers are kept, and only the votes are new. `vote_key.json` says who wrote what. Do not hand it out.

# %%
from helpers.evaluation.votes.vote import prepare_vote, warn_of_cut_pairs

items, key = prepare_vote(run, comparison, overview)
print(f"{len(items)} pairs to vote on: {run.shown('vote.html')}", warn_of_cut_pairs(overview), sep="\n")

# %% [markdown]
# The reveal. Each prompt counts once, however many people voted. The *sign test* asks how often coin tosses would give
# a split so uneven; ties do not count. The interval of the share that was won is computed by *Wilson's* formula, which
# is sound for few votes too; an interval that contains 50 % decides nothing. If several people voted, their agreement
# is measured by *Cohen's kappa*, or by *Krippendorff's alpha* if they are more than two. Both say how far they agree
# beyond what chance would give: 0 is no more than chance, 1 is full agreement.

# %%
from helpers.evaluation.votes.vote import count_votes, describe_votes

votes = count_votes(config.votes_files(), key)
overview = look_over(comparison, votes)
print(describe_votes(votes))

# %% [markdown]
# ## 9. For teachers
#
# **How many wins do we need?** Let the class guess first.

# %%
from helpers.evaluation.teaching import wins_table

show_table(wins_table())

# %% [markdown]
# With five questions not even five wins are enough; the more are asked, the smaller a majority tells something.
#
# **How many rows would have been enough?** The spread of the differences tells how many rows would show a gain of a
# given size in 80 of 100 experiments. Halve the gain, and you need about four times the rows.

# %%
from helpers.evaluation.teaching import rows_needed

measured = next(iter(overview.estimates.values()))
for effect in (0.1, 0.05, 0.02):
    print(f"a mean difference of {effect}: {rows_needed(measured, effect)} rows")

# %% [markdown]
# Hold these numbers against the rows that were scored here: a gain that needs more of them than you have stays
# inconclusive, however real it is.
#
# **Where did tuning hurt?** A mean hides its losers. Here are the questions that lost most, if any lost; read their
# answers in the report.

# %%
from helpers.evaluation.teaching import worst_rows

show_table(worst_rows(comparison, overview) or {"none": "No question lost by tuning."})

# %% [markdown]
# Look for what such questions have in common: rows of that kind may be missing from the training data.
#
# **Did it learn, or remember?** A question that also stands among the training rows has *leaked*: a good answer to it
# may be memory. For each question the training row is found that is nearest to it by words; here are the four nearest.
# `alike` is the share of words and pairs of words that the two have in common; 1 is the same text.

# %%
from helpers.evaluation.metrics.contamination import describe_leakage, nearest_examples

neighbours = nearest_examples([q.prompt for q in material.asked()], material.train_texts())
print(describe_leakage(neighbours))
nearest = sorted(neighbours, key=lambda n: -n.score)[:4]
show_table([{"asked": n.prompt_id, "nearest training row": n.text, "alike": f"{n.score:.2f}"} for n in nearest])

# %% [markdown]
# **How large is noise?** With `mode = "aa"` this notebook compares the base model with itself (an *A/A test*): both
# answers are drawn at random from the same weights. Every "gain" that it then reports is noise. Run it once before you
# believe a small difference.

# %% [markdown]
# ## 10. Files
#
# `report.html` holds all of this on one page that opens anywhere, also on a phone and on paper. The other files are
# for your own analysis, and for two tools that show and rank answers.

# %%
from helpers.evaluation.session import finish_evaluation, write_files

if votes:
    pictures |= draw_all(comparison, overview, votes)
more = {"figures": list(pictures.values()), "neighbours": neighbours, "votes": votes}
show_table(write_files(run, comparison, overview, **more))

# %% [markdown]
# The numbers are kept with the run, and the run is marked as complete.

# %%
finish_evaluation(run, comparison, overview, token_shift=shifted, votes=describe_votes(votes) if votes else None)
print("report:", run.shown("report.html"))

# %% [markdown]
# Now a prompt of your own: bring the one that your work depends on.

# %%
from helpers.evaluation.generate import ask

my_prompt = "Suggest three ways in which a bakery could use its sales data."
show_table(ask(bench, my_prompt, arms[:2]))

# %% [markdown]
# ## Summary
#
# - One base model played all arms, and tests proved that only the adapter differed.
# - Held-out answers told, without generating, whether tuning made good answers more likely.
# - Differences were taken question by question, with an interval, and judged together.
# - Length, truncation, prompting and leakage were looked at before anything was believed.
# - People vote blind, on a page that does not say whose answer is whose.
#
# ## Your turn
#
# 1. Set `mode = "aa"` under another `run_name`. How large a difference does noise alone make?
# 2. Write ten prompts from your own work into a text file and give it as `prompts_file`. Does the verdict hold?
# 3. Let three people vote on `vote.html`. Do they agree with each other, and with ROUGE-L?
# 4. Train with `max_steps = 4` and compare again. Which measure notices the shorter training first?
