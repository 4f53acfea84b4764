"""`ldae runs`: the table, conditions, order, comparison and page of runs, finished, running and damaged."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
from report_rows import RESULT

from ldae.app.runs.records import metric_title, read_runs
from ldae.app.runs.runs import with_folders
from ldae.app.runs.table import select, value_of
from ldae.core.errors import ConfigError
from ldae.core.files import write_sealed_json
from ldae.engine.run_folder import RunFolder
from linear_probe.results import write_results

CONFIG = {
    "experiment": "ldae/made_up", "seed": 0, "device": "cpu", "out": "somewhere",
    "train": {"batch": 32, "steps": None, "epochs": 10}, "optim": {"part": "ldae.engine.optim.AdamW", "blr": 0.01},
    "target": {"part": "ldae.diffusion.targets.X0"},
}  # fmt: skip


def make(path, state="done", steps=20, accuracy=None, **changes):
    """The folder of a run with a falling loss and an online kNN, 4 steps an epoch."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    write_sealed_json(path / "config.json", {**CONFIG, "out": str(path), **changes})
    rows = [{"step": 0, "monitor": "knn", "knn_holdout/model": 9.5, "knn_holdout/chance": 10.0}]
    rows += [
        {"step": s, "loss": 1 / s, "learning_rate": 0.1 / s, "gradient_norm": 1.0, "epoch": s / 4}
        for s in range(1, steps + 1)
    ]
    rows += [{"step": steps, "monitor": "knn", "knn_holdout/model": 30.0 + steps, "knn_holdout/chance": 10.0}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.set_status(state, steps if state == "done" else 8)
    if accuracy is not None:
        (path / "probe").mkdir()
        lines = [replace(RESULT, accuracy=a) for a in (accuracy, accuracy - 5)]
        lines += [replace(RESULT, accuracy=99.0, checkpoint="none"), replace(RESULT, accuracy=98.0, labels="1%")]
        write_results(path / "probe" / "results.jsonl", lines)
    return path


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    make(root / "a" / "seed0", steps=40, accuracy=50.0)
    make(root / "a" / "seed1", steps=40, accuracy=52.5, seed=1)
    make(root / "b", "running", steps=10, experiment="mae/made_up", target={"part": "ldae.diffusion.targets.Eps"})
    with held(root / "b"):
        yield root


@contextmanager
def held(path):
    """Hold a run's folder in another process, as its training would."""
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    argv = [sys.executable, "-c", code, path / ".lock"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def cells(text):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_a_line_has_progress_figures_and_the_keys_that_differ(runs, in_process, capsys):
    assert in_process("runs", str(runs)) == (0, "")
    head, _, *lines = cells(capsys.readouterr().out)
    assert head == ["run", "progress", "linear", "kNN hold-out", "loss", "experiment", "seed", "target"]
    assert lines == [
        ["a/seed0", "done, step 40, epoch 10", "50.00", "70", "0.025", "ldae/made_up", "0", "x0"],
        ["a/seed1", "done, step 40, epoch 10", "**52.50**", "70", "0.025", "ldae/made_up", "1", "x0"],
        ["b", "running, step 10 of 40 (25 %), epoch 2.5", "", "40", "0.1", "mae/made_up", "0", "eps"],
    ]


@pytest.mark.parametrize(
    ("where", "sort", "names"),
    [
        (None, "-linear", ["a/seed1", "a/seed0", "b"]),
        (None, "linear", ["a/seed0", "a/seed1", "b"]),
        (None, "-experiment", ["b", "a/seed0", "a/seed1"]),
        ("linear>51", None, ["a/seed1"]),
        ("lbfgs<=50", None, ["a/seed0"]),
        ("state=done,seed=1.0", None, ["a/seed1"]),
        ("state!=done", None, ["b"]),
        ("experiment=ldae/*", "-seed", ["a/seed1", "a/seed0"]),
        ("target = eps", None, ["b"]),
        ("kNN hold-out>=70", None, ["a/seed0", "a/seed1"]),
        ("optim.blr=0.01", "loss", ["a/seed0", "a/seed1", "b"]),
    ],
)
def test_runs_are_filtered_and_sorted(runs, where, sort, names):
    assert [record.name for record in select(read_runs([runs])[0], where, sort)] == names


@pytest.mark.parametrize(
    ("where", "sort", "sentence"),
    [
        ("linaer>5", None, "where='linaer' is no column or config key.*did you mean 'linear'"),
        ("linear", None, "is no condition; write e.g."),
        ("linear>high", None, "compares with 'high', which is no number"),
        (None, "-speed", "sort='speed' is no column"),
    ],
)
def test_what_cannot_be_read_is_refused(runs, where, sort, sentence):
    with pytest.raises(ConfigError, match=sentence):
        select(read_runs([runs])[0], where, sort)


def test_a_run_in_training_has_the_step_of_its_last_whole_row(runs):
    with open(runs / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "loss": 0.09, "epoch": 2.75}\n{"step": 12, "lo')
    record = read_runs([runs / "b"])[0][0]
    assert (record.name, record.step, record.total, record.state) == ("b", 11, 40, "running")
    assert value_of(record, "loss") == 0.09


def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    path = make(tmp_path / "run", "running", steps=10)
    with held(path) as process:
        assert read_runs([path])[0][0].state == "running"
        process.kill()
        process.wait()
        assert read_runs([path])[0][0].state == "killed"
    RunFolder(path).acquire()  # reading has left it free


def test_damaged_and_foreign_folders_are_named_and_left_out(runs, in_process, capsys):
    path = runs / "a" / "seed0" / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    (runs / "other").mkdir()
    (runs / "other" / "metrics.jsonl").write_text("{}\n")
    (runs / "foreign" / "checkpoints").mkdir(parents=True)
    (runs / "foreign" / "config.json").write_text('{"model": "bert"}')
    (runs / "b" / "status.json").write_text("{")
    (runs / "b" / "results.jsonl").write_text("no result\n")
    (runs / "empty").mkdir()
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    assert in_process("runs", str(runs)) == (0, "")
    printed = capsys.readouterr()
    assert [line[0] for line in cells(printed.out)[2:]] == ["a/seed1", "b"]
    assert "unknown, step 10 of 40" in printed.out
    for name in ("a/seed0", "other", "foreign", "b/results.jsonl"):
        assert sum(line.startswith(f"{runs / name}: left out (") for line in printed.err.splitlines()) == 1
    assert before == {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}


def test_two_runs_are_compared_by_what_differs(runs, in_process, capsys):
    assert in_process("runs", str(runs / "a" / "seed0"), str(runs / "b"), "compare=true") == (0, "")
    head, _, *lines = cells(capsys.readouterr().out)
    assert head == ["", "a/seed0", "b"]
    assert dict((name, rest) for name, *rest in lines) == {
        "progress": ["done, step 40, epoch 10", "running, step 10 of 40 (25 %), epoch 2.5"],
        "linear": ["50.00", ""], "kNN hold-out": ["70", "40"], "loss": ["0.025", "0.1"],
        "experiment": ["ldae/made_up", "mae/made_up"], "target": ["x0", "eps"],
    }  # fmt: skip


def test_the_page_has_every_run_and_its_curves(runs, tmp_path, in_process, capsys):
    assert in_process("runs", f"folder={runs}", f"out={tmp_path / 'page'}", "sort=-linear") == (0, "")
    assert f"page: {tmp_path / 'page' / 'index.html'}" in capsys.readouterr().out
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count('<input type="checkbox" checked data-series=') == 3
    assert "3 runs: 2 done, 1 running." in page
    rows = list(csv.DictReader((tmp_path / "page" / "runs.csv").read_text().splitlines()))
    assert [(r["run"], r["state"], r["step"], r["linear"]) for r in rows] == [
        ("a/seed1", "done", "40", "52.5"), ("a/seed0", "done", "40", "50.0"), ("b", "running", "10", ""),
    ]  # fmt: skip
    figures = {p.stem for p in (tmp_path / "page" / "figures").iterdir()}
    assert figures == {"loss", "learning_rate", "knn_holdout-model"}
    loss = list(csv.DictReader((tmp_path / "page" / "figures" / "loss.csv").read_text().splitlines()))
    assert [(float(r["step"]), float(r["loss"])) for r in loss if r["series"] == "b"] == [
        (s, 1 / s) for s in range(1, 11)
    ]
    knn = (tmp_path / "page" / "figures" / "knn_holdout-model.csv").read_text()
    assert "chance,,10.0" in knn


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (("nowhere",), 2, "folder='nowhere' is no folder"),
        (("runs", "where=linear>90"), 65, "none of the 3 runs fulfils where=linear>90"),
        (("runs", "keys=[optim.lr]"), 2, "keys='optim.lr' is a key of no run here; did you mean 'optim.blr'?"),
        (("runs", "folder=runs"), 2, "is named beside folder="),
        (("empty",), 65, "no run at or below empty"),
    ],
)
def test_mistakes_end_with_a_sentence(runs, in_process, monkeypatch, argv, code, sentence):
    monkeypatch.chdir(runs.parent)
    (runs.parent / "empty").mkdir()
    exit_code, message = in_process("runs", *argv)
    assert (exit_code, sentence in message) == (code, True), message


def test_names_with_commas_and_spaces_are_folders():
    assert with_folders(["a, b", "sort=seed"]) == ["sort=seed", "folder=['a, b']"]


def test_metrics_have_plain_names():
    names = ("knn_holdout/model", "vae/loss", "psnr_denoised/1_8", "loss")
    assert list(map(metric_title, names)) == ["kNN hold-out", "vae loss", "PSNR denoised at t = 1/8 T", "loss"]
