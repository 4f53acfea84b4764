"""Everything that a training step changes, and its way to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldae.core.errors import CheckpointError
from ldae.core.types import TrainableModule
from ldae.engine.checkpoint import Checkpoint, publish
from ldae.engine.ema import EMA
from ldae.engine.fsdp import gather_full, load_full, local_shard, shard_like
from ldae.engine.optim import Optim


class TrainState:
    """Weights, their average, optimizer moments, random state and step of a training.

    Args:
        modules: trainable modules by name; each gets an optimizer of its own.
        optim: builds the optimizers.
        decay: of the average of the weights, in [0, 1).

    Attributes:
        step: number of steps made.
        networks: {module: network with its parameters}.
        weights: {module.parameter: live parameter}.
        optimizers: {module: optimizer}.
        ema: average of the weights.
        memories: {module: what it keeps between steps beside its weights}.
    """

    def __init__(self, modules: Mapping[str, TrainableModule], optim: Optim, decay: float):
        self.step = 0
        self.networks: dict[str, nn.Module] = {name: module.network for name, module in modules.items()}
        self.weights = {
            f"{name}.{key}": parameter
            for name, network in self.networks.items()
            for key, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        self.optimizers = {name: optim.build(network) for name, network in self.networks.items()}
        self.ema = EMA({name: local_shard(value) for name, value in self.weights.items()}, decay)
        memories = {name: getattr(module, "memory", None) for name, module in modules.items()}
        self.memories: dict[str, nn.Module] = {name: m for name, m in memories.items() if m is not None}

    def parameters(self, name: str) -> list[Tensor]:
        """Return the parameters that a module's optimizer updates."""
        return [p for group in self.optimizers[name].param_groups for p in group["params"]]

    def save(self, folder: Path, record: Mapping[str, Any], keep: int, tensors: Mapping[str, Any]) -> None:
        """Publish a checkpoint of this step.

        Args:
            folder: checkpoints of the run.
            record: further entries of the manifest.
            keep: checkpoints that are kept.
            tensors: of `tensors()`; gathered before, by all processes where weights are sharded.
        """
        publish(folder, dict(tensors), {**record, "step": self.step}, keep)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return {file: {name: tensor}} of a checkpoint.

        Moments are named `MODULE.STATE.PARAMETER`. Tensors are whole: where they are sharded among processes, all of
        these have to call this.
        """
        model = {
            f"{n}.{k}": gather_full(v) for n, network in self.networks.items() for k, v in network.state_dict().items()
        }
        average = {name: gather_full(value, self.weights[name]) for name, value in self.ema.average.items()}
        moments = {}
        for name, optimizer in self.optimizers.items():
            parameters = {id(p): key for key, p in self.networks[name].named_parameters()}
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    moments[f"{name}.{key}.{parameters[id(parameter)]}"] = gather_full(torch.as_tensor(value))
        rng = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        memory = {f"{n}.{k}": v for n, module in self.memories.items() for k, v in module.state_dict().items()}
        files = {"model": model, "ema": average, "optim": moments, "rng": rng}
        return {**files, "memory": memory} if memory else files

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: names or shapes are not those of this training.
        """
        try:
            for name, network in self.networks.items():
                load_full(network, _of_module(checkpoint.tensors("model"), name))
                parameters = dict(network.named_parameters())
                for key, value in _of_module(checkpoint.tensors("optim"), name).items():
                    moment, parameter_name = key.split(".", 1)
                    parameter = parameters[parameter_name]
                    # AdamW's `step` is a float on the CPU unless fused, then it lives with the parameter
                    self.optimizers[name].state[parameter][moment] = (
                        shard_like(parameter.detach(), value)
                        if value.shape == parameter.shape
                        else value.to(parameter.device)
                    )
            average = checkpoint.tensors("ema")
            self.ema.load({k: local_shard(shard_like(self.weights[k], v)) for k, v in average.items()})
            for name, module in self.memories.items():
                if module.state_dict():
                    module.load_state_dict(_of_module(checkpoint.tensors("memory"), name))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint.path} is of another network: {error}") from None
        torch.set_rng_state(checkpoint.tensors("rng")["cpu"])
        self.step = checkpoint.step


def _of_module(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of one module, without its name before theirs."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
