"""Scores an encoder's patch tokens: a linear head tells figure from ground at every pixel, features frozen.

    python tools/dense.py run=RUN data.root=DIR/weizmann-horses
    python tools/dense.py run=RUN data=segmentation data.root=FOLDER layers=[2,4,6] t=[10,40]

Images are cut to the size that the run was trained at. Layer, noise level and penalty are chosen by the hold-out's
intersection over union; the head is then fitted on train and hold-out, and the test split read once. Beside it: the
same network untrained, the pixels of each patch, and the mean mask, which sees no image. Writes OUT/dense.jsonl.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from _cli import compose, resolved, run_tool
from _session import Runtime, Session, commit, own_settings
from torch import Tensor

from ldae.data.images import ImageSet
from ldae.data.loader import in_order
from ldae.engine.runtime import describe_hardware, pick_device
from ldae.errors import ConfigError
from ldae.export import Encoder, Run, load_run
from ldae.files import replaced
from ldae.metrics.segmentation import dice, iou
from ldae.nn.patchify import patchify
from ldae.parts import Count, Natural, Positive
from linear_probe.dense import DenseHead
from linear_probe.results import markdown

SPLITS = ("train", "holdout", "test")


@dataclass(frozen=True)
class DenseSettings:
    """What is read, and what is chosen among.

    Attributes:
        run, step, weights: whose encoder.
        layers: from the middle of the encoder to the middle of the decoder if None.
        t: the usual level if None.
        penalties: of the head's squared weights.
        split: what the figures are of.
        batch: images of a forward pass.
        precision: of the network's matrix products.
        seed: told in the results; nothing is drawn.
    """

    run: str | None
    step: Natural | None
    weights: Literal["ema", "model"]
    layers: list[Count] | None
    t: list[Natural] | None
    penalties: list[Positive]
    split: Literal["test", "holdout"]
    batch: Count
    precision: Literal["fp32", "bf16"]
    seed: Natural

    def __post_init__(self) -> None:
        if not self.run:
            raise ConfigError("run", self.run, "is not set; give run=RUN, the folder that pretraining wrote (out=)")
        if not self.penalties:
            raise ConfigError("penalties", self.penalties, "must name at least one")


@dataclass(frozen=True)
class Figures:
    """Tokens of the three splits under one cell, and their masks.

    Attributes:
        tokens: split -> (M, N, D).
        masks: split -> (M, 1, H, W).
    """

    tokens: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]

    def joined(self, *splits: str) -> tuple[Tensor, Tensor]:
        """Tokens and masks of several splits, one after the other."""
        return torch.cat([self.tokens[s] for s in splits]), torch.cat([self.masks[s] for s in splits])


def main(words: Sequence[str]) -> None:
    """Composes, reads, chooses, scores."""
    config = resolved(compose("dense", words))
    settings: DenseSettings = own_settings(DenseSettings, config)
    device = pick_device(str(config["device"]))
    Runtime(**config["runtime"]).prepare()
    run = load_run(Path(settings.run or ""), settings.step, settings.weights, device)
    data = {**config["data"], "size": run.config["data"]["size"]}
    session = Session({**run.config, "device": device, "runtime": config["runtime"], "data": data})
    out = Path(config["out"] or Path(settings.run or "") / "dense")
    with session.stop.listening():
        splits = session.splits()
        untrained = load_run(Path(settings.run or ""), settings.step, "untrained", device)
        named = {run.name: run, "the same network, untrained": untrained}
        rows = [scored(name, cells_of(own, session, splits, settings), settings) for name, own in named.items()]
        rows.append(scored("pixels of a patch", [("pixels", pixels_of(run, session, splits, settings))], settings))
        rows.append(mean_mask(next(iter(cells_of(run, session, splits, settings)))[1], settings))
    known = {
        "checkpoint": run.checkpoint.hash,
        "split": settings.split,
        "images": len(getattr(splits, settings.split)),
        "data_fingerprint": splits.fingerprint,
        "seed": settings.seed,
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "hardware": describe_hardware(),
    }
    out.mkdir(parents=True, exist_ok=True)
    with replaced(out / "dense.jsonl") as file:
        file.write("".join(json.dumps({**row, **known}) + "\n" for row in rows).encode())
    print(table(rows))
    print(f"\n{out / 'dense.jsonl'} has a line for each")


def cells_of(run: Run, session: Session, splits: Any, settings: DenseSettings) -> Iterator[tuple[str, Figures]]:
    """What the run's encoder says, a layer and level at a time."""
    network = run.objective.network
    half = network.encoder_layer
    layers = settings.layers or list(range((half + 1) // 2, (half + len(network.layers)) // 2 + 1))
    for t in settings.t or [Encoder(run.objective).t]:
        for layer in layers:
            Encoder(run.objective, layer, t)  # raises if it cannot be read so
        encoder = Encoder(run.objective, t=t, precision=settings.precision)
        found = {s: read(getattr(splits, s), session, settings.batch, encoder, layers) for s in SPLITS}
        for layer in layers:
            tokens = {s: found[s][0][layer] for s in SPLITS}
            yield f"layer{layer}-t{t}", Figures(tokens, {s: found[s][1] for s in SPLITS})


def read(
    images: ImageSet, session: Session, batch: int, encoder: Encoder, layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """Tokens of all images, {layer: (M, N, D)}, and their masks."""
    tokens: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    masks = []
    for found in batches(images, session, batch):
        for layer, x in encoder.tokens(found.images, layers).items():
            tokens[layer].append(x.cpu())
        masks.append(found.masks.cpu())
    return {layer: torch.cat(parts) for layer, parts in tokens.items()}, torch.cat(masks)


def batches(images: ImageSet, session: Session, batch: int) -> Iterator[Any]:
    """Every image once, with its mask.

    Raises:
        ConfigError: the set has no masks.
    """
    workers = session.config["data"].get("workers", 0)
    for found in in_order(images, batch, session.world.device, workers, session.stop.poll):
        if found.masks is None:
            raise ConfigError("data", session.config["data"]["part"], "has no masks; use data=horses or segmentation")
        yield found


def pixels_of(run: Run, session: Session, splits: Any, settings: DenseSettings) -> Figures:
    """The pixels of each patch in place of its token."""
    h = run.config["data"]["size"] // run.config["data"]["patch"]
    tokens, masks = {}, {}
    for split in SPLITS:
        found = list(batches(getattr(splits, split), session, settings.batch))
        patches = [patchify(b.images, b.images.shape[-1] // h).flatten(2).mT.cpu() for b in found]
        tokens[split], masks[split] = torch.cat(patches), torch.cat([b.masks.cpu() for b in found])
    return Figures(tokens, masks)


def scored(name: str, cells: Any, settings: DenseSettings) -> dict[str, Any]:
    """One line: cell and penalty by the hold-out, then one fit and one look."""
    best: tuple[float, str, float, Figures] | None = None
    among = {}
    for cell, figures in cells:
        for penalty in settings.penalties:
            found = float(
                iou(head(figures, penalty, "train")(figures.tokens["holdout"]), figures.masks["holdout"]).mean()
            )
            among[cell] = max(round(100 * found, 2), among.get(cell, 0.0))
            if best is None or found > best[0]:
                best = (found, cell, penalty, figures)
    assert best is not None
    holdout, cell, penalty, figures = best
    fitted = head(figures, penalty, *(("train", "holdout") if settings.split == "test" else ("train",)))
    shown = fitted(figures.tokens[settings.split])
    chosen = {"cell": cell, "penalty": penalty, "among": among, "iou_holdout": 100 * holdout}
    return {"encoder": name, **measured(shown, figures.masks[settings.split]), "selected": chosen}


def head(figures: Figures, penalty: float, *splits: str) -> DenseHead:
    """A head fitted on some splits."""
    tokens, masks = figures.joined(*splits)
    side = math.isqrt(tokens.shape[1])
    return DenseHead(tokens, masks, (side, side), penalty)


def mean_mask(figures: Figures, settings: DenseSettings) -> dict[str, Any]:
    """The same mask for every image: figure where most training images have it."""
    _, masks = figures.joined("train", "holdout")
    truth = figures.masks[settings.split]
    return {"encoder": "mean mask", **measured(masks.mean(0, keepdim=True).expand_as(truth), truth), "selected": {}}


def measured(shown: Tensor, truth: Tensor) -> dict[str, float]:
    """Means over images, percent."""
    return {"iou": 100 * float(iou(shown, truth).mean()), "dice": 100 * float(dice(shown, truth).mean())}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Encoders as rows."""
    lines = [["encoder", "IoU", "Dice", "cell"]]
    lines += [[r["encoder"], f"{r['iou']:.1f}", f"{r['dice']:.1f}", r["selected"].get("cell", "")] for r in rows]
    return markdown(lines)


if __name__ == "__main__":
    run_tool(main)
