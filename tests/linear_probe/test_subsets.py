"""Few labels: subsets are stratified, the selection uses no other label, a subset depends on its seed."""

from __future__ import annotations

import pytest
import torch

from linear_probe.features import FeatureKey, Features
from linear_probe.protocols import KNN, choose, mean_and_deviation
from linear_probe.subsets import check_num_labels, holdout_mask, images_per_class, plan_all_labels, plan_few_labels


@pytest.fixture
def labels():
    return torch.randint(0, 5, (1000,), generator=torch.Generator().manual_seed(0))


def test_a_draw_has_the_count_of_every_class_and_its_folds_divide_it(labels):
    counts = torch.tensor([7, 7, 7, 12, 7])
    plan = plan_few_labels(labels, counts, seed=1)
    (final,) = plan.final
    assert torch.equal(torch.bincount(labels[final.rows]), counts)
    assert (final.rows.diff() > 0).all()
    assert len(plan.trials) == 5
    held = torch.cat([part.rows for _, part in plan.trials])
    assert torch.equal(held.sort()[0], final.rows)  # each image is held out once
    for fit, part in plan.trials:
        assert torch.equal(torch.cat([fit.rows, part.rows]).sort()[0], final.rows)
        assert (torch.bincount(labels[part.rows], minlength=5) >= 1).all()


def test_folds_are_at_most_the_images_of_the_smallest_class(labels):
    assert len(plan_few_labels(labels, torch.full((5,), 2), 0).trials) == 2
    assert len(plan_few_labels(labels, torch.full((5,), 3), 0).trials) == 3


def test_one_label_of_each_class_is_chosen_on_one_further(labels):
    plan = plan_few_labels(labels, torch.ones(5, dtype=torch.long), seed=1)
    ((fit, score),), (final,) = plan.trials, plan.final
    for rows in (fit.rows, score.rows):
        assert sorted(labels[rows].tolist()) == list(range(5))
    assert not set(fit.rows.tolist()) & set(score.rows.tolist())
    assert torch.equal(final.rows, fit.rows)
    assert plan.chosen_on == "one further image of each class"


def test_one_label_needs_a_further_training_image_of_each_class():
    with pytest.raises(ValueError, match="needs 2 training images of each class, one to choose on; class 1 has fewer"):
        images_per_class(1, torch.tensor([0, 0, 1]), torch.tensor([0, 1]), 2)


def test_a_subset_depends_on_its_seed(labels):
    counts = torch.full((5,), 10)
    a, b, c = (plan_few_labels(labels, counts, seed).final[0].rows for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_percentage_is_of_train_and_holdout_in_every_class():
    train, holdout = torch.arange(4).repeat_interleave(900), torch.arange(4).repeat_interleave(100)
    assert images_per_class("1%", train, holdout, 4).tolist() == [10] * 4
    assert images_per_class("2.5%", train, holdout, 4).tolist() == [25] * 4
    assert images_per_class(3, train, holdout, 4).tolist() == [3] * 4


@pytest.mark.parametrize(
    ("num_labels", "sentence"),
    [
        ("some", "no number of labels"),
        ("0%", "no number of labels"),
        ("120%", "no number of labels"),
        (0, "1 or more"),
        (-3, "1 or more"),
        (91, "exceeds the 90 training images of class 1"),
        ("1%", "leaves class 0 1 images"),
    ],
)
def test_an_impossible_number_of_labels_is_refused(num_labels, sentence):
    train = torch.tensor([0] * 95 + [1] * 90)
    with pytest.raises(ValueError, match=sentence):
        images_per_class(num_labels, train, torch.tensor([0, 1]), 2)
    if "no number" in sentence or "or more" in sentence:
        with pytest.raises(ValueError, match=sentence):
            check_num_labels(num_labels)


def test_a_tenth_of_each_class_is_held_out_alike_in_every_call(labels):
    held = holdout_mask(labels)
    assert torch.equal(held, holdout_mask(labels))
    counts = torch.bincount(labels)
    assert torch.equal(torch.bincount(labels[held]), (counts / 10).round().long())


class Guarded:
    """Features at two feature keys that fail where the test split or rows outside the subset are read."""

    def __init__(self, labels, allowed):
        generator = torch.Generator().manual_seed(0)
        good = torch.nn.functional.one_hot(labels, 5) + 0.1 * torch.randn(len(labels), 5, generator=generator)
        self.x = {FeatureKey(1): torch.randn(len(labels), 5, generator=generator), FeatureKey(2): good}
        self.y, self.allowed = labels, set(allowed.tolist())

    @property
    def feature_keys(self):
        return list(self.x)

    def count(self, parts):
        return sum(len(part.rows) for part in parts)

    def features(self, part, feature_key):
        assert part.split == "train"
        assert set(part.rows.tolist()) <= self.allowed
        return Features(self.x[feature_key][part.rows], self.y[part.rows])


def test_a_selection_by_few_labels_uses_no_other(labels):
    plan = plan_few_labels(labels, torch.full((5,), 20), seed=0)
    chosen = choose(KNN(), Guarded(labels, plan.final[0].rows), plan, 5, 0)
    assert chosen.feature_key == FeatureKey(2)
    assert chosen.choice.accuracy > 95 > 50 > chosen.among[FeatureKey(1)]
    assert plan.chosen_on == "cross-validation of 5 folds"


def test_with_all_labels_the_choice_is_the_holdouts():
    plan = plan_all_labels()
    assert [(a.split, b.split) for a, b in plan.trials] == [("train", "holdout")]
    assert [part.split for part in plan.final] == ["train", "holdout"]


def test_the_deviation_is_the_samples():
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_deviation([4.0]) == (4.0, None)
