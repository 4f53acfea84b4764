"""A finished run as something to use: its encoder, its denoiser."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldae.config.build import Parts
from ldae.config.version import check_version
from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.files import read_sealed_json
from ldae.core.rng import seed_of
from ldae.core.types import BatchGenerator
from ldae.engine.checkpoint import ATTEMPTS, Checkpoint, folder_of, listed, newest, verify
from ldae.objectives.base import PretrainingObjective
from ldae.tokenizers.base import load_tokenizer

TOKENIZER_FILE = "tokenizer.safetensors"
MODEL = "model"
USUAL_T = 10  # step of the noise level that an encoder is told, unless another is chosen

# folder of an experiment's config -> what its encoder is called; elsewhere (deconstruct, ablate) each has its own name
FAMILIES: Mapping[str, str] = {
    "ldae": "l-DAE",
    "mae": "MAE",
    "dae_pixel": "pixel DAE",
    "dit": "DiT",
    "ddpm": "DDPM",
    "iddpm": "improved DDPM",
    "sr3": "SR3",
    "segdiff": "SegDiff",
    **{f"cold_{name}": f"Cold Diffusion, {name}" for name in ("blur", "mask", "sr", "snow", "color", "noise", "blend")},
}


@dataclass(frozen=True)
class Run:
    """What a checkpoint of a run holds, built.

    Attributes:
        objective: the objective with its tokenizer, if it has one, and, unless it was asked untrained, trained
            network.
        checkpoint: where the weights are from.
        config: the resolved config of the run.
    """

    objective: PretrainingObjective
    checkpoint: Checkpoint
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the encoder is called in a table, after the experiment that it is from."""
        family, _, own = str(self.config.get("experiment") or type(self.objective).__name__).partition("/")
        return FAMILIES.get(family, own or family)


def find_checkpoint(run: Path, step: int | None = None) -> Checkpoint:
    """The verified checkpoint of a run, the newest unless a step is given. Changes nothing in the run.

    Raises:
        CheckpointError: the run has none, or it is damaged.
    """
    root = run / "checkpoints"
    if step is not None:
        if not folder_of(root, step).exists():
            steps = ", ".join(str(int(path.name.rpartition("-")[2])) for path in listed(root)) or "none"
            raise CheckpointError(f"run={run} has no checkpoint of step={step}; it has: {steps}")
        return verify(folder_of(root, step))
    found = newest(root, set_aside=False)
    if found is None:
        raise CheckpointError(f"run={run} has no checkpoint; is it the folder that pretraining wrote (out=)?")
    return found


def load_run(
    run: Path,
    step: int | None = None,
    weights: Literal["ema", "model", "untrained"] = "ema",
    device: torch.device | str = "cpu",
) -> Run:
    """Builds a run's objective and fills it from a checkpoint, every file verified first.

    Args:
        run: folder that pretraining wrote.
        step: which checkpoint; the newest if None.
        weights: the average of the weights, the last weights, or none: the random network that the
            run began with, its gates opened.

    Raises:
        CheckpointError: no whole checkpoint, a run of version 0.1, or a tokenizer that is not the run's.
    """
    if (run / "config.json").is_file():
        check_version(read_sealed_json(run / "config.json"), f"run={run}")
    for _ in range(ATTEMPTS):
        checkpoint = find_checkpoint(run, step)
        try:
            tensors = None if weights == "untrained" else checkpoint.tensors(weights)
        except CheckpointError:
            if step is not None or checkpoint.path.exists():
                raise
            continue  # the run goes on training, and removed it while it was read
        return _built(run, checkpoint, tensors, device)
    raise CheckpointError(f"run={run} replaces its checkpoints faster than they are read; give step=, or wait")


def _built(run: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor] | None, device: torch.device | str) -> Run:
    """Build the objective of a run and fill it with the tensors of its checkpoint; with none, it is untrained."""
    config = checkpoint.manifest["config"]
    check_version(config, f"run={run}")
    objective = start_of(config, run, checkpoint.manifest["tokenizer"])
    if tensors is None:
        objective.network.undo_zero_init()  # at its start the network is the identity: too low a floor
    else:
        named = {k[len(MODEL) + 1 :]: v for k, v in tensors.items()}
        missing, unexpected = objective.network.load_state_dict(named, strict=False)
        if missing or unexpected:
            raise CheckpointError(f"{checkpoint.path} is of another network: {sorted(missing + unexpected)[:4]}")
    objective.requires_grad_(False).eval().to(device)
    return Run(objective, checkpoint, config)


def start_of(config: Mapping[str, Any], run: Path, tokenizer: str | None) -> PretrainingObjective:
    """Build a run's objective with the weights that its training begins with.

    Args:
        config: of the run, resolved.
        run: its folder, with the tokenizer's file.
        tokenizer: SHA-256 of that file; None where there is none.

    Raises:
        CheckpointError: the objective has no encoder, or the file is another one.
    """
    torch.manual_seed(seed_of(config["seed"]))  # as in pretraining
    objective = Parts(config).objective
    if not isinstance(objective, PretrainingObjective):
        raise CheckpointError(f"run={run} has no encoder to read: {config['objective']['part']}")
    if objective.tokenizer is not None:
        load_tokenizer(run / TOKENIZER_FILE, objective.tokenizer, tokenizer)
    return objective


def usual_t(objective: PretrainingObjective) -> int:
    """The step that a network is told where none is chosen: 10 (little noise), or the last where there are fewer."""
    return min(USUAL_T, objective.T - 1)


class Encoder(nn.Module):
    """Images to features: normalisation, tokenizer, noise level and pooling. In eval mode when it is made.

    The noise of a noised input is a function of (seed, t, the image's number): an image has the same features in
    every batch, at every place in it, and no two images share their noise.

    Args:
        objective: one whose network is read, with its tokenizer if it has one.
        layer: whose tokens are the representation; the end of the encoder half if None.
        t: step of the noise level that the network is told; `usual_t` if None.
        noised: whether the input is noised at that level too.
        precision: of the network's matrix products.
        seed: of that noise.

    Attributes:
        image_shape: (3, H, W) of the images that it takes.

    Raises:
        ConfigError: the network has no such layer, or the objective no such level or no noise.
    """

    def __init__(
        self,
        objective: PretrainingObjective,
        layer: int | None = None,
        t: int | None = None,
        noised: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
        seed: int = 0,
    ):
        super().__init__()
        self.objective, self.network = objective, objective.network
        self.layer = self.network.encoder_layer if layer is None else layer
        self.t = usual_t(objective) if t is None else t
        self.noised, self.precision, self.seed = noised, precision, seed
        if self.layer not in self.network.layers:
            raise ConfigError("layer", self.layer, f"is not one of the network's layers 1..{len(self.network.layers)}")
        objective.check_readable(self.t, noised)
        self.image_shape = objective.image_shape
        self.eval()

    def extra_repr(self) -> str:
        """Name the images that the encoder takes, and where it is read."""
        shape = ", ".join(map(str, self.image_shape))
        return f"images=(B, {shape}) in [0, 1], layer={self.layer}, t={self.t}, noised={self.noised}"

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the features of a batch, its tokens averaged: (B, D).

        Args:
            images, index: as for `tokens`.

        Raises:
            ConfigError: the images are of another shape, type or range.
        """
        return self.tokens(images, [self.layer], index)[self.layer].mean(1)

    @torch.no_grad()
    def tokens(
        self, images: Tensor, layers: Collection[int], index: Tensor | None = None, class_token: bool = False
    ) -> dict[int, Tensor]:
        """Return the tokens after each of `layers`, in one pass.

        Args:
            images: (B, 3, H, W) in [0, 1].
            layers: of the network.
            index: (B,) int64 numbers of the images, one of its own for each image of all splits. Noise alone depends
                on them. If None, a number is a hash of the image's pixels: only equal images share their noise.
            class_token: whether the class token stands first, of a network that has one (`network.prefix` 1).

        Returns:
            {layer: (B, N, D)} float32, or (B, 1 + N, D) with the class token.

        Raises:
            ConfigError: the images are of another shape, type or range.
        """
        images = checked_images(images, self.image_shape)
        rng = self._draws(images, index) if self.noised else None
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.objective.tokens(images, layers, self.t, rng, class_token)
        return {layer: tokens.float() for layer, tokens in found.items()}

    def _draws(self, images: Tensor, index: Tensor | None) -> BatchGenerator:
        numbers = numbers_of(images) if index is None else index.tolist()
        return BatchGenerator([seed_of(self.seed, self.t, number) for number in numbers], images.device)


def numbers_of(images: Tensor) -> list[int]:
    """Return a 63-bit number for each image, a hash of its pixels on 256 levels.

    Args:
        images: (B, 3, H, W) in [0, 1].
    """
    pixels = (images.float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).contiguous().numpy()
    return [int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "big") >> 1 for image in pixels]


RANGE_SLACK = 1e-2  # how far a pixel may lie outside [0, 1]: resizing overshoots


def checked_images(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return images as float32 after checking shape, type and range.

    Args:
        images: (B, 3, H, W) floating point in [0, 1].
        shape: (3, H, W) that they must have.

    Raises:
        ConfigError: they are of another shape, type or range.
    """
    requested = ", ".join(map(str, shape))
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        size = f"this encoder takes images of {shape[1]} x {shape[2]} pixels and 3 channels"
        raise ConfigError("images", f"shape {tuple(images.shape)}", f"must have shape (B, {requested}): {size}")
    if not images.is_floating_point():
        raise ConfigError("images", str(images.dtype), "must be floating point in [0, 1]; divide bytes by 255")
    images = images.float()
    if not torch.compiler.is_compiling() and len(images):
        low, high = (float(x) for x in images.aminmax())
        if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
            raise ConfigError("images", f"{low:.4g} to {high:.4g}", "must be in [0, 1]: no standardisation, no bytes")
    return images


def load_encoder(
    run: Path | str, step: int | None = None, device: torch.device | str = "cpu", **settings: Any
) -> Encoder:
    """Load the encoder of a pretraining run, in eval mode; its `image_shape` names the images that it takes.

    Args:
        run: folder that pretraining wrote.
        step: which checkpoint; the newest if None.
        settings: `layer`, `t`, `noised`, `precision`, `seed` of Encoder.

    Example:
        >>> encoder = load_encoder("runs/ldae-digits/seed0")
        >>> features = encoder(images)     # (B, 3, H, W) in [0, 1] -> (B, D)
    """
    return Encoder(load_run(Path(run), step, device=device).objective, **settings)
