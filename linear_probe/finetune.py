"""Fine-tune an encoder and a new linear head end to end on labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linear_probe.features import ImageBatch


class Mix:
    """MixUp (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing by timm.

    Args:
        classes: number of classes K.
        mixup, cutmix: parameters of the Beta distributions of the mixing ratio, >= 0; 0 switches one off. With both,
            each batch uses one of the two.
        smoothing: probability mass that is spread over all classes, in [0, 1].
    """

    def __init__(self, classes: int, mixup: float = 0.8, cutmix: float = 1.0, smoothing: float = 0.1):
        from timm.data import Mixup

        rate = float(mixup > 0 or cutmix > 0)
        self.mixing = Mixup(mixup, cutmix, prob=rate, label_smoothing=smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W) with labels (B,), B even, by torch's global random numbers.

        Returns:
            Mixed images (B, 3, H, W) and soft targets (B, K), each of sum 1.
        """
        with numpy_from_torch():
            return self.mixing(images.clone(), labels)


class FineTuning(nn.Module):
    """Trainable module of a classifier: the network and its loss.

    Args:
        network: function from normalised images (B, 3, H, W) to logits (B, K).
        mix: mixes the images and labels of a batch.
        mean, std: normalisation of images in [0, 1], a number for each of three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mix: Mix, mean: Iterable[float], std: Iterable[float]):
        super().__init__()
        self.network, self.mix = network, mix
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).reshape(1, 3, 1, 1), persistent=False)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) float32 of images (B, 3, H, W) in [0, 1]."""
        return self.network((images - self.mean) / self.std).float()

    def forward(self, batch: ImageBatch, rng: Any) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return the cross-entropy with soft targets in nats, (), and no additional losses."""
        images, target = self.mix(batch.images, batch.labels)
        loss = -(target * torch.log_softmax(self.logits(images), 1)).sum(1).mean()
        return loss, {}

    def is_active(self, step: int) -> bool:
        """Return True: the module is updated at every step."""
        return True

    def describe(self, batch: ImageBatch, rng: Any) -> Mapping[str, list[float]]:
        """Return an empty mapping: no random numbers belong to a single image."""
        return {}

    @torch.no_grad()
    def correct(self, batches: Iterable[ImageBatch]) -> Tensor:
        """Return which images are classified correctly, (N,) bool, in eval mode and without mixing."""
        was = self.training
        self.eval()
        pairs = [(self.logits(batch.images).argmax(1).cpu(), batch.labels.cpu()) for batch in batches]
        self.train(was)
        predicted, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return predicted == labels


@contextlib.contextmanager
def numpy_from_torch() -> Iterator[None]:
    """Seed NumPy's global generator, which timm uses, from torch's for the block; restore its state afterwards."""
    before = np.random.get_state()
    np.random.seed(int(torch.randint(2**31, ())))
    try:
        yield
    finally:
        np.random.set_state(before)
