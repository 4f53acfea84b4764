"""python tools/bench: competitors in alternation, and protocols within a memory limit."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import re
from dataclasses import replace

import competitors_cold
import competitors_data
import numpy as np
import pytest
import torch
from bench import compared, met_by, table
from breakdown import kind_of, profiled, read_in_stages
from growth import Axis, draw_growth, measure_growth, write_growth
from interleaved import Competitor, Timed, function, interleaved
from PIL import Image
from rows import Row, cold_rows, input_rows, knn_rows, load_rows, probe_rows, training_rows, unet_rows

from ldae.app.probing.cost import START
from ldae.app.training import plan
from ldae.app.training.plan import cost_of, describe_cost
from ldae.core.errors import Fault

UNMARKED = {"scikit-learn", "l-DAE, not compiled", "fixed threads, with it"}
SMALL = ["features", "rows=400", "holdout=40", "queries=50", "dimensions=384", "classes=4", "epochs=1"]


def test_protocols_are_measured(in_process, tmp_path, capsys):
    assert in_process("bench", *SMALL, f"out={tmp_path}") == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "features.jsonl").read_text().splitlines()]
    knn, heads = lines
    assert (knn["protocol"], knn["whole"], heads["protocol"], heads["whole"]) == ("knn", 0, "dinov2", 12500)
    assert heads["steps"] == 1  # an epoch of one batch
    assert all(0.05 < line["peak"] < 8 and line["tried"] > 0 for line in lines)
    assert knn["accuracy"] > 40  # of four classes; it learned from what was drawn
    assert "knn: read" in capsys.readouterr().out


def test_too_little_memory_is_reported(in_process, tmp_path):
    argv = [*SMALL, "protocols=[knn]", "rows=300000", "dimensions=256", f"out={tmp_path}"]
    code, message = in_process("bench", *argv, "memory=0.25")
    assert code == 70
    assert "memory=0.25 GiB" in message
    assert not (tmp_path / "features.jsonl").exists()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("protocols=[knm]", "protocols='knm' is none of: lbfgs, knn"),
        ("holdout=400", "holdout=400 is not less than rows=400"),
        ("memory=0", "memory=0.0 must be above 0"),
        ("rows=0", "rows"),
    ],
)
def test_what_cannot_be_measured_is_refused(in_process, tmp_path, word, sentence):
    code, message = in_process("bench", *SMALL, word, f"out={tmp_path}")
    assert code == 2
    assert sentence in message


def test_rows_are_chosen_by_a_part_of_their_name(in_process, tmp_path):
    code, message = in_process("bench", "knn", "only=D = 200", f"out={tmp_path}")
    assert code == 2
    assert "only='D = 200' names no row of knn" in message
    assert in_process("bench", "probe", "only=13 rates", "rounds=1", "seconds=0.01", f"out={tmp_path}") == (0, "")
    assert {record["row"] for record in json.loads((tmp_path / "bench.json").read_text())["rows"]} == {"13 rates"}


def test_the_first_word_names_what_is_measured(in_process):
    assert in_process("bench")[0] == 2
    assert "features" in in_process("bench", "rows=3")[1]


def timed(name, work, *seconds):
    return Timed(Competitor(name, "m:f", {}), work, seconds, 1.0)


def test_ratios_are_of_rates_round_by_round():
    ours, peer = timed("ours", 10.0, 1.0, 2.0, 1.0), timed("peer", 5.0, 1.0, 1.0, 4.0)
    assert ours.ratio(peer) == (2.0, 1.0, 8.0)
    assert ours.rate == 10.0
    assert peer.ratio(ours)[0] == 0.5


def test_a_row_says_what_was_met():
    ours, peer, limit = timed("a", 6.0, 1.0), timed("b", 4.0, 1.0), timed("p", 12.0, 1.0)
    row = Row("r", "u/s", ours.competitor, [peer.competitor], {"b": 1.6}, limit.competitor, 0.4)
    (record,) = compared(row, [ours, peer, limit])
    assert (record["ratio"], record["share"], record["peer_share"]) == pytest.approx((1.5, 0.5, 1 / 3))
    line = table([record]).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == (
        ["r, u/s", "6", "50 % (aim 40)", "b", "4", "33 %", "1.50 (1.50 to 1.50)", "1.60", "no"]
    )


def test_competitors_alternate_in_separate_processes():
    small, large = (Competitor(str(n), "competitors:matmul", {"size": n, "precision": "float32"}) for n in (64, 512))
    timings = interleaved([small, large], threads=1, rounds=2, seconds=0.02)
    assert [len(t.seconds) for t in timings] == [2, 2]
    assert timings[1].work == 512 * timings[0].work
    assert timings[1].seconds[0] > timings[0].seconds[0]
    assert 0.05 < timings[0].peak < 8


def test_a_peer_that_fails_is_left_out_with_a_warning(capfd):
    right, wrong = (Competitor(k, "competitors:matmul", {k: 16, "precision": "float32"}) for k in ("size", "side"))
    timed = interleaved([right, wrong, right], threads=1, rounds=1, seconds=0.01)
    assert [t.competitor for t in timed] == [right, right]
    assert "warning: side: TypeError" in capfd.readouterr().err


def test_a_competitor_that_fails_is_named():
    with pytest.raises(Fault, match="wrong: TypeError"):
        interleaved([Competitor("wrong", "competitors:matmul", {"side": 3})], threads=0, rounds=1, seconds=0.01)


def test_every_competitor_can_be_built():
    """Each names a function that takes its arguments."""
    rows = [
        *training_rows("DIR", "fp32"),
        *unet_rows(None, "fp32"),
        *cold_rows("DIR", None),
        *knn_rows(),
        *probe_rows("fp32"),
        *load_rows("fp32"),
    ]
    for row in [*rows, *input_rows("DIR", "DIR", "fp32")]:
        assert set(row.marks) >= {peer.name for peer in row.peers} - UNMARKED
        for competitor in row.competitors:
            inspect.signature(function(competitor.make)).bind(**competitor.arguments)
        if row.same:
            inspect.signature(function(row.same)).bind(**row.ours.arguments)


def test_rows_whose_peers_are_not_there_are_left_out(capsys, monkeypatch):
    monkeypatch.setattr("rows.installed", lambda name, site: False)
    assert [row.name for row in unet_rows("NOWHERE", "fp32")] == ["SegDiff, sampling"]
    assert "diffusers is not installed, nor in site=NOWHERE: left out" in capsys.readouterr().err
    assert cold_rows(None, None) == []
    assert [row.name for row in input_rows(None, None, "fp32")] == ["training with its input"]


@pytest.fixture
def photographs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(4):
            noise = np.random.default_rng(k).integers(0, 256, (6, 9, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((90, 60)).save(tmp_path / name / f"{k}.jpg")
    return str(tmp_path)


def test_files_are_read_cut_and_summed(photographs):
    step, images = competitors_data.large(photographs, batch=4, size=32)
    assert (step(), images) == (None, 64)
    with competitors_data.decoded(photographs, batch=4)[0] as decode:
        assert decode() == 4 * 90 * 60
    assert not multiprocessing.active_children()
    summed, images = competitors_data.read_and_summed(photographs, batch=4, size=32, patch=8)
    assert (summed(), images) == (None, 64)


def test_blur_and_trajectory_are_the_operators():
    x, t = competitors_cold.pictures(4)
    blurred = competitors_cold.blur(4)[0]()
    last = competitors_cold.cifar_blur().blurred.table[t]
    assert torch.allclose(blurred[0], last[0] @ x[0] @ last[0].T, atol=1e-6)
    operators = competitors_cold.cifar_blur().blurred.table.rows
    z = operators[-1] @ x @ operators[-1].T
    for now in range(competitors_cold.T - 1, -1, -1):  # z - D(z, now) + D(z, then) for a network whose output is z
        then = operators[now - 1] @ z @ operators[now - 1].T if now else z
        z = z - operators[now] @ z @ operators[now].T + then
    assert torch.allclose(competitors_cold.trajectory(4)[0](), z, atol=1e-5)


def test_all_that_a_row_aims_at_counts():
    record = {"ratio": 1.2, "aim": 1.1, "share": 0.5, "aimed_share": None, "ours": 10.0, "least": None}
    assert met_by(record) == "yes"
    assert met_by({**record, "aim": 1.3}) == "no"
    assert met_by({**record, "aimed_share": 0.6}) == "no"
    assert met_by({**record, "least": 11.0}) == "no"
    assert met_by({**record, "aim": None}) == ""


@pytest.fixture
def timed_briefly(monkeypatch):
    monkeypatch.setattr(plan, "SECONDS", 0.1)


@pytest.mark.usefixtures("timed_briefly")
def test_the_cost_is_that_of_the_networks_formula(in_process, capsys):
    """A ViT block of width D on N tokens multiplies 12 D^2 + 2 N D numbers a token; backward is twice forward."""
    argv = ["experiment=ldae/digits", "train.steps=90", "runtime.threads=1", "gpu=a100"]
    cost = cost_of(argv[:-1])
    width, tokens, blocks = 64, 16, 4
    of_blocks = 3 * 2 * blocks * tokens * (12 * width**2 + 2 * tokens * width)
    assert of_blocks < cost.flop < 1.25 * of_blocks  # the rest: embedding, output, noise levels
    assert cost.images == 90 * 16
    assert cost.seconds_on("a100") == pytest.approx(cost.images * cost.flop / 156e12)
    assert cost.update == 0  # of AdamW

    assert in_process("plan", *argv) == (0, "")
    output = capsys.readouterr().out
    assert f"{cost.parameters:,} parameters" in output
    assert "1,440 images in batches of 16" in output
    assert "one A100" in output
    assert re.search(r"its probe here: \d+ s\n", output)  # of 1,797 digits, its start included
    assert START < float(cost.probe) < 60


@pytest.mark.usefixtures("timed_briefly")
def test_the_products_of_muon_are_shared_by_the_images_of_a_batch():
    """5 iterations of three products for each matrix; of a matrix (m, n), m <= n: 2 m^2 n + 2 m^3 + 2 m^2 n FLOP."""
    argv = ("experiment=ldae/digits", "train.steps=3", "train.epochs=null")
    plain, small, large = (
        cost_of([*argv, *more])
        for more in (("train.batch=8",), ("train.batch=8", "optim=muon"), ("train.batch=64", "optim=muon"))
    )
    matrices = [(64, 192), (64, 64), (64, 256), (64, 256)]  # qkv, proj, fc1, fc2 of a block
    of_block = sum(5 * (4 * m * m * n + 2 * m**3) for m, n in matrices)
    assert small.update == large.update == pytest.approx(4 * of_block)
    assert small.flop == large.flop == pytest.approx(plain.flop)
    assert "of the updates" in describe_cost(small, "a100")
    assert "one A100: 3 steps this small are bound by the launch of their kernels" in describe_cost(small, "a100")
    heavy = replace(small, flop=1e13, images=10**6)  # 8e13 FLOP a step
    assert "one A100: 17 h 48 min, if steps reach 50 % of its 312 TFLOP/s" in describe_cost(heavy, "a100")


def test_a_length_in_epochs_needs_the_data(in_process):
    code, message = in_process("plan", "experiment=ldae/cifar10_cpu")
    assert (code, "give data.root=FOLDER or train.steps=N" in message) == (2, True)
    assert "gpu='b100' is none of" in in_process("plan", "gpu=b100")[1]


def test_growth_is_measured_and_drawn(tmp_path):
    """A wider network takes more memory; every point is in the files."""
    axis = Axis("width of the network", (64, 512), lambda n: [f"denoiser.width={n}", "train.batch=4"])
    small, large = points = measure_growth({"width": axis}, "fp32", 1, rounds=1, seconds=0.01)
    assert [(p.axis, p.value, p.images) for p in points] == [("width", 64, 4), ("width", 512, 4)]
    assert 0 < small.seconds < large.seconds
    assert large.peak - small.peak > 0.2  # GiB: 26 million weights, their gradients, moments and averages
    write_growth(points, {"hardware": "here"}, tmp_path)
    assert json.loads((tmp_path / "growth.json").read_text())["points"][1]["peak"] == large.peak
    assert {path.suffix for path in tmp_path.glob("growth.*")} == {".json", ".svg", ".pdf", ".png", ".csv"}
    assert draw_growth(points).data[1] == ["width", 64, 1000 * small.seconds, small.peak]


@pytest.mark.parametrize(("what", "names"), [("growth", "images, tokens, d, width, ranks"), ("profile", "U-Net")])
def test_what_cannot_grow_or_be_profiled_is_refused(in_process, tmp_path, what, names):
    code, message = in_process("bench", what, "only=depth", f"out={tmp_path}")
    assert code == 2
    assert f"only='depth' names nothing of {what}" in message
    assert names in message


def test_a_profile_finds_the_products():
    stages = {s.name: s.milliseconds for s in profiled("competitors:matmul", {"size": 1024, "precision": "float32"})}
    products = stages.pop("matrix products")
    assert products > 10 * sum(ms for name, ms in stages.items() if name != "Python and the rest")
    kinds = {
        "aten::_softmax": "softmax",
        "aten::copy_": "copies and casts",
        "aten::mul": "element by element, and the rest",
    }
    assert {name: kind_of(name) for name in kinds} == kinds


def test_reading_is_timed_by_stages(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a" / "0.jpg")
    stages = {stage.name: stage.milliseconds for stage in read_in_stages(str(tmp_path), 32, count=3)}
    assert set(stages) == {"decode", "boxes", "crop and resize", "to floats"}
    assert all(milliseconds >= 0 for milliseconds in stages.values())
    assert stages["decode"] > 0
