"""A run as a generator of images: what sample.py and restore.py share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from _session import commit, own_settings, prepare_machine

from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.targets import usable_steps
from ldae.diffusion.trajectory import stages
from ldae.engine.runtime import describe_hardware
from ldae.errors import ConfigError
from ldae.export import Run, load_run
from ldae.generate import Generator, Walk, usual_rule
from ldae.objectives.denoise import Denoise
from ldae.parts import Natural, NonNegative
from ldae.system import System


@dataclass(frozen=True)
class GenerationSettings:
    """What is drawn from, and how.

    Attributes:
        run: folder of a run of pretrain.py.
        step: which checkpoint; the newest if None.
        weights: the average of the weights or the last ones.
        seed: of all noise.
        guidance: scale of classifier-free guidance; 1 for none.
        clip: whether predictions are held to [-1, 1]; None: if the network works on pixels.
        precision: of the network's matrix products.
    """

    run: str
    step: Natural | None
    weights: Literal["ema", "model"]
    seed: Natural
    guidance: NonNegative
    clip: bool | None
    precision: Literal["fp32", "bf16"]


def generator_of(config: Mapping[str, Any]) -> tuple[Generator, Run]:
    """The generator that a tool's config asks for, and the run that it is from.

    Raises:
        ConfigError: a key cannot work, or the run is of no diffusion model.
        CheckpointError: the run has no whole checkpoint.
    """
    if not config["run"]:
        raise ConfigError("run", config["run"], "is not set; give run=RUN, the folder that pretraining wrote (out=)")
    settings: GenerationSettings = own_settings(GenerationSettings, config)
    device = prepare_machine(config)
    parts = System({key: config[key] for key in ("sampler", "spacing", "levels") if config.get(key)})
    chosen = {key: parts[key] for key in parts.config if key in config}  # a bad key costs no loading
    run = load_run(Path(settings.run), settings.step, settings.weights, device)
    objective = run.objective
    if not isinstance(objective, Denoise):
        raise ConfigError("run", settings.run, f"is of {type(objective).__name__}, which denoises nothing")
    schedule: NoiseSchedule = chosen.get("levels", objective.schedule)
    usable = usable_steps(schedule, objective.target)
    visited = stages(schedule, chosen["spacing"].steps(usable), objective.schedule)
    rule = chosen.get("sampler") or usual_rule(objective)
    clip = objective.tokenizer.bounded if settings.clip is None else settings.clip
    walk = Walk(rule, visited, clip, settings.guidance, settings.precision)
    return Generator(objective, walk, settings.seed), run


def described(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """What a result's row carries: how it was made, from what, on what."""
    return {
        "command": shlex.join(["python", *sys.argv]),
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
