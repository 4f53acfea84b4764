"""Input and output spaces of a denoiser: latent or image.

Steps 10 to 12 of arXiv 2401.14404 move them from the latent to the image, one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ldae.tokenizers.base import Tokenizer


class InputSpace(ABC):
    """Map from a latent to the network's input.

    Attributes:
        shape: (C, H, W) of the input.
        latent: the input is the latent itself.
    """

    latent = False

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the input."""

    @abstractmethod
    def view(self, z: Tensor) -> Tensor:
        """Return the network's input of a latent: (B, d, h, w) -> (B, C, H, W)."""


class LatentInput(InputSpace):
    """The latent itself (steps 0 to 9)."""

    latent = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (d, h, w)."""
        return self.tokenizer.shape

    def view(self, z: Tensor) -> Tensor:
        """Return the latent unchanged."""
        return z


class ImageInput(InputSpace):
    """The latent decoded to an image (step 10): the noise stays in the d dimensions of the latent."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (3, H, W)."""
        return self.tokenizer.image_shape

    def view(self, z: Tensor) -> Tensor:
        """Decode a latent: (B, d, h, w) -> (B, 3, H, W)."""
        return self.tokenizer.decode(z)


class OutputSpace(ABC):
    """Space of the clean signal that the network predicts.

    Attributes:
        shape: (C, H, W) of the prediction.
        latent: it is the space that the noise is added in.
    """

    latent = False

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the prediction: an image, unless a subclass says otherwise."""
        return self.tokenizer.image_shape

    @abstractmethod
    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        """Return the clean signal of an image (B, 3, H, W) and its latent (B, d, h, w)."""

    def to_image(self, clean: Tensor) -> Tensor:
        """Convert a clean signal of this space to an image, (B, 3, H, W), unclipped."""
        return clean

    def to_latent(self, clean: Tensor) -> Tensor:
        """Convert a clean signal of this space to a latent, (B, d, h, w)."""
        return self.tokenizer.encode(clean)


class LatentOutput(OutputSpace):
    """The clean latent (steps 0 to 10)."""

    latent = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (d, h, w)."""
        return self.tokenizer.shape

    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        """Return the latent."""
        return z0

    def to_image(self, clean: Tensor) -> Tensor:
        """Decode a latent."""
        return self.tokenizer.decode(clean)

    def to_latent(self, clean: Tensor) -> Tensor:
        """Return the latent unchanged."""
        return clean


class ProjectedOutput(OutputSpace):
    """The clean latent decoded to an image: the tokenizer's reconstruction (step 11)."""

    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        """Return the clean latent decoded to an image."""
        return self.tokenizer.decode(z0)


class OriginalOutput(OutputSpace):
    """The original image (step 12)."""

    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        """Return the image."""
        return x0
