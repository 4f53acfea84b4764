"""Denoising with a second output, the pixels of the clean image: noise in the latent and MAE's target at once."""

from __future__ import annotations

from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import NonNegative
from ldae.denoisers.base import Network
from ldae.nn.patchify import normalised, patchify
from ldae.objectives.denoise import Criterion, Denoise, LossInputs, Parameterization, Process
from ldae.objectives.spaces import OutputSpace
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer


class DenoiseWithPixels(Denoise):
    """Denoise with a network that also predicts the clean image, each patch standardised by its own mean and deviation.

    The target of the pixels is MAE's (Sec. 3, "Reconstruction target", arXiv 2111.06377), here of noised patches: the
    part of the image that the latent drops has a loss too, and patches of low contrast count as much as others.
    Samplers use the first output alone.

    Args: as Denoise, and
        pixel_weight: factor of the mean squared error of the pixels.

    Raises:
        ConfigError: as Denoise; or the output is an image.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        process: Process,
        parameterization: Parameterization,
        criterion: Criterion,
        denoiser: Network,
        pixel_weight: NonNegative = 0.3,
    ):
        super().__init__(task, tokenizer, process, parameterization, criterion, denoiser)
        if not self.output.latent:
            message = "predicts pixels beside the latent; use output=latent, or objective=denoise"
            raise ConfigError("part", type(self).__name__, message)
        self.pixel_weight = pixel_weight
        self.channels, self.patch = self.output.shape[0], _patch(self.output)

    @staticmethod
    def output_channels(output: OutputSpace) -> int:
        """Return the number of channels of the network's output: d, and the pixels of a patch for each latent."""
        return output.shape[0] + 3 * _patch(output) ** 2

    def losses(self, out: Tensor, y: Tensor, given: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the mean squared error of standardised pixels to the loss."""
        losses, _ = super().losses(out, y, given)
        pixels = normalised(patchify(given.x0[:, :3], self.patch), dim=1)  # (B, 3 p^2, h, w)
        errors = ((out[:, self.channels :] - pixels) ** 2).flatten(1).mean(1)  # (B,)
        return losses + self.pixel_weight * errors, {"pixels": errors}

    def prediction(self, out: Tensor) -> Tensor:
        """Return the prediction of the target, the first d channels."""
        return out[:, : self.channels]


def _patch(output: OutputSpace) -> int:
    """Return the pixels along a side of a latent number."""
    return output.tokenizer.image_shape[1] // output.tokenizer.shape[1]
