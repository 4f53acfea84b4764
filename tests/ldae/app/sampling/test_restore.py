"""Files that `ldae restore` writes beside its pictures: arrays, guides, and the curve of SDEdit."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import ldae
from ldae.app.sampling.curve import draw_curve
from ldae.app.sampling.restore import main
from ldae.app.training import pretrain

SMALL = ("data=digits", "denoiser.channels=8", "denoiser.multipliers=[1,2]", "denoiser.attention=[]", "train.steps=4",
         "train.batch=16", "monitor.num_evals=0", "runtime.threads=1", "runtime.progress=false")  # fmt: skip
QUICK = ("how=edit", "sampler=ddim", "spacing=trailing", "spacing.count=5", "runtime.threads=1",
         "runtime.progress=false", "gif=false", "data.workers=0")  # fmt: skip


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ddpm"
    pretrain.main(["experiment=ddpm/cifar10_cpu", *SMALL, f"out={out}"])
    return out


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def columns_of(folder):
    with np.load(folder / "restored.npz") as file:
        return {name: file[name] for name in file.files}


def test_the_written_guides_give_the_same_edits(ddpm, photographs, tmp_path):
    argv = (f"run={ddpm}", f"pictures={photographs}", "t0=[0.4]", *QUICK)
    first, second = tmp_path / "first", tmp_path / "second"
    main([*argv, "palette=kmeans", "colours=3", f"out={first}"])
    main([*argv, f"guide={first / 'guides'}", f"out={second}"])
    expected, actual = columns_of(first), columns_of(second)
    assert list(expected) == ["original", "guide", "t0=0.4"]
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)
    guides = [np.asarray(Image.open(first / "guides" / f"{i}.png")) for i in range(3)]
    assert np.array_equal(np.stack(guides), expected["guide"])
    assert all(len(np.unique(guide.reshape(-1, 3), axis=0)) <= 3 for guide in guides)
    assert not (second / "guides").exists()
    columns = ldae.load_generator(ddpm).columns(photographs, how="edit", t0=[0.4], sampler="ddim", steps=5,
                                                palette="kmeans", colours=3)  # fmt: skip
    assert all(np.array_equal(columns[name], expected[name]) for name in expected)


def test_the_curve_goes_from_the_guide_over_every_t0(ddpm, tmp_path):
    out = tmp_path / "o"
    main([f"run={ddpm}", "split=test", "count=8", "t0=[0.2,0.6]", f"features={ddpm}", f"out={out}", *QUICK])
    assert Image.open(out / "curve.png").width > 500
    assert (out / "curve.pdf").read_bytes().startswith(b"%PDF")
    figures = json.loads((out / "restored.json").read_text())["figures"]
    assert list(figures) == ["guide", "t0=0.2", "t0=0.6"]
    texts = [e.text for e in ElementTree.parse(out / "curve.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"guide", "0.2", "0.6"} <= set(texts)
    columns = columns_of(out)
    for name in ("t0=0.2", "t0=0.6"):
        error = (columns[name].astype(float) - columns["guide"]) / 255
        expected = np.sqrt((error**2).sum((1, 2, 3))).mean()
        assert figures[name]["l2"] == pytest.approx(expected, rel=0.02)  # of values before rounding


def test_a_point_lies_at_its_distances():
    points = [("guide", 0.0, 7.0, 0.5), ("t0=0.2", 1.5, 5.0, 1.0), ("t0=0.5", 4.0, 3.0, 0.25)]
    axes = draw_curve(points, "KID").figure.axes[0]
    (line,) = (line for line in axes.lines if line.get_gid() == "curve")
    assert line.get_xydata().tolist() == [[x, y] for _, x, y, _ in points]
    (bars,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[y - e, y + e] for _, _, y, e in points]
    assert [text.get_text() for text in axes.texts] == ["guide", "0.2", "0.5"]


@pytest.mark.parametrize("how", ["invert", "interpolate"])
def test_nothing_is_clipped_on_the_way_back_from_inverted_noise(ddpm, tmp_path, how):
    """The inversion clips nothing, so that only a decoding without clipping is its inverse."""
    argv = ("split=test", "count=4", *QUICK[1:2], "spacing=linear", "spacing.count=50", *QUICK[4:])
    for out, clip in (("default", ()), ("plain", ("clip=false",)), ("clipped", ("clip=true",))):
        main([f"run={ddpm}", f"how={how}", f"out={tmp_path / out}", *argv, *clip])
    default, plain, clipped = (columns_of(tmp_path / out) for out in ("default", "plain", "clipped"))
    assert all(np.array_equal(default[name], plain[name]) for name in plain)
    assert any(not np.array_equal(default[name], clipped[name]) for name in plain)
    if how == "invert":
        errors = {out: json.loads((tmp_path / out / "restored.json").read_text())["figures"]["again"]["mse"]
                  for out in ("default", "clipped")}  # fmt: skip
        assert errors["default"] < errors["clipped"]
