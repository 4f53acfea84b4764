"""Draw the figures of docs/concepts.md and docs/path.md: python docs/figures.py writes docs/pictures/concept_*.png."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_sample_images

import ldae

matplotlib.use("agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "pictures"
PATCH, SIZE = 4, 64


def photographs() -> torch.Tensor:
    """Return crops of the two photographs of scikit-learn, reduced by 4: (B, 3, 64, 64) in [-1, 1]."""
    crops = []
    for image in load_sample_images().images:
        x = torch.tensor(np.asarray(image)).movedim(-1, 0).float() / 127.5 - 1
        x = torch.nn.functional.avg_pool2d(x[None], 4)[0]  # (3, 106, 160)
        crops += [x[:, i : i + SIZE, j : j + SIZE] for i in (0, 20, 40) for j in range(0, 97, 16)]
    return torch.stack(crops)


def pixels(x: torch.Tensor) -> np.ndarray:
    """Return an image (3, H, W) in [-1, 1] as (H, W, 3) in [0, 1]."""
    return ((x + 1) / 2).clamp(0, 1).movedim(0, -1).numpy()


def fitted(images: torch.Tensor, d: int) -> ldae.PatchPCA:
    """Return a patch-wise PCA of the images."""
    tokenizer = ldae.PatchPCA((3, SIZE, SIZE), patch=PATCH, d=d)
    tokenizer.fit([images])
    return tokenizer


def draw_row(name: str, tiles: dict[str, np.ndarray], rows: int = 1) -> None:
    """Write tiles with their titles."""
    columns = -(-len(tiles) // rows)
    figure, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.95 * rows), layout="constrained")
    for axis, (title, tile) in zip(np.ravel(axes), tiles.items(), strict=True):
        axis.imshow(tile, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    save(figure, name)


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure, without the date that PNGs carry."""
    figure.savefig(PICTURES / f"concept_{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_filters(images: torch.Tensor) -> None:
    """Draw the rows of a PCA basis as patches."""
    basis = fitted(images, 3 * PATCH**2).basis.unflatten(1, (PATCH, PATCH, 3))  # (D, p, p, 3)
    figure, axes = plt.subplots(3, 16, figsize=(8, 1.7), layout="constrained")
    for axis, filter_ in zip(np.ravel(axes), basis, strict=True):
        axis.imshow((filter_ / filter_.abs().max() / 2 + 0.5).numpy(), interpolation="nearest")
        axis.axis("off")
    save(figure, "filters")


def draw_reconstructions(images: torch.Tensor) -> None:
    """Draw an image that is rebuilt from d latent dimensions."""
    x = images[24:25]
    tiles = {"image": pixels(x[0])}
    for d in (1, 4, 16, 48):
        tokenizer = fitted(images, d)
        tiles[f"d = {d} of {3 * PATCH**2}"] = pixels(tokenizer.decode(tokenizer.encode(x))[0])
    draw_row("reconstruction", tiles)


def draw_noise(images: torch.Tensor) -> None:
    """Draw noise in the latent of a patch-wise PCA above noise on pixels, at equal sigma."""
    x, tokenizer = images[24:25], fitted(images, 16)
    scale = images.std()
    tiles = {}
    for space in ("latent", "pixel"):
        for sigma in (0, 0.3, 0.7, 1.4):
            eps = torch.randn(tokenizer.shape if space == "latent" else x.shape[1:], generator=generator())[None]
            noised = (
                tokenizer.decode(tokenizer.encode(x) + sigma * eps) if space == "latent" else x + sigma * scale * eps
            )
            tiles[f"{space}, sigma = {sigma}"] = pixels(noised[0])
    draw_row("noise", tiles, rows=2)


def generator() -> torch.Generator:
    """Return the generator of the noise."""
    return torch.Generator().manual_seed(0)


def draw_schedules() -> None:
    """Draw sigma / gamma of some schedules against t / T."""
    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    schedules = {
        "ddpm_linear": ldae.DDPMLinear(),
        "cosine": ldae.Cosine(),
        "linear_gamma2": ldae.LinearGamma2(),
        "linear_sigma": ldae.LinearSigma(),
        "linear_sigma, sigma_max = 3": ldae.LinearSigma(sigma_max=3),
    }
    for name, schedule in schedules.items():
        axis.plot(np.arange(schedule.T) / schedule.T, schedule.sigma / schedule.gamma, label=name)
    axis.set(ylim=(0, 6), xlim=(0, 1), xlabel="t / T", ylabel="sigma / gamma")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, "schedules")


def draw_path() -> None:
    """Draw the paper's accuracies, read from the table of docs/path.md."""
    rows = re.findall(r"^\| `(\d\d_\w+)` \|.*\| ([\d.]+) \|$", (HERE / "path.md").read_text(), flags=re.M)
    names, values = [name for name, _ in rows], [float(value) for _, value in rows]
    figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    axis.plot(values, "o-")
    for i, value in enumerate(values):
        axis.annotate(f"{value}", (i, value), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axis.set(ylim=(56, 67), ylabel="linear probe, ImageNet, %\n(arXiv 2401.14404)")
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, "path")


if __name__ == "__main__":
    photos = photographs()
    draw_filters(photos)
    draw_reconstructions(photos)
    draw_noise(photos)
    draw_schedules()
    draw_path()
