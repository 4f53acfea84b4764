"""WebDataset's tar files: the images, order and augmentation of the same images in folders."""

from __future__ import annotations

import io
import itertools
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ldae.core.errors import DataError
from ldae.data.cache import Context
from ldae.data.datasets import Division, ImageFolder
from ldae.data.images import FileImages
from ldae.data.loader import Loader, in_order
from ldae.data.tar_shards import TarShards
from ldae.data.transforms import RandomResizedCrop

CPU = torch.device("cpu")


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def bmp(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "BMP")
    return data.getvalue()


@pytest.fixture
def both(tmp_path):
    """The same 30 images of 3 classes in class folders and in two tar files, one of them with json; 6 for test."""
    generator, tree, shards = np.random.default_rng(0), tmp_path / "tree", tmp_path / "shards"
    shards.mkdir()
    for split, count in (("train", 30), ("test", 6)):
        members = []
        for i in range(count):
            c = "abc"[3 * i // count]
            data = png(generator.integers(0, 255, (*generator.integers(20, 40, 2), 3), np.uint8))
            (tree / split / c).mkdir(parents=True, exist_ok=True)
            (tree / split / c / f"{i:02d}.png").write_bytes(data)
            label = str(3 * i // count)
            text = (f'{{"label": {label}}}', "json") if i % 2 else (f"{label}\n", "cls")
            members += [(f"d/{i:02d}.png", data), (f"d/{i:02d}.{text[1]}", text[0].encode())]
        write_tar(shards / f"{split}-0.tar", members[: count // 2 * 2])
        write_tar(shards / f"{split}-1.tar", members[count // 2 * 2 :])
    return tree, shards


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "cache", workers=0, max_bad=0.0)


def opened(root, context, kind=TarShards, store="auto"):
    return kind(16, Division(), str(root), store).open(context)


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_images_and_classes_are_those_of_the_folders(both, context, store):
    tree, shards = (
        opened(root, context, kind, store) for root, kind in zip(both, (ImageFolder, TarShards), strict=True)
    )
    assert shards.classes == ("0", "1", "2") or list(shards.classes) == ["0", "1", "2"]
    for split in ("train", "holdout", "test"):
        a, b = (getattr(s, split) for s in (tree, shards))
        assert isinstance(b, FileImages) == (store == "stream")
        assert np.array_equal(a.ids, b.ids)
        assert torch.equal(a.own_labels, b.own_labels)
        for one, other in zip(in_order(a, 7, CPU), in_order(b, 7, CPU), strict=True):
            assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_any_step_on_are_those_of_the_folders(both, context, workers):
    sets = [opened(root, context, k, "stream").train for root, k in zip(both, (ImageFolder, TarShards), strict=True)]
    loaders = [Loader(s, RandomResizedCrop(), 4, 3, CPU, workers=w) for s, w in zip(sets, (0, workers), strict=True)]
    for start in (0, 9):
        pairs = zip(*(itertools.islice(loader.batches(start), 8) for loader in loaders), strict=True)
        for a, b in pairs:
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)


def test_the_files_are_gone_through_once(both, context, monkeypatch):
    first = opened(both[1], context)
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("read again"))
    assert opened(both[1], context).fingerprint == first.fingerprint


def test_fingerprints_of_known_files_stay(tmp_path, context):
    """Runs identify their data by them."""
    for split in ("train", "val"):
        pictures = [np.full((8, 8, 3), (40 * i, len(split), 0), np.uint8) for i in range(6)]
        members = [(f"{i}.bmp", bmp(pixels)) for i, pixels in enumerate(pictures)]
        write_tar(tmp_path / f"{split}-0.tar", members + [(f"{i}.cls", str(i % 2).encode()) for i in range(6)])
    assert opened(tmp_path, context, store="memory").fingerprint[:16] == "85ec0548d2562257"
    assert opened(tmp_path, context, store="stream").fingerprint[:16] == "821b1364a560f1dd"


def test_names_of_classes_come_from_a_file(both, context):
    (both[1] / "classes.txt").write_text("cat\ndog\nfox\n")
    assert list(opened(both[1], context).classes) == ["cat", "dog", "fox"]
    (both[1] / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="names 1 classes, the images have 3"):
        opened(both[1], context)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (
            [("1.png", b"x"), ("2.png", b"x"), ("2.cls", b"0")],
            r"1 of 2 images have no class, the first: train.tar/1.png@.*give each of them one, or none at all",
        ),
        ([("1.png", b"x"), ("1.cls", b"cat")], "1.cls has no class; an integer"),
        ([("1.png", b"x"), ("1.cls", b"-2")], "1.cls has no class"),
        (
            [("1.png", b"x"), ("1.cls", b"999999999")],
            "1.png@.* has class 999999999, and there are 1 images; a class is",
        ),
        ([("1.png", b"x"), ("1.json", b'{"cls": 999999999}')], "has class 999999999, and there are 1 images"),
        ([("1.png", b"x"), ("1.jpg", b"x")], "train.tar has two images called 1; give each a key of its own"),
        ([("1.png", b"x"), ("1.cls", b"0"), ("1.json", b'{"label": 1}')], "1 has the classes 0 and 1; keep one"),
        ([("1.png", b"x"), ("1.json", b'{"label": true}')], "1.json has no class"),
        ([("1.png", b"x"), ("1.json", b"{")], "1.json has no class"),
        ([("1.cls", b"0")], "holds no images"),
    ],
)
def test_what_is_missing_is_named(tmp_path, context, members, sentence):
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match=sentence):
        opened(tmp_path, context)


def test_a_cut_or_compressed_file_is_named(both, context):
    path = both[1] / "train-1.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-1\.tar is no whole, uncompressed tar file"):
        opened(both[1], context)
    path.write_bytes(b"\x1f\x8b" + whole[2:])
    with pytest.raises(DataError, match=r"train-1\.tar is no whole"):
        opened(both[1], context)
    with pytest.raises(DataError, match=r"has no \*\.tar"):
        opened(both[0], context)


@pytest.mark.parametrize("content", [bytes(512), b"\1" * 512], ids=["zeroed", "damaged"])
def test_a_damaged_header_loses_nothing_in_silence(both, context, content):
    """Python's tarfile takes such a header for the end of the file."""
    path = both[1] / "train-0.tar"
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[6].offset
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 512] = content
    path.write_bytes(raw)
    with pytest.raises(
        DataError, match=rf"train-0\.tar is no whole.*header at byte {offset} is damaged, and more comes"
    ):
        opened(both[1], context)


def without_classes(source, target, keep=lambda name: False):
    """Copy a tar file without the members that hold a class."""
    with tarfile.open(source) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    write_tar(target, [(name, data) for name, data in members if name.endswith("png") or keep(name)])


def test_files_without_classes_are_read_and_so_are_captions(both, context, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("train-0.tar", "train-1.tar"):
        without_classes(both[1] / name, plain / name.removeprefix("train-"))
    images = [(f"{i}.png", png(np.full((16, 16, 3), i, np.uint8))) for i in range(3)]
    write_tar(plain / "2.TAR", [*images, ("0.json", b'{"caption": "a cat"}'), ("1.cls", b"-1"), ("2.depth.npy", b"x")])
    splits = opened(plain, context)
    assert (splits.labelled, len(splits.classes)) == (False, 0)
    assert sum(map(len, (splits.train, splits.holdout, splits.test))) == 33
    assert splits.train.own_labels.unique().tolist() == [-1]
    assert any("33 images of" in note and "have no classes" in note for note in splits.notes)
    assert any(note.endswith("1 members are not read: .depth.npy (1)") for note in splits.notes)
    named = TarShards(16, Division(), str(both[1]), labels="none").open(context)
    assert not named.labelled
    assert len(named.test) == 6


def test_val_is_the_hold_out_if_there_is_a_test_split(both, context):
    reference = opened(both[1], context)
    (both[1] / "test-1.tar").rename(both[1] / "Validation-0.tar")
    splits = opened(both[1], context)
    assert [len(s) for s in (splits.train, splits.holdout, splits.test)] == [30, 3, 3]
    assert {splits.holdout.name(int(i)).split("/")[0] for i in splits.holdout.ids} == {"Validation-0.tar"}
    assert len(splits.train) + len(splits.holdout) == 33
    test = [splits.test.name(int(i)) for i in splits.test.ids]
    assert test == [reference.test.name(int(i)) for i in reference.test.ids][:3]
    (both[1] / "extra-0.tar").write_bytes((both[1] / "test-0.tar").read_bytes())
    assert any(note.endswith("tar files that are not read: extra-0.tar") for note in opened(both[1], context).notes)
    named = TarShards(16, Division(), str(both[1]), holdout_split="extra", test_split="Validation").open(context)
    assert [len(s) for s in (named.train, named.holdout, named.test)] == [30, 3, 3]
    assert {named.holdout.name(int(i)).split("/")[0] for i in named.holdout.ids} == {"extra-0.tar"}
    (both[1] / "val-0.tar").write_bytes((both[1] / "test-0.tar").read_bytes())
    with pytest.raises(DataError, match="has Validation and val, which mean the same split"):
        opened(both[1], context)


def test_a_test_split_without_classes_is_passed_over(both, context):
    for name in ("test-0.tar", "test-1.tar"):
        without_classes(both[1] / name, both[1] / name)
    splits = opened(both[1], context)
    assert [len(s) for s in (splits.train, splits.holdout, splits.test)] == [22, 2, 6]
    (note,) = (note for note in splits.notes if "passed over" in note)
    assert note == (
        "the 6 images of test*.tar have no classes and are passed over; the test split is cut from train*.tar"
    )


def test_a_damaged_image_is_left_out_and_named(both, tmp_path):
    path = both[1] / "train-0.tar"
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 10] ^= 255
    path.write_bytes(raw)
    for store in ("memory", "stream"):
        splits = opened(both[1], Context(tmp_path / "c", workers=0, max_bad=0.1), store=store)
        ((name, _),) = splits.bad
        assert name.startswith("train-0.tar/d/00.png@")
        assert len(splits.train) + len(splits.holdout) == 29
