"""AUROC and FPR95 agree with scikit-learn; detectors follow their formulas; calibration agrees with torchmetrics."""

from __future__ import annotations

import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from torchmetrics.functional.classification import multiclass_calibration_error

from linear_probe.calibration import calibration_error
from linear_probe.features import Features
from linear_probe.outliers import Energy, NeighbourDistance, detection
from linear_probe.protocols import LBFGS


def scores(count, seed, shift, decimals):
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed)) + shift
    return (drawn * 10**decimals).round() / 10**decimals


@pytest.mark.parametrize("decimals", [6, 1])  # with one decimal there are ties
def test_auroc_and_fpr95_are_those_of_scikit_learn(decimals):
    images, outliers = scores(400, 0, 0, decimals), scores(300, 1, 1.5, decimals)
    both = detection(images, outliers)
    unusual = torch.cat([images, outliers])
    is_outlier = torch.cat([torch.zeros(400), torch.ones(300)])
    assert both.score == pytest.approx(100 * roc_auc_score(is_outlier, unusual), abs=1e-9)
    false_positive, true_positive, _ = roc_curve(1 - is_outlier, -unusual, drop_intermediate=False)
    assert both.further["FPR95"] == pytest.approx(100 * false_positive[true_positive >= 0.95][0], abs=1e-9)


def test_auroc_is_the_mean_over_the_images():
    of_three = detection(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0]))
    assert of_three.per_image.tolist() == [1.0, 0.75, 0.5]


def test_equal_scores_tell_nothing():
    assert detection(torch.zeros(10), torch.zeros(20)).score == 50


def clusters(count, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return Features(3 * torch.eye(3, 6)[y] + 0.5 * torch.randn(count, 6, generator=generator), y)


def test_the_distance_is_that_to_the_kth_neighbour():
    fit, x = clusters(60, 0), torch.randn(9, 6, generator=torch.Generator().manual_seed(5))
    unusual = NeighbourDistance(7).unusual({}, fit, x, 3)
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(fit.x, dim=1).T
    assert torch.allclose(unusual, 1 - cosine.sort(descending=True).values[:, 6], atol=1e-6)


def test_the_energy_is_that_of_the_linear_classifier():
    fit, x = clusters(90, 0), torch.randn(9, 6, generator=torch.Generator().manual_seed(5))
    unusual = Energy().unusual({"penalty": 1e-2}, fit, x, 3)
    scale = lambda z: (z - fit.x.mean(0)) / fit.x.std(0, correction=0)  # noqa: E731
    model = LogisticRegression(C=1 / (90 * 1e-2), tol=1e-8, max_iter=2000).fit(scale(fit.x), fit.y)
    logits = scale(x).numpy() @ model.coef_.T + model.intercept_
    centred = LBFGS().logits({"penalty": 1e-2}, fit, x, 3)
    assert torch.allclose(centred, torch.from_numpy(logits).float(), atol=2e-2)
    assert unusual.tolist() == pytest.approx((-logsumexp(logits, axis=1)).tolist(), abs=2e-2)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_calibration_error_is_that_of_torchmetrics(sharpness):
    generator = torch.Generator().manual_seed(3)
    logits = sharpness * torch.randn(500, 5, generator=generator)
    labels = torch.randint(5, (500,), generator=generator)
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=5, n_bins=15, norm="l1")
    assert calibration_error(logits.softmax(1), labels) == pytest.approx(float(expected), abs=1e-5)


def test_probabilities_that_are_right_are_calibrated():
    probabilities = torch.tensor([[0.75, 0.25]]).repeat(4000, 1)
    labels = (torch.arange(4000) % 4 == 0).long()
    assert calibration_error(probabilities, labels) == pytest.approx(0, abs=1e-6)
    assert calibration_error(probabilities, torch.zeros(4000, dtype=torch.long)) == pytest.approx(0.25)
