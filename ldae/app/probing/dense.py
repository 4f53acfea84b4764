"""Score an encoder's patch tokens by segmentation: a linear head on frozen features predicts a mask.

    ldae dense run=RUN data.root=DIR/weizmann-horses
    ldae dense run=RUN data=segmentation data.root=FOLDER layers=[2,4,6] t=[10,40]

Crops images to the size of the run's training. Selects layer, noise level and penalty by the intersection over union
on the hold-out, then fits the head on train and hold-out and reads the test split once. The baselines are the same
network untrained, the pixels of each patch, and the mean training mask. Writes OUT/dense.jsonl.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.probing.tables import place_of
from ldae.app.provenance import command, commit
from ldae.app.session import Session, make_out, own_settings, prepare_machine
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import open_atomic
from ldae.core.types import Batch, Count, Natural, Positive
from ldae.data.loader import in_order
from ldae.engine.runtime import describe_hardware
from ldae.export.encoder import Encoder, Run, load_run
from ldae.metrics.segmentation import dice, iou
from ldae.nn.patchify import patchify
from linear_probe.checks import FEWEST_HELD_OUT
from linear_probe.dense import DenseHead
from linear_probe.results import markdown


@dataclass(frozen=True)
class DenseSettings:
    """Configure a dense probe: the encoder, the features to read and the candidate penalties.

    Attributes:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        layers: layers to read; from the middle of the encoder to the middle of the decoder if None.
        t: diffusion steps to condition the network on; the objective's default if None.
        penalties: candidate L2 penalties of the head's weights.
        split: `test`, or `holdout` to leave the test split unread.
        batch: images per forward pass.
        precision: precision of the network's matrix products.
        seed: recorded in the results; the probe itself draws nothing.
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


@dataclass(frozen=True)
class TokenFeatures:
    """Where tokens are read: one of those among which the hold-out chooses.

    Attributes:
        name: as in the results.
        tokens: split -> (M, N, D).
    """

    name: str
    tokens: Callable[[str], Tensor]


class Figures:
    """Images with masks, each split read when it is asked for.

    Args:
        session: machine and data.
        batch: images of a forward pass.
    """

    def __init__(self, session: Session, batch: int):
        self.session, self.batch, self.splits = session, batch, session.splits()
        self.known: dict[str, Tensor] = {}

    def batches(self, split: str) -> Iterator[Batch]:
        """Every image of a split once, with its mask.

        Raises:
            ConfigError: the set has no masks.
        """
        data, images = self.session.config["data"], getattr(self.splits, split)
        device, poll = self.session.world.device, self.session.stop.poll
        for found in in_order(images, self.batch, device, data.get("workers", 0), poll):
            if found.masks is None:
                raise ConfigError("data", data["part"], "has no masks; use data=horses or segmentation")
            yield found

    def masks(self, *splits: str) -> Tensor:
        """(M, 1, H, W), splits one after the other."""
        for split in splits:
            if split not in self.known:
                self.known[split] = torch.cat([b.masks.cpu() for b in self.batches(split) if b.masks is not None])
        return torch.cat([self.known[split] for split in splits])


def main(argv: Sequence[str]) -> None:
    """Run `ldae dense`."""
    config, precision = settle_precision(resolved(compose("dense", argv)))
    settings: DenseSettings = own_settings(DenseSettings, config)
    announce(precision)
    device = prepare_machine(config)
    run = load_run(Path(settings.run or ""), settings.step, settings.weights, device)
    data = {**config["data"], "size": run.config["data"]["size"]}
    session = Session({**run.config, "device": device, "runtime": config["runtime"], "data": data})
    out = Path(config["out"] or Path(settings.run or "") / "dense")
    with session.stop.listening(), session.stop.at_once():
        figures = Figures(session, settings.batch)
        warnings = checked(figures, settings, data)
        untrained = load_run(Path(settings.run or ""), settings.step, "untrained", device)
        named = {run.name: trials_of(run, figures, settings)}
        named["the same network, untrained"] = trials_of(untrained, figures, settings)
        named["pixels of a patch"] = [pixels_of(run, figures)]
        rows = [scored(name, feature_keys, figures, settings) for name, feature_keys in named.items()]
        rows.append(mean_mask(figures, settings.split))
    known = {
        "checkpoint": run.checkpoint.hash,
        "split": settings.split,
        "images": len(figures.masks(settings.split)),
        "data_fingerprint": figures.splits.fingerprint,
        "warnings": warnings,
        "seed": settings.seed,
        "commit": commit(),
        "command": command(),
        "hardware": describe_hardware(),
    }
    make_out(out)
    with open_atomic(out / "dense.jsonl") as file:
        file.write("".join(json.dumps({**row, **known}) + "\n" for row in rows).encode())
    print(table(rows))
    print("".join(f"\nWarning: {sentence}." for sentence in warnings))
    print(f"\n{out / 'dense.jsonl'} has a line for each")


def checked(figures: Figures, settings: DenseSettings, data: Mapping[str, Any]) -> list[str]:
    """Return what makes the figures doubtful; it is printed on stderr too.

    Raises:
        DataError: a split has no images, or its masks are figure, or ground, at every pixel.
    """
    found = []
    for split in dict.fromkeys(("train", "holdout", settings.split)):
        count = len(getattr(figures.splits, split))
        if not count:
            raise DataError(f"{place_of(data)} has no image in {split}: there is nothing to score; give more images")
        share = float(figures.masks(split).mean())
        if share in (0, 1):
            raise DataError(f"{place_of(data)}: the masks of {split} are {'figure' if share else 'ground'} at every "
                            "pixel: there is nothing to score")  # fmt: skip
        if split != "train" and count < FEWEST_HELD_OUT:
            found.append(f"{split} has {count} images: one is {100 / count:.1f} % of the mean")
    for sentence in found:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
    return found


def trials_of(run: Run, figures: Figures, settings: DenseSettings) -> list[TokenFeatures]:
    """What the run's encoder says after each layer, at each level.

    Raises:
        ConfigError: it cannot be read so.
    """
    network = run.objective.network
    half = network.encoder_layer
    layers = settings.layers or list(range((half + 1) // 2, (half + len(network.layers)) // 2 + 1))
    found = []
    for t in settings.t or [Encoder(run.objective).t]:
        for layer in layers:
            Encoder(run.objective, layer, t)  # raises if it cannot be read so
        encoder = Encoder(run.objective, t=t, precision=settings.precision)
        read = partial(tokens_of, encoder, figures, layers, {})
        found += [TokenFeatures(f"layer{layer}-t{t}", partial(read, layer)) for layer in layers]
    return found


def tokens_of(
    encoder: Encoder,
    figures: Figures,
    layers: Sequence[int],
    known: dict[str, dict[int, Tensor]],
    layer: int,
    split: str,
) -> Tensor:
    """Tokens of a split: of train and hold-out for all layers in one pass, of test for one layer alone."""
    if split == "test":
        return torch.cat([encoder.tokens(batch.images, [layer])[layer].cpu() for batch in figures.batches(split)])
    if split not in known:
        found = [encoder.tokens(batch.images, layers) for batch in figures.batches(split)]
        known[split] = {n: torch.cat([tokens[n].cpu() for tokens in found]) for n in layers}
    return known[split][layer]


def pixels_of(run: Run, figures: Figures) -> TokenFeatures:
    """The pixels of each patch in place of its token."""
    p = run.config["data"]["patch"]
    return TokenFeatures(
        "pixels",
        lambda split: torch.cat([patchify(b.images, p).flatten(2).mT.cpu() for b in figures.batches(split)]),
    )


def scored(
    name: str, feature_keys: Sequence[TokenFeatures], figures: Figures, settings: DenseSettings
) -> dict[str, Any]:
    """One line: cell and penalty by the hold-out, then one fit and one look."""
    truth, found = figures.masks("holdout"), []
    for feature_key in feature_keys:
        held = feature_key.tokens("holdout")
        for penalty in settings.penalties:
            shown = fitted(feature_key, figures, penalty, "train")(held)
            found.append((100 * float(iou(shown, truth).mean()), feature_key, penalty))
    holdout, feature_key, penalty = max(found, key=lambda choice: choice[0])
    head = fitted(feature_key, figures, penalty, *(("train", "holdout") if settings.split == "test" else ("train",)))
    among = {c.name: round(max(score for score, own, _ in found if own is c), 2) for c in feature_keys}
    chosen = {"cell": feature_key.name, "penalty": penalty, "among": among, "iou_holdout": holdout}
    figure = measured(head(feature_key.tokens(settings.split)), figures.masks(settings.split))
    return {"encoder": name, **figure, "selected": chosen}


def fitted(feature_key: TokenFeatures, figures: Figures, penalty: float, *splits: str) -> DenseHead:
    """A head fitted on some splits."""
    tokens = torch.cat([feature_key.tokens(split) for split in splits])
    side = math.isqrt(tokens.shape[1])
    return DenseHead(tokens, figures.masks(*splits), (side, side), penalty)


def mean_mask(figures: Figures, split: str) -> dict[str, Any]:
    """The same mask for every image: figure where most training images have it."""
    known = ("train", "holdout") if split == "test" else ("train",)
    truth = figures.masks(split)
    return {
        "encoder": "mean mask",
        **measured(figures.masks(*known).mean(0, keepdim=True).expand_as(truth), truth),
        "selected": {},
    }


def measured(shown: Tensor, truth: Tensor) -> dict[str, float]:
    """Means over images, percent."""
    return {"iou": 100 * float(iou(shown, truth).mean()), "dice": 100 * float(dice(shown, truth).mean())}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Encoders as rows."""
    lines = [["encoder", "IoU", "Dice", "cell"]]
    lines += [[r["encoder"], f"{r['iou']:.1f}", f"{r['dice']:.1f}", r["selected"].get("cell", "")] for r in rows]
    return markdown(lines)
