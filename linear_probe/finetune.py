"""Fine-tuning: an encoder and a new linear head trained together on labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linear_probe.features import ImageBatch
from linear_probe.knn import accuracy


class Mix:
    """MixUp (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing, as timm has them.

    Args:
        classes: K.
        mixup, cutmix: parameters of the Beta distributions that shares are drawn from; 0 for none. With both, one of
            the two for each batch.
        smoothing: probability mass that is spread over all classes.
    """

    def __init__(self, classes: int, mixup: float = 0.8, cutmix: float = 1.0, smoothing: float = 0.1):
        from timm.data import Mixup

        rate = float(mixup > 0 or cutmix > 0)
        self.mixing = Mixup(mixup, cutmix, prob=rate, label_smoothing=smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), (B,) -> images and targets (B, K) of sum 1, drawn from torch's random numbers; B is even."""
        with numpy_from_torch():
            return self.mixing(images.clone(), labels)


class FineTuning(nn.Module):
    """A classifier that learns end to end: what an engine needs of a player (a network, a loss).

    Args:
        network: images -> logits (B, K).
        mix: makes images and soft targets of a batch.
        mean, std: what images in [0, 1] are normalised by, a number for each of three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mix: Mix, mean: Iterable[float], std: Iterable[float]):
        super().__init__()
        self.network, self.mix = network, mix
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).reshape(1, 3, 1, 1), persistent=False)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K) float32."""
        return self.network((images - self.mean) / self.std).float()

    def forward(self, batch: ImageBatch, rng: Any) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Cross-entropy with soft targets, nats."""
        images, target = self.mix(batch.images, batch.labels)
        loss = -(target * torch.log_softmax(self.logits(images), 1)).sum(1).mean()
        return loss, {}

    def is_active(self, step: int) -> bool:
        """It learns at every step."""
        return True

    def describe(self, batch: ImageBatch, rng: Any) -> Mapping[str, list[float]]:
        """Nothing is drawn for an image alone."""
        return {}

    @torch.no_grad()
    def accuracy(self, batches: Iterable[ImageBatch]) -> float:
        """Top-1 in percent, in eval mode, unmixed."""
        was = self.training
        self.eval()
        pairs = [(self.logits(batch.images).argmax(1).cpu(), batch.labels.cpu()) for batch in batches]
        self.train(was)
        predicted, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return accuracy(predicted, labels)


@contextlib.contextmanager
def numpy_from_torch() -> Iterator[None]:
    """numpy's global random numbers, which timm mixes with, begin at one that torch draws; then they are put back."""
    before = np.random.get_state()
    np.random.seed(int(torch.randint(2**31, ())))
    try:
        yield
    finally:
        np.random.set_state(before)
