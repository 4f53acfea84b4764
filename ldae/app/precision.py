"""Resolve the key `precision` of a config: replace `auto` by that of the run on disk, or of the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldae.core.files import read_sealed_json
from ldae.core.version import check_version
from ldae.engine.precision import Precision, resolve_precision
from ldae.engine.runtime import resolve_device

KEY = "precision"


def settle_precision(
    config: Mapping[str, Any], saved: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Precision | None]:
    """Replace every `auto` precision of a config, at any depth.

    Args:
        config: resolved config; without the key `device`, the automatic device counts.
        saved: the config of the run on disk, or None; its values replace `auto`.

    Returns:
        The config, and the command's precision (`train.precision` or `precision`); None if it has none.

    Raises:
        ConfigError: a precision is not auto, fp32 or bf16; or there is no such device.
    """
    device = resolve_device(str(config.get("device", "auto")))
    precisions: dict[str, Precision] = {}

    def resolve(node: Mapping[str, Any], old: Any, path: str) -> dict[str, Any]:
        old = old if isinstance(old, Mapping) else {}
        values: dict[str, Any] = {}
        for name, value in node.items():
            key = f"{path}{name}"
            if name == KEY and isinstance(value, str):
                precisions[key] = resolve_precision(value, device, old.get(name), key)
                values[name] = precisions[key].value
            else:
                values[name] = resolve(value, old.get(name), f"{key}.") if isinstance(value, Mapping) else value
        return values

    result = resolve(config, saved, "")
    return result, precisions.get(f"train.{KEY}", precisions.get(KEY))


def saved_config(folder: Path) -> dict[str, Any] | None:
    """Return the config of the run in a folder, or None without one.

    Raises:
        CheckpointError: the folder's config.json is damaged, or was written by ldae 0.1.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    config = read_sealed_json(path)
    check_version(config, f"out={folder}")
    return config


def announce(precision: Precision | None) -> None:
    """Print the precision and its reason, on the main process."""
    if precision is not None and os.environ.get("RANK", "0") == "0":
        print(precision, file=sys.stderr, flush=True)
