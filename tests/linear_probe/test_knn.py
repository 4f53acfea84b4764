"""Nearest neighbours against the formula written out (arXiv 1805.01978)."""

from __future__ import annotations

import pytest
import torch

from linear_probe.knn import accuracy, knn_predict


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


def test_accuracy_is_in_percent():
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == pytest.approx(50)
