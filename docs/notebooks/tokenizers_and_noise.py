# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Tokenizers and noise
#
# l-DAE adds noise in the latent space of a tokenizer. This notebook fits a patch-wise PCA on crops of a photograph,
# rebuilds images from few latent dimensions, and compares noise in the latent with noise on pixels.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image

import ldae

# %% [markdown]
# Images are tensors (B, 3, H, W) in [-1, 1]. Here: crops of 64 x 64 pixels of a photograph that scikit-learn contains.

# %%
photograph = torch.tensor(load_sample_image("flower.jpg").copy()).movedim(-1, 0) / 127.5 - 1  # (3, 427, 640)
small = torch.nn.functional.avg_pool2d(photograph[None], 4)[0]  # (3, 106, 160)
images = torch.stack([small[:, i : i + 64, j : j + 64] for i in range(0, 43, 6) for j in range(0, 97, 8)])
print(images.shape)

# %% [markdown]
# ## A patch-wise PCA
#
# Patches of 4 x 4 pixels have D = 48 numbers; the tokenizer keeps d = 16 of their principal components. `fit` reads the
# images once; `encode` returns latents of unit average variance, `decode` maps them back and never clips.

# %%
tokenizer = ldae.PatchPCA((3, 64, 64), patch=4, d=16)
tokenizer.fit([images])
z0 = tokenizer.encode(images)
print(f"{tuple(images.shape)} -> {tuple(z0.shape)}, variance {float(z0.var()):.2f}")

# %% [markdown]
# The first components are smooth and carry almost all of the variance:

# %%
share = tokenizer.eigenvalues.cumsum(0) / tokenizer.eigenvalues.sum()
for d in (1, 4, 16, 48):
    print(f"d = {d:2}: {100 * float(share[d - 1]):6.2f} % of the variance")
tokenizer.plot()

# %% [markdown]
# Reconstructions from d dimensions:


# %%
def show(tiles):
    """Show images (3, H, W) in [-1, 1] side by side, with their titles."""
    _, axes = plt.subplots(1, len(tiles), figsize=(2 * len(tiles), 2.3), layout="constrained")
    for axis, (title, tile) in zip(axes, tiles.items(), strict=True):
        axis.imshow(((tile + 1) / 2).clamp(0, 1).movedim(0, -1), interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")


x = images[52:53]
tiles = {"image": x[0]}
for d in (1, 4, 16):
    coarse = ldae.PatchPCA((3, 64, 64), patch=4, d=d)
    coarse.fit([images])
    tiles[f"d = {d}"] = coarse.decode(coarse.encode(x))[0]
show(tiles)

# %% [markdown]
# ## Noise schedules
#
# At step t the latent is `gamma z0 + sigma eps`. l-DAE's schedule has gamma = 1 and sigma linear up to sqrt(2); DDPM's
# has far more noise at the same t.

# %%
steps = torch.tensor([100, 500, 900])
for schedule in (ldae.DDPMLinear(), ldae.LinearSigma()):
    level = schedule.at(steps)
    print(type(schedule).__name__, "sigma / gamma at t = 100, 500, 900:", (level.sigma / level.gamma).numpy().round(2))

# %%
ldae.DDPMLinear().plot()

# %%
ldae.LinearSigma().plot()

# %% [markdown]
# ## Noise in the latent and noise on pixels
#
# Both rows have noise of the same standard deviation relative to the signal. Noise in the latent lies along the 16
# leading patterns of a patch, noise on pixels along all 48.

# %%
rng = torch.Generator().manual_seed(0)
latent, pixel = {}, {}
for t in (0, 200, 500, 900):
    sigma = float(ldae.LinearSigma().sigma[t])
    z_t = tokenizer.encode(x) + sigma * torch.randn(z0[:1].shape, generator=rng)
    latent[f"latent, t = {t}"] = tokenizer.decode(z_t)[0]
    pixel[f"pixel, t = {t}"] = (x + sigma * images.std() * torch.randn(x.shape, generator=rng))[0]
show(latent)
show(pixel)

# %% [markdown]
# Next: [pretrain and look](pretrain_and_look.py).
