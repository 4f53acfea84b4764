"""The estimated cost of a probe."""

from __future__ import annotations

import torch

from ldae.app.probing.cost import pairs_of_neighbours
from linear_probe.features import Features
from linear_probe.protocols import KNN


class CountedKNN(KNN):
    """kNN that counts the pairs of a query and an image of the bank."""

    pairs = 0

    def _predict(self, fit, x, ks, classes):
        self.pairs += len(fit) * len(x)
        return super()._predict(fit, x, ks, classes)


def test_the_pairs_of_an_estimate_are_those_that_a_probe_compares():
    x, y = torch.randn(90, 4, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
    train, held, scored = (Features(x[a:b], y[a:b]) for a, b in ((0, 50), (50, 60), (60, 90)))
    protocol = CountedKNN()
    for _ in range(4):
        choices = protocol.sweep(train, held, 3, 0)
    protocol.predict(choices[0].setting, Features(x[:60], y[:60]), scored.x, 3, 0)
    assert protocol.pairs == sum(pairs_of_neighbours(60, 10, 30, 4))
