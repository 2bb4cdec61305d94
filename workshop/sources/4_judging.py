# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 4: Is it better?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/workshop/exercises_4_judging.ipynb)
#
# You have tuned a model, you read ten of its answers, and you like them. So does everyone who tunes a model. Whether
# it is *better* is a question about answers that you have not read yet, and the answer to it is a number with an
# uncertainty, or an honest "we cannot tell".
#
# **You will learn**
#
# - to count a blind vote once the key is known,
# - to say how often chance alone would give a result like yours,
# - how many wins it takes, before you start counting,
# - to put an interval around a mean,
# - two ways of fooling oneself: looking at many numbers, and held-out rows that were trained on.
#
# **What it needs.** No GPU and no model. About 30 minutes.
#
# Each exercise ends with a check. Replace the three dots with your answer, run that cell, then the check, as often as you
# like. It says "Right", or gives a hint; it never gives the answer.

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

# %%
from helpers.workshop import check

# %% [markdown]
# ## 1. Opening a blind vote
#
# Two answers to one question, A and B, stand side by side, on a phone one below the other. Which of them is the tuned
# model's was drawn at random and is kept in a key. One pair is shown twice, with sides exchanged, to learn how consistent voters are.
#
# Here are one person's votes on eight pairs, and the key: what each pair was about, whose answer was A, and whose was B.

# %%
votes = {1: "A", 2: "A", 3: "B", 4: "both_bad", 5: "B", 6: "A", 7: "B", 8: "B"}
key = {
    1: ("tea", "tuned", "base"),
    2: ("rain", "base", "tuned"),
    3: ("chess", "base", "tuned"),
    4: ("bees", "tuned", "base"),
    5: ("bread", "base", "tuned"),
    6: ("Mars", "tuned", "base"),
    7: ("chess", "tuned", "base"),
    8: ("jazz", "base", "tuned"),
}

# %% [markdown]
# **Task.** How many of the seven questions did the tuned model win, tie and lose? A vote `both_bad` is a tie. A question that was
# shown twice counts once: if the two votes agree, as that; if not, the person has no preference, and it is a tie. The
# answer is a list of three numbers: wins, ties, losses.

# %% tags=["solution"]
winners = {}
for item, choice in votes.items():
    question, a, b = key[item]
    winners.setdefault(question, set()).add({"A": a, "B": b}.get(choice, "none"))
results = [found.pop() if len(found) == 1 else "none" for found in winners.values()]
answer = [results.count("tuned"), results.count("none"), results.count("base")]

# %%
check("unblind", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# People change their minds; a vote that shows a pair twice knows how often.
#
# </details>

# %% [markdown]
# ## 2. Could it be chance?
#
# Of ten questions with a clear preference, the tuned model won nine. Suppose that it is in truth no better and no
# worse: then each question is a coin toss. How often would ten tosses come out *at least as unevenly* as nine to
# one, in favour of either side? That probability is the $p$ of the *sign test*.
#
# There are `2**10` ways in which ten coins can fall, and `math.comb(10, k)` of them have exactly `k` heads.

# %%
import math

print(2**10, math.comb(10, 5))

# %% [markdown]
# **Task.** Compute $p$. Three decimals.

# %% tags=["solution"]
uneven = sum(math.comb(10, wins) for wins in (0, 1, 9, 10))
answer = uneven / 2**10

# %%
check("sign-test", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# $p$ counts what is as uneven as your result or more, on both sides, since you would have been
# surprised by either.
#
# </details>

# %% [markdown]
# ## 3. How many wins are needed?
#
# By custom a result is called significant when $p$ is below 0.05: when chance alone would produce it less than once in
# twenty tries. You plan a vote with thirty questions.
#
# **Task.** If all thirty are decided (no ties), what is the smallest number of wins with $p$ below 0.05?

# %% tags=["solution"]
as_uneven = {wins: 2 * sum(math.comb(30, k) for k in range(wins, 31)) for wins in range(16, 31)}
answer = min(wins for wins, ways in as_uneven.items() if ways / 2**30 < 0.05)

# %%
check("wins-needed", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# With thirty questions, two thirds are not enough; with five, not even all of them are.
#
# </details>

# %% [markdown]
# ## 4. An interval around a mean
#
# Losses can be compared more finely than votes. For eight held-out rows the loss was measured before and after tuning;
# these are the differences, after minus before, so that negative is better.

# %%
import numpy as np

differences = np.array([-0.21, -0.08, -0.15, 0.04, -0.11, -0.19, 0.02, -0.12])
print(f"mean {differences.mean():.2f}")

# %% [markdown]
# Eight other rows would have given another mean. The *95 % interval* covers the mean over all rows like these in 95 of
# 100 such experiments. Its ends are
#
# $$\text{mean} \pm t \cdot \frac{s}{\sqrt{n}}$$
#
# where $n$ is the number of rows, $s$ their standard deviation with $n - 1$ in the denominator
# (`differences.std(ddof=1)`), and $t$ a factor that makes up for not knowing the spread better than $n$ rows tell.
# For eight rows $t$ is 2.3646; for very many it would be 1.96.
#
# **Task.** Compute the interval, as a list of its lower and its upper end. Three decimals.

# %% tags=["solution"]
half = 2.3646 * differences.std(ddof=1) / math.sqrt(len(differences))
answer = [differences.mean() - half, differences.mean() + half]

# %%
check("interval", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# An interval says what a mean cannot: how far to trust it. If it contains zero, say "we cannot
# tell".
#
# </details>

# %% [markdown]
# ## 5. Looking at many numbers
#
# A report has twenty metrics. In truth the tuned model is exactly as good as the base model, and each metric has a
# chance of 0.05 of calling it different all the same.
#
# **Task.** If the metrics err independently of each other, what is the probability that *at least one* of the twenty
# calls the models different? Two decimals.

# %% tags=["solution"]
answer = 1 - (1 - 0.05) ** 20

# %%
check("many-looks", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Name the metric that decides before you look at any.
#
# </details>

# %% [markdown]
# ## 6. Rows that leaked
#
# Held-out rows are to be new to the model. In collected data the same question often stands twice, typed a little
# differently, and a random split puts one copy on each side. Here are some questions that were trained on, and some
# that were held out.

# %%
trained = [
    "Why is the sky blue?",
    "Name three uses of baking soda.",
    "Translate into French: Good morning!",
    "What is the capital of Peru?",
    "Sort these numbers: 3, 1, 2.",
    "Explain what a leap year is.",
]
held_out = [
    "What is the capital of Chile?",
    "why is the sky blue",
    "Name three uses of vinegar.",
    "Sort these words: pear, apple, fig.",
    "Explain what a leap year is.",
    "Translate into German: Good morning!",
    "Translate into French:  good morning",
]

# %% [markdown]
# **Task.** Which of the held-out questions were trained on, if capitals, punctuation and spaces do not count? The
# answer is a list of their numbers in `held_out`, counted from 0.

# %% tags=["solution"]
bare = [["".join(filter(str.isalnum, text.lower())) for text in part] for part in (trained, held_out)]
answer = [number for number, text in enumerate(bare[1]) if text in bare[0]]

# %%
check("leaks", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Look for leaks before you train, and take them out of one side; afterwards nobody can tell.
#
# </details>

# %% [markdown]
# ## Summary
#
# - Vote blind, and open the key last.
# - $p$ says how often chance does it; know the number of wins that you need beforehand.
# - A mean without an interval is half a result.
# - One metric decides, on rows that were never trained on.
#
# ## Your turn
#
# 1. Five friends vote, and all five prefer the tuned model. What is $p$?
# 2. Run exercise 4 with the last four rows left out (for four rows, $t$ is 3.1824). What happens to the interval?
# 3. Which leaks would your comparison in exercise 6 still miss? Think of a question asked in other words.
