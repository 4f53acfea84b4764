"""Arrange samples in one picture: rows of eight, or a column for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.core.files import read_sealed_json
from ldae.core.pixels import to_floats
from ldae.objectives.panels import tile, to_rgb

GRID = 64  # images without classes
ROWS, COLUMNS = 8, 10  # images of a class, and classes


def grid(images: np.ndarray, labels: Tensor | None = None, names: Sequence[str] = ()) -> Tensor:
    """Arrange the first 64 images in rows of eight; those of several classes in a column for each of the first ten.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,), classes of a conditional model.
        names: of the classes, the heads of the columns; their numbers if empty.
    """
    x = to_rgb(to_floats(images))
    classes = [] if labels is None else list(dict.fromkeys(labels.tolist()))[:COLUMNS]
    if labels is not None and len(classes) > 1:
        columns = [x[labels == label][:ROWS] for label in classes]
        heads = [names[label] if label < len(names) else f"class {label}" for label in classes]
    else:
        x, heads = x[:GRID], []
        columns = [x[i::ROWS] for i in range(min(ROWS, len(x)))]
    rows = max(map(len, columns))
    padded = [torch.cat([column, torch.ones(rows - len(column), *x.shape[1:])]) for column in columns]
    return tile(torch.stack(padded, 1), heads=heads)


def class_names(run: Path) -> list[str]:
    """Return the names of the classes of a run's data; none if the folder does not have them.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run.expanduser() / "data.json"
    return list(read_sealed_json(path).get("classes") or []) if path.is_file() else []
