"""Build the parts that a resolved config names, in the order of the data path.

Needs no data, so an invalid config fails before any image is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any, TypeVar

from ldae.config.schema import conform, construct, resolve
from ldae.core.errors import ConfigError
from ldae.core.types import Count
from ldae.data.base import Division
from ldae.data.cache import Context
from ldae.data.datasets import Dataset
from ldae.data.transforms import Augment
from ldae.denoisers.base import Network
from ldae.denoisers.unet import UNet
from ldae.diffusion.corruptions.base import Corruption
from ldae.diffusion.initial_states import InitialState
from ldae.diffusion.samplers import StepRule
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.spacing import Spacing
from ldae.diffusion.targets import Target
from ldae.diffusion.timesteps import Timesteps
from ldae.diffusion.weights import Weight
from ldae.engine.optim import Optim
from ldae.nn.patch_gan import Discriminator
from ldae.nn.perceptual import Perceptual
from ldae.nn.rrdb import RRDBNet
from ldae.objectives.autoencode import Autoencode
from ldae.objectives.base import Objective, PretrainingObjective
from ldae.objectives.classify import Classify
from ldae.objectives.denoise import Criterion, Denoise, Parameterization, Process
from ldae.objectives.learned_variance import DenoiseWithVariance
from ldae.objectives.losses import Loss
from ldae.objectives.masked import Masked
from ldae.objectives.reconstruct import Reconstruct
from ldae.objectives.spaces import InputSpace, OutputSpace
from ldae.objectives.with_pixels import DenoiseWithPixels
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer

Part = TypeVar("Part")

# keys of a data set that other groups refer to: number of classes, patch size and latent dimension
HINTS = ("classes", "patch", "d")
READING = tuple(f.name for f in fields(Context) if f.name not in ("poll", "progress"))
DIVIDING = tuple(f.name for f in fields(Division))
# groups whose keys an error names in full
GROUPS = frozenset(
    [
        "data",
        "blend_dataset",
        "outliers",
        "augment",
        "task",
        "tokenizer",
        "corruption",
        "schedule",
        "timesteps",
        "input",
        "output",
        "target",
        "weight",
        "loss",
        "denoiser",
        "objective",
        "perceptual",
        "discriminator",
        "optim",
        "sampler",
        "spacing",
        "sampling_schedule",
        "init",
    ]
)


class Parts:
    """Parts of a config, each built on first use.

    Args:
        config: {group: {part: dotted class name, argument: value, ...}}; other keys are ignored.

    Example:
        >>> parts = Parts(config)
        >>> parts.objective.tokenizer is parts.tokenizer
        True
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config

    def build(self, *names: str) -> None:
        """Build parts now, so that an invalid key fails before any work.

        Args:
            names: names of properties, e.g. `objective`.

        Raises:
            ConfigError: a part cannot be built; the message names the key, its value and the expectation.
        """
        for name in names:
            getattr(self, name)

    # image -> (x0, cond)

    @cached_property
    def data(self) -> Dataset:
        """Return the data set."""
        return self._dataset("data")

    @cached_property
    def blend_dataset(self) -> Dataset:
        """Return the data set of the images that `blend` mixes in."""
        return self._dataset("blend_dataset")

    @cached_property
    def outliers(self) -> Dataset:
        """Return the data set whose images a probe tells apart from those of `data`."""
        return self._dataset("outliers")

    @cached_property
    def augment(self) -> Augment:
        """Return the augmentation of training images."""
        return self._build("augment", "ldae.data", Augment)

    @cached_property
    def task(self) -> Task:
        """Return the task, which maps a batch to (x0, cond)."""
        return self._build("task", "ldae.tasks", Task)

    # x0 -> z0

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of x0, untrained."""
        shape = (self.task.channels, self.data.size, self.data.size)
        return self._build("tokenizer", "ldae.tokenizers", Tokenizer, {"image_shape": shape}, ("weights", "fit"))

    # z0 -> z_t

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule of training."""
        return self._build("schedule", "ldae.diffusion", NoiseSchedule)

    @cached_property
    def corruption(self) -> Corruption:
        """Return the corruption of z0."""
        tokenizer = self.tokenizer
        given = {"schedule": self.schedule, "image_shape": tokenizer.image_shape, "tokenizer": tokenizer}
        return self._build("corruption", "ldae.diffusion", Corruption, given)

    @cached_property
    def timesteps(self) -> Timesteps:
        """Return the distribution of training steps t."""
        tokenizer = self.tokenizer
        given = {"schedule": self.schedule, "grid": tokenizer.grid, "latent_size": tokenizer.shape[1:]}
        return self._build("timesteps", "ldae.diffusion", Timesteps, given)

    @cached_property
    def process(self) -> Process:
        """Return the forward process: schedule, corruption and timesteps."""
        return Process(self.schedule, self.corruption, self.timesteps)

    # z_t -> the network's input; its output -> the clean signal

    @cached_property
    def input(self) -> InputSpace:
        """Return the space of the network's input."""
        return self._build("input", "ldae.objectives", InputSpace, {"tokenizer": self.tokenizer})

    @cached_property
    def output(self) -> OutputSpace:
        """Return the space of the network's output."""
        return self._build("output", "ldae.objectives", OutputSpace, {"tokenizer": self.tokenizer})

    @cached_property
    def target(self) -> Target:
        """Return the prediction target."""
        return self._build("target", "ldae.diffusion", Target)

    @cached_property
    def parameterization(self) -> Parameterization:
        """Return the parameterization: input, output and target."""
        return Parameterization(self.input, self.output, self.target)

    # the network

    @cached_property
    def denoiser(self) -> Network:
        """Return the network with random weights.

        Raises:
            ConfigError: objective and network do not fit together.
        """
        objective = self._class("objective", "ldae.objectives", Objective)
        network = self._class("denoiser", "ldae.denoisers", Network)
        if issubclass(objective, PretrainingObjective):
            objective.check_network(network)
        if not issubclass(objective, Denoise):  # for images
            shape = (self.task.channels, self.data.size, self.data.size)
            return self._build("denoiser", "ldae.denoisers", Network, {"image_shape": shape})
        _, height, width = self.output.shape
        given = {
            "in_shape": self.input.shape,
            "out_shape": (objective.output_channels(self.output), height, width),
            "grid": self.tokenizer.grid,
            "schedule": self.schedule,
            "classes": self.task.classes,
            "cond_channels": self.task.image_channels,
        }
        spec = self._spec("denoiser")
        if spec.get("encoder") and issubclass(network, UNet):
            given["encoder"] = self._image_encoder(spec)
        return self._build("denoiser", "ldae.denoisers", Network, given, ("encoder",))

    # the loss

    @cached_property
    def weight(self) -> Weight:
        """Return the weight of the loss as a function of t."""
        return self._build("weight", "ldae.diffusion", Weight, {"target": self.target})

    @cached_property
    def loss(self) -> Loss:
        """Return the elementwise loss."""
        given = {"tokenizer": self.tokenizer, "output": self.output}
        return self._build("loss", "ldae.objectives", Loss, given)

    @cached_property
    def criterion(self) -> Criterion:
        """Return the criterion: weight and loss."""
        return Criterion(self.weight, self.loss)

    @cached_property
    def perceptual(self) -> Perceptual | None:
        """Return the perceptual loss of a tokenizer's training; None without one."""
        return self._optional("perceptual", Perceptual)

    @cached_property
    def discriminator(self) -> Discriminator | None:
        """Return the discriminator of a tokenizer's training; None without one."""
        return self._optional("discriminator", Discriminator)

    @cached_property
    def objective(self) -> Objective:
        """Return the objective with all of its parts."""
        builders = {
            Denoise: self.build_denoise,
            DenoiseWithVariance: self.build_denoise,
            DenoiseWithPixels: self.build_denoise,
            Masked: self.build_masked,
            Autoencode: self.build_autoencode,
            Reconstruct: self.build_reconstruct,
            Classify: self.build_classify,
        }
        return builders[self._class("objective", "ldae.objectives", Objective)]()

    def build_denoise(self) -> Objective:
        """Build the denoising objective of l-DAE and of diffusion models."""
        given = {
            "task": self.task,
            "tokenizer": self.tokenizer,
            "process": self.process,
            "parameterization": self.parameterization,
            "criterion": self.criterion,
            "denoiser": self.denoiser,
        }
        return self._build("objective", "ldae.objectives", Objective, given)

    def build_masked(self) -> Objective:
        """Build the objective of the masked autoencoder, without tokenizer and noise."""
        given = {"task": self.task, "denoiser": self.denoiser}
        return self._build("objective", "ldae.objectives", Objective, given)

    def build_autoencode(self) -> Objective:
        """Build the objective of a convolutional tokenizer, with its perceptual and adversarial losses, if any."""
        given = {
            "task": self.task,
            "tokenizer": self.tokenizer,
            "perceptual": self.perceptual,
            "discriminator": self.discriminator,
        }
        return self._build("objective", "ldae.objectives", Objective, given)

    def build_reconstruct(self) -> Objective:
        """Build the objective of a tokenizer that defines its own loss."""
        given = {"task": self.task, "tokenizer": self.tokenizer}
        return self._build("objective", "ldae.objectives", Objective, given)

    def build_classify(self) -> Objective:
        """Build the objective of the classifier whose features define a perceptual loss."""
        given = {"task": self.task, "perceptual": self.perceptual}
        return self._build("objective", "ldae.objectives", Objective, given)

    @cached_property
    def optim(self) -> Optim:
        """Return the optimizer settings."""
        return self._build("optim", "ldae.engine", Optim)

    # sampling

    @cached_property
    def sampler(self) -> StepRule:
        """Return the rule of a reverse step."""
        return self._build("sampler", "ldae.diffusion", StepRule)

    @cached_property
    def spacing(self) -> Spacing:
        """Return the selection of sampling steps."""
        return self._build("spacing", "ldae.diffusion", Spacing)

    @cached_property
    def sampling_schedule(self) -> NoiseSchedule:
        """Return the noise schedule of sampling."""
        return self._build("sampling_schedule", "ldae.diffusion", NoiseSchedule)

    def build_init(self, objective: Denoise) -> InitialState:
        """Build the initial state of a cold generation, for a trained objective."""
        given = {
            "corruption": objective.corruption,
            "schedule": objective.schedule,
            "image_shape": objective.tokenizer.shape,  # of x_T, a latent of every tokenizer
        }
        return self._build("init", "ldae.diffusion", InitialState, given)

    def _dataset(self, group: str) -> Dataset:
        spec = self._spec(group)
        own = {key: value for key, value in spec.items() if key in DIVIDING}
        division = self._named(group, lambda: construct(Division, own, {}))
        return self._build(group, "ldae.data", Dataset, {"division": division}, (*HINTS, *READING, *DIVIDING))

    def _image_encoder(self, spec: Mapping[str, Any]) -> RRDBNet:
        """Build the image encoder of a U-Net whose first level has `channels` channels."""

        def build() -> RRDBNet:
            if not self.task.image_channels:
                message = "has no image to read; use a task that gives one, or encoder=null"
                raise ConfigError("encoder", spec["encoder"], message)
            out = conform("channels", spec.get("channels"), Count)
            given = {"inputs": self.task.image_channels, "out": out}
            try:
                return construct(RRDBNet, spec["encoder"], given)
            except ConfigError as error:
                raise error.with_prefix("encoder") from None

        return self._named("denoiser", build)

    def _optional(self, group: str, base: type[Part]) -> Part | None:
        """Build an optional loss; return None if its group is null or its factor 0."""
        if not (self.config.get(group) or {}).get("factor"):
            return None
        return self._build(group, "ldae.nn", base, {}, ("fit",) if base is Perceptual else ())

    def _build(
        self,
        group: str,
        package: str,
        base: type[Part],
        given: Mapping[str, Any] | None = None,
        elsewhere: Collection[str] = (),
    ) -> Part:
        """Construct the part of a group.

        Args:
            group: group of the config.
            package: package that the class must belong to.
            base: base class of the part.
            given: other parts and shapes; the constructor gets those that it declares.
            elsewhere: keys of the group that are dropped unless the constructor declares them.

        Raises:
            ConfigError: the group is missing, or a key is invalid.
        """
        part_type = self._class(group, package, base)
        declared = inspect.signature(part_type).parameters
        parts = {name: part for name, part in (given or {}).items() if name in declared}
        own = {k: v for k, v in self._spec(group).items() if k != "part" and (k in declared or k not in elsewhere)}
        own = {key: value for key, value in own.items() if key not in parts}
        return self._named(group, lambda: construct(part_type, own, parts))

    def _class(self, group: str, package: str, base: type[Part]) -> type[Part]:
        part = self._spec(group).get("part")
        return self._named(group, lambda: resolve(part, package, base))

    def _spec(self, group: str) -> Mapping[str, Any]:
        spec = self.config.get(group)
        if not isinstance(spec, Mapping):
            raise ConfigError(group, spec, "must be a mapping")
        return spec

    @staticmethod
    def _named(group: str, make: Callable[[], Any]) -> Any:
        """Call `make`; prefix the key of an error with the group."""
        try:
            return make()
        except ConfigError as error:
            if error.key.split(".")[0] in GROUPS - {group}:  # a key of another group, already complete
                raise
            place = f"tokenizer.fit.{group}" if group in ("perceptual", "discriminator") else group
            raise error.with_prefix(place) from None
