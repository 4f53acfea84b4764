"""Denoising with a learned variance of the step back: improved DDPM (arXiv 2102.09672) and DiT (arXiv 2212.09748)."""

from __future__ import annotations

from torch import Tensor

from ldae.denoisers.base import Network
from ldae.diffusion.variance import LearnedRange
from ldae.objectives.denoise import Criterion, Denoise, LossInputs, Parameterization, Process
from ldae.objectives.spaces import OutputSpace
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer


class DenoiseWithVariance(Denoise):
    """Denoise with a network that predicts the target and the variance of the reverse step.

    Args: as Denoise, and
        alone: use the variational bound as the whole loss (L_vlb, Sec. 3.3, arXiv 2102.09672).

    Raises:
        ConfigError: as Denoise; or the schedule has no posterior, or the output is an image.
    """

    learns_variance = True

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        process: Process,
        parameterization: Parameterization,
        criterion: Criterion,
        denoiser: Network,
        alone: bool = False,
    ):
        super().__init__(task, tokenizer, process, parameterization, criterion, denoiser)
        self.variance = LearnedRange(self.schedule, self.target, alone)
        self.check_noise("part", type(self).__name__)

    @staticmethod
    def output_channels(output: OutputSpace) -> int:
        """Return the number of channels of the network's output: the prediction's, twice."""
        return 2 * output.shape[0]

    def losses(self, out: Tensor, y: Tensor, given: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the variational bound to the loss (Eq. 16, arXiv 2102.09672)."""
        bound = self.variance.bound(out, given.z0, given.z_t, given.level)  # (B,)
        losses, _ = super().losses(out, y, given)
        return losses + bound, {"vb": bound}

    def prediction(self, out: Tensor) -> Tensor:
        """Return the first half of the channels."""
        return self.variance.prediction(out)

    def interpolation(self, out: Tensor) -> Tensor:
        """Return (v + 1) / 2 of the second half of the channels."""
        return self.variance.interpolation(out)
