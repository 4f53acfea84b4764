"""Linear heads that learn from augmented images, encoded anew for every step; all cells of an encoder in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Generator, Tensor

from linear_probe.features import FeatureKey, Features, Source
from linear_probe.heads import HeadRecipe, Heads, HeadTrainer
from linear_probe.knn import accuracy
from linear_probe.protocols import Choice, Protocol, SGDHeads, rated
from linear_probe.subsets import Part


class AugmentedHeads(Protocol):
    """The heads of another protocol, trained as its authors do: on images cut and mirrored at random.

    Args:
        plain: the protocol on features that were read once.
        augment: name of the augmentation.
        message: what it is, for the result line.
    """

    def __init__(self, plain: SGDHeads, augment: str, message: str):
        self.name, self.plain, self.augment = f"{plain.name}_augmented", plain, augment
        self.recipe = replace(plain.recipe, whole=False)  # a stream leaves the incomplete batch of an epoch out
        self.source = f"{plain.source.split('; features cached')[0]}; {message} in probe training, images encoded anew"

    def tried(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """On features at hand there is nothing to augment: as the plain protocol."""
        return self.plain.tried(train, holdout, classes, seed)

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """On features at hand there is nothing to augment: as the plain protocol."""
        return self.plain.predict(setting, fit, x, classes, seed)

    def tried_at(
        self, source: Source, fit: Part, held: Part, classes: int, seed: int
    ) -> dict[FeatureKey, list[Choice]]:
        found = self.trained(source, source.feature_keys, [fit], self.recipe, classes, seed)
        truth = {feature_key: source.features(held, feature_key) for feature_key in source.feature_keys}
        return {c: rated(self.recipe, found[c].predict(truth[c].x), truth[c].y) for c in source.feature_keys}

    def scored(
        self,
        source: Source,
        feature_key: FeatureKey,
        setting: Mapping[str, Any],
        fits: Sequence[Part],
        requested: Part,
        classes: int,
        seed: int,
    ) -> float:
        recipe = replace(self.recipe, rates=(setting["rate"],))
        heads = self.trained(source, [feature_key], fits, recipe, classes, seed)[feature_key]
        held = source.features(requested, feature_key)
        return accuracy(heads.predict(held.x)[0], held.y)

    def encodings(self, source: Source, fits: Sequence[Part]) -> int:
        batch, _, steps = self.recipe.lengths(source.count(fits))
        return steps * batch

    def trained(
        self,
        source: Source,
        feature_keys: Sequence[FeatureKey],
        fits: Sequence[Part],
        recipe: HeadRecipe,
        classes: int,
        seed: int,
    ) -> dict[FeatureKey, Heads]:
        """Heads for every cell, from one stream of images.

        Args:
            source: encodes augmented images of `fits`.
            seed: of weights, order and augmentation.
        """
        images, trainers = source.count(fits), dict[FeatureKey, HeadTrainer]()
        batch, _, steps = recipe.lengths(images)
        for found, labels in islice(source.stream(fits, feature_keys, self.augment, batch, seed), steps):
            for feature_key in feature_keys:
                if feature_key not in trainers:
                    start = Generator().manual_seed(seed)
                    trainers[feature_key] = HeadTrainer(found[feature_key].shape[1], classes, recipe, images, start)
                trainers[feature_key].step(found[feature_key], labels)
        return {feature_key: trainer.heads for feature_key, trainer in trainers.items()}
