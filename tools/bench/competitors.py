"""Build the timed calls: each function returns a call and its amount of work (timed by interleaved.py)."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.app.compose import compose, resolved
from ldae.app.session import Session, train_settings
from ldae.app.training.plan import trainer_on
from ldae.engine.flop import count_flop
from ldae.engine.runtime import resolve_device
from ldae.engine.threads import AdaptiveThreads

DEVICE = torch.device(resolve_device("auto"))  # of all competitors, as of `ldae pretrain` without device=
Work = tuple[Callable[[], object], float]
IMAGES = 2048  # number of random images for training steps
STEPS_UNDER_LOAD = 32  # steps of a call under load; the number of threads adapts within some of them
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


def matmul(size: int, precision: str) -> Work:
    """Return a square matrix product: the machine's limit; one of 8192 on a GPU, which a smaller one does not fill."""
    size = size if DEVICE.type == "cpu" else max(size, 8192)
    a, b = (torch.randn(size, size, dtype=getattr(torch, precision), device=DEVICE) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def training(argv: Sequence[str], input: bool = True, images: int = IMAGES, per_image: bool = False) -> Work:
    """Build the training step of `ldae pretrain`: batch and augmentation, loss, clipping, AdamW, average.

    Args:
        argv: arguments of `ldae pretrain`.
        input: whether to load batches.
        images: number of random images to load from.
        per_image: count images instead of FLOP.
    """
    session = Session(resolved(compose("pretrain", list(argv))))
    trainer, loader = trainer_on(session, train_settings(session.config).batch, images)
    batches = loader.batches(0)
    first = next(batches)

    def step() -> object:
        return trainer.train_step(next(batches) if input else first)

    return step, float(trainer.settings.batch) if per_image else counted(step)


def training_under_load(argv: Sequence[str], busy: int, adapted: bool) -> Work:
    """Build the training step of l-DAEs while other processes each keep a core busy.

    Args:
        argv: arguments of `ldae pretrain`.
        busy: number of other processes; they are stopped between calls.
        adapted: whether the number of threads is adapted to the load, as ldae pretrain does.
    """
    session = Session(resolved(compose("pretrain", list(argv))))
    trainer, loader = trainer_on(session, train_settings(session.config).batch, IMAGES)
    batches, threads = loader.batches(0), AdaptiveThreads() if adapted else None
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(busy)]
    for other in others:
        atexit.register(other.kill)
        other.send_signal(signal.SIGSTOP)

    def steps() -> None:
        for other in others:
            other.send_signal(signal.SIGCONT)
        if threads is not None:
            threads.reset()
        for _ in range(STEPS_UNDER_LOAD):
            if threads is not None:
                threads.update()
            trainer.train_step(next(batches))
        for other in others:
            other.send_signal(signal.SIGSTOP)

    return steps, float(STEPS_UNDER_LOAD * trainer.settings.batch)


def vit(
    width: int,
    depth: int,
    heads: int,
    batch: int,
    precision: str,
    fused: bool,
    compiled: bool,
    pixels: int = 32,
    patch: int = 4,
) -> Work:
    """Return the training step of timm's vision transformer, with fused AdamW."""
    from timm.models.vision_transformer import VisionTransformer

    sizes: Any = {"img_size": pixels, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    model = VisionTransformer(**sizes, num_classes=10).to(DEVICE)
    blocks: Any = model.blocks
    for block in blocks:
        block.attn.fused_attn = fused
    labels, images = torch.arange(batch, device=DEVICE) % 10, torch.randn(batch, 3, pixels, pixels, device=DEVICE)
    return train_step_of(model, lambda m: F.cross_entropy(m(images).float(), labels), precision, compiled)


def first_step(argv: Sequence[str], saved: bool) -> Work:
    """Start `ldae pretrain`, compiled, and end it after one step.

    Args:
        argv: arguments of `ldae pretrain`.
        saved: whether the code that the start before compiled is there.
    """
    cache = Path(tempfile.mkdtemp(prefix="ldae-bench-"))
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    keys = ["train.compile=true", "train.epochs=null", "train.steps=1", "monitor.num_evals=0", f"out={cache / 'run'}"]
    command = [sys.executable, "-m", "ldae", "pretrain", *argv, *keys]

    def start() -> None:
        for name in ("run",) if saved else ("run", "compiled"):
            shutil.rmtree(cache / name, ignore_errors=True)
        subprocess.run(command, env={**os.environ, "LDAE_CACHE": str(cache)}, check=True, stdout=subprocess.DEVNULL)

    return start, 1.0


def official_mae(folder: str, batch: int, precision: str, compiled: bool, per_image: bool = False) -> Work:
    """Return the training step of facebookresearch/mae: 192 wide, 12 + 4 blocks, 32 px in patches of 4, 75 % hidden.

    Args:
        folder: of the checkout; its `models_mae.py` is used unchanged.
        per_image: count images instead of FLOP.
    """
    sys.path.insert(0, folder)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
    from models_mae import MaskedAutoencoderViT

    model = MaskedAutoencoderViT(**sizes, decoder_embed_dim=192, decoder_depth=4, decoder_num_heads=3)
    model, images = model.to(DEVICE), torch.randn(batch, 3, 32, 32, device=DEVICE)
    step, flop = train_step_of(model, lambda m: m(images)[0].float(), precision, compiled)
    return step, float(batch) if per_image else flop


def train_step_of(model: nn.Module, loss: Callable[[Any], Tensor], precision: str, compiled: bool) -> Work:
    """Return a plain training step: autocast, loss, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, fused=True)
    network: Any = model

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            value = loss(network)
        value.backward()
        optimizer.step()
        return value

    amount = counted(step)
    if compiled:
        network = torch.compile(model)
    return step, amount


def counted(call: Callable[[], object]) -> float:
    """Count the FLOP of a call (`count_flop`).

    Nothing is compiled meanwhile, so that the first compilation is not one in the mode of the counter.
    """
    with torch.compiler.set_stance("force_eager"):
        return float(sum(count_flop(call).values()))
