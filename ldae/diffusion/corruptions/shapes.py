"""Shapes of holes: random strokes and boxes, and the distance of every pixel to the middle of a shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ldae.core.types import BatchGenerator

VERTICES = 5  # of a stroke
BOXES = 2


def draw_strokes(count: int, n: int, rng: BatchGenerator) -> Tensor:
    """Draw a brush stroke for each image: a chain of four segments with round ends.

    Vertices are uniform over the image, each step at most 0.4 n; the stroke is 0.06 n to 0.16 n wide.

    Args:
        count: B.
        n: side of the images in pixels.

    Returns:
        (B, n, n) bool, true in the stroke.
    """
    u = rng.uniform((count, 2 * VERTICES + 1))  # (B, 11)
    steps = 0.8 * (u[:, 2 : 2 * VERTICES].reshape(count, VERTICES - 1, 2) - 0.5)
    vertices = torch.cat([u[:, None, :2], u[:, None, :2] + steps.cumsum(1)], 1)  # (B, V, 2)
    vertices = (n - 1) * (1 - (1 - vertices.remainder(2)).abs())  # reflected at the borders
    radius = n * (0.03 + 0.05 * u[:, -1])  # (B,)
    start, along = vertices[:, :-1, None], vertices.diff(dim=1)[:, :, None]  # (B, V - 1, 1, 2)
    offset = _pixels(n, u) - start  # (B, V - 1, n^2, 2)
    share = ((offset * along).sum(-1) / along.square().sum(-1).clamp(min=1e-6)).clamp(0, 1)
    distance = (offset - share[..., None] * along).norm(dim=-1).amin(1)  # (B, n^2)
    return (distance <= radius.clamp(min=0.5)[:, None]).reshape(count, n, n)


def draw_boxes(count: int, n: int, rng: BatchGenerator) -> Tensor:
    """Draw two boxes for each image, each side 0.15 n to 0.45 n, anywhere inside it.

    Args:
        count: B.
        n: side of the images in pixels.

    Returns:
        (B, n, n) bool, true in a box.
    """
    u = rng.uniform((count, 4 * BOXES)).reshape(count, BOXES, 1, 2, 2)
    side = n * (0.15 + 0.3 * u[..., 0])  # (B, boxes, 1, 2)
    corner = u[..., 1] * (n - side)
    pixels = _pixels(n, u) + 0.5  # (n^2, 2)
    inside = ((pixels > corner) & (pixels < corner + side)).all(-1).any(1)
    return inside.reshape(count, n, n)


# name -> (count, n, rng) -> (count, n, n) bool
SHAPES: Mapping[str, Callable[[int, int, BatchGenerator], Tensor]] = {"strokes": draw_strokes, "boxes": draw_boxes}


def distance_to_middle(shape: Tensor) -> Tensor:
    """Return r of every pixel, the distance to the middle of a shape, (B, n, n) float32 of (B, n, n) bool.

    A pixel of the shape has depth d, the distance to the nearest pixel outside; a pixel outside has depth 1 - d, d the
    distance to the nearest pixel of the shape. r = R - depth with the largest depth R: 0 in the middle, below R inside,
    R or more outside. r of a shape of one pixel is the distance to it, r of a disc that to its centre.
    """
    n = shape.shape[-1]
    outside = torch.nn.functional.pad(~shape, (1, 1, 1, 1), value=True)  # a shape ends at the border
    inner = squared_distance(outside)[:, 1:-1, 1:-1].sqrt()
    outer = squared_distance(shape).clamp(max=2 * n**2).sqrt()  # finite where there is no shape
    depth = torch.where(shape, inner, 1 - outer)
    return depth.amax((1, 2), keepdim=True) - depth


def squared_distance(shape: Tensor) -> Tensor:
    """Return the squared distance of every pixel to the nearest one of a shape, (B, n, n) float32 of bool.

    Exact, by minima over columns and then over rows (Felzenszwalb and Huttenlocher 2012); inf without a shape.
    """
    line = torch.arange(shape.shape[-1], device=shape.device, dtype=torch.float32)
    squares = (line[:, None] - line) ** 2  # (n, n)
    start = torch.where(shape, 0.0, torch.inf)
    # one image at a time: (n, n, n) numbers for each
    columns = [(squares[:, :, None] + x).amin(1) for x in start]
    return torch.stack([(x[:, None] + squares).amin(2) for x in columns])


def _pixels(n: int, like: Tensor) -> Tensor:
    """Return the positions of all pixels, (n^2, 2): row and column."""
    line = torch.arange(n, device=like.device, dtype=torch.float32)
    return torch.cartesian_prod(line, line)
