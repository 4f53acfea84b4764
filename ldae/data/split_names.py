"""Names of the folders, tar files or hub splits of the training, hold-out and test images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ldae.core.errors import ConfigError, DataError, did_you_mean

# split -> usual names, in any letter case
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "holdout": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NONE = "none"


@dataclass(frozen=True)
class SplitNames:
    """Names of a data set's splits.

    Attributes:
        train, holdout, test: name of a split; None for a usual name, `none` for no such split.
    """

    train: str | None = None
    holdout: str | None = None
    test: str | None = None

    def resolve(self, names: Sequence[str], source: str) -> dict[str, str]:
        """Return the existing name of each split, by `train`, `holdout` and `test`.

        If only a hold-out exists and no key names it, it becomes the test split.

        Args:
            names: existing folders or splits.
            source: their source, for messages.

        Raises:
            ConfigError: a name does not exist, or stands for two splits.
            DataError: two of the existing names mean the same split.
        """
        chosen = {key: str(getattr(self, key)) for key in USUAL_NAMES if getattr(self, key) not in (None, NONE)}
        for key, name in chosen.items():
            if name not in names:
                hint = f"{did_you_mean(name, names)}; it has {', '.join(names) or 'nothing'}"
                raise ConfigError(f"{key}_split", name, f"is not in {source}{hint}")
            if list(chosen.values()).count(name) > 1:
                raise ConfigError(f"{key}_split", name, "stands for two splits; give each its own")
        resolved = dict(chosen)
        for key in USUAL_NAMES:
            if key not in chosen and (usual := self._find_usual(key, names, chosen.values(), source)):
                resolved[key] = usual
        resolved = {key: resolved[key] for key in USUAL_NAMES if key in resolved}  # train first
        if "test" not in resolved and self.holdout is None and self.test is None and "holdout" in resolved:
            resolved["test"] = resolved.pop("holdout")
        return resolved

    def _find_usual(self, key: str, names: Sequence[str], chosen: Collection[str], source: str) -> str:
        """Return the existing name that is usual for a split and not chosen for another, or an empty string."""
        usual = [name for name in names if name.lower() in USUAL_NAMES[key] and name not in chosen]
        if getattr(self, key) == NONE or not usual:
            return ""
        if len(usual) > 1:
            raise DataError(
                f"{source} has {' and '.join(usual)}, which mean the same split; "
                f"rename one, or choose by data.{key}_split=NAME"
            )
        return usual[0]


def is_usual_name(name: str) -> bool:
    """Return whether a name is a usual name of a split."""
    return any(name.lower() in usual for usual in USUAL_NAMES.values())
