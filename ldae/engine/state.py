"""A trainer's state as named tensors, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldae.core.errors import CheckpointError
from ldae.engine.fsdp import divided_like, fill, own_rows, whole

if TYPE_CHECKING:
    from ldae.engine.checkpoint import Checkpoint
    from ldae.engine.trainer import Trainer


def save_state(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """File name -> named tensors: the networks, their averages, the optimisers' moments, the generators; and what
    players remember beside their weights, where they do.

    Moments are named `PLAYER.STATE.PARAMETER`, so that they find their parameter whatever its position. Tensors are
    whole: where they are divided among processes, all of these have to call this.
    """
    model = {f"{n}.{k}": whole(v) for n, network in trainer.networks.items() for k, v in network.state_dict().items()}
    optim = {}
    for owner, optimizer in trainer.optimizers.items():
        names = {id(p): name for name, p in trainer.networks[owner].named_parameters()}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                optim[f"{owner}.{key}.{names[id(parameter)]}"] = whole(torch.as_tensor(value))
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    average = {name: whole(value, trainer.weights[name]) for name, value in trainer.ema.average.items()}
    found = {"model": model, "ema": average, "optim": optim, "rng": rng}
    memory = {f"{n}.{k}": v for n, module in _memories(trainer).items() for k, v in module.state_dict().items()}
    return {**found, "memory": memory} if memory else found


def _memories(trainer: Trainer) -> dict[str, nn.Module]:
    found = {name: getattr(owner, "memory", None) for name, owner in trainer.trainable_modules.items()}
    return {name: module for name, module in found.items() if module is not None and module.state_dict()}


def load_state(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's tensors where save_state found them.

    Raises:
        CheckpointError: names or shapes are not those of this trainer.
    """
    model, moments = checkpoint.tensors("model"), checkpoint.tensors("optim")
    try:
        for owner, network in trainer.networks.items():
            own = {k[len(owner) + 1 :]: v for k, v in model.items() if k.startswith(f"{owner}.")}
            fill(network, own)
            parameters = dict(network.named_parameters())
            for name, value in moments.items():
                if name.startswith(f"{owner}."):
                    key, parameter = name[len(owner) + 1 :].split(".", 1)
                    state = trainer.optimizers[owner].state[parameters[parameter]]
                    like = parameters[parameter]
                    # AdamW's `step` is a float on the CPU unless fused, then it lives with the parameter
                    state[key] = (
                        divided_like(like.detach(), value) if value.shape == like.shape else value.to(like.device)
                    )
        average = checkpoint.tensors("ema")
        trainer.ema.load({k: own_rows(divided_like(trainer.weights[k], v)) for k, v in average.items()})
        for owner, module in _memories(trainer).items():
            own = {k[len(owner) + 1 :]: v for k, v in checkpoint.tensors("memory").items() if k.startswith(f"{owner}.")}
            module.load_state_dict(own)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path} is of another network: {error}") from None
    torch.set_rng_state(checkpoint.tensors("rng")["cpu"])
