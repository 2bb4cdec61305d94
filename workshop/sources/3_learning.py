# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 3: Loss, and how to read it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/workshop/exercises_3_learning.ipynb)
#
# Training prints numbers that go down. What they count, when they can be compared, and what shape tells you to stop:
# that is most of what separates people who fine-tune models from people who run notebooks.
#
# **You will learn**
#
# - to compute a loss and a perplexity by hand,
# - to find the same loss in the output of a real model,
# - to recognise a learning rate from its curve,
# - to tell learning from learning by heart, and when to stop.
#
# **What it needs.** No GPU. About 30 minutes. Exercise 3 loads a small real model, which takes up to a minute. The
# curves were recorded with that model; they are real, noise included.
#
# Each exercise ends with a check. Replace the three dots with your answer, run that cell, then the check, as often as you
# like. It says "Right", or gives a hint; it never gives the answer. A cell that begins with `if answer is not ...` waits for
# yours: run it after the check.

# %% [markdown]
# On Colab the next cell fetches the package that holds the checks. Where it is installed already, nothing happens.

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
# Now the packages that the small model needs. On Colab the cell installs what is missing, which takes a few minutes;
# elsewhere it only looks.

# %%
from helpers.runtime.setup import setup_notebook

report = setup_notebook(smoke=True)

# %% [markdown]
# And the checks:

# %%
import math

from helpers.workshop import check

# %% [markdown]
# ## 1. The loss of one answer
#
# A language model gives every possible next token a probability. The loss looks only at the probability $p$ of the
# token that really came, and takes $-\log p$, the model's *surprise*: 0 when the model was certain and right, larger
# the less it expected the token. The loss of an answer is the mean over its tokens. The logarithm is the natural one,
# `math.log` in Python.
#
# An answer has four tokens. To these the model gave the following probabilities.

# %%
probabilities = [0.5, 0.25, 0.8, 0.1]
print(f"a coin toss costs {math.log(2):.3f}")

# %% [markdown]
# **Task.** What is the answer's loss? Two decimals.

# %% tags=["solution"]
answer = sum(-math.log(p) for p in probabilities) / len(probabilities)

# %%
check("loss", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# The loss is a mean of surprises, and one unexpected token can dominate it.
#
# </details>

# %% [markdown]
# ## 2. Perplexity over several rows
#
# *Perplexity* is $e$ to the power of the mean loss a token. It can be read as: the model was as unsure as if it had
# to choose among so many equally likely tokens. A perplexity of 1 is certainty.
#
# Two rows were measured. For each you have the *sum* of the losses over its tokens, and the number of tokens.

# %%
measured = [
    {"loss_sum": 4.0, "tokens": 2},
    {"loss_sum": 9.0, "tokens": 18},
]

# %% [markdown]
# **Task.** What is the perplexity over both rows, every token counted alike? Two decimals.

# %% tags=["solution"]
mean = sum(row["loss_sum"] for row in measured) / sum(row["tokens"] for row in measured)
answer = math.exp(mean)

# %%
check("perplexity", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Averaging row by row gives another number, so always ask what a reported mean was taken over.
#
# </details>

# %% [markdown]
# ## 3. The loss in a real model
#
# Now a model with 135 million parameters, SmolLM2 (in fp32, from a file whose weights were rounded to 4 bit). First a row, with
# the labels of the first notebook: -100 where nothing is learned.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.model.smollm2 import smollm2_folder

tokenizer = AutoTokenizer.from_pretrained(smollm2_folder(), trust_remote_code=False)
prompt = "<|im_start|>user\nName the largest planet.<|im_end|>\n<|im_start|>assistant\n"
given = tokenizer(prompt)["input_ids"]
tokens = tokenizer(prompt + "Jupiter is the largest planet.<|im_end|>")["input_ids"]
labels = [-100] * len(given) + tokens[len(given) :]
print([(tokenizer.decode([token]), label) for token, label in zip(tokens, labels)])

# %% [markdown]
# The model returns, for each of the row's 22 places, one number for each token of its vocabulary, and `log_softmax`
# makes logarithms of probabilities of them. So `log_p[i, t]` is the logarithm of the probability that the model, having
# read the tokens up to and including place `i`, gave to token number `t`.

# %%
import torch

model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32, trust_remote_code=False)
with torch.no_grad():
    log_p = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
print(log_p.shape, len(labels))

# %% [markdown]
# **Task.** Compute the row's loss from `log_p` and `labels`: the mean of $-\log p$ over the places whose label is not
# -100. Mind which place speaks about which token. Two decimals.

# %% tags=["solution"]
losses = [-log_p[i - 1, label] for i, label in enumerate(labels) if label != -100]
answer = sum(losses) / len(losses)

# %%
check("real-loss", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# The model's output at a place is its guess about the next one, so labels and outputs are one place
# apart; libraries shift them for you, and doing it twice is a classic mistake.
#
# </details>

# %% [markdown]
# transformers computes the same if you give it the labels, unshifted:

# %%
if answer is not ...:
    with torch.no_grad():
        print(model(input_ids=torch.tensor([tokens]), labels=torch.tensor([labels])).loss)

# %% [markdown]
# ## 4. Which learning rate was it?
#
# The learning rate says how far one step goes. Too small, and a run ends before it has learned anything; too large,
# and each step jumps over its goal. The three runs below started from the same model and saw the same rows in the
# same order. They differ in the learning rate alone.

# %%
from pathlib import Path
from tempfile import mkdtemp

from helpers.display.tables import plot_losses
from helpers.workshop.checks.learning import recorded_run

folder = Path(mkdtemp())
runs = {"A": "run-5", "B": "run-6", "C": "run-7"}
plot_losses(recorded_run(runs["A"]), folder / "A.png")

# %% [markdown]
# That was A. This is B:

# %%
plot_losses(recorded_run(runs["B"]), folder / "B.png")

# %% [markdown]
# And C. Mind the numbers at the side; each picture has its own.

# %%
plot_losses(recorded_run(runs["C"]), folder / "C.png")

# %% [markdown]
# **Task.** The rates were `2e-5`, `5e-4` and `2e-2`. Which run had which? The answer is a dict, such as
# `{"A": 2e-5, "B": …}`.

# %% tags=["solution"]
answer = {"A": 5e-4, "B": 2e-2, "C": 2e-5}

# %%
check("learning-rate", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Try rates that lie a factor of ten or more apart, briefly, before you train for long.
#
# </details>

# %% [markdown]
# ## 5. Four curves
#
# The grey line is the training loss, of other rows at each step, which is why it jumps. The blue one is the held-out
# loss, always of the same rows. Four more runs; this is P:

# %%
runs = {"P": "run-1", "Q": "run-2", "R": "run-3", "S": "run-4"}
plot_losses(recorded_run(runs["P"]), folder / "P.png")

# %% [markdown]
# Q:

# %%
plot_losses(recorded_run(runs["Q"]), folder / "Q.png")

# %% [markdown]
# R:

# %%
plot_losses(recorded_run(runs["R"]), folder / "R.png")

# %% [markdown]
# And S:

# %%
plot_losses(recorded_run(runs["S"]), folder / "S.png")

# %% [markdown]
# **Task.** Give each run one of these: `"healthy"`, `"flat"`, `"overfitting"` (the training rows are learned by heart)
# and `"diverging"` (the steps are too large). The answer is a dict, such as `{"P": "flat", "Q": …}`.

# %% tags=["solution"]
answer = {"P": "healthy", "Q": "overfitting", "R": "flat", "S": "diverging"}

# %%
check("read-curve", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Read the blue line first, and its numbers before its shape; then let the grey line explain it.
#
# </details>

# %% [markdown]
# ## 6. When to stop
#
# Run Q trained on eight rows only, forty steps long. Its checkpoints were kept whenever the held-out loss was measured.
# Here is that loss, as a list of `[step, loss]`.

# %%
held_out = recorded_run(runs["Q"])["eval_loss"]
print(held_out)

# %% [markdown]
# **Task.** After which step would you have stopped? Give the step.

# %% tags=["solution"]
answer = min(held_out, key=lambda point: point[1])[0]

# %%
check("stop-early", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# The training loss does not tell you to stop; rows that were not trained on do.
#
# </details>

# %% [markdown]
# ## Summary
#
# - Loss is mean surprise a token; perplexity is e to that power.
# - A model's output at one place is about the next token.
# - The learning rate shows within a few steps.
# - The held-out loss decides; where it is lowest, stop.
#
# ## Your turn
#
# 1. What perplexity has a model that gives every token of a vocabulary of 32,768 the same probability? What loss?
# 2. In exercise 3, which of the answer's tokens was the largest surprise? Why that one?
# 3. `helpers.training.curves.judge_curve` puts a curve into words. Do you agree with what it says of the four runs?
