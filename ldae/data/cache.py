"""Reading every file of a listing once: small sets into memory-mapped pixels, large ones into a list of the bad."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock

from ldae.core.errors import CheckpointError, DataError, OutputError, StorageError
from ldae.core.files import json_hash, publish_folder, read_sealed_json, write_sealed_json
from ldae.core.progress import Mode, Progress
from ldae.core.types import Count, Fraction, Natural, Workers
from ldae.data.decode import BadImage, Bands, centre_square, read_rgb
from ldae.data.folder import Listing
from ldae.data.images import FileImages, MemoryImages, encode_names
from ldae.data.sources import Source
from ldae.data.workers import WorkerPool

FORMAT = 1
DECODER = 2  # changes when a file other than a JPEG may be decoded otherwise
PORTION = 64  # files that a process decodes at a time
AT_ONCE = 256  # images of a stream that are held before they are decoded


@dataclass(frozen=True)
class Context:
    """Where and how a data set is read.

    Attributes:
        cache: folder for what is derived from the images.
        workers: processes that decode.
        max_bad: share of unreadable files above which reading stops.
        max_pixels: width x height above which a file counts as unreadable.
        channels, range: see `Bands`.
        poll: called now and then; raises when the run is to stop.
        progress: how far the reading is: a bar, lines, or nothing.
    """

    cache: Path
    workers: Workers = 2
    max_bad: Fraction = 0.01
    max_pixels: Count = 100_000_000
    channels: tuple[Natural, ...] | None = None
    range: tuple[float, ...] | None = None
    poll: Callable[[], None] = field(default=lambda: None)
    progress: Mode = "off"

    def __post_init__(self) -> None:
        self.bands  # noqa: B018  checked before anything is read

    @property
    def bands(self) -> Bands:
        """How a file's numbers become colours."""
        return Bands(self.channels, self.range)


Bad = list[tuple[str, str]]


class Squares:
    """Image files as centred squares of pixels.

    Attributes:
        kind: names them in the cache.
        channels: of a square.
    """

    kind, channels = "pixels", 3

    def sources(self, listing: Listing) -> Iterable[Any]:
        """What `square` is to read for each file of a listing."""
        return listing.sources

    @staticmethod
    def square(source: Any, size: int, max_pixels: int, bands: Bands) -> np.ndarray:
        """(channels, size, size) uint8.

        Raises:
            BadImage: it cannot be read.
        """
        return np.asarray(centre_square(read_rgb(source, max_pixels, bands), size)).transpose(2, 0, 1)


def in_memory(
    listing: Listing, size: int, context: Context, squares: Squares | None = None
) -> tuple[MemoryImages, Bad, str]:
    """The listing's images as centred size x size squares, decoded once and then memory-mapped.

    Args:
        squares: how a file becomes a square; in colour if None.

    Returns:
        The set, the files that were left out, and the fingerprint of pixels, labels and names.

    Raises:
        DataError: more than max_bad of the files are unreadable.
    """
    squares = squares or Squares()
    key = [FORMAT, squares.kind, listing.stamp, listing.classes, size, *_decoder(listing), *context.bands.key]
    folder = context.cache / "images" / json_hash(key)[:20]
    manifest = _intact(folder)  # before the lock: a cache that may only be read serves too
    if manifest is None:
        with cache_errors(context.cache), _locked(folder):
            if (manifest := _intact(folder, warn=True)) is None:
                with publish_folder(folder) as temporary, cache_errors(context.cache):
                    _decode_all(listing, size, context, temporary, squares)
                manifest = read_sealed_json(folder / "manifest.json")
    bad = [(name, reason) for name, reason in manifest["bad"]]
    _check_share(bad, listing, context)
    names, labels = readable(listing, bad)
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return MemoryImages.of(listing.root, _as_tensor(pixels), names, labels), bad, manifest["fingerprint"]


def as_files(listing: Listing, size: int, context: Context) -> tuple[FileImages, Bad, str]:
    """The listing's images, to be read when needed; each was decoded once to find the unreadable ones.

    Returns:
        The set, the files that were left out, and the fingerprint of names and file sizes.

    Raises:
        DataError: more than max_bad of the files are unreadable.
    """
    bad = scanned(listing, context)
    names, labels = readable(listing, bad)
    fingerprint = json_hash([listing.files, listing.sizes, listing.labels, bad, *context.bands.key])
    return FileImages(listing.root, names, labels, size, None, listing.locate, context.bands), bad, fingerprint


def _decoder(listing: Listing) -> list[int]:
    """Return what a cache's key says of the decoder: nothing for JPEGs alone, which it decodes as ever."""
    names = (name.partition("@")[0].lower() for name in listing.files)
    return [] if all(name.endswith((".jpg", ".jpeg")) for name in names) else [DECODER]


def scanned(listing: Listing, context: Context) -> Bad:
    """Decodes every image once; which of them are unreadable, and why.

    Raises:
        DataError: more than max_bad of them are.
    """
    key = [FORMAT, "scan", listing.stamp, context.max_pixels, *_decoder(listing), *context.bands.key]
    path = context.cache / "scans" / f"{json_hash(key)[:20]}.json"
    if kept_json(path, warn=False) is None:
        with cache_errors(context.cache), _locked(path):
            if kept_json(path) is None:
                work = partial(_unreadable, max_pixels=context.max_pixels, bands=context.bands)
                outcomes = _decoded(listing, listing.sources, work, context)
                found = [(name, why) for name, why in zip(listing.files, outcomes, strict=True) if why]
                write_sealed_json(path, {"bad": found})
    bad = [(name, reason) for name, reason in read_sealed_json(path)["bad"]]
    _check_share(bad, listing, context)
    return bad


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


@contextlib.contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Turn a failed write below the cache into an error that names `data.cache`; errors of other files pass.

    Raises:
        OutputError: it may not be written.
        StorageError: the disk is full or fails.
    """
    try:
        yield
    except (OutputError, StorageError) as fault:
        if not str(fault).startswith("writing ") or "data.cache" in str(fault):
            raise
        raise type(fault)(f"{fault}; or give another data.cache=FOLDER") from None
    except OSError as error:
        if error.filename is not None:
            place = Path(os.fsdecode(error.filename))
            if not place.is_relative_to(cache) and not cache.is_relative_to(place):
                raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OutputError(
                f"data.cache={cache} cannot be written ({error.strerror}); give another data.cache=FOLDER"
            ) from None
        raise StorageError(
            f"writing below data.cache={cache} failed ({error.strerror or error}); free space there, or give another "
            "data.cache=FOLDER, and run the same command again"
        ) from None


def kept_json(path: Path, warn: bool = True) -> dict[str, Any] | None:
    """Return a JSON object that is kept in the cache, or None where it is absent or, with a warning, damaged."""
    if not path.exists():
        return None
    try:
        return read_sealed_json(path)
    except CheckpointError:
        if warn:
            warnings.warn(f"{path} is damaged; the images are read again", stacklevel=2)
        return None


def readable(listing: Listing, bad: Bad) -> tuple[np.ndarray, np.ndarray]:
    """Names and labels of a listing's images but the bad ones."""
    out = {name for name, _ in bad}
    rows = [(name, label) for name, label in zip(listing.files, listing.labels, strict=True) if name not in out]
    return encode_names([name for name, _ in rows]), np.array([label for _, label in rows], dtype=np.int64)


def _check_share(bad: Bad, listing: Listing, context: Context) -> None:
    total = len(listing.files)
    if len(bad) == total or len(bad) > context.max_bad * total:
        name, reason = bad[0]
        raise DataError(
            f"{len(bad)} of {total} images below {listing.root} cannot be read, more than "
            f"data.max_bad={context.max_bad:g} of them; the first: {name}: {reason}"
        )


def _intact(folder: Path, warn: bool = False) -> dict[str, Any] | None:
    """The manifest of a cached set whose pixels still have the hash they were written with."""
    if not folder.exists():
        return None
    try:
        manifest = read_sealed_json(folder / "manifest.json")
        if pixel_hash(np.load(folder / "pixels.npy", mmap_mode="r")) == manifest["pixels"]:
            return manifest
    except (CheckpointError, OSError, ValueError, KeyError):
        pass
    if warn:
        warnings.warn(f"the cached images in {folder} are damaged; they are read anew", stacklevel=2)
    return None


def pixel_hash(pixels: np.ndarray) -> str:
    """Return the hex SHA-256 of the shape and the bytes of an array."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    for start in range(0, len(pixels), 4096):
        digest.update(np.ascontiguousarray(pixels[start : start + 4096]).data)
    return digest.hexdigest()


def _decode_all(listing: Listing, size: int, context: Context, folder: Path, squares: Squares) -> None:
    bad: Bad = []
    shape, total = (squares.channels, size, size), len(listing.files)
    work = partial(_attempted, squares.square, size=size, max_pixels=context.max_pixels, bands=context.bands)
    path = folder / "pixels.npy"
    with open(path, "wb") as file:  # written, not mapped: a full disk is an error here and a crash there
        _check_room(folder, total * int(np.prod(shape)))
        _write_header(file, (total, *shape))
        outcomes = _decoded(listing, squares.sources(listing), work, context)
        for name, outcome in zip(listing.files, outcomes, strict=True):
            if isinstance(outcome, str):
                bad.append((name, outcome))
            else:
                file.write(np.ascontiguousarray(outcome, np.uint8).data)
        file.seek(0)
        _write_header(file, (total - len(bad), *shape))  # as long as the first: numpy pads it
    pixels = pixel_hash(np.load(path, mmap_mode="r"))
    names, labels = readable(listing, bad)
    fingerprint = json_hash([pixels, [os.fsdecode(bytes(n)) for n in names], labels.tolist()])
    write_sealed_json(folder / "manifest.json", {"bad": bad, "pixels": pixels, "fingerprint": fingerprint})


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if 0 < free < size:  # some file systems always say 0
        raise OSError(errno.ENOSPC, f"{size / 2**20:.0f} MiB of pixels do not fit into the {free / 2**20:.0f} MiB left")


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _decoded(listing: Listing, sources: Iterable[Any], work: Callable[[Any], Any], context: Context) -> Iterator[Any]:
    """`work` done on the source of every file, in order, by worker processes that leave signals to the main one."""
    bar = Progress(context.progress, len(listing.files), title="reading images", unit="image").track
    if context.workers < 2 or len(listing.files) < 500:
        for source in bar(sources):
            context.poll()
            yield work(source)
        return
    if listing.stream is not None:  # a pool of processes would take it all in at once
        with ThreadPoolExecutor(context.workers) as threads:
            for outcome in bar(_threaded(threads, work, sources)):
                context.poll()
                yield outcome
        return
    rest = iter(sources)
    portions = iter(lambda: list(islice(rest, PORTION)), [])
    with contextlib.closing(WorkerPool(partial(_each, work), context.workers).map(portions, 2, context.poll)) as found:
        for outcome in bar(chain.from_iterable(found)):
            context.poll()
            yield outcome


def _each(work: Callable[[Any], Any], sources: list[Any]) -> list[Any]:
    return [work(source) for source in sources]


def _threaded(threads: ThreadPoolExecutor, work: Callable[[Any], Any], sources: Iterable[Any]) -> Iterator[Any]:
    """`work` on every source, in order, some sources at a time."""
    rest = iter(sources)
    while some := list(islice(rest, AT_ONCE)):
        yield from threads.map(work, some)


def _attempted(
    square: Callable[..., np.ndarray], source: Any, size: int, max_pixels: int, bands: Bands
) -> np.ndarray | str:
    try:
        return square(source, size, max_pixels, bands)
    except BadImage as error:
        return str(error)


def _unreadable(source: Source, max_pixels: int, bands: Bands) -> str:
    try:
        read_rgb(source, max_pixels, bands)
        return ""
    except BadImage as error:
        return str(error)


def _as_tensor(pixels: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a read-only map: nothing here writes to it
        return torch.from_numpy(pixels)
