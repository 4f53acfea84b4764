"""Heads on a stream of images against heads on features at hand."""

from __future__ import annotations

import pytest
import torch

from linear_probe.augmented_heads import AugmentedHeads
from linear_probe.features import FeatureKey, Features
from linear_probe.heads import HeadRecipe, HeadTrainer, train_heads
from linear_probe.protocols import SGDHeads
from linear_probe.subsets import Part

A, B = FeatureKey(1), FeatureKey(2)
RECIPE = HeadRecipe((0.1, 1.0), batch=50, epochs=4, rule="lars", warmup=0.25, batch_norm=True)


class Stream:
    """Two feature keys of 120 images; a stream in the order that train_heads takes, without any augmentation."""

    feature_keys = (A, B)

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(120) % 3
        self.x = {A: torch.randn(120, 6, generator=generator)}
        self.x[B] = torch.cat([self.x[A], torch.nn.functional.one_hot(self.y, 3) * 3.0], dim=1)
        self.encoded = 0

    def features(self, part, feature_key):
        return Features(part.of(self.x[feature_key]), part.of(self.y))

    def count(self, parts):
        return sum(len(self.features(part, A)) for part in parts)

    def stream(self, parts, feature_keys, augment, batch, seed):
        assert augment == "none"
        (part,) = parts
        generator = torch.Generator().manual_seed(seed)
        trainer = HeadTrainer(self.x[feature_keys[0]].shape[1], 3, RECIPE, self.count(parts), generator)
        for rows in trainer.orders(self.count(parts), generator):
            self.encoded += len(rows)
            yield (
                {feature_key: self.features(part, feature_key).x[rows] for feature_key in feature_keys},
                part.of(self.y)[rows],
            )


@pytest.fixture
def source():
    return Stream()


def test_heads_on_a_stream_are_those_on_the_same_features(source):
    protocol = AugmentedHeads(SGDHeads("x", "", RECIPE), "none", "")
    part = Part("train")
    heads = protocol.train(source, [A], [part], RECIPE, 3, seed=5)[A]
    cached = train_heads(source.x[A], source.y, 3, RECIPE, seed=5)
    assert torch.equal(heads.weight, cached.weight)
    assert torch.equal(heads.mean, cached.mean)
    assert source.encoded == protocol.num_encodings(source, [part]) == 4 * 100  # 20 of 120 are over in each epoch


def test_all_feature_keys_are_trained_on_one_stream(source):
    recipe = HeadRecipe((0.3,), batch=50, epochs=4)
    protocol = AugmentedHeads(SGDHeads("x", "from there; features cached once", recipe), "none", "cut")
    assert protocol.name == "x_augmented"
    assert protocol.source == "from there; cut in probe training, images encoded anew"
    train, held = Part("train", torch.arange(100)), Part("train", torch.arange(100, 120))
    choices = protocol.sweep_source(source, train, held, 3, seed=0)
    assert source.encoded == 400
    assert choices[B][0].accuracy > 95 > choices[A][0].accuracy
    scores = protocol.evaluate_source(source, B, choices[B][0].setting, [train], [held, held], 3, seed=0)
    assert scores.score == pytest.approx(choices[B][0].accuracy)
    assert len(scores.per_image) == 2 * 20
