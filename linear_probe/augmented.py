"""Linear heads that learn from augmented images, encoded anew for every step; all cells of an encoder in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Generator, Tensor

from linear_probe.features import Cell, Features
from linear_probe.heads import HeadRecipe, Heads, HeadTrainer
from linear_probe.knn import accuracy
from linear_probe.protocols import Choice, Protocol, SGDHeads, rated
from linear_probe.sources import Source
from linear_probe.subsets import Part


class AugmentedHeads(Protocol):
    """The heads of another protocol, trained as its authors do: on images cut and mirrored at random.

    Args:
        plain: the protocol on features that were read once.
        augment: name of the augmentation.
        told: what it is, for the result line.
    """

    def __init__(self, plain: SGDHeads, augment: str, told: str):
        self.name, self.plain, self.augment = f"{plain.name}_augmented", plain, augment
        self.recipe = replace(plain.recipe, whole=False)  # a stream leaves the incomplete batch of an epoch out
        self.source = f"{plain.source.split('; features cached')[0]}; {told} in probe training, images encoded anew"

    def tried(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """On features at hand there is nothing to augment: as the plain protocol."""
        return self.plain.tried(train, holdout, classes, seed)

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """On features at hand there is nothing to augment: as the plain protocol."""
        return self.plain.predict(setting, fit, x, classes, seed)

    def tried_at(self, source: Source, fit: Part, held: Part, classes: int, seed: int) -> dict[Cell, list[Choice]]:
        found = self.trained(source, source.cells, [fit], self.recipe, classes, seed)
        truth = {cell: source.features(held, cell) for cell in source.cells}
        return {c: rated(self.recipe, found[c].predict(truth[c].x), truth[c].y) for c in source.cells}

    def scored(
        self,
        source: Source,
        cell: Cell,
        setting: Mapping[str, Any],
        fits: Sequence[Part],
        asked: Part,
        classes: int,
        seed: int,
    ) -> float:
        recipe = replace(self.recipe, rates=(setting["rate"],))
        heads = self.trained(source, [cell], fits, recipe, classes, seed)[cell]
        held = source.features(asked, cell)
        return accuracy(heads.predict(held.x)[0], held.y)

    def encodings(self, source: Source, fits: Sequence[Part]) -> int:
        batch, _, steps = self.recipe.lengths(source.count(fits))
        return steps * batch

    def trained(
        self, source: Source, cells: Sequence[Cell], fits: Sequence[Part], recipe: HeadRecipe, classes: int, seed: int
    ) -> dict[Cell, Heads]:
        """Heads for every cell, from one stream of images.

        Args:
            source: encodes augmented images of `fits`.
            seed: of weights, order and augmentation.
        """
        images, trainers = source.count(fits), dict[Cell, HeadTrainer]()
        batch, _, steps = recipe.lengths(images)
        for found, labels in islice(source.stream(fits, cells, self.augment, batch, seed), steps):
            for cell in cells:
                if cell not in trainers:
                    start = Generator().manual_seed(seed)
                    trainers[cell] = HeadTrainer(found[cell].shape[1], classes, recipe, images, start)
                trainers[cell].step(found[cell], labels)
        return {cell: trainer.heads for cell, trainer in trainers.items()}
