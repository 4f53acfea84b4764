"""Any encoder through the same protocols: timm's, features from a file, baselines alone, other images, few labels."""

from __future__ import annotations

import json
import re
import statistics

import numpy as np
import pytest
import torch
from helpers import SHORT, run
from PIL import Image
from sklearn.datasets import load_digits

from ldae.app.probing.encoders import pooled
from ldae.app.probing.feature_reading import in_one_pass, numbered
from ldae.core.errors import ConfigError
from ldae.core.types import Batch
from ldae.export.encoder import Encoder
from linear_probe.features import FeatureKey

DIGITS = ("data=digits", "runtime.threads=1", "runtime.progress=false")
TIMM = ("timm=test_vit", "size=32", "precision=fp32", *DIGITS)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "run"
    run("pretrain", f"out={folder}", *SHORT, "train.steps=30", "monitor.num_evals=0")
    return folder


@pytest.fixture
def probe(in_process):
    """Runs the tool to its good end; the lines of the one file of results."""

    def call(out, *argv, name="results.jsonl"):
        assert in_process("probe", f"out={out}", *argv) == (0, "")
        return [json.loads(line) for line in (out / name).read_text().splitlines()]

    return call


def test_features_in_a_file_are_scored_as_where_they_were_read(probe, tmp_path):
    argv = ("protocols=[lbfgs,knn]", "seed=3")
    pixels = probe(
        tmp_path / "a", "baseline=pixels", f"save={tmp_path / 'f.npz'}", *DIGITS, *argv, name="results-pixels.jsonl"
    )
    results = probe(tmp_path / "b", f"features={tmp_path / 'f.npz'}", *argv)
    keys = ("protocol", "accuracy", "selected_accuracy", "images", "dimensions", "data_fingerprint")
    assert [[r[k] for k in keys] for r in results] == [[r[k] for k in keys] for r in pixels]
    assert [r["encoder"] for r in pixels] == ["raw pixels"] * 2
    assert results[0]["encoder"] == "f"
    assert results[0]["checkpoint"] != pixels[0]["checkpoint"] == "none"


def test_few_labels_have_a_mean_and_a_deviation(probe, tmp_path, capsys):
    argv = ("baseline=pixels", *DIGITS, "protocols=[lbfgs,knn]")
    results = probe(tmp_path, *argv, "labels=5", "seeds=[0,1,2]", name="results-pixels-5-per-class.jsonl")
    out = capsys.readouterr().out
    for r in results:
        each = [s["accuracy"] for s in r["selected"]["by_seed"]]
        assert (r["labels"], r["seeds"], r["selected_on"]) == ("5 per class", [0, 1, 2], "cross-validation of 5 folds")
        assert len(set(each)) > 1
        assert r["accuracy"] == pytest.approx(statistics.mean(each))
        assert r["deviation"] == pytest.approx(statistics.stdev(each))
        assert f"{r['accuracy']:.1f} ± {r['deviation']:.1f} |" in out
        assert 50 < r["accuracy"] < 90  # all labels have 97
    again = probe(tmp_path, *argv, "labels=5", "seed=1", name="results-pixels-5-per-class.jsonl")
    assert [r["accuracy"] for r in again] == [r["selected"]["by_seed"][1]["accuracy"] for r in results]
    more = probe(tmp_path, *argv, "labels=20%", "split=holdout", name="results-pixels-20%-holdout.jsonl")
    assert (more[0]["labels"], more[0]["split"], more[0]["images"]) == ("20%", "holdout", 144)
    assert more[0]["accuracy"] > results[0]["accuracy"]


def test_a_vision_transformer_of_timm_is_read_at_its_layers_and_tokens(probe, tmp_path):
    import timm

    torch.manual_seed(0)
    weights = timm.create_model("test_vit", num_classes=0, img_size=32).state_dict()
    torch.save(weights, tmp_path / "w.pth")
    argv = ("protocols=[knn]", "layers=[1,2]", "pooling=[mean,cls,cls+mean]")
    one = ("timm=test_vit.r160_in1k", *TIMM[1:])
    results = probe(tmp_path / "a", *one, f"checkpoint={tmp_path / 'w.pth'}", *argv)
    names = [r["encoder"] for r in results]
    assert names == ["test_vit.r160_in1k", "the same network, untrained", "raw pixels", "whole-image PCA"]
    assert len(results[0]["selected"]["among"]) == 6
    assert len(results[0]["checkpoint"]) == 64
    for folder in (tmp_path / "a" / "features").glob("timm-*-test-*"):  # one pass has them all
        assert len(list(folder.glob("layer*"))) == 6
    chosen = results[0]["selected"]["features"]
    assert list((tmp_path / "a" / "features").glob(f"timm-*-test-*/{chosen}.npy"))
    assert (tmp_path / "a" / "heatmap-knn.png").exists()
    deep = probe(tmp_path / "c", *TIMM, "baselines=false", "layers=[4,6]", "pooling=[cls4+mean]", "protocols=[knn]")
    assert deep[0]["dimensions"] == 5 * results[0]["dimensions"] // (2 if chosen.endswith("cls+mean") else 1)
    (random, *_) = probe(tmp_path / "b", *TIMM, *argv[:2], "baselines=false")
    assert random["encoder"] == "test_vit, random weights"
    assert random["checkpoint"] == "none"


def test_a_run_is_scored_on_other_images_at_its_own_size(pretrained, probe, tmp_path):
    for i, (pixels, label) in enumerate(zip(*load_digits(n_class=3, return_X_y=True), strict=True)):
        folder = tmp_path / "images" / ("test" if i % 4 == 0 else "train") / f"digit{label}"
        folder.mkdir(parents=True, exist_ok=True)
        if i < 240:
            Image.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8)).resize((20, 20)).save(folder / f"{i}.png")
    argv = ("data=imagefolder", f"data.root={tmp_path / 'images'}", "data.workers=0", "protocols=[knn]")
    results = probe(tmp_path / "out", f"run={pretrained}", *argv)
    assert [r["encoder"] for r in results][:2] == ["l-DAE", "the same network, untrained"]
    assert (results[0]["images"], results[0]["data"]) == (60, "ImageFolder")
    assert results[2]["dimensions"] == 3 * 8 * 8
    assert results[0]["accuracy"] > 60
    alone = probe(tmp_path / "alone", f"run={pretrained}", "baseline=untrained", *argv, name="results-untrained.jsonl")
    assert [(r["encoder"], r["accuracy"]) for r in alone] == [(results[1]["encoder"], results[1]["accuracy"])]


def test_there_is_something_to_look_at(pretrained, probe, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = ("protocols=[knn]", "layers=[2,4]", "t=[0,50]", "geometry=true", "projector=true")
    (first, *_) = probe(tmp_path, f"run={pretrained}", *argv)
    picture = Image.open(tmp_path / "heatmap-knn.png")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (drawn,) = events.Images("heatmap/kNN")
    assert (drawn.width, drawn.height) == picture.size
    geometry = json.loads((tmp_path / "geometry.json").read_text())
    assert [e["encoder"] for e in geometry][:4] == ["l-DAE"] * 4
    assert {e["encoder"] for e in geometry} == {"l-DAE", "the same network, untrained", "raw pixels", "whole-image PCA"}
    for entry in geometry:
        assert 0 < entry["alignment"] < 4
        assert -4 < entry["uniformity"] < 0
        assert 1 < entry["effective_rank"] <= entry["dimensions"]
        assert 1 < entry["rankme"] <= entry["dimensions"]
        assert 1 < entry["lidar"] <= min(entry["dimensions"], 143)
        assert (entry["viewed"], entry["images"]) == (144, 1294)
    (of_first,) = [e for e in geometry if (e["encoder"], e["features"]) == ("l-DAE", first["selected"]["features"])]
    assert first["geometry"] == {
        m: of_first[m] for m in ("alignment", "uniformity", "lidar", "effective_rank", "rankme")
    }
    assert "| raw pixels" in capsys.readouterr().out.split("Without labels")[1]
    folder = tmp_path / "tensorboard" / "00000" / "probe"
    vectors = np.loadtxt(folder / "tensors.tsv")
    assert vectors.shape == (144, first["dimensions"])
    labels = (folder / "metadata.tsv").read_text().split()
    assert len(labels) == 144
    assert set(labels) == set("0123456789")
    assert Image.open(folder / "sprite.png").size == (12 * 32, 12 * 32)


def test_augmented_heads_announce_their_encodings_and_train_on_their_stream(probe, tmp_path, capsys, monkeypatch):
    """An augmentation that does nothing gives what the features at hand give, but for the order."""
    from ldae.app.probing.feature_reading import AUGMENTS
    from ldae.data.transforms import Centre
    from linear_probe.augmented_heads import AugmentedHeads
    from linear_probe.heads import HeadRecipe
    from linear_probe.registry import PROTOCOLS, SGDHeads

    plain = SGDHeads("mae", "", HeadRecipe((0.5,), batch=50, epochs=3, batch_norm=True))
    monkeypatch.setitem(PROTOCOLS, "mae", plain)
    monkeypatch.setitem(PROTOCOLS, "mae_augmented", AugmentedHeads(plain, "random_resized_crop", "cut"))
    monkeypatch.setitem(AUGMENTS, "random_resized_crop", Centre)
    results = probe(tmp_path, *TIMM, "protocols=[mae,mae_augmented]", "layers=[1,2]")
    out = capsys.readouterr().out
    name = "test_vit, random weights: linear, MAE, augmented"
    assert f"{name} encodes 7,950 augmented images" in out  # 3 x 1,250 of 1,294 and 3 x 1,400 of 1,438
    assert out.index(f"{name} encodes") < out.index(f"{name} 8" if f"{name} 8" in out else f"{name} 9")
    rows = {(r["encoder"], r["protocol"]): r for r in results}
    for encoder in ("test_vit, random weights", "raw pixels", "whole-image PCA"):
        cached, streamed = (rows[encoder, protocol]["accuracy"] for protocol in ("mae", "mae_augmented"))
        assert cached > 75
        assert abs(cached - streamed) < 6
    assert len(results[1]["selected"]["among"]) == 2


MISTAKES = [
    ((), "run=null is not set; give run=RUN"),
    (("run=a", "timm=b"), "timm='b' cannot go with run="),
    (("timm=test_vit",), "data=null is not set; name the images, e.g. data=cifar10 data.root=FOLDER"),
    (("timm=test_vi", *DIGITS), "timm='test_vi' is no model of timm"),
    ((*TIMM, "layers=[99]"), r"layer=99 is not one of the network's layers 1\.\.\d+"),
    ((*TIMM, "t=[10]"), r"t=\[10\] selects noise levels"),
    ((*TIMM, "inputs=[noised]"), r"inputs=\['noised'\] selects noise levels"),
    ((*TIMM, "checkpoint=/nowhere.pth"), "nowhere"),
    (("checkpoint=a.pth", "baseline=pixels"), "checkpoint='a.pth' belongs to a network of timm"),
    (("baseline=untrained", *DIGITS), "baseline='untrained' needs run=RUN"),
    (("baseline=pixels", "timm=test_vit"), "baseline='pixels' is scored alone"),
    (("baseline=pixels",), "data=null is not set"),
    (("baseline=pixels", *DIGITS, "labels=some"), "labels='some' is no number of labels; give all"),
    (("baseline=pixels", *DIGITS, "labels=0"), "labels=0 is no number of labels; .* 1 or more"),
    (("baseline=pixels", *DIGITS, "labels=500"), r"labels=500 exceeds the \d+ training images of class \d"),
    (("baseline=pixels", *DIGITS, "seeds=[1,1]"), r"seeds=\[1, 1\] must name each once"),
    (("baseline=pixels", *DIGITS, "save=f.npz", "split=holdout"), "save='f.npz' writes the test split too"),
    (("baseline=pixels", *DIGITS, "save=no/where/f.npz"), "lies in a folder that does not exist"),
    (("baseline=pixels", *DIGITS, "data.size=9"), "data.size=9 must be 8"),
    (("timm=test_vit", *DIGITS, "layers=[2]", "pooling=[mean4]"), "pooling='mean4' takes the layers from -1 on"),
    (("baseline=pixels", *DIGITS, "pooling=[max]"), "pooling='max' is none of: mean, cls"),
    (("features=nowhere.npz",), r"features=nowhere.npz cannot be read \(No such file or directory\)"),
    (("features=nowhere.npz", *DIGITS), "is not read with features=FILE"),
    (("features=nowhere.npz", "pooling=[cls]"), r"pooling=\['cls'\] was fixed when"),
]


@pytest.mark.parametrize(("argv", "sentence"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_what_cannot_be_probed_is_refused(in_process, tmp_path, argv, sentence):
    code, message = in_process("probe", f"out={tmp_path / 'r'}", *argv)
    assert code in (2, 65)
    assert re.search(sentence, message), message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.rglob("*.jsonl"))


def test_what_a_run_or_a_file_does_not_have_is_refused(pretrained, in_process, tmp_path):
    code, message = in_process("probe", f"run={pretrained}", "pooling=[cls]", f"out={tmp_path}")
    assert (code, "pooling='cls' needs a class token, and l-DAE" in message) == (2, True)
    np.savez(
        tmp_path / "f.npz", train_x=np.eye(40), train_y=np.arange(40) % 2, test_x=np.eye(40), test_y=np.arange(40) % 2
    )
    file = f"features={tmp_path / 'f.npz'}"
    code, message = in_process("probe", file, "protocols=[mae_augmented]", f"out={tmp_path}")
    assert (code, "protocols='mae_augmented' encodes images anew" in message) == (2, True)
    for word, sentence in (
        ("combine=mean", "combine='mean' makes one vector of several steps; give two or more, e.g. t=[10,40]"),
        ("select=rankme", "select='rankme' was fixed when the file of features was written"),
    ):
        code, message = in_process("probe", file, word, f"out={tmp_path}")
        assert (code, sentence in message) == (2, True)
    np.savez(tmp_path / "f.npz", train_x=np.eye(40))
    code, message = in_process("probe", file, f"out={tmp_path}")
    assert (code, "f.npz has no train_y; there are: train_x" in message) == (65, True)


def test_noised_features_are_those_of_the_image_in_whatever_batch_it_is_read(probe, pretrained, tmp_path):
    argv = (f"run={pretrained}", "protocols=[knn]", "baselines=false", "layers=[2]", "t=[800]", "precision=fp32")

    def read(name, batch):
        file = tmp_path / f"{name}.npz"
        probe(tmp_path / name, *argv, "inputs=[noised]", f"batch={batch}", f"save={file}")
        return np.load(file)

    small, large = read("small", 50), read("large", 128)
    for split in ("train_x", "holdout_x", "test_x"):
        np.testing.assert_allclose(small[split], large[split], atol=1e-4)


def test_features_of_several_levels_are_one_vector(probe, pretrained, tmp_path):
    argv = (f"run={pretrained}", "protocols=[knn]", "baselines=false", "layers=[2]", "precision=fp32")

    def read(name, *more, stem=""):
        file = tmp_path / f"{name}.npz"
        (row,) = probe(tmp_path / name, *argv, *more, f"save={file}", name=f"results{stem}.jsonl")
        return np.load(file)["holdout_x"], row

    (low, _), (high, _) = read("low", "t=[10]"), read("high", "t=[400]")
    assert not np.allclose(low, high, atol=1e-2)
    together, row = read("concat", "t=[10,400]", "combine=concat", stem="-concat")
    np.testing.assert_allclose(together, np.concatenate([low, high], 1), atol=1e-5)
    assert (row["dimensions"], row["pooling"], row["t"]) == (128, "mean-concat", 10)
    assert row["selected"]["features"] == "layer2-t10+400-clean-mean-concat"
    average, row = read("mean", "t=[10,400]", "combine=mean", stem="-mean")
    np.testing.assert_allclose(average, (low + high) / 2, atol=1e-5)
    assert row["dimensions"] == 64
    cells, row = read("cells", "t=[10]", "pooling=[grid2]")
    np.testing.assert_allclose(cells.reshape(-1, 4, 64).mean(1), low, atol=1e-5)


def test_cells_that_do_not_fit_the_patches_are_refused():
    with pytest.raises(ConfigError, match=r"pooling='\[grid4\]' does not fit the network: 9 patches are no square"):
        pooled({2: torch.zeros(1, 9, 5)}, [FeatureKey(2, pooling="grid4")], 0)


@pytest.mark.parametrize(("measure", "best"), [("effective_rank", max), ("rankme", max), ("alignment", min)])
def test_features_can_be_selected_without_labels(probe, pretrained, tmp_path, capsys, measure, best):
    argv = (f"run={pretrained}", "protocols=[knn,lbfgs]", "baselines=false", "layers=[1,3,4]", "t=[10,400]")
    rows = probe(
        tmp_path, *argv, f"select={measure}", "geometry=true", name=f"results-{measure.replace('_', '-')}.jsonl"
    )
    scores = {entry["features"]: entry[measure] for entry in json.loads((tmp_path / "geometry.json").read_text())}
    assert len(scores) == 6
    for row in rows:
        assert scores[row["selected"]["features"]] == best(scores.values())
        assert row["selected"]["features_by"] == measure
        assert list(row["selected"]["among"]) == [row["selected"]["features"]]
    assert f"features were selected without labels, by {measure}, every other setting was" in capsys.readouterr().out


def test_an_image_of_each_split_and_view_has_a_number_of_its_own():
    index = torch.arange(50)
    batch = Batch(torch.zeros(50, 3, 1, 1), index, index)
    indices = [numbered(batch, split, view).index for split in ("train", "holdout", "test") for view in (0, 1, 2)]
    assert len(torch.cat(indices).unique()) == 9 * 50


def test_scored_images_are_encoded_once_for_all_layers_of_a_level(probe, pretrained, tmp_path, monkeypatch):
    passes, tokens = [], Encoder.tokens

    def counted(self, images, layers, index=None, class_token=False):
        passes.append((self.t, tuple(sorted(layers)), len(images)))
        return tokens(self, images, layers, index, class_token)

    monkeypatch.setattr(Encoder, "tokens", counted)
    argv = (f"run={pretrained}", "protocols=[lbfgs,knn,knn_whitened]", "layers=[1,2,3]", "t=[10,40]", "baselines=false")
    results = probe(tmp_path, *argv)
    (scored,) = {r["images"] for r in results}
    levels = {r["t"] for r in results}
    assert all(layers == (1, 2, 3) for _, layers, _ in passes)
    images = len(load_digits().target)  # train, hold-out and test
    assert sum(size for *_, size in passes) == 2 * (images - scored) + len(levels) * scored


@pytest.mark.parametrize(
    ("split", "layers"),
    [("test", [1, 2]), ("outliers", [1, 2]), ("test~noise-3", [2])],
    ids=["test", "outliers", "corrupted"],
)
def test_features_of_a_selected_key_come_with_those_of_its_pass(split, layers):
    keys = [FeatureKey(layer, t, view) for layer in (1, 2) for t in (10, 40) for view in ("clean", "noised")]
    selected = FeatureKey(2, 40, "noised")
    assert in_one_pass(selected, keys, split) == [FeatureKey(layer, 40, "noised") for layer in layers]
