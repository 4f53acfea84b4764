"""ldae ddim-table: every cell once, and the rules that its rows stand for."""

from __future__ import annotations

import json

import pytest
import torch

from ldae.app.sampling import ddim_table
from ldae.app.training import pretrain
from ldae.core.files import load_tensors

ROWS = ("eta = 0", "eta = 0.2", "eta = 0.5", "sigma-hat")
SMALL = (
    "data=digits",
    "denoiser.channels=8",
    "denoiser.multipliers=[1,2]",
    "denoiser.attention=[]",
    "train.steps=4",
    "train.epochs=null",
    "train.batch=32",
    "monitor.num_evals=0",
    "runtime.threads=1",
    "runtime.progress=false",
)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    """A run of a small DDPM on digits."""
    out = tmp_path_factory.mktemp("runs") / "ddpm"
    pretrain.main(["experiment=ddpm/cifar10_cpu", f"out={out}", *SMALL])
    return out


@pytest.fixture
def table(in_process, ddpm, tmp_path):
    """Run the command with four rows and two columns: (exit code, message)."""

    def run(*argv):
        cells = (
            "steps=[2,4]",
            "eta=[0,0.2,0.5]",
            "sigma_hat=true",
            "count=6",
            "batch=4",
            f"features={ddpm}",
            "precision=fp32",
        )
        quiet = ("runtime.threads=1", "runtime.progress=false")
        return in_process("ddim_table", f"run={ddpm}", f"out={tmp_path / 'out'}", *cells, *quiet, *argv)

    return run


def test_a_table_has_every_cell_and_measures_none_twice(table, tmp_path, capsys):
    assert table() == (0, "")
    out = tmp_path / "out"
    result = json.loads((out / "ddim.json").read_text())
    cells = {(cell["sampler"], cell["steps"]): cell for cell in result["cells"]}
    assert set(cells) == {(row, s) for row in ROWS for s in (2, 4)}
    distance = next(name for name in result["cells"][0] if name.startswith("frechet_distance"))
    assert len({cell[distance] for cell in cells.values()}) == 8  # each measured for itself
    assert all(cell["seconds_per_image"] > 0 for cell in cells.values())
    text = (out / "ddim.md").read_text()
    assert "| eta = 0.5 | " in text  # published
    assert "367.43" in text
    assert "kernel_distance[encoder" in text
    assert "standard error in brackets" in text
    assert "infinity" not in text  # six images are too few to extrapolate from
    assert {p.suffix for p in (out / "figures").iterdir()} == {".svg", ".pdf", ".png", ".csv"}
    assert (out / "samples.png").exists()
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert len(before) == 16
    lost = next(path for path in before if path.name.startswith("eta0.2-S4") and path.suffix == ".json")
    lost.write_text("{")
    capsys.readouterr()
    assert table() == (0, "")
    assert "8 cells, 7 of them done" in capsys.readouterr().out
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {lost, lost.with_name(lost.name.removesuffix("json") + "safetensors")}


def test_enough_images_give_the_extrapolated_distance_too(table, tmp_path):
    assert table("steps=[1]", "eta=[0]", "sigma_hat=false", "count=60", "batch=60") == (0, "")
    (cell,) = json.loads((tmp_path / "out" / "ddim.json").read_text())["cells"]
    name = next(name for name in cell if name.startswith("frechet_distance_infinity[encoder"))
    text = (tmp_path / "out" / "ddim.md").read_text()
    assert f"{name}: extrapolated" in text
    assert f"| eta = 0 | {cell[name]:.4g} |" in text


def test_all_cells_start_from_the_same_noise_and_eta_changes_what_becomes_of_it(table, tmp_path):
    """At S = 1 no rule adds noise, so that every row has the same images."""
    assert table("steps=[1,3]") == (0, "")
    images = {}
    for path in (tmp_path / "out" / "cells").glob("*.safetensors"):
        row, steps = path.name.split("-S")
        images[row, int(steps.split("-")[0])] = load_tensors(path)["images"]
    assert torch.equal(images["eta0", 1], images["eta0.5", 1])
    assert torch.equal(images["eta0", 1], images["sigma-hat", 1])
    assert not torch.equal(images["eta0", 3], images["eta0.5", 3])


def test_published_figures_have_the_known_pattern():
    """Table 1 of arXiv 2010.02502: eta = 0 is best but at 1000 steps, where sigma-hat is."""
    best = [min(ddim_table.PUBLISHED, key=lambda row: ddim_table.PUBLISHED[row][k]) for k in range(5)]
    assert best == ["eta = 0"] * 4 + ["sigma-hat"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("steps=[2000]",), "steps=2000 must be at most 1000"),
        (("steps=[2,2]",), "must name each once"),
        (("eta=[2]",), "eta=2"),
        (("eta=[]", "sigma_hat=false"), "leaves no row"),
        (("count=3",), "is too few"),
        (("spacing=all",), "takes no number of steps"),
    ],
)
def test_what_cannot_work_is_one_sentence(table, argv, message):
    code, error = table(*argv)
    assert message in error
    assert code == 2


def test_a_run_on_degraded_images_is_refused(in_process, tmp_path):
    pretrain.main(["experiment=cold_color/cifar10_cpu", f"out={tmp_path / 'run'}", *SMALL, "schedule.T=5"])
    code, message = in_process("ddim_table", f"run={tmp_path / 'run'}")
    assert "does not make images from noise alone" in message
    assert code == 2
