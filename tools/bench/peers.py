"""Import competitors' code from folders outside this repository."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def installed(name: str, site: str | None) -> bool:
    """Return whether a package can be imported, here or from the folder `site` (pip install --target site)."""
    return importlib.util.find_spec(name) is not None or bool(site and PathFinder.find_spec(name, [site]))


def use_site(site: str | None) -> None:
    """Append a folder to the import path."""
    if site:
        sys.path.append(site)


class Absent(ModuleType):
    """Placeholder of a package that a file imports and that the used code does not need."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def loaded(path: Path, unneeded: tuple[str, ...]) -> ModuleType:
    """Import the module of a file.

    Args:
        unneeded: imported packages that the used code does not need; placeholders replace missing ones.
    """
    for name in unneeded:
        if name.partition(".")[0] in sys.modules or importlib.util.find_spec(name.partition(".")[0]) is None:
            sys.modules.setdefault(name, Absent(name))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert isinstance(spec, ModuleSpec)
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
