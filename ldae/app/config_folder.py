"""Locate the configs of the package, and list the choices of a group."""

from __future__ import annotations

from pathlib import Path

from ldae.config.choices import CLASSES

_PACKAGE = Path(__file__).resolve().parents[1]
# inside the package where it was installed from a wheel, beside it in a checkout
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def groups_of() -> list[str]:
    """Return the names of the groups."""
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir() and not path.name.startswith("_")}
    return sorted(folders | CLASSES.keys())


def choices_of(group: str) -> dict[str, Path | str]:
    """Return {choice: its file, or the dotted name of its class}; files that only others include are left out."""
    folder = CONFIGS / group
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    public = {name: path for name, path in files.items() if not name.rsplit("/", 1)[-1].startswith("_")}
    choices: dict[str, Path | str] = {**CLASSES.get(group, {}), **public}
    return dict(sorted(choices.items()))
