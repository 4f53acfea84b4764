"""Nearest neighbours against the formula written out (arXiv 1805.01978)."""

from __future__ import annotations

import pytest
import torch

from linear_probe.knn import accuracy, knn_predict, nearest


def _reference_knn(bank, labels, query, k, classes, temperature):
    """One query at a time: cosine similarities, the k largest, votes exp(s / T)."""
    similarity = torch.nn.functional.cosine_similarity(bank, query[None], dim=1)
    votes = [0.0] * classes
    for i in similarity.argsort(descending=True)[:k].tolist():
        votes[labels[i]] += torch.exp(similarity[i] / temperature).item()
    return max(range(classes), key=votes.__getitem__)


def test_votes_are_the_formulas():
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 16, generator=generator) for n in (300, 40))
    labels = torch.randint(0, 7, (300,), generator=generator)
    for k, predicted in knn_predict(bank, labels, queries, [1, 5, 20], 7, temperature=0.2, block=13).items():
        expected = [_reference_knn(bank, labels, q, k, 7, 0.2) for q in queries]
        assert predicted.tolist() == expected


def test_an_image_in_the_bank_finds_itself():
    bank = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 5
    assert torch.equal(knn_predict(bank, labels, 3 * bank, [1], 5)[1], labels)  # lengths do not matter


def test_more_neighbours_than_there_are_is_all_of_them():
    bank = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    flat = knn_predict(bank, labels, torch.randn(9, 4), [500], 3, temperature=1e6)[500]
    assert (flat == 0).all()  # at an endless temperature every neighbour counts alike


def test_the_bank_may_be_searched_in_parts():
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 16, generator=generator) for n in (301, 40))
    whole = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    for part in (7, 64, 301, 1000):
        similarity, rows = nearest(bank, queries, 20, part=part)
        best = whole.topk(20, dim=1)
        assert torch.allclose(similarity, best.values, atol=1e-6)
        assert torch.equal(rows, best.indices)


def test_a_scale_comes_before_the_lengths_are_made_equal():
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 16, generator=generator) for n in (90, 40))
    labels, matrix = torch.arange(90) % 7, torch.randn(16, 5, generator=generator)
    scaled = knn_predict(bank, labels, queries, [5], 7, scale=lambda x: x @ matrix)
    assert torch.equal(scaled[5], knn_predict(bank @ matrix, labels, queries @ matrix, [5], 7)[5])


def test_accuracy_is_in_percent():
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == pytest.approx(50)
