"""Data sets of the Hugging Face hub, or folders of parquet files, streamed by the package `datasets`."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ldae.core.errors import ConfigError, DataError, Fault, StorageError, abbreviate, did_you_mean
from ldae.core.files import json_hash, read_sealed_json, write_sealed_json
from ldae.core.types import Count
from ldae.data.cache import Bad, Context, drop_unreadable, find_unreadable, load_images, read_cached_json
from ldae.data.datasets import MEMORY_LIMIT, Dataset, Division
from ldae.data.folder import UNLABELLED, Listing, count_classes
from ldae.data.images import ImageSet, Splits
from ldae.data.split_names import NONE, SplitNames
from ldae.data.streamed import StreamedImages

FORMAT = 1


@dataclass(frozen=True)
class Shards:
    """Shards of one or several splits, each read sequentially from its beginning.

    Attributes:
        splits: `datasets.IterableDataset` of each split.
        image: name of the column of images, as bytes.
        title: description of the data set, for messages.
    """

    splits: Sequence[Any]
    image: str
    title: str

    @property
    def count(self) -> int:
        """Return the number of shards."""
        return sum(int(split.num_shards) for split in self.splits)

    def __call__(self, shard: int, skip: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a shard's images without the first `skip`."""
        for row in self._rows(shard, [self.image], skip):
            image = row[self.image] or {"bytes": b"", "path": None}  # empty bytes count as an unreadable image
            if image["bytes"] is None and image["path"] is not None:
                raise DataError(f"{image['path']} lies in a file of its own; use data=imagefolder")
            yield image["bytes"] or b""

    def labels(self, shard: int, column: str | None) -> Iterator[Any]:
        """Yield the class of each image of a shard; None if there is no column of classes."""
        return (row[column] if column else None for row in self._rows(shard, [column] if column else []))

    def all(self) -> Iterator[bytes]:
        """Yield the bytes of every image."""
        for shard in range(self.count):
            yield from self(shard)

    def _rows(self, shard: int, columns: list[str], skip: int = 0) -> Iterator[Any]:
        """Yield columns of the rows of a shard without the first `skip`.

        Raises:
            DataError: a file is damaged or missing.
            StorageError: the disk or the network fails.
        """
        number, position = shard, 0
        while number >= self.splits[position].num_shards:
            number, position = number - self.splits[position].num_shards, position + 1
        split = self.splits[position]
        try:
            yield from split.shard(num_shards=split.num_shards, index=number).select_columns(columns).skip(skip)
        except Exception as error:  # the package and its dependencies raise many types
            raise wrap_datasets_error(f"shard {shard} of {self.title}", error) from None


def wrap_datasets_error(title: str, error: Exception) -> Fault:
    """Return the fault for data that the package `datasets` cannot read, with the first line of its error."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EACCES):
        return StorageError(f"{title} cannot be read ({first}); run the same command again")
    return DataError(f"{title} cannot be read by datasets ({first})")


class HubImages(Dataset):
    """Images and classes in the columns of a data set, streamed without a copy on disk.

    A first pass reads the classes and decodes every image to find the unreadable ones; the cache keeps both. Epochs
    are then streamed (see `StreamedImages`); order, augmentations and resumption are exact.

    Args: as Dataset, and
        root: name on the hub, or a folder of train*.parquet, test*.parquet.
        subset: name of the subset; null if there is only one.
        image, label: names of the columns; label null for images without classes. A split whose labels are all None
            or -1 has no classes either.
        store: as in ImageFolder.
        window: number of images in the shuffle buffer, which holds undecoded files.
        train_split, holdout_split, test_split: names of the splits; the usual ones if null (see `USUAL_NAMES`);
            `none` for no such split.
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
        """Read the data set of the Hugging Face Hub, and divide it."""
        splits, version = self._load_splits()
        names = self.split_names.resolve(list(splits), f"data.root={self.root}")
        if "train" not in names:
            raise DataError(
                f"data.root={self.root} has no split train; give data.train_split=NAME, one of {', '.join(splits)}"
            )
        shards, listings = dict[str, Shards](), dict[str, Listing]()
        for key, split in names.items():
            shards[key], classes = self._columns(splits[split], split)
            listings[key] = self._listing(shards[key], classes, split, version, context)
        if "holdout" in names and listings["holdout"].labelled == listings["train"].labelled:
            # read as one set, the shards of train first
            offset = shards["train"].count
            shards["train"] = Shards(
                [*shards["train"].splits, *shards["holdout"].splits], self.image, f"data.root={self.root}"
            )
            listings["holdout"] = _offset_shards(listings["holdout"], offset)
            listings["train"] = replace(listings["train"], stream=shards["train"].all)
        unread = [split for split in splits if split not in names.values()]
        notes = [f"data.root={self.root}: splits that are not read: {abbreviate(unread)}"] if unread else []
        titles = {key: f"split {split}" for key, split in names.items()}
        return self._open_listings(listings, partial(self._read, shards=shards, context=context), titles, notes)

    def _load_splits(self) -> tuple[dict[str, Any], str]:
        """Return the splits by name, and the hash of their version."""
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
        except Exception as error:  # the package raises many types: not found, no network, ambiguous, unknown format
            raise wrap_datasets_error(f"data.root={self.root}", error) from None

    def _columns(self, dataset: Any, split: str) -> tuple[Shards, list[str] | None]:
        """Return the shards of a split, and the names of its classes or None."""
        import datasets

        title = f"data.root={self.root}, split {split}"
        try:
            dataset = dataset if dataset.features else dataset._resolve_features()
        except Exception as error:
            raise wrap_datasets_error(title, error) from None
        columns = list(dataset.features)
        for key, name in (("image", self.image), ("label", self.label)):
            if name is not None and name not in columns:
                without = "; data.label=null reads the images without classes" if key == "label" else ""
                raise ConfigError(
                    key,
                    name,
                    f"is no column of split {split} of {self.root}{did_you_mean(name, columns)}; "
                    f"it has {', '.join(columns)}{without}",
                )
        if not isinstance(dataset.features[self.image], datasets.Image):
            raise ConfigError("image", self.image, f"is a column of {dataset.features[self.image]}, not of images")
        feature = dataset.features[self.label] if self.label else None
        names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        return Shards([dataset.cast_column(self.image, datasets.Image(decode=False))], self.image, title), names

    def _listing(self, shards: Shards, names: list[str] | None, split: str, version: str, context: Context) -> Listing:
        stamp = json_hash([FORMAT, f"{version}/{split}", self.image, self.label])
        path = context.cache / "streams" / f"{stamp[:20]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if read_cached_json(path) is None:
                labels = [list(self._labels(shards, k, context)) for k in range(shards.count)]
                write_sealed_json(path, {"labels": labels})
        labels = read_sealed_json(path)["labels"]
        files = tuple(f"{k}/{row}" for k, of_shard in enumerate(labels) for row in range(len(of_shard)))
        flat = tuple(label for of_shard in labels for label in of_shard)
        if not flat:
            raise DataError(f"{shards.title} has no images")
        count = count_classes(flat, files, shards.title)
        if names is not None and count > len(names):
            raise DataError(f"{shards.title} has class {count - 1}, and its labels have {len(names)} names")
        classes = (names or [str(i) for i in range(count)]) if count else []
        return Listing(Path(self.root or ""), files, (0,) * len(files), flat, tuple(classes), stamp, stream=shards.all)

    def _labels(self, shards: Shards, shard: int, context: Context) -> Iterable[int]:
        for row, label in enumerate(shards.labels(shard, self.label)):
            context.poll()
            if label is None:
                label = UNLABELLED
            if isinstance(label, bool) or not isinstance(label, int) or label < UNLABELLED:
                raise DataError(f"{shards.title}: {self.label} of row {row} of shard {shard} is {label!r}, no class")
            yield label

    def _read(self, listing: Listing, shards: dict[str, Shards], context: Context) -> tuple[ImageSet, Bad, str]:
        is_small = self.size <= 96 and len(listing.files) * 3 * self.size**2 <= MEMORY_LIMIT
        if self.store == "memory" or (self.store == "auto" and is_small):
            return load_images(listing, self.size, context)
        bad = find_unreadable(listing, context)
        names, labels = drop_unreadable(listing, bad)
        fingerprint = json_hash([listing.stamp, listing.labels, bad, *context.bands.key])
        (source,) = (s for s in shards.values() if s.all == listing.stream)
        images = StreamedImages(listing.root, names, labels, self.size, source, self.window, bands=context.bands)
        return images, bad, fingerprint


def _offset_shards(listing: Listing, shards: int) -> Listing:
    """Return a listing whose shards are numbered from `shards` on."""
    positions = (name.split("/") for name in listing.files)
    return replace(listing, files=tuple(f"{shards + int(shard)}/{row}" for shard, row in positions))
