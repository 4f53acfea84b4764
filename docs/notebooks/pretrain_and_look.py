# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Pretrain and look
#
# `ldae.pretrain` is the command `ldae pretrain` as a function: it takes an experiment and any key of its config, and
# returns a run on disk, with metrics, pictures and encoders. The settings here need seconds on one core.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import ldae

# %% [markdown]
# `ldae/digits` pretrains a small vision transformer on scikit-learn's handwritten digits, 8 x 8 pixels. The keys below
# are those of the command line; a nested key is a mapping. `ldae pretrain --help` lists them.

# %%
folder = Path(tempfile.mkdtemp()) / "digits"
run = ldae.pretrain(
    "ldae/digits",
    out=folder,
    train={"steps": 100, "log_every": 5},
    monitor={"num_evals": 2},
    data={"workers": 0},
    runtime={"threads": 1, "progress": False},
)
print(run)

# %% [markdown]
# The same call again continues a run that was stopped, and returns a finished one as it is. `ldae.Run(folder)` opens an
# existing run.
#
# ## Metrics
#
# `run.metrics()` returns everything that was logged, as lists in the order of the steps.

# %%
metrics = run.metrics()
_, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(metrics["step"], metrics["loss"])
_ = axis.set(xlabel="step", ylabel="loss", yscale="log")

# %% [markdown]
# Diagnostics on hold-out images: PSNR of the noised and of the denoised images at four noise levels. Denoised should
# overtake noised.

# %%
for level in ("1_8", "3_8", "5_8", "7_8"):
    noised, denoised = (metrics[f"panel/psnr_{kind}/{level}"][-1] for kind in ("noised", "denoised"))
    print(f"t / T = {level.replace('_', '/')}: noised {noised:5.1f} dB, denoised {denoised:5.1f} dB")

# %% [markdown]
# ## Pictures
#
# `run.panel()` is the newest picture of clean, noised and denoised hold-out images.

# %%
run.panel()

# %% [markdown]
# ## The encoder
#
# Images (B, 3, H, W) in [0, 1] go in, features (B, D) come out: the mean of the patch tokens of a layer, at a noise
# level.

# %%
encoder = run.encoder()
images = torch.tensor(load_digits().images[:32] / 16).float()[:, None].expand(-1, 3, -1, -1)
features = encoder(images)
print(f"layer {encoder.layer}, t = {encoder.t}: {tuple(images.shape)} -> {tuple(features.shape)}")

# %% [markdown]
# Next: [probe and compare](probe_and_compare.py).
