"""Data sets of the Hugging Face hub, or folders of their parquet files, read as a stream (package `datasets`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ldae.data.cache import Bad, Context, in_memory, readable, scanned
from ldae.data.datasets import SMALL, Dataset, Division
from ldae.data.folder import Listing
from ldae.data.images import ImageSet, Splits
from ldae.data.streamed import StreamedImages
from ldae.errors import ConfigError, DataError, nearest
from ldae.files import json_hash, read_json, write_json
from ldae.parts import Count

FORMAT = 1
HELD = ("test", "validation", "val", "valid")  # names of the split that is tested on, the first that there is


@dataclass(frozen=True)
class Shards:
    """A split's shards, each read from its beginning.

    Attributes:
        found: a `datasets.IterableDataset`.
        image: the column that has the pictures, as bytes.
    """

    found: Any
    image: str

    @property
    def count(self) -> int:
        return int(self.found.num_shards)

    def __call__(self, shard: int, skip: int = 0) -> Iterator[bytes]:
        """The images of a shard but the first `skip`."""
        for row in self._rows(shard, [self.image]).skip(skip):
            content = row[self.image]["bytes"]
            if content is None:
                raise DataError(f"{row[self.image]['path']} lies in a file of its own; use data=imagefolder")
            yield content

    def labels(self, shard: int, column: str) -> Iterator[int]:
        """The classes of a shard's images."""
        return (row[column] for row in self._rows(shard, [column]))

    def all(self) -> Iterator[bytes]:
        """Every image."""
        for shard in range(self.count):
            yield from self(shard)

    def _rows(self, shard: int, columns: list[str]) -> Any:
        return self.found.shard(num_shards=self.count, index=shard).select_columns(columns)


class HubImages(Dataset):
    """Images and classes in the columns of a data set; nothing is downloaded but what streams by.

    The classes are read once, and every image is decoded once to find the unreadable ones; both are kept in the cache.
    Then an epoch streams (see `StreamedImages`), exact in its order, its augmentations and where it is resumed.

    Args: as Dataset, and
        root: its name on the hub, or a folder of train*.parquet, test*.parquet.
        subset: which of several data sets of that name; the only one if null.
        image, label: names of the columns.
        store: as in ImageFolder.
        window: images of a stream that are mixed, and held in memory as files.
    """

    def __init__(
        self,
        size: Count,
        division: Division,
        root: str | None = None,
        subset: str | None = None,
        image: str = "image",
        label: str = "label",
        store: Literal["auto", "memory", "stream"] = "auto",
        window: Count = 4096,
    ):
        super().__init__(size, division)
        self.root, self.subset, self.image, self.label = root, subset, image, label
        self.store, self.window = store, window

    def open(self, context: Context) -> Splits:
        found, mark = self._found()
        if "train" not in found:
            raise DataError(f"data.root={self.root} has no split train; it has {', '.join(found)}")
        held = next((name for name in HELD if name in found), None)
        classes: list[str] = []
        sets: list[tuple[ImageSet, Bad, str]] = []
        for split in ("train", *([held] if held else [])):
            shards, names = self._columns(found[split])
            listing = self._listing(shards, names, f"{mark}/{split}", context)
            if sets and max(listing.labels) >= len(classes):
                raise DataError(
                    f"data.root={self.root}: split {split} has class {max(listing.labels)}, train has {len(classes)}"
                )
            classes = classes or list(listing.classes)
            sets.append(self._read(listing, shards, context))
        (train, bad, first), rest = sets[0], sets[1:]
        if not rest:
            return self._splits(train, None, classes, [first], bad)
        test, test_bad, second = rest[0]
        return self._splits(train, test, classes, [first, second], bad + test_bad)

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
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"data.root={self.root} cannot be read by datasets ({first})") from None

    def _columns(self, found: Any) -> tuple[Shards, list[str] | None]:
        """The images of a split, and its classes if they have names."""
        import datasets

        found = found if found.features else found._resolve_features()
        columns = list(found.features)
        for key, name in (("image", self.image), ("label", self.label)):
            if name not in columns:
                raise ConfigError(
                    key, name, f"is no column of {self.root}{nearest(name, columns)}; {', '.join(columns)}"
                )
        if not isinstance(found.features[self.image], datasets.Image):
            raise ConfigError("image", self.image, f"is a column of {found.features[self.image]}, not of images")
        kind = found.features[self.label]
        names = list(kind.names) if isinstance(kind, datasets.ClassLabel) else None
        return Shards(found.cast_column(self.image, datasets.Image(decode=False)), self.image), names

    def _listing(self, shards: Shards, names: list[str] | None, mark: str, context: Context) -> Listing:
        stamp = json_hash([FORMAT, mark, self.image, self.label])
        path = context.cache / "streams" / f"{stamp[:20]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                write_json(path, {"labels": [list(self._labels(shards, k, context)) for k in range(shards.count)]})
        labels = read_json(path)["labels"]
        files = tuple(f"{k}/{row}" for k, of_shard in enumerate(labels) for row in range(len(of_shard)))
        flat = tuple(label for of_shard in labels for label in of_shard)
        if not flat:
            raise DataError(f"data.root={self.root} holds no images")
        classes = names or [str(i) for i in range(1 + max(flat))]
        return Listing(Path(self.root or ""), files, (0,) * len(files), flat, tuple(classes), stamp, stream=shards.all)

    def _labels(self, shards: Shards, shard: int, context: Context) -> Iterable[int]:
        for row, label in enumerate(shards.labels(shard, self.label)):
            context.poll()
            if isinstance(label, bool) or not isinstance(label, int) or label < 0:
                raise DataError(
                    f"data.root={self.root}: {self.label} of row {row} of shard {shard} is {label!r}, no class"
                )
            yield label

    def _read(self, listing: Listing, shards: Shards, context: Context) -> tuple[ImageSet, Bad, str]:
        small = self.size <= 96 and len(listing.files) * 3 * self.size**2 <= SMALL
        if self.store == "memory" or (self.store == "auto" and small):
            return in_memory(listing, self.size, context)
        bad = scanned(listing, context)
        names, labels = readable(listing, bad)
        fingerprint = json_hash([listing.stamp, listing.labels, bad, *context.bands.key])
        images = StreamedImages(listing.root, names, labels, self.size, shards, self.window, bands=context.bands)
        return images, bad, fingerprint
