# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Probe and compare
#
# A representation is scored with the network frozen: features go into a linear classifier and into nearest neighbours.
# This notebook scores an l-DAE after a few seconds of pretraining beside raw pixels and PCA, and shows the estimators.

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import ldae
import linear_probe

# %%
run = ldae.pretrain(
    "ldae/digits",
    out=Path(tempfile.mkdtemp()) / "digits",
    train={"steps": 150},
    monitor={"num_evals": 0},
    data={"workers": 0},
    runtime={"threads": 1, "progress": False},
)

# %% [markdown]
# ## Features
#
# Any array (N, D) can be scored. Here 1,400 images train and 397 test. Pretraining used most of these images, without
# labels; the command `ldae probe run=RUN` keeps to the splits of the run instead.

# %%
digits = load_digits()
images = torch.tensor(digits.images / 16).float()[:, None].expand(-1, 3, -1, -1)  # (1797, 3, 8, 8) in [0, 1]
train, test = slice(0, 1400), slice(1400, None)
pixels = images[:, 0].flatten(1).numpy()
features = {
    "l-DAE": run.encoder()(images).numpy(),
    "raw pixels": pixels,
    "PCA of whole images, 16 dimensions": PCA(16).fit(pixels[train]).transform(pixels),
}

# %% [markdown]
# ## Scores
#
# `linear_probe.score` chooses hyper-parameters on a hold-out of the training features, and reads the test features
# once.

# %%
PROTOCOLS = ["lbfgs", "knn", "knn_whitened"]
tables = {
    name: linear_probe.score(x[train], digits.target[train], x[test], digits.target[test], protocols=PROTOCOLS)
    for name, x in features.items()
}
print(f"{'top-1 accuracy on the test images, %':38}" + "".join(f"{name:>14}" for name in PROTOCOLS))
for name, table in tables.items():
    print(f"{name:38}" + "".join(f"{table.accuracies[protocol]:14.2f}" for protocol in PROTOCOLS))

# %% [markdown]
# After so little pretraining the encoder need not be above the baselines; the tables of this project always contain
# them for this reason. A single table shows the settings that were chosen:

# %%
tables["l-DAE"]

# %% [markdown]
# ## Another layer
#
# The layer and the noise level t of the features matter. They are chosen on a hold-out, never on the test images.

# %%
inside, holdout = np.arange(1200), np.arange(1200, 1400)
for layer in (1, 2, 3):
    x, y = run.encoder(layer=layer)(images[train]).numpy(), digits.target[train]
    accuracy = linear_probe.KNNProbe().fit(x[inside], y[inside]).score(x[holdout], y[holdout])
    print(f"layer {layer}: kNN {100 * accuracy:.1f} % on the hold-out")

# %% [markdown]
# `ldae probe run=RUN layers=[1,2,3] t=[0,10,40]` makes these choices for every protocol, and writes result lines with
# everything that was chosen.
