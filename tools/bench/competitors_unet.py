"""Build U-Nets at 32 px and sample with them (timed by interleaved.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from competitors import DEVICE, Work, counted, train_step_of
from peers import use_site
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.app.compose import compose, resolved
from ldae.app.session import Session
from ldae.core.types import Cond
from ldae.diffusion.samplers import DDIM, FixedSmallVariance, sample
from ldae.diffusion.spacing import Linear
from ldae.diffusion.trajectory import build_trajectory
from ldae.engine.precision import PrecisionName
from ldae.objectives.denoise import Denoise
from ldae.sampling.generate import Generator, SamplerConfig

STEPS = 4  # of a trajectory that is timed


def ddim(argv: Sequence[str], batch: int, precision: PrecisionName) -> Work:
    """Sample some steps of DDIM from noise with the network of a pretraining config."""
    generator = generating(argv, precision)
    noise = generator.initial_noise(generator.rng(range(batch)), batch)
    rng = generator.rng(range(batch))
    return counted_work(lambda: generator.sample(noise, rng))


def generating(argv: Sequence[str], precision: PrecisionName) -> Generator:
    """Return an untrained network as a generator of some DDIM steps."""
    objective = Session(resolved(compose("pretrain", list(argv)))).parts.objective
    assert isinstance(objective, Denoise)
    objective.to(DEVICE).denoiser.eval()
    visited = build_trajectory(objective.schedule, Linear(STEPS).steps(objective.schedule.T))
    return Generator(objective, SamplerConfig(DDIM(), visited, clip=True, precision=precision))


def counted_work(call: Callable[[], object]) -> Work:
    """Return a call and its FLOP."""
    return call, counted(call)


def diffusers_unet() -> nn.Module:
    """Build diffusers' UNet2DModel in the sizes of DDPM's on CIFAR-10."""
    from diffusers import UNet2DModel

    network: nn.Module = UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
    )
    return network


def diffusers_training(batch: int, precision: str, last: bool, site: str | None) -> Work:
    """Return a training step of diffusers' U-Net.

    Args:
        last: whether channels come last in memory.
    """
    use_site(site)
    images, t = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.arange(batch, device=DEVICE)
    noise = torch.randn_like(images)
    model = _laid_out(diffusers_unet(), last)
    return train_step_of(model, lambda m: F.mse_loss(m(_laid(images, last), t).sample.float(), noise), precision, False)


def diffusers_ddim(batch: int, precision: str, last: bool, site: str | None) -> Work:
    """Return the same steps by diffusers' UNet2DModel and DDIMScheduler."""
    use_site(site)
    from diffusers import DDIMScheduler

    model: Any = _laid_out(diffusers_unet(), last).eval()
    scheduler = DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(STEPS)
    noise = _laid(torch.randn(batch, 3, 32, 32, device=DEVICE), last)

    @torch.no_grad()
    def steps() -> Tensor:
        x = noise
        for t in scheduler.timesteps:
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                eps = model(x, t).sample
            x = scheduler.step(eps.float(), t, x).prev_sample
        return x

    return counted_work(steps)


def lucidrains_unet() -> nn.Module:
    """Build denoising_diffusion_pytorch's Unet of width 64."""
    from denoising_diffusion_pytorch import Unet

    network: nn.Module = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=False)
    return network


def lucidrains_training(batch: int, precision: str, last: bool, compiled: bool, site: str | None) -> Work:
    """Return a training step of that Unet."""
    use_site(site)
    images, t = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.arange(batch, device=DEVICE)
    noise = torch.randn_like(images)
    model = _laid_out(lucidrains_unet(), last)
    return train_step_of(model, lambda m: F.mse_loss(m(_laid(images, last), t).float(), noise), precision, compiled)


def lucidrains_ddim(batch: int, precision: str, last: bool, site: str | None) -> Work:
    """Return the same number of DDIM steps by its GaussianDiffusion."""
    use_site(site)
    from denoising_diffusion_pytorch import GaussianDiffusion

    model: Any = _laid_out(lucidrains_unet(), last).eval()
    diffusion: Any = GaussianDiffusion(model, image_size=32, timesteps=1000, sampling_timesteps=STEPS)
    diffusion.to(DEVICE)
    forward = model.forward

    def in_precision(x: Tensor, *given: Any) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return forward(_laid(x, last), *given).float()

    with torch.no_grad():
        t = torch.zeros(batch, dtype=torch.long, device=DEVICE)
        each = counted(lambda: in_precision(torch.randn(batch, 3, 32, 32, device=DEVICE), t))
    model.forward = in_precision
    return lambda: diffusion.sample(batch_size=batch), STEPS * each  # the counter fails in its inference mode


def segmenting(argv: Sequence[str], batch: int, precision: PrecisionName, once: bool) -> Work:
    """Sample with SegDiff, in images times steps.

    Args:
        once: whether G(I) is worked out once for all steps, or at each.
    """
    generator = generating(argv, precision)
    shape = generator.objective.tokenizer.shape
    image = torch.rand(batch, 3, *shape[1:], device=DEVICE) * 2 - 1
    message = Cond(image=image)
    noise, sampler = torch.randn(batch, *shape, device=DEVICE), generator.sampler

    def steps() -> Tensor:
        cond = generator.precompute(message) if once else message
        predict = lambda x, step: generator.predict(x, step, cond)  # noqa: E731
        return sample(predict, FixedSmallVariance(), noise, sampler.trajectory, generator.rng(range(batch)), clip=True)

    return steps, batch * STEPS


def _laid_out(model: nn.Module, last: bool) -> nn.Module:
    model = model.to(DEVICE)
    return model.to(memory_format=torch.channels_last) if last else model


def _laid(images: Tensor, last: bool) -> Tensor:
    return images.to(memory_format=torch.channels_last) if last else images
