"""The space that the network sees and the space that it answers in: latent or image.

Steps 10 to 12 of arXiv 2401.14404 move them from the latent to the image, one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ldae.tokenizers.base import Tokenizer


class InputSpace(ABC):
    """What the network is shown of a latent.

    Attributes:
        shape: (C, H, W) of what it is shown.
        latent: whether it is the latent itself.
    """

    latent = False

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]: ...

    @abstractmethod
    def view(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, C, H, W)."""


class LatentInput(InputSpace):
    """The latent itself (steps 0 to 9)."""

    latent = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.tokenizer.shape

    def view(self, z: Tensor) -> Tensor:
        return z


class ImageInput(InputSpace):
    """The latent inverted into image space (step 10): the noise stays in the latent's d dimensions."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.tokenizer.image_shape

    def view(self, z: Tensor) -> Tensor:
        return self.tokenizer.decode(z)


class OutputSpace(ABC):
    """What counts as clean, and how an answer becomes an image.

    Attributes:
        shape: (C, H, W) of the prediction.
        latent: whether it is the space that the noise was added in.
    """

    latent = False

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.tokenizer.image_shape

    @abstractmethod
    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        """The clean signal, given the image (B, 3, H, W) and its latent (B, d, h, w)."""

    def to_image(self, clean: Tensor) -> Tensor:
        """A clean signal of this space as an image, (B, 3, H, W), unclipped."""
        return clean

    def to_latent(self, clean: Tensor) -> Tensor:
        """A clean signal of this space as a latent, (B, d, h, w)."""
        return self.tokenizer.encode(clean)


class LatentOutput(OutputSpace):
    """The clean latent (steps 0 to 10)."""

    latent = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.tokenizer.shape

    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        return z0

    def to_image(self, clean: Tensor) -> Tensor:
        return self.tokenizer.decode(clean)

    def to_latent(self, clean: Tensor) -> Tensor:
        return clean


class ProjectedOutput(OutputSpace):
    """The clean latent inverted into image space: the image less what the tokenizer lost (step 11)."""

    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        return self.tokenizer.decode(z0)


class OriginalOutput(OutputSpace):
    """The original image (step 12)."""

    def clean(self, x0: Tensor, z0: Tensor) -> Tensor:
        return x0
