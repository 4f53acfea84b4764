"""From a noise level to the vector that steers a network's LayerNorms."""

from __future__ import annotations

from torch import Tensor, nn

from ldae.nn.embeddings import sinusoid
from ldae.types import NoiseLevel


class LevelEmbedding(nn.Module):
    """Sinusoid of t, Linear; the SiLU and the second Linear are each block's adaLN.

    l-DAE makes the hidden width of this two-layer network a quarter of DiT's, D / 4 (App. A, arXiv
    2401.14404): 1.5 D^2 + 6 D parameters in each block's adaLN. The paper does not say whether the first
    layer is one for all blocks; here it is.

    Args:
        width: of the returned vector.
        frequencies: width of the sinusoid.
    """

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.linear = nn.Linear(frequencies, width)

    def forward(self, level: NoiseLevel) -> Tensor:
        """(B,) levels -> (B, width)."""
        return self.linear(sinusoid(level.t, self.frequencies))
