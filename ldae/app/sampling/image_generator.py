"""Generate, restore and edit images with a trained run in Python, as the commands `ldae sample` and `ldae restore`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.overrides import arguments
from ldae.app.precision import settle_precision
from ldae.app.sampling.generator import build_generator
from ldae.app.sampling.image_arrays import OUTPUTS, Images, Output, Pictures, as_output, images_of, masks_of
from ldae.app.sampling.restore import RestoreSettings, restoration_of
from ldae.app.sampling.sample import SampleSettings, check_init, conditions_of, initial_state
from ldae.app.session import Session, root_settings, session_of
from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.progress import Progress
from ldae.core.types import Batch
from ldae.diffusion.corruptions.blend import Blend
from ldae.diffusion.corruptions.shapes import SHAPES
from ldae.engine.runtime import resolve_device
from ldae.export.encoder import load_run
from ldae.objectives.denoise import Denoise
from ldae.sampling.generate import Generator
from ldae.sampling.restore import Restoration

# keys of the commands that have no meaning without files, or that are arguments of the methods and of load_generator
REFUSED = {"run", "step", "weights", "device", "out", "allow", "gif", "features", "pictures", "split", "shown", "count",
           "seed", "guide", "keep", "low"}  # fmt: skip


class ImageGenerator:
    """Trained diffusion model that samples, restores and edits images: the commands `ldae sample` and `ldae restore`.

    Every method takes the keys of its command as keyword arguments (`ldae sample --help`), and gives the pictures that
    the command gives for the same keys, precision and number of threads. An image is a function of the seed and of its
    position alone.

    Images are given as uint8 arrays (N, H, W, 3) or (H, W, 3), as float tensors (N, 3, H, W) in [0, 1] or uint8
    tensors, as one PIL picture or a list of them, or as the path of a picture or of a folder. They are rounded to
    8 bits, cropped at the centre and resized (bicubic) to the size of the run, as the commands do. Results are uint8
    arrays (N, H, W, 3) with `output="numpy"`, a list of PIL pictures with "pil", float tensors (N, C, H, W) in [0, 1]
    with "tensor"; masks have a channel of their foreground, or one for each class.

    Args:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        progress: draw a progress bar.

    Raises:
        CheckpointError: there is no run, or it has no whole checkpoint.
        ConfigError: the run is of no diffusion model.

    Example:
        >>> generator = ldae.load_generator("runs/ddpm")
        >>> generator.sample(64, sampler="ddim", steps=50).shape
        (64, 32, 32, 3)
        >>> generator.edit("photo.png", t0=0.5, output="pil")[0].save("edited.png")
    """

    def __init__(
        self,
        run: Path | str,
        step: int | None = None,
        weights: Literal["ema", "model"] = "ema",
        device: str = "auto",
        progress: bool = False,
    ):
        self.path = Path(run).expanduser()
        if not self.path.is_dir():
            raise CheckpointError(f"run={run} is no folder; give the folder that pretraining wrote (out=)")
        self.device, self.progress = resolve_device(device), progress
        self.run = load_run(self.path, step, weights, self.device)
        if not isinstance(self.run.objective, Denoise):
            raise ConfigError("run", str(run), f"is of {type(self.run.objective).__name__}, which denoises nothing")

    def __repr__(self) -> str:
        return f"ImageGenerator({str(self.path)!r}, step={self.run.checkpoint.step})"

    def sample(
        self,
        count: int = 64,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        low: Images | None = None,
        output: Output = "numpy",
        **settings: Any,
    ) -> Any:
        """Draw images, as `ldae sample`.

        Args:
            count: number of images; with `low`, the number of its images.
            sampler: `ddpm`, `ddpm_large`, `learned`, `ddim`, ...; the run's default if None.
            steps: number of steps, spaced from the noisiest (`spacing=trailing`) unless `spacing` is set; all if None.
            seed: seed of all noise.
            low: low-resolution images for a super-resolution run.
            output: type of the result.
            settings: further keys of the command: `classes=[3]`, `guidance=1.5`, `init="coarse_gaussian"`,
                `**{"sampler.eta": 1}`.

        Returns:
            `count` images, as `output` says.

        Raises:
            ConfigError, UsageError: a key or value is invalid.
            DataError: the images of `low` cannot be read or are of another size.
        """
        config = self._config("sample", sampler, steps, seed, output, settings, count=count)
        options: SampleSettings = root_settings(SampleSettings, config)
        generator = build_generator(self.run, config)
        small = None if low is None else images_of("low", low, None)
        conditions = conditions_of(generator, options, small)
        check_init(generator, config)
        if config.get("init"):
            generator.init = initial_state(generator, config, self._session(config))
        starts = range(0, conditions.count, options.batch)
        bar = self._progress(generator, len(starts) * generator.passes(), "sampling")
        batches = []
        for start in starts:
            index = range(start, min(start + options.batch, conditions.count))
            batches.append(generator.from_noise(list(index), conditions.of(index, generator.device)).cpu())
        bar.close()
        return as_output(torch.cat(batches), output)

    def restore(
        self,
        images: Images,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        output: Output = "numpy",
        **settings: Any,
    ) -> Any:
        """Restore images by what the run was trained for, as `ldae restore`.

        Runs of Cold Diffusion degrade the images and restore them, SR3 runs downsample and enlarge them, SegDiff runs
        return the masks.

        Args:
            images: N images.
            sampler, steps, seed, output: as for `sample`.
            settings: further keys of the command: `how="invert"`, `runs=5`, `sampling_schedule="linear_ramp"`.

        Returns:
            The last column of the command's pictures that is measured: N images or masks, as `output` says.

        Raises:
            ConfigError, UsageError: a key or value is invalid.
            DataError: the images cannot be read.
        """
        config = self._config("restore", sampler, steps, seed, output, settings)
        restoration, columns = self._restore(config, images, None, None)
        if not restoration.measured:
            how = type(restoration).__name__.lower()
            raise ConfigError("how", how, "has several results; use columns() in place of restore()")
        return as_output(columns[restoration.measured[-1]], output)

    def edit(
        self,
        images: Images,
        t0: float = 0.5,
        *,
        guide: Images | None = None,
        keep: Images | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        output: Output = "numpy",
        **settings: Any,
    ) -> Any:
        """Edit images by SDEdit, as `ldae restore how=edit`.

        Args:
            images: N originals.
            t0: fraction of the schedule at which the reverse process starts, in [0, 1]; 0 returns the guide.
            guide: one guide or N; simulated strokes of the images if None.
            keep: one mask or N, (N, H, W) bool or 0 to 255, whose white pixels keep those of the original to the bit.
            sampler, steps, seed, output: as for `sample`; of the steps, those from t0 on are visited.
            settings: further keys of the command: `repeats=3`, `strokes=5`, `colours=8`.

        Returns:
            N images, as `output` says.

        Raises:
            ConfigError, UsageError: a key or value is invalid.
            DataError: the images cannot be read, or there are neither one nor N guides.
        """
        config = self._config("restore", sampler, steps, seed, output, settings, how="edit", t0=[t0])
        restoration, columns = self._restore(config, images, guide, keep)
        return as_output(columns[restoration.measured[-1]], output)

    def columns(
        self,
        images: Images,
        *,
        guide: Images | None = None,
        keep: Images | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        output: Output = "numpy",
        **settings: Any,
    ) -> dict[str, Any]:
        """Restore or edit images, and return every column of the pictures that `ldae restore` writes.

        Args:
            images: N images.
            guide, keep: as for `edit`.
            sampler, steps, seed, output: as for `sample`.
            settings: further keys of the command: `how="interpolate"`, `t0=[0.3, 0.5]`.

        Returns:
            {name of a column, e.g. `degraded`, `direct`, `sampled`: N images, as `output` says}.

        Raises: as restore and edit.
        """
        config = self._config("restore", sampler, steps, seed, output, settings)
        _, columns = self._restore(config, images, guide, keep)
        return {name: as_output(column, output) for name, column in columns.items()}

    def _config(
        self,
        command: str,
        sampler: str | None,
        steps: int | None,
        seed: int,
        output: Output,
        settings: Mapping[str, Any],
        **own: Any,
    ) -> dict[str, Any]:
        """Compose the config of a command; `own` are the keys that a method sets itself.

        Raises:
            ConfigError: a key is one that only the command has, or there is no such output.
        """
        if output not in OUTPUTS:
            raise ConfigError("output", output, f"is none of: {', '.join(OUTPUTS)}")
        for key in settings:
            if key.partition(".")[0] in REFUSED | own.keys():
                raise ConfigError(
                    key, settings[key], "is no keyword here: it is a key of the command, or set otherwise in Python"
                )
        given = {key: value for key, value in settings.items() if value is not None}
        given |= {**own, "run": str(self.path), "device": self.device, "seed": seed}
        given |= {} if sampler is None else {"sampler": sampler}
        if steps is not None:
            given = {"spacing": "trailing", **given, "spacing.count": steps}
        config, _ = settle_precision(resolved(compose(command, list(arguments(given)))))
        return config

    def _restore(
        self, config: Mapping[str, Any], images: Images, guide: Images | None, keep: Images | None
    ) -> tuple[Restoration, dict[str, Tensor]]:
        """Return the restoration and its columns of all images, on the CPU."""
        options: RestoreSettings = root_settings(RestoreSettings, config)
        generator = build_generator(self.run, config)
        size = generator.objective.tokenizer.image_shape[1]
        pixels = images_of("images", images, size)
        guides = Pictures(
            len(pixels),
            None if guide is None else images_of("guide", guide, size),
            None if keep is None else masks_of("keep", keep, size),
        )
        drawn = not options.mask or options.mask in SHAPES
        holes = Pictures(len(pixels), None, None if drawn else masks_of("mask", options.mask or "", size))

        def masks(batch: Batch) -> Tensor:
            mask = holes(batch)[1]
            assert mask is not None
            return mask

        restoration = restoration_of(generator, options, guides, masks)
        restoration.check(generator)
        if isinstance(generator.objective.corruption, Blend):
            self._session(config).load_blend_images(generator.objective.corruption)
        starts = range(0, len(pixels), options.batch)
        bar = self._progress(generator, len(starts) * restoration.passes, "restoring")
        batches = []
        for start in starts:
            part = pixels[start : start + options.batch].to(generator.device)
            index = torch.arange(start, start + len(part), device=generator.device)
            columns = restoration(Batch(part, torch.zeros_like(index), index))
            batches.append({name: column.cpu() for name, column in columns.items()})
        bar.close()
        return restoration, {name: torch.cat([columns[name] for columns in batches]) for name in batches[0]}

    def _session(self, config: Mapping[str, Any]) -> Session:
        """Open a session with the run's data; the global random state stays as it is."""
        with torch.random.fork_rng():
            return session_of(self.run, config)

    def _progress(self, generator: Generator, passes: int, title: str) -> Progress:
        bar = Progress("bar" if self.progress else "off", passes, title=title)
        generator.on_step = bar.advance
        return bar
