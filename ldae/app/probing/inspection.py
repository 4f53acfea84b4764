"""Draw an encoder's view of a picture: attention, principal components of patch tokens, denoised pictures.

    ldae inspect run=RUN picture=FILE
    ldae inspect timm=ldae-64x4-photos picture=FILE          # an encoder of the package (ldae list encoders)
    ldae inspect timm=local-dir:FOLDER picture=FILE          # an export
    ldae inspect run=RUN picture=FILE layers=[2,4,6] t=60 query=[0.3,0.7]

The centre square of the picture is resized (bicubic) to the input of the network, whatever the picture's size. A
figure shows the first three principal components of the patch tokens of each layer as colours, the attention that the
patches of each layer receive, the attention of one patch, the heads of one layer, and what a denoiser restores at
several noise levels or a masked autoencoder behind its mask. Writes OUT/NAME.png, OUT/NAME.pdf and OUT/NAME.json with
the printed numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.export import ABOUT
from ldae.app.precision import announce, settle_precision
from ldae.app.probing.token_reading import LayerTokens, read_layers
from ldae.app.sampling.images import MAX_PIXELS
from ldae.app.session import make_out, prepare_machine, root_settings
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import open_atomic, write_json
from ldae.core.pixels import to_floats
from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator, Count, Fraction, Natural, PossiblyEmpty
from ldae.data.decode import BadImage, centre_crop, read_rgb
from ldae.diffusion.corruptions.blend import Blend
from ldae.export.encoder import Encoder, load_run
from ldae.export.timm_encoder import LOCAL, TimmEncoder
from ldae.export.zoo import zoo_folder
from ldae.metrics.image_quality import psnr
from ldae.objectives.base import PretrainingObjective
from ldae.objectives.denoise import Denoise
from ldae.objectives.masked import Masked
from ldae.objectives.panels import denoise_at, level_name, reconstruct_images, to_rgb
from ldae.tasks.segmentation import Segmentation
from linear_probe.geometry import linear_cka
from linear_probe.report.panels import Panel, PanelRow, draw_panels
from linear_probe.report.rendering import render
from linear_probe.results import markdown
from linear_probe.token_maps import pca_rgb

SHOWN = 8  # layers and heads in a row
SIDE = 512  # pixels, side of the picture as the figure shows it


@dataclass(frozen=True)
class InspectSettings:
    """Configure an inspection: the encoder, the picture, and what to show.

    Attributes:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        timm: name of a vision transformer of timm or of the package, or `local-dir:FOLDER` for an export.
        checkpoint: file with the weights of the timm network; random weights if None.
        size: input size of the timm network in pixels; the network's default if None.
        picture: file of the picture.
        layers: layers to show; up to 8, evenly spaced, if None.
        t: diffusion step to condition the network on; the encoder's default if None.
        noised: add noise of that level to the input of tokens and attention.
        levels: noise levels of the denoised pictures, as fractions of the schedule.
        query: place of the patch whose attention is shown, as fractions of width and height.
        out: folder for the figure.
        seed: seed of noise and masks.
        precision: precision of the network's matrix products.
    """

    run: str | None
    step: Natural | None
    weights: Literal["ema", "model"]
    timm: str | None
    checkpoint: str | None
    size: Count | None
    picture: str | None
    layers: list[Count] | None
    t: Natural | None
    noised: bool
    levels: PossiblyEmpty[Fraction]
    query: list[Fraction]
    out: str | None
    seed: Natural
    precision: Literal["fp32", "bf16"]

    def __post_init__(self) -> None:
        if not self.picture:
            raise ConfigError("picture", self.picture, "is not set; give the file of a picture")
        if bool(self.run) == bool(self.timm):
            message = "goes with timm=" if self.run else "is not set"
            raise ConfigError(
                "run", self.run, f"{message}; give one of run=RUN (a folder of pretraining) and timm=NAME"
            )
        if len(self.query) != 2:
            raise ConfigError("query", self.query, "must be two fractions, of width and height, e.g. query=[0.5,0.5]")
        of_run = {"step": self.step, "t": self.t, "noised": self.noised or None}
        of_timm = {"checkpoint": self.checkpoint, "size": self.size}
        for key, value in (of_timm if self.run else of_run).items():
            if value is not None:
                raise ConfigError(key, value, f"is no setting of {'run' if self.run else 'timm'}=; leave it out")


@dataclass
class Inspection:
    """Collect the contents of a figure and of its tables.

    Attributes:
        rows: rows of pictures.
        tables: rows of each table, its header first.
        left_out: sentences on what the encoder does not have.
    """

    rows: list[PanelRow] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def main(argv: Sequence[str]) -> None:
    """Run `ldae inspect`."""
    config, precision = settle_precision(resolved(compose("inspect", argv)))
    settings: InspectSettings = root_settings(InspectSettings, config)
    device = prepare_machine(config)
    path = Path(settings.picture or "").expanduser()
    picture = open_picture(path)
    encoder, name, checkpoint = open_encoder(settings, device)
    announce(precision)
    size = encoder.image_shape[1]
    images = pixels_of(centre_crop(picture, size)).to(device)[None]
    layers = chosen_layers(encoder, settings.layers)
    inspection = Inspection()
    shown = pixels_of(centre_crop(picture, min(SIDE, min(picture.size))))
    cropped = "" if picture.width == picture.height else "centre square, "
    treatment = f"{picture.width} x {picture.height} pixels: {cropped}resized to {size} x {size}"
    objective = encoder.objective if isinstance(encoder, Encoder) else None
    inspection.rows.append(PanelRow("Picture", input_panels(shown, images, objective)))
    with torch.no_grad():
        read = read_layers(encoder, images, layers, (settings.query[0], settings.query[1]), torch.tensor([0]))
        add_tokens(inspection, read, encoder)
        add_attention(inspection, read, settings, encoder)
        add_restored(inspection, objective, images, settings)
    out = Path(settings.out or Path(settings.run or "runs") / "inspect").expanduser()
    make_out(out)
    write(inspection, f"{name} on {path.name}", treatment, out / path.stem)
    numbers = {"encoder": name, "checkpoint": checkpoint, "picture": str(path), "treatment": treatment}
    write_json(out / f"{path.stem}.json", {**numbers, "tables": inspection.tables, "left_out": inspection.left_out})
    print(f"{path.name}, {treatment}, the input of {name}\n")
    print("\n\n".join(markdown(table) for table in inspection.tables))
    print("".join(f"\nleft out: {sentence}" for sentence in inspection.left_out))
    print(f"\nfigure: {out / path.stem}.png, .pdf; numbers: {path.stem}.json")


def open_picture(path: Path) -> Image.Image:
    """Read a picture as RGB.

    Raises:
        DataError: it cannot be read.
    """
    if not path.is_file():
        what = "is a folder; give one picture" if path.is_dir() else "does not exist"
        raise DataError(f"picture={path} {what}")
    try:
        return read_rgb(path, MAX_PIXELS)
    except BadImage as error:
        raise DataError(f"picture={path} cannot be read ({error})") from None


def pixels_of(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image, (3, H, W) in [0, 1]."""
    return to_floats(np.array(image))


def open_encoder(settings: InspectSettings, device: str) -> tuple[Encoder | TimmEncoder, str, str]:
    """Load the encoder, and return it with its name and the hash of its weights.

    Raises:
        ConfigError: a setting does not fit the network.
        CheckpointError: the weights are missing or damaged.
    """
    if settings.timm:
        weights = Path(settings.checkpoint).expanduser() if settings.checkpoint else None
        try:
            timm = TimmEncoder(settings.timm, weights, settings.size, settings.precision, settings.seed).to(device)
        except ConfigError as error:
            key = {"weights": "checkpoint"}.get(error.key, error.key)
            raise ConfigError(key, error.value, error.expectation) from None
        return timm, timm.name if timm.hash != "none" else f"{timm.name}, random weights", timm.hash
    folder = Path(settings.run or "").expanduser()
    if zoo_folder(str(settings.run)):
        raise ConfigError("run", settings.run, f"is an encoder of the package; give timm={settings.run}")
    if (folder / ABOUT).is_file():
        raise ConfigError("run", settings.run, f"holds an export; give timm={LOCAL}{settings.run}")
    run = load_run(folder, settings.step, settings.weights, device)
    encoder = Encoder(
        run.objective, t=settings.t, noised=settings.noised, precision=settings.precision, seed=settings.seed
    )
    return encoder, f"{run.name} at step {run.checkpoint.step}", run.checkpoint.hash


def chosen_layers(encoder: Encoder | TimmEncoder, layers: Sequence[int] | None) -> list[int]:
    """Return the layers to show: the given ones, or up to 8, evenly spaced, the last included.

    Raises:
        ConfigError: there is no such layer.
    """
    every = list(encoder.network.layers if isinstance(encoder, Encoder) else encoder.layers)
    if layers is None:
        return [every[i] for i in np.unique(np.linspace(0, len(every) - 1, SHOWN).round().astype(int))]
    for layer in layers:
        if layer not in every:
            raise ConfigError("layers", layer, f"is not one of the network's layers 1..{len(every)}")
    return sorted(set(layers))


def input_panels(picture: Tensor, images: Tensor, objective: PretrainingObjective | None) -> list[Panel]:
    """Return the picture, the network's input, and what the tokenizer keeps of it."""
    panels = [
        Panel("centre square", as_array(picture)),
        Panel(f"input, {images.shape[-1]} x {images.shape[-1]}", as_array(images)),
    ]
    if isinstance(objective, Denoise) and objective.tokenizer.image_shape[0] == 3:
        with torch.no_grad():
            kept = reconstruct_images(objective.tokenizer, images)
        panels.append(Panel(f"decoded latent\n{psnr(kept, images):.1f} dB", as_array(kept)))
    return panels


def as_array(image: Tensor) -> np.ndarray:
    """Return a picture (3, H, W) or (1, 3, H, W) as an array (H, W, 3)."""
    array: np.ndarray = to_rgb(image.reshape(-1, *image.shape[-2:])).movedim(0, -1).float().cpu().numpy()
    return array


def representation(encoder: Encoder | TimmEncoder, layers: Mapping[int, Any]) -> int:
    """Return the layer that is compared with: the encoder's output, or the nearest that was read."""
    layer = encoder.layer if isinstance(encoder, Encoder) else encoder.layers[-1]
    return min(layers, key=lambda other: (abs(other - layer), other))


def add_tokens(inspection: Inspection, read: Mapping[int, LayerTokens], encoder: Encoder | TimmEncoder) -> None:
    """Add the principal components of the patch tokens, and the table of layers."""
    last, panels = representation(encoder, read), []
    table = [["layer", "patches", "variance in 3 PCs", f"CKA with layer {last}", "attention entropy", "distance"]]
    for layer, of_layer in read.items():
        colours, fraction = pca_rgb(of_layer.tokens)
        h, w = of_layer.grid
        panels.append(Panel(f"layer {layer}\n{100 * fraction:.0f} % of variance", colours.reshape(h, w, 3).numpy()))
        same = of_layer.grid == read[last].grid
        cka = f"{linear_cka(of_layer.tokens[0], read[last].tokens[0]):.2f}" if same else ""
        attention = of_layer.attention
        numbers = [f"{attention.entropy:.2f}", f"{attention.distance:.1f}"] if attention else ["", ""]
        table.append([str(layer), f"{h} x {w}", f"{100 * fraction:.0f} %", cka, *numbers])
    inspection.tables.append(table)
    inspection.rows.append(PanelRow("First three principal components of the patch tokens", panels))


def add_attention(
    inspection: Inspection, read: Mapping[int, LayerTokens], settings: InspectSettings, encoder: Encoder | TimmEncoder
) -> None:
    """Add the attention of the layers, and of the heads of one layer."""
    layers = {layer: of_layer for layer, of_layer in read.items() if of_layer.attention is not None}
    if not layers:
        reason = "has no attention whose weights depend on queries and keys alone (U-Nets, rotary positions)"
        inspection.left_out.append(f"attention maps; the network {reason}")
        return
    prefix = encoder.prefix if isinstance(encoder, TimmEncoder) else encoder.network.prefix
    source = "of the class token" if prefix else "that each patch receives"
    received, of_query = [], []
    for layer, of_layer in layers.items():
        assert of_layer.attention is not None
        h, w = of_layer.grid
        x, y = (
            (min(int(place * side), side - 1) + 0.5) / side for place, side in zip(settings.query, (w, h), strict=True)
        )
        received.append(weight_panel(f"layer {layer}", of_layer.attention.received[0].mean(0), of_layer.grid))
        of_query.append(weight_panel(f"layer {layer}", of_layer.attention.of_query[0].mean(0), of_layer.grid, (x, y)))
    inspection.rows.append(PanelRow(f"Attention {source}, mean of heads (1: uniform)", received))
    inspection.rows.append(PanelRow("Attention of the patch at the cross, mean of heads", of_query))
    chosen = representation(encoder, layers)
    attention, grid = layers[chosen].attention, layers[chosen].grid
    assert attention is not None
    heads = [
        weight_panel(f"head {number}", weights, grid) for number, weights in enumerate(attention.received[0][:SHOWN], 1)
    ]
    inspection.rows.append(PanelRow(f"Attention {source}: heads of layer {chosen}", heads))


def weight_panel(head: str, weights: Tensor, grid: tuple[int, int], cross: tuple[float, float] | None = None) -> Panel:
    """Return a map of attention weights (N,), multiples of uniform attention."""
    return Panel(f"{head}\nmax. {float(weights.max()):.1f}", weights.reshape(grid).numpy(), cross)


def add_restored(
    inspection: Inspection, objective: PretrainingObjective | None, images: Tensor, settings: InspectSettings
) -> None:
    """Add the pictures that the run restores: denoised at several levels, or filled in behind a mask."""
    if objective is None:
        inspection.left_out.append("denoised pictures; an encoder without its decoder restores none (give run=RUN)")
    elif isinstance(objective, Masked):
        add_masked(inspection, objective, images, settings.seed)
    elif not isinstance(objective, Denoise) or isinstance(objective.task, Segmentation):
        inspection.left_out.append("denoised pictures; the run's task needs more than a picture")
    elif isinstance(objective.corruption, Blend):
        inspection.left_out.append("denoised pictures; the corruption blends with images of a second data set")
    elif settings.levels:
        add_denoised(inspection, objective, images, settings)


def add_masked(inspection: Inspection, objective: Masked, images: Tensor, seed: int) -> None:
    """Add the masked picture and what fills the mask."""
    generator = BatchGenerator([seed_of(seed)], images.device)
    masked, filled, hidden = objective.fill_masked(images, generator)
    masked, filled = (((x + 1) / 2).clamp(0, 1) for x in (masked, filled))
    figure = psnr(filled[hidden][None], images[hidden][None])
    ratio = f"{100 * objective.ratio:.0f} %"
    panels = [
        Panel(f"{ratio} masked", as_array(masked)),
        Panel(f"filled in\n{figure:.1f} dB", as_array(filled)),
    ]
    inspection.tables.append([["masked", "PSNR of masked patches, dB"], [ratio, f"{figure:.1f}"]])
    note = " with the true mean and deviation of each patch (norm_pix)" if objective.norm_pix else ""
    inspection.rows.append(PanelRow(f"Masked, and filled in{note}", panels))


def add_denoised(inspection: Inspection, objective: Denoise, images: Tensor, settings: InspectSettings) -> None:
    """Add the picture noised at several levels and denoised in one pass each."""
    batch = Batch(
        images, torch.full((1,), -1, device=images.device), torch.zeros(1, dtype=torch.long).to(images.device)
    )
    clean = (objective.task(batch)[0] + 1) / 2
    table = [["t", "gamma", "sigma", "PSNR noised, dB", "PSNR denoised, dB"]]
    before, after = [], []
    for fraction in settings.levels:
        step = min(int(fraction * objective.schedule.T), objective.usable - 1)
        level, noised, denoised = denoise_at(objective, batch, step, seed_of(settings.seed, step))
        figures = psnr(noised, clean), psnr(denoised, clean)
        before.append(Panel(f"{level_name(objective, level)}\n{figures[0]:.1f} dB", as_array(noised)))
        after.append(Panel(f"denoised\n{figures[1]:.1f} dB", as_array(denoised)))
        gamma, sigma = float(level.gamma[0]), float(level.sigma[0])
        table.append([str(step), f"{gamma:.3f}", f"{sigma:.3f}", *(f"{figure:.1f}" for figure in figures)])
    inspection.tables.append(table)
    inspection.rows.append(PanelRow("Corrupted, with the noise level and the PSNR", before))
    inspection.rows.append(PanelRow("Denoised in one pass, with the PSNR", after))


def write(inspection: Inspection, title: str, treatment: str, path: Path) -> None:
    """Write the figure as PATH.png and PATH.pdf."""
    description = f"{title} ({treatment}): " + "; ".join(row.label for row in inspection.rows)
    contents = render(draw_panels(title, description, inspection.rows))
    for suffix in ("png", "pdf"):
        with open_atomic(path.parent / f"{path.name}.{suffix}") as file:
            file.write(contents[suffix])
