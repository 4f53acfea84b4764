"""Feature files: a round trip, and errors that name the mistake."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from linear_probe import feature_file as members
from linear_probe.feature_file import SPLITS, read_features, write_features
from linear_probe.features import Features
from linear_probe.protocols import joined


def arrays(**changes):
    rng = np.random.default_rng(0)
    known = {"train_x": rng.normal(size=(40, 3)), "train_y": np.arange(40) % 2}
    return {**known, "test_x": rng.normal(size=(9, 3)), "test_y": np.arange(9) % 2, **changes}


def write(path, **changes):
    np.savez(path, **{key: value for key, value in arrays(**changes).items() if value is not None})
    return path


def test_what_is_written_comes_back(tmp_path):
    splits = {
        name: Features(torch.randn(n, 5), torch.arange(n) % 3)
        for name, n in (("train", 30), ("holdout", 6), ("test", 9))
    }
    write_features(tmp_path / "f.npz", splits, fingerprint="abc", feature_key="layer1")
    features = read_features(tmp_path / "f.npz")
    for name, split in splits.items():
        assert torch.equal(features.splits[name].x, split.x)
        assert torch.equal(features.splits[name].y, split.y)
    assert (features.fingerprint, features.classes) == ("abc", 3)
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]


def test_a_holdout_is_made_of_train_where_there_is_none(tmp_path):
    features = read_features(write(tmp_path / "f.npz"))
    assert {name: len(split) for name, split in features.splits.items()} == {"train": 36, "holdout": 4, "test": 9}
    assert torch.bincount(features.splits["holdout"].y).tolist() == [2, 2]
    again = read_features(write(tmp_path / "g.npz"))
    assert torch.equal(features.splits["holdout"].x, again.splits["holdout"].x)
    assert features.fingerprint == again.fingerprint
    other = read_features(write(tmp_path / "h.npz", test_y=np.arange(9) % 2 ^ 1))
    assert other.fingerprint != features.fingerprint


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_y": None}, "has no train_y; there are: test_x, test_y, train_x"),
        ({"test_x": np.zeros((9, 4))}, "different dimensions"),
        ({"test_y": np.zeros(8, int)}, r"test_x \(9, 3\) and test_y \(8,\)"),
        ({"train_x": np.full((40, 3), np.nan)}, "train_x that are not finite"),
        ({"test_y": np.full(9, -1)}, "class indices from 0"),
        ({"test_y": np.full(9, "cat")}, "class indices from 0"),
        ({"train_x": np.zeros((4, 3)), "train_y": np.zeros(4, int)}, "4 training images, too few for a hold-out"),
        ({"train_x": np.zeros((0, 3)), "train_y": np.zeros(0, int)}, "N, D > 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_features(write(tmp_path / "f.npz", **changes))


def test_a_file_runs_no_code_and_is_an_npz(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    np.savez(tmp_path / "f.npz", **{**arrays(), "train_x": np.array([Canary()], dtype=object)})
    with pytest.raises(ValueError, match="plain arrays"):
        read_features(tmp_path / "f.npz")
    assert not (tmp_path / "canary").exists()
    (tmp_path / "g.npz").write_text("hello")
    np.save(tmp_path / "h.npy", np.zeros(3))
    for name in ("g.npz", "h.npy"):
        with pytest.raises(ValueError, match=r"no \.npz file"):
            read_features(tmp_path / name)


@pytest.mark.parametrize("write_file", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", [np.float16, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_in_pieces_whatever_they_lie_like(tmp_path, monkeypatch, write_file, kind, order):
    known = arrays(train_x=np.random.default_rng(1).normal(size=(40, 3)).astype(kind, order=order))
    write_file(tmp_path / "f.npz", **known)
    whole = read_features(tmp_path / "f.npz")
    monkeypatch.setattr(members, "PIECE", 7 * 3 * known["train_x"].itemsize)  # seven rows
    splits = read_features(tmp_path / "f.npz").splits
    together = joined(splits["train"], splits["holdout"])
    rows = [tuple(row) for row in together.x.tolist()]
    assert sorted(rows) == sorted(map(tuple, known["train_x"].astype(np.float32).tolist()))
    label_of = {
        tuple(r): y for r, y in zip(known["train_x"].astype(np.float32).tolist(), known["train_y"], strict=True)
    }
    assert [label_of[row] for row in rows] == together.y.tolist()
    for name, part in whole.splits.items():
        assert torch.equal(part.x, splits[name].x)


def test_train_and_holdout_are_together_without_a_copy(tmp_path):
    splits = read_features(write(tmp_path / "f.npz")).splits
    together = joined(splits["train"], splits["holdout"])
    assert together.x.data_ptr() == splits["train"].x.data_ptr()
    assert torch.equal(together.x, torch.cat([splits["train"].x, splits["holdout"].x]))
    for other in ((splits["holdout"], splits["train"]), (splits["train"], splits["test"])):
        assert torch.equal(joined(*other).x, torch.cat([part.x for part in other]))


def test_an_array_that_is_shorter_than_its_head_says_is_refused(tmp_path):
    write(tmp_path / "f.npz")
    with zipfile.ZipFile(tmp_path / "f.npz") as file, zipfile.ZipFile(tmp_path / "g.npz", "w") as other:
        for name in file.namelist():
            held = file.read(name)
            other.writestr(name, held.replace(b"(40, 3)", b"(90, 3)") if name == "train_x.npy" else held)
    with pytest.raises(ValueError, match="ends within train_x"):
        read_features(tmp_path / "g.npz")


@pytest.mark.case("A3", "flipped bits in a file of features")
def test_no_flipped_bit_changes_what_is_read(tmp_path):
    splits = {name: Features(torch.randn(n, 2), torch.arange(n) % 2) for name, n in zip(SPLITS, (6, 4, 3), strict=True)}
    path = tmp_path / "f.npz"
    write_features(path, splits, fingerprint="abc")
    whole, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 23):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            features = read_features(path)
        except ValueError:
            refused += 1
            continue
        for name, split in splits.items():
            assert torch.equal(features.splits[name].x, split.x)
            assert torch.equal(features.splits[name].y, split.y)
    assert refused > 100
