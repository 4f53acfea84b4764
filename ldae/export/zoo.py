"""Pretrained encoders that ship with the package, as folders that `ldae export` wrote; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from ldae.export.timm import CONFIG

FOLDER = Path(__file__).parents[1] / "zoo"


def zoo_names() -> list[str]:
    """Return the names of the encoders, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{CONFIG}"))


def zoo_folder(name: str) -> Path | None:
    """Return the folder of an encoder: weights in half precision, timm's config and a card; None for another name."""
    return FOLDER / name if name in zoo_names() else None
