"""Inception-v3's features, by torch-fidelity: what FID, KID and IS are defined on."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ldae.core.errors import CheckpointError, ConfigError
from ldae.metrics.distances import INCEPTION

FILE = "weights-inception-2015-12-05-6726825d.pth"
INSTEAD = "or score in the features of the suite's own classifier or encoder, which is then no FID and is not called so"


class Inception:
    """TensorFlow's Inception-v3 of 2015-12-05, its resizing included. Nothing is downloaded.

    Args:
        weights: torch-fidelity's file of its weights; in torch's cache (hub/checkpoints) if None.
        device: where it runs.

    Attributes:
        features: the name of its features (see ldae.metrics.distances).

    Raises:
        ConfigError: the file or torch-fidelity is absent.
        CheckpointError: the file holds something else.
    """

    features = INCEPTION

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        path = _existing(weights)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ConfigError(
                "inception", None, f"needs torch-fidelity: pip install 'ldae[fid]' (the extra fid), {INSTEAD}"
            ) from None
        try:
            network = FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], _safely(path))
        except Exception as error:  # whatever an unpickler meets in a damaged file
            raise CheckpointError(f"{path} does not hold Inception's weights ({type(error).__name__})") from None
        self.network, self.device = network.to(device), torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), clipped to [0, 1], rounded to 8 bits -> features (B, 2048), probabilities (B, 1008)."""
        pixels = (images.clamp(0, 1) * 255).round().to(self.device, torch.uint8)
        features, logits = self.network(pixels)
        return features, logits.softmax(1)


def _safely(path: Path) -> io.BytesIO:
    """A file's tensors as a file of our own: torch-fidelity unpickles whatever it is given, code included."""
    copy = io.BytesIO()
    torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
    copy.seek(0)
    return copy


def _existing(given: str | None) -> Path:
    path = Path(given).expanduser() if given else Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        raise ConfigError(
            "inception",
            given,
            f"leads to no file ({path}): give the path of torch-fidelity's {FILE} (release v0.2.0 there) "
            f"or put it into torch's cache at that place, {INSTEAD}",
        )
    return path
