"""Fit or train a tokenizer.

    ldae train-tokenizer tokenizer=vqgan data=cifar10 data.root=DIR/cifar10 out=RUN

tokenizer= conv_vae, kl_gan, vqgan, vq, patch_vae, patch_ae, patch_pca, pixel, or one of imagenet_*. Writes
RUN/tokenizer.safetensors, RUN/filters.png, RUN/reconstruction.png (originals over reconstructions) and
RUN/reconstruction.json (PSNR, SSIM, statistics of the latents, use of a codebook), measured on the hold-out or, with
split=test, on the test split.

tokenizer.weights=OTHER starts from trained weights: a tokenizer of this package, or a safetensors file of a public KL
autoencoder (diffusers' layout or latent diffusion's); tokenizer.fit.steps=0 keeps them and measures the latent scale
alone. The same command again resumes; torchrun divides each batch among processes. Pretraining uses the tokenizer with
tokenizer.weights=RUN, and trains and caches the one of its config without that key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from ldae.app.compose import compose, require, resolved
from ldae.app.precision import saved_config
from ldae.app.resumption import is_finished, start_run
from ldae.app.session import Session, train_settings
from ldae.app.training.monitors import preview
from ldae.app.training.tokenizer_cache import PANEL_IMAGES, configured_weights, fit_tokenizer
from ldae.config.schema import conform
from ldae.core.errors import CheckpointError
from ldae.core.files import write_json
from ldae.data.images import ImageSet
from ldae.engine.logging import save_png
from ldae.engine.run_folder import RunFolder
from ldae.export.encoder import TOKENIZER_FILE
from ldae.objectives.panels import ReconstructionPanel, fidelity, reconstruct_images
from ldae.tokenizers.base import Tokenizer, load_tokenizer
from ldae.tokenizers.conv_vae import ConvVAE
from ldae.tokenizers.public import load_public


def main(argv: Sequence[str]) -> None:
    """Run `ldae train-tokenizer`."""
    config = resolved(compose("train_tokenizer", argv))
    conform("split", config["split"], Literal["holdout", "test"])
    require(argv, tokenizer="patch_pca", data="cifar10")
    name = str(config["tokenizer"]["part"]).rsplit(".", 1)[-1]
    run = RunFolder(Path(config["out"] or f"runs/tokenizer-{name}/seed{config['seed']}"))
    session = Session(config, saved_config(run.path))
    config = session.config
    tokenizer: Tokenizer = session.parts.tokenizer
    start = configured_weights(session)
    if tokenizer.needs_training and (config["tokenizer"]["fit"]["steps"] or start is None):
        train_settings(config)
        session.parts.build("objective", "optim")
    with session.running(run):
        splits = session.splits()
        if is_finished(run, config):
            load_tokenizer(run.path / TOKENIZER_FILE, tokenizer.to(session.world.device))
        else:
            write_config = start_run(run, config, splits) if session.world.main else None
            if start is not None:
                load_start(start, tokenizer)
            fit_tokenizer(session, splits, run)
            if write_config is not None:
                write_config()
        if session.world.main:
            images: ImageSet = getattr(splits, config["split"])
            report(session, images if len(images) else splits.train, run)
            run.set_status("done", run.status().get("step", 0))


def load_start(path: Path, tokenizer: Tokenizer) -> None:
    """Load initial weights of a tokenizer: from a file of this package, or of a public KL autoencoder."""
    try:
        load_tokenizer(path, tokenizer)
    except CheckpointError:
        if not isinstance(tokenizer, ConvVAE):
            raise
        load_public(path, tokenizer)


@torch.no_grad()
def report(session: Session, images: ImageSet, run: RunFolder) -> None:
    """Measure the tokenizer on a set of images, write scores and picture to the run folder, and print the scores."""
    tokenizer: Tokenizer = session.parts.tokenizer
    originals = preview(session, images, PANEL_IMAGES).images
    scalars, pictures = ReconstructionPanel(tokenizer, originals, every=0)(0)
    batches = [(x + 1) / 2 for x in session.images(images)]
    reconstructions = torch.cat([reconstruct_images(tokenizer, x) for x in batches])
    quality = {**scalars, **fidelity(reconstructions, torch.cat(batches))}
    split = session.config["split"]
    write_json(run.path / "reconstruction.json", {"split": split, "images": len(images), **quality})
    save_png(run.path / "reconstruction.png", pictures["original_reconstruction"])
    d, h, w = tokenizer.shape
    message = ", ".join(f"{name} {value:.4g}" for name, value in quality.items())
    print(f"done: {run.path}\n  latents {d} x {h} x {w}\n  {split}, {len(images)} images: {message}")
    print(f"  pictures: {run.path / 'reconstruction.png'}, {run.path / 'filters.png'}")
