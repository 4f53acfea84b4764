"""Measure speed and memory on this machine, side by side with other software on the same work.

    python tools/bench training                          # training steps: l-DAE and timm
    python tools/bench knn probe out=OUT                 # nearest neighbours, linear probes
    python tools/bench all [mae=DIR] [cold=DIR] [site=DIR] [images=DIR] [jpegs=DIR]     # every row
    python tools/bench features                          # protocols on 1.28 M x 768 features, within 8 GiB
    python tools/bench growth [only=width]               # a training step by images, tokens, d, width, processes
    python tools/bench profile [jpegs=DIR] [only=U-Net]  # the time of a row by kinds of operations

Competitors run in alternation, each in its own process. Rows: training start gpu load unet cold knn probe input
(start: of a compiled training; gpu: networks of the paper's size, for a GPU; load: with another busy process).
Competitors come from checkouts of facebookresearch/mae (mae=) and arpitbansal297/Cold-Diffusion-Models (cold=), and
from packages (diffusers, denoising-diffusion-pytorch, torchgeometry) that are installed here or in site=; images= and
jpegs= are class folders of small and of full-size pictures. Rows without their competitors are left out. Keys: rounds=
seconds= threads= precision= only= out= and for `features` rows= holdout= queries= dimensions= classes= epochs=
protocols= memory= seed=. Writes OUT/bench.json, a record for each row; OUT/features.jsonl, a line for each protocol;
OUT/growth.json and figures of it; OUT/profile.json.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from breakdown import breakdowns
from features_bench import FeatureBench, ProtocolCost, features_bench
from growth import AXES, measure_growth, write_growth
from interleaved import Timed, function, interleaved
from rows import (
    Row,
    cold_rows,
    gpu_rows,
    input_rows,
    knn_rows,
    load_rows,
    probe_rows,
    start_rows,
    training_rows,
    unet_rows,
)

from ldae.app.ablation.runner import portable_command
from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.provenance import commit
from ldae.app.session import root_settings
from ldae.core.errors import ConfigError, UsageError
from ldae.core.files import write_json, write_text
from ldae.core.types import Count, Natural, Positive
from ldae.engine.precision import PrecisionName
from ldae.engine.runtime import describe_hardware, resolve_device, set_threads
from linear_probe.results import markdown

T = TypeVar("T")
FEATURES, GROWTH, PROFILE, ALL = "features", "growth", "profile", "all"


@dataclass(frozen=True)
class BenchSettings:
    """Configure the measurements.

    Attributes:
        rounds: measurements of each competitor.
        seconds: approximate duration of a measurement in seconds.
        threads: CPU threads of each process; torch's default if 0.
        mae, cold: folders of checkouts of facebookresearch/mae and arpitbansal297/Cold-Diffusion-Models, or None.
        site: folder of competitors' packages, or None.
        images, jpegs: folders of class folders of small and of full-size images, or None.
        only: part of the names of the rows to measure, or None for all.
        out: output folder.
        precision: precision of training steps, sampling and features.
    """

    rounds: Count
    seconds: Positive
    threads: Natural
    mae: str | None
    cold: str | None
    site: str | None
    images: str | None
    jpegs: str | None
    only: str | None
    out: str
    precision: PrecisionName


BENCHES: Mapping[str, Callable[[BenchSettings], list[Row]]] = {
    "training": lambda settings: training_rows(settings.mae, settings.precision),
    "start": lambda settings: start_rows(settings.precision),
    "gpu": lambda settings: gpu_rows(settings.precision),
    "load": lambda settings: load_rows(settings.precision),
    "unet": lambda settings: unet_rows(settings.site, settings.precision),
    "cold": lambda settings: cold_rows(settings.cold, settings.site),
    "knn": lambda settings: knn_rows(),
    "probe": lambda settings: probe_rows(settings.precision),
    "input": lambda settings: input_rows(settings.images, settings.jpegs, settings.precision),
}


def main(argv: Sequence[str]) -> None:
    """Measure the rows that the arguments name."""
    names = [word for word in argv if "=" not in word]
    choices = ", ".join([*BENCHES, FEATURES, GROWTH, PROFILE, ALL])
    if not names or set(names) - set(choices.split(", ")):
        raise UsageError(f"name the rows to measure: {choices}")
    config, precision = settle_precision(resolved(compose("bench", [word for word in argv if "=" in word])))
    settings: BenchSettings = root_settings(BenchSettings, config)
    features: FeatureBench = root_settings(FeatureBench, config)
    set_threads(settings.threads)
    provenance = {
        "command": portable_command(shlex.join(["python", "tools/bench", *argv])),
        "commit": commit(),
        "hardware": describe_hardware(),
        "precision": settings.precision,
    }
    announce(precision)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    if FEATURES in names:
        measure_features(features, provenance, out)
    if GROWTH in names:
        axes = chosen(AXES, settings.only, GROWTH)
        points = measure_growth(axes, settings.precision, settings.threads, settings.rounds, settings.seconds)
        write_growth(points, provenance, out)
    if PROFILE in names:
        profile_rows(settings, provenance, out)
    on_gpu = resolve_device("auto") != "cpu"
    every = [name for name in BENCHES if on_gpu or name != "gpu"]
    selected = every if ALL in names else [name for name in names if name in BENCHES]
    rows = [row for name in selected for row in BENCHES[name](settings) if (settings.only or "") in row.name]
    if selected and not rows:
        raise ConfigError("only", settings.only, f"names no row of {', '.join(selected)}")
    if rows:
        measure_rows(rows, settings, provenance, out)


def chosen(named: Mapping[str, T], only: str | None, what: str) -> dict[str, T]:
    """Return the items whose name contains `only`; all without it.

    Raises:
        ConfigError: there is none.
    """
    items = {name: item for name, item in named.items() if (only or "") in name}
    if not items:
        raise ConfigError("only", only, f"names nothing of {what}; there are: {', '.join(named)}")
    return items


def profile_rows(settings: BenchSettings, provenance: Mapping[str, Any], out: Path) -> None:
    """Break the time of rows down by kinds of operations; print and write it."""
    records: dict[str, list[dict[str, Any]]] = {}
    for name, work in chosen(breakdowns(settings.precision, settings.jpegs), settings.only, PROFILE).items():
        stages = work()
        whole = sum(stage.milliseconds for stage in stages)
        lines = [["part", "ms", "%"]]
        lines += [[s.name, f"{s.milliseconds:.3g}", f"{100 * s.milliseconds / whole:.0f}"] for s in stages]
        print(f"\n{name}: {whole:.3g} ms\n\n{markdown(lines)}", flush=True)
        records[name] = [asdict(stage) for stage in stages]
        write_json(out / "profile.json", {**provenance, "rows": records})


def measure_rows(rows: Sequence[Row], settings: BenchSettings, provenance: Mapping[str, Any], out: Path) -> None:
    """Measure the competitors of each row; print and write the records."""
    records: list[dict[str, Any]] = []
    for row in rows:
        print(f"{row.name}: {', '.join(c.name for c in row.competitors)}", flush=True)
        timed = interleaved(row.competitors, settings.threads, settings.rounds, settings.seconds)
        results = compared(row, timed)
        if row.same and results and results[0]["peer"] == row.peers[0].name:
            same: Any = function(row.same)
            results[0]["same"] = same(**row.ours.arguments)
            print(f"  {results[0]['same']:.2f} % of predictions equal those of {row.peers[0].name}")
        records += [{**provenance, "rounds": settings.rounds, **record} for record in results]
        write_json(out / "bench.json", {"rows": records})
    print(f"\n{provenance['hardware']}; median of {settings.rounds} rounds, lowest and highest in brackets\n")
    print(table(records))


def compared(row: Row, timed: Sequence[Timed]) -> list[dict[str, Any]]:
    """Return a record for each peer of a row."""
    ours, limit = timed[0], next((t for t in timed if t.competitor == row.peak), None)
    peers = [t for t in timed[1:] if t is not limit]
    shares = {t.competitor.name: t.ratio(limit)[0] for t in timed} if limit else {}
    records = []
    for peer in peers:
        ratio, low, high = ours.ratio(peer)
        mark = row.marks.get(peer.competitor.name)
        record = {"row": row.name, "unit": row.unit, "ours": ours.rate, "peer": peer.competitor.name}
        record |= {"peer_rate": peer.rate, "ratio": ratio, "low": low, "high": high, "aim": mark}
        record |= {"share": shares.get(ours.competitor.name), "peer_share": shares.get(peer.competitor.name)}
        record |= {"aimed_share": row.share, "least": row.least, "peak_gib": ours.peak, "peer_peak_gib": peer.peak}
        records.append(record)
    return records


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of records."""
    lines = [["row", "ours", "of peak", "peer", "its rate", "of peak", "ratio", "aim", "met"]]
    for r in records:
        aim, met = "" if r["aim"] is None else f"{r['aim']:.2f}", met_by(r)
        ratio = f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        shares = [_percent(r["share"], r["aimed_share"]), _percent(r["peer_share"])]
        name = f"{r['row']}, {r['unit']}"
        rate = f"{r['ours']:.3g}" + (f" (aim {r['least']:.3g})" if r["least"] else "")
        lines.append([name, rate, shares[0], r["peer"], f"{r['peer_rate']:.3g}", shares[1], ratio, aim, met])
    return markdown(lines)


def met_by(record: Mapping[str, Any]) -> str:
    """Return whether all that a record's row aims at was reached: yes, no, or nothing where nothing is aimed at."""
    pairs = [("ratio", "aim"), ("share", "aimed_share"), ("ours", "least")]
    met = [record[value] >= record[aim] for value, aim in pairs if record[aim] is not None]
    return "" if not met else "yes" if all(met) else "no"


def _percent(share: float | None, aim: float | None = None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.0f} %" + (f" (aim {100 * aim:.0f})" if aim else "")


def measure_features(settings: FeatureBench, provenance: Mapping[str, Any], out: Path) -> None:
    """Measure protocols on features of ImageNet's size; print and write the costs."""
    size = f"{settings.rows:,} x {settings.dimensions} features of {settings.classes} classes"
    print(f"{size}, {settings.queries:,} queries", flush=True)
    lines = []
    for cost in features_bench(settings):
        print(describe_protocol(cost), flush=True)
        lines.append(json.dumps({**provenance, **asdict(settings), **asdict(cost), "out": "OUT"}))
        write_text(out / "features.jsonl", "\n".join(lines) + "\n")


def describe_protocol(cost: ProtocolCost) -> str:
    """Return a line on the cost of a protocol."""
    steps = f", {cost.steps:,} of {cost.whole:,} steps" if cost.whole else ""
    return (
        f"{cost.protocol}{steps}: read {cost.read:.0f} s, choice {cost.tried:.0f} s, test {cost.final:.0f} s, "
        f"at most {cost.peak:.2f} GiB (accuracy {cost.accuracy:.1f})"
    )
