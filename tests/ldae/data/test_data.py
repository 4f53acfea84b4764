"""Listing, caching, dividing and ordering of images."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ldae.core.errors import ConfigError, DataError, OutputError, PeerError, StorageError
from ldae.data.cache import Context
from ldae.data.datasets import CIFAR, Digits, Division, ImageFolder
from ldae.data.folder import list_images
from ldae.data.images import FileImages, MemoryImages
from ldae.data.loader import Loader, RankSlice, bytes_in_order, in_order
from ldae.data.photos import Photos
from ldae.data.transforms import Centre, Flip, PadCrop, RandomResizedCrop

CPU = torch.device("cpu")


@pytest.fixture
def tree(tmp_path):
    """train/ with 3 classes of 20 images and test/ with 3 of 4, 12 to 40 pixels wide."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for c in "abc":
            folder = tmp_path / "data" / split / c
            folder.mkdir(parents=True)
            for i in range(count):
                size = generator.integers(12, 40, 2)
                Image.fromarray(generator.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{i:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "cache", workers=0, max_bad=0.0)


def folder(tree, size=16, store="auto", **division):
    return ImageFolder(size, Division(**division), str(tree), store)


def test_splits_share_no_image_and_keep_classes_in_proportion(tree, context):
    splits = folder(tree, holdout=0.2).open(context)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (48, 12, 12)
    assert not set(splits.train.ids) & set(splits.holdout.ids)
    assert torch.bincount(splits.holdout.own_labels).tolist() == [4, 4, 4]
    again = folder(tree, holdout=0.2).open(context)
    assert np.array_equal(again.holdout.ids, splits.holdout.ids)
    assert again.fingerprint == splits.fingerprint
    other = folder(tree, holdout=0.2, split_seed=1).open(context)
    assert not np.array_equal(other.holdout.ids, splits.holdout.ids)
    assert other.fingerprint != splits.fingerprint


def test_a_folder_of_classes_alone_is_divided_by_seed(tree, context):
    splits = folder(tree / "train", holdout=0.25, test=0.2).open(context)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (36, 12, 12)
    parts = [set(s.ids) for s in (splits.train, splits.holdout, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_classes_of_one_image_can_be_divided_too(tree, context):
    for c in "abc":
        for path in list((tree / "train" / c).iterdir())[1:]:
            path.unlink()
    splits = folder(tree / "train", holdout=0.5, test=0.34).open(context)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (1, 1, 1)


def test_memory_and_stream_deliver_the_same_pixels(tree, context):
    held, read = (folder(tree, store=store).open(context).train for store in ("memory", "stream"))
    assert isinstance(held, MemoryImages)
    assert isinstance(read, FileImages)
    a, b = ([batch.images for batch in in_order(images, 7, CPU)] for images in (held, read))
    assert torch.equal(torch.cat(a), torch.cat(b))


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_bytes_are_those_behind_the_images(tree, context, store):
    images = folder(tree, store=store).open(context).train
    cpu = torch.device("cpu")
    pairs = zip(bytes_in_order(images, 7, cpu), in_order(images, 7, cpu), strict=True)
    for pixels, batch in pairs:
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels / 255, batch.images)


def test_the_cache_is_used_found_damaged_and_made_anew(tree, context, monkeypatch):
    first = folder(tree).open(context)
    calls = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: calls.append(a) or real(*a, **k))
    again = folder(tree).open(context)
    assert not calls
    path = next(p for p in (context.cache / "images").rglob("pixels.npy") if np.load(p).shape[0] == 60)
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 1
    del first, again
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match="damaged"):
        third = folder(tree).open(context)
    assert len(calls) == 60
    assert len(third.train) == 54


def test_a_changed_file_makes_another_cache(tree, context):
    before = folder(tree).open(context).fingerprint
    Image.new("RGB", (16, 16), "red").save(tree / "train" / "a" / "00.png")
    assert folder(tree).open(context).fingerprint != before


@pytest.fixture
def many(tmp_path):
    """600 images of one colour each, in one class."""
    root = tmp_path / "many" / "a"
    root.mkdir(parents=True)
    for i in range(600):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(root / f"{i:03d}.png")
    return root.parent


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_worker_processes_read_what_one_process_reads(many, tmp_path, store):
    one, two = (folder(many, 8, store).open(Context(tmp_path / str(workers), workers)).train for workers in (0, 2))
    assert torch.equal(*(torch.cat([b.images for b in in_order(images, 64, CPU)]) for images in (one, two)))
    assert not multiprocessing.active_children()


def test_a_stop_while_workers_read_ends_them_and_leaves_no_cache(many, tmp_path):
    polls = iter(range(100))

    def poll():
        if next(polls) == 99:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder(many, 8).open(Context(tmp_path / "cache", 2, poll=poll))
    assert not multiprocessing.active_children()
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_killed_worker_is_one_clear_error(many, tmp_path):
    def poll():
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(PeerError, match=r"worker process \d+.* was killed \(SIGKILL\), .* memory ran out"):
        folder(many, 8).open(Context(tmp_path / "cache", 2, poll=poll))


@contextlib.contextmanager
def mounted(place, options):
    """A small disk of its own, or a read-only one; skips where this process may not mount one."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this process may not mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def in_a_process(root, cache, size):
    """The error that decoding into a cache ends with, or a signal's number: a process of its own, it might crash."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom ldae.data import cache\n"
        "from ldae.data.folder import list_images\n"
        "cache._check_room = lambda *_: None\n"  # as where a disk fills up meanwhile
        "root, folder, size = sys.argv[1:]\n"
        "try: cache.load_images(list_images(Path(root)), int(size), cache.Context(Path(folder), 0))\n"
        "except Exception as error: print(type(error).__name__, getattr(error, 'code', 0), error)\n"
    )
    argv = [sys.executable, "-c", script, str(root), str(cache), str(size)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    return done.stdout + (str(done.returncode) if done.returncode else "")


def test_a_disk_that_fills_up_under_the_cache_is_74_and_leaves_nothing(many, tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        assert re.match(rf"StorageError 74 .*data\.cache={disk} failed \(No space left", in_a_process(many, disk, 64))
        assert not list(disk.rglob("*.npy"))
        with pytest.raises(StorageError, match=r"data\.cache=.* failed \(7 MiB of pixels do not fit into the \d MiB"):
            folder(many, 64, "memory").open(Context(disk, 0))
        assert len(folder(many, 8, "memory").open(Context(disk, 0)).train) == 432


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_a_read_only_cache_is_73_unless_it_has_the_images(tree, many, tmp_path, store):
    with mounted(tmp_path / "disk", "size=9m") as disk:
        folder(tree, store=store).open(Context(disk, 0, 0.0))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert len(folder(tree, store=store).open(Context(disk, 0, 0.0)).train) == 54
        with pytest.raises(OutputError, match=r"data\.cache=.*disk cannot be written \(Read-only") as caught:
            folder(many, store=store).open(Context(disk, 0, 0.0))
        assert caught.value.code == 73


def test_a_root_that_goes_away_in_the_course_of_training_is_74(tree, context):
    images = folder(tree, store="stream").open(context).train
    stream = Loader(images, RandomResizedCrop(), 10, 0, CPU, workers=2).batches(0)
    next(stream)
    tree.rename(tree.with_name("elsewhere"))
    with pytest.raises(StorageError, match=r"data\.root=.*train is no longer there"):
        [next(stream) for _ in range(20)]
    assert not multiprocessing.active_children()


def test_a_worker_killed_in_training_is_named(tree, context):
    images = folder(tree, store="stream").open(context).train
    stream = Loader(images, RandomResizedCrop(), 10, 0, CPU, workers=2).batches(0)
    next(stream)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(PeerError, match=r"was killed \(SIGKILL\).*memory"):
        [next(stream) for _ in range(200)]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_channels_and_range_are_part_of_what_a_set_is(tmp_path, store):
    for i in range(20):
        path = tmp_path / "deep" / "a" / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.full((8, 8, 4), [10, 20, 30, i], np.float32), photometric="rgb", extrasamples=[0])
    opened = []
    for channels, span in (((0, 1, 2), (0, 100)), ((3, 1, 2), (0, 100)), ((3, 1, 2), (0, 50))):
        context = Context(tmp_path / "cache", 0, channels=channels, range=span)
        opened.append(folder(tmp_path / "deep", 8, store, holdout=0.0, test=0.0).open(context))
        pixels = next(in_order(opened[-1].train, 20, CPU)).images
        assert (pixels[:, 1] - 20 / span[1]).abs().max() < 0.01
        first = torch.arange(20) if channels[0] == 3 else torch.full((20,), 10)
        order = [int(opened[-1].train.name(i)[2:-4]) for i in range(20)]
        assert (pixels[:, 0, 0, 0] - first[order] / span[1]).abs().max() < 0.01
    assert len({splits.fingerprint for splits in opened}) == 3


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_bad_files_are_left_out_counted_and_named(tree, tmp_path, store):
    (tree / "train" / "a" / "00.png").write_bytes(b"")
    (tree / "train" / "b" / "bad.jpg").write_text("<html>")
    lenient = Context(tmp_path / "cache", workers=0, max_bad=0.05)
    splits = folder(tree, store=store, holdout=0.0).open(lenient)
    assert len(splits.train) == 59
    assert [name for name, _ in splits.bad] == ["a/00.png", "b/bad.jpg"]
    with pytest.raises(DataError, match=r"2 of 61 images .* more than data\.max_bad=0\.01"):
        folder(tree, store=store).open(Context(tmp_path / "cache", workers=0, max_bad=0.01))


def test_links_are_followed_once(tree):
    os.symlink(tree / "train", tree / "train" / "a" / "loop")
    os.symlink(tree / "train" / "a" / "00.png", tree / "train" / "a" / "same.png")
    assert len(list_images(tree / "train").files) == 60


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none", "is missing; a folder is needed"),
        (lambda p: Path(shutil.copy(__file__, p / "file")), "is a file; a folder is needed"),
        (lambda p: p, "holds no images"),
    ],
)
def test_a_root_that_cannot_be_is_refused(tmp_path, context, make, message):
    with pytest.raises(DataError, match=message):
        folder(make(tmp_path)).open(context)


def test_cifar_says_both_ways_to_get_it(tree, context):
    with pytest.raises(ConfigError, match=r"give data\.root"):
        CIFAR(32, Division(), 10, None).open(context)
    with pytest.raises(DataError, match="download=true"):
        CIFAR(32, Division(), 10, str(tree / "train")).open(context)
    with pytest.raises(DataError, match="has 3 classes in train/, CIFAR-10 has 10"):
        CIFAR(32, Division(), 10, str(tree)).open(context)


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_some_classes_alone_can_be_kept(tree, context, store):
    kept = ImageFolder(16, Division(holdout=0.2), str(tree), store, only=["c", "a"]).open(context)
    assert list(kept.classes) == ["a", "c"]
    assert [len(s) for s in (kept.train, kept.holdout, kept.test)] == [32, 8, 8]
    for images in (kept.train, kept.holdout, kept.test):
        for i in images.ids:
            assert images.name(int(i)).startswith("ac"[images.labels[i]] + "/")
    alone = ImageFolder(16, Division(holdout=0.2), str(tree / "train"), store, only=["b"]).open(context)
    assert [len(s) for s in (alone.train, alone.holdout, alone.test)] == [13, 3, 4]
    every = ImageFolder(16, Division(holdout=0.2), str(tree), store, only=["a", "b", "c"]).open(context)
    assert every.fingerprint == folder(tree, store=store, holdout=0.2).open(context).fingerprint != kept.fingerprint
    assert CIFAR(16, Division(), 10, str(tree), only=["a"]).only == ["a"]


@pytest.mark.parametrize(
    ("only", "message"), [(["a", "dd"], "only='dd' is no class of .*train"), ([], "only='' is no")]
)
def test_classes_that_are_not_there_cannot_be_kept(tree, context, only, message):
    with pytest.raises(ConfigError, match=message):
        ImageFolder(16, Division(), str(tree), only=only).open(context)


def test_fingerprints_of_known_sets_stay(tmp_path, context):
    """Runs identify their data by them; a new option must not change those of sets without it."""
    for split in ("train", "test"):
        for label, c in enumerate("ab"):
            for i in range(3):
                path = tmp_path / "known" / split / c / f"{i}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (40 * i, 100 * label, len(split))).save(path)
    assert Digits(8, Division()).open(context).fingerprint[:16] == "3e6f890af4e01c03"
    assert folder(tmp_path / "known", 8, "memory").open(context).fingerprint[:16] == "2a98e00afeceef95"
    assert folder(tmp_path / "known", 8, "stream").open(context).fingerprint[:16] == "10f0c43c210f1fb2"


def test_digits_are_scikit_learns(context):
    from sklearn.datasets import load_digits

    splits = Digits(8, Division()).open(context)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (1294, 144, 359)
    known = load_digits()
    batch = next(in_order(splits.test, 500, CPU))
    assert torch.equal(batch.labels, torch.from_numpy(known.target)[batch.index])
    grey = torch.from_numpy(known.images)[batch.index].float() / 16
    assert (batch.images - grey[:, None]).abs().max() < 1 / 255
    with pytest.raises(ConfigError, match="8 x 8"):
        Digits(16, Division()).open(context)


@pytest.mark.parametrize("augment", [PadCrop(), RandomResizedCrop()])
def test_any_step_can_be_the_first(tree, context, augment):
    images = folder(tree, store="memory").open(context).train
    loader = Loader(images, augment, 10, seed=3, device=CPU)
    assert loader.steps_per_epoch == 5
    stream = loader.batches(0)
    straight = [next(stream) for _ in range(12)]
    for start in (1, 5, 11):
        late = next(loader.batches(start))
        assert torch.equal(late.images, straight[start].images)
        assert torch.equal(late.index, straight[start].index)


def test_augmentations_that_are_drawn_for_several_steps_at_once_are_the_same(tree, context):
    images = folder(tree, store="memory").open(context).train
    one, several = (Loader(images, RandomResizedCrop(), 10, seed=3, device=CPU) for _ in range(2))
    several.steps_at_once = 4  # of 5 steps in an epoch
    for _, a, b in zip(range(12), one.batches(2), several.batches(2), strict=False):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


def test_every_image_comes_once_an_epoch_in_an_order_that_changes(tree, context):
    images = folder(tree, holdout=0.0).open(context).train
    stream = Loader(images, Centre(), 12, seed=0, device=CPU).batches(0)
    epochs = [torch.cat([next(stream).index for _ in range(5)]) for _ in range(2)]
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(60))
    assert not torch.equal(*epochs)


def test_shares_of_two_processes_are_the_batch_of_one(tree, context):
    images = folder(tree).open(context).train
    whole = next(Loader(images, PadCrop(), 10, 0, CPU).batches(3))
    halves = [next(Loader(images, PadCrop(), 10, 0, CPU, RankSlice(rank, 2)).batches(3)) for rank in range(2)]
    assert torch.equal(torch.cat([h.images for h in halves]), whole.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_do_not_depend_on_workers(tree, context, workers):
    images = folder(tree, store="stream").open(context).train
    reference = Loader(images, RandomResizedCrop(), 10, 0, CPU).batches(4)
    stream = Loader(images, RandomResizedCrop(), 10, 0, CPU, workers=workers).batches(4)
    for _ in range(3):
        a, b = next(reference), next(stream)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, torch.from_numpy(images.labels)[a.index])


def test_files_that_turn_bad_on_the_way_are_replaced_up_to_a_point(tree, context):
    images = folder(tree, store="stream", holdout=0.0).open(context).train
    loader = Loader(images, Flip(), 10, 0, CPU, max_bad=0.05)
    (tree / "train" / "a" / "03.png").write_bytes(b"")
    stream = loader.batches(0)
    seen = torch.cat([next(stream).index for _ in range(6)])
    assert 3 not in seen
    assert (seen == 4).sum() == 2
    for i in range(4, 9):
        (tree / "train" / "a" / f"{i:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"images have become unreadable, more than data\.max_bad"):
        [next(stream) for _ in range(12)]


def test_impossible_loaders_are_refused(tree, context):
    splits = folder(tree, store="stream").open(context)
    with pytest.raises(ConfigError, match=r"train\.batch=99 exceeds the 54 training images"):
        Loader(splits.train, Centre(), 99, 0, CPU)
    with pytest.raises(ConfigError, match=r"data\.store=memory"):
        Loader(splits.train, PadCrop(), 9, 0, CPU)


def test_sizes_that_no_picture_has_are_refused(tree):
    with pytest.raises(ConfigError, match=r"size=100000000 must be at most 8192 pixels"):
        folder(tree, 10**8)


def test_names_survive_any_spelling(tree, context):
    (tree / "train" / "a" / "00.png").rename(tree / "train" / "a" / "zwölf ☂.png")
    for store in ("memory", "stream"):
        images = folder(tree, store=store, holdout=0.0).open(context).train
        names = [images.name(int(i)) for i in images.ids]
        assert "a/zwölf ☂.png" in names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(in_order(images, 60, CPU))) == 1


def test_folds_divide_all_images_once(tmp_path, context):
    parts = [Digits(8, Division(fold=f"{k}/3")).open(context) for k in (1, 2, 3)]
    ids = np.concatenate([part.test.ids for part in parts])
    assert sorted(ids.tolist()) == list(range(1797))
    for part in parts:
        everything = np.concatenate([part.train.ids, part.holdout.ids, part.test.ids])
        assert sorted(everything.tolist()) == list(range(1797))
        counts = np.bincount(part.test.own_labels, minlength=10) / np.bincount(part.train.labels) * 3
        assert np.abs(counts - 1).max() < 0.1  # every class has its third
    assert len({part.fingerprint for part in parts}) == 3
    for wrong in ("4/3", "0/3", "1/1", "1", "1/3/5", "a/b", "-1/3", ""):
        with pytest.raises(ConfigError, match="must be K/N"):
            Division(fold=wrong)
    with pytest.raises(ConfigError, match="data without a test split, and this has one"):
        Photos(32, Division(fold="1/3")).open(context)
