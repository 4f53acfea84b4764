"""The key `precision` of a tool's config: `auto` becomes what the device computes in, or what the run began with."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldae.config.version import check_version
from ldae.core.files import read_sealed_json
from ldae.engine.precision import Precision, resolve_precision
from ldae.engine.runtime import resolve_device

KEY = "precision"


def settle_precision(
    config: Mapping[str, Any], saved: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Precision | None]:
    """Replace every `auto` among a config's precisions, at whatever depth.

    Args:
        config: resolved, with the key `device` or for the device that `auto` picks.
        saved: the config that the folder was begun with, or None. Where `config` says `auto`, its value is taken.

    Returns:
        The config, and the tool's own precision (`train.precision` or `precision`); None if it has none.

    Raises:
        ConfigError: a precision is none of auto, fp32, bf16; or there is no such device.
    """
    device = resolve_device(str(config.get("device", "auto")))
    found: dict[str, Precision] = {}

    def settled(node: Mapping[str, Any], old: Any, path: str) -> dict[str, Any]:
        old = old if isinstance(old, Mapping) else {}
        values: dict[str, Any] = {}
        for name, value in node.items():
            key = f"{path}{name}"
            if name == KEY and isinstance(value, str):
                found[key] = resolve_precision(value, device, old.get(name), key)
                values[name] = found[key].value
            else:
                values[name] = settled(value, old.get(name), f"{key}.") if isinstance(value, Mapping) else value
        return values

    result = settled(config, saved, "")
    return result, found.get(f"train.{KEY}", found.get(KEY))


def saved_config(folder: Path) -> dict[str, Any] | None:
    """Return the config that a folder was begun with, or None if it was not.

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
