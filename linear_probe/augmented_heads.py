"""Train linear heads on augmented images, which are encoded anew at every step; one pass serves all feature keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Generator, Tensor

from linear_probe.features import FeatureKey, Features, Source
from linear_probe.heads import HeadRecipe, Heads, HeadTrainer
from linear_probe.protocols import Choice, Evaluation, Protocol, SGDHeads, correctness, joined, score_rates
from linear_probe.subsets import Part


class AugmentedHeads(Protocol):
    """Protocol of linear heads that are trained on randomly augmented images, as their authors do.

    Args:
        plain: the protocol on cached features.
        augment: name of the augmentation.
        description: description of the augmentation, for the result line.
    """

    def __init__(self, plain: SGDHeads, augment: str, description: str):
        self.name, self.plain, self.augment = f"{plain.name}_augmented", plain, augment
        self.recipe = replace(plain.recipe, whole=False)  # a stream leaves the incomplete batch of an epoch out
        self.source = (
            f"{plain.source.split('; features cached')[0]}; {description} in probe training, images encoded anew"
        )

    def sweep(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Score every rate as the plain protocol does: features without images cannot be augmented."""
        return self.plain.sweep(train, holdout, classes, seed)

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Predict classes (N,) as the plain protocol does: features without images cannot be augmented."""
        return self.plain.predict(setting, fit, x, classes, seed)

    def sweep_source(
        self, source: Source, fit: Part, held: Part, classes: int, seed: int
    ) -> dict[FeatureKey, list[Choice]]:
        """Score every rate at every feature key, with heads trained on augmented images of `fit`."""
        heads = self.train(source, source.feature_keys, [fit], self.recipe, classes, seed)
        truth = {feature_key: source.features(held, feature_key) for feature_key in source.feature_keys}
        return {c: score_rates(self.recipe, heads[c].predict(truth[c].x), truth[c].y) for c in source.feature_keys}

    def evaluate_source(
        self,
        source: Source,
        feature_key: FeatureKey,
        setting: Mapping[str, Any],
        fits: Sequence[Part],
        scored: Sequence[Part],
        classes: int,
        seed: int,
    ) -> Evaluation:
        """Return the scores of `scored` by a head trained on augmented images of `fits`."""
        recipe = replace(self.recipe, rates=(setting["rate"],))
        heads = self.train(source, [feature_key], fits, recipe, classes, seed)[feature_key]
        test = joined(*(source.features(part, feature_key) for part in scored))
        return correctness(heads.predict(test.x)[0], test.y)

    def num_encodings(self, source: Source, fits: Sequence[Part]) -> int:
        """Return the number of augmented images that one training encodes."""
        batch, _, steps = self.recipe.lengths(source.count(fits))
        return steps * batch

    def train(
        self,
        source: Source,
        feature_keys: Sequence[FeatureKey],
        fits: Sequence[Part],
        recipe: HeadRecipe,
        classes: int,
        seed: int,
    ) -> dict[FeatureKey, Heads]:
        """Train heads for every feature key on one stream of augmented images.

        Args:
            source: encoder of the augmented images.
            feature_keys: feature keys, each with heads of its own.
            fits: training images.
            recipe: hyper-parameters of the heads.
            classes: number of classes C.
            seed: seed of initial weights, order and augmentation.

        Returns:
            {feature key: heads}.
        """
        images, trainers = source.count(fits), dict[FeatureKey, HeadTrainer]()
        batch, _, steps = recipe.lengths(images)
        for features, labels in islice(source.stream(fits, feature_keys, self.augment, batch, seed), steps):
            for feature_key in feature_keys:
                if feature_key not in trainers:
                    start = Generator().manual_seed(seed)
                    trainers[feature_key] = HeadTrainer(features[feature_key].shape[1], classes, recipe, images, start)
                trainers[feature_key].step(features[feature_key], labels)
        return {feature_key: trainer.heads for feature_key, trainer in trainers.items()}
