"""Features of Inception-v3 by torch-fidelity, in which FID, KID and IS are defined."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ldae.core.errors import CheckpointError, ConfigError
from ldae.metrics.distances import INCEPTION

FILE = "weights-inception-2015-12-05-6726825d.pth"
ALTERNATIVE = "or use features=classifier or features=RUN, the folder of a run, in which the distance is not called FID"


class Inception:
    """TensorFlow's Inception-v3 of 2015-12-05, including its resizing. Nothing is downloaded.

    Args:
        weights: torch-fidelity's file of the weights; the one in torch's cache (hub/checkpoints) if None.
        device: device of the network.

    Attributes:
        features: name of the features (see ldae.metrics.distances).

    Raises:
        ConfigError: the file or torch-fidelity is absent.
        CheckpointError: the file has other content.
    """

    features = INCEPTION

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        path = _resolve_file(weights)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ConfigError(
                "features", "inception", f"needs torch-fidelity: pip install 'ldae[fid]' (the extra fid), {ALTERNATIVE}"
            ) from None
        try:
            network = FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], _load_safely(path))
        except Exception as error:  # the unpickler raises many types on a damaged file
            raise CheckpointError(f"{path} does not hold Inception's weights ({type(error).__name__})") from None
        self.network, self.device = network.to(device), torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 2048) and class probabilities (B, 1008) of images (B, 3, H, W), clipped to [0, 1]."""
        pixels = (images.clamp(0, 1) * 255).round().to(self.device, torch.uint8)
        features, logits = self.network(pixels)
        return features, logits.softmax(1)


def _load_safely(path: Path) -> io.BytesIO:
    """Return a new file with the tensors of a file, since torch-fidelity would execute code in a pickle."""
    copy = io.BytesIO()
    torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
    copy.seek(0)
    return copy


def _resolve_file(value: str | None) -> Path:
    path = Path(value).expanduser() if value else Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        message = f"needs weights that are not there: put torch-fidelity's {FILE} (of its release v0.2.0) at {path}"
        raise ConfigError("features", "inception", f"{message}, {ALTERNATIVE}")
    return path
