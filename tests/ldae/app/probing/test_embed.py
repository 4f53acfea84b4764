"""`ldae embed`: features in files, held against the encoder, the probe that reads them, and the folder of images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import SHORT
from PIL import Image
from pyarrow import parquet

from ldae.app.training import pretrain
from ldae.config.build import Parts
from ldae.data.cache import Context
from ldae.export.encoder import load_encoder
from linear_probe.feature_file import read_features
from linear_probe.results import read_results

QUICK = ("runtime.threads=1", "runtime.progress=false", "precision=fp32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "run"
    pretrain.main(["experiment=ldae/digits", f"out={folder}", *SHORT, "monitor.num_evals=0"])
    return folder


def splits_of(run):
    config = json.loads((run / "config.json").read_text())
    return Parts(config).data.open(Context(run / "cache", workers=0))


def features_of(encoder, images):
    return encoder(images.pixels[torch.from_numpy(images.ids)].float() / 255).numpy()


def test_an_archive_holds_the_features_of_load_encoder_and_the_probe_reads_it(trained, tmp_path, in_process, capsys):
    out, splits = tmp_path / "f.npz", splits_of(trained)
    assert in_process("embed", f"run={trained}", f"out={out}", "layer=2", "t=40", *QUICK) == (0, "")
    arrays = np.load(out)
    encoder = load_encoder(trained, layer=2, t=40)
    for name in ("train", "holdout", "test"):
        images = getattr(splits, name)
        assert np.abs(arrays[f"{name}_x"] - features_of(encoder, images)).max() < 1e-5
        assert (arrays[f"{name}_y"] == images.own_labels.numpy()).all()
        assert arrays[f"{name}_path"].tolist() == [images.name(i) for i in images.ids]
    file = read_features(out)
    assert (file.fingerprint, file.classes) == (splits.fingerprint, 10)
    assert in_process("probe", f"features={out}", f"out={tmp_path / 'p'}", "protocols=[lbfgs]", *QUICK) == (0, "")
    assert in_process("probe", f"run={trained}", f"out={tmp_path / 'q'}", "protocols=[lbfgs]", "layers=[2]", "t=[40]",
                      "baselines=false", *QUICK) == (0, "")  # fmt: skip
    scores = [read_results(tmp_path / folder / "results.jsonl")[0].accuracy for folder in ("p", "q")]
    assert scores[0] == pytest.approx(scores[1], abs=0.6)  # two of 359 images
    assert "probe it:" in capsys.readouterr().out


def test_a_table_holds_the_same_rows_as_an_archive(trained, tmp_path, in_process):
    files, argv = [tmp_path / "f.npz", tmp_path / "f.parquet"], ("t=[10,60]", "combine=concat", "batch=100")
    for file in files:
        assert in_process("embed", f"run={trained}", f"out={file}", *argv, *QUICK) == (0, "")
    arrays, table = np.load(files[0]), parquet.read_table(files[1])
    assert table.column_names == ["path", "split", "label", "features"]
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[128]"
    x = np.array(table["features"].to_pylist(), np.float32)
    for key, values in (("x", x), ("y", table["label"].to_pylist()), ("path", table["path"].to_pylist())):
        expected = np.concatenate([arrays[f"{split}_{key}"] for split in ("train", "holdout", "test")])
        assert (expected == np.array(values)).all()
    counts = [table["split"].to_pylist().count(split) for split in ("train", "holdout", "test")]
    assert counts == [1294, 144, 359]
    assert table.schema.metadata[b"feature_key"].decode() == arrays["feature_key"].item()


def test_layer_and_step_are_those_of_the_probe(trained, tmp_path, in_process, capsys):
    argv = ("layers=[1,3]", "t=[0,90]", "protocols=[lbfgs]", "baselines=false", *QUICK)
    assert in_process("probe", f"run={trained}", *argv) == (0, "")
    (result,) = read_results(trained / "probe" / "results.jsonl")
    capsys.readouterr()
    assert in_process("embed", f"run={trained}", f"out={tmp_path / 'f.npz'}", *QUICK) == (0, "")
    line = f"layer={result.layer} t={result.t}, as the run's probe selected them"
    assert line in capsys.readouterr().out
    expected = features_of(load_encoder(trained, layer=result.layer, t=result.t), splits_of(trained).test)
    assert np.abs(np.load(tmp_path / "f.npz")["test_x"] - expected).max() < 1e-5


def test_a_folder_without_classes_is_embedded_with_paths_and_no_labels(trained, tmp_path, in_process):
    for i in range(12):
        path = tmp_path / "images" / "deep" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 20 * i, np.uint8)).save(path)
    data = ("data=imagefolder", f"data.root={tmp_path / 'images'}", "data.labels=none")
    for file in ("f.npz", "f.parquet"):
        assert in_process("embed", f"run={trained}", *data, f"out={tmp_path / file}", *QUICK) == (0, "")
    arrays, table = np.load(tmp_path / "f.npz"), parquet.read_table(tmp_path / "f.parquet")
    assert not [name for name in arrays if name.endswith("_y")]
    assert table["label"].null_count == 12
    paths = table["path"].to_pylist()
    assert sorted(paths) == sorted(f"deep/{i}.png" for i in range(12))
    assert paths == np.concatenate([arrays[f"{s}_path"] for s in ("train", "holdout", "test")]).tolist()
    code, message = in_process("probe", f"features={tmp_path / 'f.npz'}", f"out={tmp_path / 'p'}", *QUICK)
    assert (code, "has no train_y" in message) == (65, True)


def test_an_export_and_an_encoder_of_the_package_are_named_as_in_the_benchmark(trained, tmp_path, in_process):
    exported, out = tmp_path / "exported", tmp_path / "f.npz"
    assert in_process("export", f"run={trained}", f"out={exported}", "layer=2", "t=10", "runtime.threads=1") == (0, "")
    assert in_process("embed", f"encoder={exported}", "data=digits", f"out={out}", *QUICK) == (0, "")
    expected = features_of(load_encoder(trained, layer=2, t=10), splits_of(trained).test)
    assert np.abs(np.load(out)["test_x"] - expected).max() < 1e-4
    argv = ("encoder=ldae-64x4-photos", "data=digits", f"out={out}")
    assert in_process("embed", *argv, *QUICK) == (0, "")
    assert np.load(out)["test_x"].shape == (359, 64)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["out=f.csv"], 2, "must end in .npz or .parquet"),
        (["out=none/f.npz"], 2, "lies in a folder that does not exist"),
        (["t=[1,2]"], 2, "join them by combine"),
        (["layer=99"], 2, "layer=99 is not one of the network's layers 1..4"),
        (["pooling=cls"], 2, "needs a class token"),
        (["encoder=pixels"], 2, "give one of run=RUN and encoder=ENCODER"),
        (["run=null", "encoder=nothing", "data=digits"], 2, "encoder='nothing' is no model of timm"),
        (["run=null", "encoder=pixels", "data=digits", "t=4"], 2, "t=4 is of a network"),
        (["run=null", "encoder=ldae-64x4-photos"], 2, "name the images"),
        (["run=nowhere"], 65, "run=nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_older_file_stays(
    trained, tmp_path, in_process, monkeypatch, argv, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.npz").write_text("older")
    arguments = {word.partition("=")[0]: word for word in (f"run={trained}", "out=f.npz", *argv)}
    outcome = in_process("embed", *arguments.values(), *QUICK)
    assert (outcome[0], message in outcome[1]) == (code, True), outcome
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]
    assert (tmp_path / "f.npz").read_text() == "older"
