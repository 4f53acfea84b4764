"""Draws what a run's network restores: eight hold-out images clean, noised and denoised, a picture for each level.

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
INDEX = "pictures.json"  # what each shows -> its file


def main(argv: Sequence[str]) -> None:
    """Loads, draws, writes a folder with an index."""
    given = dict(word.split("=", 1) for word in argv if "=" in word)
    if set(given) != {"run", "out"}:
        raise UsageError("usage: python -m ldae.app.ablation.denoising_images run=RUN out=FOLDER")
    run, out = Path(given["run"]), Path(given["out"])
    loaded = load_run(run)
    names: dict[str, str] = {}
    with publish_folder(out) as folder:
        if isinstance(loaded.objective, Denoise):
            session = Session({**loaded.config, "device": "cpu", "runtime": {"threads": 1, "progress": False}})
            images = session.splits()
            batch = preview(session, images.holdout if len(images.holdout) else images.train, SHOWN)
            for t, picture in denoising_images(loaded.objective, batch):
                names[f"denoised t={t}"] = f"t{t:04d}.png"  # below clean and noised; the report knows this name
                save_png(folder / f"t{t:04d}.png", picture)
        filters = run / "pictures" / "tokenizer_filters.png"
        if filters.exists():
            names["the tokenizer's filters"] = "filters.png"
            shutil.copyfile(filters, folder / "filters.png")
        write_sealed_json(folder / INDEX, names)


@torch.no_grad()
def denoising_images(objective: Denoise, batch: Batch) -> Iterator[tuple[int, torch.Tensor]]:
    """(t, picture) for five levels; the picture's rows are clean, noised and denoised, its columns the images."""
    clean = (objective.task(batch)[0] + 1) / 2  # (B, C, H, W)
    for sixteenth in SIXTEENTHS:
        t = min(sixteenth * objective.schedule.T // 16, objective.usable - 1)
        level = objective.schedule.at(torch.full((len(clean),), t))
        answers = objective.denoise(batch, level, BatchGenerator([seed_of(sixteenth)]))
        rows = [clean, *((x + 1) / 2 for x in answers)]
        yield t, tile(torch.stack([to_rgb(x.clamp(0, 1)) for x in rows]), least=32)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
