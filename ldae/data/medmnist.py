"""The data sets of MedMNIST, by its package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ldae.core.errors import ConfigError, DataError, did_you_mean
from ldae.core.files import json_hash
from ldae.data.base import Dataset, Division
from ldae.data.cache import Context
from ldae.data.datasets import resolve_root
from ldae.data.images import MemoryImages, Splits


class MedMNIST(Dataset):
    """One of the sets of MedMNIST v2 (arXiv 2110.14795): medical images of one label, grey or RGB.

    Args: as Dataset, and
        subset: name of the set, e.g. pathmnist; those of 3-D images and of several labels are refused.
        root: folder with SUBSET.npz (28 pixels) or SUBSET_64.npz (64, 128 or 224 pixels).
        download: whether to download the file if it is absent.
    """

    def __init__(
        self,
        size: Literal[28, 64, 128, 224],
        division: Division,
        subset: str,
        root: str | None = None,
        download: bool = False,
    ):
        super().__init__(size, division)
        self.subset, self.root, self.download = subset, root, download

    @property
    def name(self) -> str:
        """Return the name of the set, e.g. pathmnist."""
        return self.subset

    def open(self, context: Context) -> Splits:
        """Read the set with its own division into train, validation (the hold-out) and test."""
        info, reader = self._described()
        if self.download and not self.root:
            folder = context.cache / "downloads"
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = resolve_root(self.root, f"{self.subset}.npz of MedMNIST, or data.download=true")
        splits, digests = [], []
        for split in ("train", "val", "test"):
            try:
                read = reader(split=split, root=str(folder), size=self.size, download=self.download)
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                message = f"data.root={folder} holds no {self.subset} of {self.size} pixels"
                advice = "give data.download=true, or the folder of the file from medmnist.com"
                raise DataError(f"{message} ({str(error).strip().splitlines()[0]}); {advice}") from None
            splits.append(_images(folder, split, read))
            digests.append(json_hash([splits[-1].pixels.sum((1, 2, 3)).tolist(), splits[-1].labels.tolist()]))
        train, holdout, test = splits
        classes = [info["label"][key] for key in sorted(info["label"], key=int)]
        return self._make_splits(train, test, classes, digests, [], holdout)

    def _described(self) -> tuple[dict[str, Any], Any]:
        """Return MedMNIST's description of the set, and the class that reads it.

        Raises:
            ConfigError: the package is missing, or the set is unknown or has no single label of flat images.
        """
        if importlib.util.find_spec("medmnist") is None:
            raise ConfigError("data", "medmnist", "needs the package medmnist; pip install 'ldae[medmnist]'")
        import medmnist

        flat = [name for name, info in medmnist.INFO.items() if _is_flat_with_one_label(name, info)]
        if self.subset not in flat:
            expectation = f"is no set of flat images with one label{did_you_mean(self.subset, flat)}"
            raise ConfigError("subset", self.subset, f"{expectation}; there are: {', '.join(flat)}")
        info = medmnist.INFO[self.subset]
        return info, getattr(medmnist, info["python_class"])


def _is_flat_with_one_label(name: str, info: dict[str, Any]) -> bool:
    return not name.endswith("3d") and "multi-label" not in info["task"]


def _images(folder: Path, split: str, read: Any) -> MemoryImages:
    """Return the images of a split that MedMNIST read: (N, S, S) or (N, S, S, 3) uint8, labels (N, 1)."""
    pixels = torch.from_numpy(np.ascontiguousarray(read.imgs))
    pixels = pixels[..., None].expand(-1, -1, -1, 3) if pixels.ndim == 3 else pixels
    names = [f"{split}-{i:06d}" for i in range(len(pixels))]
    return MemoryImages.of(
        folder, pixels.permute(0, 3, 1, 2).contiguous(), names, read.labels.reshape(-1).astype(np.int64)
    )
