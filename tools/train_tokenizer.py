"""Trains or fits a tokenizer.

    python tools/train_tokenizer.py tokenizer=patch_vae data=cifar10 data.root=DIR/cifar10 out=RUN

Writes RUN/tokenizer.safetensors and RUN/filters.png and prints how well it gives images back. Pretraining
takes it with tokenizer.weights=RUN; without that key it makes the tokenizer it needs by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from _cli import compose, resolved, run_tool
from _session import Session, begin, finished, fit_tokenizer, train_settings

from ldae.data.images import ImageSet
from ldae.engine.run import RunFolder
from ldae.errors import UsageError
from ldae.metrics.psnr import psnr


def main(words: Sequence[str]) -> None:
    """Composes, checks, then fits."""
    config = resolved(compose("train_tokenizer", words))
    session = Session(config)
    tokenizer = session.system["tokenizer"]
    if tokenizer.needs_training:
        train_settings(config)
        session.system["objective"], session.system["optim"]
    run = RunFolder(Path(config["out"] or f"runs/tokenizer-{type(tokenizer).__name__}/seed{config['seed']}"))
    with session.running(run):
        if session.world.size > 1:
            raise UsageError("train_tokenizer.py works in one process; start it without torchrun")
        if finished(run, config):
            print(f"{run.path} is finished; nothing to do")
            return
        splits = session.splits()
        begin(run, config, splits)
        sha = fit_tokenizer(session, splits, run)
        quality = reconstruction(session, splits.holdout if len(splits.holdout) else splits.train)
        run.set_status("done", 0)
        d, h, w = tokenizer.shape
        print(f"done: {run.path}\n  latents {d} x {h} x {w}, sha256 {sha[:12]}")
        print(f"  hold-out PSNR {quality:.2f} dB; filters in {run.path / 'filters.png'}")


@torch.no_grad()
def reconstruction(session: Session, images: ImageSet) -> float:
    """PSNR of decode(encode(x)) over a set, dB, pixels clipped to the valid range."""
    tokenizer = session.system["tokenizer"]
    pairs = [(x, tokenizer.decode(tokenizer.encode(x)).clamp(-1, 1)) for x in session.images(images)]
    return psnr(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]), peak=2.0)


if __name__ == "__main__":
    run_tool(main)
