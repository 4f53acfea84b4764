"""Data sets of the Hugging Face hub, or folders of their parquet files, read as a stream (package `datasets`)."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ldae.core.errors import ConfigError, DataError, Fault, StorageError, did_you_mean
from ldae.core.files import json_hash, read_sealed_json, write_sealed_json
from ldae.core.types import Count
from ldae.data.cache import Bad, Context, in_memory, kept_json, readable, scanned
from ldae.data.datasets import SMALL, Dataset, Division
from ldae.data.folder import UNLABELLED, Listing, number_of_classes
from ldae.data.images import ImageSet, Splits
from ldae.data.layout import NONE, SplitNames, some
from ldae.data.streamed import StreamedImages

FORMAT = 1


@dataclass(frozen=True)
class Shards:
    """The shards of one split, or of several, each read from its beginning.

    Attributes:
        splits: a `datasets.IterableDataset` of each.
        image: the column that has the pictures, as bytes.
        place: what they are, for errors.
    """

    splits: Sequence[Any]
    image: str
    place: str

    @property
    def count(self) -> int:
        return sum(int(split.num_shards) for split in self.splits)

    def __call__(self, shard: int, skip: int = 0) -> Iterator[bytes]:
        """The images of a shard but the first `skip`."""
        for row in self._rows(shard, [self.image], skip):
            cell = row[self.image] or {"bytes": b"", "path": None}  # an empty one counts as an unreadable image
            if cell["bytes"] is None and cell["path"] is not None:
                raise DataError(f"{cell['path']} lies in a file of its own; use data=imagefolder")
            yield cell["bytes"] or b""

    def labels(self, shard: int, column: str | None) -> Iterator[Any]:
        """Yield the classes of a shard's images: of each None where there is no column of them."""
        return (row[column] if column else None for row in self._rows(shard, [column] if column else []))

    def all(self) -> Iterator[bytes]:
        """Every image."""
        for shard in range(self.count):
            yield from self(shard)

    def _rows(self, shard: int, columns: list[str], skip: int = 0) -> Iterator[Any]:
        """Yield some columns of a shard's rows but the first `skip`.

        Raises:
            DataError: a file is damaged or gone.
            StorageError: disk or network fails.
        """
        number, own = shard, 0
        while number >= self.splits[own].num_shards:
            number, own = number - self.splits[own].num_shards, own + 1
        split = self.splits[own]
        try:
            yield from split.shard(num_shards=split.num_shards, index=number).select_columns(columns).skip(skip)
        except Exception as error:  # the package and those below it raise many kinds
            raise unreadable(f"shard {shard} of {self.place}", error) from None


def unreadable(what: str, error: Exception) -> Fault:
    """Return the fault for what `datasets` cannot read, with the first line of its error."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EACCES):
        return StorageError(f"{what} cannot be read ({first}); run the same command again")
    return DataError(f"{what} cannot be read by datasets ({first})")


class HubImages(Dataset):
    """Images and classes in the columns of a data set; nothing is downloaded but what streams by.

    The classes are read once, and every image is decoded once to find the unreadable ones; both are kept in the cache.
    Then an epoch streams (see `StreamedImages`), exact in its order, its augmentations and where it is resumed.

    Args: as Dataset, and
        root: its name on the hub, or a folder of train*.parquet, test*.parquet.
        subset: which of several data sets of that name; the only one if null.
        image, label: names of the columns; label null for images without classes. A split whose labels are all None
            or -1 has no classes either.
        store: as in ImageFolder.
        window: images of a stream that are mixed, and held in memory as files.
        train_split, holdout_split, test_split: names of the splits; the usual ones if null (see `USUAL`); `none` for
            no such split.
    """

    label_hint = "name the column of classes by data.label=COLUMN"

    def __init__(
        self,
        size: Count,
        division: Division,
        root: str | None = None,
        subset: str | None = None,
        image: str = "image",
        label: str | None = "label",
        store: Literal["auto", "memory", "stream"] = "auto",
        window: Count = 4096,
        train_split: str | None = None,
        holdout_split: str | None = None,
        test_split: str | None = None,
    ):
        super().__init__(size, division)
        self.split_names = SplitNames(train_split, holdout_split, test_split)
        if train_split == NONE:
            raise ConfigError("train_split", train_split, "leaves nothing to train on; name a split")
        self.root, self.subset, self.image, self.label = root, subset, image, label
        self.store, self.window = store, window

    def open(self, context: Context) -> Splits:
        found, mark = self._found()
        names = self.split_names.among(list(found), f"data.root={self.root}")
        if "train" not in names:
            raise DataError(
                f"data.root={self.root} has no split train; give data.train_split=NAME, one of {', '.join(found)}"
            )
        shards, listings = dict[str, Shards](), dict[str, Listing]()
        for key, split in names.items():
            shards[key], classes = self._columns(found[split], split)
            listings[key] = self._listing(shards[key], classes, split, mark, context)
        if "holdout" in names and listings["holdout"].labelled == listings["train"].labelled:
            # one set with train, whose shards come first
            offset = shards["train"].count
            shards["train"] = Shards(
                [*shards["train"].splits, *shards["holdout"].splits], self.image, f"data.root={self.root}"
            )
            listings["holdout"] = _moved(listings["holdout"], offset)
            listings["train"] = replace(listings["train"], stream=shards["train"].all)
        unread = [split for split in found if split not in names.values()]
        notes = [f"data.root={self.root}: splits that are not read: {some(unread)}"] if unread else []
        called = {key: f"split {split}" for key, split in names.items()}
        return self._opened(listings, partial(self._read, shards=shards, context=context), called, notes)

    def _found(self) -> tuple[dict[str, Any], str]:
        """The splits, and what names this version of them."""
        try:
            import datasets
        except ImportError:
            raise ConfigError("part", "HubImages", "needs the package datasets: pip install 'ldae[hub]'") from None
        if not self.root:
            raise ConfigError(
                "root", self.root, "is not set; give data.root=NAME on the hub, or a folder of parquet files"
            )
        datasets.disable_progress_bars()
        try:
            builder = datasets.load_dataset_builder(self.root, self.subset)
            return dict(builder.as_streaming_dataset()), str(builder.hash)
        except Exception as error:  # the package raises many kinds: not found, no network, ambiguous, no such format
            raise unreadable(f"data.root={self.root}", error) from None

    def _columns(self, found: Any, split: str) -> tuple[Shards, list[str] | None]:
        """The images of a split, and its classes if they have names."""
        import datasets

        place = f"data.root={self.root}, split {split}"
        try:
            found = found if found.features else found._resolve_features()
        except Exception as error:
            raise unreadable(place, error) from None
        columns = list(found.features)
        for key, name in (("image", self.image), ("label", self.label)):
            if name is not None and name not in columns:
                without = "; data.label=null reads the images without classes" if key == "label" else ""
                raise ConfigError(
                    key,
                    name,
                    f"is no column of split {split} of {self.root}{did_you_mean(name, columns)}; "
                    f"it has {', '.join(columns)}{without}",
                )
        if not isinstance(found.features[self.image], datasets.Image):
            raise ConfigError("image", self.image, f"is a column of {found.features[self.image]}, not of images")
        kind = found.features[self.label] if self.label else None
        names = list(kind.names) if isinstance(kind, datasets.ClassLabel) else None
        return Shards([found.cast_column(self.image, datasets.Image(decode=False))], self.image, place), names

    def _listing(self, shards: Shards, names: list[str] | None, split: str, mark: str, context: Context) -> Listing:
        stamp = json_hash([FORMAT, f"{mark}/{split}", self.image, self.label])
        path = context.cache / "streams" / f"{stamp[:20]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if kept_json(path) is None:
                labels = [list(self._labels(shards, k, context)) for k in range(shards.count)]
                write_sealed_json(path, {"labels": labels})
        labels = read_sealed_json(path)["labels"]
        files = tuple(f"{k}/{row}" for k, of_shard in enumerate(labels) for row in range(len(of_shard)))
        flat = tuple(label for of_shard in labels for label in of_shard)
        place = shards.place
        if not flat:
            raise DataError(f"{place} holds no images")
        count = number_of_classes(flat, files, place)
        if names is not None and count > len(names):
            raise DataError(f"{place} has class {count - 1}, and its labels have {len(names)} names")
        classes = (names or [str(i) for i in range(count)]) if count else []
        return Listing(Path(self.root or ""), files, (0,) * len(files), flat, tuple(classes), stamp, stream=shards.all)

    def _labels(self, shards: Shards, shard: int, context: Context) -> Iterable[int]:
        for row, label in enumerate(shards.labels(shard, self.label)):
            context.poll()
            if label is None:
                label = UNLABELLED
            if isinstance(label, bool) or not isinstance(label, int) or label < UNLABELLED:
                raise DataError(f"{shards.place}: {self.label} of row {row} of shard {shard} is {label!r}, no class")
            yield label

    def _read(self, listing: Listing, shards: dict[str, Shards], context: Context) -> tuple[ImageSet, Bad, str]:
        small = self.size <= 96 and len(listing.files) * 3 * self.size**2 <= SMALL
        if self.store == "memory" or (self.store == "auto" and small):
            return in_memory(listing, self.size, context)
        bad = scanned(listing, context)
        names, labels = readable(listing, bad)
        fingerprint = json_hash([listing.stamp, listing.labels, bad, *context.bands.key])
        (own,) = (s for s in shards.values() if s.all == listing.stream)
        images = StreamedImages(listing.root, names, labels, self.size, own, self.window, bands=context.bands)
        return images, bad, fingerprint


def _moved(listing: Listing, shards: int) -> Listing:
    """Return a listing whose shards come after some others."""
    places = (name.split("/") for name in listing.files)
    return replace(listing, files=tuple(f"{shards + int(shard)}/{row}" for shard, row in places))
