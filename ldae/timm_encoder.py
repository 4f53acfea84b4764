"""Any vision transformer of timm as an encoder of the suite, with weights out of a file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.counter import seed_of
from ldae.errors import ConfigError, nearest
from ldae.files import read_sealed_json, sha256
from ldae.timm_weights import fill, read_weights

LOCAL = "local-dir:"  # timm's word for a folder with config.json and weights, such as tools/export.py writes
LOCAL_WEIGHTS, LOCAL_CONFIG = "model.safetensors", "config.json"


class TimmEncoder(nn.Module):
    """Images to tokens, as `ldae.export.Encoder` gives them; frozen, and nothing is ever downloaded.

    The whole image is resized (bicubic, antialiased) to the model's square and normalised with its own mean and
    deviation. Behind each layer stands the model's final LayerNorm, as in the linear evaluations of DINO, of DINOv2
    and, for the last layer, of MAE; `norm="last"` leaves it out of the layers before.

    Args:
        name: of timm, with the tag that its normalisation goes by (`vit_base_patch16_224.mae`), or `local-dir:FOLDER`
            for an export.
        weights: .pth or .pt (MAE's, DINO's, DINOv2's, timm's) or safetensors; a random network if None, or the
            folder's own weights.
        size: side of the model's square in pixels, to which its positions are resampled; its own if None.
        precision: of the network's matrix products.
        seed: of a random network.
        norm: behind which layers the final LayerNorm is applied.

    Attributes:
        model: timm's.
        layers: 1..depth.
        prefix: how many class and register tokens stand before the patches.
        width: D.
        hash: SHA-256 of the weights' file; `none` if the network is random.

    Raises:
        ConfigError: timm has no such vision transformer, its patch does not divide `size`, the weights are of
            another network, or it is unclear how they were normalised.
        CheckpointError: the file is missing or damaged.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None = None,
        size: int | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        seed: int = 0,
        norm: Literal["all", "last"] = "all",
    ):
        super().__init__()
        if name.startswith(LOCAL) and (config := Path(name[len(LOCAL) :]) / LOCAL_CONFIG).exists():
            read_sealed_json(config)  # timm itself would take a damaged one
        if weights is None and name.startswith(LOCAL):
            weights = Path(name[len(LOCAL) :]) / LOCAL_WEIGHTS
        tensors = read_weights(weights) if weights else {}
        self.name, self.precision, self.norm = name, precision, norm
        self.model = _vision_transformer(name, size, seed)
        if weights:
            _check_normalisation(name)
            fill(self.model, tensors, weights)
        self.hash = sha256(weights) if weights else "none"
        self.layers = range(1, len(self.model.blocks) + 1)
        self.prefix: int = self.model.num_prefix_tokens
        self.width: int = self.model.embed_dim
        self.size: tuple[int, int] = tuple(self.model.patch_embed.img_size)
        for key, value in zip(("mean", "std"), _normalisation(self.model), strict=True):
            self.register_buffer(key, value, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D), the last layer's patch tokens averaged."""
        last = self.layers[-1]
        return self.tokens(images, [last])[last][:, self.prefix :].mean(1)

    @torch.no_grad()
    def tokens(self, images: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Class and register tokens, then patches, after each of `layers`, in one pass.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size.
            layers: of 1..depth.

        Returns:
            {layer: (B, prefix + N, D)} float32.

        Raises:
            ConfigError: there is no such layer.
        """
        wanted = sorted(set(layers))
        for layer in wanted:
            if layer not in self.layers:
                raise ConfigError("layer", layer, f"is not one of the network's layers 1..{len(self.layers)}")
        settings: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            x = self.prepared(images)
            found = self.model.forward_intermediates(x, indices=[i - 1 for i in wanted], stop_early=True, **settings)
            return {layer: self._normed(layer, given).float() for layer, given in zip(wanted, found, strict=True)}

    def prepared(self, images: Tensor) -> Tensor:
        """What the model is shown of images (B, 3, H, W) in [0, 1]: its own size, mean 0 and deviation 1 by its own."""
        if images.shape[-2:] != self.size:
            images = F.interpolate(images.float(), self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return (images - self.mean) / self.std

    def _normed(self, layer: int, given: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """One layer's tokens in one tensor, from timm's patches alone or (patches, prefix)."""
        tokens = given if isinstance(given, Tensor) else torch.cat([given[1], given[0]], dim=1)
        return self.model.norm(tokens) if self.norm == "all" or layer == self.layers[-1] else tokens


def _vision_transformer(name: str, size: int | None, seed: int) -> Any:
    """A random network of timm's, without a head."""
    import timm

    if not name.startswith(LOCAL) and not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise ConfigError("timm", name, f"is no model of timm, nor {LOCAL}FOLDER{hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed))
        try:
            model: Any = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, OSError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError("timm", name, f"cannot be made with size={size} ({reason})") from None
    parts = ("blocks", "norm", "embed_dim", "num_prefix_tokens", "patch_embed", "forward_intermediates")
    if not all(hasattr(model, part) for part in parts):
        raise ConfigError("timm", name, "is no plain vision transformer; use one such as vit_base_patch16_224")
    patch = model.patch_embed.patch_size[0]
    if size is not None and size % patch:
        raise ConfigError("size", size, f"is not a multiple of the patch of {name}, {patch} pixels")
    return model


def _normalisation(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel as the model's own config has them, (1, 3, 1, 1) each."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    return mean, std


def _check_normalisation(name: str) -> None:
    """A name without a tag must leave no doubt: trainings of one architecture differ in mean and deviation.

    Raises:
        ConfigError: they do. Names the trainings, those that are alike together.
    """
    from timm.models import get_arch_pretrained_cfgs

    if name.startswith(LOCAL) or "." in name:
        return
    ways: dict[tuple[Any, Any], list[str]] = {}
    for tagged, known in get_arch_pretrained_cfgs(name).items():
        ways.setdefault((known.mean, known.std), []).append(f".{tagged.partition('.')[2]}")
    if len(ways) > 1:
        found = "; ".join(f"mean {mean[0]:g}: {', '.join(tags)}" for (mean, _), tags in ways.items())
        raise ConfigError("timm", name, f"leaves open how its images were normalised; add a training's name ({found})")
