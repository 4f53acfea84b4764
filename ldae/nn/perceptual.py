"""Perceptual distances between images: LPIPS (arXiv 1801.03924), and the same formula for a small classifier."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.types import Count, NonNegative

EPS = 1e-10


class Perceptual(nn.Module, ABC):
    """Base class of perceptual distances: a frozen network with features at several depths.

    Attributes:
        factor: weight of the distance in a tokenizer's loss.
        needs_training: whether it is trained on the data set's labels before use.
    """

    needs_training = False

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    @abstractmethod
    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the features of images (B, 3, H, W) in [-1, 1] at several depths, each (B, C, h, w)."""

    @abstractmethod
    def stage_weights(self) -> Sequence[Tensor]:
        """Return the weight of each channel of each stage, (C,) >= 0."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances, (B,), between two batches of images (B, 3, H, W) in [-1, 1].

        Features have unit length along the channels; the squared difference is summed over channels with weights,
        averaged over pixels, and summed over stages (Eq. 1, arXiv 1801.03924).
        """
        pairs = zip(self.stages(x), self.stages(y), self.stage_weights(), strict=True)
        return torch.stack([_distance(a, b, w) for a, b, w in pairs]).sum(0)


def _distance(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    a, b = (f.float() / (f.float().norm(dim=1, keepdim=True) + EPS) for f in (a, b))
    return ((a - b) ** 2 * weights.reshape(-1, 1, 1)).sum(1).mean((1, 2))  # (B,)


class LPIPS(Perceptual):
    """LPIPS with VGG16 and the published weights of its five stages.

    VGG16 is torchvision's state dict (vgg16-397923af.pth); the weights of the stages are from LPIPS (vgg.pth, v0.1).

    Args:
        vgg: file of VGG16; the one in torch's cache if None.
        linear: file of the weights of the stages; the one in torchmetrics if None.
        factor: weight of the distance.

    Raises:
        ConfigError: a file is absent.
        CheckpointError: a file has other content.
    """

    ENDS = (4, 9, 16, 23, 30)  # number of layers of torchvision's vgg16().features up to the end of each stage
    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, vgg: str | None = None, linear: str | None = None, factor: NonNegative = 1.0):
        super().__init__(factor)
        from torchvision.models import vgg16

        self.features = vgg16(weights=None).features
        weights = _read("vgg", _resolve_file("vgg", vgg, _vgg_in_cache()))
        features = {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
        try:
            self.features.load_state_dict(features)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"vgg: the file does not hold torchvision's vgg16 ({first})") from None
        stages = _read("linear", _resolve_file("linear", linear, _linear_of_torchmetrics()))
        for i, value in enumerate(stages.values()):
            self.register_buffer(f"stage{i}", value.flatten())
        self.register_buffer("shift", torch.tensor(self.SHIFT).reshape(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(self.SCALE).reshape(-1, 1, 1))
        self.shift: Tensor
        self.scale: Tensor

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the VGG features of images (B, 3, H, W) in [-1, 1], five of (B, C, h, w)."""
        x, features = (x - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i + 1 in self.ENDS:
                features.append(x)
        return features

    def stage_weights(self) -> Sequence[Tensor]:
        """Return LPIPS' learned channel weights of each stage, (C,)."""
        return [getattr(self, f"stage{i}") for i in range(len(self.ENDS))]


class Classifier(Perceptual):
    """Small VGG-style classifier that is trained on the data set's labels and needs no published weights.

    Stages of two convolutions (BatchNorm, ReLU) with max pooling between them, global average pooling, linear layer.
    All channels and stages have the same weight; the distance is the mean over stages.

    Args:
        num_classes: number of classes.
        channels: channels of each stage.
        factor: weight of the distance.
    """

    needs_training = True

    def __init__(self, num_classes: Count, channels: list[Count], factor: NonNegative = 1.0):
        super().__init__(factor)
        self.blocks = nn.ModuleList(_vgg_stage(a, b) for a, b in pairwise([3, *channels]))
        self.head = nn.Linear(channels[-1], num_classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the output of every block for images (B, 3, H, W) in [-1, 1], each (B, C, h, w)."""
        features: list[Tensor] = []
        for block in self.blocks:
            x = block(F.max_pool2d(x, 2) if features else x)
            features.append(x)
        return features

    def stage_weights(self) -> Sequence[Tensor]:
        """Return the equal weight of each stage, (1,)."""
        one = self.head.weight.new_ones(1)
        return [one / len(self.blocks)] * len(self.blocks)

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the last layer, the mean of the last stage over pixels: (B, 3, H, W) -> (B, D)."""
        return self.stages(x)[-1].mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """Return class logits, (B, 3, H, W) in [-1, 1] -> (B, num_classes)."""
        return self.head(self.features(x))

    def features_and_probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, D) and class probabilities (B, num_classes) of images (B, 3, H, W) in [-1, 1]."""
        features = self.features(x)
        return features, self.head(features).softmax(1)


def _vgg_stage(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels, out):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


def _vgg_in_cache() -> Path:
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / "vgg16-397923af.pth"


def _linear_of_torchmetrics() -> Path:
    spec = find_spec("torchmetrics")
    root = Path(spec.origin).parent if spec and spec.origin else Path("torchmetrics")
    return root / "functional" / "image" / "lpips_models" / "vgg.pth"


def _resolve_file(key: str, value: str | None, default: Path) -> Path:
    path = Path(value).expanduser() if value else default
    if not path.is_file():
        raise ConfigError(
            key,
            value,
            f"leads to no file ({path}): give perceptual weights with this key or put them there, "
            "or train a classifier on the data's own labels (tokenizer=vqgan), or do without (tokenizer=kl_gan)",
        )
    return path


def _read(key: str, path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types on a damaged file
        raise CheckpointError(f"{key}: {path} cannot be read as weights ({type(error).__name__})") from None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{key}: {path} holds no named tensors")
    return weights
