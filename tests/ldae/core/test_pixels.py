"""8-bit pixels as what networks take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldae.core.pixels import to_floats


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 5, 7, 3), (2, 5, 7, 1)])
def test_channels_come_first_in_memory_too(shape):
    """Convolutions round by layout on some processors, so that equal images have to be laid out equally."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    floats = to_floats(pixels)
    assert floats.is_contiguous()
    assert torch.equal(to_floats(torch.from_numpy(pixels)), floats)
    assert floats.dtype == torch.float32
    assert np.array_equal((255 * floats).round().movedim(-3, -1).numpy(), pixels)
