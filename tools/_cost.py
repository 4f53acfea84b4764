"""What cells will cost, before they are run: a few training steps of each are timed on random images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from _plan import Planned
from _session import Session, train_settings
from _tokenizers import tokenizer_config
from torch import Tensor

from ldae.objectives.base import Objective
from ldae.objectives.classify import Classify
from ldae.objectives.denoise import Denoise
from ldae.types import Batch, Draws, Player

STEPS = 3  # timed, after one that is not
WHOLE = 32  # images of such a step, at most
QUIET = {"threads": 0, "progress": False}


def training_seconds(plans: Sequence[Planned], threads: int) -> float:
    """Return the seconds of the training loops of cells and their tokenizers, one after another on this machine.

    Args:
        threads: of each process.
    """
    torch.set_num_threads(threads)
    runs = {p.run_key: p for p in plans}
    tokenizers = {p.tokenizer_key: p for p in plans if p.tokenizer_key}
    spent = [_pretraining(p) for p in runs.values()] + [_tokenizer(p) for p in tokenizers.values()]
    return sum(spent)


def _pretraining(planned: Planned) -> float:
    """Seconds of a cell's training loop."""
    session = Session({**planned.config, "runtime": QUIET})
    objective: Objective = session.system["objective"].to(session.device)
    if isinstance(objective, Denoise):
        objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))  # timed, not scored
    batch = _images(session, planned.config["train"]["batch"])
    if _encodes_once(session, objective):
        assert isinstance(objective, Denoise)
        with torch.no_grad():
            kept = objective.tokenizer.stored(2 * batch.images - 1)
        batch = Batch(batch.images, batch.labels, batch.index, kept)
    return planned.images * _step(session, objective, batch) / len(batch)


def _tokenizer(planned: Planned) -> float:
    """Seconds that a cell's tokenizer is trained, and encodes the training images where latents are kept."""
    session = Session({**planned.config, "runtime": QUIET})
    objective: Objective = session.system["objective"].to(session.device)
    if not session.system["tokenizer"].needs_training:
        return 0.0
    sub = Session(tokenizer_config(session))
    settings = train_settings(sub.config)
    batch = _images(sub, settings.batch)
    spent = _perceptual(sub, batch)
    trained: Objective = sub.system["objective"].to(sub.device)
    found = 0.0
    for player in trained.players.values():
        player.turn(settings.steps or 0)
        found += _step(sub, player, batch)
    spent += found * (settings.steps or 0) * settings.batch / len(batch)
    if _encodes_once(session, objective):
        assert isinstance(objective, Denoise)
        objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))
        with torch.no_grad():
            each = _timed(lambda: objective.tokenizer.stored(2 * batch.images - 1)) / len(batch)
        spent += each * len(session.splits().train)
    return spent


def _perceptual(session: Session, batch: Batch) -> float:
    """Seconds that the classifier of a tokenizer's perceptual loss is trained, if there is one."""
    perceptual = session.system["perceptual"]
    if perceptual is None or not perceptual.needs_training:
        return 0.0
    fit = session.config["perceptual"]["fit"]
    step = _step(session, Classify(session.system["task"], perceptual.to(session.device)), batch)
    return float(fit["steps"] * fit["batch"] * step / len(batch))


def _encodes_once(session: Session, objective: Objective) -> bool:
    """Whether pretraining will keep latents (see _latents.py)."""
    return isinstance(objective, Denoise) and objective.tokenizer.costly and session.system["augment"].n == 0


def _images(session: Session, batch: int) -> Batch:
    size, count = session.system["data"].size, min(batch, WHOLE)
    zeros = torch.zeros(count, dtype=torch.long, device=session.device)
    pixels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(pixels.to(session.device), zeros, zeros)


def _step(session: Session, player: Player, batch: Batch) -> float:
    """Seconds of one step of a player's training."""
    optimizer = session.system["optim"].build(player.network)
    enabled = session.config["train"]["precision"] == "bf16"

    def learn() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(session.device).type, dtype=torch.bfloat16, enabled=enabled):
            loss, _ = player(batch, Draws([0], session.device))
        loss.backward()
        optimizer.step()
        return loss

    return _timed(learn)


def _timed(work: Callable[[], Tensor]) -> float:
    """Seconds of one call, the fastest of some after a first one."""
    found = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        work().sum().item()  # a GPU is waited for
        found.append(time.perf_counter() - began)
    return min(found[1:])
