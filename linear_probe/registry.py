"""List the protocols by name, with the hyper-parameters of their papers."""

from __future__ import annotations

from collections.abc import Mapping

from linear_probe.augmented_heads import AugmentedHeads
from linear_probe.heads import HeadRecipe
from linear_probe.outliers import Energy, NeighbourDistance
from linear_probe.protocols import KNN, LBFGS, Protocol, SGDHeads
from linear_probe.retrieval import Retrieval

CACHED = "features cached once, centre crop (no augmentation in probe training)"

MAE = SGDHeads(
    "mae",
    f"arXiv 2111.06377 Tab. 10: BatchNorm without affine, LARS, base rate 0.1, "
    f"batch 16384, 90 epochs, warm-up 10; {CACHED}",
    HeadRecipe((6.4,), batch=16384, epochs=90, rule="lars", warmup=1 / 9, batch_norm=True),
)
PAPER = SGDHeads(
    "paper",
    "arXiv 2401.14404 App. A: as MAE's; the printed rate 6.4e-3 is ambiguous, so LARS rates 6.4 x "
    f"{{0.001, ..., 10}} are swept; {CACHED}",
    HeadRecipe(
        (6.4e-3, 6.4e-2, 0.64, 2.0, 6.4, 20.0, 64.0), batch=16384, epochs=90, rule="lars", warmup=1 / 9, batch_norm=True
    ),
)
DINOV2 = SGDHeads(
    "dinov2",
    f"arXiv 2304.07193 App. B.3: SGD, 13 rates, 12,500 steps of 1024; {CACHED}",
    HeadRecipe(
        tuple(4 * r for r in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)),
        steps=12500,
        batch=1024,
    ),
)
DDAE = SGDHeads(
    "ddae",
    "arXiv 2303.09769, as its public code has it for CIFAR-10: features as they are, Adam, 1e-3 and 128 images on each "
    f"of 4 GPUs (4e-3 and 512), 15 epochs, the rate falling along a cosine once an epoch; {CACHED}",
    HeadRecipe((4e-3,), batch=512, epochs=15, rule="adam", start="linear", whole=True, stairs=True),
)

CUT = "random resized crop of 8 to 100 % and flip"  # as MAE's and DINOv2's linear probes have it
SHIFT = "shift by up to 4 pixels and flip"

PROTOCOLS: Mapping[str, Protocol] = {
    p.name: p
    for p in (
        LBFGS(),
        KNN(),
        KNN(whiten=True),
        PAPER,
        MAE,
        DINOV2,
        DDAE,
        AugmentedHeads(PAPER, "random_resized_crop", CUT),
        AugmentedHeads(MAE, "random_resized_crop", CUT),
        AugmentedHeads(DINOV2, "random_resized_crop", CUT),
        AugmentedHeads(DDAE, "pad_crop", SHIFT),
        Retrieval(),
        NeighbourDistance(),
        Energy(),
    )
}
