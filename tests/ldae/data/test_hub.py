"""Data sets of the Hugging Face hub, streamed: the pictures of the same files, exactly again from any step."""

from __future__ import annotations

import io
import itertools
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from ldae.core.errors import ConfigError, DataError
from ldae.data.cache import Context
from ldae.data.datasets import Division, ImageFolder
from ldae.data.hub import HubImages
from ldae.data.images import MemoryImages
from ldae.data.loader import Loader, RankSlice, in_order
from ldae.data.reading import prefetch
from ldae.data.streamed import StreamedImages
from ldae.data.transforms import PadCrop, RandomResizedCrop

datasets = pytest.importorskip("datasets", reason="pip install 'ldae[hub]'")
CPU = torch.device("cpu")


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write(path, pictures, labels, kind=None):
    kind = kind or datasets.ClassLabel(names=["a", "b", "c"])
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    rows = {"image": [{"bytes": data, "path": None} for data in pictures], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def both(tmp_path):
    """The same 60 images of 3 classes in class folders and in three parquet files; 6 for test."""
    generator, tree, hub = np.random.default_rng(0), tmp_path / "tree", tmp_path / "hub"
    hub.mkdir()
    for split, count in (("train", 60), ("test", 6)):
        pictures = [
            png(generator.integers(0, 255, (*generator.integers(20, 40, 2), 3), np.uint8)) for _ in range(count)
        ]
        labels = [3 * i // count for i in range(count)]
        for i, data in enumerate(pictures):
            (tree / split / "abc"[labels[i]]).mkdir(parents=True, exist_ok=True)
            (tree / split / "abc"[labels[i]] / f"{i:02d}.png").write_bytes(data)
        parts = (0, 25, 40, 60) if split == "train" else (0, 6)
        for k, (a, b) in enumerate(itertools.pairwise(parts)):
            write(hub / f"{split}-{k:05d}-of-{len(parts) - 1:05d}.parquet", pictures[a:b], labels[a:b])
    return tree, hub


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "cache", workers=0, max_bad=0.0)


def open_stream(root, context, window=16, **given):
    return HubImages(16, Division(), str(root), store="stream", window=window, **given).open(context)


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_images_and_classes_are_those_of_the_folders(both, context, store):
    tree = ImageFolder(16, Division(), str(both[0])).open(context)
    hub = HubImages(16, Division(), str(both[1]), store=store, window=16).open(context)
    assert list(hub.classes) == ["a", "b", "c"]
    for split in ("train", "holdout", "test"):
        a, b = (getattr(s, split) for s in (tree, hub))
        assert isinstance(b, StreamedImages if store == "stream" else MemoryImages)
        assert np.array_equal(a.ids, b.ids)
        assert torch.equal(a.own_labels, b.own_labels)
        for one, other in zip(in_order(a, 7, CPU), in_order(b, 7, CPU), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.index, other.index)


def read_batches(loader, start, count):
    return [(b.index, b.images, b.labels) for b in itertools.islice(loader.batches(start), count)]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("threads", [0, 3])
def test_every_epoch_has_every_image_once_and_any_step_can_be_gone_on_from(both, context, threads):
    train = open_stream(both[1], context).train
    loader = Loader(train, RandomResizedCrop(), 9, 3, CPU, workers=threads)
    assert loader.steps_per_epoch == 6
    straight = read_batches(loader, 0, 18)
    for epoch in range(3):
        seen = torch.cat([index for index, _, _ in straight[6 * epoch : 6 * epoch + 6]])
        assert sorted(seen.tolist()) == sorted(train.ids.tolist())
    assert not torch.equal(straight[0][0], straight[6][0])
    for start in (1, 5, 6, 13):
        assert same(read_batches(loader, start, 18 - start), straight[start:])


def test_crops_are_those_of_the_files(both, context):
    tree = ImageFolder(16, Division(), str(both[0]), "stream").open(context).train
    whole = {
        int(i): x
        for b in read_batches(Loader(tree, RandomResizedCrop(), 9, 3, CPU), 0, 6)
        for i, x in zip(*b[:2], strict=True)
    }
    for index, images, _ in read_batches(
        Loader(open_stream(both[1], context).train, RandomResizedCrop(), 9, 3, CPU), 0, 6
    ):
        assert all(torch.equal(whole[int(i)], x) for i, x in zip(index, images, strict=True))


def test_processes_share_the_batches_of_one(both, context):
    train = open_stream(both[1], context, window=10).train
    one = read_batches(Loader(train, RandomResizedCrop(), 12, 3, CPU), 2, 8)
    two = [read_batches(Loader(train, RandomResizedCrop(), 12, 3, CPU, RankSlice(rank, 2)), 2, 8) for rank in (0, 1)]
    joined = [[torch.cat(pair) for pair in zip(a, b, strict=True)] for a, b in zip(*two, strict=True)]
    assert same(one, joined)


def test_an_order_reads_shards_whole_and_mixes_within_windows(both, context):
    train = open_stream(both[1], context, window=1).train
    shards = [train.positions[train.order(0, epoch).numpy(), 0] for epoch in range(8)]
    assert all(len(list(itertools.groupby(s.tolist()))) == 3 for s in shards)
    assert len({tuple(dict.fromkeys(s.tolist())) for s in shards}) > 2
    train.window = 1000
    mixed = train.order(0, 0).numpy()
    assert len(list(itertools.groupby(train.positions[mixed, 0].tolist()))) > 10


def test_a_damaged_image_is_left_out_and_named(tmp_path, both):
    hub = tmp_path / "other"
    hub.mkdir()
    good = png(np.zeros((20, 20, 3), np.uint8))
    write(hub / "train.parquet", [good, good[:40], good, good], [0, 1, 2, 1])
    splits = HubImages(16, Division(holdout=0, test=0), str(hub), store="stream").open(Context(tmp_path / "c", 0, 0.5))
    assert [name for name, _ in splits.bad] == ["0/1"]
    assert splits.train.own_labels.tolist() == [0, 2, 1]
    with pytest.raises(DataError, match="1 of 4 images"):
        open_stream(hub, Context(tmp_path / "c", 0, 0.0))


def test_what_is_missing_is_named(both, context, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="root"):
        open_stream("", context)
    with pytest.raises(DataError, match="nowhere cannot be read by datasets"):
        open_stream(tmp_path / "nowhere", context)
    with pytest.raises(ConfigError, match=r"image='imag' is no column of .*did you mean 'image'"):
        open_stream(both[1], context, image="imag")
    with pytest.raises(ConfigError, match="label='class' is no column"):
        open_stream(both[1], context, label="class")
    with pytest.raises(ConfigError, match="image='label' is a column of"):
        open_stream(both[1], context, image="label")
    with pytest.raises(ConfigError, match="works on small images held in memory"):
        Loader(open_stream(both[1], context).train, PadCrop(), 4, 0, CPU)
    (tmp_path / "fractions").mkdir()
    write(
        tmp_path / "fractions" / "train.parquet",
        [png(np.zeros((20, 20, 3), np.uint8))],
        [0.5],
        datasets.Value("float32"),
    )
    with pytest.raises(DataError, match=r"split train: label of row 0 of shard 0 is 0.5, no class"):
        open_stream(tmp_path / "fractions", context)


def test_a_row_without_an_image_is_left_out_and_named(tmp_path):
    root, image = tmp_path / "hub", {"bytes": png(np.zeros((20, 20, 3), np.uint8)), "path": None}
    root.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [image, None, image, image], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "train.parquet"))
    for store in ("memory", "stream"):
        splits = HubImages(16, Division(0, 0), str(root), store=store).open(Context(tmp_path / "c", 0, 0.5))
        assert [name for name, _ in splits.bad] == ["0/1"]


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_a_damaged_file_is_named(both, tmp_path, store):
    path = both[1] / "train-00001-of-00003.parquet"
    raw = bytearray(path.read_bytes())
    raw[4:-3000] = bytes(len(raw) - 3004)
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"shard 1 of data\.root=.*, split train cannot be read by datasets"):
        HubImages(16, Division(), str(both[1]), store=store).open(Context(tmp_path / "c", 0, 0.5))


def lone(path, splits, kind=None):
    """A folder of one parquet file for each {split: labels}; row i of a split is of one grey."""
    path.mkdir(exist_ok=True)
    for split, labels in splits.items():
        pictures = [png(np.full((20, 20, 3), 10 * i % 256, np.uint8)) for i in range(len(labels))]
        write(path / f"{split}.parquet", pictures, labels, kind or datasets.Value("int64"))
    return path


@pytest.mark.parametrize("store", ["memory", "stream"])
@pytest.mark.parametrize("missing", [-1, None])
def test_a_split_without_labels_is_passed_over_and_named(tmp_path, context, store, missing):
    root = lone(tmp_path / "hub", {"train": [0, 1] * 20, "test": [missing] * 5, "validation": [missing] * 3})
    splits = HubImages(16, Division(), str(root), store=store).open(context)
    assert [len(s) for s in (splits.train, splits.holdout, splits.test)] == [29, 3, 8]
    notes = [note for note in splits.notes if "passed over" in note]
    assert notes == [
        "the 3 images of split validation have no classes and are passed over; the hold-out is cut from split train",
        "the 5 images of split test have no classes and are passed over; the test split is cut from split train",
    ]


@pytest.mark.parametrize("store", ["memory", "stream"])
@pytest.mark.parametrize("label", [None, "label"])
def test_images_without_labels_are_read(tmp_path, context, store, label):
    labels = [0, 1] * 5 if label is None else [None] * 10
    root = lone(tmp_path / "hub", {"train": labels, "test": labels[:4]})
    splits = HubImages(16, Division(), str(root), store=store, label=label).open(context)
    assert not splits.labelled
    assert [len(s) for s in (splits.train, splits.holdout, splits.test)] == [9, 1, 4]
    assert splits.train.own_labels.unique().tolist() == [-1]
    assert any("have no classes; pretraining needs none, scores do: name the column" in note for note in splits.notes)


def test_labels_in_part_or_beyond_reason_are_refused_by_split(tmp_path, context):
    part = lone(tmp_path / "part", {"train": [0, 1, 0], "test": [0, None, 1]})
    with pytest.raises(DataError, match="split test: 1 of 3 images have no class, the first: 0/1"):
        open_stream(part, context)
    large = lone(tmp_path / "large", {"train": [0, 999999999]})
    with pytest.raises(DataError, match="split train: 0/1 has class 999999999, and there are 2 images"):
        open_stream(large, context)
    more = lone(tmp_path / "more", {"train": [0, 1], "test": [2]})
    with pytest.raises(DataError, match="split test has class 2, split train has 2 classes"):
        open_stream(more, context)


@pytest.mark.parametrize("store", ["memory", "stream"])
def test_keys_choose_the_splits(tmp_path, context, store):
    root = lone(tmp_path / "hub", {"train": [0, 1] * 5, "validation": [0, 1, 0], "test": [1, 1]})

    def opened(**keys):
        return HubImages(16, Division(), str(root), store=store, window=4, **keys).open(context)

    usual = opened()
    assert [len(s) for s in (usual.train, usual.holdout, usual.test)] == [10, 3, 2]
    assert usual.holdout.own_labels.tolist() == [0, 1, 0]
    (batch,) = in_order(usual.holdout, 5, CPU)
    assert (batch.images[:, 0, 0, 0] * 255).round().tolist() == [0, 10, 20]
    assert sorted([*usual.train.ids, *usual.holdout.ids]) == list(range(13))
    other = opened(train_split="validation", holdout_split="none", test_split="train")
    assert [len(s) for s in (other.train, other.holdout, other.test)] == [3, 0, 10]
    assert "splits that are not read: test" in " ".join(other.notes)
    with pytest.raises(ConfigError, match=r"holdout_split='valid' is not in data.root=.*it has .*validation"):
        opened(holdout_split="valid")
    with pytest.raises(ConfigError, match="stands for two splits"):
        opened(holdout_split="test", test_split="test")
    bare = lone(tmp_path / "bare", {"test": [0, 1]})
    with pytest.raises(DataError, match=r"has no split train; give data\.train_split=NAME, one of test"):
        open_stream(bare, context)


def test_what_was_read_is_kept(both, context, monkeypatch):
    first = open_stream(both[1], context)
    monkeypatch.setattr("ldae.data.hub.Shards._rows", lambda *a: pytest.fail("read again"))
    assert open_stream(both[1], context).fingerprint == first.fingerprint


def test_ahead_keeps_the_order_makes_no_more_than_it_may_and_ends_its_thread():
    made, before = [], set(threading.enumerate())
    items = prefetch((made.append(i) or i for i in range(100)), 3)
    assert [next(items) for _ in range(5)] == list(range(5))
    items.close()
    assert len(made) <= 5 + 3 + 1
    assert set(threading.enumerate()) <= before  # others may still end theirs
    assert list(prefetch(iter(range(4)), 9)) == list(range(4))
