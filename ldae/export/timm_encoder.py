"""Read any vision transformer of timm, with weights from a file, as an encoder of the suite.

Known sources of weights: timm itself, MAE, DINO, DINOv2, DINOv3, I-JEPA and wrappers of state dicts around them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import CheckpointError, ConfigError, did_you_mean
from ldae.core.files import load_tensors, read_sealed_json, sha256
from ldae.core.rng import seed_of

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


LOCAL = "local-dir:"  # timm's word for a folder with config.json and weights, such as ldae export writes
LOCAL_WEIGHTS, LOCAL_CONFIG = "model.safetensors", "config.json"


class TimmEncoder(nn.Module):
    """Images to tokens, as `ldae.export.encoder.Encoder` gives them; frozen, and nothing is ever downloaded.

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
        requested = sorted(set(layers))
        for layer in requested:
            if layer not in self.layers:
                raise ConfigError("layer", layer, f"is not one of the network's layers 1..{len(self.layers)}")
        settings: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            x = self.prepared(images)
            found = self.model.forward_intermediates(x, indices=[i - 1 for i in requested], stop_early=True, **settings)
            return {layer: self._normed(layer, given).float() for layer, given in zip(requested, found, strict=True)}

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
        hint = did_you_mean(name, timm.list_models())
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
