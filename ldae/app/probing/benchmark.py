"""Score encoders on a suite of data sets, and compare them: accuracies, paired differences, ranks.

    ldae benchmark encoders=[ldae-64x4-photos,untrained:ldae-64x4-photos,pixels,pca]
    ldae benchmark encoders=[RUN,OTHER_RUN,untrained:RUN] suite=small root=DIR only=[cifar10,fashion]
    ldae benchmark encoders=[timm:vit_base_patch16_224.mae@FILE] suite=imagenet root=IMAGENET
    ldae benchmark encoders=[RUN] suite=FILE.yaml root=DIR     # your own data sets and tasks
    ldae benchmark encoders=[RUN,encoder.onnx,my_encoder:features]     # encoders of other programs

A suite names data sets and tasks, each a list of arguments of `ldae probe` (see configs/suite). Every encoder is scored
on every data set in every task; finished ones are not scored again, so that the same command continues where it was
stopped. The table marks the best of a column, and with ~ those whose difference to it is within noise (95 % bootstrap
interval over the test images). Writes OUT/results.jsonl, a line for each accuracy, OUT/benchmark.md, the tables, and
OUT/index.html, a page with accuracies, differences and mean ranks; its figures lie in OUT/figures as SVG, PDF, PNG and
CSV, LaTeX tables in OUT/tables, and the numbers in OUT/accuracies.csv and differences.csv.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.probing.suites import BenchmarkSettings, Cell, Suite, cells_of
from ldae.app.session import make_out, root_settings
from ldae.config.schema import construct
from ldae.core.errors import ConfigError, DataError, Fault, Interrupted
from ldae.core.files import write_text
from linear_probe.comparison import Column, Comparison
from linear_probe.report.benchmark_page import write_benchmark
from linear_probe.results import Result, write_results

SUITE_FILE = re.compile(r"suite=.*\.ya?ml")


def main(argv: Sequence[str]) -> None:
    """Run `ldae benchmark`."""
    config, precision = _config(argv)
    settings: BenchmarkSettings = root_settings(BenchmarkSettings, config)
    suite: Suite = construct(Suite, config["suite"], {})
    announce(precision)
    cells = list(cells_of(config, settings, suite))
    out = Path(settings.out).expanduser()
    make_out(out)
    failures = _run(cells, out)
    scored = {cell: results for cell in cells if (results := cell.results(out))}
    if scored:
        write_results(out / "results.jsonl", [result for results in scored.values() for result in results])
        comparison = compare(scored)
        text = tables(suite, comparison, scored)
        write_text(out / "benchmark.md", text)
        write_benchmark(comparison, out, f"Benchmark on the suite {suite.name}", lead(suite, comparison), notes(scored))
        print(f"\n{text}\n{out / 'results.jsonl'} has a line for each accuracy, {out / 'benchmark.md'} these tables,")
        print(f"{out / 'index.html'} a page with figures.")
    if failures:
        failed = f"{len(failures)} of {len(cells)} measurements failed"
        print(f"{failed}; the same command tries them again", file=sys.stderr, flush=True)
        raise failures[0]


def _config(argv: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Return the resolved config with its suite, from a file where `suite=FILE.yaml` names one, and the precision."""
    files = [word.partition("=")[2] for word in argv if SUITE_FILE.fullmatch(word)]
    others = [word for word in argv if not SUITE_FILE.fullmatch(word)]
    config, precision = settle_precision(resolved(compose("benchmark", others)))
    if not files:
        return config, precision
    try:
        suite = yaml.safe_load(Path(files[-1]).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no YAML"
        raise ConfigError("suite", files[-1], f"cannot be read ({reason})") from None
    if not isinstance(suite, dict):
        raise ConfigError("suite", files[-1], "has no keys; it needs name, data and tasks")
    return {**config, "suite": {"name": Path(files[-1]).stem, **suite}}, precision


def _run(cells: Sequence[Cell], out: Path) -> list[Fault]:
    """Score the missing cells, and return the faults of those that failed."""
    if not cells:
        raise DataError("none of the suite's data sets is there; root= is the folder that holds them")
    missing, failures = [cell for cell in cells if not cell.results(out)], []
    print(f"{len(cells)} measurements, {len(cells) - len(missing)} of them done, in {out}", flush=True)
    for number, cell in enumerate(missing, 1):
        name = f"[{number}/{len(missing)}] {cell.encoder} on {cell.data}, {cell.task}"
        print(name, flush=True)
        try:
            results = cell.score()
        except Interrupted:
            raise
        except Fault as fault:
            print(f"{name} failed: {fault}", file=sys.stderr, flush=True)
            failures.append(fault)
            continue
        cell.path(out).parent.mkdir(parents=True, exist_ok=True)
        write_results(cell.path(out), results)
    return failures


def compare(scored: Mapping[Cell, Sequence[Result]]) -> Comparison:
    """Return the comparison of all results."""
    names = short_names(list(dict.fromkeys(cell.encoder for cell in scored)))
    results: dict[Column, dict[str, Result]] = {}
    for cell, of_cell in scored.items():
        for result in of_cell:
            results.setdefault(Column(cell.data, cell.task, result.protocol), {})[names[cell.encoder]] = result
    return Comparison(list(names.values()), results)


def short_names(encoders: Sequence[str]) -> dict[str, str]:
    """Return the names of encoders in tables: of a path its last part, where that tells it from all others."""
    ends = {}
    for name in encoders:
        kind, _, path = name.rpartition(":")
        ends[name] = f"{kind}:{Path(path).name}".lstrip(":") if Path(path).expanduser().exists() else name
    counts = Counter(ends.values())
    return {name: end if counts[end] == 1 else name for name, end in ends.items()}


def lead(suite: Suite, comparison: Comparison) -> str:
    """Return what a benchmark measures, in a sentence, with the data set where it is the only one."""
    data = {column.data for column in comparison.results}
    name = f"Suite {suite.name}" if len(data) > 1 or data == {suite.name} else f"Suite {suite.name}, {data.pop()}"
    return f"{name}: top-1 accuracy on the test images, percent, or what a column says."


def notes(scored: Mapping[Cell, Sequence[Result]]) -> list[str]:
    """Return the doubts about single results, each once."""
    doubts = (f"{cell.data}: {note}" for cell, of_cell in scored.items() for r in of_cell for note in r.warnings)
    return list(dict.fromkeys(doubts))


def tables(suite: Suite, comparison: Comparison, scored: Mapping[Cell, Sequence[Result]]) -> str:
    """Return the tables of a benchmark, as Markdown."""
    parts = [
        f"{lead(suite, comparison)} Bold: the best; ~: not worse than the best beyond noise (95 % bootstrap interval "
        "of the difference over the images).",
        comparison.table(),
    ]
    further = comparison.further_tables()
    parts += ["Other measures of the same images, percent.", *further] if further else []
    if len(comparison.encoders) > 1:
        heading = "Differences in percentage points, with 95 % bootstrap intervals over the images."
        parts += [heading, comparison.differences()]
    if comparison.mean_ranks() and len({column.data for column in comparison.results}) > 1:
        parts += [
            "Mean ranks over the data sets; two encoders differ from the critical difference on (Nemenyi, 0.05).",
            comparison.rank_table(),
        ]
    return "\n\n".join([*parts, *(f"Warning: {note}." for note in notes(scored))]) + "\n"
