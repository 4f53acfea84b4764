"""Score an encoder's patch tokens by segmentation: a linear head on frozen features predicts the class of each pixel.

    ldae dense run=RUN data.root=DIR/weizmann-horses
    ldae dense run=RUN data=segmentation data.root=FOLDER layers=[2,4,6] t=[10,40]
    ldae dense run=RUN data=segmentation data.root=FOLDER data.classes=21      # masks hold the class of each pixel

Crops images to the size of the run's training. Selects layer, noise level and penalty by the intersection over union
on the hold-out, then fits the head on train and hold-out and reads the test split once. The baselines are the same
network untrained, the pixels of each patch, and the mean training mask. With several classes (data.classes=K), the
score is the mean IoU over the classes. Writes OUT/dense.jsonl.
"""

from __future__ import annotations

import datetime
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
from ldae.app.probing.encoders import UNTRAINED, default_layers
from ldae.app.probing.feature_reading import Images
from ldae.app.probing.tables import data_source
from ldae.app.provenance import command, commit
from ldae.app.session import Session, make_out, prepare_machine, root_settings, session_of
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import json_hash, open_atomic
from ldae.core.types import Batch, Count, Natural, Positive
from ldae.engine.runtime import describe_hardware
from ldae.export.encoder import Encoder, Run, load_run
from ldae.metrics.segmentation import class_iou, dice, iou, vote
from ldae.nn.patchify import patchify
from linear_probe.checks import FEWEST_HELD_OUT
from linear_probe.dense import DenseHead
from linear_probe.results import Result, markdown, pack_values
from linear_probe.statistics import interval

SOURCE = (
    "linear head on patch tokens, bilinearly upsampled logits (Sec. 7.4 of arXiv 2304.07193), L2 penalty and features "
    "chosen on the hold-out"
)


@dataclass(frozen=True)
class DenseSettings:
    """Configure a dense probe: the encoder, the features to read and the candidate penalties.

    Attributes:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        baseline: `untrained` scores the same network with random weights alone.
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
    baseline: Literal["untrained"] | None
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
    """Candidate features for the selection on the hold-out.

    Attributes:
        name: name in the results.
        tokens: {split: (M, N, D)}, as a function.
    """

    name: str
    tokens: Callable[[str], Tensor]


class MaskedImages(Images):
    """Images with masks, each split read on first use.

    Args:
        session: device and data.
        out: folder of the results.
        batch: images per forward pass.
        seed: recorded seed.
    """

    def __init__(self, session: Session, out: Path, batch: int, seed: int):
        super().__init__(session, session.splits(), out, batch, seed)
        self.cached_masks: dict[str, Tensor] = {}

    def batches(self, split: str) -> Iterator[Batch]:
        """Yield every image of a split once, with its mask.

        Raises:
            ConfigError: the set has no masks.
        """
        for batch in self.in_order(self.split(split)):
            if batch.masks is None:
                part = self.session.config["data"]["part"]
                raise ConfigError("data", part, "has no masks; use data=horses or segmentation")
            yield batch

    def masks(self, *splits: str) -> Tensor:
        """Return the masks (M, K, H, W) of splits, concatenated; K = 1 for a foreground."""
        for split in splits:
            if split not in self.cached_masks:
                self.cached_masks[split] = torch.cat(
                    [b.masks.cpu() for b in self.batches(split) if b.masks is not None]
                )
        return torch.cat([self.cached_masks[split] for split in splits])


def main(argv: Sequence[str]) -> None:
    """Run `ldae dense`."""
    config, precision = settle_precision(resolved(compose("dense", argv)))
    settings: DenseSettings = root_settings(DenseSettings, config)
    announce(precision)
    device = prepare_machine(config)
    run = load_run(Path(settings.run or ""), settings.step, settings.weights, device)
    session = session_of(run, {**config, "device": device})
    out = Path(config["out"] or Path(settings.run or "") / "dense")
    with session.stop.listening(), session.stop.at_once():
        images = MaskedImages(session, out, settings.batch, settings.seed)
        warnings = check_masks(images, settings)
        rows = [score_encoder(*named, images, settings) for named in encoders_of(run, images, settings)]
        rows += [] if settings.baseline else [mean_mask(images, settings.split)]
    provenance = {
        "checkpoint": run.checkpoint.hash,
        "split": settings.split,
        "images": len(images.masks(settings.split)),
        "data_fingerprint": images.splits.fingerprint,
        "warnings": warnings,
        "seed": settings.seed,
        "commit": commit(),
        "command": command(),
        "hardware": describe_hardware(),
    }
    make_out(out)
    with open_atomic(out / "dense.jsonl") as file:
        file.write("".join(json.dumps({**row, **provenance}) + "\n" for row in rows).encode())
    print(table(rows))
    print("".join(f"\nWarning: {sentence}." for sentence in warnings))
    print(f"\n{out / 'dense.jsonl'} has a line for each")


def score(argv: Sequence[str]) -> list[Result]:
    """Return the result of the encoder alone, or of the `baseline=` that the arguments name; write nothing."""
    config, _ = settle_precision(resolved(compose("dense", argv)))
    settings: DenseSettings = root_settings(DenseSettings, config)
    device = prepare_machine(config)
    run = load_run(Path(settings.run or ""), settings.step, settings.weights, device)
    session = session_of(run, {**config, "device": device})
    with session.stop.listening(), session.stop.at_once():
        images = MaskedImages(session, Path(config["out"] or "."), settings.batch, settings.seed)
        warnings = check_masks(images, settings)
        name, candidates = next(encoders_of(run, images, settings))
        row = score_encoder(name, candidates, images, settings)
    features = row["selected"]["features"]
    layer, t = (int(part[start:]) for part, start in zip(features.split("-"), (len("layer"), 1), strict=True))
    selected = {key: value for key, value in row["selected"].items() if key != "among"}
    among = {f"{key}-clean-tokens": value for key, value in row["selected"]["among"].items()}
    values = row["per_image"]
    certain = interval(values) if values else None
    return [
        Result(
            encoder=name,
            protocol="dense",
            protocol_source=SOURCE,
            accuracy=row["iou"],
            split=settings.split,
            images=len(images.masks(settings.split)),
            selected={**selected, "features": f"{features}-clean-tokens", "among": among},
            selected_on="holdout",
            selected_accuracy=row["selected"]["iou_holdout"],
            layer=layer,
            t=t,
            input="clean",
            pooling="tokens",
            dimensions=row["dimensions"],
            checkpoint="none" if settings.baseline else run.checkpoint.hash,
            step=0 if settings.baseline else run.checkpoint.step,
            seed=run.config["seed"],
            data=session.parts.data.name,
            data_fingerprint=images.splits.fingerprint,
            config=json_hash(run.config),
            commit=commit(),
            command=command(),
            hardware=describe_hardware(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            warnings=warnings,
            low=certain.low if certain else None,
            high=certain.high if certain else None,
            measure="IoU" if values else "mIoU",
            values=pack_values(values) if values else "",
            further={name: row[key] for key, name in (("dice", "Dice"), ("pixels", "pixel accuracy")) if key in row},
        )
    ]


def encoders_of(
    run: Run, images: MaskedImages, settings: DenseSettings
) -> Iterator[tuple[str, Sequence[TokenFeatures]]]:
    """Yield name and candidate features of the encoder, the same network untrained, and the pixels of each patch."""
    if settings.baseline != "untrained":
        yield run.name, feature_candidates(run, images, settings)
    yield UNTRAINED, feature_candidates(run.untrained(), images, settings)
    if settings.baseline != "untrained":
        yield "pixels of a patch", [pixel_features(run, images)]


def check_masks(images: MaskedImages, settings: DenseSettings) -> list[str]:
    """Return warnings about the scores, and print them on stderr.

    Raises:
        DataError: a split has no images, or its masks are all foreground or all background, at every pixel.
    """
    source, warnings = data_source(images.session.config["data"]), []
    for split in dict.fromkeys(("train", "holdout", settings.split)):
        count = len(images.split(split))
        if not count:
            raise DataError(f"{source} has no image in {split}: there is nothing to score; give more images")
        fractions = images.masks(split).mean((0, 2, 3))
        if len(fractions) == 1 and float(fractions) in (0, 1):
            side = "foreground" if float(fractions) else "background"
            raise DataError(f"{source}: the masks of {split} are {side} at every pixel: there is nothing to score")
        if len(fractions) > 1 and (fractions > 0).sum() < 2:
            raise DataError(f"{source}: the masks of {split} have fewer than two classes: there is nothing to score")
        if split != "train" and count < FEWEST_HELD_OUT:
            warnings.append(f"{split} has {count} images: one is {100 / count:.1f} % of the mean")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return warnings


def feature_candidates(run: Run, images: MaskedImages, settings: DenseSettings) -> list[TokenFeatures]:
    """Return the candidate features of a run's encoder: each layer at each noise level.

    Raises:
        ConfigError: the encoder has no such layer or step.
    """
    layers = list(settings.layers or default_layers(run.objective.network))
    candidates = []
    for t in settings.t or [Encoder(run.objective).t]:
        for layer in layers:
            Encoder(run.objective, layer, t)  # raises for an invalid layer or step
        encoder = Encoder(run.objective, t=t, precision=settings.precision)
        read = partial(read_tokens, encoder, images, layers, {})
        candidates += [TokenFeatures(f"layer{layer}-t{t}", partial(read, layer)) for layer in layers]
    return candidates


def read_tokens(
    encoder: Encoder,
    images: MaskedImages,
    layers: Sequence[int],
    cache: dict[str, dict[int, Tensor]],
    layer: int,
    split: str,
) -> Tensor:
    """Return the tokens (M, N, D) of a split; one pass caches all layers, except on test."""
    if split == "test":
        return torch.cat([encoder.tokens(batch.images, [layer])[layer].cpu() for batch in images.batches(split)])
    if split not in cache:
        batches = [encoder.tokens(batch.images, layers) for batch in images.batches(split)]
        cache[split] = {n: torch.cat([tokens[n].cpu() for tokens in batches]) for n in layers}
    return cache[split][layer]


def pixel_features(run: Run, images: MaskedImages) -> TokenFeatures:
    """Return the pixels of each patch as features."""
    p = run.config["data"]["patch"]
    return TokenFeatures(
        "pixels",
        lambda split: torch.cat([patchify(b.images, p).flatten(2).mT.cpu() for b in images.batches(split)]),
    )


def score_encoder(
    name: str, candidates: Sequence[TokenFeatures], images: MaskedImages, settings: DenseSettings
) -> dict[str, Any]:
    """Select features and penalty by the hold-out IoU, then fit once and score once.

    Returns:
        The encoder's name, its scores in percent (`mask_scores`), the selection, the dimension of the tokens, and the
        IoU of each image in [0, 1] for a foreground.
    """
    truth, trials = images.masks("holdout"), []
    for features in candidates:
        held = features.tokens("holdout")
        for penalty in settings.penalties:
            predicted = fit_head(features, images, penalty, "train")(held)
            trials.append((mask_scores(predicted, truth)["iou"], features, penalty))
    holdout, features, penalty = max(trials, key=lambda trial: trial[0])
    head = fit_head(features, images, penalty, *(("train", "holdout") if settings.split == "test" else ("train",)))
    among = {c.name: round(max(score for score, tried, _ in trials if tried is c), 2) for c in candidates}
    selected = {"features": features.name, "penalty": penalty, "among": among, "iou_holdout": holdout}
    predicted, truth = head(features.tokens(settings.split)), images.masks(settings.split)
    per_image = iou(predicted, truth).tolist() if truth.shape[1] == 1 else []
    scores = {**mask_scores(predicted, truth), "dimensions": len(head.weight)}
    return {"encoder": name, **scores, "selected": selected, "per_image": per_image}


def fit_head(features: TokenFeatures, images: MaskedImages, penalty: float, *splits: str) -> DenseHead:
    """Fit a head to the tokens and masks of splits."""
    tokens = torch.cat([features.tokens(split) for split in splits])
    side = math.isqrt(tokens.shape[1])
    return DenseHead(tokens, images.masks(*splits), (side, side), penalty)


def mean_mask(images: MaskedImages, split: str) -> dict[str, Any]:
    """Score the mean training mask as the prediction for every image."""
    splits = ("train", "holdout") if split == "test" else ("train",)
    truth = images.masks(split)
    return {
        "encoder": "mean mask",
        **mask_scores(images.masks(*splits).mean(0, keepdim=True).expand_as(truth), truth),
        "selected": {},
    }


def mask_scores(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Return scores of masks in percent.

    Of a foreground: the means over images of IoU (`iou`) and Dice (`dice`). Of several classes: the mean IoU over the
    classes, each over the pixels of all images (`iou`), and the accuracy of the pixels that have a class (`pixels`).

    Args:
        predicted: (M, K, H, W) probabilities.
        truth: masks of this shape.
    """
    if truth.shape[1] == 1:
        return {"iou": 100 * float(iou(predicted, truth).mean()), "dice": 100 * float(dice(predicted, truth).mean())}
    chosen = vote(predicted[None])
    right = float((chosen * truth).sum() / truth.sum())
    return {"iou": 100 * float(class_iou(chosen, truth).nanmean()), "pixels": 100 * right}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with a row for each encoder."""
    heads = {"iou": "IoU" if "dice" in rows[0] else "mIoU", "dice": "Dice", "pixels": "pixel accuracy"}
    shown = [key for key in heads if key in rows[0]]
    lines = [["encoder", *(heads[key] for key in shown), "features"]]
    lines += [[r["encoder"], *(f"{r[key]:.1f}" for key in shown), r["selected"].get("features", "")] for r in rows]
    return markdown(lines)
