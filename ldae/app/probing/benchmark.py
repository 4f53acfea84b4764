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
CSV, a LaTeX table of each task and protocol in OUT/tables, and the numbers in OUT/accuracies.csv and differences.csv.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldae.app.compose import compose, resolved
from ldae.app.overrides import argument
from ldae.app.precision import announce, settle_precision
from ldae.app.probing.external import function_hash, load_function
from ldae.app.probing.probe import score
from ldae.app.session import make_out, root_settings
from ldae.config.schema import conform, construct
from ldae.core.errors import ConfigError, DataError, Fault, Interrupted
from ldae.core.files import json_hash, sha256, write_text
from ldae.core.types import Natural, PossiblyEmpty
from ldae.export.encoder import find_checkpoint
from ldae.export.timm import WEIGHTS
from linear_probe.comparison import Column, Comparison
from linear_probe.report.benchmark_page import write_benchmark
from linear_probe.results import Result, read_results, write_results

UNTRAINED, TIMM, LOCAL, FEATURES = "untrained:", "timm:", "local-dir:", "features:"
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
BASELINES = ("pixels", "pca")
SUITE_FILE = re.compile(r"suite=.*\.ya?ml")
FILE_NAME = re.compile(r"[^\w.@-]+")
ROOT = "{root}"  # in a suite: the folder of `root=`


@dataclass(frozen=True)
class BenchmarkSettings:
    """Configure a benchmark.

    Attributes:
        encoders: what is scored: folder of a run or of an export, name of an encoder of the package, `timm:NAME`,
            `timm:NAME@FILE` with weights from a file, `untrained:` before any of them, an .onnx file, MODULE:FUNCTION
            in Python, `features:FOLDER` with a file DATA.npz of features for each data set, `pixels` or `pca`.
        root: folder that stands for {root} in the suite.
        only: names of the data sets to score on; all if empty.
        out: folder for results, tables and cached features.
        seed: seed of heads and label subsets.
    """

    encoders: PossiblyEmpty[str]
    root: str | None
    only: PossiblyEmpty[str]
    out: str
    seed: Natural


@dataclass(frozen=True)
class Suite:
    """Data sets and tasks of a benchmark.

    Attributes:
        name: name of the suite.
        data: {data set: arguments of `ldae probe` that choose it}.
        tasks: {task: arguments of `ldae probe` with its protocols and labels}.
    """

    name: str
    data: dict
    tasks: dict

    def __post_init__(self) -> None:
        for group in ("data", "tasks"):
            entries = getattr(self, group)
            if not entries:
                raise ConfigError(f"suite.{group}", entries, "names nothing; it needs at least one entry")
            for name, argv in entries.items():
                conform(f"suite.{group}.{name}", argv, list[str])


@dataclass(frozen=True)
class Cell:
    """One call of the probe: an encoder on a data set in a task.

    Attributes:
        encoder, data, task: their names.
        argv: arguments of `ldae probe`.
        machine: further ones, which results do not depend on: device, threads, folder.
        identity: what the results depend on besides: the hash of the weights.
    """

    encoder: str
    data: str
    task: str
    argv: tuple[str, ...]
    machine: tuple[str, ...]
    identity: str

    def path(self, out: Path) -> Path:
        """Return the file of the results: equal for equal measurements."""
        names = "-".join(FILE_NAME.sub("_", name) for name in (self.encoder, self.data, self.task))
        return out / "cells" / f"{names}-{json_hash([self.argv, self.identity])[:10]}.jsonl"

    def results(self, out: Path) -> list[Result] | None:
        """Return the results on disk; None if there are none, or the file is damaged."""
        try:
            return read_results(self.path(out))
        except (OSError, ValueError, TypeError):
            return None


def main(argv: Sequence[str]) -> None:
    """Run `ldae benchmark`."""
    config, precision = _config(argv)
    settings: BenchmarkSettings = root_settings(BenchmarkSettings, config)
    suite: Suite = construct(Suite, config["suite"], {})
    announce(precision)
    cells = list(_cells(config, settings, suite))
    out = Path(settings.out).expanduser()
    make_out(out)
    failures = _run(cells, out)
    scored = {cell: results for cell in cells if (results := cell.results(out))}
    if scored:
        write_results(out / "results.jsonl", [result for results in scored.values() for result in results])
        comparison = compare(scored)
        text = tables(suite, comparison, scored)
        write_text(out / "benchmark.md", text)
        write_benchmark(comparison, out, f"Benchmark on the suite {suite.name}", lead(suite), notes(scored))
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


def _cells(config: Mapping[str, Any], settings: BenchmarkSettings, suite: Suite) -> Iterator[Cell]:
    """Yield every measurement, data sets outermost.

    Raises:
        ConfigError: an encoder, data set or root is missing or unknown.
    """
    if not settings.encoders:
        raise ConfigError("encoders", [], "names nothing to score; give e.g. encoders=[RUN,untrained:RUN,pixels,pca]")
    if len(set(settings.encoders)) < len(settings.encoders):
        raise ConfigError("encoders", settings.encoders, "must name each once")
    for name in settings.only:
        if name not in suite.data:
            raise ConfigError("only", name, f"is no data set of suite {suite.name}; there are: {', '.join(suite.data)}")
    shared = [f"seed={settings.seed}", f"precision={config['precision']}", "baselines=false"]
    machine = [f"device={config['device']}", f"batch={'null' if config['batch'] is None else config['batch']}"]
    machine += [f"runtime.{key}={str(value).lower()}" for key, value in config["runtime"].items()]
    encoders = {name: [] if name.startswith(FEATURES) else [encoder_argv(name)] for name in settings.encoders}
    for data in settings.only or suite.data:
        chosen_data = _at_root(data, suite.data[data], settings.root)
        if chosen_data is None:
            continue
        tasks = {task: _at_root(f"{data}, {task}", arguments, settings.root) for task, arguments in suite.tasks.items()}
        for name, encoder in encoders.items():
            place = "/".join(FILE_NAME.sub("_", part) for part in (name, data))
            folder = argument("out", Path(settings.out).expanduser() / "features" / place)
            for chosen_encoder, identity in encoder or features_argv(name, data):
                of_images = chosen_data if encoder else []
                for task, arguments in tasks.items():
                    if arguments is not None and _is_possible(of_images, arguments):
                        argv = (*chosen_encoder, *of_images, *arguments, *shared)
                        yield Cell(name, data, task, argv, (folder, *machine), identity)


def _is_possible(of_images: Sequence[str], task: Sequence[str]) -> bool:
    """Return whether a task can be scored: files of features have no images, a set no outliers among itself."""
    needs_images = any(word.startswith(("corruptions=", "outliers=")) for word in task)
    same = {f"data={word.removeprefix('outliers=')}" for word in task if word.startswith("outliers=")}
    return bool(of_images) >= needs_images and not same & set(of_images)


def features_argv(name: str, data: str) -> list[tuple[list[str], str]]:
    """Return the arguments and hash of FOLDER/DATA.npz for an encoder `features:FOLDER`; none, with a note, without it.

    Raises:
        ConfigError: the folder does not exist.
    """
    folder = Path(name.removeprefix(FEATURES)).expanduser()
    if not folder.is_dir():
        raise ConfigError("encoders", name, f"names no folder: {folder} does not exist")
    file = folder / f"{data}.npz"
    if not file.is_file():
        print(f"{data}: {file} does not exist; left out", file=sys.stderr, flush=True)
        return []
    return [([argument("features", file)], sha256(file))]


def encoder_argv(name: str) -> tuple[list[str], str]:
    """Return the arguments of `ldae probe` that choose an encoder, and the hash of its weights.

    Raises:
        ConfigError: the file of weights does not exist.
        CheckpointError: a run has no checkpoint.
    """
    if name in BASELINES:
        return [f"baseline={name}"], "none"
    if name.startswith(UNTRAINED):
        trained, _ = encoder_argv(name.removeprefix(UNTRAINED))
        return [*(word for word in trained if not word.startswith("checkpoint=")), "baseline=untrained"], "none"
    if name.endswith(".onnx"):
        if not Path(name).expanduser().is_file():
            raise ConfigError("encoders", name, "does not exist; give the .onnx file of an encoder")
        return [argument("onnx", name)], sha256(Path(name).expanduser())
    if FUNCTION.fullmatch(name) and not name.startswith(TIMM):
        return [argument("function", name)], function_hash(load_function(name))
    if (weights := Path(name).expanduser() / WEIGHTS).is_file():  # a folder that `ldae export` wrote
        return [argument("timm", f"{LOCAL}{weights.parent}")], sha256(weights)
    if name.startswith(TIMM) or not Path(name).expanduser().is_dir():
        model, _, file = name.removeprefix(TIMM).partition("@")
        if not file:
            return [argument("timm", model)], "none"
        if not Path(file).expanduser().is_file():
            raise ConfigError("encoders", name, f"has weights in {file}, which does not exist")
        return [argument("timm", model), argument("checkpoint", file)], sha256(Path(file).expanduser())
    return [argument("run", name)], find_checkpoint(Path(name).expanduser()).hash


def _at_root(name: str, arguments: Sequence[str], root: str | None) -> list[str] | None:
    """Return arguments of a data set or task with the folder for {root}; None, with a note, if it is not there.

    Raises:
        ConfigError: the suite needs `root=`.
    """
    if any(ROOT in str(word) for word in arguments) and root is None:
        raise ConfigError("root", None, f"is not set; it is the folder that holds {name}")
    chosen = []
    for word in map(str, arguments):
        key, _, value = word.partition("=")
        if ROOT not in value:
            chosen.append(word)
            continue
        folder = value.replace(ROOT, str(root))
        if not Path(folder).expanduser().exists():
            print(f"{name}: {folder} does not exist; left out", file=sys.stderr, flush=True)
            return None
        chosen.append(argument(key, folder))
    return chosen


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
            results = score([*cell.argv, *cell.machine])
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
    results: dict[Column, dict[str, Result]] = {}
    for cell, of_cell in scored.items():
        for result in of_cell:
            results.setdefault(Column(cell.data, cell.task, result.protocol), {})[cell.encoder] = result
    return Comparison(list(dict.fromkeys(cell.encoder for cell in scored)), results)


def lead(suite: Suite) -> str:
    """Return what a benchmark measures, in a sentence."""
    return f"Suite {suite.name}: top-1 accuracy on the test images, percent, or what a column says."


def notes(scored: Mapping[Cell, Sequence[Result]]) -> list[str]:
    """Return the doubts about single results, each once."""
    doubts = (f"{cell.data}: {note}" for cell, of_cell in scored.items() for r in of_cell for note in r.warnings)
    return list(dict.fromkeys(doubts))


def tables(suite: Suite, comparison: Comparison, scored: Mapping[Cell, Sequence[Result]]) -> str:
    """Return the tables of a benchmark, as Markdown."""
    parts = [
        f"{lead(suite)} Bold: the best; ~: not worse than the best beyond noise (95 % bootstrap interval of the "
        "difference over the images).",
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
