"""`ldae benchmark` on the embedded digits: cells, resuming, tables, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import SHORT, run
from PIL import Image

from ldae.app.probing.benchmark import short_names
from ldae.app.probing.suites import BenchmarkSettings, Suite, cells_of, command_of, encoder_argv
from ldae.config.choices import CONFIGS
from ldae.config.schema import construct
from ldae.core.errors import ConfigError
from linear_probe.results import read_results
from linear_probe.statistics import paired_difference

SUITE = """
data:
  digits: [data=digits]
  again: [data=digits]
  elsewhere: [data=imagefolder, "data.root={root}/elsewhere"]
tasks:
  all labels: ["protocols=[lbfgs,knn]"]
  5-shot: ["protocols=[knn]", labels=5, "seeds=[0,1]"]
"""
QUICK = ("runtime.threads=1", "runtime.progress=false", "precision=fp32")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "a run"
    run("pretrain", f"out={folder}", *SHORT, "train.steps=30", "monitor.num_evals=0")
    return folder


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "own.yaml").write_text(SUITE)
    return f"suite={tmp_path / 'own.yaml'}"


def test_encoders_are_scored_on_every_data_set_in_every_task(pretrained, suite, tmp_path, in_process, capsys):
    out, names = tmp_path / "b", [str(pretrained), f"untrained:{pretrained}", "pixels"]
    listed = ",".join(f"'{name}'" for name in names)
    argv = (f"encoders=[{listed}]", suite, f"root={tmp_path}", f"out={out}", *QUICK)
    assert in_process("benchmark", *argv) == (0, "")
    first = capsys.readouterr()
    assert "elsewhere does not exist; left out" in first.err
    assert "12 measurements, 0 of them done" in first.out
    results = read_results(out / "results.jsonl")
    assert len(results) == 2 * 3 * 3  # data sets, encoders, two protocols and one
    assert {r.labels for r in results} == {"all", "5 per class"}
    trained, _, pixels = [r for r in results if (r.protocol, r.labels) == ("lbfgs", "all")][:3]
    assert (trained.layer > 0, pixels.layer, trained.images) == (True, 0, 359)
    assert trained.low < trained.accuracy < trained.high
    assert trained.per_image().mean() * 100 == pytest.approx(trained.accuracy)
    difference = paired_difference(trained.per_image(), pixels.per_image())
    table = (out / "benchmark.md").read_text()
    assert f"{difference.mean:+.1f} [{difference.low:.1f}, {difference.high:.1f}]" in table
    assert "digits 5-shot kNN" in table
    assert "critical difference" in table
    assert table in first.out
    drawn = {path.name for path in (out / "figures").iterdir()}
    kinds = ("linear", "knn", "5-shot-knn")
    stems = {name for k in kinds for name in (f"ranks-{k}", f"differences-{k}", f"{k}-digits", f"{k}-again")}
    assert drawn == {f"{stem}.{suffix}" for stem in stems for suffix in ("svg", "pdf", "png", "csv")}
    assert "mean rank, 2 data sets, 1: best" in (out / "figures" / "ranks-knn.svg").read_text()
    assert {path.stem for path in (out / "tables").iterdir()} == set(kinds)
    assert f"{trained.accuracy:.2f}" in (out / "index.html").read_text()
    damaged = sorted((out / "cells").iterdir())[0]
    damaged.write_text(damaged.read_text().replace("accuracy", "accuracies", 1))
    assert in_process("benchmark", *argv) == (0, "")
    assert "12 measurements, 11 of them done" in capsys.readouterr().out
    assert (out / "benchmark.md").read_text() == table


def test_one_that_fails_does_not_stop_the_others(suite, tmp_path, in_process, capsys):
    argv = ("encoders=[pixels,no_such_network]", suite, f"root={tmp_path}", "only=[digits]", f"out={tmp_path / 'b'}")
    code, message = in_process("benchmark", *argv, *QUICK)
    assert (code, "timm='no_such_network' is no model of timm" in message) == (2, True)
    assert "2 of 4 measurements failed; the same command tries them again" in capsys.readouterr().err
    assert [r.encoder for r in read_results(tmp_path / "b" / "results.jsonl")] == ["raw pixels"] * 3


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        ((), 2, "encoders=[] names nothing to score; give e.g. encoders=[RUN,untrained:RUN,pixels,pca]"),
        (("encoders=[pca,pca]",), 2, "must name each once"),
        (
            ("encoders=[pca]", "only=[moon]"),
            2,
            "no data set of suite embedded; there are: digits, photos",
        ),
        (
            ("encoders=[pca]", "suite=small", "only=[cifar10]"),
            2,
            "is not set; it is the folder that holds cifar10",
        ),
        (
            ("encoders=[pca]", "suite=small", "only=[cifar10]", "root=nowhere"),
            65,
            "none of the suite's data sets is there",
        ),
        (("encoders=[pca]", "suite=nowhere.yaml"), 2, "suite='nowhere.yaml' cannot be read (No such file"),
        (("encoders=['timm:vit_tiny_patch16_224@no.pth']",), 2, "has weights in no.pth, which does not exist"),
    ],
)
def test_what_cannot_be_benchmarked_is_refused(tmp_path, in_process, argv, code, sentence):
    exit_code, message = in_process("benchmark", *argv, f"out={tmp_path / 'b'}", *QUICK)
    assert (exit_code, sentence in message) == (code, True), message
    assert not list((tmp_path / "b").glob("**/*.jsonl"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a list", "has no keys; it needs name, data and tasks"),
        ("data: {a: [data=digits]}", "tasks"),
        ("data: {}\ntasks: {a: [labels=5]}", "suite.data={} names nothing"),
        ("data: {a: data=digits}\ntasks: {a: [labels=5]}", "suite.data.a='data=digits' must be"),
        ("data: {a: [data=digits]}\ntasks: {a: [labels=5]}\nmore: 1", "more"),
        ("data: [", "cannot be read (no YAML)"),
    ],
)
def test_a_suite_that_is_none_is_refused(tmp_path, in_process, text, sentence):
    (tmp_path / "own.yaml").write_text(text)
    code, message = in_process("benchmark", "encoders=[pca]", f"suite={tmp_path / 'own.yaml'}", f"out={tmp_path / 'b'}")
    assert (code, sentence in message) == (2, True), message


def test_a_task_is_measured_on_the_data_sets_that_it_names(tmp_path):
    suite = Suite(
        "own", {"a": ["data=digits"], "b": ["data=photos"]}, {"all": ["protocols=[knn]"], "one": ["on=[b]", "labels=5"]}
    )
    settings = BenchmarkSettings(["pixels"], None, [], str(tmp_path), 0)
    config = {"precision": "fp32", "device": "cpu", "batch": None, "runtime": {}}
    cells = list(cells_of(config, settings, suite))
    assert [(cell.data, cell.task) for cell in cells] == [("a", "all"), ("b", "all"), ("b", "one")]
    assert "labels=5" in cells[-1].argv
    assert not any(word.startswith("on=") for word in cells[-1].argv)
    with pytest.raises(ConfigError, match=r"on=\[c\].*is no data set; there are: a, b"):
        Suite("own", {"a": ["data=digits"], "b": ["data=digits"]}, {"one": ["on=[c]"]})


def test_names_of_encoders_choose_what_is_probed(pretrained, tmp_path):
    argv, hash_ = encoder_argv(str(pretrained))
    assert (len(argv), len(hash_)) == (1, 64)
    assert encoder_argv(f"untrained:{pretrained}") == ([*argv, "baseline=untrained"], "none")
    assert encoder_argv("pca") == (["baseline=pca"], "none")
    assert encoder_argv("untrained:ldae-64x4-photos") == (["timm=ldae-64x4-photos", "baseline=untrained"], "none")
    (tmp_path / "w.pth").write_bytes(b"x")
    argv, hash_ = encoder_argv(f"timm:vit_tiny_patch16_224@{tmp_path / 'w.pth'}")
    assert (argv[0], len(argv), len(hash_)) == ("timm=vit_tiny_patch16_224", 2, 64)
    assert encoder_argv(f"untrained:timm:vit_tiny_patch16_224@{tmp_path / 'w.pth'}")[0] == [
        argv[0],
        "baseline=untrained",
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "suite").glob("*.yaml")))
def test_every_suite_is_made_of_probes_that_compose(config, name):
    suite = construct(Suite, config("benchmark", f"suite={name}")["suite"], {})
    assert suite.name == name
    for data in suite.data.values():
        for task in suite.tasks.values():
            own = [word for word in task if not str(word).startswith(("command=", "on="))]
            overrides = [str(word).replace("{root}", "DIR") for word in (*data, *own)]  # outliers among themselves too
            composed = config(command_of(task), *overrides)
            assert composed["data"]["part"]
            assert json.dumps(composed)


FURTHER = """
data:
  digits: [data=digits]
  photos: [data=photos, data.crops=240, data.test_crops=60]
tasks:
  all labels: ["protocols=[lbfgs,retrieval]"]
  corrupted: ["protocols=[knn]", "corruptions=[contrast]"]
  outliers: ["protocols=[ood_knn]", outliers=photos]
"""


def test_functions_and_files_of_features_are_scored_in_the_tasks_that_they_can_do(
    tmp_path, in_process, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "functions_of_a_user.py").write_text("def flat(images):\n    return images.flatten(1)\n")
    (tmp_path / "own.yaml").write_text(FURTHER)
    argv = ("baseline=pixels", "data=digits", "protocols=[lbfgs]", "save=files/digits.npz", "out=p", *QUICK)
    (tmp_path / "files").mkdir()
    assert in_process("probe", *argv) == (0, "")
    names = ["functions_of_a_user:flat", "features:files"]
    listed = ",".join(f"'{name}'" for name in names)
    assert in_process("benchmark", f"encoders=[{listed}]", "suite=own.yaml", "out=b", *QUICK) == (0, "")
    assert "photos: files/photos.npz does not exist; left out" in capsys.readouterr().err
    results = read_results(tmp_path / "b" / "results.jsonl")
    measured = {(r.encoder, r.data, r.protocol, r.measure) for r in results}
    function, file = "functions_of_a_user:flat", "digits"
    assert measured == {
        (function, "Digits", "lbfgs", "accuracy"),
        (function, "Digits", "retrieval", "mAP"),
        (function, "Digits", "knn", "accuracy under corruption"),
        (function, "Digits", "ood_knn", "AUROC"),
        (function, "Photos", "lbfgs", "accuracy"),
        (function, "Photos", "retrieval", "mAP"),
        (function, "Photos", "knn", "accuracy under corruption"),
        (file, "digits", "lbfgs", "accuracy"),
        (file, "digits", "retrieval", "mAP"),
    }
    text = (tmp_path / "b" / "benchmark.md").read_text()
    assert "digits corrupted kNN" in text
    assert "| digits retrieval mAP" in text
    assert in_process("benchmark", f"encoders=[{listed}]", "suite=own.yaml", "out=b", *QUICK) == (0, "")
    assert "6 measurements, 6 of them done" in capsys.readouterr().out


def test_an_absent_file_of_an_encoder_is_refused_before_anything_runs(tmp_path, in_process):
    for name, sentence in (("graph.onnx", "does not exist"), ("features:nowhere", "names no folder")):
        code, message = in_process("benchmark", f"encoders=[{name},pixels]", f"out={tmp_path / 'b'}", *QUICK)
        assert (code, sentence in message) == (2, True), message
        assert not (tmp_path / "b").exists()


TRAINED = """
data:
  digits: [data=digits]
  squares: [data=segmentation, "data.root={root}/squares"]
tasks:
  all labels: ["protocols=[knn]"]
  fine-tuned: [command=finetune, augment=pad_crop, mixup=0, cutmix=0, train.epochs=null, train.steps=4, train.batch=32]
  dense: [command=dense, "layers=[1]", "penalties=[1e-2]"]
"""


def test_runs_are_fine_tuned_and_segment_where_there_are_masks(pretrained, tmp_path, in_process, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 8)):
        for i in range(count):
            mask = np.zeros((8, 8), np.uint8)
            mask[2 * (i % 3) :][:4, :4] = 255
            for kind, pixels in (("images", mask // 2 + rng.integers(0, 60, (8, 8), dtype=np.uint8)), ("masks", mask)):
                path = tmp_path / "squares" / split / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (tmp_path / "own.yaml").write_text(TRAINED)
    listed = f"'{pretrained}','untrained:{pretrained}',pixels"
    argv = (f"encoders=[{listed}]", f"suite={tmp_path / 'own.yaml'}", f"root={tmp_path}", f"out={tmp_path / 'b'}")
    assert in_process("benchmark", *argv, *QUICK) == (0, "")
    results = read_results(tmp_path / "b" / "results.jsonl")
    measured = [(r.protocol, r.measure, r.data, r.checkpoint != "none") for r in results]
    assert measured == [
        ("knn", "accuracy", "Digits", True),
        ("finetune", "accuracy", "Digits", True),
        ("knn", "accuracy", "Digits", False),
        ("finetune", "accuracy", "Digits", False),
        ("knn", "accuracy", "Digits", False),
        ("dense", "IoU", "Segmented", True),
        ("dense", "IoU", "Segmented", False),
    ]
    for result in results:
        assert result.per_image().mean() * 100 == pytest.approx(result.accuracy, abs=1e-2)
        assert result.low <= result.accuracy <= result.high
    capsys.readouterr()
    assert in_process("benchmark", *argv, *QUICK) == (0, "")
    printed = capsys.readouterr().out
    assert "7 measurements, 7 of them done" in printed
    assert "squares dense segmentation IoU" in printed
    assert "digits fine-tuned fine-tuned" in printed


def test_encoders_have_the_last_part_of_their_path_where_it_is_their_own(tmp_path):
    runs = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a" / "other"]
    for folder in runs:
        folder.mkdir(parents=True)
    given = [*map(str, runs), f"untrained:{runs[2]}", "pca", "timm:vit_tiny_patch16_224"]
    expected = [*map(str, runs[:2]), "other", "untrained:other", "pca", "timm:vit_tiny_patch16_224"]
    assert list(short_names(given).values()) == expected
