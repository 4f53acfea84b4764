"""Made-up rows for the tests of reports: no measurement of anything."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from PIL import Image

from linear_probe.results import Result
from linear_probe.rows import Row

TOKENIZERS, DIMENSIONS, LEVELS = ("made_up_pca", "made_up_vae"), (4, 8, 16, 32), (10, 100, 400)

RESULT = Result(
    encoder="made up", protocol="lbfgs", protocol_source="a made-up head", accuracy=50.0, split="test", images=100,
    selected={"penalty": 0.1, "features": "layer2-t10-clean-mean", "among": {
        "layer1-t10-clean-mean": 40.0, "layer1-t40-noised-mean": 41.0, "layer2-t10-clean-mean": 44.0,
        "layer2-t40-noised-mean": 43.0,
    }},
    selected_on="holdout", selected_accuracy=44.0, layer=2, t=10, input="clean", pooling="mean", dimensions=8,
    checkpoint="c" * 64, step=7, seed=0, data="MadeUp", data_fingerprint="f" * 64, config="a" * 64, commit="abc1234def",
    command="ldae probe run=RUN", hardware="no machine", date="2000-01-01T00:00:00+00:00",
)  # fmt: skip


def result(accuracy, protocol="lbfgs", **changes):
    return replace(RESULT, accuracy=accuracy, protocol=protocol, protocol_source=f"made-up {protocol}", **changes)


def row(trial, accuracies, paper=None, grid="made up", axes=None, **changes):
    """A row whose results are {protocol: accuracy} or a sequence of results."""
    given = [result(a, p) for p, a in accuracies.items()] if isinstance(accuracies, dict) else accuracies
    plain = Row(
        grid=grid, trial=trial, axes=axes or {}, results=given, paper=paper, paper_source="a made-up paper",
        budget="tiny", images=1234, hours=0.25, unit="core", command="ldae pretrain out=RUN",
        commit="1234567890",
    )  # fmt: skip
    return replace(plain, **changes)


def tokenizer_rows():
    """A grid of two tokenizers by four d, two protocols each, some with a deviation, no pictures."""
    rows = []
    for i, (name, d) in enumerate(product(TOKENIZERS, DIMENSIONS)):
        results = [
            result(50.0 + 3.17 * i % 7, checkpoint=f"{i}" * 64, seeds=[0, 1], deviation=0.25 + i / 100),
            result(40.0 + 2.03 * i % 5, "knn", checkpoint=f"{i}" * 64),
        ]
        axes = {"tokenizer": name, "d": d}
        rows.append(row(f"{name}-{d}", results, 60.0 + 1.1 * i % 4, "made-up tokenizers", axes))
    return rows


def baselines():
    """A trained baseline and two training-free ones."""
    return [
        result(52.5, encoder="MAE, made up", checkpoint="e" * 64),
        result(31.25, encoder="raw pixels", checkpoint="none"),
        result(30.5, "knn", encoder="raw pixels", checkpoint="none"),
        result(28.75, encoder="PCA", checkpoint="none"),
    ]


def with_pictures(rows, root):
    """The rows with images denoised at three levels and filters each, drawn below `root`."""
    return [replace(r, pictures=_pictures(i, root)) for i, r in enumerate(rows)]


def _pictures(i, root):
    random, names = np.random.default_rng(i), {}
    for name in [*(f"denoised t={t} sigma={t / 1000:g}" for t in LEVELS), "filters"]:
        file = f"{i}-{name.replace(' ', '-')}.png"
        pixels = random.integers(0, 256, (24, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 48), Image.Resampling.NEAREST).save(root / file)
        names[name] = file
    return names
