"""WebDataset's tar files: the images, order and augmentation of the same images in folders."""

from __future__ import annotations

import io
import itertools
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ldae.data.cache import Context
from ldae.data.datasets import Division, ImageFolder
from ldae.data.images import FileImages
from ldae.data.loader import Loader, in_order
from ldae.data.tar_shards import TarShards
from ldae.data.transforms import RandomResizedCrop
from ldae.errors import DataError

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


def test_names_of_classes_come_from_a_file(both, context):
    (both[1] / "classes.txt").write_text("cat\ndog\nfox\n")
    assert list(opened(both[1], context).classes) == ["cat", "dog", "fox"]
    (both[1] / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="names 1 classes, the images have 3"):
        opened(both[1], context)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("1.png", b"x")], "1 has no class; 1.cls with its number is needed"),
        ([("1.png", b"x"), ("1.cls", b"cat")], "1.cls tells no class; a whole number"),
        ([("1.png", b"x"), ("1.cls", b"-1")], "1.cls tells no class"),
        ([("1.png", b"x"), ("1.json", b'{"label": true}')], "1.json tells no class"),
        ([("1.png", b"x"), ("1.json", b"{")], "1.json tells no class"),
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
    with pytest.raises(DataError, match=r"has no train\*\.tar"):
        opened(both[0], context)


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
