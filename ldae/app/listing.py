"""List the choices of a group of configs, a line for each.

ldae list                    # the groups
ldae list experiments
ldae list tokenizers
ldae list encoders           # pretrained, in the package
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from ldae.config.choices import choices_of, class_of, groups_of
from ldae.core.errors import UsageError, did_you_mean
from ldae.export.timm import CARD
from ldae.export.zoo import FOLDER, zoo_names

ENCODERS = "encoders"


def main(argv: Sequence[str]) -> None:
    """Print the groups, or the choices of those that are named."""
    groups = groups_of()
    if not argv:
        print("groups (ldae list GROUP shows the choices of one):\n")
        print("\n".join(f"  {name:<20} {len(choices_of(name)):>3} choices" for name in groups))
        print(f"  {ENCODERS:<20} {len(zoo_names()):>3} pretrained, in the package")
        return
    for word in argv:
        if word.removesuffix("s") == ENCODERS.removesuffix("s"):
            list_encoders()
            continue
        name = next((n for n in (word, word.removesuffix("s"), word.removesuffix("es")) if n in groups), None)
        if name is None:
            raise UsageError(f"{word!r} is not a group; there are: {', '.join(groups)}{did_you_mean(word, groups)}")
        choices = choices_of(name)
        width = max(map(len, choices))
        print("\n".join(f"{name}={choice:<{width}}  {summary(path)}" for choice, path in choices.items()))


def list_encoders() -> None:
    """Print the encoders in the package, with the title of each card."""
    width = max(map(len, zoo_names()), default=0)
    for name in zoo_names():
        card = (FOLDER / name / CARD).read_text(encoding="utf-8")
        title = next(line for line in card.splitlines() if line.startswith("# "))
        print(f"{name:<{width}}  {title.removeprefix('# ')}")


def summary(choice: Path | str) -> str:
    """Return the first sentence about a choice: of its file's header, or of its class's docstring."""
    if isinstance(choice, str):
        return _first_sentence(inspect.getdoc(class_of(choice)) or "")
    lines = [line for line in choice.read_text(encoding="utf-8").splitlines() if not line.startswith("# @")]
    header = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return _first_sentence(" ".join(line.lstrip("# ") for line in header))


def _first_sentence(text: str) -> str:
    """Return a text up to its first full stop that ends a sentence: not one after an abbreviation or a digit."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"(?<!Fig)(?<!Sec)(?<!Eq)(?<!Tab)(?<!App)\.(?= [A-Z`]|$)", paragraph)
    return paragraph[: end.start()] if end else paragraph.rstrip(".:")
