"""Load encoders and denoisers of pretraining runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldae.config.build import Parts
from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.files import read_sealed_json
from ldae.core.rng import seed_of
from ldae.core.types import BatchGenerator
from ldae.core.version import check_version
from ldae.engine.checkpoint import ATTEMPTS, Checkpoint, checkpoint_folder, list_checkpoints, newest, verify
from ldae.nn.attention import Attention
from ldae.objectives.base import PretrainingObjective
from ldae.tokenizers.base import load_tokenizer

TOKENIZER_FILE = "tokenizer.safetensors"
MODEL = "model"
DEFAULT_TIMESTEP = 10  # default step of the noise level of an encoder

# folder of an experiment's config -> name of its encoder; other folders (deconstruct, ablate) use the file's name
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
    """Objective of a run with the weights of a checkpoint.

    Attributes:
        objective: objective with its tokenizer, if any, and its trained (or untrained) network.
        checkpoint: checkpoint of the weights.
        config: resolved config of the run.
    """

    objective: PretrainingObjective
    checkpoint: Checkpoint
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the encoder in tables, that of its experiment."""
        family, _, experiment = str(self.config.get("experiment") or type(self.objective).__name__).partition("/")
        return FAMILIES.get(family, experiment or family)

    def untrained(self) -> Run:
        """Return the run with the initial weights of its network, as `load_run` does with "untrained"; read no file."""
        objective = _initial_objective(self.config, self.checkpoint.path)
        if objective.tokenizer is not None and self.objective.tokenizer is not None:
            objective.tokenizer.load_state_dict(self.objective.tokenizer.state_dict())
        device = next(self.objective.parameters()).device
        return Run(_freeze(_undo_zero_init(objective), device), self.checkpoint, self.config)


def find_checkpoint(run: Path, step: int | None = None) -> Checkpoint:
    """Find and verify a checkpoint of a run, read-only; the newest unless a step is given.

    Raises:
        CheckpointError: the run has none, or it is damaged.
    """
    root = run / "checkpoints"
    if not run.is_dir():
        raise CheckpointError(f"run={run} does not exist; give the folder that pretraining wrote (out=)")
    if step is not None:
        if not checkpoint_folder(root, step).exists():
            steps = ", ".join(str(int(path.name.rpartition("-")[2])) for path in list_checkpoints(root)) or "none"
            raise CheckpointError(f"run={run} has no checkpoint of step={step}; it has: {steps}")
        return verify(checkpoint_folder(root, step))
    checkpoint = newest(root, set_aside=False)
    if checkpoint is None:
        raise CheckpointError(f"run={run} has no checkpoint; is it the folder that pretraining wrote (out=)?")
    return checkpoint


def load_run(
    run: Path,
    step: int | None = None,
    weights: Literal["ema", "model", "untrained"] = "ema",
    device: torch.device | str = "cpu",
) -> Run:
    """Build a run's objective and load a verified checkpoint.

    Args:
        run: folder that pretraining wrote.
        step: step of the checkpoint; the newest if None.
        weights: averaged weights, those of the last step, or untrained ones: the initial weights, with random ones in
            place of zeros.
        device: device of the objective.

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
            continue  # the run is still training, and removed it in the meantime
        return _build_run(run, checkpoint, tensors, device)
    raise CheckpointError(f"run={run} replaces its checkpoints faster than they are read; give step=, or wait")


def _build_run(
    run: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor] | None, device: torch.device | str
) -> Run:
    """Build the objective of a run and load the tensors of its checkpoint; None leaves it untrained."""
    config = checkpoint.manifest["config"]
    check_version(config, f"run={run}")
    objective = build_untrained(config, run, checkpoint.manifest["tokenizer"])
    if tensors is None:
        _undo_zero_init(objective)
    else:
        named = {k[len(MODEL) + 1 :]: v for k, v in tensors.items()}
        missing, unexpected = objective.network.load_state_dict(named, strict=False)
        if missing or unexpected:
            raise CheckpointError(f"{checkpoint.path} is of another network: {sorted(missing + unexpected)[:4]}")
    return Run(_freeze(objective, device), checkpoint, config)


def _undo_zero_init(objective: PretrainingObjective) -> PretrainingObjective:
    """Draw the zero-initialised weights: with them the network is the identity, too weak a baseline."""
    objective.network.undo_zero_init()
    return objective


def _freeze(objective: PretrainingObjective, device: torch.device | str) -> PretrainingObjective:
    return objective.requires_grad_(False).eval().to(device)


def build_untrained(config: Mapping[str, Any], run: Path, tokenizer: str | None) -> PretrainingObjective:
    """Build a run's objective with its initial weights.

    Args:
        config: resolved config of the run.
        run: folder of the run, with the tokenizer's file.
        tokenizer: SHA-256 of that file; None where there is none.

    Raises:
        CheckpointError: the objective has no encoder, or the file is another one.
    """
    objective = _initial_objective(config, run)
    if objective.tokenizer is not None:
        load_tokenizer(run / TOKENIZER_FILE, objective.tokenizer, tokenizer)
    return objective


def _initial_objective(config: Mapping[str, Any], run: Path) -> PretrainingObjective:
    """Build a run's objective with the initial weights of pretraining, its tokenizer unfitted.

    Raises:
        CheckpointError: the objective has no encoder.
    """
    torch.manual_seed(seed_of(config["seed"]))  # as in pretraining
    objective = Parts(config).objective
    if not isinstance(objective, PretrainingObjective):
        raise CheckpointError(f"run={run} has no encoder to read: {config['objective']['part']}")
    return objective


def default_timestep(objective: PretrainingObjective) -> int:
    """Return the default step of an encoder: 10 (little noise), or the last if there are fewer."""
    return min(DEFAULT_TIMESTEP, objective.T - 1)


class Encoder(nn.Module):
    """Map from images to features: normalisation, tokenizer, noise level, network and pooling; in eval mode.

    The noise of a noised input is a function of (seed, t, image number): the features of an image do not depend on its
    batch, and different images have different noise.

    Args:
        objective: trained objective with its tokenizer, if any.
        layer: layer whose tokens are averaged; the network's encoder_layer if None.
        t: diffusion step that the network is conditioned on; `default_timestep` if None.
        noised: add noise of that step to the input.
        precision: precision of the network's matrix products.
        seed: seed of the noise.

    Attributes:
        image_shape: (3, H, W) of the input images.

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
        self.t = default_timestep(objective) if t is None else t
        self.noised, self.precision, self.seed = noised, precision, seed
        if self.layer not in self.network.layers:
            raise ConfigError("layer", self.layer, f"is not one of the network's layers 1..{len(self.network.layers)}")
        objective.check_readable(self.t, noised)
        self.image_shape = objective.image_shape
        self.eval()

    @property
    def attention(self) -> dict[int, Attention]:
        """Return the attention of each layer of a transformer; empty for another network."""
        blocks: Sequence[Any] = getattr(self.network, "blocks", ())
        return {layer: block.attn for layer, block in zip(self.network.layers, blocks, strict=False)}

    def extra_repr(self) -> str:
        """Return the input shape and the settings, for repr."""
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
            layers: layers to read, from 1.
            index: (B,) int64 image numbers, unique over all splits, which seed the noise. If None, hashes of the
                pixels: equal images then have equal noise.
            class_token: put the class token first, if the network has one (`network.prefix` 1).

        Returns:
            {layer: (B, N, D)} float32, or (B, 1 + N, D) with the class token.

        Raises:
            ConfigError: the images are of another shape, type or range.
        """
        images = check_images(images, self.image_shape)
        rng = self._rng(images, index) if self.noised else None
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            outputs = self.objective.tokens(images, layers, self.t, rng, class_token)
        return {layer: tokens.float() for layer, tokens in outputs.items()}

    def _rng(self, images: Tensor, index: Tensor | None) -> BatchGenerator:
        numbers = hash_images(images) if index is None else index.tolist()
        return BatchGenerator([seed_of(self.seed, self.t, number) for number in numbers], images.device)


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and buffers with their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_images(images: Tensor) -> list[int]:
    """Return a 63-bit number for each image, a hash of its pixels on 256 levels.

    Args:
        images: (B, 3, H, W) in [0, 1].
    """
    pixels = (images.float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).contiguous().numpy()
    return [int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "big") >> 1 for image in pixels]


RANGE_SLACK = 1e-2  # tolerance of the range [0, 1], for overshoots of bicubic resizing


def check_images(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return images as float32 after checking shape, type and range.

    Args:
        images: (B, 3, H, W) floating point in [0, 1].
        shape: (3, H, W) that they must have.

    Raises:
        ConfigError: they are of another shape, type or range.
    """
    expected = ", ".join(map(str, shape))
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        size = f"this encoder takes images of {shape[1]} x {shape[2]} pixels and 3 channels"
        raise ConfigError("images", f"shape {tuple(images.shape)}", f"must have shape (B, {expected}): {size}")
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
    """Load the encoder of a pretraining run, in eval mode.

    Args:
        run: folder that pretraining wrote.
        step: step of the checkpoint; the newest if None.
        device: device of the encoder.
        settings: `layer`, `t`, `noised`, `precision`, `seed` of Encoder.

    Example:
        >>> encoder = load_encoder("runs/ldae-digits/seed0")
        >>> features = encoder(images)     # (B, 3, H, W) in [0, 1] -> (B, D)
    """
    return Encoder(load_run(Path(run), step, device=device).objective, **settings)
