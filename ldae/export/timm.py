"""Export to a folder that timm.create_model("local-dir:FOLDER", pretrained=True) loads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ldae.core.files import save_tensors, write_sealed_json
from ldae.export.fold import ARCHITECTURE, Plain

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # timm's own names
CARD = "README.md"
HALF = (0.5, 0.5, 0.5)  # mean and deviation: [0, 1] becomes [-1, 1]


def write_timm_folder(folder: Path, plain: Plain, half: bool = False) -> None:
    """Write model.safetensors and config.json.

    Args:
        folder: an existing folder.
        plain: of ldae.export.fold.fold.
        half: write float16 weights.
    """
    size = plain.arguments["img_size"]
    pretrained = {
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": HALF,
        "std": HALF,
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": plain.arguments["embed_dim"],
        "global_pool": plain.arguments["global_pool"],
        "model_args": dict(plain.arguments),
        "pretrained_cfg": pretrained,
    }
    weights = {name: weight.half() if half else weight for name, weight in plain.weights.items()}
    save_tensors(folder / WEIGHTS, weights)
    write_sealed_json(folder / CONFIG, config)


class TimmFeatures:
    """Exported folder loaded by timm: images (B, 3, H, W) in [0, 1] -> features (B, D)."""

    def __init__(self, folder: Path):
        import timm
        from timm.data import resolve_model_data_config

        self.model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = resolve_model_data_config(self.model)
        self.mean, self.std = (torch.tensor(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self.model((images - self.mean) / self.std)
        return features
