"""`make demo`, with few crops and steps."""

from __future__ import annotations

import re
import shlex
import sys
import time

import pytest
import torch
from helpers import start, status
from PIL import Image

from ldae.app.demo import demo as demo
from ldae.app.demo import tasks as _demo_tasks
from ldae.app.demo.picture import steps_of
from ldae.app.demo.tasks import Task, run_tasks
from ldae.core.errors import Fault, UsageError
from ldae.diffusion.schedules import LinearGamma2

TINY = ("train.steps=4", "train.log_every=1", "data.crops=240", "data.test_crops=120", "monitor.num_evals=0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished demo; its name has to be quoted in a shell."""
    out = tmp_path_factory.mktemp("the demo")
    demo.main([f"out={out}", *TINY])
    return out


def test_the_table_has_both_recipes_the_baselines_and_chance(finished):
    text = demo.report(finished, [0])
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "encoder",
        *demo.RECIPES.values(),
        "the same network, untrained",
        "raw pixels",
        "whole-image PCA",
        "chance",
    ]
    assert "120 test crops" in text
    assert re.search(r"\| chance +\| +8\.3 \| +8\.3 \| +8\.3 \|", text)


def test_progress_is_read_from_what_the_tools_leave_behind(finished):
    for task in demo.all_tasks(finished, [0], TINY):
        assert task.is_done()
        assert task.progress() == ((4, 4) if task.tool == "pretrain" else (task.figures, task.figures)), task.label


def test_a_finished_demo_prints_its_table_again_and_runs_nothing(finished, capsys, monkeypatch):
    monkeypatch.setattr(demo, "run_tasks", None)
    demo.main([f"out={finished}", *TINY])
    printed = capsys.readouterr().out
    assert demo.report(finished, [0]) in printed
    picture = finished / demo.PICTURE
    assert shlex.quote(str(picture)) in printed
    with Image.open(picture) as image:
        assert min(image.size) > 400


def test_the_next_commands_can_be_pasted(config, finished):
    lines = [line.strip() for line in demo.next_steps(finished, 0).splitlines() if line.startswith("  ")]
    assert len(lines) == 3
    for line in lines:
        argv = shlex.split(line)
        if argv[0].rpartition("/")[2] == "ldae":
            config(argv[1], *argv[2:])
        else:
            assert argv[-1] == str(finished)
    assert sum("/ldae" in line.split()[0] for line in lines) == 2


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_off_it(finished, capsys, monkeypatch, on_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    done = demo.all_tasks(finished, [0], TINY)[0]
    unknown = Task("pretrain: not begun", "pretrain", (), finished / "none" / "status.json", finished / "none.txt")
    display = _demo_tasks.Display()
    for task in (unknown, done):
        display.start(task)
        display.update(task)
    display.end(done)
    display.close()
    out, err = capsys.readouterr()
    assert f"{done.label}: done in" in out or on_terminal
    assert ("4/4" in err) is on_terminal


def test_mistyped_words_are_refused():
    for argv, message in (
        (["--steps"], "usage"),
        (["seeds=a"], "whole numbers"),
        (["seeds=[0,0]"], "twice"),
        (["data=digits"], "fixed"),
    ):
        with pytest.raises(UsageError, match=message):
            demo.arguments(argv)
    out, seeds, extra = demo.arguments(["out=a b", "seeds=[0, 12]", "train.steps=3"])
    assert (str(out), seeds, extra) == ("a b", [0, 12], ["train.steps=3"])


def test_a_failed_call_ends_the_demo_with_its_code_and_sentence(tmp_path):
    argv = ("experiment=demo/ldae_eps", "train.steps=-1", f"out={tmp_path / 'run'}")
    task = Task("pretrain: l-DAE", "pretrain", argv, tmp_path / "run" / "status.json", tmp_path / "log.txt")
    with pytest.raises(Fault, match=r"pretrain: l-DAE: train\.steps=-1") as caught:
        run_tasks([task])
    assert caught.value.code == 2


@pytest.mark.slow
def test_a_signal_ends_the_demo_and_both_runs_are_saved(tmp_path):
    process = start("demo", f"out={tmp_path}", *TINY, "train.steps=100000")
    runs = [tmp_path / recipe / "seed0" for recipe in demo.RECIPES]
    while not all((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size for run in runs):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert [status(run)["state"] for run in runs] == ["interrupted"] * 2


def test_a_call_keeps_what_it_prints(tmp_path, monkeypatch):
    task = Task("probe", "probe", ("split=test",), tmp_path / "none", tmp_path / "log.txt")
    code, message = _demo_tasks.call(task)
    assert code == 2
    assert "run" in message
    assert (tmp_path / "log.txt").exists()


def test_steps_of_a_schedule_have_the_ratios_of_noise_to_signal():
    schedule = LinearGamma2()
    level = schedule.at(torch.tensor(steps_of(schedule, [0.3, 0.7, 1.5])))
    torch.testing.assert_close(level.sigma / level.gamma, torch.tensor([0.3, 0.7, 1.5]), atol=5e-3, rtol=0)
