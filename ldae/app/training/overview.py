"""Describe a training before it starts: data, network, recipe, device, length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from torch import nn

from ldae.app.session import Session
from ldae.data.images import Splits
from ldae.engine.blocks import eval_mode
from ldae.engine.runtime import describe_hardware
from ldae.engine.settings import TrainSettings
from ldae.export.encoder import default_timestep
from ldae.objectives.base import Objective, PretrainingObjective
from ldae.tokenizers.base import HasBasis, Tokenizer

# groups of a config that make a recipe, in the order of the data path
GROUPS = ("augment", "task", "tokenizer", "corruption", "schedule", "input", "output", "target", "variance", "weight",
          "loss", "objective", "perceptual", "discriminator", "optim")  # fmt: skip
USUAL = {"task": "Images", "corruption": "Gaussian", "variance": "Fixed", "augment": "Centre", "objective": "Denoise"}
NAMES = {"loss": "loss", "optim": "optimizer"}
PROPER = ("AdamW",)
HIGH_SHARE = 0.95  # of the variance of patches
# of a network, in its config
SHAPE = ("width", "encoder_depth", "decoder_depth", "keep", "channels", "multipliers", "patch")


def overview(
    session: Session, splits: Splits, objective: Objective, settings: TrainSettings, total: int, out: Path
) -> str:
    """Return the description that a training prints at its start.

    Args:
        session: config, device and data.
        splits: images of the data set.
        objective: objective in training, on its device.
        settings: length and settings of the training.
        total: total number of steps.
        out: folder of the run.
    """
    rows = {
        "data": _data(session, splits),
        "network": _network(session, objective),
        "recipe": "; ".join(_recipe(session, objective)),
        **_latent(objective),
        "precision": _precision(session, settings),
        "device": _device(session),
        "length": _length(settings, total, len(splits.train)),
        "out": str(out),
    }
    return "\n".join(fill(text, 118, initial_indent=f"{name:10}", subsequent_indent=" " * 10, break_long_words=False,
                          break_on_hyphens=False) for name, text in rows.items())  # fmt: skip


def encoder_parameters(objective: PretrainingObjective, size: int) -> int:
    """Count the parameters that an image's representation depends on, at the default layer and noise level.

    Args:
        objective: objective with the network.
        size: side of the images in pixels.
    """
    network = objective.network
    trained = [p for p in network.parameters() if p.requires_grad]
    image = torch.zeros(1, 3, size, size, device=trained[0].device)
    layer = network.encoder_layer
    with eval_mode([objective]), torch.enable_grad():
        tokens = objective.tokens(image, [layer], default_timestep(objective), None)[layer]
        gradients = torch.autograd.grad(tokens.sum(), trained, allow_unused=True)
    return sum(p.numel() for p, gradient in zip(trained, gradients, strict=True) if gradient is not None)


def _data(session: Session, splits: Splits) -> str:
    root, side = session.config["data"].get("root"), splits.train.size
    sizes = f"{len(splits.train):,} training, {len(splits.holdout):,} hold-out and {len(splits.test):,} test images"
    classes = (
        f"{len(splits.classes):,} class{'es' if len(splits.classes) != 1 else ''}" if splits.labelled else "no classes"
    )
    place = f" in {root}" if root else ""
    return f"{session.parts.data.name}{place}: {sizes} of {side} x {side} pixels, {classes}"


def _network(session: Session, objective: Objective) -> str:
    config = session.config.get("denoiser", {}) if isinstance(objective, PretrainingObjective) else {}
    shape = [f"{key.replace('_', ' ')} {config[key]}" for key in SHAPE if config.get(key) is not None]
    message = ", ".join([type(objective.network).__name__, *shape])
    sizes = {name: _millions(_count(module.network)) for name, module in objective.trainable_modules.items()}
    counts = ", ".join(
        f"{size} million parameters" + (f" ({n})" if len(sizes) > 1 else "") for n, size in sizes.items()
    )
    if isinstance(objective, PretrainingObjective):
        in_encoder = _millions(encoder_parameters(objective, session.parts.data.size))
        counts += f", {in_encoder} million of them in the encoder ({objective.network.encoder_layer} of "
        counts += f"{len(objective.network.layers)} layers)"
    return f"{message}: {counts}"


def _recipe(session: Session, objective: Objective) -> Iterator[str]:
    """Yield the experiment, and each part under the name of its group, without default parts."""
    config = session.config
    if config.get("experiment"):
        yield f"experiment {config['experiment']}"
    for group in GROUPS:
        part = config.get(group)
        if not isinstance(part, Mapping) or part.get("part") is None or not _is_used(session, objective, group):
            continue
        name = str(part["part"]).rsplit(".", 1)[-1]
        numbers = [f"{key} {_short(value)}" for key, value in part.items() if key != "part" and _is_plain(value)]
        if USUAL.get(group) != name:
            message = f"{NAMES.get(group, group)} {_plain(name.removesuffix(group.capitalize()))}"
            yield message + (f" ({', '.join(numbers)})" if numbers else "")


def _is_used(session: Session, objective: Objective, group: str) -> bool:
    if group in ("perceptual", "discriminator"):
        return bool(session.config[group].get("factor"))
    if group in ("augment", "task", "optim", "objective") or not isinstance(objective, PretrainingObjective):
        return True
    return hasattr(objective, group) and getattr(objective, group) is not None


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not (isinstance(value, str) and len(value) > 20)


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(name: str) -> str:
    """Split a class's name at its capitals: PatchPCA becomes "patch PCA"."""
    parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z][a-z]+\d*", name)
    if name in PROPER:
        return name
    return " ".join(w.lower() if len(w.rstrip("0123456789")) == 1 or w != w.upper() else w for w in parts) or name


def _latent(objective: Objective) -> dict[str, str]:
    """Return how much of the patches' variance the latent keeps, if its dimensions are a basis of them."""
    tokenizer = getattr(objective, "tokenizer", None)
    if not isinstance(tokenizer, HasBasis) or not isinstance(tokenizer, Tokenizer):
        return {}
    d, variances = tokenizer.shape[0], tokenizer.basis_variances()
    kept = (variances.cumsum(0) / variances.sum().clamp(min=1e-12)).tolist()
    needed = 1 + next((i for i, share in enumerate(kept) if share >= HIGH_SHARE), len(kept) - 1)
    message = f"{d} of the {len(kept)} dimensions of a patch, {100 * kept[d - 1]:.1f} % of its variance"
    return {"latent": f"{message} ({100 * HIGH_SHARE:.0f} % needs {needed})"}


def _device(session: Session) -> str:
    world = session.world
    hardware = describe_hardware(world.device.type)
    return f"{world.device} ({hardware})" + (f", {world.size} processes" if world.size > 1 else "")


def _precision(session: Session, settings: TrainSettings) -> str:
    """Return the precision, with its reason if it was `auto`."""
    automatic = session.precision
    is_automatic = automatic is not None and automatic.value == settings.precision
    return str(automatic).removeprefix("precision: ") if is_automatic else settings.precision


def _length(settings: TrainSettings, total: int, images: int) -> str:
    epochs = total / max(1, images // settings.batch)
    return (
        f"{total:,} steps of {settings.batch:,} images ({epochs:.3g} epochs), "
        f"a checkpoint every {settings.checkpoint_every:,} steps"
    )


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}" if count >= 1e4 else f"{count / 1e6:.2g}"
