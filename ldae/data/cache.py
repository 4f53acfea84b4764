"""Cache of decoded data sets: memory-mapped pixels of small sets, and the unreadable files of large ones."""

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
from ldae.data.decode import BadImage, Bands, Source, centre_box, crop_and_resize, read_pixels
from ldae.data.folder import Listing
from ldae.data.images import FileImages, MemoryImages, encode_names
from ldae.data.workers import WorkerPool

FORMAT = 1
DECODER = 2  # version of the decoder of files other than JPEG
FILES_PER_TASK = 64  # files in a task of a worker process
STREAM_BUFFER = 256  # images of a stream that are read before they are decoded


@dataclass(frozen=True)
class Context:
    """Settings for reading a data set.

    Attributes:
        cache: folder of decoded pixels and lists of unreadable files.
        workers: number of processes that decode.
        max_bad: fraction of unreadable files above which reading fails.
        max_pixels: width x height above which a file counts as unreadable.
        channels, range: see `Bands`.
        poll: function called at least once per batch of files; raises when the run is to stop.
        progress: form of the progress report: bar, lines, or off.
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
        self.bands  # noqa: B018  its constructor checks the values before a file is read

    @property
    def bands(self) -> Bands:
        """Return the mapping from the bands of a file to RGB."""
        return Bands(self.channels, self.range)


Bad = list[tuple[str, str]]  # (name, reason) of unreadable files


class PixelReader:
    """Reader of image files as centre crops.

    Attributes:
        content: name of the pixels in cache keys.
        channels: number of channels of the pixels.
    """

    content, channels = "pixels", 3

    def sources(self, listing: Listing) -> Iterable[Any]:
        """Return the argument of `read` for each file of a listing."""
        return listing.sources

    @staticmethod
    def read(source: Any, size: int, max_pixels: int, bands: Bands) -> np.ndarray:
        """Return the centre crop of an image, (channels, size, size) uint8.

        Raises:
            BadImage: the image is unreadable.
        """
        pixels = read_pixels(source, max_pixels, bands)
        return crop_and_resize(pixels, centre_box(*pixels.shape[:2]), size, exact=True).numpy()


def load_images(
    listing: Listing, size: int, context: Context, reader: PixelReader | None = None
) -> tuple[MemoryImages, Bad, str]:
    """Return the images of a listing as size x size centre crops, decoded once and then memory-mapped.

    Args:
        reader: reader of the files; RGB if None.

    Returns:
        The set, the unreadable files, and the hash of pixels, labels and names.

    Raises:
        DataError: more than max_bad of the files are unreadable.
    """
    reader = reader or PixelReader()
    key = [FORMAT, reader.content, listing.stamp, listing.classes, size, *_decoder_key(listing), *context.bands.key]
    folder = context.cache / "images" / json_hash(key)[:20]
    manifest = _read_intact_manifest(folder)  # before the lock, which a read-only cache does not permit
    if manifest is None:
        with cache_errors(context.cache), _locked(folder):
            if (manifest := _read_intact_manifest(folder, warn=True)) is None:
                with publish_folder(folder) as temporary, cache_errors(context.cache):
                    _decode_all(listing, size, context, temporary, reader)
                manifest = read_sealed_json(folder / "manifest.json")
    bad = [(name, reason) for name, reason in manifest["bad"]]
    _check_bad_fraction(bad, listing, context)
    names, labels = drop_unreadable(listing, bad)
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return MemoryImages.of(listing.root, _as_tensor(pixels), names, labels), bad, manifest["fingerprint"]


def open_files(listing: Listing, size: int, context: Context) -> tuple[FileImages, Bad, str]:
    """Return the images of a listing as files that are read on demand, after each was decoded once as a check.

    Returns:
        The set, the unreadable files, and the hash of names, file sizes and labels.

    Raises:
        DataError: more than max_bad of the files are unreadable.
    """
    bad = find_unreadable(listing, context)
    names, labels = drop_unreadable(listing, bad)
    fingerprint = json_hash([listing.files, listing.sizes, listing.labels, bad, *context.bands.key])
    return FileImages(listing.root, names, labels, size, None, listing.locate, context.bands), bad, fingerprint


def _decoder_key(listing: Listing) -> list[int]:
    """Return the version of the decoder for a cache key: empty for JPEGs, which every version decodes alike."""
    names = (name.partition("@")[0].lower() for name in listing.files)
    return [] if all(name.endswith((".jpg", ".jpeg")) for name in names) else [DECODER]


def find_unreadable(listing: Listing, context: Context) -> Bad:
    """Decode every image once, and return (name, reason) of those that are unreadable.

    Raises:
        DataError: more than max_bad of them are unreadable.
    """
    key = [FORMAT, "scan", listing.stamp, context.max_pixels, *_decoder_key(listing), *context.bands.key]
    path = context.cache / "scans" / f"{json_hash(key)[:20]}.json"
    if read_cached_json(path, warn=False) is None:
        with cache_errors(context.cache), _locked(path):
            if read_cached_json(path) is None:
                work = partial(_unreadable_reason, max_pixels=context.max_pixels, bands=context.bands)
                reasons = _map_files(listing, listing.sources, work, context)
                bad = [(name, reason) for name, reason in zip(listing.files, reasons, strict=True) if reason]
                write_sealed_json(path, {"bad": bad})
    bad = [(name, reason) for name, reason in read_sealed_json(path)["bad"]]
    _check_bad_fraction(bad, listing, context)
    return bad


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


@contextlib.contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Raise a Fault that names `data.cache` where a write in the cache fails inside the block; pass other errors on.

    Raises:
        OutputError: permissions forbid the write.
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
            path = Path(os.fsdecode(error.filename))
            if not path.is_relative_to(cache) and not cache.is_relative_to(path):
                raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OutputError(
                f"data.cache={cache} cannot be written ({error.strerror}); give another data.cache=FOLDER"
            ) from None
        raise StorageError(
            f"writing below data.cache={cache} failed ({error.strerror or error}); free space there, or give another "
            "data.cache=FOLDER, and run the same command again"
        ) from None


def read_cached_json(path: Path, warn: bool = True) -> dict[str, Any] | None:
    """Return a JSON object of the cache; None if it is absent or damaged, the latter with a warning."""
    if not path.exists():
        return None
    try:
        return read_sealed_json(path)
    except CheckpointError:
        if warn:
            warnings.warn(f"{path} is damaged; the images are read again", stacklevel=2)
        return None


def drop_unreadable(listing: Listing, bad: Bad) -> tuple[np.ndarray, np.ndarray]:
    """Return the names, (N,) bytes, and labels, (N,) int64, of a listing without its unreadable images."""
    bad_names = {name for name, _ in bad}
    rows = [(name, label) for name, label in zip(listing.files, listing.labels, strict=True) if name not in bad_names]
    return encode_names([name for name, _ in rows]), np.array([label for _, label in rows], dtype=np.int64)


def _check_bad_fraction(bad: Bad, listing: Listing, context: Context) -> None:
    total = len(listing.files)
    if len(bad) == total or len(bad) > context.max_bad * total:
        name, reason = bad[0]
        raise DataError(
            f"{len(bad)} of {total} images below {listing.root} cannot be read, more than "
            f"data.max_bad={context.max_bad:g} of them; the first: {name}: {reason}"
        )


def _read_intact_manifest(folder: Path, warn: bool = False) -> dict[str, Any] | None:
    """Return the manifest of a cached set; None if it is absent or its pixels do not match their hash."""
    if not folder.exists():
        return None
    try:
        manifest = read_sealed_json(folder / "manifest.json")
        if hash_pixels(np.load(folder / "pixels.npy", mmap_mode="r")) == manifest["pixels"]:
            return manifest
    except (CheckpointError, OSError, ValueError, KeyError):
        pass
    if warn:
        warnings.warn(f"the cached images in {folder} are damaged; they are read anew", stacklevel=2)
    return None


def hash_pixels(pixels: np.ndarray) -> str:
    """Return the hex SHA-256 of the shape and the bytes of an array."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    for start in range(0, len(pixels), 4096):
        digest.update(np.ascontiguousarray(pixels[start : start + 4096]).data)
    return digest.hexdigest()


def _decode_all(listing: Listing, size: int, context: Context, folder: Path, reader: PixelReader) -> None:
    """Write the pixels of all readable images, and a manifest, to a folder."""
    bad: Bad = []
    shape, total = (reader.channels, size, size), len(listing.files)
    work = partial(_read_or_reason, reader.read, size=size, max_pixels=context.max_pixels, bands=context.bands)
    path = folder / "pixels.npy"
    with open(path, "wb") as file:  # not memory-mapped: there, a full disk kills the process by SIGBUS
        _check_room(folder, total * int(np.prod(shape)))
        _write_header(file, (total, *shape))
        results = _map_files(listing, reader.sources(listing), work, context)
        for name, pixels_or_reason in zip(listing.files, results, strict=True):
            if isinstance(pixels_or_reason, str):
                bad.append((name, pixels_or_reason))
            else:
                file.write(np.ascontiguousarray(pixels_or_reason, np.uint8).data)
        file.seek(0)
        _write_header(file, (total - len(bad), *shape))  # of the same length as the first: numpy pads headers
    pixels = hash_pixels(np.load(path, mmap_mode="r"))
    names, labels = drop_unreadable(listing, bad)
    fingerprint = json_hash([pixels, [os.fsdecode(bytes(n)) for n in names], labels.tolist()])
    write_sealed_json(folder / "manifest.json", {"bad": bad, "pixels": pixels, "fingerprint": fingerprint})


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if 0 < free < size:  # some file systems always report 0
        raise OSError(errno.ENOSPC, f"{size / 2**20:.0f} MiB of pixels do not fit into the {free / 2**20:.0f} MiB left")


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _map_files(listing: Listing, sources: Iterable[Any], work: Callable[[Any], Any], context: Context) -> Iterator[Any]:
    """Yield the result of `work` for the source of every file, in order, computed by worker processes."""
    track = Progress(context.progress, len(listing.files), title="reading images", unit="image").track
    if context.workers < 2 or len(listing.files) < 500:
        for source in track(sources):
            context.poll()
            yield work(source)
        return
    rest = iter(sources)
    if listing.stream is not None:  # threads: only this process has the stream
        with ThreadPoolExecutor(context.workers) as threads:
            buffers = iter(lambda: list(islice(rest, STREAM_BUFFER)), [])
            for result in track(chain.from_iterable(threads.map(work, buffer) for buffer in buffers)):
                context.poll()
                yield result
        return
    tasks = iter(lambda: list(islice(rest, FILES_PER_TASK)), [])
    pool = WorkerPool(partial(_map_list, work), context.workers)
    with contextlib.closing(pool.map(tasks, 2, context.poll)) as results:
        for result in track(chain.from_iterable(results)):
            context.poll()
            yield result


def _map_list(work: Callable[[Any], Any], sources: list[Any]) -> list[Any]:
    return [work(source) for source in sources]  # a function of the module, so that it can be pickled


def _read_or_reason(
    read: Callable[..., np.ndarray], source: Any, size: int, max_pixels: int, bands: Bands
) -> np.ndarray | str:
    try:
        return read(source, size, max_pixels, bands)
    except BadImage as error:
        return str(error)


def _unreadable_reason(source: Source, max_pixels: int, bands: Bands) -> str:
    """Return the reason why an image is unreadable, or an empty string."""
    try:
        read_pixels(source, max_pixels, bands)
        return ""
    except BadImage as error:
        return str(error)


def _as_tensor(pixels: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of arrays that are read-only; the suite never writes to it
        return torch.from_numpy(pixels)
