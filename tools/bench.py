"""Measures time and memory on this machine.

    python tools/bench.py features                          # protocols on 1.28 M x 768 features, within 8 GiB
    python tools/bench.py features rows=100000 queries=10000 protocols=[knn]

Keys: rows= holdout= queries= dimensions= classes= epochs= protocols= memory= threads= seed= out=. Leaves a line for
each protocol in OUT/bench.jsonl.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from _bench_features import FeatureBench, Spent, features_bench
from _cells import told
from _cli import compose, resolved, run_tool
from _session import commit, own_settings

from ldae.errors import UsageError
from ldae.files import write_text

BENCHES = ("features",)


def main(words: Sequence[str]) -> None:
    """Measures what the first word names."""
    if not words or words[0] not in BENCHES:
        raise UsageError(f"the first word says what is measured: {', '.join(BENCHES)}")
    settings: FeatureBench = own_settings(FeatureBench, resolved(compose("bench", words[1:])))
    print(
        f"{settings.rows:,} x {settings.dimensions} features, {settings.classes} classes, {settings.queries:,} queries"
    )
    out, lines = Path(settings.out), []
    known = {
        "bench": words[0],
        "command": told(" ".join(["python", "tools/bench.py", *words])),
        "commit": commit(),
        "machine": f"{platform.processor() or platform.machine()}, {settings.threads or 'all'} threads",
    }
    for spent in features_bench(settings):
        print(sentence(spent), flush=True)
        lines.append(json.dumps({**known, **asdict(settings), **asdict(spent), "out": "OUT"}))
        write_text(out / "bench.jsonl", "\n".join(lines) + "\n")


def sentence(spent: Spent) -> str:
    """What a protocol took, in a line."""
    steps = f", {spent.steps:,} of {spent.whole:,} steps" if spent.whole else ""
    return (
        f"{spent.protocol}{steps}: read {spent.read:.0f} s, choice {spent.tried:.0f} s, test {spent.final:.0f} s, "
        f"at most {spent.peak:.2f} GiB (accuracy {spent.accuracy:.1f})"
    )


if __name__ == "__main__":
    run_tool(main)
