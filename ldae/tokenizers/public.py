"""Weights of public KL autoencoders (Stable Diffusion's, DiT's) in the names that our modules have.

Two layouts are known: that of diffusers' AutoencoderKL and that of latent diffusion's own code. The networks are the
same; attention's q, k and v are one convolution here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldae.core.errors import CheckpointError
from ldae.core.files import load_tensors
from ldae.nn.conv import Downsample, ResBlock, SpatialAttention, Upsample
from ldae.tokenizers.conv_vae import ConvVAE


@dataclass(frozen=True)
class Layout:
    """Names of one code base. `{d}` is down or up, `{i}` the level in that order, `{j}` the block.

    Attributes:
        mark: a name that only this layout has.
        descending: whether the decoder's levels are counted from the image inwards.
    """

    mark: str
    res: str
    attention: str
    resample: Mapping[str, str]
    middle: tuple[str, str, str]
    norm: str
    shortcut: str
    inner: Mapping[str, str]
    descending: bool


DIFFUSERS = Layout(
    mark="encoder.mid_block.resnets.0.conv1.weight",
    res="{d}_blocks.{i}.resnets.{j}",
    attention="{d}_blocks.{i}.attentions.{j}",
    resample={"down": "down_blocks.{i}.downsamplers.0", "up": "up_blocks.{i}.upsamplers.0"},
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm="conv_norm_out",
    shortcut="conv_shortcut",
    inner={"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"},
    descending=False,
)
LATENT_DIFFUSION = Layout(
    mark="encoder.mid.block_1.conv1.weight",
    res="{d}.{i}.block.{j}",
    attention="{d}.{i}.attn.{j}",
    resample={"down": "down.{i}.downsample", "up": "up.{i}.upsample"},
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    norm="norm_out",
    shortcut="nin_shortcut",
    inner={"norm": "norm", "q": "q", "k": "k", "v": "v", "proj": "proj_out"},
    descending=True,
)


def load_public(path: Path, vae: ConvVAE) -> None:
    """Fills `vae` from a safetensors file in one of the two layouts. Its latent scale is still to be measured.

    Raises:
        CheckpointError: the file is in neither, or of a network of another size.
    """
    tensors = load_tensors(path)
    layout = next((known for known in (DIFFUSERS, LATENT_DIFFUSION) if known.mark in tensors), None)
    if layout is None:
        raise CheckpointError(f"{path} is neither a tokenizer of ours nor a KL autoencoder of diffusers or its like")
    try:
        own = from_layout(tensors, vae, layout)
        missing, unexpected = vae.load_state_dict(own, strict=False)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is of another network: {str(error).splitlines()[-1].strip()}") from None
    if unexpected or set(missing) - {"scale", "fitted"}:
        raise CheckpointError(f"{path} is of another network: {sorted([*missing, *unexpected])[:4]}")


def from_layout(theirs: Mapping[str, Tensor], vae: ConvVAE, layout: Layout) -> dict[str, Tensor]:
    """Their tensors by our names."""
    found = {}
    for ours, names, shape in correspondence(vae, layout):
        parts = [theirs[name].reshape(theirs[name].shape[0], *shape[1:]) for name in names]
        found[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return found


def to_layout(vae: ConvVAE, layout: Layout) -> dict[str, Tensor]:
    """The inverse of from_layout; attention as 1 x 1 convolutions."""
    own = vae.state_dict()
    found: dict[str, Tensor] = {}
    for ours, names, _ in correspondence(vae, layout):
        found |= dict(zip(names, own[ours].chunk(len(names)), strict=True))
    return {name: value.contiguous() for name, value in found.items()}


def correspondence(vae: ConvVAE, layout: Layout) -> Iterator[tuple[str, list[str], torch.Size]]:
    """(our name, their names, our shape) of every weight; three names where theirs are parts of ours."""
    shapes = {name: value.shape for name, value in vae.state_dict().items()}
    modules = {"moments": "quant_conv", "unmoments": "post_quant_conv"}
    for side, direction in (("encoder", "down"), ("decoder", "up")):
        network = getattr(vae, side)
        modules |= {f"{side}.{k}": f"{side}.{name}" for k, name in _modules(network, direction, layout)}
    for ours in shapes:
        prefix = max((p for p in modules if ours.startswith(f"{p}.")), key=len, default=None)
        if prefix is not None:
            tails = _tails(ours[len(prefix) + 1 :], layout)
            yield ours, [f"{modules[prefix]}.{tail}" for tail in tails], shapes[ours]


def _modules(network: nn.Sequential, direction: str, layout: Layout) -> Iterator[tuple[int, str]]:
    """(position in our sequence, their name) of the modules that have weights."""
    kinds = list(network)
    levels = 1 + sum(isinstance(m, (Downsample, Upsample)) for m in kinds)
    first_level = 1 if direction == "down" else 4
    middle = len(kinds) - 6 if direction == "down" else 1
    yield 0, "conv_in"
    yield from ((middle + k, layout.middle[k]) for k in range(3))
    yield len(kinds) - 3, layout.norm
    yield len(kinds) - 1, "conv_out"
    level, block = 0, 0
    for k in range(first_level, first_level + len(kinds) - 7):
        i = levels - 1 - level if direction == "up" and layout.descending else level
        if isinstance(kinds[k], (Downsample, Upsample)):
            yield k, layout.resample[direction].format(i=i)
            level, block = level + 1, 0
        elif isinstance(kinds[k], SpatialAttention):
            yield k, layout.attention.format(d=direction, i=i, j=block - 1)
        else:
            assert isinstance(kinds[k], ResBlock)
            yield k, layout.res.format(d=direction, i=i, j=block)
            block += 1


def _tails(tail: str, layout: Layout) -> list[str]:
    """Their names below a module for one of ours: `qkv.weight` is three, `skip.bias` the shortcut's."""
    name, _, kind = tail.rpartition(".")
    if name == "qkv":
        return [f"{layout.inner[part]}.{kind}" for part in "qkv"]
    changed = {"skip": layout.shortcut, **layout.inner}.get(name, name)
    return [f"{changed}.{kind}" if changed else kind]
