"""Streamed mean and covariance of patches, in exact integer arithmetic for 8-bit images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

ROWS = 65536  # per product: sums of this many int8 products stay below 2^30
FLOAT_ROWS = 1024  # per product in float32, which adds whole numbers up to 2^24 exactly: 1024 products of int8
AT_ONCE = 1 << 17  # numbers per chunk, so that intermediate results stay in a core's cache
FEWEST = 32  # rows of the smallest matrix that torch multiplies as int8
COLUMNS = 256  # of a block of the symmetric product, whose lower blocks are copies


@dataclass
class Sums:
    """Sums over rows r less a fixed shift, in units of 1 / `scale`.

    Attributes:
        shift: (D,) or () in the rows' own units, float64.
        scale: factor that the rows were multiplied by.
        count: number of rows.
        total, outer: sum of the rows (D,) and of their outer products (D, D), float64.
    """

    shift: Tensor
    scale: float
    count: int
    total: Tensor
    outer: Tensor

    @property
    def mean(self) -> Tensor:
        """Return the mean of the rows, (D,) float64."""
        return self.shift + self.total / (self.count * self.scale)

    @property
    def scatter(self) -> Tensor:
        """Return the sum of outer products about the mean, (D, D) float64."""
        return (self.outer - torch.outer(self.total, self.total) / self.count) / self.scale**2


class PatchMoments:
    """Streamed sums over patches, in constant memory.

    8-bit pixels are integers k in 0..255 at x = 2 k / 255 - 1. On a CPU the products of k - 128 are summed exactly, so
    that every CPU gives the same bits: as int8 on CPUs with VNNI, several times as fast, else in float32. Other numbers
    are summed in float64 about the first batch's mean, against cancellation. Images given as uint8 k have the sums of
    x = 2 k / 255 - 1, without the conversion.

    Args:
        size: D, numbers of a patch.
        rows: images (B, ...) -> their patches (n, D), of the same dtype.
    """

    def __init__(self, size: int, rows: Callable[[Tensor], Tensor]):
        self.size, self.rows, self.parts = size, rows, dict[str, Sums]()

    def add(self, images: Tensor) -> None:
        """Add images (B, ...): float32 in [-1, 1], or uint8 levels k of x = 2 k / 255 - 1."""
        if images.device.type == "cpu":
            levels = images if images.dtype == torch.uint8 else whole_levels(images)
        else:
            images, levels = (2 * (images.float() / 255) - 1 if images.dtype == torch.uint8 else images), None
        for part in self.rows(images if levels is None else levels).split(ROWS):
            if levels is None:
                self._add_floats(part.cpu().double() if part.device.type == "mps" else part.double())
            else:
                self._add_levels(part.bitwise_xor(128).view(torch.int8) if part.dtype == torch.uint8 else part)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean (D,) and covariance (D, D), float64."""
        parts = list(self.parts.values())
        count = sum(part.count for part in parts)
        assert count, "no images to fit on"
        mean = sum((part.mean * part.count for part in parts), torch.zeros(self.size).double()) / count
        apart = [part.count * torch.outer(part.mean - mean, part.mean - mean) for part in parts]
        scatter = sum((part.scatter for part in parts), torch.zeros(self.size, self.size).double())
        return mean, (scatter + sum(apart, torch.zeros_like(scatter))) / count

    def _sums(self, key: str, shift: Tensor, scale: float) -> Sums:
        if key not in self.parts:
            zeros = torch.zeros(self.size, self.size, dtype=torch.float64)
            self.parts[key] = Sums(shift, scale, 0, zeros[0].clone(), zeros)
        return self.parts[key]

    def _add_floats(self, rows: Tensor) -> None:
        sums = self._sums("floats", rows.mean(0).cpu(), 1.0)
        rows = rows - sums.shift.to(rows.device)
        sums.count += len(rows)
        sums.total += rows.sum(0).cpu()
        sums.outer += (rows.T @ rows).cpu()

    def _add_levels(self, levels: Tensor) -> None:
        sums = self._sums("levels", torch.tensor(2 * 128 / 255 - 1, dtype=torch.float64), 127.5)
        sums.count += len(levels)
        as_int8 = multiplies_int8()
        product: Callable[[Tensor, Tensor], Tensor] = torch._int_mm if as_int8 else _float_product
        for piece in [levels] if as_int8 else levels.split(FLOAT_ROWS):
            rows = piece if as_int8 else piece.float()
            ones = torch.ones(FEWEST, len(rows), dtype=rows.dtype)
            sums.total += product(ones, rows)[0]  # a sum along columns of bytes takes longer
            for start, stop in pairwise([*range(0, max(1, self.size - FEWEST), COLUMNS), self.size]):
                block = product(rows.T[start:stop], rows[:, start:])
                sums.outer[start:stop, start:] += block
                sums.outer[stop:, start:stop] += block[:, stop - start :].T


def _float_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b in float32, under autocast too, whose products would be rounded to bf16."""
    with torch.autocast("cpu", enabled=False):
        return a @ b


def whole_levels(x: Tensor) -> Tensor | None:
    """Return k - 128 as int8 if every number of x, (B, ...), is 2 k / 255 - 1 with k in 0..255; else None."""
    levels = torch.empty(x.shape, dtype=torch.int8)
    half = torch.tensor(127.5)
    for part, out in zip(x.flatten().split(AT_ONCE), levels.flatten().split(AT_ONCE), strict=True):
        k = torch.add(half, part, alpha=127.5).round_()
        low, high = k.aminmax()
        if low < 0 or high > 255 or not torch.equal(k.div(127.5).sub_(1), part):
            return None
        out.copy_(k.sub_(128))
    return levels


@cache
def multiplies_int8() -> bool:
    """Return whether this CPU has instructions for products of int8, and torch's sums of them are exact.

    Without those instructions, or where a limit on oneDNN's instruction set (`ONEDNN_MAX_CPU_ISA`) keeps them from
    being used, pairs of products saturate at 16 bits. The processor's flags do not report the limit, so a product is
    tested.
    """
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return False
    extreme = torch.tensor([-128, 127], dtype=torch.int8).repeat_interleave(FEWEST).repeat(2 * FEWEST, 1)
    rows = torch.cat([extreme, -1 - extreme])  # (4 * FEWEST, 2 * FEWEST), every pair of signs
    return torch.equal(torch._int_mm(rows.T, rows).double(), rows.T.double() @ rows.double())
