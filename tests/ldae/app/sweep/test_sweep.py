"""`ldae sweep`: candidates in Hydra's syntax, a study that continues after a kill, trials, tables and refusals."""

from __future__ import annotations

import csv
import json
import signal
import time

import numpy as np
import pytest
from helpers import run, start, status
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ldae.app.sweep.space import read_space
from ldae.app.sweep.study import SweepStudy, state_name
from ldae.app.sweep.summary import write_summary
from ldae.app.sweep.sweep import online_accuracies, parse_arguments
from ldae.core.errors import CheckpointError, UsageError

TINY = ("experiment=ldae/digits", "train.steps=6", "train.epochs=null", "train.batch=32", "train.checkpoint_every=2",
        "monitor.num_evals=3", "monitor.knn_images=100", "monitor.panel_images=8", "runtime.threads=1")  # fmt: skip


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("optim.blr=tag(log,interval(1e-3,3e-2))", FloatDistribution(1e-3, 3e-2, log=True)),
        ("optim.blr=interval(1,2)", FloatDistribution(1.0, 2.0)),
        ("data.d=int(interval(4,16))", IntDistribution(4, 16)),
        ("data.d=tag(log,int(interval(4,16)))", IntDistribution(4, 16, log=True)),
        ("data.d=range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("a.b=range(0.5,2,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("target=choice(x0,eps,v)", CategoricalDistribution(["x0", "eps", "v"])),
        ("a.b=0.25,0.5", CategoricalDistribution(["0.25", "0.5"])),
    ],
)
def test_candidates_are_read_as_in_hydras_sweeps(word, distribution):
    (dimension,), others = read_space([word, "seed=1", "out=a,b"])
    assert dimension.distribution == distribution
    assert (dimension.key, dimension.text) == tuple(word.split("=", 1))
    assert others == ["seed=1", "out=a,b"]  # a path may have a comma


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.blr=interval(1)", "cannot be read; candidates are written"),
        ("optim.blr=tag(log,interval(0,1))", "low"),
        ("optim.blr=interval(2,1)", "low"),
        ("optim.blr=tag(exp,interval(1,2))", "the only tag is log"),
        ("a.b=choice(1,1)", "must name different values"),
        ("a.b=tag(log,choice(1,2))", "candidates are written"),
        ("a.b=glob(*)", "candidates are written"),
    ],
)
def test_candidates_that_cannot_be_read_are_named(word, message):
    with pytest.raises(UsageError, match=word.split("=")[0]) as raised:
        read_space([word])
    assert message in str(raised.value)


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(UsageError, match=r"optim\.blr is given twice"):
        read_space(["optim.blr=1e-3", "optim.blr=interval(1,2)"])


SPACE = ["optim.blr=tag(log,interval(1e-3,1))", "target=choice(x0,eps)"]


def opened(folder, startup=3):
    return SweepStudy(folder, read_space(SPACE)[0], 0, startup, warmup=2)


def quality(values):
    return 50 - abs(np.log10(values["optim.blr"]) + 1) + 5 * (values["target"] == "eps")


def test_a_study_of_killed_processes_makes_the_trials_of_one_process(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = opened(tmp_path / "a")
    while (suggestion := whole.next(9)) is not None:
        whole.finish(suggestion[0], quality(suggestion[1]))
    for _ in range(40):  # every other process ends before its trial is finished
        killed = opened(tmp_path / "b")
        if (suggestion := killed.next(9)) is None:
            break
        repeated = opened(tmp_path / "b").next(9)
        assert (repeated[0].number, repeated[1]) == (suggestion[0].number, suggestion[1])
        if suggestion[0].number % 2:
            killed = opened(tmp_path / "b")
            suggestion = killed.next(9)
        killed.finish(suggestion[0], quality(suggestion[1]))
    trials = opened(tmp_path / "b").trials
    assert [t.params for t in trials] == [t.params for t in whole.trials]
    assert [t.value for t in trials] == [t.value for t in whole.trials]
    assert len({t.params["optim.blr"] for t in trials}) == 9
    assert whole.completed()[0].value == max(t.value for t in trials)


def test_a_trial_below_the_median_is_pruned_after_the_first_ones(tmp_path):
    study, pruned = opened(tmp_path), []
    for number in range(5):
        trial, _ = study.next(5)
        online = [90.0 - 10 * number, 20.0 - number, 30.0 - number]
        for count in range(1, 4):  # each report repeats the earlier accuracies
            study.report(trial, online[:count])
            if trial.should_prune():
                pruned.append((number, count))
                break
        lost = pruned and pruned[-1][0] == number
        study.finish(trial, None if lost else 40.0 - number)
    assert pruned == [(3, 3), (4, 3)]  # neither by the evaluation before the first step nor by the one after
    assert [state_name(t) for t in study.trials] == ["done"] * 3 + ["pruned"] * 2
    assert study.trials[0].intermediate_values == {1: 20.0, 2: 30.0}


def test_the_table_and_the_figures_say_how_each_trial_ended(tmp_path):
    study = opened(tmp_path)
    for number in range(5):
        trial, values = study.next(5)
        study.report(trial, [10.0, 12.5 + number])
        if number == 3:
            study.finish(trial, None, error="the loss is not finite")
        elif number == 4:
            study.finish(trial, None)
        else:
            study.finish(trial, quality(values))
    text = write_summary(tmp_path, study, "linear", {0: "ldae pretrain a=b"})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["trial", "optim.blr", "target", "state", "online kNN, %", "linear on the hold-out, %"]
    assert [row[3] for row in rows[2:]] == ["done", "done", "done", "failed", "pruned"]
    best = study.completed()[0]
    assert rows[2 + best.number][5] == f"**{best.value:.2f}**"
    assert (rows[5][5], rows[6][4]) == ("", "16.5")
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert lines[3]["error"] == "the loss is not finite"
    assert (lines[0]["online_knn"], lines[0]["command"], lines[0]["split"]) == (
        [12.5],
        "ldae pretrain a=b",
        "holdout",
    )
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {
        f"{name}.{suffix}" for name in ("history", "importances") for suffix in ("svg", "pdf", "png", "csv")
    }
    history = list(csv.DictReader((tmp_path / "figures" / "history.csv").open()))
    values = [quality(t.params) for t in study.trials[:3]]
    assert [float(r["trial"]) for r in history if r["series"] == "trial"] == [0, 1, 2]
    drawn = {
        name: [float(r["linear on the hold-out (%)"]) for r in history if r["series"] == name]
        for name in ("trial", "best so far")
    }
    assert drawn == {"trial": values, "best so far": np.maximum.accumulate(values).tolist()}
    shares = list(csv.DictReader((tmp_path / "figures" / "importances.csv").open()))
    assert {row["name"] for row in shares} == {"optim.blr", "target"}
    assert sum(float(row["value"]) for row in shares) == pytest.approx(100)


def test_a_file_of_another_program_is_no_study(tmp_path):
    (tmp_path / "study.db").write_text("not a database, " * 50)
    with pytest.raises(CheckpointError, match="cannot be read as a study"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["seed=1"], "no key is searched"),
        (["optim.blr=interval(1,2)", "probe.split=test"], "a sweep reads the hold-out alone"),
        (["optim.blr=interval(1,2)", "probe.protocols=[knn]"], "is chosen by metric="),
        (["optim.blr=interval(1,2)", "metric=test"], "metric='test' is none of"),
        (["optim.blr=interval(1,2)", "trials=0"], "trials=0 must be at least 1"),
    ],
)
def test_a_mistake_in_a_call_is_named(argv, message):
    with pytest.raises(Exception, match=r".") as raised:
        parse_arguments(["experiment=ldae/digits", *argv])
    assert (raised.value.code, message in str(raised.value)) == (2, True), raised.value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["optim.lbr=interval(1,2)"], "optim.lbr"),
        (["target=choice(x0,none)"], "none"),
        (["data.d=choice(4,400)"], "400"),
        (["optim.blr=interval(1,2)", "monitor.num_evals=-1"], "trial 000: monitor.num_evals=-1 must be at least 0"),
    ],
)
def test_an_invalid_candidate_is_refused_before_any_trial(tmp_path, in_process, argv, message):
    code, text = in_process("sweep", *TINY, *argv, f"out={tmp_path / 'out'}")
    assert (code, message in text) == (2, True), text
    assert not (tmp_path / "out").exists()


def test_accuracies_are_read_while_their_file_is_written(tmp_path):
    assert online_accuracies(tmp_path) == []
    lines = [{"step": 0, "monitor": "knn", "knn_holdout/model": 12.0}, {"step": 1, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "moni')
    assert online_accuracies(tmp_path) == [12.0]


def test_a_trial_that_is_pruned_ends_its_process_and_the_sweep_goes_on(tmp_path, in_process, capsys):
    out, word = tmp_path / "out", "optim.blr=tag(log,interval(1e-3,1e-1))"
    out.mkdir()
    study = SweepStudy(out, read_space([word])[0], 0, 1, 1)
    trial, _ = study.next(1)
    study.report(trial, [0.0, *[100.0] * 4])  # better than any other at every evaluation
    study.finish(trial, 90.0)
    argv = (
        *TINY,
        "train.steps=1500",
        "monitor.num_evals=4",
        "train.checkpoint_every=500",
        word,
        "startup_trials=1",
        "trials=2",
        f"out={out}",
    )
    assert in_process("sweep", *argv) == (0, "")
    assert "[2/2]" in (text := capsys.readouterr().out)
    assert "\n  pruned\n" in text
    assert "best: trial 0, 90.00 %" in text
    (_, line) = (json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines())
    assert line["state"] == "pruned"
    assert status(out / line["run"])["state"] == "interrupted"
    assert status(out / line["run"])["step"] < 1500


@pytest.mark.slow
def test_a_killed_sweep_continues_its_trial_and_ends_with_every_trial_once(tmp_path):
    out = tmp_path / "out"
    argv = ("sweep", *TINY, "optim.blr=tag(log,interval(1e-3,1e-1))", "denoiser.keep=choice(0.5,1)", "startup_trials=2",
            "metric=knn", f"out={out}")  # fmt: skip
    killed = start(*argv, "trials=3")
    deadline = time.monotonic() + 300
    while killed.poll() is None and not list(out.glob("runs/001-*/checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    text, _ = run(*argv, "trials=3", seconds=600)
    assert "3 trials, 1 of them finished" in text
    assert text.count("[2/3]") == 1
    assert "best: trial" in text
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 1, 2]
    assert {line["state"] for line in lines} <= {"done", "pruned"}
    for line in lines:
        assert status(out / line["run"])["step"] <= 6
        assert f"optim.blr={line['values']['optim.blr']}" in line["command"]
    again, _ = run(*argv, "trials=3", seconds=600)
    assert "3 of them finished" in again
    _, message = run(*argv, "trials=3", "seed=4", seconds=600, code=2)
    assert "seed was 0, is 4" in message
