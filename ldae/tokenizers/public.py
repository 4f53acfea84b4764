"""Conversion of public KL autoencoders (Stable Diffusion's, DiT's) to and from ConvVAE.

Two layouts are read: of diffusers' AutoencoderKL and of latent diffusion's code. The networks are the same, but
q, k and v of attention are one convolution here.
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
    """Parameter names of a code base. `{d}` is down or up, `{i}` the level, `{j}` the block.

    Attributes:
        mark: a name that only this layout has.
        res, attention, resample, middle, norm, shortcut, inner: templates of module names.
        descending: the decoder's levels are counted from the image inwards.
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
    """Load a safetensors file in one of the two layouts into `vae`; its latent scale has to be measured.

    Raises:
        CheckpointError: the file is in neither, or of a network of another size.
    """
    tensors = load_tensors(path)
    layout = next((layout for layout in (DIFFUSERS, LATENT_DIFFUSION) if layout.mark in tensors), None)
    if layout is None:
        raise CheckpointError(f"{path} is neither a tokenizer of ours nor a KL autoencoder of diffusers or its like")
    try:
        missing, unexpected = vae.load_state_dict(from_layout(tensors, vae, layout), strict=False)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is of another network: {str(error).splitlines()[-1].strip()}") from None
    if unexpected or set(missing) - {"scale", "fitted"}:
        raise CheckpointError(f"{path} is of another network: {sorted([*missing, *unexpected])[:4]}")


def from_layout(theirs: Mapping[str, Tensor], vae: ConvVAE, layout: Layout) -> dict[str, Tensor]:
    """Convert tensors of a layout to ConvVAE's names."""
    converted = {}
    for ours, names, shape in name_pairs(vae, layout):
        parts = [theirs[name].reshape(theirs[name].shape[0], *shape[1:]) for name in names]
        converted[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return converted


def to_layout(vae: ConvVAE, layout: Layout) -> dict[str, Tensor]:
    """Convert ConvVAE's tensors to a layout, attention as 1 x 1 convolutions."""
    state = vae.state_dict()
    converted: dict[str, Tensor] = {}
    for ours, names, _ in name_pairs(vae, layout):
        converted |= dict(zip(names, state[ours].chunk(len(names)), strict=True))
    return {name: value.contiguous() for name, value in converted.items()}


def name_pairs(vae: ConvVAE, layout: Layout) -> Iterator[tuple[str, list[str], torch.Size]]:
    """Yield (our name, the layout's names, our shape) of every weight; q, k and v are three names for one of ours."""
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
    """Yield (position in our sequence, the layout's name) of the modules that have weights."""
    modules = list(network)
    levels = 1 + sum(isinstance(m, (Downsample, Upsample)) for m in modules)
    first_level = 1 if direction == "down" else 4
    middle = len(modules) - 6 if direction == "down" else 1
    yield 0, "conv_in"
    yield from ((middle + k, layout.middle[k]) for k in range(3))
    yield len(modules) - 3, layout.norm
    yield len(modules) - 1, "conv_out"
    level, block = 0, 0
    for k in range(first_level, first_level + len(modules) - 7):
        i = levels - 1 - level if direction == "up" and layout.descending else level
        if isinstance(modules[k], (Downsample, Upsample)):
            yield k, layout.resample[direction].format(i=i)
            level, block = level + 1, 0
        elif isinstance(modules[k], SpatialAttention):
            yield k, layout.attention.format(d=direction, i=i, j=block - 1)
        else:
            assert isinstance(modules[k], ResBlock)
            yield k, layout.res.format(d=direction, i=i, j=block)
            block += 1


def _tails(tail: str, layout: Layout) -> list[str]:
    """Return the layout's names of a parameter of ours, inside their module: three for `qkv.weight`."""
    name, _, parameter = tail.rpartition(".")
    if name == "qkv":
        return [f"{layout.inner[part]}.{parameter}" for part in "qkv"]
    renamed = {"skip": layout.shortcut, **layout.inner}.get(name, name)
    return [f"{renamed}.{parameter}" if renamed else parameter]
