"""Masking of principal components instead of patches (PMAE, arXiv 2502.06314)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Fraction, NoiseLevel, expand
from ldae.diffusion.corruptions.base import Corruption, HasSpectrum, State


@dataclass(frozen=True)
class MaskedComponents(State):
    """State of ComponentMask.

    Attributes:
        mask: (B, d, h, w) or (B, d, 1, 1) bool, true where a component is masked.
        eps: (B, d, h, w) standard normal noise of the visible components; None without noise.
    """

    mask: Tensor
    eps: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """Return the mask: the loss is that of masked components."""
        return self.mask


class ComponentMask(Corruption):
    """Set random latent dimensions to their mean, 0; the loss is that of the masked ones.

    With `tokenizer=patch_pca` they are principal components of patches, with `tokenizer.patch` the size of the image
    those of whole images, as in PMAE (arXiv 2502.06314), whose network sees the image of the visible components
    (`input=image denoiser.patch=4`). The level counts with `noise` alone: the visible components are then noised too.

    Args:
        tokenizer: its d components are masked.
        ratio: masked fraction, of the variance or of the number of components; at least one is masked and one is not.
        by: `variance` masks components in random order until their variance reaches `ratio` of the sum.
        per: one mask for all patches of an `image`, or one for each `patch`.
        noise: add gamma_t, sigma_t noise to the visible components.

    Raises:
        ConfigError: there is only one component, or their variances are not known.
    """

    hides = True
    samplable = False

    def __init__(
        self,
        tokenizer: object,
        ratio: Fraction = 0.5,
        by: Literal["variance", "count"] = "variance",
        per: Literal["image", "patch"] = "image",
        noise: bool = False,
    ):
        name, d = type(tokenizer).__name__, getattr(tokenizer, "shape", (0,))[0]
        if d < 2:
            raise ConfigError("part", "ComponentMask", f"needs latents of two dimensions or more; {name} has {d}")
        if by == "variance" and not isinstance(tokenizer, HasSpectrum):
            raise ConfigError(
                "by", by, f"needs the variances of patch_pca or pixel; with {name} use corruption.by=count"
            )
        self.tokenizer, self.ratio, self.by, self.per, self.noise = tokenizer, ratio, by, per, noise

    def draw(self, x0: Tensor, rng: BatchGenerator) -> MaskedComponents:
        """Draw the masked components, and the noise of the others with `noise`."""
        B, d, h, w = x0.shape
        order = rng.uniform((B, d, *((h, w) if self.per == "patch" else (1, 1)))).argsort(1)  # (B, d, ...)
        share = self._shares(d, x0.device)[order]  # of each component in the order
        before = share.cumsum(1) - share
        masked = before < self.ratio - 1e-6  # in the order; the components that the ratio falls into are masked
        masked[:, 0], masked[:, -1] = True, False
        mask = torch.zeros_like(masked).scatter(1, order, masked)
        return MaskedComponents(mask, rng.normal(x0.shape) if self.noise else None)

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return latents with masked components 0, (B, d, h, w)."""
        assert isinstance(state, MaskedComponents)
        if state.eps is not None:
            x0 = expand(level.gamma, x0) * x0 + expand(level.sigma, x0) * state.eps
        return x0.masked_fill(state.mask, 0)

    def _shares(self, d: int, device: torch.device) -> Tensor:
        """Return the share of each component, (d,) float32 of sum 1: of the variance, or 1 / d."""
        if self.by == "count":
            return torch.full((d,), 1 / d, device=device)
        assert isinstance(self.tokenizer, HasSpectrum)
        spectrum = self.tokenizer.variances()
        total = spectrum.sum()
        return torch.where(total > 0, spectrum / total, 1 / d).float().to(device)
