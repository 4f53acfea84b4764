"""Convert images between arrays, tensors, PIL pictures and files, for the Python API of generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldae.app.sampling.images import MAX_PIXELS, files_of
from ldae.core.errors import DataError
from ldae.core.pixels import to_floats
from ldae.core.types import Batch
from ldae.data.decode import BadImage, centre_crop, read_rgb
from ldae.objectives.panels import to_rgb

# uint8 (N, H, W, 3) or (H, W, 3); float (N, 3, H, W) in [0, 1]; PIL; the path of a picture or of a folder
Images: TypeAlias = np.ndarray | Tensor | Image.Image | Sequence[Any] | str | Path
Output: TypeAlias = Literal["numpy", "pil", "tensor"]
OUTPUTS: tuple[Output, ...] = ("numpy", "pil", "tensor")
ACCEPTED = "give uint8 arrays (N, H, W, 3), tensors (N, 3, H, W) in [0, 1], PIL pictures, or a path"


class Pictures:
    """Guides and masks of a set of images, one for all or one for each.

    Args:
        count: number of images.
        guide: (1 or count, 3, H, W) in [0, 1], or None.
        keep: (1 or count, 3, H, W) in [0, 1], or None.

    Raises:
        DataError: there are neither one nor `count`.
    """

    def __init__(self, count: int, guide: Tensor | None, keep: Tensor | None):
        for key, images in (("guide", guide), ("keep", keep)):
            if images is not None and len(images) not in (1, count):
                raise DataError(f"{key} has {len(images)} pictures for {count} images; give 1 or {count}")
        self.given = guide, keep

    def __call__(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Return the guides and the masks of a batch."""
        guide, keep = (None if x is None else self._rows(x, batch) for x in self.given)
        return guide, keep

    @staticmethod
    def _rows(images: Tensor, batch: Batch) -> Tensor:
        rows = images.to(batch.images.device)
        return rows.expand(len(batch), -1, -1, -1) if len(rows) == 1 else rows[batch.index]


def images_of(key: str, images: Images, size: int | None) -> Tensor:
    """Return images as (N, 3, H, W) in [0, 1], multiples of 1/255.

    Args:
        key: name of the argument, for messages.
        images: in any of the accepted forms.
        size: side of the centre crops in pixels; None leaves the images as they are, all of one size.

    Raises:
        DataError: they are of another form or range, there is none, or their sizes differ.
    """
    pictures = [picture if size is None else centre_crop(picture, size) for picture in _pictures(key, images)]
    if not pictures:
        raise DataError(f"{key} holds no image; {ACCEPTED}")
    if len(sizes := {picture.size for picture in pictures}) > 1:
        raise DataError(f"{key} holds images of several sizes ({min(sizes)}, {max(sizes)}); give one size")
    return to_floats(np.stack([np.asarray(picture) for picture in pictures]))


def masks_of(key: str, masks: Images, size: int) -> Tensor:
    """Return masks as (N, 3, size, size) in [0, 1].

    Args:
        key: name of the argument, for messages.
        masks: as images, or (N, H, W) and (H, W) arrays or tensors of bool, or of 0 to 255.
        size: side of the centre crops in pixels.

    Raises:
        DataError: as images_of.
    """
    if isinstance(masks, Tensor):
        masks = masks.movedim(1, -1).expand(-1, -1, -1, 3) if masks.ndim == 4 else masks
        masks = masks.cpu().numpy()
        masks = (masks * 255).round() if masks.dtype.kind == "f" and masks.max(initial=0) <= 1 else masks
    if isinstance(masks, np.ndarray):
        masks = masks.astype(np.uint8) * 255 if masks.dtype == bool else masks.astype(np.uint8)
        masks = np.repeat(masks[..., None], 3, -1) if masks.ndim == 2 or masks.shape[-1] not in (1, 3) else masks
    return images_of(key, masks, size)


def as_output(images: Tensor, output: Output) -> Any:
    """Convert images (N, C, H, W) in [0, 1].

    Returns:
        uint8 (N, H, W, C) for "numpy", a list of PIL pictures for "pil" (masks of several classes painted), the tensor
        for "tensor".

    """
    if output == "tensor":
        return images
    shown = to_rgb(images) if output == "pil" and images.shape[1] != 1 else images
    pixels = (shown * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return pixels if output == "numpy" else [Image.fromarray(x if x.shape[-1] == 3 else x[..., 0]) for x in pixels]


def _pictures(key: str, images: Images) -> list[Image.Image]:
    """Return images as RGB pictures.

    Raises:
        DataError: their form or range is another.
    """
    if isinstance(images, (str, Path)):
        return [_read(path) for path in files_of(key, str(images))]
    if isinstance(images, Image.Image):
        return [images.convert("RGBA" if images.mode in ("P", "PA") else "RGB").convert("RGB")]
    if isinstance(images, Tensor):
        return _pictures(key, _array_of(key, images))
    if isinstance(images, np.ndarray):
        array = images[None] if images.ndim == 3 else images
        if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
            raise DataError(f"{key} is an array {images.shape} of {images.dtype}; {ACCEPTED}")
        return [Image.fromarray(image) for image in array]
    if isinstance(images, Sequence):
        return [picture for one in images for picture in _pictures(key, one)]
    raise DataError(f"{key} is of {type(images).__name__}; {ACCEPTED}")


def _array_of(key: str, images: Tensor) -> np.ndarray:
    """Return a tensor (N, 3, H, W) or (3, H, W) as uint8 (N, H, W, 3).

    Raises:
        DataError: its shape or range is another.
    """
    x = images.detach().cpu()
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] != 3:
        raise DataError(f"{key} is a tensor {tuple(images.shape)}; {ACCEPTED}")
    if x.dtype != torch.uint8:
        if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
            low, high = (float(v) for v in (x.min(), x.max()))
            raise DataError(f"{key} has values from {low:.3g} to {high:.3g} in {x.dtype}; {ACCEPTED}")
        x = (x.float() * 255).round().to(torch.uint8)
    return x.movedim(1, -1).contiguous().numpy()


def _read(path: Path) -> Image.Image:
    try:
        return read_rgb(path, MAX_PIXELS)
    except BadImage as error:
        raise DataError(f"{path} cannot be read ({error})") from None
