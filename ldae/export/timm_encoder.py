"""Vision transformers of timm as encoders, with weights from a file.

Supported sources of weights: timm itself, MAE, DINO, DINOv2, DINOv3, I-JEPA and wrappers of state dicts around them.
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
from ldae.export.zoo import zoo_folder, zoo_names

# Keys of the weights in training checkpoints, averaged ones first: DINO and DINOv2 write `teacher`, MAE
# and DeiT `model`, timm `state_dict`, I-JEPA `target_encoder`.
WRAPPERS = ("teacher", "target_encoder", "model_ema", "state_dict_ema", "model", "state_dict")
# Prefixes of wrapped modules: distributed training, torch.compile, DINO's wrapper of backbone and head.
PREFIXES = ("module.", "_orig_mod.", "backbone.")
# Prefixes outside the encoder: MAE's decoder, classifiers, DINO's projection head.
OTHER_MODULES = ("decoder_", "head.", "head_dist.", "dino_head.", "ibot_head.")
CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")  # DINOv2's training: blocks.CHUNK.BLOCK
PATCHES = "patch_embed.proj.weight"
NAMED = 3  # differing keys in an error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the encoder's tensors from a file, without wrappers, prefixes and other modules.

    Args:
        path: safetensors, or a file of torch.save. The latter is loaded with weights_only, which allows tensors, plain
            containers and argparse's namespaces (MAE and DINO save theirs).

    Raises:
        CheckpointError: the file is missing or damaged, or has no named tensors, or non-finite numbers.
    """
    content = load_tensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    tensors = {CHUNKED.sub(r"blocks.\1.", name): value for name, value in _strip_prefixes(_unwrap(content)).items()}
    encoder = {name: value for name, value in tensors.items() if not name.startswith(OTHER_MODULES)}
    if not encoder:
        raise CheckpointError(f"{path} holds no named tensors of a vision transformer")
    for name, value in encoder.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {name} holds numbers that are not finite")
    return encoder


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a timm vision transformer, resampling positions to its grid.

    Args:
        model: of timm.
        tensors: of `read_weights`.
        path: their file, for the error.

    Raises:
        ConfigError: they are of another network; names the first differing keys.
    """
    state = model.state_dict()
    patches = [name for name in (PATCHES,) if name in state and name in tensors]
    if any(state[name].shape[1:] != tensors[name].shape[1:] for name in patches):
        # timm would resample the patch embedding to an untrained size
        raise _unfit(path, _differences(state, tensors, patches))
    converted = _convert(model, tensors, path)
    if differing := _differences(state, converted, dict.fromkeys([*state, *converted])):
        raise _unfit(path, differing)
    model.load_state_dict(converted)


def _differences(state: Mapping[str, Tensor], loaded: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """Return sentences on the differences between a network's tensors and loaded ones."""
    differences = []
    for name in names:
        if name not in loaded:
            differences.append(f"{name} is missing")
        elif name not in state:
            differences.append(f"{name} is not expected")
        elif state[name].shape != loaded[name].shape:
            differences.append(f"{name} is {tuple(loaded[name].shape)}, not {tuple(state[name].shape)}")
    return differences


def _convert(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename and resample tensors by timm's checkpoint filter of the model."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        converted: dict[str, Tensor] = convert(dict(tensors), model) if convert else dict(tensors)
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        state = model.state_dict()
        differing = _differences(
            state, tensors, [name for name in [*state, *tensors] if (name in state) != (name in tensors)]
        )
        raise _unfit(path, differing or [f"{type(error).__name__}: {_first_line(error)}"]) from None
    converted.pop("mask_token", None)  # used in pretraining only
    return converted


def _unfit(path: Path, differing: list[str]) -> ConfigError:
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    return ConfigError("weights", str(path), f"is of another network: {'; '.join(differing[:NAMED])}{more}")


def _unpickle(path: Path) -> Any:
    """Load a file of torch.save without running code from it."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(f"{path} cannot be read as weights ({_first_line(error)})") from None


def _unwrap(content: Any) -> dict[str, Tensor]:
    """Return the innermost mapping of names to tensors."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner
    return {}


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefixes of wrapped modules from names, and drop tensors outside the innermost module."""
    while prefix := next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), ""):
        tensors = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


LOCAL = "local-dir:"  # timm's prefix of a folder with config.json and weights, as `ldae export` writes
LOCAL_WEIGHTS, LOCAL_CONFIG = "model.safetensors", "config.json"


class TimmEncoder(nn.Module):
    """Frozen vision transformer of timm with the interface of `ldae.export.encoder.Encoder`; downloads nothing.

    The image is resized (bicubic, antialiased) to the model's square and normalised with its mean and deviation. The
    final LayerNorm follows every layer, as in the linear evaluations of DINO, DINOv2 and, for the last layer, MAE; with
    `norm="last"` only the last one.

    Args:
        name: of timm, with the tag that selects its normalisation (`vit_base_patch16_224.mae`), `local-dir:FOLDER` for
            an export, or the name of an encoder that ships with the package (`ldae list encoders`).
        weights: .pth or .pt (MAE's, DINO's, DINOv2's, timm's) or safetensors; a random network if None, or the
            folder's own weights.
        size: side of the input in pixels, to which positions are resampled; the model's if None.
        precision: of the network's matrix products.
        seed: of a random network.
        norm: layers that the final LayerNorm follows.
        trained: False for random weights even where a folder or the package has some.

    Attributes:
        model: timm's.
        layers: 1..depth.
        prefix: number of class and register tokens before the patches.
        width: D.
        image_shape: (3, H, W) to which images are resized.
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
        trained: bool = True,
    ):
        super().__init__()
        shipped = zoo_folder(name)
        title, name = name, f"{LOCAL}{shipped}" if shipped else name
        if name.startswith(LOCAL) and (config := Path(name[len(LOCAL) :]) / LOCAL_CONFIG).exists():
            read_sealed_json(config)  # timm itself would take a damaged one
        if weights is None and name.startswith(LOCAL) and trained:
            weights = Path(name[len(LOCAL) :]) / LOCAL_WEIGHTS
        tensors = read_weights(weights) if weights else {}
        self.name, self.precision, self.norm = title, precision, norm
        self.model = _vision_transformer(name, size, seed)
        if weights:
            _check_normalisation(name)
            load_weights(self.model, tensors, weights)
        self.hash = sha256(weights) if weights else "none"
        self.layers = range(1, len(self.model.blocks) + 1)
        self.prefix: int = self.model.num_prefix_tokens
        self.width: int = self.model.embed_dim
        self.size: tuple[int, int] = tuple(self.model.patch_embed.img_size)
        self.image_shape = (3, *self.size)
        for key, value in zip(("mean", "std"), _normalisation(self.model), strict=True):
            self.register_buffer(key, value, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False).eval()

    @property
    def attention(self) -> dict[int, nn.Module]:
        """Return the attention of each layer whose weights depend on queries and keys alone; not with rotary ones."""
        from timm.layers import Attention

        modules = {layer: block.attn for layer, block in zip(self.layers, self.model.blocks, strict=True)}
        return {layer: module for layer, module in modules.items() if isinstance(module, Attention)}

    def forward(self, images: Tensor) -> Tensor:
        """Return features, the last layer's patch tokens averaged: (B, 3, H, W) in [0, 1] -> (B, D)."""
        last = self.layers[-1]
        return self.tokens(images, [last])[last][:, self.prefix :].mean(1)

    @torch.no_grad()
    def tokens(self, images: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Return class and register tokens, then patch tokens, after each of `layers`, in one pass.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size.
            layers: of 1..depth.

        Returns:
            {layer: (B, prefix + N, D)} float32.

        Raises:
            ConfigError: there is no such layer.
        """
        layers = sorted(set(layers))
        for layer in layers:
            if layer not in self.layers:
                raise ConfigError("layer", layer, f"is not one of the network's layers 1..{len(self.layers)}")
        settings: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            x = self.normalise(images)
            outputs = self.model.forward_intermediates(x, indices=[i - 1 for i in layers], stop_early=True, **settings)
            return {
                layer: self._normalise_tokens(layer, output).float()
                for layer, output in zip(layers, outputs, strict=True)
            }

    def normalise(self, images: Tensor) -> Tensor:
        """Resize and normalise images (B, 3, H, W) in [0, 1] as the model's input."""
        if images.shape[-2:] != self.size:
            images = F.interpolate(images.float(), self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return (images - self.mean) / self.std

    def _normalise_tokens(self, layer: int, output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Return a layer's tokens after the norm, from timm's patches or (patches, prefix)."""
        tokens = output if isinstance(output, Tensor) else torch.cat([output[1], output[0]], dim=1)
        return self.model.norm(tokens) if self.norm == "all" or layer == self.layers[-1] else tokens


def _vision_transformer(name: str, size: int | None, seed: int) -> Any:
    """Build a random network of timm without a head."""
    import timm

    if not name.startswith(LOCAL) and not timm.is_model(name):
        hint = did_you_mean(name, [*zoo_names(), *timm.list_models()])
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
    """Return mean and deviation per channel of the model's config, (1, 3, 1, 1) each."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    return mean, std


def _check_normalisation(name: str) -> None:
    """Check that all trainings of an architecture without a tag have the same mean and deviation.

    Raises:
        ConfigError: they differ; names the trainings, grouped.
    """
    from timm.models import get_arch_pretrained_cfgs

    if name.startswith(LOCAL) or "." in name:
        return
    normalisations: dict[tuple[Any, Any], list[str]] = {}
    for tagged, pretrained in get_arch_pretrained_cfgs(name).items():
        normalisations.setdefault((pretrained.mean, pretrained.std), []).append(f".{tagged.partition('.')[2]}")
    if len(normalisations) > 1:
        groups = "; ".join(f"mean {mean[0]:g}: {', '.join(tags)}" for (mean, _), tags in normalisations.items())
        raise ConfigError("timm", name, f"leaves open how its images were normalised; add a training's name ({groups})")
