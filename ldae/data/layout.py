"""Names of splits: the folders, tar files or hub splits that hold the training, hold-out and test images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ldae.core.errors import ConfigError, DataError, did_you_mean

# split -> its usual names, in any letter case
USUAL: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "holdout": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NONE = "none"


@dataclass(frozen=True)
class SplitNames:
    """Names of a data set's splits.

    Attributes:
        train, holdout, test: name of a split; None for its usual names, `none` for no such split.
    """

    train: str | None = None
    holdout: str | None = None
    test: str | None = None

    def among(self, names: Sequence[str], place: str) -> dict[str, str]:
        """Return the name of each split that is there, by `train`, `holdout` and `test`.

        Where there is one of hold-out and test by its usual name, it is the test split, and the hold-out is cut
        from train.

        Args:
            names: of the folders or splits that are there.
            place: that they are in, for errors.

        Raises:
            ConfigError: a name is not there, or stands for two splits.
            DataError: two of the names mean the same split.
        """
        chosen = {key: str(getattr(self, key)) for key in USUAL if getattr(self, key) not in (None, NONE)}
        for key, name in chosen.items():
            if name not in names:
                there = ", ".join(names) or "nothing"
                raise ConfigError(f"{key}_split", name, f"is not in {place}{did_you_mean(name, names)}; it has {there}")
            if list(chosen.values()).count(name) > 1:
                raise ConfigError(f"{key}_split", name, "stands for two splits; give each its own")
        found = {key: chosen.get(key) or self._usual(key, names, chosen.values(), place) for key in USUAL}
        found = {key: name for key, name in found.items() if name}
        if "test" not in found and self.holdout is None and self.test is None and "holdout" in found:
            found["test"] = found.pop("holdout")
        return found

    def _usual(self, key: str, names: Sequence[str], taken: Collection[str], place: str) -> str:
        """Return the one of the names that is usual for a split, or an empty string."""
        usual = [name for name in names if name.lower() in USUAL[key] and name not in taken]
        if getattr(self, key) == NONE or not usual:
            return ""
        if len(usual) > 1:
            raise DataError(
                f"{place} has {' and '.join(usual)}, which mean the same split; "
                f"rename one, or choose by data.{key}_split=NAME"
            )
        return usual[0]


def is_usual(name: str) -> bool:
    """Return whether a name is a usual one of some split."""
    return any(name.lower() in usual for usual in USUAL.values())


def some(names: Sequence[str], count: int = 5) -> str:
    """Return the first `count` names as one text, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
