"""Cache latents on disk: without random augmentation, a frozen tokenizer returns the same ones every epoch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from ldae.app.session import Session
from ldae.core.errors import CheckpointError
from ldae.core.files import json_hash, publish_folder, read_json, sha256, write_json
from ldae.data.cache import cache_errors
from ldae.data.images import ImageSet, LatentImages, Splits
from ldae.objectives.base import Objective
from ldae.objectives.denoise import Denoise
from ldae.tokenizers.base import Tokenizer

FILE, MANIFEST = "latents.npy", "manifest.json"


def train_images(session: Session, objective: Objective, splits: Splits, tokenizer: str | None) -> ImageSet:
    """Return the training images, or their cached latents where these give the same results faster.

    Latents are cached if the tokenizer is convolutional, the augmentation is not random, network and loss work in the
    latent space, and the condition has no image. They equal those of encoding again, but for rounding; for a posterior
    the cache holds its moments.

    Args:
        session: config, cache and device.
        objective: objective in training.
        splits: images of the data set.
        tokenizer: SHA-256 of the tokenizer's file, or None.
    """
    images, is_random = splits.train, session.parts.augment.n > 0
    has_image_condition = session.parts.task.image_channels > 0
    if session.config["latents"] == "never" or is_random or has_image_condition or not isinstance(objective, Denoise):
        return images
    if not (objective.input.latent and objective.output.latent and objective.tokenizer.is_costly):
        return images
    folder = session.cache / "latents" / json_hash([tokenizer, splits.fingerprint])[:20]
    if session.world.main and not _is_intact(folder):
        print(f"encoding {len(images)} images once (kept in {folder})", file=sys.stderr)
        session.writable(folder.parent)
        with publish_folder(folder) as temporary, cache_errors(session.cache):
            _write(temporary / FILE, session, objective.tokenizer, images)
            write_json(temporary / MANIFEST, {"sha256": sha256(temporary / FILE)})
    session.world.wait()
    return LatentImages.of_set(images, torch.from_numpy(np.load(folder / FILE, mmap_mode="c")))


def _is_intact(folder: Path) -> bool:
    """Return whether the latents kept in a folder are there, undamaged."""
    if not folder.exists():
        return False
    try:
        if read_json(folder / MANIFEST)["sha256"] == sha256(folder / FILE):
            return True
    except (CheckpointError, OSError, KeyError):
        pass
    print(f"the latents kept in {folder} are damaged; they are encoded again", file=sys.stderr)
    return False


@torch.no_grad()
def _write(path: Path, session: Session, tokenizer: Tokenizer, images: ImageSet) -> None:
    """Encode images into an .npy file row by row; unlike a memory map, a full disk raises an error."""
    with open(path, "wb") as file:
        for i, x in enumerate(session.images(images, title="encoding the latents")):
            posterior_params = tokenizer.posterior_params(x).float().cpu().numpy()
            if not i:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), *posterior_params.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(posterior_params, dtype="<f4").data)
