# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 2: What is trained, and what it takes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/workshop/exercises_2_memory.ipynb)
#
# Mistral-7B has 7.2 billion numbers. Trained in the ordinary way they need more memory than a card of 80 GB
# has; with QLoRA, a free one of 15 GB is enough. A pencil can follow all of it, and PEFT, the library that does it in
# practice, says whether your pencil was right.
#
# **You will learn**
#
# - how few numbers LoRA trains, and where they sit,
# - how an adapter disappears into the weights when training is done,
# - what "4 bit" means, and why it is a little more than 4,
# - where the memory of training goes, and which part QLoRA removes.
#
# **What it needs.** No GPU and no download of a model. About 30 minutes, with a calculator or Python. It uses torch,
# transformers and PEFT, which Colab has.
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

# %%
from helpers.runtime.setup import quiet_libraries
from helpers.workshop import check

quiet_libraries()

# %% [markdown]
# ## 1. The size of an adapter
#
# A linear layer multiplies its input by a matrix $W$. LoRA leaves $W$ as it is and learns a change to it. The change is
# a matrix of the same shape, but written as the product of two thin ones, $BA$: $A$ takes the inputs down to $r$
# numbers, $B$ takes these back up to the outputs. The number $r$ is the *rank*. Here is a tiny layer of 6 inputs and 4
# outputs, at rank 2. Count the cells: a matrix this small gains next to nothing.

# %%
from helpers.display.diagrams import show_drawing

show_drawing("lora_small")

# %% [markdown]
# **Task.** One of Mistral's matrices has 4096 inputs and 14336 outputs. How many numbers are trained beside it at rank
# 16? (The matrix itself has 58.7 million.)

# %% tags=["solution"]
answer = 16 * (4096 + 14336)

# %%
check("lora-size", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# An adapter grows with the sum of inputs and outputs, a matrix with their product.
#
# </details>

# %% [markdown]
# PEFT attaches such an adapter to each layer that `target_modules` names. The layer below lies on the device `meta`: it
# has a shape and no numbers, so that it takes no memory.

# %%
import torch
from peft import LoraConfig, get_peft_model

if answer is not ...:
    layer = torch.nn.Sequential(torch.nn.Linear(4096, 14336, bias=False, device="meta"))
    get_peft_model(layer, LoraConfig(r=16, target_modules=["0"])).print_trainable_parameters()

# %% [markdown]
# ## 2. The share that is trained
#
# Mistral-7B has 32 blocks. Each has the seven linear layers below, as (inputs, outputs); each gets an adapter. Two of
# them, `k` and `v`, are narrower: four query heads share one key and value head. (What the seven are for does not matter
# here.) With its embeddings, which turn tokens into numbers at the beginning, and its output head, which makes
# probabilities of tokens at the end, the model has 7,248,023,552 parameters.

# %%
layers = {
    "q": (4096, 4096),
    "k": (4096, 1024),
    "v": (4096, 1024),
    "o": (4096, 4096),
    "gate": (4096, 14336),
    "up": (4096, 14336),
    "down": (14336, 4096),
}
blocks, parameters = 32, 7_248_023_552

# %% [markdown]
# **Task.** At rank 16, how large is the whole adapter, in percent of the model's parameters? Three decimals.

# %% tags=["solution"]
trained = blocks * sum(16 * (inputs + outputs) for inputs, outputs in layers.values())
answer = 100 * trained / parameters

# %%
check("lora-share", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Of a thousand parameters, about six are trained.
#
# </details>

# %% [markdown]
# PEFT says the same of a model of Mistral's shape. (Its percentage is a little lower, because it counts the adapter among
# all parameters.)

# %%
from transformers import MistralConfig, MistralForCausalLM

if answer is not ...:
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig(vocab_size=32768))
    names = [f"{name}_proj" for name in layers]
    get_peft_model(model, LoraConfig(r=16, target_modules=names, task_type="CAUSAL_LM")).print_trainable_parameters()

# %% [markdown]
# ## 3. Merging
#
# With the adapter, a layer computes $Wx + \frac{\alpha}{r} B A x$. The factor $\alpha / r$ scales the adapter. When
# training is done the adapter can be *merged*: one computes a single matrix that does the same, and the model is an
# ordinary model again. Here is a layer small enough to do it by hand. In Python, `@` multiplies matrices.

# %%
import numpy as np

rank, alpha = 2, 4
W = np.array([[1, 0, 2], [0, 1, 0], [0, 0, 1]])
A = np.array([[1, 0, 1], [0, 1, 0]])
B = np.array([[1, 0], [1, 1], [0, -1]])

# %% [markdown]
# **Task.** Compute the merged matrix.

# %% tags=["solution"]
answer = W + alpha / rank * B @ A

# %%
check("lora-merge", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# An adapter is a change to the weights, kept apart only as long as that is useful.
#
# </details>

# %% [markdown]
# In PEFT the three matrices are attributes of the layer, and one call merges them:

# %%
tuned = get_peft_model(
    torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False)), LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])
)
lora = tuned.base_model.model[0]
for weight, matrix in ((lora.weight, W), (lora.lora_A["default"].weight, A), (lora.lora_B["default"].weight, B)):
    weight.data = torch.tensor(matrix, dtype=torch.float32)
if answer is not ...:
    print(tuned.merge_and_unload()[0].weight.data)

# %% [markdown]
# ## 4. Rounding to a few levels
#
# To store a weight in 4 bit one has 16 levels to choose from. Weights come in blocks; a block's largest absolute value
# is its *scale*. Each weight is divided by the scale, so that it lies between -1 and 1, and replaced by the nearest
# level. What is stored is the level's number, and the scale once for the block. When the weight is needed it is
# computed back: level times scale.
#
# Let us do that with 2 bit, four levels, and a block of four weights.

# %%
levels = [-1, -1 / 3, 1 / 3, 1]
weights = [0.9, -0.3, 0.1, -1.2]

# %% [markdown]
# **Task.** Which four weights does the model compute with afterwards? A list of four numbers, with one decimal.

# %% tags=["solution"]
scale = max(abs(weight) for weight in weights)
nearest = [min(levels, key=lambda level, w=weight: abs(level - w / scale)) for weight in weights]
answer = [level * scale for level in nearest]

# %%
check("quantize", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Quantized weights are the old ones, rounded; the base model of QLoRA is slightly worse than the
# original, and the adapter learns on top of that.
#
# </details>

# %% [markdown]
# The real format, NF4, does the same with sixteen levels, which lie closer together where weights are many:

# %%
from helpers.display.diagrams import show_drawing

show_drawing("nf4")

# %% [markdown]
# ## 5. How many bits are 4 bits?
#
# The scales take memory too. NF4, the format of QLoRA, stores for each weight 4 bits; for each block of 64 weights a
# scale of one byte; and, because these one-byte scales were themselves rounded, one number of 4 bytes for every 256
# scales.
#
# **Task.** How many bits does one weight take, everything included? A byte has 8 bits. Three decimals.

# %% tags=["solution"]
answer = 4 + 8 / 64 + 8 * 4 / (64 * 256)

# %%
check("nf4-bits", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# The scales cost about three percent on top of the weights.
#
# </details>

# %% [markdown]
# ## 6. Training everything
#
# In ordinary training every parameter brings along more than itself. With mixed precision and the optimizer Adam, each
# needs
#
# | what | bytes |
# |---|---|
# | the weight, in 16 bit | 2 |
# | its gradient, in 16 bit | 2 |
# | Adam's two running means, in 32 bit | 2 · 4 |
# | a copy of the weight in 32 bit, for small steps | 4 |
#
# **Task.** How much is that for the 7,248,023,552 parameters of Mistral-7B, in GiB? One GiB is `2**30` bytes. No decimals.

# %% tags=["solution"]
answer = 7_248_023_552 * (2 + 2 + 2 * 4 + 4) / 2**30

# %%
check("full-memory", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# The weights are an eighth, and so are the gradients; most of the memory belongs to
# the optimizer of what is *trained*.
#
# </details>

# %% [markdown]
# ## 7. The same with QLoRA
#
# Frozen weights need no gradient and no optimizer. So there are three parts:
#
# - 6,979,321,856 weights of linear layers, frozen, at about 4.13 bits each;
# - 268,701,696 others (embeddings, head, norms), frozen, in 16 bit;
# - 41,943,040 numbers of the adapter, trained: weight and gradient in 32 bit, and Adam's two means in 8 bit each.
#
# **Task.** How many GiB are they together? One decimal.

# %% tags=["solution"]
linear = 6_979_321_856 * 4.13 / 8
others = 268_701_696 * 2
adapter = 41_943_040 * (4 + 4 + 1 + 1)
answer = (linear + others + adapter) / 2**30

# %%
check("qlora-memory", answer)

# %% [markdown]
# <details><summary>What you learned</summary>
#
# Freezing the weights removes gradients and optimizer; 4 bit then shrinks what is left.
#
# </details>

# %% [markdown]
# What your sum leaves out are the activations: what the forward pass has to remember for the backward pass. They depend
# on the batch and on the length of its rows. The package has a planner that counts them too.

# %%
from helpers.core.text import format_bytes
from helpers.memory.predict import predict_peak
from helpers.memory.shapes import MISTRAL_7B

for length in (512, 1024, 2048, 4096):
    peak = predict_peak(MISTRAL_7B, rank=16, batch_size=2, seq_length=length)
    print(f"2 rows of {length} tokens:", format_bytes(peak.total()))

# %% [markdown]
# ## Summary
#
# - LoRA trains two thin matrices beside each large one: six numbers in a thousand.
# - Merged, they are gone.
# - 4 bit means 16 levels and a scale for each block, a little over 4 bits in all.
# - Training everything takes 16 bytes a parameter; QLoRA takes half a byte for what is frozen.
#
# ## Your turn
#
# 1. What does rank 64 cost, in trained parameters and in GiB?
# 2. Change one weight of the block in exercise 4 to 12. What happens to the three others?
# 3. In the last cell, find the longest row of which two fit on a card of 15 GiB.
