"""Weights of vision transformers, whoever wrote the file, in the names that timm's modules have.

Known are the files of MAE, DINO, DINOv2 and timm, and the exports of this suite. Their encoders are the same
networks; what differs is what the file wraps them in and what else it holds. Renaming registers and fused layers,
and resampling positions to another grid, is timm's own work.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldae.errors import CheckpointError, ConfigError
from ldae.files import load_tensors

# Under which key a training's file keeps the weights, the averaged ones first: DINO and DINOv2 write `teacher`, MAE
# and DeiT `model`, timm `state_dict`, I-JEPA `target_encoder`.
WRAPPERS = ("teacher", "target_encoder", "model_ema", "state_dict_ema", "model", "state_dict")
# Of a module inside of others: distributed training, torch.compile, DINO's wrapper of backbone and head.
PREFIXES = ("module.", "_orig_mod.", "backbone.")
# What stands beside an encoder: MAE's decoder, classifiers, DINO's projection head.
BESIDE = ("decoder_", "head.", "head_dist.", "dino_head.", "ibot_head.")
CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")  # DINOv2's training: blocks.CHUNK.BLOCK
PATCHES = "patch_embed.proj.weight"
NAMED = 3  # how many keys that differ an error names


def read_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's tensors in a file, freed of wrappers, prefixes and what stands beside it.

    Args:
        path: safetensors, or a file of torch.save. Of the latter nothing is run but the making of tensors, plain
            containers and argparse's namespaces, which MAE and DINO leave in theirs.

    Raises:
        CheckpointError: the file is missing, damaged, holds no named tensors, or numbers that are not finite.
    """
    held = load_tensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    tensors = {CHUNKED.sub(r"blocks.\1.", name): value for name, value in _unprefixed(_unwrapped(held)).items()}
    found = {name: value for name, value in tensors.items() if not name.startswith(BESIDE)}
    if not found:
        raise CheckpointError(f"{path} holds no named tensors of a vision transformer")
    for name, value in found.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {name} holds numbers that are not finite")
    return found


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fills a timm vision transformer; positions are resampled to its grid.

    Args:
        tensors: of `read_weights`.
        path: where they are from, for the error.

    Raises:
        ConfigError: they are of another network. Names the first keys that differ.
    """
    own = model.state_dict()
    patches = [name for name in (PATCHES,) if name in own and name in tensors]
    if any(own[name].shape[1:] != tensors[name].shape[1:] for name in patches):
        raise _unfit(path, _differences(own, tensors, patches))  # timm would resample patches that nobody trained
    found = _in_timms_names(model, tensors, path)
    if differing := _differences(own, found, dict.fromkeys([*own, *found])):
        raise _unfit(path, differing)
    model.load_state_dict(found)


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """How two networks differ in some of their tensors, in words."""
    said = []
    for name in names:
        if name not in found:
            said.append(f"{name} is missing")
        elif name not in own:
            said.append(f"{name} is not expected")
        elif own[name].shape != found[name].shape:
            said.append(f"{name} is {tuple(found[name].shape)}, not {tuple(own[name].shape)}")
    return said


def _in_timms_names(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """As the module of the model renames and resamples the files that it knows."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        found: dict[str, Tensor] = convert(dict(tensors), model) if convert else dict(tensors)
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        own = model.state_dict()
        differing = _differences(
            own, tensors, [name for name in [*own, *tensors] if (name in own) != (name in tensors)]
        )
        raise _unfit(path, differing or [f"{type(error).__name__}: {_first_line(error)}"]) from None
    found.pop("mask_token", None)  # of training alone
    return found


def _unfit(path: Path, differing: list[str]) -> ConfigError:
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    return ConfigError("weights", str(path), f"is of another network: {'; '.join(differing[:NAMED])}{more}")


def _unpickled(path: Path) -> Any:
    """What torch.save wrote, without running code out of the file."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(f"{path} cannot be read as weights ({_first_line(error)})") from None


def _unwrapped(held: Any) -> dict[str, Tensor]:
    """The innermost mapping of names to tensors."""
    while isinstance(held, Mapping):
        inner = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
        held = inner
    return {}


def _unprefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the innermost module knows them; what lies outside of it is left out."""
    while prefix := next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), ""):
        tensors = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
