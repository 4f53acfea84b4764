"""List the choices of a group of configs, a line for each.

ldae list                    # the groups
ldae list experiments
ldae list tokenizers
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldae.app.config_folder import CONFIGS
from ldae.core.errors import UsageError, did_you_mean


def main(argv: Sequence[str]) -> None:
    """Print the groups, or the choices of those that are named."""
    groups = sorted(p.name for p in CONFIGS.iterdir() if p.is_dir() and not p.name.startswith("_"))
    if not argv:
        print("groups (ldae list GROUP shows the choices of one):\n")
        print("\n".join(f"  {name:<20} {len(choices_of(name)):>3} choices" for name in groups))
        return
    for word in argv:
        name = next((n for n in (word, word.removesuffix("s"), word.removesuffix("es")) if n in groups), None)
        if name is None:
            raise UsageError(f"{word!r} is not a group; there are: {', '.join(groups)}{did_you_mean(word, groups)}")
        choices = choices_of(name)
        width = max(map(len, choices))
        print("\n".join(f"{name}={choice:<{width}}  {summary(path)}" for choice, path in choices.items()))


def choices_of(group: str) -> dict[str, Path]:
    """Return {choice: file} of a group of configs; files that only others include are left out."""
    folder = CONFIGS / group
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.rsplit("/", 1)[-1].startswith("_")}


def summary(path: Path) -> str:
    """Return the first sentence of a config's header."""
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @"):
            continue
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# "))
    text = " ".join(header)
    first, _, _ = text.partition(". ")
    return first.rstrip(".:")
