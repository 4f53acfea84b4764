"""Probing and tokenizer training from the command line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers import SHORT, run, weights
from PIL import Image

from ldae.app.compose import compose, resolved
from ldae.app.probing.cost import baseline_widths
from ldae.engine.checkpoint import content_hash
from ldae.tokenizers.patch_linear import PatchAE
from linear_probe.results import read_results


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    run("pretrain", f"out={folder}", *SHORT, "train.steps=150", "monitor.num_evals=0")
    return folder


def results(folder):
    return [json.loads(line) for line in (folder / "probe" / "results.jsonl").read_text().splitlines()]


def test_a_probe_prints_a_table_with_baselines_and_writes_all_results(pretrained):
    out, _ = run("probe", f"run={pretrained}")
    first_results = results(pretrained)
    rows = {(r["encoder"], r["protocol"]): r for r in first_results}
    for name in ("l-DAE", "the same network, untrained", "raw pixels", "whole-image PCA"):
        assert f"| {name}" in out
        assert (name, "lbfgs") in rows
    best, baseline = rows["l-DAE", "lbfgs"], rows["the same network, untrained", "lbfgs"]
    assert 70 < baseline["accuracy"] < 96
    assert best["accuracy"] > 80
    assert best["split"] == "test"
    assert best["images"] == 359
    assert best["selected_on"] == "holdout"
    assert best["checkpoint"] != baseline["checkpoint"] == "none"
    assert best["t"] == 10
    assert best["layer"] in (1, 2, 3)
    assert best["dimensions"] == 64
    assert best["step"] == 150
    assert set(best["selected"]) == {"penalty", "features", "among"}
    assert 90 < rows["raw pixels", "lbfgs"]["accuracy"] < 100
    of_pixels, of_pca = baseline_widths(8, "lbfgs")  # those that an estimate of the cost counts
    assert of_pixels == [rows["raw pixels", "lbfgs"]["dimensions"]]
    assert len(of_pca) == len(rows["whole-image PCA", "lbfgs"]["selected"]["among"])
    assert baseline_widths(8, "knn_whitened") == [[], of_pca]
    assert ("raw pixels", "knn_whitened") not in rows
    run("probe", f"run={pretrained}")  # the stored features are read again
    assert [r["accuracy"] for r in results(pretrained)] == [r["accuracy"] for r in first_results]


def test_layers_levels_inputs_and_protocols_can_be_chosen(pretrained, tmp_path):
    argv = ("protocols=[knn,paper]", "layers=[4]", "t=[0,50]", "inputs=[clean,noised]", "baselines=false")
    out, _ = run("probe", f"run={pretrained}", f"out={tmp_path / 'p'}", *argv)
    assert out.count("t=0 clean | t=0 noised | t=50 clean | t=50 noised |") == 2  # a grid for each protocol
    rows = [json.loads(line) for line in (tmp_path / "p" / "results.jsonl").read_text().splitlines()]
    assert [r["protocol"] for r in rows] == ["knn", "paper"]
    assert len(rows[0]["selected"]["among"]) == 4
    assert all(r["layer"] == 4 for r in rows)


def test_other_runs_of_the_same_images_are_compared(pretrained, tmp_path):
    one = ("baselines=false", "protocols=[knn]", "split=holdout")
    run("probe", f"run={pretrained}", f"out={tmp_path / 'a'}", *one, "layers=[2]", "t=[0,50]")
    other = tmp_path / "a" / "results-holdout.jsonl"
    (known,) = [json.loads(line) for line in other.read_text().splitlines()]
    out, _ = run("probe", f"run={pretrained}", f"out={tmp_path / 'b'}", *one, "layers=[4]", f"compare_to=[{other}]")
    lines = [line for line in out.splitlines() if line.startswith("| l-DAE")]
    assert [line.split("|")[1].split()[-1] for line in lines[:2]] == ["l-DAE", f"({known['checkpoint'][:8]})"]
    grid = [[feature_key.strip() for feature_key in line.split("|")[2:-1]] for line in lines[2:]]
    assert [row[0] for row in grid] == ["4", "2"]  # the layer; then t = 0, 10, 50
    scores = known["selected"]["among"]
    assert grid[1][1:] == [f"{scores['layer2-t0-clean-mean']:.1f}", "", f"{scores['layer2-t50-clean-mean']:.1f}"]
    assert (grid[0][1], grid[0][3]) == ("", "")
    _, message = run("probe", f"run={pretrained}", f"out={tmp_path / 'c'}", f"compare_to=[{other}]", code=2)
    assert "is of other images than the test split" in message


def test_the_test_split_stays_unread_while_settings_are_chosen(pretrained, tmp_path):
    out, _ = run("probe", f"run={pretrained}", f"out={tmp_path}", "split=holdout", "baselines=false", "protocols=[knn]")
    assert "144 holdout images" in out
    (result,) = [json.loads(line) for line in (tmp_path / "results-holdout.jsonl").read_text().splitlines()]
    assert result["split"] == "holdout"
    assert result["accuracy"] == result["selected_accuracy"]
    assert max(result["selected"]["among"].values()) == pytest.approx(result["accuracy"], abs=0.006)
    assert not list((tmp_path / "features").glob("*-test-*"))
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("protocols=[knnn]", "protocols='knnn' is none of: lbfgs, knn, .*did you mean 'knn'"),
        ("layers=[9]", "layer=9 is not one of the network's layers 1..4"),
        ("t=[1000]", "t=1000 must be in 0..999"),
        ("inputs=[]", r"inputs=\[\] must have at least one entry"),
        ("weights=best", "weights='best' is none of: ema, model"),
        ("step=7", "has no checkpoint of step=7; it has: 150"),
    ],
)
def test_what_cannot_be_probed_is_refused(pretrained, in_process, word, sentence):
    import re

    code, message = in_process("probe", f"run={pretrained}", word)
    assert code in (2, 65)
    assert re.search(sentence, message), message


def test_a_damaged_checkpoint_gives_no_score(pretrained, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(pretrained, folder)
    for path in (folder / "checkpoints").rglob("ema.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[500] ^= 1
        path.write_bytes(raw)
    out, err = run("probe", f"run={folder}", code=65)
    assert "whole" in err
    assert "|" not in out


def test_a_tokenizer_of_another_run_is_seen(pretrained, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(pretrained, folder)
    raw = bytearray((folder / "tokenizer.safetensors").read_bytes())
    raw[-3] ^= 1
    (folder / "tokenizer.safetensors").write_bytes(raw)
    _, err = run("probe", f"run={folder}", code=65)
    assert "tokenizer.safetensors is damaged" in err


def test_a_tokenizer_is_trained_and_taken_by_pretraining(tmp_path):
    argv = ("tokenizer=patch_ae", "train.steps=40", "runtime.threads=1")
    out, _ = run("train_tokenizer", f"out={tmp_path / 't'}", *argv)
    assert "holdout, 144 images: psnr" in out
    assert (tmp_path / "t" / "filters.png").exists()
    path = ("experiment=deconstruct/06_patch_ae", "data=digits", "train.steps=2", "monitor.num_evals=0")
    run("pretrain", f"out={tmp_path / 'r'}", *path, f"tokenizer.weights={tmp_path / 't'}")
    taken = (tmp_path / "r" / "tokenizer.safetensors").read_bytes()
    assert taken == (tmp_path / "t" / "tokenizer.safetensors").read_bytes()
    run("train_tokenizer", f"out={tmp_path / 't'}", *argv, "split=test")  # measured again, not trained again
    assert json.loads((tmp_path / "t" / "reconstruction.json").read_text())["split"] == "test"
    assert taken == (tmp_path / "t" / "tokenizer.safetensors").read_bytes()
    from ldae.tokenizers.base import load_tokenizer

    loaded = PatchAE((3, 8, 8), 2, 4)
    load_tokenizer(tmp_path / "r" / "tokenizer.safetensors", loaded)


def test_a_missing_tokenizer_is_trained_once_and_kept(tmp_path):
    argv = ("experiment=deconstruct/05_patch_vae", "data=digits", "train.steps=2", "monitor.num_evals=0")
    quick = ("tokenizer.fit.steps=30", "runtime.threads=1", f"data.cache={tmp_path / 'cache'}")
    _, first = run("pretrain", f"out={tmp_path / 'a'}", *argv, *quick)
    assert "fitting the tokenizer PatchVAE" in first
    _, second = run("pretrain", f"out={tmp_path / 'b'}", *argv, *quick)
    assert "fitting" not in second
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.fixture
def folder_of(tmp_path):
    """folder_of(train counts, test counts): a folder of 8 x 8 pictures, so many of each class."""
    generator = np.random.default_rng(0)

    def made(train, test):
        for split, counts in (("train", train), ("test", test)):
            for name, count in counts.items():
                place = tmp_path / "pictures" / split / name
                place.mkdir(parents=True)
                for i in range(count):
                    pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{i}.png")
        return f"data.root={tmp_path / 'pictures'}"

    return made


@pytest.mark.parametrize("tool", ["probe", "finetune"])
def test_one_class_has_nothing_to_score(pretrained, tmp_path, folder_of, in_process, tool, capsys):
    root = folder_of({"all": 40}, {"all": 12})
    data = ("data=imagefolder", root) if tool == "probe" else (root,)
    if tool == "finetune":
        shutil.copytree(pretrained, tmp_path / "run")
        pretrained = of_other_images(tmp_path / "run", "imagefolder")
    code, message = in_process(tool, f"run={pretrained}", *data, f"out={tmp_path / 'out'}")
    assert code == 65
    assert message.startswith(f"{root} has a single class, all: there is nothing to score; give images of two classes")
    assert "%" not in capsys.readouterr().out


def of_other_images(run, data):
    """The run as if it had been trained on images of a folder."""
    for path in (run / "checkpoints").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        own = resolved(compose("pretrain", [f"data={data}", "data.root=x", "data.size=8", "data.patch=2"]))["data"]
        manifest["config"]["data"] = own
        manifest["own"] = content_hash(manifest)
        path.write_text(json.dumps(manifest))
    return run


def test_doubts_about_a_score_are_in_table_and_result(pretrained, tmp_path, folder_of, in_process, capsys):
    root = folder_of({"a": 60, "b": 60, "c": 3}, {"a": 12, "b": 12, "d": 1} | {"c": 0})
    argv = ("data=imagefolder", root, f"out={tmp_path / 'out'}", "baselines=false", "protocols=[knn]", "precision=fp32")
    code, message = in_process("probe", f"run={pretrained}", *argv)
    if code:  # classes of test alone are refused where the folder is read
        assert "classes that" in message
        shutil.rmtree(tmp_path / "pictures" / "test" / "d")
        assert in_process("probe", f"run={pretrained}", *argv) == (0, "")
    said = capsys.readouterr()
    (line,) = read_results(tmp_path / "out" / "results.jsonl")
    assert len(line.warnings) >= 3
    for sentence in ("the hold-out has 12 images", "test has 24 images", "fewer than 5 training images of class c"):
        assert f"warning: {sentence}" in said.err
        assert f"Warning: {sentence}" in said.out
        assert any(sentence in warning for warning in line.warnings)
    assert line.protocol == "knn"
    assert "|   kNN |" in said.out
    assert "| chance (the most frequent class) | 50.00 |" in said.out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train_y": np.zeros(60, int), "test_y": np.zeros(30, int)}, "has a single class, 0"),
        ({"train_x": np.zeros((60, 0), np.float32), "test_x": np.zeros((30, 0), np.float32)}, "with N, D > 0"),
        ({"train_y": np.arange(60) * 10**6}, "class indices are below 100,000"),
        ({"train_y": np.arange(60, dtype=np.uint64) + 2**63}, "which is no class index"),
    ],
)
def test_features_that_cannot_be_scored_are_refused(tmp_path, in_process, change, sentence):
    features = {"train_x": np.random.rand(60, 4).astype(np.float32), "train_y": np.arange(60) % 3}
    features |= {"test_x": np.random.rand(30, 4).astype(np.float32), "test_y": np.arange(30) % 3}
    np.savez(tmp_path / "f.npz", **{**features, **change})
    code, message = in_process("probe", f"features={tmp_path / 'f.npz'}", f"out={tmp_path / 'out'}")
    assert code == 65
    assert sentence in message


@pytest.mark.parametrize(
    ("word", "code", "sentence"),
    [
        ("runtime.threads=-1", 2, "runtime.threads=-1 must be at least 0"),
        ("save={folder}", 2, "is a folder; give a file"),
        ("out={folder}/file/x", 73, "cannot be made"),
    ],
)
def test_folders_and_threads_that_cannot_be(pretrained, tmp_path, in_process, word, code, sentence):
    (tmp_path / "file").write_text("")
    argv = (word.format(folder=tmp_path), "baselines=false", "protocols=[knn]", "layers=[1]")
    exit_code, message = in_process("probe", f"run={pretrained}", *argv)
    assert exit_code == code
    assert sentence in message
