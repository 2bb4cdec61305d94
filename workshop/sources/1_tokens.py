# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 1: From rows to tokens
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/workshop/exercises_1_tokens.ipynb)
#
# A model that is fine-tuned never sees a table of questions and answers. It sees a row of numbers, some of which it is
# asked to predict. Most fine-tuning that fails, fails in the step between, and without an error message. Here you
# do that step by hand, once.
#
# **You will learn**
#
# - to write a conversation as the text that Mistral was trained on,
# - to say which tokens the loss is taken over, and why the last one matters most,
# - to recognise rows that train without complaint and teach the wrong thing,
# - what padding wastes, and what packing has to get right.
#
# **What it needs.** No GPU. About 30 minutes. Exercise 2 uses the tokenizer of a small real model, which a first run
# unpacks in about a minute.
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
from helpers.workshop import check

# %% [markdown]
# ## 1. A conversation as text
#
# A chat model is trained on one particular way of writing a conversation down. Another family of models uses another
# way. A model that meets the wrong one still answers, only worse, and nothing warns you.
#
# Mistral's way, version 3, is this:
#
# - `<s>` begins the conversation, once.
# - What the user says stands between `[INST]` and `[/INST]`. There is one space after `[INST]` and none before
#   `[/INST]`.
# - A system prompt has no mark of its own. It stands at the start of the user's message, followed by a blank line.
# - The answer follows after one space, and `</s>` ends it.
#
# **Task.** Write this conversation as one text, in quotes: the system prompt is `Be brief.`, the user says `Add 2 and 3.`, the
# assistant answers `5`. In Python, `\n` is a line break, so a blank line between two texts is `\n\n`.

# %% tags=["solution"]
answer = "<s>[INST] Be brief.\n\nAdd 2 and 3.[/INST] 5</s>"

# %%
check("write-template", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# A chat template is an exact text, down to the spaces, and must be the same in training and in use.
#
# </details>

# %% [markdown]
# ## 2. Which tokens are learned
#
# Nobody writes templates by hand. Each tokenizer of a chat model carries its own, and `apply_chat_template` applies it.
# Here is the tokenizer of SmolLM2, a small real model, whose template writes the format ChatML:

# %%
from transformers import AutoTokenizer

from helpers.model.smollm2 import smollm2_folder

tokenizer = AutoTokenizer.from_pretrained(smollm2_folder(), trust_remote_code=False)
question = {"role": "user", "content": "Name the largest planet."}
reply = {"role": "assistant", "content": "Jupiter is the largest planet."}
print(tokenizer.apply_chat_template([question, reply], tokenize=False))

# %% [markdown]
# It begins with a system prompt that nobody wrote: SmolLM2's template adds one if the conversation has none. Read the
# template's output before you train on it. We use a template without that sentence:

# %%
tokenizer.chat_template = """{%- for message in messages %}
    {{- ('' if loop.first else '\n') + '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{- message.content + '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\n<|im_start|>assistant\n' }}{%- endif %}"""
print(tokenizer.apply_chat_template([question, reply], tokenize=False))

# %% [markdown]
# The tokenizer cuts this text into tokens and gives each its number. In training the model guesses each next token, and
# the loss says how wrong it was. Only guesses at the answer should count; nobody wants a model that writes the user's
# questions. So each token gets a *label*: its own number where the loss is taken, and -100 elsewhere, which PyTorch leaves
# out.

# %% [markdown]
# `prompt` holds the tokens up to where the assistant begins to speak, `whole` those of the whole row. Look at where the
# prompt's tokens end, and at the last token of all.

# %%
prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
whole = tokenizer.apply_chat_template([question, reply], return_dict=False)
print(len(prompt), prompt)
print(len(whole), [tokenizer.decode([token]) for token in whole])

# %% [markdown]
# **Task.** Build the list of labels of the whole row.

# %% tags=["solution"]
answer = [-100] * len(prompt) + whole[len(prompt) :]

# %%
check("labels", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# The labels are all that you tell the model to learn, and the token that ends the answer is part
# of it.
#
# </details>

# %% [markdown]
# The library can find these places by itself, as a mask of 1 and 0. `{% generation %}` in the template above marks the
# assistant's part; TRL's trainer makes the labels from such a mask. Which tokens does it learn?

# %%
if answer is not ...:
    row = tokenizer.apply_chat_template([question, reply], return_assistant_tokens_mask=True, return_dict=True)
    print([tokenizer.decode([token]) for token, learned in zip(row["input_ids"], row["assistant_masks"]) if learned])

# %% [markdown]
# Here is another row as a picture, cut by Mistral's tokenizer.

# %%
from helpers.display.diagrams import show_drawing

show_drawing("mask")

# %% [markdown]
# Cover the lower line and say it from the upper one.

# %% [markdown]
# ## 3. Five rows, one of them good
#
# A row needs five things: one beginning, the user's part, the answer, its end, and a loss over the answer and its end
# alone. Here are five rows in Mistral's format, each as two parts: what is given to the model (labels -100), and what
# is learned. Mixed with other rows, all five train without an error.

# %%
rows = {
    "A": ("<s>[INST] Name a prime.[/INST]", " 7</s>"),
    "B": ("<s><s>[INST] Name a prime.[/INST]", " 7</s>"),
    "C": ("<s>[INST] Name a prime.[/INST] 7</s>", ""),
    "D": ("<s>[INST] Name a prime.[/INST]", " 7"),
    "E": ("", "<s>[INST] Name a prime.[/INST] 7</s>"),
}

# %% [markdown]
# **Task.** What becomes of a model that is trained on thousands of rows of each sort? Give each letter one of these:
#
# - `"works"`
# - `"never stops"`
# - `"learns nothing"`
# - `"learns to write questions"`
# - `"meets another beginning in use"`
#
# The answer is a dict, such as `{"A": "learns nothing", "B": …}`.

# %% tags=["solution"]
answer = {
    "A": "works",
    "B": "meets another beginning in use",
    "C": "learns nothing",
    "D": "never stops",
    "E": "learns to write questions",
}

# %%
check("faulty-rows", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# A falling loss does not prove that the right thing is learned; looking at one row does.
#
# </details>

# %% [markdown]
# ## 4. What padding wastes
#
# A GPU works on several rows at once, and they must have the same length. The simplest way: fill up the short ones
# with a token that means nothing, up to the longest row *of the batch*. Here are eight rows, by their lengths in
# tokens, in two batches of four, in this order.

# %%
lengths = [31, 200, 45, 52, 180, 38, 60, 41]
batches = [lengths[:4], lengths[4:]]

# %% [markdown]
# **Task.** Which share of all places that the GPU works on is padding? A number between 0 and 1 with three decimals,
# over both batches together.

# %% tags=["solution"]
places = sum(len(batch) * max(batch) for batch in batches)
answer = 1 - sum(lengths) / places

# %%
check("padding", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# One long row makes three short ones expensive.
#
# </details>

# %% [markdown]
# ## 5. Packing
#
# Instead of filling up a row with nothing, one can fill it up with other rows. A *packed* sequence holds several rows,
# one after the other. Suppose that a sequence has room for 256 tokens. Taking the eight rows above in their order, and
# beginning a new sequence when the next row does not fit, needs four sequences.
#
# **Task.** Find a better order. The answer is a list of sequences, each a list of row lengths, such as
# `[[31, 200], [45, 52], …]`. Every row must be in it once, no sequence may exceed 256 tokens, and there should be as
# few sequences as possible.

# %% tags=["solution"]
answer = [[200, 52], [180, 60], [45, 41, 38, 31]]

# %%
check("packing", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Packing is a puzzle of fitting lengths together, and pays most when rows are short and unequal.
#
# </details>

# %% [markdown]
# ## 6. Keeping packed rows apart
#
# Packed rows have nothing to do with each other, but lie side by side. Unless something prevents it, the second
# answer is predicted with the first question in view. What prevents it is the list of *positions*: each row's
# tokens are numbered by themselves. Attention that reads the positions treats a place where they start anew as a wall;
# attention that does not read them sees through it, so this has to be checked.
#
# **Task.** A packed sequence holds three rows, of 4, 3 and 5 tokens. Write the twelve positions as a list, counted from 0.

# %% tags=["solution"]
answer = [*range(4), *range(3), *range(5)]

# %%
check("positions", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Packing is harmless if, and only if, the rows cannot see each other.
#
# </details>

# %% [markdown]
# The last three exercises in one picture, with four other rows:

# %%
from helpers.display.diagrams import show_drawing

show_drawing("packing")

# %% [markdown]
# ## Summary
#
# - One template, exact to the space, in training and in use.
# - Labels say what is learned: the answer and its end.
# - Wrong rows train quietly, so look at one before you train.
# - Padding wastes; packing saves, if it keeps rows apart.
#
# ## Your turn
#
# 1. Write a conversation with two questions and two answers in Mistral's format. Where does the system prompt go?
# 2. Write your own name into a question and print its tokens. Is it one token, or several?
# 3. Rows that are all like row C are refused by Unsloth: nothing would be learned. Why does nobody notice one such row
#    among a thousand?
