"""sample.py, restore.py and likelihood.py as a user runs them, on small runs of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import run, start, status, torchrun
from PIL import Image

from ldae.app.compose import compose, resolved
from ldae.app.sampling.grid import class_names, grid
from ldae.app.sampling.sample import check_init
from ldae.app.session import Session
from ldae.app.training import pretrain as pretrain
from ldae.app.training.tokenizer_cache import ensure_perceptual
from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.files import save_tensors
from ldae.core.types import BatchGenerator

SMALL = (
    "data=digits",
    "denoiser.channels=8",
    "denoiser.multipliers=[1,2]",
    "denoiser.attention=[]",
    "train.steps=8",
    "train.batch=32",
    "monitor.num_evals=0",
    "runtime.threads=1",
)
QUICK = ("sampler=ddim", "spacing=trailing", "spacing.count=5", "runtime.threads=1", "runtime.progress=false")


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    """A run of a small DDPM on digits."""
    out = tmp_path_factory.mktemp("runs") / "ddpm"
    run("pretrain", "experiment=ddpm/cifar10_cpu", *SMALL, f"out={out}")
    return out


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """The folder of a run of eight steps on digits, by its experiment and further keys."""
    root, known = tmp_path_factory.mktemp("quick"), {}

    def made(experiment, *argv):
        if (experiment, argv) not in known:
            folder = known[experiment, argv] = root / f"{experiment.replace('/', '-')}-{len(known)}"
            given = ("data=digits", "train.steps=8", "train.batch=32", "runtime.threads=1", "runtime.progress=false")
            pretrain.main([f"experiment={experiment}", f"out={folder}", *given, *argv])
        return known[experiment, argv]

    return made


def images(folder):
    with np.load(folder / "samples.npz") as file:
        return file["arr_0"]


def test_samples_are_images_and_say_how_they_were_made(ddpm, tmp_path):
    out = tmp_path / "a"
    run("sample", f"run={ddpm}", f"out={out}", *QUICK, "count=10", "batch=4", "gif=true")
    samples = images(out)
    assert (samples.shape, samples.dtype) == ((10, 8, 8, 3), np.uint8)
    assert samples.std() > 5
    assert Image.open(out / "grid.png").size == (8 * 66 - 2, 2 * 66 - 2)
    assert Image.open(out / "trajectory.gif").n_frames == 5
    known = json.loads((out / "samples.json").read_text())
    assert known["sampler"]["eta"] == 0
    assert known["images"] == 10
    assert known["step"] == 8
    assert status(out)["state"] == "done"
    stdout, _ = run("sample", f"run={ddpm}", f"out={out}", *QUICK, "count=10", "batch=4", "gif=true")
    assert "nothing to do" in stdout


def test_a_grid_has_a_column_for_each_class_and_rows_of_eight_without_classes():
    grey = lambda i: np.full((8, 8, 3), i, np.uint8)  # noqa: E731
    pixels, labels = np.stack([grey(i) for i in range(11)]), torch.tensor([4, 2, 4, 2, 4, 2, 4, 2, 4, 2, 4])
    picture = (grid(pixels, labels)[0] * 255).round()
    top = picture.shape[0] - (6 * 66 - 2)  # the heads
    assert top > 0
    assert picture[top::66, 0].tolist() == [0, 2, 4, 6, 8, 10]  # tiles of 64 pixels with 2 between them
    assert picture[top::66, 66].tolist() == [1, 3, 5, 7, 9, 255]
    named = (grid(pixels, labels, list("abcde"))[0] * 255).round()
    assert torch.equal(named[top:], picture[top:])
    assert not torch.equal(named[:top], picture[:top])
    for plain in (grid(pixels), grid(pixels, torch.full((11,), 3))):
        assert plain.shape == (3, 2 * 66 - 2, 8 * 66 - 2)
        assert (plain[0, ::66, ::66] * 255).round().flatten().tolist() == [*range(11), *[255] * 5]


def test_the_heads_of_a_grid_are_the_names_of_the_classes(quick_run):
    folder = quick_run("ddpm/cifar10_cpu", "task=labelled", *SMALL[1:4], "monitor.num_evals=0")
    run("sample", f"run={folder}", *QUICK, "count=20", "batch=20")
    with np.load(folder / "samples" / "samples.npz") as file:
        expected = grid(file["arr_0"], torch.from_numpy(file["arr_1"]), class_names(folder))
    assert class_names(folder) == [str(i) for i in range(10)]
    written = torch.from_numpy(np.array(Image.open(folder / "samples" / "grid.png").convert("RGB"))).movedim(-1, 0)
    assert torch.equal(written, (expected * 255).round().to(torch.uint8))


def test_noise_that_is_drawn_once_has_the_shape_of_the_latent(quick_run, tmp_path):
    folder = quick_run("ddpm/cifar10_cpu", "task=labelled", *SMALL[1:4], "monitor.num_evals=0",
                       "tokenizer=patch_pca", "data.patch=2", "data.d=12")  # fmt: skip
    cold = ("sampler=cold_improved", "init=mixed_signal", "spacing=trailing", "spacing.count=3", *QUICK[3:])
    run("sample", f"run={folder}", f"out={tmp_path / 'a'}", *cold, "count=4")
    assert images(tmp_path / "a").shape == (4, 8, 8, 3)


def test_samples_from_a_styled_start_take_the_colour_of_the_picture(ddpm, tmp_path):
    reds = {}
    for name, colour in (("red", (230, 20, 20)), ("blue", (20, 20, 230))):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
        argv = ("init=styled_signal", f"init.style={tmp_path / name}.png", "init.strength=0.5", "count=8", *QUICK)
        run("sample", f"run={ddpm}", f"out={tmp_path / name}", "sampler=ddim", *argv)
        with np.load(tmp_path / name / "samples.npz") as samples:
            means = samples["arr_0"].mean((0, 1, 2))
        reds[name] = means[0] - means[2]
    assert reds["red"] > 20 > -20 > reds["blue"]


def test_a_style_that_cannot_be_read_is_named(ddpm, in_process):
    code, message = in_process("sample", f"run={ddpm}", *QUICK, "init=styled_signal", "init.style=nowhere.png")
    assert (code, "nowhere.png cannot be read" in message) == (65, True)


def test_batches_and_processes_change_no_image(ddpm, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run("sample", f"run={ddpm}", f"out={one}", *QUICK, "count=9", "batch=9", "precision=fp32")
    torchrun("sample", f"run={ddpm}", f"out={two}", *QUICK, "count=9", "batch=2", "precision=fp32")
    assert np.abs(images(one).astype(int) - images(two).astype(int)).max() <= 1


def test_existing_samples_are_not_drawn_again(ddpm, tmp_path):
    out = tmp_path / "a"
    run("sample", f"run={ddpm}", f"out={out}", *QUICK, "count=4", "batch=2")
    whole = images(out)
    (out / "status.json").unlink()
    (out / "samples.npz").unlink()
    (out / "shards").mkdir()
    for k in (0, 1):
        save_tensors(out / "shards" / f"{k:06d}.safetensors", {"images": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)})
    damaged = out / "shards" / "000000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    _, stderr = run("sample", f"run={ddpm}", f"out={out}", *QUICK, "count=4", "batch=2")
    assert "000000.safetensors is damaged" in stderr
    assert not images(out)[2:].any()
    assert np.array_equal(images(out)[:2], whole[:2])


@pytest.mark.case("C17", "SIGTERM while a picture is restored")
def test_a_signal_is_answered_within_two_seconds(ddpm, tmp_path):
    """In an inversion, whose thousand steps nothing else interrupts."""
    out = tmp_path / "a"
    process = start("restore", f"run={ddpm}", f"out={out}", "how=invert", "sampler=ddim", "count=144", "batch=144")
    while not (out / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.05)
    began = cpu_seconds(process.pid)
    while cpu_seconds(process.pid) - began < 2.5:  # it reads the images in one of these
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    spent, last = cpu_seconds(process.pid), 0.0
    while process.poll() is None:
        last = max(last, cpu_seconds(process.pid) - spent)
        time.sleep(0.02)
    stderr = process.communicate()[1]
    assert (process.returncode, status(out)["state"]) == (75, "interrupted")
    assert "stopped by SIGTERM" in stderr
    assert last < 2


def cpu_seconds(pid):
    """Return the CPU seconds that a process has used; other processes on the machine do not count."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_samples_begun_otherwise_are_refused(ddpm, tmp_path):
    out = tmp_path / "a"
    run("sample", f"run={ddpm}", f"out={out}", *QUICK, "count=2")
    _, stderr = run("sample", f"run={ddpm}", f"out={out}", *QUICK, "count=2", "seed=1", code=2)
    assert "seed was 0, is 1" in stderr


@pytest.mark.parametrize(
    ("tool", "argv", "message"),
    [
        ("sample", (), "run=null is not set"),
        ("sample", ("guidance=2",), "guidance=2.0 needs a class-conditional network"),
        ("sample", ("classes=[1]",), "classes=[1] is set, and this network has no class labels"),
        ("sample", ("count=0",), "count=0 must be at least 1"),
        ("sample", ("sampler=dimm",), "did you mean 'ddim'?"),
        ("sample", ("sampler=learned",), "needs a learned variance"),
        ("sample", ("spacing=trailing", "spacing.count=2000"), "spacing.count=2000"),
        ("sample", ("low=x.npz",), "low='x.npz' is not for this run"),
        ("sample", ("init=coarse_gaussian",), "is random; use init=mixed_signal"),
        ("sample", ("init=styled_signal",), "init.style=null"),
        ("restore", ("how=segment",), "how='segment' is not what this run was trained for; use how=edit"),
        ("restore", ("t0=[1.5]",), "t0=1.5 must be"),
        ("restore", ("strokes=4",), "strokes=4 must be odd"),
        ("likelihood", ("sampler=ddim",), "sampler='ddim' has no variance"),
    ],
)
def test_what_cannot_work_is_one_sentence(in_process, ddpm, tmp_path, tool, argv, message):
    given = (f"run={ddpm}", f"out={tmp_path / 'x'}", "runtime.threads=1", "runtime.progress=false") if argv else ()
    code, error = in_process(tool, *given, *argv)
    assert message in error
    assert code == 2


def test_noise_prediction_is_sampled_from_the_last_step_that_has_signal(quick_run, in_process, tmp_path):
    """linear_gamma2 ends at gamma = 0, where eps does not determine x0; panels of a short schedule stop there too."""
    folder = quick_run(
        "deconstruct/07_patch_pca", "denoiser=vit_64x4", "data.d=4", "schedule.T=8", "monitor.num_evals=1"
    )
    for tool in ("sample", "restore"):
        out = tmp_path / tool
        argv = ("runtime.threads=1", "runtime.progress=false", "count=3", "precision=fp32")
        assert in_process(tool, f"run={folder}", f"out={out}", *argv) == (0, "")
    assert images(tmp_path / "sample").shape == (3, 8, 8, 3)


@pytest.mark.parametrize("argv", [(), ("sampler=cold_naive",), ("sampler=direct",), ("sampler=ddim",)])
def test_a_run_on_degraded_images_does_not_start_from_noise(quick_run, in_process, tmp_path, argv):
    folder = quick_run("cold_color/cifar10_cpu", *SMALL[1:4], "monitor.num_evals=0")
    out = tmp_path / "x"
    code, message = in_process("sample", f"run={folder}", f"out={out}", "runtime.threads=1", *argv)
    assert message.startswith(
        "init=null is not set, and Colour does not start from noise; use init=coarse_gaussian or ldae restore"
    )
    assert code == 2
    assert not out.exists()


@pytest.mark.parametrize("name", ["blur", "pixelate", "colour_mask", "mask", "snow", "colour"])
def test_a_refusal_names_the_initial_states_that_work_for_the_corruption_and_no_other(name):
    fewer = ["schedule.T=3"] if name == "pixelate" else []
    parts = Parts(resolved(compose("pretrain", [f"corruption={name}", "data=cifar10", "schedule=steps", *fewer])))
    generator = SimpleNamespace(
        objective=SimpleNamespace(corruption=parts.corruption), sampler=SimpleNamespace(rule=None)
    )
    with pytest.raises(ConfigError, match="ldae restore") as refusal:
        check_init(generator, {})
    for init in ("coarse_gaussian", "mixed_signal"):
        config = resolved(compose("sample", [f"init={init}"]))["init"]
        objective = SimpleNamespace(corruption=parts.corruption, schedule=parts.schedule)
        objective.tokenizer = SimpleNamespace(shape=(3, 32, 32))
        try:
            start = Parts({"init": config}).build_init(objective)
            if init == "mixed_signal":
                start.draw(2, BatchGenerator([0]))
            works = True
        except ConfigError:
            works = False
        assert (f"init={init}" in str(refusal.value)) == works, init


@pytest.mark.parametrize("sampler", ["cold_improved", "cold_naive"])
@pytest.mark.parametrize("tool", ["sample", "restore"])
def test_a_rule_that_degrades_its_predictions_needs_a_degraded_image(ddpm, in_process, tmp_path, tool, sampler):
    out = tmp_path / "x"
    code, message = in_process(tool, f"run={ddpm}", f"out={out}", f"sampler={sampler}", "runtime.threads=1")
    assert ("init=null is not set" if tool == "sample" else "how=edit degrades nothing; use sampler=ddpm") in message
    assert code == 2
    assert not out.exists()


def test_an_edit_of_pictures_of_ones_own(ddpm, tmp_path):
    folder, out = tmp_path / "mine", tmp_path / "out"
    folder.mkdir()
    for name, colour in (("red", (250, 10, 10)), ("blue", (10, 10, 250))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    stdout, _ = run("restore", f"run={ddpm}", f"pictures={folder}", f"out={out}", *QUICK, "t0=[0,0.4]")
    assert "| t0=0 |" in stdout
    assert Image.open(out / "restored.png").size == (
        4 * 66 - 2,
        2 * 66 - 2 + 15,
    )  # heads; original, guide, two edits
    picture = np.asarray(Image.open(out / "red.png"))[15:]
    assert np.abs(picture[30, 30].astype(int) - (250, 10, 10)).max() < 6
    assert np.abs(picture[30, 2 * 66 + 30].astype(int) - (250, 10, 10)).max() < 6  # from t0 = 0 comes the guide
    assert (out / "blue.png").exists()
    assert json.loads((out / "restored.json").read_text())["figures"]["t0=0"]["rmse"] < 0.01


def test_between_pictures_nothing_is_measured(ddpm, tmp_path):
    stdout, _ = run("restore", f"run={ddpm}", f"out={tmp_path}", *QUICK, "how=interpolate", "count=3")
    assert "|" not in stdout
    assert Image.open(tmp_path / "restored.png").size == (6 * 66 - 2, 3 * 66 - 2 + 15)


def test_a_damaged_picture_is_named(ddpm, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    _, stderr = run(
        "restore", f"run={ddpm}", f"pictures={tmp_path / 'bad.png'}", f"out={tmp_path / 'o'}", *QUICK, code=65
    )
    assert "bad.png cannot be read" in stderr


def test_likelihood_has_its_parts(ddpm, tmp_path):
    run(
        "likelihood",
        f"run={ddpm}",
        f"out={tmp_path}",
        "count=8",
        "spacing=trailing",
        "spacing.count=10",
        "runtime.threads=1",
    )
    figures = json.loads((tmp_path / "likelihood.json").read_text())["figures"]
    assert figures["bits/dim"] == pytest.approx(figures["prior"] + figures["steps"] + figures["last"], abs=1e-4)
    assert 0 < figures["last"] < figures["bits/dim"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("features={ddpm}", "count=1"), "count=1 is too few for features=; give at least 4 images"),
        (("features={ddpm}", "count=2"), "count=2 is too few"),
        (("features=nosuch", "count=8"), "is no reader; give classifier, inception, ldae-.*-cifar10, .* or"),
        (("classes=[]",), r"classes=\[\] must have at least one entry"),
        (("runtime.threads=-1",), "runtime.threads=-1 must be at least 0"),
    ],
)
def test_what_cannot_be_compared_or_drawn_is_refused_before_sampling(ddpm, tmp_path, in_process, argv, sentence):
    own = [word.format(ddpm=ddpm) for word in argv]
    code, message = in_process("sample", f"run={ddpm}", f"out={tmp_path / 'a'}", *QUICK, *own)
    assert code == 2
    assert re.search(sentence, message), message
    assert not list((tmp_path / "a").glob("shards/*"))


@pytest.mark.parametrize("count", [4, 100])
def test_fewer_images_than_dimensions_are_a_caveat_in_output_and_file(ddpm, tmp_path, in_process, capsys, count):
    argv = (f"features={ddpm}", f"count={count}", "spacing.count=2", "precision=fp32")
    assert in_process("sample", f"run={ddpm}", f"out={tmp_path / 'a'}", *QUICK, *argv) == (0, "")
    said, known = capsys.readouterr().out, json.loads((tmp_path / "a" / "samples.json").read_text())
    assert ("caveat: frechet_distance" in said) == (count == 4)
    assert len(known["caveats"]) == (count == 4)
    metrics = {name.partition("[")[0] for name in known["figures"]}
    assert {"frechet_distance", "kernel_distance", "kernel_distance_error"} <= metrics
    assert ("frechet_distance_infinity" in metrics) == (count == 100)  # extrapolated from three images a dimension on


def test_distances_in_the_features_of_a_shipped_encoder_name_its_weights(ddpm, tmp_path, in_process):
    argv = ("features=ldae-64x4-photos", "count=8", "spacing.count=2")
    assert in_process("sample", f"run={ddpm}", f"out={tmp_path / 'a'}", *QUICK, *argv) == (0, "")
    figures = json.loads((tmp_path / "a" / "samples.json").read_text())["figures"]
    assert all(re.search(r"\[encoder ldae-64x4-photos-[0-9a-f]{8}\]$", name) for name in figures)
    assert figures["frechet_distance[" + next(iter(figures)).partition("[")[2]] > 0


def test_a_classifier_is_trained_on_fewer_images_than_its_batch(tmp_path, in_process):
    """The perceptual classifier of the suite, on 20 training images."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("a", "b"):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{i}.png")
    session = Session(
        resolved(
            compose(
                "train_tokenizer",
                [
                    "tokenizer=vqgan",
                    "data=imagefolder",
                    "data.size=16",
                    f"data.root={tmp_path / 'pictures'}",
                    "tokenizer.fit.perceptual.fit.steps=1",
                ],
            )
        )
    )
    splits = session.splits()
    assert len(splits.train) < session.config["perceptual"]["fit"]["batch"]
    assert ensure_perceptual(session, splits) is not None


@pytest.mark.parametrize("tool", ["sample", "restore", "likelihood"])
def test_the_folder_of_a_training_run_is_no_place_for_results(ddpm, in_process, tool):
    before = status(ddpm)
    code, message = in_process(tool, f"run={ddpm}", f"out={ddpm}", *QUICK, "sampler=ddpm")
    assert code == 73
    assert "holds a training run; give another folder" in message
    assert status(ddpm) == before


def test_an_edit_from_the_clean_end_takes_no_step_and_has_no_animation(ddpm, tmp_path, in_process):
    argv = (f"out={tmp_path / 'a'}", *QUICK, "how=edit", "t0=[0]", "count=2", "precision=fp32")
    assert in_process("restore", f"run={ddpm}", *argv) == (0, "")
    assert (tmp_path / "a" / "restored.png").exists()
    assert not (tmp_path / "a" / "trajectory.gif").exists()


def test_a_likelihood_of_one_image_has_no_standard_error(ddpm, tmp_path, in_process):
    argv = (f"out={tmp_path}", "spacing=trailing", "spacing.count=3", "runtime.threads=1", "count=1")
    assert in_process("likelihood", f"run={ddpm}", *argv) == (0, "")
    assert "standard error" not in json.loads((tmp_path / "likelihood.json").read_text())["figures"]


@pytest.mark.parametrize(
    ("tool", "argv", "line"),
    [
        ("sample", ("count=3", "batch=2"), "sampling: step 10 of 10 (100 %)"),
        ("restore", ("count=2", "t0=[1]", "how=edit", "repeats=2"), "restoring: step 10 of 10 (100 %)"),
        ("restore", ("count=2", "how=undo"), "restoring: step 6 of 6 (100 %)"),
        ("restore", ("count=2", "how=interpolate"), "restoring: step 25 of 25 (100 %)"),
        ("likelihood", ("count=2", "sampler=ddpm"), "bounding: step 5 of 5 (100 %)"),
    ],
)
def test_steps_are_counted_off_a_terminal(ddpm, tmp_path, in_process, capsys, monkeypatch, tool, argv, line):
    monkeypatch.setattr("ldae.core.progress.INTERVAL", 0.0)
    monkeypatch.setattr("ldae.core.progress.INTERVAL_FRACTION", 0.0)
    five = ("spacing=trailing", "spacing.count=5", "runtime.threads=1", "precision=fp32")
    assert in_process(tool, f"run={ddpm}", f"out={tmp_path / 'a'}", *five, *argv) == (0, "")
    assert line in capsys.readouterr().err
