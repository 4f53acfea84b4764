"""Draw eight hold-out images clean, noised and denoised by a run, a picture for each noise level.

    python -m ldae.app.ablation.denoising_images run=RUN out=FOLDER

Part of ldae ablate. Images and noise are the same for every run of the same data.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ldae.app.cli import guarded
from ldae.app.session import Session
from ldae.app.training.monitors import preview
from ldae.core.errors import UsageError
from ldae.core.files import publish_folder, write_sealed_json
from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator
from ldae.engine.logging import save_png
from ldae.export.encoder import load_run
from ldae.objectives.denoise import Denoise
from ldae.objectives.panels import tile, to_rgb

SHOWN = 8
SIXTEENTHS = (1, 2, 4, 8, 14)  # of the schedule's steps
INDEX = "pictures.json"  # {title: file}


def main(argv: Sequence[str]) -> None:
    """Draw the pictures of a run into a folder with an index."""
    keys = dict(word.split("=", 1) for word in argv if "=" in word)
    if set(keys) != {"run", "out"}:
        raise UsageError("usage: python -m ldae.app.ablation.denoising_images run=RUN out=FOLDER")
    run, out = Path(keys["run"]), Path(keys["out"])
    loaded = load_run(run)
    names: dict[str, str] = {}
    with publish_folder(out) as folder:
        if isinstance(loaded.objective, Denoise):
            session = Session({**loaded.config, "device": "cpu", "runtime": {"threads": 1, "progress": False}})
            images = session.splits()
            batch = preview(session, images.holdout if len(images.holdout) else images.train, SHOWN)
            for t, sigma, picture in denoising_images(loaded.objective, batch):
                names[f"denoised t={t} sigma={sigma:.2g}"] = f"t{t:04d}.png"  # the report matches this title
                save_png(folder / f"t{t:04d}.png", picture)
        filters = run / "pictures" / "tokenizer_filters.png"
        if filters.exists():
            names["the tokenizer's filters"] = "filters.png"
            shutil.copyfile(filters, folder / "filters.png")
        write_sealed_json(folder / INDEX, names)


@torch.no_grad()
def denoising_images(objective: Denoise, batch: Batch) -> Iterator[tuple[int, float, torch.Tensor]]:
    """Yield (t, sigma, picture) for five levels; rows are clean, noised and denoised, columns are images."""
    clean = (objective.task(batch)[0] + 1) / 2  # (B, C, H, W)
    for sixteenth in SIXTEENTHS:
        t = min(sixteenth * objective.schedule.T // 16, objective.usable - 1)
        level = objective.schedule.at(torch.full((len(clean),), t))
        restored = objective.denoise(batch, level, BatchGenerator([seed_of(sixteenth)]))
        rows = [clean, *((x + 1) / 2 for x in restored)]
        yield t, float(level.sigma[0]), tile(torch.stack([to_rgb(x.clamp(0, 1)) for x in rows]), least=32)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
