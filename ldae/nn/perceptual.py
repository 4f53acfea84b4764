"""Distances between images in the features of a classifier (LPIPS, arXiv 1801.03924)."""

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
    """A frozen network whose features tell images apart. It carries the labels that it was trained on.

    Attributes:
        factor: of the distance in a tokenizer's loss.
        needs_training: whether it is trained on the data set's labels before it serves.
    """

    needs_training = False

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    @abstractmethod
    def stages(self, x: Tensor) -> list[Tensor]:
        """Features of images (B, 3, H, W) in [-1, 1] at several depths, each (B, C, h, w)."""

    @abstractmethod
    def stage_weights(self) -> Sequence[Tensor]:
        """For each stage how much each channel counts, (C,) >= 0."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two batches of images (B, 3, H, W) in [-1, 1] -> their distances (B,).

        Features of unit length along the channels, squared difference, weighted sum over channels, mean over
        places, sum over stages (Eq. 1, arXiv 1801.03924).
        """
        pairs = zip(self.stages(x), self.stages(y), self.stage_weights(), strict=True)
        return torch.stack([_distance(a, b, w) for a, b, w in pairs]).sum(0)


def _distance(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    a, b = (f.float() / (f.float().norm(dim=1, keepdim=True) + EPS) for f in (a, b))
    return ((a - b) ** 2 * weights.reshape(-1, 1, 1)).sum(1).mean((1, 2))  # (B,)


class LPIPS(Perceptual):
    """VGG16 with the published weights of its five stages.

    VGG16 is torchvision's state dict (vgg16-397923af.pth), the stages' weights are LPIPS' (vgg.pth, v0.1).

    Args:
        vgg: file of the former; in torch's cache if None.
        linear: file of the latter; the one that torchmetrics carries if None.
        factor: of the distance.

    Raises:
        ConfigError: a file is absent.
        CheckpointError: it holds something else.
    """

    ENDS = (4, 9, 16, 23, 30)  # layers of torchvision's vgg16().features after which a stage ends
    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, vgg: str | None = None, linear: str | None = None, factor: NonNegative = 1.0):
        super().__init__(factor)
        from torchvision.models import vgg16

        self.features = vgg16(weights=None).features
        weights = _read("vgg", _existing("vgg", vgg, _vgg_in_cache()))
        self._fill("vgg", {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")})
        stages = _read("linear", _existing("linear", linear, _linear_of_torchmetrics()))
        for i, value in enumerate(stages.values()):
            self.register_buffer(f"stage{i}", value.flatten())
        self.register_buffer("shift", torch.tensor(self.SHIFT).reshape(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(self.SCALE).reshape(-1, 1, 1))
        self.shift: Tensor
        self.scale: Tensor

    def _fill(self, key: str, weights: dict[str, Tensor]) -> None:
        try:
            self.features.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"{key}: the file does not hold torchvision's vgg16 ({first})") from None

    def stages(self, x: Tensor) -> list[Tensor]:
        x, found = (x - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i + 1 in self.ENDS:
                found.append(x)
        return found

    def stage_weights(self) -> Sequence[Tensor]:
        return [getattr(self, f"stage{i}") for i in range(len(self.ENDS))]


class Classifier(Perceptual):
    """A small VGG-style classifier, trained here on the data set's own labels: no weights from elsewhere.

    Stages of two convolutions (BatchNorm, ReLU), halved between them; global average; linear. Every channel of
    every stage counts alike; the distance is the mean over stages.

    Args:
        num_classes: how many labels there are.
        channels: of each stage.
        factor: of the distance.
    """

    needs_training = True

    def __init__(self, num_classes: Count, channels: list[Count], factor: NonNegative = 1.0):
        super().__init__(factor)
        self.blocks = nn.ModuleList(_vgg_stage(a, b) for a, b in pairwise([3, *channels]))
        self.head = nn.Linear(channels[-1], num_classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for block in self.blocks:
            x = block(F.max_pool2d(x, 2) if found else x)
            found.append(x)
        return found

    def stage_weights(self) -> Sequence[Tensor]:
        one = self.head.weight.new_ones(1)
        return [one / len(self.blocks)] * len(self.blocks)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D), what the last layer reads: the last stage's average over places."""
        return self.stages(x)[-1].mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, num_classes)."""
        return self.head(self.features(x))

    def described(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> features (B, D) and class probabilities (B, num_classes), in one pass."""
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


def _existing(key: str, given: str | None, default: Path) -> Path:
    path = Path(given).expanduser() if given else default
    if not path.is_file():
        raise ConfigError(
            key,
            given,
            f"leads to no file ({path}): give perceptual weights with this key or put them there, "
            "or train a classifier on the data's own labels (tokenizer=vqgan), or do without (tokenizer=kl_gan)",
        )
    return path


def _read(key: str, path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler meets in a damaged file
        raise CheckpointError(f"{key}: {path} cannot be read as weights ({type(error).__name__})") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{key}: {path} holds no named tensors")
    return found
