"""Reports hold the numbers of the rows, refuse mixtures of results, and load no other file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image
from report_rows import LEVELS, baselines, result, row, tokenizer_rows, with_pictures

from linear_probe.agreement import Agreement, agreement
from linear_probe.report.contents import Unreportable, build_contents
from linear_probe.report.pictures import load_picture
from linear_probe.report.tables import escape_latex, escape_markdown, hours
from linear_probe.report.write import write_report

FILES = ["figures", "index.html", "results.jsonl", "table.csv", "table.md", "table.tex"]
NASTY = 'a<b & c_d 100% |x| {y} $z ~ ^ \\ #1 "q"'


class Elements(HTMLParser):
    """Every start tag with its attributes, and the texts of td elements; tags that do not match raise an error."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.trials = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        self.trials += [""] * (tag == "td")
        self.open += [tag] * (tag not in self.VOID)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.trials[-1] += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = with_pictures(tokenizer_rows(), folder)
    write_report(
        rows, baselines(), folder, folder / "out", "A made-up report", {"linear": [1 - i / 99 for i in range(100)]}
    )
    return rows, folder / "out"


def known_numbers(rows):
    """Every accuracy, deviation, paper's number and cost, as it must be printed."""
    results = [*(r for one in rows for r in one.results), *baselines()]
    numbers = {v for r in results for v in (r.accuracy, r.deviation)} | {v for r in rows for v in (r.paper, r.hours)}
    return {f"{v:.2f}" for v in numbers if v is not None}


@pytest.mark.parametrize("name", ["table.csv", "table.md"])
def test_every_number_of_the_plain_tables_is_a_number_of_the_rows(written, name):
    rows, out = written
    is_csv = name.endswith("csv")
    lines = [x for x in (out / name).read_text().splitlines()[is_csv:] if is_csv or x.startswith("|")]
    shown = set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", "\n".join(lines)))
    assert shown == known_numbers(rows)


def test_the_table_for_a_paper_has_a_caption_names_and_accuracies_alone(written):
    rows, out = written
    tex = (out / "table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\caption{") == tex.count(r"\label{tab:a-made-up-report}") == 1
    assert "Bold: the best trial." in tex
    head, *body = (line.removesuffix(r" \\").split(" & ") for line in tex.splitlines() if " & " in line)
    assert head == ["trial", "paper", "linear", "kNN"]
    assert len(body) == len(rows) + 3
    for i, protocol in ((2, "lbfgs"), (3, "knn")):
        best = max(r.accuracy for row in rows for r in row.results if r.protocol == protocol)
        (bold,) = [cells[i] for cells in body if "textbf" in cells[i]]
        assert bold.startswith(rf"\textbf{{{best:.2f}")


def test_the_best_trial_is_marked_on_the_page(written):
    rows, out = written
    page = Elements((out / "index.html").read_text())
    cells = [
        (attrs, text)
        for (_, attrs, _), text in zip([e for e in page.elements if e[0] == "td"], page.trials, strict=True)
    ]
    best = [float(attrs["data-v"]) for attrs, _ in cells if attrs["class"].endswith(" best")]
    values = ([r.accuracy for row in rows for r in row.results if r.protocol == p] for p in ("lbfgs", "knn"))
    assert sorted(best) == sorted(map(max, values))


def test_every_number_of_the_page_is_a_number_of_the_rows(written):
    rows, out = written
    trials = Elements((out / "index.html").read_text()).trials
    assert {n for c in trials for n in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", c)} == known_numbers(rows)


def test_values_that_sort_are_the_values_that_are_shown(written):
    page = Elements((written[1] / "index.html").read_text())
    tags = [attrs for tag, attrs, _ in page.elements if tag == "td"]
    for attrs, text in zip(tags, page.trials, strict=True):
        if "data-v" in attrs:
            assert float(attrs["data-v"]) == pytest.approx(float(text.split(" ±")[0].replace(",", "")), abs=0.005)


def test_results_are_flat_lines_with_their_place_in_the_grid(written):
    rows, out = written
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == sum(len(r.results) for r in rows) + len(baselines())
    first = lines[0]
    assert (first["grid"], first["trial"], first["axes"]) == (rows[0].grid, rows[0].trial, dict(rows[0].axes))
    assert first["accuracy"] == rows[0].results[0].accuracy
    kinds = {line["kind"] for line in lines if line["trial"] is None}
    assert kinds == {"trained baseline", "training-free baseline"}


def test_the_page_loads_nothing_and_describes_every_picture(written):
    rows, out = written
    text = (out / "index.html").read_text()
    page = Elements(text)
    for tag, attrs, _ in page.elements:
        for name in {"src", "href", "xlink:href"} & set(attrs):
            if tag == "a":  # the files of a figure, for a paper
                assert (out / attrs[name]).is_file()
            else:
                assert attrs[name].startswith(("data:", "#"))
    assert not re.search(r"url\((?!#)|@import|<script[^>]+src", text)
    pictures = [attrs for tag, attrs, _ in page.elements if tag == "img"]
    assert len(pictures) == len(rows) * (len(LEVELS) + 1)
    assert all(p["alt"].strip() for p in pictures)
    assert len({p["alt"] for p in pictures}) == len(pictures)
    drawn = [i for i, (tag, _, _) in enumerate(page.elements) if tag == "svg"]
    assert all([page.elements[i + 1][0], page.elements[i + 2][0]] == ["title", "desc"] for i in drawn)
    assert len(drawn) == 2 + 1 + 1 + len(rows)  # protocols, paper, schedules, heat maps of each trial
    assert len(text) < 1_000_000


def test_ids_are_unique_in_the_page_and_references_lead_to_one(written):
    text = (written[1] / "index.html").read_text()
    ids = [attrs["id"] for _, attrs, _ in Elements(text).elements if "id" in attrs]
    references = set(re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', text))
    assert len(ids) == len(set(ids))
    assert references
    assert references <= set(ids)


def test_names_are_printed_to_the_letter(tmp_path):
    rows = [
        row(NASTY, {"lbfgs": 50.0}),
        row("<script>alert(1)</script>", {"lbfgs": 51.0}, paper_source=NASTY, paper=1.0),
    ]
    write_report(rows, [], tmp_path, tmp_path, NASTY)
    page = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in page
    assert "a&lt;b &amp; c_d 100% |x|" in page
    Elements(page)
    tex = (tmp_path / "table.tex").read_text()
    assert r"a\textless{}b \& c\_d 100\% \textbar{}x\textbar{} \{y\} \$z \textasciitilde{} \textasciicircum{}" in tex
    body = (tmp_path / "table.md").read_text().split("\n\n")[2].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in body}) == 1  # as many columns everywhere
    assert r"a\<b \& c_d 100%" in body[2]


def test_escapes_leave_plain_words_alone():
    assert escape_latex("patch PCA, d = 16") == escape_markdown("patch PCA, d = 16") == "patch PCA, d = 16"
    assert escape_markdown("patch_pca _x_ *y*\n`z`") == r"patch_pca \_x\_ \*y\* \`z\`"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "holdout"}, "2 splits"),
        ({"labels": "1%"}, "2 fractions of labels"),
        ({"data": "Other"}, "2 data sets"),
        ({"data_fingerprint": "0" * 64}, "2 data sets"),
        ({"images": 99}, "2 numbers of images"),
        ({"protocol_source": "another head"}, "2 protocols of the name lbfgs"),
        ({"selected_on": "test"}, "2 splits that lbfgs's choices"),
        ({"accuracy": float("nan")}, "is no number"),
    ],
)
def test_mixtures_are_refused_and_nothing_is_written(tmp_path, change, message):
    rows = [row("a", {"lbfgs": 50.0}), row("b", [replace(result(51.0), **change)])]
    with pytest.raises(Unreportable, match=message):
        write_report(rows, [], tmp_path, tmp_path / "out", "t")
    assert not (tmp_path / "out").exists()


def test_others_are_of_the_same_images():
    with pytest.raises(Unreportable, match="raw pixels was measured on other images"):
        build_contents(
            "t", [row("a", {"lbfgs": 50.0})], [result(1.0, encoder="raw pixels", data_fingerprint="0" * 64)], {}
        )


def test_a_grid_over_image_sizes_has_a_fingerprint_for_each_size():
    rows = [
        row(str(size), [result(50.0, data_fingerprint=f"{size}" * 32)], axes={"size": size, "d": d})
        for size in (32, 64)
        for d in (4, 8)
    ]
    rows = [replace(r, trial=f"{r.axes['size']}-{r.axes['d']}") for r in rows]
    assert len(build_contents("t", rows, [], {}).rows) == 4
    other = replace(rows[0], trial="odd", results=[result(1.0, data_fingerprint="0" * 64)])
    with pytest.raises(Unreportable, match="2 data sets"):
        build_contents("t", [*rows, other], [], {})


def test_twins_and_empty_reports_are_refused():
    with pytest.raises(Unreportable, match="2 rows named a"):
        build_contents("t", [row("a", {"lbfgs": 1.0}), row("a", {"lbfgs": 2.0})], [], {})
    with pytest.raises(Unreportable, match="two results of protocol lbfgs"):
        build_contents("t", [row("a", [result(1.0), result(2.0)])], [], {})
    for rows in ([], [row("a", {})]):
        with pytest.raises(Unreportable, match="no trial has a result"):
            build_contents("t", rows, baselines(), {})


def test_equal_baselines_of_several_files_are_one_and_others_have_names_of_their_own():
    pixels = [result(31.0, encoder="raw pixels", checkpoint="none", config=c * 64) for c in "ab"]
    untrained = [
        result(v, encoder="untrained", checkpoint="none", config=c * 64) for v, c in ((20.0, "a"), (21.0, "b"))
    ]
    names = [e.name for e in build_contents("t", [row("a", {"lbfgs": 1.0})], [*pixels, *untrained], {}).baselines]
    assert names == ["raw pixels", "untrained (config aaaaaaaa)", "untrained (config bbbbbbbb)"]


def entries(ours, paper):
    rows = [row(str(i), {"lbfgs": a}, p) for i, (a, p) in enumerate(zip(ours, paper, strict=True))]
    return build_contents("t", rows, [], {}).entries


def rows_of(trials):
    return [entry.row for entry in trials if entry.row]


def test_spearman_by_hand():
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8; a trial without the paper's number is left out
    correlation = agreement(rows_of(entries([1, 2, 3, 4, 5, 99], [20, 10, 40, 30, 50, None])), "lbfgs")
    assert correlation is not None
    assert (round(correlation.rho, 12), correlation.count) == (0.8, 5)
    inverse = agreement(rows_of(entries([3, 2, 1], [1, 2, 3])), "lbfgs")
    assert str(inverse) == "-1.00 (95 % interval -1.00 to -1.00)"
    assert str(Agreement(-1e-4, 5, -1e-4, 0.5)) == "0.00 (95 % interval 0.00 to 0.50)"


@pytest.mark.parametrize("paper", [[1, 2, None], [5, 5, 5], [None] * 3])
def test_no_correlation_without_three_trials_or_an_order(tmp_path, paper):
    trials = entries([1, 2, 3], paper)
    assert agreement(rows_of(trials), "lbfgs") is None
    write_report([e.row for e in trials], [], tmp_path, tmp_path, "t")
    assert "pearman" not in (tmp_path / "table.md").read_text() + (tmp_path / "index.html").read_text()


def test_a_report_replaces_the_one_before_it(tmp_path):
    for value in (50.0, 60.0):
        write_report([row("a", {"lbfgs": value})], [], tmp_path, tmp_path, "t")
        assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert "60.00" in (tmp_path / "index.html").read_text()


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    write_report([row("a", {"lbfgs": 50.0})], [], tmp_path, tmp_path, "t")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("linear_probe.report.document.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report([row("a", {"lbfgs": 60.0})], [], tmp_path, tmp_path, "t")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("content", [None, b"no picture", "cut"])
def test_a_picture_that_cannot_be_read_is_a_note_in_its_place(tmp_path, content):
    file = tmp_path / "strip.png"
    if content == "cut":
        Image.effect_noise((64, 64), 99).convert("RGB").save(file)
        file.write_bytes(file.read_bytes()[:-2000])
    elif content:
        file.write_bytes(content)
    write_report([row("a", {"lbfgs": 1.0}, pictures={"filters": file.name})], [], tmp_path, tmp_path / "out", "t")
    reason = "is missing" if content is None else "cannot be read"
    assert f"filters: strip.png {reason}" in (tmp_path / "out" / "index.html").read_text()


def test_large_pictures_shrink_in_bytes_and_not_in_size(tmp_path):
    Image.effect_noise((256, 128), 60).convert("RGB").save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").stat().st_size
    kept, small = load_picture(tmp_path / "a.png", whole), load_picture(tmp_path / "a.png", 20_000)
    assert kept.uri.startswith("data:image/png")
    assert small.uri.startswith("data:image/webp")
    assert len(small.uri) < 4 / 3 * 20_000 + 100 < len(kept.uri)
    assert (small.width, small.height) == (256, 128)


def test_grids_and_units_have_columns_of_their_own(tmp_path):
    rows = [
        row("a", [result(1.0, checkpoint="1" * 64)], grid="one", hours=2.5),
        row("b", [result(2.0, checkpoint="1" * 64)], grid="one", hours=2.5),  # the same network, read otherwise
        row("a", [result(3.0, checkpoint="2" * 64)], grid="two", hours=1.25, unit="GPU"),
    ]
    assert len(build_contents("t", rows, [], {}).groups()) == 2
    write_report(rows, [], tmp_path, tmp_path, "t")
    head, _, *body = (tmp_path / "table.md").read_text().split("\n\n")[2].splitlines()
    names = [name.strip() for name in head.split("|")]
    records = [dict(zip(names, (v.strip() for v in line.split("|")), strict=True)) for line in body]
    assert [(r["grid"], r["core-hours"], r["GPU-hours"]) for r in records] == [
        ("one", "2.50", ""), ("one", "2.50", ""), ("two", "", "1.25"),
    ]  # fmt: skip
    assert "2.50 core-hours and 1.25 GPU-hours" in (tmp_path / "index.html").read_text()


def test_small_costs_are_not_zero():
    assert [hours(v) for v in (12.345, 0.1, 0.0123, 0.00456, 0)] == ["12.35", "0.10", "0.012", "0.0046", "0.00"]
