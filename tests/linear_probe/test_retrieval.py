"""Retrieval agrees with scikit-learn, with torchmetrics, and with the expectation over the orders of ties."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from linear_probe.features import Features
from linear_probe.retrieval import RECALL_AT, Retrieval, average_precision, rankings, recall


def features(count, classes, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(99))
    return Features(centres[y] + spread * torch.randn(count, 12, generator=generator), y)


def test_average_precision_and_recall_are_those_of_torchmetrics_and_scikit_learn():
    gallery, queries = features(203, 4, 0), features(31, 4, 1)
    scores = Retrieval().evaluate({}, gallery, queries, 4, 0)
    similarity = torch.nn.functional.normalize(queries.x, dim=1) @ torch.nn.functional.normalize(gallery.x, dim=1).T
    relevant = queries.y[:, None] == gallery.y
    for i in range(31):
        expected = average_precision_score(relevant[i].numpy(), similarity[i].numpy())
        assert scores.per_image[i].item() == pytest.approx(expected, abs=1e-6)
        assert retrieval_average_precision(1 + similarity[i], relevant[i]).item() == pytest.approx(expected, abs=1e-5)
    for k in RECALL_AT:
        hits = [retrieval_hit_rate(s, r, top_k=k) for s, r in zip(similarity, relevant, strict=True)]
        assert scores.further[f"recall@{k}"] == pytest.approx(100 * float(torch.stack(hits).mean()), abs=1e-4)


def test_ties_count_at_once_as_scikit_learn_has_it():
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0, 1.0]])
    relevant = torch.tensor([[False, True, False, True, True, False]])
    expected = average_precision_score(relevant[0].numpy(), scores[0].numpy())
    (ranking,) = rankings(scores, relevant)
    assert average_precision(*ranking) == pytest.approx(expected)


def test_recall_is_the_mean_over_all_orders_of_ties():
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    relevant = torch.tensor([[False, True, False, False, True, False], [False, False, True, False, False, True]])
    for k in (1, 2, 3, 4, 5, 6):
        hits = []
        for order in itertools.permutations(range(1, 5)):
            arranged = relevant[0, [0, *order, 5]]
            hits.append(float(arranged[:k].any()))
        expected = [sum(hits) / len(hits), float(relevant[1, :k].any())]
        assert [recall(*ranking, k) for ranking in rankings(scores, relevant)] == pytest.approx(expected)


def test_features_without_content_have_the_precision_of_chance():
    gallery = Features(torch.ones(100, 5), torch.arange(100) % 4)
    scores = Retrieval().evaluate({}, gallery, Features(torch.ones(8, 5), torch.arange(8) % 4), 4, 0)
    assert scores.score == pytest.approx(25)
    assert scores.further["recall@1"] == pytest.approx(25)


def test_a_class_that_the_gallery_lacks_has_no_precision():
    gallery = features(40, 2, 0)
    scores = Retrieval().evaluate({}, gallery, Features(torch.randn(3, 12), torch.full((3,), 7)), 8, 0)
    assert scores.per_image.tolist() == [0, 0, 0]
    assert scores.further["recall@10"] == 0


def test_blocks_do_not_change_the_scores(monkeypatch):
    gallery, queries = features(120, 3, 0), features(50, 3, 1)
    whole = Retrieval().evaluate({}, gallery, queries, 3, 0).per_image
    monkeypatch.setattr("linear_probe.retrieval.BLOCK", 7 * 120)
    parts = Retrieval().evaluate({}, gallery, queries, 3, 0).per_image
    assert torch.allclose(whole, parts, atol=1e-6)
