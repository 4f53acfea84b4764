"""What tools/bench.py compares: rows of ours and its peers on the same work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from _interleaved import Contender

# settings of glibc under which peers' training steps are faster; ours makes them itself (ldae/engine/runtime.py)
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "268435456"}


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: of the row.
        unit: of rates.
        ours: what is ours.
        peers: what it is held against.
        marks: peer -> the ratio ours / peer that is aimed at.
        peak: what is measured as the machine's limit, or None; `share` of it is aimed at.
        share: of the limit.
    """

    name: str
    unit: str
    ours: Contender
    peers: Sequence[Contender]
    marks: Mapping[str, float] = field(default_factory=dict)
    peak: Contender | None = None
    share: float | None = None

    @property
    def contenders(self) -> list[Contender]:
        """All that take turns."""
        return [self.ours, *self.peers, *([self.peak] if self.peak else [])]


def training_rows(mae: str | None) -> list[Row]:
    """Training steps at 32 px in patches of 4, bf16; the rates are of FLOP, so that sizes compare.

    Args:
        mae: folder of a checkout of facebookresearch/mae, or None.
    """
    return [_training(192, 12, 3, "vit_192x12", mae), _training(128, 8, 4, "vit_128x8", None)]


def _training(width: int, depth: int, heads: int, network: str, mae: str | None) -> Row:
    words = ["experiment=ldae/cifar10_cpu", f"denoiser={network}", "train.batch=64"]
    timm = {"width": width, "depth": depth, "heads": heads, "precision": "bf16"}
    ships, best = {"batch": 128, "fused": True, "compiled": False}, {"batch": 64, "fused": False, "compiled": True}
    peers = [
        Contender("timm as it ships", "_contenders:vit", {**timm, **ships}),
        Contender("timm at its best", "_contenders:vit", {**timm, **best}, MALLOC),
    ]
    if mae:
        given = {"folder": mae, "batch": 128, "precision": "bf16", "compiled": True}
        peers.append(Contender("MAE at its best", "_contenders:official_mae", given, MALLOC))
    return Row(
        f"training step, {width} x {depth}",
        "FLOP/s",
        Contender("l-DAE", "_contenders:training", {"words": words}),
        peers,
        {"timm as it ships": 1.8, "timm at its best": 1.1, "MAE at its best": 1.1},
        Contender("matrix product", "_contenders:matmul", {"size": 2048, "precision": "bfloat16"}),
        0.68,
    )


def knn_rows() -> list[Row]:
    """kNN of 10,000 queries in a bank of 50,000, k = 20."""
    found = []
    for dimensions in (192, 384, 768):
        size = {"bank": 50000, "queries": 10000, "dimensions": dimensions, "k": 20}
        peers = [
            Contender("faiss IndexFlatIP", "_contenders_probe:knn_faiss", size),
            Contender("scikit-learn", "_contenders_probe:knn_sklearn", size),
        ]
        ours = Contender("ldae", "_contenders_probe:knn", size)
        found.append(Row(f"kNN, D = {dimensions}", "queries/s", ours, peers, {"faiss IndexFlatIP": 1.0}))
    return found


def probe_rows() -> list[Row]:
    """Linear probes on 50,000 x 384 features of 10 classes."""
    size = {"images": 50000, "dimensions": 384}
    one, all_ = ({**size, "epochs": 2.0, "together": together} for together in (False, True))
    return [
        Row(
            "13 rates",
            "images x rates/s",
            Contender("together", "_contenders_probe:sweep", all_),
            [Contender("one after the other", "_contenders_probe:sweep", one)],
            {"one after the other": 4.5},
        ),
        Row(
            "logistic regression",
            "images/s",
            Contender("ldae", "_contenders_probe:lbfgs", size),
            [Contender("scikit-learn", "_contenders_probe:lbfgs_sklearn", size)],
            {"scikit-learn": 1 / 0.6},
        ),
    ]
