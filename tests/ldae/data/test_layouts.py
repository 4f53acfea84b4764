"""Layouts of image folders: splits, classes, and the notes on them."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldae.core.errors import ConfigError, DataError, StorageError
from ldae.data.base import MIN_HOLDOUT
from ldae.data.cache import Context
from ldae.data.datasets import CIFAR, Division, ImageFolder
from ldae.data.segmented import Segmented


def write(folder, count, first=0):
    """`count` images of one colour each, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.new("RGB", (8, 8), (i % 256, i // 256, len(str(folder)) % 256)).save(folder / f"{i:03d}.bmp")


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "cache", workers=0, max_bad=0.0)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def opened(root, context, store="memory", **keys):
    return ImageFolder(8, Division(), str(root), store, **keys).open(context)


def sizes(splits):
    return [len(s) for s in (splits.train, splits.holdout, splits.test)]


def names(images):
    return sorted(images.name(int(i)) for i in images.ids)


def labels(splits):
    """Return {file name: class name} over the splits that are cut from one set."""
    return {
        images.name(int(i)): splits.classes[images.labels[i]]
        for images in (splits.train, splits.holdout, splits.test)
        for i in images.ids
    }


def notes_with(splits, text):
    return [note for note in splits.notes if text in note]


@pytest.mark.parametrize("store", ["memory", "stream"])
@pytest.mark.parametrize("folder", ["", "train"])
def test_images_without_classes_are_read_at_any_depth(root, context, store, folder):
    write(root / folder, 100)
    (root / folder / ".thumbnails").mkdir()
    write(root / folder / ".thumbnails", 5)
    splits = opened(root, context, store)
    assert (splits.labelled, sizes(splits)) == (False, [72, 8, 20])
    assert splits.train.own_labels.unique().tolist() == [-1]
    assert notes_with(splits, "the 100 images of")[0].endswith(
        "have no classes; pretraining needs none, scores do: give each class a folder of its own, CLASS/NAME"
    )
    write(root / folder / "2021" / "05", 20)
    assert sum(sizes(opened(root, context, store, labels="none"))) == 120


def test_images_next_to_class_folders_are_counted_or_refused(root, context):
    write(root / "a", 20)
    write(root / "b" / "deep" / "deeper", 20)
    write(root, 3)
    splits = opened(root, context)
    assert sum(sizes(splits)) == 40
    assert notes_with(splits, "3 images lie in no class folder and are not read: 000.bmp, 001.bmp, 002.bmp")
    write(root, 40)
    with pytest.raises(DataError, match=r"holds 40 images directly and 40 in its folders \(a, b\): give each class"):
        opened(root, context)
    assert sum(sizes(opened(root, context, labels="none"))) == 80
    with pytest.raises(ConfigError, match=r"only=\['a'\] names classes"):
        opened(root, context, labels="none", only=["a"])


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("held", ["val", "Valid", "validation", "VALIDATION", "test", "Testing"])
def test_one_other_split_is_the_test_split_by_any_usual_name(root, context, train, held):
    for c in "ab":
        write(root / train / c, 20)
        write(root / held / c, 5)
    splits = opened(root, context)
    assert (list(splits.classes), sizes(splits)) == (["a", "b"], [36, 4, 10])


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_val_is_the_hold_out_where_there_is_a_test_split_too(root, context, store):
    for c in "ab":
        write(root / "train" / c, 20)
        write(root / "validation" / c, 5)
        write(root / "test" / c, 7)
    splits = opened(root, context, store)
    assert sizes(splits) == [40, 10, 14]
    assert {name.split("/")[0] for name in names(splits.holdout)} == {"validation"}
    assert len(splits.train) + len(splits.holdout) == 50
    assert splits.holdout.own_labels.tolist() == [0] * 5 + [1] * 5
    cut = opened(root, context, store, holdout_split="none")
    assert sizes(cut) == [36, 4, 14]
    assert notes_with(cut, "folders that are not read: validation/ (10 images)")
    other = opened(root, context, store, holdout_split="test", test_split="none")
    assert sizes(other) == [32, 14, 8]


def test_damaged_images_of_train_and_val_stay_apart(root, tmp_path):
    for split in ("train", "val", "test"):
        write(root / split / "a", 10)
    (root / "train" / "a" / "009.bmp").write_bytes(b"")
    (root / "val" / "a" / "000.bmp").write_bytes(b"")
    splits = opened(root, Context(tmp_path / "cache", workers=0, max_bad=0.2))
    assert sizes(splits) == [9, 9, 10]
    assert {name.split("/")[0] for name in names(splits.train)} == {"train"}
    assert [name for name, _ in splits.bad] == ["train/a/009.bmp", "val/a/000.bmp"]


def test_names_that_mean_one_split_or_none_are_refused(root, context):
    write(root / "train" / "a", 5)
    write(root / "val" / "a", 5)
    write(root / "Validation" / "a", 5)
    with pytest.raises(
        DataError, match=r"has Validation and val, which mean the same split; rename one, or choose by "
    ):
        opened(root, context)
    assert sizes(opened(root, context, holdout_split="val", test_split="Validation")) == [5, 5, 5]
    with pytest.raises(ConfigError, match=r"holdout_split='vall' is not in .*did you mean 'val'\?; it has Validation"):
        opened(root, context, holdout_split="vall")
    (root / "train").rename(root / "images")
    with pytest.raises(DataError, match="which mean the same split"):
        opened(root, context)
    (root / "Validation").rename(root / "more")
    assert notes_with(opened(root, context), "val is read as a class, since there is no train/ beside it")
    assert sizes(opened(root, context, train_split="images", holdout_split="more")) == [4, 5, 1]
    with pytest.raises(DataError, match=r"has more and no train/; name the .* by data\.train_split=FOLDER$"):
        opened(root, context, holdout_split="more")
    with pytest.raises(
        DataError, match=r"has val and no train/; .* or give data\.train_split=none if these are classes"
    ):
        opened(move(root / "val", root.parent / "lone" / "val").parent, context)


def move(source, target):
    target.parent.mkdir(parents=True)
    return source.rename(target)


def test_folders_next_to_the_splits_are_named(root, context):
    write(root / "train" / "a", 30)
    write(root / "train" / "b", 30)
    (root / "train" / "c").mkdir()
    write(root / "extra" / "a", 7)
    write(root, 2)
    (root / "notes").mkdir()
    for name in ("x.heic", "y.heic", "list.txt", ".DS_Store", "Thumbs.db"):
        (root / "train" / "a" / name).write_text("")
    splits = opened(root, context)
    assert notes_with(splits, "folders that are not read: extra/ (7 images)")
    assert notes_with(splits, "2 images lie in no split and are not read")
    assert notes_with(splits, "1 class folders hold no images: c")
    assert notes_with(splits, "3 files are not read for their suffix: .heic (2), .txt (1)")
    assert list(splits.classes) == ["a", "b", "c"]


def test_a_class_called_train_is_not_taken_for_a_split_in_silence(root, context):
    for c in ("bus", "car", "train"):
        write(root / c, 20)
    with pytest.raises(DataError, match=r"train holds images directly, beside bus/ \(20 images\), car/"):
        opened(root, context)
    assert list(opened(root, context, train_split="none").classes) == ["bus", "car", "train"]
    assert not opened(root, context, train_split="train").labelled


def test_a_split_without_classes_is_passed_over(root, context):
    write(root / "train" / "a", 30)
    write(root / "train" / "b", 30)
    write(root / "test", 9)
    splits = opened(root, context)
    assert sizes(splits) == [43, 5, 12]
    assert notes_with(
        splits, "the 9 images of test/ have no classes and are passed over; the test split is cut from train/"
    )
    write(root / "val" / "c", 4)
    with pytest.raises(DataError, match=r"val has classes that .*train lacks: c"):
        opened(root, context)


def test_only_and_trees_of_cifar_work_in_any_case(root, context):
    for i in range(10):
        write(root / "Train" / f"c{i}", 4)
        write(root / "Test" / f"c{i}", 2)
    assert sizes(CIFAR(8, Division(), 10, str(root)).open(context)) == [36, 4, 20]
    assert sizes(opened(root, context, only=["c3"])) == [4, 0, 2]


# links


def test_a_link_gives_no_image_another_class(root, context):
    for c in "abc":
        write(root / c, 10)
    os.symlink(root / "b", root / "a" / "to_b")
    os.symlink(root, root / "a" / "up")
    os.symlink(root.parent, root / "c" / "above")
    os.symlink(root / "c" / "003.bmp", root / "a" / "aaa.bmp")
    os.symlink("001.bmp", root / "a" / "000_again.bmp")
    os.symlink(root / "b", root / "d")
    splits = opened(root, context)
    assert labels(splits) == {f"{c}/{i:03d}.bmp": c for c in "abc" for i in range(10)}
    assert notes_with(splits, "6 symbolic links lead to other places of the same folder")
    assert notes_with(splits, "1 class folders hold no images: d")


def test_links_to_elsewhere_are_followed_once_and_by_one_class(root, context):
    store = root.parent / "store"
    write(store / "x", 6)
    write(store / "y", 6, first=6)
    write(root / ".annex", 3, first=20)  # as git-annex has it
    write(root / "b", 4, first=30)
    os.symlink(store / "x", root / "a")
    os.symlink(store / "y", root / "b" / "more")
    (root / "c").mkdir()
    for i in (20, 21, 22):
        os.symlink(root / ".annex" / f"{i:03d}.bmp", root / "c" / f"{i}.bmp")
    os.symlink(store / "x", root / "c" / "x")
    classes = labels(opened(root, context))
    assert sorted(classes.values()) == ["a"] * 6 + ["b"] * 10 + ["c"] * 3
    os.symlink(store / "y" / "007.bmp", root / "c" / "7.bmp")
    with pytest.raises(DataError, match=r"c/7\.bmp and .*b/more/007\.bmp are links to one image, which has one class"):
        opened(root, context)
    (root / "c" / "7.bmp").unlink()
    os.symlink(store / "x", root / "d")
    with pytest.raises(DataError, match="a and d are links to one folder; keep one"):
        opened(root, context)


def test_links_that_lead_nowhere_count_as_unreadable(root, tmp_path):
    write(root / "a", 40)
    write(root / "b", 40)
    os.symlink(tmp_path / "gone.bmp", root / "a" / "gone.bmp")
    os.symlink(tmp_path / "gone", root / "c")
    os.symlink(tmp_path / "gone", root / "b" / "gone")
    splits = opened(root, Context(tmp_path / "cache", workers=0, max_bad=0.02))
    assert [name for name, _ in splits.bad] == ["a/gone.bmp"]
    assert notes_with(splits, "1 symbolic links have no target: c")
    assert notes_with(splits, "1 symbolic links have no target: b/gone")
    with pytest.raises(DataError, match=r"1 of 81 images .* more than data\.max_bad=0"):
        opened(root, Context(tmp_path / "cache", workers=0, max_bad=0.0))


def test_a_pipe_is_not_waited_for(root, context):
    write(root / "a", 10)
    os.mkfifo(root / "a" / "pipe.png")
    assert notes_with(opened(root, context), "1 images are no regular files and are not read: a/pipe.png")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_images_that_two_splits_share_are_named(root, context, link):
    write(root / "train" / "a", 60)
    write(root / "train" / "b", 60)
    write(root / "test" / "b", 10, first=100)
    (root / "test" / "a").mkdir()
    for i in range(5):
        link(root / "train" / "a" / f"{i:03d}.bmp", root / "test" / "a" / f"{i}.bmp")
    splits = opened(root, context)
    assert len(splits.test) == 15
    (note,) = notes_with(splits, "5 images of test/ are also images of train/ (links), so scores on test/ are too high")
    assert "a/0.bmp = a/000.bmp" in note


def test_one_image_in_two_classes_by_hard_links_is_named(root, context):
    write(root / "a", 10)
    write(root / "b", 10)
    os.link(root / "a" / "003.bmp", root / "b" / "same.bmp")
    assert notes_with(opened(root, context), "1 images lie in two classes (hard links): b/same.bmp = a/003.bmp")


# folders that cannot be read


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, DataError), (errno.EIO, StorageError)])
@pytest.mark.parametrize("place", ["", "b", "b/deep"])
def test_a_folder_that_cannot_be_listed_ends_the_run(root, context, monkeypatch, number, kind, place):
    write(root / "a", 10)
    write(root / "b" / "deep", 10)
    real = os.scandir

    def scandir(path):
        if os.fspath(path) == str(root / place):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(kind, match=rf"the folder {root / place} cannot be listed \({os.strerror(number)}\)"):
        opened(root, context)


def test_a_listing_stops_when_the_run_is_to_stop(root, tmp_path):
    write(root / "a", 3)

    def poll():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(root, Context(tmp_path / "cache", workers=0, poll=poll))


# scores that mean little


def test_scores_that_mean_little_are_named_once_each(root, context):
    write(root / "alone" / "a", 200)
    assert notes_with(opened(root / "alone", context), "the images have one class (a): there is nothing to score")
    for c, count in (("a", 300), ("b", 300), ("rare", 0)):
        write(root / "more" / "train" / c, count)
        write(root / "more" / "test" / c, 3)
    splits = opened(root / "more", context)
    assert len(splits.holdout) >= MIN_HOLDOUT
    assert not notes_with(splits, "the hold-out has")
    assert notes_with(splits, "3 images of the test split are of classes without training images: rare")
    few = ImageFolder(8, Division(holdout=0.05), str(root / "more"), "memory").open(context)
    assert notes_with(few, "the hold-out has 30 images: one of them is 3.3 points of accuracy")
    none = ImageFolder(8, Division(holdout=0.0), str(root / "more"), "memory").open(context)
    assert not notes_with(none, "the hold-out has")


def test_masks_have_a_hold_out_of_their_own_too(root, context):
    for split, count in (("Train", 6), ("val", 3), ("test", 2)):
        write(root / split / "images", count)
        (root / split / "masks").mkdir()
        for i in range(count):
            Image.new("L", (8, 8), 255 * (i % 2)).save(root / split / "masks" / f"{i:03d}.png")
    Image.new("L", (8, 8), 255).save(root / "test" / "masks" / "lone.png")
    splits = Segmented(8, Division(), str(root)).open(context)
    assert sizes(splits) == [6, 3, 2]
    figure = splits.holdout.pixels[splits.holdout.ids, 3].numpy()
    assert np.array_equal(figure.mean((1, 2)), [0, 255, 0])
    assert notes_with(splits, "1 masks have no image and are not read: masks/lone.png")
    assert not notes_with(splits, "one class")


@pytest.mark.parametrize(("top", "warned"), [(4095, True), (65535, False), (0, False)])
def test_numbers_of_12_bits_in_files_of_16_are_warned_of(root, context, top, warned):
    generator = np.random.default_rng(0)
    for i in range(60):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = generator.integers(0, top + 1, (8, 8)).astype(np.uint16)
        Image.fromarray(values).save(path)
    notes = notes_with(opened(root, context), "the brightest value of the training images is")
    assert bool(notes) == warned
    if warned:
        assert "data.range=[LOW,HIGH]" in notes[0]
        assert not notes_with(opened(root, replace(context, range=(0.0, 4095.0))), "the brightest value")
