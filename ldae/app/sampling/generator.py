"""Load a run as a generator of images, for the commands sample, restore, likelihood and search-schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldae.app.provenance import command, commit
from ldae.app.session import prepare_machine, root_settings
from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import Natural, NonNegative
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.targets import usable_steps
from ldae.diffusion.trajectory import build_trajectory
from ldae.engine.runtime import describe_hardware
from ldae.export.encoder import Run, load_run
from ldae.objectives.denoise import Denoise
from ldae.sampling.generate import Generator, SamplerConfig, default_sampler

# restorations by DDIM's inversion, which clips nothing: clipping on the way back would not be its inverse
NEVER_CLIPPED = ("invert", "interpolate")


@dataclass(frozen=True)
class GenerationSettings:
    """Configure the generator: the checkpoint and the reverse process.

    Attributes:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        seed: seed of all noise.
        guidance: scale of classifier-free guidance; 1 for none.
        clip: clip predictions of x0 to [-1, 1]; if None, where the network works on pixels and nothing is inverted.
        precision: precision of the network's matrix products.
    """

    run: str
    step: Natural | None
    weights: Literal["ema", "model"]
    seed: Natural
    guidance: NonNegative
    clip: bool | None
    precision: Literal["fp32", "bf16"]


def generator_of(config: Mapping[str, Any]) -> tuple[Generator, Run]:
    """Load the generator of a command's config, and its run.

    Raises:
        ConfigError: a key cannot work, or the run is of no diffusion model.
        CheckpointError: the run has no whole checkpoint.
    """
    if not config["run"]:
        raise ConfigError("run", config["run"], "is not set; give run=RUN, the folder that pretraining wrote (out=)")
    settings: GenerationSettings = root_settings(GenerationSettings, config)
    device = prepare_machine(config)
    sampler_parts(config)  # a bad key costs no loading
    run = load_run(Path(settings.run), settings.step, settings.weights, device)
    return build_generator(run, config), run


def build_generator(run: Run, config: Mapping[str, Any]) -> Generator:
    """Build the generator of a loaded run, with the sampler of a command's config.

    Raises:
        ConfigError: a key cannot work, or the run is of no diffusion model.
    """
    settings: GenerationSettings = root_settings(GenerationSettings, config)
    parts, objective = sampler_parts(config), run.objective
    if not isinstance(objective, Denoise):
        raise ConfigError("run", settings.run, f"is of {type(objective).__name__}, which denoises nothing")
    schedule: NoiseSchedule = parts.sampling_schedule if "sampling_schedule" in parts.config else objective.schedule
    usable = usable_steps(schedule, objective.target)
    visited = build_trajectory(schedule, parts.spacing.steps(usable), objective.schedule)
    rule = parts.sampler if "sampler" in parts.config else default_sampler(objective)
    clips = objective.tokenizer.is_bounded and config.get("how") not in NEVER_CLIPPED
    clip = clips if settings.clip is None else settings.clip
    sampler = SamplerConfig(rule, visited, clip, settings.guidance, settings.precision)
    return Generator(objective, sampler, settings.seed)


def sampler_parts(config: Mapping[str, Any]) -> Parts:
    """Build the parts of a sampler: its rule, spacing and schedule, those that the config names."""
    parts = Parts({key: config[key] for key in ("sampler", "spacing", "sampling_schedule") if config.get(key)})
    parts.build(*parts.config)
    return parts


def provenance_of(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return the provenance of a result: command, commit, hardware, checkpoint and sampler."""
    return {
        "command": command(),
        "commit": commit(),
        "hardware": describe_hardware(),
        "checkpoint": run.checkpoint.hash,
        "step": run.checkpoint.step,
        "run": run.name,
        "seed": config["seed"],
        "precision": config["precision"],
        "sampler": config.get("sampler"),
        "spacing": config["spacing"],
    }
