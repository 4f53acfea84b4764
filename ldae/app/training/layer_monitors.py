"""Evaluate features during pretraining without labels: ranks, views, similarity of layers, maps of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ldae.app.probing.feature_reading import augmented_view
from ldae.app.probing.token_reading import LayerTokens, read_layers
from ldae.core.types import Batch
from ldae.data.images import ImageSet
from ldae.data.loader import in_order
from ldae.export.encoder import Encoder
from ldae.objectives.panels import tile
from linear_probe.geometry import alignment, effective_rank, lidar, linear_cka, rank_me, uniformity
from linear_probe.token_maps import pca_rgb

if TYPE_CHECKING:
    from ldae.app.session import Session

VIEWS = 10  # random views of an image, for LiDAR; the first two for alignment and uniformity
SHOWN = 6  # images of the maps
COLUMNS = 8  # layers of the maps
CELL = 24  # pixels of a cell of the matrix of similarities


class FeatureGeometry:
    """Measure mean tokens without labels (linear_probe.geometry), on the same images and views in every evaluation.

    Args:
        session: device, data and config.
        encoder: of the network in training.
        images: images to encode, without and with augmentation.
        every: steps between evaluations.
    """

    name = "geometry"

    def __init__(self, session: Session, encoder: Encoder, images: ImageSet, every: int):
        self.session, self.encoder, self.images, self.every = session, encoder, images, every

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        session, plain, views = self.session, list[Tensor](), list[Tensor]()
        poll = session.stop.poll if session.world.size == 1 else lambda: None
        for batch in in_order(self.images, 250, session.world.device, session.config["data"]["workers"], poll):
            plain.append(self.encoder(batch.images).cpu())
            seen = [augmented_view(batch, 0, view).images.clamp(0, 1) for view in range(VIEWS)]
            views.append(torch.stack([self.encoder(images).cpu() for images in seen], dim=1))
        x, of_views = torch.cat(plain), torch.cat(views)  # (n, D), (n, VIEWS, D)
        one, other = of_views[:, 0], of_views[:, 1]
        scalars = {
            "rankme": rank_me(x),
            "effective_rank": effective_rank(x),
            "lidar": lidar(of_views),
            "alignment": alignment(one, other),
            "uniformity": (uniformity(one) + uniformity(other)) / 2,
        }
        return {f"geometry/{name}": value for name, value in scalars.items()}, {}


class LayerSimilarity:
    """Measure the linear CKA of the patch tokens of layers: a matrix as picture, and each with the encoder's layer.

    Layers of a U-Net with other grids than the encoder's layer are left out.

    Args:
        encoder: of the network in training.
        batch: images to encode; all their patches are samples.
        every: steps between evaluations.
    """

    name = "cka"

    def __init__(self, encoder: Encoder, batch: Batch, every: int):
        self.encoder, self.batch, self.every = encoder, batch, every

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        read = read_layers(self.encoder, self.batch.images, self.encoder.network.layers)
        count = read[self.encoder.layer].tokens.shape[1]
        tokens = {n: of.tokens.flatten(0, 1).cpu() for n, of in read.items() if of.tokens.shape[1] == count}
        matrix = torch.ones(len(tokens), len(tokens))
        for i, x in enumerate(tokens.values()):
            for j, y in enumerate(list(tokens.values())[:i]):
                matrix[i, j] = matrix[j, i] = linear_cka(x, y)
        row = matrix[list(tokens).index(self.encoder.layer)].tolist()
        cells = magma(matrix)[..., None, None].expand(-1, -1, -1, CELL, CELL)  # (L, L, 3, CELL, CELL)
        picture = tile(cells, least=CELL, heads=[str(layer) for layer in tokens])
        return {f"cka/layer_{n}": value for n, value in zip(tokens, row, strict=True)}, {"cka_layers": picture}


class LayerMaps:
    """Pictures of images, their patch tokens as colours, and the attention of the class token or that patches receive.

    The colours of a layer are the first three principal components over all images of the picture. Attention is the
    mean of the heads, each map scaled to its own maximum.

    Args:
        encoder: of the network in training.
        batch: images; some of them, evenly spaced, are shown.
        every: steps between pictures.
    """

    name = "maps"

    def __init__(self, encoder: Encoder, batch: Batch, every: int):
        layers, images = encoder.network.layers, batch.images
        self.encoder, self.images, self.every = encoder, images[spaced(len(images), SHOWN)], every
        self.layers = [layers[i] for i in spaced(len(layers), COLUMNS)]

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        read = read_layers(self.encoder, self.images, self.layers)
        colours = {n: self._enlarged(pca_rgb(of.tokens)[0], of) for n, of in read.items()}
        pictures = {"patch_components": self._picture(colours)}
        weights = {n: of.attention.received.mean(1) for n, of in read.items() if of.attention is not None}  # (B, N)
        if weights:
            scaled = {n: magma(w / w.amax(1, keepdim=True).clamp(min=1e-12)) for n, w in weights.items()}
            pictures["attention"] = self._picture({n: self._enlarged(x, read[n]) for n, x in scaled.items()})
        return {}, pictures

    def _enlarged(self, colours: Tensor, layer: LayerTokens) -> Tensor:
        """Return maps (B, N, 3) as pictures of the size of the images, without interpolation."""
        maps = rearrange(colours, "b (h w) c -> b c h w", h=layer.grid[0])
        return torch.nn.functional.interpolate(maps, tuple(self.images.shape[-2:]), mode="nearest")

    def _picture(self, maps: dict[int, Tensor]) -> Tensor:
        columns = [self.images.cpu(), *maps.values()]
        return tile(torch.stack(columns, dim=1), heads=["image", *(f"layer {layer}" for layer in maps)])


def spaced(count: int, shown: int) -> list[int]:
    """Return `shown` of `count` numbers, evenly spaced."""
    return torch.linspace(0, count - 1, min(shown, count)).round().long().tolist()


def magma(values: Tensor) -> Tensor:
    """Return the colours (..., 3) of values in [0, 1], from black over red to light yellow."""
    from matplotlib import colormaps

    return torch.from_numpy(colormaps["magma"](values.clamp(0, 1).double().cpu().numpy())[..., :3]).float()
