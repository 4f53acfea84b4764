"""Draws images from a trained diffusion model.

    python tools/sample.py run=RUN
    python tools/sample.py run=RUN sampler=ddim spacing=quadratic spacing.count=50 count=1000
    python tools/sample.py run=RUN classes=[3] guidance=1.5

Writes OUT/grid.png (the first 64), OUT/samples.npz (arr_0: (N, H, W, 3) uint8; arr_1: labels, if any were told), and
OUT/samples.json: what was drawn, how, from which checkpoint. The same command again goes on where it stopped;
`torchrun --nproc_per_node=N tools/sample.py ...` shares the work. An image depends on seed and its number alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cli import compose, resolved, run_tool
from _films import Film
from _generators import described, generator_of
from _session import Session, finished, own_settings, session_of
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ldae.diffusion.starts import Coarse, Start
from ldae.engine.logging import save_png
from ldae.engine.run import RunFolder
from ldae.errors import ConfigError
from ldae.files import replaced, write_json
from ldae.generate import Generator
from ldae.objectives.panels import in_colour, tiled
from ldae.parts import Count, Natural
from ldae.system import System
from ldae.types import Cond

GRID = 64  # images in grid.png


@dataclass(frozen=True)
class SampleSettings:
    """What is drawn.

    Attributes:
        count: images.
        batch: images at once.
        classes: labels to tell, in turn; all in turn if None.
        gif: whether the way of the first images is drawn too.
    """

    count: Count
    batch: Count
    classes: list[Natural] | None
    gif: bool


def main(words: Sequence[str]) -> None:
    """Composes, loads, draws what is missing, puts it together."""
    config = resolved(compose("sample", words))
    settings: SampleSettings = own_settings(SampleSettings, config)
    generator, run = generator_of(config)
    labels = labels_of(generator, settings)
    session = session_of(run, config)
    folder = RunFolder(Path(config["out"] or Path(config["run"]) / "samples"))
    with session.running(folder):
        known = {**config, "checkpoint": run.checkpoint.hash}
        if finished(folder, known):
            print(f"{folder.path} is finished; nothing to do")
            return
        if session.world.main:
            write_json(folder.path / "config.json", known)
            (folder.path / "shards").mkdir(exist_ok=True)
        session.world.wait()
        generator.begin = beginning(generator, config, session)
        shards = math.ceil(settings.count / settings.batch)
        mine = [k for k in range(shards) if k % session.world.size == session.world.rank]
        for k in tqdm(mine, "sampling", unit="batch", disable=not session.runtime.bars or not session.world.main):
            session.stop.poll()
            draw(k, folder, generator, settings, labels, session)
        session.world.wait()
        if session.world.main:
            images = gathered(folder, shards)
            finish(folder, images, labels, described(config, run))
            folder.set_status("done", settings.count)
            print(f"done: {folder.path}\n  look at {folder.path / 'grid.png'}")


def labels_of(generator: Generator, settings: SampleSettings) -> Tensor | None:
    """The label of every image, (count,) int64, or None where the network is told none.

    Raises:
        ConfigError: labels that the network does not know.
    """
    known = generator.objective.task.classes
    asked = settings.classes
    if asked is not None and (not known or max(asked) >= known):
        raise ConfigError(
            "classes", asked, f"must be labels of this run, which has {known}" if known else "is not told"
        )
    if not known:
        return None
    turn = torch.tensor(asked or list(range(known)))
    return turn[torch.arange(settings.count) % len(turn)]


def beginning(generator: Generator, config: Mapping[str, Any], session: Session) -> Start | None:
    """Where a cold generation begins, fitted on training images; None: in noise."""
    if not config.get("start"):
        return None
    objective = generator.objective
    session.show_partners(objective.corruption)
    parts = System({**session.config, "start": config["start"]})
    parts.made |= {"corruption": objective.corruption, "schedule": objective.schedule}
    start: Start = parts["start"].to(session.world.device)
    if isinstance(start, Coarse):
        start.fit(session.images(session.splits().train))
    return start


def draw(
    k: int, folder: RunFolder, generator: Generator, settings: SampleSettings, labels: Tensor | None, session: Session
) -> None:
    """The images of one batch, unless they are there already."""
    index = range(k * settings.batch, min((k + 1) * settings.batch, settings.count))
    path = folder.path / "shards" / f"{k:06d}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) == len(index):
        return
    cond = None if labels is None else Cond(label=labels[index.start : index.stop].to(generator.device))
    film = Film(generator, shown=8) if settings.gif and not k else None

    def watch(i: int, stage: Any, x: Tensor, x0: Tensor) -> None:
        session.stop.poll()
        if film:
            film(i, stage, x, x0)

    pixels = (generator.from_noise(list(index), cond, watch) * 255).round().to(torch.uint8)
    with replaced(path) as file:
        np.save(file, rearrange(pixels, "b c h w -> b h w c").cpu().numpy())
    if film:
        film.save(folder.path / "way.gif")


def gathered(folder: RunFolder, shards: int) -> np.ndarray:
    """All images, (N, H, W, C) uint8."""
    return np.concatenate([np.load(folder.path / "shards" / f"{k:06d}.npy") for k in range(shards)])


def finish(folder: RunFolder, images: np.ndarray, labels: Tensor | None, known: Mapping[str, Any]) -> None:
    """samples.npz, the grid, and what they are."""
    told = {} if labels is None else {"arr_1": labels.numpy()}
    with replaced(folder.path / "samples.npz") as file:
        np.savez(file, arr_0=images, **told)
    save_png(folder.path / "grid.png", grid(images[:GRID]))
    write_json(folder.path / "samples.json", {**known, "images": len(images)})
    shutil.rmtree(folder.path / "shards", ignore_errors=True)


def grid(images: np.ndarray) -> Tensor:
    """Up to 64 images (N, H, W, C) uint8 in rows of eight."""
    x = in_colour(torch.from_numpy(images).movedim(-1, 1).float() / 255)
    columns = min(8, len(x))
    padding = torch.ones(-len(x) % columns, *x.shape[1:])
    return tiled(rearrange(torch.cat([x, padding]), "(r c) k h w -> r c k h w", c=columns))


if __name__ == "__main__":
    run_tool(main)
