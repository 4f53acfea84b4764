"""The estimators pass scikit-learn's own checks and agree with the protocols whose algorithms they share."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from linear_probe import KNNProbe, LinearHead, LogisticProbe
from linear_probe.features import Features
from linear_probe.registry import PROTOCOLS


@parametrize_with_checks([LogisticProbe(), KNNProbe(), KNNProbe(whiten=True), LinearHead()])
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:1200], y[:1200], x[1200:], y[1200:]


@pytest.mark.parametrize(
    ("estimator", "protocol", "setting"),
    [
        (LogisticProbe(penalty=1e-3), "lbfgs", {"penalty": 1e-3}),
        (KNNProbe(k=10), "knn", {"k": 10}),
        (KNNProbe(k=10, whiten=True), "knn_whitened", {"k": 10}),
    ],
)
def test_an_estimator_predicts_what_its_protocol_predicts(digits, estimator, protocol, setting):
    train_x, train_y, test_x, _ = digits
    features = Features(torch.from_numpy(train_x).float(), torch.from_numpy(train_y))
    expected = PROTOCOLS[protocol].predict(setting, features, torch.from_numpy(test_x).float(), 10, 0)
    assert estimator.fit(train_x, train_y).predict(test_x).tolist() == expected.tolist()


def test_probabilities_are_those_of_scikit_learns_logistic_regression(digits):
    train_x, train_y, test_x, _ = digits
    ours = LogisticProbe(penalty=1e-2).fit(train_x, train_y).predict_proba(test_x)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (len(train_x) * 1e-2), tol=1e-8, max_iter=999))
    assert abs(ours - reference.fit(train_x, train_y).predict_proba(test_x)).max() < 2e-3


def test_estimators_work_in_a_grid_search(digits):
    train_x, train_y, test_x, test_y = digits
    search = GridSearchCV(KNNProbe(), {"k": [1, 5, 50]}, cv=3).fit(train_x, train_y)
    assert search.score(test_x, test_y) > 0.9
    assert (
        LinearHead(epochs=30, batch_size=128).fit(train_x, train_y.astype(str)).score(test_x, test_y.astype(str)) > 0.9
    )
