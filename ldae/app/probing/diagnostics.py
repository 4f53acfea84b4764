"""Write diagnostics of a probe: heat maps, label-free metrics, features for TensorBoard's projector."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldae.app.probing.encoders import ProbedEncoder
from ldae.app.training.monitors import spread
from ldae.core.files import open_atomic, write_text
from linear_probe.features import FeatureKey
from linear_probe.geometry import alignment, effective_rank, lidar, rank_me, uniformity
from linear_probe.report.figures import draw_selection
from linear_probe.report.rendering import render
from linear_probe.results import Result, markdown, title
from linear_probe.subsets import Part

VIEWED = 4000  # images for alignment and uniformity
LIDAR_IMAGES, LIDAR_VIEWS = 1000, 10  # the paper has 1,000 images and 50 views
MEASURES = ("alignment", "uniformity", "lidar", "effective_rank", "rankme")
RANKED = 25600  # training images for the rank, as in RankMe
RANKS = {"effective_rank": effective_rank, "rankme": rank_me}
PROJECTED = 2000  # images in the projector
SPRITE = 32  # side of a projector image in pixels

Board = Any  # torch's SummaryWriter, which is slow to import


def open_board(out: Path) -> Board:
    """Return a writer of OUT/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))


def draw_heatmaps(results: Sequence[Result], out: Path) -> list[Path]:
    """Write OUT/heatmap-PROTOCOL.png, .pdf and .svg, layers by noise levels, for protocols with several candidates.

    Args:
        results: results of one encoder.
        out: folder of the probe; TensorBoard shows the figures too.

    Returns:
        The paths of the PNG files.
    """
    drawings = {r.protocol: drawing for r in results if (drawing := draw_selection(r.encoder, [r]))}
    if not drawings:
        return []
    board, paths = open_board(out), []
    for protocol, drawing in drawings.items():
        for suffix, content in render(drawing).items():
            with open_atomic(out / f"heatmap-{protocol}.{suffix}") as f:
                f.write(content)
        paths.append(out / f"heatmap-{protocol}.png")
        picture = np.asarray(Image.open(paths[-1]).convert("RGB"))
        board.add_image(f"heatmap/{title(protocol)}", picture, 0, dataformats="HWC")
    board.close()
    return paths


def measure_geometry(encoders: Sequence[ProbedEncoder], seed: int) -> list[dict[str, Any]]:
    """Return the measures without labels, an entry for each encoder and feature key.

    Alignment and uniformity compare two random views (crops of 20 to 100 % of the area, flipped half of the time) of up
    to 4,000 hold-out images, LiDAR ten of up to 1,000; the ranks are of up to 25,600 training images without
    augmentation. What needs views is None for a feature file.
    """
    return [entry for encoder in encoders for entry in _geometry(encoder, seed)]


def with_geometry(results: Sequence[Result], entries: Sequence[Mapping[str, Any]]) -> list[Result]:
    """Return results with the measures of their encoder's features."""
    of = {
        (entry["encoder"], entry["features"]): {m: entry[m] for m in MEASURES if entry[m] is not None}
        for entry in entries
    }
    return [replace(r, geometry=of.get((r.encoder, r.selected["features"]), {})) for r in results]


def write_geometry(entries: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Write OUT/geometry.json, and return its table."""
    write_text(out / "geometry.json", json.dumps(entries, indent=1) + "\n")
    rows = [["encoder", "features", *MEASURES]]
    for entry in entries:
        numbers = ("" if entry[key] is None else f"{entry[key]:.3f}" for key in MEASURES)
        rows.append([entry["encoder"], entry["features"], *numbers])
    return markdown(rows)


def _geometry(encoder: ProbedEncoder, seed: int) -> Iterator[dict[str, Any]]:
    views, many = _views(encoder), _views(encoder, LIDAR_IMAGES, LIDAR_VIEWS)
    for feature_key in encoder.feature_keys:
        train = _ranked(encoder, feature_key)
        entry = {"encoder": encoder.name, "checkpoint": encoder.checkpoint, "features": str(feature_key), "seed": seed}
        entry |= {
            "dimensions": train.shape[1],
            "images": len(train),
            "viewed": len(views[0][feature_key]) if views else 0,
        }
        entry |= {"alignment": None, "uniformity": None, "lidar": None}
        if views:
            a, b = (view[feature_key] for view in views)
            of_views = torch.stack([view[feature_key] for view in many], dim=1)
            entry |= {"alignment": alignment(a, b), "uniformity": _uniformity(a, b), "lidar": lidar(of_views)}
        yield entry | {"effective_rank": effective_rank(train), "rankme": rank_me(train)}


def _ranked(encoder: ProbedEncoder, feature_key: FeatureKey) -> Tensor:
    """Return the features of up to 25,600 training images, evenly spaced."""
    train = encoder.features(Part("train"), feature_key).x
    return train[torch.linspace(0, len(train) - 1, min(RANKED, len(train))).round().long()]


def _uniformity(a: Tensor, b: Tensor) -> float:
    """Return the mean uniformity of two sets of views."""
    return (uniformity(a) + uniformity(b)) / 2


def choose_without_labels(encoder: ProbedEncoder, measure: str) -> ProbedEncoder:
    """Return the encoder with the one feature key that a label-free measure prefers.

    The highest effective rank or RankMe of training images, or the lowest alignment or uniformity of two views of
    hold-out images (see linear_probe.geometry).

    Args:
        encoder: encoder of images.
        measure: `effective_rank`, `rankme`, `alignment` or `uniformity`.
    """
    if len(encoder.feature_keys) < 2:
        return encoder
    if measure in RANKS:
        scores = {c: RANKS[measure](_ranked(encoder, c)) for c in encoder.feature_keys}
    else:
        one, other = _views(encoder)
        of_views = alignment if measure == "alignment" else _uniformity
        scores = {c: -of_views(one[c], other[c]) for c in encoder.feature_keys}
    return replace(encoder, feature_keys=[max(scores, key=lambda c: scores[c])])


def _views(encoder: ProbedEncoder, count: int = VIEWED, views: int = 2) -> list[dict[FeatureKey, Tensor]]:
    """Return views of the same images at every feature key; empty for a feature file."""
    if encoder.encode is None:
        return []
    encode, images = encoder.encode
    seen = spread(images.split("holdout"), count)
    return [images.views(encode, encoder.feature_keys, seen, view) for view in range(views)]


def project(encoder: ProbedEncoder, feature_key: FeatureKey, classes: Sequence[str], out: Path) -> int:
    """Write features of up to 2,000 hold-out images with labels and thumbnails for the projector.

    Returns:
        The number of images.
    """
    held = encoder.features(Part("holdout"), feature_key)
    chosen = np.unique(np.linspace(0, len(held) - 1, min(PROJECTED, len(held))).round().astype(int))
    rows = torch.from_numpy(chosen)
    shutil.rmtree(out / "tensorboard" / "00000" / "probe", ignore_errors=True)  # of an earlier probe
    board = open_board(out)
    names = [classes[label] for label in held.y[rows].tolist()]
    board.add_embedding(held.x[rows], names, _sprites(encoder, chosen), 0, "probe")
    board.close()
    return len(chosen)


def _sprites(encoder: ProbedEncoder, chosen: np.ndarray) -> Tensor | None:
    if encoder.encode is None:
        return None
    images = encoder.encode[1]
    pixels = torch.cat([batch.images.cpu() for batch in images.in_order(images.split("holdout").subset(chosen))])
    return F.interpolate(pixels, (SPRITE, SPRITE), mode="area" if pixels.shape[-1] > SPRITE else "nearest")
