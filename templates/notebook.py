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
#     teaches: One sentence on what the reader learns
#     gpu: T4
#     minutes_t4: 5
#     download_gb: 0
# ---

# %% [markdown]
# # A title that says what the reader will do
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/my_notebook.ipynb) [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://www.kaggle.com/notebooks/welcome?src=https://github.com/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/my_notebook.ipynb) [![View in nbviewer](https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg)](https://nbviewer.org/github/mistral-qlora/mistral-qlora-notebooks/blob/main/notebooks/my_notebook.ipynb)
#
# One paragraph: what this notebook is for, and for whom.
#
# **You will learn**
#
# - three to five points,
# - each of them something that the reader can do afterwards.
#
# **What it needs.** GPU, minutes, size of the download.

# %% [markdown]
# ## 1. Parameters
#
# Say which of them the reader must understand, and which may stay as they are.

# %% tags=["parameters"]
run_name = None  # type: str  folder under runs/
row_count = 3  # type: int  rows to show [rows]

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
# ## 2. The first idea
#
# A sentence or two before each cell say why it comes. One idea a cell, five lines or fewer; what would need a test
# belongs into the package.

# %%
from helpers.data.rows import read_sample

rows = read_sample("alpaca", "heldout")[:row_count]

# %% [markdown]
# Then look at what came out.

# %%
from helpers.display.tables import show_table

show_table(rows)

# %% [markdown]
# React to what was printed, then go on.
#
# ## Summary
#
# - what was learned, point by point.
#
# ## Your turn
#
# 1. An exercise that changes one parameter and asks what happens.
