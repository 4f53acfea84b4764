"""A conditioned encoder at a fixed noise level, folded into a plain ViT that timm loads.

At a fixed t, and with no class told, the shifts, scales and gates of adaLN are constants. LayerNorm's weight
becomes 1 + scale, its bias the shift; the gate multiplies the rows of the projection behind it. A patch-wise
linear tokenizer on the way in is a linear map of each patch and goes into the patch embedding. Nothing is
approximated.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldae.denoisers.vit import ViTDenoiser
from ldae.errors import ConfigError
from ldae.export import Encoder
from ldae.nn.blocks import ConditionedBlock
from ldae.nn.patchify import unpatchify
from ldae.objectives.denoise import Denoise
from ldae.tokenizers.patch_linear import PatchLinear
from ldae.tokenizers.pixel import Pixel

NEW = ("head.", "fc_norm.")  # what a classifier has and an encoder has not


def plain_vit(encoder: Encoder, **changes: Any) -> nn.Module:
    """The encoder as a timm VisionTransformer: images (B, 3, H, W) in [-1, 1] -> (B, D), tokens averaged.

    Args:
        changes: arguments of timm.create_model other than those of `timm_arguments`, to make a classifier of it:
            num_classes, drop_path_rate, fc_norm. Its head is new.

    Raises:
        ConfigError: the run is of another objective than denoising, the network is no ViT, its input is noised, or
            its tokenizer is not linear on patches.
    """
    import timm

    network, tokenizer = encoder.network, _denoise(encoder).tokenizer
    if not isinstance(network, ViTDenoiser) or encoder.noised:
        raise ConfigError("denoiser", type(network).__name__, "cannot be folded: it must be a ViT on clean input")
    if not isinstance(tokenizer, (PatchLinear, Pixel)):
        raise ConfigError("tokenizer", type(tokenizer).__name__, "cannot be folded: it is not linear on patches")
    plain = timm.create_model("vit_base_patch16_224", **{**timm_arguments(encoder), **changes})
    missing, unexpected = plain.load_state_dict(folded_weights(encoder), strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(NEW) for name in missing), missing
    return plain.eval()


def timm_arguments(encoder: Encoder) -> dict[str, Any]:
    """What timm.create_model needs beside a ViT's name to make the folded encoder."""
    network, shape = encoder.network, _denoise(encoder).tokenizer.image_shape
    assert isinstance(network, ViTDenoiser)
    block = network.blocks[0]
    assert isinstance(block, ConditionedBlock)
    return {
        "img_size": shape[1],
        "patch_size": shape[1] // network.grid[0],
        "embed_dim": network.width,
        "depth": encoder.layer,
        "num_heads": block.attn.heads,
        "mlp_ratio": block.mlp.fc1.out_features / network.width,
        "class_token": False,
        "global_pool": "avg",
        "num_classes": 0,
        "act_layer": {"none": "gelu", "tanh": "gelu_tanh"}[block.mlp.approximate],
        "final_norm": False,
        "fc_norm": False,
    }


@torch.no_grad()
def folded_weights(encoder: Encoder) -> dict[str, Tensor]:
    """The state dict of the plain ViT."""
    network = encoder.network
    assert isinstance(network, ViTDenoiser)
    device = network.positions.device
    c = network.condition(_denoise(encoder).schedule.at(torch.tensor([encoder.t], device=device)))
    weight, bias = patch_embedding(encoder)
    found = {"pos_embed": network.positions[None], "patch_embed.proj.weight": weight, "patch_embed.proj.bias": bias}
    for i, block in enumerate(list(network.blocks)[: encoder.layer]):
        assert isinstance(block, ConditionedBlock)
        shift1, scale1, gate1, shift2, scale2, gate2 = (v.flatten() for v in block.ada(c))
        own = {
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
        found |= {f"blocks.{i}.{name}": value for name, value in own.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def patch_embedding(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """The affine map from a patch of the image to its token, tokenizer included, as a convolution.

    Read off by showing each of the 3 p^2 unit patches, in the first place of an image, and none.

    Returns:
        weight (D, 3, p, p), bias (D,), for images in [-1, 1].
    """
    network, objective = encoder.network, _denoise(encoder)
    assert isinstance(network, ViTDenoiser)
    H = objective.tokenizer.image_shape[1]
    h, w = network.grid
    p = H // h
    D = 3 * p * p
    patches = torch.zeros(D + 1, D, h, w, device=network.positions.device)
    patches[torch.arange(D), torch.arange(D), 0, 0] = 1
    seen = objective.input.view(objective.tokenizer.encode(unpatchify(patches, p)))
    tokens = network.tokens_of(seen)[:, 0].double()  # (3 p^2 + 1, width)
    bias, columns = tokens[-1], tokens[:-1] - tokens[-1]
    weight = rearrange(columns, "(p q c) o -> o c p q", p=p, q=p)
    return weight.float(), bias.float()


def _denoise(encoder: Encoder) -> Denoise:
    objective = encoder.objective
    if not isinstance(objective, Denoise):
        raise ConfigError(
            "objective", type(objective).__name__, "cannot be folded: only encoders trained by Denoise can"
        )
    return objective
