"""The figures of reports and probes: what they show, that nothing is cut off, and that their files are reproducible."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import ROOT
from matplotlib.text import Text
from PIL import Image
from report_rows import baselines, result, row, tokenizer_rows

from linear_probe.report.contents import build_contents
from linear_probe.report.figures import draw_selection, find_trend, grid_figures, schedule_figure
from linear_probe.report.heatmaps import HeatMap, draw_heatmaps
from linear_probe.report.lines import Point, XAxis, draw_lines
from linear_probe.report.plotting import COLORS, DPI, INTERVAL, LIGHT, WIDTH, Bar, describe_error_bars, draw_bars
from linear_probe.report.rendering import file_name, inline_svg, render

NASTY = ("_hidden", "$x$ and $\\frac$", "<script>alert(1)</script>", "a & b \x00\n c", "é → 100 %", "n" * 150)
BARS = [Bar("one", 50.0, 0.5), Bar("two", 40.0), Bar("three", None), Bar("MAE", 30.0, 2.0, is_baseline=True)]
SERIES = {
    "a": [Point(4, 50.0, 0.5), Point(8, 52.0, 0.25), Point(32, 51.0)],
    "b": [],
    "c": [Point(4, 40.0), Point(8, 41.0), Point(32, 42.0)],
}
VALUES = [[10.0, 20.0], [None, 15.0]]


LONG_TITLE = "a long title of a figure, DINOv2 (ImageNet-100, validation, 256 pixels)"


def bars(shown=BARS, title="title"):
    return draw_bars(title, "about", shown, "series-0")


D = XAxis("d", True, (4, 8, 32))


def lines(series=SERIES, x=D, title="title"):
    return draw_lines(title, "about", series, x, "top-1 accuracy (%)")


def heatmaps(rows=("1", "2"), columns=("t=0 clean", "t=10 noised"), values=VALUES, chosen=(0, 1), title="linear"):
    return draw_heatmaps("title", "about", [HeatMap(title, rows, columns, values, chosen)] * 2, "noise level", "layer")


def error_bars(axes):
    """The half lengths of all error bars along x or y, by the middle of each."""
    half_lengths = {}
    for container in axes.containers:
        for bars in getattr(container, "lines", [None, None, ()])[2]:
            for segment in bars.get_segments():
                if len(segment) and np.isfinite(segment).all():
                    length = np.abs(segment[1] - segment[0]).max() / 2
                    half_lengths[tuple(np.round(segment.mean(0), 9))] = round(length, 9)
    return half_lengths


def texts(figure):
    """Every text that is shown: matplotlib leaves out ticks beyond the ends of an axis."""
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


def flat(text):
    """`text` without spaces and what cannot be printed: where lines break does not matter."""
    return "".join(c for c in text if c.isprintable() and not c.isspace())


def assert_readable(figure):
    """Nothing is cut off, and no two texts overlap."""
    boxes = {t: t.get_window_extent() for t in texts(figure)}
    for text, box in boxes.items():
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= figure.bbox.x1 + 0.5, text
        assert box.y1 <= figure.bbox.y1 + 0.5, text
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert not (width > 1 and height > 2), (a, b)  # boxes of text have air above and below


def test_bars_have_the_values_and_error_bars_of_one_standard_deviation():
    (axes,) = bars().figure.axes
    assert [patch.get_width() for patch in axes.patches] == [50.0, 40.0, 30.0]
    assert {x: length for (x, _), length in error_bars(axes).items()} == {50.0: 0.5, 30.0: 2.0}
    assert [t.get_text() for t in axes.texts] == ["50.0 ± 0.5", "40.0", "30.0 ± 2.0"]
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlabel() == "top-1 accuracy (%)"


def test_lines_have_the_values_and_error_bars_of_one_standard_deviation():
    figure = lines().figure
    (axes,) = figure.axes
    drawn = [container.lines[0].get_xydata().tolist() for container in axes.containers]
    assert drawn == [[[p.x, p.y] for p in points] for points in SERIES.values() if points]
    assert error_bars(axes) == {(4.0, 50.0): 0.5, (8.0, 52.0): 0.25}
    colors = [container.lines[0].get_color() for container in axes.containers]
    assert colors == [LIGHT["series-0"], LIGHT["series-2"]]  # a series without points keeps its colour
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "c"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "8", "32"]
    assert axes.get_xlabel() == "d (log scale)"


def test_heat_maps_have_every_value_and_frame_the_chosen_one():
    for axes in heatmaps().figure.axes:
        (mesh,) = axes.collections
        assert mesh.get_array().filled(-1).ravel().tolist() == [10.0, 20.0, -1.0, 15.0]
        assert [t.get_text() for t in axes.texts] == ["10.0", "20.0", "15.0"]
        assert [t.get_weight() for t in axes.texts] == ["normal", "bold", "normal"]
        assert {patch.get_xy() for patch in axes.patches} == {(1, 0)}
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in mesh.cmap(np.linspace(0, 1, 101))]
    assert all(a < b for a, b in itertools.pairwise(lightness))
    for axes in heatmaps(values=[[1.0, 1.0], [1.0, 1.0]], chosen=None).figure.axes:
        assert not axes.patches


@pytest.mark.parametrize(
    "drawing",
    [
        bars,
        lines,
        heatmaps,
        lambda: bars([Bar(f"{i:02}_a_step_of_the_path", 50.0 + i, 0.5) for i in range(40)]),
        lambda: bars([*BARS, Bar("the network of 12_ldae with other settings, untrained", 1.0, None, True)]),
        lambda: bars([Bar(name, 50.0) for name in NASTY], "paper: ImageNet, ViT-L scale"),
        lambda: bars(BARS[:2], LONG_TITLE),
        lambda: lines(title=LONG_TITLE),
        lambda: lines({f"a name of a series, number {i}": [Point(i, i), Point(i + 9, i)] for i in range(9)}),
        lambda: lines({name: [Point(4, 1), Point(8, 1 + i)] for i, name in enumerate(NASTY)}),
        lambda: lines({"a": [Point(v, v) for v in (100, 101, 102, 1000)]}, XAxis("n", False, (100, 101, 102, 1000))),
        lambda: heatmaps(["1" * 30, "2"], ["t=0 clean cls+mean", "b" * 40], title="a long title " * 9),
        lambda: heatmaps(
            [str(i) for i in range(24)],
            [f"t={t} {kind}" for t in (1, 10, 100, 1000) for kind in ("clean", "noised")],
            [[i + j / 10 for j in range(8)] for i in range(24)],
        ),
        lambda: heatmaps(["1"], ["t=0 clean"], [[1.0]], None),
        lambda: schedule_figure({"linear": [1.0, 0.5, 0.0], "constant": [0.5] * 100}, set()).drawing,
    ],
)
def test_nothing_is_cut_off_or_overlaps(drawing):
    assert_readable(drawing().figure)


def test_every_trial_has_its_label():
    names = [*NASTY, "12_ldae"]
    (axes,) = bars([Bar(name, 50.0) for name in names]).figure.axes
    assert [flat(t.get_text()) for t in axes.get_yticklabels()] == list(map(flat, names))
    figure = lines({name: [Point(4, 1), Point(8, 2)] for name in names}).figure
    assert [flat(t.get_text()) for t in figure.legends[0].get_texts()] == list(map(flat, names))


@pytest.mark.parametrize("drawing", [bars, lines, heatmaps])
def test_files_open_and_are_made_for_papers(drawing):
    drawn = drawing()
    files = render(drawn)
    image = Image.open(io.BytesIO(files["png"]))
    assert image.size == pytest.approx(tuple(drawn.figure.get_size_inches() * DPI), abs=1)
    assert image.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    assert files["pdf"].startswith(b"%PDF-")
    assert files["pdf"].rstrip().endswith(b"%%EOF")
    assert b"/FontFile2" in files["pdf"]  # TrueType
    root = ElementTree.fromstring(files["svg"])
    shown = "".join(root.itertext())
    assert all(t.get_text().split("\n")[0] in shown for t in texts(drawn.figure))  # text, not outlines
    for content in files.values():
        assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate|D:20\d\d", content)
    if drawing is not heatmaps:
        assert drawn.figure.get_figwidth() == WIDTH


SCRIPT = """
import hashlib, sys
from test_report_figures import bars, heatmaps, lines
from linear_probe.report.rendering import render
for drawing in (bars(), lines(), heatmaps()):
    print(*(hashlib.sha256(content).hexdigest() for content in render(drawing).values()))
"""


def test_files_are_the_same_bytes_in_every_process_whatever_matplotlibrc_says(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\nsvg.hashsalt: other\n")
    folders = [ROOT, ROOT / "tests", ROOT / "tests" / "linear_probe"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    other = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "SOURCE_DATE_EPOCH": "0"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env | more, capture_output=True, text=True, check=True
        ).stdout
        for more in ({}, other)
    ]
    assert len(outputs[0].split()) == 12
    assert outputs[0] == outputs[1]


def test_matplotlib_is_imported_when_a_figure_is_drawn():
    code = "import sys, linear_probe.report.write; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("drawing", [bars, lines, heatmaps])
def test_an_embedded_figure_takes_its_colours_from_the_page(drawing):
    drawn = drawing()
    text = inline_svg(render(drawn)["svg"], drawn, "name")
    cells = set()
    if drawing is heatmaps:
        colors = drawn.figure.axes[0].collections[0].cmap(np.arange(256), bytes=True)
        cells = {"#" + bytes(color[:3]).hex() for color in colors}
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(COLORS)
    assert "var(--text)" in text
    assert not set(re.findall(r"#[0-9a-f]{6}", text)) & set(LIGHT.values())
    assert not cells & set(LIGHT.values())
    assert "<style" not in text
    assert "font-family" not in text


def test_points_of_an_embedded_figure_have_their_values_as_tooltips():
    for drawn, expected in (
        (bars(), ["one: 50.00 ± 0.50", "two: 40.00", "MAE: 30.00 ± 2.00"]),
        (lines(), ["a, d = 4: 50.00 ± 0.50", "a, d = 8: 52.00 ± 0.25", "a, d = 32: 51.00", *("c, d = " + p for p in (
            "4: 40.00", "8: 41.00", "32: 42.00"))]),
    ):  # fmt: skip
        root = ElementTree.fromstring(inline_svg(render(drawn)["svg"], drawn, "name"))
        titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
        assert titles == ["title", *expected]


def contents_of(*axes):
    rows = [row(str(i), {"lbfgs": 1.0 + i}, axes=a) for i, a in enumerate(axes)]
    return build_contents("t", rows, [], {})


def test_lines_where_an_axis_is_a_number_and_bars_where_none_is():
    d = (4, 8, 16, 32)
    trend = find_trend(contents_of(*({"tokenizer": n, "d": v} for n in "ab" for v in d)).entries)
    assert (trend.x.label, trend.x.log2, list(trend.series)) == ("d", True, ["a", "b"])
    assert [x for x, _ in trend.series["b"]] == list(d)
    of_text = find_trend(contents_of(*({"t": str(v)} for v in (0, 10, 20))).entries)
    assert (of_text.x.label, of_text.x.log2) == ("t", False)
    dependent = find_trend(contents_of(*({"size": 8 * v, "patch": v} for v in (1, 2, 4))).entries)
    assert [len(points) for points in dependent.series.values()] == [3]
    for steps in (
        [{"step": f"{i:02}_x"} for i in range(4)],
        [{"seed": i} for i in range(4)],
        [{}, {}],
        [{"size": "256_16"}] * 3,
    ):
        assert find_trend(contents_of(*steps).entries) is None


def test_a_grid_has_a_figure_for_each_protocol_and_one_of_the_paper():
    contents = build_contents("t", tokenizer_rows(), baselines(), {})
    ((_, trials),) = contents.groups().items()
    figures = grid_figures(contents, trials, set())
    assert [f.name for f in figures] == [f"made-up-tokenizers-tiny-{name}" for name in ("lbfgs", "knn", "paper")]
    titles = ["linear (MadeUp, test)", "kNN (MadeUp, test)", "paper: ImageNet, ViT-L scale"]
    assert [f.drawing.title for f in figures] == titles
    assert [f.caption for f in figures] == [
        "Error bars: standard deviation over seeds.", "", "a made-up paper",
    ]  # fmt: skip
    (axes,), (other,) = (figure.drawing.figure.axes for figure in figures[:2])
    assert axes.get_ylim() == other.get_ylim()  # panels that are compared
    levels = {line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert levels >= {r.accuracy for r in baselines() if r.protocol == "lbfgs"}
    deviations = {
        (float(r.axes["d"]), round(r.results[0].accuracy, 9)): r.results[0].deviation for r in tokenizer_rows()
    }
    assert error_bars(axes) == pytest.approx(deviations)


def test_a_caption_names_every_kind_of_error_bar():
    """Bars of single seeds, such as those of baselines, are intervals beside deviations of others."""
    seeds, images = "standard deviation over seeds", "95 % bootstrap interval over the images"
    one, many = (None, (40.0, 42.0)), (0.5, (40.0, 42.0))
    assert describe_error_bars([many]) == f"Error bars: {seeds}."
    assert describe_error_bars([one, (None, None)]) == f"Error bars: {images}."
    assert describe_error_bars([one, many]) == f"Error bars: {seeds}; of a single seed, {images}."
    assert describe_error_bars([(None, None)]) == ""


def test_bars_of_baselines_are_in_the_caption():
    rows = [replace(row, axes={"target": name}) for row, name in zip(tokenizer_rows(), "abc", strict=False)]
    intervals = [replace(r, low=r.accuracy - 1, high=r.accuracy + 1) for r in baselines()]
    contents = build_contents("t", rows, intervals, {})
    ((_, trials),) = contents.groups().items()
    caption = grid_figures(contents, trials, set())[0].caption
    assert caption == "Error bars: standard deviation over seeds; of a single seed, " + INTERVAL + "."


def test_the_heat_maps_of_a_trial_are_of_its_results():
    drawing = draw_selection("a", [result(50.0), result(50.0, "knn")])
    titles = [flat(axes.get_title("left")) for axes in drawing.figure.axes]
    assert titles == ["linear,%onthehold-out", "kNN,%onthehold-out"]
    for axes in drawing.figure.axes:
        assert {t.get_text() for t in axes.texts} == {"40.0", "41.0", "44.0", "43.0"}
        assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2"]
        assert [t.get_text() for t in axes.get_xticklabels()] == ["t=10\nclean", "t=40\nnoised"]
        assert {patch.get_xy() for patch in axes.patches} == {(0, 1)}  # t = 10, layer 2
    assert draw_selection("a", [result(50.0, selected={"among": {"layer2-t10-clean-mean": 44.0}})]) is None
    among = {f"layer{i}-t10-clean-{p}": 10.0 * i + (p == "cls") for i in (1, 2) for p in ("mean", "cls", "cls+mean")}
    (axes,) = draw_selection("a", [result(50.0, selected={"among": among}, pooling="cls")]).figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["t=10\nclean\n" + p for p in ("cls", "cls+mean", "mean")]
    assert {patch.get_xy() for patch in axes.patches} == {(0, 1)}


def test_names_of_files_are_plain_and_unique():
    used = set()
    names = [file_name(text, used) for text in ("a/b c", "a b/c", "../..", "é" * 9, "x" * 300, "x" * 300, "", "1 %")]
    assert names == ["a-b-c", "a-b-c-2", "figure", "figure-2", "x" * 80, "x" * 80 + "-2", "figure-3", "1-percent"]
