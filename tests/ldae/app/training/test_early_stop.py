"""Early stopping by the online kNN: when it ends a run, what it leaves, and that a resumed run decides the same."""

from __future__ import annotations

import json

import pytest
from helpers import as_if_stopped, rows, status, weights

from ldae.engine.early_stop import EarlyStop

STILL = ("optim.blr=1e-12", "train.steps=12", "train.batch=64", "monitor.num_evals=6", "monitor.knn_images=100",
         "monitor.panel_images=8", "train.checkpoint_every=2", "train.keep=9", "runtime.threads=1",
         "runtime.progress=false")  # fmt: skip


@pytest.mark.parametrize(
    ("values", "patience", "stalled"),
    [
        ([50, 60, 70], 1, False),
        ([50, 60, 60], 1, True),  # equal is no rise
        ([50, 60, 60], 2, False),
        ([70, 60, 65], 2, True),
        ([70, 60, 65, 71], 2, False),
        ([70], 1, False),
        ([], 1, False),
    ],
)
def test_a_metric_stalls_without_a_new_maximum(tmp_path, values, patience, stalled):
    file = tmp_path / "metrics.jsonl"
    records = [{"step": 0, "monitor": "knn", "a": 99}, {"step": 1, "loss": 3.0}, {"step": 1, "monitor": "other"}]
    records += [{"step": 10 * (i + 1), "monitor": "knn", "a": value} for i, value in enumerate(values)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    rule = EarlyStop("knn", "a", patience, 10)
    assert rule.has_stalled(file) is stalled
    assert [step for step in range(25) if rule.is_due(step)] == [10, 20]


def test_a_run_that_learns_nothing_ends_early_and_goes_on_with_more_patience(tmp_path, in_process, capsys):
    out = tmp_path / "run"
    argv = (f"out={out}", *STILL)
    assert in_process("pretrain", *argv, "monitor.patience=2") == (0, "")
    assert "stopped early at step 6 of 12: the online kNN has not risen for 2 evaluations" in capsys.readouterr().out
    assert (status(out)["state"], status(out)["step"]) == ("done", 6)
    assert [row["step"] for row in rows(out) if row.get("monitor") == "knn"] == [0, 2, 4, 6]
    assert sorted(p.name for p in (out / "checkpoints").iterdir())[-1] == "step-000000006"
    assert in_process("pretrain", *argv, "monitor.patience=2") == (0, "")
    assert "is finished" in capsys.readouterr().out

    resumed = as_if_stopped(out, tmp_path / "resumed", step=4)
    assert in_process("pretrain", f"out={resumed}", *STILL, "monitor.patience=2") == (0, "")
    assert status(resumed) == status(out)
    assert weights(resumed) == weights(out)

    assert in_process("pretrain", *argv, "monitor.patience=3") == (0, "")
    assert status(out)["step"] == 8
    assert in_process("pretrain", *argv) == (0, "")
    assert status(out) == {"state": "done", "step": 12, "code": 0, "message": ""}


def test_patience_without_an_online_knn_is_refused(tmp_path, in_process):
    argv = (f"out={tmp_path / 'run'}", *STILL, "monitor.patience=2", "monitor.knn_images=0")
    code, message = in_process("pretrain", *argv)
    assert (code, "monitor.patience=2 needs the online kNN" in message) == (2, True)
    assert not (tmp_path / "run").exists()
