"""List the choices of config groups: files of configs/GROUP, and classes with default settings, which need no file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
# in the package for an installed wheel, next to it in a checkout
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"

# group -> {choice: class}; other choices are files of configs/GROUP
CLASSES: Mapping[str, Mapping[str, str]] = {
    "augment": {
        "centre": "ldae.data.transforms.Centre",
        "flip": "ldae.data.transforms.Flip",
        "pad_crop": "ldae.data.transforms.PadCrop",
        "rand_augment": "ldae.data.rand_augment.RandAugment",
        "random_resized_crop": "ldae.data.transforms.RandomResizedCrop",
    },
    "corruption": {
        "blend": "ldae.diffusion.corruptions.blend.Blend",
        "colour": "ldae.diffusion.corruptions.colour.Colour",
        "component_mask": "ldae.diffusion.corruptions.component_mask.ComponentMask",
        "gaussian": "ldae.diffusion.corruptions.gaussian.Gaussian",
        "gaussian_spectrum": "ldae.diffusion.corruptions.gaussian.GaussianSpectrum",
        "pixelate": "ldae.diffusion.corruptions.pixelate.Pixelate",
    },
    "init": {
        "mixed_signal": "ldae.diffusion.initial_states.MixedSignal",
    },
    "input": {
        "image": "ldae.objectives.spaces.ImageInput",
        "latent": "ldae.objectives.spaces.LatentInput",
    },
    "loss": {
        "l1": "ldae.objectives.losses.L1",
        "l2": "ldae.objectives.losses.L2",
        "pca_weighted": "ldae.objectives.losses.PCAWeighted",
        "span_weighted": "ldae.objectives.losses.SpanWeighted",
    },
    "output": {
        "image": "ldae.objectives.spaces.OriginalOutput",
        "latent": "ldae.objectives.spaces.LatentOutput",
        "projection": "ldae.objectives.spaces.ProjectedOutput",
    },
    "sampler": {
        "cold_improved": "ldae.diffusion.samplers.ImprovedColdSampling",
        "cold_naive": "ldae.diffusion.samplers.NaiveColdSampling",
        "ddim": "ldae.diffusion.samplers.DDIM",
        "ddpm": "ldae.diffusion.samplers.FixedSmallVariance",
        "ddpm_large": "ldae.diffusion.samplers.FixedLargeVariance",
        "direct": "ldae.diffusion.samplers.Direct",
        "learned": "ldae.diffusion.samplers.LearnedVariance",
    },
    "schedule": {
        "constant_sigma": "ldae.diffusion.schedules.ConstantSigma",
        "continuous_gamma": "ldae.diffusion.schedules.ContinuousGamma",
        "cosine": "ldae.diffusion.schedules.Cosine",
        "ddpm_linear": "ldae.diffusion.schedules.DDPMLinear",
        "linear_blend": "ldae.diffusion.schedules.LinearBlend",
        "linear_gamma2": "ldae.diffusion.schedules.LinearGamma2",
        "linear_sigma": "ldae.diffusion.schedules.LinearSigma",
        "quadratic": "ldae.diffusion.schedules.Quadratic",
        "steps": "ldae.diffusion.schedules.Steps",
        "zero_input": "ldae.diffusion.schedules.ZeroInput",
    },
    "spacing": {
        "all": "ldae.diffusion.spacing.All",
        "exact": "ldae.diffusion.spacing.Exact",
        "linear": "ldae.diffusion.spacing.Linear",
        "quadratic": "ldae.diffusion.spacing.Quadratic",
        "trailing": "ldae.diffusion.spacing.Trailing",
    },
    "target": {
        "eps": "ldae.diffusion.targets.Eps",
        "v": "ldae.diffusion.targets.V",
        "x0": "ldae.diffusion.targets.X0",
    },
    "task": {
        "images": "ldae.tasks.images.Images",
        "segmentation": "ldae.tasks.segmentation.Segmentation",
    },
    "timesteps": {
        "loss_aware": "ldae.diffusion.timesteps.LossAware",
        "per_token": "ldae.diffusion.timesteps.PerToken",
        "uniform": "ldae.diffusion.timesteps.Uniform",
    },
    "weight": {
        "gamma2": "ldae.diffusion.weights.Gamma2",
        "inverse_variance": "ldae.diffusion.weights.InverseVariance",
        "min_snr": "ldae.diffusion.weights.MinSNR",
        "one": "ldae.diffusion.weights.One",
        "snr": "ldae.diffusion.weights.SNR",
        "zero": "ldae.diffusion.weights.Zero",
    },
}

# parameters of constructors that other parts of a config determine
DETERMINED = frozenset(
    ["classes", "cond_channels", "encoder", "grid", "image_shape", "latent_size", "schedule", "tokenizer"]
)


def settings_of(path: str) -> dict[str, Any]:
    """Return the config of a class: `part`, and the default of every parameter that has one.

    Args:
        path: dotted name of the class.
    """
    parameters = inspect.signature(class_of(path)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {"part": path, **{key: list(v) if isinstance(v, tuple) else v for key, v in defaults.items()}}


def class_of(path: str) -> type:
    """Return the class of a dotted name out of `CLASSES`."""
    module, _, name = path.rpartition(".")
    choice: type = getattr(importlib.import_module(module), name)
    return choice


def groups_of() -> list[str]:
    """Return the names of the groups."""
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir() and not path.name.startswith("_")}
    return sorted(folders | CLASSES.keys())


def choices_of(group: str) -> dict[str, Path | str]:
    """Return {choice: its file, or the dotted name of its class}; files that only others include are left out."""
    folder = CONFIGS / group
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    public = {name: path for name, path in files.items() if not name.rsplit("/", 1)[-1].startswith("_")}
    choices: dict[str, Path | str] = {**CLASSES.get(group, {}), **public}
    return dict(sorted(choices.items()))
