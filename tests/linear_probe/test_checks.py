"""Labels that allow no score, and those that allow a doubtful one."""

from __future__ import annotations

import pytest
import torch

from linear_probe.checks import NothingToScoreError, chance, check_features, check_labels

NAMES = ["cat", "dog", "eel"]


def labels(*counts):
    return torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])


def test_enough_of_everything_is_no_reason_to_warn():
    assert check_labels(labels(60, 60), labels(30, 30), labels(30, 30), NAMES) == []


@pytest.mark.parametrize(
    ("train", "holdout", "scored", "sentence"),
    [
        (labels(60), labels(60), labels(60), "has a single class, cat: there is nothing to score"),
        (labels(60), labels(0), labels(30, 30), "has a single class, cat"),
        (labels(60, 9) - 1, labels(9) + 1, labels(60), "has no labels for 60 of 138 images: .* give labels"),
        (labels(60, 60), labels(60), labels(0), "has no image in test"),
        (labels(0), labels(60), labels(60), "has no image in train"),
    ],
)
def test_nothing_to_score(train, holdout, scored, sentence):
    with pytest.raises(NothingToScoreError, match=sentence):
        check_labels(train, holdout, scored, NAMES)


@pytest.mark.parametrize(
    ("train", "holdout", "scored", "sentence"),
    [
        (labels(60, 60), labels(5, 5), labels(60), "the hold-out has 10 images: one is 10.0 points in each choice"),
        (labels(60, 60), labels(60), labels(25), "test has 25 images: one is 4.0 points"),
        (labels(60, 3), labels(60, 1), labels(60), "fewer than 5 training images of class dog"),
        (labels(60, 60), labels(60), labels(60, 0, 1), "no image of class eel: 1 image of test cannot be right"),
        (labels(60, 60), labels(60), labels(60, 0, 0, 0, 2), "no image of class 4: 2 images of test cannot be right"),
    ],
)
def test_a_doubtful_score_is_warned_of(train, holdout, scored, sentence):
    (warning,) = check_labels(train, holdout, scored, NAMES)
    assert sentence in warning


def test_features_that_tell_no_image_from_another_are_warned_of():
    x = torch.randn(1, 8).expand(20, 8)
    assert check_features(x) == check_features(x * (1 + 1e-8)) != []
    assert check_features(torch.zeros(20, 8)) != []
    assert check_features(x + 1e-3 * torch.eye(20, 8)) == []
    assert check_features(x[:1]) == []


def test_chance_is_the_most_frequent_training_class():
    assert chance(labels(1, 5, 2), labels(4, 2, 2)) == 25
    assert chance(labels(5, 5, 9), labels(1, 1)) == 0
