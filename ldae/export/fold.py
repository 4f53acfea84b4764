"""Conversion of encoders to plain ViTs of timm: adaLN folded at a noise level, or MAE's weights renamed.

At a fixed t, with the null class, the shifts, scales and gates of adaLN are constants. LayerNorm's weight becomes
1 + scale, its bias the shift; the gate multiplies the rows of the following projection. A patch-wise linear tokenizer
is folded into the patch embedding. The result is exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldae.core.errors import ConfigError
from ldae.denoisers.base import Network
from ldae.denoisers.mae import MaskedAutoencoder
from ldae.denoisers.vit import ViTDenoiser
from ldae.export.encoder import Encoder
from ldae.nn.blocks import Block, ConditionedBlock
from ldae.nn.patchify import unpatchify
from ldae.objectives.denoise import Denoise
from ldae.tokenizers.patch_linear import PatchLinear
from ldae.tokenizers.pixel import Identity, Pixel

ARCHITECTURE = "vit_base_patch16_224"  # timm's name; all of its sizes are overridden
NEW = ("head.", "fc_norm.")  # parameters of a classifier only


@dataclass(frozen=True)
class Plain:
    """Arguments and weights of a plain ViT of timm.

    Attributes:
        arguments: arguments of timm.create_model in addition to ARCHITECTURE.
        weights: the state dict, in timm's names.
    """

    arguments: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def build(self, **changes: Any) -> nn.Module:
        """Build the network: images (B, 3, H, W) in [-1, 1] -> (B, D), patch tokens averaged.

        Args:
            changes: arguments of timm.create_model for a classifier: num_classes, drop_path_rate, fc_norm. Its head is
                random.
        """
        import timm

        model: nn.Module = timm.create_model(ARCHITECTURE, **{**self.arguments, **changes})
        # timm's fc_norm replaces the last norm, as in MAE's fine-tuning (App. A.1, arXiv 2111.06377)
        dropped = "norm." if changes.get("fc_norm") else None
        weights = {name: value for name, value in self.weights.items() if not (dropped and name.startswith(dropped))}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith(NEW) for name in missing), missing
        return model.eval()


def plain_vit(encoder: Encoder, **changes: Any) -> nn.Module:
    """Convert an encoder to a timm VisionTransformer: images (B, 3, H, W) in [-1, 1] -> (B, D), tokens averaged.

    Args:
        encoder: of a ViT on clean input.
        changes: of Plain.build.

    Raises:
        ConfigError: as `fold`.
    """
    return fold(encoder).build(**changes)


@torch.no_grad()
def fold(encoder: Encoder) -> Plain:
    """Convert an encoder to a plain ViT, exactly.

    Raises:
        ConfigError: the network is no ViT, its input is noised, or its tokenizer is not linear on its patches.
    """
    network = type(encoder.network)
    if network not in FOLDS or encoder.noised:
        raise ConfigError("denoiser", network.__name__, "cannot be folded: it must be a ViT on clean input")
    return FOLDS[network](encoder)


def _fold_vit(encoder: Encoder) -> Plain:
    network, tokenizer = encoder.network, _denoise(encoder).tokenizer
    assert isinstance(network, ViTDenoiser)
    if not isinstance(tokenizer, (PatchLinear, Pixel, Identity)):
        raise ConfigError("tokenizer", type(tokenizer).__name__, "cannot be folded: it is not linear on patches")
    if tokenizer.shape[1] % network.grid[0]:
        raise ConfigError("denoiser", f"{network.grid} tokens", "cannot be folded: the tokenizer's patches are larger")
    level = _denoise(encoder).schedule.at(torch.tensor([encoder.t], device=network.positions.device))
    c = network.embed_condition(level)  # (1, cond_width)
    weight, bias = patch_embedding(encoder)
    weights = {"pos_embed": network.positions[None], "patch_embed.proj.weight": weight, "patch_embed.proj.bias": bias}
    for i, block in enumerate(list(network.blocks)[: encoder.layer]):
        assert isinstance(block, ConditionedBlock)
        weights |= {f"blocks.{i}.{name}": value for name, value in _fold_block(block, c).items()}
    return Plain(_arguments(encoder, tokenizer.image_shape[1]), _detach(weights))


def _fold_block(block: ConditionedBlock, c: Tensor) -> dict[str, Tensor]:
    """Return a block's weights folded at the condition c, (1, cond_width)."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (v.flatten() for v in block.ada(c))
    return {
        "norm1.weight": 1 + scale1,
        "norm1.bias": shift1,
        "attn.qkv.weight": block.attn.qkv.weight,
        "attn.qkv.bias": block.attn.qkv.bias,
        "attn.proj.weight": gate1[:, None] * block.attn.proj.weight,
        "attn.proj.bias": gate1 * block.attn.proj.bias,
        "norm2.weight": 1 + scale2,
        "norm2.bias": shift2,
        "mlp.fc1.weight": block.mlp.fc1.weight,
        "mlp.fc1.bias": block.mlp.fc1.bias,
        "mlp.fc2.weight": gate2[:, None] * block.mlp.fc2.weight,
        "mlp.fc2.bias": gate2 * block.mlp.fc2.bias,
    }


def _rename_mae(encoder: Encoder) -> Plain:
    """Rename the weights of MAE's encoder, a plain ViT with a class token; the last layer includes the final norm."""
    network = encoder.network
    assert isinstance(network, MaskedAutoencoder)
    p, last = network.patch, encoder.layer == network.encoder_layer
    weights = {
        "cls_token": network.class_token,
        "pos_embed": network.positions[None],
        "patch_embed.proj.weight": rearrange(network.embed.weight, "o (p q c) -> o c p q", p=p, q=p),
        "patch_embed.proj.bias": network.embed.bias,
    }
    for i, block in enumerate(list(network.blocks)[: encoder.layer]):
        weights |= {f"blocks.{i}.{name}": value for name, value in block.state_dict().items()}
    if last:
        weights |= {f"norm.{name}": value for name, value in network.norm.state_dict().items()}
    arguments = {**_arguments(encoder, p * network.grid[0]), "class_token": True, "final_norm": last}
    return Plain(arguments, _detach(weights))


FOLDS: Mapping[type[Network], Callable[[Encoder], Plain]] = {ViTDenoiser: _fold_vit, MaskedAutoencoder: _rename_mae}


def _arguments(encoder: Encoder, size: int) -> dict[str, Any]:
    """Return timm's arguments for images of `size` pixels, without class token and final LayerNorm."""
    network = encoder.network
    assert isinstance(network, (ViTDenoiser, MaskedAutoencoder))
    block = network.blocks[0]
    assert isinstance(block, (Block, ConditionedBlock))
    hidden, width = block.mlp.fc1.weight.shape
    return {
        "img_size": size,
        "patch_size": size // network.grid[0],
        "embed_dim": width,
        "depth": encoder.layer,
        "num_heads": block.attn.heads,
        "mlp_ratio": hidden / width,
        "class_token": False,
        "global_pool": "avg",
        "num_classes": 0,
        "act_layer": {"none": "gelu", "tanh": "gelu_tanh"}[block.mlp.approximate],
        "final_norm": False,
        "fc_norm": False,
    }


def patch_embedding(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Return the affine map from a patch of the image to its token, tokenizer included, as a convolution.

    Evaluated in float64 on each of the 3 p^2 unit patches and on zero, because the weights of latent dimensions of
    small variance are large and nearly cancel.

    Returns:
        weight (D, 3, p, p), bias (D,), for images in [-1, 1].
    """
    network, objective = encoder.network, _denoise(encoder)
    assert isinstance(network, ViTDenoiser)
    H = objective.tokenizer.image_shape[1]
    h, w = network.grid
    p = H // h
    D = 3 * p * p
    patches = torch.zeros(D + 1, D, h, w, device=network.positions.device, dtype=torch.float64)
    patches[torch.arange(D), torch.arange(D), 0, 0] = 1
    with double_precision(objective.tokenizer, network):
        x = objective.input.view(objective.tokenizer.encode(unpatchify(patches, p)))
        tokens = network.embed_patches(x)[:, 0]  # (3 p^2 + 1, width)
    bias, columns = tokens[-1], tokens[:-1] - tokens[-1]
    weight = rearrange(columns, "(p q c) o -> o c p q", p=p, q=p)
    return weight.float(), bias.float()


@contextlib.contextmanager
def double_precision(*modules: nn.Module) -> Iterator[None]:
    """Compute with the weights and buffers of modules in float64 while the block lasts."""
    tensors = [x for m in modules for x in (*m.parameters(), *m.buffers()) if x.dtype == torch.float32]
    before = [x.data for x in tensors]
    try:
        for x in tensors:
            x.data = x.data.double()
        yield
    finally:
        for x, data in zip(tensors, before, strict=True):
            x.data = data


def _detach(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


def _denoise(encoder: Encoder) -> Denoise:
    objective = encoder.objective
    if not isinstance(objective, Denoise):
        raise ConfigError(
            "objective", type(objective).__name__, "cannot be folded: only encoders trained by Denoise can"
        )
    return objective
