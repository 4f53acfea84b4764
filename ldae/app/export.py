"""Export a trained encoder as a plain ViT for timm, as ONNX, or as a program of torch.export.

    ldae export run=RUN out=OUT                           # OUT/model.safetensors, OUT/config.json
    ldae export run=RUN layer=4 t=10 format=[timm,onnx]   # OUT/model.onnx too
    ldae export run=RUN out=OUT format=[pt2]              # OUT/model.pt2, a program of torch.export
    ldae export run=RUN out=OUT push=USER/NAME            # upload OUT to the Hugging Face hub, too

Without layer= and t=, exports the layer and the step that the run's probe selected (RUN/probe), else the end of the
encoder at t = 10. timm.create_model("local-dir:OUT", pretrained=True) then returns the encoder.
half=true writes float16 weights, for timm.
Reads the export back, compares it with load_encoder(RUN) on hold-out images of the run and prints the largest
difference of a feature; above 1e-4, or 2e-3 with half=true (relative to the largest feature, where that is above 1),
the export is deleted (exit 70). OUT/README.md is a card: what was trained, what its probes found, how to load it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ldae.app.ablation.runner import portable_command
from ldae.app.compose import compose, resolved
from ldae.app.probing.selection import probe_results, read_at
from ldae.app.provenance import command, commit
from ldae.app.session import Session, root_settings, session_of
from ldae.core.errors import ConfigError, Fault, OutputError
from ldae.core.files import publish_folder, write_json, write_text
from ldae.core.types import Count, Natural
from ldae.data.loader import in_order
from ldae.export.encoder import Encoder, Run, load_run
from ldae.export.fold import fold
from ldae.export.hub import ABOUT, SAFE, check_remote, upload
from ldae.export.onnx import OnnxFeatures, check_onnx, write_onnx
from ldae.export.program import ProgramFeatures, write_program
from ldae.export.timm import CARD, CONFIG, WEIGHTS, TimmFeatures, write_timm_folder
from linear_probe.results import markdown, percent, title

LIMIT = 1e-4  # maximum difference of a feature, for features up to 1
HALF_LIMIT = 2e-3  # the same with weights in float16, four times their rounding error of 2^-11
ONNX, PROGRAM = "model.onnx", "model.pt2"
WRITTEN = {WEIGHTS, CONFIG, ONNX, f"{ONNX}.data", PROGRAM, ABOUT, CARD}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # explained by cli.guarded
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportSettings:
    """Configure an export.

    Attributes:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        layer: layer whose tokens are averaged; if None, the one that the run's probe selected, or the encoder's last.
        t: diffusion step to condition the network on; if None, the one that the run's probe selected, or the
            objective's default.
        format: formats to write.
        half: write the weights for timm as float16, half as large.
        push: repository of the Hugging Face hub, USER/NAME, or file:///FOLDER, to upload the export to; None for none.
        private: make the repository private where it is new.
        out: folder of the export; RUN/export if None.
        count: number of images in the comparison.
    """

    run: str
    step: Natural | None
    weights: Literal["ema", "model"]
    layer: Count | None
    t: Natural | None
    format: list[Literal["timm", "onnx", "pt2"]]
    half: bool
    push: str | None
    private: bool
    out: str | None
    count: Count

    def __post_init__(self) -> None:
        if "onnx" in self.format:
            check_onnx()
        if self.half and self.format != ["timm"]:
            raise ConfigError("half", True, "is for format=[timm]; graphs and programs have float32 weights")
        if self.push is not None:
            check_remote("push", self.push)
            if "timm" not in self.format:
                raise ConfigError("push", self.push, f"needs format=[timm], whose weights are safetensors; {SAFE}")


def main(argv: Sequence[str]) -> None:
    """Run `ldae export`."""
    config = resolved(compose("export", argv))
    if not config["run"]:
        raise ConfigError("run", config["run"], "is not set; give run=RUN, the folder that pretraining wrote (out=)")
    settings: ExportSettings = root_settings(ExportSettings, config)
    out = Path(settings.out or Path(settings.run) / "export")
    check_out(out)
    run = load_run(Path(settings.run), settings.step, settings.weights)
    session = session_of(run, {**config, "device": "cpu"})
    layer, t = read_at(Path(settings.run), run.checkpoint.hash, settings.layer, settings.t)
    encoder = Encoder(run.objective, layer, t)
    half = {"half": True} if settings.half else {}  # of timm's folder alone
    writers = {name: WRITERS[name](encoder, **half) for name in settings.format}  # fails before data are read
    with session.stop.listening(), session.stop.at_once():
        split, images = comparison_images(session, settings.count)
        with writable(out), publish_folder(out) as folder:
            figures: dict[str, dict[str, float]] = {}
            for format_, write in writers.items():
                exported, limit = write(folder, images), HALF_LIMIT if settings.half else LIMIT
                figures[format_] = parity(format_, exported, encoder, images, session, limit)
            about = export_record(settings, run, encoder, images)
            write_json(folder / ABOUT, {**about, "split": split, "differences": figures})
            table = accuracies(Path(settings.run), run.checkpoint.hash)
            write_text(folder / CARD, card(about, figures, table))
    print(f"done: {out}\n  how to load it: {out / CARD}")
    if settings.push is not None:
        print(f"uploaded: {upload(out, settings.push, settings.private)}")


Write = Callable[[Path, Tensor], Features]


def as_timm(encoder: Encoder, half: bool = False) -> Write:
    """Return a function that writes the encoder as a plain ViT into a folder, and loads it."""
    try:
        plain = fold(encoder)
    except ConfigError as error:
        raise ConfigError(error.key, error.value, f"{error.expectation}; use format=[onnx]") from None

    def write(folder: Path, images: Tensor) -> Features:
        write_timm_folder(folder, plain, half)
        return TimmFeatures(folder)

    return write


def as_onnx(encoder: Encoder) -> Write:
    """Return a function that writes the encoder as an ONNX graph into a folder, and loads it."""

    def write(folder: Path, images: Tensor) -> Features:
        channels, height, width = images.shape[1:]
        write_onnx(folder / ONNX, encoder, (channels, height, width))
        return OnnxFeatures(folder / ONNX)

    return write


def as_program(encoder: Encoder) -> Write:
    """Return a function that writes the encoder as a program of torch.export into a folder, and loads it."""

    def write(folder: Path, images: Tensor) -> Features:
        channels, height, width = images.shape[1:]
        write_program(folder / PROGRAM, encoder, (channels, height, width))
        return ProgramFeatures(folder / PROGRAM)

    return write


WRITERS: Mapping[str, Callable[..., Write]] = {"timm": as_timm, "onnx": as_onnx, "pt2": as_program}


def check_out(out: Path) -> None:
    """Check that the folder is new or holds an earlier export.

    Raises:
        OutputError: the folder holds other files.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"out={out} is a file; give a folder")
    others = sorted(p.name for p in out.iterdir() if p.name not in WRITTEN)
    if others:
        raise OutputError(f"out={out} holds {others[0]}, which is not of an export; give another folder")


@contextlib.contextmanager
def writable(out: Path) -> Iterator[None]:
    """Convert errors of writing the folder to OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise OutputError(f"out={out} cannot be written ({error.strerror}); give another out=") from None


def comparison_images(session: Session, count: int) -> tuple[str, Tensor]:
    """Return the split and images (N, 3, H, W) in [0, 1]: of the hold-out, or of train without a hold-out."""
    splits = session.splits()
    split = "holdout" if len(splits.holdout) else "train"
    images = getattr(splits, split)
    some = images.subset(np.arange(min(count, len(images))))
    return split, torch.cat([batch.images for batch in in_order(some, count, session.world.device)])


def parity(
    format_: str, exported: Features, encoder: Encoder, images: Tensor, session: Session, limit: float = LIMIT
) -> dict[str, float]:
    """Compare exported features with the encoder's, and print the largest difference.

    The images come in two batches of different sizes. Where features are larger than 1 the limit grows with the
    largest of them: float32 rounds in proportion.

    Raises:
        Fault: the difference exceeds the limit or is not finite (exit 70).
    """
    original, restored = [], []
    for batch in images.tensor_split([len(images) // 3]):
        session.stop.poll()
        if len(batch):
            original.append(encoder(batch))
            restored.append(exported(batch))
    features = torch.cat(original)
    difference, size = (torch.cat(restored) - features).abs().max().item(), features.abs().max().item()
    limit *= max(1.0, size)
    message = f"{format_}: largest difference {difference:.1e} of features up to {size:.2g}, on {len(images)} images"
    if not difference <= limit:
        raise Fault(f"{message}, above {limit:.1e}; nothing was written")
    print(message, flush=True)
    deviation = features.std(0, correction=int(len(features) > 1)).mean().item()
    return {
        "difference": difference,
        "limit": limit,
        "largest": size,
        "deviation": deviation,
    }


def export_record(settings: ExportSettings, run: Run, encoder: Encoder, images: Tensor) -> dict[str, Any]:
    """Return the content of export.json: encoder, checkpoint and command."""
    return {
        "command": portable_command(command()),  # a card is published: without the paths of this machine
        "commit": commit(),
        "encoder": run.name,
        "experiment": run.config.get("experiment"),
        "checkpoint": run.checkpoint.hash,
        "step": run.checkpoint.step,
        "weights": settings.weights,
        "layer": encoder.layer,
        "t": encoder.t,
        "images": len(images),
        "shape": list(images.shape[1:]),
    }


def accuracies(run: Path, checkpoint: str) -> list[list[str]]:
    """Return the table of what the run's probe found on test images with all labels; empty if nothing."""
    lines = [
        [title(r.protocol), percent(r), r.data, str(r.layer), str(r.t)]
        for r in probe_results(run, checkpoint)
        if (r.split, r.labels) == ("test", "all")
    ]
    return [["protocol", "accuracy in percent", "data", "layer", "t"], *lines] if lines else []


def card(about: Mapping[str, Any], figures: Mapping[str, Mapping[str, float]], table: list[list[str]]) -> str:
    """Return the text of README.md.

    Args:
        about: of `export_record`.
        figures: of `parity`, for each format.
        table: of `accuracies`.
    """
    side = about["shape"][-1]
    message = f"Pretrained without labels by `ldae` (experiment {about['experiment']}, step {about['step']}, checkpoint"
    lines = [
        "---",
        f"library_name: {LIBRARIES[next(iter(figures))]}",
        "pipeline_tag: image-feature-extraction",
        "tags: [image-feature-extraction, self-supervised, ldae]",
        "---",
        f"# {about['encoder']} encoder, {side} x {side} pixels",
        "",
        f"Features: the patch tokens after block {about['layer']}, averaged; diffusion step {about['t']}.",
        f"{message} {about['checkpoint'][:16]}); `export.json` has the command. FOLDER below is this folder.",
        "",
    ]
    if table:
        lines += [
            "Frozen features, of the layer that each protocol chose on the hold-out:",
            "",
            markdown(table),
            "",
        ]
    for format_, figure in figures.items():
        largest = f"The largest difference from the original's features was {figure['difference']:.1e}."
        lines += ["```python", LOADING[format_].format(side=side), "```", "", largest, ""]
    return "\n".join(lines)


TIMM = """import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # a PIL image -> [-1, 1]
features = model(transform(picture)[None])  # (1, 3, {side}, {side}) -> (1, D)"""
GRAPH = """import onnxruntime
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
(features,) = session.run(None, {{"images": images}})  # float32 (B, 3, {side}, {side}) in [0, 1] -> (B, D)"""
PT2 = """import torch
encoder = torch.export.load("FOLDER/model.pt2").module()
features = encoder(images)  # float32 (B, 3, {side}, {side}) in [0, 1] -> (B, D)"""
LOADING = {"timm": TIMM, "onnx": GRAPH, "pt2": PT2}
LIBRARIES = {"timm": "timm", "onnx": "onnx", "pt2": "pytorch"}  # as the hub names them
