"""Every logger gets the rows and pictures of a run, and a resumed run continues the same external one."""

from __future__ import annotations

import sys

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.core.files import read_json
from ldae.core.progress import Progress
from ldae.engine.loggers import External, Logger, check_loggers, numbers_of
from ldae.engine.logging import RunLog
from ldae.engine.run_folder import RunFolder

PICTURE = torch.linspace(0, 1, 3 * 8 * 8).reshape(3, 8, 8)
CONFIG = {"optim": {"blr": 0.1}, "seed": 0}


def log_of(folder, name, step=0):
    return RunLog(RunFolder(folder), step, Progress("off", total=4), [name], CONFIG)


def train(folder, name):
    """Two processes of one run: the first is killed after step 3, the second goes on from step 2."""
    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = log_of(folder, name, first)
        for step in steps:
            log.row(step, {"loss": 1 / step, "loss_hex": (1 / step).hex(), "monitor": "x"})
            log.image("attention", PICTURE, step)
        log.close()


def test_tensorboard_has_numbers_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = events.Scalars("loss")
    assert [e.step for e in losses] == [1, 2, 3, 4]  # step 3 of the killed process is purged
    assert [e.value for e in losses] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert events.Tags()["scalars"] == ["loss"]
    assert events.Tags()["images"] == ["attention"]
    assert not (tmp_path / "loggers.json").exists()


def test_mlflow_continues_its_run_in_the_folder_of_the_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.run_id == read_json(tmp_path / "loggers.json")["mlflow"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optim.blr": "0.1", "seed": "0"}
    history = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")}
    assert history == {(step, 1 / step) for step in (1, 2, 3, 4)}
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 4  # step 3 is not there twice
    assert len(client.list_artifacts(run.info.run_id, "pictures/attention")) == 4


def test_wandb_continues_its_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, "wandb")
    wandb.teardown()  # its process writes the last records when it ends
    identity = read_json(tmp_path / "loggers.json")["wandb"]
    parts = sorted(tmp_path.glob(f"wandb/offline-run-*-{identity}"))
    assert parts
    assert len(parts) == len(list(tmp_path.glob("wandb/offline-run-*")))
    for part in parts:
        content = (part / f"run-{identity}.wandb").read_bytes()
        assert b"loss" in content
        assert b"attention" in content


def test_trackio_continues_its_run_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before the import, which reads it
    pytest.importorskip("trackio")
    train(tmp_path, "trackio")
    assert (tmp_path / "trackio" / "ldae.db").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_an_absent_package_is_one_sentence_with_the_pip_line(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"loggers='{name}' needs the package {name}.*pip install 'ldae\[{name}\]'"):
        check_loggers([name])
    assert ConfigError.code == 2


def test_a_logger_that_fails_is_switched_off_and_the_run_goes_on(tmp_path, capsys):
    class Unreachable(Logger):
        def __init__(self):
            self.calls = 0

        def scalars(self, values, step):
            self.calls += 1
            raise ConnectionError("no route to host.\nat length")

        def image(self, name, picture, step):
            raise AssertionError("is not called after a failure")

        def close(self):
            raise AssertionError("is not called after a failure")

    log = log_of(tmp_path, "tensorboard")
    broken = Unreachable()
    log.loggers.append(External("mlflow", broken))
    for step in (1, 2):
        log.row(step, {"loss": 1.0})
    log.image("attention", PICTURE, 2)
    log.close()
    assert broken.calls == 1
    assert capsys.readouterr().err == "warning: mlflow failed (no route to host) and is off from here on\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_loggers_there_are_rows_and_pictures_and_no_package_is_imported(tmp_path):
    before = set(sys.modules)
    log = RunLog(RunFolder(tmp_path), 0, Progress("off", total=4), [], CONFIG)
    log.row(1, {"loss": 1.0})
    log.image("attention", PICTURE, 1)
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "pictures"}
    assert not {"wandb", "mlflow", "trackio"} & (set(sys.modules) - before)


def test_numbers_are_the_finite_ones():
    row = {"loss": 1, "loss_hex": "0x1p+0", "monitor": "knn", "done": True, "bad": float("nan"), "big": float("inf")}
    assert numbers_of(row) == {"loss": 1}
