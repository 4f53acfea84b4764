"""Neighbours by candidates in bf16 against the products themselves."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from linear_probe.knn import BLOCK, GROUP, Candidates, by_candidates, knn_predict


def classes_apart(count, dimensions, seed, apart=0.3):
    generator = torch.Generator().manual_seed(seed)
    means = apart * torch.randn(10, dimensions, generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, (count,), generator=generator)
    return means[y] + torch.randn(count, dimensions, generator=generator), y


def test_the_largest_products_are_returned_in_float32():
    bank, queries = (F.normalize(classes_apart(n, 64, seed)[0], dim=1) for n, seed in ((3001, 1), (BLOCK + 9, 2)))
    products, rows = Candidates(bank, 20).search(queries)
    whole = queries @ bank.T
    assert torch.allclose(products, whole.gather(1, rows), atol=1e-6)  # not what bf16 makes of them
    assert (products.diff(dim=1) <= 0).all()
    best = whole.topk(20, dim=1)
    assert (rows.sort(1).values == best.indices.sort(1).values).all(1).float().mean() > 0.99
    assert torch.allclose(products, best.values, atol=1e-3)


def test_what_all_entries_share_hides_no_neighbour():
    """With a mean 30 times as long as the differences, bf16 of the entries themselves does not resolve them."""
    differs = F.normalize(classes_apart(2000, 64, 1)[0], dim=1)
    bank = 30 * F.normalize(torch.ones(64), dim=0) + differs
    queries = F.normalize(classes_apart(40, 64, 2)[0], dim=1)
    requested = (queries.double() @ bank.double().T).topk(10, dim=1).indices
    _, rows = Candidates(bank, 10).search(queries)
    rounded = (queries.bfloat16() @ bank.bfloat16().T).topk(10, dim=1).indices
    same = lambda indices: (indices.sort(1).values == requested.sort(1).values).all(1).float().mean()  # noqa: E731
    assert same(rows) > 0.9
    assert same(rounded) < 0.3


def test_a_bank_smaller_than_its_groups_is_searched_whole():
    bank, queries = torch.randn(GROUP + 5, 8), torch.randn(4, 8)
    products, rows = Candidates(bank, len(bank)).search(queries)
    assert torch.equal(rows.sort(1).values, torch.arange(len(bank)).expand(4, -1))
    assert torch.allclose(products, (queries @ bank.T).gather(1, rows), atol=1e-5)


def test_predictions_are_those_of_an_exact_search(monkeypatch):
    (bank, y), (queries, _) = classes_apart(8000, 192, 1, apart=0.1), classes_apart(1500, 192, 2, apart=0.1)
    monkeypatch.setattr("linear_probe.knn.by_candidates", lambda *size: False)
    exact = knn_predict(bank, y, queries, [20], 10)[20]
    monkeypatch.setattr("linear_probe.knn.by_candidates", lambda *size: True)
    proposed = knn_predict(bank, y, queries, [20], 10)[20]
    assert (exact == proposed).float().mean() >= 0.999
    assert exact.unique().numel() == 10


def test_candidates_serve_where_products_outweigh_the_rest():
    assert not by_candidates(10_000, 768, 200)  # too many neighbours
    assert not by_candidates(10_000, 64, 20)
    assert not by_candidates(100, 768, 20)
