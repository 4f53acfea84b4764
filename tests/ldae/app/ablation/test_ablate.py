"""Ablations: plan, run, interrupt, resume and report trials."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from helpers import ROOT, run, start, status
from omegaconf import OmegaConf
from PIL import Image

from ldae.app.ablation.ablation_dir import rows_in
from ldae.app.ablation.cost import OTHER_STARTS
from ldae.app.ablation.grid import grid_of, trials_of
from ldae.app.ablation.hours import seconds
from ldae.app.ablation.launcher import TrialJob
from ldae.app.ablation.runner import portable_command
from ldae.app.ablation.trials import Budget, plan
from ldae.app.compose import CONFIGS
from ldae.app.probing.cost import START
from ldae.config.build import Parts
from ldae.config.schema import construct
from ldae.core.errors import CheckpointError, ConfigError
from linear_probe.results import sealed

GRIDS = sorted(p.stem for p in (CONFIGS / "grid").glob("*.yaml"))
BUDGETS = sorted(p.stem for p in (CONFIGS / "budget").glob("*.yaml"))
QUICK = (
    "budget=demo",
    "images=800",
    "runtime.threads=1",
    "estimate=false",
    "report=false",
    "probe.protocols=[knn]",
    "train.checkpoint_every=5",
    "parallel=1",
)
OWN = """
axes:
  cell:
    a: [experiment=deconstruct/12_ldae]
    bad: [experiment=deconstruct/12_ldae, data=imagefolder, data.root=nowhere]
    b: [experiment=deconstruct/12_ldae, "probe.t=[40]"]
paper: [3, 2, 1]
source: a made-up paper
with_baselines: a
"""


def read(group, name):
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())


def budget(name):
    return construct(Budget, read("budget", name), {})


def trials(grid, size="laptop"):
    return {trial.name: trial for trial in trials_of(grid_of(read("grid", grid), budget(size).grids.get(grid, {})))}


@pytest.mark.parametrize("size", BUDGETS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_has_trials_at_every_budget(grid, size):
    by_name = trials(grid, size)
    assert grid == read("grid", grid)["name"]
    assert size == read("budget", size)["name"]
    assert sum(trial.with_baselines for trial in by_name.values()) == 1
    assert [trial.position for trial in by_name.values()] == list(range(len(by_name)))
    assert all(
        trial.overrides and trial.axes and bool(trial.paper) == bool(trial.paper_source) for trial in by_name.values()
    )
    assert budget(size).images_of(grid) > 0


def test_the_path_has_its_thirteen_rungs_in_order_with_the_papers_accuracies():
    by_name = trials("deconstruct")
    rungs = sorted(p.stem for p in (CONFIGS / "experiment" / "deconstruct").glob("*.yaml"))
    assert list(by_name) == rungs
    assert len(rungs) == 13
    assert all(trial.overrides == [f"experiment=deconstruct/{name}"] for name, trial in by_name.items())
    for name, trial in by_name.items():  # the rung's own config is the same
        assert f"linear probe {trial.paper} %" in (CONFIGS / f"experiment/deconstruct/{name}.yaml").read_text()


def test_tokenizers_by_dimensions_are_twenty_trials_and_three():
    by_name = trials("tokenizers")
    assert len(by_name) == 23
    assert list(by_name)[20:] == ["vqgan-16", "vq-4", "pixel-48"]
    configs = [plan(by_name[name], budget("laptop"), 64, []).config["tokenizer"] for name in list(by_name)[20:]]
    assert [spec.get("z_channels") for spec in configs] == [16, 4, None]
    assert list(by_name)[:6] == ["conv_vae-4", "conv_vae-8", "conv_vae-16", "conv_vae-32", "conv_vae-48", "patch_vae-4"]
    assert by_name["patch_pca-16"].paper == 65.1
    assert by_name["patch_pca-16"].axes == {"tokenizer": "patch_pca", "d": 16}
    for size, count in (("paper", 21), ("demo", 20)):
        assert [c.paper for c in trials("tokenizers", size).values()] == [c.paper for c in by_name.values()][:count]
    assert by_name["patch_ae-48"].paper is None
    assert "their d is not" in by_name["patch_ae-4"].paper_source
    assert "their d is not" not in by_name["patch_pca-4"].paper_source


def test_combinations_that_are_skipped_are_no_trials_and_have_no_accuracy():
    spec = {**read("grid", "targets"), "axes": {"a": {1: [], 2: []}, "b": {3: [], 4: []}}, "with_baselines": None}
    grid = grid_of({**spec, "skip": ["1-4", "2-*"], "paper": [50.0]}, {})
    assert [(trial.name, trial.paper) for trial in trials_of(grid)] == [("1-3", 50.0)]
    with pytest.raises(ConfigError, match=r"grid.skip='3-\*' matches no trial"):
        trials_of(grid_of({**spec, "skip": ["3-*"], "paper": []}, {}))


def test_targets_differ_in_what_is_predicted_or_in_one_weight():
    configs = {name: plan(trial, budget("laptop"), 64, []).config for name, trial in trials("targets").items()}
    assert len({json.dumps(config, sort_keys=True) for config in configs.values()}) == len(configs) == 6
    weights = {name: config["weight"]["part"].rpartition(".")[2] for name, config in configs.items()}
    assert (weights["x0_snr"], weights["x0_min_snr"], weights["eps"]) == ("SNR", "MinSNR", "One")


def test_l_dae_proper_is_trained_on_every_tokenizer_with_the_same_loss():
    configs = {name: plan(trial, budget("laptop"), 64, []).config for name, trial in trials("ldae_tokenizers").items()}
    assert {config["loss"]["part"] for config in configs.values()} == {"ldae.objectives.losses.SpanWeighted"}
    assert {config["output"]["part"] for config in configs.values()} == {"ldae.objectives.spaces.OriginalOutput"}
    assert len({config["tokenizer"]["part"] for config in configs.values()}) == 4


def test_a_budgets_keys_reach_the_trials_that_have_them_and_the_users_overrides_win():
    by_name = trials("deconstruct")
    size = replace(budget("laptop"), keys={**budget("laptop").keys, "loss.tail": 0.2})
    vae, ldae = (plan(by_name[name], size, 100, ["train.batch=25"]) for name in ("04_linear_gamma2", "12_ldae"))
    assert "loss.tail=0.2" in ldae.overrides
    assert "loss.tail=0.2" not in vae.overrides
    assert ldae.config["loss"]["tail"] == 0.2
    assert ldae.config["optim"]["blr"] == 1.2e-2
    assert "train.batch=32" not in ldae.overrides
    assert (ldae.config["train"]["steps"], ldae.config["train"]["epochs"], ldae.images) == (4, None, 100)
    again = plan(by_name["12_ldae"], size, 100, ["train.batch=25", "runtime.threads=7", "probe.t=[3]"])
    assert again.run_key == ldae.run_key  # neither threads nor probes change what is trained
    assert (again.probe, ldae.probe) == (["layers=[4,5,6]", "t=[3]"], ["layers=[4,5,6]"])
    assert again.key != ldae.key


@pytest.mark.parametrize("size", BUDGETS)
def test_no_budget_changes_the_papers_losses_and_schedules(size):
    """One latent scale for all dimensions, residuals unscaled; own variations are rows of a grid of their own."""
    named = [
        trials("deconstruct", size)[name] for name in ("05_patch_vae", "07_patch_pca", "11_image_output", "12_ldae")
    ]
    for trial in (*named, trials("tokenizers", size)["patch_vae-8"]):
        config = plan(trial, budget(size), 4096, []).config
        assert config["tokenizer"]["scaling"] == "one", trial.name
        assert config["loss"].get("whiten", 0) == 0
        assert config["schedule"].get("sigma_max", 2**0.5) == 2**0.5
        if "patch_vae" in trial.name:
            assert config["tokenizer"]["kl"] == (1 if size == "paper" else 0.01)


@pytest.mark.parametrize("size", BUDGETS)
def test_pixel_trials_have_256_tokens_of_the_papers_sizes(size):
    for name, shape in (("256", (768, 16, 16)), ("128", (192, 16, 16)), ("64", (48, 16, 16)), ("32", (12, 16, 16))):
        config = plan(trials("pixel", size)[name], budget(size), 4096, []).config
        assert Parts(OmegaConf.create(config)).tokenizer.shape == shape


@pytest.mark.parametrize(
    ("grid", "name", "keys"),
    [
        ("schedules", "constant_sigma", {"schedule"}),
        ("schedules", "linear_sigma_3", {"schedule"}),
        ("variations", "random_crop", {"augment"}),
        ("variations", "whiten", {"loss"}),
    ],
)
def test_further_experiments_of_the_paper_differ_from_l_dae_in_the_named_key_alone(grid, name, keys):
    paper, other = (
        plan(trial, budget("laptop"), 64, []).config for trial in (trials("deconstruct")["12_ldae"], trials(grid)[name])
    )
    assert {key for key in paper.keys() | other.keys() if paper.get(key) != other.get(key)} == keys


def test_variations_of_l_dae_are_rows_of_their_own():
    plans = {name: plan(trial, budget("laptop"), 64, []) for name, trial in trials("variations").items()}
    path = plan(trials("deconstruct")["12_ldae"], budget("laptop"), 64, [])
    assert plans["paper"].run_key == path.run_key
    assert len({planned.run_key for planned in plans.values()}) == 6
    own = plans["all_three"].config
    assert (own["tokenizer"]["scaling"], own["loss"]["whiten"], own["schedule"]["sigma_max"]) == ("each", 1, 3)


def test_trials_of_several_grids_share_an_equal_pretraining():
    path, grid, depth = trials("deconstruct"), trials("tokenizers"), trials("depth")
    size = budget("laptop")
    one, other = plan(path["07_patch_pca"], size, 64, []), plan(grid["patch_pca-16"], size, 64, [])
    assert one.run_key == other.run_key != plan(grid["patch_pca-8"], size, 64, []).run_key
    assert plan(depth["3"], size, 64, []).run_key == plan(path["12_ldae"], size, 64, []).run_key


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("grid=tokenizer",), "grid=tokenizer does not exist; there are: .* did you mean 'tokenizers'?"),
        (("grid=none.yaml",), "grid='none.yaml' cannot be read"),
        (("budget=lap",), "budget=lap does not exist; there are: demo, gpu, laptop, paper"),
        (("only=[12_dae]",), r"only=\[12_dae\] is no trial of this grid; there are: 00_dit, .*, mae"),
        (("only=[12_ldae]", "data.root=X", "optim.brl=1"), "trial 12_ldae: optim.brl=1 .* did you mean optim.blr?"),
        (("only=[07_patch_pca]", "data=digits", "data.d=13"), "trial 07_patch_pca: tokenizer.d=13 exceeds 3"),
        (("train.steps=3",), "train.steps='3' is determined by the budget; give images="),
        (("parallel=0",), "parallel=0 must be at least 1"),
        (("launcher=slrum",), "launcher=slrum does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(in_process, tmp_path, monkeypatch, argv, sentence):
    monkeypatch.chdir(tmp_path)
    code, message = in_process("ablate", *argv)
    assert code == 2
    assert re.search(sentence, message), message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_report_of_no_ablation_is_refused(in_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, message = in_process("report", "out=nowhere")
    assert (code, "nowhere/rows.jsonl does not exist" in message) == (65, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1", "holds no mapping"),
        ("axes: {cell: {a: seed=1}}", "grid.axes.cell.a='seed=1' must be a list"),
        ("axes: {cell: {a: []}}\npaper: [1, 2]", "must have an accuracy .* for each of the 1 trials"),
        ("axes: {cell: {a/b: []}}", "grid.axes='a/b' must give each trial a unique name"),
        (
            "axes: {cell: {a: []}}\nwith_baseline: a",
            "grid.with_baseline='a' is not a key here .* did you mean 'with_baselines'?",
        ),
        ("axes: {cell: {a: []}}\nwith_baselines: b", "grid.with_baselines='b' is no trial of this grid; there are: a"),
    ],
)
def test_a_mistake_in_ones_own_grid_is_one_sentence(in_process, tmp_path, text, sentence):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    code, message = in_process("ablate", f"grid={path}", f"out={tmp_path / 'o'}")
    assert (code, bool(re.search(sentence, message))) == (2, True), message
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """An ablation of one's own grid, broken off in the midst of its first pretraining and taken up again; one of its
    three trials fails. Its folder, its arguments, and its output after the interruption and at the end."""
    folder = tmp_path_factory.mktemp("ablate")
    (folder / "my.yaml").write_text(OWN)
    argv = (f"grid={folder / 'my.yaml'}", *QUICK, f"out={folder / 'out'}", "only=[a,bad,b]")
    broken, until = start("ablate", *argv), time.monotonic() + 600
    while not list(folder.glob("out/runs/*/checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    broken.send_signal(signal.SIGTERM)
    _, interrupted = broken.communicate(timeout=600)
    assert broken.returncode == 75, interrupted
    assert not (folder / "out" / "rows.jsonl").exists()
    out, err = run("ablate", *argv, code=65, seconds=900)
    return folder, argv, interrupted, out, err


def test_a_failed_trial_is_reported_and_the_others_run(ablation):
    folder, _, _, out, err = ablation
    assert "grid my, budget demo: 3 trials, 800 images each" in out
    (line,) = [line for line in out.splitlines() if "FAILED" in line]
    assert "bad: FAILED, pretrain exit 65: data.root=nowhere is missing; a folder is needed" in line
    assert "nowhere is missing" in (folder / "out" / "logs" / "my" / "bad.log").read_text()
    assert err.strip() == "error: 1 of 3 trials failed: bad; the same command runs them again"
    assert sum(line.startswith("[") for line in out.splitlines()) == 3


def test_each_finished_trial_has_a_row_and_small_pictures(ablation):
    out = ablation[0] / "out"
    rows, others = rows_in(out)
    assert [(row.trial, row.axes, row.paper) for row in rows] == [("a", {"cell": "a"}, 3), ("b", {"cell": "b"}, 1)]
    for row, t in zip(rows, (10, 40), strict=True):
        (result,) = row.results
        assert (result.protocol, result.t, result.step, result.split) == ("knn", t, 50, "test")
        assert (row.images, row.unit, row.budget) == (800, "core", "demo")
        assert 0 < row.hours < 1
        assert "data.root" not in row.command
        assert str(out) not in row.line()
        assert sum(what.startswith("denoised t=") for what in row.pictures) == 5
        for file in row.pictures.values():
            assert 100 < (out / file).stat().st_size < 200_000
    assert {r.encoder for r in others} == {"the network of a, untrained", "raw pixels", "whole-image PCA"}
    assert [path.name[0] for path in (out / "runs").iterdir() if path.name[:3] != "bad"] == ["a"]  # b shares it
    (one,) = (out / "runs").glob("a-*")
    assert status(one)["state"] == "done"
    assert not list(out.rglob("features"))


def test_a_finished_trial_is_not_run_again(ablation, in_process, capsys):
    folder, argv = ablation[:2]
    out = folder / "out"
    before = {name: (out / name).read_bytes() for name in ("rows.jsonl", "others.jsonl", "logs/my/a.log")}
    assert in_process("ablate", *argv[:-1], "only=[a,b]") == (0, "")
    assert "nothing is missing" in capsys.readouterr().out
    assert before == {name: (out / name).read_bytes() for name in before}
    code, message = in_process("ablate", *argv[:-1], "only=[a]", "images=1600")
    assert code == 2
    assert "holds the trial a with other settings: train.steps was 50, is 100. Give another out=" in message


def test_an_interrupted_trial_resumes_from_its_checkpoint(ablation):
    folder, _, interrupted, out, _ = ablation
    assert interrupted.strip() == "error: stopped by SIGTERM; run the same command again to go on"
    assert re.search(r"  a    \d+ of 50 steps", out), out
    log = (folder / "out" / "logs" / "my" / "a.log").read_text()
    assert log.count("$ ldae pretrain") == 2
    assert log.count("$ ldae probe") == 1


@pytest.mark.parametrize("names", [["a"], pytest.param(["a", "b"], marks=pytest.mark.slow)], ids=["one", "two"])
def test_a_launcher_runs_every_job_and_reports_each_that_fails(tmp_path, names):
    """Submitit without a cluster: jobs whose images are missing."""
    pytest.importorskip("submitit")
    (tmp_path / "my.yaml").write_text(
        "axes: {data: {a: [data=imagefolder, data.root=nowhere], b: [data=cifar10, data.root=nowhere]}}"
    )
    only = f"only=[{','.join(names)}]"
    argv = (f"grid={tmp_path / 'my.yaml'}", *QUICK, f"out={tmp_path / 'out'}", "launcher=local", only)
    out, err = run("ablate", *argv, code=70, seconds=300)
    assert all(f"{name}: FAILED, the job" in out for name in names)
    assert "nowhere is missing" in out
    failed = f"{len(names)} of {len(names)} trials failed: {', '.join(names)}"
    assert err.strip() == f"error: {failed}; the same command runs them again"


def test_a_job_that_ran_out_of_time_is_submitted_again():
    submitit = pytest.importorskip("submitit")
    job = TrialJob(["grid=g"], ".")
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function is job


@pytest.mark.slow
def test_an_unbroken_ablation_by_a_launcher_finds_the_same(ablation, tmp_path):
    folder = ablation[0]
    argv = (f"grid={folder / 'my.yaml'}", *QUICK, f"out={tmp_path}", "only=[a,bad]", "launcher=local")
    out, _ = run("ablate", *argv, code=70, seconds=900)
    assert "bad: FAILED, the job" in out
    (unbroken,), baselines = rows_in(tmp_path)
    (broken, _), others = rows_in(folder / "out")
    assert [r.accuracy for r in others] == [r.accuracy for r in baselines]
    for name in ("accuracy", "selected", "selected_accuracy", "layer", "t", "data_fingerprint", "dimensions"):
        assert [getattr(r, name) for r in broken.results] == [getattr(r, name) for r in unbroken.results]


def test_the_cost_is_told_first_from_a_few_steps_and_nothing_is_left(in_process, tmp_path, capsys):
    argv = ("budget=demo", "images=800", "runtime.threads=1", "dry=true", "only=[patch_pca-2,patch_ae-2]")
    assert in_process("ablate", "grid=tokenizers", f"out={tmp_path / 'out'}", *argv) == (0, "")
    output = capsys.readouterr().out
    matches = re.findall(
        r"about (\S+) min here .* 2 missing trials: (\S+) min of training .* and (\S+) min of probing", output
    )
    whole, training, probing = map(float, matches[0])
    assert whole == pytest.approx(training + probing, rel=0.1)
    assert 0 < training < 60
    assert (START + OTHER_STARTS) / 60 < probing < 60  # two trials side by side, each with its starts
    assert not (tmp_path / "out").exists()


def test_time_is_read_off_the_speeds_that_were_logged(tmp_path):
    rows = [
        {"step": 0, "monitor": "panel"},
        {"step": 10, "images_per_second": 100.0},
        {"step": 25, "images_per_second": 50.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds(tmp_path, 20) == 10 * 20 / 100 + 15 * 20 / 50
    assert seconds(tmp_path / "none", 20) == 0


def test_commands_have_placeholders_for_the_paths_of_this_machine():
    argv = "ldae probe run=/a/b out=/c data.root=/d t=[10]"
    assert portable_command(argv) == "ldae probe run=RUN out=RUN data.root=DIR t=[10]"
    assert portable_command("ldae probe 'data.only=[a b,c]' \"save=it's\"") == (
        "ldae probe 'data.only=[a b,c]' 'save=it'\"'\"'s'"
    )


def test_a_folder_is_reported(ablation, in_process, capsys):
    assert in_process("report", f"out={ablation[0] / 'out'}") == (0, "")
    assert "report:" in capsys.readouterr().out
    page = (ablation[0] / "out" / "index.html").read_text()
    assert "made-up" in page


def test_an_invalid_probe_is_refused_before_any_training(in_process, tmp_path):
    argv = ("budget=demo", "grid=tokenizers", "only=[patch_pca-2]", "images=800", "estimate=false", "report=false")
    argv += (f"out={tmp_path / 'out'}", "runtime.threads=1")
    code, message = in_process("ablate", *argv, "probe.protocols=[]")
    assert (code, message) == (2, "trial patch_pca-2: probe.protocols=[] must have at least one entry")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        ablation_dir = tmp_path / "pictures" / ("train" if i < 30 else "test") / "all"
        ablation_dir.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(ablation_dir / f"{i}.png")
    data = ("data=imagefolder", "data.size=8", "data.patch=2", f"data.root={tmp_path / 'pictures'}", "parallel=1")
    code, _ = in_process("ablate", *argv, *data)
    assert code == 65
    assert not list((tmp_path / "out").glob("runs/*/checkpoints"))


def test_a_report_goes_without_its_pictures(in_process, tmp_path, capsys):
    shutil.copytree(ROOT / "results" / "cifar10" / "tokenizers", tmp_path / "out")
    rows = tmp_path / "out" / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:4]))
    assert in_process("report", f"out={tmp_path / 'out'}") == (0, "")
    assert "24 of 24 pictures are missing; the report has a note for each trial" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("6 pictures cannot be shown; the first: denoised t=") == 4  # a note for each trial


def test_rows_of_another_file_are_one_sentence(tmp_path):
    (tmp_path / "rows.jsonl").write_text(sealed({"encoder": "l-DAE", "accuracy": 50.0}) + "\n")
    with pytest.raises(CheckpointError, match=r"rows.jsonl holds no rows of an ablation \(a line has no 'results'\)"):
        rows_in(tmp_path)
